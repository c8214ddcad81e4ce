"""Graphs -> eBPF objects. Needs no root, no clang and no kernel."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, lru_cache

from llvmlite import ir

from ffpf_bpf.compiler import emit, pcap
from ffpf_bpf.compiler.audit import audit
from ffpf_bpf.compiler.deliver import DELIVER_PROGRAM, generate_deliver
from ffpf_bpf.compiler.frame import Generated, SegmentFlow, new_module, segment_rings, segment_stores
from ffpf_bpf.compiler.grant import Grant, deliver_grant, entry_grant, segment_grant
from ffpf_bpf.compiler.hook import HOOKS, TC_L3, XDP, XDP_BY_WORDS, XDP_FRAGS, Hook, hook_of, monitoring
from ffpf_bpf.compiler.lines import node_before
from ffpf_bpf.compiler.object import Object, ObjectProgram, read, with_functions
from ffpf_bpf.compiler.pcap import compile_filter
from ffpf_bpf.compiler.reach import Reach, segment_reach
from ffpf_bpf.compiler.segment import MOST_SINKS, SEGMENT_PROGRAM, generate_segment
from ffpf_bpf.errors import AuditError, FfpfError
from ffpf_bpf.graph.effect import Predicate, Primitive, Transform
from ffpf_bpf.graph.graph import Graph
from ffpf_bpf.graph.predicate import Program
from ffpf_bpf.graph.views import views

__all__ = [
    "DELIVER_PROGRAM",
    "ENTRY_PROGRAM",
    "HOOKS",
    "SEGMENT_PROGRAM",
    "TC_L3",
    "XDP",
    "XDP_BY_WORDS",
    "XDP_FRAGS",
    "Hook",
    "Object",
    "Reach",
    "SegmentFlow",
    "assembly_text",
    "compile_entry",
    "compile_predicates",
    "compile_segment",
    "fit_together",
    "generate",
    "hook_of",
    "ir_text",
    "segment_reach",
    "segment_rings",
    "segment_stores",
    "versions",
]

ENTRY_PROGRAM = "ffpf_entry"
# A jump reaches 32,767 instructions; LLVM ends the process where one is farther.
LARGEST_SIZE = 28_000
# Up to here a filtering flow's segment stores its packets itself, which saves a tail call, 4 ns.
LARGEST_STORING_SIZE = 2_000
FUNCTIONS = ("ffpf_dissect", "ffpf_hash_flow")  # of bpf_src/dissect.c


def compile_predicates(graph: Graph) -> dict[str, Program]:
    """The classic BPF of each filter of the graph, by its text. Raises ExpressionError in libpcap's words."""
    return {text: compile_filter(text) for text in sorted(graph.filters)}


def compile_segment(
    flows: tuple[SegmentFlow, ...], tap: str, cpus: int, *, hook: Hook | None = None, debug: bool = False
) -> dict[str, Object]:
    """The objects of a segment that holds `flows` at `tap`, by program: the segment, and its deliver program if
    something is grabbed that it does not store itself. `cpus` is the number of possible CPUs; `hook` is the tap's,
    unless given; with `debug` they carry a line for each node. Raises AuditError if one of them would do more than the
    effects of the flows grant."""
    hook = _ending(hook or hook_of(tap), flows, tap)
    with _without_collection():
        generated = generate(flows, tap, cpus, hook=hook, debug=debug)
        compiled = {part.programs[0]: _compile(part) for part in generated}
        return {name: _passed(name, found, flows, tap, cpus, hook, debug) for name, found in compiled.items()}


def _ending(hook: Hook, flows: tuple[SegmentFlow, ...], tap: str) -> Hook:
    """The hook as the flows want frames to end: so only if all of them do."""
    said = {flow.graph.ends_frames(tap) for flow in flows}
    if len(said) > 1:
        raise FfpfError(f"`{tap}` is a monitor port of some of these flows only", help="of all flows there, or of none")
    return monitoring(hook) if said == {True} else hook


def _passed(
    name: str, found: Object, flows: tuple[SegmentFlow, ...], tap: str, cpus: int, hook: Hook, debug: bool
) -> Object:
    """The object, audited."""
    grant = segment_grant if name == SEGMENT_PROGRAM and not _stores(flows) else deliver_grant
    try:
        return audited(found, grant(flows, hook))
    except AuditError as error:
        if debug and (node := node_before(found.lines(name), error.at)) is not None:
            where = f"node `{flows[node[0]].graph.ids[node[1]]}`, {error.where}"
            raise AuditError(error.message, at=error.at, where=where, help=error.help) from None
        if not debug and name == SEGMENT_PROGRAM:
            compile_segment(flows, tap, cpus, hook=hook, debug=True)  # with lines, it says which node
        raise


def audited(compiled: Object, grant: Grant) -> Object:
    """The object, if each of its programs does no more than is granted. Raises AuditError."""
    return replace(compiled, passed=frozenset(audit(found, grant).digest for found in compiled.programs.values()))


def fit_together(flows: Sequence[SegmentFlow]) -> bool:
    """Whether flows can share a segment: sinks and size of the program."""
    return sum(len(flow.graph.sinks) for flow in flows) <= MOST_SINKS and _size(flows) <= LARGEST_SIZE


