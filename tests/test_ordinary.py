"""What people write is decided as they expect, or for a reason that can be told."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from ffpf_bpf.authorise import Decision, Policies, Subject, decide
from ffpf_bpf.authorise.decision import Result
from ffpf_bpf.authorise.schema import parse_policy
from ffpf_bpf.compiler import compile_predicates
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.parser import parse
from tests.ordinary import POLICY, PROVED, REFUTED, Proved, Refuted

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


def test_undecided_is_refused() -> None:
    decision = decided('(bpf,"ether[len - 1] = 0") -> (packetcount)', 'allow = [{ show = "counts" }]')
    assert not decision.accepted
    assert [each.result for each in decision.obligations if each.result is not Result.PROVED] == [Result.REFUSED]
