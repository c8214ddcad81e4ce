"""Byte strings to search packets for: what a plain search says, what the automaton's table says, and patterns to try."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import strategies as st

from ffpf_bpf.graph.automaton import Automaton


def first(patterns: Sequence[bytes], data: bytes, ignore_case: bool = False) -> int | None:
    """The number of the pattern whose match ends first; the first of those that end together."""
    if ignore_case:
        patterns, data = [pattern.lower() for pattern in patterns], data.lower()
    ends = [
        (data.find(pattern) + len(pattern), number) for number, pattern in enumerate(patterns, 1) if pattern in data
    ]
    return min(ends)[1] if ends else None


def walk(automaton: Automaton, data: bytes) -> int | None:
    """What the table says, read as bpf_src/scan.c does."""
    table, state = automaton.table, 0
    for byte in data:
        at = 256 + (state << automaton.shift) + (table[byte] << automaton.wide)
        state = int.from_bytes(table[at : at + 2], "little")
    return (state - automaton.accepting) // automaton.row + 1 if state >= automaton.accepting else None


ALPHABETS = st.sampled_from([b"ab", b"abA", b"\x00\xff|", bytes(range(256))])


@st.composite
def some_patterns(draw: st.DrawFn) -> tuple[tuple[bytes, ...], bool, bytes]:
    """Patterns, whether case is ignored, and the bytes of the packets."""
    letters = draw(ALPHABETS)
    strings = st.lists(st.sampled_from(letters), min_size=1, max_size=draw(st.sampled_from([3, 6, 12]))).map(bytes)
    patterns, ignore_case = draw(st.lists(strings, min_size=1, max_size=8)), draw(st.booleans())
    unlike = {pattern.lower() if ignore_case else pattern: pattern for pattern in patterns}
    return tuple(unlike.values()), ignore_case, letters[:8] + draw(st.sampled_from([b"", b"x"]))


PARTS = (
    b"admin", b"/etc/p", b"passwd", b"GET", b"POST", b"cgi", b"-bin", b".php", b"=1", b"eval(", b"base64", b"cmd", b".exe",
    b"%20", b"<script", b"http://", b"\\x", b"32", b"root", b"user", b"sh", b"-e", b"wget", b"bot",
)  # fmt: skip


def realistic(count: int) -> list[bytes]:
    """Patterns of 2 to 24 bytes, as of an intrusion detection system."""
    chance = random.Random(4)
    made: dict[bytes, None] = {}
    while len(made) < count:
        made[b"".join(chance.choices(PARTS, k=chance.randint(2, 5)))[:24]] = None
    return list(made)


def scattering(patterns: Sequence[bytes], length: int) -> bytes:
    """A packet without a match in which each byte leads to another state, far from the one before."""
    data = b""
    for pattern in random.Random(6).choices(patterns, k=length):
        if first(patterns, data[-48:] + pattern[:-1]) is None:
            data += pattern[:-1]
    return data[:length]
