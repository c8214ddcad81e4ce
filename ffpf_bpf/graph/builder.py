"""Flow expression -> graph: completed with the `(grab)` that the short form leaves out, checked, made into steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import Enum

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import Grab
from ffpf_bpf.graph.effect import Fate
from ffpf_bpf.graph.expression import AllOf, AnyOf, Expression, Node, Not, Role, Select, Then, any_of, nodes, then
from ffpf_bpf.graph.graph import Case, Complement, Graph, Intersection, Leaf, Step, Stop, Union, check, dead_ends
from ffpf_bpf.graph.views import views

MOST_NODES = 1_000
MOST_SINKS = 32  # of a flow: a bit each in a record's tag


def build(expression: Expression) -> Graph:
    """The graph of a flow expression, with `(grab)` added where a path ends in nothing. Raises ExpressionError if a
    path does not begin with a device, a NOT or `&` holds what does not decide, a name is used twice, something follows
    a sink, the ways to a sink differ in what they show, or there are over 1,000 nodes, or 32 sinks to be told apart."""
    try:
        leaves = tuple(nodes(expression))
        if len(leaves) > MOST_NODES:
            raise ExpressionError(f"{len(leaves):,} nodes in one flow", help=f"at most {MOST_NODES:,}")
        _check_names(leaves)
        completed, _ = _completed(expression)
        _check_devices(completed, first=True)
        builder = _Builder(tuple(nodes(completed)))
        builder.add(completed, None, ())
    except RecursionError:
        raise ExpressionError("nested too deeply", help="at most 100 joins inside one another") from None
    graph = Graph(
        expression=completed,
        steps=tuple(builder.steps),
        ids=tuple(builder.ids),
        taps=_taps(leaves),
        stops=tuple(builder.stops),
        ends=tuple(builder.ends()),
    )
    check(graph)
    views(graph)
    if graph.tagged and len(graph.sinks) > MOST_SINKS:
        raise ExpressionError(
            f"{len(graph.sinks)} sinks in a flow that tells them apart",
            help=f"at most {MOST_SINKS}; make several flows",
        )
    return graph


def _taps(leaves: tuple[Node, ...]) -> tuple[Device, ...]:
    """Each tap once. Raises ExpressionError for one that is a monitor port and is not."""
    found: dict[str, Device] = {}
    for node in leaves:
        if isinstance(node, Device):
            first = found.setdefault(node.tap, Device(node.tap, node.monitor))
            if first.monitor != node.monitor:
                raise ExpressionError(
                    f"`{node.tap}` is a monitor port, and is not", help="say `monitor` each time, or never"
                )
    return tuple(found.values())


class _Builder:
    """Appends the steps of an expression, inner ones first."""

    def __init__(self, leaves: tuple[Node, ...]) -> None:
        self.steps: list[Step] = []
        self.ids: list[str] = []
        self.stops: list[Stop] = []
        self._taken = {node.name for node in leaves}
        self._numbers: Counter[str] = Counter()

    def add(self, expression: Expression, source: int | None, unless: tuple[int, ...], inverted: bool = False) -> int:
        """Append `expression` fed by step `source`; the step that says whether the packet goes on."""
        match expression:
            case Node():
                step = self._append(Leaf(expression, source), expression.name, expression.class_name)
                if expression.stops_as not in (None, Fate.FILTERED) and not inverted:
                    self.stops.append(Stop(expression.stops_as or Fate.FILTERED, step, unless))
                return step
            case AnyOf(branches=branches):
                return self._joined(self.add(branch, source, unless, inverted) for branch in branches)
            case AllOf(branches=branches):
                inputs = tuple(self.add(branch, source, unless, inverted) for branch in branches)
                return self._append(Intersection(inputs), "", "all")
            case Not(inner=inner):
                decided = self.add(inner, source, (), inverted=True)
                step = self._append(Complement(source, decided), "", "not")
                fates = {node.stops_as for node in nodes(inner)} - {None, Fate.FILTERED}
                if fates and not inverted:
                    self.stops.append(Stop(max(fate for fate in fates if fate), step, unless))
                return step
            case Then(stages=(first, *rest)):
                step = self.add(first, source, unless, inverted)
                for stage in rest:
                    step = self.add(stage, step, unless, inverted)
                return step
            case Select():
                return self._select(expression, source, unless, inverted)
            case _:
                raise TypeError(f"not a flow expression: {expression!r}")

    def _select(self, select: Select, source: int | None, unless: tuple[int, ...], inverted: bool) -> int:
        node = self.add(select.node, source, unless, inverted)
        every = tuple(sorted(bounds for ranges, _ in select.cases for bounds in ranges))

        def branches() -> Iterator[int]:
            for ranges, behind in select.cases:
                case = Case(node, ranges) if ranges else Case(node, every, inverted=True)
                yield self.add(behind, self._append(case, "", "case"), unless, inverted)

        return self._joined(branches())

    def _joined(self, branches: Iterable[int]) -> int:
        """The union of branches, whose steps are appended one branch after the other."""
        first_stop = len(self.stops)
        inputs = tuple(branches)
        step = self._append(Union(tuple(i for i in inputs if self._goes_on(i))), "", "any")
        for index in range(first_stop, len(self.stops)):
            stop = self.stops[index]
            self.stops[index] = Stop(stop.fate, stop.step, (*stop.unless, step))
        return step

    def ends(self) -> Iterator[int]:
        """The functions at the end of a path: a packet that gets there and to no sink was counted."""
        unread = dead_ends(self.steps)
        for index, step in enumerate(self.steps):
            if index in unread and isinstance(step, Leaf) and step.node.role is Role.DOES:
                yield index

    def _goes_on(self, index: int) -> bool:
        match self.steps[index]:
            case Leaf(node=node):
                return node.role is not Role.SINK
            case Union(inputs=inputs):
                return bool(inputs)
            case _:
                return True

    def _append(self, step: Step, name: str, kind: str) -> int:
        self.steps.append(step)
        self.ids.append(name or self._fresh(kind))
        return len(self.steps) - 1

    def _fresh(self, kind: str) -> str:
        while True:
            self._numbers[kind] += 1
            name = f"{kind}{self._numbers[kind]}"
            if name not in self._taken:
                self._taken.add(name)
                return name


class _Ends(Enum):
    """How many paths of an expression end in a sink or a function already."""

    NONE, SOME, ALL = range(3)


def _completed(expression: Expression) -> tuple[Expression, _Ends]:
    """`expression` with one `(grab)` behind the paths that end in neither a sink nor a function, and how it ended."""
    match expression:
        case Node(role=Role.SINK | Role.DOES):
            return expression, _Ends.ALL
        case Node() | AllOf() | Not():
            return then(expression, Grab()), _Ends.NONE
        case Select(node=node, cases=cases):
            # Each case ends for itself: what an edge leads to is seldom what the others lead to.
            behind = [(ranges, *_completed(case)) for ranges, case in cases]
            if all(ends is _Ends.NONE for *_, ends in behind):
                return then(expression, Grab()), _Ends.NONE
            ends_all = all(ends is _Ends.ALL for *_, ends in behind)
            select = Select(node, tuple((ranges, case) for ranges, case, _ in behind))
            return select, _Ends.ALL if ends_all else _Ends.SOME
        case Then(stages=(*first, last)):
            completed, ends = _completed(last)
            return then(*first, completed), ends
        case AnyOf(branches=branches):
            results = [_completed(branch) for branch in branches]
            kinds = {ends for _, ends in results}
            if kinds == {_Ends.ALL}:
                return expression, _Ends.ALL
            if kinds == {_Ends.NONE}:
                return then(expression, Grab()), _Ends.NONE
            ended = [completed for completed, ends in results if ends is not _Ends.NONE]
            bare = [branch for branch, (_, ends) in zip(branches, results, strict=True) if ends is _Ends.NONE]
            return any_of(*ended, *([then(any_of(*bare), Grab())] if bare else [])), _Ends.SOME
        case _:
            raise TypeError(f"not a flow expression: {expression!r}")


def _check_names(leaves: tuple[Node, ...]) -> None:
    seen: set[str] = set()
    for node in leaves:
        if node.name and node.name in seen:
            raise ExpressionError(
                f"two nodes are called `{node.name}`", where=node.where, help="give each node its own name"
            )
        seen.add(node.name)


def _check_devices(expression: Expression, *, first: bool) -> bool:
    """Every path begins with a device, no device stands later, nothing follows a sink, `&` and `!` hold only nodes
    that pass packets on or decide. Returns whether packets can leave `expression`."""
    match expression:
        case Node():
            _check_place(expression, first)
            return expression.role is not Role.SINK
        case AnyOf(branches=branches):
            every = [_check_devices(branch, first=first) for branch in branches]
            return any(every)
        case Select(node=node, cases=cases):
            _check_devices(node, first=first)
            every = [_check_devices(case, first=False) for _, case in cases]
            return any(every)
        case AllOf():
            _check_all_of(expression, first)
            return True
        case Not(inner=inner):
            _check_not(inner, first)
            return True
        case Then(stages=(head, *tail)):
            goes_on = _check_devices(head, first=first)
            for stage in tail:
                if not goes_on:
                    raise ExpressionError(
                        "something follows a sink",
                        where=next(nodes(stage)).where,
                        help="a sink such as `(grab)` ends its path; branch before it with `|`",
                    )
                goes_on = _check_devices(stage, first=False)
            return goes_on
        case _:
            raise TypeError(f"not a flow expression: {expression!r}")


def _check_place(node: Node, first: bool) -> None:
    """A node is first on its path if it is a device, and only then."""
    if node.role is Role.DEVICE and not first:
        raise ExpressionError(
            f"`{node.expression}` stands behind another node",
            where=node.where,
            help="devices come first: `(device,eth0) | (device,eth1) -> ...`",
        )
    if node.role is not Role.DEVICE and first:
        raise ExpressionError(
            "a path begins without a device",
            where=node.where,
            help=f"put `(device,NAME) ->` before `({node.class_name})`",
        )


def _check_all_of(expression: AllOf, first: bool) -> None:
    """`&` joins what packets of one device can all leave."""
    if first and len({node.expression for node in nodes(expression) if node.role is Role.DEVICE}) > 1:
        raise ExpressionError("`&` joins two devices, and no packet arrives at both", help="join devices with `|`")
    for branch in expression.branches:
        if not _check_devices(branch, first=first) or _has_role(branch, Role.SINK):
            raise ExpressionError(
                "`&` holds a sink, which passes nothing on", help="put the sink behind: `a & b -> (grab)`"
            )


def _check_not(inner: Expression, first: bool) -> None:
    """`!` holds only nodes that decide, behind a device."""
    for node in nodes(inner):
        if node.role is not Role.DECIDES:
            raise ExpressionError(
                f"`!` stands before `({node.class_name})`, which does not decide",
                where=node.where,
                help="`!` takes filters only, as in `!(bpf,udp)`",
            )
    if first:
        raise ExpressionError("a path begins without a device", help="put `(device,NAME) ->` before `!`")


def _has_role(expression: Expression, role: Role) -> bool:
    return any(node.role is role for node in nodes(expression))
