"""`sampler`: 1 packet in N, each with a probability, or all of 1 flow in N; the rest has the fate `sampled`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.sampler import Sampler
from ffpf_bpf.graph.parser import parse
from tests.corpus.packets import ALICE, BOB, ether, ipv4, ipv6, packets, tcp, udp
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
    received,
    refusal,
    send_at_once,
)
from tests.segment import SEED, loaded

FRAME = ether(0x0800, ipv4(17, udp(1, 53)))


def numbered(count: int) -> list[bytes]:
    """Frames that can be told apart."""
    return [ether(0x0800, ipv4(17, udp(1, 2), number=number)) for number in range(count)]


@pytest.mark.parametrize(
    ("written", "node", "shown_text", "shown_python"),
    [
        ("(sampler,10)", Sampler(10), "(sampler,10)", "sampler(10)"),
        ('(SAMPLER," 10 ")', Sampler(10), "(sampler,10)", "sampler(10)"),
        ("(sampler,4294967295)", Sampler((1 << 32) - 1), "(sampler,4294967295)", "sampler(4294967295)"),
        ("(sampler,p=0.01)", Sampler(p=0.01), "(sampler,p=0.01)", "sampler(p=0.01)"),
        ("(sampler,p=1)", Sampler(p=1), "(sampler,p=1.0)", "sampler(p=1.0)"),
        ("(sampler,p=1e-5)", Sampler(p=0.00001), "(sampler,p=1e-05)", "sampler(p=1e-05)"),
        ("(sampler,flow=1/64)", Sampler(flow=64), "(sampler,flow=1/64)", "sampler(flow=64)"),
        ("(sampler,flow=64)", Sampler(flow=64), "(sampler,flow=1/64)", "sampler(flow=64)"),
    ],
)
def test_text_and_python(written: str, node: Sampler, shown_text: str, shown_python: str) -> None:
    assert_forms(written, node, shown_text, shown_python)


@given(st.one_of(
    st.integers(1, (1 << 32) - 1).map(Sampler),
    st.floats(1 / (1 << 32), 1).map(lambda p: Sampler(p=p)),
    st.integers(1, (1 << 32) - 1).map(lambda flow: Sampler(flow=flow)),
))  # fmt: skip
def test_every_sampler_is_read_as_it_is_printed(node: Sampler) -> None:
    assert_round_trip(node)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(sampler)", "no number of packets"),
        ("(sampler,x)", "`x` is not a number of packets"),
        ("(sampler,-1)", "`-1` is not a number of packets"),
        ("(sampler,0)", "cannot sample 1 in 0"),
        ("(sampler,4294967296)", "cannot sample 1 in 4294967296"),
        ("(sampler,99999999999999999999)", "`99999999999999999999` is not a number of packets"),
        ("(sampler,flow=0)", "cannot sample 1 in 0"),
        ("(sampler,flow=1/4294967296)", "cannot sample 1 in 4294967296"),
        ("(sampler,flow=2/3)", "`2/3` is not a share of flows"),
        ("(sampler,flow=)", "no share of flows"),
        ("(sampler,p=)", "`` is not a probability"),
        ("(sampler,p=often)", "`often` is not a probability"),
        ("(sampler,p=0)", "cannot sample with p=0.0"),
        ("(sampler,p=1e-10)", "cannot sample with p=1e-10"),
        ("(sampler,p=1.0001)", "cannot sample with p=1.0001"),
        ("(sampler,p=-0.5)", "cannot sample with p=-0.5"),
        ("(sampler,p=nan)", "cannot sample with p=nan"),
        ("(sampler,p=inf)", "cannot sample with p=inf"),
        ("(sampler,1 2)", "several ways to sample at once"),
        ('(sampler,"10 p=0.5")', "several ways to sample at once"),
        ('(sampler,"p=0.5 flow=1/2")', "several ways to sample at once"),
        ('(sampler,"p=0.5 p=0.5")', "`p=` is twice"),
        ("(sampler,q=1)", "`q=` is unknown"),
        ("(sampler,10,3)", "3 bytes of memory do not suit a `sampler`"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no share to pass is given, or 0"),
        ({"one_in": 2.0}, "2.0 is no whole number"),
        ({"one_in": True}, "True is no whole number"),
        ({"flow": "64"}, "'64' is no whole number"),
        ({"p": "0.5"}, "'0.5' is no probability"),
        ({"p": True}, "True is no probability"),
        ({"p": 2}, "cannot sample with p=2"),
        ({"p": 10**400}, f"cannot sample with p={10**400}"),
        ({"one_in": -3}, "cannot sample 1 in -3"),
        ({"flow": -3}, "cannot sample 1 in -3"),
        ({"one_in": 3, "p": 0.5}, "several ways to sample at once"),
        ({"one_in": 3, "flow": 3}, "several ways to sample at once"),
    ],
)
def test_refused_in_python(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Sampler(**arguments)  # type: ignore[arg-type]
    assert error.value.message == message


def test_the_ways_to_sample_are_told() -> None:
    ways = "`{}` passes 1 packet in 10, `{}` at random, `{}` 1 flow in 10"
    with pytest.raises(ExpressionError) as error:
        Sampler()
    assert error.value.help == ways.format("sampler(10)", "sampler(p=0.1)", "sampler(flow=10)")
    with pytest.raises(ExpressionError) as error:
        parse("(sampler)")
    assert error.value.help == ways.format("(sampler,10)", "(sampler,p=0.1)", "(sampler,flow=1/10)")


def test_what_policies_are_told() -> None:
    assert (Sampler(10).leaves_one_in, Sampler(p=0.25).leaves_one_in, Sampler(flow=8).leaves_one_in) == (10, 4, 1)


@pytest.mark.root
def test_the_first_packet_and_every_nth_after_it() -> None:
    numbers = (1, 2, 3, 7, 100, (1 << 32) - 1)
    with loaded(*(f"(device,tap0) -> (sampler,{number}) -> (packetcount)" for number in numbers)) as flows:
        passed = [0] * len(numbers)
        ran = 0

        @settings(max_examples=30)
        @given(st.integers(0, 40))
        def go_on(packets: int) -> None:
            nonlocal ran
            for _ in range(packets):
                flows[0].run(FRAME)
                for place, number in enumerate(numbers):
                    passed[place] += ran % number == 0
                ran += 1
            assert [flow.counted() for flow in flows] == passed

        go_on()
        for flow, count in zip(flows, passed, strict=True):
            ledger = flow.statistics().ledger
            assert (ledger.counted, ledger.sampled, ledger.filtered) == (count, ran - count, 0)


@pytest.mark.root
def test_which_packets_it_leaves_out_and_inverted() -> None:
    frames = numbered(10)
    with loaded("(device,tap0) -> (sampler,4)", "(device,tap0) -> !(sampler,4)") as (flow, other):
        for frame in frames:
            flow.run(frame)
        assert grabbed(flow) == frames[::4]
        assert grabbed(other) == [frame for frame in frames if frame not in frames[::4]]
        assert other.statistics().ledger.sampled == 3


@pytest.mark.root
def test_the_application_may_set_how_many_are_left_out() -> None:
    frames = numbered(20)
    with loaded("(device,tap0) -> (sampler as s,4,8) -> (grab)") as (flow,):
        words = flow.mbuf("s").view("u4")
        words[0] = (2, 77)
        for frame in frames[:8]:
            flow.run(frame)
        assert grabbed(flow) == [frames[2], frames[6]]
        assert words[0].tolist() == [2, 77], "4 bytes are its own"
        words[0, 0] = 0
        for frame in frames[8:10]:
            flow.run(frame)
        assert grabbed(flow) == [frames[8]]
        words[0, 0] = (1 << 32) - 1
        for frame in frames[10:]:
            flow.run(frame)
        assert grabbed(flow) == []
        del words


@needs_two_cpus
@pytest.mark.root
def test_each_cpu_counts_for_itself() -> None:
    times = 100_001
    with loaded("(device,tap0) -> (sampler,10) -> (packetcount as kept)") as (flow,):
        flow.run_at_once(dict.fromkeys(CPUS, FRAME), times)
        assert flow.mbuf("kept").view("u8")[list(CPUS), 0].tolist() == [10_001, 10_001]
        assert flow.statistics().ledger.sampled == 2 * (times - 10_001)


@pytest.mark.root
def test_probabilities() -> None:
    """Within 6 standard deviations; the random numbers are the kernel's, without a seed."""
    shares, times = (1.0, 0.9, 0.5, 0.01, 1 / (1 << 32)), 100_000
    with loaded(*(f"(device,tap0) -> (sampler,p={p!r}) -> (packetcount)" for p in shares)) as flows:
        flows[0].run_at_once({CPUS[0]: FRAME}, times)
        for p, flow in zip(shares, flows, strict=True):
            ledger = flow.statistics().ledger
            assert ledger.counted + ledger.sampled == times
            assert abs(ledger.counted - p * times) <= 6 * math.sqrt(times * p * (1 - p)) + (p < 0.001), p
        assert flows[0].counted() == times


