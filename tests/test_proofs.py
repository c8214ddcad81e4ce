"""Proofs doubted by packets: random flows and policies, and answers that are known to hurt.

`FFPF_PROOF_PAIRS=20000` tries more pairs, `python -m tests.fuzz_proofs` as many as are asked for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ffpf_bpf.authorise import Decision, Kind, Policies, Result, Rule, Subject
from ffpf_bpf.authorise.judgement import decide
from ffpf_bpf.authorise.policy import CARRIERS, HIDDEN_BY, Allow, Never, PacketClass, Part
from ffpf_bpf.compiler import compile_predicates
from ffpf_bpf.compiler.pcap import compile_filter
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import Depth
from ffpf_bpf.graph.parser import parse
from tests import vectors
from tests.flows import Walk, violations
from tests.fuzz_proofs import Case, Report, claims, doubt, made, passes_in_kernel
from tests.model import Model
from tests.near import near
from tests.ordinary import POLICY, PROVED, REFUTED, Proved, Refuted
from tests.pairs import Pair, pair

PAIRS = int(os.environ.get("FFPF_PROOF_PAIRS", "100"))
PACKETS = 3_000
ALICE = Subject("alice", frozenset(), 1000)
KERNEL_SEEDS = range(1_000, 1_030)


@pytest.mark.timeout(300 + 10 * PAIRS)
@settings(
    max_examples=PAIRS,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a smaller seed is not a smaller pair
)
@given(st.integers(0, 1 << 32))
def test_no_packet_disproves_an_answer(seed: int) -> None:
    report = Report()
    doubt(seed, PACKETS, report)
    assert not report.problems, "\n".join(report.problems)


@pytest.mark.root
def test_refutations_pass_in_the_kernel() -> None:
    report = Report()
    for seed in KERNEL_SEEDS:
        doubt(seed, 500, report, kernel=True)
    assert not report.problems, "\n".join(report.problems)
    assert report.counts["content refuted"] > len(KERNEL_SEEDS) // 4


@pytest.mark.parametrize("case", [*PROVED, *REFUTED], ids=lambda case: case.name)
def test_packets_agree_with_what_is_expected(case: Proved | Refuted) -> None:
    """Without any proof: nothing disproves what is to be proved, and the content of what is to be refuted, if that is
    the reason, is disproved by some packet."""
    good = case.flow if isinstance(case, Proved) else case.repaired
    assert _disproved(good, case.policy) == []
    if isinstance(case, Refuted):
        assert _disproved(case.flow, case.policy) != []


def _disproved(flow: str, policy: str) -> list[str]:
    from ffpf_bpf.authorise.schema import parse_policy
    from tests.fuzz_proofs import _shown, _told

    graph = build(parse(f"(device,tap0) -> {flow}"))
    (rule,) = parse_policy(POLICY + policy + "\n", "rules.toml")
    case = Case(Pair(flow, rule), graph, compile_predicates(graph))
    report = Report()
    return [*_shown(case, claims(case), random.Random(5), 2_500, report), *_told(case, random.Random(6), 700, report)]


class TestTools:
    """The doubter itself: it must find what is there."""

    def test_pairs_are_the_same_for_the_same_seed(self) -> None:
        assert [pair(seed) for seed in range(20)] == [pair(seed) for seed in range(20)]
        assert len({pair(seed).flow for seed in range(100)}) > 95

    def test_most_pairs_are_flows(self) -> None:
        assert sum(made(seed) is not None for seed in range(100)) > 60

    @pytest.mark.parametrize(
        "text",
        [
            "tcp port 80",
            "vlan 7 and tcp port 80 and not net 10.0.0.0/8",
            "src net 2001:db8::/32 and udp port 53 and greater 100",
            "udp[8] & 0x80 != 0",
            "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
            "not tcp port 25",
            "icmp[0] = 8 and len > 60",
            "ip6[40:2] = 53 and not (port 1 or 2)",
            "arp src host 10.9.8.7",
            "ip[2:2] > 40 and ip[8] = 3",
        ],
    )
    def test_many_packets_pass_and_many_do_not(self, text: str) -> None:
        program = compile_filter(text)
        passed = vectors.run(program, near(random.Random(1), [program], [], 4_000)) != 0
        assert 400 < np.count_nonzero(passed) < 3_950

    @pytest.mark.parametrize(
        "flow",
        [
            '(bpf,"tcp port 80") -> (grab)',
            '((bpf,tcp) | (bpf,"port 53")) -> !(bpf,"net 10.0.0.0/8") -> (grab)',
            '((bpf,tcp) & (bpf,"port 80")) -> (tcpflags,syn) -> (grab)',
            "(bpf,ip) -> (classify,proto) -6-> (grab) | -*-> (packetcount)",
            '(bpf,"tcp port 80") -> (scan,GET) -> (grab)',
        ],
    )
    def test_walks_agree_with_the_model(self, flow: str) -> None:
        expression = parse(f"(device,tap0) -> {flow}")
        graph = build(expression)
        programs = compile_predicates(graph)
        rows = near(random.Random(3), list(programs.values()), [], 600)
        walk = Walk(graph, programs, rows)
        (sink,) = graph.sinks
        reached = walk.reached()[sink].tolist()
        for row in range(len(rows)):
            model = Model(graph.expression)
            model.packet(rows[row])
            assert bool(model.delivered) is reached[row], rows[row].hex()

    def test_chance_falls_both_ways(self) -> None:
        graph = build(parse("(device,tap0) -> (sampler,10) -> (bpf,tcp) -> (grab)"))
        programs = compile_predicates(graph)
        rows = near(random.Random(3), list(programs.values()), [], 100)
        assert np.array_equal(
            Walk(graph, programs, rows).reached()[graph.sinks[0]], vectors.run(programs["tcp"], rows) != 0
        )

    def test_a_violation_is_found(self) -> None:
        case = made(0)
        assert case is not None
        rows = near(random.Random(3), list(case.programs.values()), [], 2_000)
        assert list(violations(Walk(case.graph, case.programs, rows), (), ()))

    @pytest.mark.root
    def test_the_kernel_is_asked(self) -> None:
        flow = '(bpf,"udp port 53") -> (grab)'
        graph = build(parse(f"(device,tap0) -> {flow}"))
        case = Case(Pair(flow, pair(0).rule), graph, compile_predicates(graph))
        from tests.carriers import over_udp

        assert passes_in_kernel(case, over_udp(53, b"hello"))
        assert not passes_in_kernel(case, over_udp(54, b"hello"))


def decided(flow: str, allows: Sequence[Allow], nevers: Sequence[Never] = ()) -> Decision:
    """What one rule about everybody, every tap and every class says of a flow."""
    graph = build(parse(flow))
    rule = Rule("r", ("*",), ("*",), ("*",), tuple(allows), tuple(nevers))
    return decide(Definition(graph, compile_predicates(graph), 1 << 16), Policies((rule,)), ALICE, limit_s=20)


def test_two_nodes_that_read_payload_do_not_refute_by_what_is_not_known_of_both() -> None:
    """Each may tell two packets apart, if the other does not; of which packets that is so is not known."""
    flow = '((bpf,"less 100") -> (scan,GET) -> (packetcount)) | ((bpf,"ip") -> (scan,GET) -> (packetcount))'
    hidden = Allow(PacketClass(), Depth.ALL, frozenset({Part.PAYLOAD}))
    decision = decided(f"(device,tap0) -> {flow}", [hidden])
    (told,) = (each for each in decision.obligations if each.kind is Kind.INFERENCE)
    assert told.result is Result.REFUSED, told
    assert "whether `scan" in told.evidence


OF_ONE_HOST = '(device,tap0) -> (bpf,"tcp port 25 and host 10.20.1.2")'
PSEUDONYMS, COUNTED = (Allow(PacketClass(), show, HIDDEN_BY[show]) for show in (Depth.ANONYMISED, Depth.COUNTS))
NO_PLAIN_MAIL = Never(PacketClass(tcp_port=((25, 25),)), Depth.HEADERS, frozenset(CARRIERS))


@pytest.mark.parametrize(
    ("flow", "allows", "nevers", "accepted"),
    [
        (f"{OF_ONE_HOST} -> (anonymise) -> (grab)", [PSEUDONYMS], [], False),
        (f"{OF_ONE_HOST} -> (anonymise) -> (grab)", [PSEUDONYMS, COUNTED], [], False),
        (f"{OF_ONE_HOST} -> (packetcount)", [PSEUDONYMS, COUNTED], [], False),
        (f"{OF_ONE_HOST} -> (packetcount)", [COUNTED], [], True),
        (f"{OF_ONE_HOST} -> (anonymise) -> (grab)", [Allow(PacketClass())], [], True),
        (f"{OF_ONE_HOST} -> (anonymise) -> (grab)", [Allow(PacketClass()), PSEUDONYMS, COUNTED], [], True),
        (f"{OF_ONE_HOST} -> (anonymise) -> (grab)", [Allow(PacketClass())], [NO_PLAIN_MAIL], False),
        (
            '(device,tap0) -> (bpf,"tcp port 25") -> (anonymise) -> (grab)',
            [Allow(PacketClass())],
            [NO_PLAIN_MAIL],
            True,
        ),
        (f"{OF_ONE_HOST} -> (packetcount)", [Allow(PacketClass())], [NO_PLAIN_MAIL], True),
    ],
)
def test_no_filter_tells_whose_a_pseudonym_is(
    flow: str, allows: list[Allow], nevers: list[Never], accepted: bool
) -> None:
    decision = decided(flow, allows, nevers)
    assert decision.accepted is accepted, decision.text()
    refuted = {each.kind for each in decision.obligations if each.result is not Result.PROVED}
    assert refuted == (set() if accepted else {Kind.INFERENCE})


@pytest.mark.parametrize(
    "filter_text",
    [
        "ip[10:2] & 0x8000 != 0",
        "ip[0] & 15 > 5 and ip[20] = 7",
        "tcp[16:2] & 1 != 0",
        "tcp[12] >= 0x60 and tcp[20] = 30",
        "udp[6:2] & 1 != 0",
        "sctp[8] = 1",
        "icmp[0] = 5 and icmp[4] = 10",
        "icmp6 and ip6[42] = 1",
        "ip6[6] = 43 and ip6[48] = 0x20",
        "ip6[6] = 0 and ip6[40] = 6 and ip6[41] = 0 and ip6[64:2] & 1 = 1",
    ],
)
@pytest.mark.parametrize("parts", [HIDDEN_BY[Depth.ANONYMISED], {Part.ADDRESSES}], ids=["both", "addresses"])
def test_what_pseudonyms_leave_out_of_headers_is_not_told(filter_text: str, parts: set[Part]) -> None:
    """Checksums tell of addresses, and so do IPv4's routes, IPv6's routing headers, MPTCP's addresses, and the gateway
    of a redirect."""
    flow = f'(device,tap0) -> (bpf,"{filter_text}") -> (anonymise) -> (grab)'
    decision = decided(flow, [replace(PSEUDONYMS, hide=frozenset(parts))])
    assert [(each.kind, each.result) for each in decision.obligations if each.result is not Result.PROVED] == [
        (Kind.INFERENCE, Result.REFUTED)
    ], decision.text()


WEB_ONLY, NO_DNS = Allow(PacketClass(tcp_port=((80, 80),))), Never(PacketClass(udp_port=((53, 53),)), Depth.ALL)


@pytest.mark.parametrize(
    ("allows", "nevers", "accepted"),
    [
        ([Allow(PacketClass())], [], True),
        ([WEB_ONLY], [], False),
        ([Allow(PacketClass())], [NO_DNS], False),
        ([Allow(PacketClass(udp_port=((53, 53),)), Depth.COUNTS)], [], True),
        ([Allow(PacketClass(udp_port=((53, 53),)), Depth.COUNTS, HIDDEN_BY[Depth.COUNTS])], [], False),
    ],
)
def test_payload_of_what_may_not_be_seen_is_not_counted(
    allows: list[Allow], nevers: list[Never], accepted: bool
) -> None:
    """Of packets that no allow is about, that a never forbids, or that may be counted only."""
    decision = decided('(device,tap0) -> (bpf,"udp port 53 and udp[8] & 0x80 != 0") -> (packetcount)', allows, nevers)
    assert decision.accepted is accepted, decision.text()
    assert {each.kind for each in decision.obligations if each.result is Result.REFUTED} == (
        set() if accepted else {Kind.INFERENCE}
    )
