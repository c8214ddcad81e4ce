"""Authorisation: every rule key both ways, orders on every kind of path, broken policies, and failing closed."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.authorise import (
    Decision,
    Order,
    Policies,
    PolicyError,
    Subject,
    current_subject,
    decide,
    read_policies,
    subject_of,
)
from ffpf_bpf.authorise.decision import Finding, Result
from ffpf_bpf.authorise.means import check_packet_rate
from ffpf_bpf.authorise.proof.prover import Prover
from ffpf_bpf.authorise.proof.solvers import Clock
from ffpf_bpf.authorise.schema import parse_policy
from ffpf_bpf.authorise.shape import check_order
from ffpf_bpf.compiler import compile_predicates
from ffpf_bpf.errors import ExpressionError, FfpfError
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.classes.bytecount import Bytecount
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import Grab
from ffpf_bpf.graph.classes.packetcount import Packetcount
from ffpf_bpf.graph.classes.sampler import Sampler
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import Primitive
from ffpf_bpf.graph.expression import AllOf, AnyOf, Expression, Node, Not, Role, Then, all_of, any_of, then
from ffpf_bpf.graph.graph import Complement, Graph, Intersection, Leaf, Union
from ffpf_bpf.graph.parser import parse
from tests.policies import rule

SHIPPED = Path(__file__).parent.parent / "policies"
ALICE = Subject("alice", frozenset({"users", "students"}), 1000)
ROOT = Subject("root", frozenset({"root"}), 0)


def definition(text: str, buffer_bytes: int = 1 << 16) -> Definition:
    graph = build(parse(text))
    return Definition(graph, MappingProxyType(compile_predicates(graph)), buffer_bytes)


def policies(directory: Path, text: str, file: str = "rules.toml") -> Policies:
    (directory / file).write_text(text)
    return read_policies(directory)


def decided(
    directory: Path, keys: str, text: str, subject: Subject = ALICE, *, live: int = 0, **changed: str
) -> Decision:
    return decide(definition(text), policies(directory, rule(keys, **changed)), subject, live_flows=live)


GRAB = "(device,eth0) -> (grab,snaplen=96)"


class TestKeys:
    """Each key of a rule, accepting and refusing."""

    @pytest.mark.parametrize(
        ("subjects", "accepted"),
        [
            ('["*"]', True),
            ('["user:alice"]', True),
            ('["user:bob", "group:students"]', True),
            ('["user:students"]', False),
            ('["group:alice"]', False),
            ('["user:Alice"]', False),
        ],
    )
    def test_subjects(self, tmp_path: Path, subjects: str, accepted: bool) -> None:
        decision = decided(tmp_path, "", GRAB, subjects=subjects)
        assert decision.accepted is accepted
        if not accepted:
            assert decision.reasons == ("no policy allows user `alice`: no rule names them",)
            assert decision.obligations == ()

    @pytest.mark.parametrize(
        ("taps", "tap", "accepted"),
        [
            ('["eth*"]', "eth0", True),
            ('["eth*"]', "eth0@xdp", True),
            ('["eth*"]', "eth0@tc-ingress", False),
            ('["eth*"]', "veth0", False),
            ('["*"]', "eth0@tc-egress", False),
            ('["*@tc-*"]', "eth0@tc-egress", True),
            ('["*@tc-*"]', "eth0", False),
            ('["veth*@*"]', "veth1@tc-ingress", True),
            ('["eth[0-3]"]', "eth3", True),
            ('["eth[0-3]"]', "eth4", False),
            ('["eth0", "lo"]', "lo", True),
            ('["ETH0"]', "eth0", False),
        ],
    )
    def test_taps(self, tmp_path: Path, taps: str, tap: str, accepted: bool) -> None:
        assert decided(tmp_path, "", f"(device,{tap}) -> (grab)", taps=taps).accepted is accepted

    def test_every_tap_counts(self, tmp_path: Path) -> None:
        decision = decided(tmp_path, "", "(device,eth0) | (device,lo) -> (grab)", taps='["eth0"]')
        assert not decision.accepted
        assert "device2: `lo@xdp` is not allowed" in decision.reasons[0]

    @pytest.mark.parametrize(
        ("classes", "text", "accepted"),
        [
            ('["grab"]', "(device,eth0) -> (grab)", True),
            ('["bpf"]', "(device,eth0) -> (grab)", False),
            ('["bpf"]', "(device,eth0) -> (bpf,udp)", False),  # the grab that the short form leaves out
            ('["bpf", "grab"]', "(device,eth0) -> (bpf,udp)", True),
            ('["*"]', "(device,eth0) -> (sampler,2) -> (bpf,udp)", True),
            ('["bytecount"]', "(device,eth0) -> (bytecount)", True),
            ('["grab"]', "(device,eth0) -> !(bpf,udp) -> (grab)", False),
            ('["grab", "device"]', "(device,eth0) -> (grab)", True),
        ],
    )
    def test_classes(self, tmp_path: Path, classes: str, text: str, accepted: bool) -> None:
        assert decided(tmp_path, "", text, classes=classes).accepted is accepted

    @pytest.mark.parametrize(
        ("front", "idle"),
        [
            ('(bpf,"")', True),
            ('(bpf,"ether[0] >= 0")', True),
            ('(bpf,"ip or not ip")', True),
            ('(bpf,"")(bpf,"less 2000000")', True),
            ("(bpf,ip)", False),
            ('(bpf,"")(bpf,ip)', False),
            ('(bpf,"greater 15")', False),
        ],
    )
    def test_a_filter_that_stops_nothing_meets_no_order(self, tmp_path: Path, front: str, idle: bool) -> None:
        keys = 'order = [{ function = "grab", after = "bpf" }]'
        flow = f"(device,eth0) -> {front.replace(')(', ') -> (')} -> (grab)"
        decision = decided(tmp_path, keys, flow, classes='["bpf", "grab"]')
        assert decision.accepted is not idle, decision.text()
        if idle:
            assert "no `bpf` that stops any packet on this path" in decision.text()

    def test_an_order_is_met_by_a_node_that_lets_everything_pass(self, tmp_path: Path) -> None:
        """What is to be asked then is in policies/README.md."""
        for name, front in (("sampler", "1"), ("limit", "1000000000/s"), ("head", "100000000000")):
            keys = f'order = [{{ function = "grab", after = "{name}" }}]'
            flow = f"(device,eth0) -> ({name},{front}) -> (grab)"
            assert decided(tmp_path, keys, flow, classes=f'["{name}", "grab"]').accepted
            assert f"({name},{front})" in (SHIPPED / "README.md").read_text()

    def test_order(self, tmp_path: Path) -> None:
        keys = 'order = [{ function = "grab", after = "sampler" }, { function = "bytecount", before = "grab" }]'
        assert decided(tmp_path, keys, "(device,eth0) -> (sampler,2) -> (bytecount) -> (grab)").accepted
        for text in ("(device,eth0) -> (bytecount) -> (grab)", "(device,eth0) -> (sampler,2) -> (bytecount) | (grab)"):
            assert not decided(tmp_path, keys, text).accepted

    def test_flows(self, tmp_path: Path) -> None:
        keys = "limits.flows = 2"
        assert [decided(tmp_path, keys, GRAB, live=live).accepted for live in range(4)] == [True, True, False, False]
        assert not decided(tmp_path, keys, GRAB, live=-1).accepted

    def test_nodes(self, tmp_path: Path) -> None:
        keys = "limits.nodes = 3"
        assert decided(tmp_path, keys, "(device,eth0) -> (bpf,udp) -> (grab)").accepted
        assert not decided(tmp_path, keys, "(device,eth0) -> (bpf,udp) | (bpf,tcp) -> (grab)").accepted

    @pytest.mark.parametrize(
        ("text", "accepted"),
        [
            ("(device,eth0) -> (grab,snaplen=96)", True),
            ("(device,eth0) -> (grab,snaplen=97)", False),
            ("(device,eth0) -> (grab)", False),
            ("(device,eth0) -> (grab,snaplen=96) | (grab)", False),
            ("(device,eth0) -> (bytecount)", True),
        ],
    )
    def test_snaplen(self, tmp_path: Path, text: str, accepted: bool) -> None:
        assert decided(tmp_path, "limits.snaplen = 96", text).accepted is accepted

    @pytest.mark.parametrize("limit", ["65536", '"64KiB"', '"64 KiB"', '"65536"', '"65536B"'])
    def test_buffer(self, tmp_path: Path, limit: str) -> None:
        allowed = policies(tmp_path, rule(f"limits.buffer = {limit}"))
        assert decide(definition(GRAB, 65_536), allowed, ALICE).accepted
        assert not decide(definition(GRAB, 65_537), allowed, ALICE).accepted

    @pytest.mark.parametrize(
        ("text", "accepted"),
        [
            ("(device,eth0) -> (anonymise) -> (grab)", True),
            ("(device,eth0) -> (anonymise) -> (callback,web)", True),
            ("(device,eth0) -> (grab)", False),
            # Whoever states the key can undo the pseudonyms.
            ('(device,eth0) -> (anonymise,"key=00112233445566778899aabbccddeeff") -> (grab)', False),
        ],
    )
    def test_a_known_key_is_no_anonymisation(self, tmp_path: Path, text: str, accepted: bool) -> None:
        wanted = 'order = [{ function = "grab", after = "anonymise" }]'
        assert decided(tmp_path, wanted, text).accepted is accepted

    @pytest.mark.parametrize(
        ("text", "accepted"),
        [
            ("(device,eth0) -> (bytecount)", True),
            ("(device,eth0) -> (head,10,65408)", True),  # 16 bytes more on each CPU
            ("(device,eth0) -> (head,10,65536)", False),
            ("(device,eth0) -> (bytecount,,65536) -> (packetcount)", False),
        ],
    )
    def test_memory(self, tmp_path: Path, text: str, accepted: bool) -> None:
        assert decided(tmp_path, 'limits.memory = "64KiB"', text).accepted is accepted

    def test_buffer_counts_the_smallest_ring(self, tmp_path: Path) -> None:
        allowed = policies(tmp_path, rule("limits.buffer = 4096"))
        assert not decide(definition("(device,eth0) -> (grab)", 1), allowed, ALICE).accepted
        assert decide(definition("(device,eth0) -> (bytecount)", 1), allowed, ALICE).accepted

    @pytest.mark.parametrize(
        ("text", "accepted"),
        [
            ("(device,eth0) -> (sampler,10) -> (grab)", True),
            ("(device,eth0) -> (sampler,9) -> (grab)", False),
            ("(device,eth0) -> (sampler,1) -> (sampler,11) -> (grab)", True),
            ("(device,eth0) -> (sampler,10) | (sampler,20) -> (grab)", True),
            ("(device,eth0) -> (sampler,10) | (sampler,2) -> (grab)", False),
            ("(device,eth0) -> (sampler,10) & (bpf,udp) -> (grab)", True),
            ("(device,eth0) -> (sampler,p=0.1) -> (grab)", True),
            ("(device,eth0) -> (sampler,p=0.11) -> (grab)", False),
            ("(device,eth0) -> (sampler,flow=1/1000) -> (grab)", False),
            ("(device,eth0) -> (sampler,10) -> (callback,web)", True),
            ("(device,eth0) -> (callback,web)", False),
            ("(device,eth0) -> !(sampler,10) -> (grab)", False),
            ("(device,eth0) -> (sampler,10) | (grab)", False),
            ("(device,eth0) -> (bytecount)", True),
        ],
    )
    def test_sample_at_least(self, tmp_path: Path, text: str, accepted: bool) -> None:
        assert decided(tmp_path, "limits.sample_at_least = 10", text).accepted is accepted

    @pytest.mark.parametrize(
        ("text", "evidence"),
        [
            ("(device,eth0) -> (limit,100/s) -> (grab)", "100 packets per second"),
            ("(device,eth0) -> (limit,101/s) -> (grab)", "101 packets per second !"),
            ("(device,eth0) -> (limit,6000/m) -> (grab)", "100 packets per second"),
            ("(device,eth0) -> (limit,6001/m) -> (grab)", "101 packets per second !"),
            ("(device,eth0) -> (limit,5/h) -> (grab)", "1 packet per second"),
            ("(device,eth0) -> (grab)", "no `limit` of packets on this path !"),
            ("(device,eth0) -> (limit,1kB/s) -> (grab)", "no `limit` of packets on this path !"),
            ("(device,eth0) -> (limit,1kB/s) -> (limit,100/s) -> (grab)", "100 packets per second"),
            ("(device,eth0) -> !(limit,100/s) -> (grab)", "no `limit` of packets on this path !"),
            ("(device,eth0) -> (limit,40/s) | (limit,60/s) -> (grab)", "100 packets per second"),
            ("(device,eth0) -> (limit,50/s) | (limit,60/s) -> (grab)", "110 packets per second !"),
            ("(device,eth0) -> (limit,50/s) | (bpf,udp) -> (grab)", "no `limit` of packets on this path !"),
            ("(device,eth0) -> ((limit,60/s) -> (grab)) | ((limit,60/s) -> (grab))", "120 packets per second !"),
            ("(device,eth0) -> ((limit,60/s) -> (grab)) | ((limit,60/s) -> (bytecount))", "60 packets per second"),
            ('(device,eth0) -> (limit,"100/s burst=100") -> (grab)', "100 packets per second"),
            ('(device,eth0) -> (limit,"100/s burst=101") -> (grab)', "101 packets at once after a pause !"),
            ("(device,eth0) -> (bytecount)", "the flow has no sink"),
        ],
    )
    def test_packets_per_second(self, text: str, evidence: str) -> None:
        finding = check_packet_rate(definition(text).graph, 100)
        assert finding.evidence + (" !" if finding.result is Result.REFUTED else "") == evidence

    def test_packets_per_second_is_asked_for(self, tmp_path: Path) -> None:
        keys = "limits.packets_per_second = 100"
        assert decided(tmp_path, keys, "(device,eth0) -> (limit,100/s) -> (grab)").accepted
        assert not decided(tmp_path, keys, "(device,eth0) -> (limit,101/s) -> (grab)").accepted


AFTER = [
    # flow behind the device, the path without a sampler in front of the grab ("" if there is none)
    ("(sampler,2) -> (grab)", ""),
    ("(grab)", "device1 -> grab1"),
    ("(sampler,2) -> (bpf,udp) -> (grab)", ""),
    ("(bpf,udp) -> (sampler,2) -> (bpf,tcp) -> (grab)", ""),
    ("(sampler,2) | (sampler,3) -> (grab)", ""),
    ("(sampler,2) | (bpf,udp) -> (grab)", "device1 -> bpf1 -> grab1"),
    ("((sampler,2) -> (bpf,tcp)) | ((bpf,udp) -> (sampler,3)) -> (grab)", ""),
    ("(sampler,2) & (bpf,udp) -> (grab)", ""),
    ("(bpf,tcp) & (bpf,udp) -> (grab)", "device1 -> bpf1 -> grab1"),
    ("((sampler,2) | (bpf,tcp)) & (bpf,udp) -> (grab)", "device1 -> bpf1 -> grab1"),
    ("((sampler,2) | (bpf,tcp)) & (sampler,3) -> (grab)", ""),
    ("!(sampler,2) -> (grab)", "device1 -> not1 -> grab1"),
    ("!!(sampler,2) -> (grab)", "device1 -> not2 -> grab1"),
    ("(sampler,2) -> !(bpf,udp) -> (grab)", ""),
    ("!(bpf,udp) & (sampler,2) -> (grab)", ""),
    ("!((sampler,2) & (bpf,udp)) -> (grab)", "device1 -> not1 -> grab1"),
    ("(sampler,2) | (grab)", "device1 -> grab1"),
    ("((sampler,2) -> (grab)) | ((bpf,udp) -> (grab))", "device1 -> bpf1 -> grab2"),
    ("(bytecount)", ""),  # no grab at all
]

BEFORE = [
    # flow behind the device, the path without a grab behind the bytecount
    ("(bytecount) -> (grab)", ""),
    ("(bytecount)", "bytecount1"),
    ("(bytecount) | (grab)", "bytecount1"),
    ("(bytecount) -> (bpf,udp) -> (grab)", ""),  # stopped by a filter: fine
    ("(bytecount) -> (grab) | (packetcount)", "bytecount1 -> packetcount1"),
    ("(bytecount) -> ((bpf,udp) -> (grab)) | ((bpf,tcp) -> (grab))", ""),
    ("(bytecount) | (bpf,udp) -> (grab)", ""),
    ("((bytecount) -> (bpf,tcp)) & (bpf,udp) -> (grab)", ""),
    ("((bytecount) -> (bpf,tcp)) & (bpf,udp) -> (packetcount)", "bytecount1 -> bpf1 -> packetcount1"),
    ("(bytecount) -> !(bpf,udp) -> (grab)", ""),
    ("(bytecount) -> !(bpf,udp) -> (packetcount)", "bytecount1 -> not1 -> packetcount1"),
    ("(grab)", ""),  # no bytecount at all
]

BEFORE_SAMPLER = [
    # flow behind the device, the path without a sampler behind the bpf
    ("(bpf,udp) -> (sampler,2) -> (grab)", ""),
    ("(bpf,udp) -> !(sampler,2) -> (grab)", "bpf1 -> not1 -> grab1"),
    ("!(bpf,udp) -> (sampler,2) -> (grab)", ""),
    ("!((bpf,udp) -> (sampler,2)) -> (grab)", "bpf1 -> sampler1 -> not1 -> grab1"),  # out of the NOT, stopped in there
    ("!!(bpf,udp) -> (grab)", "bpf1 -> not1 -> not2 -> grab1"),
    ("((bpf,udp)) & (sampler,2) -> (grab)", "bpf1 -> grab1"),  # beside it, not behind it
]


class TestOrder:
    @pytest.mark.parametrize(("flow", "path"), AFTER)
    def test_after(self, flow: str, path: str) -> None:
        check_path(flow, Order("grab", "sampler", after=True), path)

    @pytest.mark.parametrize(("flow", "path"), BEFORE)
    def test_before(self, flow: str, path: str) -> None:
        check_path(flow, Order("bytecount", "grab", after=False), path)

    @pytest.mark.parametrize(("flow", "path"), BEFORE_SAMPLER)
    def test_before_and_not(self, flow: str, path: str) -> None:
        check_path(flow, Order("bpf", "sampler", after=False), path)

    def test_inside_an_operand_the_other_operand_does_not_count(self) -> None:
        check_path(
            "((bytecount) -> (bpf,udp)) & (sampler,2)",
            Order("bytecount", "sampler", after=True),
            "device1 -> bytecount1",
        )

    def test_inside_a_not_the_source_counts(self) -> None:
        check_path("(sampler,2) -> !(bpf,udp)", Order("bpf", "sampler", after=True), "")
        check_path("!((sampler,2) -> (bpf,udp))", Order("bpf", "sampler", after=True), "")

    def test_one_of_two_devices_goes_around(self) -> None:
        graph = build(parse("((device,eth0) -> (sampler,2)) | (device,eth1) -> (grab)"))
        finding = in_shape(graph, Order("grab", "sampler", after=True))
        assert finding.path == ("device2", "grab1")


def in_shape(graph: Graph, order: Order) -> Finding:
    """By the graph alone: without filters no path is impossible."""
    return check_order(Prover(Definition(graph, {}, 4096), Clock(5)), order)


def check_path(flow: str, order: Order, path: str) -> None:
    finding = in_shape(build(parse(f"(device,eth0) -> {flow}")), order)
    assert (finding.result, " -> ".join(finding.path)) == (Result.REFUTED if path else Result.PROVED, path)


# --- the orders again, by brute force on the expression -----------------------------------------------------------

Classes = frozenset[str]


def routes(expression: Expression, arriving: set[Classes], seen: list[tuple[Node, set[Classes]]]) -> set[Classes]:
    """All ways through: for each, the classes passed. An AND passes one way of each of its branches."""
    match expression:
        case Node():
            seen.append((expression, arriving))
            return set() if expression.role is Role.SINK else {way | {expression.class_name} for way in arriving}
        case Then(stages=stages):
            for stage in stages:
                arriving = routes(stage, arriving, seen)
            return arriving
        case AnyOf(branches=branches):
            return {way for branch in branches for way in routes(branch, arriving, seen)}
        case AllOf(branches=branches):
            return {Classes().union(*ways) for ways in product(*(routes(b, arriving, seen) for b in branches))}
        case Not(inner=inner):
            routes(inner, arriving, seen)
            return arriving
    raise TypeError


def rests(
    expression: Expression, leaving: set[Classes], seen: list[tuple[Node, set[Classes]]], inverted: bool = False
) -> set[Classes]:
    """All ways on from the entry of `expression`, given those on from its exit; `seen` has those on from each node."""
    match expression:
        case Node():
            after = {Classes()} if expression.role is Role.SINK else leaving
            seen.append((expression, after))
            return after if inverted else {way | {expression.class_name} for way in after}
        case Then(stages=stages):
            for stage in reversed(stages):
                leaving = rests(stage, leaving, seen, inverted)
            return leaving
        case AnyOf(branches=branches) | AllOf(branches=branches):
            return {way for branch in branches for way in rests(branch, leaving, seen, inverted)}
        case Not(inner=inner):
            rests(inner, leaving, seen, inverted=True)
            return leaving
    raise TypeError


def brute_force(graph: Graph, order: Order) -> bool:
    seen: list[tuple[Node, set[Classes]]] = []
    (routes if order.after else rests)(graph.expression, {Classes()}, seen)
    return all(order.required in way for node, ways in seen if node.class_name == order.function for way in ways)


DECIDERS: st.SearchStrategy[Expression] = st.sampled_from([Bpf("udp"), Sampler(2)])
MIDDLES: st.SearchStrategy[Expression] = st.sampled_from([Bpf("udp"), Sampler(2), Bytecount(), Packetcount()])


def joined(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    some = st.lists(parts, min_size=2, max_size=3)
    return st.one_of(some.map(lambda p: then(*p)), some.map(lambda p: any_of(*p)), some.map(lambda p: all_of(*p)))


INVERTED = st.recursive(DECIDERS, lambda inner: joined(inner) | inner.map(Not), max_leaves=4).map(Not)
PASSING = st.recursive(MIDDLES | INVERTED, joined, max_leaves=6)
ENDS: st.SearchStrategy[Expression] = st.sampled_from([Grab(), Bytecount(), Bpf("tcp"), any_of(Grab(), Bytecount())])
PATHS = st.builds(then, PASSING, ENDS)
BODIES = st.one_of(PATHS, st.builds(any_of, PATHS, PATHS), st.builds(then, PASSING, st.builds(any_of, PATHS, PATHS)))
DEVICES = st.sampled_from([Device("eth0"), any_of(Device("eth0"), then(Device("eth1"), Sampler(3)))])
NAMES = ["bpf", "sampler", "bytecount", "packetcount", "grab", "device"]
ORDERS = st.builds(Order, st.sampled_from(NAMES), st.sampled_from(NAMES), after=st.booleans())
LIKELY = st.sampled_from([Order("grab", "sampler", after=True), Order("bytecount", "bpf", after=True)])
INVERTIBLE = st.sampled_from([Order("bpf", "sampler", after=False), Order("sampler", "bpf", after=False)])


@pytest.mark.parametrize("orders", [ORDERS, LIKELY, INVERTIBLE], ids=["any", "likely", "invertible"])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_orders_are_what_enumerating_paths_says(orders: st.SearchStrategy[Order], data: st.DataObject) -> None:
    graph = build(then(data.draw(DEVICES), data.draw(BODIES | INVERTED)))
    order = data.draw(orders)
    finding = in_shape(graph, order)
    assert (finding.result is Result.PROVED) == brute_force(graph, order)
    if finding.result is Result.REFUTED:
        classes = {graph.ids[index]: leaf.node.class_name for index, leaf in graph.leaves()}
        on_path = [classes.get(name, "") for name in finding.path]
        assert on_path[-1 if order.after else 0] == order.function
        if order.after:
            assert on_path[0] == "device"
            assert order.required not in on_path[:-1]


@settings(max_examples=300, deadline=None)
@given(DEVICES, BODIES, LIKELY | ORDERS.filter(lambda order: order.after))
def test_a_proved_order_holds_for_every_packet(device: Expression, body: Expression, order: Order) -> None:
    """Whatever the filters decide: a packet that reaches the function has passed the required class."""
    graph = build(then(device, body))
    deciders = [index for index, leaf in graph.leaves() if leaf.node.role in (Role.DECIDES, Role.DEVICE)][:9]
    if in_shape(graph, order).result is not Result.PROVED:
        return
    for choice in product([False, True], repeat=len(deciders)):
        passed, reached = evaluated(graph, dict(zip(deciders, choice, strict=True)))
        for index, leaf in graph.leaves():
            if leaf.node.class_name == order.function and reached[index]:
                assert any(passed[i] and n.node.class_name == order.required for i, n in graph.leaves())


def evaluated(graph: Graph, decisions: dict[int, bool]) -> tuple[list[bool], dict[int, bool]]:
    passed: list[bool] = []
    reached: dict[int, bool] = {}
    for index, step in enumerate(graph.steps):
        match step:
            case Leaf(source=source):
                reached[index] = source is None or passed[source]
                passed.append(reached[index] and decisions.get(index, True))
            case Union(inputs=inputs):
                passed.append(any(passed[i] for i in inputs))
            case Intersection(inputs=inputs):
                passed.append(all(passed[i] for i in inputs))
            case Complement(source=source, inner=inner):
                passed.append((source is None or passed[source]) and not passed[inner])
    return passed, reached


class TestRules:
    """How rules combine."""

    def test_one_rule_must_allow_all_of_it(self, tmp_path: Path) -> None:
        text = rule(name='"a"', taps='["eth0"]', classes='["grab"]') + rule(
            name='"b"', taps='["eth1"]', classes='["bpf"]'
        )
        allowed = policies(tmp_path, text)
        assert decide(definition("(device,eth0) -> (grab)"), allowed, ALICE).rule == "a"
        decision = decide(definition("(device,eth1) -> (grab)"), allowed, ALICE)
        assert not decision.accepted
        assert [reason.split()[1] for reason in decision.reasons] == ["a", "b"]
        assert not decide(definition("(device,eth0) | (device,eth1) -> (grab)"), allowed, ALICE).accepted

    def test_the_first_that_allows_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "b.toml").write_text(rule(name='"b"'))
        allowed = policies(tmp_path, rule(name='"a"', taps='["lo"]'), "a.toml")
        decision = decide(definition(GRAB), allowed, ALICE)
        assert (decision.rule, {obligation.rule for obligation in decision.obligations}) == ("b", {"b"})

    @pytest.mark.parametrize(
        ("keys", "accepted"),
        [
            ('subjects = ["*"]\ntaps = ["*"]', False),
            ('subjects = ["*"]\ntaps = ["*"]\nclasses = ["scan"]\nallow = "everything"', False),
            ('subjects = ["*"]\ntaps = ["eth0"]\nclasses = ["*"]\nallow = { udp_port = 53 }', False),
            ('subjects = ["*"]\ntaps = ["eth1"]\nclasses = ["*"]\nallow = "everything"', True),
            ('subjects = ["user:bob"]\ntaps = ["*"]', True),
        ],
    )
    def test_a_never_wins_whether_or_not_its_rule_carries_the_flow(
        self, tmp_path: Path, keys: str, accepted: bool
    ) -> None:
        text = rule(name='"a"') + f'[[rule]]\nname = "n"\n{keys}\nnever = {{ tcp_port = 25 }}\n'
        found = decide(definition(GRAB), policies(tmp_path, text), ALICE)
        assert found.accepted is accepted, found.text()
        refuted = {each.rule for each in found.obligations if each.result is Result.REFUTED and "never" in each.claim}
        assert refuted == (set() if accepted else {"n"})

    @pytest.mark.parametrize(
        ("keys", "accepted"),
        [
            ('taps = ["*"]\nallow = { tcp_port = 443 }', True),
            ('taps = ["eth1"]\nallow = { tcp_port = 443 }', False),
            ('taps = ["*"]\nallow = { tcp_port = 443, show = "headers" }', False),
            ('taps = ["*"]\nlimits = { snaplen = 64 }\nallow = { tcp_port = 443 }', False),
        ],
    )
    def test_allows_of_rules_that_carry_the_flow_add_up(self, tmp_path: Path, keys: str, accepted: bool) -> None:
        head = 'subjects = ["*"]\nclasses = ["*"]\n'
        web = f'[[rule]]\nname = "a"\n{head}taps = ["*"]\nallow = {{ tcp_port = 80 }}\n'
        text = f'{web}[[rule]]\nname = "b"\n{head}{keys}\n'
        flow = '(device,eth0) -> (bpf,"tcp port 80 or tcp port 443") -> (grab,snaplen=96)'
        found = decide(definition(flow), policies(tmp_path, text), ALICE)
        assert found.accepted is accepted, found.text()
        assert found.rule == ("a + b" if accepted else "")

    def test_root_needs_a_rule_where_there_are_policies(self, tmp_path: Path) -> None:
        assert not decide(definition(GRAB), read_policies(tmp_path), ROOT).accepted
        assert not decide(definition(GRAB), policies(tmp_path, rule(subjects='["user:alice"]')), ROOT).accepted

    def test_no_directory(self) -> None:
        decision = decide(definition(GRAB), None, ROOT)
        assert decision.accepted
        assert decision.reasons == ("no policy directory: root may grab everything",)
        assert decision.text() == "ACCEPTED: no policy directory: root may grab everything"
        decision = decide(definition(GRAB), None, ALICE)
        assert not decision.accepted
        assert decision.reasons[0].startswith("no policy allows user `alice`")

    def test_bound_to_the_definition(self) -> None:
        first, second = definition(GRAB), definition(GRAB, 1 << 17)
        assert decide(first, None, ROOT).digest == first.digest != decide(second, None, ROOT).digest


@dataclass(frozen=True, slots=True)
class Leak(Node):
    """A sink of a later version, which states no snap length."""

    class_name: ClassVar[str] = "leak"
    role: ClassVar[Role] = Role.SINK

    @property
    def effect(self) -> Primitive:
        return Primitive("leak", "leak")


class TestFailsClosed:
    def test_an_unexpected_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("broken\n\x1b[2J")

        allowed = policies(tmp_path, rule())
        monkeypatch.setattr("ffpf_bpf.authorise.judgement.check_taps", broken)
        decision = decide(definition(GRAB), allowed, ALICE)
        assert not decision.accepted
        assert decision.reasons == (r"the decision failed: RuntimeError: `broken\n\x1b[2J`",)
        assert decision.digest == definition(GRAB).digest

    def test_nonsense(self) -> None:
        decision = decide(None, None, ROOT)  # type: ignore[arg-type]
        assert (decision.accepted, decision.digest) == (False, "")

    def test_a_cycle(self, tmp_path: Path) -> None:
        good = definition(GRAB)
        graph = replace(good.graph, steps=(good.graph.steps[0], Leaf(Grab(96), 1)))
        assert not decide(replace(good, graph=graph), policies(tmp_path, rule()), ALICE).accepted

    def test_a_sink_without_a_snap_length_is_refused(self, tmp_path: Path) -> None:
        allowed = policies(tmp_path, rule("limits.snaplen = 96"))
        decision = decide(Definition(build(then(Device("eth0"), Leak())), {}, 1 << 16), allowed, ALICE)
        assert not decision.accepted
        assert Result.REFUSED in {obligation.result for obligation in decision.obligations}

    def test_no_control_characters_in_the_log(self, tmp_path: Path) -> None:
        subject = Subject("a\x1b[2Jb", frozenset(), 1000)
        decision = decide(definition(GRAB), None, subject)
        assert not decision.accepted
        assert "\x1b" not in decision.text()

    def test_decisions_do_not_change(self) -> None:
        with pytest.raises(FrozenInstanceError):
            decide(definition(GRAB), None, ALICE).accepted = True  # type: ignore[misc]


class TestDirectory:
    def test_exit_code(self) -> None:
        assert issubclass(PolicyError, FfpfError) and PolicyError.exit_code == 3

    def test_empty_denies_everybody(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "rules.toml").write_text(rule())
        (tmp_path / "rules.toml.bak").write_text(rule())
        (tmp_path / "comment.toml").write_text("# nothing\n")
        assert read_policies(tmp_path) == Policies()
        assert not decide(definition(GRAB), read_policies(tmp_path), ROOT).accepted

    @pytest.mark.parametrize("what", ["missing", "a\0b"])
    def test_missing(self, tmp_path: Path, what: str) -> None:
        with pytest.raises(PolicyError):
            read_policies(tmp_path / what)

    def test_a_file_for_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(PolicyError, match="not a directory"):
            read_policies(tmp_path / "file")

    def test_no_permission(self, tmp_path: Path) -> None:
        policies(tmp_path, rule())
        (tmp_path / "rules.toml").chmod(0)
        with unprivileged(), pytest.raises(PolicyError, match="permission denied"):
            read_policies(tmp_path)

    def test_symlinks(self, tmp_path: Path) -> None:
        real = tmp_path / "real"
        real.mkdir()
        policies(real, rule())
        (tmp_path / "link").symlink_to(real)
        with pytest.raises(PolicyError, match="a symlink"):
            read_policies(tmp_path / "link")
        (real / "link.toml").symlink_to(real / "rules.toml")
        with pytest.raises(PolicyError, match=r"link.toml: a symlink"):
            read_policies(real)

    def test_writable_by_others(self, tmp_path: Path) -> None:
        policies(tmp_path, rule())
        (tmp_path / "rules.toml").chmod(0o646)
        with pytest.raises(PolicyError, match=r"rules.toml: others may write to it"):
            read_policies(tmp_path)
        (tmp_path / "rules.toml").chmod(0o644)
        tmp_path.chmod(0o777)
        with pytest.raises(PolicyError, match="others may write to it"):
            read_policies(tmp_path)

    @pytest.mark.parametrize("name", ["rules.toml", "."])
    def test_owned_by_somebody_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        policies(tmp_path, rule())
        if os.geteuid() == 0:
            os.chown(tmp_path / name, 12_345, -1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 12_345)
        with pytest.raises(PolicyError, match="it belongs to uid"):
            read_policies(tmp_path)

    def test_not_regular(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo.toml")
        with pytest.raises(PolicyError, match="not a regular file"):
            read_policies(tmp_path)

    def test_not_utf8_and_too_large(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_bytes(b"# ok\n# \xff\n")
        with pytest.raises(PolicyError, match=r"a.toml:2:3: not UTF-8"):
            read_policies(tmp_path)
        (tmp_path / "a.toml").write_bytes(b"#" * (4 << 20) + b"#")
        with pytest.raises(PolicyError, match="larger than"):
            read_policies(tmp_path)

    def test_names_are_unique_in_the_directory(self, tmp_path: Path) -> None:
        (tmp_path / "a.toml").write_text(rule())
        with pytest.raises(
            PolicyError, match=r"b.toml:1:1: a second rule is called `r`\nhelp: the first is at a.toml:1:1"
        ):
            policies(tmp_path, rule(), "b.toml")


@contextmanager
def unprivileged() -> Iterator[None]:
    """As `nobody`, if we are root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


