"""What is odd about policies that can be read: rules, classes of packets, orders and limits without effect.

Decided by the solvers of the proofs, on every packet: an allow that no packet is in, or that others say already, or
that a never forbids altogether; a never that others say already. Each remark is certain; what could not be decided in
time is told as a note. Pure: who is known on this host is told by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypeVar

from ffpf_bpf.authorise.policy import ANY, Allow, Limits, Never, Policies, Rule
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import Undecided
from ffpf_bpf.authorise.proof.search import OUT_OF_TIME, Question, Search
from ffpf_bpf.authorise.proof.solvers import Clock, apart
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import ARP, RARP, Wire
from ffpf_bpf.authorise.proof.witness import described
from ffpf_bpf.authorise.requirements import unmeetable
from ffpf_bpf.authorise.sample import Outline, within
from ffpf_bpf.authorise.sentences import LEFT_BY, SHOWN, counted, packets
from ffpf_bpf.authorise.taps import at_another_hook, covers
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.effect import Depth

REVIEW_S = 60.0
MOST_NAMED = 3
Said = TypeVar("Said", bound=Allow | Never)
AT_LEAST = frozenset({"sample_at_least"})  # limits that are wider the less they say


class Flaw(StrEnum):
    """What is odd."""

    EMPTY = "empty"  # no packet is in the class
    FORBIDDEN = "forbidden"  # all of it is, by a never
    REPEATED = "repeated"  # others say it already
    UNMEETABLE = "unmeetable"  # no flow can do what is wanted
    IDLE = "idle"  # it asks nothing of any flow
    ELSEWHERE = "elsewhere"  # a never is not about all hooks of an interface at which flows are allowed
    UNKNOWN = "unknown"  # a note: this host does not know the subject
    UNDECIDED = "undecided"  # a note: not known in time


NOTES = frozenset({Flaw.UNKNOWN, Flaw.UNDECIDED})


@dataclass(frozen=True, slots=True)
class Remark:
    """One finding: where, about which rule, what, what to do, and a packet that shows it, if one does."""

    flaw: Flaw
    where: str
    rule: str
    text: str
    help: str = ""
    packet: bytes = b""

    @property
    def is_note(self) -> bool:
        """It is no fault of the policies."""
        return self.flaw in NOTES

    def lines(self) -> tuple[str, ...]:
        """As text."""
        said = [f"{self.where}: {'note' if self.is_note else 'warning'}: {self.text}"]
        said += [f"    for example {described(self.packet)}"] if self.packet else []
        said += [f"    help: {self.help}"] if self.help else []
        return tuple(said)


def review(policies: Policies, unknown: Collection[str] = (), *, limit_s: float = REVIEW_S) -> tuple[Remark, ...]:
    """The remarks, in the order of the files. `unknown` are the subjects, as rules write them, that this host does not
    know. Takes at most about `limit_s`: what is seen without a solver comes first, and how many rules were not wholly
    reviewed for want of time is told in one remark."""
    clock = Clock(limit_s)
    with apart(clock):
        found = _Review(policies.rules, Search(clock)).remarks()
    notes = [remark for rule in policies.rules for remark in _unknown(rule, unknown)]
    return tuple(sorted((*found, *notes), key=lambda remark: _place(remark.where)))


def _place(where: str) -> tuple[str, int, int]:
    file, line, column = where.rsplit(":", 2) if where.count(":") >= 2 else (where, "0", "0")
    return file, int(line), int(column)


def carries_as_much(wide: Rule, narrow: Rule) -> bool:
    """Whether one rule carries every flow of every subject that the other carries."""
    return (
        _names_all(wide, narrow)
        and covers(wide, narrow)
        and (ANY in wide.classes or set(narrow.classes) <= set(wide.classes))
        and set(wide.order) <= set(narrow.order)
        and _is_wider(wide.limits, narrow.limits)
        and wide.monitor >= narrow.monitor
    )


def _names_all(wide: Rule, narrow: Rule) -> bool:
    return ANY in wide.subjects or set(narrow.subjects) <= set(wide.subjects)


def _share_subjects(one: Rule, other: Rule) -> bool:
    """Whether both name somebody, for certain."""
    return ANY in (*one.subjects, *other.subjects) or not set(one.subjects).isdisjoint(other.subjects)


def _tap(device: Device) -> str:
    return f"{device.place}@{device.hook}"


def _is_about_all(wide: Rule, narrow: Rule) -> bool:
    """Whether a rule is about all subjects and taps of another."""
    return _names_all(wide, narrow) and covers(wide, narrow)


def _about(rule: Rule) -> tuple[object, ...]:
    return rule.subjects, rule.taps


class _Pairs:
    """Whether something holds of two rules, which depends on no more than the `key` of each."""

    def __init__(self, holds: Callable[[Rule, Rule], bool], key: Callable[[Rule], tuple[object, ...]]) -> None:
        self._holds = holds
        self._key = key
        self._numbers: dict[tuple[object, ...], int] = {}
        self._of: dict[str, int] = {}
        self._known: dict[tuple[int, int], bool] = {}

    def hold(self, one: Rule, other: Rule) -> bool:
        pair = self._number(one), self._number(other)
        if pair not in self._known:
            self._known[pair] = self._holds(one, other)
        return self._known[pair]

    def _number(self, rule: Rule) -> int:
        if rule.name not in self._of:
            self._of[rule.name] = self._numbers.setdefault(self._key(rule), len(self._numbers))
        return self._of[rule.name]


def _is_wider(wide: Limits, narrow: Limits) -> bool:
    for each in fields(Limits):
        one, other = getattr(wide, each.name), getattr(narrow, each.name)
        if one is None:
            continue
        if other is None or (one > other if each.name in AT_LEAST else one < other):
            return False
    return True


def _must(allow: Allow) -> Question:
    return lambda wire: wire.must(allow.packets)


def _may(never: Never) -> Question:
    return lambda wire: wire.may(never)


def _outside(inner: Question, outer: Sequence[Question]) -> Question:
    """In one, and in none of the others."""

    def question(wire: Wire) -> Term:
        return t.all_of((inner(wire), *(t.negated(each(wire)) for each in outer)))

    return question


def _whole(wire: Wire) -> Term:
    """No address is cut."""
    needed = (wire.is_ip4, 20), (wire.is_ip6, 40), (wire.is_type(ARP, RARP), 28)
    whole = (t.any_of((t.negated(kind), wire.behind_ethernet(0, size).there)) for kind, size in needed)
    return t.all_of((wire.ethertype.there, *whole))


def _whole_and(question: Question) -> Question:
    return lambda wire: t.all_of((_whole(wire), question(wire)))


class _Review:
    def __init__(self, rules: Sequence[Rule], search: Search) -> None:
        self._rules = rules
        self._search = search
        self._undecided: dict[str, str] = {}  # a rule, and why
        self._examples: dict[int, bytes] = {}  # a packet of each allow, by its identity
        self._outlines: dict[int, Outline] = {}  # of allows and nevers, likewise
        self._forbidding_rules = [rule for rule in rules if rule.never]
        self._nevers: dict[tuple[object, ...], list[tuple[Rule, Never]]] = {}

    def remarks(self) -> list[Remark]:
        found: list[Remark] = []
        for look in (self._unmeetable, self._elsewhere, self._empty, self._forbidden):
            for rule in self._rules:
                self._try(rule, found, look)
        found += self._repeated_allows()
        found += self._repeated_nevers()
        return [*found, *self._unreviewed()]

    def _try(self, rule: Rule, found: list[Remark], look: Callable[[Rule], Iterator[Remark]]) -> None:
        try:
            for remark in look(rule):
                found.append(remark)
        except Undecided as error:
            self._undecided.setdefault(rule.name, str(error))

    def _unreviewed(self) -> Iterator[Remark]:
        places = {rule.name: rule.where for rule in self._rules}
        late = [name for name, why in self._undecided.items() if why == OUT_OF_TIME]
        for name, why in self._undecided.items():
            if why != OUT_OF_TIME:
                said = f"rule `{name}` is not wholly reviewed: {why}"
                yield Remark(Flaw.UNDECIDED, places[name], name, said)
        if late:
            of = f"{len(late):,} of {counted(len(self._rules), 'rule')}"
            said = f"{of} not wholly reviewed for want of time, rule `{late[0]}` being the first"
            yield Remark(Flaw.UNDECIDED, places[late[0]], late[0], said, "`--limit SECONDS` gives more")

    def _outline(self, said: Allow | Never) -> Outline:
        if id(said) not in self._outlines:
            self._outlines[id(said)] = Outline(said.packets)
        return self._outlines[id(said)]

    def _may_be_within(self, said: Allow | Never, others: Sequence[Allow | Never]) -> bool:
        """Whether it is worth asking a solver that all of it is in the others."""
        self._search.check_time()
        return within(self._outline(said), [self._outline(other) for other in others])

    def _is_plain(self, said: Allow | Never, other: Allow | Never) -> bool:
        """Whether no solver is needed to see that all of an allow is in the other."""
        return isinstance(said, Allow) and self._outline(other).covers(self._outline(said))

    # Nevers that leave out a hook.

    def _elsewhere(self, rule: Rule) -> Iterator[Remark]:
        """A tap without a hook is at XDP only, and what is forbidden there comes by at tc as well."""
        for other in self._rules if rule.never else ():
            self._search.check_time()
            if not (other.classes and _share_subjects(rule, other)):
                continue
            if found := at_another_hook(rule.taps, other.taps):
                allowed, forbidden = found
                said = f"it forbids at `{_tap(forbidden)}`, not at `{_tap(allowed)}`, which rule `{other.name}` allows"
                help = "`@*` behind the interface is every hook, no `@` is xdp only"
                yield Remark(Flaw.ELSEWHERE, rule.where, rule.name, said, help)
                return

    # Allows that no packet is in.

    def _empty(self, rule: Rule) -> Iterator[Remark]:
        for allow in rule.allow:
            if self._is_empty(allow):
                said = f"no packet can be one of these: {packets(allow.packets)}"
                yield Remark(Flaw.EMPTY, allow.where, rule.name, said, "keys exclude each other; write several classes")

    def _is_empty(self, allow: Allow) -> bool:
        return not self._outline(allow).samples and not self._example(allow)

    def _example(self, allow: Allow) -> bytes:
        if id(allow) not in self._examples:
            self._examples[id(allow)] = self._search.packet(_must(allow)) or b""
        return self._examples[id(allow)]

    # Allows that nevers forbid.

    def _forbidden(self, rule: Rule) -> Iterator[Remark]:
        """Of what it lets see; nothing keeps anybody from counting."""
        showing = [allow for allow in rule.allow if allow.show > Depth.COUNTS and not self._is_empty(allow)]
        nevers = self._nevers_about(rule)
        dead: list[tuple[Allow, list[tuple[Rule, Never]]]] = []
        for allow in showing:
            if not self._may_be_within(allow, [never for _, never in nevers if never.show <= allow.show]):
                continue
            for depth in (Depth.ANONYMISED, allow.show):
                some = [said for said in nevers if said[1].show <= depth]
                if some and (by := self._forbidding(allow, some)):
                    dead.append((allow, by))
                    break
        at_all = [one for one in dead if all(never.show == Depth.ANONYMISED for _, never in one[1])]
        if showing and len(at_all) == len(showing):
            yield self._forbids_everything(rule, at_all)
            return
        for allow, by in dead:
            left = LEFT_BY[max(never.show for _, never in by)]
            said = f"all of it is forbidden by {_named(by)}, which leaves {left}: {packets(allow.packets)}"
            yield Remark(Flaw.FORBIDDEN, allow.where, rule.name, said, _show_less(allow, by), self._example(allow))

    def _nevers_about(self, rule: Rule) -> list[tuple[Rule, Never]]:
        """Those about all subjects and taps of the rule."""
        key = rule.subjects, rule.taps
        if key not in self._nevers:
            about = [other for other in self._forbidding_rules if _is_about_all(other, rule)]
            self._nevers[key] = [(other, never) for other in about for never in other.never]
        return self._nevers[key]

    def _forbidding(self, allow: Allow, nevers: Sequence[tuple[Rule, Never]]) -> list[tuple[Rule, Never]]:
        """The first never that forbids all of it, or several that do together; none if they do not."""
        packet = self._example(allow)
        near = [said for said in nevers if self._may_be_within(allow, [said[1]])]
        for said in near:
            if self._is_plain(allow, said[1]) or (
                self._search.holds(_may(said[1]), packet) and self._is_outside_none(allow, [said])
            ):
                return [said]
        if len(nevers) < 2 or not any(self._search.holds(_may(never), packet) for _, never in nevers):
            return []
        return list(nevers) if self._is_outside_none(allow, nevers) else []

    def _is_outside_none(self, allow: Allow, nevers: Sequence[tuple[Rule, Never]]) -> bool:
        return self._search.packet(_outside(_must(allow), [_may(never) for _, never in nevers])) is None

    def _forbids_everything(self, rule: Rule, dead: Sequence[tuple[Allow, list[tuple[Rule, Never]]]]) -> Remark:
        by = list(dict.fromkeys(said for _, some in dead for said in some))
        example = self._example(dead[0][0])
        if len(by) == 1:
            other, never = by[0]
            said = f"this never forbids everything that rule `{rule.name}` ({rule.where}) allows to be seen"
            return Remark(Flaw.FORBIDDEN, never.where, other.name, said, "narrow the never, or drop the rule", example)
        said = f"rule `{rule.name}` shows nothing: {_named(by)} forbid all that it allows to be seen"
        return Remark(Flaw.FORBIDDEN, rule.where, rule.name, said, "narrow the nevers, or drop the rule", example)

    # What others say already. From the last to the first, so that of two that are equal one is left.

    def _repeated_allows(self) -> list[Remark]:
        left = [(rule, allow) for rule in self._rules for allow in rule.allow]
        carried = _Pairs(
            carries_as_much, lambda rule: (*_about(rule), rule.classes, rule.order, rule.limits, rule.monitor)
        )

        def says_as_much(other: tuple[Rule, Allow], rule: Rule, allow: Allow) -> bool:
            return other[1].show >= allow.show and other[1].hide <= allow.hide and carried.hold(other[0], rule)

        return self._repeated(left, says_as_much, _must, _must, "allow", lambda allow: f", {SHOWN[allow.show]}")

    def _repeated_nevers(self) -> list[Remark]:
        left = [(rule, never) for rule in self._forbidding_rules for never in rule.never]
        wider = _Pairs(_is_about_all, _about)

        def says_as_much(other: tuple[Rule, Never], rule: Rule, never: Never) -> bool:
            return other[1].show <= never.show and wider.hold(other[0], rule)

        # Of packets that are cut within an address, a smaller net may be one more that cannot be excluded.
        return self._repeated(left, says_as_much, lambda never: _whole_and(_may(never)), _may, "forbid", lambda _: "")

    def _repeated(
        self,
        left: list[tuple[Rule, Said]],
        says_as_much: Callable[[tuple[Rule, Said], Rule, Said], bool],
        asked: Callable[[Said], Question],
        held: Callable[[Said], Question],
        verb: str,
        more: Callable[[Said], str],
    ) -> list[Remark]:
        found: list[Remark] = []
        everything = tuple(left)
        for rule, said in reversed(everything):
            others: list[tuple[Rule, Said]] = [
                one for one in left if one[1] is not said and says_as_much(one, rule, said)
            ]
            by: list[tuple[Rule, Allow | Never]] = []
            try:
                is_there = isinstance(said, Never) or not self._is_empty(said)
                if is_there and self._may_be_within(said, [other for _, other in others]):
                    by = self._saying(said, asked(said), [(*one, held(one[1])) for one in others])
            except Undecided as error:
                self._undecided.setdefault(rule.name, str(error))
                continue
            if by:
                left = [one for one in left if one[1] is not said]
                what = f"{_named(by)} {verb}{'s' if len(by) == 1 else ''} it already: {packets(said.packets)}"
                found.append(Remark(Flaw.REPEATED, said.where, rule.name, f"{what}{more(said)}", "drop it"))
        return found

    def _saying(
        self, said: Allow | Never, one: Question, others: Sequence[tuple[Rule, Allow | Never, Question]]
    ) -> list[tuple[Rule, Allow | Never]]:
        """The other that holds wherever one does, or several that do together; none if there are none."""
        if not others:
            return []
        if plain := [(rule, other) for rule, other, _ in others if self._is_plain(said, other)]:
            return plain[:1]
        if len(others) > 1 and self._search.packet(_outside(one, [question for *_, question in others])) is not None:
            return []
        for rule, other, question in others:
            if self._may_be_within(said, [other]) and self._search.packet(_outside(one, [question])) is None:
                return [(rule, other)]
        return [(rule, other) for rule, other, _ in others] if len(others) > 1 else []

    # Orders and limits.

    def _unmeetable(self, rule: Rule) -> Iterator[Remark]:
        for where, said, help, idle in unmeetable(rule, lambda one: self._search.packet(lambda w: w.must(one)) is None):
            yield Remark(Flaw.IDLE if idle else Flaw.UNMEETABLE, where or rule.where, rule.name, said, help)


def _unknown(rule: Rule, unknown: Collection[str]) -> Iterator[Remark]:
    strangers = [text for text in rule.subjects if text in unknown]
    if not strangers:
        return
    listed = ", ".join(f"`{text}`" for text in strangers)
    nobody = f", so nobody is named by rule `{rule.name}`" if len(strangers) == len(rule.subjects) else ""
    yield Remark(Flaw.UNKNOWN, rule.where, rule.name, f"this host does not know {listed}{nobody}")


def _named(by: Sequence[tuple[Rule, Allow | Never]]) -> str:
    """Where they stand: `rule students (students.toml:9:5)`."""
    listed = [f"rule `{rule.name}` ({said.where or rule.where})" for rule, said in by[:MOST_NAMED]]
    more = len(by) - len(listed)
    if more:
        listed.append(f"{more} more")
    return " and ".join(filter(None, (", ".join(listed[:-1]), listed[-1]))) + (" together" if len(by) > 1 else "")


def _show_less(allow: Allow, by: Sequence[tuple[Rule, Never]]) -> str:
    least = max(never.show for _, never in by)
    if least > Depth.ANONYMISED:
        return f'`show = "{Depth(least - 1).word}"` is all that is left of `show = "{allow.show.word}"`'
    return "drop it, or narrow the never"
