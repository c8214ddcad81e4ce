"""LLVM IR and the primitives' bitcode -> one optimised ELF object, in this process."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import llvmlite.binding as llvm

from ffpf_bpf.errors import FfpfError

BITCODE = Path(__file__).parent / "bitcode"
CPU = "v3"
ASSEMBLY = re.compile(r'\basm (?:\w+ )*"([^"]+)"')  # but the empty one
FEW_ASKING = 2  # so many primitives that ask for headers have plain.c inlined
Module: TypeAlias = llvm.ModuleRef


def link(generated: str, primitives: Iterable[str], programs: Iterable[str]) -> Module:
    """The generated module and the primitives it calls as one, in which only `programs` are seen from outside."""
    _target_machine()
    module = llvm.parse_assembly(generated)
    for name in sorted(primitives):
        module.link_in(llvm.parse_bitcode(_bitcode(name)))
    kept = set(programs)
    for function in module.functions:
        if not function.is_declaration and function.name not in kept:
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    return module


def optimise(module: Module) -> None:
    """LLVM's O2, in place."""
    builder = llvm.create_pass_builder(_target_machine(), llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)


@cache
def instructions(module: str, function: str) -> int:
    """How many LLVM instructions a primitive has: about as many as it comes to in BPF."""
    blocks = llvm.parse_bitcode(_bitcode(module)).get_function(function).blocks
    return sum(1 for block in blocks for _ in block.instructions)


def dissector(modules: Iterable[str]) -> set[str]:
    """The module that answers the primitives of `modules`, one for each use, when they ask for a packet's headers: none
    if nobody does."""
    asking = sum(_asks_for_headers(module) for module in modules)
    return set() if not asking else {"plain"} if asking <= FEW_ASKING else {"called"}


@cache
def _asks_for_headers(module: str) -> bool:
    return any(function.name == "ffpf_dissect" for function in llvm.parse_bitcode(_bitcode(module)).functions)


def emit_object(module: Module) -> bytes:
    """The ELF object."""
    return bytes(_target_machine().emit_object(module))


def emit_assembly(module: Module) -> str:
    """The same as BPF assembly."""
    return str(_target_machine().emit_assembly(module))


def llvm_version() -> tuple[int, ...]:
    """The version of the LLVM in this process."""
    return tuple(llvm.llvm_version_info)


@cache
def _target_machine() -> llvm.TargetMachine:
    # Too much stack is then the verifier's to refuse, with an error; LLVM itself would end the process.
    llvm.set_option("ffpf", f"-bpf-stack-size={1 << 20}")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple("bpf").create_target_machine(cpu=CPU, opt=2, reloc="static", codemodel="default")


@cache
def _bitcode(name: str) -> bytes:
    try:
        bitcode = (BITCODE / f"{name}.bc").read_bytes()
    except OSError:
        raise FfpfError(
            f"the kernel part `{name}` is not built", where=str(BITCODE), help="run `make build` in the checkout"
        ) from None
    if assembly := ASSEMBLY.search(str(llvm.parse_bitcode(bitcode))):
        # LLVM would end the process.
        raise FfpfError(
            f"inline assembly `{assembly[1]}`",
            where=f"bpf_src/{name}.c",
            help="write it in C; an empty `asm`, as in FFPF_OPAQUE, may stay",
        )
    return bitcode
