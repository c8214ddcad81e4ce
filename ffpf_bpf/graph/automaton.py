"""Byte strings -> the automaton that finds them all at once, as the table that bpf_src/scan.c walks.

Aho and Corasick, Efficient string matching: an aid to bibliographic search, CACM 18(6), 1975: a state is the longest
beginning of a pattern that the bytes so far end with. Failure links are resolved, so each byte is one look into the
table, whatever and however many the patterns. A pattern once found is a state that nothing leaves.

The table is 256 bytes that give each byte its class (bytes that no pattern has are one class), then the rows: for each
state the next one for each class, in 16 bits. Rows are in the order of the beginnings' lengths, so that the few states
which most packets are in lie together. A state is written as the offset of its row in units of `1 << shift` bytes, the
smallest that do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ffpf_bpf.errors import ExpressionError

CLASSES_BYTES = 256
MOST_STATES = 1 << 16
NOWHERE = MOST_STATES  # larger than any state as it is written
Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Automaton:
    """`table` is what the kernel walks; the numbers describe it.

    The first state is 0; rows are `row` units of `1 << shift` bytes apart. The states of found patterns begin with
    `accepting`, in the order of the patterns. Classes are written doubled, as offsets, unless they are `wide`: over
    128. `reach` is how many bytes a match has before its last one, at most.
    """

    table: bytes
    shift: int
    row: int
    accepting: int
    wide: bool
    reach: int
    states: int

    @property
    def table_bytes(self) -> int:
        """The memory in which every 16-bit state has its row, as the verifier wants it: 64 KiB to 32 MiB."""
        return CLASSES_BYTES + ((MOST_STATES - 1) << self.shift) + 512


@lru_cache(maxsize=8)
def build(patterns: tuple[bytes, ...], ignore_case: bool) -> Automaton:
    """The automaton of patterns, none of which is empty and no two of which are the same. Where several end at one byte
    it finds the first of them. Raises ExpressionError if there are too many states."""
    trie = _Trie(tuple(map(bytes.lower, patterns)) if ignore_case else patterns)
    if trie.states > MOST_STATES:
        raise ExpressionError(
            f"pattern set too large: {trie.states:,} states",
            help=f"at most {MOST_STATES:,}, one for each different beginning of a pattern",
        )
    classes, width = _classes(trie.bytes, ignore_case)
    shift, row = _units(width, trie.states)
    accepting = (trie.states - len(patterns)) * row
    rows = np.zeros((trie.states, (row << shift) // 2), np.uint16)
    found = accepting + row * np.arange(len(patterns))
    rows[-len(patterns) :] = found[:, None]
    _link(trie, classes.astype(np.int64), rows, row, found)
    wide = width > 128
    written = classes if wide else 2 * classes
    table = written.astype(np.uint8).tobytes() + rows.tobytes()
    return Automaton(table, shift, row, accepting, wide, max(map(len, patterns)) - 1, trie.states)


class _Trie:
    """The beginnings of the patterns, each a node: its last byte, the node before, its length, and the pattern that
    ends there, or -1."""

    def __init__(self, patterns: tuple[bytes, ...]) -> None:
        befores, letters, ends, lengths = [0], [0], [-1], [0]
        steps: dict[int, int] = {}
        for number, pattern in enumerate(patterns):
            node = 0
            for length, byte in enumerate(pattern, 1):
                step = node << 8 | byte
                following = steps.get(step)
                if following is None:
                    following = steps[step] = len(befores)
                    befores.append(node)
                    letters.append(byte)
                    lengths.append(length)
                    ends.append(-1)
                node = following
            ends[node] = number
        self.states = len(befores)
        self.bytes = sorted(set(letters[1:]))
        self.before, self.letter, self.end = (np.array(values) for values in (befores, letters, ends))
        order, counts = np.argsort(lengths, kind="stable"), np.bincount(lengths)
        self.levels = np.split(order, np.cumsum(counts))[1:-1]


def _classes(used: list[int], ignore_case: bool) -> tuple[Numbers, int]:
    """The class of each byte, and how many there are."""
    classes = np.zeros(256, np.int64)
    classes[used] = np.arange(len(used)) + (len(used) < 256)
    if ignore_case:
        classes[ord("A") : ord("Z") + 1] = classes[ord("a") : ord("z") + 1]
    return classes, int(classes.max()) + 1


def _units(width: int, states: int) -> tuple[int, int]:
    """The smallest unit in which the offsets of all rows are 16 bits, as a shift, and the units of a row."""
    for shift in range(10):
        row = -(-2 * width >> shift) if shift else 2 * width
        if states * row <= MOST_STATES:
            return shift, row
    raise AssertionError("a row of 512 bytes is one unit of 512 bytes")


def _link(trie: _Trie, classes: Numbers, rows: np.ndarray[Any, Any], row: int, found: Numbers) -> None:
    """Fill in the rows, shorter beginnings first: a row is that of the longest proper ending of its state which is a
    state as well, but for the bytes that make a beginning longer."""
    row_of = np.full(trie.states, -1)
    row_of[0] = 0
    ending = np.zeros(trie.states, np.int64)
    made = 1
    for level, nodes in enumerate(trie.levels):
        # What is behind a pattern that was found is never reached.
        nodes = nodes[row_of[trie.before[nodes]] >= 0]  # noqa: PLW2901
        above, letter = row_of[trie.before[nodes]], classes[trie.letter[nodes]]
        via = rows[ending[above], letter].astype(np.int64) if level else np.zeros(len(nodes), np.int64)
        ends = trie.end[nodes]
        state = np.where(ends >= 0, found[ends], NOWHERE)
        state = np.minimum(state, np.where(via >= found[0], via, NOWHERE))
        goes_on = state == NOWHERE
        new = made + np.arange(np.count_nonzero(goes_on))
        made += len(new)
        row_of[nodes[goes_on]] = new
        ending[new] = via[goes_on] // row
        state[goes_on] = row * new
        rows[above, letter] = state
        rows[new] = rows[ending[new]]
