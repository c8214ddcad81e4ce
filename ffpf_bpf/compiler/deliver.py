"""Flows -> LLVM IR: the deliver program of a segment, which stores the packet for each flow that grabs it.

A packet is stored once for each *view* of a flow that it reached a sink of: sinks behind the same transforms show the
same, those behind others something else. All of a packet's records are stored, or none.

Where a transform rewrites, only what is rewritten comes into the ring, which the application maps.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from ffpf_bpf.compiler import emit
from ffpf_bpf.compiler.frame import (
    FATES,
    GRABBED,
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
from ffpf_bpf.compiler.predicate import I1, I8, I32, I64, POINTER
from ffpf_bpf.graph.effect import NO_RESULT, Fate, Transform
from ffpf_bpf.graph.graph import Graph, Leaf
from ffpf_bpf.graph.memory import BLOCK_BYTES, TAG_BYTES
from ffpf_bpf.graph.views import View, views

DELIVER_PROGRAM = "ffpf_deliver_all"
HAS_ROOM = ir.FunctionType(I32, [POINTER, I64, I32])
NEXT_SLOT = ir.FunctionType(POINTER, [POINTER, POINTER, I32, I32])
COPY_PACKET = ir.FunctionType(I64, [POINTER, POINTER, I64, I64])
BEGIN_COPY = ir.FunctionType(I32, [POINTER, POINTER, POINTER, I64, I64, I64])
END_COPY = ir.FunctionType(I64, [POINTER, POINTER, I64, I64])
PUBLISH_SLOT = ir.FunctionType(ir.VoidType(), [*[POINTER] * 4, I64, *[I32] * 4, I64])
PACKET_LENGTH = 16  # offset in struct ffpf_packet
HEADER_BYTES = BLOCK_BYTES - 4  # of a slot before its data: struct ffpf_slot


@dataclass(frozen=True, slots=True)
class _Hook:
    """A node's transform, and what its functions get: memories and arguments."""

    effect: Transform
    memories: tuple[ir.Value, ...]
    arguments: tuple[ir.Value, ...]

    @property
    def kinds(self) -> list[ir.Type]:
        return [*[POINTER] * len(self.memories), *[I64] * len(self.arguments)]


def generate_deliver(flows: tuple[SegmentFlow, ...], tap: str, cpus: int, sinks: tuple[Sink, ...]) -> Generated:
    """The program that stores the packet for each flow that has a sink it reached."""
    deliver = _Deliver(flows, tap, cpus)
    for number, flow in enumerate(flows):
        if own := [sink for sink in sinks if sink.flow == number]:
            deliver.flow(number, flow, own)
    deliver.finish()
    return deliver.result


