"""A flow's packet rings as numpy batches, without copying a byte.

One ring per CPU, written by the kernel, read here. A slot is a pcapng block (capture/layout.py), so a batch can be
written to a file as it is. Works on any memory laid out so: a mapped map, or a file's bytes in a test.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ffpf_bpf.capture.layout import BLOCK_TYPE, slot_dtype
from ffpf_bpf.capture.packet import Packet
from ffpf_bpf.graph.effect import NO_RESULT, Fate
from ffpf_bpf.graph.memory import FLOW_BYTES, Memory, Ring

MOST_RECORDS = 8_192
# A nap of 0.1 ms costs 13 % of a core when idle, 5 ms 0.4 %.
SHORTEST_NAP_S, LONGEST_NAP_S = 0.0001, 0.005
ENOUGH = 1 / 8  # of a ring: worth reading at once
HEAD, FATES, TAIL = 0, 2, 8  # struct ffpf_cpu in 64-bit words


@dataclass(frozen=True, slots=True)
class Batch:
    """Packets of one CPU in the order of arrival: a view of ring memory, valid until the next batch is asked for.

    `records` has the fields of `layout.slot_dtype`; in a flow that tells its sinks apart, or has nodes with results,
    also `sinks`, a bit for each sink that the packet reached in the order of the graph, and `result`, 65,536 for none.
    `lost` counts the packets dropped on this CPU because the ring was full, since its previous batch.
    """

    records: np.ndarray[Any, Any]
    cpu: int
    lost: int

    def __len__(self) -> int:
        return len(self.records)

    def copy(self) -> Batch:
        """The same packets in memory of their own, valid for good."""
        return Batch(self.records.copy(), self.cpu, self.lost)

    def that_reached(self, sinks: int) -> Batch:
        """The packets that reached one of the `sinks` (bits): the batch itself if all did, else copies."""
        wanted = (self.records["sinks"] & np.uint32(sinks)) != 0
        return self if wanted.all() else Batch(self.records[wanted], self.cpu, self.lost)

    @property
    def time_ns(self) -> np.ndarray[Any, Any]:
        """Arrival in nanoseconds since the epoch, unsigned 64 bits."""
        high: np.ndarray[Any, Any] = self.records["time_high"].astype(np.uint64) << np.uint64(32)
        high |= self.records["time_low"]
        return high

    def packets(self, interfaces: tuple[str, ...], first_interface: int = 0) -> Iterator[Packet]:
        """One at a time, as copies; convenient, and slow. `interfaces` names the taps from `first_interface` on."""
        columns = [self.records[name].tolist() for name in ("interface", "captured", "original")]
        tagged = "result" in (self.records.dtype.names or ())
        results = self.records["result"].tolist() if tagged else [NO_RESULT] * len(self)
        times = self.time_ns.tolist()
        for index, (at, interface, captured, original, result) in enumerate(zip(times, *columns, results, strict=True)):
            data = self.records["data"][index, :captured].tobytes()
            name = interfaces[interface - first_interface]
            yield Packet(at, data, original, name, None if result == NO_RESULT else result)


class Pace:
    """How a reader waits: so long that meanwhile its fullest ring fills to an eighth, as it did before; 5 ms at most.
    Many packets at a time cost less each, and seven eighths are left for a burst."""

    def __init__(self) -> None:
        self._nap_s = SHORTEST_NAP_S
        self._since_s = time.monotonic()
        self._taken = 0.0

    def rest(self, taken: float, waiting: float, most_s: float | None = None) -> None:
        """Sleep, at most `most_s`. `taken` is how full the fullest ring was before it was read, `waiting` how full it
        is again, as parts of 1."""
        if nap_s := self.nap_s(taken, waiting):
            time.sleep(nap_s if most_s is None else max(0.0, min(nap_s, most_s)))

    def nap_s(self, taken: float, waiting: float) -> float:
        """For how long to sleep; 0: not at all."""
        self._taken += taken
        if waiting >= ENOUGH:
            return 0.0
        now_s = time.monotonic()
        if self._taken:
            self._nap_s = min(LONGEST_NAP_S, (now_s - self._since_s) * ENOUGH / self._taken)
        else:
            self._nap_s = min(LONGEST_NAP_S, max(2 * self._nap_s, SHORTEST_NAP_S))
        self._since_s, self._taken = now_s, 0.0
        return self._nap_s


class RingReader:
    """The reading end of a flow's rings; `ring_memory` is None for a flow that only counts."""

    def __init__(self, flow_memory: Any, ring_memory: Any, memory: Memory, ring: Ring) -> None:
        self._ring = ring
        self._cpus = memory.cpus
        words = memoryview(flow_memory).cast("Q")
        first, stride = FLOW_BYTES // 8, memory.stride // 8
        self._words = words
        self._areas = [first + cpu * stride for cpu in range(memory.cpus)]
        dtype = slot_dtype(ring.slot_bytes, tagged=ring.tagged)
        if ring_memory is None:
            self._slots = np.empty(0, dtype=dtype)
        else:
            self._slots = np.frombuffer(ring_memory, dtype=dtype, count=memory.cpus * ring.slots)
        self._held = [0] * memory.cpus
        self._turns = [0] * memory.cpus  # counts releases: a batch is given back once, whoever held it
        self._closed = False
        self._ring_full = [0] * memory.cpus

    def waiting(self) -> float:
        """How full the fullest ring is, from 0 to 1."""
        return max(self._words[area + HEAD] - self._words[area + TAIL] for area in self._areas) / self._ring.slots

    def poll(self) -> Iterator[Batch]:
        """What is there now: at most one batch per CPU. Each batch is given back when the next is asked for."""
        for cpu, area in enumerate(self._areas):
            batch = self._next(cpu, area)
            if batch is None:
                continue
            turn = self._turns[cpu]
            try:
                yield batch
            finally:
                if self._turns[cpu] == turn:
                    self._release(cpu, area)
            if self._closed:
                return

    def batches(self, until_s: float | None = None) -> Iterator[Batch | None]:
        """Batches as they come; None whenever nothing came for a while (so that the caller can look around).

        Ends at `until_s` on the monotonic clock. Sleeps in between as `Pace` says.
        """
        pace = Pace()
        while True:
            if taken := self.waiting():
                yield from self.poll()
            if self._closed:
                return
            left_s = None if until_s is None else until_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return
            if not taken:
                yield None
            pace.rest(taken, self.waiting() if taken else 0.0, left_s)

    def close(self) -> None:
        """Let go of the memory."""
        self._closed = True
        self._slots = self._slots[:0].copy()
        self._words.release()

    def _next(self, cpu: int, area: int) -> Batch | None:
        if self._held[cpu]:
            self._release(cpu, area)
        words, slots = self._words, self._ring.slots
        tail = words[area + TAIL]
        start = tail % slots
        count = min(words[area + HEAD] - tail, slots - start, MOST_RECORDS)
        if count == 0:
            return None
        records = self._slots[cpu * slots + start : cpu * slots + start + count]
        if tail < slots:
            self._fill_constants(records)
        ring_full = words[area + FATES + Fate.RING_FULL]
        lost, self._ring_full[cpu] = ring_full - self._ring_full[cpu], ring_full
        self._held[cpu] = count
        return Batch(records, cpu, lost)

    def _fill_constants(self, records: np.ndarray[Any, Any]) -> None:
        """What never changes in a slot, on the first lap: the kernel need not write it."""
        records["block_type"] = BLOCK_TYPE
        records["block_length"] = self._ring.slot_bytes
        records["trailer"] = self._ring.slot_bytes

    def _release(self, cpu: int, area: int) -> None:
        if not self._closed:
            self._words[area + TAIL] += self._held[cpu]
        self._held[cpu] = 0
        self._turns[cpu] += 1
