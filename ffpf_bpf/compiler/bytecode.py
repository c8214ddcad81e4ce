"""BPF instructions, decoded: the instruction set of `-mcpu=v3` and nothing beyond (RFC 9669).

A decoder of our own, for the audit: it shares nothing with what makes the instructions. What it does not know is no
instruction to it, however harmless.
"""

from __future__ import annotations

import struct
from enum import IntEnum, auto
from typing import NamedTuple

INSTRUCTION_BYTES = 8
FRAME = 10  # the register that holds the address of the stack
REGISTERS = 11
FETCH, COMPARE_AND_SWAP = 0x01, 0xF1
ATOMICS = frozenset({0x00, 0x01, 0x40, 0x41, 0x50, 0x51, 0xA0, 0xA1, 0xE1, COMPARE_AND_SWAP})
SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
LETTERS = {4: "u32", 2: "u16", 1: "u8", 8: "u64"}


class Kind(IntEnum):
    """What an instruction does, as far as the audit tells apart."""

    UNKNOWN = 0
    CALCULATE = auto()  # a number comes out, whatever went in
    MOVE = auto()
    MOVE_NUMBER = auto()
    ADD = auto()
    ADD_NUMBER = auto()
    SUBTRACT = auto()
    WIDE = auto()  # the 64-bit immediate, which takes two places
    LOAD = auto()
    STORE = auto()
    STORE_NUMBER = auto()
    ATOMIC = auto()
    BRANCH = auto()
    JUMP = auto()
    CALL = auto()
    EXIT = auto()


class Instruction(NamedTuple):
    """One instruction: `size` in bytes of what it loads or stores, 0 for others."""

    kind: Kind
    opcode: int
    target: int
    source: int
    offset: int
    immediate: int
    size: int


def _kinds() -> list[tuple[Kind, int]]:
    """Kind and size by opcode."""
    kinds = [(Kind.UNKNOWN, 0)] * 256
    for operation in range(0x00, 0xE0, 0x10):
        for opcode in (operation | 0x04, operation | 0x0C, operation | 0x07, operation | 0x0F):
            kinds[opcode] = Kind.CALCULATE, 0
    # Negation takes no register; swapping bytes is of the 32-bit class.
    for opcode in (0x8C, 0x8F, 0xD7, 0xDF):
        kinds[opcode] = Kind.UNKNOWN, 0
    kinds[0xB7] = kinds[0xB4] = Kind.MOVE_NUMBER, 0
    kinds[0xBF] = Kind.MOVE, 0
    kinds[0x07], kinds[0x0F] = (Kind.ADD_NUMBER, 0), (Kind.ADD, 0)
    kinds[0x17], kinds[0x1F] = (Kind.ADD_NUMBER, 0), (Kind.SUBTRACT, 0)
    for operation in (0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0):
        for opcode in (operation | 0x05, operation | 0x0D, operation | 0x06, operation | 0x0E):
            kinds[opcode] = Kind.BRANCH, 0
    kinds[0x05], kinds[0x85], kinds[0x95], kinds[0x18] = (Kind.JUMP, 0), (Kind.CALL, 0), (Kind.EXIT, 0), (Kind.WIDE, 0)
    for bits, size in SIZES.items():
        kinds[0x61 | bits] = Kind.LOAD, size
        kinds[0x62 | bits] = Kind.STORE_NUMBER, size
        kinds[0x63 | bits] = Kind.STORE, size
    kinds[0xC3], kinds[0xDB] = (Kind.ATOMIC, 4), (Kind.ATOMIC, 8)
    return kinds


KINDS = _kinds()
NO_OFFSET = frozenset({Kind.CALCULATE, Kind.MOVE, Kind.MOVE_NUMBER, Kind.ADD, Kind.ADD_NUMBER, Kind.SUBTRACT})
CHANGES_TARGET = NO_OFFSET | {Kind.LOAD, Kind.WIDE}
REST = Instruction(Kind.UNKNOWN, 0, 0, 0, 0, 0, 0)  # the second place of a wide one, to which nothing may jump
MOST_KNOWN = 1 << 16
_known: dict[bytes, Instruction] = {}  # what was decoded before: programs have most of their instructions in common