class _Deliver:
    """The deliver program."""

    def __init__(self, flows: tuple[SegmentFlow, ...], tap: str, cpus: int) -> None:
        self.result = Generated(new_module("deliver"), (DELIVER_PROGRAM,), {"chain", "deliver"})
        self.program = Frame(self.result.module, DELIVER_PROGRAM, cpus)
        self.builder = self.program.builder
        self.stores = segment_stores(flows)
        self.called: list[str] = []
        self.tap = tap
        self.packet = self.program.packet()
        grabbed = self.builder.gep(self.program.scratch(), [I64(GRABBED)], source_etype=I8)
        self.grabbed = self.builder.load(grabbed, typ=I64)

    def flow(self, number: int, flow: SegmentFlow, sinks: list[Sink]) -> None:
        """Store the packet in a flow's ring, or count that there was no room for all of its records."""
        b = self.builder
        with b.if_then(self._reached(sinks)):
            own = external(self.result.module, f"ffpf_flow_{number}")
            cpu = cpu_memory(b, own, self.program.cpu, flow.memory)
            of_view: dict[View, list[Sink]] = {}
            for sink in sinks:
                of_view.setdefault(views(flow.graph)[sink.step], []).append(sink)
            wanted: ir.Value = I64(1)
            if len(of_view) > 1:
                wanted = I64(0)
                for some in of_view.values():
                    wanted = b.add(wanted, b.zext(self._reached(some), I64))
            stored = self._variable(I1)
            room = self._call("ffpf_has_room", HAS_ROOM, cpu, wanted, I32(flow.ring.slots))
            b.store(b.icmp_unsigned("!=", room, I32(0)), stored)
            for view, some in of_view.items():
                condition = b.load(stored, typ=I1)
                if len(of_view) > 1:
                    condition = b.and_(condition, self._reached(some))
                with b.if_then(condition):
                    b.store(self._store(number, flow, cpu, view, some, sinks), stored)
            fate = b.select(b.load(stored, typ=I1), I64(8 * Fate.DELIVERED), I64(8 * Fate.RING_FULL))
            cell = b.gep(cpu, [b.add(fate, I64(FATES))], source_etype=I8)
            b.store(b.add(b.load(cell, typ=I64), I64(1)), cell)

    def finish(self) -> None:
        """Go on to the next segment."""
        self.result.primitives.update(self.called, emit.dissector(self.called))
        self.builder.branch(self.program.onward)
        self.program.finish()

    def _store(
        self, number: int, flow: SegmentFlow, cpu: ir.Value, view: View, some: list[Sink], sinks: list[Sink]
    ) -> ir.Value:
        """Store one record, as `view` shows the packet; whether that worked."""
        b, ring = self.builder, flow.ring
        ring_map = external(self.result.module, f"ffpf_ring_{number}")
        first = b.mul(b.trunc(self.program.cpu, I32), I32(ring.slots))
        slot = self._call("ffpf_next_slot", NEXT_SLOT, ring_map, cpu, first, I32(ring.slots))
        hooks = [self._hook(flow, step) for step in view]
        packet = self.packet
        if hooks:
            self.packet = self.program.packet(anew=True)
        whole = b.load(b.gep(self.packet, [I64(PACKET_LENGTH)], source_etype=I8), typ=I64)
        wanted = self._shorter(whole, _snaplen(b, self.grabbed, some))
        for hook in hooks:
            kept = self._kept(hook)
            wanted = self._shorter(wanted, kept)
            whole = self._shorter(whole, kept) if hook.effect.rewrite else whole
        rewriting = [hook for hook in hooks if hook.effect.rewrite]
        worked = self._variable(I1)
        b.store(I1(0), worked)
        with b.if_then(b.icmp_unsigned("!=", b.ptrtoint(slot, I64), I64(0))):
            longest = I64(ring.data_bytes)
            if rewriting:
                captured = self._copy_rewritten(slot, rewriting, whole, wanted, longest)
            else:
                captured = self._copy(b.gep(slot, [I64(HEADER_BYTES)], source_etype=I8), wanted, longest)
            with b.if_then(b.icmp_signed(">=", captured, I64(0))):
                # A result tells of the packet as it was, so not behind what shows less of it.
                self._publish(number, flow, cpu, slot, captured, some, sinks, with_result=not hooks)
                b.store(I1(1), worked)
        self.packet = packet
        return b.load(worked, typ=I1)

    def _copy(self, to: ir.Value, wanted: ir.Value, longest: ir.Value) -> ir.Value:
        """Copy the packet as it is; how many bytes, or -1."""
        return self._call("ffpf_copy_packet", COPY_PACKET, self.program.context, to, wanted, longest)

    def _copy_rewritten(
        self, slot: ir.Value, rewriting: list[_Hook], whole: ir.Value, wanted: ir.Value, longest: ir.Value
    ) -> ir.Value:
        """Copy `whole` bytes into a node's own memory, rewrite them there, and copy those `wanted` into the slot."""
        b = self.builder
        copy = rewriting[0].memories[0]
        most = I64(min(hook.effect.copy_bytes for hook in rewriting))
        captured = self._variable(I64)
        b.store(I64(-1), captured)
        arguments = (self.program.context, self.packet, copy, whole, most, wanted)
        begun = self._call("ffpf_begin_copy", BEGIN_COPY, *arguments)
        with b.if_then(b.icmp_unsigned("!=", begun, I32(0))):
            for hook in rewriting:
                kind = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, *hook.kinds])
                self._call(hook.effect.rewrite, kind, self.packet, copy, *hook.memories, *hook.arguments)
            b.store(self._call("ffpf_end_copy", END_COPY, slot, copy, longest, most), captured)
        return b.load(captured, typ=I64)

    def _publish(
        self,
        number: int,
        flow: SegmentFlow,
        cpu: ir.Value,
        slot: ir.Value,
        captured: ir.Value,
        some: list[Sink],
        sinks: list[Sink],
        *,
        with_result: bool,
    ) -> None:
        b, ring = self.builder, flow.ring
        reached: ir.Value = I32(0)
        result: ir.Value = I64(NO_RESULT)
        if ring.tagged:
            for place, sink in enumerate(sinks):
                if sink in some:
                    bit = b.and_(b.lshr(self.grabbed, I64(sink.bit)), I64(1))
                    reached = b.or_(reached, b.trunc(b.shl(bit, I64(place)), I32))
            if with_result:
                result = b.load(b.gep(cpu, [I64(flow.memory.result)], source_etype=I8), typ=I64)
        interface = I32(flow.first_interface + _tap_number(flow.graph, self.tap))
        tag_bytes = I32(TAG_BYTES if ring.tagged else 0)
        own = external(self.result.module, f"ffpf_flow_{number}")
        slot_bytes = I32(ring.slot_bytes)
        arguments = (self.packet, slot, own, cpu, captured, slot_bytes, interface, tag_bytes, reached, result)
        self._call("ffpf_publish_slot", PUBLISH_SLOT, *arguments)

    def _kept(self, hook: _Hook) -> ir.Value:
        """The bytes of the packet that a transform shows at most."""
        if not hook.effect.keep:
            return I64(-1)
        kind = ir.FunctionType(I64, [POINTER, *hook.kinds])
        return self._call(hook.effect.keep, kind, self.packet, *hook.memories, *hook.arguments)

    def _hook(self, flow: SegmentFlow, step: int) -> _Hook:
        """The transform at a step."""
        leaf = flow.graph.steps[step]
        assert isinstance(leaf, Leaf)
        effect = leaf.node.effect
        assert isinstance(effect, Transform)
        self.called.append(effect.module)
        memories = self.program.memory_of(flow.homes[step], self.stores)
        arguments = tuple(I64(value) for value in effect.arguments)
        return _Hook(effect, memories[:1] if effect.table is None else memories, arguments)

    def _variable(self, kind: ir.Type) -> ir.Value:
        with self.builder.goto_entry_block():
            place = self.builder.alloca(kind)
        place.type = POINTER  # llvmlite types allocas; addresses by bytes want the opaque pointer
        return place

    def _call(self, name: str, kind: ir.FunctionType, *arguments: ir.Value) -> ir.Value:
        return self.builder.call(declare(self.result.module, name, kind), arguments)

    def _reached(self, sinks: list[Sink]) -> ir.Value:
        """Whether the packet reached one of the sinks."""
        mask = sum(1 << sink.bit for sink in sinks)
        return self.builder.icmp_unsigned("!=", self.builder.and_(self.grabbed, I64(mask)), I64(0))

    def _shorter(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.icmp_unsigned("<", a, b), a, b)


def _snaplen(b: ir.IRBuilder, grabbed: ir.Value, sinks: list[Sink]) -> ir.Value:
    """The largest snap length of the sinks that the packet reached."""
    shortest, *longer = sorted(sinks, key=lambda sink: sink.snaplen)
    length: ir.Value = I64(shortest.snaplen)
    for sink in longer:
        reached = b.icmp_unsigned("!=", b.and_(grabbed, I64(1 << sink.bit)), I64(0))
        length = b.select(reached, I64(sink.snaplen), length)
    return length


def _tap_number(graph: Graph, tap: str) -> int:
    return [device.tap for device in graph.taps].index(tap)
