"""A question about any packet, as questions about kinds of packets: by VLAN tags and by ethertype.

In each case it is known where headers begin and what they are, so that the formulas of the policy are short, and most
are false at once where a flow filters by ethertype, as nearly all do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import ARP, IPV4, IPV6, MOST_TAGS, RARP, TAG_TYPES, Wire, one_of

KINDS = (IPV4, IPV6, ARP, RARP)


@dataclass(frozen=True, slots=True)
class Case:
    """The packets for which `holds` is true, where the bytes `known` are these."""

    wire: Wire
    holds: Term
    known: dict[Term, Term]


def untagged() -> Iterator[Case]:
    """The cases without a tag, the ordinary ones first."""
    yield from _cases(0)


def tagged() -> Iterator[Case]:
    for tags in range(1, MOST_TAGS + 1):
        yield from _cases(tags)


def has_tag() -> Term:
    return _is_tag(12)


def _cases(tags: int) -> Iterator[Case]:
    holds = [_is_tag(12 + 4 * number) for number in range(tags)]
    at = 12 + 4 * tags
    for kind in KINDS:
        known = {t.byte(at): t.const(kind >> 8, 8), t.byte(at + 1): t.const(kind & 0xFF, 8)}
        yield Case(Wire(tags, known), t.all_of(holds), known)
    # A third tag is looked at as any other ethertype.
    others = (*KINDS, *(TAG_TYPES if tags < MOST_TAGS else ()))
    is_other = t.negated(_is_one_of(at, others))
    yield Case(Wire(tags), t.all_of((*holds, is_other)), {})


def _is_tag(at: int) -> Term:
    return _is_one_of(at, TAG_TYPES)


def _is_one_of(at: int, types: tuple[int, ...]) -> Term:
    return one_of(t.concat(t.byte(at), t.byte(at + 1)), types)
