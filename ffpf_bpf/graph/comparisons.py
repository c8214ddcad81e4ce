"""Comparisons of a packet's field with values, or with its like: each becomes a `Condition`, or is refused by name.

`Number`, `Port` and `Flags` are here, `addresses` has the rest, and `fields` the fields themselves.

Each of them also says that the field is there: `pkt.ip.ttl != 64` is of IPv4 packets only, while `~(pkt.ip.ttl == 64)`
is of all others too. A field that is either of two, as `pkt.tcp.port`, is equal if one of them is, and differs if both
do. A number must be one that the field can have, so that no comparison is idle by a slip of the pen.

Values only: numbers are literals, no name is looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import ClassVar, NoReturn, SupportsIndex

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.condition import PARENTHESES, Condition, Form, NoNumber, Reach, joined, negated, no_field, refuse


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a field lies: in these words, if `guard` holds. pcap itself looks for the header that a word is of."""

    words: tuple[str, ...]
    guard: Form | None = None

    def test(self, *relations: str, by: str = "and") -> Form:
        found = joined(by, *(Form(relation) for relation in relations))
        return joined("and", self.guard, found) if self.guard else found


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Field(NoNumber):
    """A field of a header: comparing it makes a `Condition`. `python` is its name, as in `pkt.ip.ttl`.

    Not hashable: a set or dict would ask whether two fields are equal, and get a condition.
    """

    ordered: ClassVar[bool] = False
    example: ClassVar[str] = "1"

    python: str
    readings: tuple[Reading, ...] = ()
    reach: Reach = field(default=Reach.HEADERS, kw_only=True)

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        return self._compared("==", value)

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]
        return self._compared("!=", value)

    def __lt__(self, value: object) -> Condition:
        return self._compared("<", value)

    def __le__(self, value: object) -> Condition:
        return self._compared("<=", value)

    def __gt__(self, value: object) -> Condition:
        return self._compared(">", value)

    def __ge__(self, value: object) -> Condition:
        return self._compared(">=", value)

    def isin(self, values: Iterable[object]) -> Condition:
        """The field has one of these values. Raises ExpressionError for none, and for a text."""
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            refuse(
                f"`{self.python}.isin` takes a list, got {values!r}", f"write `{self.python}.isin([{self.example}])`"
            )
        listed: Sequence[object] = values if isinstance(values, range) else list(values)
        if not listed:
            refuse(f"`{self.python}.isin` has no value to compare with", "an empty list passes no packet")
        shown, filter_text = self._one_of(listed)
        return self._called(f"isin({shown})", filter_text)

    def in_net(self, network: object) -> Condition:
        """The address lies in the network, as in `pkt.ip.src.in_net("10.0.0.0/8")`."""
        refuse(f"`{self.python}` is no IP address, so it is in no network", self._compare_help)

    def _compared(self, sign: str, value: object) -> Condition:
        if not self.ordered and sign not in ("==", "!="):
            refuse(f"`{self.python}` has no order, so `{sign}` cannot compare it", self._instead)
        if isinstance(value, Field):
            shown, filter_text = value.python, self._with_field(sign, value)
        else:
            shown, filter_text = self._with_value(sign, value)
        return Condition(filter_text, Form(f"{self.python} {sign} {shown}", "=="), self.reach)

    def _called(self, call: str, filter_text: Form) -> Condition:
        return Condition(filter_text, Form(f"{self.python}.{call}"), self.reach)

    def _with_field(self, sign: str, other: Field) -> Form:
        header = self.python.rpartition(".")[0]
        if type(self) is not type(other) or header != other.python.rpartition(".")[0]:
            refuse(
                f"`{self.python}` cannot be compared with `{other.python}`",
                'fields compare with their like in the same header; more is for text, as in `bpf("ip[2:2] > len")`',
            )
        for each in (self, other):
            if not each.readings:
                refuse(f"`{each.python}` is either of two fields, so no field is compared with it", "name one of both")
        pcap_sign, by = ("=", "and") if sign == "==" else (sign, "or")
        return joined(
            "or",
            *(
                mine.test(*(f"{a} {pcap_sign} {b}" for a, b in zip(mine.words, theirs.words, strict=True)), by=by)
                for mine, theirs in zip(self.readings, other.readings, strict=True)
            ),
        )

    def _with_value(self, sign: str, value: object) -> tuple[str, Form]:
        """The value as Python shows it, and the filter text."""
        raise NotImplementedError(f"{type(self).__name__} compares with no value")

    def _one_of(self, values: Sequence[object]) -> tuple[str, Form]:
        raise NotImplementedError(f"{type(self).__name__} compares with no value")

    def __bool__(self) -> bool:
        raise self._no_condition()

    def __and__(self, other: object) -> NoReturn:
        raise self._no_condition()

    def as_node(self) -> NoReturn:
        """A field is no flow expression: `device("eth0") >> pkt.tcp.dport == 443` lacks parentheses."""
        raise self._no_condition()

    __rand__ = __or__ = __ror__ = __rshift__ = __and__

    def __invert__(self) -> NoReturn:
        raise self._no_condition()

    def __getattr__(self, name: str) -> NoReturn:
        known = [each for each in ("isin", "in_net", "has", "lacks") if each in dir(type(self))]
        raise no_field(self, name, known, self._compare_help)

    def __repr__(self) -> str:
        return self.python

    def _no_condition(self) -> ExpressionError:
        help = self._operator_help
        return ExpressionError(f"`{self.python}` is a field, and no condition before it is compared", help=help)

    @property
    def _usage(self) -> str:
        return f"{self.python} == {self.example}"

    @property
    def _compare_help(self) -> str:
        return f"compare it, as in `{self._usage}`"

    @property
    def _operator_help(self) -> str:
        return PARENTHESES

    @property
    def _instead(self) -> str:
        return f"use `==`, `!=` or `.isin`, as in `{self._usage}`"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Number(Field):
    """A whole number from 0 to `most`. `digits` is how it is written: a format of Python."""

    ordered: ClassVar[bool] = True

    most: int = field(kw_only=True)
    digits: str = field(default="d", kw_only=True)

    def _with_value(self, sign: str, value: object) -> tuple[str, Form]:
        number = self._checked(value)
        if sign == "<" and number == 0:
            refuse(f"no `{self.python}` is below 0", self._range_help)
        if sign == ">" and number == self.most:
            refuse(f"no `{self.python}` is above {self.most}", self._range_help)
        return self._shown(number), self._filter(sign, number)

    def _filter(self, sign: str, number: int) -> Form:
        relation = f"{'=' if sign == '==' else sign} {self._shown(number)}"
        return joined("or", *(reading.test(f"{reading.words[0]} {relation}") for reading in self.readings))

    def _one_of(self, values: Sequence[object]) -> tuple[str, Form]:
        if isinstance(values, range) and values.step == 1:
            runs = [(self._checked(values[0]), self._checked(values[-1]))]
            return repr(values), self._in_runs(runs)
        numbers = sorted({self._checked(value) for value in values})
        return f"[{', '.join(map(self._shown, numbers))}]", self._in_runs(_runs(numbers))

    def _in_runs(self, runs: Iterable[tuple[int, int]]) -> Form:
        return joined("or", *(self._between(first, last) for first, last in runs))

    def _between(self, first: int, last: int) -> Form:
        if first == last:
            return self._filter("==", first)
        edges = (f">= {self._shown(first)}", f"<= {self._shown(last)}")
        tests = (reading.test(*(f"{reading.words[0]} {edge}" for edge in edges)) for reading in self.readings)
        return joined("or", *tests)

    def _shown(self, number: int) -> str:
        return format(number, self.digits)

    def _checked(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            refuse(
                f"`{self.python}` compares with a whole number, got {value!r}",
                self._number_help,
            )
        number = index(value)
        if not 0 <= number <= self.most:
            refuse(f"`{self.python}` is never {number}", self._range_help)
        return number

    @property
    def _number_help(self) -> str:
        return f"no name is looked up; write the number, as in `{self._usage}`"

    @property
    def _range_help(self) -> str:
        return f"it is a whole number from 0 to {self._shown(self.most)}"


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted numbers as first and last of each run without a gap."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        first = runs.pop()[0] if runs and runs[-1][1] == number - 1 else number
        runs.append((first, number))
    return runs


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Port(Number):
    """A port, over IPv4 and IPv6, in pcap's own words: `head` is `tcp dst`, or `tcp` for either port."""

    example: ClassVar[str] = "443"

    head: str = field(kw_only=True)

    def _filter(self, sign: str, number: int) -> Form:
        match sign:
            case "==":
                return Form(f"{self.head} port {number}")
            case "!=":  # the range is of packets that have ports: `tcp` alone is of later fragments too
                return joined("and", self._between(0, self.most), negated(self._filter("==", number)))
            case "<" | "<=":
                return self._between(0, number - (sign == "<"))
            case _:
                return self._between(number + (sign == ">"), self.most)

    def _between(self, first: int, last: int) -> Form:
        return self._filter("==", first) if first == last else Form(f"{self.head} portrange {first}-{last}")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Flags(Number):
    """Bits that have names. As a number they compare whole: `pkt.tcp.flags == 0x02` is of nothing but `syn`."""

    ordered: ClassVar[bool] = False

    names: tuple[tuple[str, int], ...] = field(kw_only=True)

    def has(self, *names: str) -> Condition:
        """All of these are set, as in `pkt.tcp.flags.has("syn", "ack")`."""
        mask = self._mask("has", names)
        return self._called(f"has({', '.join(map(repr, names))})", self._masked(mask, mask))

    def lacks(self, *names: str) -> Condition:
        """None of these is set. The field is there: `~(...has(...))` is of packets without it, too."""
        mask = self._mask("lacks", names)
        return self._called(f"lacks({', '.join(map(repr, names))})", self._masked(mask, 0))

    def _masked(self, mask: int, value: int) -> Form:
        relation = f"& {self._shown(mask)} = {self._shown(value)}"
        return joined("or", *(reading.test(f"{reading.words[0]} {relation}") for reading in self.readings))

    def _mask(self, verb: str, names: tuple[str, ...]) -> int:
        bits = dict(self.names)
        if not names:
            refuse(f"`{self.python}.{verb}()` names no flag", f"one or more of {', '.join(bits)}")
        mask = 0
        for name in names:
            if not isinstance(name, str) or name not in bits:
                refuse(f"`{self.python}` has no flag {name!r}", f"one or more of {', '.join(bits)}")
            mask |= bits[name]
        return mask

    @property
    def _instead(self) -> str:
        return f"use `{self.python}.has` or `.lacks`, as in `{self.python}.has({self.names[0][0]!r})`"

    _compare_help = _operator_help = _number_help = _instead
