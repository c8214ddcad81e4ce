"""What a compilation must not do, however large the graph: work that grows with its square, collections of garbage."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping

import pytest

from ffpf_bpf import compiler
from ffpf_bpf.compiler import SegmentFlow
from ffpf_bpf.graph import graph as graph_module
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.expression import Expression
from ffpf_bpf.graph.graph import Graph, Step
from ffpf_bpf.graph.memory import RingHome, homes, lay_out, size_ring
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.sharing import keys

CPUS = 2


def many_cases(number: int) -> Expression:
    return parse("(device,tap0) -> (classify,dport) " + " | ".join(f"-{n}-> (packetcount)" for n in range(number)))


def segment_flow(graph: Graph) -> SegmentFlow:
    memory, ring = lay_out(graph, CPUS), size_ring(96, 1 << 16)
    at_home, ring_home = homes(graph, memory, 0), RingHome(0, memory)
    return SegmentFlow(graph, compiler.compile_predicates(graph), memory, ring, 0, at_home, ring_home)


def test_a_graph_is_walked_a_few_times_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    sources, arrivals = graph_module.sources, graph_module._arrivals

    def counted(step: Step) -> tuple[int, ...]:
        asked["sources"] += 1
        return sources(step)

    def counted_arrivals(steps: tuple[Step, ...]) -> frozenset[int]:
        asked["arrivals"] += 1
        return arrivals(steps)

    expression = many_cases(250)
    monkeypatch.setattr("ffpf_bpf.graph.builder.sources", counted, raising=False)
    monkeypatch.setattr(graph_module, "sources", counted)
    monkeypatch.setattr(graph_module, "_arrivals", counted_arrivals)
    graph = build(expression)
    keys(graph)
    compiler.generate((segment_flow(graph),), "tap0", CPUS)
    assert asked["arrivals"] == 1
    assert asked["sources"] < 5 * len(graph.steps)


def test_no_garbage_is_collected_meanwhile() -> None:
    """Tens of thousands of objects are made, all of them in use, and a full collection takes longer than all else."""
    flow = segment_flow(build(many_cases(60)))
    collections: list[int] = []

    def note(phase: str, about: Mapping[str, int]) -> None:
        if phase == "start":
            collections.append(about["generation"])

    gc.collect()
    gc.callbacks.append(note)
    try:
        compiler.compile_segment((flow,), "tap0", CPUS)
        meanwhile = len(collections)
    finally:
        gc.callbacks.remove(note)
    assert meanwhile <= 1, "but for what is due when it is over"
    assert gc.isenabled()
    gc.disable()
    try:
        compiler.compile_segment((flow,), "tap1", CPUS)
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()
