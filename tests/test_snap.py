"""`snap`: headers and so many bytes of payload, of the record and never of the packet."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.flow import Flow
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.snap import Snap
from ffpf_bpf.graph.effect import Depth, Transform
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.printer import python, text
from tests.corpus.packets import (
    arp,
    authentication,
    ether,
    extension,
    icmp,
    ipv4,
    ipv6,
    packets,
    sctp,
    tcp,
    udp,
    vlan,
)
from tests.dissection import dissect
from tests.network import Network
from tests.segment import LoadedFlow, loaded

SEED = 77
BODY = bytes(range(200))
LATER_FRAGMENT6 = bytes((6, 0, 0, 8)) + bytes(4)


def shown(frame: bytes, payload: int, snaplen: int = 65_535) -> bytes:
    return frame[: min(dissect(frame).payload + payload, snaplen)]


def records(flow: LoadedFlow, frame: bytes) -> list[tuple[bytes, int]]:
    """What the flow shows of a frame, and the length it tells."""
    assert flow.run(frame) == frame, "the packet was changed"
    return [(packet.data, packet.length) for batch in flow.batches() for packet in batch.packets(("tap0",))]


@pytest.mark.parametrize(
    ("written", "payload", "printed", "in_python"),
    [
        ("(snap)", 0, "(snap)", "snap()"),
        ("(Snap,headers)", 0, "(snap)", "snap()"),
        ("(snap,0)", 0, "(snap)", "snap()"),
        ("(snap,64)", 64, "(snap,payload=64)", "snap(payload=64)"),
        ("(snap,headers+64)", 64, "(snap,payload=64)", "snap(payload=64)"),
        ("(snap,payload=65535)", 65_535, "(snap,payload=65535)", "snap(payload=65535)"),
        ("(snap as short,payload=1)", 1, "(snap as short,payload=1)", "snap(payload=1, name='short')"),
    ],
)
def test_text_and_python(written: str, payload: int, printed: str, in_python: str) -> None:
    node = parse(written)
    assert isinstance(node, Snap)
    assert node.payload == payload
    assert (text(node), python(node)) == (printed, in_python)
    assert parse(printed) == node == eval(in_python, {"snap": Snap})
    leaves = Depth.ALL if payload else Depth.HEADERS
    assert node.effect == Transform("snap", keep="ffpf_snap_keep", arguments=(payload,), leaves=leaves)


@pytest.mark.parametrize(
    ("written", "message", "help"),
    [
        ("(snap,-1)", "`-1` is not a number of bytes", "`(snap)` shows headers only, `(snap,64)` 64 bytes of payload as well"),
        ("(snap,all)", "`all` is not a number of bytes", "`(snap)` shows headers only, `(snap,64)` 64 bytes of payload as well"),
        ("(snap,headers+)", "no number of bytes", "`(snap)` shows headers only, `(snap,64)` 64 bytes of payload as well"),
        ("(snap,snaplen=9)", "`snaplen=9` is not a number of bytes", "`(snap)` shows headers only, `(snap,64)` 64 bytes of payload as well"),
        ("(snap,65536)", "65536 bytes of payload", "0 to 65535 bytes"),
        ("(device,a) -> !(snap)", "`!` stands before `(snap)`, which does not decide", "`!` takes filters only, as in `!(bpf,udp)`"),
        (
            "(device,a) -> ((bpf,tcp) -> (snap)) | (bpf,udp) -> (grab)",
            "the ways to this sink differ in what they show (`snap1`)",
            "put the transform behind the branches, or end each branch in a sink of its own",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(written: str, message: str, help: str) -> None:
    with pytest.raises(ExpressionError) as error:
        build(parse(written))
    assert (error.value.message, error.value.help) == (message, help)


@pytest.mark.parametrize("payload", ["64", True, 1.5, None])
def test_what_is_no_number(payload: object) -> None:
    with pytest.raises(ExpressionError, match="is no whole number"):
        Snap(payload)  # type: ignore[arg-type]


def test_the_example_is_a_flow() -> None:
    build(parse(Snap.example))


def test_a_policy_that_asks_for_it_means_headers() -> None:
    assert Snap().serves_policy
    assert not Snap(1).serves_policy


HEADER_BYTES = {
    "tcp": (ether(0x0800, ipv4(6, tcp(1, 80, BODY))), 54),
    "tcp with options": (ether(0x0800, ipv4(6, tcp(1, 80, BODY, words=15))), 94),
    "ip options": (ether(0x0800, ipv4(6, tcp(1, 80, BODY), words=15)), 94),
    "udp": (ether(0x0800, ipv4(17, udp(1, 53, BODY))), 42),
    "sctp": (ether(0x0800, ipv4(132, sctp(1, 2))), 46),
    "icmp": (ether(0x0800, ipv4(1, icmp(8))), 42),
    "first fragment": (ether(0x0800, ipv4(17, udp(1, 53, BODY), fragment=0x2000)), 42),
    "later fragment": (ether(0x0800, ipv4(17, udp(1, 53, BODY), fragment=0x00B9)), 34),
    "other protocol": (ether(0x0800, ipv4(47, BODY)), 34),
    "vlan": (ether(0x8100, vlan(5, 0x0800, ipv4(17, udp(1, 53, BODY)))), 46),
    "qinq": (ether(0x88A8, vlan(5, 0x8100, vlan(6, 0x0800, ipv4(17, udp(1, 53, BODY))))), 50),
    "three tags": (ether(0x88A8, vlan(5, 0x8100, vlan(6, 0x8100, vlan(7, 0x0800, ipv4(17, udp(1, 53, BODY)))))), 22),
    "ipv6": (ether(0x86DD, ipv6(6, tcp(1, 80, BODY))), 74),
    "ipv6 extensions": (ether(0x86DD, ipv6(0, extension(51, 2) + authentication(17) + udp(1, 53, BODY))), 110),
    "ipv6 later fragment": (ether(0x86DD, ipv6(44, LATER_FRAGMENT6 + BODY)), 62),
    "arp": (ether(0x0806, arp(1)), 14),
    "cut tcp": (ether(0x0800, ipv4(6, tcp(1, 80)))[:45], 45),
    "cut ip": (ether(0x0800, ipv4(6, tcp(1, 80)))[:33], 14),
}


@pytest.mark.root
@pytest.mark.parametrize("payload", [0, 1, 7])
def test_headers_end_where_payload_begins(payload: int) -> None:
    with loaded(f"(device,tap0) -> (snap,{payload}) -> (grab,snaplen=256)") as (flow,):
        for name, (frame, header_bytes) in HEADER_BYTES.items():
            assert records(flow, frame) == [(frame[: header_bytes + payload], len(frame))], name


@pytest.mark.root
def test_ordinary_rare_broken_and_random_frames() -> None:
    with loaded(*(f"(device,tap0) -> (snap,{payload}) -> (grab,snaplen=4096)" for payload in (0, 64, 65_535))) as flows:
        for frame in packets(SEED):
            assert flows[0].run(frame) == frame, "the packet was changed"
            for flow, payload in zip(flows, (0, 64, 65_535), strict=True):
                data = [packet.data for batch in flow.batches() for packet in batch.packets(("tap0",))]
                assert data == [shown(frame, payload)], frame.hex()


@pytest.mark.root
def test_random_frames() -> None:
    with loaded("(device,tap0) -> (snap,9) -> (grab,snaplen=256)") as (flow,):
        heads = st.sampled_from([frame for frame, _ in HEADER_BYTES.values()])

        @settings(max_examples=300)
        @given(heads, st.lists(st.tuples(st.integers(12, 90), st.integers(0, 255)), max_size=4), st.integers(14, 400))
        def check(frame: bytes, changes: list[tuple[int, int]], length: int) -> None:
            changed = bytearray(frame)
            for at, value in changes:
                changed[at % len(changed)] = value
            made = bytes(changed[:length])
            assert records(flow, made) == [(shown(made, 9, 256), len(made))]

        check()


@pytest.mark.root
@pytest.mark.parametrize("snaplen", [1, 20, 54, 60, 100])
def test_the_smaller_of_snap_and_snaplen_counts(snaplen: int) -> None:
    frame = ether(0x0800, ipv4(6, tcp(1, 80, BODY)))
    with loaded(f"(device,tap0) -> (snap,10) -> (grab,snaplen={snaplen})") as (flow,):
        assert records(flow, frame) == [(frame[: min(snaplen, 64)], len(frame))]


@pytest.mark.root
def test_of_several_in_a_row_the_shortest_counts() -> None:
    frame = ether(0x0800, ipv4(6, tcp(1, 80, BODY)))
    for order in ("(snap,50) -> (snap,5) -> (snap,30)", "(snap,5) & (snap,50)"):
        with loaded(f"(device,tap0) -> {order} -> (grab)", snaplen=256) as (flow,):
            assert records(flow, frame) == [(frame[:59], len(frame))]


@pytest.mark.root
def test_sinks_with_and_without_it_get_records_of_their_own() -> None:
    frame = ether(0x0800, ipv4(6, tcp(1, 80, BODY)))
    expression = "(device,tap0) -> (grab,snaplen=100) | ((snap) -> (grab)) | ((snap,3) -> (bpf,udp) -> (grab))"
    with loaded(expression, snaplen=256) as (flow,):
        assert sorted(records(flow, frame), key=lambda record: len(record[0])) == [
            (frame[:54], len(frame)),
            (frame[:100], len(frame)),
        ]
        ledger = flow.statistics().ledger
        assert (ledger.seen, ledger.delivered) == (1, 1)


@pytest.mark.root
def test_it_stops_no_packet_and_functions_see_whole_packets() -> None:
    frame = ether(0x0800, ipv4(6, tcp(1, 80, BODY)))
    with loaded("(device,tap0) -> (snap) -> (bytecount)") as (flow,):
        assert flow.run(frame) == frame
        (count,) = [node.counts for node in flow.statistics().nodes if node.class_name == "bytecount"]
        assert count == {"bytes": len(frame)}


@pytest.mark.root
def test_on_live_traffic(network: Network) -> None:
    frames = [ether(0x0800, ipv4(17, udp(1, 53, bytes([number]) * 40))) for number in range(8)]
    with network.enter(), Flow.create() as flow:
        flow.populate('(device,tap0) -> (bpf,"udp port 53") -> (snap,2) -> (grab)').instantiate().activate()
        network.send([*frames, ether(0x0806, arp(1))])
        flow.pause(wait=True)
        found = [packet for batch in flow.poll() for packet in batch.packets(flow.interfaces)]
    assert [packet.data for packet in found] == list(map(partial(shown, payload=2), frames))
    assert {packet.length for packet in found} == {len(frames[0])}
