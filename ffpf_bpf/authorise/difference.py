"""What another version of the policies changes: for whom, at which taps, for which packets, with an example of each.

For each subject and each kind of tap that the rules tell apart, at each depth, two questions to the solvers: is there a
packet that may be shown now and might not before, and the other way round? Means and orders are compared as they are
written. A subject that a rule names is taken to be in that group only; `--as` names a user with several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ffpf_bpf.authorise import sentences
from ffpf_bpf.authorise.policy import ANY, Policies, Rule
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import Undecided
from ffpf_bpf.authorise.proof.search import Question, Search
from ffpf_bpf.authorise.proof.solvers import Clock
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import Wire, allowed
from ffpf_bpf.authorise.subject import Subject
from ffpf_bpf.authorise.taps import told_apart
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.effect import Depth

COMPARE_S = 60.0
NO_UID = -1
SHOWING = (Depth.ALL, Depth.HEADERS, Depth.ANONYMISED)
Rules = tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Packets that may be shown now and might not before (`allowed`), or the other way round: one of them, at which
    depths, at which taps, and why. `why` is all there is where it could not be decided."""

    subjects: tuple[str, ...]
    taps: tuple[str, ...]
    allowed: bool
    depths: tuple[Depth, ...]
    packet: bytes
    why: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two versions of the policies: of packets, and of rules as they are written, by the rule's name."""

    packets: tuple[Change, ...]
    rules: tuple[tuple[str, str], ...]
    undecided: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.packets or self.rules or self.undecided)


def compare(old: Policies, new: Policies, subject: Subject | None = None, *, limit_s: float = COMPARE_S) -> Difference:
    """For one subject, or for each that is named in either version."""
    rules = [*old.rules, *new.rules]
    subjects = {subject.user: subject} if subject else named(rules)
    search = Search(Clock(limit_s))
    packets: list[Change] = []
    undecided: list[str] = []
    for (before, after), names in _alike(old, new, subjects).items():
        for devices, pair in _taps(before, after).items():
            try:
                packets += _changes(search, names, devices, *pair)
            except Undecided as error:
                undecided.append(f"{', '.join(names)} at {', '.join(devices)}: {error}")
    concerned = {rule.name for rule in rules if any(map(rule.names, subjects.values()))}
    return Difference(tuple(packets), tuple(_rewritten(old, new, concerned)), tuple(undecided))


def named(rules: Sequence[Rule]) -> dict[str, Subject]:
    """The subjects that rules name, by their text; each is nothing else than what it is named as."""
    found: dict[str, Subject] = {}
    for text in dict.fromkeys(text for rule in rules for text in rule.subjects):
        kind, _, name = text.partition(":")
        groups = frozenset({name}) if kind == "group" else frozenset[str]()
        shown = "anybody" if text == ANY else f"{kind} {name}"
        found[shown] = Subject(name if kind == "user" else "", groups, NO_UID)
    return found


def _alike(old: Policies, new: Policies, subjects: Mapping[str, Subject]) -> dict[tuple[Rules, Rules], tuple[str, ...]]:
    """The subjects by the rules that name them, before and now, where these are not the same."""
    found: dict[tuple[Rules, Rules], tuple[str, ...]] = {}
    for text, subject in subjects.items():
        before, after = (tuple(rule for rule in each.rules if rule.names(subject)) for each in (old, new))
        if set(before) != set(after):
            found[before, after] = (*found.get((before, after), ()), text)
    return found


def _taps(before: Rules, after: Rules) -> dict[tuple[str, ...], tuple[Rules, Rules]]:
    """The kinds of taps, each with the rules about it, before and now."""
    devices: dict[tuple[Rules, Rules], list[Device]] = {}
    for device in told_apart(glob for rule in (*before, *after) for glob in rule.taps):
        pair = tuple(tuple(rule for rule in rules if rule.allows_tap(device)) for rules in (before, after))
        devices.setdefault((pair[0], pair[1]), []).append(device)
    return {tuple(f"{d.interface}@{d.hook}" for d in some): pair for pair, some in devices.items()}


