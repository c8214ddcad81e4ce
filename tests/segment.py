"""A flow's programs loaded without an interface, and run on one packet at a time by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ffpf_bpf import compiler
from ffpf_bpf.capture.layout import SCRATCH_DTYPE
from ffpf_bpf.capture.ring import Batch, MappedRing, RingReader
from ffpf_bpf.compiler import DELIVER_PROGRAM, SEGMENT_PROGRAM, SegmentFlow
from ffpf_bpf.flow import Statistics
from ffpf_bpf.flow import statistics as statistics_module
from ffpf_bpf.flow.chains import hook_here
from ffpf_bpf.flow.store import NodeMemory, Store, node_memories
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.expression import Expression
from ffpf_bpf.graph.graph import Graph
from ffpf_bpf.graph.memory import (
    FLOW_BYTES,
    SCRATCH_BYTES,
    TAP_BYTES,
    Memory,
    RingHome,
    homes,
    lay_out,
    size_ring,
)
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.kernel import calls
from ffpf_bpf.kernel.maps import Array, Bell, Descriptor, MappedArray, ProgArray
from ffpf_bpf.kernel.programs import Binding, load
from ffpf_bpf.kernel.tap import DELIVER, FRAME_BYTES, LINKS, NEXT, REACH_OFFSET, SEED_OFFSET
from tests.network import one_cpu

SEED = 0x5EED  # of the hashes of flows
CB, CONTEXT_BYTES = 48, 192  # struct __sk_buff: offset of cb[0], size
COUNTED = 8 + 8 * 3  # struct ffpf_cpu: fates[FFPF_COUNTED]


@dataclass
class LoadedFlow:
    """A switched-on flow without a tap."""

    graph: Graph
    memory: Memory
    program: int
    flow_map: MappedArray
    reader: RingReader
    nodes: dict[str, NodeMemory]
    control: MappedArray
    passes_on: int
    preparing: int = -1  # at tc, `_preparing`

    def run(self, packet: bytes) -> bytes:
        """One packet through the chain; the packet as the chain left it."""
        if self.preparing >= 0:
            return self._run_prepared(packet, b"")
        result = calls.test_run(self.program, packet)
        assert result.verdict == self.passes_on
        return result.packet

    def run_tagged(self, packet: bytes) -> bytes:
        """The same at tc, with the outer tag, which the packet must have, beside its bytes."""
        bare = packet[:12] + packet[16:]
        assert self._run_prepared(bare, packet[12:16]) == bare
        return packet

    def _run_prepared(self, packet: bytes, tag: bytes) -> bytes:
        """At tc, by way of `_preparing`: the kernel refuses IP packets that are cut, so they come as something else."""
        tag_type, tag_rest = int.from_bytes(tag[:2], "little"), int.from_bytes(tag[2:], "big")
        words = struct.pack("<III", tag_type, tag_rest, int.from_bytes(packet[12:14], "little"))
        other = packet[:12] + b"\xff\xff" + packet[14:]
        context = bytes(CB) + words + bytes(CONTEXT_BYTES - CB - len(words))
        result = calls.test_run(self.preparing, other, context=context)
        assert result.verdict == self.passes_on
        return result.packet

    def run_at_once(self, packets: Mapping[int, bytes], times: int) -> None:
        """Each CPU runs its packet so many times, all CPUs at the same time."""

        def repeat(cpu: int) -> None:
            os.sched_setaffinity(0, {cpu})
            calls.test_run(self.program, packets[cpu], times)

        with ThreadPoolExecutor(len(packets)) as threads:
            list(threads.map(repeat, packets))

    @property
    def scratch(self) -> np.ndarray[Any, Any]:
        """What each CPU noted of its last packet: SCRATCH_DTYPE."""
        return np.frombuffer(self.control.memory, SCRATCH_DTYPE, self.memory.cpus, TAP_BYTES)

    def counted(self) -> int:
        """Packets whose fate is `counted`, on all CPUs."""
        total = 0
        for cpu in range(self.memory.cpus):
            at = FLOW_BYTES + cpu * self.memory.stride + COUNTED
            total += int.from_bytes(self.flow_map.memory[at : at + 8], "little")
        return total

    def statistics(self) -> Statistics:
        reports = {
            step: self.nodes[self.graph.ids[step]].report
            for step, _ in self.graph.leaves()
            if self.graph.ids[step] in self.nodes
        }
        return statistics_module.read(self.flow_map.memory, self.graph, self.memory, reports)

    def mbuf(self, node: str) -> np.ndarray[Any, Any]:
        """The memory of the node with that id, as `Flow.node(id).mbuf` shows it."""
        return self.nodes[node].mbuf()

    def batches(self) -> list[Batch]:
        return [batch.copy() for batch in self.reader.poll()]


def has_tag(packet: bytes) -> bool:
    """Whether the packet has a tag that a kernel takes off, and is long enough to be run without it."""
    return len(packet) >= 18 and packet[12:14] in (b"\x81\x00", b"\x88\xa8")


@contextmanager
def _preparing(entry: Descriptor) -> Iterator[Descriptor]:
    """A program that gives a packet the type that is in cb[2], puts a tag of the type in cb[0], if any, and the rest in
    cb[1] beside it, and goes on with `entry`."""
    with ProgArray("preparing", 1) as links:
        links.set(0, entry)
        instructions = b"".join(
            struct.pack("<BBhi", code, source << 4 | target, offset, number)
            for code, target, source, offset, number in (
                (0xBF, 6, 1, 0, 0),  # r6 = r1
                (0x61, 2, 6, CB + 8, 0),  # *(u16 *)(r10 - 8) = cb[2]
                (0x6B, 10, 2, -8, 0),
                (0xB7, 2, 0, 0, 12),  # bpf_skb_store_bytes(r6, 12, r10 - 8, 2, 0)
                (0xBF, 3, 10, 0, 0),
                (0x07, 3, 0, 0, -8),
                (0xB7, 4, 0, 0, 2),
                (0xB7, 5, 0, 0, 0),
                (0x85, 0, 0, 0, 9),
                (0x55, 0, 0, 11, 0),  # to the end if it failed
                (0x61, 2, 6, CB, 0),  # without a tag, to the tail call
                (0x15, 2, 0, 4, 0),
                (0x61, 3, 6, CB + 4, 0),
                (0xBF, 1, 6, 0, 0),  # bpf_skb_vlan_push(r6, cb[0], cb[1])
                (0x85, 0, 0, 0, 18),
                (0x55, 0, 0, 5, 0),  # to the end if it failed
                (0xBF, 1, 6, 0, 0),  # bpf_tail_call(r6, links, 0)
                (0x18, 2, 1, 0, links.fileno),
                (0, 0, 0, 0, 0),
                (0xB7, 3, 0, 0, 0),
                (0x85, 0, 0, 0, 12),
                (0xB7, 0, 0, 0, 77),
                (0x95, 0, 0, 0, 0),
            )
        )
        with Descriptor(calls.load_program("preparing", instructions, calls.PROG_SCHED_CLS)) as program:
            yield program


@contextmanager
def loaded(
    *expressions: str | Expression, snaplen: int = 96, tap: str = "tap0", hook: compiler.Hook | None = None
) -> Iterator[list[LoadedFlow]]:
    """The flows in one segment, behind an entry program, switched on. Everything happens on one CPU."""
    hook = hook or hook_here(tap)
    cpus = calls.possible_cpus()
    graphs = [build(parse(text) if isinstance(text, str) else text) for text in expressions]
    parts = []
    for number, graph in enumerate(graphs):
        ring = size_ring(graph.snaplen or snaplen, 1 << 16)
        memory = lay_out(graph, cpus, slots=ring.slots)
        at_home = homes(graph, memory, number)
        predicates = compiler.compile_predicates(graph)
        parts.append(SegmentFlow(graph, predicates, memory, ring, number, at_home, RingHome(number, memory)))
    objects = compiler.compile_segment(tuple(parts), tap, cpus, hook=hook)
    with ExitStack() as stack:
        stack.enter_context(one_cpu())
        control = stack.enter_context(MappedArray("ffpf_tap", TAP_BYTES + cpus * SCRATCH_BYTES))
        control.memory[0] = 1
        passes_on = hook.passes_on & 0xFFFFFFFF
        control.memory[REACH_OFFSET : REACH_OFFSET + 8] = struct.pack("<II", *compiler.segment_reach(parts))
        control.memory[SEED_OFFSET : SEED_OFFSET + 8] = SEED.to_bytes(8, "little")
        entry_links, links = (stack.enter_context(ProgArray("ffpf_links", LINKS)) for _ in range(2))
        shared = {"ffpf_tap": Binding(control, True)}
        for name in hook.maps:
            shared[name] = Binding(stack.enter_context(Array(name, cpus * FRAME_BYTES)), True)
        bindings = {**shared, "ffpf_links": Binding(links, False)}
        flows = []
        for number, part in enumerate(parts):
            store = Store(part.memory)
            stack.callback(store.close)
            store.fill_tables(part.graph)
            flow_map = store.map
            ring_map = stack.enter_context(MappedArray("ffpf_ring", part.ring.slot_bytes, cpus * part.ring.slots))
            flow_map.memory[0] = 1
            bindings[f"ffpf_flow_{number}"] = Binding(flow_map, True)
            bindings[f"ffpf_ring_{number}"] = Binding(ring_map, False)
            mapped = MappedRing(flow_map.memory, ring_map.memory, [0] * cpus) if part.graph.sinks else None
            bell = stack.enter_context(Bell("ffpf_bell"))
            bindings[f"ffpf_bell_{number}"] = Binding(bell, False)
            reader = RingReader(flow_map.memory, part.memory, part.ring, part.ring_home, mapped, bell=bell)
            stack.callback(reader.close)
            nodes = {
                part.graph.ids[step]: memory
                for step, memory in node_memories(part.graph, part.homes, {number: store}).items()
            }
            flows.append(LoadedFlow(part.graph, part.memory, -1, flow_map, reader, nodes, control, passes_on))
        segment = stack.enter_context(load(objects[SEGMENT_PROGRAM].audited(SEGMENT_PROGRAM), bindings))
        if DELIVER_PROGRAM in objects:
            links.set(DELIVER, stack.enter_context(load(objects[DELIVER_PROGRAM].audited(DELIVER_PROGRAM), bindings)))
        entry_object = compiler.compile_entry(cpus, hook).audited(compiler.ENTRY_PROGRAM)
        entry = stack.enter_context(load(entry_object, {**shared, "ffpf_links": Binding(entry_links, False)}))
        entry_links.set(NEXT, segment)
        preparing = stack.enter_context(_preparing(entry)).fileno if hook.section == "tc" else -1
        for flow in flows:
            flow.program, flow.preparing = entry.fileno, preparing
        yield flows
