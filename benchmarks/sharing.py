"""What flows save that begin alike: what they have in common runs once. Rows for `benchmarks.nodes`.

Flows that differ are the same but for the name of their first node, which tells nodes apart: nothing is shared then.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmarks import meter, patterns, scanning
from benchmarks.frames import UDP, ipv4, udp
from benchmarks.meter import Case, Rig
from benchmarks.node_chains import Chain, chain
from benchmarks.node_works import WEB
from benchmarks.packet import Effort
from benchmarks.table import Row
from tests.network import Network

NETWORKS = " or ".join([*(f"dst net 10.{number}.0.0/16" for number in range(20)), "dst net 10.77.0.0/16"])
LONG_FILTER = f"tcp and not src port 22 and not dst portrange 6000-6063 and ({NETWORKS})"
REQUESTS = ipv4(UDP, udp(1234, 80, patterns.ordinary(scanning.PAYLOAD_BYTES)))
MOST_PACKETS = 20_000
# How many flows, what they have in common, how it is called, the packet.
SHARED = (
    (2, "(sampler,2)", "(sampler,2)", WEB),
    (8, '(bpf,"{LONG_FILTER}")', "a long filter", WEB),
    (8, "(head,10)", "(head,10)", WEB),
    (8, scanning.node(scanning.MANY), "a scan for 1,000 patterns", REQUESTS),
)


def rows(rig: Rig, network: Network, without: Network, effort: Effort) -> Iterator[Row]:
    """Several flows whose first nodes are the same, beside flows whose first nodes are called differently, and beside
    one flow. Raises ValueError if the former do not share."""
    for flows, node, called, packet in SHARED:
        kind, comma, rest = node.format(LONG_FILTER=LONG_FILTER).partition(",")
        named = [f"(device,tap0) -> {kind} as n{number}{comma}{rest} -> (packetcount)" for number in range(flows)]
        alike_ns, apart_ns = _pair_ns(rig, (network, without), effort, ([named[0]] * flows, named), packet)
        one_ns, _ = _pair_ns(rig, (network, without), effort, (named[:1], named[:1]), packet)
        for other, other_ns in (("in each", apart_ns), ("one flow", one_ns)):
            ratio = f"{alike_ns / other_ns:.2f}"
            yield Row(f"{flows} flows, {called} in common / {other}", f"{alike_ns:.1f}", f"{other_ns:.1f}", ratio)


def _pair_ns(
    rig: Rig, networks: tuple[Network, Network], effort: Effort, pair: tuple[Sequence[str], ...], packet: bytes
) -> tuple[float, float]:
    """Two chains, at a tap each, in turn: the median over several loads, less the empty program's."""
    found: tuple[list[float], ...] = ([], [])
    for _ in range(effort.loads):
        with ExitStack() as stack:
            chains = [stack.enter_context(chain(at, *flows)) for at, flows in zip(networks, pair, strict=True)]
            for one, flows in zip(chains, pair, strict=True):
                _check(one, shared=len(flows) > len(set(flows)))
            empty = stack.enter_context(meter.empty_program())
            stack.enter_context(rig.attached(empty))
            cases = {str(number): Case(one.program, packet) for number, one in enumerate(chains)}
            times = meter.measure(
                cases | {"empty": Case(empty, packet)}, rounds=effort.rounds, repeat=min(effort.repeat, MOST_PACKETS)
            )
        for number, values in enumerate(found):
            values.append(times[str(number)] - times["empty"])
    first, second = map(statistics.median, found)
    return first, second


def _check(one: Chain, *, shared: bool) -> None:
    for flow in one.flows:
        if any(node.shared for node in flow.stats().nodes) != shared:
            raise ValueError(f"{flow.definition.graph.expression!r}: shared is not {shared}")