def _changes(
    search: Search, subjects: tuple[str, ...], taps: tuple[str, ...], before: Rules, after: Rules
) -> Iterator[Change]:
    for is_allowed, more, less in ((True, after, before), (False, before, after)):
        found: dict[bytes, list[Depth]] = {}
        for depth in SHOWING:
            if _said(more, depth) == _said(less, depth):
                continue
            question = _gained(more, less, depth)
            known = next((packet for packet in found if search.holds(question, packet)), None)
            packet = known if known is not None else search.packet(question)
            if packet is not None:
                found.setdefault(packet, []).append(depth)
        for packet, depths in found.items():
            why = _why(search, after, packet, depths[0], is_allowed)
            yield Change(subjects, taps, is_allowed, tuple(depths), packet, why)


def _said(rules: Rules, depth: Depth) -> tuple[frozenset[object], frozenset[object]]:
    """What rules say of packets at a depth."""
    allows = frozenset(allow.packets for rule in rules for allow in rule.allow if allow.show >= depth)
    nevers = frozenset((never.packets, never.ignore) for rule in rules for never in rule.never if never.show <= depth)
    return allows, nevers


def _gained(more: Rules, less: Rules, depth: Depth) -> Question:
    return lambda wire: t.all_of((_may_be_shown(wire, more, depth), t.negated(_may_be_shown(wire, less, depth))))


def _may_be_shown(wire: Wire, rules: Rules, depth: Depth) -> Term:
    allows = allowed(wire, (allow for rule in rules for allow in rule.allow if allow.show >= depth))
    nevers = (wire.may(never) for rule in rules for never in rule.never if never.show <= depth)
    return t.all_of((allows, *map(t.negated, nevers)))


def _why(search: Search, after: Rules, packet: bytes, depth: Depth, is_allowed: bool) -> str:
    """Which rule lets it be seen now, or does not."""
    for rule in after:
        if is_allowed:
            for allow in rule.allow:
                if allow.show >= depth and search.holds(lambda wire: wire.must(allow.packets), packet):  # noqa: B023
                    return f"rule `{rule.name}` allows {sentences.packets(allow.packets)}"
        else:
            for never in rule.never:
                if never.show <= depth and search.holds(lambda wire: wire.may(never), packet):  # noqa: B023
                    return f"rule `{rule.name}` forbids {sentences.packets(never.packets)}, and what may carry them"
    return "no rule forbids it any more" if is_allowed else "no rule allows it any more"


# Rules as they are written.


def _rewritten(old: Policies, new: Policies, concerned: set[str]) -> Iterator[tuple[str, str]]:
    before, after = ({rule.name: rule for rule in each.rules if rule.name in concerned} for each in (old, new))
    for name in dict.fromkeys((*before, *after)):
        match before.get(name), after.get(name):
            case None, Rule() as rule:
                yield name, f"is new, at {rule.where}" if rule.where else "is new"
            case Rule() as rule, None:
                yield name, f"is gone, it was at {rule.where}" if rule.where else "is gone"
            case Rule() as one, Rule() as other:
                yield from ((name, text) for text in _changed(one, other))


def _changed(one: Rule, other: Rule) -> Iterator[str]:
    parts = {
        "subjects": (one.subjects, other.subjects),
        "taps": (one.taps, other.taps),
        "classes": (one.classes, other.classes),
        "allow": (map(sentences.allowed, one.allow), map(sentences.allowed, other.allow)),
        "never": (map(sentences.forbidden, one.never), map(sentences.forbidden, other.never)),
        "order": (map(sentences.ordered, one.order), map(sentences.ordered, other.order)),
    }
    for key, sides in parts.items():
        was, now = (tuple(dict.fromkeys(side)) for side in sides)
        yield from (f"`{key}`, new: {text}" for text in now if text not in was)
        yield from (f"`{key}`, gone: {text}" for text in was if text not in now)
        if set(was) == set(now) and set(getattr(one, key)) != set(getattr(other, key)):
            yield f"`{key}`: other values in a long list"
    limits, others = sentences.limited(one.limits), sentences.limited(other.limits)
    for field in dict.fromkeys((*limits, *others)):
        if limits.get(field) != others.get(field):
            yield f"`limits`: {others.get(field, 'no bound')}, was {limits.get(field, 'no bound')}"
