"""A flow on a file: the graph's programs run in this process on the packets of a capture, as they would have live.

It stands where a flow grabber stands, without a kernel, privileges or policies. Time is that of the packets. All of
them come on one CPU; none is lost, since packets are read as there is room for them.
"""

from __future__ import annotations

import contextlib
import mmap
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import numpy as np

from ffpf_bpf.capture.files import CaptureFile
from ffpf_bpf.capture.ring import Batch, MappedRing, RingReader
from ffpf_bpf.compiler import SegmentFlow
from ffpf_bpf.compiler.native import NativeProgram, PacketMemory
from ffpf_bpf.errors import CaptureError, ExpressionError
from ffpf_bpf.flow.statistics import Statistics, read
from ffpf_bpf.flow.store import NodeMemory, Store, node_memories, reports
from ffpf_bpf.graph.classes.grab import LONGEST_SNAPLEN
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.memory import ETHERNET_FRAME_BYTES, Ring, RingHome, homes, lay_out, size_ring
from ffpf_bpf.graph.views import views

LEAST_SLOTS = 64


class PlainArray:
    """Zeroed memory of this process."""

    def __init__(self, name: str, size: int) -> None:
        self.memory = mmap.mmap(-1, size)

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # whoever still holds a view keeps it
            self.memory.close()


@cache
def _packet_memory() -> PacketMemory:
    """One for all: this process's seed of the hashes of flows."""
    return PacketMemory(secrets.randbits(64))


