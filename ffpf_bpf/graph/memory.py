"""Where a flow's counters, its nodes' memory and its ring slots lie: what compiler, kernel and capture share.

A flow's map is one value: `struct ffpf_flow`, then for each possible CPU a stride of `struct ffpf_cpu`, the counters
(64 bits each) and the nodes' memory. The structures are those of bpf_src/ffpf.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from ffpf_bpf.graph.expression import Role
from ffpf_bpf.graph.graph import Graph, Leaf, sources

FLOW_BYTES = 64  # sizeof(struct ffpf_flow)
CPU_BYTES = 128  # sizeof(struct ffpf_cpu)
TAP_BYTES = 64  # sizeof(struct ffpf_tap)
SCRATCH_BYTES = 64  # sizeof(struct ffpf_scratch)
BLOCK_BYTES = 32  # of a slot around its data: struct ffpf_slot and the trailing length
CACHE_LINE = 64
LARGEST_SLOT_BYTES = BLOCK_BYTES + 65_536  # what an empty packet leaves of it is the longest pcapng option


@dataclass(frozen=True, slots=True)
class Memory:
    """Offsets in bytes. `counters[step]` and `mbufs[step]` are counted from the start of a CPU's stride."""

    cpus: int
    stride: int
    counters: dict[int, int]
    mbufs: dict[int, int]

    @property
    def flow_map_bytes(self) -> int:
        return FLOW_BYTES + self.cpus * self.stride


@dataclass(frozen=True, slots=True)
class Ring:
    """A flow's packet ring: `slots` (a power of two) of `slot_bytes` for each CPU."""

    snaplen: int
    slot_bytes: int
    slots: int


def lay_out(graph: Graph, cpus: int) -> Memory:
    """The layout of a graph's map on a machine with that many possible CPUs."""
    offset = CPU_BYTES
    counters = {}
    for step in counted_steps(graph):
        counters[step] = offset
        offset += 8
    mbufs = {}
    for step, leaf in graph.leaves():
        if leaf.node.mbuf_bytes:
            mbufs[step] = offset
            offset += _rounded(leaf.node.mbuf_bytes, 8)
    return Memory(cpus, _rounded(offset, CACHE_LINE), counters, mbufs)


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
