"""The TOML form of a policy file: text -> rules, or a PolicyError with file, line, column and what to do.

The tables below are the schema: an unknown key, a value of another type and a rule that could never allow anything are
errors, not defaults. policies/README.md explains every key to administrators.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ffpf_bpf.authorise.place import Path, line_and_column, places
from ffpf_bpf.authorise.policy import ANY, Limits, Order, PolicyError, Rule, split_tap
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.classes.device import HOOKS
from ffpf_bpf.graph.classes.grab import LONGEST_SNAPLEN
from ffpf_bpf.graph.expression import Role

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
LARGEST_LIMIT = 1 << 40
HELP = {
    "rule": "a rule begins with `[[rule]]`",
    "name": 'every rule has a name, as in `name = "students"`',
    "subjects": '`subjects` lists whom the rule is about, as in `subjects = ["group:students"]`; `"*"` is everybody',
    "taps": '`taps` lists interfaces, as in `taps = ["eth*"]`',
    "classes": '`classes` lists the node classes allowed, as in `classes = ["bpf", "grab"]`; `"*"` is all',
    "order": '`order` lists what comes first, as in `order = [{ function = "grab", after = "sampler" }]`',
    "function": '`function` is a node class, as in `{ function = "grab", after = "sampler" }`',
    "limits": "`limits` is a table, as in `limits = { flows = 2, snaplen = 96 }`",
    "flows": "`flows` is how many flows the subject may have at once, as in `flows = 2`",
    "nodes": "`nodes` is how many nodes a flow may have, as in `nodes = 20`",
    "snaplen": f"`snaplen` is in bytes of a packet, 1 to {LONGEST_SNAPLEN}, as in `snaplen = 96`",
    "buffer": '`buffer` is in bytes per CPU, as in `buffer = "4MiB"`',
    "memory": '`memory` is in bytes of nodes, as in `memory = "4MiB"`',
    "sample_at_least": "`sample_at_least = 10` allows 1 packet in 10 or fewer",
}


def parse_policy(text: str, file: str) -> tuple[Rule, ...]:
    """The rules of one file, whose name `file` is used in errors. Raises PolicyError."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _syntax_error(error, text, file) from None
    place = _Place(text, file)
    try:
        content = _File.model_validate(table)
    except ValidationError as error:
        # What is missing comes last: it is often there, misspelled.
        first = min(error.errors(), key=lambda detail: (detail["type"] == "missing", place.offset(detail["loc"])))
        message, help = _explained(first)
        raise PolicyError(message, where=place.where(first["loc"]), help=help) from None
    return tuple(rule.value(place.where(("rule", index))) for index, rule in enumerate(content.rule))


def _check_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise _problem(f"`{text}` is not a name for a rule", "up to 64 letters, digits, `_`, `.` and `-`")
    return text


def _check_subject(text: str) -> str:
    kind, colon, name = text.partition(":")
    if text == ANY or (kind in ("user", "group") and re.fullmatch(r"[^\s:,*]+", name)):
        return text
    near = difflib.get_close_matches(kind, ("user", "group"), n=1)
    raise _problem(
        f"`{text}` is no subject",
        f"did you mean `{near[0]}:{name}`?" if near and colon and name else 'write "user:NAME", "group:NAME" or "*"',
    )


def _check_tap(text: str) -> str:
    interface, hook = split_tap(text)
    if not interface or set(interface) & set("/ \t\n:") or not text.isprintable():
        raise _problem(f"`{text}` is no tap", 'write a glob on INTERFACE@HOOK, as in "eth*" or "veth*@*"')
    if not any(fnmatchcase(known, hook) for known in HOOKS):
        raise _problem(f"`{text}` has an unknown hook `{hook}`", _near(hook, HOOKS, "the hooks are"))
    return text


def _check_class(text: str) -> str:
    if text not in CLASSES:
        raise _problem(f"unknown node class `{text}`", _near(text.lower(), CLASSES, "the classes are"))
    return text


def _check_class_or_any(text: str) -> str:
    return text if text == ANY else _check_class(text)


def _check_size(value: int | str) -> int:
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,15}) ?([A-Za-z]*)", value)
        if not match or match[2] not in UNITS:
            raise _problem(f"`{value}` is not a number of bytes", 'write bytes, or a text such as "64KiB" or "4MiB"')
        value = int(match[1]) * UNITS[match[2]]
    if not 1 <= value <= LARGEST_LIMIT:
        raise _problem(f"{value:,} bytes", f"1 to {LARGEST_LIMIT:,} bytes")
    return value


