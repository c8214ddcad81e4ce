"""`ffpf compile`: what would be loaded, in any of its forms. Needs no root."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ffpf_bpf import compiler
from ffpf_bpf.cli import options
from ffpf_bpf.errors import CaptureError, ExpressionError
from ffpf_bpf.flow import planned_parts
from ffpf_bpf.graph import picture
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.parser import parse


class Form(StrEnum):
    """The forms between a flow expression and the kernel."""

    GRAPH = "graph"
    BPF = "bpf"
    IR = "ir"
    ASM = "asm"
    OBJECT = "object"


def compile_expression(
    expression: options.Expression,
    emit: Annotated[Form, typer.Option("--emit", help="Which form to show.")] = Form.ASM,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to a file.")] = None,
) -> None:
    """Compile a flow expression and show a form of it; `object` writes FILE and, if it grabs, FILE.deliver."""
    graph = build(parse(options.expression_text(expression)))
    definition = Definition(graph, compiler.compile_predicates(graph), options.size_in_bytes("4MiB"))
    match emit:
        case Form.GRAPH:
            put(output, picture.text(graph) + "\n")
        case Form.BPF:
            put(output, _filters(definition))
        case Form.IR:
            put(output, _each_tap(definition, compiler.ir_text))
        case Form.ASM:
            put(output, _each_tap(definition, compiler.assembly_text))
        case Form.OBJECT:
            _objects(definition, output)


def _filters(definition: Definition) -> str:
    if not definition.predicates:
        return "no filter in this flow\n"
    return "".join(
        f"{text or '(everything)'}\n{program.listing()}\n" for text, program in definition.predicates.items()
    )


def _each_tap(definition: Definition, form: object) -> str:
    texts = []
    for tap, part, cpus, hook in planned_parts(definition):
        for generated in compiler.generate((part,), tap, cpus, hook=hook):
            texts.append(f"; {tap}: {', '.join(generated.programs)}\n{form(generated)}")  # type: ignore[operator]
    return "\n".join(texts) + "\n"


def _objects(definition: Definition, output: str | None) -> None:
    if output is None or output == "-":
        raise ExpressionError("an object is not text", help="name a file: `-o flow.o`")
    several = len(definition.graph.taps) > 1
    for tap, part, cpus, hook in planned_parts(definition):
        for name, compiled in compiler.compile_segment((part,), tap, cpus, hook=hook).items():
            suffix = f".{tap.replace('/', '.')}" if several else ""
            suffix += ".deliver" if name == compiler.DELIVER_PROGRAM else ""
            _put_bytes(output + suffix, compiled.elf)
            print(f"{output + suffix}: {name}, {compiled.programs[name].count} instructions", file=sys.stderr)


def put(output: str | None, text: str) -> None:
    """Write text to a file, or to standard output for None and `-`."""
    if output is None or output == "-":
        sys.stdout.write(text)
    else:
        _put_bytes(output, text.encode())


def _put_bytes(path: str, data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CaptureError(f"cannot write: {reason}", where=path, help="name another file") from None
