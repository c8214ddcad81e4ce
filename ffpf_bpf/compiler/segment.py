"""Graphs -> LLVM IR: the segment program that evaluates the flows of one tap, and its deliver program.

The segment asks each flow's toggle, evaluates its graph step by step, keeps its counters, and notes which sinks the
packet reached. Only then does it enter the deliver program, which stores the packet; both go on to the next segment.
The C primitives are declared here and linked in by `emit`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llvmlite import ir

from ffpf_bpf.compiler.predicate import I1, I8, I32, I64, POINTER, lower_predicate
from ffpf_bpf.errors import FfpfError
from ffpf_bpf.graph.effect import Arrival, Delivery, Fate, Predicate, Primitive
from ffpf_bpf.graph.expression import Role
from ffpf_bpf.graph.graph import Complement, Graph, Intersection, Leaf, Union
from ffpf_bpf.graph.memory import BLOCK_BYTES, FLOW_BYTES, SCRATCH_BYTES, TAP_BYTES, Memory, Ring
from ffpf_bpf.graph.predicate import Program

NEXT, DELIVER = 0, 1  # enum ffpf_link
XDP_PASS = 2
DATA_LAYOUT = "e-m:e-p:64:64-i64:64-i128:128-n32:64-S128"
SEEN, FATES = 8, 16  # offsets in struct ffpf_cpu
GRABBED = 8  # offset in struct ffpf_scratch
MOST_SINKS = 64
SEGMENT_PROGRAM, DELIVER_PROGRAM = "ffpf_segment", "ffpf_deliver_all"


@dataclass(frozen=True, slots=True)
class SegmentFlow:
    """A flow's part in a segment: everything its code depends on."""

    graph: Graph
    predicates: dict[str, Program]
    memory: Memory
    ring: Ring


@dataclass(slots=True)
class _Sink:
    """Bit `bit` of the packet's grabbed word: flow `flow`, `snaplen` bytes."""

    bit: int
    flow: int
    snaplen: int


@dataclass(slots=True)
class SegmentModule:
    """The generated module, and the primitives' modules of bpf_src/ that it calls."""

    module: ir.Module
    primitives: set[str] = field(default_factory=lambda: {"chain"})


def generate(flows: tuple[SegmentFlow, ...], tap: str, cpus: int, *, debug: bool = False) -> SegmentModule:
    """The programs of a segment that holds `flows`, as seen at `tap`. Raises FfpfError over 64 sinks."""
    result = SegmentModule(ir.Module("segment"))
    result.module.triple = "bpf"
    result.module.data_layout = DATA_LAYOUT
    sinks = _Segment(result, flows, tap, cpus, debug).generate()
    if sinks:
        _generate_deliver(result, flows, tap, cpus, sinks)
    return result


class _Program:
    """A program around its body: packet bounds, CPU, and the way on to the next segment."""

    def __init__(self, module: ir.Module, name: str, cpus: int) -> None:
        self.module = module
        self.function = ir.Function(module, ir.FunctionType(I32, [POINTER]), name)
        self.function.section = f"xdp/{name}"
        self.context = self.function.args[0]
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.onward = self.function.append_basic_block("onward")
        self.links = _external(module, "ffpf_links")
        self.grabbed = self.builder.alloca(I64)
        self.builder.store(I64(0), self.grabbed)
        self.data, self.end = (self._context_pointer(offset) for offset in (0, 4))
        start, stop = (self.builder.ptrtoint(pointer, I64) for pointer in (self.data, self.end))
        self.length = self.builder.trunc(self.builder.sub(stop, start), I32)
        self.cpu = self._cpu(cpus)

    def _context_pointer(self, offset: int) -> ir.Value:
        b = self.builder
        field_pointer = b.gep(self.context, [I64(offset)], source_etype=I8)
        return b.inttoptr(b.zext(b.load(field_pointer, typ=I32), I64), POINTER)

    def _cpu(self, cpus: int) -> ir.Value:
        b = self.builder
        cpu = b.call(_function(self.module, "ffpf_this_cpu", ir.FunctionType(I64, [])), [])
        opaque = b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [cpu], side_effect=True)
        known = b.append_basic_block("known_cpu")
        b.cbranch(b.icmp_unsigned("<", opaque, I64(cpus)), known, self.onward)
        b.position_at_end(known)
        return opaque

    def scratch(self) -> ir.Value:
        offset = self.builder.add(self.builder.mul(self.cpu, I64(SCRATCH_BYTES)), I64(TAP_BYTES))
        return self.builder.gep(_external(self.module, "ffpf_tap"), [offset], source_etype=I8)

    def tail_call(self, link: int) -> None:
        follow = _function(self.module, "ffpf_follow", ir.FunctionType(ir.VoidType(), [POINTER, POINTER, I32]))
        self.builder.call(follow, [self.context, self.links, I32(link)])

    def finish(self) -> None:
        self.builder.position_at_end(self.onward)
        self.tail_call(NEXT)
        self.builder.ret(I32(XDP_PASS))


