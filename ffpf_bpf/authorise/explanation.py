"""What a user may do, as sentences: the rules that name them, and how these combine. For `ffpf policy explain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ffpf_bpf.authorise.decision import shown
from ffpf_bpf.authorise.policy import Policies, Rule
from ffpf_bpf.authorise.sentences import counted, explained, listed
from ffpf_bpf.authorise.subject import Subject
from ffpf_bpf.authorise.taps import told_apart

MOST_EXPLAINED = 40  # of a list


def explanation(policies: Policies, subject: Subject, most: int = MOST_EXPLAINED) -> tuple[str, ...]:
    """The lines; one, if nothing is allowed because no rule names them. Lists of more than `most` are cut short."""
    naming = policies.naming(subject)
    who = shown(subject.user)
    if not naming:
        return (f"{who} may capture nothing: no rule names them.",)
    groups = f", in {', '.join(shown(group) for group in sorted(subject.groups))}" if subject.groups else ""
    lines = [f"User {who}{groups}: {counted(len(naming), 'rule')}."]
    for rule in naming:
        lines += ["", *explained(rule, most)]
    return (*lines, "", "Together:", *(f"  {line}" for line in _combined(naming, most)))


def _combined(naming: Sequence[Rule], most: int) -> Iterator[str]:
    allowing = [rule for rule in naming if rule.classes]
    forbidding = [rule for rule in naming if rule.never]
    if not allowing:
        yield "They may capture nothing: no rule that names them allows anything."
        return
    if len(allowing) == 1:
        yield f"A flow keeps to rule {allowing[0].name}, all of it: taps, classes, orders and limits."
    else:
        listed = _listed(allowing, most)
        yield f"A flow keeps to all of one of the rules {listed}: its taps, classes, orders and limits."
        if together := list(_meeting(allowing, most)):
            yield f"If it keeps to several, what they allow adds up; that can be at taps of {'; '.join(together)}."
        else:
            yield "No two of these are about the same tap, so what they allow never adds up."
    for above, below in _above(allowing, forbidding):
        flows = f"rule {below[0].name}" if len(below) == 1 else f"rules {_listed(below, most)}"
        yield f"What {_listed(above, most)} forbid{'s' if len(above) == 1 else ''} holds for flows by {flows}."
    if not forbidding:
        yield "Nothing is forbidden beyond that: what is not allowed is refused."
    for rule in forbidding:
        if not any(_meet(rule, some[0]) for some in _by_taps(allowing)):
            yield f"What {rule.name} forbids is at taps where nothing is allowed."


def _by_taps(rules: Sequence[Rule]) -> list[list[Rule]]:
    """The rules about the same taps together."""
    found: dict[tuple[str, ...], list[Rule]] = {}
    for rule in rules:
        found.setdefault(rule.taps, []).append(rule)
    return list(found.values())


def _meeting(rules: Sequence[Rule], most: int) -> Iterator[str]:
    """The rules some tap of which is one of another as well."""
    groups = _by_taps(rules)
    for number, some in enumerate(groups):
        if len(some) > 1:
            yield f"{some[0].name} and {some[1].name}" if len(some) == 2 else f"any two of {_listed(some, most)}"
        for others in groups[number + 1 :]:
            if _meet(some[0], others[0]):
                yield (
                    f"{_listed(some, most)} and {_listed(others, most)}"
                    if len(some) == len(others) == 1
                    else (f"any of {_listed(some, most)} and any of {_listed(others, most)}")
                )


def _above(allowing: Sequence[Rule], forbidding: Sequence[Rule]) -> Iterator[tuple[list[Rule], list[Rule]]]:
    """Those that forbid something of what others allow, with all of which that is so."""
    found: dict[tuple[str, ...], tuple[list[Rule], list[Rule]]] = {}
    bans = _by_taps(forbidding)
    for some in _by_taps(allowing):
        above = [rule for others in bans if _meet(some[0], others[0]) for rule in others]
        if above:
            found.setdefault(tuple(rule.name for rule in above), (above, []))[1].extend(some)
    yield from found.values()


def _meet(one: Rule, other: Rule) -> bool:
    """Whether some tap is one of both."""
    return any(one.allows_tap(device) and other.allows_tap(device) for device in told_apart((*one.taps, *other.taps)))


def _listed(rules: Sequence[Rule], most: int) -> str:
    return listed([rule.name for rule in rules], most)
