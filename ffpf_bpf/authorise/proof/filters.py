"""Classic BPF as a formula: `accepts(program)` is true of exactly the packets for which the program returns non-zero.

Exact, as `graph.predicate.run` is: a load beyond the packet and a division by zero end the program with 0. One walk
from the first instruction on; where ways meet with the same values in the registers that are still read, the formula
is shared. A load at an index looks the byte up among all the places where the index can point to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.graph.predicate import FARTHEST_BYTE, LONGEST_FRAME, Instruction, Program

MOST_PLACES = 2_048  # of an indirect load
MOST_PAIRS = 1 << 16  # looked at to find these
MOST_STATES = 60_000
REGISTER_A, REGISTER_X = 16, 17  # behind the 16 cells


class Undecided(Exception):
    """The question is beyond what is tried; the text says why."""


def accepts(program: Program) -> Term:
    """Of the packet `p`. Raises Undecided."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 4 * len(program.instructions) + 10_000))
    try:
        return _Walk(program.instructions).run()
    finally:
        sys.setrecursionlimit(limit)


def there(end: int) -> Term:
    """Whether the packet has so many bytes."""
    return t.FALSE if end > LONGEST_FRAME else t.at_least(t.length(), end)


def looked_up(index: Term, first: int, size: int) -> tuple[Term, Term]:
    """Whether the bytes at `index + first` are there, and their value, `8 * size` bits."""
    places = possible_values(index)
    if places is None:
        raise Undecided("it reads at a place that depends on too much of the packet")
    found = t.const(0, 8 * size)
    is_there = t.FALSE
    for place in sorted(places, reverse=True):
        at = place + first
        if at > FARTHEST_BYTE:
            continue
        here = t.equal(index, t.const(place, index.width))
        found = t.ite(here, t.concat(*(t.byte(at + i) for i in range(size))), found)
        is_there = t.ite(here, there(at + size), is_there)
    return is_there, found


def possible_values(term: Term) -> frozenset[int] | None:
    """A set that holds every value that a bit vector can have; None if it is too large."""
    known: dict[Term, frozenset[int] | None] = {}
    for each in t.in_order([term]):
        if each.width != t.BOOL:
            t.check_time()
            known[each] = _values(each, known)
    return known[term]


def _values(term: Term, known: dict[Term, frozenset[int] | None]) -> frozenset[int] | None:
    mask = (1 << term.width) - 1
    match term.op:
        case "const":
            return frozenset((t.value_of(term) or 0,))
        case "concat":
            found = frozenset((0,))
            for part in term.args:
                assert isinstance(part, Term)
                values = known[part]
                if values is None or len(values) * len(found) > MOST_PLACES:
                    return None
                found = frozenset(high << part.width | low for high in found for low in values)
            return found
        case "ite":
            yes, no = known[term.args[1]], known[term.args[2]]  # type: ignore[index]
            return None if yes is None or no is None or len(yes | no) > MOST_PLACES else yes | no
        case "byte" | "extract" if term.width <= 11:
            return frozenset(range(1 << term.width))
        case op if op in t.OPERATIONS:
            left, right = (known[arg] for arg in term.args)  # type: ignore[index]
            if left is None or right is None or len(left) * len(right) > MOST_PAIRS:
                return None
            found = frozenset(t.OPERATIONS[op](a, b) & mask for a in left for b in right)
            return found if len(found) <= MOST_PLACES else None
    return None


class _Walk:
    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self._instructions = instructions
        self._live = _liveness(instructions)
        self._known: dict[tuple[object, ...], Term] = {}

    def run(self) -> Term:
        zero = t.const(0, 32)
        return self._from(0, [zero] * 18)

    def _from(self, at: int, registers: list[Term]) -> Term:
        """What becomes of packets that come to instruction `at`. Leaves `registers` alone."""
        key = (at, *(registers[each] for each in self._live[at]))
        if key not in self._known:
            if len(self._known) > MOST_STATES:
                raise Undecided("it has too many ways")
            self._known[key] = self._walked(at, list(registers))
        return self._known[key]

    def _walked(self, at: int, registers: list[Term]) -> Term:
        required: list[Term] = []  # or the program has ended with 0
        while True:
            i = self._instructions[at]
            at += 1
            match i.kind:
                case 0 | 1:  # LD, LDX
                    value = self._loaded(i, registers, required)
                    registers[REGISTER_X if i.kind == 1 else REGISTER_A] = value
                case 2:  # ST
                    registers[i.k] = registers[REGISTER_A]
                case 3:  # STX
                    registers[i.k] = registers[REGISTER_X]
                case 4:  # ALU
                    registers[REGISTER_A] = _calculated(i, registers, required)
                case 5 if i.operation == 0:  # JA
                    at += i.k
                case 5:
                    holds = _condition(i, registers)
                    if holds is t.TRUE:
                        at += i.jump_true
                    elif holds is t.FALSE:
                        at += i.jump_false
                    else:
                        yes = self._from(at + i.jump_true, registers)
                        no = self._from(at + i.jump_false, registers)
                        return t.all_of((*required, t.ite(holds, yes, no)))
                case 6:  # RET
                    result = registers[REGISTER_A] if i.code & 0x18 == 0x10 else t.const(i.k, 32)
                    return t.all_of((*required, t.negated(t.equal(result, t.const(0, 32)))))
                case _:  # TAX, TXA
                    if i.code & 0xF8 == 0x80:
                        registers[REGISTER_A] = registers[REGISTER_X]
                    else:
                        registers[REGISTER_X] = registers[REGISTER_A]
            if t.FALSE in required:
                return t.FALSE

    def _loaded(self, i: Instruction, registers: list[Term], required: list[Term]) -> Term:
        match i.mode:
            case 0x00:  # IMM
                return t.const(i.k, 32)
            case 0x20:  # ABS
                required.append(there(i.k + i.size))
                return _bytes(i.k, i.size)
            case 0x40:  # IND
                is_there, value = looked_up(registers[REGISTER_X], i.k, i.size)
                required.append(is_there)
                return t.widened(value, 32)
            case 0x60:  # MEM
                return registers[i.k]
            case 0x80:  # LEN
                return t.widened(t.length(), 32)
            case 0xA0:  # MSH
                required.append(there(i.k + 1))
                return t.concat(t.const(0, 26), t.extract(_bytes(i.k, 1), 3, 0), t.const(0, 2))
        raise Undecided(f"an unknown load, {i.code:#x}")


