"""Graphs -> eBPF objects. Needs no root, no clang and no kernel."""

from __future__ import annotations

from functools import cache

from llvmlite import ir

from ffpf_bpf.compiler import emit
from ffpf_bpf.compiler.object import Object, read
from ffpf_bpf.compiler.pcap import compile_filter
from ffpf_bpf.compiler.segment import DATA_LAYOUT, DELIVER_PROGRAM, SEGMENT_PROGRAM, SegmentFlow, generate
from ffpf_bpf.graph.effect import Predicate
from ffpf_bpf.graph.graph import Graph
from ffpf_bpf.graph.predicate import Program

ENTRY_PROGRAM = "ffpf_entry"


def compile_predicates(graph: Graph) -> dict[str, Program]:
    """The classic BPF of each filter of the graph, by its text. Raises ExpressionError naming the node."""
    texts = {leaf.node.effect.filter for _, leaf in graph.leaves() if isinstance(leaf.node.effect, Predicate)}
    return {text: compile_filter(text) for text in sorted(texts)}


def compile_segment(flows: tuple[SegmentFlow, ...], tap: str, cpus: int, *, debug: bool = False) -> Object:
    """The object of a segment that holds `flows` at `tap`, for `cpus` possible CPUs."""
    generated = generate(flows, tap, cpus, debug=debug)
    module = emit.link(str(generated.module), generated.primitives, (SEGMENT_PROGRAM, DELIVER_PROGRAM))
    emit.optimise(module)
    return read(emit.emit_object(module))


@cache
def compile_entry(cpus: int) -> Object:
    """The object of a tap's entry program."""
    constants = ir.Module("entry")
    constants.triple = "bpf"
    constants.data_layout = DATA_LAYOUT
    known = ir.GlobalVariable(constants, ir.IntType(32), "ffpf_cpus")
    known.global_constant = True
    known.initializer = ir.IntType(32)(cpus)
    module = emit.link(str(constants), ("entry",), (ENTRY_PROGRAM,))
    emit.optimise(module)
    return read(emit.emit_object(module))
