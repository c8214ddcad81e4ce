"""Where addresses come from: abstract interpretation of a program, up to every store, call and exit.

Each register and each 8 bytes of stack holds an abstract value: a number, or an address by what it leads into. Blocks
are walked until nothing changes; where ways meet, values are joined, and what differs is not known any more. Both ways
of a branch are taken always. What is known when an instruction is walked is handed to `Rules`, which refuse or not.

The kernel's verifier sees to it that an address stays inside what it leads into, and that numbers are not used as
addresses; so here an address plus a number leads to where it led before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from ffpf_bpf.compiler.bytecode import COMPARE_AND_SWAP, FETCH, FRAME, REGISTERS, Instruction, Kind, blocks, order


class To(IntEnum):
    """What a value is, or leads into."""

    UNKNOWN = 0
    NUMBER = 1
    CONTEXT = 2
    PACKET = 3
    STACK = 4
    CALLERS_STACK = 5
    VALUE = 6  # of a map
    MAP = 7  # the map itself, which helpers take


ADDRESSES = frozenset({To.CONTEXT, To.PACKET, To.STACK, To.CALLERS_STACK, To.VALUE, To.MAP})


class Value(NamedTuple):
    """`maps` are the maps it leads into, a bit each; `number` a number itself, or the distance from where an address
    began, None if it is not the same always."""

    to: To
    maps: int = 0
    number: int | None = None


UNKNOWN, NUMBER, ZERO = Value(To.UNKNOWN), Value(To.NUMBER), Value(To.NUMBER, 0, 0)
PACKET, STACK, CALLERS_STACK = Value(To.PACKET), Value(To.STACK, 0, 0), Value(To.CALLERS_STACK)
CONTEXT = Value(To.CONTEXT, 0, 0)
Slots = dict[int, Value]


class State:
    """What is known at a place of a program: registers, the stack by distance from its end, and whether this is the
    program itself and no function of it."""

    __slots__ = ("is_main", "registers", "slots")

    def __init__(self, registers: list[Value], slots: Slots, is_main: bool) -> None:
        self.registers = registers
        self.slots = slots
        self.is_main = is_main

    def copy(self) -> State:
        return State(self.registers.copy(), self.slots.copy(), self.is_main)

    def forget_stack(self) -> None:
        self.slots.clear()


class Rules(Protocol):
    """What may be done. Each raises if it may not."""

    def store(self, at: int, instruction: Instruction, target: Value, stored: Value) -> None: ...

    def load(self, at: int, target: Value) -> None: ...

    def context(self, place: int | None, size: int) -> Value:
        """What is read from the context, `size` bytes at `place`, or nobody knows where."""

    def call(self, at: int, instruction: Instruction, state: State) -> Value:
        """A call that leaves the program; its result. `state` is what is known before."""

    def leave(self, at: int, result: Value) -> None:
        """The program ends."""

    def address(self, at: int, instruction: Instruction) -> Value:
        """What the 64-bit immediate there is."""

    def calls_out(self, at: int, instruction: Instruction) -> bool:
        """Whether the call leads out of the program."""


def join(a: Value, b: Value) -> Value:
    """What is true of both. An address that may be 0 is an address still: none is stored to at 0."""
    if a == b:
        return a
    if a.to is b.to:
        return Value(a.to, a.maps | b.maps, a.number if a.number == b.number else None)
    if a == ZERO and b.to in ADDRESSES:
        return b
    if b == ZERO and a.to in ADDRESSES:
        return a
    return UNKNOWN


def walk(instructions: list[Instruction], rules: Rules) -> int:
    """Walk a program until nothing changes; how many blocks were walked. Raises what the rules raise, and Malformed."""
    return _Walk(instructions, rules).run()


class _Walk:
    """The blocks that are yet to be walked, first things first, and what is known at each block's beginning."""

    def __init__(self, instructions: list[Instruction], rules: Rules) -> None:
        self.instructions = instructions
        self.rules = rules
        self.blocks = blocks(instructions)
        self.order = order(self.blocks)
        self.begins = list(self.order)
        ways = Counter(other for block in self.blocks.values() for other in block.onward)
        # Blocks that one way leads to, and no call: walked with what leads there, without keeping what is known.
        called = {0} | {
            at + 1 + instruction.immediate for at, instruction in enumerate(instructions) if instruction[0] is Kind.CALL
        }
        self.attached = {begin for begin in self.begins if ways[begin] == 1 and begin not in called}
        self.known: dict[int, State] = {}
        self.waiting: list[int] = []  # by their place in the order
        self.actions: list[Callable[[int, Instruction, State], None] | None] = [None] * len(Kind)
        for kind, action in (
            (Kind.MOVE, _move),
            (Kind.MOVE_NUMBER, _move_number),
            (Kind.CALCULATE, _calculate),
            (Kind.ADD, _add),
            (Kind.ADD_NUMBER, _add_number),
            (Kind.SUBTRACT, _subtract),
            (Kind.LOAD, self._load),
            (Kind.STORE, self._store),
            (Kind.STORE_NUMBER, self._store),
            (Kind.ATOMIC, self._atomic),
            (Kind.WIDE, self._wide),
            (Kind.CALL, self._call),
        ):
            self.actions[kind] = action

    def run(self) -> int:
        registers = [UNKNOWN] * REGISTERS
        registers[1], registers[FRAME] = CONTEXT, STACK
        self._reach(0, State(registers, {}, True))
        walked = 0
        while self.waiting:
            self._block(self.begins[heappop(self.waiting)])
            walked += 1
        return walked

    def _block(self, begin: int) -> None:
        state = self.known[begin].copy()
        instructions, actions = self.instructions, self.actions
        while True:
            end, onward = self.blocks[begin]
            for at in range(begin, end):
                instruction = instructions[at]
                action = actions[instruction[0]]
                if action is not None:
                    action(at, instruction, state)
            if not onward:
                if state.is_main:
                    self.rules.leave(end - 1, state.registers[0])
                return
            *others, begin = onward
            for other in others:
                self._reach(other, state)
            if begin not in self.attached:
                self._reach(begin, state)
                return

    def _reach(self, at: int, state: State) -> None:
        """Control comes to a block: what is known there becomes what is known on both ways."""
        known = self.known.get(at)
        if known is None:
            if at >= len(self.instructions):
                self.rules.leave(at - 1, UNKNOWN)
                return
            self.known[at] = state.copy()
            heappush(self.waiting, self.order[at])
            return
        changed = state.is_main and not known.is_main
        known.is_main = known.is_main or state.is_main
        before = known.registers
        for number, value in enumerate(state.registers):
            if before[number] is not value and before[number] != value:
                joined = join(before[number], value)
                if joined != before[number]:
                    before[number] = joined
                    changed = True
        slots = state.slots
        for place, value in list(known.slots.items()):
            other = slots.get(place, UNKNOWN)
            if other is value:
                continue
            joined = join(value, other)
            if joined != value:
                changed = True
                if joined is UNKNOWN:
                    del known.slots[place]
                else:
                    known.slots[place] = joined
        if changed and self.order[at] not in self.waiting:
            heappush(self.waiting, self.order[at])

    def _load(self, at: int, instruction: Instruction, state: State) -> None:
        target = state.registers[instruction.source]
        state.registers[instruction.target] = NUMBER
        if target.to is To.VALUE or target.to is To.PACKET:
            return
        place = None if target.number is None else target.number + instruction.offset
        if target.to is To.STACK:
            if instruction.size == 8:
                state.registers[instruction.target] = UNKNOWN if place is None else state.slots.get(place, UNKNOWN)
        elif target.to is To.CONTEXT:
            state.registers[instruction.target] = self.rules.context(place, instruction.size)
        else:
            state.registers[instruction.target] = UNKNOWN
            self.rules.load(at, target)

    def _store(self, at: int, instruction: Instruction, state: State) -> None:
        target = state.registers[instruction.target]
        stored = state.registers[instruction.source] if instruction.kind is Kind.STORE else NUMBER
        self.rules.store(at, instruction, target, stored)
        if target.to is To.STACK:
            if target.number is None:
                state.forget_stack()
                return
            _put(state.slots, target.number + instruction.offset, instruction.size, stored)

    def _atomic(self, at: int, instruction: Instruction, state: State) -> None:
        registers = state.registers
        self.rules.store(at, instruction, registers[instruction.target], registers[instruction.source])
        if registers[instruction.target].to is To.STACK:
            state.forget_stack()
        read = NUMBER if registers[instruction.target].to is To.VALUE else UNKNOWN
        if instruction.immediate == COMPARE_AND_SWAP:
            registers[0] = read
        elif instruction.immediate & FETCH:
            registers[instruction.source] = read

    def _wide(self, at: int, instruction: Instruction, state: State) -> None:
        state.registers[instruction.target] = self.rules.address(at, instruction)

    def _call(self, at: int, instruction: Instruction, state: State) -> None:
        """A function of the program, walked for all its calls at once, or a call that the rules judge."""
        registers = state.registers
        if self.rules.calls_out(at, instruction):
            registers[0] = self.rules.call(at, instruction, state)
        else:
            arguments = [UNKNOWN, *registers[1:6], *[UNKNOWN] * 4, STACK]
            lent = False
            for number, value in enumerate(arguments[1:6], 1):
                if value.to is To.STACK or value.to is To.CALLERS_STACK:
                    arguments[number] = CALLERS_STACK
                    lent = True
            self._reach(at + 1 + instruction.immediate, State(arguments, {}, False))
            if lent:
                state.forget_stack()
            registers[0] = UNKNOWN
        registers[1:6] = [UNKNOWN] * 5


