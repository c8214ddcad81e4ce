"""The flow expression as a value: nodes joined by `->`, `|`, `&` and `!`.

Text and Python build the same value. The operators are `>>` (then), `|` (any of), `&` (all of) and `~` (not);
mind that Python binds `>>` tighter than `|` and `&`, which is why the printed form always has the parentheses.

Values only: nothing here looks at an interface, a filter compiler or a kernel.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

from ffpf_bpf.errors import ExpressionError, with_article
from ffpf_bpf.graph.effect import Effect, Fate, Primitive


class Expression:
    """A flow expression; the operators build larger ones."""

    __slots__ = ()

    def __rshift__(self, other: Expression | Nodelike) -> Expression:
        return then(self, _operand(other, ">>"))

    def __or__(self, other: Expression | Nodelike) -> Expression:
        return any_of(self, _operand(other, "|"))

    def __and__(self, other: Expression | Nodelike) -> Expression:
        return all_of(self, _operand(other, "&"))

    def __invert__(self) -> Expression:
        return Not(self)

    def on(self, cases: Mapping[Label, Expression]) -> Select:
        """Refused, but for nodes: an edge selects on the result of one."""
        raise ExpressionError(
            "`.on` is of a node: edges select on the result of one",
            help='call it on the node itself: `a >> classify("dport").on({80: b})`',
        )

    def __bool__(self) -> bool:
        raise ExpressionError(
            "a flow expression is neither true nor false",
            help="use `|`, `&` and `~` between expressions, not `or`, `and` and `not`",
        )


@runtime_checkable
class Nodelike(Protocol):
    """What stands for a node wherever a flow expression is expected: a condition of `graph.condition`."""

    def as_node(self) -> Node: ...


class Role(StrEnum):
    """What a node is to a packet that reaches it."""

    DEVICE = "device"
    DECIDES = "decides"
    DOES = "does"
    TRANSFORMS = "transforms"
    SINK = "sink"


@dataclass(frozen=True, slots=True)
class Node(Expression):
    """One node: `(class,expression,mbuf_bytes)`. Each node class is a subclass in its own module of `classes`.

    `name` makes the node's id; without one the id is derived (`bpf1`, `bpf2`, ...).
    `mbuf_bytes` is the node's persistent memory, which the application shares; 0 stands for `default_mbuf_bytes`.

    What a class says of itself, beside its role and its effect:
    `stops_as`: the fate of packets that a deciding node stops.
    `least_mbuf_bytes`, `most_mbuf_bytes`: the limits of its memory, which each CPU has for itself, or which all share
    (the table of its effect) if not `mbuf_per_cpu`.
    `counts`: what the first 64-bit words of its memory per CPU count, in order; their sums are shown.
    `private`: its memory is not handed to the application.
    `tells_apart`: a sink whose packets the application wants apart from those of other sinks.
    `word`: what may stand in the place of memory, as the last part of its expression.
    `example`: a flow expression, for `ffpf nodes`.
    """

    class_name: ClassVar[str]
    role: ClassVar[Role]
    stops_as: ClassVar[Fate | None] = None
    least_mbuf_bytes: ClassVar[int] = 0
    most_mbuf_bytes: ClassVar[int] = 1 << 20
    mbuf_per_cpu: ClassVar[bool] = True
    counts: ClassVar[tuple[str, ...]] = ()
    private: ClassVar[bool] = False
    tells_apart: ClassVar[bool] = False
    word: ClassVar[str] = ""
    example: ClassVar[str] = ""

    name: str = field(default="", kw_only=True)
    mbuf_bytes: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_text(self.name, f"({self.class_name})")
        check_number(self.mbuf_bytes, f"({self.class_name})", f"{self.class_name}(..., mbuf_bytes=4096)")
        if self.name and not re.fullmatch(NAME_PATTERN, self.name):
            raise ExpressionError(
                f"`{self.name}` is not a name",
                where=f"({self.class_name})",
                help="a name begins with a letter or `_`; letters, digits, `_` and `-` may follow",
            )
        if not self.mbuf_bytes:
            object.__setattr__(self, "mbuf_bytes", self.default_mbuf_bytes)
        if not self.least_mbuf_bytes <= self.mbuf_bytes <= self.most_mbuf_bytes:
            raise ExpressionError(
                f"{self.mbuf_bytes} bytes of memory do not suit {with_article(self.class_name)}",
                where=self.where,
                help=f"between {self.least_mbuf_bytes} and {self.most_mbuf_bytes} bytes",
            )

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        """The node that `expression` (the second element of the tuple, "" if absent) describes."""
        if expression:
            raise ExpressionError(
                f"`{cls.class_name}` takes no expression, got `{expression}`",
                where=f"({cls.class_name})",
                help=f"write `({cls.class_name})`",
            )
        return cls(name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        """The second element of the tuple, as `parse` takes it."""
        return ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of the Python form, but for `name` and `mbuf_bytes`."""
        return ()

    @property
    def shown_expression(self) -> str:
        """`expression` as it may stand in files and on screens: without secrets."""
        return self.expression

    @property
    def default_mbuf_bytes(self) -> int:
        """The memory it has unless it is given more or less."""
        return self.least_mbuf_bytes

    @property
    def cpu_bytes(self) -> int:
        """What each CPU has for itself."""
        return self.mbuf_bytes if self.mbuf_per_cpu else 8 * len(self.counts)

    @property
    def selects(self) -> bool:
        """Whether it has a result, on which edges can select."""
        effect = self.effect
        return isinstance(effect, Primitive) and effect.selects

    @property
    def results(self) -> range:
        """The results it can have, if it `selects`: an edge beyond them would never be taken, and is refused."""
        return range(1 << 16)

    @property
    def serves_policy(self) -> bool:
        """Whether a policy that asks for its class is content with this node."""
        return True

    def report(self, memories: Sequence[memoryview]) -> dict[str, Any]:
        """What it has counted, by name: plain values. `memories` are copies of its memory on each CPU, of `cpu_bytes`;
        behind these, for a node whose memory all CPUs share, that."""
        own = memories if self.mbuf_per_cpu else memories[:-1]
        return {name: sum(word(memory, number) for memory in own) for number, name in enumerate(self.counts)}

    def on(self, cases: Mapping[Label, Expression]) -> Select:
        """Edges that select: packets go to the case of the node's result. Keys are numbers, ranges, tuples of these,
        or `"*"` for packets of no other case. Raises ExpressionError if the node has no result, or cases overlap."""
        if not isinstance(cases, Mapping):
            raise ExpressionError(
                f"{cases!r} holds no cases", where=self.where, help='write `.on({80: grab(), "*": packetcount()})`'
            )
        return Select(self, tuple((label_ranges(label), _operand(case, "on")) for label, case in cases.items()))

    @property
    def effect(self) -> Effect:
        """What the compiler makes of it: a plain value of `graph.effect`."""
        raise NotImplementedError(f"node class {type(self).__name__} states no effect")

    @property
    def where(self) -> str:
        """How an error names this node: `(bpf)`, or `(bpf as web)`."""
        return f"({self.class_name} as {self.name})" if self.name else f"({self.class_name})"


