"""Who reads the packets: each in a process of its own on a CPU of its own, in the tap's namespace.

`python -m benchmarks.consumers NAME`, one of `CONSUMERS`, says `ready`, counts packets and their bytes until SIGINT,
and says JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ffpf_bpf.capture.waiting import Pace, together
from ffpf_bpf.flow import Flow
from tests.network import Network

INTERFACE, SNAPLEN, CPU = "tap0", 96, 1
BUFFER_BYTES = 4 << 20
SO_RCVBUFFORCE, SOL_PACKET, PACKET_STATISTICS = 33, 263, 6
ETH_P_ALL = 3
DRAIN_S, IDLE_S = 0.3, 0.05
MANY = 16  # applications that want the same packets
COMMANDS = {
    **{
        name: (sys.executable, "-m", "benchmarks.consumers", name)
        for name in ("flow", "monitor", f"{MANY} flows", "recv", "scapy", "pcap")
    },
    "dumpcap": ("dumpcap", "-q", "-i", INTERFACE, "-s", str(SNAPLEN), "-B", str(BUFFER_BYTES >> 20), "-w", "/dev/null"),
    "tcpdump": ("tcpdump", "-i", INTERFACE, "-n", "-s", str(SNAPLEN), "-w", "/dev/null"),
}


@dataclass
class Consumer:
    """A running consumer; `delivered` and `lost` are known once it has ended."""

    process: subprocess.Popen[str]
    delivered: int = 0
    lost: int = 0

    def cpu_ns(self) -> int:
        """CPU time of all its threads so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks)


# How tcpdump and dumpcap tell what they got, and what they lost.
TOLD = {
    "tcpdump": (r"(\d+) packets captured", r"(\d+) packets dropped by kernel"),
    "dumpcap": (r"received/dropped on interface '.*?': (\d+)/", r"received/dropped on interface '.*?': \d+/(\d+)"),
}


@contextmanager
def consuming(name: str, network: Network, *, drain_s: float = DRAIN_S) -> Iterator[Consumer]:
    """A consumer that is ready; told to end, `drain_s` later, and asked what it got, when the block is left."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with network.enter():
        process = subprocess.Popen(
            ["taskset", "-c", str(CPU), *COMMANDS[name]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
    consumer = Consumer(process)
    try:
        (process.stderr if name in TOLD else process.stdout).readline()  # type: ignore[union-attr]
        time.sleep(0.5 if name == "dumpcap" else 0.1)
        yield consumer
        time.sleep(drain_s)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if name in TOLD:
        found = [re.search(text, errors) for text in TOLD[name]]
        consumer.delivered, consumer.lost = (int(each[1]) if each else 0 for each in found)
    else:
        result = json.loads(output.splitlines()[-1])
        consumer.delivered, consumer.lost = result["delivered"], result["lost"]


def consume_flow(tap: str = INTERFACE) -> dict[str, int]:
    """The batches of a flow: packets counted, lengths summed by numpy."""
    stop: list[int] = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    with Flow.create() as flow:
        flow.populate(f"(device,{tap}) -> (grab,snaplen={SNAPLEN})", buffer_bytes=BUFFER_BYTES)
        flow.instantiate().activate()
        print("ready", flush=True)
        packets = wire_bytes = 0
        for batch in flow.batches(idle=lambda: bool(stop)):
            packets += len(batch)
            wire_bytes += int(batch.records["original"].sum())
        ledger = flow.stats().ledger
    return {"delivered": packets, "bytes": wire_bytes, "lost": ledger.ring_full}


def consume_monitor() -> dict[str, int]:
    """The same at a monitor port."""
    return consume_flow(f"{INTERFACE},monitor")


def consume_many() -> dict[str, int]:
    """The batches of flows that want the same packets: each counts them, and sums lengths."""
    stop: list[int] = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    packets = wire_bytes = 0
    with ExitStack() as stack:
        flows = [stack.enter_context(Flow.create()) for _ in range(MANY)]
        for flow in flows:
            flow.populate(f"(device,{INTERFACE},monitor) -> (grab,snaplen={SNAPLEN})", buffer_bytes=BUFFER_BYTES)
            flow.instantiate().activate()
        print("ready", flush=True)
        pace = Pace()
        while not stop:
            taken = max(flow.waiting() for flow in flows)
            for flow in flows:
                for batch in flow.poll():
                    packets += len(batch)
                    wire_bytes += int(batch.records["original"].sum())
            pace.rest(lambda: together(flow.listen() for flow in flows), taken, max(flow.waiting() for flow in flows))
        lost = sum(flow.stats().ledger.ring_full for flow in flows)
    return {"delivered": packets, "bytes": wire_bytes, "lost": lost}


def consume_recv() -> dict[str, int]:
    """A Python loop over recv_into of a packet socket: packets counted, lengths summed."""
    packets = wire_bytes = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as raw, suppress(KeyboardInterrupt):
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        raw.bind((INTERFACE, ETH_P_ALL))
        print("ready", flush=True)
        receive, buffer = raw.recv_into, bytearray(SNAPLEN)
        with suppress(KeyboardInterrupt):
            while True:
                wire_bytes += receive(buffer, SNAPLEN, socket.MSG_TRUNC)
                packets += 1
        _, lost = struct.unpack("II", raw.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    return {"delivered": packets, "bytes": wire_bytes, "lost": lost}


def consume_scapy() -> dict[str, int]:
    """scapy's AsyncSniffer: packets counted, lengths summed. It does not tell what it lost."""
    from scapy.sendrecv import AsyncSniffer  # noqa: PLC0415 - slow to import

    stop: list[int] = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    packets = wire_bytes = 0

    def count(packet: object) -> None:
        nonlocal packets, wire_bytes
        packets += 1
        wire_bytes += len(packet)  # type: ignore[arg-type]

    def ready() -> None:
        print("ready", flush=True)

    sniffer = AsyncSniffer(iface=INTERFACE, store=False, prn=count, started_callback=ready)
    sniffer.start()
    while not stop:
        time.sleep(0.01)
    return {"delivered": packets, "bytes": wire_bytes, "lost": 0}


