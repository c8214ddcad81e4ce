"""What flows have in common: identical prefixes, from the devices on.

Two steps of different flows are the same if they do the same to the same packets: nodes of one class, expression,
memory and name behind the same steps; unions, intersections and so on of the same steps. What stands at the end of a
path is the flow's own: sinks, and functions that nothing follows.

Identical steps of one flow are told apart by their order: the first is the same as the first of another flow.
"""

from __future__ import annotations

from hashlib import sha256

from ffpf_bpf.graph.expression import Role
from ffpf_bpf.graph.graph import Case, Complement, Graph, Intersection, Leaf, Step, Union, sources
from ffpf_bpf.graph.printer import text

Key = bytes


def keys(graph: Graph) -> dict[int, Key]:
    """The steps of a graph that other flows may share, by what tells them apart. Steps that only say where packets
    arrive are not among them, since they cost nothing, but they are part of the keys of others."""
    read = {source for step in graph.steps for source in sources(step)}
    counted: dict[Key, int] = {}
    found: dict[int, Key] = {}
    for index, step in enumerate(graph.steps):
        what = _what(step, [found[source] for source in sources(step)])
        counted[what] = counted.get(what, 0) + 1
        found[index] = sha256(what + counted[what].to_bytes(4, "big")).digest()
    return {
        index: key
        for index, key in found.items()
        if index not in graph.arrivals and index in read and not _is_sink(graph.steps[index])
    }


def _what(step: Step, behind: list[Key]) -> Key:
    match step:
        case Leaf(node=node):
            kind = f"node {text(node)} {node.mbuf_bytes}"
        case Union():
            kind, behind = "any", sorted(behind)
        case Intersection():
            kind, behind = "all", sorted(behind)
        case Complement(source=source):
            kind = "not" if source is not None else "not all"
        case Case(ranges=ranges, inverted=inverted):
            kind = f"case {ranges} {inverted}"
        case _:
            raise TypeError(f"not a step: {step!r}")
    return b"\0".join([kind.encode(), *behind])


def _is_sink(step: Step) -> bool:
    return isinstance(step, Leaf) and step.node.role is Role.SINK
