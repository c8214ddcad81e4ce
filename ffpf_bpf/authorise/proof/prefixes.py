"""Lists of nets, of whatever length, as decisions on the octets of an address from the first one on.

    tables(nets) -> (version, bytes, table): table(address) -> a truth

The decisions of a list are found once and kept: what decides alike is one, so 20,000 nets are some 1,000 of them. Asked
of an address they become terms, which are made once for each address.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ffpf_bpf.authorise.policy import Network, Policies, Span
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.terms import Term

MOST_KEPT = 256  # lists
LONG = 64  # nets: a list that is worth preparing

Prefix = tuple[int, int]  # a value, and how many of its highest bits count


@dataclass(frozen=True, slots=True, eq=False)
class Octet:
    """A decision on one octet: spans of it, and what decides behind these; nothing if the address is inside."""

    ways: tuple[tuple[tuple[Span, ...], Octet | None], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Whether an address is in one of the nets."""

    root: Octet | None  # every address is, if there is none

    def __call__(self, address: Term) -> Term:
        made = t.made()
        key = self, address
        if key not in made:
            made[key] = t.TRUE if self.root is None else _holds(self.root, address, address.width, {}, {})
        truth: Term = made[key]
        return truth


class _Same:
    """A list, by identity: to compare 20,000 nets takes longer than to look them up."""

    __slots__ = ("nets",)

    def __init__(self, nets: tuple[Network, ...]) -> None:
        self.nets = nets

    def __hash__(self) -> int:
        return id(self.nets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.nets is other.nets


def tables(nets: tuple[Network, ...]) -> tuple[tuple[int, int, Table], ...]:
    """For the nets of one version, and whose prefixes reach into so many bytes of an address: their table."""
    return _tables(_Same(nets))


def prepare(policies: Policies) -> None:
    """Find the decisions of long lists, before they are asked for."""
    for rule in policies.rules:
        for one in (*(allow.packets for allow in rule.allow), *(never.packets for never in rule.never)):
            for nets in (one.src, one.dst, one.net):
                if len(nets) >= LONG:
                    tables(nets)


@lru_cache(MOST_KEPT)
def _tables(same: _Same) -> tuple[tuple[int, int, Table], ...]:
    found: dict[tuple[int, int], list[Prefix]] = {}
    for number, net in enumerate(same.nets):
        if not number % t.LOOK:
            t.check_time()
        found.setdefault((net.version, -(-net.prefixlen // 8)), []).append((int(net.network_address), net.prefixlen))
    return tuple(
        (version, size, Table(_octet(sorted(prefixes), 32 if version == 4 else 128, {})))
        for (version, size), prefixes in found.items()
    )


def _octet(prefixes: Sequence[Prefix], width: int, known: dict[object, Octet]) -> Octet | None:
    """`prefixes` are sorted; `width` bits of the address are left."""
    t.check_time()
    if any(bits <= 0 for _, bits in prefixes):
        return None
    low = width - 8
    inside: list[Span] = []
    below: dict[int, list[Prefix]] = {}
    for value, bits in prefixes:
        first = value >> low
        if bits <= 8:
            inside.append((first, first + (1 << (8 - bits)) - 1))
        else:
            below.setdefault(first, []).append((value & ((1 << low) - 1), bits - 8))
    same: dict[Octet | None, list[Span]] = {None: inside} if inside else {}
    for first, rest in below.items():
        same.setdefault(_octet(rest, low, known), []).append((first, first))
    ways = tuple((_joined(spans), behind) for behind, spans in same.items())
    return known.setdefault((width, ways), Octet(ways))


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The spans, sorted, joined where they touch."""
    joined: list[Span] = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return tuple(joined)


def _holds(
    octet: Octet, address: Term, width: int, known: dict[Octet, Term], spans: dict[tuple[int, Span], Term]
) -> Term:
    """Of the last `width` bits of the address."""
    if octet not in known:
        value = t.extract(address, width - 1, width - 8)
        truths = []
        for runs, behind in octet.ways:
            here = []
            for run in runs:
                key = width, run
                if key not in spans:
                    spans[key] = t.between(value, *run)
                here.append(spans[key])
            rest = t.TRUE if behind is None else _holds(behind, address, width - 8, known, spans)
            truths.append(t.all_of((t.any_of(here), rest)))
        known[octet] = t.any_of(truths)
    return known[octet]
