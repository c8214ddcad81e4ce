"""How many packets a second an application gets without losing one, and what that costs the machine.

    python -m benchmarks.lossless [--quick]

64-byte frames at snaplen 96 come over a veth pair. Generator and receiver run on CPU 0, consumers on CPU 1. A flow at a
monitor port ends them behind it; what others read goes on into the network stack, which cannot be kept from it. The
lossless rate is the highest of those tried at which every packet sent was delivered: doubled until one is lost, then
halved in between. No ratio can be more than that of what CPU 0 sends to a program that only drops it, so that is a row
as well. CPU of both sides: of CPU 0 for sending, receiving, tap and stack, and of the consumer's processes.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.consumers import DRAIN_S, MANY, TOLD, consuming
from benchmarks.delivery import FRAME, PACED_PPS, pinned
from benchmarks.generator import BATCH, Generator
from benchmarks.rivals import attached
from benchmarks.table import Row, Table, main
from tests.network import Network, two_namespaces

OURS = "monitor"
# Where the search begins, in packets per second; what is called how; the goal.
RIVALS = {
    "recv": (200_000, "Python recv", 25.0),
    "scapy": (1_000, "scapy's AsyncSniffer", 1_000.0),
    "pcap": (100_000, "libpcap by ctypes", None),
    "tcpdump": (400_000, "tcpdump -w /dev/null", 2.5),
    "dumpcap": (200_000, "dumpcap -w /dev/null", None),
}
GOAL_CPU, GOAL_MACHINE, GOAL_MANY = 0.5, 1.0, 15.0
OURS_FROM, MOST_PPS = 1_000_000, 64_000_000
BURST_S = 0.0005
BLOCK_S = 1.2  # after which libpcap, as tcpdump sets it up, hands out a block of its ring that is not full
SATURATED = 0.97  # of the rate that was asked for
# r0 = XDP_DROP; exit
DROP_PROGRAM = bytes.fromhex("b700000001000000 9500000000000000")


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent in how long, what consumers got, all together, and nanoseconds of CPU for each packet sent: where
    they arrive, and of the consumers."""

    offered: int
    delivered: int
    took_s: float
    arriving_ns: float
    consumer_ns: float

    @property
    def rate(self) -> float:
        return self.offered / self.took_s

    @property
    def cost_ns(self) -> float:
        return self.arriving_ns + self.consumer_ns

    @property
    def shown(self) -> str:
        missing = self.offered - self.delivered
        return f"{_rate(self.rate)} ({self.delivered:,} of {self.offered:,}, {missing:,} lost; {self.cpu})"

    @property
    def cpu(self) -> str:
        return f"CPU {self.arriving_ns:.0f} + {self.consumer_ns:.0f} ns each"


def run(quick: bool = False) -> Table:
    """All rows."""
    trial_s, halvings, rounds = (0.1, 0, 1) if quick else (1.0, 3, 5)
    with pinned(), two_namespaces("lossless") as network, Generator(network, FRAME) as generator:
        # Without GRO or XDP a veth takes no redirected frames.
        subprocess.run(network.command("ethtool", "-K", network.tap, "gro", "on"), check=True)
        with network.enter(network.outside):
            bench = _Bench(network, generator, trial_s)
            most = max((bench.dropped() for _ in range(rounds)), key=lambda sent: sent.rate)
            rows = [
                *bench.lossless(halvings, 1 if quick else 16, most),
                *bench.machine(rounds),
                *bench.many(rounds, most),
            ]
    return Table("Packets without a loss: 64-byte frames, snaplen 96", tuple(rows), (
        "CPU: nanoseconds for each packet sent, of CPU 0 (sending, receiving, the tap, and the stack if packets go on) "
        f"+ of the consumer. One trial lasts {trial_s:g} s; rates are doubled until a packet is lost, then halved in "
        f"between {halvings} times. `at least`: nothing was lost at the most that CPU 0 can send, so the ratios are "
        "bounded by it. A program that only drops: what CPU 0 sends to one, the most that anything could get.",
        f"Whole machine: {PACED_PPS:,} packets/s, medians of {rounds} rounds; both CPUs' time together.",
        f"{MANY} applications: as many packets as CPU 0 can send; best of {rounds} rounds. Ours are flows of one "
        "process that share a packet ring, each with its own index and reader.",
    ))  # fmt: skip


