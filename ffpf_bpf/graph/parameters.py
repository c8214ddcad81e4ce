"""What node classes read of their expressions: words, numbers and sizes."""

from __future__ import annotations

import re
from fractions import Fraction

from ffpf_bpf.errors import ExpressionError

UNIT = "(?:([kMG]|[KMG]i)?(B|bit))?"
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def words(expression: str, known: frozenset[str], *, where: str, help: str) -> tuple[list[str], dict[str, str]]:
    """The bare words of an expression, and its `name=value` words, whose names must be `known` and stand once."""
    bare: list[str] = []
    named: dict[str, str] = {}
    for word in expression.split():
        name, equals, value = word.partition("=")
        if not equals:
            bare.append(word)
        elif name not in known or name in named:
            what = "twice" if name in named else "unknown"
            raise ExpressionError(f"`{name}=` is {what}", where=where, help=help)
        else:
            named[name] = value
    return bare, named


def whole_number(text: str, what: str, *, where: str, help: str) -> int:
    """A whole number of at most 19 digits, as text."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise ExpressionError(
            f"`{text}` is not {what}" if text else f"no {what.removeprefix('a ')}", where=where, help=help
        )
    return int(text)


def amount(text: str) -> tuple[int, str] | None:
    """`1000` is 1,000 packets; `64KiB`, `5MB`, `1500B` and `10Mbit` are bytes. None if it is neither."""
    found = re.fullmatch(rf"(\d{{1,19}}){UNIT}", text, re.ASCII)
    if found is None:
        return None
    if found[3] is None:
        return int(found[1]), "packets"
    size = int(found[1]) * UNITS[found[2] or ""]
    return (size, "bytes") if found[3] == "B" else (size // 8, "bytes")


def decimal_amount(text: str) -> tuple[Fraction, str] | None:
    """The same of `1.5` and `1.5MB`, which are not taken: to tell what to write instead."""
    found = re.fullmatch(rf"(\d{{0,19}}\.\d{{1,19}}){UNIT}", text, re.ASCII)
    if found is None:
        return None
    value = Fraction(f"0{found[1]}") * UNITS[found[2] or ""]
    return (value / 8, "bytes") if found[3] == "bit" else (value, "bytes" if found[3] else "packets")


def amount_text(number: int, unit: str) -> str:
    """What `amount` reads as so many packets or bytes: these in the largest unit that divides them exactly."""
    if unit == "packets":
        return str(number)
    factor, prefix = max((factor, prefix) for prefix, factor in UNITS.items() if number % factor == 0)
    return f"{number // factor}{prefix}B"


def instead_of_decimals(text: str, help: str) -> str:
    """The help on an amount that is none: what to write for one with decimals, else `help`."""
    found = decimal_amount(text)
    if found is None or not found[0] or found[0].denominator != 1:
        return help
    return f"whole numbers only: write `{amount_text(int(found[0]), found[1])}`"
