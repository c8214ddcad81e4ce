"""`head`: the beginning of each flow, in a bounded table that all CPUs share; the rest has the fate `limited`."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.head import HELP, Head, buckets
from ffpf_bpf.graph.parser import parse
from tests.corpus.packets import ALICE, BOB, EVERYBODY, arp, ether, ipv4, ipv6, packets, sctp, tcp, udp, vlan
from tests.dissection import flow_hash
from tests.network import Network
from tests.nodes import (
    CPUS,
    assert_forms,
    assert_round_trip,
    everywhere,
    grabbed,
    live,
    needs_two_cpus,
    nowhere,
    received,
    refusal,
    send_at_once,
)
from tests.segment import SEED, LoadedFlow, loaded

BUCKET_FLOWS = 8
STAMP_S = (1 << 24) / 1e9  # the table tells times apart that differ by so much
USED = (1 << 40) - 1
TAKEN = 1  # the tag of a place that somebody is just writing


def conversation(number: int, length: int = 60) -> bytes:
    """A packet of flow `number`."""
    return ether(0x0800, ipv4(17, udp(1_000 + number % 60_000, 53), f"10.{number >> 16}.0.1")).ljust(length, b"\0")


def occupied(flow: LoadedFlow, node: str) -> int:
    """The places of a table that are taken."""
    words = flow.mbuf(node)[: buckets(flow.mbuf(node).size) * 128].view("u8").reshape(-1, 2, BUCKET_FLOWS)
    return int(np.count_nonzero(words[:, 0]))


@pytest.mark.parametrize(
    ("written", "node", "shown_text", "shown_python"),
    [
        ("(head,10)", Head(10), "(head,10)", "head(10)"),
        ("(HEAD,64KiB)", Head(bytes=65_536), "(head,64KiB)", "head(bytes=65536)"),
        ("(head,1500B)", Head(bytes=1_500), "(head,1500B)", "head(bytes=1500)"),
        ("(head,5MB)", Head(bytes=5_000_000), "(head,5MB)", "head(bytes=5000000)"),
        ("(head,8Mbit)", Head(bytes=10**6), "(head,1MB)", "head(bytes=1000000)"),
        ("(head,256GiB)", Head(bytes=1 << 38), "(head,256GiB)", "head(bytes=274877906944)"),
        ("(head,10,1048576)", Head(10), "(head,10)", "head(10)"),
        ("(head,10,128)", Head(10, mbuf_bytes=128), "(head,10,128)", "head(10, mbuf_bytes=128)"),
    ],
)
def test_text_and_python(written: str, node: Head, shown_text: str, shown_python: str) -> None:
    assert_forms(written, node, shown_text, shown_python)


@given(st.integers(1, 1 << 38), st.booleans(), st.integers(128, 1 << 28))
def test_every_head_is_read_as_it_is_printed(most: int, by_bytes: bool, mbuf_bytes: int) -> None:
    assert_round_trip(Head(bytes=most, mbuf_bytes=mbuf_bytes) if by_bytes else Head(most, mbuf_bytes=mbuf_bytes))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(head)", "`` is no number of packets or bytes"),
        ("(head,ten)", "`ten` is no number of packets or bytes"),
        ("(head,-1)", "`-1` is no number of packets or bytes"),
        ("(head,1.5KiB)", "`1.5KiB` is no number of packets or bytes"),
        ("(head,10k)", "`10k` is no number of packets or bytes"),
        ("(head,0)", "no number of packets or bytes to keep, or 0"),
        ("(head,7bit)", "no number of packets or bytes to keep, or 0"),
        ("(head,274877906945)", "cannot keep the first 274877906945 packets of a flow"),
        ("(head,257GiB)", "cannot keep the first 275951648768 bytes of a flow"),
        ("(head,10,127)", "127 bytes of memory do not suit a `head`"),
        ("(head,10,268435457)", "268435457 bytes of memory do not suit a `head`"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no number of packets or bytes to keep, or 0"),
        ({"packets": 1, "bytes": 1}, "cannot keep the first 1 packets and 1 bytes of a flow"),
        ({"packets": -1}, "cannot keep the first -1 packets of a flow"),
        ({"packets": 2, "bytes": -1}, "cannot keep the first 2 packets and -1 bytes of a flow"),
        ({"packets": "10"}, "'10' is no whole number"),
        ({"bytes": 1.5}, "1.5 is no whole number"),
    ],
)
def test_refused_in_python(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Head(**arguments)  # type: ignore[arg-type]
    assert error.value.message == message


@pytest.mark.parametrize(
    ("expression", "help"),
    [("(head,1.5KiB)", "whole numbers only: write `1536B`"), ("(head,1.5)", HELP), ("(head)", HELP)],
)
def test_what_to_write_instead(expression: str, help: str) -> None:
    with pytest.raises(ExpressionError) as error:
        parse(expression)
    assert error.value.help == help


@pytest.mark.root
@settings(max_examples=40)
@given(st.integers(1, 5), st.lists(st.integers(0, 12), max_size=60))
def test_the_first_packets_of_each_flow(most: int, order: list[int]) -> None:
    seen: dict[int, int] = {}
    expected = []
    for number in order:
        seen[number] = seen.get(number, 0) + 1
        if seen[number] <= most:
            expected.append(conversation(number))
    with loaded(f"(device,tap0) -> (head as h,{most})") as (flow,):
        for number in order:
            flow.run(conversation(number))
        assert grabbed(flow) == expected
        statistics = flow.statistics()
    assert statistics.node("h").counts == {"flows": len(seen), "evicted": 0}
    assert statistics.ledger.limited == len(order) - len(expected)


@pytest.mark.root
@settings(max_examples=40)
@given(st.integers(1, 5_000), st.lists(st.tuples(st.integers(0, 3), st.integers(60, 3_000)), max_size=30))
def test_the_packet_that_crosses_the_bytes_passes(most: int, order: list[tuple[int, int]]) -> None:
    used: dict[int, int] = {}
    expected = []
    for number, length in order:
        if used.get(number, 0) < most:
            expected.append(length)
            used[number] = used.get(number, 0) + length
    with loaded(f"(device,tap0) -> (head,{most}B) -> (grab,snaplen=14)") as (flow,):
        for number, length in order:
            flow.run(conversation(number, length))
        assert [packet.length for batch in flow.batches() for packet in batch.packets(("tap0",))] == expected


@pytest.mark.root
def test_what_is_one_flow() -> None:
    """Equal hashes, equal flows: any packet there is, against the model's hash."""
    frames = [*packets(11), *everywhere(6, tcp(1, 2)).values(), *nowhere(6, tcp(1, 2)).values()]
    seen: dict[int, int] = {}
    with loaded("(device,tap0) -> (head as h,3) -> (packetcount)") as (flow,):
        for frame in frames:
            tag = flow_hash(frame, SEED)
            before = flow.counted()
            flow.run(frame)
            seen[tag] = seen.get(tag, 0) + 1
            assert flow.counted() - before == (seen[tag] <= 3), frame.hex()
        assert flow.statistics().node("h").counts == {"flows": len(seen), "evicted": 0}
        assert occupied(flow, "h") == len(seen)


