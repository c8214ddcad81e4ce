"""Packets into an application: numpy batches of a flow against a Python recv loop, scapy and tcpdump.

    python -m benchmarks.delivery [--quick]

64-byte frames at snaplen 96 come over a veth pair; whoever grabs them, they go on into the network stack. Generator
and receiver run on CPU 0, the consumer on CPU 1. Two kinds of traffic: as fast as CPU 0 can, for the packets per
second; and paced so that nobody loses any, for the CPU time: of CPU 0 (sending, receiving, the tap, the stack) less
the same without a consumer, and of the consumer's process.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from benchmarks.consumers import consuming
from benchmarks.frames import UDP, ipv4, udp
from benchmarks.generator import Generator
from benchmarks.table import Row, Table, main
from ffpf_bpf.kernel import calls, interfaces
from ffpf_bpf.kernel.maps import Descriptor
from tests.network import Network, two_namespaces

GOAL_RATE, GOAL_CPU, GOAL_SCAPY = 10.0, 0.5, 1000.0
GENERATOR_CPU = 0
PACED_PPS, BURST = 400_000, 64
FLOOD_BURST = 2_048
FRAME = ipv4(UDP, udp(1, 9, b"x" * 22))


@dataclass(frozen=True, slots=True)
class Flood:
    """As fast as possible: what a consumer got in how long, and its CPU time."""

    offered: int
    delivered: int
    lost: int
    duration_s: float
    consumer_ns: float

    @property
    def rate(self) -> float:
        return self.delivered / self.duration_s

    @property
    def shown(self) -> str:
        share = 100 * (1 - self.delivered / self.offered)
        return f"{self.rate / 1e6:.2f} M/s ({self.delivered:,} of {self.offered:,}, {share:.0f} % lost)"


@dataclass(frozen=True, slots=True)
class Paced:
    """Nanoseconds per packet of CPU 0 and of the consumer, and what was lost."""

    receiving_ns: float
    consumer_ns: float
    offered: int
    delivered: int
    lost: int


def run(quick: bool = False) -> Table:
    """All rows. Raises ValueError if packets got lost before the tap."""
    rounds, flood_s, paced_s = (1, 0.1, 0.2) if quick else (5, 1.0, 1.5)
    with pinned(), two_namespaces("delivery") as network, Generator(network, FRAME) as generator:
        # Without GRO or XDP a veth takes no redirected frames.
        subprocess.run(network.command("ethtool", "-K", network.tap, "gro", "on"), check=True)
        with network.enter(network.outside):
            floods: dict[str, list[Flood]] = {"flow": [], "recv": [], "scapy": [], "bare": []}
            paced: dict[str, list[Paced]] = {"": [], "flow": [], "tcpdump": []}
            for _ in range(rounds):
                for name, found in floods.items():
                    found.append(_flood(network, generator, name, flood_s))
                for name, results in paced.items():
                    results.append(_paced(network, generator, name, paced_s))
    return Table("Delivery of 64-byte frames, snaplen 96", (*_flood_rows(floods), *_paced_rows(paced)), (
        "All packets go on into the stack, which takes most of CPU 0's time and bounds the flow's packets per second: "
        "hence the row without it, where the tap's program runs on one packet over and over for the same consumer. "
        f"Best of {rounds} rounds.",
        f"Paced: {PACED_PPS:,} packets/s in bursts of {BURST}; medians of {rounds} rounds.",
    ))  # fmt: skip


def _flood_rows(floods: dict[str, list[Flood]]) -> Iterator[Row]:
    ours, rival = _best(floods["flow"]), _best(floods["recv"])
    ratio = ours.rate / rival.rate
    goal = f">= {GOAL_RATE:.0f}"
    work = "numpy batches / Python recv: packets"
    yield Row(f"{work} delivered", ours.shown, rival.shown, f"{ratio:.1f}", goal, ratio >= GOAL_RATE)
    alone = _best(floods["bare"])
    yield Row("  the same without the stack's share", alone.shown, rival.shown, f"{alone.rate / rival.rate:.1f}")
    sniffed = _best(floods["scapy"])
    ratio = ours.rate / sniffed.rate
    goal_scapy = f">= {GOAL_SCAPY:,.0f}"
    work_scapy = "numpy batches / scapy's AsyncSniffer: packets delivered"
    yield Row(work_scapy, ours.shown, sniffed.shown, f"{ratio:,.0f}", goal_scapy, ratio >= GOAL_SCAPY)
    of_cpu = [statistics.median(flood.consumer_ns for flood in floods[name]) for name in ("flow", "recv")]
    capacity = of_cpu[1] / of_cpu[0]
    ours_shown, rival_shown = (f"{1e3 / ns:.2f} M ({ns:,.0f} ns each)" for ns in of_cpu)
    work = f"{work} per second of the consumer's CPU"
    yield Row(work, ours_shown, rival_shown, f"{capacity:.1f}", goal, capacity >= GOAL_RATE)


def _best(floods: list[Flood]) -> Flood:
    """What else runs on the consumer's CPU only ever takes away."""
    return max(floods, key=lambda flood: flood.rate)