class TestSubject:
    def test_subject_of(self) -> None:
        subject = subject_of("root")
        assert (subject.user, subject.uid) == ("root", 0)
        assert "root" in subject.groups

    @pytest.mark.parametrize("user", ["no-such-user", "", "a\0b"])
    def test_unknown(self, user: str) -> None:
        with pytest.raises(ExpressionError) as raised:
            subject_of(user)
        assert raised.value.message == f"unknown user `{user}`"
        assert raised.value.help

    def test_current(self) -> None:
        assert current_subject().uid == os.geteuid()

    def test_uid_without_an_entry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)
        subject = current_subject()
        assert (subject.user, subject.uid) == ("4000000000", 4_000_000_000)


LAB_WEB = "ip and src net 10.20.0.0/16 and dst net 10.20.0.0/16 and tcp dst port 443 and tcp src portrange 1024-65535"
OTHER_WEB = '(bpf,"ip and not net 10.77.0.0/16 and tcp dst port 443 and tcp src portrange 1024-65535")'


class TestShipped:
    """The example policies say what their comments say."""

    @pytest.mark.parametrize(
        ("groups", "text", "rule_name"),
        [
            ({"operators"}, "(device,any@tc-egress) -> (grab)", "operators"),
            (
                {"students"},
                f'(device,veth0) -> (sampler,10) -> (bpf,"{LAB_WEB}") -> (snap) -> (grab,snaplen=96)',
                "students",
            ),
            ({"students"}, f'(device,veth0) -> (sampler,1) -> (bpf,"{LAB_WEB}") -> (snap) -> (grab,snaplen=96)', ""),
            ({"students"}, f'(device,veth0) -> (sampler,10) -> (bpf,"{LAB_WEB}") -> (snap) -> (grab)', ""),
            ({"students"}, "(device,veth0) -> (bytecount)", "students"),
            ({"students"}, "(device,veth0@tc-ingress) -> (bytecount)", ""),
            ({"analysts"}, "(device,mirror0) -> (packetcount) -> (grab)", "analysts-mirror"),
            ({"analysts"}, "(device,mirror0) -> (grab)", ""),
            (
                {"analysts"},
                f"(device,eth0) -> {OTHER_WEB} -> (limit,1000/s) -> (anonymise) -> (grab,snaplen=256)",
                "analysts-pseudonyms",
            ),
            ({"analysts"}, f"(device,eth0) -> {OTHER_WEB} -> (anonymise) -> (grab,snaplen=256)", ""),
            ({"analysts"}, "(device,eth0) | (device,mirror0) -> (packetcount) -> (grab,snaplen=96)", ""),
            ({"privacy"}, "(device,eth0) -> (bpf,udp) -> (bytecount) -> (packetcount)", "privacy-office"),
            ({"privacy"}, "(device,eth0) -> (bpf,udp) -> (bytecount)", ""),
            ({"privacy"}, "(device,eth0) -> (bpf,udp)", ""),
            ({"users"}, "(device,eth0) -> (bytecount)", ""),
        ],
    )
    def test_shipped(self, groups: set[str], text: str, rule_name: str) -> None:
        # Read through the schema, not the directory: whoever owns the checkout.
        rules = [one for file in sorted(SHIPPED.glob("*.toml")) for one in parse_policy(file.read_text(), file.name)]
        decision = decide(definition(text), Policies(tuple(rules)), Subject("x", frozenset(groups), 1000))
        assert (decision.accepted, decision.rule) == (bool(rule_name), rule_name)


