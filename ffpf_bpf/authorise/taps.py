"""Which taps globs tell apart: for each combination of globs that some tap matches, one such tap.

Exact for interface names of up to 15 characters, which is what the kernel takes: all globs are run side by side, as
automata, over all names; names that lead to the same states are one. Matches as `fnmatchcase` does.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from ffpf_bpf.authorise.policy import Rule, matches_tap, split_tap
from ffpf_bpf.graph.classes.device import HOOKS, Device

LONGEST_NAME = 15  # IFNAMSIZ, less the zero
MOST_STATES = 20_000  # then combinations that only longer names show may be missed
USUAL = string.ascii_lowercase[::-1] + string.digits + string.ascii_uppercase + "-_."

State = tuple[frozenset[int], ...]  # of each glob, how far it may have come


def told_apart(globs: Iterable[str]) -> tuple[Device, ...]:
    """A tap for each set of these globs, of those with at least one, that some tap matches and no other glob does."""
    globs = tuple(dict.fromkeys(globs))
    names = _names(tuple(dict.fromkeys(split_tap(glob)[0] for glob in globs)))
    found: dict[frozenset[str], Device] = {}
    for hook in HOOKS:
        for name in names:
            device = Device(f"{name}@{hook}")
            matched = frozenset(glob for glob in globs if matches_tap(glob, device))
            if matched:
                found.setdefault(matched, device)
    return tuple(found.values())


def covers(wide: Rule, narrow: Rule) -> bool:
    """Whether every tap of one rule is one of the other."""
    if set(narrow.taps) <= set(wide.taps):
        return True
    devices = told_apart((*wide.taps, *narrow.taps))
    return all(wide.allows_tap(device) for device in devices if narrow.allows_tap(device))


def _names(globs: Sequence[str]) -> list[str]:
    """A name for each set of globs that some name matches, the usual ones first."""
    tokens = [_tokens(glob) for glob in globs]
    letters = _letters(tokens, globs)
    first: State = tuple(_reached(each, frozenset({0})) for each in tokens)
    seen: dict[State, str] = {first: ""}
    found: dict[tuple[bool, ...], str] = {}
    level = [first]
    for _ in range(LONGEST_NAME):
        following = []
        for state in level:
            for letter in letters:
                new = tuple(_step(each, at, letter) for each, at in zip(tokens, state, strict=True))
                found.setdefault(_accepted(tokens, new), seen[state] + letter)
                if new not in seen and any(new):
                    seen[new] = seen[state] + letter
                    following.append(new)
            if len(seen) > MOST_STATES:
                return [_numbered(name, globs) for name in found.values()]
        level = following
    return [_numbered(name, globs) for name in found.values()]


def _numbered(name: str, globs: Sequence[str]) -> str:
    """`eth0`, or else the name with a number behind it, if that is the same to the globs: it reads better."""
    longer = name if name[-1].isdigit() or len(name) == LONGEST_NAME else f"{name}0"
    for better in ("eth0", longer):
        if all(fnmatchcase(name, glob) == fnmatchcase(better, glob) for glob in globs):
            return better
    return name


def _tokens(glob: str) -> tuple[str, ...]:
    """`*`, or a glob of one character."""
    return tuple(_each_token(glob))


def _each_token(glob: str) -> Iterator[str]:
    at = 0
    while at < len(glob):
        end = at + 1
        if glob[at] == "[":
            body = at + 1 + glob.startswith("!", at + 1)
            closing = glob.find("]", body + 1)
            end = closing + 1 if closing >= 0 else end
        yield glob[at:end] if glob[at:end] != "[" else "[[]"
        at = end


def _letters(tokens: Iterable[Sequence[str]], globs: Iterable[str]) -> list[str]:
    """One character for each way in which the tokens tell characters apart."""
    single = sorted({token for each in tokens for token in each if token != "*"})
    found: dict[tuple[bool, ...], str] = {}
    for letter in (*USUAL, *sorted(set("".join(globs)) - set("/ \t\n:"))):
        found.setdefault(tuple(fnmatchcase(letter, token) for token in single), letter)
    return list(found.values())


def _reached(tokens: Sequence[str], at: frozenset[int]) -> frozenset[int]:
    """With what can be reached without a character: a `*` may stand for nothing."""
    found = set(at)
    for place, token in enumerate(tokens):
        if place in found and token == "*":
            found.add(place + 1)
    return frozenset(found)


def _step(tokens: Sequence[str], at: frozenset[int], letter: str) -> frozenset[int]:
    found = set()
    for place in at:
        if place < len(tokens):
            if tokens[place] == "*":
                found.add(place)
            elif fnmatchcase(letter, tokens[place]):
                found.add(place + 1)
    return _reached(tokens, frozenset(found))


def _accepted(tokens: Sequence[Sequence[str]], state: State) -> tuple[bool, ...]:
    return tuple(len(each) in at for each, at in zip(tokens, state, strict=True))