def _bytes(offset: int, size: int) -> Term:
    if offset + size > LONGEST_FRAME:
        return t.const(0, 32)  # never reached: the bytes are not there
    return t.widened(t.concat(*(t.byte(offset + i) for i in range(size))), 32)


def _calculated(i: Instruction, registers: list[Term], required: list[Term]) -> Term:
    a, operand = _operands(i, registers)
    match i.operation:
        case 0x00:
            return t.add(a, operand)
        case 0x10:
            return t.subtract(a, operand)
        case 0x20:
            return t.multiply(a, operand)
        case 0x30 | 0x90:
            required.append(t.negated(t.equal(operand, t.const(0, 32))))
            if operand is t.const(0, 32):
                return operand
            return t.divide(a, operand) if i.operation == 0x30 else t.remainder(a, operand)
        case 0x40:
            return t.bit_or(a, operand)
        case 0x50:
            return t.bit_and(a, operand)
        case 0x60:
            return t.shift_left(a, operand)
        case 0x70:
            return t.shift_right(a, operand)
        case 0x80:
            return t.subtract(t.const(0, 32), a)
        case 0xA0:
            return t.bit_xor(a, operand)
    raise Undecided(f"an unknown operation, {i.code:#x}")


def _operands(i: Instruction, registers: list[Term]) -> tuple[Term, Term]:
    return registers[REGISTER_A], registers[REGISTER_X] if i.by_x else t.const(i.k, 32)


def _condition(i: Instruction, registers: list[Term]) -> Term:
    a, operand = _operands(i, registers)
    match i.operation:
        case 0x10:
            return t.equal(a, operand)
        case 0x20:
            return t.less(operand, a)
        case 0x30:
            return t.negated(t.less(a, operand))
        case 0x40:
            return t.negated(t.equal(t.bit_and(a, operand), t.const(0, 32)))
    raise Undecided(f"an unknown jump, {i.code:#x}")


def _liveness(instructions: Sequence[Instruction]) -> list[tuple[int, ...]]:
    """For each instruction the registers that are read from there on before they are written."""
    live: list[set[int]] = [set() for _ in range(len(instructions) + 1)]
    for at in reversed(range(len(instructions))):
        i = instructions[at]
        if i.kind == 5:
            targets = (i.k,) if i.operation == 0 else (i.jump_true, i.jump_false)
            after = set().union(*(live[at + 1 + target] for target in targets))
        else:
            after = set() if i.kind == 6 else set(live[at + 1])
        live[at] = (after - _written(i)) | _read(i)
    return [tuple(sorted(each)) for each in live]


def _written(i: Instruction) -> set[int]:
    match i.kind:
        case 0 | 4:
            return {REGISTER_A}
        case 1:
            return {REGISTER_X}
        case 2 | 3:
            return {i.k}
        case 7:
            return {REGISTER_A if i.code & 0xF8 == 0x80 else REGISTER_X}
    return set()


def _read(i: Instruction) -> set[int]:
    match i.kind:
        case 0 | 1:
            return {REGISTER_X} if i.mode == 0x40 else {i.k} if i.mode == 0x60 else set()
        case 2:
            return {REGISTER_A}
        case 3:
            return {REGISTER_X}
        case 4:
            return {REGISTER_A, REGISTER_X} if i.by_x else {REGISTER_A}
        case 5:
            return set() if i.operation == 0 else {REGISTER_A, REGISTER_X} if i.by_x else {REGISTER_A}
        case 6:
            return {REGISTER_A} if i.code & 0x18 == 0x10 else set()
        case 7:
            return {REGISTER_X if i.code & 0xF8 == 0x80 else REGISTER_A}
    return set()
