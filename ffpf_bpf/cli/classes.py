"""`ffpf nodes`: the node classes, and one of them explained."""

from __future__ import annotations

import difflib
import inspect
import json as json_module
from typing import Annotated, Any

import typer

from ffpf_bpf.cli import options
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.expression import Node, nodes
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.printer import python


def show_nodes(
    node_class: Annotated[str | None, typer.Argument(metavar="[CLASS]", help="The class to explain.")] = None,
    json: options.Json = False,
) -> None:
    """List the node classes, or explain one of them with an example."""
    if node_class is None:
        found = [_facts(known) for known in CLASSES.values()]
        print(json_module.dumps(found) if json else _table(found))
        return
    known = CLASSES.get(node_class.lower())
    if known is None:
        near = difflib.get_close_matches(node_class.lower(), CLASSES, n=1)
        raise ExpressionError(
            f"unknown node class `{node_class}`",
            help=f"did you mean `{near[0]}`?" if near else f"the classes are {', '.join(CLASSES)}",
        )
    print(json_module.dumps(_facts(known)) if json else _explained(known))


def _facts(known: type[Node]) -> dict[str, Any]:
    example = _example(known)
    return {
        "class": known.class_name,
        "role": str(known.role),
        "summary": _summary(known),
        "stops_as": known.stops_as.name.lower() if known.stops_as is not None else None,
        "mbuf_bytes": example.default_mbuf_bytes,
        "mbuf_per_cpu": known.mbuf_per_cpu,
        "selects": example.selects,
        "example": known.example,
    }


def _example(known: type[Node]) -> Node:
    """The node of the class in its own example."""
    return next(node for node in nodes(parse(known.example)) if isinstance(node, known))


def _summary(known: type[Node]) -> str:
    """What follows the class's name in the first line of its module."""
    module = inspect.getmodule(known)
    text = inspect.getdoc(module) or ""
    return text.splitlines()[0].partition(": ")[2].rstrip(".")


def _table(found: list[dict[str, Any]]) -> str:
    rows = [("class", "role", "", "memory"), *((f["class"], f["role"], f["summary"], _memory(f)) for f in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "`ffpf nodes CLASS` explains one, with an example"])


def _memory(facts: dict[str, Any]) -> str:
    size = facts["mbuf_bytes"]
    return f"{size:,} bytes{' per CPU' if facts['mbuf_per_cpu'] else ''}" if size else ""


def _explained(known: type[Node]) -> str:
    facts = _facts(known)
    stops = f"; packets it stops are `{facts['stops_as']}`" if facts["stops_as"] else ""
    lines = [f"{known.class_name}: {facts['role']}{stops}", "", inspect.getdoc(known) or "", ""]
    if memory := _memory(facts):
        lines.append(f"memory: {memory} in the example")
    if facts["selects"]:
        lines.append("edges can select on its result, as `-1->` and `-*->`")
    expression = parse(known.example)
    return "\n".join([*lines, "example:", f"    {known.example}", f"    {python(expression)}"])
