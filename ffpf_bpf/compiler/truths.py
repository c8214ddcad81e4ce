"""What is true of a packet while its graph is evaluated: guards, joins, and at last its fate.

A truth is folded into what will be asked of it as soon as it is known, so that few are alive at once: a program has 512
bytes of stack, and LLVM ends the process if they do not do. In a graph of many nodes each fold is pinned to its place
(`settle`), or the optimiser would put all of them off to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llvmlite import ir

from ffpf_bpf.compiler.predicate import I1, I64, opaque
from ffpf_bpf.graph.effect import Fate
from ffpf_bpf.graph.graph import Complement, Graph, Intersection, Leaf, Step, Stop, Union

Settle = Callable[[ir.Value], ir.Value]
Place = tuple[int, int]


class Joins:
    """Unions and intersections, joined branch by branch: a branch's truth need not be kept until the last one's."""

    def __init__(self, builder: ir.IRBuilder, graph: Graph, settle: Settle) -> None:
        self.builder = builder
        self.settle = settle
        self.readers: dict[int, list[int]] = {}
        self.partial: dict[int, ir.Value] = {}
        self.is_union: dict[int, bool] = {}
        for index, step in enumerate(graph.steps):
            if isinstance(step, Union | Intersection):
                self.is_union[index] = isinstance(step, Union)
                for source in step.inputs:
                    self.readers.setdefault(source, []).append(index)

    def add(self, step: int, truth: ir.Value) -> None:
        """The truth of a step is known: into all that join it."""
        for reader in self.readers.get(step, ()):
            before = self.partial.get(reader)
            join = self.builder.or_ if self.is_union[reader] else self.builder.and_
            self.partial[reader] = truth if before is None else self.settle(join(before, truth))

    def result(self, step: int) -> ir.Value:
        """A union or intersection whose branches are all known; a union of none is false."""
        return self.partial.get(step, I1(0 if self.is_union[step] else 1))


class Outcome:
    """What becomes of a packet: kept by a sink, counted at the end of a path, or left out, and why."""

    def __init__(self, builder: ir.IRBuilder, graph: Graph, settle: Settle) -> None:
        self.builder = builder
        self.settle = settle
        self.sinks, self.ends = frozenset(graph.sinks), frozenset(graph.ends)
        self.kept: ir.Value = I1(0)
        self.counted: ir.Value = I1(0)
        self.left_out: dict[Fate, ir.Value] = {}
        self.stops: dict[int, list[Stop]] = {}
        for stop in graph.stops:
            self.stops.setdefault(stop.step, []).append(stop)
        # By the unions that may still let the packet go on: stopped in one of their branches, and why.
        self.undecided: dict[tuple[int, ...], dict[Fate, ir.Value]] = {}

    def add(self, index: int, step: Step, truths: list[ir.Value]) -> None:
        """Step `index`, the last of `truths`, is known."""
        b, truth = self.builder, truths[index]
        if index in self.sinks:
            self.kept = self.settle(b.or_(self.kept, truth))
        if index in self.ends:
            self.counted = self.settle(b.or_(self.counted, truth))
        for stop in self.stops.get(index, ()):
            arrives = truths[step.source] if isinstance(step, Leaf | Complement) and step.source is not None else I1(1)
            self._leave_out(stop.unless, stop.fate, b.and_(arrives, b.not_(truth)))
        for unless in [unless for unless in self.undecided if max(unless) == index]:
            went_on: ir.Value = I1(0)
            for other_way in unless:
                went_on = b.or_(went_on, truths[other_way])
            for fate, stopped in self.undecided.pop(unless).items():
                self._leave_out((), fate, b.and_(stopped, b.not_(went_on)))

    def fate(self) -> ir.Value:
        """The packet's fate as 64 bits, if no sink kept it."""
        fate: ir.Value = I64(Fate.FILTERED)
        for kind in sorted(self.left_out):
            fate = self.builder.select(self.left_out[kind], I64(kind), fate)
        return self.builder.select(self.counted, I64(Fate.COUNTED), fate)

    def _leave_out(self, unless: tuple[int, ...], fate: Fate, stopped: ir.Value) -> None:
        group = self.undecided.setdefault(unless, {}) if unless else self.left_out
        group[fate] = self.settle(self.builder.or_(group[fate], stopped) if fate in group else stopped)


class SharedTruths:
    """What steps of several flows came to, a bit each: they are alive until the last flow has asked, and there may be
    hundreds of them."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder
        self.words: list[ir.Value] = []
        self.places: dict[Place, int] = {}
        self.results: dict[Place, ir.Value] = {}

    def __contains__(self, place: Place) -> bool:
        return place in self.places

    def add(self, place: Place, truth: ir.Value, result: ir.Value) -> None:
        """A step's truth, and its result."""
        b = self.builder
        number = len(self.places)
        if number % 64 == 0:
            self.words.append(I64(0))
        bit = b.shl(b.zext(truth, I64), I64(number % 64))
        self.words[-1] = opaque(b, b.or_(self.words[-1], bit), pinned=True)
        self.places[place], self.results[place] = number, result

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Inside, truths are told from the words again, not kept from where they were told before."""
        words, self.words = self.words, [opaque(self.builder, word, pinned=True) for word in self.words]
        yield
        self.words = words

    def get(self, place: Place) -> tuple[ir.Value, ir.Value]:
        """Truth and result, as values that are good where they are asked for."""
        b, number = self.builder, self.places[place]
        bit = b.and_(self.words[number // 64], I64(1 << number % 64))
        return b.icmp_unsigned("!=", bit, I64(0)), self.results[place]


class Guard:
    """Runs what is built inside only for packets that arrive; `value` is `result` then, and false otherwise. `also` is
    a second value of 64 bits that leaves the same way, and 0 otherwise."""

    def __init__(self, builder: ir.IRBuilder, arrives: ir.Value) -> None:
        self.builder = builder
        self.arrives = arrives
        self.result: ir.Value = I1(1)
        self.value: ir.Value = I1(0)
        self.also: ir.Value = I64(0)

    def __enter__(self) -> Guard:
        b = self.builder
        self.before = b.block
        inside, self.after = b.append_basic_block(), b.append_basic_block()
        b.cbranch(self.arrives, inside, self.after)
        b.position_at_end(inside)
        return self

    def __exit__(self, *failure: object) -> None:
        b = self.builder
        inside = b.block
        b.branch(self.after)
        b.position_at_end(self.after)
        self.value = b.phi(I1)
        self.value.add_incoming(I1(0), self.before)
        self.value.add_incoming(self.result, inside)
        also, self.also = self.also, b.phi(I64)
        self.also.add_incoming(I64(0), self.before)
        self.also.add_incoming(also, inside)
