"""Nodes put into a flow expression: behind its devices, and in front of others. What they let pass is less, never more.

Every node that is put in has a name of its own, so that the ids of the others stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from ffpf_bpf.graph.expression import AllOf, AnyOf, Expression, Node, Not, Role, Select, Then, nodes, then


@dataclass(slots=True)
class Names:
    """Names that no node has: `guard`, `guard2`, ..."""

    taken: set[str]

    @classmethod
    def of(cls, expression: Expression) -> Names:
        return cls({node.name for node in nodes(expression)})

    def fresh(self, name: str) -> str:
        candidates = (name if number == 1 else f"{name}{number}" for number in range(1, len(self.taken) + 2))
        found = next(each for each in candidates if each not in self.taken)
        self.taken.add(found)
        return found


def behind_devices(expression: Expression, make: Callable[[], Expression]) -> Expression:
    """With what `make` makes behind each device, or behind what joins devices only."""
    if _is_all_devices(expression):
        return then(expression, make())
    match expression:
        case Then(stages=(first, *rest)):
            return then(behind_devices(first, make), *rest)
        case AnyOf(branches=branches):
            return AnyOf(tuple(behind_devices(branch, make) for branch in branches))
        case AllOf(branches=branches):
            return AllOf(tuple(behind_devices(branch, make) for branch in branches))
        case _:
            raise TypeError(f"no device comes first: {expression!r}")


def places(expression: Expression) -> int:
    """How often `behind_devices` would put something in."""
    found: list[int] = []

    def make() -> Expression:
        found.append(1)
        return next(nodes(expression))

    behind_devices(expression, make)
    return len(found)


def in_front(expression: Expression, wanted: Callable[[Node], bool], make: Callable[[], Node]) -> Expression:
    """With a node in front of each node that is wanted, but for those inside `!` and `&`, where it would decide."""
    return _replaced(expression, lambda node: then(make(), node) if wanted(node) else node)


def behind(expression: Expression, wanted: Callable[[Node], bool], make: Callable[[], Node]) -> Expression:
    """Likewise behind."""
    return _replaced(expression, lambda node: then(node, make()) if wanted(node) else node)


def with_snaplen(expression: Expression, most: int) -> Expression:
    """With sinks that take no more bytes than `most`."""

    def shortened(node: Node) -> Expression:
        if node.role is not Role.SINK or "snaplen" not in {each.name for each in fields(node)}:
            return node
        snaplen = node.snaplen  # type: ignore[attr-defined]
        return node if 0 < snaplen <= most else replace(node, snaplen=most)  # type: ignore[call-arg]

    return _replaced(expression, shortened)


def _replaced(expression: Expression, change: Callable[[Node], Expression]) -> Expression:
    match expression:
        case Node():
            return change(expression)
        case Then(stages=stages):
            return then(*(_replaced(stage, change) for stage in stages))
        case AnyOf(branches=branches):
            return AnyOf(tuple(_replaced(branch, change) for branch in branches))
        case Select(node=node, cases=cases):
            select = Select(node, tuple((ranges, _replaced(case, change)) for ranges, case in cases))
            changed = change(node)
            if isinstance(changed, Then) and changed.stages[-1] == node:
                return then(*changed.stages[:-1], select)
            return select
        case AllOf() | Not():
            return expression
        case _:
            raise TypeError(f"not a flow expression: {expression!r}")


def _is_all_devices(expression: Expression) -> bool:
    match expression:
        case Node():
            return expression.role is Role.DEVICE
        case AnyOf(branches=branches):
            return all(map(_is_all_devices, branches))
        case _:
            return False