class _Segment:
    """The segment program."""

    def __init__(self, result: SegmentModule, flows: tuple[SegmentFlow, ...], tap: str, cpus: int, debug: bool):
        self.result = result
        self.flows = flows
        self.tap = tap
        self.program = _Program(result.module, SEGMENT_PROGRAM, cpus)
        self.builder = self.program.builder
        self.sinks: list[_Sink] = []
        self.filters: dict[str, ir.Function] = {}
        self.packet = self._packet_value()
        self.scope = _debug_scope(result.module, self.program.function) if debug else None

    def generate(self) -> list[_Sink]:
        b = self.builder
        for number, flow in enumerate(self.flows):
            on, after = b.append_basic_block(f"flow{number}"), b.append_basic_block(f"after{number}")
            flow_value = _external(self.result.module, f"ffpf_flow_{number}")
            toggle = b.load(flow_value, typ=I32)
            toggle.volatile = True
            b.cbranch(b.icmp_unsigned("!=", toggle, I32(0)), on, after)
            b.position_at_end(on)
            self._flow(number, flow, flow_value)
            b.branch(after)
            b.position_at_end(after)
        if self.sinks:
            self._enter_deliver()
        b.branch(self.program.onward)
        self.program.finish()
        return self.sinks

    def _packet_value(self) -> ir.Value:
        """A `struct ffpf_packet` for the primitives; dissolved when they are inlined."""
        b, p = self.builder, self.program
        kind = ir.LiteralStructType([POINTER, POINTER, I32])
        packet = b.alloca(kind)
        packet.type = POINTER  # llvmlite types allocas; addresses by bytes want the opaque pointer
        for offset, value in ((0, p.data), (8, p.end), (16, p.length)):
            b.store(value, b.gep(packet, [I64(offset)], source_etype=I8))
        return packet

    def _enter_deliver(self) -> None:
        b, p = self.builder, self.program
        grabbed = b.load(p.grabbed, typ=I64)
        deliver = b.append_basic_block("deliver")
        b.cbranch(b.icmp_unsigned("!=", grabbed, I64(0)), deliver, p.onward)
        b.position_at_end(deliver)
        b.store(grabbed, b.gep(p.scratch(), [I64(GRABBED)], source_etype=I8))
        p.tail_call(DELIVER)

    def _flow(self, number: int, flow: SegmentFlow, flow_value: ir.Value) -> None:
        """One flow's graph: the steps in order, each counted, then the packet's fate."""
        cpu = _cpu_memory(self.builder, flow_value, self.program.cpu, flow.memory)
        self._count(cpu, SEEN)
        truths: list[ir.Value] = []
        for index, step in enumerate(flow.graph.steps):
            self._locate(number, index)
            match step:
                case Leaf():
                    truth = self._leaf(number, flow, index, step, truths, cpu)
                case Union(inputs=inputs):
                    truth = self._joined(self.builder.or_, [truths[i] for i in inputs], I1(0))
                case Intersection(inputs=inputs):
                    truth = self._joined(self.builder.and_, [truths[i] for i in inputs], I1(1))
                case Complement(source=source, inner=inner):
                    arrives = I1(1) if source is None else truths[source]
                    truth = self.builder.and_(arrives, self.builder.not_(truths[inner]))
                case _:
                    raise TypeError(f"not a step: {step!r}")
            if index in flow.memory.counters:
                self._count(cpu, flow.memory.counters[index], self.builder.zext(truth, I64))
            truths.append(truth)
        self._locate(number, None)
        self._fate(flow.graph, truths, cpu)

    def _joined(self, join: object, values: list[ir.Value], neutral: ir.Value) -> ir.Value:
        result = neutral
        for value in values:
            result = join(result, value)  # type: ignore[operator]
        return result

    def _leaf(
        self, number: int, flow: SegmentFlow, index: int, leaf: Leaf, truths: list[ir.Value], cpu: ir.Value
    ) -> ir.Value:
        b = self.builder
        arrives = I1(1) if leaf.source is None else truths[leaf.source]
        match leaf.node.effect:
            case Arrival() as arrival:
                return I1(int(_at(arrival) == self.tap))
            case Delivery(snaplen=snaplen):
                self._note_sink(number, snaplen or flow.ring.snaplen, arrives)
                return arrives
            case Predicate(filter=text):
                with _Guard(b, arrives) as guard:
                    function = self._filter(flow.predicates[text])
                    guard.result = b.call(function, [self.program.data, self.program.end, self.program.length])
                return guard.value
            case Primitive() as primitive:
                with _Guard(b, arrives) as guard:
                    mbuf = b.gep(cpu, [I64(flow.memory.mbufs.get(index, 0))], source_etype=I8)
                    passed = self._primitive(primitive, mbuf)
                    guard.result = b.icmp_unsigned("!=", passed, I32(0))
                return guard.value if leaf.node.role is Role.DECIDES else arrives
            case other:
                raise TypeError(f"node class {leaf.node.class_name} has an effect nobody lowers: {other!r}")

    def _filter(self, program: Program) -> ir.Function:
        """The filter's function, one for equal programs."""
        if program.digest not in self.filters:
            name = f"filter{len(self.filters)}"
            self.filters[program.digest] = lower_predicate(self.result.module, program, name)
        return self.filters[program.digest]

    def _primitive(self, primitive: Primitive, mbuf: ir.Value) -> ir.Value:
        self.result.primitives.add(primitive.module)
        kind = ir.FunctionType(I32, [POINTER, POINTER, *[I64] * len(primitive.arguments)])
        function = _function(self.result.module, primitive.function, kind)
        return self.builder.call(function, [self.packet, mbuf, *(I64(value) for value in primitive.arguments)])

    def _note_sink(self, flow: int, snaplen: int, arrives: ir.Value) -> None:
        if len(self.sinks) == MOST_SINKS:
            raise FfpfError(f"over {MOST_SINKS} sinks in one segment", help="use fewer `(grab)` nodes in one flow")
        sink = _Sink(len(self.sinks), flow, snaplen)
        self.sinks.append(sink)
        b = self.builder
        bit = b.shl(b.zext(arrives, I64), I64(sink.bit))
        b.store(b.or_(b.load(self.program.grabbed, typ=I64), bit), self.program.grabbed)

    def _fate(self, graph: Graph, truths: list[ir.Value], cpu: ir.Value) -> None:
        """Count what became of a packet that no sink got; the deliver program counts the others."""
        b = self.builder
        fate: ir.Value = I64(Fate.FILTERED)
        for kind in (Fate.SAMPLED, Fate.LIMITED):
            for stop in graph.stops:
                if stop.fate is kind:
                    fate = b.select(self._stopped(graph, stop.step, stop.unless, truths), I64(kind), fate)
        for end in graph.ends:
            fate = b.select(truths[end], I64(Fate.COUNTED), fate)
        offset = b.add(b.shl(fate, I64(3)), I64(FATES))
        kept = self._joined(b.or_, [truths[sink] for sink in graph.sinks], I1(0))
        self._count(cpu, offset, b.zext(b.not_(kept), I64))

    def _stopped(self, graph: Graph, step: int, unless: tuple[int, ...], truths: list[ir.Value]) -> ir.Value:
        b = self.builder
        match graph.steps[step]:
            case Leaf(source=source) | Complement(source=source):
                arrives = I1(1) if source is None else truths[source]
            case other:
                raise TypeError(f"packets cannot stop at {other!r}")
        stopped = b.and_(arrives, b.not_(truths[step]))
        for other_way in unless:
            stopped = b.and_(stopped, b.not_(truths[other_way]))
        return stopped

    def _count(self, cpu: ir.Value, offset: int | ir.Value, by: ir.Value | None = None) -> None:
        b = self.builder
        cell = b.gep(cpu, [I64(offset) if isinstance(offset, int) else offset], source_etype=I8)
        b.store(b.add(b.load(cell, typ=I64), I64(1) if by is None else by), cell)

    def _locate(self, flow: int, step: int | None) -> None:
        """Give what follows the line number of its node, for the verifier's errors."""
        if self.scope is not None:
            line = 1 if step is None else line_of(flow, step)
            self.builder.debug_metadata = self.result.module.add_debug_info(
                "DILocation", {"line": line, "column": 1, "scope": self.scope}
            )