def _paced_rows(paced: dict[str, list[Paced]]) -> Iterator[Row]:
    bare = [result.receiving_ns for result in paced[""]]
    added = {
        name: statistics.median(result.receiving_ns - base for result, base in zip(paced[name], bare, strict=True))
        for name in ("flow", "tcpdump")
    }
    read = {name: statistics.median(result.consumer_ns for result in paced[name]) for name in added}
    goal = f"<= {GOAL_CPU}"
    for what, values in (("CPU added where packets arrive", added), ("CPU of the reading process", read)):
        ratio = values["flow"] / values["tcpdump"]
        ours, rival = (f"{values[name]:.0f}" for name in ("flow", "tcpdump"))
        work = f"numpy batches / tcpdump: {what}, ns each"
        yield Row(work, ours, rival, f"{ratio:.2f}", goal, ratio <= GOAL_CPU)
    ours, rival = (_total(paced[name]) for name in added)
    yield Row("  packets delivered", ours, rival)
    yield Row("  without a consumer, ns each", f"{statistics.median(bare):.0f}")


def _total(results: list[Paced]) -> str:
    offered, delivered, lost = (
        sum(column) for column in zip(*((each.offered, each.delivered, each.lost) for each in results), strict=True)
    )
    return f"{delivered:,} of {offered:,}, {lost:,} lost"


def _flood(network: Network, generator: Generator, name: str, duration_s: float) -> Flood:
    """As fast as possible; `bare` is the flow with its program run by itself, without interface and stack."""
    with consuming("flow" if name == "bare" else name, network) as consumer, ExitStack() as stack:
        program = stack.enter_context(entry(network)).fileno if name == "bare" else None
        cpu_ns = consumer.cpu_ns()
        before_packets = _arrived(network)
        begin_s = time.monotonic()
        offered = 0
        while time.monotonic() < begin_s + duration_s:
            if program is None:
                generator.send(FLOOD_BURST)
            else:
                calls.test_run(program, FRAME, FLOOD_BURST)
            offered += FLOOD_BURST
        took_s = time.monotonic() - begin_s
        cpu_ns = consumer.cpu_ns() - cpu_ns
        _expect(0 if program is not None else offered, _arrived(network) - before_packets)
    return Flood(offered, consumer.delivered, consumer.lost, took_s, cpu_ns / max(1, consumer.delivered))


def _paced(network: Network, generator: Generator, name: str, duration_s: float) -> Paced:
    with consuming(name, network) if name else nullcontext() as consumer:
        generator.send(BURST)
        time.sleep(0.05)
        cpu_ns = consumer.cpu_ns() if consumer else 0
        before_packets = _arrived(network)
        bursts = int(duration_s * PACED_PPS / BURST)
        begin_s = time.monotonic()
        spent = []
        for burst in range(bursts):
            time.sleep(max(0.0, begin_s + burst * BURST / PACED_PPS - time.monotonic()))
            spent.append(generator.send(BURST) / BURST)
        time.sleep(0.02)
        cpu_ns = consumer.cpu_ns() - cpu_ns if consumer else 0
        _expect(bursts * BURST, _arrived(network) - before_packets)
    delivered, lost = (consumer.delivered, consumer.lost) if consumer else (0, 0)
    return Paced(statistics.median(spent), cpu_ns / (bursts * BURST), (bursts + 1) * BURST, delivered, lost)


def entry(network: Network) -> Descriptor:
    """The entry program at the tap."""
    with network.enter():
        program_id, _ = calls.attached_xdp(interfaces.find(network.tap).index)
    return Descriptor(calls.library().bpf_prog_get_fd_by_id(program_id))


def _arrived(network: Network) -> int:
    command = network.command("cat", f"/sys/class/net/{network.tap}/statistics/rx_packets")
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _expect(offered: int, arrived: int) -> None:
    if arrived != offered:
        raise ValueError(f"{arrived:,} of {offered:,} packets reached the tap")


@contextmanager
def pinned() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {GENERATOR_CPU})
        yield


if __name__ == "__main__":
    main(run, "packets into an application")
