"""The audit: a compiled program is held against what its graphs' effects grant, before it is loaded.

It reads the instructions that would be loaded and nothing else that the compiler says of them, so that neither a defect
of the compiler nor a node class that does more than it says gets more than was granted. Shown is, on every way through
the program: packets and their context are never written to; stores go to the stack and to the maps granted; packets go
on, all of them, to the next program or by XDP_PASS; and nothing is called but what is granted.

It relies on the kernel's verifier for what that shows anyway: bounds, and that numbers are not used as addresses. It
does not tell which part of a map is written to, except for constant addresses, and not what numbers tell of a packet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from ffpf_bpf.compiler.bytecode import Instruction, Kind, Malformed, decode, shown
from ffpf_bpf.compiler.grant import FORCE_WAKEUP, HELPERS, LOOK_UP, TAIL_CALL, WAKE, Grant
from ffpf_bpf.compiler.object import ObjectProgram
from ffpf_bpf.compiler.provenance import ADDRESSES, CONTEXT, NUMBER, PACKET, UNKNOWN, ZERO, State, To, Value, walk
from ffpf_bpf.errors import AuditError
from ffpf_bpf.graph.memory import FLOW_BYTES, TAP_BYTES

MOST_INSTRUCTIONS = 32_767  # a jump reaches no farther
HEAD_BYTES = min(FLOW_BYTES, TAP_BYTES)  # of a map's value, which the application writes
ITERATOR_BYTES = 8  # struct bpf_iter_num
HELPER, OWN_FUNCTION, FUNCTION_OF_KERNEL = 0, 1, 2  # what a call's source register says
NAMES = {number: name for name, number in HELPERS.items()} | {
    # Those that are asked for most by who wants more.
    2: "map_update_elem", 3: "map_delete_elem", 4: "probe_read", 6: "trace_printk", 9: "skb_store_bytes",
    23: "redirect", 25: "perf_event_output", 44: "xdp_adjust_head", 51: "redirect_map", 54: "xdp_adjust_meta",
    58: "override_return", 65: "xdp_adjust_tail", 109: "send_signal", 112: "probe_read_user",
    113: "probe_read_kernel", 36: "probe_write_user", 190: "xdp_store_bytes",
}  # fmt: skip
WHERE_TO = {
    To.UNKNOWN: "an address that nobody knows",
    To.NUMBER: "a number taken for an address",
    To.CONTEXT: "the packet's context",
    To.PACKET: "the packet",
    To.MAP: "a map's own structure",
}
LEAKED = "stores an address of the kernel where the application reads it"
HELP = "a node's code does what its effect does not say; `ffpf compile` shows the program"


@dataclass(frozen=True, slots=True)
class Audit:
    """A program that passed: SHA-256 of what was audited, its grant, and what was seen on the way.

    `unknown_loads` are the places that read through an address nobody knows, which the verifier judges alone.
    """

    digest: str
    grant: Grant
    instructions: int
    helpers: frozenset[int]
    functions: frozenset[str]
    maps: frozenset[str]
    unknown_loads: tuple[int, ...]


@lru_cache(maxsize=256)
def audit(program: ObjectProgram, grant: Grant) -> Audit:
    """Hold a program against its grant. Raises AuditError, which says what it does, where, and what was granted."""
    auditor = _Auditor(program, grant)
    try:
        auditor.check()
    except Malformed as error:
        auditor.refuse(error.at, error.what, "the instructions of BPF v3")
    return Audit(
        program.digest,
        grant,
        program.count,
        frozenset(auditor.called),
        frozenset(call.symbol for call in program.calls),
        program.symbols,
        tuple(sorted(auditor.unknown_loads)),
    )


class _Auditor:
    """The rules of one program."""

    def __init__(self, program: ObjectProgram, grant: Grant) -> None:
        self.program = program
        self.grant = grant
        self.names = sorted(grant.maps)
        self.addresses = {relocation.at: relocation.symbol for relocation in program.relocations}
        self.functions = {call.at: call.symbol for call in program.calls}
        self.heads = sum(1 << place for place, name in enumerate(self.names) if name in grant.values)
        self.unknown_loads: set[int] = set()
        self.called: set[int] = set()

    def check(self) -> None:
        if self.program.count > MOST_INSTRUCTIONS:
            self.refuse(MOST_INSTRUCTIONS, f"has {self.program.count:,} instructions", f"{MOST_INSTRUCTIONS:,}")
        if self.program.hook != self.grant.hook.section:
            self.refuse(0, f"is a program for {self.program.hook or 'no hook'}", f"one for {self.grant.hook.section}")
        instructions = decode(self.program.instructions)
        self._check_places(instructions)
        for at, instruction in enumerate(instructions):
            kind = instruction[0]
            if kind is Kind.CALL:
                self._check_call(at, instruction)
            elif kind is Kind.WIDE:
                self.address(at, instruction)
        self.walked = walk(instructions, self)

    def refuse(self, at: int, does: str, granted: str) -> NoReturn:
        raise AuditError(
            f"{does}; granted: {granted}", at=at, where=f"program `{self.program.name}`, instruction {at}", help=HELP
        )

    def store(self, at: int, instruction: Instruction, target: Value, stored: Value) -> None:
        """A store, or an atomic operation."""
        if target.to is To.STACK or target.to is To.CALLERS_STACK:
            return
        self._writes(at, target, shown(instruction), instruction.offset, instruction.size)
        if stored.to in ADDRESSES:
            self.refuse(at, f"{LEAKED} (`{shown(instruction)}`)", "numbers")

    def load(self, at: int, target: Value) -> None:
        self.unknown_loads.add(at)

    def context(self, place: int | None, size: int) -> Value:
        addresses = self.grant.hook.addresses
        return PACKET if place is None or any(a < place + size and place < b for a, b in addresses) else NUMBER

    def leave(self, at: int, result: Value) -> None:
        hook = self.grant.hook
        if result.to is not To.NUMBER or result.number != hook.passes_on:
            returns = (
                f"ends with {result.number}"
                if result.to is To.NUMBER and result.number is not None
                else ("ends with what is not constant")
            )
            self.refuse(at, returns, f"{hook.verdict} ({hook.passes_on}), for every packet")

    def address(self, at: int, instruction: Instruction) -> Value:
        symbol = self.addresses.get(at)
        if instruction.source != 0:
            self.refuse(at, "names a map or a function by its number", "maps by their symbols")
        if symbol is None:
            return NUMBER
        if symbol not in self.grant.maps:
            self.refuse(at, f"uses the map `{symbol}`", _listed(self.grant.maps))
        mask = 1 << self.names.index(symbol)
        if symbol in self.grant.frames and not self.grant.copies:
            return PACKET
        by_value = symbol in self.grant.values | self.grant.frames
        return Value(To.VALUE if by_value else To.MAP, mask, instruction.immediate if by_value else 0)

    def calls_out(self, at: int, instruction: Instruction) -> bool:
        return at in self.functions or instruction.source == HELPER

    def call(self, at: int, instruction: Instruction, state: State) -> Value:
        """A helper or a function of the kernel, granted already: its arguments."""
        registers = state.registers
        if at in self.functions:
            place = registers[1].number if registers[1].to is To.STACK else None
            if place is None or place % ITERATOR_BYTES:
                self.refuse(at, "gives an iterator that is not at one place of its stack", "its stack")
            state.slots.pop(place, None)
            return UNKNOWN
        if instruction.immediate == TAIL_CALL:
            self._check_tail_call(at, registers)
        elif instruction.immediate == LOOK_UP:
            is_ring = registers[1].to is To.MAP and not registers[1].maps & ~self._mask(self.grant.rings)
            self._expect(at, is_ring, "looks up a map that is no ring", _listed(self.grant.rings))
            return Value(To.VALUE, registers[1].maps, 0)
        elif instruction.immediate == WAKE:
            is_bell = registers[1].to is To.MAP and not registers[1].maps & ~self._mask(self.grant.bells)
            self._expect(at, is_bell, "rings what is no bell", _listed(self.grant.bells))
            is_empty = registers[3] == ZERO and registers[4] == Value(To.NUMBER, 0, FORCE_WAKEUP)
            self._expect(at, is_empty, "writes into a bell", "to ring it, with nothing in it")
        elif instruction.immediate == self.grant.hook.load_bytes:
            self._expect(at, registers[1] == CONTEXT, "copies from what is not the packet", "its packet")
            if registers[3].to is To.STACK:
                state.forget_stack()
            elif registers[3].to is not To.CALLERS_STACK:
                self._writes(at, registers[3], f"bpf_{NAMES[instruction.immediate]}", 0, 1)
        return NUMBER

    def _check_tail_call(self, at: int, registers: list[Value]) -> None:
        self._expect(at, registers[1] == CONTEXT, "goes on with what is not the packet", "the packet")
        is_links = registers[2].to is To.MAP and registers[2].maps == self._mask(frozenset({"ffpf_links"}))
        self._expect(at, is_links, "goes on through another map", "`ffpf_links`")
        slot = registers[3].number if registers[3].to is To.NUMBER else None
        allowed = ", ".join(str(link) for link in sorted(self.grant.links))
        to = "a slot that is not constant" if slot is None else f"slot {slot}"
        self._expect(at, slot in self.grant.links, f"goes on through {to} of `ffpf_links`", f"slot {allowed}")

    def _check_places(self, instructions: list[Instruction]) -> None:
        """What is bound when the program is loaded must be what it is taken for here."""
        for at in self.addresses:
            if not 0 <= at < len(instructions) or instructions[at].kind is not Kind.WIDE:
                self.refuse(at, "has no 64-bit immediate where a map goes in", "64-bit immediates")
        for at in self.functions:
            if not 0 <= at < len(instructions) or instructions[at].kind is not Kind.CALL:
                self.refuse(at, "has no call where a function of the kernel goes in", "calls")

    def _check_call(self, at: int, instruction: Instruction) -> None:
        """Whether what is called is granted, wherever the call stands."""
        if at in self.functions:
            name = self.functions[at]
            self._expect(
                at,
                name in self.grant.functions,
                f"calls `{name}` of the kernel",
                _listed(self.grant.functions),
            )
        elif instruction.source == HELPER:
            number = instruction.immediate
            self.called.add(number)
            name = NAMES.get(number, "")
            granted = ", ".join(f"`bpf_{NAMES[number]}`" for number in sorted(self.grant.helpers))
            called = f"calls `bpf_{name}` (helper {number})" if name else f"calls helper {number}"
            self._expect(at, number in self.grant.helpers, called, granted)
        elif instruction.source == FUNCTION_OF_KERNEL:
            self.refuse(at, f"calls function {instruction.immediate} of the kernel by its number", "none by number")
        elif instruction.source != OWN_FUNCTION or instruction.immediate == -1:
            self.refuse(at, "calls what is not there", "functions of the program")

    def _writes(self, at: int, target: Value, how: str, offset: int, size: int) -> None:
        """A write that is not to the stack."""
        granted = f"its stack, {_listed(self.grant.values | self.grant.rings)}"
        if target.to is not To.VALUE:
            self.refuse(at, f"writes to {WHERE_TO[target.to]} (`{how}`)", granted)
        if target.number is not None and target.maps & self.heads:
            begin = target.number + offset
            if begin < HEAD_BYTES and begin + size > 0:
                maps = _listed(name for place, name in enumerate(self.names) if target.maps >> place & 1)
                self.refuse(at, f"writes to the head of {maps} (`{how}`)", f"what is behind its {HEAD_BYTES} bytes")

    def _mask(self, maps: frozenset[str]) -> int:
        return sum(1 << place for place, name in enumerate(self.names) if name in maps)

    def _expect(self, at: int, holds: bool, does: str, granted: str) -> None:
        if not holds:
            self.refuse(at, does, granted)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"
