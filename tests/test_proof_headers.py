"""What the proofs say that `classify` and `tcpflags` find is what the model of the nodes finds, which the kernel's programs
are held against: on frames of every kind, whole and cut everywhere.
"""

from __future__ import annotations

import random
from functools import cache

import pytest

from ffpf_bpf.authorise.decision import Result
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.headers import OF_TRANSPORT, Headers
from ffpf_bpf.authorise.proof.solvers import apart
from ffpf_bpf.authorise.proof.wire import Wire
from ffpf_bpf.graph.classes.classify import FIELDS, Classify
from ffpf_bpf.graph.classes.tcpflags import Tcpflags
from tests.carriers import BEYOND, CARRIERS, ORDINARY, fragment6, over_ip6
from tests.corpus.packets import ether, extension, packets, tcp, udp, vlan
from tests.meaning import meaning
from tests.model import Behaviour
from tests.test_ordinary import decided

SEED = 31
NAMES = [name for name in FIELDS if name != "flow"]
SEGMENT = tcp(40_000, 443, flags=0x12)
EXTENDED = [
    over_ip6(kind, extension(behind, words) + rest)
    for kind in (0, 43, 51, 60, 135)
    for words in (0, 1)
    for behind, rest in ((6, SEGMENT), (17, udp(1, 2, b"")), (0, b"short"), (60, extension(6) + SEGMENT), (58, b"\x80"))
]
LATER = [over_ip6(44, fragment6(each, SEGMENT, eighths=3)) for each in (6, 0, 44)]
FIRST = [over_ip6(44, fragment6(each, rest)) for each, rest in ((6, SEGMENT), (0, b""), (0, extension(6) + SEGMENT))]


@cache
def frames() -> tuple[bytes, ...]:
    chance = random.Random(SEED)
    whole = [case.frame for case in (*CARRIERS, *BEYOND, *ORDINARY)] + EXTENDED + LATER + FIRST
    whole += [ether(0x8100, vlan(5 << 13 | 7, 0x86DD, each[14:])) for each in EXTENDED]
    cut = [frame[:size] for frame in whole for size in chance.sample(range(14, 110), 14)]
    changed = []
    for frame in chance.choices(whole, k=2_000):
        bytes_ = bytearray(frame)
        for _ in range(chance.randint(1, 2)):
            bytes_[chance.randrange(12, min(len(bytes_), 60))] = chance.choice((0, 1, 4, 6, 44, 60, 0x45, 0x60, 0xFF))
        changed.append(bytes(bytes_))
    return (*packets(SEED), *whole, *cut, *changed, bytes(65_535), bytes(65_536), bytes(65_600))


def found(name: str, frame: bytes) -> int:
    behaviour = Behaviour(Classify(name))
    behaviour.classify(frame)
    return min(behaviour.result, 65_535) if name == "length" else behaviour.result


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_classify(name: str) -> None:
    with apart():
        headers = Headers(Wire())
        result = headers.field(name)
        assert result is not None
        behind = headers.behind_extension(name) if name in OF_TRANSPORT else result
        find = meaning([result, headers.is_told, behind, headers.has_one_extension])
        noise = random.Random(SEED).randbytes(200)
        told = extended = 0
        for frame in frames():
            exact, is_told, other, has_one = find(frame)
            assert find(frame, noise)[1::2] == (is_told, has_one), "what is not there says something"
            expected = found(name, frame)
            if is_told or name not in OF_TRANSPORT:
                assert (exact, find(frame, noise)[0]) == (expected, expected), frame.hex()
                told += 1
            if has_one and name in OF_TRANSPORT:
                assert not is_told, frame.hex()
                assert (other, find(frame, noise)[2]) == (expected, expected), frame.hex()
                extended += 1
        assert told > 0.7 * len(frames())
        assert name not in OF_TRANSPORT or extended > 30