class Malformed(Exception):
    """At instruction `at` stands something that is none."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(at, what)
        self.at = at
        self.what = what


def decode(code: bytes) -> list[Instruction]:
    """The instructions, one for each 8 bytes; the second place of a wide one is of kind UNKNOWN. Raises Malformed."""
    if not code or len(code) % INSTRUCTION_BYTES:
        raise Malformed(0, f"{len(code)} bytes are no instructions")
    found: list[Instruction] = []
    wide = False
    for at in range(0, len(code), INSTRUCTION_BYTES):
        word = code[at : at + INSTRUCTION_BYTES]
        if wide:
            if word[:4] != bytes(4):
                break
            found.append(REST)
            wide = False
            continue
        instruction = _known.get(word) or _decoded(word, len(found))
        found.append(instruction)
        wide = instruction.kind is Kind.WIDE
    if wide:
        raise Malformed(len(found) - 1, "half of a 64-bit immediate is missing")
    return found


def _decoded(word: bytes, at: int) -> Instruction:
    opcode, registers, offset, immediate = struct.unpack("<BBhi", word)
    kind, size = KINDS[opcode]
    target, source = registers & 15, registers >> 4
    if kind is Kind.UNKNOWN:
        raise Malformed(at, f"opcode {opcode:#04x} is not known")
    if target > FRAME or source > FRAME or (offset and kind in NO_OFFSET):
        raise Malformed(at, f"opcode {opcode:#04x} has unknown operands")
    if target == FRAME and kind in CHANGES_TARGET:
        raise Malformed(at, "the address of the stack is changed")
    if kind is Kind.ATOMIC and immediate not in ATOMICS:
        raise Malformed(at, f"atomic operation {immediate:#04x} is not known")
    if opcode == 0x17:  # a subtracted constant is added as its opposite
        immediate = -immediate
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    return _known.setdefault(word, Instruction(kind, opcode, target, source, offset, immediate, size))


class Block(NamedTuple):
    """Instructions that are walked one behind the other, up to `end`, and where they go on then."""

    end: int
    onward: tuple[int, ...]


def blocks(instructions: list[Instruction]) -> dict[int, Block]:
    """The blocks of a program, by where they begin. Raises Malformed for a jump that leads to no instruction."""
    begins = {0}
    ends: dict[int, tuple[int, ...]] = {}
    for at, instruction in enumerate(instructions):
        kind = instruction[0]
        if kind is Kind.BRANCH or kind is Kind.JUMP:
            target = _checked(instructions, at, at + 1 + instruction.offset)
            begins.add(target)
            ends[at + 1] = (target, at + 1) if kind is Kind.BRANCH else (target,)
        elif kind is Kind.EXIT:
            ends[at + 1] = ()
        elif kind is Kind.CALL and instruction.source == 1 and instruction.immediate != -1:
            begins.add(_checked(instructions, at, at + 1 + instruction.immediate))
    inside = sorted(begins | ends.keys() - {len(instructions)})
    found = {}
    for begin, end in zip(inside, [*inside[1:], len(instructions)], strict=True):
        onward = ends.get(end)
        found[begin] = Block(end, (end,) if onward is None else onward)
    return found


def order(found: dict[int, Block]) -> dict[int, int]:
    """In what order to walk blocks: each behind those that lead to it, but for loops (reverse postorder)."""
    finished: list[int] = []
    seen: set[int] = set()
    for root, block in found.items():
        if root in seen:
            continue
        finished_here: list[int] = []
        seen.add(root)
        path = [(root, iter(block.onward))]
        while path:
            begin, onward = path[-1]
            for other in onward:
                if other not in seen and other in found:
                    seen.add(other)
                    path.append((other, iter(found[other].onward)))
                    break
            else:
                finished_here.append(begin)
                path.pop()
        finished += reversed(finished_here)
    return {begin: number for number, begin in enumerate(finished)}


def _checked(instructions: list[Instruction], at: int, target: int) -> int:
    if not 0 <= target < len(instructions) or instructions[target].kind is Kind.UNKNOWN:
        raise Malformed(at, f"it goes on at {target}, where no instruction begins")
    return target


def shown(instruction: Instruction) -> str:
    """What a store does, as the verifier writes it."""
    place = f"*({LETTERS[instruction.size]} *)(r{instruction.target} {instruction.offset:+d})"
    if instruction.kind is Kind.ATOMIC:
        return f"atomic {place}"
    value = instruction.immediate if instruction.kind is Kind.STORE_NUMBER else f"r{instruction.source}"
    return f"{place} = {value}"
