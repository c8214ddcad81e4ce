"""Classic BPF without a kernel: the interpreter against libpcap, and what `checked` and `compile_filter` refuse."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from ffpf_bpf.compiler.pcap import compile_filter, offline_filter
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph import predicate as cbpf
from ffpf_bpf.graph.predicate import Instruction, Program, checked, run
from tests.corpus.filters import FILTERS, REFUSED, WRAPPING
from tests.corpus.packets import HEADER_BYTES, JUMBO_BYTES, LONGEST, jumbo_packets, packets

SEED = 20_260
PAIRS_PER_FILTER = 600
FEWEST_PAIRS = 100_000
# These say the same of every packet.
TRIVIAL = {"", "greater 0", "5 = 5", "ether proto 1500", "ether[1500000] = 0", "ip[9] = 6 and not tcp"}
# libpcap compiles `byte N & M` and `byte N | M` to a comparison that cannot hold.
NEVER = {"byte 0 & 1", "byte 23 | 0"}

ACCEPT, REJECT = Instruction(cbpf.RET, 0, 0, 1), Instruction(cbpf.RET, 0, 0, 0)
RETURN_A = Instruction(cbpf.RET | cbpf.RET_A, 0, 0, 0)
A_IS, X_IS = cbpf.LD | cbpf.IMM, cbpf.LDX | cbpf.IMM


def test_the_corpus_is_what_it_says():
    frames = packets(SEED)
    assert frames == packets(SEED)
    assert frames != packets(SEED + 1)
    assert len(set(FILTERS)) == len(FILTERS) >= 340
    assert len(REFUSED) >= 25
    assert len(frames) >= 400
    assert min(map(len, frames)) == HEADER_BYTES
    assert max(map(len, frames)) == LONGEST
    assert {len(frame) for frame in jumbo_packets(SEED)} == {JUMBO_BYTES}


def test_each_filter_passes_a_packet_and_stops_another():
    frames = packets(SEED)
    idle = set()
    for text in FILTERS:
        program = compile_filter(text)
        verdicts = (bool(offline_filter(program, frame)) for frame in frames)
        first = next(verdicts)
        if all(verdict == first for verdict in verdicts):
            idle.add(text)
    assert idle == TRIVIAL | NEVER


def test_the_interpreter_agrees_with_libpcap():
    """All filters, each with a sample of the packets that moves on from filter to filter."""
    started = time.monotonic()
    frames = [*packets(SEED), *jumbo_packets(SEED)]
    pairs = at = 0
    for text in FILTERS:
        program = compile_filter(text)
        for _ in range(PAIRS_PER_FILTER):
            frame = frames[at % len(frames)]
            assert run(program, frame) == offline_filter(program, frame), (text, frame.hex())
            at += 7  # prime to the number of frames, mostly: the samples of two filters differ
        pairs += PAIRS_PER_FILTER
    seconds = time.monotonic() - started
    print(f"{len(FILTERS)} filters, {len(frames):,} packets, {pairs:,} pairs, seed {SEED}, {seconds:.1f} s")
    assert pairs >= FEWEST_PAIRS


@pytest.mark.parametrize("text", ["len > 100", "greater 200", "ether[len - 1] = 0", "ether[60] = 0", "less 60"])
def test_a_packet_cut_by_the_capture_keeps_its_length_on_the_wire(text):
    program = compile_filter(text)
    for frame in packets(SEED)[::5]:
        for wire_length in (len(frame), len(frame) + 100):
            assert run(program, frame, wire_length) == offline_filter(program, frame, wire_length)


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=lambda value: repr(value)[:40])
def test_a_filter_is_refused_in_words(text, message):
    with pytest.raises(ExpressionError) as refusal:
        compile_filter(text)
    assert message in refusal.value.message
    assert refusal.value.where == "(bpf)"
    assert refusal.value.help


@pytest.mark.parametrize(
    ("with_name", "with_number"),
    [
        (r"ip proto \tcp", "ip proto 6"),
        (r"ip6 proto \icmp6", "ip6 proto 58"),
        (r"not proto (\udp or \sctp)", "not proto (17 or 132)"),
        (r"ether proto \arp or \ip", "ether proto 0x806 or 0x800"),
        (r"iso proto \isis", "iso proto 0x83"),
        ("udp[8:1]=1", "udp[8] == 1"),
        ("host 2001:db8::1", "host 2001:DB8:0::0:1"),
        ("ether host 0011.2233.4455", "ether host 00:11:22:33:44:55"),
        ("tcp[tcpflags]&tcp-syn!=0", "tcp[13] & 2 != 0"),
    ],
)
def test_two_ways_to_write_it_are_one_program(with_name, with_number):
    assert compile_filter(with_name).instructions == compile_filter(with_number).instructions


# Programs that libpcap would not write.

_K = st.one_of(
    st.integers(0, 80),
    st.sampled_from([0xFF, 0xFE00, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFB, 0xFFFFFFFF, 3_400, 31, 32]),
    st.integers(0, 0xFFFFFFFF),
)
_OFFSET = st.one_of(st.integers(0, 70), st.sampled_from([0xFE00, 0x7FFFFFFE, 0x7FFFFFFF]))
_CELL = st.integers(0, cbpf.SCRATCH_CELLS - 1)
_SIZE = st.sampled_from([cbpf.WORD, cbpf.HALF, cbpf.BYTE])
_OPERATIONS = [cbpf.ADD, cbpf.SUB, cbpf.MUL, cbpf.OR, cbpf.AND, cbpf.XOR, cbpf.NEG]
_RISKY = [cbpf.DIV, cbpf.MOD, cbpf.LSH, cbpf.RSH]
_COMPARISONS = [cbpf.JEQ, cbpf.JGT, cbpf.JGE, cbpf.JSET]


def _one(code: st.SearchStrategy[int] | int, k: st.SearchStrategy[int] | int = 0) -> st.SearchStrategy[Instruction]:
    as_strategy = (value if isinstance(value, st.SearchStrategy) else st.just(value) for value in (code, k))
    return st.builds(lambda code, k: Instruction(code, 0, 0, k), *as_strategy)


_STRAIGHT = st.one_of(
    _one(_SIZE.map(lambda size: cbpf.LD | cbpf.ABS | size), _OFFSET),
    _one(_SIZE.map(lambda size: cbpf.LD | cbpf.IND | size), _OFFSET),
    _one(cbpf.LDX | cbpf.MSH | cbpf.BYTE, _OFFSET),
    _one(st.sampled_from([cbpf.LD, cbpf.LDX]), _K),
    _one(st.sampled_from([cbpf.LD | cbpf.LEN, cbpf.LDX | cbpf.LEN])),
    _one(st.sampled_from([cbpf.LD | cbpf.MEM, cbpf.LDX | cbpf.MEM, cbpf.ST, cbpf.STX]), _CELL),
    _one(st.sampled_from([cbpf.ALU | operation for operation in _OPERATIONS]), _K),
    _one(st.sampled_from([cbpf.ALU | cbpf.DIV, cbpf.ALU | cbpf.MOD]), _K.filter(bool)),
    _one(st.sampled_from([cbpf.ALU | cbpf.LSH, cbpf.ALU | cbpf.RSH]), st.integers(0, 31)),
    _one(st.sampled_from([cbpf.MISC, cbpf.MISC | cbpf.TXA])),
)
_EDGE = st.sampled_from([0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
_BY_X = _one(st.sampled_from([cbpf.ALU | operation | cbpf.BY_X for operation in _OPERATIONS[:-1] + _RISKY]))


@st.composite
def _programs(draw: st.DrawFn) -> Program:
    """Any forward program. libpcap does not clear its cells, so they are stored to first."""
    body: list[Instruction] = [Instruction(cbpf.ST, 0, 0, cell) for cell in range(cbpf.SCRATCH_CELLS)]
    length = draw(st.integers(1, 16))
    for left in range(length, 0, -1):
        match draw(st.integers(0, 9)):
            case 0 | 1:
                code = cbpf.JMP | draw(st.sampled_from(_COMPARISONS)) | draw(st.sampled_from([0, cbpf.BY_X]))
                ahead = st.integers(0, left)
                body.append(Instruction(code, draw(ahead), draw(ahead), draw(_K)))
            case 2 if left > 1:
                body.append(Instruction(cbpf.JMP | cbpf.JA, 0, 0, draw(st.integers(0, left))))
            case 3 | 4:  # both operands known, so that the edges of the arithmetic come up
                body += [Instruction(A_IS, 0, 0, draw(_K)), Instruction(X_IS, 0, 0, draw(_EDGE)), draw(_BY_X)]
            case _:
                body.append(draw(_STRAIGHT))
    ends = st.sampled_from([ACCEPT, REJECT, RETURN_A, RETURN_A, RETURN_A])
    return checked("(drawn)", [*body, draw(ends), draw(ends)])


_PACKETS = st.one_of(st.sampled_from(packets(SEED)), st.binary(max_size=90))


@seed(SEED)
@settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(_programs(), _PACKETS, st.integers(0, 2_000))
def test_any_program_means_what_libpcap_says(program, packet, cut):
    """Also what filters do not write: shifts by X of 32 and more, division by X = 0, MSH."""
    wire_length = len(packet) + cut
    assert run(program, packet, wire_length) == offline_filter(program, packet, wire_length)


@pytest.mark.parametrize("text", WRAPPING)
def test_a_filter_whose_index_wraps_is_outside_the_packet(text):
    program = compile_filter(text)
    for frame in packets(SEED):
        assert run(program, frame) == offline_filter(program, frame), frame.hex()


@pytest.mark.parametrize("size", [cbpf.WORD, cbpf.HALF, cbpf.BYTE])
@pytest.mark.parametrize(
    ("x", "k"),
    [
        (0xFFFFFFFF, 1),
        (0xFFFFFFFB, 14),
        (0x80000000, 0x7FFFFFFF),
        (90, 0),
        (0, 90),
    ],
)
def test_an_index_that_wraps_is_outside_the_packet(size, x, k):
    program = checked("", [Instruction(X_IS, 0, 0, x), Instruction(cbpf.LD | cbpf.IND | size, 0, 0, k), ACCEPT])
    assert offline_filter(program, bytes(80)) == 0
    assert run(program, bytes(80)) == 0


@pytest.mark.parametrize(("x", "accepted"), [(65_000, 1), (65_280, 1), (65_281, 0), (65_500, 0)])
def test_an_index_that_leads_too_far_is_outside_the_packet(x, accepted):
    """Too far for the kernel; libpcap would load it."""
    program = checked("", [Instruction(X_IS, 0, 0, x), Instruction(cbpf.LD | cbpf.IND, 0, 0, 0), ACCEPT])
    assert (run(program, bytes(65_550)) != 0) == accepted
    assert offline_filter(program, bytes(65_550)) != 0


@pytest.mark.parametrize(
    ("operation", "a", "x", "result"),
    [
        (cbpf.LSH, 1, 31, 1 << 31),
        (cbpf.LSH, 1, 32, 0),
        (cbpf.RSH, 0xFFFFFFFF, 33, 0),
        (cbpf.RSH, 0xFFFFFFFF, 0xFFFFFFFF, 0),
        (cbpf.DIV, 7, 0, 0),
        (cbpf.MOD, 7, 0, 0),
        (cbpf.SUB, 0, 1, 0xFFFFFFFF),
        (cbpf.MUL, 0x10001, 0x10001, 0x20001),
        (cbpf.ADD, 0xFFFFFFFF, 2, 1),
    ],
)
def test_arithmetic_by_x(operation, a, x, result):
    load = [Instruction(A_IS, 0, 0, a), Instruction(X_IS, 0, 0, x)]
    calculate = [Instruction(cbpf.ALU | operation | cbpf.BY_X, 0, 0, 0), RETURN_A]
    program = checked("", load + calculate)
    assert run(program, b"") == offline_filter(program, b"") == result


@pytest.mark.parametrize(
    ("hazard", "message"),
    [
        ([], "the filter needs 0 instructions"),
        ([ACCEPT] * 4_097, "the filter needs 4,097 instructions"),
        ([Instruction(cbpf.JMP | cbpf.JA, 0, 0, 0xFFFFFFFF), ACCEPT], "the filter loops"),
        ([Instruction(cbpf.JMP | cbpf.JA, 0, 0, 1), ACCEPT], "the filter jumps past its end"),
        ([Instruction(cbpf.JMP | cbpf.JEQ, 1, 0, 0), ACCEPT], "the filter jumps past its end"),
        ([Instruction(cbpf.JMP | cbpf.JEQ, 0, 1, 0), ACCEPT], "the filter jumps past its end"),
        ([Instruction(cbpf.LD | cbpf.ABS, 0, 0, 0xFFFFF000), ACCEPT], "the filter reads what is not in the packet"),
        ([Instruction(cbpf.LD | cbpf.IND, 0, 0, 0x80000000), ACCEPT], "the filter reads what is not in the packet"),
        ([Instruction(cbpf.LDX | cbpf.MSH | cbpf.BYTE, 0, 0, 1 << 31), ACCEPT], "the filter reads what is not"),
        ([Instruction(cbpf.LD | cbpf.ABS | cbpf.HALF, 0, 0, 65_279), ACCEPT], "the filter reads byte 65,279"),
        ([Instruction(cbpf.LD | cbpf.IND | cbpf.BYTE, 0, 0, 65_220), ACCEPT], "the filter reads byte 65,220"),
        ([Instruction(cbpf.LD | cbpf.IND | cbpf.WORD, 0, 0, 500_000), ACCEPT], "the filter reads byte 500,000"),
        ([Instruction(cbpf.ALU | cbpf.DIV, 0, 0, 0), ACCEPT], "the filter divides by zero"),
        ([Instruction(cbpf.ALU | cbpf.MOD, 0, 0, 0), ACCEPT], "the filter divides by zero"),
        ([Instruction(cbpf.ALU | cbpf.LSH, 0, 0, 32), ACCEPT], "the filter shifts by 32 bits"),
        ([Instruction(cbpf.ALU | cbpf.RSH, 0, 0, 99), ACCEPT], "the filter shifts by 99 bits"),
        ([Instruction(cbpf.ST, 0, 0, 16), ACCEPT], "the filter uses memory that does not exist"),
        ([Instruction(cbpf.STX, 0, 0, 16), ACCEPT], "the filter uses memory that does not exist"),
        ([Instruction(cbpf.LD | cbpf.MEM, 0, 0, 16), ACCEPT], "the filter uses memory that does not exist"),
        ([Instruction(cbpf.LDX | cbpf.MEM, 0, 0, 16), ACCEPT], "the filter uses memory that does not exist"),
        ([ACCEPT, Instruction(A_IS, 0, 0, 0)], "the filter runs off its end"),
    ],
)
def test_a_hazard_is_refused_by_name(hazard, message):
    with pytest.raises(ExpressionError) as refusal:
        checked("", hazard)
    assert refusal.value.message.startswith(message)
    assert refusal.value.help
