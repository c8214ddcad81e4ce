"""A flow's programs loaded without an interface, and run on one packet at a time by BPF_PROG_TEST_RUN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ffpf_bpf import compiler
from ffpf_bpf.capture.ring import Batch, RingReader
from ffpf_bpf.compiler import DELIVER_PROGRAM, SEGMENT_PROGRAM, SegmentFlow
from ffpf_bpf.flow import Statistics
from ffpf_bpf.flow import statistics as statistics_module
from ffpf_bpf.graph.expression import Expression
from ffpf_bpf.graph.graph import Graph, build
from ffpf_bpf.graph.memory import FLOW_BYTES, SCRATCH_BYTES, TAP_BYTES, Memory, lay_out, size_ring
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.kernel import calls
from ffpf_bpf.kernel.maps import MappedArray, ProgArray
from ffpf_bpf.kernel.programs import Binding, load
from ffpf_bpf.kernel.tap import DELIVER, LINKS, NEXT
from tests.network import one_cpu

COUNTED = 16 + 8 * 3  # struct ffpf_cpu: fates[FFPF_COUNTED]


@dataclass
class LoadedFlow:
    """A switched-on flow without a tap."""

    graph: Graph
    memory: Memory
    program: int
    flow_map: MappedArray
    reader: RingReader

    def run(self, packet: bytes) -> bytes:
        """One packet through the chain; the packet as the chain left it."""
        result = calls.test_run(self.program, packet)
        assert result.verdict == 2, "XDP_PASS"
        return result.packet

    def counted(self) -> int:
        """Packets whose fate is `counted`, on all CPUs."""
        total = 0
        for cpu in range(self.memory.cpus):
            at = FLOW_BYTES + cpu * self.memory.stride + COUNTED
            total += int.from_bytes(self.flow_map.memory[at : at + 8], "little")
        return total

    def statistics(self) -> Statistics:
        return statistics_module.read(self.flow_map.memory, self.graph, self.memory)

    def batches(self) -> list[Batch]:
        return [batch.copy() for batch in self.reader.poll()]


@contextmanager
def loaded(*expressions: str | Expression, snaplen: int = 96, tap: str = "tap0") -> Iterator[list[LoadedFlow]]:
    """The flows in one segment, behind an entry program, switched on. Everything happens on one CPU."""
    cpus = calls.possible_cpus()
    graphs = [build(parse(text) if isinstance(text, str) else text) for text in expressions]
    parts = tuple(
        SegmentFlow(
            graph,
            compiler.compile_predicates(graph),
            lay_out(graph, cpus),
            size_ring(graph.snaplen or snaplen, 1 << 16),
        )
        for graph in graphs
    )
    objects = compiler.compile_segment(parts, tap, cpus)
    with ExitStack() as stack:
        stack.enter_context(one_cpu())
        control = stack.enter_context(MappedArray("ffpf_tap", TAP_BYTES + cpus * SCRATCH_BYTES))
        control.memory[0] = 1
        entry_links, links = (stack.enter_context(ProgArray("ffpf_links", LINKS)) for _ in range(2))
        shared = {"ffpf_tap": Binding(control, True)}
        bindings = {**shared, "ffpf_links": Binding(links, False)}
        flows = []
        for number, part in enumerate(parts):
            flow_map = stack.enter_context(MappedArray("ffpf_flow", part.memory.flow_map_bytes))
            ring_map = stack.enter_context(MappedArray("ffpf_ring", part.ring.slot_bytes, cpus * part.ring.slots))
            flow_map.memory[0] = 1
            bindings[f"ffpf_flow_{number}"] = Binding(flow_map, True)
            bindings[f"ffpf_ring_{number}"] = Binding(ring_map, False)
            reader = RingReader(flow_map.memory, ring_map.memory, part.memory, part.ring)
            stack.callback(reader.close)
            flows.append(LoadedFlow(part.graph, part.memory, -1, flow_map, reader))
        segment = stack.enter_context(load(objects[SEGMENT_PROGRAM].programs[SEGMENT_PROGRAM], bindings))
        if DELIVER_PROGRAM in objects:
            links.set(DELIVER, stack.enter_context(load(objects[DELIVER_PROGRAM].programs[DELIVER_PROGRAM], bindings)))
        entry_object = compiler.compile_entry(cpus).programs[compiler.ENTRY_PROGRAM]
        entry = stack.enter_context(load(entry_object, {**shared, "ffpf_links": Binding(entry_links, False)}))
        entry_links.set(NEXT, segment)
        for flow in flows:
            flow.program = entry.fileno
        yield flows