@pytest.mark.slow
def test_tcpflags() -> None:
    with apart():
        headers = Headers(Wire())
        segment = t.all_of((headers.is_segment, t.equal(t.bit_and(headers.flags, t.const(2, 8)), t.const(2, 8))))
        flags = t.equal(t.bit_and(headers.extended_flags, t.const(2, 8)), t.const(2, 8))
        behind = t.all_of((headers.is_extended_segment, flags))
        find = meaning([segment, headers.is_told, behind, headers.has_one_extension])
        seen = set()
        for frame in frames():
            exact, is_told, other, has_one = find(frame)
            expected = Behaviour(Tcpflags("syn")).tcpflags(frame)
            if is_told:
                assert exact == expected, frame.hex()
            elif has_one:
                assert other == expected, frame.hex()
            seen.add((is_told, has_one, expected))
        assert {(1, 0, True), (1, 0, False), (0, 1, True), (0, 1, False), (0, 0, True)} <= seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flow", "allow"),
    [
        ("(classify,vlan) -7-> (grab)", "vlan = 7"),
        ("(classify,ethertype) -2054-> (grab)", 'proto = "arp"'),
        ("(classify,version) -6-> (grab)", 'proto = "ip6"'),
        ("(classify,ttl) -1..255-> (grab)", 'proto = ["ip", "ip6"]'),
        ("(classify,dscp) -46-> (grab)", 'proto = ["ip", "ip6"]'),
        ('(bpf,"less 100") -> (classify,length) -101..65535-> (grab)', "port = 1"),
        ('(bpf,"tcp or udp or sctp") -> (classify,dport) -80-> (grab)', "port = 80"),
        ('(bpf,"tcp") -> (classify,tcpflags) -2-> (grab)', 'proto = "tcp"'),
        ('(bpf,"tcp or udp or icmp or icmp6") -> (classify,proto) -17-> (grab)', 'proto = "udp"'),
        ("(bpf,tcp) -> (tcpflags,syn) -> (grab)", 'proto = "tcp"'),
    ],
)
def test_proved(flow: str, allow: str) -> None:
    decision = decided(flow, f"allow = {{ {allow} }}")
    assert decision.accepted, decision.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flow", "allow"),
    [
        ("(classify,vlan) -8-> (grab)", "vlan = 7"),
        ("(classify,length) -100-> (grab)", 'proto = "tcp"'),
        # The program walks through extension headers, which the reference does not.
        ("(tcpflags,syn) -> (grab)", 'proto = "tcp"'),
        ("(classify,dport) -80-> (grab)", "port = 80"),
        ("(classify,proto) -6-> (grab)", 'proto = "tcp"'),
        ("(classify,tcpflags) -2-> (grab)", 'proto = "tcp"'),
        ("(classify,flow=4) -0-> (grab)", 'proto = "tcp"'),
    ],
)
def test_refuted_by_a_packet_that_passes(flow: str, allow: str) -> None:
    decision = decided(flow, f"allow = {{ {allow} }}")
    (refuted,) = [each for each in decision.obligations if each.result is not Result.PROVED]
    assert refuted.result is Result.REFUTED, decision.text()
    (frame,) = refuted.packets
    name = flow[1 : flow.index(")")]
    if name.startswith("tcpflags"):
        assert Behaviour(Tcpflags("syn")).tcpflags(frame)
    elif "flow" not in name:
        assert str(found(name.partition(",")[2], frame)) in flow


@pytest.mark.slow
def test_what_cannot_be_told_says_what_to_put_in_front() -> None:
    """Of packets that only a walk through longer extension headers tells."""
    decision = decided('(bpf,"ip6[41] != 0 or tcp") -> (classify,proto) -6-> (grab)', 'allow = { proto = "tcp" }')
    assert "whether `classify1` lets" in decision.text()
    assert 'put `(bpf,"tcp or udp or icmp or icmp6")` in front of classify1' in decision.text()


@pytest.mark.slow
def test_what_is_told_of_one_node_is_not_told_of_another() -> None:
    """A packet is shown only if every node is known to let it pass."""
    decision = decided("(tcpflags,syn) -> (scan,attack) -> (grab)", 'allow = { proto = "tcp" }')
    assert not decision.accepted
    (claim,) = [each for each in decision.obligations if "`grab1` shows" in each.claim]
    assert claim.result is Result.REFUSED
    assert "whether `scan1` lets" in claim.evidence
