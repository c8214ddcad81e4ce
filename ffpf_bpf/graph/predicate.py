"""Classic BPF as a value: the one form that every back end reads a filter in, and its reference interpreter.

The meaning is libpcap's `pcap_filter` (bpf_filter.c): a load outside the captured bytes, and a division by zero,
end the whole program with 0. What executors disagree on is refused by `checked`: unknown codes, backward jumps,
negative (ancillary) offsets, division by a constant 0, constant shifts of 32 and more. Shifts by X of 32 and more give
0; an index X + k of 2^32 and more lies outside the packet. So does, otherwise than libpcap has it, one of more than
FARTHEST_BYTE; without an index a load there is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from ffpf_bpf.errors import ExpressionError

# Instruction fields, as in <pcap/bpf.h>.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
WORD, HALF, BYTE = 0x00, 0x08, 0x10
IMM, ABS, IND, MEM, LEN, MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR = (operation << 4 for operation in range(11))
JA, JEQ, JGT, JGE, JSET = 0x00, 0x10, 0x20, 0x30, 0x40
BY_X = 0x08
RET_A = 0x10
TXA = 0x80
CODES = frozenset(
    [
        *(LD | mode | size for mode in (ABS, IND) for size in (WORD, HALF, BYTE)),
        *(kind | mode for kind in (LD, LDX) for mode in (IMM, MEM, LEN)),
        LDX | MSH | BYTE, ST, STX,
        *(ALU | operation | by for operation in (ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, MOD, XOR) for by in (0, BY_X)),
        ALU | NEG, JMP | JA,
        *(JMP | operation | by for operation in (JEQ, JGT, JGE, JSET) for by in (0, BY_X)),
        RET, RET | RET_A, MISC, MISC | TXA,
    ]
)  # fmt: skip
SIZES = {WORD: 4, HALF: 2, BYTE: 1}
SCRATCH_CELLS = 16
MOST_INSTRUCTIONS = 4_096
NEGATIVE = 1 << 31
FARTHEST_BYTE = 0xFF00  # what begins beyond cannot be loaded in the kernel (MAX_PACKET_OFF): as if it were not there
LONGEST_HEADER = 60  # what `4*([k]&0xf)` comes to at most
LONGEST_FRAME = 0xF_FFFF  # twice what TCP hands down to be cut (GSO_MAX_SIZE); flows see no longer ones


@dataclass(frozen=True, slots=True)
class Instruction:
    """One classic BPF instruction: `code`, jump offsets, and the 32-bit operand `k`."""

    code: int
    jump_true: int
    jump_false: int
    k: int

    @property
    def kind(self) -> int:
        return self.code & 7

    @property
    def size(self) -> int:
        """Bytes loaded."""
        return SIZES.get(self.code & 0x18, 0)

    @property
    def mode(self) -> int:
        return self.code & 0xE0

    @property
    def operation(self) -> int:
        return self.code & 0xF0

    @property
    def by_x(self) -> bool:
        return bool(self.code & BY_X)


@dataclass(frozen=True, slots=True)
class Program:
    """A checked classic BPF program and the filter text it came from."""

    filter: str
    instructions: tuple[Instruction, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the instructions: what a decision is bound to."""
        packed = b"".join(
            bytes((i.code & 0xFF, i.code >> 8, i.jump_true, i.jump_false)) + i.k.to_bytes(4, "little")
            for i in self.instructions
        )
        return sha256(packed).hexdigest()

    def listing(self) -> str:
        """The program in tcpdump's `-ddd` numbers with its disassembly's line numbers: `(000) code jt jf k`."""
        return "\n".join(
            f"({number:03}) {i.code:#06x} {i.jump_true:3} {i.jump_false:3} {i.k:#010x}"
            for number, i in enumerate(self.instructions)
        )


def checked(filter_text: str, instructions: Sequence[Instruction]) -> Program:
    """The program, or ExpressionError naming what no executor agrees on."""
    if not 0 < len(instructions) <= MOST_INSTRUCTIONS:
        _refuse(
            f"the filter needs {len(instructions):,} instructions", f"at most {MOST_INSTRUCTIONS:,}; use several nodes"
        )
    for index, instruction in enumerate(instructions):
        _check(index, instruction, len(instructions))
    if instructions[-1].kind != RET:
        _refuse("the filter runs off its end", "libpcap made a broken program; please report the filter")
    return Program(filter_text, tuple(instructions))


