"""ELF object -> value: programs, their instructions and relocations, read back with pyelftools.

What is loaded, shown and audited is this value, not the compiler's intentions.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from ffpf_bpf.errors import AuditError, FfpfError

R_BPF_64_64, R_BPF_64_32 = 1, 10
INSTRUCTION_BYTES = 8
OP_CALL = 0x85
PSEUDO_CALL = 1
KERNELS_OWN = "bpf_"  # what functions of the kernel that programs may call begin with


@dataclass(frozen=True, slots=True)
class Relocation:
    """The 64-bit immediate at instruction `at` is the address of the symbol, plus what stands there."""

    at: int
    symbol: str


@dataclass(frozen=True, slots=True)
class ObjectProgram:
    """One program: its instructions as bytes (8 each), and where map symbols go in.

    `calls` are the calls of functions that are not in its object; `with_functions` appends these, but for the kernel's
    own, which are known when the program is loaded. `hook` is the kind of hook that it is for, `xdp` or `tc`.
    """

    name: str
    instructions: bytes
    relocations: tuple[Relocation, ...]
    calls: tuple[Relocation, ...] = ()
    hook: str = "xdp"

    @property
    def count(self) -> int:
        return len(self.instructions) // INSTRUCTION_BYTES

    @property
    def digest(self) -> str:
        """SHA-256 of its hook, its instructions, and the names of what goes in where."""
        digest = hashlib.sha256(self.hook.encode() + self.instructions)
        for place in (*self.relocations, *self.calls):
            digest.update(f"\n{place.at} {place.symbol}".encode())
        return digest.hexdigest()

    @property
    def symbols(self) -> frozenset[str]:
        """The maps it touches, by symbol."""
        return frozenset(relocation.symbol for relocation in self.relocations)

    @property
    def helpers(self) -> frozenset[int]:
        """The numbers of the kernel helpers it calls."""
        slots = range(0, len(self.instructions), INSTRUCTION_BYTES)
        calls = (self.instructions[at : at + INSTRUCTION_BYTES] for at in slots)
        return frozenset(
            int.from_bytes(call[4:8], "little") for call in calls if call[0] == OP_CALL and call[1] >> 4 == 0
        )


@dataclass(frozen=True, slots=True)
class Object:
    """A compiled object: the ELF file's bytes, what is in it, and the digests of those of its programs that passed
    their audit."""

    elf: bytes
    programs: dict[str, ObjectProgram]
    passed: frozenset[str] = frozenset()

    def audited(self, program: str) -> ObjectProgram:
        """The program, to be loaded. Raises AuditError if it has not passed its audit as it is now."""
        found = self.programs[program]
        if found.digest not in self.passed:
            raise AuditError(
                "is not what was audited", where=f"program `{program}`", help="load what `compile_segment` returns"
            )
        return found

    def lines(self, program: str) -> dict[int, int]:
        """Instruction -> debug line, where the object was compiled with lines."""
        file = ELFFile(io.BytesIO(self.elf))
        if not file.has_dwarf_info():
            return {}

        dwarf = file.get_dwarf_info(relocate_dwarf_sections=True)
        found: dict[int, int] = {}
        for unit in dwarf.iter_CUs():
            table = dwarf.line_program_for_CU(unit)
            for entry in table.get_entries() if table else ():
                if entry.state and not entry.state.end_sequence:
                    found[entry.state.address // INSTRUCTION_BYTES] = entry.state.line
        return found


def read(elf: bytes, *, functions: bool = False) -> Object:
    """Read an object. Raises FfpfError if something in it cannot be loaded: data, or a function left out of line unless
    `functions` are what is wanted."""
    file = ELFFile(io.BytesIO(elf))
    symbols = next(section for section in file.iter_sections() if isinstance(section, SymbolTableSection))
    relocations = {
        section["sh_info"]: section for section in file.iter_sections() if isinstance(section, RelocationSection)
    }
    programs = {}
    for symbol in symbols.iter_symbols():
        if symbol["st_info"]["type"] != "STT_FUNC":
            continue
        section_index = symbol["st_shndx"]
        section = file.get_section(section_index)
        hook = section.name.partition("/")[0]
        if hook not in ("xdp", "xdp.frags", "tc") and not functions:
            raise FfpfError(f"the compiler left `{symbol.name}` out of line", help="mark it FFPF_PRIMITIVE")
        start, size = symbol["st_value"], symbol["st_size"]
        found = _relocations(relocations.get(section_index), symbols, start, size)
        programs[symbol.name] = ObjectProgram(
            symbol.name,
            section.data()[start : start + size],
            tuple(relocation for kind, relocation in found if kind == R_BPF_64_64),
            tuple(relocation for kind, relocation in found if kind == R_BPF_64_32),
            "" if functions else hook,
        )
    return Object(elf, programs)


def with_functions(program: ObjectProgram, functions: Mapping[str, ObjectProgram]) -> ObjectProgram:
    """The program with the functions it calls behind it, each once. Raises FfpfError for one that nobody has."""
    instructions, starts = bytearray(program.instructions), {}
    kernels = tuple(call for call in program.calls if call.symbol.startswith(KERNELS_OWN))
    ours = [call for call in program.calls if call not in kernels]
    for name in dict.fromkeys(call.symbol for call in ours):
        function = functions.get(name)
        if function is None or function.relocations or function.calls:
            raise FfpfError(f"`{name}` is no function that programs may call", help="mark it FFPF_PRIMITIVE")
        starts[name] = len(instructions) // INSTRUCTION_BYTES
        instructions += function.instructions
    for call in ours:
        at = call.at * INSTRUCTION_BYTES
        instructions[at + 1] = PSEUDO_CALL << 4
        distance = starts[call.symbol] - call.at - 1
        instructions[at + 4 : at + 8] = distance.to_bytes(4, "little")
    return replace(program, instructions=bytes(instructions), calls=kernels)


def _relocations(
    section: RelocationSection | None, symbols: SymbolTableSection, start: int, size: int
) -> list[tuple[int, Relocation]]:
    found = []
    for relocation in section.iter_relocations() if section else ():
        if not start <= relocation["r_offset"] < start + size:
            continue
        symbol = symbols.get_symbol(relocation["r_info_sym"])
        kind = relocation["r_info_type"]
        if kind not in (R_BPF_64_64, R_BPF_64_32) or symbol["st_shndx"] != "SHN_UNDEF":
            raise FfpfError(
                f"the compiler made a reference to `{symbol.name}` that no map answers",
                help="primitives keep their state in their mbuf",
            )
        found.append((kind, Relocation((relocation["r_offset"] - start) // INSTRUCTION_BYTES, symbol.name)))
    return found