def _move(at: int, instruction: Instruction, state: State) -> None:
    state.registers[instruction.target] = state.registers[instruction.source]


def _move_number(at: int, instruction: Instruction, state: State) -> None:
    state.registers[instruction.target] = Value(To.NUMBER, 0, instruction.immediate)


def _calculate(at: int, instruction: Instruction, state: State) -> None:
    state.registers[instruction.target] = NUMBER


def _add_number(at: int, instruction: Instruction, state: State) -> None:
    value = state.registers[instruction.target]
    if value.to is To.NUMBER:
        state.registers[instruction.target] = NUMBER
    elif value.number is not None:
        state.registers[instruction.target] = Value(value.to, value.maps, value.number + instruction.immediate)


def _add(at: int, instruction: Instruction, state: State) -> None:
    a, b = state.registers[instruction.target], state.registers[instruction.source]
    if b.to is not To.NUMBER:
        a, b = b, a
    state.registers[instruction.target] = Value(a.to, a.maps) if b.to is To.NUMBER else UNKNOWN


def _subtract(at: int, instruction: Instruction, state: State) -> None:
    a, b = state.registers[instruction.target], state.registers[instruction.source]
    if b.to is To.NUMBER:
        state.registers[instruction.target] = Value(a.to, a.maps)
    elif a.to is To.UNKNOWN or b.to is To.UNKNOWN:
        state.registers[instruction.target] = UNKNOWN
    else:
        state.registers[instruction.target] = NUMBER


def _put(slots: Slots, place: int, size: int, value: Value) -> None:
    """Keep what is stored on the stack; what was there in part is a number now."""
    if size == 8 and place % 8 == 0:
        slots[place] = value
        return
    for other in {place // 8 * 8, (place + size - 1) // 8 * 8}:
        slots[other] = NUMBER