def _check(index: int, instruction: Instruction, count: int) -> None:
    kind, k = instruction.kind, instruction.k
    if instruction.code not in CODES:
        _refuse("the filter has an unknown instruction", "libpcap made a broken program; please report the filter")
    if kind == JMP:
        targets = (k,) if instruction.operation == JA else (instruction.jump_true, instruction.jump_false)
        if any(target >= NEGATIVE for target in targets):
            _refuse("the filter loops", "`protochain` is not supported; name the extension headers, as in `ip6[6] = 0`")
        if any(index + 1 + target >= count for target in targets):
            _refuse("the filter jumps past its end", "libpcap made a broken program; please report the filter")
    elif _loads_packet(instruction) and k >= NEGATIVE:
        _refuse(
            "the filter reads what is not in the packet", "direction, interface and other metadata are not supported"
        )
    elif _loads_packet(instruction) and _farthest(instruction) < k + instruction.size <= LONGEST_FRAME:
        _refuse(f"the filter reads byte {k:,} of the packet", f"at most byte {_farthest(instruction):,}")
    elif kind == ALU and not instruction.by_x:
        if instruction.operation in (DIV, MOD) and k == 0:
            _refuse("the filter divides by zero", "check its arithmetic")
        if instruction.operation in (LSH, RSH) and k >= 32:
            _refuse(f"the filter shifts by {k} bits", "at most 31")
    elif (kind in (ST, STX) or (kind in (LD, LDX) and instruction.mode == MEM)) and k >= SCRATCH_CELLS:
        _refuse("the filter uses memory that does not exist", "libpcap made a broken program; please report the filter")


def _loads_packet(instruction: Instruction) -> bool:
    return instruction.kind in (LD, LDX) and instruction.mode in (ABS, IND, MSH)


def _farthest(instruction: Instruction) -> int:
    """Up to where it may load: with an index so far that none of a header's length leads beyond what can be loaded."""
    return FARTHEST_BYTE - LONGEST_HEADER if instruction.mode == IND else FARTHEST_BYTE


def _refuse(message: str, help: str) -> None:
    raise ExpressionError(message, where="(bpf)", help=help)


def run(program: Program, packet: bytes, wire_length: int | None = None) -> int:
    """What the program returns for the captured bytes of a packet: 0 stops it. The reference for all back ends."""
    return _Machine(packet, len(packet) if wire_length is None else wire_length).run(program.instructions)


class _Reject(Exception):
    """The program ends with 0."""


class _Machine:
    """Registers A and X, and 16 cells."""

    def __init__(self, packet: bytes, wire_length: int) -> None:
        self.packet = packet
        self.wire_length = wire_length
        self.a = self.x = 0
        self.cells = [0] * SCRATCH_CELLS

    def run(self, instructions: Sequence[Instruction]) -> int:
        at = 0
        try:
            while True:
                i = instructions[at]
                at += 1
                match i.kind:
                    case 0:  # LD
                        self.a = self._load(i)
                    case 1:  # LDX
                        self.x = self._load(i)
                    case 2:  # ST
                        self.cells[i.k] = self.a
                    case 3:  # STX
                        self.cells[i.k] = self.x
                    case 4:  # ALU
                        self.a = self._calculate(i)
                    case 5:  # JMP
                        at += i.k if i.operation == JA else self._branch(i)
                    case 6:  # RET
                        return self.a if i.code & 0x18 == RET_A else i.k
                    case _:  # MISC
                        if i.code & 0xF8 == TXA:
                            self.a = self.x
                        else:
                            self.x = self.a
        except _Reject:
            return 0

    def _load(self, i: Instruction) -> int:
        match i.mode:
            case 0x00:  # IMM
                return i.k
            case 0x20:  # ABS
                return self._bytes(i.k, i.size)
            case 0x40:  # IND
                return self._bytes(self.x + i.k, i.size)
            case 0x60:  # MEM
                return self.cells[i.k]
            case 0x80:  # LEN
                return self.wire_length
            case 0xA0:  # MSH
                return (self._bytes(i.k, 1) & 0xF) << 2
            case other:
                raise ValueError(f"unknown load mode {other:#x}")

    def _bytes(self, offset: int, size: int) -> int:
        if offset > FARTHEST_BYTE or offset + size > len(self.packet):
            raise _Reject
        return int.from_bytes(self.packet[offset : offset + size], "big")

    def _calculate(self, i: Instruction) -> int:
        a, operand = self.a, self.x if i.by_x else i.k
        match i.operation:
            case 0x00:
                return (a + operand) & 0xFFFFFFFF
            case 0x10:
                return (a - operand) & 0xFFFFFFFF
            case 0x20:
                return (a * operand) & 0xFFFFFFFF
            case 0x30 | 0x90 if operand == 0:
                raise _Reject
            case 0x30:
                return a // operand
            case 0x40:
                return a | operand
            case 0x50:
                return a & operand
            case 0x60:
                return (a << operand) & 0xFFFFFFFF if operand < 32 else 0
            case 0x70:
                return a >> operand if operand < 32 else 0
            case 0x80:
                return -a & 0xFFFFFFFF
            case 0x90:
                return a % operand
            case 0xA0:
                return a ^ operand
            case other:
                raise ValueError(f"unknown operation {other:#x}")

    def _branch(self, i: Instruction) -> int:
        a, operand = self.a, self.x if i.by_x else i.k
        match i.operation:
            case 0x10:
                holds = a == operand
            case 0x20:
                holds = a > operand
            case 0x30:
                holds = a >= operand
            case 0x40:
                holds = bool(a & operand)
            case other:
                raise ValueError(f"unknown jump {other:#x}")
        return i.jump_true if holds else i.jump_false
