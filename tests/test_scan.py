"""`scan`: the pattern that a plain search finds first, in the payload and nowhere else, whatever the packet."""

from __future__ import annotations

import json
import random
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.flow import Flow
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.packetcount import Packetcount
from ffpf_bpf.graph.classes.scan import Scan
from ffpf_bpf.graph.expression import any_of
from ffpf_bpf.graph.parser import parse
from tests.corpus.packets import arp, ether, icmp, ipv4, packets, tcp, udp, vlan
from tests.dissection import dissect
from tests.network import Network, two_namespaces
from tests.nodes import (
    CPUS,
    assert_forms,
    assert_round_trip,
    everywhere,
    grabbed,
    live,
    received,
    refusal,
    send_at_once,
)
from tests.patterns import first, realistic, scattering, some_patterns
from tests.segment import LoadedFlow, loaded

TAP = Device("tap0")
LONGEST_SCANNED = 65_280


def in_udp(payload: bytes) -> bytes:
    return ether(0x0800, ipv4(17, udp(1, 2, payload)))


def found(flow: LoadedFlow, frame: bytes) -> int | None:
    """The number of the pattern that the flow's scan found in a packet: what its hits say, and what it lets through."""
    before = hits(flow)
    passed = flow.counted()
    assert flow.run(frame) == frame
    new = [number for number, (old, now) in enumerate(zip(before, hits(flow), strict=True), 1) if now > old]
    assert len(new) == flow.counted() - passed <= 1
    return new[0] if new else None


def hits(flow: LoadedFlow) -> list[int]:
    node = next(leaf.node for _, leaf in flow.graph.leaves() if isinstance(leaf.node, Scan))
    words = flow.mbuf(node.name or "scan1").view("u8").sum(axis=0)
    return [int(word) for word in words[5 : 5 + len(node.patterns)]]


@pytest.mark.parametrize(
    ("written", "node", "shown_text", "shown_python"),
    [
        ("(scan,attack)", Scan(["attack"]), "(scan,attack)", "scan(['attack'])"),
        ("(SCAN,a|b)", Scan([b"a", "b"]), '(scan,"a|b")', "scan(['a', 'b'])"),
        ('(scan," GET /, ")', Scan(" GET /, "), '(scan," GET /, ")', "scan([' GET /, '])"),
        (r'(scan,"\x90\xFFz|a\|b")', Scan([b"\x90\xffz", "a|b"]), r'(scan,"\\x90\\xffz|a\\|b")', r"scan([b'\x90\xffz', 'a|b'])"),
        (r'(scan,"\\\\x41|\"")', Scan(["\\x41", '"']), r'(scan,"\\\\x41|\"")', r"""scan(['\\x41', '"'])"""),
        ('(scan,"(?i)é|\n")', Scan(["é", "\n"], True), r'(scan,"(?i)\\xc3\\xa9|\\x0a")', r"scan([b'\xc3\xa9', b'\n'], ignore_case=True)"),
        ('(scan,"(?f)(?i)")', Scan(["(?i)"], whole_frame=True), '(scan,"(?f)(?i)")', "scan(['(?i)'], whole_frame=True)"),
        ('(scan,"(?fi)a")', Scan("(?f)a", True), '(scan,"(?if)a")', "scan(['a'], ignore_case=True, whole_frame=True)"),
        (r'(scan,"\x28?i)a")', Scan(("(?i)a",)), r'(scan,"\\x28?i)a")', "scan(['(?i)a'])"),
        ('(scan,",")', Scan([","]), '(scan,",")', "scan([','])"),
        ("(scan,(a)", Scan(b"(a"), '(scan,"(a")', "scan(['(a'])"),
    ],
)  # fmt: skip
def test_text_and_python(written: str, node: Scan, shown_text: str, shown_python: str) -> None:
    assert_forms(written, node, shown_text, shown_python)
    assert all(isinstance(pattern, bytes) for pattern in node.patterns)
    assert hash(node) == hash(parse(written))


