"""Graphs -> eBPF objects. Needs no root, no clang and no kernel."""

from __future__ import annotations

from functools import cache, lru_cache

from llvmlite import ir

from ffpf_bpf.compiler import emit
from ffpf_bpf.compiler.deliver import DELIVER_PROGRAM, generate_deliver
from ffpf_bpf.compiler.frame import Generated, SegmentFlow, new_module
from ffpf_bpf.compiler.object import Object, read
from ffpf_bpf.compiler.pcap import compile_filter
from ffpf_bpf.compiler.segment import SEGMENT_PROGRAM, generate_segment
from ffpf_bpf.graph.effect import Predicate
from ffpf_bpf.graph.graph import Graph
from ffpf_bpf.graph.predicate import Program

__all__ = [
    "DELIVER_PROGRAM",
    "ENTRY_PROGRAM",
    "SEGMENT_PROGRAM",
    "Object",
    "SegmentFlow",
    "compile_entry",
    "compile_predicates",
    "compile_segment",
    "generate",
]

ENTRY_PROGRAM = "ffpf_entry"


def compile_predicates(graph: Graph) -> dict[str, Program]:
    """The classic BPF of each filter of the graph, by its text. Raises ExpressionError in libpcap's words."""
    texts = {leaf.node.effect.filter for _, leaf in graph.leaves() if isinstance(leaf.node.effect, Predicate)}
    return {text: compile_filter(text) for text in sorted(texts)}


def compile_segment(
    flows: tuple[SegmentFlow, ...], tap: str, cpus: int, *, debug: bool = False
) -> dict[str, Object]:
    """The objects of a segment that holds `flows` at `tap`, by program: the segment, and its deliver program if
    something is grabbed. `cpus` is the number of possible CPUs; with `debug` they carry a line for each node."""
    return {part.programs[0]: _compile(part) for part in generate(flows, tap, cpus, debug=debug)}


def generate(flows: tuple[SegmentFlow, ...], tap: str, cpus: int, *, debug: bool = False) -> list[Generated]:
    """The modules of a segment before the primitives are linked in."""
    segment, sinks = generate_segment(flows, tap, cpus, debug=debug)
    return [segment, generate_deliver(flows, tap, cpus, sinks)] if sinks else [segment]


@cache
def compile_entry(cpus: int) -> Object:
    """The object of a tap's entry program."""
    module = new_module("entry")
    known = ir.GlobalVariable(module, ir.IntType(32), "ffpf_cpus")
    known.global_constant = True
    known.initializer = ir.IntType(32)(cpus)
    return _compile(Generated(module, (ENTRY_PROGRAM,), {"entry"}))


def _compile(generated: Generated) -> Object:
    return _compile_text(str(generated.module), frozenset(generated.primitives), generated.programs)


@lru_cache(maxsize=128)
def _compile_text(text: str, primitives: frozenset[str], programs: tuple[str, ...]) -> Object:
    """Link, optimise, emit, read back. Flows of one shape have one deliver program, so results are kept."""
    module = emit.link(text, primitives, programs)
    emit.optimise(module)
    return read(emit.emit_object(module))
