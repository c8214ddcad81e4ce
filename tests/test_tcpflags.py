"""`tcpflags`: TCP segments by their flags, wherever they are, and nothing that only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.tcpflags import FLAGS, Tcpflags
from tests.corpus.packets import ether, ipv4, ipv6, packets, tcp, udp
from tests.dissection import dissect
from tests.network import Network
from tests.nodes import (
    CPUS,
    assert_forms,
    assert_round_trip,
    everywhere,
    live,
    nowhere,
    received,
    refusal,
    send_at_once,
)
from tests.segment import loaded

SYN, ACK, RST = 2, 16, 4


@pytest.mark.parametrize(
    ("written", "node", "shown_text", "shown_python"),
    [
        ("(tcpflags,syn)", Tcpflags("syn"), "(tcpflags,syn)", "tcpflags('syn')"),
        ('(TCPFLAGS," SYN   !Ack ")', Tcpflags("syn !ack"), '(tcpflags,"syn !ack")', "tcpflags('syn !ack')"),
        ("(tcpflags,syn|rst)", Tcpflags("syn | rst"), '(tcpflags,"syn | rst")', "tcpflags('syn | rst')"),
        (
            '(tcpflags,"fin|syn !ack\n|rst|psh psh")',
            Tcpflags("fin | syn !ack | rst | psh psh"),
            '(tcpflags,"fin | syn !ack | rst | psh psh")',
            "tcpflags('fin | syn !ack | rst | psh psh')",
        ),
        ("(tcpflags,!urg)", Tcpflags("!urg"), '(tcpflags,"!urg")', "tcpflags('!urg')"),
    ],
)
def test_text_and_python(written: str, node: Tcpflags, shown_text: str, shown_python: str) -> None:
    assert_forms(written, node, shown_text, shown_python)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(tcpflags)", "no flag"),
        ('(tcpflags,"syn | ")', "no flag"),
        ('(tcpflags,"|")', "no flag"),
        ("(tcpflags,sin)", "`sin` is no TCP flag"),
        ("(tcpflags,push)", "`push` is no TCP flag"),
        ('(tcpflags,"syn, ack")', "`syn,` is no TCP flag"),
        ('(tcpflags,"! ack")', "`!` is no TCP flag"),
        ('(tcpflags,"!!ack")', "`!!ack` is no TCP flag"),
        ("(tcpflags,0x12)", "`0x12` is no TCP flag"),
        ('(tcpflags,"syn !syn")', "`syn` cannot be set and not set"),
        ('(tcpflags,"ack | !rst syn rst")', "`rst` cannot be set and not set"),
        ("(tcpflags,syn|syn|syn|syn|syn)", "5 ways"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.parametrize("value", [2, None, b"syn"])
def test_refused_in_python(value: object) -> None:
    with pytest.raises(ExpressionError) as error:
        Tcpflags(value)  # type: ignore[arg-type]
    assert error.value.message == f"{value!r} is no text"


WAYS = st.lists(
    st.dictionaries(st.sampled_from(sorted(FLAGS)), st.booleans(), min_size=1, max_size=4), min_size=1, max_size=4
)


def written(ways: list[dict[str, bool]]) -> str:
    return " | ".join(" ".join(("" if is_set else "!") + flag for flag, is_set in way.items()) for way in ways)


def matches(ways: list[dict[str, bool]], flags: int) -> bool:
    return any(all(bool(flags & FLAGS[flag]) == is_set for flag, is_set in way.items()) for way in ways)


def test_flags_are_those_of_rfc_9293() -> None:
    from scapy.layers.inet import TCP

    for name, bit in FLAGS.items():
        assert TCP(flags=name[0].upper() if name != "ece" else "E").flags.value == bit


@given(WAYS)
def test_every_node_is_read_as_it_is_printed(ways: list[dict[str, bool]]) -> None:
    assert_round_trip(Tcpflags(written(ways)))


@pytest.mark.root
@settings(max_examples=25)
@given(st.lists(WAYS, min_size=1, max_size=8))
def test_every_combination_of_flags(several: list[list[dict[str, bool]]]) -> None:
    with loaded(*(f'(device,tap0) -> (tcpflags,"{written(ways)}") -> (packetcount)' for ways in several)) as flows:
        before = [0] * len(several)
        for flags in range(256):
            flows[0].run(ether(0x0800, ipv4(6, tcp(80, 1, flags=flags))))
            for place, (ways, flow) in enumerate(zip(several, flows, strict=True)):
                assert flow.counted() - before[place] == matches(ways, flags), (written(ways), flags)
                before[place] += matches(ways, flags)


@pytest.mark.root
def test_wherever_the_segment_is_and_whatever_the_packet() -> None:
    """Against the model's dissector, over the whole corpus as well."""
    ways = [{"syn": True, "ack": False}, {"rst": True}]
    with loaded(f'(device,tap0) -> (tcpflags,"{written(ways)}") -> (packetcount)') as (flow,):

        def passes(frame: bytes) -> bool:
            before = flow.counted()
            assert flow.run(frame) == frame
            return flow.counted() > before

        for flags, is_wanted in ((SYN, True), (SYN | ACK, False), (SYN | ACK | RST, True), (ACK, False), (0xC2, True)):
            for name, frame in everywhere(6, tcp(1, 2, b"data", flags=flags, words=6)).items():
                assert passes(frame) == is_wanted, (name, flags)
        for name, frame in nowhere(6, tcp(1, 2, flags=SYN)).items():
            assert not passes(frame), name
        for name, frame in {
            **everywhere(17, udp(1, 2, bytes(5) + b"\x02" * 9)),
            **everywhere(132, tcp(1, 2, flags=SYN)),
        }.items():
            assert not passes(frame), name
        whole = ether(0x0800, ipv4(6, tcp(1, 2, flags=SYN)))
        whole6 = ether(0x86DD, ipv6(6, tcp(1, 2, flags=SYN)))
        for frame, size in ((whole, 54), (whole6, 74)):
            assert [passes(frame[:length]) for length in range(14, size + 1)] == [False] * (size - 14) + [True]
        for frame in packets(13):
            found = dissect(frame)
            assert passes(frame) == bool(found.tcp and matches(ways, found.tcp_flags)), frame.hex()
        assert flow.statistics().ledger.sampled == flow.statistics().ledger.limited == 0


@pytest.mark.root
def test_inverted_passes_what_is_no_tcp_too() -> None:
    with loaded("(device,tap0) -> !(tcpflags,syn) -> (packetcount)") as (flow,):
        for frame in (ether(0x0800, ipv4(6, tcp(1, 2, flags=SYN))), ether(0x0800, ipv4(17, udp(1, 2))), bytes(14)):
            flow.run(frame)
        assert flow.counted() == 2


# As CONTRIBUTING.md shows it.
# fmt: off
@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    frames = [ether(0x0800, ipv4(6, tcp(port, 443, flags=flags))) for port, flags in enumerate((2, 18, 16, 24, 17, 4, 194))]
    with live(network, '(device,tap0) -> (tcpflags,"syn !ack | rst")') as flow:
        network.send([*frames, ether(0x0800, ipv4(17, udp(1, 2)))])
        assert received(flow) == [frames[0], frames[5], frames[6]]
        flow.activate()
        send_at_once(network, dict.fromkeys(CPUS, frames * 20))
        assert len(received(flow)) == 60 * len(CPUS)
        assert flow.stats().ledger.filtered == 5 + 80 * len(CPUS)
