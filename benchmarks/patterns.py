"""Patterns to scan for, payloads to scan, and the automaton that the hand-written rival walks."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import numpy as np

SEED = 20041206
PARTS = (
    "admin", "exec", "select", "union", "/etc", "passwd", "GET", "POST", "cgi", "-bin", "php", ".js", "=1", "eval(",
    "base64", "cmd", ".exe", "%20", "script", "alert(", "http://", "win", "32", "root", "user", "login", "shell", "/sh",
    "wget", "curl", "Mozilla", "bot", "Nikto",
)  # fmt: skip
REQUEST = (
    b"GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nAccept: text/html,application/xhtml+xml\r\n"
    b"User-Agent: Browser/5.0 (X11; Linux x86_64)\r\nCookie: session=0123456789; theme=dark\r\n\r\n"
)
FOUND = 0x8000  # handwritten/scan.c
NONE = 1 << 16  # larger than the number of any pattern


def words(count: int) -> tuple[bytes, ...]:
    """So many different patterns of 6 to 40 bytes, as in signatures of attacks, none of them in REQUEST."""
    chosen = random.Random(SEED)
    found: dict[bytes, None] = {}
    while len(found) < count:
        word = "".join(chosen.choices(PARTS, k=chosen.randint(2, 6))).encode()
        if len(word) >= 6 and word not in REQUEST:
            found[word] = None
    return tuple(found)


def ordinary(size_bytes: int) -> bytes:
    """Requests, one after the other."""
    return bytes(itertools.islice(itertools.cycle(REQUEST), size_bytes))


def worst(patterns: tuple[bytes, ...], size_bytes: int) -> bytes:
    """Patterns that lack their last byte: states deep in the automaton, and no match."""
    chosen = random.Random(SEED)
    longest = max(map(len, patterns))
    payload = b""
    while len(payload) < size_bytes:
        more = payload + chosen.choice(patterns)[:-1]
        if not any(pattern in more[-2 * longest :] for pattern in patterns):
            payload = more
    return payload[:size_bytes]


@dataclass(frozen=True, slots=True)
class Automaton:
    """For each byte its class, and for each state a row of `1 << shift` 16-bit numbers, one for each class: the next
    state, or FOUND and the number of the pattern that ends here."""

    classes: bytes
    rows: bytes
    shift: int


def automaton(patterns: tuple[bytes, ...]) -> Automaton:
    """The automaton of Aho and Corasick (1975), failure links resolved."""
    children: list[dict[int, int]] = [{}]
    ends = [NONE]
    for number, pattern in enumerate(patterns):
        state = 0
        for byte in pattern:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                ends.append(NONE)
            state = children[state][byte]
        ends[state] = number
    used = sorted({byte for pattern in patterns for byte in pattern})
    classes = np.zeros(256, np.uint8)
    classes[used] = np.arange(1, len(used) + 1)
    shift = len(used).bit_length()
    rows = np.zeros((len(children), 1 << shift), np.uint16)
    waiting = [(0, 0)]
    for state, fallback in waiting:  # grows while it is read: the shortest beginnings first
        rows[state] = rows[fallback]
        for byte, child in children[state].items():
            behind = int(rows[fallback, classes[byte]]) if state else 0
            found = min(ends[child], behind - FOUND if behind & FOUND else NONE)
            rows[state, classes[byte]] = child if found == NONE else FOUND | found
            if found == NONE:
                waiting.append((child, behind))
    return Automaton(classes.tobytes(), rows.tobytes(), shift)
