"""A packet generator: a BPF program that redirects live frames to an interface (BPF_F_TEST_XDP_LIVE_FRAMES).

What it sends out of one end of a veth pair arrives at the other within the same call: the softirq that receives runs
after each batch of 64, on the same CPU. So the CPU time of a call is what sending and receiving its packets cost. The
receiving end needs an XDP program or GRO, or nothing arrives.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import ExitStack

from benchmarks import rivals
from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel import calls, interfaces, structures
from ffpf_bpf.kernel.maps import Descriptor, MappedArray
from ffpf_bpf.kernel.programs import Binding, load
from tests.network import Network

LIVE_FRAMES = 1 << 1
BATCH = 64
STRUCT_BYTES, TEMPLATE = 128, 64


class Generator:
    """Sends copies of `frame` (64 bytes are its own, the rest is zero) out of the network's peer."""

    def __init__(self, network: Network, frame: bytes) -> None:
        self._network = network
        self.frame = frame.ljust(64, b"\0")
        with ExitStack() as stack:
            stack.enter_context(network.enter(network.outside))
            memory = stack.enter_context(MappedArray("generator", STRUCT_BYTES))
            memory.memory[0:4] = interfaces.find(network.peer).index.to_bytes(4, "little")
            memory.memory[TEMPLATE : TEMPLATE + 64] = self.frame[:64]
            compiled = rivals.compile_c("generator").programs["generate"]
            self._program = stack.enter_context(load(compiled, {"generator": Binding(memory, True)}))
            # Attached where nothing comes, or each call would wait for the XDP dispatcher.
            idle = interfaces.find("lo").index
            stack.enter_context(Descriptor(calls.attach_xdp(self._program.fileno, idle, calls.XDP_FLAGS_SKB_MODE)))
            self._stack = stack.pop_all()

    def send(self, packets: int) -> int:
        """Send, receive included; nanoseconds of this thread's CPU time. Call it in the namespace it was made in."""
        options = structures.TestOptions(
            sz=ctypes.sizeof(structures.TestOptions),
            data_in=self.frame,
            data_size_in=len(self.frame),
            repeat=packets,
            flags=LIVE_FRAMES,
            batch_size=BATCH,
        )
        before = time.thread_time_ns()
        result = calls.library().bpf_prog_test_run_opts(self._program.fileno, ctypes.byref(options))
        spent_ns = time.thread_time_ns() - before
        if result < 0:
            raise KernelError("cannot generate packets", errno=-result)
        return spent_ns

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()
