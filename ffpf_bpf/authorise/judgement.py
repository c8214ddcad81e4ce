"""Decide: one flow definition, one subject, yes or no with reasons.

How rules combine is in AUTHORISATION.md. A rule *carries* the flow if it holds the complete definition to be within its
means and orders. What packets may be shown is asked of each rule that carries the flow, then of all together; what must
never be shown, of every rule that names the subject and a tap of the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import perf_counter_ns

from ffpf_bpf.authorise.content import Claim, content_claims
from ffpf_bpf.authorise.decision import (
    OUT_OF_TIME,
    UNDECIDED_HELP,
    Decision,
    Finding,
    Kind,
    Obligation,
    Result,
    rejected,
    shown,
)
from ffpf_bpf.authorise.inference import inference_claims
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
from ffpf_bpf.authorise.proof.prover import Execute, Prover
from ffpf_bpf.authorise.proof.solvers import Clock, apart
from ffpf_bpf.authorise.proof.terms import OutOfTime
from ffpf_bpf.authorise.sentences import ordered
from ffpf_bpf.authorise.shape import check_order, check_sampling
from ffpf_bpf.authorise.subject import Subject
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.graph import check
from ffpf_bpf.graph.predicate import run

DECISION_S = 5.0


def decide(
    definition: Definition,
    policies: Policies,
    subject: Subject,
    *,
    live_flows: int = 0,
    limit_s: float = DECISION_S,
    executors: Sequence[Execute] = (run,),
    tell: Callable[[Obligation], None] = lambda _: None,
) -> Decision:
    """The decision on the complete definition, in at most `limit_s` and half a second; what was not decided by then is
    an obligation that is refused. `executors` are what filters are tried on before a packet is shown. Each
    obligation is told twice, before it is examined as it is if the time is over, and then as it is. Never raises: what
    goes wrong in here rejects."""
    try:
        clock = Clock(limit_s)
        with apart(clock):
            return _decide(definition, policies, subject, live_flows, clock, executors, tell)
    except Exception as error:  # fails closed, whatever it is
        reason = f"the decision failed: {type(error).__name__}: {shown(str(error))}"
        return Decision(False, (reason,), (), _digest(definition))


def _decide(
    definition: Definition,
    policies: Policies,
    subject: Subject,
    live_flows: int,
    clock: Clock,
    executors: Sequence[Execute],
    tell: Callable[[Obligation], None],
) -> Decision:
    check(definition.graph)
    digest = definition.digest
    naming = policies.naming(subject)
    allowing = [rule for rule in naming if rule.classes]
    if not allowing:
        return Decision(False, (f"no policy allows user {shown(subject.user)}: no rule names them",), (), digest)
    prover = Prover(definition, clock, executors)
    within = {rule.name: examined(bounds(rule, prover, live_flows), tell) for rule in allowing}
    carrying = [rule for rule in allowing if hold(within[rule.name])]
    if not carrying:
        return rejected([each for obligations in within.values() for each in obligations], digest)
    forbidding = [rule for rule in naming if any(map(rule.may_concern, definition.graph.taps))]
    tries = [*([rule] for rule in carrying), *([carrying] if len(carrying) > 1 else [])]
    for rules in tries:
        claims = (*content_claims(prover, rules, forbidding), *inference_claims(prover, rules, forbidding))
        shown_ = examined(claims, tell)
        obligations = [*(each for rule in rules for each in within[rule.name]), *shown_]
        if hold(shown_):
            names = " + ".join(rule.name for rule in rules)
            expiries = [rule.limits.expires_s for rule in rules if rule.limits.expires_s is not None]
            said = f"rule {names} allows it" if len(rules) == 1 else f"rules {names} together allow it"
            return Decision(True, (said,), tuple(obligations), digest, names, min(expiries, default=None))
        if not clock.left_ms:
            break
    return rejected(obligations, digest)


def hold(obligations: Iterable[Obligation]) -> bool:
    return all(obligation.result is Result.PROVED for obligation in obligations)


def bounds(rule: Rule, prover: Prover, live_flows: int) -> Iterator[Claim]:
    """What `rule` asks of the definition but for what packets are."""
    definition, limits = prover.definition, rule.limits
    graph = definition.graph

    def means(claim: str, examine: Callable[..., Finding], *arguments: object) -> Claim:
        return rule.name, Kind.MEANS, claim, partial(examine, *arguments)

    yield means(f"every tap is one of {_quoted(rule.taps)}", check_taps, graph, rule)
    yield means(f"every node is a `device` or one of {_quoted(rule.classes)}", check_classes, graph, rule)
    for order in rule.order:
        yield rule.name, Kind.SHAPE, ordered(order), partial(check_order, prover, order)
    if (flows := limits.flows) is not None:
        yield means(f"at most {flows:,} flows at once", check_flows, live_flows, flows)
    if (nodes := limits.nodes) is not None:
        yield means(f"at most {nodes:,} nodes", check_nodes, graph, nodes)
    if (snaplen := limits.snaplen) is not None:
        yield means(f"at most {snaplen:,} bytes of a packet", check_snaplen, graph, snaplen)
    if (buffer := limits.buffer_bytes) is not None:
        yield means(f"at most {buffer:,} bytes of buffer per CPU", check_buffer, definition, buffer)
    if (memory := limits.memory_bytes) is not None:
        yield means(f"at most {memory:,} bytes of memory for nodes", check_memory, graph, memory)
    if (rate := limits.packets_per_second) is not None:
        yield means(f"at most {rate:,} packets per second", check_packet_rate, graph, rate)
    if (one_in := limits.sample_at_least) is not None:
        claim = f"a sampler of 1 in {one_in:,} or more on every path to a sink"
        yield means(claim, check_sampling, prover, one_in)


def examined(claims: Iterable[Claim], tell: Callable[[Obligation], None] = lambda _: None) -> tuple[Obligation, ...]:
    """Each claim, until the time is over: the one that it ended is the last."""
    found: list[Obligation] = []
    for claim in claims:
        rule, kind, text, _ = claim
        tell(Obligation(rule, kind, text, "", Result.REFUSED, 0.0, OUT_OF_TIME, help=UNDECIDED_HELP))
        found.append(_examine(*claim))
        tell(found[-1])
        if found[-1].evidence == OUT_OF_TIME:
            break
    return tuple(found)


def _examine(rule: str, kind: Kind, text: str, examine: Callable[[], Finding]) -> Obligation:
    start = perf_counter_ns()
    try:
        finding = examine()
    except OutOfTime:
        finding = Finding(Result.REFUSED, OUT_OF_TIME)
    help = finding.help or (UNDECIDED_HELP if finding.result is Result.REFUSED else "")
    ms = (perf_counter_ns() - start) / 1e6
    path = " -> ".join(finding.path)
    return Obligation(rule, kind, text, path, finding.result, ms, finding.evidence, finding.packets, help)


def _quoted(texts: tuple[str, ...]) -> str:
    return ", ".join(shown(text) for text in texts)


def _digest(definition: Definition) -> str:
    """What a failed decision is bound to; "" when even that cannot be told, which no definition has."""
    try:
        return definition.digest
    except Exception:
        return ""