@given(
    st.lists(st.one_of(st.binary(min_size=1, max_size=9), st.text(min_size=1, max_size=9)), min_size=1, max_size=9),
    st.booleans(),
    st.booleans(),
)
def test_every_node_is_read_as_it_is_printed(patterns: list[str | bytes], ignore_case: bool, whole_frame: bool) -> None:
    unlike = {p.lower() if ignore_case else p: p for p in (p if isinstance(p, bytes) else p.encode() for p in patterns)}
    node = Scan(tuple(unlike.values()), ignore_case, whole_frame)
    assert_round_trip(node)
    assert Scan(node.expression) == node


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(scan)", "no pattern"),
        ('(scan,"(?i)")', "no pattern"),
        ("(scan,|)", "pattern 1 is empty"),
        ("(scan,a||b)", "pattern 2 is empty"),
        ("(scan,a|b|)", "pattern 3 is empty"),
        ('(scan,"(?x)a")', "`(?x)` are no flags"),
        ('(scan,"(?)a")', "`(?)` are no flags"),
        ('(scan,"(?i")', "`(?i` are no flags"),
        (r'(scan,"\d+")', r"`\d` is no escape"),
        (r'(scan,"\x9")', r"`\x` is no escape"),
        (r'(scan,"a\\")', "`\\` is no escape"),
        ("(scan,a|b|a)", "patterns 1 and 3 are the same: `a`"),
        (r'(scan,"\x61\x00|a\x00")', r"patterns 1 and 2 are the same: `a\x00`"),
        ('(scan,"(?i)b|GET|Get")', "patterns 2 and 3 are the same: `Get`"),
        (f"(scan,a|{'b' * 256})", "pattern 2 has 256 bytes"),
        (f"(scan,{'|'.join(map(str, range(1_001)))})", "1,001 patterns"),
        ("(scan,a|b,48)", "48 bytes of memory do not suit 2 patterns"),
        ("(scan,a,40)", "40 bytes of memory do not suit a `scan`"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "no pattern"),
        ((["a", ""],), "pattern 2 is empty"),
        ((b"",), "pattern 1 is empty"),
        (({"a"},), "{'a'} is no list of patterns"),
        ((None,), "None is no list of patterns"),
        (([1],), "1 is no pattern"),
        ((["\ud800"],), "not valid UTF-8 text"),
        ((["a", b"a"],), "patterns 1 and 2 are the same: `a`"),
        ((["a"], 1), "`ignore_case` is 1, neither True nor False"),
        ((["a"], True, "f"), "`whole_frame` is 'f', neither True nor False"),
    ],
)
def test_refused_in_python(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Scan(*arguments)  # type: ignore[arg-type]
    assert (error.value.message, error.value.where) == (message, "(scan)")


def test_a_set_of_patterns_may_be_too_large() -> None:
    chance = random.Random(1)
    patterns = [chance.randbytes(70) for _ in range(1_000)]
    with pytest.raises(ExpressionError) as error:
        Scan(patterns, name="many")
    assert error.value.where == "(scan as many)"
    assert error.value.message.startswith("pattern set too large: 69,")
    assert error.value.help == "at most 65,536, one for each different beginning of a pattern"
    largest = Scan([pattern[:64] for pattern in patterns])
    assert largest.automaton.states > 63_000
    assert largest.automaton.table_bytes < 33 << 20


@pytest.mark.root
@settings(max_examples=40)
@given(some_patterns(), st.integers(0, 1 << 32))
def test_the_kernel_finds_what_a_plain_search_finds(case: tuple[tuple[bytes, ...], bool, bytes], seed: int) -> None:
    """Overlaps, prefixes and suffixes, matches at both ends and across the borders of the parts that it scans at once."""
    patterns, ignore_case, letters = case
    chance = random.Random(seed)
    scarce = bytes(byte for byte in letters if not any(byte in pattern for pattern in patterns)) or b"\x01"
    with loaded(TAP >> Scan(patterns, ignore_case) >> Packetcount()) as (flow,):
        for number in range(120):
            length = chance.choice([number, chance.randrange(300), chance.randrange(1_460)])
            payload = bytes(chance.choices(scarce if number % 4 else letters, k=length))
            if number % 4 == 1:
                place = chance.choice([0, length, chance.randrange(length + 1)])
                payload = payload[:place] + chance.choice(patterns) + payload[place:]
            assert found(flow, in_udp(payload)) == first(patterns, payload, ignore_case), payload


@pytest.mark.root
def test_a_match_anywhere_in_packets_of_any_length() -> None:
    patterns = [b"needle" * 9 + b"!", b"pin"]
    with loaded(TAP >> Scan(patterns) >> Packetcount()) as (flow,):
        for length in [*range(55, 200), 500, 1_472]:
            for place in {0, 1, length // 3 - 30, length // 2 - 20, 2 * length // 3, length - 56, length - 55} & set(
                range(length - 54)
            ):
                payload = bytes(place) + patterns[0] + bytes(length - place - 55)
                assert found(flow, in_udp(payload)) == 1, (length, place)
                assert found(flow, in_udp(payload)[:-1]) == (1 if place < length - 55 else None), (length, place)
                assert found(flow, in_udp(payload[: place + 53] + b"pin" + payload[place + 53 :])) == 2
        both = bytes(700) + b"pin" + bytes(600) + patterns[0]
        assert [found(flow, in_udp(payload)) for payload in (both, both[703:] + both[:703])] == [2, 1], (
            "which ends first"
        )
        for length in range(3, 120):
            for place in range(length - 2):
                assert found(flow, in_udp(bytes(place) + b"pin" + bytes(length - place - 3))) == 2, (length, place)
            assert found(flow, in_udp(b"pi" + bytes(length - 3) + b"n")) == (2 if length == 3 else None)


@pytest.mark.root
def test_only_the_payload_is_scanned_but_for_whole_frames() -> None:
    """Over the whole corpus, against the model's dissector: VLANs, fragments, cut headers, everything."""
    patterns = [b"\x45\x00", b"abcdefgh", b"\x00\x50", b"\x08\x00", b"\x00\x00\x00\x00\x00\x00"]
    everything = Scan(patterns, whole_frame=True)
    with loaded(TAP >> Scan(patterns) >> Packetcount(), TAP >> everything >> Packetcount()) as (payloads, frames):
        for frame in packets(19):
            before = hits(frames)
            assert found(payloads, frame) == first(patterns, frame[dissect(frame).payload :]), frame.hex()
            place = first(patterns, frame)
            expected = [hit + (number == place) for number, hit in enumerate(before, 1)]
            assert hits(frames) == expected, frame.hex()


@pytest.mark.root
def test_what_is_in_headers_is_no_payload() -> None:
    with loaded(TAP >> Scan([b"\x12\x34", b"GET"]) >> Packetcount()) as (flow,):
        for protocol, segment in ((6, tcp(0x1234, 0x1234, b"xGETx", words=7)), (17, udp(0x1234, 0x1234, b"xGETx"))):
            for name, frame in everywhere(protocol, segment).items():
                assert found(flow, frame) == 2, name
                assert found(flow, frame[:-2]) is None, name
        for protocol, segment in ((6, tcp(0x1234, 1, b"xG\0ETx", words=7)), (17, udp(0x1234, 1, b"xG\0ET"))):
            for name, frame in everywhere(protocol, segment).items():
                assert found(flow, frame) is None, name
        # Of a later fragment all behind the IP header is payload, ports or not; behind a tag the tag is none.
        assert found(flow, ether(0x0800, ipv4(17, udp(0x1234, 1, b""), fragment=0xB9))) == 1
        assert found(flow, ether(0x8100, vlan(0x234, 0x1234, b"GE"))) is None
        assert found(flow, ether(0x0800, ipv4(6, tcp(0x1234, 1, b"GET")))[:40]) is None
        assert found(flow, ether(0x0800, ipv4(1, icmp(8, number=0x1234)))) is None
        assert found(flow, ether(0x0806, arp(1) + b"GET")) == 2
        assert found(flow, ether(0x0800, ipv4(17, udp(1, 2, b"xy"))) + b"GET") == 2, "padding is scanned too"
        assert found(flow, bytes(14)) is None


@pytest.mark.root
def test_case() -> None:
    assert first([b"K"], b"\xe2\x84\xaa", True) is None, "the Kelvin sign is no letter of ASCII"
    with loaded(TAP >> Scan("(?i)Get /|[@`{") >> Packetcount(), TAP >> Scan("Get /") >> Packetcount()) as (
        either,
        exact,
    ):
        for payload, number in (
            (b"GET /", 1),
            (b"gEt /", 1),
            (b"Get /", 1),
            (b"GET_/", None),
            (b"[@`{", 2),
            (b"{``[", None),
            (b"[@@[", None),
        ):
            assert found(either, in_udp(payload)) == number, payload
        assert exact.counted() == 1


@pytest.mark.root
def test_a_thousand_patterns() -> None:
    patterns = realistic(1_000)
    with loaded(TAP >> Scan(patterns) >> Packetcount()) as (flow,):
        background = scattering(patterns, 1_472)
        assert len(background) == 1_472
        assert found(flow, in_udp(background)) is None
        for number, pattern in enumerate(patterns, 1):
            place = number * 7 % 1_440
            payload = background[:place] + b"\0" + pattern + background[place + 1 + len(pattern) :]
            result = found(flow, in_udp(payload[:1_472]))
            assert result == first(patterns, payload[:1_472])
        counts = flow.statistics().node("scan1").counts
    assert counts["unscanned"] == 0
    assert sum(counts["hits"].values()) == 1_000
    assert set(counts["hits"]) <= {pattern.decode().replace("\\", "\\\\") for pattern in patterns}
    json.dumps(counts)


@pytest.mark.root
def test_the_result_selects_an_edge() -> None:
    text = '(device,tap0) -> (scan,"cat|dog|cow") -1-> (packetcount as cats) | -3-> (grab) | -*-> (packetcount as rest)'
    with loaded(text) as (flow,):
        for payload in (b"a cat", b"cow and cat", b"dog", b"none", b"catdog"):
            flow.run(in_udp(payload))
        assert grabbed(flow) == [in_udp(b"cow and cat")]
        statistics = flow.statistics()
    assert [statistics.node(name).counts["packets"] for name in ("cats", "rest")] == [2, 1]
    assert statistics.node("scan1").counts == {"unscanned": 0, "hits": {"cat": 2, "dog": 1, "cow": 1}}
    assert statistics.ledger.filtered == 1


@pytest.mark.root
@pytest.mark.parametrize("count", [2, 4, 12])
def test_several_scans_and_other_nodes_in_one_flow(count: int) -> None:
    scans = any_of(*(Scan([f"<{number}>", "all"], number % 2 == 1, number % 3 == 1) for number in range(count)))
    filters = parse('((bpf,udp) | (bpf,"tcp port 80")) & !(bpf,"port 53")')
    with loaded(
        TAP >> filters >> scans >> Packetcount(), '(device,tap0) -> !(scan,"(?i)ALL|<1>") -> (packetcount)'
    ) as (flow, other):
        for number in range(count):
            flow.run(in_udp(bytes(100) + f"<{number}>".encode()))
        for payload in (b"all", b"ALL", b"x"):
            flow.run(in_udp(payload))
        flow.run(ether(0x0800, ipv4(17, udp(53, 1, b"all"))))
        assert flow.counted() == count + 2
        assert other.counted() == count - 1 + 1


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    frames = [in_udp(b"x" * 700 + payload) for payload in (b"attack", b"attac", b"GET /admin", b"\x90\x90", b"\x90")]
    with live(network, r'(device,tap0) -> (scan,"attack|GET /admin|\x90\x90")') as flow:
        network.send(frames)
        assert received(flow) == [frames[0], frames[2], frames[3]]
        flow.activate()
        send_at_once(network, dict.fromkeys(CPUS, frames * 20))
        assert len(received(flow)) == 60 * len(CPUS)
        each = 1 + 20 * len(CPUS)
        expected = {"unscanned": 0, "hits": {"attack": each, "GET /admin": each, r"\x90\x90": each}}
        assert flow.stats().node("scan1").counts == expected


@pytest.mark.root
def test_jumbo_frames_and_those_that_are_longer_still() -> None:
    with two_namespaces("scanjumbo", mtu=9_000) as network:
        with live(network, "(device,tap0) -> (scan,end|begin) -> (packetcount)") as flow:
            network.send([in_udp(bytes(8_969) + b"end"), in_udp(b"begin" + bytes(8_967)), in_udp(bytes(8_972))])
            flow.pause(wait=True)
            assert flow.stats().node("scan1").counts == {"unscanned": 0, "hits": {"end": 1, "begin": 1}}
        with (
            network.enter(),
            Flow.create().populate("(device,lo) -> (bpf,udp) -> (scan,end|begin)").instantiate() as flow,
        ):
            flow.activate()
            most = LONGEST_SCANNED - 42
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                for payload in (
                    bytes(most - 3) + b"end",
                    bytes(most),
                    bytes(most - 2) + b"end",  # its last byte is not scanned
                    b"begin" + bytes(65_400),
                    bytes(65_507),
                ):
                    sender.sendto(payload, ("127.0.0.1", 9))
            flow.pause(wait=True)
            assert flow.stats().node("scan1").counts == {"unscanned": 2, "hits": {"end": 1, "begin": 1}}
