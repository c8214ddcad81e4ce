"""Which names globs match together: all globs are run side by side, as automata, over all names; names that lead to the
same states are one. Exact for names of up to 15 characters, which is what the kernel takes for interfaces. Matches as
`fnmatchcase` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

LONGEST_NAME = 15  # IFNAMSIZ, less the zero
MOST_STATES = 20_000
NO_LETTERS = "/: "  # of no interface's name (net/core/dev.c, dev_valid_name)
FIRST_LETTER = "!"

State = tuple[frozenset[int], ...]  # of each glob, how far it may have come


def covers(wide: Iterable[str], glob: str) -> bool:
    """Whether each name that the glob matches is matched by one of the others; no, if that takes too long to see."""
    globs = (glob, *wide)
    found, is_whole = names(globs, _every_kind_of_letter(globs))
    return is_whole and all(any(others) for matches, *others in found if matches)


def meet(glob: str, other: str) -> bool:
    """Whether some name is matched by both; yes, if that takes too long to see."""
    globs = (glob, other)
    found, is_whole = names(globs, _every_kind_of_letter(globs))
    return not is_whole or any(all(matched) for matched in found)


def names(globs: Sequence[str], letters: Sequence[str]) -> tuple[dict[tuple[bool, ...], str], bool]:
    """A name of these letters for each set of globs that some such name matches, the usual ones first; and whether that
    is all there is."""
    each = [tokens(glob) for glob in globs]
    first: State = tuple(_reached(some, frozenset({0})) for some in each)
    seen: dict[State, str] = {first: ""}
    found: dict[tuple[bool, ...], str] = {}
    level = [first]
    for _ in range(LONGEST_NAME):
        following = []
        for state in level:
            for letter in letters:
                new = tuple(_step(some, at, letter) for some, at in zip(each, state, strict=True))
                found.setdefault(_accepted(each, new), seen[state] + letter)
                if new not in seen and any(new):
                    seen[new] = seen[state] + letter
                    following.append(new)
            if len(seen) > MOST_STATES:
                return found, False
        level = following
    return found, True


def _every_kind_of_letter(globs: Iterable[str]) -> list[str]:
    """A letter for each way in which globs tell letters apart. What a glob says of letters changes only at those that
    stand in it, and behind them."""
    ends = {*"".join(globs), *NO_LETTERS}
    return sorted({FIRST_LETTER, *ends, *(chr(ord(end) + 1) for end in ends)} - set(NO_LETTERS))


def tokens(glob: str) -> tuple[str, ...]:
    """Its parts: `*`, or a glob of one character."""
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
