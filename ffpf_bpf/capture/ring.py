"""A flow's packets as numpy batches, without copying a byte where that can be.

One packet ring per CPU, written by the kernel, read here. A slot is a pcapng block (capture/layout.py), so a batch can
be written to a file as it is. Flows may share a packet ring: then each has an index ring, which says which records are
its own. Works on any memory laid out so: a mapped map, or a file's bytes in a test.

A *slow* reader holds up the kernel, which counts a packet as lost if the ring is full of records that were not given
back. A *fast* one does not: what is overwritten before it is read is counted as its `overrun`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any, Protocol

import numpy as np

from ffpf_bpf.capture.layout import BLOCK_TYPE, ENTRY_DTYPE, slot_dtype
from ffpf_bpf.capture.packet import Packet
from ffpf_bpf.capture.waiting import Pace
from ffpf_bpf.graph.effect import NO_RESULT, Fate
from ffpf_bpf.graph.memory import FLOW_BYTES, READER_BYTES, RING_BYTES, TAGGED_ENTRY_BYTES, Memory, Ring, RingHome

MOST_RECORDS = 8_192
MOST_SKIPS = 16  # of a fast reader, in one look
RING_FULL = 1 + Fate.RING_FULL  # struct ffpf_cpu in 64-bit words
HEAD, LIMIT, READERS = 0, 1, 8  # struct ffpf_ring
INDEXED, PACE, TAIL, WAIT, OVERRUN, BELL = 0, 8, 9, 10, 11, 12  # struct ffpf_reader
NEVER = (1 << 64) - 1  # the number of an entry


class ReaderPace(IntEnum):
    """Whether the kernel waits for a reader: enum ffpf_pace."""

    ABSENT = 0
    SLOW = 1
    FAST = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """Packets of one CPU in the order of arrival, valid until the next batch is asked for: a view of ring memory, or
    copies where a flow that shares its ring did not get all of its packets, or is read fast.

    `records` has the fields of `layout.slot_dtype`. `lost` counts the packets dropped on this CPU because the ring was
    full, or overwritten before they were read, since its previous batch. `tags`, in a flow that tells its sinks apart,
    or has nodes with results, has of each record `sinks`, a bit for each sink that the packet reached in the order of
    the graph, and `result`.
    """

    records: np.ndarray[Any, Any]
    cpu: int
    lost: int
    tags: np.ndarray[Any, Any] | None = None
    _overwritten: Callable[[], int] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.records)

    def overwritten(self) -> int:
        """How many of its first packets are not what they were any more, in a fast reader's batch that is a view. To be
        asked after use."""
        return min(len(self), self._overwritten()) if self._overwritten is not None else 0

    def copy(self) -> Batch:
        """The same packets in memory of their own, valid for good."""
        return Batch(self.records.copy(), self.cpu, self.lost, None if self.tags is None else self.tags.copy())

    def chosen(self, which: Any, lost: int | None = None) -> Batch:
        """Some of the packets, by whatever numpy takes as an index: a slice is a view, all else copies."""
        tags = None if self.tags is None else self.tags[which]
        return Batch(self.records[which], self.cpu, self.lost if lost is None else lost, tags)

    def that_reached(self, sinks: int) -> Batch:
        """The packets that reached one of the `sinks` (bits): the batch itself if all did, else copies."""
        if self.tags is None:
            return self
        wanted = (self.tags["sinks"] & np.uint32(sinks)) != 0
        return self if wanted.all() else self.chosen(wanted)

    @property
    def results(self) -> np.ndarray[Any, Any]:
        """Of each packet the result of the last node on its way that has results, 65,536 for none; unsigned 32 bits."""
        return np.full(len(self), NO_RESULT, np.uint32) if self.tags is None else self.tags["result"]

    @property
    def time_ns(self) -> np.ndarray[Any, Any]:
        """Arrival in nanoseconds since the epoch, unsigned 64 bits."""
        high: np.ndarray[Any, Any] = self.records["time_high"].astype(np.uint64) << np.uint64(32)
        high |= self.records["time_low"]
        return high

    def packets(self, interfaces: tuple[str, ...], first_interface: int = 0) -> Iterator[Packet]:
        """One at a time, as copies; convenient, and slow. `interfaces` names the taps from `first_interface` on."""
        columns = [self.records[name].tolist() for name in ("interface", "captured", "original")]
        results, times = self.results.tolist(), self.time_ns.tolist()
        for index, (at, interface, captured, original, result) in enumerate(zip(times, *columns, results, strict=True)):
            data = self.records["data"][index, :captured].tobytes()
            name = interfaces[interface - first_interface]
            yield Packet(at, data, original, name, None if result == NO_RESULT else result)


class Bell(Protocol):
    """What the kernel side rings: `fileno` is readable from then on until `quiet`."""

    @property
    def fileno(self) -> int: ...
    def quiet(self) -> None: ...


@dataclass(frozen=True, slots=True)
class MappedRing:
    """A packet ring as it is mapped: the map with its state, the slots, and up to which slot of each CPU was filled in
    what never changes, which all readers share."""

    state: Any
    slots: Any
    filled: list[int]


class RingReader:
    """The reading end of a flow's rings. `flow_memory` is the flow's map, laid out as `memory`; `home` says which ring,
    and which of its readers this is; `mapped` is None for a flow that only counts. The numbers of interfaces in records
    begin at `first_interface`, as those of the ring do at its own. Without a `bell` it is not told of packets."""

    def __init__(
        self,
        flow_memory: Any,
        memory: Memory,
        ring: Ring,
        home: RingHome,
        mapped: MappedRing | None,
        first_interface: int = 0,
        bell: Bell | None = None,
    ) -> None:
        self._ring, self._memory = ring, memory
        self._bell = bell
        self._renumber = np.uint32(first_interface - home.first_interface & 0xFFFFFFFF)
        self._cpus = range(memory.cpus if mapped is not None else 0)
        self._words = memoryview(flow_memory).cast("Q")
        self._state = memoryview(mapped.state if mapped is not None else bytearray(8)).cast("Q")
        self._filled = mapped.filled if mapped is not None else []
        dtype = slot_dtype(ring.slot_bytes)
        slots = mapped.slots if mapped is not None else b""
        self._slots = np.frombuffer(slots, dtype, len(self._cpus) * ring.slots).reshape(-1, ring.slots)
        self._entries = self._indices(flow_memory)
        self._is_tagged = self._entries.dtype == ENTRY_DTYPE
        self._index = self._entries["position"] if self._is_tagged else self._entries
        of_home = home.memory
        self._rings = [(of_home.ring + cpu * of_home.ring_stride) // 8 for cpu in self._cpus]
        self._readers = [(ring + RING_BYTES // 8 + home.reader * READER_BYTES // 8) for ring in self._rings]
        self._held = [0] * memory.cpus
        self._check: list[Callable[[], int] | None] = [None] * memory.cpus
        self._turns = [0] * memory.cpus  # counts releases: a batch is given back once, whoever held it
        self._closed = False
        self._is_late = [False] * memory.cpus
        self._lost = [0] * memory.cpus
        self._unsafe = [0] * memory.cpus  # positions before this may be overwritten, whatever the pace
        self._pace = ReaderPace.SLOW
        for cpu in self._cpus:
            self._arrive(cpu, home.reader)

    def _indices(self, flow_memory: Any) -> np.ndarray[Any, Any]:
        """Each CPU's index ring: positions, or struct ffpf_entry."""
        memory = self._memory
        if not memory.index_stride or not self._cpus:
            return np.empty((0, 0), np.uint64)
        kind = ENTRY_DTYPE if memory.entry_bytes == TAGGED_ENTRY_BYTES else np.dtype(np.uint64)
        count = memory.cpus * memory.index_stride // memory.entry_bytes
        whole = np.frombuffer(flow_memory, kind, count, memory.index)
        return whole.reshape(memory.cpus, -1)[:, : self._ring.slots]

    def _arrive(self, cpu: int, reader: int) -> None:
        """From here on, with nothing to read."""
        state, ring, place = self._state, self._rings[cpu], self._readers[cpu]
        state[place + TAIL] = state[place + INDEXED]
        state[place + WAIT] = state[ring + HEAD]
        state[place + OVERRUN] = 0
        state[place + BELL] = NEVER
        state[ring + READERS] = max(state[ring + READERS], reader + 1)
        state[place + PACE] = self._pace

    @property
    def pace(self) -> ReaderPace:
        """Whether the kernel waits for this reader; may be changed at any time."""
        return self._pace

    @pace.setter
    def pace(self, pace: ReaderPace) -> None:
        for cpu, place in zip(self._cpus, self._readers, strict=True):
            self._state[place + PACE] = pace
            if self._pace is ReaderPace.FAST:
                # So far the kernel may have looked already, and waits for nobody.
                self._unsafe[cpu] = max(self._unsafe[cpu], self._state[self._rings[cpu] + LIMIT])
        self._pace = pace

    @property
    def overrun(self) -> int:
        """Records that were overwritten before they were read."""
        return sum(self._state[place + OVERRUN] for place in self._readers)

    def waiting(self) -> float:
        """How full the fullest ring is, from 0 to 1."""
        ends = (self._end(cpu) - self._state[self._readers[cpu] + TAIL] for cpu in self._cpus)
        return min(1.0, max(ends, default=0) / self._ring.slots)

    def listen(self) -> list[int] | None:
        """Ask to be rung by the next record: the descriptors that become readable then, or None if one is there."""
        if self._bell is not None:
            self._bell.quiet()
        for place in self._readers:
            self._state[place + BELL] = self._state[place + TAIL]
        if self.waiting():
            return None
        return [] if self._bell is None else [self._bell.fileno]

    def _end(self, cpu: int) -> int:
        """How many records there have been for this flow."""
        return self._state[self._readers[cpu] + INDEXED if self._index.size else self._rings[cpu] + HEAD]

    def poll(self, *, copy: bool = True) -> Iterator[Batch]:
        """What is there now: at most one batch per CPU. Each batch is given back when the next is asked for. A fast
        reader gets copies, which are whole, or without `copy` views, of which `Batch.overwritten` tells."""
        for cpu in self._cpus:
            batch = self._next(cpu, copy=copy)
            if batch is None:
                continue
            turn = self._turns[cpu]
            try:
                yield batch
            finally:
                if self._turns[cpu] == turn:
                    self._release(cpu)
            if self._closed:
                return

    def batches(self, until_s: float | None = None, *, copy: bool = True) -> Iterator[Batch | None]:
        """Batches as they come; None whenever nothing came for a while (so that the caller can look around).

        Ends at `until_s` on the monotonic clock. Sleeps in between as `Pace` says.
        """
        pace = Pace()
        while True:
            if taken := self.waiting():
                yield from self.poll(copy=copy)
            if self._closed:
                return
            left_s = None if until_s is None else until_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return
            if not taken:
                yield None
            pace.rest(self.listen, taken, self.waiting() if taken else 0.0, left_s)

    def close(self) -> None:
        """Let go of the memory; nobody waits for this reader any more."""
        if self._closed:
            return
        for place in self._readers:
            self._state[place + PACE] = ReaderPace.ABSENT
        self._closed = True
        self._slots, self._index = self._slots[:0].copy(), self._index[:0].copy()
        self._entries = self._index
        self._words.release()
        self._state.release()

    def _next(self, cpu: int, *, copy: bool) -> Batch | None:
        if self._held[cpu]:
            self._release(cpu)
        is_safe = self._is_safe(cpu)
        positions = self._unread(cpu) if is_safe else self._whole(cpu)
        if not len(positions):
            return None
        self._fill(cpu)
        records = self._records(cpu, positions)
        tags = self._tags(cpu, len(records))
        check = None
        if not is_safe:
            positions = positions[: len(records)]
            if copy or self._renumber:
                records, tags = _owned(records), None if tags is None else tags.copy()
                gone = self._overwritten(cpu, positions)
                self._skip(cpu, gone)
                records, tags = records[gone:], None if tags is None else tags[gone:]
                self._is_late[cpu] = gone > 0
            else:
                check = partial(self._overwritten, cpu, positions)
        if self._renumber:
            records = _owned(records)
            records["interface"] += self._renumber
        self._held[cpu] = len(records)
        self._check[cpu] = check
        return Batch(records, cpu, self._newly_lost(cpu), tags, check) if len(records) else None

    def _is_safe(self, cpu: int) -> bool:
        """Whether the kernel leaves alone what this reader has not given back."""
        return self._pace is ReaderPace.SLOW and self._state[self._rings[cpu] + HEAD] >= self._unsafe[cpu]

    def _unread(self, cpu: int) -> range | np.ndarray[Any, Any]:
        """Where the flow's next records lie; a range where none of another flow is between them."""
        slots, tail = self._ring.slots, self._state[self._readers[cpu] + TAIL]
        count = min(self._end(cpu) - tail, slots - tail % slots, MOST_RECORDS)
        if not self._index.size or not count:
            return range(tail, tail + count)
        start = tail % slots
        found = self._index[cpu, start : start + count].copy()
        first = int(found[0])
        return range(first, first + count) if int(found[-1]) - first == count - 1 else found

    def _whole(self, cpu: int) -> range | np.ndarray[Any, Any]:
        """Likewise those that are not overwritten yet; what was is skipped. Who came too late for some of what it read
        last skips a quarter of the ring more, or it would always come too late."""
        slots, place = self._ring.slots, self._readers[cpu]
        for _ in range(MOST_SKIPS):
            # The kernel may be writing the oldest place at this moment.
            self._skip(cpu, max(0, self._end(cpu) - slots + 1 - self._state[place + TAIL]))
            tail = self._state[place + TAIL]
            found = self._unread(cpu)
            if self._end(cpu) - tail >= slots:
                continue  # entries were overwritten while they were read
            gone = self._overwritten(cpu, found, slots // 4 if self._is_late[cpu] else 0)
            if not gone:
                return found
            self._skip(cpu, gone)
        return range(0)

    def _overwritten(self, cpu: int, positions: range | np.ndarray[Any, Any], margin: int = 0) -> int:
        """How many records at the first of these positions may be overwritten by now, or when `margin` more come."""
        whole_from = self._state[self._rings[cpu] + HEAD] - self._ring.slots + 1 + margin
        if isinstance(positions, range):
            gone = min(len(positions), max(0, whole_from - positions.start))
        else:
            gone = int(np.searchsorted(positions, np.uint64(max(0, whole_from))))
        return gone

    def _records(self, cpu: int, positions: range | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The records there; of a range those up to the ring's end, as a view."""
        slots = self._ring.slots
        if isinstance(positions, range):
            start = positions.start % slots
            return self._slots[cpu, start : start + min(len(positions), slots - start)]
        gathered: np.ndarray[Any, Any] = self._slots[cpu, positions % np.uint64(slots)]
        return gathered

    def _tags(self, cpu: int, count: int) -> np.ndarray[Any, Any] | None:
        """What so many records are to the flow, from the first that was not given back on: a view of its entries."""
        if not self._is_tagged:
            return None
        start = self._state[self._readers[cpu] + TAIL] % self._ring.slots
        return self._entries[cpu, start : start + count]

    def _fill(self, cpu: int) -> None:
        """Fill in what never changes in a slot, on the first lap: the kernel need not write it."""
        done = self._filled[cpu]
        if done < self._ring.slots:
            begun = min(self._state[self._rings[cpu] + HEAD], self._ring.slots)
            records = self._slots[cpu, done:begun]
            records["block_type"] = BLOCK_TYPE
            records["block_length"] = self._ring.slot_bytes
            records["trailer"] = self._ring.slot_bytes
            self._filled[cpu] = begun

    def _newly_lost(self, cpu: int) -> int:
        memory = self._memory
        at = (FLOW_BYTES + cpu * memory.stride) // 8 + RING_FULL
        lost = self._words[at] + self._state[self._readers[cpu] + OVERRUN]
        before, self._lost[cpu] = self._lost[cpu], lost
        return lost - before

    def _skip(self, cpu: int, count: int) -> None:
        """Records that were overwritten."""
        self._state[self._readers[cpu] + OVERRUN] += count
        self._give_back(cpu, count)

    def _release(self, cpu: int) -> None:
        if not self._closed:
            check = self._check[cpu]
            if check is not None:
                self._state[self._readers[cpu] + OVERRUN] += check()
            self._give_back(cpu, self._held[cpu])
        self._held[cpu] = 0
        self._turns[cpu] += 1

    def _give_back(self, cpu: int, count: int) -> None:
        state, place = self._state, self._readers[cpu]
        tail = state[place + TAIL] + count
        if self._index.size:
            # Read first: an entry that comes now is of the record before the head, or a later one.
            wait = max(0, state[self._rings[cpu] + HEAD] - 1)
            if self._end(cpu) > tail:
                wait = int(self._index[cpu, tail % self._ring.slots])
            state[place + WAIT] = wait
        state[place + TAIL] = tail


def _owned(records: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """These, where the kernel does not write."""
    return records if records.flags.owndata else records.copy()
