"""Where a filter must look at the packet's end: as seldom as its meaning allows.

A load outside the packet ends the filter with no, and so does every path that cannot accept. So one look can serve all
the loads that every accepting path will still make: a packet too short for those is stopped either way, only sooner.
Offsets count from the start of the packet, or from X where X is a header length (`ldxb 4*([k]&0xf)`, at most 60 bytes).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ffpf_bpf.graph import predicate as cbpf
from ffpf_bpf.graph.predicate import FARTHEST_BYTE, LONGEST_HEADER, Instruction, Program

HOPELESS = 1 << 40  # no path from here accepts
LONGEST_LOAD = 4
UNKNOWN = -1  # X is no header length, or not the same one on all paths


@dataclass(frozen=True, slots=True)
class Look:
    """What to check before an instruction's load: that many bytes from the start, and from X; 0: nothing.

    `from_x` says that the load's index counts from a header length that is X on every path to it.
    """

    start_bytes: int = 0
    x_bytes: int = 0
    from_x: bool = False


def plan_looks(program: Program) -> list[Look]:
    """The look of each instruction; HOPELESS bytes mean that the filter can end with no at once."""
    instructions = program.instructions
    origins = _origins(instructions)
    needs = _needs(instructions, origins)
    looks: list[Look] = []
    known: list[tuple[int, int]] = [(HOPELESS, HOPELESS)] * len(instructions)
    known[0] = (0, 0)
    for index, instruction in enumerate(instructions):
        start, x = known[index]
        start_end, x_end = _ends(instruction, origins[index])
        start_bytes = needs[index][0] if start_end > start else 0
        x_bytes = needs[index][1] if x_end > x else 0
        looks.append(Look(start_bytes, x_bytes, bool(x_end)))
        after = max(start, start_bytes), 0 if _sets_x(instruction) else max(x, x_bytes)
        for successor in _successors(index, instruction):
            known[successor] = min(known[successor][0], after[0]), min(known[successor][1], after[1])
    return looks


def reach_of(program: Program) -> int:
    """The bytes from the packet's start that a filter loads at most, and any packet may have."""
    origins = _origins(program.instructions)
    farthest = 0
    for instruction, origin in zip(program.instructions, origins, strict=True):
        start, x = _ends(instruction, origin)
        if instruction.kind == cbpf.LD and instruction.mode == cbpf.IND and origin == UNKNOWN:
            return FARTHEST_BYTE + LONGEST_LOAD
        for end in (start, LONGEST_HEADER + x if x else 0):
            if end < HOPELESS:
                farthest = max(farthest, end)
    return farthest


def _origins(instructions: tuple[Instruction, ...]) -> list[int]:
    """Before each instruction: which one set X to a header length, the same on all paths, or UNKNOWN."""
    origins: list[int | None] = [None] * len(instructions)
    origins[0] = UNKNOWN
    for index, instruction in enumerate(instructions):
        origin = origins[index]
        if _is_header_length(instruction):
            origin = index
        elif _sets_x(instruction):
            origin = UNKNOWN
        for successor in _successors(index, instruction):
            origins[successor] = origin if origins[successor] in (None, origin) else UNKNOWN
    return [UNKNOWN if origin is None else origin for origin in origins]


def _needs(instructions: tuple[Instruction, ...], origins: list[int]) -> list[tuple[int, int]]:
    """Before each instruction: bytes from the start, and from X as it is there, that every accepting path loads."""
    needs = [(HOPELESS, HOPELESS)] * len(instructions)
    for index in reversed(range(len(instructions))):
        instruction = instructions[index]
        if instruction.kind == cbpf.RET:
            hopeless = instruction.code & 0x18 != cbpf.RET_A and instruction.k == 0
            needs[index] = (HOPELESS, HOPELESS) if hopeless else (0, 0)
            continue
        after = [needs[successor] for successor in _successors(index, instruction)]
        start, x = _least(pair[0] for pair in after), _least(pair[1] for pair in after)
        start_end, x_end = _ends(instruction, origins[index])
        needs[index] = max(start, start_end), 0 if _sets_x(instruction) else max(x, x_end)
    return needs


def _ends(instruction: Instruction, origin: int) -> tuple[int, int]:
    """The byte after the last one that the instruction loads: from the start, and from X; 0 for none."""
    size = 1 if _is_header_length(instruction) else instruction.size
    end = instruction.k + size if instruction.k + size <= FARTHEST_BYTE else HOPELESS
    if _is_header_length(instruction) or (instruction.kind == cbpf.LD and instruction.mode == cbpf.ABS):
        return end, 0
    if instruction.kind == cbpf.LD and instruction.mode == cbpf.IND and origin != UNKNOWN:
        return 0, end
    return 0, 0


def _successors(index: int, instruction: Instruction) -> tuple[int, ...]:
    if instruction.kind == cbpf.RET:
        return ()
    if instruction.kind != cbpf.JMP:
        return (index + 1,)
    if instruction.operation == cbpf.JA:
        return (index + 1 + instruction.k,)
    return index + 1 + instruction.jump_true, index + 1 + instruction.jump_false


def _is_header_length(instruction: Instruction) -> bool:
    return instruction.kind == cbpf.LDX and instruction.mode == cbpf.MSH


def _sets_x(instruction: Instruction) -> bool:
    is_tax = instruction.kind == cbpf.MISC and instruction.code & 0xF8 != cbpf.TXA
    return instruction.kind == cbpf.LDX or is_tax


def _least(values: Iterable[int]) -> int:
    return min(values, default=HOPELESS)
