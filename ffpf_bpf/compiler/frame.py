"""What every generated program has: packet bounds, the CPU it runs on, this CPU's memory, and the way on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llvmlite import ir

from ffpf_bpf.compiler.hook import FRAME_MAP, Hook
from ffpf_bpf.compiler.predicate import I8, I32, I64, POINTER, opaque
from ffpf_bpf.graph.graph import Graph
from ffpf_bpf.graph.memory import FLOW_BYTES, SCRATCH_BYTES, TAP_BYTES, Home, Memory, Ring, RingHome
from ffpf_bpf.graph.predicate import Program

DATA_LAYOUT = "e-m:e-p:64:64-i64:64-i128:128-n32:64-S128"
NEXT, DELIVER = 0, 1  # enum ffpf_link
SEEN, FATES = 0, 8  # offsets in struct ffpf_cpu
GRABBED, LENGTH, COPIED = 8, 64, 68  # offsets in struct ffpf_scratch
SKB_LENGTH = 0  # offset in struct __sk_buff
FRAME_BYTES, FRAME_START = 0x10000, 2  # FFPF_FRAME_BYTES, FFPF_FRAME_START
WIRE_LENGTH = "ffpf_wire_length"
BELL = "ffpf_bell_"  # and the number of the flow in its segment: what wakes its application


@dataclass(frozen=True, slots=True)
class SegmentFlow:
    """A flow's part in a segment: everything its code depends on.

    Its ledger and counters lie in the store of number `store`, laid out as `memory`; each step's own memory at its home
    in `homes`. Steps of several flows of a segment that have one home are evaluated once, and packets for one
    `ring_home` are stored once, by whichever segment comes first. Its records have the number of the tap, which is
    `tap` where that is not the one of the graph's.
    """

    graph: Graph
    predicates: Mapping[str, Program]
    memory: Memory
    ring: Ring
    store: int
    homes: tuple[Home, ...]
    ring_home: RingHome
    tap: int | None = None

    def tap_number(self, name: str) -> int:
        """The number of a tap among those of the flow."""
        return self.tap if self.tap is not None else [device.tap for device in self.graph.taps].index(name)

    @property
    def used(self) -> frozenset[tuple[int, int]]:
        """The homes of its steps, but for those that only say where packets arrive."""
        return frozenset(self.home(step) for step in range(len(self.homes)) if step not in self.graph.arrivals)

    def home(self, step: int) -> tuple[int, int]:
        """What tells nodes apart."""
        return self.homes[step].store, self.homes[step].step


def segment_stores(flows: Sequence[SegmentFlow]) -> tuple[int, ...]:
    """The stores that a segment touches: it calls the n-th of them `ffpf_flow_n`. A flow's own comes at its place."""
    found = [flow.store for flow in flows]
    for flow in flows:
        found += [home.store for home in flow.homes]
        found += [flow.ring_home.store] if flow.graph.sinks else []
    return tuple(dict.fromkeys(found))


def segment_rings(flows: Sequence[SegmentFlow]) -> dict[int, int]:
    """The packet rings that a segment fills, by the store of whoever brought them, each with the number of the first
    flow that uses it: it calls the one of flow n `ffpf_ring_n`."""
    found: dict[int, int] = {}
    for number, flow in enumerate(flows):
        if flow.graph.sinks:
            found.setdefault(flow.ring_home.store, number)
    return found


