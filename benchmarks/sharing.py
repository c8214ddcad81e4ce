"""What flows save that begin alike: what they have in common runs once. Rows for `benchmarks.nodes`.

Flows that differ are the same but for a name in front, which tells nodes apart: nothing is shared then.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks import meter
from benchmarks.meter import Case, Rig
from benchmarks.node_chains import chain
from benchmarks.node_works import WEB
from benchmarks.packet import Effort
from benchmarks.table import Row
from tests.network import Network

ALL_MATCH = " or ".join([*(f"dst net 10.{number}.0.0/16" for number in range(20)), "dst net 10.77.0.0/16"])
LONG_FILTER = f"tcp and not src port 22 and not dst portrange 6000-6063 and ({ALL_MATCH})"


def rows(rig: Rig, network: Network, without: Network, effort: Effort) -> Iterator[Row]:
    """Several flows whose first nodes are the same, beside flows whose first nodes are called differently, and beside
    one flow."""
    for title, node, flows in (
        ("(sampler,2)", "(sampler{},2)", 2),
        ("a long filter", f'(bpf{{}},"{LONG_FILTER}")', 8),
        ("(classify,dport)", "(classify{},dport) -80->", 8),
        ("(head,10)", "(head{},10)", 8),
    ):
        expression = f"(device,tap0) -> {node}" + ("" if "->" in node else " ->") + " (packetcount)"
        alike = [expression.format("")] * flows
        different = [expression.format(f" as n{number}") for number in range(flows)]
        together_ns, apart_ns = _pair_ns(rig, network, without, effort, alike, different)
        one_ns, _ = _pair_ns(rig, network, without, effort, alike[:1], different[:1])
        yield Row(
            f"{flows} flows, {title} in common / in each",
            f"{together_ns:.1f}",
            f"{apart_ns:.1f}",
            f"{together_ns / apart_ns:.2f}",
        )
        added = (together_ns - one_ns) / (flows - 1)
        yield Row("  each flow after the first adds", f"{added:.1f}", f"{(apart_ns - one_ns) / (flows - 1):.1f}")


def _pair_ns(
    rig: Rig, network: Network, without: Network, effort: Effort, ours: list[str], others: list[str]
) -> tuple[float, float]:
    """Two chains, at a tap each, in turn: the median over several loads, less the empty program's."""
    found: dict[str, list[float]] = {"ours": [], "others": []}
    for _ in range(effort.loads):
        with ExitStack() as stack:
            first = stack.enter_context(chain(network, *ours))
            second = stack.enter_context(chain(without, *others))
            empty = stack.enter_context(meter.empty_program())
            stack.enter_context(rig.attached(empty))
            cases = {name: Case(one.program, WEB) for name, one in (("ours", first), ("others", second))}
            times = meter.measure(cases | {"empty": Case(empty, WEB)}, rounds=effort.rounds, repeat=effort.repeat)
        for name, values in found.items():
            values.append(times[name] - times["empty"])
    return statistics.median(found["ours"]), statistics.median(found["others"])
