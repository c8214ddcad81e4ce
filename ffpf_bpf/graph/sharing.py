"""What flows have in common: identical prefixes, from the devices on.

Two steps of different flows are the same if they do the same to the same packets: nodes of one class, expression,
memory and name behind the same steps; unions, intersections and so on of the same steps. What stands at the end of a
path is the flow's own: sinks, and functions that nothing follows.

Identical steps of one flow are told apart by their order: the first is the same as the first of another flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from ffpf_bpf.graph.effect import Delivery
from ffpf_bpf.graph.expression import Role, any_of
from ffpf_bpf.graph.graph import Case, Complement, Graph, Intersection, Leaf, Step, Union, sources
from ffpf_bpf.graph.printer import text
from ffpf_bpf.graph.views import View, views

Key = bytes


def keys(graph: Graph) -> dict[int, Key]:
    """The steps of a graph that other flows may share, by what tells them apart. Steps that only say where packets
    arrive are not among them, since they cost nothing, but they are part of the keys of others."""
    read = {source for step in graph.steps for source in sources(step)}
    return {
        index: key
        for index, key in _every_key(graph).items()
        if index not in graph.arrivals and index in read and not _is_sink(graph.steps[index])
    }


def common_view(graph: Graph) -> View | None:
    """The transforms that every packet passes which the graph's sinks take, if they all take as many bytes of what
    these leave: flows that show the same can share such records. Else None."""
    found = set(views(graph).values())
    effects = (leaf.node.effect for _, leaf in graph.leaves())
    lengths = {effect.snaplen for effect in effects if isinstance(effect, Delivery)}
    return None if len(found) != 1 or len(lengths) != 1 else found.pop()


@dataclass(frozen=True, slots=True)
class Merged:
    """Several graphs as one, in which common steps stand once; `users[step]` are the graphs, from 1, that have it."""

    graph: Graph
    users: tuple[tuple[int, ...], ...]


def merge(graphs: Sequence[Graph]) -> Merged:
    """The graphs merged as the kernel side merges flows of one group. A step's id is that of the first graph that has
    it; `2:bpf1` is a step of the second, where the name is taken."""
    steps: list[Step] = []
    ids: list[str] = []
    users: list[list[int]] = []
    places: dict[Key, int] = {}
    for number, graph in enumerate(graphs, 1):
        shareable = keys(graph)
        mine: dict[int, int] = {}
        for index, step in enumerate(graph.steps):
            key = _every_key(graph)[index] if index in shareable or index in graph.arrivals else None
            if key is None or key not in places:
                mine[index] = len(steps)
                steps.append(_renumbered(step, mine))
                ids.append(graph.ids[index] if graph.ids[index] not in ids else f"{number}:{graph.ids[index]}")
                users.append([])
                if key is not None:
                    places[key] = mine[index]
            else:
                mine[index] = places[key]
            users[mine[index]].append(number)
    taps = tuple(dict.fromkeys(tap for graph in graphs for tap in graph.taps))
    expression = any_of(*(graph.expression for graph in graphs))
    return Merged(Graph(expression, tuple(steps), tuple(ids), taps), tuple(map(tuple, users)))


def _renumbered(step: Step, places: Mapping[int, int]) -> Step:
    match step:
        case Leaf(source=source):
            return replace(step, source=None if source is None else places[source])
        case Union(inputs=inputs) | Intersection(inputs=inputs):
            return replace(step, inputs=tuple(places[i] for i in inputs))
        case Complement(source=source, inner=inner):
            return Complement(None if source is None else places[source], places[inner])
        case Case(source=source):
            return replace(step, source=places[source])
        case _:
            raise TypeError(f"not a step: {step!r}")


def _every_key(graph: Graph) -> dict[int, Key]:
    counted: dict[Key, int] = {}
    found: dict[int, Key] = {}
    for index, step in enumerate(graph.steps):
        what = _what(step, [found[source] for source in sources(step)])
        counted[what] = counted.get(what, 0) + 1
        found[index] = sha256(what + counted[what].to_bytes(4, "big")).digest()
    return found


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
