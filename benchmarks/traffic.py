"""What many flows take from traffic that passes them: a TCP transfer between network namespaces.

    python -m benchmarks.traffic [--quick]

Two veth pairs, one with what is measured, the other with its rival; transfers go over both in turn, and each pair of
them gives a ratio, of which the median counts. The sender, and so the softirq that receives, runs on one CPU, the
process that reads on the other.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from benchmarks.rivals import attached
from benchmarks.table import Row, Table, main
from ffpf_bpf.flow import Flow
from ffpf_bpf.kernel import calls
from tests.network import Network, two_namespaces

GOAL = 0.9
FLOWS = 32
PORT = 7777
PIECE = 1 << 20
XDP, TC = ("(device,tap0)",), ("(device,tap0@tc-ingress)", "(device,tap0@tc-egress)")


@dataclass(frozen=True, slots=True)
class Effort:
    """Bytes of a transfer, and how many there are of each kind."""

    transfer_bytes: int
    rounds: int


FULL, QUICK = Effort(150 << 20, 15), Effort(10 << 20, 2)


def run(quick: bool = False) -> Table:
    """All rows."""
    effort = QUICK if quick else FULL
    rows = [
        _row(f"{FLOWS} flows at XDP and tc / an empty XDP program", effort, XDP + TC, _empty, GOAL),
        _row(f"{FLOWS} flows at XDP / an empty XDP program", effort, XDP, _empty, GOAL),
        _row(f"{FLOWS} flows at tc / nothing", effort, TC, lambda network: nullcontext()),
    ]
    notes = (
        f"Of the {FLOWS} flows at each hook {FLOWS - 4} have filters that the transfer does not match (ports, hosts, "
        "nets); two count it, one records 1 in 100 of its packets, one its SYNs. They stand in as few segments as the "
        "product makes of them.",
        "With an XDP program a veth pair carries frames of 1,514 bytes; without, sends of up to 64 KiB.",
    )
    return Table("Traffic that passes (Gbit/s)", tuple(rows), notes)


def expressions(taps: tuple[str, ...]) -> list[str]:
    """The flows at these taps."""
    kinds = (
        *("tcp dst port {port}", "udp port {port}", "host 192.0.2.{n}", "src net 198.51.{n}.0/24 and tcp"),
        *("tcp portrange {port}-{more}", "icmp and host 203.0.113.{n}", "ip6 and tcp port {port}"),
    )
    filters = [kinds[n % len(kinds)].format(n=n, port=8000 + n, more=8100 + n) for n in range(FLOWS - 4)]
    nodes = [
        *(f'(bpf,"{text}") -> (packetcount)' for text in filters),
        f'(bpf,"tcp port {PORT}") -> (bytecount as all)',
        "(classify,proto) -6-> (packetcount)",
        f'(bpf,"tcp port {PORT}") -> (sampler,100) -> (grab,snaplen=96)',
        "(tcpflags,syn) -> (grab,snaplen=96)",
    ]
    return [f"{' | '.join(taps)} -> {text}" for text in nodes]


@contextmanager
def flows(network: Network, taps: tuple[str, ...]) -> Iterator[list[Flow]]:
    """All of them, active."""
    made: list[Flow] = []
    try:
        with network.enter():
            for text in expressions(taps):
                made.append(Flow.create().populate(text).instantiate().activate())
        yield made
    finally:
        Flow.close_all(made)


def transfer(network: Network, content: bytes, times: int, take: Callable[[memoryview], object]) -> float:
    """Send `content` so many times over TCP to the namespace of the tap, by another process, and `take` what comes,
    piece by piece. The seconds it took."""
    sending, reading = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    with ExitStack() as stack:
        with network.enter():
            server = stack.enter_context(socket.create_server((network.tap_address, PORT)))
        with network.enter(network.outside):
            client = stack.enter_context(socket.create_connection((network.tap_address, PORT)))
        connection, _ = server.accept()
        stack.callback(connection.close)
        child = os.fork()
        if child == 0:
            os.sched_setaffinity(0, {sending})
            for _ in range(times):
                client.sendall(content)
            os._exit(0)
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {reading})
        stack.callback(os.sched_setaffinity, 0, allowed)
        stack.callback(os.waitpid, child, 0)
        left, piece = len(content) * times, memoryview(bytearray(PIECE))
        start_s = time.perf_counter()
        while left:
            count = connection.recv_into(piece)
            take(piece[:count])
            left -= count
        return time.perf_counter() - start_s


Rival = Callable[[Network], AbstractContextManager[object]]


def _row(work: str, effort: Effort, taps: tuple[str, ...], rival: Rival, goal: float = 0.0) -> Row:
    content = os.urandom(PIECE)
    times = effort.transfer_bytes // PIECE
    with two_namespaces("traffic") as ours, two_namespaces("rival") as theirs, flows(ours, taps), rival(theirs):
        rates: dict[Network, list[float]] = {ours: [], theirs: []}
        for number in range(effort.rounds):
            for network in (ours, theirs) if number % 2 else (theirs, ours):
                seconds = transfer(network, content, times, len)
                rates[network].append(effort.transfer_bytes * 8 / seconds / 1e9)
    ratio = statistics.median(mine / other for mine, other in zip(rates[ours], rates[theirs], strict=True))
    shown, other = (f"{statistics.median(rates[network]):.2f}" for network in (ours, theirs))
    if not goal:
        return Row(work, shown, other, f"{ratio:.2f}")
    return Row(work, shown, other, f"{ratio:.2f}", f">= {goal}", ratio >= goal)


def _empty(network: Network) -> AbstractContextManager[None]:
    return attached(network, "empty", calls.PASS_PROGRAM)


if __name__ == "__main__":
    main(run, "what flows take from traffic that passes")
