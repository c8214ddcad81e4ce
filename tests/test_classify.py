"""`classify`: a field of each packet as its result, on which edges select, and which records carry."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.classify import FIELDS, Classify
from ffpf_bpf.graph.effect import NO_RESULT
from ffpf_bpf.graph.parser import parse
from tests.corpus.packets import ALICE, BOB, ether, ipv4, ipv6, packets, sctp, tcp, udp, vlan
from tests.dissection import NO_VLAN, Headers, dissect, flow_hash
from tests.network import Network
from tests.nodes import CPUS, assert_forms, assert_round_trip, everywhere, live, nowhere, refusal, send_at_once
from tests.segment import SEED, LoadedFlow, loaded


@pytest.mark.parametrize("field", FIELDS[:-1])
def test_text_and_python_of_fields(field: str) -> None:
    assert_forms(f"(Classify,{field.upper()})", Classify(field), f"(classify,{field})", f"classify('{field}')")
    assert_forms(f'(classify," {field} ")', Classify(f" {field}"), f"(classify,{field})", f"classify('{field}')")


def test_text_and_python_of_flows() -> None:
    for parts in (1, 16, 65_536):
        node = Classify("flow", parts)
        assert_forms(f"(classify,flow={parts})", node, f"(classify,flow={parts})", f"classify('flow', parts={parts})")
    assert Classify("flow", parts=3) == Classify("FLOW", 3)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(classify)", "unknown field ``"),
        ("(classify,port)", "unknown field `port`"),
        ("(classify,dport sport)", "unknown field `dport sport`"),
        ("(classify,flow)", "`flow` in 0 parts"),
        ("(classify,flow=0)", "`flow` in 0 parts"),
        ("(classify,flow=65537)", "`flow` in 65537 parts"),
        ("(classify,flow=many)", "`many` is not a number of parts"),
        ("(classify,flow=-1)", "`-1` is not a number of parts"),
        ("(classify,flow=)", "no number of parts"),
        ("(classify,dport=16)", "`dport` in 16 parts"),
        ("(classify,flows=16)", "unknown field `flows`"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((80,), "80 is no text"),
        (("flow", 1.5), "1.5 is no whole number"),
        (("flow", -1), "`flow` in -1 parts"),
        (("ttl", 1), "`ttl` in 1 parts"),
        (("flow",), "`flow` in 0 parts"),
        (("flow=4",), "unknown field `flow=4`"),
    ],
)
def test_refused_in_python(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Classify(*arguments)  # type: ignore[arg-type]
    assert error.value.message == message
    assert "flow" not in message or "in Python `classify('flow', parts=" in error.value.help


@given(st.integers(1, 65_536))
def test_every_node_is_read_as_it_is_printed(parts: int) -> None:
    assert_round_trip(Classify("flow", parts))


def test_the_docstring_s_example() -> None:
    from ffpf_bpf import bytecount, classify, grab, packetcount

    written = parse("(classify,dport) -80-> (grab) | -443,8000..8080-> (bytecount) | -*-> (packetcount)")
    assert written == classify("dport").on({80: grab(), (443, range(8000, 8081)): bytecount(), "*": packetcount()})


FLOW_PARTS = 1_000
MODEL: dict[str, Callable[[Headers, bytes], int]] = {
    "dport": lambda h, _: h.dport if h.ports else NO_RESULT,
    "sport": lambda h, _: h.sport if h.ports else NO_RESULT,
    "proto": lambda h, _: h.protocol if h.version else NO_RESULT,
    "ethertype": lambda h, _: h.ethertype,
    "vlan": lambda h, _: h.vlan if h.vlan != NO_VLAN else NO_RESULT,
    "version": lambda h, _: h.version or NO_RESULT,
    "dscp": lambda h, _: h.traffic >> 2 if h.version else NO_RESULT,
    "ttl": lambda h, _: h.ttl if h.version else NO_RESULT,
    "tcpflags": lambda h, _: h.tcp_flags if h.tcp else NO_RESULT,
    "length": lambda _, frame: len(frame),
    "flow": lambda _, frame: (flow_hash(frame, SEED) >> 32) * FLOW_PARTS >> 32,
}


def results(flow: LoadedFlow) -> list[int]:
    """The results in the records of a flow."""
    return [int(result) for batch in flow.batches() for result in batch.results]


def nodes_of(field: str) -> str:
    return f"(classify,{field}={FLOW_PARTS})" if field == "flow" else f"(classify,{field})"


def test_the_model_knows_every_field() -> None:
    assert tuple(MODEL) == FIELDS


@pytest.mark.root
def test_every_field_of_every_packet() -> None:
    frames = [*packets(14)]
    for protocol, segment in ((6, tcp(1, 65_535, flags=0x12)), (17, udp(0, 7)), (132, sctp(9, 10)), (1, bytes(8))):
        frames += [*everywhere(protocol, segment).values(), *nowhere(protocol, segment).values()]
    frames += [
        ether(0x8100, vlan(0xFFFF, 0x0800, ipv4(6, tcp(1, 2), ttl=255, tos=255))),
        ether(0x86DD, ipv6(6, b"", hops=0)),
    ]
    expressions = [f"(device,tap0) -> {nodes_of(field)} -> (grab,snaplen=14)" for field in MODEL]
    with loaded(*expressions) as flows:
        for frame in frames:
            assert flows[0].run(frame) == frame
            found = dissect(frame)
            for (field, model), flow in zip(MODEL.items(), flows, strict=True):
                assert results(flow) == [model(found, frame)], (field, frame.hex())
        assert {flow.statistics().ledger.delivered for flow in flows} == {len(frames)}, "it passes every packet on"


@pytest.mark.root
def test_edges_lead_where_the_result_says() -> None:
    """Each edge alone, ranges, both ends of them, and what has no result."""
    expression = (
        "(device,tap0) -> (classify,dport) -80-> (packetcount as web) | -0,443,8000..8002-> (packetcount as more)"
        " | -65535-> (packetcount as last) | -*-> (packetcount as others)"
    )
    expected = {
        "web": [80],
        "more": [0, 443, 8000, 8001, 8002],
        "last": [65_535],
        "others": [1, 79, 81, 7999, 8003, 65_534],
    }
    with loaded(expression, "(device,tap0) -> (classify,dport) -80..443-> (packetcount)") as (flow, narrow):

        def goes_to(frame: bytes) -> list[str]:
            before = [flow.mbuf(name).view("u8")[0, 0].item() for name in expected]
            flow.run(frame)
            after = [flow.mbuf(name).view("u8")[0, 0].item() for name in expected]
            return [name for name, old, new in zip(expected, before, after, strict=True) if new > old]

        for name, ports in expected.items():
            for port in ports:
                for frame in everywhere(17, udp(80, port)).values():
                    assert goes_to(frame) == [name], port
        for frame in nowhere(17, udp(80, 80)).values():
            assert goes_to(frame) == ["others"], "no result"
        ledger = narrow.statistics().ledger
        assert ledger.counted == 8 * len([port for ports in expected.values() for port in ports if 80 <= port <= 443])
        assert ledger.counted + ledger.filtered == ledger.seen, "what no edge takes is filtered"
        assert flow.statistics().node("classify1").packets_out == flow.statistics().ledger.seen


@pytest.mark.root
@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 300), min_size=2, max_size=24, unique=True).map(sorted),
    st.booleans(),
    st.lists(st.integers(14, 310), max_size=30),
)
def test_random_ranges_of_lengths(bounds: list[int], others: bool, lengths: list[int]) -> None:
    """One case of every second range between the bounds, a second one of the rest."""
    ranges = [range(low, high) for low, high in itertools.pairwise(bounds)]
    from ffpf_bpf import classify, device, grab, packetcount

    cases = {tuple(ranges[::2]): packetcount(name="a")}
    if ranges[1::2]:
        cases[tuple(ranges[1::2])] = packetcount(name="b")
    if others:
        cases["*"] = grab(snaplen=14)
    counts = {"a": 0, "b": 0}
    rest = []
    for length in lengths:
        place = next((place for place, each in enumerate(ranges) if length in each), None)
        if place is None:
            rest.append(length)
        else:
            counts["ab"[place % 2]] += 1
    with loaded(device("tap0") >> classify("length").on(cases)) as (flow,):
        for length in lengths:
            flow.run(bytes(length))
        statistics = flow.statistics()
        if others:
            assert results(flow) == rest
    for node in statistics.nodes:
        if node.id in counts:
            assert node.counts == {"packets": counts[node.id]}
    assert (statistics.ledger.delivered if others else statistics.ledger.filtered) == len(rest)


@pytest.mark.root
def test_a_record_has_the_result_of_the_last_node_on_its_way() -> None:
    web, dns = ether(0x0800, ipv4(6, tcp(9, 80), ttl=3)), ether(0x0800, ipv4(17, udp(9, 53), ttl=4))
    lost = ether(0x0806, bytes(46))
    expression = "(device,tap0) -> (classify,dport) -80-> ((classify,ttl) -> (grab)) | -*-> (grab)"
    with loaded(expression, "(device,tap0) -> (grab) | ((classify,dport) -80-> (packetcount))") as (flow, other):
        for frame in (web, dns, lost):
            flow.run(frame)
        assert results(flow) == [3, 53, NO_RESULT]
        assert results(other) == [80, 53, NO_RESULT], "it went that way, too"
    with loaded("(device,tap0) -> (classify,dport) -> (classify,vlan) -> (grab)") as (flow,):
        flow.run(web)
        assert results(flow) == [NO_RESULT], "the last one has no result"
    with loaded("(device,tap0) -> (bpf,udp) & (classify,ttl) | !(classify,dport) -> (grab)") as (flow,):
        for frame in (web, dns, lost):
            flow.run(frame)
        assert results(flow) == [53], "a NOT of what passes everything passes nothing, but it asked"


@pytest.mark.root
def test_parts_of_flows_hold_both_directions_and_spread() -> None:
    with loaded("(device,tap0) -> (classify,flow=8) -> (grab)") as (flow,):
        counted = [0] * 8
        for port in range(1_000, 2_600):
            flow.run(ether(0x0800, ipv4(6, tcp(port, 80)), ALICE, BOB))
            flow.run(ether(0x0800, ipv4(6, tcp(80, port), "10.0.0.2", "10.0.0.1"), BOB, ALICE))
            here, there = results(flow)
            assert here == there
            counted[here] += 1
    assert sum((count - 200) ** 2 / 200 for count in counted) < 40, counted


@pytest.mark.root
@pytest.mark.parametrize("parts", [1, 65_536])
def test_the_fewest_and_the_most_parts(parts: int) -> None:
    with loaded(f"(device,tap0) -> (classify,flow={parts}) -> (grab)") as (flow,):
        frames = packets(15)[:200]
        for frame in frames:
            flow.run(frame)
        assert results(flow) == [(flow_hash(frame, SEED) >> 32) * parts >> 32 for frame in frames]


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    frames = [ether(0x0800, ipv4(17, udp(1, port))) for port in (80, 443, 53)]
    expression = (
        "(device,tap0) -> (classify,dport) -80-> (grab) | -400..500-> (packetcount as more) | -*-> (bytecount as rest)"
    )
    with live(network, expression) as flow:
        network.send([*frames, ether(0x0806, bytes(46))])
        send_at_once(network, dict.fromkeys(CPUS, frames * 100))
        flow.pause(wait=True)
        packets = [packet for batch in flow.poll() for packet in batch.packets(flow.interfaces)]
        statistics = flow.stats()
    times = 1 + 100 * len(CPUS)
    assert [(packet.data, packet.result) for packet in packets] == [(frames[0], 80)] * times
    assert statistics.node("more").counts == {"packets": times}
    assert statistics.node("rest").counts == {"bytes": len(frames[2]) * times + 60}
