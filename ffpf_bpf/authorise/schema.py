"""The TOML form of a policy file: text -> rules, or a PolicyError with file, line, column and what to do.

The tables below are the schema: an unknown key, a value of another type and a rule that could never allow anything are
errors, not defaults. policies/README.md explains every key to administrators.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    model_validator,
)

from ffpf_bpf.authorise import scalars
from ffpf_bpf.authorise.mistake import mistake, quoted
from ffpf_bpf.authorise.packets import PacketTable, Table
from ffpf_bpf.authorise.place import Places
from ffpf_bpf.authorise.policy import (
    ANY,
    CARRIERS,
    HIDDEN_BY,
    IGNORED_BY_DEFAULT,
    Allow,
    Limits,
    Never,
    Order,
    PacketClass,
    Part,
    Rule,
)
from ffpf_bpf.authorise.reading import Form, read_toml
from ffpf_bpf.errors import with_article
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.classes.grab import LONGEST_SNAPLEN
from ffpf_bpf.graph.effect import Depth
from ffpf_bpf.graph.expression import Role

EVERYTHING = "everything"
CLASS, PACKETS, SAMPLED = "<class>", "<packets>", "<sampled>"  # in paths of pydantic: what an `after` is
LARGEST_RATE = 10**9
HELP = {
    "rule": "a rule begins with `[[rule]]`",
    "name": 'every rule has a name, as in `name = "students"`',
    "subjects": '`subjects` lists whom the rule is about, as in `subjects = ["group:students"]`; `"*"` is everybody',
    "taps": '`taps` lists interfaces, as in `taps = ["eth*"]`',
    "classes": '`classes` lists the node classes allowed, as in `classes = ["bpf", "grab"]`; `"*"` is all',
    "allow": '`allow = "everything"`, or packet classes, as in `allow = { net = "10.1.0.0/16", show = "headers" }`',
    "never": "`never` lists packet classes, as in `never = [{ tcp_port = [25, 143] }]`",
    "show": '`show` is how much of a packet, as in `show = "headers"`',
    "hide": '`hide` lists what counters must not tell, as in `hide = ["payload", "addresses"]`',
    "ignore": '`ignore` lists carriers not looked into, as in `ignore = ["gre"]`; `"*"` is all',
    "order": '`order` lists what comes first, as in `order = [{ function = "grab", after = "sampler" }]`',
    "function": '`function` is a node class, as in `{ function = "grab", after = "sampler" }`',
    "after": "`after` is a node class, a packet class, or a sampler, as in `after = { sample_at_least = 10 }`",
    "before": '`before` is a node class, as in `{ function = "bytecount", before = "grab" }`',
    "monitor": "`monitor = true` lets flows end frames at these taps",
    "limits": "`limits` is a table, as in `limits = { flows = 2, snaplen = 96 }`",
    "flows": "`flows` is how many flows the subject may have at once, as in `flows = 2`",
    "nodes": "`nodes` is how many nodes a flow may have, as in `nodes = 20`",
    "snaplen": f"`snaplen` is in bytes of a packet, 1 to {LONGEST_SNAPLEN}, as in `snaplen = 96`",
    "buffer": '`buffer` is in bytes per CPU, as in `buffer = "4MiB"`',
    "memory": '`memory` is in bytes of nodes, as in `memory = "4MiB"`',
    "sample_at_least": "`sample_at_least = 10` allows 1 packet in 10 or fewer",
    "packets_per_second": f"`packets_per_second` is what all sinks deliver together, 1 to {LARGEST_RATE:,}",
    "expires": '`expires` is how long a flow may live, as in `expires = "8h"`',
}


def parse_policy(text: str, file: str) -> tuple[Rule, ...]:
    """The rules of one file, whose name `file` is used in errors. Raises PolicyError."""
    content, places = read_toml(text, file, FORM)
    return tuple(rule.value(places, index) for index, rule in enumerate(content.rule))


def _listed(value: object) -> object:
    """A table stands for a list of one."""
    return [value] if isinstance(value, dict) else value


def _listed_or_everything(value: object) -> object:
    if isinstance(value, str):
        if value != EVERYTHING:
            raise mistake(f"{quoted(value)} is no packet class", HELP["allow"])
        return [{}]
    return _listed(value)


def _kind_of_requirement(value: object) -> str:
    if isinstance(value, dict):
        return SAMPLED if "sample_at_least" in value else PACKETS
    return CLASS


NodeClass = Annotated[str, AfterValidator(scalars.node_class)]
ClassOrAny = Annotated[str, AfterValidator(scalars.node_class_or_any)]
Size = Annotated[int, BeforeValidator(scalars.size_bytes), AfterValidator(scalars.size_in_range)]
Limit = Annotated[int, Field(ge=1, le=scalars.LARGEST_LIMIT)]


class _Allow(PacketTable):
    show: Annotated[Depth, PlainValidator(scalars.depth)] = Depth.ALL
    hide: list[Annotated[str, AfterValidator(scalars.part)]] | None = None

    def value(self, where: str) -> Allow:
        hide = HIDDEN_BY[self.show] if self.hide is None else frozenset(map(Part, self.hide))
        return Allow(self.packets, self.show, hide, where)


class _Never(PacketTable):
    show: Annotated[Depth, PlainValidator(scalars.forbidden_depth)] = Depth.ANONYMISED
    ignore: list[Annotated[str, AfterValidator(scalars.carrier)]] | None = None

    def value(self, where: str) -> Never:
        if self.ignore is None:
            return Never(self.packets, self.show, IGNORED_BY_DEFAULT, where)
        ignored = CARRIERS if ANY in self.ignore else self.ignore
        return Never(self.packets, self.show, frozenset(ignored), where)


class _Sampled(Table):
    sample_at_least: Limit


class _Order(Table):
    function: NodeClass
    after: (
        Annotated[
            Annotated[NodeClass, Tag(CLASS)] | Annotated[PacketTable, Tag(PACKETS)] | Annotated[_Sampled, Tag(SAMPLED)],
            Discriminator(_kind_of_requirement),
        ]
        | None
    ) = None
    before: NodeClass | None = None

    @model_validator(mode="after")
    def _check(self) -> _Order:
        if (self.after is None) == (self.before is None):
            raise mistake("an order has one of `after` and `before`", HELP["order"])
        first, second = (self.after, self.function) if self.before is None else (self.function, self.before)
        if first == second:
            raise mistake(f"`{first}` cannot come before itself", "name two classes")
        if isinstance(first, str) and CLASSES[first].role is Role.SINK:
            raise mistake(f"nothing comes after `{first}`", "a sink ends its path; turn the order around")
        if CLASSES[second].role is Role.DEVICE:
            raise mistake(f"nothing comes before `{second}`", "every path begins with a device")
        if isinstance(first, PacketTable) and first.packets == PacketClass():
            raise mistake("a packet class of an order without a key asks for nothing", HELP["after"], "after")
        return self

    @property
    def required_class(self) -> str:
        """The node class that must be there, "" if there need not be one."""
        match self.after:
            case PacketTable():
                return ""
            case _Sampled():
                return "sampler"
            case name:
                return name or self.before or ""

    def value(self, where: str) -> Order:
        match self.after:
            case None:
                return Order(self.function, self.before or "", after=False, where=where)
            case PacketTable():
                return Order(self.function, self.after.packets, where=where)
            case _Sampled():
                return Order(self.function, self.after.sample_at_least, where=where)
            case name:
                return Order(self.function, name, where=where)


class _Limits(Table):
    flows: Limit | None = None
    nodes: Limit | None = None
    snaplen: Annotated[int, Field(ge=1, le=LONGEST_SNAPLEN)] | None = None
    buffer: Size | None = None
    memory: Size | None = None
    sample_at_least: Limit | None = None
    packets_per_second: Annotated[int, Field(ge=1, le=LARGEST_RATE)] | None = None
    expires: Annotated[float, BeforeValidator(scalars.seconds)] | None = None

    def value(self) -> Limits:
        return Limits(
            *(self.flows, self.nodes, self.snaplen, self.buffer, self.memory),
            *(self.sample_at_least, self.packets_per_second, self.expires),
        )


class _Rule(Table):
    name: Annotated[str, AfterValidator(scalars.rule_name)]
    subjects: Annotated[list[Annotated[str, AfterValidator(scalars.subject)]], Field(min_length=1)]
    taps: Annotated[list[Annotated[str, AfterValidator(scalars.tap)]], Field(min_length=1)]
    classes: Annotated[list[ClassOrAny], Field(min_length=1)] | None = None
    allow: Annotated[list[_Allow], BeforeValidator(_listed_or_everything), Field(min_length=1)] | None = None
    never: Annotated[list[_Never], BeforeValidator(_listed), Field(min_length=1)] | None = None
    order: list[_Order] = []
    limits: _Limits | None = None
    monitor: bool = False

    @model_validator(mode="after")
    def _check(self) -> _Rule:
        if self.classes is None:
            self._check_only_forbids()
        elif self.allow is None:
            raise mistake(f"rule `{self.name}` has `classes`, and no `allow`", HELP["allow"])
        allowed = {"", "device", *(self.classes or ())}
        for index, order in enumerate(self.order):
            if allowed.isdisjoint({order.required_class, ANY}):
                raise mistake(
                    f"rule `{self.name}` wants {with_article(order.required_class)} that its `classes` do not allow",
                    f"add `{order.required_class}` to `classes`",
                    *("order", index),
                )
        return self

    def _check_only_forbids(self) -> None:
        for key in ("allow", "order", "limits", "monitor"):
            if getattr(self, key):
                raise mistake(f"rule `{self.name}` has `{key}`, and no `classes`", HELP["classes"], key)
        if self.never is None:
            raise mistake(
                f"rule `{self.name}` neither allows nor forbids anything",
                "give it `classes` and `allow`, or `never`, or both",
            )

    def value(self, places: Places, number: int) -> Rule:
        """`places` are those of its file, where it is rule `number` from 0."""

        def where(key: str, index: int) -> str:
            return places.where(("rule", number, key, index))

        return Rule(
            *(self.name, tuple(self.subjects), tuple(self.taps), tuple(self.classes or ())),
            allow=tuple(allow.value(where("allow", index)) for index, allow in enumerate(self.allow or ())),
            never=tuple(never.value(where("never", index)) for index, never in enumerate(self.never or ())),
            order=tuple(order.value(where("order", index)) for index, order in enumerate(self.order)),
            limits=(self.limits or _Limits()).value(),
            monitor=self.monitor,
            where=places.where(("rule", number)),
        )


class _File(Table):
    rule: list[_Rule] = []


TABLES: dict[str, type[Table]] = {
    "rule": _Rule, "allow": _Allow, "never": _Never, "order": _Order, "limits": _Limits,
    PACKETS: PacketTable, SAMPLED: _Sampled,
}  # fmt: skip


FORM = Form(_File, TABLES, HELP, "rule")
