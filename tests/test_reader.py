"""The reader alone, against a ring in plain memory that a writer in Python fills as bpf_src/deliver.c does."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffpf_bpf.capture.layout import ENTRY_DTYPE, READER_DTYPE, RING_DTYPE, slot_dtype
from ffpf_bpf.capture.ring import Batch, MappedRing, ReaderPace, RingReader
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.memory import Ring, RingHome, lay_out
from ffpf_bpf.graph.parser import parse

GRAPH = build(parse("(device,tap0) -> (grab,snaplen=96)"))
TAGGED = build(parse("(device,tap0) -> (classify,dport) -*-> (grab,snaplen=96)"))
SLOT_BYTES = 128


class Writer:
    """The kernel's side of one CPU's ring of `slots`, with `flows` that read it: with index rings, if it can be
    `shared`. What is `tagged` has its number as its result."""

    def __init__(
        self,
        slots: int,
        flows: int = 1,
        *,
        shared: bool = True,
        pace: ReaderPace = ReaderPace.SLOW,
        tagged: bool = False,
    ) -> None:
        self.ring = Ring(96, SLOT_BYTES, slots)
        self.tagged = tagged
        memory = lay_out(TAGGED if tagged else GRAPH, 1, slots=slots, shareable=shared)
        self.maps = [bytearray(memory.flow_map_bytes) for _ in range(flows)]
        self.slots = np.zeros(slots, slot_dtype(SLOT_BYTES))
        self.state = np.frombuffer(self.maps[0], RING_DTYPE, 1, memory.ring)
        most = (memory.ring_stride - RING_DTYPE.itemsize) // READER_DTYPE.itemsize
        self.readers = np.frombuffer(self.maps[0], READER_DTYPE, most, memory.ring + RING_DTYPE.itemsize)
        kind = ENTRY_DTYPE if tagged else np.dtype([("position", "<u8")])
        self.indices = [np.frombuffer(each, kind, slots, memory.index) for each in self.maps if shared]
        mapped = MappedRing(self.maps[0], self.slots, [0])
        self.flows = [
            RingReader(each, memory, self.ring, RingHome(0, memory, 0, number), mapped)
            for number, each in enumerate(self.maps)
        ]
        for flow in self.flows:
            flow.pace = pace

    def write(self, number: int, flows: tuple[int, ...] = (0,)) -> bool:
        """A packet that says its number, for some of the flows; whether there was room."""
        head, slots = int(self.state["head"][0]), self.ring.slots
        if head + 1 > self.state["limit"][0]:
            self.state["limit"][0] = self._oldest(head) + slots
        if head + 1 > self.state["limit"][0]:
            return False
        self.slots["original"][head % slots] = number
        self.state["head"][0] = head + 1
        for flow in flows if self.indices else ():
            reader = self.readers[flow]
            if reader["indexed"] == reader["tail"]:
                reader["first"] = head
            entry = self.indices[flow][int(reader["indexed"]) % slots]
            entry["position"] = head
            if self.tagged:
                entry["result"] = number
            reader["indexed"] += 1
        return True

    def _oldest(self, head: int) -> int:
        oldest = head
        for reader in self.readers[: int(self.state["readers"][0])]:
            if reader["pace"] != ReaderPace.SLOW:
                continue
            if not self.indices:
                oldest = min(oldest, int(reader["tail"]))
            elif reader["indexed"] != reader["tail"]:
                oldest = min(oldest, max(int(reader["first"]), int(reader["wait"])))
        return oldest


def numbers(batches: list[Batch]) -> list[int]:
    return [number for batch in batches for number in batch.records["original"].tolist()]


def read(flow: RingReader) -> list[int]:
    """All that is there."""
    found: list[int] = []
    while batches := [batch.copy() for batch in flow.poll()]:
        assert all(batch.tags is None or batch.results.tolist() == numbers([batch]) for batch in batches)
        found += numbers(batches)
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_ffpf_example_of_a_fast_reader(shared: bool) -> None:
    """The reader at 50, the writer at 400 of its tenth lap: 100 packets are used, and meanwhile the writer came to 450
    of its eleventh. All hundred were overwritten."""
    slots = 512
    writer = Writer(slots, shared=shared, pace=ReaderPace.FAST)
    (flow,) = writer.flows
    start = 10 * slots + 50
    for number in range(start):
        writer.write(number)
        if number % 10 == 9:
            read(flow)
    for number in range(start, 10 * slots + 400):
        writer.write(number)

    used = 0
    for batch in flow.poll(copy=False):
        view = batch.records["original"][:100]
        assert view.tolist() == [*range(start, start + 100)]
        assert batch.overwritten() == 0
        for number in range(10 * slots + 400, 11 * slots + 450):
            writer.write(number)
        used = min(100, batch.overwritten())
    assert used == 100
    assert flow.overrun == 350
    # What came since is there, but for what was overwritten again, and the place that may be written at this moment.
    assert read(flow) == [*range(10 * slots + 451, 11 * slots + 450)]
    assert flow.overrun == 401


def test_a_copy_that_was_torn_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer laps the reader while it copies."""
    writer = Writer(64, pace=ReaderPace.FAST)
    (flow,) = writer.flows
    for number in range(40):
        writer.write(number)
    original = RingReader._records

    def interrupted(self: RingReader, cpu: int, positions: range) -> np.ndarray:
        records = original(self, cpu, positions).copy()
        for number in range(40, 90):
            writer.write(number)
        return records

    monkeypatch.setattr(RingReader, "_records", interrupted)
    (batch,) = [each.copy() for each in flow.poll()]
    monkeypatch.undo()
    assert batch.records["original"].tolist() == [*range(27, 40)]
    assert flow.overrun == 27 and batch.lost == 27
    # Having come too late once, it leaves a quarter of the ring between itself and the writer.
    assert read(flow) == [*range(43, 90)]


@given(
    st.integers(1, 4),
    st.lists(
        st.one_of(
            st.integers(0, 15).map(lambda mask: ("write", mask)), st.integers(0, 3).map(lambda flow: ("read", flow))
        ),
        max_size=200,
    ),
    st.sampled_from([ReaderPace.SLOW, ReaderPace.FAST]),
    st.booleans(),
)
def test_readers_are_as_a_model_of_queues(
    flows: int, steps: list[tuple[str, int]], pace: ReaderPace, tagged: bool
) -> None:
    """Slow: a packet is kept until whoever it is for gave it back. Fast: each flow has what is in the last lap."""
    slots = 8
    writer = Writer(slots, flows, pace=pace, tagged=tagged)
    queues = [deque[tuple[int, int]]() for _ in range(flows)]
    head = count = 0
    lost = [0] * flows
    for kind, value in steps:
        if kind == "read":
            flow = value % flows
            if pace is ReaderPace.FAST:
                whole = [number for number, position in queues[flow] if position > head - slots]
                lost[flow] += len(queues[flow]) - len(whole)
            else:
                whole = [number for number, _ in queues[flow]]
            assert read(writer.flows[flow]) == whole
            queues[flow].clear()
            assert writer.flows[flow].overrun == lost[flow]
            continue
        wanting = tuple(flow for flow in range(flows) if value >> flow & 1)
        if not wanting:
            continue
        stored = writer.write(count, wanting)
        if pace is ReaderPace.FAST:
            assert stored
        oldest = min((queue[0][1] for queue in queues if queue), default=head)
        if not stored:
            assert head - oldest >= slots, "there was room"
        else:
            assert pace is ReaderPace.FAST or head - oldest < slots, "something is overwritten"
            for flow in wanting:
                queues[flow].append((count, head))
            head += 1
        count += 1
