"""The flow expression as a value: nodes joined by `->`, `|`, `&` and `!`.

Text and Python build the same value. The operators are `>>` (then), `|` (any of), `&` (all of) and `~` (not);
mind that Python binds `>>` tighter than `|` and `&`, which is why the printed form always has the parentheses.

Values only: nothing here looks at an interface, a filter compiler or a kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from ffpf_bpf.errors import ExpressionError

if TYPE_CHECKING:
    from ffpf_bpf.graph.effect import Effect, Fate


class Expression:
    """A flow expression; the operators build larger ones."""

    __slots__ = ()

    def __rshift__(self, other: Expression) -> Expression:
        return then(self, _operand(other, ">>"))

    def __or__(self, other: Expression) -> Expression:
        return any_of(self, _operand(other, "|"))

    def __and__(self, other: Expression) -> Expression:
        return all_of(self, _operand(other, "&"))

    def __invert__(self) -> Expression:
        return Not(self)

    def __bool__(self) -> bool:
        raise ExpressionError(
            "a flow expression is neither true nor false",
            help="use `|`, `&` and `~` between expressions, not `or`, `and` and `not`",
        )


class Role(StrEnum):
    """What a node is to a packet that reaches it."""

    DEVICE = "device"
    DECIDES = "decides"
    DOES = "does"
    SINK = "sink"


@dataclass(frozen=True, slots=True)
class Node(Expression):
    """One node: `(class,expression,mbuf_bytes)`. Each node class is a subclass in its own module of `classes`.

    `mbuf_bytes` is the node's persistent memory per CPU, 0 for none; a class states its least.
    `counts` is the unit that the first 8 bytes of that memory count, "" for none.
    `name` makes the node's id; without one the id is derived (`bpf1`, `bpf2`, ...).
    """

    class_name: ClassVar[str]
    role: ClassVar[Role]
    stops_as: ClassVar[Fate | None] = None
    least_mbuf_bytes: ClassVar[int] = 0
    counts: ClassVar[str] = ""

    name: str = field(default="", kw_only=True)
    mbuf_bytes: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_text(self.name, f"({self.class_name})")
        check_number(self.mbuf_bytes, f"({self.class_name})")
        if self.name and not re.fullmatch(NAME_PATTERN, self.name):
            raise ExpressionError(
                f"`{self.name}` is not a name",
                where=f"({self.class_name})",
                help="a name begins with a letter or `_`; letters, digits, `_` and `-` may follow",
            )
        if not self.mbuf_bytes:
            object.__setattr__(self, "mbuf_bytes", self.least_mbuf_bytes)
        if not self.least_mbuf_bytes <= self.mbuf_bytes <= MBUF_LIMIT:
            raise ExpressionError(
                f"{self.mbuf_bytes} bytes of memory do not suit a `{self.class_name}`",
                where=self.where,
                help=f"between {self.least_mbuf_bytes} and {MBUF_LIMIT} bytes",
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
    def effect(self) -> Effect:
        """What the compiler makes of it: a plain value of `graph.effect`."""
        raise NotImplementedError(f"node class {type(self).__name__} states no effect")

    @property
    def where(self) -> str:
        """How an error names this node: `(bpf)`, or `(bpf as web)`."""
        return f"({self.class_name} as {self.name})" if self.name else f"({self.class_name})"


MBUF_LIMIT = 1 << 20
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


def check_text(text: str, where: str) -> None:
    """Refuse text that is no text: what a command line or a file had instead of UTF-8. Raises ExpressionError."""
    if not isinstance(text, str):
        raise ExpressionError(f"{text!r} is no text", where=where, help="write it in quotes")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ExpressionError("not valid UTF-8 text", where=where, help="write it in UTF-8") from None


def check_number(value: object, where: str) -> None:
    """Refuse what is no whole number. Raises ExpressionError."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ExpressionError(f"{value!r} is no whole number", where=where, help="write it as in `sampler(10)`")


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
    if not isinstance(value, Expression):
        raise ExpressionError(
            f"`{operator}` joins flow expressions, got {value!r}",
            help='nodes are made by their classes, as in `device("eth0") >> bpf("udp")`',
        )
    return value
