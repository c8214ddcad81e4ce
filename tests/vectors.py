"""Classic BPF on many packets at once: a matrix of bytes, one packet a row, and their lengths.

The same meaning as `graph.predicate.run` (a load outside the packet and a division by zero end the program with 0), by
another way: each instruction is done for all packets that have come to it. Jumps lead forwards only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ffpf_bpf.graph.predicate import Instruction, Program

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Numbers = np.ndarray[Any, np.dtype[np.uint64]]
Places = np.ndarray[Any, np.dtype[np.intp]]
WORD = np.uint64(0xFFFFFFFF)
LD, LDX, ST, STX, ALU, JMP, RET = range(7)


@dataclass(frozen=True, slots=True)
class Packets:
    """`data` is (N, L); of row i the first `lengths[i]` bytes are the packet, which has that length on the wire too."""

    data: Bytes
    lengths: Numbers

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> bytes:
        return self.data[row, : int(self.lengths[row])].tobytes()


def packed(frames: Sequence[bytes], width: int = 0) -> Packets:
    """The frames as rows, behind each zeros."""
    width = max([width, 1, *map(len, frames)])
    joined = b"".join(frame.ljust(width, b"\0") for frame in frames)
    data = np.frombuffer(joined, np.uint8).reshape(len(frames), width).copy()
    return Packets(data, np.array([len(frame) for frame in frames], np.uint64))


def run(program: Program, packets: Packets) -> Numbers:
    """What the program returns for each packet."""
    return _Machine(packets).run(program.instructions)


class _Machine:
    """Registers A and X and 16 cells of every packet. `here` are the packets that are at the instruction."""

    def __init__(self, packets: Packets) -> None:
        self.data, self.lengths = packets.data, packets.lengths
        self.a, self.x, self.result = (np.zeros(len(packets), np.uint64) for _ in range(3))
        self.cells: dict[int, Numbers] = {}

    def run(self, instructions: Sequence[Instruction]) -> Numbers:
        waiting: list[list[Places]] = [[] for _ in instructions]
        waiting[0].append(np.arange(len(self.lengths)))
        for at, i in enumerate(instructions):
            parts = waiting[at]
            here = np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else None
            if here is None or not len(here):
                continue
            match i.kind:
                case 0:
                    here, self_a = self._load(i, here)
                    self.a[here] = self_a
                case 1:
                    here, self_x = self._load(i, here)
                    self.x[here] = self_x
                case 2 | 3:
                    cell = self.cells.setdefault(i.k, np.zeros(len(self.lengths), np.uint64))
                    cell[here] = (self.a if i.kind == ST else self.x)[here]
                case 4:
                    here = self._calculate(i, here)
                case 5:
                    self._branch(i, at, here, waiting)
                    continue
                case 6:
                    self.result[here] = self.a[here] if i.code & 0x18 == 0x10 else i.k
                    continue
                case _:
                    if i.code & 0xF8 == 0x80:
                        self.a[here] = self.x[here]
                    else:
                        self.x[here] = self.a[here]
            waiting[at + 1].append(here)
        return self.result

    def _load(self, i: Instruction, here: Places) -> tuple[Places, Numbers | int]:
        match i.mode:
            case 0x00:
                return here, i.k
            case 0x20:
                return self._bytes(np.full(len(here), i.k, np.uint64), i.size, here)
            case 0x40:
                return self._bytes(self.x[here] + np.uint64(i.k), i.size, here)
            case 0x60:
                return here, self.cells[i.k][here] if i.k in self.cells else 0
            case 0x80:
                return here, self.lengths[here]
            case 0xA0:
                here, value = self._bytes(np.full(len(here), i.k, np.uint64), 1, here)
                return here, (value & np.uint64(15)) << np.uint64(2)
            case other:
                raise ValueError(f"unknown load mode {other:#x}")

    def _bytes(self, offsets: Numbers, size: int, here: Places) -> tuple[Places, Numbers]:
        inside = offsets + np.uint64(size) <= self.lengths[here]
        here, offsets = here[inside], offsets[inside]
        value = np.zeros(len(here), np.uint64)
        for number in range(size):
            value = value << np.uint64(8) | self.data[here, (offsets + np.uint64(number)).astype(np.intp)]
        return here, value

    def _calculate(self, i: Instruction, here: Places) -> Places:
        operand = self.x[here] if i.by_x else np.full(len(here), i.k, np.uint64)
        if i.operation in (0x30, 0x90):
            here, operand = here[operand != 0], operand[operand != 0]
        a, shift = self.a[here], np.minimum(operand, np.uint64(32))
        match i.operation:
            case 0x00:
                value = a + operand
            case 0x10:
                value = a - operand
            case 0x20:
                value = a * operand
            case 0x30:
                value = a // operand
            case 0x40:
                value = a | operand
            case 0x50:
                value = a & operand
            case 0x60:
                value = a << shift
            case 0x70:
                value = a >> shift
            case 0x80:
                value = np.uint64(0) - a
            case 0x90:
                value = a % operand
            case 0xA0:
                value = a ^ operand
            case other:
                raise ValueError(f"unknown operation {other:#x}")
        self.a[here] = value & WORD
        return here

    def _branch(self, i: Instruction, at: int, here: Places, waiting: list[list[Places]]) -> None:
        if i.operation == 0x00:
            waiting[at + 1 + i.k].append(here)
            return
        a, operand = self.a[here], self.x[here] if i.by_x else np.uint64(i.k)
        match i.operation:
            case 0x10:
                holds = a == operand
            case 0x20:
                holds = a > operand
            case 0x30:
                holds = a >= operand
            case 0x40:
                holds = (a & operand) != 0
            case other:
                raise ValueError(f"unknown jump {other:#x}")
        waiting[at + 1 + i.jump_true].append(here[holds])
        waiting[at + 1 + i.jump_false].append(here[~holds])
