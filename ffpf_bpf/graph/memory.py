"""Where a flow's counters, its nodes' memory and its ring slots lie: what compiler, kernel and capture share.

A flow's map is one value: `struct ffpf_flow`, then for each possible CPU a stride of `struct ffpf_cpu`, the counters
(64 bits each) and the nodes' memory, then the tables that all CPUs share. The structures are those of bpf_src/ffpf.h.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Primitive, Table, Transform
from ffpf_bpf.graph.expression import Node, Role
from ffpf_bpf.graph.graph import Graph, Leaf, sources

FLOW_BYTES = 64  # sizeof(struct ffpf_flow)
CPU_BYTES = 64  # sizeof(struct ffpf_cpu)
RING_BYTES = 128  # sizeof(struct ffpf_ring)
READER_BYTES = 128  # sizeof(struct ffpf_reader)
MOST_READERS = 32  # of a packet ring
TAP_BYTES = 64  # sizeof(struct ffpf_tap)
SCRATCH_BYTES = 128  # sizeof(struct ffpf_scratch)
BLOCK_BYTES = 32  # of a slot around its data: struct ffpf_slot and the trailing length
ENTRY_BYTES, TAGGED_ENTRY_BYTES = 8, 16  # of an index ring: a position; sizeof(struct ffpf_entry)
CACHE_LINE = 64
ETHERNET_FRAME_BYTES = 1522  # with a tag: what a frame is taken to have at most where no interface says
LARGEST_MAP_BYTES = 1 << 30  # of the memory of a flow's nodes
LARGEST_SLOT_BYTES = BLOCK_BYTES + 65_536  # what an empty packet leaves of it is the longest pcapng option


@dataclass(frozen=True, slots=True)
class Memory:
    """Offsets in bytes. `counters[step]` and `mbufs[step]` are counted from the start of a CPU's stride, `tables[step]`
    from the start of the map; `result` is where a tagged flow keeps a packet's result, in the stride. The packet ring's
    state and readers begin at `ring`, from the start of the map, with `ring_stride` for each CPU, the index ring at
    `index` with `index_stride`, which is 0 if there is none: then the packet ring has one reader. Its entries have
    `entry_bytes`."""

    cpus: int
    stride: int
    counters: dict[int, int]
    mbufs: dict[int, int]
    tables: dict[int, int]
    result: int
    ring: int
    ring_stride: int
    index: int
    index_stride: int
    entry_bytes: int
    flow_map_bytes: int


@dataclass(frozen=True, slots=True)
class Home:
    """Where a node's memory lies: the store (a flow's map, which may be another flow's) of that number, as step `step`
    of the graph it was laid out for. Two steps with one home are one node, which runs once."""

    store: int
    step: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class Ring:
    """A packet ring: `slots` (a power of two) of `slot_bytes` for each CPU."""

    snaplen: int
    slot_bytes: int
    slots: int

    @property
    def data_bytes(self) -> int:
        """What a slot has room for."""
        return self.slot_bytes - BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class RingHome:
    """Whose packet ring a flow's records go to: the ring of the flow whose store has that number, laid out as `memory`.
    Flows with one home store a packet once, and are its readers by number. Its records carry `first_interface` plus the
    number of the tap among the flow's taps."""

    store: int
    memory: Memory
    first_interface: int = 0
    reader: int = 0


def lay_out(
    graph: Graph, cpus: int, elsewhere: Container[int] = (), slots: int = 0, *, shareable: bool = False
) -> Memory:
    """The layout of a graph's map on a machine with that many possible CPUs. The memory of the steps `elsewhere` lies
    in another flow's map. A flow whose packet ring, of so many `slots`, is `shareable`, or that tells records apart,
    has an index ring of as many entries."""
    index_slots = slots if shareable or graph.tagged else 0
    offset = CPU_BYTES
    counters = {}
    for step in counted_steps(graph):
        counters[step] = offset
        offset += 8
    result = offset if graph.tagged else 0
    offset += 8 if graph.tagged else 0
    mbufs = {}
    own = [(step, leaf.node) for step, leaf in graph.leaves() if step not in elsewhere]
    for step, node in own:
        if node.cpu_bytes:
            mbufs[step] = offset
            offset += _rounded(node.cpu_bytes, 8)
    stride = _rounded(offset, CACHE_LINE)
    end = FLOW_BYTES + cpus * stride
    tables = {}
    for step, node in own:
        if (table := table_of(node)) is not None:
            tables[step] = end
            end += _rounded(table.size_bytes, CACHE_LINE)
    if end > LARGEST_MAP_BYTES:
        largest = max(own, key=lambda each: each[1].mbuf_bytes)[0]
        raise ExpressionError(
            f"the flow's nodes take {end:,} bytes of memory",
            where=graph.ids[largest],
            help=f"at most {LARGEST_MAP_BYTES:,} in all; give the largest less by the third element",
        )
    ring_stride = RING_BYTES + (MOST_READERS if index_slots else 1) * READER_BYTES if graph.sinks else 0
    entry_bytes = TAGGED_ENTRY_BYTES if graph.tagged else ENTRY_BYTES
    index, index_stride = end + cpus * ring_stride, _rounded(index_slots * entry_bytes, CACHE_LINE)
    about = (end, ring_stride, index, index_stride, entry_bytes, index + cpus * index_stride)
    return Memory(cpus, stride, counters, mbufs, tables, result, *about)


def table_of(node: Node) -> Table | None:
    """The memory of a node that all CPUs share, if it has any."""
    effect = node.effect
    return effect.table if isinstance(effect, Primitive | Transform) else None


def homes(graph: Graph, memory: Memory, store: int, elsewhere: Mapping[int, Home] | None = None) -> tuple[Home, ...]:
    """Where each step is at home: in the flow's own map, laid out as `memory`, but for those `elsewhere`."""
    elsewhere = elsewhere or {}
    return tuple(elsewhere.get(step, Home(store, step, memory)) for step in range(len(graph.steps)))


def counted_steps(graph: Graph) -> list[int]:
    """The steps whose packets are counted; what functions and sinks see follows from what they read."""
    read = {source for step in graph.steps for source in sources(step)}
    counted = []
    for index, step in enumerate(graph.steps):
        match step:
            case Leaf(node=node) if node.role is Role.DEVICE:
                wanted = len(graph.taps) > 1
            case Leaf(node=node):
                wanted = node.role is Role.DECIDES
            case _:
                wanted = index in read
        if wanted:
            counted.append(index)
    return counted


def size_ring(snaplen: int, buffer_bytes: int) -> Ring:
    """The ring of at most `buffer_bytes` per CPU, and at least two slots, for data of up to `snaplen` bytes."""
    slot_bytes = min(_rounded(BLOCK_BYTES + _rounded(snaplen, 4), CACHE_LINE), LARGEST_SLOT_BYTES)
    slots = max(2, buffer_bytes // slot_bytes)
    return Ring(snaplen, slot_bytes, 1 << (slots.bit_length() - 1))


def _rounded(value: int, to: int) -> int:
    return (value + to - 1) // to * to
