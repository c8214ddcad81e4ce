"""Programs: map symbols bound to maps, then loaded. Takes instructions and relocations, whatever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ffpf_bpf.errors import FfpfError
from ffpf_bpf.kernel import calls, functions
from ffpf_bpf.kernel.maps import Descriptor

PSEUDO_MAP_FD, PSEUDO_MAP_VALUE = 1, 2
PSEUDO_KERNEL_CALL = 2  # BPF_PSEUDO_KFUNC_CALL
# By what sections of objects are called, with the flags to load them.
KINDS = {
    "xdp": (calls.PROG_XDP, 0),
    "xdp.frags": (calls.PROG_XDP, calls.F_XDP_HAS_FRAGS),
    "tc": (calls.PROG_SCHED_CLS, 0),
}


class RelocationLike(Protocol):
    """An instruction whose 64-bit immediate stands for a map, or which calls a function of the kernel."""

    @property
    def at(self) -> int: ...
    @property
    def symbol(self) -> str: ...


class ProgramLike(Protocol):
    """A program as the compiler leaves it."""

    @property
    def name(self) -> str: ...
    @property
    def instructions(self) -> bytes: ...
    @property
    def relocations(self) -> Sequence[RelocationLike]: ...
    @property
    def calls(self) -> Sequence[RelocationLike]: ...
    @property
    def hook(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Binding:
    """What a map symbol stands for: the map itself, or the address of its only value."""

    map: Descriptor
    by_value: bool


def load(program: ProgramLike, bindings: Mapping[str, Binding]) -> Descriptor:
    """Bind and load a program. Raises VerifierError if the verifier refuses it."""
    return Descriptor(calls.load_program(program.name, bound(program, bindings), *KINDS[program.hook]))


def bound(program: ProgramLike, bindings: Mapping[str, Binding]) -> bytes:
    """The instructions with each map symbol replaced (BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE), and the kernel's own
    functions called by their numbers. Raises KernelError if the kernel has no such function."""
    instructions = bytearray(program.instructions)
    for relocation in program.relocations:
        binding = bindings.get(relocation.symbol)
        if binding is None:
            raise FfpfError(f"program `{program.name}` wants a map `{relocation.symbol}` that nobody gave")
        at = relocation.at * 8
        offset = int.from_bytes(instructions[at + 4 : at + 8], "little") + binding.map.start if binding.by_value else 0
        instructions[at + 1] |= (PSEUDO_MAP_VALUE if binding.by_value else PSEUDO_MAP_FD) << 4
        instructions[at + 4 : at + 8] = binding.map.fileno.to_bytes(4, "little")
        instructions[at + 12 : at + 16] = offset.to_bytes(4, "little")
    for call in program.calls:
        at = call.at * 8
        instructions[at + 1] = PSEUDO_KERNEL_CALL << 4
        instructions[at + 4 : at + 8] = functions.number(call.symbol).to_bytes(4, "little")
    return bytes(instructions)
