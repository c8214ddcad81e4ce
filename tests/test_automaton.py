"""The automaton of many patterns: its table finds what a plain search finds, and is made in a moment."""

from __future__ import annotations

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.graph.automaton import build
from tests.patterns import first, realistic, some_patterns, walk


@settings(max_examples=300)
@given(some_patterns(), st.data())
def test_the_table_says_what_a_plain_search_says(
    case: tuple[tuple[bytes, ...], bool, bytes], data: st.DataObject
) -> None:
    patterns, ignore_case, letters = case
    automaton = build(patterns, ignore_case)
    for text in data.draw(st.lists(st.lists(st.sampled_from(letters), max_size=24).map(bytes), max_size=8)):
        assert walk(automaton, text) == first(patterns, text, ignore_case)


def test_more_than_128_bytes_are_in_use() -> None:
    chance = random.Random(2)
    for used in (1, 127, 128, 129, 255, 256):
        patterns = tuple(bytes([byte, byte, chance.randrange(used)]) for byte in range(used))
        automaton = build(patterns, False)
        assert automaton.wide == (used >= 128)
        for _ in range(300):
            data = bytes(chance.choices(range(256), k=3)) + chance.choice(patterns)[chance.randrange(2) :]
            assert walk(automaton, data) == first(patterns, data)


def test_a_thousand_patterns_take_a_moment_and_about_a_mebibyte() -> None:
    patterns = tuple(realistic(1_000))
    begun = time.process_time()
    automaton = build.__wrapped__(patterns, False)
    assert time.process_time() - begun < 0.5, "10 ms when nothing else runs"
    assert len(automaton.table) < 1 << 20
    assert automaton.table_bytes < 17 << 16
    assert build(patterns, False) is build(patterns, False), "built once"
    for _ in range(200):
        data = b"".join(random.Random(5).choices(patterns, k=3))[1:]
        assert walk(automaton, data) == first(patterns, data)