NAME_PATTERN = "[A-Za-z_][A-Za-z0-9_-]*"


@dataclass(frozen=True, slots=True)
class Then(Expression):
    """`a -> b -> c`: a packet that leaves one stage enters the next. At least two stages."""

    stages: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class AnyOf(Expression):
    """`a | b`: every branch sees the packet; it goes on once if at least one lets it."""

    branches: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class AllOf(Expression):
    """`a & b`: every branch sees the packet; it goes on if all of them let it."""

    branches: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Not(Expression):
    """`!a`: the packets that arrive and that `a` would not let go on."""

    inner: Expression


Ranges = tuple[tuple[int, int], ...]
Label = int | str | range | tuple["int | range", ...]
OTHERS: Ranges = ()
MOST_CASES = 256


@dataclass(frozen=True, slots=True)
class Select(Expression):
    """`node -80-> a | -443,8000..8080-> b | -*-> c`: a packet goes to the case that holds the node's result, if any.

    A case is its ranges of results, both ends included, and what is behind; OTHERS, no ranges, takes the results of no
    other case and the packets without a result.
    """

    node: Node
    cases: tuple[tuple[Ranges, Expression], ...]

    def __post_init__(self) -> None:
        if not self.node.selects:
            raise ExpressionError(
                f"`{self.node.class_name}` has no result to select on",
                where=self.node.where,
                help="edges such as `-80->` follow nodes with a result, as `(classify,dport)`",
            )
        if not 1 <= len(self.cases) <= MOST_CASES:
            raise ExpressionError(
                f"{len(self.cases)} cases", where=self.node.where, help=f"1 to {MOST_CASES} edges that select"
            )
        if [ranges for ranges, _ in self.cases].count(OTHERS) > 1:
            raise ExpressionError("two cases `-*->`", where=self.node.where, help="join what they lead to with `|`")
        bounds = sorted(bound for ranges, _ in self.cases for bound in ranges)
        first, last = self.node.results[0], self.node.results[-1]
        for low, high in bounds:
            if high < first or low > last:
                raise ExpressionError(
                    f"`{self.node.class_name}` never has the result {low}",
                    where=self.node.where,
                    help=f"its results are from {first} to {last}",
                )
        for (low, high), (following, _) in pairwise(bounds):
            if following <= high:
                raise ExpressionError(
                    f"result {max(low, following)} is in two cases",
                    where=self.node.where,
                    help="each result leads to one case; join what both lead to with `|`",
                )