class _Guard:
    """Runs what is built inside only for packets that arrive; `value` is `result` then, and false otherwise."""

    def __init__(self, builder: ir.IRBuilder, arrives: ir.Value) -> None:
        self.builder = builder
        self.arrives = arrives
        self.result: ir.Value = I1(1)
        self.value: ir.Value = I1(0)

    def __enter__(self) -> _Guard:
        b = self.builder
        self.before = b.block
        inside, self.after = b.append_basic_block(), b.append_basic_block()
        b.cbranch(self.arrives, inside, self.after)
        b.position_at_end(inside)
        return self

    def __exit__(self, *failure: object) -> None:
        b = self.builder
        inside = b.block
        b.branch(self.after)
        b.position_at_end(self.after)
        self.value = b.phi(I1)
        self.value.add_incoming(I1(0), self.before)
        self.value.add_incoming(self.result, inside)


def _generate_deliver(
    result: SegmentModule, flows: tuple[SegmentFlow, ...], tap: str, cpus: int, sinks: list[_Sink]
) -> None:
    """The deliver program: stores the packet once for each flow that has a sink it reached."""
    result.primitives.add("deliver")
    program = _Program(result.module, DELIVER_PROGRAM, cpus)
    b = program.builder
    scratch = program.scratch()
    grabbed = b.load(b.gep(scratch, [I64(GRABBED)], source_etype=I8), typ=I64)
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I64, *[POINTER] * 4, *[I32] * 3, I64, I64, I32])
    function = ir.Function(result.module, kind, "ffpf_deliver")
    for number, flow in enumerate(flows):
        own = [sink for sink in sinks if sink.flow == number]
        if not own:
            continue
        mask = sum(1 << sink.bit for sink in own)
        inside, after = b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_unsigned("!=", b.and_(grabbed, I64(mask)), I64(0)), inside, after)
        b.position_at_end(inside)
        flow_value = _external(result.module, f"ffpf_flow_{number}")
        b.call(
            function,
            [
                program.context,
                b.zext(program.length, I64),
                _external(result.module, f"ffpf_ring_{number}"),
                flow_value,
                _cpu_memory(b, flow_value, program.cpu, flow.memory),
                scratch,
                b.mul(b.trunc(program.cpu, I32), I32(flow.ring.slots)),
                I32(flow.ring.slots),
                I32(flow.ring.slot_bytes),
                _snaplen(b, grabbed, own),
                I64(flow.ring.slot_bytes - BLOCK_BYTES),
                I32(_tap_number(flow.graph, tap)),
            ],
        )
        b.branch(after)
        b.position_at_end(after)
    b.branch(program.onward)
    program.finish()


