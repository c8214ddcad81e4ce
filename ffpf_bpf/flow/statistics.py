"""What a flow counted: packets in and out of every node, and the ledger of fates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ffpf_bpf.errors import FfpfError
from ffpf_bpf.graph.effect import Fate
from ffpf_bpf.graph.expression import Role
from ffpf_bpf.graph.graph import Case, Graph, Leaf
from ffpf_bpf.graph.memory import FLOW_BYTES, Memory

SEEN, FATES = 0, 1  # struct ffpf_cpu in 64-bit words
SNAPSHOT_TRIES = 100
Report = Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """Packets of this flow in and out of one node, and what the node counted itself, by name: for a node that flows
    share, for all of them."""

    id: str
    class_name: str
    expression: str
    packets_in: int
    packets_out: int
    counts: dict[str, Any]
    shared: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "class": self.class_name,
            "expression": self.expression,
            "in": self.packets_in,
            "out": self.packets_out,
            **({"shared": True} if self.shared else {}),
            **self.counts,
        }


@dataclass(frozen=True, slots=True)
class Ledger:
    """What became of every packet: `seen` is the sum of the rest once no packet is on its way."""

    seen: int
    filtered: int
    sampled: int
    limited: int
    counted: int
    delivered: int
    ring_full: int
    overrun: int = 0

    @property
    def balances(self) -> bool:
        return self.seen == sum(self.as_json().values()) - self.seen

    def as_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Statistics:
    """The nodes in the order of the graph, and the ledger."""

    nodes: tuple[NodeStatistics, ...]
    ledger: Ledger

    def node(self, id: str) -> NodeStatistics:
        """The node of that id. Raises FfpfError if there is none."""
        for node in self.nodes:
            if node.id == id:
                return node
        raise no_node(id, [node.id for node in self.nodes])


def no_node(id: str, ids: Sequence[str]) -> FfpfError:
    """The error for an id that no node has."""
    return FfpfError(f"no node is called `{id}`", help=f"the nodes are {', '.join(f'`{other}`' for other in ids)}")


def read(
    flow_memory: Any,
    graph: Graph,
    memory: Memory,
    reports: Mapping[int, Report],
    shared: frozenset[int] = frozenset(),
    overrun: int = 0,
) -> Statistics:
    """The counts of all CPUs together, from a copy of the flow's map. `reports` tell what nodes counted, by step;
    `shared` are the steps that other flows use too; `overrun` of the packets delivered were overwritten.

    Counting goes on meanwhile, so the copy is repeated, up to 100 times, until its ledger balances.
    """
    for _ in range(SNAPSHOT_TRIES):
        snapshot = bytes(memoryview(flow_memory)[FLOW_BYTES : FLOW_BYTES + memory.cpus * memory.stride])
        cells = np.frombuffer(snapshot, dtype=np.uint64).reshape(memory.cpus, memory.stride // 8)
        totals = cells.sum(axis=0, dtype=np.uint64).tolist()
        fates = {fate.name.lower(): totals[FATES + fate] for fate in Fate}
        fates["delivered"] -= overrun
        ledger = Ledger(seen=totals[SEEN], **fates, overrun=overrun)
        if ledger.balances:
            break
    return Statistics(tuple(_nodes(graph, memory, totals, reports, shared)), ledger)


def _nodes(
    graph: Graph, memory: Memory, totals: list[int], reports: Mapping[int, Report], shared: frozenset[int]
) -> Iterator[NodeStatistics]:
    passed: list[int] = []
    for index, step in enumerate(graph.steps):
        arrived = totals[SEEN]
        if isinstance(step, Leaf | Case) and step.source is not None:
            arrived = passed[step.source]
        counter = memory.counters.get(index)
        passed.append(arrived if counter is None else totals[counter // 8])
        if isinstance(step, Leaf):
            node = step.node
            is_device = node.role is Role.DEVICE
            report = reports.get(index)
            yield NodeStatistics(
                graph.ids[index],
                node.class_name,
                node.shown_expression,
                passed[index] if is_device else arrived,
                0 if node.role is Role.SINK else passed[index],
                report() if report else {},
                index in shared,
            )
