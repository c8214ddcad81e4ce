"""Line numbers that stand for nodes: asked for only after a program was refused, to say whose code it was."""

from __future__ import annotations

from collections.abc import Mapping

from llvmlite import ir


def line_of(flow: int, step: int) -> int:
    """The debug line that stands for a node: flow and step in one number."""
    return (flow << 12) + step + 2


def node_at(line: int) -> tuple[int, int] | None:
    """Flow and step of a debug line, or None for glue."""
    return ((line - 2) >> 12, (line - 2) & 0xFFF) if line >= 2 else None


def node_before(lines: Mapping[int, int], instruction: int) -> tuple[int, int] | None:
    """Flow and step that an instruction belongs to, by the lines of its program."""
    before = [at for at in lines if at <= instruction]
    return node_at(lines[max(before)]) if before else None


def debug_scope(module: ir.Module, function: ir.Function) -> ir.DIValue:
    """The least debug information that makes the back end write a line table."""
    file = module.add_debug_info("DIFile", {"filename": "graph", "directory": ""})
    unit = module.add_debug_info(
        "DICompileUnit",
        {
            "language": ir.DIToken("DW_LANG_C99"),
            "file": file,
            "isOptimized": True,
            "runtimeVersion": 0,
            "emissionKind": ir.DIToken("LineTablesOnly"),
        },
        is_distinct=True,
    )
    kind = module.add_debug_info("DISubroutineType", {"types": module.add_metadata([])})
    scope = module.add_debug_info(
        "DISubprogram",
        {
            "name": function.name,
            "file": file,
            "line": 1,
            "type": kind,
            "scopeLine": 1,
            "unit": unit,
            "spFlags": ir.DIToken("DISPFlagDefinition"),
        },
        is_distinct=True,
    )
    function.set_metadata("dbg", scope)
    module.add_named_metadata("llvm.dbg.cu", unit)
    flag = [ir.IntType(32)(2), "Debug Info Version", ir.IntType(32)(3)]
    module.add_named_metadata("llvm.module.flags", module.add_metadata(flag))
    return scope