def generate(
    flows: tuple[SegmentFlow, ...],
    tap: str,
    cpus: int,
    *,
    hook: Hook | None = None,
    debug: bool = False,
    offline: bool = False,
) -> list[Generated]:
    """The modules of a segment before the primitives are linked in; `offline` for packets of a file."""
    if _size(flows) > LARGEST_SIZE:
        nodes = {node: size for flow in flows for node, size in _node_sizes(flow).items()}
        largest = max(nodes, key=lambda node: nodes[node])
        raise FfpfError(
            f"the flow makes a program of about {_size(flows):,} instructions",
            where=f"node `{largest}`",
            help=f"at most {LARGEST_SIZE:,}; make several flows of it (this node, the largest, has {nodes[largest]:,})",
        )
    hook = XDP if offline else _ending(hook or hook_of(tap), flows, tap)
    stores = _stores(flows) and not offline
    segment, sinks = generate_segment(flows, tap, cpus, hook, stores=stores, debug=debug, offline=offline)
    if not sinks or stores:
        return [segment]
    return [segment, generate_deliver(flows, tap, cpus, sinks, hook, offline=offline)]


def _stores(flows: Sequence[SegmentFlow]) -> bool:
    """Whether a segment stores packets itself: those of one flow, which only filters them and shows one view of them as
    they are. What a node class brings to a segment is not to be granted a ring; and the verifier walks what stores
    again for many a way through the flow, where it walks a deliver program once."""
    first, *others = flows
    effects = [leaf.node.effect for _, leaf in first.graph.leaves()]
    plain = not any(isinstance(it, Primitive) or (isinstance(it, Transform) and it.rewrite) for it in effects)
    return not others and plain and len(set(views(first.graph).values())) == 1 and _size(flows) <= LARGEST_STORING_SIZE


def ir_text(generated: Generated) -> str:
    """The optimised LLVM IR of a module, primitives included."""
    return str(_optimised(generated))


def assembly_text(generated: Generated) -> str:
    """The BPF assembly of a module."""
    return emit.emit_assembly(_optimised(generated))


def versions() -> dict[str, str]:
    """The libraries that compile, and their versions. Raises FfpfError if one is missing or bpf_src/ is not built."""
    compile_entry(1, XDP)
    return {"LLVM": ".".join(str(part) for part in emit.llvm_version()), "libpcap": pcap.version()}


@contextmanager
def _without_collection() -> Iterator[None]:
    """Without Python's collector of cycles: a module is ten thousands of objects, all in use, which sets it off, and in
    a large process it takes 0.2 s for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _size(flows: Sequence[SegmentFlow]) -> int:
    """About how many instructions the flows come to, rather more than less."""
    return sum(12 * len(flow.graph.steps) + sum(_node_sizes(flow).values()) for flow in flows)


def _node_sizes(flow: SegmentFlow) -> dict[str, int]:
    """The same for each node, by its id."""
    sizes = {}
    shown = set(views(flow.graph).values())
    for step, leaf in flow.graph.leaves():
        match leaf.node.effect:
            case Predicate(filter=text):
                sizes[flow.graph.ids[step]] = 3 * len(flow.predicates[text].instructions)
            case Primitive(module=module, function=function):
                sizes[flow.graph.ids[step]] = emit.instructions(module, function)
            case Transform(module=module, keep=keep, rewrite=rewrite):
                # In the deliver program, once for each view. Fivefold, because they loop: the verifier gives up on a
                # million instructions walked, and takes a second for half as many. A shorter way does not loop.
                size = 5 * sum(emit.instructions(module, function) for function in (keep, rewrite) if function)
                sizes[flow.graph.ids[step]] = size * sum(step in view for view in shown)
    return sizes


def compile_entry(cpus: int, hook: Hook = XDP) -> Object:
    """The object of the entry program of the taps of a hook. `cpus` is the number of possible CPUs."""
    return _compile_entry(cpus, hook)


@cache
def _compile_entry(cpus: int, hook: Hook) -> Object:
    module = new_module("entry")
    known = ir.GlobalVariable(module, ir.IntType(32), "ffpf_cpus")
    known.global_constant = True
    known.initializer = ir.IntType(32)(cpus)
    modules = {hook.entry, hook.frame} if hook.maps else {hook.entry}
    return audited(_compile(Generated(module, (ENTRY_PROGRAM,), hook, modules)), entry_grant(hook))


def _optimised(generated: Generated) -> emit.Module:
    module = emit.link(str(generated.module), generated.primitives, generated.programs)
    emit.optimise(module)
    return module


def _compile(generated: Generated) -> Object:
    return _compile_text(str(generated.module), frozenset(generated.primitives), generated.programs)


@lru_cache(maxsize=128)
def _compile_text(text: str, primitives: frozenset[str], programs: tuple[str, ...]) -> Object:
    """Link, optimise, emit, read back. Flows of one shape have one deliver program, so results are kept."""
    module = emit.link(text, primitives, programs)
    emit.optimise(module)
    compiled = read(emit.emit_object(module))
    if not any(program.calls for program in compiled.programs.values()):
        return compiled
    complete = {name: with_functions(program, _functions()) for name, program in compiled.programs.items()}
    return replace(compiled, programs=complete)


@cache
def _functions() -> dict[str, ObjectProgram]:
    """The functions that programs call: compiled once, for all."""
    module = emit.link(str(new_module("functions")), {"dissect"}, FUNCTIONS)
    emit.optimise(module)
    return read(emit.emit_object(module), functions=True).programs
