"""The formula of a filter is the filter: on packets that exist, and on packets that the solvers find.

`FFPF_FILTER_PAIRS=200000` tries more pairs.
"""

from __future__ import annotations

import os
import random

import pytest

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import Undecided, accepts, possible_values
from ffpf_bpf.authorise.proof.solvers import Clock, Verdict, apart, frame_lengths, solve
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.witness import packet_of
from ffpf_bpf.compiler.pcap import compile_filter, offline_filter
from ffpf_bpf.graph import predicate as cbpf
from ffpf_bpf.graph.predicate import Instruction, Program, run
from tests.carriers import BEYOND, CARRIERS, ORDINARY
from tests.corpus.filters import FILTERS, WRAPPING
from tests.corpus.packets import packets
from tests.meaning import meaning
from tests.near import near

pytestmark = pytest.mark.slow

PAIRS = int(os.environ.get("FFPF_FILTER_PAIRS", "20000"))
SEED = 28
SOLVED = 40  # filters that the solvers are asked for packets of
PAYLOAD = (
    "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420", "udp[8] & 0x80 != 0", "ip[0] / ether[2] = 3", "ip[8] % ip[9] = 2",
    "ether[0:4] * ether[4:4] > ether[8:4]", "ip[((ip[2:2] & 0xff) - 7)] = 3", "ip[8] << ip[9] = 64", "ip[2:2] >> ip[8] = 1",
)  # fmt: skip
TEXTS = tuple(text for text in (*FILTERS, *WRAPPING, *PAYLOAD))
CASES = [case.frame for case in (*CARRIERS, *BEYOND, *ORDINARY)]


