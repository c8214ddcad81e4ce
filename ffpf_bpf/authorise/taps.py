"""Which taps globs tell apart: for each combination of globs that some tap matches, one such tap.

Exact for interface names, but for those with the signs of globs; of namespaces, names of up to 15 characters are shown.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import product

from ffpf_bpf.authorise.policy import Rule, matches_any, matches_tap
from ffpf_bpf.graph.classes.device import GLOB, HOOKS, Device
from ffpf_bpf.graph.effect import tap_parts
from ffpf_bpf.graph.globs import LONGEST_NAME, names, tokens

USUAL = string.ascii_lowercase[::-1] + string.digits + string.ascii_uppercase + "-_."


def told_apart(globs: Iterable[str]) -> tuple[Device, ...]:
    """A tap for each set of these globs, of those with at least one, that some tap matches and no other glob does."""
    globs = tuple(dict.fromkeys(globs))
    found: dict[frozenset[str], Device] = {}
    for device in _taps(globs):
        matched = frozenset(glob for glob in globs if matches_tap(glob, device))
        if matched:
            found.setdefault(matched, device)
    return tuple(found.values())


def _taps(globs: Sequence[str]) -> Iterator[Device]:
    """Each interface whose name or namespace the globs tell apart, at each hook."""
    namespaces, interfaces, _ = zip(*map(tap_parts, globs), strict=True) if globs else ((), (), ())
    places = [f"{name}/" for name in _names([glob for glob in namespaces if glob], "blue")]
    for hook, place, name in product(HOOKS, ["", *places], _names(interfaces, "eth0")):
        if name not in (".", "..") and place not in ("./", "../"):
            yield Device(f"{place}{name}@{hook}")


def covers(wide: Rule, narrow: Rule) -> bool:
    """Whether every tap of one rule is one of the other."""
    if set(narrow.taps) <= set(wide.taps):
        return True
    devices = told_apart((*wide.taps, *narrow.taps))
    return all(wide.allows_tap(device) for device in devices if narrow.allows_tap(device))


@lru_cache(maxsize=1_024)
def at_another_hook(some: tuple[str, ...], more: tuple[str, ...]) -> tuple[Device, Device] | None:
    """A tap that `more` match and `some` do not, though they match another hook of that interface, which is the other
    tap; None if there is none."""
    if set(more) <= set(some):
        return None
    for device in _taps((*some, *more)):
        if matches_any(more, device) and not matches_any(some, device):
            others = (Device(f"{device.place}@{hook}") for hook in HOOKS)
            other = next((other for other in others if matches_any(some, other)), None)
            if other is not None:
                return device, other
    return None


def _names(globs: Sequence[str], usual: str) -> list[str]:
    """A name for each set of globs that some name matches, the usual ones first."""
    globs = tuple(dict.fromkeys(globs))
    return [_numbered(name, globs, usual) for name in names(globs, _letters(globs))[0].values()] if globs else []


def _numbered(name: str, globs: Sequence[str], usual: str) -> str:
    """The usual name, or else this one with a number behind it, if that is the same to the globs: it reads better."""
    longer = name if name[-1].isdigit() or len(name) == LONGEST_NAME else f"{name}0"
    for better in (usual, longer):
        if all(fnmatchcase(name, glob) == fnmatchcase(better, glob) for glob in globs):
            return better
    return name


def _letters(globs: Sequence[str]) -> list[str]:
    """One character for each way in which the globs tell characters apart, the usual ones first."""
    single = sorted({token for glob in globs for token in tokens(glob) if token != "*"})
    found: dict[tuple[bool, ...], str] = {}
    for letter in (*USUAL, *sorted(set("".join(globs)) - set(f"/ \t\n:{GLOB}"))):
        found.setdefault(tuple(fnmatchcase(letter, token) for token in single), letter)
    return list(found.values())