ACCEPTED = """\
PROVED   r: means: every tap is one of `eth*`, `veth*@*` (0.0 ms)
         `eth0@xdp`
PROVED   r: means: every node is a `device` or one of `*` (0.0 ms)
         `bpf`, `device`, `grab`, `sampler`
PROVED   r: shape: `grab` comes after `sampler` on every path (0.0 ms)
         `sampler` is in front of grab1
PROVED   r: means: at most 2 flows at once (0.0 ms)
         1 flow
PROVED   r: means: at most 96 bytes of a packet (0.0 ms)
         96 bytes
PROVED   r: content: `grab1` shows payload of nothing but what is allowed, which is every packet (0.0 ms)
         everything may be shown so
PROVED   r: inference: what nodes decide does not tell the payload of packets where the rules hide it (0.0 ms)
         of every packet, two solvers agree
ACCEPTED by rule r (0.0 ms)"""

REJECTED = """\
PROVED   r: means: every tap is one of `eth*`, `veth*@*` (0.0 ms)
         `eth0@xdp`
PROVED   r: means: every node is a `device` or one of `*` (0.0 ms)
         `bpf`, `device`, `grab`, `sampler`
REFUTED  r: shape: `grab` comes after `sampler` on every path (0.0 ms)
         device1 -> bpf1 -> grab1: no `sampler` on this path
PROVED   r: means: at most 2 flows at once (0.0 ms)
         1 flow
REFUTED  r: means: at most 96 bytes of a packet (0.0 ms)
         grab1: takes whole packets
REJECTED: 2 of 5 obligations do not hold (0.0 ms)
    rule r: put a `sampler` in front of each `grab`, on every path
    rule r: give grab1 `snaplen=96` or less"""


