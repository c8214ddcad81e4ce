"""Graphs -> LLVM IR: the segment program that evaluates the flows of one tap.

It asks each flow's toggle, evaluates its graph step by step, keeps its counters, and notes which sinks the packet
reached. Only then does it enter the deliver program; both go on to the next segment. The C primitives are declared here
and linked in by `emit`.
"""

from __future__ import annotations

from llvmlite import ir

from ffpf_bpf.compiler.frame import (
    DELIVER,
    FATES,
    GRABBED,
    SEEN,
    Frame,
    Generated,
    SegmentFlow,
    Sink,
    cpu_memory,
    declare,
    external,
    new_module,
)
from ffpf_bpf.compiler.lines import debug_scope, line_of
from ffpf_bpf.compiler.predicate import I1, I8, I32, I64, POINTER, forget, lower_predicate, opaque
from ffpf_bpf.compiler.truths import Guard, Joins, Outcome
from ffpf_bpf.errors import FfpfError
from ffpf_bpf.graph.effect import Arrival, Delivery, Predicate, Primitive
from ffpf_bpf.graph.expression import Role
from ffpf_bpf.graph.graph import Complement, Intersection, Leaf, Union
from ffpf_bpf.graph.predicate import Program

MOST_SINKS = 64
FEW_DECISIONS = 4  # a flow with more forgets the way to each: 1 ns, for code and verification that grow linearly
SEGMENT_PROGRAM = "ffpf_segment"


def generate_segment(
    flows: tuple[SegmentFlow, ...], tap: str, cpus: int, *, debug: bool = False
) -> tuple[Generated, tuple[Sink, ...]]:
    """The segment program that holds `flows`, as seen at `tap`, and its sinks. Raises FfpfError over 64 sinks."""
    segment = _Segment(flows, tap, cpus, debug)
    segment.generate()
    return segment.result, tuple(segment.sinks)


class _Segment:
    """The segment program."""

    def __init__(self, flows: tuple[SegmentFlow, ...], tap: str, cpus: int, debug: bool) -> None:
        self.result = Generated(new_module("segment"), (SEGMENT_PROGRAM,))
        self.flows = flows
        self.tap = tap
        self.program = Frame(self.result.module, SEGMENT_PROGRAM, cpus)
        self.builder = self.program.builder
        self.sinks: list[Sink] = []
        self.filters: dict[str, ir.Function] = {}
        self.packet = self._packet_value()
        self.scope = debug_scope(self.result.module, self.program.function) if debug else None

    def generate(self) -> None:
        b = self.builder
        for number, flow in enumerate(self.flows):
            on, after = b.append_basic_block(f"flow{number}"), b.append_basic_block(f"after{number}")
            flow_value = external(self.result.module, f"ffpf_flow_{number}")
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

    def _packet_value(self) -> ir.Value:
        """A `struct ffpf_packet` for the primitives; dissolved when they are inlined."""
        b, p = self.builder, self.program
        kind = ir.LiteralStructType([POINTER, POINTER, I32])
        with b.goto_entry_block():
            packet = b.alloca(kind)
        packet.type = POINTER  # llvmlite types allocas; addresses by bytes want the opaque pointer
        for offset, value in ((0, p.data), (8, p.end), (16, b.trunc(p.length, I32))):
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
        cpu = cpu_memory(self.builder, flow_value, self.program.cpu, flow.memory)
        self._count(cpu, SEEN)
        truths: list[ir.Value] = []
        crowded = sum(leaf.node.role is Role.DECIDES for _, leaf in flow.graph.leaves()) > FEW_DECISIONS
        settle = self._settled if crowded else lambda truth: truth
        joins, outcome = Joins(self.builder, flow.graph, settle), Outcome(self.builder, flow.graph, settle)
        for index, step in enumerate(flow.graph.steps):
            self._locate(number, index)
            match step:
                case Leaf(node=node):
                    truth = self._leaf(number, flow, index, step, truths, cpu)
                    if crowded and node.role is Role.DECIDES:
                        truth = self._forgotten(truth)
                case Union() | Intersection():
                    truth = joins.result(index)
                case Complement(source=source, inner=inner):
                    arrives = I1(1) if source is None else truths[source]
                    truth = self.builder.and_(arrives, self.builder.not_(truths[inner]))
                case _:
                    raise TypeError(f"not a step: {step!r}")
            if index in flow.memory.counters:
                self._count(cpu, flow.memory.counters[index], self.builder.zext(truth, I64))
            joins.add(index, truth)
            truths.append(truth)
            outcome.add(index, step, truths)
        self._locate(number, None)
        self._fate(outcome, cpu)
        if len(self.flows) > 1:
            grabbed = self.builder.load(self.program.grabbed, typ=I64)
            self.builder.store(forget(self.builder, grabbed, self.program.length), self.program.grabbed)

    def _settled(self, truth: ir.Value) -> ir.Value:
        """The truth, computed here."""
        return self.builder.trunc(opaque(self.builder, self.builder.zext(truth, I64), pinned=True), I1)

    def _forgotten(self, truth: ir.Value) -> ir.Value:
        """The truth, without the two ways that led to it. Otherwise the optimiser copies what follows for each way,
        and the verifier walks all 2^n ways through n decisions."""
        wide = forget(self.builder, self.builder.zext(truth, I64), self.program.length)
        return self.builder.trunc(wide, I1)

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
                with Guard(b, arrives) as guard:
                    function = self._filter(flow.predicates[text])
                    length = b.trunc(self.program.length, I32)
                    guard.result = b.call(function, [self.program.data, self.program.end, length])
                return guard.value
            case Primitive() as primitive:
                with Guard(b, arrives) as guard:
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
        function = declare(self.result.module, primitive.function, kind)
        return self.builder.call(function, [self.packet, mbuf, *(I64(value) for value in primitive.arguments)])

    def _note_sink(self, flow: int, snaplen: int, arrives: ir.Value) -> None:
        if len(self.sinks) == MOST_SINKS:
            raise FfpfError(f"over {MOST_SINKS} sinks in one segment", help="use fewer `(grab)` nodes in one flow")
        sink = Sink(len(self.sinks), flow, snaplen)
        self.sinks.append(sink)
        b = self.builder
        bit = b.shl(b.zext(arrives, I64), I64(sink.bit))
        b.store(b.or_(b.load(self.program.grabbed, typ=I64), bit), self.program.grabbed)

    def _fate(self, outcome: Outcome, cpu: ir.Value) -> None:
        """Count what became of a packet that no sink got; the deliver program counts the others."""
        b = self.builder
        offset = b.add(b.shl(outcome.fate(), I64(3)), I64(FATES))
        self._count(cpu, offset, b.zext(b.not_(outcome.kept), I64))

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


def _at(arrival: Arrival) -> str:
    return arrival.interface if arrival.hook == "xdp" else f"{arrival.interface}@{arrival.hook}"
