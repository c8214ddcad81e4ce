"""Content: what can reach a sink, or a node that tells of packets, is a subset of what the rules allow to be shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from ffpf_bpf.authorise.decision import Finding, Kind, Result
from ffpf_bpf.authorise.policy import CARRIERS, Never, Rule
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import Undecided
from ffpf_bpf.authorise.proof.paths import depths
from ffpf_bpf.authorise.proof.prover import Prover
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import Wire
from ffpf_bpf.authorise.sentences import OF_SERVICES, packets, trusts_services
from ffpf_bpf.graph.effect import Depth

Claim = tuple[str, Kind, str, "partial[Finding]"]
SHOWN = {Depth.ANONYMISED: "headers with pseudonyms", Depth.HEADERS: "headers", Depth.ALL: "payload"}
HIDING = {Depth.HEADERS: "`(snap)`", Depth.ANONYMISED: "`(anonymise)`"}
SERVICE_MS = 500  # to find out whether a word about services is due
MOST_ALLOWS = 2  # told of what a rule allows


def content_claims(prover: Prover, carrying: Sequence[Rule], forbidding: Sequence[Rule]) -> Iterator[Claim]:
    """What `carrying` rules allow, together, and what each of the `forbidding` ones does not, of each step that shows
    something of packets."""
    graph = prover.definition.graph
    names = " + ".join(rule.name for rule in carrying)
    for step, depth in depths(graph).items():
        name = graph.ids[step]
        claim = f"`{name}` shows {SHOWN[depth]} of nothing but {_abbreviated(depth, carrying)}"
        yield names, Kind.CONTENT, claim, partial(_is_allowed, prover, step, depth, carrying)
        for rule in forbidding:
            for never in rule.never:
                if depth >= never.show:
                    claim = f"`{name}` never shows {packets(never.packets)}"
                    yield rule.name, Kind.CONTENT, claim, partial(_is_not_forbidden, prover, step, never)


def _abbreviated(depth: Depth, carrying: Sequence[Rule]) -> str:
    """What the rules allow to be shown at that depth, in words."""
    allows = dict.fromkeys(packets(allow.packets) for rule in carrying for allow in rule.allow if allow.show >= depth)
    if not allows:
        return "what is allowed, which is nothing"
    if "every packet" in allows:
        return "what is allowed, which is every packet"
    listed = [*allows][:MOST_ALLOWS]
    more = [f"{len(allows) - len(listed):,} classes more"] if len(allows) > len(listed) else []
    return ", or ".join([*listed, *more])


def permitted(wire: Wire, depth: Depth, carrying: Sequence[Rule]) -> Term:
    """The packets that the rules allow to be shown at that depth."""
    return t.any_of(wire.must(allow.packets) for rule in carrying for allow in rule.allow if allow.show >= depth)


def _is_allowed(prover: Prover, step: int, depth: Depth, carrying: Sequence[Rule]) -> Finding:
    if permitted(prover.wire, depth, carrying) is t.TRUE:
        return Finding(Result.PROVED, "everything may be shown so")

    def violates(wire: Wire) -> Term:
        return t.negated(permitted(wire, depth, carrying))

    def why(frame: bytes) -> str:
        if depth < Depth.ALL or not any(rule.allow for rule in carrying):
            return "no rule allows it to be shown so"
        lesser = permitted(prover.wire, Depth.ANONYMISED, carrying)
        return "less of it may be shown" if prover.holds_of(lesser, frame) else "no rule allows it"

    finding = _none_comes(prover, step, violates, why)
    if finding.result is not Result.REFUTED:
        return finding
    name = prover.definition.graph.ids[step]
    for less, transform in HIDING.items():
        if less < depth and prover.holds_of(permitted(prover.wire, less, carrying), finding.packets[0]):
            return replace(finding, help=f"put {transform} in front of {name}, which may show {SHOWN[less]} of it")
    return replace(finding, help=_remedy(name, depth, carrying))


def _remedy(name: str, depth: Depth, carrying: Sequence[Rule]) -> str:
    """What lets a sink keep to what the rules allow."""
    for less in sorted({depth, *HIDING}, reverse=True):
        if less <= depth and any(allow.show >= less for rule in carrying for allow in rule.allow):
            first = "" if less == depth else f"{HIDING[less]} in front of {name}, and "
            return f"put {first}a filter in front of {name} that passes nothing but {_abbreviated(less, carrying)}"
    return f"leave out {name}, and count: no rule allows more to be shown"


def _is_not_forbidden(prover: Prover, step: int, never: Never) -> Finding:
    def why(frame: bytes) -> str:
        if prover.holds_of(prover.wire.must(never.packets), frame):
            return "it is one"
        carriers = [
            name
            for name, truth in prover.wire.carriers.items()
            if name not in never.ignore and prover.holds_of(truth, frame)
        ]
        return f"it may carry one ({', '.join(carriers)})" if carriers else "it may be one"

    finding = _none_comes(prover, step, lambda wire: wire.may(never), why, lambda wire: wire.must(never.packets))
    if finding.result is Result.PROVED and trusts_services(never) and _shows_service_tunnels(prover, step):
        return replace(finding, evidence=f"{finding.evidence}; {OF_SERVICES}")
    if finding.result is not Result.REFUTED:
        return finding
    name = prover.definition.graph.ids[step]
    ignored = "" if len(never.ignore) == len(CARRIERS) else ", nor what may carry them"
    return replace(
        finding, help=f"put a filter in front of {name} that does not pass {packets(never.packets)}{ignored}"
    )


def _shows_service_tunnels(prover: Prover, step: int) -> bool:
    """Whether there may be datagrams among what comes to the node that are tunnels, or a service's."""
    try:
        return prover.may_be(prover.arriving(step), lambda wire: wire.carriers["service"], SERVICE_MS)
    except Undecided:
        return True


def _none_comes(
    prover: Prover,
    step: int,
    violates: Callable[[Wire], Term],
    why: Callable[[bytes], str],
    rather: Callable[[Wire], Term] = lambda _: t.TRUE,
) -> Finding:
    """That no packet comes to the node for which `violates` holds; one for which `rather` holds is shown, if there is
    one."""
    try:
        arriving = prover.arriving(step)
    except Undecided as error:
        return Finding(Result.REFUSED, f"undecided: {error}", (prover.definition.graph.ids[step],))
    return prover.none(arriving, violates, why, rather)
