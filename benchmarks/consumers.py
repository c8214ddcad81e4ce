"""Who reads the packets: each in a process of its own on a CPU of its own, in the tap's namespace.

`python -m benchmarks.consumers flow|recv|scapy` says `ready`, counts packets and their bytes until SIGINT, says JSON.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ffpf_bpf.flow import Flow
from tests.network import Network

INTERFACE, SNAPLEN, CPU = "tap0", 96, 1
BUFFER_BYTES = 4 << 20
SO_RCVBUFFORCE, SOL_PACKET, PACKET_STATISTICS = 33, 263, 6
ETH_P_ALL = 3
COMMANDS = {
    "flow": (sys.executable, "-m", "benchmarks.consumers", "flow"),
    "recv": (sys.executable, "-m", "benchmarks.consumers", "recv"),
    "scapy": (sys.executable, "-m", "benchmarks.consumers", "scapy"),
    "tcpdump": ("tcpdump", "-i", INTERFACE, "-n", "-s", str(SNAPLEN), "-w", "/dev/null"),
}
DRAIN_S = 0.3


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


@contextmanager
def consuming(name: str, network: Network) -> Iterator[Consumer]:
    """A consumer that is ready; told to end, and asked what it got, when the block is left."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with network.enter():
        process = subprocess.Popen(
            ["taskset", "-c", str(CPU), *COMMANDS[name]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
    consumer = Consumer(process)
    try:
        (process.stderr if name == "tcpdump" else process.stdout).readline()  # type: ignore[union-attr]
        time.sleep(0.1)
        yield consumer
        time.sleep(DRAIN_S)
    finally:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    if name == "tcpdump":
        found = re.findall(r"(\d+) packets (captured|dropped by kernel)", errors)
        numbers = {what: int(number) for number, what in found}
        consumer.delivered, consumer.lost = numbers["captured"], numbers["dropped by kernel"]
    else:
        result = json.loads(output.splitlines()[-1])
        consumer.delivered, consumer.lost = result["delivered"], result["lost"]


def consume_flow() -> dict[str, int]:
    """The batches of a flow: packets counted, lengths summed by numpy."""
    stop: list[int] = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(1))
    with Flow.create() as flow:
        flow.populate(f"(device,{INTERFACE}) -> (grab,snaplen={SNAPLEN})", buffer_bytes=BUFFER_BYTES)
        flow.instantiate().activate()
        print("ready", flush=True)
        packets = wire_bytes = 0
        for batch in flow.batches(idle=lambda: bool(stop)):
            packets += len(batch)
            wire_bytes += int(batch.records["original"].sum())
        ledger = flow.stats().ledger
    return {"delivered": packets, "bytes": wire_bytes, "lost": ledger.ring_full}


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


CONSUMERS = {"flow": consume_flow, "recv": consume_recv, "scapy": consume_scapy}

if __name__ == "__main__":
    print(json.dumps(CONSUMERS[sys.argv[1]]()), flush=True)
    os._exit(0)  # scapy's thread does not hear of the end
