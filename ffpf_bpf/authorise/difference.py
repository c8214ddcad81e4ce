"""What another version of the policies changes: for whom, at which taps, for which packets, with an example of each.

For each subject and each kind of tap that the rules tell apart, at each depth, two questions to the solvers: is there a
packet that may be shown now and might not before, and the other way round? Means and orders are compared as they are
written. A subject that a rule names is taken to be in that group only; `--as` names a user with several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ffpf_bpf.authorise import sentences
from ffpf_bpf.authorise.content import permitted
from ffpf_bpf.authorise.policy import ANY, Allow, Never, Policies, Rule
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import Undecided
from ffpf_bpf.authorise.proof.search import Question, Search
from ffpf_bpf.authorise.proof.solvers import Clock, apart
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import Wire
from ffpf_bpf.authorise.sentences import counted
from ffpf_bpf.authorise.subject import NO_UID, Subject
from ffpf_bpf.authorise.taps import told_apart
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.effect import Depth

COMPARE_S = 60.0
SHOWING = (Depth.ALL, Depth.HEADERS, Depth.ANONYMISED)
Rules = tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Packets that may be shown now and might not before (`allowed`), or the other way round: one of them, at which
    depths, at which taps, and what it is that changed."""

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
    """For one subject, or for each that is named in either version. Takes at most about `limit_s`: what was found until
    then is told, and how much was not compared."""
    rules = [*old.rules, *new.rules]
    subjects = {subject.user: subject} if subject else named(rules)
    packets: list[Change] = []
    undecided: list[str] = []
    clock = Clock(limit_s)
    with apart(clock):
        search = Search(clock)
        for (before, after), names in _alike(old, new, subjects).items():
            for devices, pair in _taps(before, after).items():
                comparing = _Comparison(search, *pair)
                try:
                    packets += (Change(names, devices, *found) for found in comparing.changes())
                except Undecided as error:
                    left = f"{comparing.left:,} of {counted(comparing.all, 'cause')} not compared"
                    undecided.append(f"{', '.join(names)} at {', '.join(devices)}: {left}: {error}")
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
        before, after = (each.naming(subject) for each in (old, new))
        if set(before) != set(after):
            found[before, after] = (*found.get((before, after), ()), text)
    return found


def _taps(before: Rules, after: Rules) -> dict[tuple[str, ...], tuple[Rules, Rules]]:
    """The kinds of taps, each with the rules about it, before and now."""
    devices: dict[tuple[Rules, Rules], list[Device]] = {}
    for device in told_apart(glob for rule in (*before, *after) for glob in rule.taps):
        pair = tuple(tuple(rule for rule in rules if rule.allows_tap(device)) for rules in (before, after))
        devices.setdefault((pair[0], pair[1]), []).append(device)
    return {tuple(f"{d.place}@{d.hook}" for d in some): pair for pair, some in devices.items()}


@dataclass(frozen=True, slots=True)
class _Cause:
    """An allow or a never of one version, at depths where the other has not the same. It `changes` what packets are in
    it, and in none of the `others`, those of the other version."""

    said: Allow | Never
    others: tuple[Allow | Never, ...]
    depths: frozenset[Depth]
    why: str

    def changes(self, wire: Wire, depth: Depth) -> Term:
        others = (_in(wire, each) for each in self.others if _is_about(each, depth))
        return t.all_of((_in(wire, self.said), *map(t.negated, others)))


def _in(wire: Wire, said: Allow | Never) -> Term:
    return wire.must(said.packets) if isinstance(said, Allow) else wire.may(said)


def _is_about(said: Allow | Never, depth: Depth) -> bool:
    return said.show >= depth if isinstance(said, Allow) else said.show <= depth


def _but_for_depth(said: Allow | Never) -> object:
    """Equal for those that say the same of packets."""
    return said.packets, said.ignore if isinstance(said, Never) else None


class _Comparison:
    """Of the rules about a subject at a kind of tap: the allows and nevers that may cause a change, and how many of
    them are `left`."""

    def __init__(self, search: Search, before: Rules, after: Rules) -> None:
        self._search = search
        self._sides: list[tuple[bool, Rules, Rules, list[_Cause]]] = []
        for is_allowed, more, less in ((True, after, before), (False, before, after)):
            # What is gained is in an allow that was not there, or a never forbade it that is no longer there.
            gaining = _causes(more, less, lambda rule: rule.allow, "allows" if is_allowed else "allowed")
            lifted = _causes(less, more, lambda rule: rule.never, "forbade" if is_allowed else "forbids")
            causes = [cause for cause in (*gaining, *lifted) if cause.depths]
            self._sides.append((is_allowed, more, less, causes))
        self.all = self.left = sum(len(causes) for *_, causes in self._sides)

    def changes(self) -> Iterator[tuple[bool, tuple[Depth, ...], bytes, str]]:
        """Whether it is allowed now, at which depths, an example and why. Raises Undecided."""
        for is_allowed, more, less, causes in self._sides:
            for number, cause in enumerate(causes):
                found: dict[bytes, list[Depth]] = {}
                for depth in (each for each in SHOWING if each in cause.depths):
                    earlier = [each for each in causes[:number] if depth in each.depths]
                    question = _gained(more, less, depth, cause, earlier)
                    known = next((packet for packet in found if self._search.holds(question, packet)), None)
                    packet = known if known is not None else self._search.packet(question)
                    if packet is not None:
                        found.setdefault(packet, []).append(depth)
                for packet, depths in found.items():
                    yield is_allowed, tuple(depths), packet, cause.why
                self.left -= 1


def _causes(these: Rules, others: Rules, of: Callable[[Rule], Sequence[Allow | Never]], verb: str) -> Iterator[_Cause]:
    known = tuple(said for rule in others for said in of(rule))
    alike: dict[object, list[Allow | Never]] = {}
    for one in known:
        alike.setdefault(_but_for_depth(one), []).append(one)
    for rule in these:
        for said in of(rule):
            same = alike.get(_but_for_depth(said), ())
            depths = frozenset(
                depth for depth in SHOWING if _is_about(said, depth) and not any(_is_about(one, depth) for one in same)
            )
            yield _Cause(said, known, depths, f"rule `{rule.name}` {verb} {sentences.packets(said.packets)}")


def _gained(more: Rules, less: Rules, depth: Depth, cause: _Cause, earlier: Sequence[_Cause]) -> Question:
    def question(wire: Wire) -> Term:
        shown = _may_be_shown(wire, more, depth), t.negated(_may_be_shown(wire, less, depth))
        told = (t.negated(each.changes(wire, depth)) for each in earlier)
        return t.all_of((cause.changes(wire, depth), *shown, *told))

    return question


def _may_be_shown(wire: Wire, rules: Rules, depth: Depth) -> Term:
    nevers = (wire.may(never) for rule in rules for never in rule.never if never.show <= depth)
    return t.all_of((permitted(wire, depth, rules), *map(t.negated, nevers)))


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
    if one.monitor != other.monitor:
        yield f"`monitor`: {'true' if other.monitor else 'false'}, was {'true' if one.monitor else 'false'}"
    limits, others = sentences.limited(one.limits), sentences.limited(other.limits)
    for field in dict.fromkeys((*limits, *others)):
        if limits.get(field) != others.get(field):
            yield f"`limits`: {others.get(field, 'no bound')}, was {limits.get(field, 'no bound')}"