@pytest.mark.root
def test_flows_are_chosen_by_their_hash() -> None:
    numbers = (1, 2, 3, 64, 1_000, (1 << 32) - 1)
    with loaded(*(f"(device,tap0) -> (sampler,flow=1/{number}) -> (packetcount)" for number in numbers)) as flows:
        for frame in packets(7):
            before = [flow.counted() for flow in flows]
            flows[0].run(frame)
            passed = [flow.counted() - count for flow, count in zip(flows, before, strict=True)]
            # A flow has a number from 0 to 1, the upper half of its hash, and stays if it is below the share.
            assert passed == [(flow_hash(frame, SEED) >> 32) * number < 1 << 32 for number in numbers], frame.hex()
        assert flows[0].counted() == len(packets(7))


@pytest.mark.root
def test_one_flow_in_eight_stays_with_all_its_packets_in_both_directions() -> None:
    conversations = [
        (ether(0x0800, ipv4(6, tcp(port, 443, flags=flags)), ALICE, BOB),
         ether(0x0800, ipv4(6, tcp(443, port, b"answer"), "10.0.0.2", "10.0.0.1"), BOB, ALICE))
        for port in range(1_000, 5_000) for flags in (2, 16)
    ]  # fmt: skip
    with loaded("(device,tap0) -> (sampler,flow=1/8) -> (packetcount)") as (flow,):
        stayed: dict[int, set[int]] = {}
        for place, pair in enumerate(conversations):
            before = flow.counted()
            for frame in pair:
                flow.run(frame)
            stayed.setdefault(place // 2, set()).add(flow.counted() - before)
    assert set(map(len, stayed.values())) == {1}
    assert set.union(*stayed.values()) == {0, 2}
    kept = sum(counts == {2} for counts in stayed.values())
    assert abs(kept - 500) < 6 * math.sqrt(4_000 / 8)


@pytest.mark.root
def test_fragments_stay_with_each_other() -> None:
    """They go by addresses and protocol, so not with the whole packets of their flow."""
    with loaded("(device,tap0) -> (sampler,flow=1/2) -> (packetcount)") as (flow,):
        fates = set()
        for host in range(1, 60):
            frames = [
                ether(0x0800, ipv4(17, udp(port, 53, bytes(64)), f"10.9.0.{host}", fragment=fragment))
                for port in (1, 2, 3) for fragment in (0x2000, 0x2008, 0x0010)
            ]  # fmt: skip
            before = flow.counted()
            for frame in frames:
                flow.run(frame)
            fates.add(flow.counted() - before)
        assert fates == {0, 9}


@pytest.mark.root
@pytest.mark.parametrize("how", ["2", "p=1", "flow=1/1"])
def test_every_kind_of_packet_is_a_packet(how: str) -> None:
    with loaded(f"(device,tap0) -> (sampler,{how}) -> (packetcount)") as (flow,):
        frames = [*everywhere(17, udp(1, 2)).values(), bytes(14), ether(0x86DD, ipv6(17, udp(1, 2)))]
        for frame in frames:
            assert flow.run(frame) == frame
        assert flow.counted() == (len(frames) if "1" in how else len(frames) // 2)


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    frames = numbered(10)
    with live(network, "(device,tap0) -> (sampler as s,4) -> (grab)") as flow:
        network.send(frames)
        assert received(flow) == frames[::4]
        flow.node("s").mbuf.view("u4")[:, 0] = 1
        flow.activate()
        network.send(frames)
        assert received(flow) == frames[1::4]
        assert flow.stats().ledger.sampled == 7 + 7


@pytest.mark.root
def test_conversations_on_an_interface(network: Network) -> None:
    """The hash has another seed in each process; all CPUs have the same."""
    there = [ether(0x0800, ipv4(6, tcp(port, 443))) for port in range(1_000, 1_200)]
    back = [ether(0x0800, ipv4(6, tcp(443, port), "10.0.0.2", "10.0.0.1"), BOB, ALICE) for port in range(1_000, 1_200)]
    with live(network, "(device,tap0) -> (sampler,flow=1/4) -> (grab)") as flow:
        send_at_once(network, {CPUS[0]: there, CPUS[-1]: back} if len(CPUS) > 1 else {CPUS[0]: there + back})
        frames = set(received(flow))
    kept = [one in frames for one in there]
    assert kept == [one in frames for one in back]
    assert 10 < sum(kept) < 110
