"""Flows -> LLVM IR: storing a packet for each flow that grabs it, in the segment program or a program of its own.

A packet is stored once for each *view* of a flow that it reached a sink of: sinks behind the same transforms show the
same, those behind others something else. All of a packet's records are stored, or none. Flows that share a packet ring
have one view, the same: for them it is stored once, and noted in the index ring of each, with what the packet was to
that flow alone: which sinks it reached, what result it had.

Where a transform rewrites, only what is rewritten comes into the ring, which the application maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llvmlite import ir

from ffpf_bpf.compiler import emit
from ffpf_bpf.compiler.frame import (
    BELL,
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
    segment_rings,
    segment_stores,
)
from ffpf_bpf.compiler.hook import Hook
from ffpf_bpf.compiler.predicate import I1, I8, I32, I64, POINTER
from ffpf_bpf.graph.effect import NO_RESULT, Fate, Transform
from ffpf_bpf.graph.graph import Leaf
from ffpf_bpf.graph.memory import BLOCK_BYTES, READER_BYTES, RING_BYTES
from ffpf_bpf.graph.views import View, views

DELIVER_PROGRAM = "ffpf_deliver_all"
HAS_ROOM = ir.FunctionType(I32, [POINTER, I64])
MAKE_ROOM = ir.FunctionType(I32, [POINTER, I64, I32])
NEXT_SLOT = ir.FunctionType(POINTER, [POINTER, POINTER, I32, I32])
COPY_PACKET = ir.FunctionType(I64, [POINTER, POINTER, I64, I64])
BEGIN_COPY = ir.FunctionType(I32, [POINTER, POINTER, POINTER, I64, I64, I64])
END_COPY = ir.FunctionType(I64, [POINTER, POINTER, I64, I64])
FILL_SLOT = ir.FunctionType(ir.VoidType(), [*[POINTER] * 3, I64, I32, I32])
PUBLISH_SLOT = ir.FunctionType(I64, [POINTER, POINTER, I32])
IS_STORED = ir.FunctionType(I32, [POINTER, POINTER, I32])
NOTE_RECORD = ir.FunctionType(ir.VoidType(), [*[POINTER] * 3, I32, POINTER])
NOTE_TAGGED = ir.FunctionType(ir.VoidType(), [*[POINTER] * 3, I32, POINTER, I32, I64])
WAKE_READER = ir.FunctionType(ir.VoidType(), [POINTER, I64, POINTER])
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


@dataclass(frozen=True, slots=True)
class _Reader:
    """A flow whose records go to a packet ring, by its number in the segment, with its map and this CPU's memory of
    it."""

    number: int
    flow: SegmentFlow
    sinks: list[Sink]
    value: ir.Value
    cpu: ir.Value


@dataclass(frozen=True, slots=True)
class _PacketRing:
    """A packet ring: its slots, this CPU's `struct ffpf_ring`, and the flows of the segment that read it, at least one.
    `tap` is the number of the tap among those of each of them, `by_view` are their sinks, those together that show the
    same."""

    slots: ir.Value
    cpu: ir.Value
    tap: int
    readers: list[_Reader]
    by_view: list[list[Sink]]

    @property
    def flow(self) -> SegmentFlow:
        """One for all, in what they have in common."""
        return self.readers[0].flow

    @property
    def has_index(self) -> bool:
        return self.flow.memory.index_stride > 0

    @property
    def is_noted_after(self) -> bool:
        """Whether the one record of a packet is noted when it is there; several are noted one by one."""
        return self.has_index and len(self.by_view) == 1


def generate_deliver(
    flows: tuple[SegmentFlow, ...], tap: str, cpus: int, sinks: tuple[Sink, ...], hook: Hook, *, offline: bool = False
) -> Generated:
    """The program that stores the packet for each flow that has a sink it reached."""
    result = Generated(new_module("deliver"), (DELIVER_PROGRAM,), hook)
    program = Frame(result.module, DELIVER_PROGRAM, cpus, hook, offline=offline)
    grabbed = program.builder.gep(program.scratch(), [I64(GRABBED)], source_etype=I8)
    deliver_in(result, program, flows, tap, sinks, program.packet(), program.builder.load(grabbed, typ=I64))
    program.builder.branch(program.onward)
    program.finish()
    return result


def deliver_in(
    result: Generated,
    program: Frame,
    flows: tuple[SegmentFlow, ...],
    tap: str,
    sinks: tuple[Sink, ...],
    packet: ir.Value,
    grabbed: ir.Value,
) -> None:
    """Likewise, in a program that goes on afterwards: for the sinks whose bits are in `grabbed`."""
    deliver = _Deliver(result, program, flows, tap, packet, grabbed)
    for home, first in segment_rings(flows).items():
        using = [number for number, flow in enumerate(flows) if flow.graph.sinks and flow.ring_home.store == home]
        deliver.ring(first, {number: [sink for sink in sinks if sink.flow == number] for number in using})
    result.primitives.update({"deliver", result.hook.frame}, deliver.called, emit.dissector(deliver.called))


class _Deliver:
    """The part of a program that stores the packet."""

    def __init__(
        self,
        result: Generated,
        program: Frame,
        flows: tuple[SegmentFlow, ...],
        tap: str,
        packet: ir.Value,
        grabbed: ir.Value,
    ) -> None:
        self.result = result
        self.program = program
        self.builder = program.builder
        self.flows = flows
        self.stores = segment_stores(flows)
        self.called: list[str] = []
        self.tap = tap
        self.packet = packet
        self.grabbed = grabbed

    def ring(self, first: int, users: Mapping[int, list[Sink]]) -> None:
        """Store the packet in a ring, or count that there was no room for all of its records."""
        b = self.builder
        with b.if_then(self._reached([sink for sinks in users.values() for sink in sinks])):
            flow = self.flows[first]
            home = flow.ring_home
            ring = _PacketRing(
                external(self.result.module, f"ffpf_ring_{first}"),
                self._at(home.store, home.memory.ring, home.memory.ring_stride),
                flow.tap_number(self.tap),
                [self._reader(number, sinks) for number, sinks in users.items()],
                self._by_view(users),
            )
            stored = self._variable(I1)
            if ring.is_noted_after and not self.program.offline:  # where nobody else stores, and packets have no number
                is_stored = self._call("ffpf_is_stored", IS_STORED, self.packet, ring.cpu, I32(ring.tap))
                b.store(b.icmp_unsigned("!=", is_stored, I32(0)), stored)
                with b.if_then(b.not_(b.load(stored, typ=I1))):
                    self._store_views(ring, stored)
            else:
                self._store_views(ring, stored)
            # Before a bell is rung: no register need be kept over that call.
            for reader in ring.readers:
                self._count(reader, b.load(stored, typ=I1), is_only=len(ring.readers) == 1)
            if ring.is_noted_after:
                with b.if_then(b.load(stored, typ=I1)):
                    for reader in ring.readers:
                        self._note(ring, reader)

    def _by_view(self, users: Mapping[int, list[Sink]]) -> list[list[Sink]]:
        """The sinks of these flows, those together that show the same. Those of flows that share a ring all do."""
        if len(users) > 1:
            return [[sink for sinks in users.values() for sink in sinks]]
        ((number, sinks),) = users.items()
        shown = views(self.flows[number].graph)
        found: dict[View, list[Sink]] = {}
        for sink in sinks:
            found.setdefault(shown[sink.step], []).append(sink)
        return [*found.values()]

    def _store_views(self, ring: _PacketRing, stored: ir.Value) -> None:
        """Store a record for each view that the packet is in, if there is room for all."""
        b = self.builder
        wanted: ir.Value = I64(1)
        if len(ring.by_view) > 1:
            wanted = I64(0)
            for some in ring.by_view:
                wanted = b.add(wanted, b.zext(self._reached(some), I64))
        b.store(self._has_room(ring, wanted), stored)
        for some in ring.by_view:
            if len(ring.by_view) > 1:
                with b.if_then(self._reached(some)):
                    self._store(ring, some, stored)
            else:
                self._store(ring, some, stored)

    def _note(self, ring: _PacketRing, reader: _Reader) -> None:
        """The record that was stored last is one of the flow's, if it reached its sinks."""
        if len(ring.readers) == 1:
            self._noted(ring, reader, reader.sinks)
        else:
            with self.builder.if_then(self._reached(reader.sinks)):
                self._noted(ring, reader, reader.sinks)

    def _noted(self, ring: _PacketRing, reader: _Reader, some: list[Sink]) -> None:
        flow = reader.flow
        index = self._at(flow.store, flow.memory.index, flow.memory.index_stride)
        note = (ring.cpu, self._place(ring, reader), index, I32(flow.ring.slots), self._bell(reader))
        if flow.graph.tagged:
            self._call("ffpf_note_tagged", NOTE_TAGGED, *note, *self._tag(reader, some))
        else:
            self._call("ffpf_note_record", NOTE_RECORD, *note)

    def _tag(self, reader: _Reader, some: list[Sink]) -> tuple[ir.Value, ir.Value]:
        """Which of these sinks the packet reached, a bit each by its place among those of the flow; its result."""
        b, flow = self.builder, reader.flow
        reached: ir.Value = I32(0)
        for place, sink in enumerate(reader.sinks):
            if sink in some:
                bit = b.and_(b.lshr(self.grabbed, I64(sink.bit)), I64(1))
                reached = b.or_(reached, b.trunc(b.shl(bit, I64(place)), I32))
        # A result tells of the packet as it was, so not behind what shows less of it.
        if views(flow.graph)[some[0].step]:
            return reached, I64(NO_RESULT)
        return reached, b.load(b.gep(reader.cpu, [I64(flow.memory.result)], source_etype=I8), typ=I64)

    def _place(self, ring: _PacketRing, reader: _Reader) -> ir.Value:
        """This CPU's `struct ffpf_reader` of the flow."""
        at = RING_BYTES + reader.flow.ring_home.reader * READER_BYTES
        return self.builder.gep(ring.cpu, [I64(at)], source_etype=I8)

    def _bell(self, reader: _Reader) -> ir.Value:
        """What wakes the flow's application."""
        return external(self.result.module, f"{BELL}{reader.number}")

    def _value(self, store: int) -> ir.Value:
        return external(self.result.module, f"ffpf_flow_{self.stores.index(store)}")

    def _at(self, store: int, offset: int, stride: int) -> ir.Value:
        """This CPU's part of what begins at `offset` in a store."""
        b = self.builder
        return b.gep(self._value(store), [b.add(b.mul(self.program.cpu, I64(stride)), I64(offset))], source_etype=I8)

    def _reader(self, number: int, sinks: list[Sink]) -> _Reader:
        flow = self.flows[number]
        value = self._value(flow.store)
        return _Reader(number, flow, sinks, value, cpu_memory(self.builder, value, self.program.cpu, flow.memory))

    def _has_room(self, ring: _PacketRing, wanted: ir.Value) -> ir.Value:
        """Whether so many records can be stored: by what is known, and if not, by where the readers are now."""
        b = self.builder
        room = self._variable(I32)
        b.store(self._call("ffpf_has_room", HAS_ROOM, ring.cpu, wanted), room)
        with b.if_then(b.icmp_unsigned("==", b.load(room, typ=I32), I32(0)), likely=False):
            make = "ffpf_make_shared_room" if ring.has_index else "ffpf_make_room"
            b.store(self._call(make, MAKE_ROOM, ring.cpu, wanted, I32(ring.flow.ring.slots)), room)
        return b.icmp_unsigned("!=", b.load(room, typ=I32), I32(0))

    def _count(self, reader: _Reader, stored: ir.Value, *, is_only: bool) -> None:
        """The packet's fate."""
        b = self.builder
        fate = b.select(stored, I64(8 * Fate.DELIVERED), I64(8 * Fate.RING_FULL))
        cell = b.gep(reader.cpu, [b.add(fate, I64(FATES))], source_etype=I8)
        one = I64(1) if is_only else b.zext(self._reached(reader.sinks), I64)
        b.store(b.add(b.load(cell, typ=I64), one), cell)

    def _store(self, ring: _PacketRing, some: list[Sink], stored: ir.Value) -> None:
        """If `stored`, store a record as the view of these sinks shows the packet; afterwards, whether that worked."""
        b = self.builder
        with b.if_then(b.load(stored, typ=I1)):
            b.store(self._stored(ring, some), stored)

    def _stored(self, ring: _PacketRing, some: list[Sink]) -> ir.Value:
        b, flow = self.builder, ring.flow
        slots = flow.ring.slots
        first = b.mul(b.trunc(self.program.cpu, I32), I32(slots))
        slot = self._call("ffpf_next_slot", NEXT_SLOT, ring.slots, ring.cpu, first, I32(slots))
        view = views(flow.graph)[some[0].step]
        hooks = [self._hook(flow, step) for step in view]
        packet = self.packet
        if hooks:
            self.packet = self.program.packet(anew=True)
        whole = b.load(b.gep(self.packet, [I64(PACKET_LENGTH)], source_etype=I8), typ=I64)
        if self.program.offline:
            whole = self.program.present()
        wanted = self._shorter(whole, _snaplen(b, self.grabbed, some))
        worked = self._variable(I1)
        b.store(I1(0), worked)
        with b.if_then(b.icmp_unsigned("!=", b.ptrtoint(slot, I64), I64(0))):
            captured = self._variable(I64)
            b.store(I64(-1), captured)
            if len(hooks) == 1 and hooks[0].effect.known and flow.ring.data_bytes >= hooks[0].effect.known_bytes:
                b.store(self._copy_known(hooks[0], slot, wanted), captured)
            with b.if_then(b.icmp_signed("<", b.load(captured, typ=I64), I64(0))):
                b.store(self._copied(hooks, slot, whole, wanted, I64(flow.ring.data_bytes)), captured)
            with b.if_then(b.icmp_signed(">=", b.load(captured, typ=I64), I64(0))):
                self._publish(ring, slot, b.load(captured, typ=I64), some)
                b.store(I1(1), worked)
        self.packet = packet
        return b.load(worked, typ=I1)

    def _copied(
        self, hooks: list[_Hook], slot: ir.Value, whole: ir.Value, wanted: ir.Value, longest: ir.Value
    ) -> ir.Value:
        """Copy the packet into the slot as the transforms show it; how many bytes, or -1."""
        for hook in hooks:
            kept = self._kept(hook)
            wanted = self._shorter(wanted, kept)
            whole = self._shorter(whole, kept) if hook.effect.rewrite else whole
        rewriting = [hook for hook in hooks if hook.effect.rewrite]
        if rewriting:
            return self._copy_rewritten(slot, rewriting, whole, wanted, longest)
        return self._call("ffpf_copy_packet", COPY_PACKET, self.program.context, self._data(slot), wanted, longest)

    def _data(self, slot: ir.Value) -> ir.Value:
        """Where a slot's data begins."""
        return self.builder.gep(slot, [I64(HEADER_BYTES)], source_etype=I8)

    def _copy_known(self, hook: _Hook, slot: ir.Value, wanted: ir.Value) -> ir.Value:
        """The same by a transform's shorter way, which takes most packets, and says -1 of others."""
        kind = ir.FunctionType(I64, [POINTER, POINTER, *hook.kinds, I64])
        return self._call(
            hook.effect.known, kind, self.packet, self._data(slot), *hook.memories, *hook.arguments, wanted
        )

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

    def _publish(self, ring: _PacketRing, slot: ir.Value, captured: ir.Value, some: list[Sink]) -> None:
        """The record is there. A ring's only reader is told of each; what several share is noted afterwards."""
        reader, flow = ring.readers[0], ring.flow
        interface = I32(flow.ring_home.first_interface + ring.tap)
        about = (captured, I32(flow.ring.slot_bytes), interface)
        self._call("ffpf_fill_slot", FILL_SLOT, self.packet, slot, reader.value, *about)
        number = self._call("ffpf_publish_slot", PUBLISH_SLOT, self.packet, ring.cpu, I32(ring.tap))
        if not ring.has_index:
            self._call("ffpf_wake_reader", WAKE_READER, self._place(ring, reader), number, self._bell(reader))
        elif not ring.is_noted_after:
            self._noted(ring, reader, some)

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