class _Bench:
    """A network and what sends to it."""

    def __init__(self, network: Network, generator: Generator, trial_s: float) -> None:
        self._network, self._generator, self._trial_s = network, generator, trial_s

    def dropped(self) -> Sent:
        """As many as CPU 0 can send to a program that only drops them, all of which count as delivered."""
        with attached(self._network, "drop", DROP_PROGRAM):
            offered, took_s, spent_ns = self._send(MOST_PPS)
        return Sent(offered, offered, took_s, spent_ns / offered, 0.0)

    def lossless(self, halvings: int, doublings: int, most: Sent) -> Iterator[Row]:
        ours, ours_text = self._search(OURS, OURS_FROM, halvings, doublings)
        yield _bound("monitor port to numpy", ours.rate, ours_text, most)
        for name, (first, called, goal) in RIVALS.items():
            if name == "dumpcap" and not shutil.which(name):
                continue
            rival, rival_text = self._search(name, first, halvings, doublings)
            ratio = ours.rate / rival.rate
            work = f"monitor port to numpy / {called}: lossless"
            met = None if goal is None else ratio >= goal
            yield Row(work, ours_text, rival_text, f"{ratio:,.1f}", f">= {goal:,g}" if goal else "", met)
            ratio = ours.consumer_ns / rival.consumer_ns
            work = f"  CPU of the consumer, ns each / {called}"
            goal_text, met = (f"<= {GOAL_CPU}", ratio <= GOAL_CPU) if name == "tcpdump" else ("", None)
            yield Row(work, f"{ours.consumer_ns:.0f}", f"{rival.consumer_ns:.0f}", f"{ratio:.2f}", goal_text, met)

    def machine(self, rounds: int) -> Iterator[Row]:
        found: dict[str, list[Sent]] = {name: [] for name in ("tcpdump", "flow", OURS)}
        for _ in range(rounds):
            for name, results in found.items():
                results.append(self._trial(name, PACED_PPS))
        middle = {name: sorted(results, key=lambda sent: sent.cost_ns)[rounds // 2] for name, results in found.items()}
        lost = {name: sum(sent.offered - sent.delivered for sent in results) for name, results in found.items()}
        rival = middle["tcpdump"]
        for name, called in (("flow", "flow"), (OURS, "flow at a monitor port")):
            ratio = middle[name].cost_ns / rival.cost_ns
            met = ratio <= GOAL_MACHINE and not lost[name]
            mine, other = (
                f"{middle[each].cost_ns:.0f} ns each ({middle[each].shown}; {lost[each]:,} lost in all rounds)"
                for each in (name, "tcpdump")
            )
            work = f"whole machine: {called} / tcpdump"
            yield Row(work, mine, other, f"{ratio:.2f}", f"<= {GOAL_MACHINE:g}", met)

    def many(self, rounds: int, most: Sent) -> Iterator[Row]:
        ours, rival = (
            max((self._trial(name, MOST_PPS, consumers) for _ in range(rounds)), key=_delivered_pps)
            for name, consumers in ((f"{MANY} flows", 1), ("tcpdump", MANY))
        )
        ratio = _delivered_pps(ours) / max(1.0, _delivered_pps(rival))
        mine, other = (
            f"{_rate(_delivered_pps(sent) / MANY)} each ({sent.delivered // MANY:,} of {sent.offered:,}; {sent.cpu})"
            for sent in (ours, rival)
        )
        work = f"{MANY} applications, the same packets / {MANY} tcpdumps"
        yield Row(work, mine, other, f"{ratio:.1f}", f">= {GOAL_MANY:g}", ratio >= GOAL_MANY)
        yield _bound(f"{MANY} applications", _delivered_pps(ours) / MANY, mine, most)

    def _search(self, name: str, first: int, halvings: int, doublings: int) -> tuple[Sent, str]:
        """The fastest trial without a loss, and how it is told; or the first, if even that lost something."""
        best, rate = None, first
        for _ in range(doublings):
            sent = self._trial(name, rate)
            if _has_lost(sent):
                break
            best = sent
            if sent.rate < SATURATED * rate:
                return best, f"at least {best.shown}"
            rate *= 2
        if best is None:
            return sent, f"less than {sent.shown}"
        low, high = best.rate, float(rate)
        for _ in range(halvings):
            middle = (low + high) / 2
            sent = self._trial(name, int(middle))
            if _has_lost(sent):
                high = middle
            else:
                best, low = sent, middle
        return best, best.shown

    def _trial(self, name: str, rate: int, consumers: int = 1) -> Sent:
        """So many packets a second, as far as CPU 0 can."""
        with ExitStack() as stack:
            reading = [stack.enter_context(consuming(name, self._network, drain_s=0.0)) for _ in range(consumers)]
            before_ns = sum(each.cpu_ns() for each in reading)
            offered, took_s, spent_ns = self._send(rate)
            time.sleep(BLOCK_S if name in TOLD else DRAIN_S)
            consumer_ns = sum(each.cpu_ns() for each in reading) - before_ns
        delivered = sum(each.delivered for each in reading)
        return Sent(offered, delivered, took_s, spent_ns / offered, consumer_ns / offered)

    def _send(self, rate: int) -> tuple[int, float, int]:
        """So many packets a second, as far as CPU 0 can: how many in how long, and nanoseconds of CPU 0."""
        burst = max(1, int(rate * BURST_S))
        burst = burst // BATCH * BATCH or burst
        wanted = max(1, int(rate * self._trial_s / burst))
        begin_s, spent_ns, bursts = time.monotonic(), 0, 0
        while bursts < wanted and time.monotonic() < begin_s + 1.2 * self._trial_s:
            while time.monotonic() < begin_s + bursts * burst / rate:
                pass
            spent_ns += self._generator.send(burst)
            bursts += 1
        return bursts * burst, max(time.monotonic() - begin_s, bursts * burst / rate), spent_ns


def _bound(work: str, rate: float, shown: str, most: Sent) -> Row:
    """How near it is to the most that anything could get."""
    dropped = f"{_rate(most.rate)} (CPU {most.arriving_ns:.0f} ns each)"
    return Row(f"  {work} / a program that only drops", shown, dropped, f"{rate / most.rate:.2f}")


def _has_lost(sent: Sent) -> bool:
    return sent.delivered < sent.offered


def _delivered_pps(sent: Sent) -> float:
    return sent.delivered / sent.took_s


def _rate(pps: float) -> str:
    return f"{pps / 1e6:.2f} M/s" if pps >= 100_000 else f"{pps:,.0f}/s"


if __name__ == "__main__":
    main(run, "packets without a loss")
