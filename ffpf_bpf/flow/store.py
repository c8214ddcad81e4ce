"""The memory of a flow's nodes, which flows that share nodes keep alive together, and views of it."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ffpf_bpf.capture.ring import MappedRing
from ffpf_bpf.graph.expression import Node
from ffpf_bpf.graph.graph import Graph
from ffpf_bpf.graph.memory import CACHE_LINE, FLOW_BYTES, MOST_READERS, Home, Memory, Ring, RingHome, table_of
from ffpf_bpf.kernel.maps import PAGE, MappedArray

_numbers = itertools.count()
STAGGER = 3 * CACHE_LINE  # what a packet touches of most flows


class Array(Protocol):
    """Memory of a name and a size: a map that is shared with the kernel, or this process's own."""

    @property
    def memory(self) -> Any: ...
    def close(self) -> None: ...


class Store:
    """A flow's map. Whoever uses a node in it holds it: gone when the last one lets go."""

    def __init__(self, memory: Memory, array: Callable[[str, int], Array] | None = None) -> None:
        self.number = next(_numbers)
        self.memory = memory
        self.array = (array or self._mapped)("ffpf_flow", memory.flow_map_bytes)
        self._holders = 1

    def _mapped(self, name: str, value_bytes: int) -> MappedArray:
        """Memory shared with the kernel, at another place of its page than the last one: in a CPU's cache what begins
        with a page competes for the same few lines, and a packet touches the beginning of every flow."""
        return MappedArray(name, value_bytes, start=self.number * STAGGER % PAGE)

    @property
    def is_closed(self) -> bool:
        return not self._holders

    @property
    def map(self) -> MappedArray:
        """What the kernel knows of it."""
        assert isinstance(self.array, MappedArray)
        return self.array

    def hold(self) -> Store:
        self._holders += 1
        return self

    def close(self) -> None:
        """Let go of it once."""
        self._holders -= 1
        if not self._holders:
            self.array.close()

    def fill_tables(self, graph: Graph) -> None:
        """What the tables begin with."""
        for step, leaf in graph.leaves():
            table = table_of(leaf.node)
            if table is not None and step in self.memory.tables:
                at = self.memory.tables[step]
                contents = table.contents + secrets.token_bytes(table.random_bytes)
                self.array.memory[at : at + len(contents)] = contents

    def cpu_memory(self, step: int, node: Node, *, read_only: bool = False) -> np.ndarray[Any, Any]:
        """A node's memory on each CPU, shape (CPUs, `node.cpu_bytes`): a view of bytes, both ways."""
        memory = self.memory
        whole = np.frombuffer(self._bytes(read_only), np.uint8, memory.cpus * memory.stride, FLOW_BYTES)
        at = memory.mbufs.get(step, 0)
        return whole.reshape(memory.cpus, memory.stride)[:, at : at + node.cpu_bytes]

    def table(self, step: int, node: Node, *, read_only: bool = False) -> np.ndarray[Any, Any]:
        """The memory of a node that all CPUs share, shape (bytes,): a view, both ways."""
        table = table_of(node)
        size = table.size_bytes if table else 0
        return np.frombuffer(self._bytes(read_only), np.uint8, size, self.memory.tables.get(step, 0))

    def _bytes(self, read_only: bool) -> memoryview:
        view = memoryview(self.array.memory)
        return view.toreadonly() if read_only else view


class PacketRing:
    """A packet ring: its slots, and in the store of the flow that brought it where it stands and who reads it. Flows
    whose rings have one `key` can share it. Gone when the last reader leaves."""

    def __init__(self, store: Store, ring: Ring, first_interface: int, key: object) -> None:
        self.key = key
        self.slots = MappedArray("ffpf_ring", ring.slot_bytes, store.memory.cpus * ring.slots)
        self.store = store.hold()
        self.mapped = MappedRing(store.map.memory, self.slots.memory, [0] * store.memory.cpus)
        self._first_interface = first_interface
        self._homes: list[RingHome | None] = []

    @property
    def has_room(self) -> bool:
        """Whether one more flow may read it."""
        return self.key is not None and (None in self._homes or len(self._homes) < MOST_READERS)

    def enter(self) -> RingHome:
        """One more reader."""
        number = self._homes.index(None) if None in self._homes else len(self._homes)
        home = RingHome(self.store.number, self.store.memory, self._first_interface, number)
        self._homes[number : number + 1] = [home]
        return home

    def leave(self, home: RingHome) -> None:
        """One less. The last one takes the ring with it."""
        self._homes[home.reader] = None
        if not any(self._homes):
            self.slots.close()
            self.store.close()


class NodeMemory:
    """Where one node's memory is, and what it has counted."""

    def __init__(self, node: Node, home: Home, stores: Mapping[int, Store]) -> None:
        self._node = node
        self._step = home.step
        self._store = stores[home.store]

    @property
    def is_closed(self) -> bool:
        """Whether nobody holds the memory any more."""
        return self._store.is_closed

    def mbuf(self, *, read_only: bool = False) -> np.ndarray[Any, Any]:
        """The node's memory, as the application shares it."""
        view = self._store.cpu_memory if self._node.mbuf_per_cpu else self._store.table
        return view(self._step, self._node, read_only=read_only)

    def report(self) -> dict[str, Any]:
        """What the node has counted, by name. The tables are not copied: they may be large."""
        memories = [memoryview(row.tobytes()) for row in self._store.cpu_memory(self._step, self._node)]
        if not self._node.mbuf_per_cpu:
            memories.append(self._store.table(self._step, self._node).data)
        return self._node.report(memories)


def node_memories(graph: Graph, homes: Sequence[Home], stores: Mapping[int, Store]) -> dict[int, NodeMemory]:
    """Of each node that has memory, by its step."""
    return {
        step: NodeMemory(leaf.node, homes[step], stores)
        for step, leaf in graph.leaves()
        if leaf.node.cpu_bytes or table_of(leaf.node)
    }


def reports(memories: Mapping[int, NodeMemory]) -> dict[int, Callable[[], dict[str, Any]]]:
    """What tells what these nodes have counted."""
    return {step: memory.report for step, memory in memories.items()}