class _Header(ctypes.Structure):
    """struct pcap_pkthdr."""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("micros", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


def consume_pcap() -> dict[str, int]:
    """pcap_next_ex() by ctypes: packets counted, lengths summed."""
    library = ctypes.CDLL("libpcap.so.0.8")
    library.pcap_create.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.pcap_create(INTERFACE.encode(), ctypes.create_string_buffer(256)))
    library.pcap_set_snaplen(handle, SNAPLEN)
    library.pcap_set_buffer_size(handle, BUFFER_BYTES)
    library.pcap_set_timeout(handle, 10)
    if library.pcap_activate(handle) < 0:
        raise OSError("libpcap cannot open the interface")
    # Or it would sleep in libpcap, where no signal wakes it.
    library.pcap_setnonblock(handle, 1, ctypes.create_string_buffer(256))
    descriptor = library.pcap_get_selectable_fd(handle)
    stop: list[int] = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    print("ready", flush=True)
    header, data = ctypes.POINTER(_Header)(), ctypes.c_void_p()
    wanted = handle, ctypes.byref(header), ctypes.byref(data)
    read = library.pcap_next_ex
    packets = wire_bytes = 0
    while not stop:
        if read(*wanted) == 1:
            packets += 1
            wire_bytes += header.contents.length
        else:
            select.select([descriptor], [], [], IDLE_S)
    statistics = (ctypes.c_uint32 * 3)()  # struct pcap_stat: received, dropped, dropped by the interface
    library.pcap_stats(handle, statistics)
    return {"delivered": packets, "bytes": wire_bytes, "lost": statistics[1]}


CONSUMERS = {
    "flow": consume_flow, "monitor": consume_monitor, f"{MANY} flows": consume_many,
    "recv": consume_recv, "scapy": consume_scapy, "pcap": consume_pcap,
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(CONSUMERS[sys.argv[1]]()), flush=True)
    os._exit(0)  # scapy's thread does not hear of the end
