"""Graphs -> LLVM IR: the segment program that evaluates the flows of one tap.

It asks each flow's toggle, evaluates its graph step by step, keeps its counters, and notes which sinks the packet
reached. Only then does it store the packet, or enter the deliver program, which does; both go on to the next segment.
The C primitives are declared here and linked in by `emit`.
"""

from __future__ import annotations

from functools import reduce

from llvmlite import ir

from ffpf_bpf.compiler import emit
from ffpf_bpf.compiler.deliver import deliver_in
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
    segment_stores,
)
from ffpf_bpf.compiler.hook import Hook
from ffpf_bpf.compiler.lines import debug_scope, line_of
from ffpf_bpf.compiler.predicate import I1, I8, I32, I64, POINTER, forget, lower_predicate, opaque
from ffpf_bpf.compiler.truths import Guard, Joins, Outcome, SharedTruths
from ffpf_bpf.errors import FfpfError
from ffpf_bpf.graph.effect import NO_RESULT, Arrival, Delivery, Effect, Predicate, Primitive, Transform
from ffpf_bpf.graph.expression import Role
from ffpf_bpf.graph.graph import Case, Complement, Intersection, Leaf, Step, Union, sources
from ffpf_bpf.graph.memory import Home
from ffpf_bpf.graph.predicate import Program

MOST_SINKS = 64
FEW_DECISIONS = 4  # a flow with more forgets the way to each: 1 ns, for code and verification that grow linearly
WAYS_OF_PRIMITIVE = 3
SEGMENT_PROGRAM = "ffpf_segment"
NOTHING = I64(NO_RESULT)


def generate_segment(
    flows: tuple[SegmentFlow, ...],
    tap: str,
    cpus: int,
    hook: Hook,
    *,
    stores: bool = False,
    debug: bool = False,
    offline: bool = False,
) -> tuple[Generated, tuple[Sink, ...]]:
    """The segment program that holds `flows`, as seen at `tap`, and its sinks. It `stores` what they grab itself, or
    leaves that to the deliver program. Raises FfpfError over 64 sinks."""
    segment = _Segment(flows, tap, cpus, hook, debug, offline)
    segment.generate(stores)
    return segment.result, tuple(segment.sinks)