def _snaplen(b: ir.IRBuilder, grabbed: ir.Value, sinks: list[_Sink]) -> ir.Value:
    """The largest snap length of the sinks that the packet reached."""
    shortest, *longer = sorted(sinks, key=lambda sink: sink.snaplen)
    length: ir.Value = I64(shortest.snaplen)
    for sink in longer:
        reached = b.icmp_unsigned("!=", b.and_(grabbed, I64(1 << sink.bit)), I64(0))
        length = b.select(reached, I64(sink.snaplen), length)
    return length


def _cpu_memory(b: ir.IRBuilder, flow_value: ir.Value, cpu: ir.Value, memory: Memory) -> ir.Value:
    offset = b.add(b.mul(cpu, I64(memory.stride)), I64(FLOW_BYTES))
    return b.gep(flow_value, [offset], source_etype=I8)


def _tap_number(graph: Graph, tap: str) -> int:
    return [device.tap for device in graph.taps].index(tap)


def _at(arrival: Arrival) -> str:
    return arrival.interface if arrival.hook == "xdp" else f"{arrival.interface}@{arrival.hook}"


def _external(module: ir.Module, name: str) -> ir.GlobalVariable:
    """A symbol that the loader binds to a map."""
    known = module.globals.get(name)
    if known is None:
        known = ir.GlobalVariable(module, I8, name)
        known.linkage = "external"
        known.type = POINTER
    return known


def _function(module: ir.Module, name: str, kind: ir.FunctionType) -> ir.Function:
    """A C function of bpf_src/, declared once."""
    known = module.globals.get(name)
    return ir.Function(module, kind, name) if known is None else known


def line_of(flow: int, step: int) -> int:
    """The debug line that stands for a node: flow and step in one number."""
    return (flow << 12) + step + 2


def node_at(line: int) -> tuple[int, int] | None:
    """Flow and step of a debug line, or None for glue."""
    return ((line - 2) >> 12, (line - 2) & 0xFFF) if line >= 2 else None


def _debug_scope(module: ir.Module, function: ir.Function) -> ir.DIValue:
    """The least debug information that makes the back end write a line table."""
    file = module.add_debug_info("DIFile", {"filename": "graph", "directory": ""})
    unit = module.add_debug_info(
        "DICompileUnit",
        {
            "language": ir.DIToken("DW_LANG_C99"),
            "file": file,
            "isOptimized": True,
            "runtimeVersion": 0,
            "emissionKind": ir.DIToken("LineTablesOnly"),
        },
        is_distinct=True,
    )
    kind = module.add_debug_info("DISubroutineType", {"types": module.add_metadata([])})
    scope = module.add_debug_info(
        "DISubprogram",
        {
            "name": function.name,
            "file": file,
            "line": 1,
            "type": kind,
            "scopeLine": 1,
            "unit": unit,
            "spFlags": ir.DIToken("DISPFlagDefinition"),
        },
        is_distinct=True,
    )
    function.set_metadata("dbg", scope)
    module.add_named_metadata("llvm.dbg.cu", unit)
    flag = [ir.IntType(32)(2), "Debug Info Version", ir.IntType(32)(3)]
    module.add_named_metadata("llvm.module.flags", module.add_metadata(flag))
    return scope
