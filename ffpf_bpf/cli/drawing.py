"""`ffpf draw`: the graph as a picture, or as text."""

from __future__ import annotations

from typing import Annotated

import typer

from ffpf_bpf.cli import options
from ffpf_bpf.cli.compiling import put
from ffpf_bpf.graph import picture
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.sharing import merge


def draw(
    expressions: options.Expressions,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE.svg", help="Write a picture instead of text.")
    ] = None,
) -> None:
    """Draw the graph of a flow expression, with the id of each node. Several are drawn as one graph, in which what they
    share stands once."""
    graphs = [build(parse(options.expression_text(expression))) for expression in expressions]
    if len(graphs) == 1:
        put(output, picture.text(graphs[0]) + "\n" if output is None else picture.svg(graphs[0]))
        return
    merged = merge(graphs)
    put(output, picture.merged_text(merged) + "\n" if output is None else picture.svg(merged.graph, merged.users))
