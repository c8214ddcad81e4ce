"""Decide: one flow definition, one subject, yes or no with reasons.

How rules combine: a rule applies if it names the subject, and the flow is accepted if at least one rule that applies
allows the complete definition: its taps, classes, order and limits. Rules are tried in the order of the directory; the
first that allows it is named.

A rule becomes obligations, in `_obligations`. Proofs about content and inference (`Kind.CONTENT`, `Kind.INFERENCE`) are
obligations of a rule as well: they are added there, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter_ns

from ffpf_bpf.authorise.decision import Decision, Finding, Kind, Obligation, Result, shown
from ffpf_bpf.authorise.means import (
    check_buffer,
    check_classes,
    check_flows,
    check_memory,
    check_nodes,
    check_packet_rate,
    check_snaplen,
    check_taps,
)
from ffpf_bpf.authorise.policy import Policies, Rule
from ffpf_bpf.authorise.sentences import ordered
from ffpf_bpf.authorise.shape import check_order, check_sampling
from ffpf_bpf.authorise.subject import Subject
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.graph import check

Claim = tuple[Kind, str, Callable[[], Finding]]


def decide(definition: Definition, policies: Policies | None, subject: Subject, *, live_flows: int = 0) -> Decision:
    """The decision on the complete definition. `policies=None` is a host without a policy directory, where root may
    grab everything and nobody else anything. Never raises: what goes wrong in here rejects."""
    try:
        return _decide(definition, policies, subject, live_flows)
    except Exception as error:  # fails closed, whatever it is
        reason = f"the decision failed: {type(error).__name__}: {shown(str(error))}"
        return Decision(False, (reason,), (), _digest(definition))


def _decide(definition: Definition, policies: Policies | None, subject: Subject, live_flows: int) -> Decision:
    check(definition.graph)
    digest = definition.digest
    if policies is None:
        if subject.uid == 0:
            return Decision(True, ("no policy directory: root may grab everything",), (), digest)
        return Decision(False, (f"no policy allows user {shown(subject.user)}: no policy directory",), (), digest)
    applicable = [rule for rule in policies.rules if rule.names(subject)]
    if not applicable:
        return Decision(False, (f"no policy allows user {shown(subject.user)}: no rule names them",), (), digest)
    tried: list[Obligation] = []
    for rule in applicable:
        obligations = tuple(_examined(rule, claim) for claim in _obligations(rule, definition, live_flows))
        if all(obligation.result is Result.PROVED for obligation in obligations):
            return Decision(True, (f"rule {rule.name} allows it",), obligations, digest, rule.name)
        tried += obligations
    reasons = tuple(_reason(obligation) for obligation in tried if obligation.result is not Result.PROVED)
    return Decision(False, reasons, tuple(tried), digest)


def _obligations(rule: Rule, definition: Definition, live_flows: int) -> Iterator[Claim]:
    """All that `rule` asks of the definition."""
    graph, limits = definition.graph, rule.limits
    yield Kind.MEANS, f"every tap is one of {_quoted(rule.taps)}", partial(check_taps, graph, rule)
    yield Kind.MEANS, f"every node is a `device` or one of {_quoted(rule.classes)}", partial(check_classes, graph, rule)
    for order in rule.order:
        yield Kind.SHAPE, ordered(order), partial(check_order, graph, order)
    if (flows := limits.flows) is not None:
        yield Kind.MEANS, f"at most {flows:,} flows at once", partial(check_flows, live_flows, flows)
    if (nodes := limits.nodes) is not None:
        yield Kind.MEANS, f"at most {nodes:,} nodes", partial(check_nodes, graph, nodes)
    if (snaplen := limits.snaplen) is not None:
        yield Kind.MEANS, f"at most {snaplen:,} bytes of a packet", partial(check_snaplen, graph, snaplen)
    if (buffer := limits.buffer_bytes) is not None:
        yield Kind.MEANS, f"at most {buffer:,} bytes of buffer per CPU", partial(check_buffer, definition, buffer)
    if (memory := limits.memory_bytes) is not None:
        yield Kind.MEANS, f"at most {memory:,} bytes of memory for nodes", partial(check_memory, graph, memory)
    if (one_in := limits.sample_at_least) is not None:
        yield (
            Kind.MEANS,
            f"a sampler of 1 in {one_in:,} or more on every path to a sink",
            partial(check_sampling, graph, one_in),
        )
    if (rate := limits.packets_per_second) is not None:
        yield Kind.MEANS, f"at most {rate:,} packets per second", partial(check_packet_rate, graph, rate)


def _examined(rule: Rule, claim: Claim) -> Obligation:
    kind, text, examine = claim
    start = perf_counter_ns()
    finding = examine()
    ms = (perf_counter_ns() - start) / 1e6
    return Obligation(rule.name, kind, text, " -> ".join(finding.path), finding.result, ms, finding.evidence)


def _reason(obligation: Obligation) -> str:
    path = f"{obligation.path}: " if obligation.path else ""
    return f"rule {obligation.rule} wants: {obligation.claim}; {path}{obligation.evidence}"


def _quoted(texts: tuple[str, ...]) -> str:
    return ", ".join(shown(text) for text in texts)


def _digest(definition: Definition) -> str:
    """What a failed decision is bound to; "" when even that cannot be told, which no definition has."""
    try:
        return definition.digest
    except Exception:
        return ""
