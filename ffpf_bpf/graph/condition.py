"""A condition on packets, written in Python: a filter of pcap-filter(7) that `&`, `|` and `~` join.

A condition is its filter text and has that text's whole meaning: a load outside the captured bytes stops the packet,
whatever the rest of the condition says, and only untagged packets have an IP header. `and` and `or` bind alike in
pcap-filter(7), from left to right, so what is joined otherwise within a join always has its parentheses.

Conditions joined with each other stay one condition; where a flow expression is expected they become a `bpf` node.

Values only: nothing here resolves a name or asks libpcap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Flag
from typing import NoReturn, overload

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.expression import Expression


@dataclass(frozen=True, slots=True)
class Form:
    """A text, and the operator that joins it at its top: "" for one that stands by itself."""

    text: str
    by: str = ""

    def within(self, operator: str) -> str:
        """The text as a part of a join, in parentheses unless it needs none."""
        return self.text if self.by in ("", operator) else f"({self.text})"


def joined(operator: str, *parts: Form) -> Form:
    """The parts with `operator` between them."""
    if len(parts) == 1:
        return parts[0]
    return Form(f" {operator} ".join(part.within(operator) for part in parts), operator)


def negated(part: Form) -> Form:
    """`not` before a filter text; before a relation in parentheses, for the reader."""
    bare = not part.by and not set(part.text) & set("<=>")
    return Form(f"not {part.text}" if bare else f"not ({part.text})")


class Reach(Flag):
    """What a condition reads besides the Ethernet header and the length."""

    LINK = 0
    TAG = 1
    HEADERS = 2


class NoNumber:
    """What stands for packets yet to come, so that Python cannot calculate with it."""

    __slots__ = ()

    def __add__(self, *_: object) -> NoReturn:
        refuse(
            f"`{self!r}` is of packets yet to come, so Python cannot calculate with it",
            'calculate with the value, as in `pkt.tcp.dport == 8000 + 80`, or in text: `bpf("tcp[2:2] + 1 = 81")`',
        )

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = __add__
    __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __lshift__ = __rlshift__ = __rrshift__ = __add__
    __xor__ = __rxor__ = __divmod__ = __rdivmod__ = __neg__ = __pos__ = __abs__ = __int__ = __float__ = __add__


class NoField(ExpressionError, AttributeError):
    """A name that a packet, header or field does not have. An AttributeError as well, so `hasattr` says no."""


def no_field(owner: object, name: str, known: Sequence[str], help: str = "") -> NoField:
    """The error for `owner.name`, of which only `known` exist."""
    near = " or ".join(f"`{owner!r}.{each}`" for each in get_close_matches(name.lower(), known, n=2))
    suggested = f"did you mean {near}?" if near else help or f"its fields are {', '.join(known)}"
    return NoField(f"`{owner!r}` has no `{name}`", help=suggested)


@dataclass(frozen=True, slots=True, repr=False)
class Condition(NoNumber):
    """A filter text, and how it is written in Python. `str` gives the one, `repr` the other.

    `a & b`: both hold. `a | b`: at least one holds. `~a`: all packets but those of `a`, also such as do not have the
    field at all. Each is one filter text; with a flow expression on one side, or `>>`, it is a flow expression.
    """

    filter: Form
    python: Form
    reach: Reach = Reach.HEADERS

    def as_node(self) -> Bpf:
        """The `bpf` node of this condition. Raises ExpressionError if the text is too long for one."""
        return Bpf(self.filter.text)

    @overload
    def __and__(self, other: Condition) -> Condition: ...
    @overload
    def __and__(self, other: Expression) -> Expression: ...
    def __and__(self, other: Condition | Expression) -> Condition | Expression:
        if isinstance(other, Expression):
            return self.as_node() & other
        if not isinstance(other, Condition):
            raise _no_operand(other, "&")
        for tag, headers in ((self, other), (other, self)):
            if Reach.TAG in tag.reach and Reach.HEADERS in headers.reach:
                refuse(
                    f"`{tag!r}` is about a VLAN tag, and `{headers!r}` about packets without one",
                    'pcap\'s own `vlan` reads behind the tag, as in `bpf(f"vlan 5 and ({condition})")`',
                )
        return self._joined("and", "&", other)

    @overload
    def __or__(self, other: Condition) -> Condition: ...
    @overload
    def __or__(self, other: Expression) -> Expression: ...
    def __or__(self, other: Condition | Expression) -> Condition | Expression:
        if isinstance(other, Expression):
            return self.as_node() | other
        if not isinstance(other, Condition):
            raise _no_operand(other, "|")
        return self._joined("or", "|", other)

    def __invert__(self) -> Condition:
        return Condition(negated(self.filter), Form(f"~{self.python.within('~')}"), self.reach)

    def __lt__(self, other: object) -> NoReturn:
        refuse(
            f"`{self!r}` is a condition on packets, not a value: got {other!r}",
            "compare a field, as in `pkt.ip.ttl < 5`",
        )

    __le__ = __gt__ = __ge__ = __lt__

    def __rshift__(self, other: Expression | Condition) -> Expression:
        return self.as_node() >> other

    def __rand__(self, other: object) -> NoReturn:
        raise _no_operand(other, "&")

    def __ror__(self, other: object) -> NoReturn:
        raise _no_operand(other, "|")

    def __bool__(self) -> bool:
        raise ExpressionError(
            f"`{self!r}` is a condition on packets, neither true nor false",
            help="use `&`, `|` and `~` for `and`, `or` and `not`, `.isin([...])` for `in`, two comparisons for "
            '`1 < x < 5`; it goes into a flow, as in `device("eth0") >> (pkt.tcp.dport == 443) >> grab()`',
        )

    def __str__(self) -> str:
        return self.filter.text

    def __repr__(self) -> str:
        return self.python.text

    def _joined(self, word: str, sign: str, other: Condition) -> Condition:
        return Condition(
            joined(word, self.filter, other.filter),
            joined(sign, self.python, other.python),
            self.reach | other.reach,
        )


PARENTHESES = "put parentheses around each comparison, as in `(pkt.tcp.dport == 443) & (pkt.ip.ttl < 5)`"


def _no_operand(value: object, operator: str) -> ExpressionError:
    return ExpressionError(f"`{operator}` joins conditions and flow expressions, got {value!r}", help=PARENTHESES)


def refuse(message: str, help: str) -> NoReturn:
    raise ExpressionError(message, help=help)
