"""`ffpf draw`: the graph as a picture, or as text."""

from __future__ import annotations

from typing import Annotated

import typer

from ffpf_bpf.cli import options
from ffpf_bpf.cli.compiling import put
from ffpf_bpf.graph import picture
from ffpf_bpf.graph.graph import build
from ffpf_bpf.graph.parser import parse


def draw(
    expression: options.Expression,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE.svg", help="Write a picture instead of text.")
    ] = None,
) -> None:
    """Draw the graph of a flow expression, with the id of each node."""
    graph = build(parse(options.expression_text(expression)))
    put(output, picture.text(graph) + "\n" if output is None else picture.svg(graph))