@dataclass(frozen=True, slots=True)
class Sink:
    """Bit `bit` of a packet's grabbed word: it reached the sink at step `step` of flow number `flow`, which takes
    `snaplen` bytes."""

    bit: int
    flow: int
    step: int
    snaplen: int


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated module, its programs, the hook they are for, and the modules of bpf_src/ that it calls."""

    module: ir.Module
    programs: tuple[str, ...]
    hook: Hook
    primitives: set[str] = field(default_factory=lambda: {"chain"})


class Frame:
    """A program around its body. Build at `builder`; branch to `onward` when done, then call `finish`.

    `offline`, for packets of a file, which may have only a part of them: a packet's length is then told apart.
    """

    def __init__(self, module: ir.Module, name: str, cpus: int, hook: Hook, *, offline: bool = False) -> None:
        self.module = module
        self.hook = hook
        self.offline = offline
        self.function = ir.Function(module, ir.FunctionType(I32, [POINTER]), name)
        self.function.section = f"{hook.section}/{name}"
        self.context = self.function.args[0]
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.onward = self.function.append_basic_block("onward")
        self.links = external(module, "ffpf_links")
        self.grabbed = self.builder.alloca(I64)
        self.builder.store(I64(0), self.grabbed)
        if hook.maps:
            self.cpu = self._cpu(cpus)
            self.data, self.end, self.length = self._bounds()
        else:
            self.data, self.end, self.length = self._bounds()
            self.cpu = self._cpu(cpus)

    def _bounds(self, *, pinned: bool = False) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Where the packet begins and ends, and its length; read from the context here and not earlier if `pinned`."""
        b = self.builder
        if self.hook.maps:
            start, stop, length = self._frame_bounds(pinned)
            return b.inttoptr(start, POINTER), b.inttoptr(stop, POINTER), length
        start, stop = self._direct_bounds(pinned)
        if self.offline:
            length = b.load(external(self.module, WIRE_LENGTH), typ=I64)
        else:
            # Opaque, or arithmetic on the length becomes 32-bit arithmetic on the pointers, which the verifier refuses.
            length = opaque(b, b.sub(stop, start), pinned=pinned)
        return b.inttoptr(start, POINTER), b.inttoptr(stop, POINTER), length

    def _direct_bounds(self, pinned: bool) -> tuple[ir.Value, ir.Value]:
        """Where the bytes of the packet begin and end that programs can read where they lie."""
        return self._context_address(self.hook.data, pinned), self._context_address(self.hook.end, pinned)

    def _frame_bounds(self, pinned: bool) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The same where frames may be copied, and the length: where the entry program has put the frame, if it has.

        The verifier goes both ways, with a packet's address and with a map's. Comparisons with the end tell it of the
        one how far it may go; the other is inside its map however they come out.
        """
        b, scratch = self.builder, self.scratch()
        copied = b.load(b.gep(scratch, [I64(COPIED)], source_etype=I8), typ=I32)
        if self.hook.copies_all:
            return self._copied_bounds(copied, pinned)
        direct, elsewhere, both = (b.append_basic_block(name) for name in ("direct", "elsewhere", "frame"))
        b.cbranch(b.icmp_unsigned("==", copied, I32(0)), direct, elsewhere)
        b.position_at_end(direct)
        # Opaque each, or one load is made of two, and the verifier wants to know of an instruction where it loads from.
        whole = self._noted_length(pinned) if self.hook.measures else self._skb_length(pinned)
        ways = [(*self._direct_bounds(pinned), whole)]
        b.branch(both)
        b.position_at_end(elsewhere)
        ways.append(self._copied_bounds(copied, pinned))
        b.branch(both)
        b.position_at_end(both)
        joined = []
        for values in zip(*ways, strict=True):
            value = b.phi(I64)
            for way, block in zip(values, (direct, elsewhere), strict=True):
                value.add_incoming(way, block)
            joined.append(value)
        start, stop, length = (opaque(b, value, pinned=pinned) for value in joined)
        return start, stop, length

    def _copied_bounds(self, copied: ir.Value, pinned: bool) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The same of a frame of which the entry program has `copied` so many bytes."""
        b = self.builder
        at = b.add(b.mul(self.cpu, I64(FRAME_BYTES)), I64(FRAME_START))
        frame = opaque(
            b, b.ptrtoint(b.gep(external(self.module, FRAME_MAP), [at], source_etype=I8), I64), pinned=pinned
        )
        size = b.and_(opaque(b, b.zext(copied, I64), pinned=pinned), I64(FRAME_BYTES - 1))
        return frame, b.add(frame, size), self._noted_length(pinned)

    def _skb_length(self, pinned: bool) -> ir.Value:
        return opaque(self.builder, self.builder.zext(self._context_word(SKB_LENGTH), I64), pinned=pinned)

    def _noted_length(self, pinned: bool) -> ir.Value:
        b = self.builder
        noted = b.load(b.gep(self.scratch(), [I64(LENGTH)], source_etype=I8), typ=I32)
        return opaque(b, b.zext(noted, I64), pinned=pinned)

    def _context_word(self, offset: int) -> ir.Value:
        return self.builder.load(self.builder.gep(self.context, [I64(offset)], source_etype=I8), typ=I32)

    def _context_address(self, offset: int, pinned: bool) -> ir.Value:
        # Opaque as 64 bits: the optimiser would spill 32 of them, and the verifier knows packet pointers only whole.
        return opaque(self.builder, self.builder.zext(self._context_word(offset), I64), pinned=pinned)

    def _cpu(self, cpus: int) -> ir.Value:
        b = self.builder
        cpu = b.call(declare(self.module, "ffpf_this_cpu", ir.FunctionType(I64, [])), [])
        bounded = opaque(b, cpu)
        known = b.append_basic_block("known_cpu")
        b.cbranch(b.icmp_unsigned("<", bounded, I64(cpus)), known, self.onward)
        b.position_at_end(known)
        return bounded

    def scratch(self) -> ir.Value:
        offset = self.builder.add(self.builder.mul(self.cpu, I64(SCRATCH_BYTES)), I64(TAP_BYTES))
        return self.builder.gep(external(self.module, "ffpf_tap"), [offset], source_etype=I8)

    def tail_call(self, link: int) -> None:
        follow = declare(self.module, "ffpf_follow", ir.FunctionType(ir.VoidType(), [POINTER, POINTER, I32]))
        self.builder.call(follow, [self.context, self.links, I32(link)])

    def tap(self) -> ir.Value:
        """The head of the tap's map."""
        return external(self.module, "ffpf_tap")

    def present(self) -> ir.Value:
        """How much of the packet is there, in bytes."""
        return self.builder.sub(self.builder.ptrtoint(self.end, I64), self.builder.ptrtoint(self.data, I64))

    def packet(self, *, anew: bool = False) -> ir.Value:
        """A `struct ffpf_packet` for the primitives; dissolved when they are inlined. One made `anew` is not that of
        before to the verifier: what it learnt of the packet there does not tell apart the states it goes on with."""
        b = self.builder
        bounds = self._bounds(pinned=True) if anew else (self.data, self.end, self.length)
        kind = ir.LiteralStructType([POINTER, POINTER, I64, POINTER, POINTER])
        with b.goto_entry_block():
            packet = b.alloca(kind)
        packet.type = POINTER  # llvmlite types allocas; addresses by bytes want the opaque pointer
        for number, value in enumerate((*bounds, self.scratch(), self.tap())):
            b.store(value, b.gep(packet, [I64(8 * number)], source_etype=I8))
        return packet

    def memory_of(self, home: Home, stores: tuple[int, ...]) -> tuple[ir.Value, ir.Value]:
        """This CPU's memory of a node, and the table that all CPUs share."""
        b = self.builder
        store = external(self.module, f"ffpf_flow_{stores.index(home.store)}")
        cpu = cpu_memory(b, store, self.cpu, home.memory)
        mbuf = b.gep(cpu, [I64(home.memory.mbufs.get(home.step, 0))], source_etype=I8)
        return mbuf, b.gep(store, [I64(home.memory.tables.get(home.step, 0))], source_etype=I8)

    def finish(self) -> None:
        self.builder.position_at_end(self.onward)
        self.tail_call(NEXT)
        self.builder.ret(I32(self.hook.passes_on))


def cpu_memory(b: ir.IRBuilder, flow_value: ir.Value, cpu: ir.Value, memory: Memory) -> ir.Value:
    offset = b.add(b.mul(cpu, I64(memory.stride)), I64(FLOW_BYTES))
    return b.gep(flow_value, [offset], source_etype=I8)


def new_module(name: str) -> ir.Module:
    """An empty module for the BPF target."""
    module = ir.Module(name)
    module.triple = "bpf"
    module.data_layout = DATA_LAYOUT
    return module


def external(module: ir.Module, name: str) -> ir.GlobalVariable:
    """A symbol that the loader binds to a map."""
    known = module.globals.get(name)
    if known is None:
        known = ir.GlobalVariable(module, I8, name)
        known.linkage = "external"
        known.type = POINTER
    return known


def declare(module: ir.Module, name: str, kind: ir.FunctionType) -> ir.Function:
    """A C function of bpf_src/, declared once."""
    known = module.globals.get(name)
    return ir.Function(module, kind, name) if known is None else known
