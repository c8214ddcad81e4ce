"""What a user may do, as sentences: the rules that name them, and how these combine. For `ffpf policy explain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ffpf_bpf.authorise.decision import shown
from ffpf_bpf.authorise.policy import Policies, Rule
from ffpf_bpf.authorise.sentences import counted, explained
from ffpf_bpf.authorise.subject import Subject
from ffpf_bpf.authorise.taps import told_apart


def explanation(policies: Policies, subject: Subject) -> tuple[str, ...]:
    """The lines; one, if nothing is allowed because no rule names them."""
    naming = policies.naming(subject)
    who = shown(subject.user)
    if not naming:
        return (f"{who} may capture nothing: no rule names them.",)
    groups = f", in {', '.join(shown(group) for group in sorted(subject.groups))}" if subject.groups else ""
    lines = [f"User {who}{groups}: {counted(len(naming), 'rule')}."]
    for rule in naming:
        lines += ["", *explained(rule)]
    return (*lines, "", "Together:", *(f"  {line}" for line in _combined(naming)))


def _combined(naming: Sequence[Rule]) -> Iterator[str]:
    allowing = [rule for rule in naming if rule.classes]
    forbidding = [rule for rule in naming if rule.never]
    if not allowing:
        yield "They may capture nothing: no rule that names them allows anything."
        return
    if len(allowing) == 1:
        yield f"A flow keeps to rule {allowing[0].name}, all of it: taps, classes, orders and limits."
    else:
        yield f"A flow keeps to all of one of the rules {_listed(allowing)}: its taps, classes, orders and limits."
        if pairs := list(_meeting(allowing)):
            yield f"If it keeps to several, what they allow adds up; that can be at taps of {'; '.join(pairs)}."
        else:
            yield "No two of these are about the same tap, so what they allow never adds up."
    for rule in allowing:
        above = [each for each in forbidding if _meet(rule, each)]
        if above:
            yield f"What {_listed(above)} forbid{'s' if len(above) == 1 else ''} holds for flows by rule {rule.name}."
    if not forbidding:
        yield "Nothing is forbidden beyond that: what is not allowed is refused."
    for rule in forbidding:
        if not any(_meet(rule, each) for each in allowing):
            yield f"What {rule.name} forbids is at taps where nothing is allowed."


def _meeting(rules: Sequence[Rule]) -> Iterator[str]:
    for number, one in enumerate(rules):
        for other in rules[number + 1 :]:
            if _meet(one, other):
                yield f"{one.name} and {other.name}"


def _meet(one: Rule, other: Rule) -> bool:
    """Whether some tap is one of both."""
    return any(one.allows_tap(device) and other.allows_tap(device) for device in told_apart((*one.taps, *other.taps)))


def _listed(rules: Sequence[Rule]) -> str:
    *others, last = [rule.name for rule in rules]
    return f"{', '.join(others)} and {last}" if others else last
