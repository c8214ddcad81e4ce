"""Flows of a group that see the same share a packet ring: a packet is stored once, and each reads at its own pace."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from ffpf_bpf.capture.ring import HEAD, Batch
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.flow import Flow
from ffpf_bpf.flow.chains import CHAINS
from ffpf_bpf.kernel import calls, interfaces
from tests.network import Network, two_namespaces, udp

GRAB = "(grab,snaplen=96)"
BUFFER = 1 << 16
SLOTS = BUFFER // 128
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with two_namespaces("ffring") as made:
        yield made


@pytest.fixture
def flows(network: Network) -> Iterator[Maker]:
    with ExitStack() as stack:
        stack.enter_context(network.enter())
        yield Maker(stack, network)


class Maker:
    def __init__(self, stack: ExitStack, network: Network) -> None:
        self.stack, self.network = stack, network

    def __call__(
        self,
        what: str,
        *,
        pace: str = "slow",
        buffer: int = BUFFER,
        callbacks: dict[str, Callable[[Batch], object]] | None = None,
        **options: object,
    ) -> Flow:
        flow = self.stack.enter_context(Flow.create(pace=pace, **options))
        flow.populate(f"(device,{self.network.tap}) -> {what}", buffer_bytes=buffer, callbacks=callbacks)
        flow.instantiate()
        flow.activate()
        return flow

    def send(self, *ports: int) -> None:
        self.network.send([udp(port) for port in ports])


def ports(flow: Flow) -> list[int]:
    found: list[int] = []
    while batches := [batch.copy() for batch in flow.poll()]:
        for batch in batches:
            data = batch.records["data"]
            found += (data[:, 36].astype(int) * 256 + data[:, 37]).tolist()
    return found


def rings() -> set[int]:
    return {id(member.ring) for member in CHAINS._members() if member.ring is not None}


def stored(flow: Flow) -> int:
    """Records in the flow's packet ring so far, on all CPUs."""
    reader = flow._grabber.reader
    return sum(reader._state[ring + HEAD] for ring in reader._rings)


def test_a_packet_is_stored_once_and_each_flow_gets_its_own(flows: Maker) -> None:
    every, even = flows(GRAB), flows('(bpf,"udp[3] & 1 = 0") -> (grab,snaplen=96)')
    none = flows('(bpf,"tcp") -> (grab,snaplen=96)')
    assert len(rings()) == 1

    flows.send(*range(1000, 1040))

    assert ports(every) == [*range(1000, 1040)]
    assert ports(even) == [*range(1000, 1040, 2)]
    assert ports(none) == []
    assert [flow.stats().ledger.delivered for flow in (every, even, none)] == [40, 20, 0]
    assert all(flow.stats().ledger.balances for flow in (every, even, none))
    assert stored(every) == 40


def test_packets_of_different_flows_are_told_apart(flows: Maker) -> None:
    low, high = (flows(f'(bpf,"udp dst portrange {span}") -> (grab,snaplen=96)') for span in ("1-1019", "1020-2000"))
    for port in range(1000, 1040):
        flows.send(port, 2039 - port)
    assert ports(low) == [*range(1000, 1020), *range(1019, 999, -1)]
    assert ports(high) == [*range(1039, 1019, -1), *range(1020, 1040)]
    assert stored(low) == 80


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(grab,snaplen=96)", "(grab,snaplen=200)"),
        ("(grab,snaplen=96)", "(snap) -> (grab,snaplen=96)"),
        ("(anonymise) -> (grab,snaplen=96)", "(anonymise as other) -> (grab,snaplen=96)"),
        ("(grab,snaplen=96)", "(grab)"),
    ],
)
def test_what_shows_something_else_has_its_own_ring(flows: Maker, one: str, other: str) -> None:
    flows(one)
    flows(other)
    assert len(rings()) == 2