@pytest.mark.root
def test_both_directions_are_one_flow_and_others_are_not() -> None:
    same = [
        ether(0x0800, ipv4(6, tcp(1, 2)), ALICE, BOB),
        ether(0x0800, ipv4(6, tcp(2, 1), "10.0.0.2", "10.0.0.1"), BOB, ALICE),
        ether(0x8100, vlan(9, 0x0800, ipv4(6, tcp(1, 2, flags=1), ttl=3, tos=8, words=7))),
    ]
    others = [
        ether(0x0800, ipv4(6, tcp(2, 1))), ether(0x0800, ipv4(17, udp(1, 2))), ether(0x0800, ipv4(132, sctp(1, 2))),
        ether(0x0800, ipv4(6, tcp(1, 3))), ether(0x0800, ipv4(6, tcp(1, 2), "10.0.0.3")),
        ether(0x86DD, ipv6(6, tcp(1, 2))), ether(0x0800, ipv4(6, tcp(1, 2), fragment=0x2000)), ether(0x0806, arp(1)),
        ether(0x0806, arp(1), BOB, EVERYBODY), ether(0x88CC, bytes(46)),
    ]  # fmt: skip
    with loaded("(device,tap0) -> (head as h,1)") as (flow,):
        for frame in [*same, *others, *same, *others]:
            flow.run(frame)
        assert grabbed(flow) == [same[0], *others]
        # Fragments of one datagram, and another datagram of these hosts: addresses and protocol.
        for fragment in (0x2001, 0x0100):
            flow.run(ether(0x0800, ipv4(6, tcp(7, 8), fragment=fragment, number=9)))
        assert grabbed(flow) == []