def label_ranges(label: Label) -> Ranges:
    """The ranges of results that a key of `Node.on` stands for. Raises ExpressionError if it is none."""
    if label == "*":
        return OTHERS
    parts = label if isinstance(label, tuple) else (label,)
    found = []
    for part in parts:
        if isinstance(part, range) and part.step == 1 and len(part):
            low, high = part[0], part[-1]
        elif isinstance(part, int) and not isinstance(part, bool):
            low = high = part
        else:
            raise ExpressionError(
                f"{part!r} is no result", where="on", help='keys are numbers, ranges, tuples of these, or "*"'
            )
        if not 0 <= low <= high <= 65_535:
            raise ExpressionError(f"{part!r} is no result", where="on", help="results are from 0 to 65535")
        found.append((low, high))
    if not found:
        raise ExpressionError("a case without results", where="on", help='`"*"` stands for all others')
    return tuple(found)


def word(memory: memoryview, number: int) -> int:
    """The 64-bit word of that number in a node's memory."""
    return int.from_bytes(memory[8 * number : 8 * number + 8], sys.byteorder)


def check_text(text: str, where: str) -> None:
    """Refuse text that is no text: what a command line or a file had instead of UTF-8. Raises ExpressionError."""
    if not isinstance(text, str):
        raise ExpressionError(f"{text!r} is no text", where=where, help="write it in quotes")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ExpressionError("not valid UTF-8 text", where=where, help="write it in UTF-8") from None


def check_number(value: object, where: str, example: str) -> None:
    """Refuse what is no whole number; `example` shows one in its place. Raises ExpressionError."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ExpressionError(f"{value!r} is no whole number", where=where, help=f"write it as in `{example}`")


def then(*stages: Expression) -> Expression:
    """Chain stages; chains within are flattened, so that one meaning has one value."""
    flat = tuple(_flattened(stages, Then))
    return flat[0] if len(flat) == 1 else Then(flat)


def any_of(*branches: Expression) -> Expression:
    """The union of branches, flattened."""
    flat = tuple(_flattened(branches, AnyOf))
    return flat[0] if len(flat) == 1 else AnyOf(flat)


def all_of(*branches: Expression) -> Expression:
    """The intersection of branches, flattened."""
    flat = tuple(_flattened(branches, AllOf))
    return flat[0] if len(flat) == 1 else AllOf(flat)


def nodes(expression: Expression) -> Iterator[Node]:
    """Every node in the order of the text."""
    match expression:
        case Node():
            yield expression
        case Then(stages=parts) | AnyOf(branches=parts) | AllOf(branches=parts):
            for part in parts:
                yield from nodes(part)
        case Not(inner=inner):
            yield from nodes(inner)
        case Select(node=node, cases=cases):
            yield node
            for _, case in cases:
                yield from nodes(case)
        case _:
            raise TypeError(f"not a flow expression: {expression!r}")


def mapped(expression: Expression, change: Callable[[Node], Node]) -> Expression:
    """The expression with each node as `change` makes it."""
    match expression:
        case Node():
            return change(expression)
        case Then(stages=parts):
            return Then(tuple(mapped(part, change) for part in parts))
        case AnyOf(branches=parts):
            return AnyOf(tuple(mapped(part, change) for part in parts))
        case AllOf(branches=parts):
            return AllOf(tuple(mapped(part, change) for part in parts))
        case Not(inner=inner):
            return Not(mapped(inner, change))
        case Select(node=node, cases=cases):
            return Select(change(node), tuple((ranges, mapped(behind, change)) for ranges, behind in cases))
        case _:
            raise TypeError(f"not a flow expression: {expression!r}")


Joined = TypeVar("Joined", Then, AnyOf, AllOf)


def _flattened(parts: Iterable[Expression], kind: type[Joined]) -> Iterator[Expression]:
    for part in parts:
        if not isinstance(part, kind):
            yield part
        elif isinstance(part, Then):
            yield from part.stages
        elif isinstance(part, AnyOf | AllOf):
            yield from part.branches


def _operand(value: object, operator: str) -> Expression:
    if isinstance(value, Nodelike):
        value = value.as_node()
    if not isinstance(value, Expression):
        raise ExpressionError(
            f"`{operator}` joins flow expressions, got {value!r}",
            help='nodes are made by their classes, as in `device("eth0") >> bpf("udp")`',
        )
    return value