def test_one_transform_is_one_view(flows: Maker) -> None:
    one, other = flows("(anonymise) -> (grab,snaplen=96)"), flows("(anonymise) -> (grab,snaplen=96)")
    flows.send(*range(1000, 1010))
    assert len(rings()) == 1
    assert ports(one) == ports(other) == [*range(1000, 1010)]
    assert stored(one) == 10


def test_each_flow_has_its_own_results_of_a_record(flows: Maker) -> None:
    grab = "(grab,snaplen=96)"
    by_port = flows(f"(classify,dport) -1000..1009-> {grab} | -1010..2000-> (packetcount)")
    by_length = flows(f"(classify,length) -*-> {grab}")
    every = flows(grab)
    assert len(rings()) == 1

    flows.send(*range(1000, 1020))

    assert [int(found) for batch in by_port.poll() for found in batch.results] == [*range(1000, 1010)]
    assert [int(found) for batch in by_length.poll() for found in batch.results] == [len(udp(1000))] * 20
    assert [int(found) for batch in every.poll() for found in batch.results] == [65_536] * 20
    assert stored(every) == 20


def test_each_flow_has_its_own_sinks_of_a_record(flows: Maker) -> None:
    called: dict[str, list[int]] = {"low": [], "even": []}
    functions = {
        name: lambda batch, name=name: called[name].extend(int(row[37]) for row in batch.records["data"])
        for name in called
    }
    low = '(bpf,"udp dst portrange 1000-1009") -> (callback,"low snaplen=96")'
    even = '(bpf,"udp[3] & 1 = 0") -> (callback,"even snaplen=96")'
    flow, other = flows(f"({low}) | ({even})", callbacks=functions), flows(GRAB)
    assert len(rings()) == 1

    flows.send(*range(1000, 1020))

    flow.dispatch(duration_s=0.1)
    assert called["low"] == [port & 0xFF for port in range(1000, 1010)]
    assert called["even"] == [port & 0xFF for port in range(1000, 1020, 2)]
    assert ports(other) == [*range(1000, 1020)] and stored(other) == 20


