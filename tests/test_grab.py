"""`grab`: the first bytes of each packet, once for all the grabs it reaches, at the largest of their snap lengths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf import compiler
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.grab import Grab
from tests.corpus.packets import ether, ipv4, packets, udp
from tests.network import Network
from tests.nodes import CPUS, assert_forms, assert_round_trip, grabbed, live, received, refusal, send_at_once
from tests.segment import loaded


@pytest.mark.parametrize(
    ("written", "node", "shown_text", "shown_python"),
    [
        ("(grab)", Grab(), "(grab)", "grab()"),
        ("(GRAB,0)", Grab(0), "(grab)", "grab()"),
        ("(grab,96)", Grab(96), "(grab,snaplen=96)", "grab(snaplen=96)"),
        ("(grab,snaplen=65535)", Grab(snaplen=65_535), "(grab,snaplen=65535)", "grab(snaplen=65535)"),
    ],
)
def test_text_and_python(written: str, node: Grab, shown_text: str, shown_python: str) -> None:
    assert_forms(written, node, shown_text, shown_python)


@given(st.integers(0, 65_535))
def test_every_node_is_read_as_it_is_printed(snaplen: int) -> None:
    assert_round_trip(Grab(snaplen))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(grab,x)", "`x` is not a snaplen"),
        ("(grab,-1)", "`-1` is not a snaplen"),
        ("(grab,snaplen=)", "`snaplen=` is not a snaplen"),
        ("(grab,snaplen=1.5)", "`snaplen=1.5` is not a snaplen"),
        ("(grab,length=96)", "`length=96` is not a snaplen"),
        ("(grab,65536)", "a snaplen of 65536 bytes"),
        ("(grab,100000)", "`100000` is not a snaplen"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.parametrize(
    ("snaplen", "message"),
    [(-1, "a snaplen of -1 bytes"), ("96", "'96' is no whole number"), (True, "True is no whole number")],
)
def test_refused_in_python(snaplen: object, message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Grab(snaplen)  # type: ignore[arg-type]
    assert error.value.message == message


@pytest.mark.root
@pytest.mark.parametrize("by", ["helper", "words"])
@settings(max_examples=40)
@given(snaplen=st.integers(1, 2_000), lengths=st.lists(st.integers(14, 3_400), min_size=1, max_size=12))
def test_so_many_bytes_and_the_length_on_the_wire(by: str, snaplen: int, lengths: list[int]) -> None:
    frames = [bytes(range(256)) * 14 for _ in lengths]
    frames = [frame[:length] for frame, length in zip(frames, lengths, strict=True)]
    hook = compiler.XDP if by == "helper" else compiler.XDP_BY_WORDS
    with loaded(f"(device,tap0) -> (grab,snaplen={snaplen})", hook=hook) as (flow,):
        for frame in frames:
            assert flow.run(frame) == frame
        found = [(packet.data, packet.length) for batch in flow.batches() for packet in batch.packets(("tap0",))]
    assert found == [(frame[:snaplen], len(frame)) for frame in frames]


@pytest.mark.root
def test_whole_packets_of_every_kind() -> None:
    with loaded("(device,tap0) -> (grab)", snaplen=65_535) as (flow,):
        for frame in packets(17)[::3]:
            flow.run(frame)
            assert grabbed(flow) == [frame]


@pytest.mark.root
@pytest.mark.parametrize(
    "hook",
    [
        pytest.param(compiler.XDP, id="by helper", marks=pytest.mark.feature("copy by helper")),
        pytest.param(compiler.XDP_BY_WORDS, id="by words"),
    ],
)
def test_copies_are_as_long_as_the_longest_frames(hook: compiler.Hook) -> None:
    """By words as on kernels before 5.18: in pieces of 8 to 1 bytes, up to the end of the packet."""
    frame = bytes(range(256)) * 14
    for snaplen in (1, 7, 96, 9_216):
        with loaded("(device,tap0) -> (grab)", snaplen=snaplen, hook=hook) as (flow,):
            for length in (14, 15, 16, 17, 18, 19, 20, 21, 60, 95, 96, 97, 1_514, 3_400):
                assert flow.run(frame[:length]) == frame[:length]
                assert grabbed(flow) == [frame[: min(length, snaplen)]]


@pytest.mark.root
def test_several_grabs_are_one_record() -> None:
    small, large = ether(0x0800, ipv4(17, udp(1, 53, bytes(200)))), ether(0x0806, bytes(300))
    expression = (
        '(device,tap0) -> (grab,snaplen=20) | ((bpf,udp) -> (grab,snaplen=90)) | ((bpf,"port 53") -> (grab,snaplen=50))'
    )
    with loaded(expression) as (flow,):
        for frame in (small, large):
            flow.run(frame)
        assert grabbed(flow) == [small[:90], large[:20]]
        statistics = flow.statistics()
    assert statistics.ledger.delivered == 2
    assert [node.packets_in for node in statistics.nodes if node.class_name == "grab"] == [2, 1, 1]


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    frames = [ether(0x0800, ipv4(17, udp(1, 2, bytes(number)), number=number)) for number in range(100)]
    with live(network, "(device,tap0) -> (grab,snaplen=60)") as flow:
        network.send(frames)
        assert received(flow) == [frame[:60] for frame in frames]
        flow.activate()
        send_at_once(network, {cpu: frames for cpu in CPUS})  # noqa: C420
        assert sorted(received(flow)) == sorted([frame[:60] for frame in frames] * len(CPUS))
