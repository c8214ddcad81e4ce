"""Inference: verdicts and counters do not tell what the rules hide.

By self-composition: two packets that are equal but for what is hidden, and of which the same may be seen, are decided
alike by every node. What decides by chance or state draws the same for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from ffpf_bpf.authorise.content import Claim
from ffpf_bpf.authorise.decision import Finding, Kind, Result
from ffpf_bpf.authorise.policy import HIDDEN_BY, Allow, Never, Part, Rule
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.cases import Case
from ffpf_bpf.authorise.proof.filters import Undecided
from ffpf_bpf.authorise.proof.paths import depths
from ffpf_bpf.authorise.proof.prover import Prover, Twin
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import Wire
from ffpf_bpf.authorise.proof.witness import described, is_byte
from ffpf_bpf.graph.effect import Depth
from ffpf_bpf.graph.effect import Predicate as Filter
from ffpf_bpf.graph.graph import Leaf

PAYLOAD = frozenset({Part.PAYLOAD})
BEHIND_PSEUDONYMS = HIDDEN_BY[Depth.ANONYMISED]


def inference_claims(prover: Prover, carrying: Sequence[Rule], forbidding: Sequence[Rule]) -> Iterator[Claim]:
    """For each set of parts that the rules hide of some packets, that no node tells them. Of packets that no rule
    allows, and of those that one forbids to show, the payload is hidden; of those that one forbids to show but with
    pseudonyms, the addresses as well, if the flow shows pseudonyms."""
    allows = [allow for rule in carrying for allow in rule.allow]
    nevers = [never for rule in forbidding for never in rule.never]
    graph = prover.definition.graph
    names = " + ".join(rule.name for rule in carrying)
    if not any(isinstance(step.node.effect, Filter) for _, step in graph.leaves()):
        return  # nothing that decides by hidden parts: what else reads payload shows it, see content
    concerning = {PAYLOAD: nevers}
    if Depth.ANONYMISED in depths(graph).values():
        concerning[BEHIND_PSEUDONYMS] = [never for never in nevers if never.show is Depth.HEADERS]
    hidden = [allow.hide for allow in allows if allow.hide]
    hidden += [BEHIND_PSEUDONYMS] if concerning.get(BEHIND_PSEUDONYMS) else []
    for parts in dict.fromkeys([*hidden, PAYLOAD]):
        what = " and ".join(sorted(parts))
        claim = f"what nodes decide does not tell the {what} of packets where the rules hide it"
        about = partial(_is_hidden, prover, parts, allows, nevers, concerning.get(parts, ()))
        yield names, Kind.INFERENCE, claim, about


def _is_hidden(
    prover: Prover,
    parts: frozenset[Part],
    allows: Sequence[Allow],
    nevers: Sequence[Never],
    concerning: Sequence[Never],
) -> Finding:
    try:
        truths = [each for each in dict.fromkeys(prover.truths) if each not in (t.TRUE, t.FALSE)]
    except Undecided as error:
        return Finding(Result.REFUSED, f"undecided: {error}")
    question = partial(_told, prover, truths, prover.paths.reading_payload(), parts, allows, nevers, concerning)
    finding = prover.no_pair(t.any_of(truths), question, partial(_difference, prover))
    if finding.result is not Result.REFUTED:
        return finding
    return replace(finding, help=f"let no filter look at the {' and '.join(sorted(parts))} of packets")


def _told(
    prover: Prover,
    general: Sequence[Term],
    apart: frozenset[Term],
    parts: frozenset[Part],
    allows: Sequence[Allow],
    nevers: Sequence[Never],
    concerning: Sequence[Never],
    case: Case,
) -> tuple[Term, Twin]:
    """That two packets exist of which these parts are hidden, by an allow or by one of the nevers `concerning` them,
    and that something decides differently. What is free is the same for both, but for what is told `apart`."""
    wire = case.wire
    truths = [each for each in t.replaced(general, case.known) if each not in (t.TRUE, t.FALSE)]
    # The second packet has the bytes of the first, but for those that are hidden in the first. Which these are is told
    # by bytes that are not hidden themselves, so they are the same of both.
    read = {term for term in t.variables(truths) if is_byte(term)}
    twin = {at: _seen_twice(wire, at, parts) for at in read}
    twin |= {term: t.free(f"{term.args[0]}'", term.width) for term in t.variables(truths) if term in apart}
    told = t.any_of(t.differ(a, b) for a, b in zip(truths, t.replaced(truths, twin), strict=True))
    if told is t.FALSE:
        return t.FALSE, {}
    covered = [wire.must(allow.packets) for allow in allows]
    concerned = _hidden_by_allows(allows, covered, parts)
    others = [wire.may(never) for never in concerning]
    if parts == PAYLOAD:
        others.insert(0, t.negated(t.any_of(covered)))
    if others and concerned is t.FALSE and _none_comes(prover, truths, others, parts, case):
        return t.FALSE, {}
    concerned = t.any_of((concerned, *others))
    if concerned is t.FALSE:
        return t.FALSE, {}
    # Headers tell what is forbidden; so if only payload is hidden, it is the same of both.
    rights = [*covered, *(wire.may(never) for never in nevers if parts != PAYLOAD)]
    for at in t.variables([*rights, concerned]):
        if is_byte(at) and at not in twin:
            twin[at] = _seen_twice(wire, at, parts)
    *twins, twin_concerned = t.replaced([*rights, concerned], twin)
    same_rights = [t.negated(t.differ(a, b)) for a, b in zip(rights, twins, strict=True)]
    return t.all_of((told, concerned, twin_concerned, *same_rights)), twin


def _hidden_by_allows(allows: Sequence[Allow], covered: Sequence[Term], parts: frozenset[Part]) -> Term:
    """The packets of which these parts are hidden: the allows say so that show the most of them. That a packet may be
    counted by its addresses is no leave to be told whose its pseudonyms are."""
    found = []
    for show in {allow.show for allow in allows if allow.hide == parts}:
        hiding = [truth for truth, each in zip(covered, allows, strict=True) if (each.show, each.hide) == (show, parts)]
        lifting = [
            truth
            for truth, each in zip(covered, allows, strict=True)
            if each.show > show or (each.show == show and each.hide < parts)
        ]
        found.append(t.all_of((t.any_of(hiding), t.negated(t.any_of(lifting)))))
    return t.any_of(found)


def _seen_twice(wire: Wire, at: Term, parts: frozenset[Part]) -> Term:
    """A byte of the second packet: that of the first, unless it is hidden."""
    offset = t.offset_of(at)
    return t.ite(wire.hides(offset, parts), t.byte(offset, "q"), at)


def _none_comes(
    prover: Prover, truths: Sequence[Term], ways: Sequence[Term], parts: frozenset[Part], case: Case
) -> bool:
    """Whether nothing is true of any packet that is concerned in one of these ways: then nothing tells two such packets
    apart. It is a question about one packet, and often the very one that content has answered. The second packet must
    be of the case as well, so what makes the case must not be hidden."""
    for at in t.variables([case.holds]):
        if is_byte(at) and case.wire.hides(t.offset_of(at), parts) is not t.FALSE:
            return False
    comes = t.any_of(truths)
    return all(prover.is_none(t.all_of((t.all_of((comes, way)), case.holds))) for way in ways)


def _difference(prover: Prover, first: bytes, second: bytes) -> str:
    graph = prover.definition.graph
    name = next(
        (
            graph.ids[index]
            for index, truth in enumerate(prover.truths)
            if isinstance(graph.steps[index], Leaf) and prover.holds_of(truth, first) != prover.holds_of(truth, second)
        ),
        "a node",
    )
    where = [str(offset) for offset, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    places = f"byte {where[0]}" if len(where) == 1 else f"bytes {', '.join(where[:8])}"
    return f"`{name}` tells two packets apart that differ in {places} only: {described(first)}"