@pytest.mark.parametrize("pace", ["slow", "fast"])
def test_results_stay_with_their_records(flows: Maker, pace: str) -> None:
    """However often the ring wraps, and whatever is overwritten."""
    flow = flows("(classify,dport) -*-> (grab,snaplen=96)", pace=pace)
    flows('(bpf,"udp dst port 9") -> (grab,snaplen=96)', pace=pace)
    for first in range(1000, 1000 + 3 * SLOTS, SLOTS // 3):
        flows.send(*range(first, first + SLOTS // 3))
        if first % 2:
            continue
        for batch in flow.poll():
            data = batch.records["data"]
            assert batch.results.tolist() == (data[:, 36].astype(int) * 256 + data[:, 37]).tolist()
    assert flow.stats().ledger.balances


def test_a_buffer_holds_as_many_packets_as_it_says(network: Network) -> None:
    with network.enter(), Flow.create() as flow:
        flow.populate(f"(device,{network.tap}) -> {GRAB}", buffer_packets=300).instantiate().activate()
        network.send([udp(port) for port in range(1000, 1600)])
        assert (flow.stats().ledger.delivered, flow.stats().ledger.ring_full) == (512, 88)


def test_who_brought_the_ring_may_go_first(flows: Maker) -> None:
    first, second = flows(GRAB), flows(GRAB)
    flows.send(1000, 1001)
    first.close()
    flows.send(1002, 1003)
    assert ports(second) == [1000, 1001, 1002, 1003]
    third = flows(GRAB)
    flows.send(1004)
    assert (ports(second), ports(third)) == ([1004], [1004])
    assert len(rings()) == 1


def test_a_slow_reader_holds_up_its_group(flows: Maker) -> None:
    one, other = flows(GRAB), flows(GRAB)
    flows.send(*range(1000, 1600))
    assert (one.stats().ledger.delivered, one.stats().ledger.ring_full) == (SLOTS, 600 - SLOTS)
    assert ports(one) == [*range(1000, 1000 + SLOTS)]
    flows.send(2000)
    assert one.stats().ledger.ring_full == 601 - SLOTS
    assert ports(other) == [*range(1000, 1000 + SLOTS)]
    flows.send(2001)
    assert ports(one) == ports(other) == [2001]


def test_a_reader_with_nothing_to_read_holds_up_nobody(flows: Maker) -> None:
    one, none = flows(GRAB), flows('(bpf,"udp dst port 9") -> (grab,snaplen=96)')
    for _ in range(5):
        flows.send(*range(1000, 1000 + SLOTS))
        assert ports(one) == [*range(1000, 1000 + SLOTS)]
    flows.send(9)
    for turn in range(5):
        flows.send(*range(1000, 1000 + SLOTS - 2))
        assert ports(one)[-1] == 1000 + SLOTS - 3
        if not turn:
            assert ports(none) == [9]
    assert one.stats().ledger.ring_full == 0


def test_a_fast_reader_loses_alone(flows: Maker) -> None:
    fast, quick = flows(GRAB, pace="fast"), flows(GRAB, pace="fast")
    read: list[int] = []
    for first in range(1000, 1000 + 4 * SLOTS, SLOTS // 2):
        flows.send(*range(first, first + SLOTS // 2))
        read += ports(quick)
    assert read == [*range(1000, 1000 + 4 * SLOTS)]
    assert ports(fast) == [*range(1001 + 3 * SLOTS, 1000 + 4 * SLOTS)]
    ledger = fast.stats().ledger
    assert (ledger.delivered, ledger.overrun, ledger.ring_full) == (SLOTS - 1, 3 * SLOTS + 1, 0)
    assert ledger.balances and quick.stats().ledger.overrun == 0


def test_a_slow_reader_does_not_hold_up_fast_ones(flows: Maker) -> None:
    one, slow, other = flows(GRAB, pace="fast"), flows(GRAB), flows(GRAB, pace="fast")
    read: dict[Flow, list[int]] = {one: [], other: []}
    for first in range(1000, 1000 + 4 * SLOTS, SLOTS // 2):
        flows.send(*range(first, first + SLOTS // 2))
        for flow in read:
            read[flow] += ports(flow)
    assert read[one] == read[other] == [*range(1000, 1000 + 4 * SLOTS)]
    assert ports(slow) == [*range(1000, 1000 + SLOTS)]
    assert slow.stats().ledger.ring_full == 3 * SLOTS
    assert all(flow.stats().ledger.balances for flow in (one, slow, other))
    assert len(rings()) == 2 and stored(one) == 4 * SLOTS


WRITER = """
import os, select, sys
from ffpf_bpf.kernel import calls

program = calls.library().bpf_prog_get_fd_by_id(int(sys.argv[1]))
frames = [bytes([number]) * 1000 for number in range(1, 7)]
count = 0
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:  # until it is closed
    for frame in frames:
        calls.test_run(program, frame, 7)
        count += 7
print(count)
"""


@contextmanager
def full_speed(network: Network) -> Iterator[list[int]]:
    """The tap's program on packets of 1,000 equal bytes, of other ones each time, as fast as a CPU can, in a process of
    its own; afterwards how many there were."""
    program_id, _ = calls.attached_xdp(interfaces.find(network.tap).index)
    count: list[int] = []
    command = [sys.executable, "-c", WRITER, str(program_id)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline()
        try:
            yield count
        finally:
            count.append(int(writer.communicate(timeout=20)[0]))


def torn(records: np.ndarray, *, gaps: bool = False) -> int:
    """How many of these records are of more than one packet, or none, or, where none was left out, of another than
    comes before the next."""
    data = records["data"][:, :1000]
    whole = (data == data[:, :1]).all(axis=1) & (data[:, 0] != 0)
    whole &= (records["captured"] == 1000) & (records["original"] == 1000)
    others = np.diff(data[:, 0].astype(int)) % 6 > 1
    return int((~whole).sum() + (0 if gaps else others.sum()))


@pytest.mark.parametrize("pace", ["slow", "fast"])
@pytest.mark.parametrize("what", ["(grab,snaplen=1000)", "(classify,length) -*-> (grab,snaplen=1000)"])
def test_no_record_is_torn_however_fast_packets_come(flows: Maker, pace: str, what: str) -> None:
    """Readers that sleep with a batch in their hands, while the ring is written over and over."""
    readers = [flows(what, pace=pace) for _ in range(2)]
    got = 0
    with full_speed(flows.network) as sent:
        end_s = time.monotonic() + 1
        while time.monotonic() < end_s:
            for flow in readers:
                for batch in flow.poll():
                    time.sleep(0.0005)
                    assert torn(batch.records, gaps=pace == "slow") == 0
                    assert batch.tags is None or set(batch.results.tolist()) == {1000}
                    got += len(batch)
    for flow in readers:
        while left := sum(len(batch) for batch in flow.poll()):
            got += left
    ledgers = [flow.stats().ledger for flow in readers]
    assert got == sum(ledger.delivered for ledger in ledgers) > 0
    for ledger in ledgers:
        assert ledger.balances and ledger.seen == sent[0]
        assert (ledger.overrun if pace == "fast" else ledger.ring_full) > 0, "it was never too slow"


def test_what_is_overwritten_in_a_view_is_told(flows: Maker) -> None:
    reader = flows("(grab,snaplen=1000)", pace="fast")._grabber.reader
    spoilt = 0
    with full_speed(flows.network):
        end_s = time.monotonic() + 1
        while time.monotonic() < end_s:
            for batch in reader.poll(copy=False):
                used = np.empty_like(batch.records)
                for number, record in enumerate(batch.records):  # while the kernel writes
                    used[number] = record
                    time.sleep(0.00005)
                gone = batch.overwritten()
                assert torn(used[gone:]) == 0
                spoilt += gone
    assert spoilt > 0, "nothing was overwritten"


def test_the_reader_is_changed_while_the_flow_runs(flows: Maker) -> None:
    flow = flows(GRAB)
    flows.send(*range(1000, 1000 + 2 * SLOTS))
    flow.pace = "fast"
    flows.send(*range(3000, 3000 + 2 * SLOTS))
    flow.pace = "slow"
    flows.send(*range(5000, 5000 + 2 * SLOTS))
    read = ports(flow)
    ledger = flow.stats().ledger
    assert len(read) == ledger.delivered and ledger.balances
    assert ledger.overrun + ledger.ring_full + ledger.delivered == 6 * SLOTS
    flows.send(*range(7000, 7000 + SLOTS))
    assert ports(flow) == [*range(7000, 7000 + SLOTS)]
    with pytest.raises(ExpressionError, match="no pace is `rapid`"):
        flow.pace = "rapid"


def test_several_segments_store_a_packet_once(flows: Maker) -> None:
    many = [
        flows(f'(bpf,"udp dst port {1000 + number}") | (bpf,"udp dst port 7") -> (grab,snaplen=96)')
        for number in range(12)
    ]
    flows.send(*range(1000, 1012), 7)
    assert [ports(flow) for flow in many] == [[1000 + number, 7] for number in range(12)]
    assert stored(many[0]) == 13 and len(rings()) == 1


def test_flows_write_one_file_with_numbers_of_their_own(flows: Maker) -> None:
    first, second = flows(GRAB), flows(GRAB, first_interface=5)
    flows.send(1000)
    (one,), (other,) = list(first.poll()), list(second.poll())
    assert (one.records["interface"].tolist(), other.records["interface"].tolist()) == ([0], [5])
