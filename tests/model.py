"""A flow in plain Python: what becomes of each packet, by the definitions of the design, on the expression itself (not on
the compiler's steps).

To add a node class: one that decides is a method of `Behaviour`, named for the class; one that counts is a line of
`Model.counts_of`; one that transforms is a line of `shown`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ffpf_bpf.compiler.pcap import compile_filter
from ffpf_bpf.graph.classes.anonymise import Anonymise
from ffpf_bpf.graph.classes.snap import Snap
from ffpf_bpf.graph.classes.tcpflags import FLAGS
from ffpf_bpf.graph.effect import NO_RESULT, Fate
from ffpf_bpf.graph.expression import AllOf, AnyOf, Expression, Node, Not, Role, Select, Then, nodes
from ffpf_bpf.graph.predicate import run
from tests.anonymisation import anonymised
from tests.dissection import NO_VLAN, dissect, flow_hash
from tests.patterns import first
from tests.segment import SEED

SNAPLEN = 96  # of sinks that name none: `loaded`'s own
SELECTING = ("classify", "scan")  # classes with results
View = frozenset[int]  # the places of the transforms on a packet's way


@dataclass
class Behaviour:
    """What one node knows, and what it makes of a packet that reaches it: whether that goes on, and its result."""

    node: Any
    state: dict[str, Any] = field(default_factory=dict)
    packets: list[bytes] = field(default_factory=list)
    result: int = NO_RESULT
    passed: int = 0

    def passes(self, data: bytes) -> bool:
        self.packets.append(data)
        decide: Callable[[bytes], bool] | None = getattr(self, self.node.class_name, None)
        assert decide or self.node.role is not Role.DECIDES, f"the model knows no {self.node.class_name}"
        goes_on = self.node.role is not Role.SINK and (decide is None or decide(data))
        self.passed += goes_on
        return goes_on

    def bpf(self, data: bytes) -> bool:
        return run(compile_filter(self.node.filter), data) != 0

    def sampler(self, data: bytes) -> bool:
        if self.node.flow:
            return (flow_hash(data, SEED) >> 32) * self.node.flow < 1 << 32
        assert self.node.p in (0.0, 1.0), "chance has no model"
        return self.node.p == 1.0 or (len(self.packets) - 1) % self.node.one_in == 0

    def limit(self, data: bytes) -> bool:
        """Nothing comes in again while a test runs: rates are per hour."""
        assert self.node.rate.endswith("/h")
        amount = len(data) if "B" in self.node.rate else 1
        left = self.state.setdefault("left", self.node.burst)
        self.state["left"] -= amount if amount <= left else 0
        return amount <= left

    def head(self, data: bytes) -> bool:
        """No table of a test is too small."""
        flow = flow_hash(data, SEED)
        used = self.state.get(flow, 0)
        most = getattr(self.node, "bytes", 0) or getattr(self.node, "packets", 1)
        if used < most:
            self.state[flow] = used + (len(data) if getattr(self.node, "bytes", 0) else 1)
        return used < most

    newflow = head

    def tcpflags(self, data: bytes) -> bool:
        found = dissect(data)
        return bool(found.tcp) and any(
            all(bool(found.tcp_flags & FLAGS[word.strip("!")]) != word.startswith("!") for word in way.split())
            for way in self.node.flags.split("|")
        )

    def scan(self, data: bytes) -> bool:
        searched = data if self.node.whole_frame else data[dissect(data).payload :]
        number = first(self.node.patterns, searched, self.node.ignore_case)
        if number is None:
            return False
        self.result = number
        self.state[number] = self.state.get(number, 0) + 1
        return True

    def classify(self, data: bytes) -> bool:
        found, kind = dissect(data), self.node.field
        is_ip, values = bool(found.version), {"proto": found.protocol, "dscp": found.traffic >> 2}
        has = {"dport": found.ports, "sport": found.ports, "vlan": found.vlan != NO_VLAN, "tcpflags": found.tcp}
        if kind == "flow":
            self.result = (flow_hash(data, SEED) >> 32) * self.node.parts >> 32
        elif kind == "length":
            self.result = len(data)
        elif kind == "ethertype" or has.get(kind, is_ip):
            self.result = values[kind] if kind in values else getattr(found, {"tcpflags": "tcp_flags"}.get(kind, kind))
        else:
            self.result = NO_RESULT
        return True


@dataclass
class Model:
    """`ledger` by fate, `delivered` records, and the nodes' behaviours in the order of the text."""

    expression: Expression
    ledger: dict[str, int] = field(default_factory=dict)
    delivered: list[tuple[bytes | int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.behaviours = [Behaviour(node) for node in nodes(self.expression)]
        self.sinks = [place for place, each in enumerate(self.behaviours) if each.node.role is Role.SINK]
        apart = len(self.sinks) > 1 and any(each.node.tells_apart for each in self.behaviours)
        self.tagged = bool(self.sinks) and (apart or any(each.node.class_name in SELECTING for each in self.behaviours))

    def packet(self, data: bytes) -> None:
        self.data = data
        self.reached: dict[View, list[int]] = {}
        self.result = NO_RESULT
        self.place = 0
        self.ended = False
        _, reason, _ = self.walk(self.expression, True, True, frozenset())
        if self.reached:
            reason = Fate.DELIVERED
        elif self.ended:
            reason = Fate.COUNTED
        for view, sinks in self.reached.items():
            self.delivered.append(self.record(view, sinks))
        self.ledger[reason.name.lower()] = self.ledger.get(reason.name.lower(), 0) + 1

    def record(self, view: View, sinks: list[int]) -> tuple[bytes | int, ...]:
        """What is stored for the sinks that show one view."""
        transforms = [self.behaviours[place].node for place in sorted(view)]
        snaplen = max(self.behaviours[place].node.snaplen or SNAPLEN for place in sinks)
        record = (shown(self.data, transforms)[:snaplen], len(self.data))
        if not self.tagged:
            return record
        bits = sum(1 << self.sinks.index(place) for place in sinks)
        return (*record, bits, NO_RESULT if transforms else self.result)

    def walk(self, expression: Expression, arrives: bool, last: bool, view: View) -> tuple[bool, Fate, View]:
        """Whether it goes on; why it does not, if it was left out on purpose; and through which transforms it came."""
        match expression:
            case Node():
                self.place += 1
                return self.node(self.place - 1, arrives, last, view)
            case Then(stages=stages):
                reasons = [Fate.FILTERED]
                for number, stage in enumerate(stages):
                    arrives, why, view = self.walk(stage, arrives, last and number == len(stages) - 1, view)
                    reasons.append(why)
                return arrives, max(reasons), view
            case AnyOf(branches=branches):
                return self.joined([(branch, arrives) for branch in branches], last, view)
            case Select(node=node, cases=cases):
                place = self.place
                passes, _, view = self.walk(node, arrives, False, view)
                result = self.behaviours[place].result if passes else NO_RESULT
                named = any(low <= result <= high for ranges, _ in cases for low, high in ranges)
                chosen = [
                    any(low <= result <= high for low, high in ranges) if ranges else not named for ranges, _ in cases
                ]
                behind = [(case, passes and here) for (_, case), here in zip(cases, chosen, strict=True)]
                return self.joined(behind, last, view)
            case AllOf(branches=branches):
                walks = [self.walk(branch, arrives, False, view) for branch in branches]
                views = frozenset[int]().union(*(each for *_, each in walks))
                return all(go for go, *_ in walks), max(why for _, why, _ in walks), views
            case Not(inner=inner):
                go, *_ = self.walk(inner, arrives, False, view)
                purposes = [node.stops_as or Fate.FILTERED for node in nodes(inner)]
                return arrives and not go, max(purposes) if arrives and go else Fate.FILTERED, view
            case _:
                raise TypeError(expression)

    def joined(self, branches: list[tuple[Expression, bool]], last: bool, view: View) -> tuple[bool, Fate, View]:
        """Branches side by side. Where their views differ there is no sink behind: the graph would be refused."""
        walks = [self.walk(branch, arrives, last, view) for branch, arrives in branches]
        passed = any(go for go, *_ in walks)
        views = [each for (*_, each), (branch, _) in zip(walks, branches, strict=True) if not ends_in_sinks(branch)]
        return passed, Fate.FILTERED if passed else max(why for _, why, _ in walks), views[0] if views else view

    def node(self, place: int, arrives: bool, last: bool, view: View) -> tuple[bool, Fate, View]:
        behaviour = self.behaviours[place]
        node = behaviour.node
        if node.role is Role.TRANSFORMS:
            view |= {place}
        if not arrives:
            return False, Fate.FILTERED, view
        passes = behaviour.passes(self.data)
        if passes and node.class_name in SELECTING:
            self.result = behaviour.result
        if node.role is Role.SINK:
            self.reached.setdefault(view, []).append(place)
            return False, Fate.FILTERED, view
        self.ended = self.ended or (last and node.role is Role.DOES)
        return passes, Fate.FILTERED if passes else node.stops_as or Fate.FILTERED, view

    def counts_of(self, place: int) -> dict[str, Any]:
        """What a node tells that it counted."""
        behaviour = self.behaviours[place]
        node, lengths = behaviour.node, list(map(len, behaviour.packets))
        match node.class_name:
            case "packetcount":
                return {"packets": len(lengths)}
            case "bytecount":
                return {"bytes": sum(lengths)}
            case "head" | "newflow":
                return {"flows": len(behaviour.state), "evicted": 0}
            case "histogram" if node.value == "iat":
                return {"packets": max(0, len(lengths) - 1)}  # in which bins, only the clock knows
            case "histogram":
                return {"bins": binned(lengths, node.width, node.bins)}
            case "scan":
                hits = {node.expression.split("|")[number - 1]: count for number, count in behaviour.state.items()}
                return {"unscanned": 0, "hits": hits}
            case _:
                return {}


def binned(values: list[int], width: int, bins: int) -> list[list[int | None]]:
    """How values spread: bounds of each bin that is not empty, and its count."""
    numbers = [min(value // width, bins - 1) if width else value.bit_length() for value in values]
    found: list[list[int | None]] = []
    for number in sorted(set(numbers)):
        if width:
            low, high = number * width, None if number == bins - 1 else (number + 1) * width - 1
        else:
            low, high = (1 << number) >> 1, (1 << number) - 1
        found.append([low, high, numbers.count(number)])
    return found


def shown(data: bytes, transforms: list[Node]) -> bytes:
    """What is shown of a packet behind these transforms, each of which sees the packet as it came."""
    record = data
    for node in transforms:
        match node:
            case Snap():
                record = record[: dissect(data).payload + node.payload]
            case Anonymise():
                most = len(record)
                record = anonymised(data, node.key, node.ports)[:most]
            case _:
                raise TypeError(f"the model knows no {node.class_name}")
    return record


def ends_in_sinks(expression: Expression) -> bool:
    """Whether no packet leaves it."""
    match expression:
        case Node(role=role):
            return role is Role.SINK
        case Then(stages=(*_, final)):
            return ends_in_sinks(final)
        case AnyOf(branches=branches):
            return all(map(ends_in_sinks, branches))
        case Select(cases=cases):
            return all(ends_in_sinks(case) for _, case in cases)
        case _:
            return False
