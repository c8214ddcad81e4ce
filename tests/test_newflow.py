"""`newflow`: the first packet of each flow, and of one that comes again after it was evicted; the rest is filtered."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.graph.classes.newflow import Newflow
from tests.corpus.packets import BOB, arp, ether, ipv4, ipv6, packets, tcp, udp
from tests.dissection import flow_hash
from tests.network import Network
from tests.nodes import (
    CPUS,
    assert_forms,
    everywhere,
    grabbed,
    live,
    needs_two_cpus,
    nowhere,
    received,
    refusal,
    send_at_once,
)
from tests.segment import SEED, loaded


def conversation(number: int) -> bytes:
    return ether(0x0800, ipv4(6, tcp(1_000 + number, 443, flags=2)))


def test_text_and_python() -> None:
    assert_forms("(newflow)", Newflow(), "(newflow)", "newflow()")
    assert_forms("(NewFlow as n,,1048576)", Newflow(name="n"), "(newflow as n)", "newflow(name='n')")
    assert_forms("(newflow,,128)", Newflow(mbuf_bytes=128), "(newflow,,128)", "newflow(mbuf_bytes=128)")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(newflow,1)", "`newflow` takes no expression, got `1`"),
        ("(newflow,,127)", "127 bytes of memory do not suit a `newflow`"),
        ("(newflow,,268435457)", "268435457 bytes of memory do not suit a `newflow`"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.root
def test_the_first_packet_of_each_flow_and_no_other() -> None:
    """A table that is large enough, over all kinds of packets, in both directions."""
    frames = [*packets(12), *everywhere(17, udp(1, 2)).values(), *nowhere(17, udp(1, 2)).values()]
    known: set[int] = set()
    ran = 0
    with loaded("(device,tap0) -> (newflow as n)") as (flow,):

        @settings(max_examples=60)
        @given(st.lists(st.sampled_from(frames), max_size=40))
        def go_on(sample: list[bytes]) -> None:
            nonlocal ran
            expected = []
            for frame in sample:
                flow.run(frame)
                if flow_hash(frame, SEED) not in known:
                    known.add(flow_hash(frame, SEED))
                    expected.append(frame[:96])
            ran += len(sample)
            assert grabbed(flow) == expected
            statistics = flow.statistics()
            assert statistics.node("n").counts == {"flows": len(known), "evicted": 0}
            assert (statistics.ledger.delivered, statistics.ledger.filtered) == (len(known), ran - len(known))

        go_on()


@pytest.mark.root
def test_what_is_new_and_what_is_not() -> None:
    first = ether(0x0800, ipv4(6, tcp(1, 2, flags=2)))
    answer = ether(0x0800, ipv4(6, tcp(2, 1, flags=0x12), "10.0.0.2", "10.0.0.1"), b"\2" * 6, BOB)
    fragments = [ether(0x0800, ipv4(6, tcp(port, 2), fragment=0x2000)) for port in (1, 9)]
    new = [
        first,
        ether(0x0800, ipv4(17, udp(1, 2))),
        ether(0x86DD, ipv6(6, tcp(1, 2))),
        fragments[0],
        ether(0x0806, arp(1)),
    ]
    with loaded("(device,tap0) -> (newflow)") as (flow,):
        for frame in [*new, answer, fragments[1], ether(0x0806, arp(2)), *new]:
            flow.run(frame)
        assert grabbed(flow) == new


@pytest.mark.root
def test_a_flow_that_was_evicted_is_new_again() -> None:
    with loaded("(device,tap0) -> (newflow as n,,128) -> (packetcount)") as (flow,):
        flow.run(conversation(0))
        time.sleep(0.04)
        for number in range(1, 9):
            flow.run(conversation(number))
        assert flow.counted() == 9
        flow.run(conversation(0))
        flow.run(conversation(0))
        assert flow.counted() == 10
        assert flow.statistics().node("n").counts == {"flows": 10, "evicted": 2}


@pytest.mark.root
def test_the_application_may_clear_the_table() -> None:
    with loaded("(device,tap0) -> (newflow as n) -> (packetcount)") as (flow,):
        for clear in (False, False, True, False):
            if clear:
                flow.mbuf("n")[:] = 0
            flow.run(conversation(0))
        assert flow.counted() == 2


@needs_two_cpus
@pytest.mark.root
def test_two_cpus_see_a_known_flow_as_known() -> None:
    with loaded("(device,tap0) -> (newflow as n) -> (packetcount)") as (flow,):
        flow.run(conversation(0))
        flow.run_at_once(dict.fromkeys(CPUS, conversation(0)), 300_000)
        assert flow.counted() == 1
        # A flow that both CPUs begin with may be new to both; there is no third.
        for number in range(1, 20):
            flow.run_at_once(dict.fromkeys(CPUS, conversation(number)), 100)
        assert 20 <= flow.counted() <= 39
        assert flow.statistics().node("n").counts["flows"] == flow.counted()


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    there = [conversation(number) for number in range(50)]
    back = [ether(0x0800, ipv4(6, tcp(443, 1_000 + n), "10.0.0.2", "10.0.0.1")) for n in range(50)]
    with live(network, "(device,tap0) -> (newflow as n)") as flow:
        network.send(there)
        send_at_once(network, {key: [*there, *back] for key in CPUS})
        assert received(flow) == there
        assert flow.stats().node("n").counts == {"flows": 50, "evicted": 0}
        flow.node("n").mbuf[:] = 0
        flow.activate()
        network.send([*back, *there])
        assert received(flow) == back
        assert flow.stats().ledger.filtered == 100 * len(CPUS) + 50