NodeClass = Annotated[str, AfterValidator(_check_class)]
Limit = Annotated[int, Field(ge=1, le=LARGEST_LIMIT)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Order(_Table):
    function: NodeClass
    after: NodeClass | None = None
    before: NodeClass | None = None

    @model_validator(mode="after")
    def _check(self) -> _Order:
        if (self.after is None) == (self.before is None):
            raise _problem("an order has one of `after` and `before`", HELP["order"])
        first, second = (self.after, self.function) if self.after else (self.function, self.before)
        assert first and second
        if first == second:
            raise _problem(f"`{first}` cannot come before itself", "name two classes")
        if CLASSES[first].role is Role.SINK:
            raise _problem(f"nothing comes after `{first}`", "a sink ends its path; turn the order around")
        if CLASSES[second].role is Role.DEVICE:
            raise _problem(f"nothing comes before `{second}`", "every path begins with a device")
        return self

    def value(self) -> Order:
        return Order(self.function, self.after or self.before or "", after=self.after is not None)


class _Limits(_Table):
    flows: Limit | None = None
    nodes: Limit | None = None
    snaplen: Annotated[int, Field(ge=1, le=LONGEST_SNAPLEN)] | None = None
    buffer: Annotated[int | str, AfterValidator(_check_size)] | None = None
    memory: Annotated[int | str, AfterValidator(_check_size)] | None = None
    sample_at_least: Limit | None = None

    def value(self) -> Limits:
        buffer_bytes, memory_bytes = (size if isinstance(size, int) else None for size in (self.buffer, self.memory))
        return Limits(self.flows, self.nodes, self.snaplen, buffer_bytes, memory_bytes, self.sample_at_least)


class _Rule(_Table):
    name: Annotated[str, AfterValidator(_check_name)]
    subjects: Annotated[list[Annotated[str, AfterValidator(_check_subject)]], Field(min_length=1)]
    taps: Annotated[list[Annotated[str, AfterValidator(_check_tap)]], Field(min_length=1)]
    classes: Annotated[list[Annotated[str, AfterValidator(_check_class_or_any)]], Field(min_length=1)]
    order: list[_Order] = []
    limits: _Limits = _Limits()

    @model_validator(mode="after")
    def _check(self) -> _Rule:
        allowed = {"device", *self.classes}
        for required in (order.after or order.before for order in self.order):
            if allowed.isdisjoint({required, ANY}):
                raise _problem(
                    f"rule `{self.name}` wants a `{required}` that its `classes` do not allow",
                    f"add `{required}` to `classes`",
                )
        return self

    def value(self, where: str) -> Rule:
        order = tuple(order.value() for order in self.order)
        limits = self.limits.value()
        return Rule(
            self.name,
            tuple(self.subjects),
            tuple(self.taps),
            tuple(self.classes),
            order=order,
            limits=limits,
            where=where,
        )


class _File(_Table):
    rule: list[_Rule] = []


TABLES: dict[str, type[_Table]] = {"rule": _Rule, "order": _Order, "limits": _Limits}


class _Place:
    """Where the errors of one file are."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._places = places(text)

    def offset(self, path: Path) -> int:
        """Of the path, or of the innermost table around it when it is not in the text."""
        while path and path not in self._places:
            path = path[:-1]
        return self._places.get(path, 0)

    def where(self, path: Path) -> str:
        line, column = line_and_column(self._text, self.offset(path))
        return f"{self._file}:{line}:{column}"


def _explained(detail: ErrorDetails) -> tuple[str, str]:
    """Message and help of what pydantic found."""
    names = [part for part in detail["loc"] if isinstance(part, str)]
    key = names[-1] if names else ""
    match detail["type"]:
        case "policy":
            context: dict[str, Any] = detail["ctx"]
            return context["message"], context["help"]
        case "extra_forbidden":
            keys = _table_of(names[:-1]).model_fields
            return f"unknown key `{key}`", _near(key, keys, "the keys are")
        case "missing":
            return f"`{key}` is missing", HELP[key]
        case "too_short":
            return f"`{key}` is empty, which allows nothing", HELP[key]
        case _:
            known = next((name for name in reversed(names) if name in HELP), "rule")
            return f"`{known}`: {detail['msg'][:1].lower()}{detail['msg'][1:]}", HELP[known]


def _table_of(names: list[str]) -> type[_Table]:
    return TABLES.get(names[-1], _File) if names else _File


def _near(word: str, known: Iterable[str], otherwise: str) -> str:
    known = tuple(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"{otherwise} {', '.join(known)}"


def _problem(message: str, help: str) -> PydanticCustomError:
    return PydanticCustomError("policy", "{message}", {"message": message, "help": help})


def _syntax_error(error: Exception, text: str, file: str) -> PolicyError:
    # Python's message ends in `(at line 3, column 7)` or `(at end of document)`.
    what, _, place = str(error).partition(" (at ")
    if numbers := re.match(r"line (\d+), column (\d+)", place):
        line, column = int(numbers[1]), int(numbers[2])
    else:
        line, column = line_and_column(text, len(text)) if place else (1, 1)
    if isinstance(error, RecursionError):
        what = "nested too deeply"
    return PolicyError(
        f"not TOML: {what[:1].lower()}{what[1:]}",
        where=f"{file}:{line}:{column}",
        help="https://toml.io has the syntax",
    )
