"""What a grabbed packet costs where it arrives: a flow's ring against the kernel's own, and one more reader of it.

    python -m benchmarks.producing [--quick]

Nanoseconds per packet by BPF_PROG_TEST_RUN, 60 bytes at snaplen 96, less the empty program's. A flow also counts, and
keeps its ledger; its rivals (`handwritten/output.c`) only write records. All read the clock once for each packet, which
is shown apart (`handwritten/clock.c`). A copy costs by its length, one more reader does not: so readers are shown for
whole frames of 1,514 bytes as well.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import statistics
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from benchmarks import meter
from benchmarks.frames import UDP, ipv4, udp
from benchmarks.meter import Case, Rig
from benchmarks.node_chains import chain
from benchmarks.node_rivals import RINGBUF_BYTES, compile_c
from benchmarks.packet import Effort
from benchmarks.table import Row, Table, main
from ffpf_bpf.kernel import calls
from ffpf_bpf.kernel.maps import Bell, Descriptor
from ffpf_bpf.kernel.programs import Binding, load
from tests.network import Network, two_namespaces

GOAL_PRODUCER, GOAL_READER = 0.7, 0.1
SNAPLEN, READERS = 96, 8
FRAME = ipv4(UDP, udp(1, 9, b"x" * 18))
CALLS = {"ringbuf": "bpf_ringbuf_output", "perf": "bpf_perf_event_output"}
CLOCK = "clock"
PERF_EVENT_ARRAY = 4
PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "ppc64le": 319, "s390x": 331}
PERF_TYPE_SOFTWARE, PERF_COUNT_SW_BPF_OUTPUT, PERF_SAMPLE_RAW, WATERMARK = 1, 10, 1 << 10, 1 << 14
PERF_ATTR_BYTES, PERF_FLAG_FD_CLOEXEC, PERF_EVENT_IOC_ENABLE = 112, 8, 0x2400


@dataclass(frozen=True, slots=True)
class Kind:
    """Packets that are all alike, how much is grabbed of each, and how many rings of 4 MiB have room for."""

    name: str
    frame: bytes
    snaplen: int
    packets: int

    def grab(self, less: int = 0) -> str:
        return f"(device,tap0) -> (grab,snaplen={self.snaplen - less})"


SMALL = Kind("60 bytes", FRAME, SNAPLEN, 30_000)
WHOLE = Kind("1,514 bytes", ipv4(UDP, udp(1, 9, b"x" * 1472)), 1514, 2_000)


def run(quick: bool = False) -> Table:
    """All rows."""
    effort = Effort(1, 2, 2_000) if quick else Effort(7, 9, SMALL.packets)
    with Rig() as rig, two_namespaces("produce") as one, two_namespaces("produc2") as two:
        rows = [*_producers(rig, one, effort)]
        for kind in (SMALL, WHOLE):
            of_kind = replace(effort, repeat=min(effort.repeat, kind.packets))
            rows += _readers(rig, (one, two), of_kind, kind)
    return Table("A grabbed packet where it arrives (ns)", tuple(rows), (
        f"{effort.repeat:,} packets at a time, {WHOLE.packets:,} whole ones, all delivered: rings of 4 MiB are emptied "
        "in between; perf's, of 4 MiB, overwrites. Medians of several loads. Each reads the clock once: without it "
        "there is what the ring itself takes.",
        f"Readers: the mean of {READERS - 1} flows more, that want the same packets; a copy: of as many whose snap "
        "lengths differ, so that each has a ring of its own.",
    ))  # fmt: skip


def _producers(rig: Rig, network: Network, effort: Effort) -> Iterator[Row]:
    found: dict[str, list[float]] = {}
    for _ in range(effort.loads):
        with ExitStack() as stack:
            ours = stack.enter_context(chain(network, SMALL.grab()))
            clock = stack.enter_context(load(compile_c("clock").programs["filter"], {}))
            cases = {"ours": Case(ours.program, FRAME, ours.drain), CLOCK: Case(clock.fileno, FRAME)}
            for name, output in (("ringbuf", _ringbuf), ("perf", _perf)):
                program, drain = stack.enter_context(output())
                cases[name] = Case(program, FRAME, drain)
            _measured(rig, cases, effort, found)
    ns = {name: statistics.median(values) for name, values in found.items()}
    better = min(CALLS, key=lambda name: ns[name])
    for name, called in CALLS.items():
        ratio = ns["ours"] / ns[name]
        goal, met = (f"<= {GOAL_PRODUCER}", ratio <= GOAL_PRODUCER) if name == better else ("", None)
        yield Row(f"grab / {called}", f"{ns['ours']:.1f}", f"{ns[name]:.1f}", f"{ratio:.2f}", goal, met)
        mine, other = (ns[each] - ns[CLOCK] for each in ("ours", name))
        work = f"  without the clock, {ns[CLOCK]:.1f} of each / {called}"
        yield Row(work, f"{mine:.1f}", f"{other:.1f}", f"{mine / other:.2f}")


def _readers(rig: Rig, networks: tuple[Network, Network], effort: Effort, kind: Kind) -> Iterator[Row]:
    found: dict[str, list[float]] = {}
    for _ in range(effort.loads):
        with ExitStack() as stack:
            apart = [kind.grab(number) for number in range(READERS)]
            many = {"shared": [kind.grab()] * READERS, "apart": apart}
            cases = {}
            for network, (name, flows) in zip(networks, many.items(), strict=True):
                each = stack.enter_context(chain(network, *flows))
                cases[name] = Case(each.program, kind.frame, each.drain)
            _measured(rig, cases, effort, found)
        with chain(networks[0], kind.grab()) as one:
            _measured(rig, {"one": Case(one.program, kind.frame, one.drain)}, effort, found)
    ns = {name: statistics.median(values) for name, values in found.items()}
    reader, copy = ((ns[name] - ns["one"]) / (READERS - 1) for name in ("shared", "apart"))
    ratio = reader / copy if copy > 0 else float("inf")
    work = f"one more reader of a packet / one more copy, {kind.name}"
    yield Row(work, f"{reader:+.1f}", f"{copy:+.1f}", f"{ratio:.2f}", f"<= {GOAL_READER}", ratio <= GOAL_READER)
    yield Row(
        f"  {READERS} readers / one, {kind.name}",
        f"{ns['shared']:.1f}",
        f"{ns['one']:.1f}",
        f"{ns['shared'] / ns['one']:.2f}",
    )


def _measured(rig: Rig, cases: dict[str, Case], effort: Effort, into: dict[str, list[float]]) -> None:
    """Nanoseconds of each case, less the empty program's."""
    rivals = [case.program for name, case in cases.items() if name in (*CALLS, CLOCK)]
    with meter.empty_program() as empty, rig.attached(empty, *rivals):
        whole = cases | {"empty": Case(empty, FRAME)}
        times = meter.measure(whole, rounds=effort.rounds, repeat=effort.repeat)
    for name in cases:
        into.setdefault(name, []).append(times[name] - times["empty"])