@pytest.mark.root
@settings(max_examples=25)
@given(st.sampled_from([128, 200, 256, 1_000, 1_024]), st.integers(1, 200), st.integers(1, 3))
def test_flows_that_are_no_longer_in_the_table_were_evicted(mbuf_bytes: int, flows: int, rounds: int) -> None:
    """A power of two of buckets is used. What comes again after it was evicted is put in again."""
    in_use = 1 << int(math.log2(mbuf_bytes // 128))
    with loaded(f"(device,tap0) -> (head as h,1,{mbuf_bytes}) -> (packetcount)") as (flow,):
        for _ in range(rounds):
            for number in range(flows):
                flow.run(conversation(number))
        counts = flow.statistics().node("h").counts
        assert flow.mbuf("h").shape == (mbuf_bytes,), "one table for all CPUs"
        assert counts["flows"] - occupied(flow, "h") == counts["evicted"]
        assert counts["flows"] == flow.counted(), "each that is put in passes once"
        assert occupied(flow, "h") <= in_use * BUCKET_FLOWS
        assert not flow.mbuf("h")[in_use * 128 :].any()
        if flows <= BUCKET_FLOWS:
            assert counts == {"flows": flows, "evicted": 0}


@pytest.mark.root
def test_the_flow_that_was_quiet_for_longest_goes() -> None:
    """One bucket, whose flows are seen at times that the table tells apart."""
    with loaded("(device,tap0) -> (head as h,5,128) -> (packetcount)") as (flow,):

        def see(number: int) -> bool:
            before = flow.counted()
            time.sleep(2 * STAMP_S)
            flow.run(conversation(number))
            return flow.counted() > before

        order = [*range(8), 3, 0, 1]  # so 2 is quiet for longest, then 4, 5, 6, 7, 3, 0, 1
        for number in order:
            see(number)
        for newcomer, victim in ((8, 2), (9, 4), (10, 5), (11, 6), (12, 7), (13, 3), (14, 0), (15, 1), (16, 8)):
            see(newcomer)
            assert_not_in(flow, victim)
        assert flow.statistics().node("h").counts == {"flows": 17, "evicted": 9}
        # A packet that is stopped, too, is seen: 9 would be next.
        for _ in range(6):
            see(9)
        assert not see(9)
        see(17)
        assert_not_in(flow, 10)
        assert not see(9), "still known, and used up"


def assert_not_in(flow: LoadedFlow, number: int) -> None:
    tags = flow.mbuf("h").view("u8")[:BUCKET_FLOWS]
    assert flow_hash(conversation(number), SEED) | 2 not in tags.tolist()


@pytest.mark.root
def test_what_was_evicted_begins_again() -> None:
    with loaded("(device,tap0) -> (head as h,2,128) -> (packetcount)") as (flow,):
        for _ in range(3):
            flow.run(conversation(0))
        assert flow.counted() == 2
        time.sleep(2 * STAMP_S)
        for number in range(1, 9):
            flow.run(conversation(number))
        assert flow.counted() == 2 + 8
        for _ in range(3):
            flow.run(conversation(0))
        assert flow.counted() == 2 + 8 + 2
        assert flow.statistics().node("h").counts["evicted"] == 2


@pytest.mark.root
def test_the_application_may_clear_the_table_and_set_what_is_used() -> None:
    frame = conversation(0)
    with loaded("(device,tap0) -> (head as h,3) -> (packetcount)") as (flow,):
        for _ in range(5):
            flow.run(frame)
        assert flow.counted() == 3
        flow.mbuf("h")[:] = 0
        for _ in range(5):
            flow.run(frame)
        assert flow.counted() == 6
        assert flow.statistics().node("h").counts == {"flows": 2, "evicted": 0}, "its counts are not in the table"
        words = flow.mbuf("h").view("u8").reshape(-1, 2, BUCKET_FLOWS)
        ((bucket, place),) = np.argwhere(words[:, 0])
        assert words[bucket, 0, place] == flow_hash(frame, SEED) | 2
        assert words[bucket, 1, place] & USED == 3
        words[bucket, 1, place] -= 2
        for _ in range(5):
            flow.run(frame)
        assert flow.counted() == 8
        del words


@pytest.mark.root
def test_inverted_it_passes_all_but_the_beginning() -> None:
    frames = [ether(0x0800, ipv4(17, udp(1, 2), number=number)) for number in range(6)]
    with loaded("(device,tap0) -> !(head,2)") as (flow,):
        for frame in frames:
            flow.run(frame)
        assert grabbed(flow) == frames[2:]
        assert flow.statistics().ledger.limited == 2


@pytest.mark.root
@pytest.mark.parametrize("node", ["(head as h,2,128)", "(newflow as h,,128)"])
def test_without_a_place_nothing_passes_uncounted(node: str) -> None:
    """As long as another CPU writes the place that a flow would get, the flow is left out, and begins behind that."""
    with loaded(f"(device,tap0) -> {node} -> (packetcount)") as (flow,):
        words = flow.mbuf("h").view("u8")
        words[:BUCKET_FLOWS] = TAKEN
        for _ in range(5):
            flow.run(conversation(0))
        assert flow.counted() == 0
        assert flow.statistics().node("h").counts == {"flows": 0, "evicted": 0}
        words[:BUCKET_FLOWS] = 0
        for _ in range(5):
            flow.run(conversation(0))
        assert flow.counted() == (2 if "head" in node else 1)
        assert flow.statistics().node("h").counts == {"flows": 1, "evicted": 0}
        del words


@needs_two_cpus
@pytest.mark.root
@pytest.mark.parametrize(("most", "passes"), [("10", 10), ("100000", 100_000), ("1000B", 17), ("6MB", 100_000)])
def test_two_cpus_pass_exactly_the_limit(most: str, passes: int) -> None:
    """From when the flow is in the table."""
    frame = conversation(0, 60)
    with loaded(f"(device,tap0) -> (head as h,{most}) -> (packetcount as passed)") as (flow,):
        flow.run(frame)
        flow.run_at_once(dict.fromkeys(CPUS, frame), 300_000)
        statistics = flow.statistics()
        per_cpu = flow.mbuf("passed").view("u8")[list(CPUS), 0].tolist()
    assert statistics.ledger.counted == passes, per_cpu
    assert statistics.ledger.limited == 600_001 - passes
    assert statistics.node("h").counts == {"flows": 1, "evicted": 0}


@needs_two_cpus
@pytest.mark.root
def test_two_cpus_put_flows_in_at_once() -> None:
    """A table that is always full: whoever loses the race for a place has its packet left out, not passed uncounted."""
    frames = {cpu: [conversation(number) for number in range(place, 4_000, 2)] for place, cpu in enumerate(CPUS)}
    with loaded("(device,tap0) -> (head as h,1,256) -> (packetcount)") as (flow,):

        def send(cpu: int) -> None:
            os.sched_setaffinity(0, {cpu})
            for frame in frames[cpu]:
                flow.run(frame)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(send, CPUS))
        counts = flow.statistics().node("h").counts
        assert counts["flows"] - occupied(flow, "h") == counts["evicted"]
        assert 3_900 <= counts["flows"] == flow.counted() <= 4_000


@needs_two_cpus
@pytest.mark.root
def test_packets_on_an_interface_through_both_cpus(network: Network) -> None:
    frames = [ether(0x0800, ipv4(17, udp(1, 2), number=number)) for number in range(1_000)]
    back = [ether(0x0800, ipv4(17, udp(2, 1), "10.0.0.2", "10.0.0.1")) for _ in range(1_000)]
    with live(network, "(device,tap0) -> (head as h,100) -> (packetcount as passed) -> (grab)") as flow:
        network.send(frames[:1])
        send_at_once(network, {CPUS[0]: frames[1:], CPUS[1]: back})
        assert len(received(flow)) == 100
        statistics = flow.stats()
        cpus = np.count_nonzero(flow.node("passed").mbuf.view("u8")[:, 0])
        flow.node("h").mbuf[:] = 0
        flow.activate()
        network.send(frames)
        assert received(flow) == frames[:100]
    print(f"packets came by {cpus} CPUs")
    assert statistics.node("h").counts == {"flows": 1, "evicted": 0}
    assert statistics.ledger.limited == 1_900