class TestShown:
    """The text and the JSON of a decision are interfaces."""

    KEYS = 'order = [{ function = "grab", after = "sampler" }]\nlimits = { flows = 2, snaplen = 96 }'

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("(device,eth0) -> (sampler,2) -> (bpf,udp) -> (grab,snaplen=96)", ACCEPTED),
            ("(device,eth0) -> (sampler,2) | (bpf,udp) -> (grab)", REJECTED),
        ],
    )
    def test_text(self, tmp_path: Path, text: str, expected: str) -> None:
        decision = decided(tmp_path, self.KEYS, text, taps='["eth*", "veth*@*"]')
        assert re.sub(r"\d+\.\d ms", "0.0 ms", decision.text()) == expected

    def test_json(self, tmp_path: Path) -> None:
        decision = decided(tmp_path, self.KEYS, "(device,eth0) -> (grab,snaplen=96)")
        data = json.loads(json.dumps(decision.as_json()))
        assert set(data) == {"decision", "reasons", "digest", "obligations", "rule", "expires_s", "ms"}
        assert (data["decision"], data["digest"]) == ("rejected", decision.digest)
        assert data["reasons"] == [
            "rule r wants: `grab` comes after `sampler` on every path; device1 -> grab1: no `sampler` on this path"
        ]
        shape = data["obligations"][2]
        assert isinstance(shape.pop("ms"), float)
        assert shape == {
            "rule": "r",
            "kind": "shape",
            "path": "device1 -> grab1",
            "result": "refuted",
            "claim": "`grab` comes after `sampler` on every path",
            "evidence": "no `sampler` on this path",
            "help": "put a `sampler` in front of each `grab`, on every path",
            "packets": [],
            "described": [],
        }


def test_a_policy_that_its_group_may_write_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: gives a file to another group")
    shutil.copyfile(SHIPPED / "permissive.toml", tmp_path / "permissive.toml")
    os.chown(tmp_path / "permissive.toml", 0, 1000)
    (tmp_path / "permissive.toml").chmod(0o664)
    with pytest.raises(PolicyError, match="its group may write to it"):
        read_policies(tmp_path)


@pytest.mark.parametrize("of_directory", [False, True])
def test_a_policy_that_a_list_lets_others_write_is_refused(tmp_path: Path, of_directory: bool) -> None:
    """Of a file of root's group, whose members may write."""
    shutil.copyfile(SHIPPED / "permissive.toml", tmp_path / "permissive.toml")
    path = tmp_path if of_directory else tmp_path / "permissive.toml"
    nobody, everybody = 65_534, 0xFFFF_FFFF
    entries = ((1, 7, everybody), (2, 7, nobody), (4, 5, everybody), (16, 7, everybody), (32, 5, everybody))
    try:
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)  # acl(5)
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("needs a file system with access control lists")
    with pytest.raises(PolicyError, match="may write to it|lets others write to it"):
        read_policies(tmp_path)
