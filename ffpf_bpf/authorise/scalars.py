"""The TOML form of what is one text or number, or one word of a list: each gives the value or raises its mistake."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase

from ffpf_bpf.authorise.mistake import mistake, nearest, quoted
from ffpf_bpf.authorise.policy import ANY, CARRIERS, Part
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.classes.device import HOOKS
from ffpf_bpf.graph.effect import Depth, tap_parts

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
LARGEST_LIMIT = 1 << 40
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
LONGEST_LIFE_S = 3_650 * 86_400
FORBIDDABLE = (Depth.ANONYMISED, Depth.HEADERS, Depth.ALL)


def rule_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise mistake(f"{quoted(text)} is not a name for a rule", "up to 64 letters, digits, `_`, `.` and `-`")
    return text


def subject(text: str) -> str:
    kind, colon, name = text.partition(":")
    if text == ANY or (kind in ("user", "group") and re.fullmatch(r"[^\s:,*]+", name)):
        return text
    near = difflib.get_close_matches(kind[:64], ("user", "group"), n=1)
    raise mistake(
        f"{quoted(text)} is no subject",
        f"did you mean {quoted(f'{near[0]}:{name}')}?"
        if near and colon and name
        else 'write "user:NAME", "group:NAME" or "*"',
    )


def tap(text: str) -> str:
    namespace, interface, hook = tap_parts(text)
    is_place = bool(interface) and not set(interface) & set("/ \t\n:") and (bool(namespace) or "/" not in text)
    if not is_place or not text.isprintable():
        raise mistake(
            f"{quoted(text)} is no tap", 'write a glob on INTERFACE@HOOK, as in "eth*", "veth*@*" or "blue/eth*"'
        )
    if not any(fnmatchcase(known, hook) for known in HOOKS):
        raise mistake(f"{quoted(text)} has an unknown hook {quoted(hook)}", nearest(hook, HOOKS, "the hooks are"))
    return text


def node_class(text: str) -> str:
    if text not in CLASSES:
        raise mistake(f"unknown node class {quoted(text)}", nearest(text, CLASSES, "the classes are"))
    return text


def node_class_or_any(text: str) -> str:
    return text if text == ANY else node_class(text)


def size_bytes(value: object) -> object:
    """Text as a number; what is neither is left to be refused."""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,15}) ?([A-Za-z]*)", value)
        if not match or match[2] not in UNITS:
            raise mistake(f"{quoted(value)} is not a number of bytes", 'write bytes, or a text such as "64KiB"')
        return int(match[1]) * UNITS[match[2]]
    return value


def size_in_range(value: int) -> int:
    if not 1 <= value <= LARGEST_LIMIT:
        raise mistake(f"{value:,} bytes", f"1 to {LARGEST_LIMIT:,} bytes")
    return value


def seconds(value: object) -> float:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", value) if isinstance(value, str) else None
    if not match:
        raise mistake(f"{quoted(value)} is not a time", 'write "30s", "10m", "8h" or "7d"')
    found = int(match[1]) * SECONDS[match[2]]
    if not 1 <= found <= LONGEST_LIFE_S:
        raise mistake(f"{quoted(value)} is not a time that a flow lives", "1s to 3650d")
    return float(found)


def depth(value: object) -> Depth:
    return _depth(value, tuple(Depth))


def forbidden_depth(value: object) -> Depth:
    if value == Depth.COUNTS.word:
        raise mistake("a `never` does not forbid to count", f"the depths are {_words(FORBIDDABLE)}")
    return _depth(value, FORBIDDABLE)


def _depth(value: object, known: tuple[Depth, ...]) -> Depth:
    words = {each.word: each for each in known}
    if not isinstance(value, str) or value not in words:
        raise mistake(f"unknown depth {quoted(value)}", nearest(str(value), words, "the depths are"))
    return words[value]


def _words(depths: tuple[Depth, ...]) -> str:
    return ", ".join(each.word for each in depths)


def part(text: str) -> Part:
    if text not in list(Part):
        raise mistake(f"{quoted(text)} cannot be hidden", nearest(text, Part, "what can be hidden is"))
    return Part(text)


def carrier(text: str) -> str:
    if text != ANY and text not in CARRIERS:
        raise mistake(f"unknown carrier {quoted(text)}", nearest(text, CARRIERS, 'the carriers are "*", which is all,'))
    return text