def frames(chance: random.Random, program: Program, count: int) -> list[bytes]:
    """Ordinary, odd, cut, and near what the filter looks at."""
    known = [*packets(SEED), *CASES]
    rows = near(chance, [program], [], max(count // 2, 8))
    found = [rows[number] for number in range(len(rows))]
    found += chance.choices(known, k=count - count // 3)
    for frame in chance.choices(known, k=count // 3):
        found.append(frame[: chance.randint(0, min(len(frame), 80))])
    return found


def formula(program: Program) -> Term | None:
    try:
        return accepts(program)
    except Undecided:
        return None


def disagreement(program: Program, truth: Term, tried: list[bytes]) -> str:
    """A packet of which formula, interpreter and libpcap do not say the same."""
    find = meaning([truth])
    for number, frame in enumerate(tried):
        said = find(frame)[0]
        if number % 50 == 0:
            values = {t.length(): len(frame), **{t.byte(at): each for at, each in enumerate(frame)}}
            assert t.evaluate([truth], values) == [said]
        if not said == bool(run(program, frame)) == bool(offline_filter(program, frame)):
            return f"{program.filter!r}: {said} for {frame.hex()}"
    return ""


def test_formulas_agree_with_interpreter_and_libpcap() -> None:
    chance = random.Random(SEED)
    undecided = []
    for text in TEXTS:
        with apart():
            program = compile_filter(text)
            truth = formula(program)
            if truth is None:
                undecided.append(text)
                continue
            assert disagreement(program, truth, frames(chance, program, PAIRS // len(TEXTS) + 1)) == ""
    assert len(undecided) < len(TEXTS) // 20, undecided


def test_packets_of_the_solvers_are_accepted_and_of_the_negation_are_not() -> None:
    chance = random.Random(SEED)
    found = {True: 0, False: 0}
    for text in chance.sample(TEXTS, SOLVED):
        with apart():
            program = compile_filter(text)
            truth = formula(program)
            if truth is None:
                continue
            for wanted, asked in ((True, truth), (False, t.negated(truth))):
                answer = solve(asked, Clock(5))
                if answer.verdict is not Verdict.SOME:
                    assert not _some(program, wanted), f"{text}: none is {wanted}, but there is one"
                    continue
                frame = packet_of(answer.values)
                own = _exactly(answer.values)
                for each in (own, *([frame] if t.evaluate([asked], _values(frame))[0] else [])):
                    assert bool(run(program, each)) is bool(offline_filter(program, each)) is wanted, (text, each.hex())
                found[wanted] += 1
    assert min(found.values()) > SOLVED // 2


def _some(program: Program, wanted: bool) -> bool:
    return any(bool(run(program, frame)) is wanted for frame in (*packets(SEED), *CASES))


def _values(frame: bytes) -> dict[Term, int]:
    return {t.length(): len(frame), **{t.byte(at): each for at, each in enumerate(frame)}}


def _exactly(values: dict[Term, int]) -> bytes:
    """The solver's packet, with zeros where it says nothing."""
    frame = bytearray(values.get(t.length(), 14))
    for term, value in values.items():
        if term.op == "byte" and term.args[1] < len(frame):
            frame[term.args[1]] = value
    return bytes(frame)


# What libpcap's compiler does not make.

A, X = cbpf.LD, cbpf.LDX
OFFSETS = (0, 3, 12, 13, 14, 20, 23, 30, 60, 0x3FFF, 0xFE00)


def _random_program(chance: random.Random) -> Program:
    """Any instructions, jumps forward, the last one returns. Cells are written first: libpcap does not clear them."""
    length = chance.randint(2, 14)
    made = [Instruction(cbpf.ST, 0, 0, cell) for cell in range(4)]
    for at in range(length - 1):
        left = length - at - 2
        size = chance.choice((cbpf.WORD, cbpf.HALF, cbpf.BYTE))
        k = chance.choice((0, 1, 2, 4, 6, 7, 14, 31, 255, 0x0800, 0xFFFF, 0xFFFFFFF0, chance.randrange(1 << 32)))
        kinds = (
            "abs",
            "abs",
            "ind",
            "imm",
            "len",
            "msh",
            "mem",
            "st",
            "alu",
            "alu",
            "alu x",
            "jump",
            "jump",
            "jump x",
            "misc",
        )
        match chance.choice((*kinds, "ret")):
            case "abs":
                made.append(Instruction(A | cbpf.ABS | size, 0, 0, chance.choice(OFFSETS)))
            case "ind":
                made.append(Instruction(A | cbpf.IND | size, 0, 0, chance.choice(OFFSETS)))
            case "imm":
                made.append(Instruction(chance.choice((A, X)) | cbpf.IMM, 0, 0, k))
            case "len":
                made.append(Instruction(chance.choice((A, X)) | cbpf.LEN, 0, 0, 0))
            case "msh":
                made.append(Instruction(X | cbpf.MSH | cbpf.BYTE, 0, 0, chance.choice(OFFSETS)))
            case "mem":
                made.append(Instruction(chance.choice((A, X)) | cbpf.MEM, 0, 0, chance.randrange(4)))
            case "st":
                made.append(Instruction(chance.choice((cbpf.ST, cbpf.STX)), 0, 0, chance.randrange(4)))
            case "alu":
                operation = chance.choice((cbpf.ADD, cbpf.SUB, cbpf.MUL, cbpf.DIV, cbpf.OR, cbpf.AND, cbpf.LSH, cbpf.RSH,
                                           cbpf.MOD, cbpf.XOR, cbpf.NEG))  # fmt: skip
                if operation in (cbpf.LSH, cbpf.RSH):
                    k %= 32
                made.append(Instruction(cbpf.ALU | operation, 0, 0, k or 3))
            case "alu x":
                operation = chance.choice((cbpf.ADD, cbpf.SUB, cbpf.MUL, cbpf.DIV, cbpf.OR, cbpf.AND, cbpf.LSH, cbpf.RSH,
                                           cbpf.MOD, cbpf.XOR))  # fmt: skip
                made.append(Instruction(cbpf.ALU | operation | cbpf.BY_X, 0, 0, 0))
            case "misc":
                made.append(Instruction(cbpf.MISC | chance.choice((0, cbpf.TXA)), 0, 0, 0))
            case "ret":
                made.append(Instruction(cbpf.RET | chance.choice((0, cbpf.RET_A)), 0, 0, k & 1))
            case by:
                operation = chance.choice((cbpf.JEQ, cbpf.JGT, cbpf.JGE, cbpf.JSET))
                by_x = cbpf.BY_X if by == "jump x" else 0
                jumps = chance.randint(0, left), chance.randint(0, left)
                made.append(Instruction(cbpf.JMP | operation | by_x, *jumps, 0 if by_x else k))
    made.append(Instruction(cbpf.RET | chance.choice((0, cbpf.RET_A)), 0, 0, 1))
    return cbpf.checked("random", made)


def test_formulas_of_any_program() -> None:
    chance = random.Random(SEED + 1)
    known = [*packets(SEED), *CASES]
    decided = 0
    for _ in range(max(PAIRS // 40, 100)):
        with apart():
            program = _random_program(chance)
            truth = formula(program)
            if truth is None:
                continue
            decided += 1
            tried = [
                *chance.choices(known, k=20),
                *(frame[: chance.randint(0, 40)] for frame in chance.choices(known, k=10)),
            ]
            assert disagreement(program, truth, tried) == "", program.listing()
    assert decided > 60


@pytest.mark.parametrize(
    ("term", "values"),
    [
        (t.widened(t.byte(3), 32), set(range(256))),
        (t.bit_and(t.byte(3), t.const(0x0C, 8)), {0, 4, 8, 12}),
        (t.shift_left(t.widened(t.extract(t.byte(3), 3, 0), 32), t.const(2, 32)), set(range(0, 64, 4))),
        (t.widened(t.concat(t.byte(1), t.byte(2)), 32), None),
    ],
)
def test_possible_values(term: Term, values: set[int] | None) -> None:
    found = possible_values(term)
    assert (None if found is None else set(found)) == values


@pytest.mark.parametrize("at", [65_000, 65_280, 65_281, 65_500])
def test_what_an_index_leads_too_far_to_be_loaded_is_not_there(at: int) -> None:
    """As the kernel has it: of a long frame the formula says what the interpreter says."""
    program = compile_filter(f"ether[(ether[20] & 1) * {at}] < 256")
    frame = bytearray(65_550)
    frame[20] = 1
    assert bool(run(program, bytes(frame))) == (at <= 65_280)
    with apart():
        values = {t.length(): len(frame), t.byte(20): 1}
        assert t.evaluate([accepts(program)], values)[0] == (at <= 65_280)


def test_lengths_of_frames() -> None:
    assert (
        solve(t.all_of((t.negated(frame_lengths()), t.less(t.length(), t.const(14, 20)))), Clock(5)).verdict
        is Verdict.NONE
    )