class Replay:
    """Runs a definition on the packets of the file at `path`; `close` gives the final counts."""

    def __init__(self, definition: Definition, first_interface: int, path: str) -> None:
        graph = definition.graph
        self._definition, self._first_interface = definition, first_interface
        self._graph = graph
        self._names = [device.tap for device in graph.taps]
        self._active = False
        self._is_over = False
        self._views = max(1, len(set(views(graph).values())))
        # Rings for longer packets than expected have fewer slots, but for the least.
        lengths = (graph.snaplen or ETHERNET_FRAME_BYTES, LONGEST_SNAPLEN)
        slots = max(self._ring_for(snaplen).slots for snaplen in lengths)
        self.memory = lay_out(graph, 1, slots=slots)
        with ExitStack() as undo:
            self.file = undo.enter_context(CaptureFile(path))
            self._has_places = self._is_placed()
            self._store = Store(self.memory, PlainArray)
            undo.callback(self._store.close)
            self._store.fill_tables(graph)
            self._words = undo.enter_context(memoryview(self._store.array.memory).cast("Q"))
            self._words[0] = 1  # the toggle: a flow that is paused reads nothing
            at_home = homes(graph, self.memory, self._store.number)
            self._homes = at_home
            self._nodes = node_memories(graph, at_home, {self._store.number: self._store})
            self._ring_reader: RingReader | None = None
            self._make_ring(graph.snaplen or ETHERNET_FRAME_BYTES)
            self._undo = undo.pop_all()

    @property
    def reader(self) -> Replay:
        """It reads itself."""
        return self

    @property
    def taps(self) -> tuple[dict[str, str], ...]:
        return tuple({"tap": name, "mode": "file"} for name in self._names)

    @property
    def is_over(self) -> bool:
        """Whether the file has been read to its end."""
        return self._is_over

    def activate(self) -> None:
        self._active = True

    def pause(self) -> None:
        self._active = False

    def wait(self) -> None:
        """Nothing is on its way."""

    def set_clock(self) -> None:
        """Packets have the file's times."""

    def stats(self) -> Statistics:
        return read(self._store.array.memory, self._graph, self.memory, reports(self._nodes))

    def node_memory(self, step: int) -> NodeMemory | None:
        return self._nodes.get(step)

    def waiting(self) -> float:
        """1 while the file has more: there is nothing to wait for."""
        return 1.0 if self._active and not self._is_over else 0.0

    def listen(self) -> list[int] | None:
        """Nobody rings: whether there is anything to wait for."""
        return None if self.waiting() else []

    def poll(self) -> Iterator[Batch]:
        """What the next packets of the file deliver."""
        if not self._active or self._is_over:
            return
        batch = self.file.next_batch()
        if batch is None:
            self._is_over = True
            return
        yield from self._run(batch.records)

    def batches(self, until_s: float | None = None) -> Iterator[Batch | None]:
        """To the end of the file, however long that takes."""
        while self._active and not self._is_over:
            yield from self.poll()

    def close(self) -> Statistics:
        """The final counts. Lets go of file and memory."""
        final = self.stats()
        self._undo.close()
        if self._ring_reader is not None:
            self._ring_reader.close()
        return final

    def _run(self, records: np.ndarray[Any, Any]) -> Iterator[Batch]:
        longest = int(records["captured"].max(initial=0))
        if self._graph.sinks and not self._graph.snaplen and longest > self.ring.snaplen:
            self._make_ring(min(longest, LONGEST_SNAPLEN))
        step = max(1, self.ring.slots // self._views)
        interfaces = records["interface"]
        starts = np.flatnonzero(np.diff(interfaces, prepend=interfaces[0] ^ np.uint32(1))).tolist()
        for start, end in zip(starts, [*starts[1:], len(records)], strict=True):
            program = self._programs.get(self._tap(int(interfaces[start])))
            for first in range(start, end, step) if program is not None else ():
                assert program is not None
                program.run(records[first : min(end, first + step)])
                if self._ring_reader is not None:
                    while found := list(self._take()):
                        yield from found

    def _take(self) -> Iterator[Batch]:
        """What is in the ring, a copy: the next packets come where it lies."""
        assert self._ring_reader is not None
        for batch in self._ring_reader.poll():
            yield batch.copy()

    def _make_ring(self, snaplen: int) -> None:
        """A ring for packets of that length, and programs that write into it."""
        graph = self._graph
        self.ring = self._ring_for(snaplen)
        part = SegmentFlow(
            graph, self._definition.predicates, self.memory, self.ring, self._store.number, self._homes,
            RingHome(self._store.number, self.memory, self._first_interface),
        )  # fmt: skip
        ring_memory = None
        if self._ring_reader is not None:
            self._ring_reader.close()
            self._ring_reader = None
        if graph.sinks:
            ring_memory = mmap.mmap(-1, self.ring.slot_bytes * self.ring.slots)
            flow_memory = self._store.array.memory
            mapped = MappedRing(flow_memory, ring_memory, [0])
            self._reset_ring()
            self._ring_reader = RingReader(
                flow_memory, self.memory, self.ring, part.ring_home, mapped, self._first_interface
            )
        flow_memory = self._store.array.memory
        self._programs = {
            name: NativeProgram(part, name, flow_memory, ring_memory, _packet_memory()) for name in self._names
        }

    def _ring_for(self, snaplen: int) -> Ring:
        least_bytes = LEAST_SLOTS * self._views * size_ring(snaplen, 0).slot_bytes
        return size_ring(snaplen, max(self._definition.buffer_bytes, least_bytes))

    def _reset_ring(self) -> None:
        """An empty ring without readers."""
        start = self.memory.ring
        self._store.array.memory[start : start + self.memory.ring_stride] = bytes(self.memory.ring_stride)

    def _is_placed(self) -> bool:
        """Whether a packet arrives at the tap that the name of its interface says; or else all at the only one."""
        if any(map(self._at, self.file.interfaces)):
            return True
        if len(self._names) == 1:
            return False
        raise ExpressionError(
            f"the file has no packets of {', '.join(f'`{name}`' for name in self._names)}",
            where=self.file.where,
            help=f"it has {', '.join(f'`{name}`' for name in self.file.interfaces) or 'none'}; name these in the flow",
        )

    def _at(self, name: str) -> str:
        """The tap that packets of the file's interface of that name arrive at; "" for none. A file of another program
        says nothing of hooks and namespaces."""
        taps = self._graph.taps
        here = [device.tap for device in taps if device.effect.is_at(name)]
        return (here or [device.tap for device in taps if fnmatchcase(name, device.interface)] or [""])[0]

    def _tap(self, interface: int) -> str:
        if not self._has_places:
            return self._names[0]
        if interface >= len(self.file.interfaces):
            raise CaptureError(f"no interface {interface}", where=self.file.where)
        return self._at(self.file.interfaces[interface])
