"""What people write is decided as they expect, or for a reason that can be told."""

from __future__ import annotations

import re
from types import MappingProxyType

import pytest

from ffpf_bpf.authorise import Decision, Policies, Subject, content, decide
from ffpf_bpf.authorise.decision import Kind, Result
from ffpf_bpf.authorise.policy import PacketClass
from ffpf_bpf.authorise.proof import solvers
from ffpf_bpf.authorise.proof.solvers import Verdict
from ffpf_bpf.authorise.schema import parse_policy
from ffpf_bpf.compiler import compile_predicates
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.parser import parse
from tests import wire
from tests.ordinary import COUNT, NO_MAIL, POLICY, PROVED, REFUTED, Proved, Refuted

pytestmark = pytest.mark.slow

ALICE = Subject("alice", frozenset({"users"}), 1000)


def decided(flow: str, policy: str) -> Decision:
    graph = build(parse(f"(device,eth0) -> {flow}"))
    definition = Definition(graph, MappingProxyType(compile_predicates(graph)), 1 << 16)
    return decide(definition, Policies(parse_policy(POLICY + policy + "\n", "rules.toml")), ALICE)


def test_names_are_told_apart() -> None:
    names = [case.name for case in (*PROVED, *REFUTED)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", PROVED, ids=lambda case: case.name)
def test_proved(case: Proved) -> None:
    decision = decided(case.flow, case.policy)
    assert decision.accepted, decision.text()


@pytest.mark.parametrize("case", REFUTED, ids=lambda case: case.name)
def test_refuted(case: Refuted) -> None:
    decision = decided(case.flow, case.policy)
    assert not decision.accepted, decision.text()
    assert any(obligation.result is Result.REFUTED for obligation in decision.obligations), decision.text()


@pytest.mark.parametrize("case", REFUTED, ids=lambda case: case.name)
def test_repaired(case: Refuted) -> None:
    decision = decided(case.repaired, case.policy)
    assert decision.accepted, decision.text()


@pytest.mark.parametrize("service", [53, 67, 123, 443, 547])
def test_services_are_said_where_they_may_be_tunnels(service: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "SERVICE_MS", 5_000)  # other programs may run beside it
    said = "; datagrams between a tunnel's port and a service's (53, 67,"
    mail = "allow = [{}]\nnever = [{ tcp_port = 25%s }]"
    decision = decided(f'(bpf,"udp port {service}") -> (grab)', mail % "")
    assert decision.accepted, decision.text()
    assert said in decision.text()
    assert said not in decided('(bpf,"tcp port 80 and not port 25") -> (grab)', mail % "").text()
    strict = decided(f'(bpf,"udp port {service}") -> (grab)', mail % ", ignore = []")
    assert "it may carry one (service)" in strict.text()


@pytest.mark.parametrize(
    "filter_text", ["", "ether broadcast", "ip and not net 10.77.0.0/16", "less 128", "not udp", "tcp port 80"]
)
def test_of_packets_that_refute_one_that_is_of_the_class_is_shown(filter_text: str) -> None:
    decision = decided(f'(bpf,"{filter_text}") -> (grab)', NO_MAIL)
    (refuted,) = [each for each in decision.obligations if each.result is Result.REFUTED]
    assert refuted.evidence.startswith("IPv4 TCP "), refuted.evidence
    assert refuted.evidence.endswith(": it is one"), refuted.evidence
    assert wire.must(PacketClass(tcp_port=((25, 25),)), refuted.packets[0])


@pytest.mark.parametrize(
    ("filter_text", "said"),
    [
        ("tcp and not tcp port 25 and not ip6 and ip[6:2] & 0x1fff != 0", "it may be one"),
        ("udp src port 40000 and dst port 4789", "it may carry one (vxlan)"),
    ],
)
def test_what_may_be_one_is_not_said_to_be(filter_text: str, said: str) -> None:
    decision = decided(f'(bpf,"{filter_text}") -> (grab)', NO_MAIL)
    (refuted,) = [each for each in decision.obligations if each.result is Result.REFUTED]
    assert refuted.evidence.endswith(f": {said}"), refuted.evidence


@pytest.mark.parametrize(
    ("flow", "policy"),
    [
        ('(bpf,"ip proto 4 and ip[42:2] = 25") -> (packetcount)', COUNT),
        ('(bpf,"tcp port 80 and tcp[20:4] = 0x47455420") -> (packetcount)', COUNT),
        ('(bpf,"tcp port 443 and host 10.1.2.3") -> (anonymise) -> (grab)', 'allow = [{ show = "anonymised" }]'),
        ('(bpf,"ip6[41] != 0 or tcp") -> (packetcount)', COUNT),
    ],
)
def test_pairs_differ_in_one_byte(flow: str, policy: str) -> None:
    (refuted,) = [each for each in decided(flow, policy).obligations if each.result is Result.REFUTED]
    first, second = refuted.packets
    assert sum(a != b for a, b in zip(first, second, strict=True)) == 1
    assert re.search(r"differ in byte \d+ only", refuted.evidence)


def test_undecided_is_refused() -> None:
    decision = decided('(bpf,"ether[len - 1] = 0") -> (packetcount)', 'allow = [{ show = "counts" }]')
    assert not decision.accepted
    assert [each.result for each in decision.obligations if each.result is not Result.PROVED] == [Result.REFUSED]


@pytest.mark.parametrize("second", [Verdict.SOME, Verdict.UNKNOWN])
def test_a_second_solver(second: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that contradicts refuses; one that has no answer leaves the proof to the first, and it is said."""
    monkeypatch.setattr(solvers._Bitwuzla, "verdict", lambda *_: second)
    decision = decided('(bpf,"tcp port 80") -> (grab)', "allow = [{ tcp_port = 80 }]")
    content = next(each for each in decision.obligations if each.kind is Kind.CONTENT)
    if second is Verdict.SOME:
        assert not decision.accepted
        assert (content.result, content.evidence) == (Result.REFUSED, "undecided: the two solvers disagree")
    else:
        assert (content.result, content.evidence) == (Result.PROVED, "of every packet")