Output = tuple[int, Callable[[], object]]


@contextmanager
def _ringbuf() -> Iterator[Output]:
    """The program, and what empties its ring."""
    compiled = compile_c("output", f"-DSNAPLEN={SNAPLEN}").programs["filter"]
    with Bell("records", RINGBUF_BYTES) as ring, load(compiled, {"records": Binding(ring, False)}) as program:
        yield program.fileno, ring.quiet


@contextmanager
def _perf() -> Iterator[Output]:
    """The program; its rings overwrite what is oldest."""
    compiled = compile_c("output", f"-DSNAPLEN={SNAPLEN}", "-DPERF").programs["filter"]
    cpus = calls.possible_cpus()
    with ExitStack() as stack:
        events = stack.enter_context(Descriptor(calls.create_map(PERF_EVENT_ARRAY, "records", 4, 4, cpus)))
        for cpu in sorted(os.sched_getaffinity(0)):
            event = stack.enter_context(Descriptor(_event(cpu)))
            # Mapped for reading only, it is written over and over.
            stack.enter_context(mmap.mmap(event.fileno, mmap.PAGESIZE + RINGBUF_BYTES, prot=mmap.PROT_READ))
            fcntl.ioctl(event.fileno, PERF_EVENT_IOC_ENABLE, 0)
            calls.set_program(events.fileno, cpu, event.fileno)
        program = stack.enter_context(load(compiled, {"records": Binding(events, False)}))
        yield program.fileno, lambda: None


def _event(cpu: int) -> int:
    """A descriptor of what programs on a CPU output to (perf_event_open(2)); it wakes nobody."""
    attributes = struct.pack(
        "<IIQQQQQI", PERF_TYPE_SOFTWARE, PERF_ATTR_BYTES, PERF_COUNT_SW_BPF_OUTPUT, 1, PERF_SAMPLE_RAW, 0, WATERMARK,
        RINGBUF_BYTES // 2,
    ).ljust(PERF_ATTR_BYTES, b"\0")  # fmt: skip
    libc = ctypes.CDLL(None, use_errno=True)
    event = libc.syscall(PERF_EVENT_OPEN[platform.machine()], attributes, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC)
    if event < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "perf_event_open")
    return int(event)


if __name__ == "__main__":
    main(run, "a grabbed packet where it arrives")
