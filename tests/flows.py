"""What a flow does with many packets at once: which of them reach what, and what that shows.

A second opinion: filters by `vectors`, other nodes by `model.Behaviour`, graphs by the meaning of their steps. What is
left to chance or to what came before (samplers, limits, heads of flows) is a coin, and every way it falls is looked at.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from ffpf_bpf.authorise.policy import Allow, Never
from ffpf_bpf.graph.classes.anonymise import Anonymise
from ffpf_bpf.graph.classes.scan import Scan
from ffpf_bpf.graph.classes.snap import Snap
from ffpf_bpf.graph.effect import NO_RESULT, Depth, Predicate
from ffpf_bpf.graph.expression import Node, Role
from ffpf_bpf.graph.graph import Case, Complement, Graph, Intersection, Leaf, Union
from ffpf_bpf.graph.predicate import Program
from tests import vectors, wire
from tests.model import Behaviour
from tests.vectors import Packets

Truths = np.ndarray[Any, np.dtype[np.bool_]]
CHANCE = ("sampler", "limit", "head", "newflow")
MOST_COINS = 5  # beyond, only some of the ways that they fall
Coins = Mapping[int, bool]


def coins(graph: Graph) -> Iterator[Coins]:
    """The ways in which chance may fall: for each such step whether it lets packets go on."""
    steps = [index for index, leaf in graph.leaves() if leaf.node.class_name in CHANCE]
    if len(steps) <= MOST_COINS:
        ways: Iterator[tuple[bool, ...]] | list[tuple[bool, ...]] = product((True, False), repeat=len(steps))
    else:
        chance = random.Random(len(steps))
        ways = [(True,) * len(steps), (False,) * len(steps)]
        ways += [tuple(chance.random() < 0.5 for _ in steps) for _ in range(1 << MOST_COINS)]
    return (dict(zip(steps, way, strict=True)) for way in ways)


def showing(graph: Graph) -> dict[int, Depth]:
    """The steps that show something of what reaches them, and how much. Counting is not showing."""
    shown: dict[int, Depth] = {}
    for index, leaf in graph.leaves():
        if leaf.node.role is Role.SINK:
            shown[index] = max(map(_depth, ways(graph, leaf.source)))
    for index, leaf in graph.leaves():
        if isinstance(leaf.node, Scan):
            shown[index] = Depth.ALL
    return shown


def ways(graph: Graph, step: int | None) -> Iterator[tuple[Node, ...]]:
    """The transforms on each way from a device to a step, that step included. What all inputs of an intersection let
    pass came by each of them."""
    if step is None:
        yield ()
        return
    match graph.steps[step]:
        case Leaf(node=node, source=source):
            own = (node,) if node.role is Role.TRANSFORMS else ()
            yield from ((*before, *own) for before in ways(graph, source))
        case Union(inputs=inputs):
            for each in inputs:
                yield from ways(graph, each)
        case Intersection(inputs=inputs):
            for several in product(*(ways(graph, each) for each in inputs)):
                yield tuple(node for before in several for node in before)
        case Complement(source=source) | Case(source=source):
            yield from ways(graph, source)


def _depth(transforms: Sequence[Node]) -> Depth:
    depth = Depth.ALL
    for node in transforms:
        match node:
            case Anonymise(key=b""):
                depth = min(depth, Depth.ANONYMISED)
            case Anonymise() | Snap(payload=0):
                depth = min(depth, Depth.HEADERS)
            case Snap():
                pass
            case _:
                raise TypeError(f"not a transform: {node!r}")
    return depth


@dataclass
class Walk:
    """A graph on some packets. What nodes decide of a packet is found out once, and only for packets that reach them."""

    graph: Graph
    programs: Mapping[str, Program]
    packets: Packets
    filtered: dict[str, Truths] = field(default_factory=dict)
    decided: dict[tuple[int, int], tuple[bool, int]] = field(default_factory=dict)

    def values(self, fallen: Coins) -> tuple[list[Truths], dict[int, Any]]:
        """For each step for which packets it is true (of a sink: which reach it), and the results of nodes."""
        everything = np.ones(len(self.packets), np.bool_)
        values: list[Truths] = []
        results: dict[int, Any] = {}
        for index, step in enumerate(self.graph.steps):
            match step:
                case Leaf(node=node, source=source):
                    arrives = everything if source is None else values[source]
                    values.append(self._leaf(index, node, arrives, fallen, results))
                case Union(inputs=inputs):
                    joined = ~everything
                    for each in inputs:
                        joined = joined | values[each]
                    values.append(joined)
                case Intersection(inputs=inputs):
                    met = everything
                    for each in inputs:
                        met = met & values[each]
                    values.append(met)
                case Complement(source=source, inner=inner):
                    arrives = everything if source is None else values[source]
                    values.append(arrives & ~values[inner])
                case Case(source=source, ranges=ranges, inverted=inverted):
                    result, named = results[source], ~everything
                    for low, high in ranges:
                        named = named | ((result >= low) & (result <= high))
                    values.append(values[source] & (named != inverted))
                case _:
                    raise TypeError(f"not a step: {step!r}")
        return values, results

    def reached(self) -> dict[int, Truths]:
        """For each step that shows something which packets may reach it."""
        found: dict[int, Truths] = {}
        for fallen in coins(self.graph):
            values, _ = self.values(fallen)
            for index in showing(self.graph):
                step = self.graph.steps[index]
                assert isinstance(step, Leaf)
                here = values[index] if step.source is None else values[step.source]
                found[index] = found[index] | here if index in found else here
        return found

    def _leaf(self, index: int, node: Node, arrives: Truths, fallen: Coins, results: dict[int, Any]) -> Truths:
        if isinstance(node.effect, Predicate):
            text = node.effect.filter
            if text not in self.filtered:
                self.filtered[text] = vectors.run(self.programs[text], self.packets) != 0
            return arrives & self.filtered[text]
        if index in fallen:
            return arrives if fallen[index] else np.zeros_like(arrives)
        if node.role is not Role.DECIDES:
            return arrives
        goes_on, result = np.zeros_like(arrives), np.full(len(arrives), NO_RESULT, np.int64)
        for row in np.flatnonzero(arrives).tolist():
            goes_on[row], result[row] = self._decide(index, node, row)
        results[index] = result
        return goes_on

    def _decide(self, index: int, node: Node, row: int) -> tuple[bool, int]:
        if (index, row) not in self.decided:
            behaviour = Behaviour(node)
            self.decided[index, row] = behaviour.passes(self.packets[row]), behaviour.result
        return self.decided[index, row]


def violations(walk: Walk, allows: Sequence[Allow], nevers: Sequence[Never]) -> Iterator[tuple[str, Depth, bytes]]:
    """Packets that are shown although they may not be: where, how much of them, and the packet."""
    depths = showing(walk.graph)
    for index, here in walk.reached().items():
        for row in np.flatnonzero(here).tolist():
            if not wire.shown_allowed(allows, nevers, depths[index], walk.packets[row]):
                yield walk.graph.ids[index], depths[index], walk.packets[row]


def tell_apart(one: Walk, other: Walk) -> Truths:
    """For which rows any node decides differently about the packet of `one` and that of `other`."""
    differs = np.zeros(len(one.packets), np.bool_)
    for fallen in coins(one.graph):
        (values, results), (others, other_results) = one.values(fallen), other.values(fallen)
        for mine, theirs in zip(values, others, strict=True):
            differs |= mine != theirs
        for index, result in results.items():
            differs |= result != other_results[index]
    return differs
