"""Classic BPF on many packets at once returns what the interpreter and libpcap return on each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffpf_bpf.compiler.pcap import compile_filter, offline_filter
from ffpf_bpf.graph.predicate import Instruction, Program
from ffpf_bpf.graph.predicate import run as run_one
from tests import vectors
from tests.carriers import BEYOND, CARRIERS, ORDINARY
from tests.corpus.filters import FILTERS, WRAPPING
from tests.corpus.packets import packets

SEED = 20
PARTS = 8
FRAMES = [*packets(SEED), *(case.frame for case in (*CARRIERS, *BEYOND, *ORDINARY))]
ROWS = vectors.packed(FRAMES)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_filter_as_libpcap(part: int) -> None:
    """Each filter on every eighth packet, another eighth for the next filter."""
    for number, filter_text in enumerate((*FILTERS, *WRAPPING)):
        if number % PARTS != part:
            continue
        program = compile_filter(filter_text)
        found = vectors.run(program, ROWS).tolist()
        some = range(number // PARTS % 8, len(FRAMES), 8)
        assert [found[row] for row in some] == [offline_filter(program, FRAMES[row]) for row in some], filter_text


@pytest.mark.parametrize("filter_text", FILTERS[::12], ids=lambda text: text[:50])
def test_filters_as_the_interpreter(filter_text: str) -> None:
    program = compile_filter(filter_text)
    assert vectors.run(program, ROWS).tolist() == [run_one(program, frame) for frame in FRAMES]


NUMBERS = st.sampled_from((0, 1, 2, 7, 14, 20, 31, 32, 33, 255, 0xFFFF, 1 << 31, 0xFFFF_FFFF))
SHORT = [frame for frame in FRAMES if len(frame) < 100][:80]
SHORT_ROWS = vectors.packed(SHORT)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Loads, arithmetic, cells and jumps at random, which end in `ret a`; some shapes no filter has."""
    count = draw(st.integers(1, 12))
    instructions = []
    for left in range(count, 0, -1):
        k = draw(NUMBERS)
        match draw(st.sampled_from("lxasmj")):
            case "l":
                mode = draw(st.sampled_from((0x00, 0x20, 0x40, 0x60, 0x80)))
                size = draw(st.sampled_from((0x00, 0x08, 0x10))) if mode in (0x20, 0x40) else 0
                made = Instruction(mode | size, 0, 0, k % 16 if mode == 0x60 else k)
            case "x":
                mode = draw(st.sampled_from((0x00, 0x60, 0x80, 0xA0)))
                made = Instruction(0x01 | mode | (0x10 if mode == 0xA0 else 0), 0, 0, k % 16 if mode == 0x60 else k)
            case "a":
                operation = draw(st.integers(0, 10)) << 4
                made = Instruction(0x04 | operation | draw(st.sampled_from((0, 8))), 0, 0, k)
            case "s":
                made = Instruction(draw(st.sampled_from((0x02, 0x03))), 0, 0, k % 16)
            case "m":
                made = Instruction(0x07 | draw(st.sampled_from((0x00, 0x80))), 0, 0, 0)
            case _:
                operation = draw(st.integers(1, 4)) << 4
                ways = [draw(st.integers(0, left - 1)) for _ in range(2)]
                made = Instruction(0x05 | operation | draw(st.sampled_from((0, 8))), *ways, k)
        instructions.append(made)
    return Program("random", (*instructions, Instruction(0x16, 0, 0, 0)))


@given(programs())
def test_random_programs_as_the_interpreter(program: Program) -> None:
    found = vectors.run(program, SHORT_ROWS)
    assert found.tolist() == [run_one(program, frame) for frame in SHORT]


def test_packets_as_rows() -> None:
    rows = vectors.packed([b"abc", b"", b"abcdef"], width=4)
    assert rows.data.shape == (3, 6)
    assert [rows[row] for row in range(3)] == [b"abc", b"", b"abcdef"]
    assert len(vectors.run(Program("", (Instruction(0x06, 0, 0, 5),)), rows)) == 3
    assert np.all(vectors.run(Program("", (Instruction(0x28, 0, 0, 2), Instruction(0x06, 0, 0, 5))), rows) == [0, 0, 5])