class _Segment:
    """The segment program."""

    def __init__(
        self, flows: tuple[SegmentFlow, ...], tap: str, cpus: int, hook: Hook, debug: bool, offline: bool
    ) -> None:
        self.result = Generated(new_module("segment"), (SEGMENT_PROGRAM,), hook)
        self.flows = flows
        self.stores = segment_stores(flows)
        self.tap = tap
        self.program = Frame(self.result.module, SEGMENT_PROGRAM, cpus, hook, offline=offline)
        self.builder = self.program.builder
        self.sinks: list[Sink] = []
        self.called: list[str] = []
        self.filters: dict[str, ir.Function] = {}
        self.packet = self.program.packet()
        self.scope = debug_scope(self.result.module, self.program.function) if debug else None
        self.shared = SharedTruths(self.builder)

    def generate(self, stores: bool) -> None:
        b = self.builder
        for cluster in clusters(self.flows):
            self.shared = SharedTruths(b)
            toggles = [self._toggle(number) for number in cluster]
            if len(cluster) > 1:
                after = self._enter(reduce(b.or_, toggles))
                self._evaluate_shared(cluster, toggles)
                self._flows(cluster, toggles)
                self._leave(after)
            else:
                self._flows(cluster, toggles)
        self.result.primitives.update(self.called, emit.dissector(self.called))
        if self.sinks:
            self._deliver(stores)
        b.branch(self.program.onward)
        self.program.finish()

    def _toggle(self, number: int) -> ir.Value:
        b = self.builder
        toggle = b.load(external(self.result.module, f"ffpf_flow_{number}"), typ=I32)
        toggle.volatile = True
        return b.icmp_unsigned("!=", toggle, I32(0))

    def _enter(self, condition: ir.Value) -> ir.Block:
        """Go on inside a block that is run if `condition` holds; `_leave` it for the block returned."""
        b = self.builder
        inside, after = b.append_basic_block(), b.append_basic_block()
        b.cbranch(condition, inside, after)
        b.position_at_end(inside)
        return after

    def _leave(self, after: ir.Block) -> None:
        self.builder.branch(after)
        self.builder.position_at_end(after)

    def _flows(self, cluster: list[int], toggles: list[ir.Value]) -> None:
        for number, toggle in zip(cluster, toggles, strict=True):
            after = self._enter(toggle)
            with self.shared.anew():
                self._flow(number, self.flows[number])
            self._leave(after)

    def _deliver(self, stores: bool) -> None:
        """Store the packet if it reached a sink, here or in the deliver program."""
        b, p = self.builder, self.program
        grabbed = b.load(p.grabbed, typ=I64)
        deliver = b.append_basic_block("deliver")
        b.cbranch(b.icmp_unsigned("!=", grabbed, I64(0)), deliver, p.onward)
        b.position_at_end(deliver)
        if stores:
            deliver_in(self.result, p, self.flows, self.tap, tuple(self.sinks), self.packet, grabbed)
        else:
            b.store(grabbed, b.gep(p.scratch(), [I64(GRABBED)], source_etype=I8))
            p.tail_call(DELIVER)

    def _evaluate_shared(self, cluster: list[int], toggles: list[ir.Value]) -> None:
        """The steps that several flows have in common, once, for packets that a flow switched on asks about."""
        users: dict[tuple[int, int], list[ir.Value]] = {}
        for number, toggle in zip(cluster, toggles, strict=True):
            for home in self.flows[number].used:
                users.setdefault(home, []).append(toggle)
        for number in cluster:
            flow = self.flows[number]
            for index, step in enumerate(flow.graph.steps):
                home = flow.home(index)
                if home not in users or len(users[home]) < 2 or home in self.shared:
                    continue
                self._locate(number, index)
                asked = I1(1) if len(users[home]) == len(cluster) else reduce(self.builder.or_, users[home])
                truth, result = self._evaluate(flow, index, step, asked)
                self.shared.add(home, self._forgotten(truth), result)

    def _evaluate(self, flow: SegmentFlow, index: int, step: Step, asked: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Truth and result of a step that is evaluated outside of its flow."""
        b = self.builder
        match step:
            case Leaf():
                arrives = asked if step.source is None else b.and_(asked, self._known(flow, step.source))
                return self._leaf(flow, index, step, arrives)
            case Union(inputs=inputs):
                return reduce(b.or_, (self._known(flow, i) for i in inputs), I1(0)), NOTHING
            case Intersection(inputs=inputs):
                return reduce(b.and_, (self._known(flow, i) for i in inputs), I1(1)), NOTHING
            case Complement(source=source, inner=inner):
                arrives = asked if source is None else self._known(flow, source)
                return b.and_(arrives, b.not_(self._known(flow, inner))), NOTHING
            case Case(source=source):
                truth, result = self.shared.get(flow.home(source))
                return b.and_(truth, self._selected(step, result)), NOTHING
            case _:
                raise TypeError(f"not a step: {step!r}")

    def _known(self, flow: SegmentFlow, index: int) -> ir.Value:
        """The truth of a step that a shared one reads: shared as well, or about the tap alone."""
        if index not in flow.graph.arrivals:
            return self.shared.get(flow.home(index))[0]
        here = [
            leaf.node.effect
            for at, leaf in flow.graph.leaves()
            if at == index or at in sources(flow.graph.steps[index])
        ]
        return I1(int(any(isinstance(effect, Arrival) and effect.is_at(self.tap) for effect in here)))

    def _flow(self, number: int, flow: SegmentFlow) -> None:
        """One flow's graph: the steps in order, each counted, then the packet's fate."""
        own = external(self.result.module, f"ffpf_flow_{number}")
        cpu = cpu_memory(self.builder, own, self.program.cpu, flow.memory)
        self._count(cpu, SEEN)
        if flow.memory.result:
            self._keep_result(cpu, flow, I64(NO_RESULT))
        truths: list[ir.Value] = []
        results: dict[int, ir.Value] = {}
        crowded = _ways(flow) > FEW_DECISIONS
        settle = self._settled if crowded else lambda truth: truth
        joins, outcome = Joins(self.builder, flow.graph, settle), Outcome(self.builder, flow.graph, settle)
        for index, step in enumerate(flow.graph.steps):
            self._locate(number, index)
            truth = self._step(number, flow, index, step, truths, results, joins)
            if crowded and (isinstance(step, Case) or (isinstance(step, Leaf) and step.node.role is Role.DECIDES)):
                truth = self._forgotten(truth)
                if isinstance(step, Leaf) and step.node.selects:
                    results[index] = forget(self.builder, results[index], self.program.length)
            if index in flow.memory.counters:
                self._count(cpu, flow.memory.counters[index], self.builder.zext(truth, I64))
            if flow.memory.result and isinstance(step, Leaf) and step.node.selects:
                self._keep_result(cpu, flow, results[index], truth)
            joins.add(index, truth)
            truths.append(truth)
            outcome.add(index, step, truths)
        self._locate(number, None)
        self._fate(outcome, cpu)
        if len(self.flows) > 1:
            grabbed = self.builder.load(self.program.grabbed, typ=I64)
            self.builder.store(forget(self.builder, grabbed, self.program.length), self.program.grabbed)

    def _step(
        self,
        number: int,
        flow: SegmentFlow,
        index: int,
        step: Step,
        truths: list[ir.Value],
        results: dict[int, ir.Value],
        joins: Joins,
    ) -> ir.Value:
        """The truth of a step inside its flow; its result, if it has one, goes into `results`."""
        b = self.builder
        if flow.home(index) in self.shared:
            truth, results[index] = self.shared.get(flow.home(index))
            return truth
        match step:
            case Leaf(node=node):
                arrives = I1(1) if step.source is None else truths[step.source]
                if node.role is Role.SINK:
                    self._note_sink(number, index, node.effect, arrives)
                    return arrives
                truth, results[index] = self._leaf(flow, index, step, arrives)
                return truth
            case Union() | Intersection():
                return joins.result(index)
            case Complement(source=source, inner=inner):
                arrives = I1(1) if source is None else truths[source]
                return b.and_(arrives, b.not_(truths[inner]))
            case Case(source=source):
                return b.and_(truths[source], self._selected(step, results[source]))
            case _:
                raise TypeError(f"not a step: {step!r}")

    def _settled(self, truth: ir.Value) -> ir.Value:
        """The truth, computed here."""
        return self.builder.trunc(opaque(self.builder, self.builder.zext(truth, I64), pinned=True), I1)

    def _forgotten(self, truth: ir.Value) -> ir.Value:
        """The truth, without the two ways that led to it. Otherwise the optimiser copies what follows for each way,
        and the verifier walks all 2^n ways through n decisions."""
        wide = forget(self.builder, self.builder.zext(truth, I64), self.program.length)
        return self.builder.trunc(wide, I1)

    def _leaf(self, flow: SegmentFlow, index: int, leaf: Leaf, arrives: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Truth and result of a node that is no sink, run for packets that arrive."""
        b = self.builder
        match leaf.node.effect:
            case Arrival() as arrival:
                return I1(int(arrival.is_at(self.tap))), NOTHING
            case Predicate(filter=text):
                with Guard(b, arrives) as guard:
                    function = self._filter(flow.predicates[text])
                    length = b.trunc(self.program.length, I32)
                    guard.result = b.call(function, [self.program.data, self.program.end, length])
                return guard.value, NOTHING
            case Primitive() as primitive:
                with Guard(b, arrives) as guard:
                    returned = self._primitive(primitive, flow.homes[index])
                    passes = b.icmp_signed(">=" if primitive.selects else "!=", returned, I32(0))
                    guard.result, guard.also = passes, b.zext(returned, I64)
                result = guard.also if primitive.selects else NOTHING
                return (guard.value if leaf.node.role is Role.DECIDES else arrives), result
            case Transform():
                return arrives, NOTHING
            case other:
                raise TypeError(f"node class {leaf.node.class_name} has an effect nobody lowers: {other!r}")

    def _selected(self, case: Case, result: ir.Value) -> ir.Value:
        """Whether the result is in the case's ranges."""
        b = self.builder
        inside: ir.Value = I1(0)
        for low, high in case.ranges:
            inside = b.or_(inside, b.icmp_unsigned("<=", b.sub(result, I64(low)), I64(high - low)))
        return b.not_(inside) if case.inverted else inside

    def _keep_result(self, cpu: ir.Value, flow: SegmentFlow, result: ir.Value, truth: ir.Value | None = None) -> None:
        """Note a packet's result for its record."""
        b = self.builder
        cell = b.gep(cpu, [I64(flow.memory.result)], source_etype=I8)
        b.store(result if truth is None else b.select(truth, result, b.load(cell, typ=I64)), cell)

    def _filter(self, program: Program) -> ir.Function:
        """The filter's function, one for equal programs."""
        if program.digest not in self.filters:
            name = f"filter{len(self.filters)}"
            self.filters[program.digest] = lower_predicate(self.result.module, program, name)
        return self.filters[program.digest]

    def _primitive(self, primitive: Primitive, home: Home) -> ir.Value:
        self.called.append(primitive.module)
        mbuf, table = self.program.memory_of(home, self.stores)
        memories = [mbuf] if primitive.table is None else [mbuf, table]
        kind = ir.FunctionType(I32, [POINTER, *[POINTER] * len(memories), *[I64] * len(primitive.arguments)])
        function = declare(self.result.module, primitive.function, kind)
        return self.builder.call(function, [self.packet, *memories, *(I64(value) for value in primitive.arguments)])

    def _note_sink(self, flow: int, step: int, effect: Effect, arrives: ir.Value) -> None:
        assert isinstance(effect, Delivery)
        if len(self.sinks) == MOST_SINKS:
            raise FfpfError(
                f"over {MOST_SINKS} sinks in one segment",
                where=f"node `{self.flows[flow].graph.ids[step]}`",
                help="use fewer `(grab)` nodes in one flow",
            )
        sink = Sink(len(self.sinks), flow, step, effect.snaplen or self.flows[flow].ring.snaplen)
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


def clusters(flows: tuple[SegmentFlow, ...]) -> list[list[int]]:
    """The numbers of the flows, those together that have a step in common."""
    found: list[tuple[list[int], set[tuple[int, int]]]] = []
    for number, flow in enumerate(flows):
        members, used = [number], set(flow.used)
        for other in [cluster for cluster in found if cluster[1] & used]:
            found.remove(other)
            members = [*other[0], *members]
            used |= other[1]
        found.append((members, used))
    return [members for members, _ in found]


def _ways(flow: SegmentFlow) -> int:
    """About how many decisions a packet's way takes through a flow: several inside a primitive."""
    deciding = [leaf.node.effect for _, leaf in flow.graph.leaves() if leaf.node.role is Role.DECIDES]
    return sum(WAYS_OF_PRIMITIVE if isinstance(effect, Primitive) else 1 for effect in deciding)
