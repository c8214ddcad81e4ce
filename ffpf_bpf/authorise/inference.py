"""Inference: verdicts and counters do not tell what the rules hide.

By self-composition: two packets that are equal but for what is hidden, and of which the same may be seen, are decided
alike by every node. What decides by chance or state draws the same for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from ffpf_bpf.authorise.content import Claim
from ffpf_bpf.authorise.decision import Finding, Kind, Result
from ffpf_bpf.authorise.policy import Allow, Never, Part, Rule
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import Undecided
from ffpf_bpf.authorise.proof.prover import Prover
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.witness import described
from ffpf_bpf.graph.effect import Predicate as Filter
from ffpf_bpf.graph.graph import Leaf

PAYLOAD = frozenset({Part.PAYLOAD})


def inference_claims(prover: Prover, carrying: Sequence[Rule], forbidding: Sequence[Rule]) -> Iterator[Claim]:
    """For each set of parts that the rules hide of some packets, that no node tells them. Of packets that no rule
    allows, and of those that one forbids to show, the payload is hidden."""
    allows = [allow for rule in carrying for allow in rule.allow]
    nevers = [never for rule in forbidding for never in rule.never]
    names = " + ".join(rule.name for rule in carrying)
    if not any(isinstance(step.node.effect, Filter) for _, step in prover.definition.graph.leaves()):
        return  # nothing that decides by hidden parts: what else reads payload shows it, see content
    for parts in dict.fromkeys([allow.hide for allow in allows if allow.hide] + [PAYLOAD]):
        what = " and ".join(sorted(parts))
        claim = f"what nodes decide does not tell the {what} of packets where the rules hide it"
        yield names, Kind.INFERENCE, claim, partial(_is_hidden, prover, parts, allows, nevers)


def _is_hidden(
    prover: Prover, parts: frozenset[Part], allows: Sequence[Allow], nevers: Sequence[Never]
) -> Finding:
    wire = prover.wire
    try:
        truths = [each for each in dict.fromkeys(prover.truths) if each not in (t.TRUE, t.FALSE)]
    except Undecided as error:
        return Finding(Result.REFUSED, f"undecided: {error}")
    # Those of which these parts are hidden by an allow, unless another one hides less.
    covered = [wire.must(allow.packets) for allow in allows]
    concerned = t.all_of(
        (
            t.any_of(truth for truth, allow in zip(covered, allows, strict=True) if allow.hide == parts),
            t.negated(t.any_of(truth for truth, allow in zip(covered, allows, strict=True) if allow.hide < parts)),
        )
    )
    if parts == PAYLOAD:
        concerned = t.any_of((concerned, t.negated(t.any_of(covered)), *(wire.may(never) for never in nevers)))
    if concerned is t.FALSE:
        return Finding(Result.PROVED, "nothing is hidden")
    # The second packet has the bytes of the first, but for those that are hidden in the first. Which these are is told
    # by bytes that are not hidden themselves, so they are the same of both.
    terms = [*truths, *covered, concerned]
    read = [int(term.args[1]) for term in t.variables(terms) if term.op == "byte"]  # type: ignore[call-overload]
    twin = {t.byte(at): t.ite(wire.hides(at, parts), t.byte(at, "q"), t.byte(at)) for at in read}
    twins = t.replaced(terms, twin)
    told = t.any_of(t.differ(a, b) for a, b in zip(truths, twins, strict=False))
    same_rights = [t.negated(t.differ(a, b)) for a, b in zip(covered, twins[len(truths) :], strict=False)]
    truth = t.all_of((concerned, twins[-1], told, *same_rights))
    return prover.no_pair(truth, twin, partial(_difference, prover))


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
