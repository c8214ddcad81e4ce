"""Narrowing: what a policy refuses is accepted with what is put in, shows no more than before, and never what it may not.

`FFPF_NARROW_PAIRS=500` tries more random flows and policies.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import dpkt.pcapng
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ffpf_bpf import bpf, callback, device
from ffpf_bpf.authorise import Decision, Narrowing, Policies, Subject, decide, inserted, narrow
from ffpf_bpf.authorise.narrow import narrow as narrowing
from ffpf_bpf.authorise.proof.witness import tags_of
from ffpf_bpf.authorise.schema import parse_policy
from ffpf_bpf.cli import app, deciding
from ffpf_bpf.compiler import compile_predicates
from ffpf_bpf.flow import Flow, questions
from ffpf_bpf.flow.sandbox import Sandbox
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression, nodes
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.predicate import run
from tests import wire
from tests.corpus.packets import ether, ipv4, tcp, udp
from tests.flows import Walk, coins
from tests.fuzz_proofs import Case, Report, _rows, _shown, claims, made
from tests.network import Network
from tests.nodes import everywhere, nowhere
from tests.ordinary import POLICY, PROVED, REFUTED, Proved, Refuted
from tests.test_cli import FFPF, ffpf
from tests.test_sandbox import readable

pytestmark = pytest.mark.slow

PAIRS = int(os.environ.get("FFPF_NARROW_PAIRS", "10"))
PATIENCE_S = 120.0  # of tests: other programs may run beside them
ALICE = Subject("alice", frozenset({"users"}), 1000)

# What cannot be narrowed, and why.
CANNOT = {
    "no VLAN": "no rule allows it",  # untagged packets, of which none may be shown
    "counts only": "no rule allows it",  # of a packet nothing may be shown, be it ever so little
    "scanning shows payload": "no rule allows it",
    # What the flow's own filter tells is told of packets that it may take.
    "payload bit by bit": "tells two packets apart",
    "GET requests, headers only": "tells two packets apart",
    "one host under pseudonyms": "tells two packets apart",
    "a byte far in": "tells two packets apart",
    "DNS answers with errors": "tells two packets apart",
}
GUARDS = {
    "a port is either side": ['(bpf as guard,"not tcp port 25")'],
    "web, never a net": ['(bpf as guard,"not net 10.0.0.0/8")'],
    "a net is ARP too": ["(bpf as guard,ip)"],
    "any VLAN": ['(bpf as guard,"vlan 7")'],
    "a sampler is no filter": [
        '(bpf as guard,"tcp port 80 and not vlan")',
        '(bpf as guard2,"vlan and tcp port 80 and not vlan")',
        '(bpf as guard3,"vlan and vlan and tcp port 80")',
    ],
    "whole packets": ["(snap as guard_snap)"],
    "headers have addresses": ["(anonymise as guard_anonymise)"],
}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "PROOF_S", PATIENCE_S)


def define(expression: Expression) -> Definition:
    graph = build(expression)
    return Definition(graph, MappingProxyType(compile_predicates(graph)), 1 << 16)


def ruled(keys: str) -> Policies:
    return Policies(parse_policy(POLICY + keys + "\n", "rules.toml"))


def narrowed(flow: str, policies: Policies, limit_s: float = PATIENCE_S) -> Narrowing:
    return narrowing(define(parse(f"(device,eth0) -> {flow}")), policies, ALICE, define, limit_s=limit_s)


def put_in(flow: str, found: Narrowing) -> list[str]:
    assert found.text, found.why
    before = build(parse(f"(device,eth0) -> {flow}")).expression
    return list(inserted(before, parse(found.text)))


def decided(flow_text: str, policies: Policies) -> Decision:
    return decide(define(parse(flow_text)), policies, ALICE, limit_s=PATIENCE_S)


class TestOrdinary:
    @pytest.mark.parametrize("case", REFUTED, ids=lambda case: case.name)
    def test_what_is_refuted_is_accepted_when_it_is_narrowed(self, case: Refuted) -> None:
        found = narrowed(case.flow, ruled(case.policy))
        if case.name in CANNOT:
            assert not found.text
            assert CANNOT[case.name] in found.why
            return
        decision = decided(found.text, ruled(case.policy))
        assert decision.accepted, f"{found}\n{decision.text()}"
        if case.name in GUARDS:
            assert put_in(case.flow, found) == GUARDS[case.name]

    @pytest.mark.parametrize("case", PROVED, ids=lambda case: case.name)
    def test_what_is_proved_stays_as_it_is(self, case: Proved) -> None:
        assert narrowed(case.flow, ruled(case.policy)) == Narrowing()

    @pytest.mark.parametrize(
        "case", [each for each in REFUTED if each.name not in CANNOT][::3], ids=lambda case: case.name
    )
    def test_what_is_narrowed_stays_as_it_is(self, case: Refuted) -> None:
        once = narrowed(case.flow, ruled(case.policy))
        again = narrowing(define(parse(once.text)), ruled(case.policy), ALICE, define, limit_s=PATIENCE_S)
        assert again == Narrowing()


@settings(max_examples=PAIRS, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 32))
def test_random_flows_show_less_and_only_what_they_may(seed: int) -> None:
    case = made(seed)
    if case is None:
        return
    policies = Policies((case.pair.rule,))
    found = narrowing(case.definition, policies, ALICE, define, limit_s=10)
    if not found.text:
        return
    after = define(parse(found.text))
    packets = _rows(case, random.Random(seed), 1_500)
    before_walk = Walk(case.graph, case.programs, packets)
    after_walk = Walk(after.graph, after.predicates, packets)
    for fallen in coins(case.graph):
        before, _ = before_walk.values(fallen)
        by_id = {case.graph.ids[step]: way for step, way in fallen.items()}
        same = {step: by_id[name] for step, name in enumerate(after.graph.ids) if name in by_id}
        values, _ = after_walk.values(same)
        for sink in after.graph.sinks:
            name = after.graph.ids[sink]
            was = before[case.graph.ids.index(name)]
            assert not (values[sink] & ~was).any(), f"seed {seed}: {name} got more\n{case.pair.text}\n{found.text}"
    narrow = Case(case.pair, after.graph, after.predicates)
    problems = list(_shown(narrow, claims(narrow), random.Random(seed), 1_500, Report()))
    assert not problems, f"seed {seed}: {problems}\n{case.pair.text}\n{found.text}"


class TestBounds:
    """Shape and means: what is put in, and what cannot be."""

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ('order = [{ function = "grab", after = "sampler" }]', ["(sampler as guard_sampler,1)"]),
            ("limits = { sample_at_least = 10 }", ["(sampler as guard_sampler,10)"]),
            (
                'order = [{ function = "grab", after = "sampler" }]\nlimits = { sample_at_least = 10 }',
                ["(sampler as guard_sampler,10)"],
            ),
            ('order = [{ function = "grab", after = { sample_at_least = 7 } }]', ["(sampler as guard_sampler,7)"]),
            ("limits = { packets_per_second = 500 }", ["(limit as guard_limit,500/s)"]),
            ("limits = { snaplen = 96 }", ["(grab,snaplen=96)"]),
            ('order = [{ function = "grab", after = "packetcount" }]', ["(packetcount as guard_packetcount)"]),
            ('order = [{ function = "grab", after = { tcp_port = 80 } }]', ['(bpf as guard,"tcp port 80")']),
        ],
    )
    def test_put_in(self, keys: str, expected: list[str]) -> None:
        policies = ruled(f"allow = [{{}}]\n{keys}")
        flow = '(bpf,"tcp") -> (grab)'
        found = narrowed(flow, policies)
        assert put_in(flow, found) == expected
        assert decided(found.text, policies).accepted

    def test_each_sink_gets_its_share(self) -> None:
        found = narrowed(
            "((bpf,tcp) -> (grab)) | ((bpf,udp) -> (grab))",
            ruled("allow = [{}]\nlimits = { packets_per_second = 500 }"),
        )
        assert put_in("((bpf,tcp) -> (grab)) | ((bpf,udp) -> (grab))", found) == [
            "(limit as guard_limit,250/s)",
            "(limit as guard_limit2,250/s)",
        ]

    def test_behind_what_asks_for_it(self) -> None:
        flow = "(bytecount)"
        found = narrowed(flow, ruled('allow = [{}]\norder = [{ function = "bytecount", before = "packetcount" }]'))
        assert found.text == "(device,eth0) -> (bytecount) -> (packetcount as guard_packetcount)"

    @pytest.mark.parametrize(
        ("keys", "why"),
        [
            ('order = [{ function = "grab", after = "scan" }]', "a `scan` needs more to be said"),
            ('order = [{ function = "bpf", before = "grab" }]', ""),
            ("limits = { nodes = 2 }", "3 nodes"),
            ('limits = { buffer = "4KiB" }', "bytes of buffer"),
        ],
    )
    def test_cannot(self, keys: str, why: str) -> None:
        found = narrowed('(bpf,"tcp") -> (grab)', ruled(f"allow = [{{}}]\n{keys}"))
        assert not found.text
        assert why in found.why

    @pytest.mark.parametrize(
        ("rule", "why"),
        [
            ('taps = ["lo"]\nclasses = ["*"]\nallow = [{}]', "every tap is one of `lo`"),
            ('taps = ["*"]\nclasses = ["bpf"]\nallow = [{}]', "`grab` is not allowed"),
            ('taps = ["*"]\nclasses = ["grab"]\nallow = [{ tcp_port = 80 }]', "allows no `bpf`"),
        ],
    )
    def test_taps_and_classes_cannot(self, rule: str, why: str) -> None:
        policies = Policies(parse_policy(f'[[rule]]\nname = "r"\nsubjects = ["*"]\n{rule}\n', "rules.toml"))
        found = narrowed("(grab)", policies)
        assert not found.text
        assert why in found.why

    def test_no_rule_names_the_user(self) -> None:
        assert narrowed("(grab)", Policies()).why == "no rule names the user"

    def test_tagged_packets_are_left_out_where_nodes_are_few(self) -> None:
        found = narrowed("(grab)", ruled("allow = [{ tcp_port = 80 }]\nlimits = { nodes = 3 }"))
        assert found.text == '(device,eth0) -> (bpf as guard,"tcp port 80 and not vlan") -> (grab)'
        assert decided(found.text, ruled("allow = [{ tcp_port = 80 }]\nlimits = { nodes = 3 }")).accepted

    def test_no_node_is_left(self) -> None:
        found = narrowed("(grab)", ruled("allow = [{ tcp_port = 80 }]\nlimits = { nodes = 2 }"))
        assert found.why == "a guard would make 3 nodes, of 2 that are allowed"

    def test_nothing_would_be_left(self) -> None:
        found = narrowed('(bpf,"udp") -> (grab)', ruled("allow = [{ tcp_port = 80 }]"))
        assert not found.text
        assert "nothing would be left" in found.why

    @pytest.mark.parametrize("keys", ["", ", ignore = []", ', ignore = ["vxlan"]'])
    def test_a_guard_lets_no_tunnel_pass_for_a_service(self, keys: str) -> None:
        """Whoever says `udp port 4789` means the tunnel."""
        mail = ruled(f"allow = [{{}}]\nnever = [{{ tcp_port = 25{keys} }}]")
        found = narrowed('(bpf,"udp port 4789 or udp port 53") -> (grab)', mail)
        assert decided(found.text, mail).accepted
        (guard, *_) = [each for each in define(parse(found.text)).predicates.items() if "not (udp port" in each[0]]
        for source, target in ((53, 4789), (4789, 443), (54, 4789), (53, 51820)):
            is_ignored = "vxlan" in keys and 4789 in (source, target) and not {53, 443} & {source, target}
            frame = ether(0x0800, ipv4(17, udp(source, target, bytes(40))))
            assert bool(run(guard[1], frame)) is is_ignored, (source, target)
        assert run(guard[1], ether(0x0800, ipv4(17, udp(40_000, 53, bytes(40)))))

    def test_of_a_tunnel_nothing_would_be_left(self) -> None:
        found = narrowed('(bpf,"udp port 4789") -> (grab)', ruled("allow = [{}]\nnever = [{ tcp_port = 25 }]"))
        assert "nothing would be left" in found.why

    def test_policies_that_are_too_large(self) -> None:
        nets = ", ".join(f'"10.{number // 256}.{number % 256}.0/30"' for number in range(2_000))
        found = narrowed("(bpf,ip) -> (grab)", ruled(f"allow = [{{ net = [{nets}] }}]"))
        assert found.why == "what the rules say of packets is too long for a filter"

    def test_no_time(self) -> None:
        assert (
            "no time" in narrowed('(bpf,"not tcp port 25") -> (grab)', ruled("allow = [{ tcp_port = 80 }]"), 0.001).why
        )

    def test_each_of_several_devices(self) -> None:
        policies = ruled("allow = [{ tcp_port = 80 }]")
        joined = "(device,eth0) | (device,eth1) -> (bpf,tcp) -> (grab)"
        apart = "((device,eth0) -> (bpf,tcp) -> (grab)) | ((device,eth1) -> (bpf,tcp) -> (packetcount) -> (grab))"
        for flow, guards in ((joined, 1), (apart, 2)):
            found = narrowing(define(parse(flow)), policies, ALICE, define, limit_s=PATIENCE_S)
            assert sum(node.name.startswith("guard") for node in nodes(parse(found.text))) == guards
            assert decided(found.text, policies).accepted

    def test_names_of_the_flow_are_kept(self) -> None:
        found = narrowed('(bpf as guard,"tcp") -> (grab as guard2)', ruled("allow = [{ tcp_port = 80 }]"))
        assert found.text == (
            '(device,eth0) -> (bpf as guard3,"tcp port 80") -> (bpf as guard,tcp) -> (grab as guard2)'
        )

    def test_allows_add_up(self) -> None:
        rules = "".join(
            f'[[rule]]\nname = "r{number}"\nsubjects = ["*"]\ntaps = ["*"]\nclasses = ["*"]\nallow = {{ {key} }}\n'
            for number, key in enumerate(("tcp_port = 80", "udp_port = 53"))
        )
        policies = Policies(parse_policy(rules, "rules.toml"))
        found = narrowed('(bpf,"ip and not vlan") -> (grab)', policies)
        assert put_in('(bpf,"ip and not vlan") -> (grab)', found) == ['(bpf as guard,"tcp port 80 or udp port 53")']


def test_tags() -> None:
    untagged, tag = bytes(12) + b"\x08\x00", b"\x81\x00\x00\x07"
    assert [tags_of(untagged[:12] + tag * number + untagged[12:]) for number in range(4)] == [0, 1, 2, 2]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "policies"
    path.mkdir(mode=0o755)
    (path / "web.toml").write_text(
        '[[rule]]\nname = "web"\nsubjects = ["*"]\ntaps = ["eth*", "tap*"]\nclasses = ["*"]\nallow = { tcp_port = 80 }\n'
    )
    return path


class TestFlow:
    def test_it_says_what_was_put_in(self, directory: Path) -> None:
        flow = Flow.create(policies=directory, subject=ALICE)
        flow.populate("(device,eth0) -> (bpf,tcp) -> (grab)", narrow=True)
        assert flow.narrowed == '(bpf as guard,"tcp port 80")'
        assert flow.not_narrowed == ""
        assert flow.definition.text == '(device,eth0) -> (bpf as guard,"tcp port 80") -> (bpf,tcp) -> (grab)'
        assert flow.authorise().accepted

    def test_a_proved_flow_stays_as_it_is(self, directory: Path) -> None:
        flow = Flow.create(policies=directory, subject=ALICE)
        flow.populate('(device,eth0) -> (bpf,"tcp port 80") -> (grab)', narrow=True)
        assert (flow.narrowed, flow.not_narrowed) == ("", "")
        assert flow.definition.text == '(device,eth0) -> (bpf,"tcp port 80") -> (grab)'

    def test_it_says_why_not(self, directory: Path) -> None:
        flow = Flow.create(policies=directory, subject=ALICE)
        flow.populate("(device,lo) -> (grab)", narrow=True)
        assert flow.narrowed == ""
        assert "every tap is one of" in flow.not_narrowed
        assert not flow.authorise().accepted

    def test_functions_stay(self, directory: Path) -> None:
        def save(batch: object) -> None: ...

        flow = Flow.create(policies=directory, subject=ALICE)
        flow.populate(device("eth0") >> bpf("tcp") >> callback(save), narrow=True)
        assert flow.narrowed
        flow._callbacks.check()
        assert [sink.function for sink in flow._callbacks._sinks] == [save]

    def test_without_policies_there_is_nothing_to_do(self) -> None:
        flow = Flow.create(subject=ALICE).populate("(device,eth0)", narrow=True)
        assert (flow.narrowed, flow.not_narrowed) == ("", "")

    def test_secrets_are_not_shown(self, directory: Path) -> None:
        flow = Flow.create(policies=directory, subject=ALICE)
        flow.populate(f'(device,eth0) -> (bpf,tcp) -> (anonymise,"key={"ab" * 16}") -> (grab)', narrow=True)
        assert flow.narrowed == '(bpf as guard,"tcp port 80")'
        assert "abab" not in flow.definition.text


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    made = Sandbox("tests.misbehaviour")
    monkeypatch.setattr(questions, "SANDBOX", made)
    yield made
    made.close()


class TestSandbox:
    @pytest.mark.parametrize(
        ("user", "why"),
        [
            ("sleep", "undecided after 0.6 s"),
            ("segfault", "signal"),
            ("exit:3", "exit"),
            ("raise", "ValueError"),
        ],
    )
    def test_it_does_not_answer(self, bad: Sandbox, user: str, why: str) -> None:
        definition = define(parse("(device,eth0) -> (bpf,tcp) -> (grab)"))
        found = questions.narrow(
            definition, ruled("allow = [{ tcp_port = 80 }]"), Subject(user, frozenset(), 1000), limit_s=0.6
        )
        assert not found.text
        assert why in found.why.replace("SIG", "signal "), found.why
        assert "\x1b" not in found.why

    @pytest.mark.parametrize(
        "answer", [{}, [], {"narrowed": 1}, {"narrowed": ["a"]}, {"narrowed": ["a", "b"]}, {"narrowed": [1, ""]}]
    )
    def test_malformed_answers(self, bad: Sandbox, tmp_path: Path, answer: object) -> None:
        file = readable(tmp_path / "answer", json.dumps(answer).encode())
        definition = define(parse("(device,eth0) -> (bpf,tcp) -> (grab)"))
        user = Subject(f"answer:{file}", frozenset(), 1000)
        found = questions.narrow(definition, ruled("allow = [{ tcp_port = 80 }]"), user, limit_s=5)
        assert found == Narrowing(why="a malformed answer of the decider")

    def test_another_flow_is_not_taken_for_it(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for other in (
            '(device,eth1) -> (bpf,"tcp port 80") -> (grab)',
            '(device,eth0) -> (bpf,"tcp port 80") -> (packetcount)',
        ):
            monkeypatch.setattr(questions, "narrow", lambda *_, other=other, **__: Narrowing(other))
            flow = Flow.create(policies=directory, subject=ALICE)
            flow.populate("(device,eth0) -> (bpf,tcp) -> (grab)", narrow=True)
            assert flow.narrowed == ""
            assert flow.not_narrowed == "the decider made another flow of it"
            assert flow.definition.text == "(device,eth0) -> (bpf,tcp) -> (grab)"


class TestCommands:
    def test_check(self, directory: Path) -> None:
        words = ("check", "(device,eth0) -> (bpf,tcp) -> (grab)", "--policies", str(directory))
        lines = ffpf(*words, "--narrow").stdout.splitlines()
        assert lines[0] == '(device,eth0) -> (bpf as guard,"tcp port 80") -> (bpf,tcp) -> (grab)'
        assert lines[1] == 'narrowed by (bpf as guard,"tcp port 80")'
        assert re.fullmatch(r"ACCEPTED by rule web \(\d+\.\d ms\)", lines[-1])
        document = json.loads(ffpf(*words, "--narrow", "--json").stdout)
        assert (document["decision"], document["narrowed"]) == ("accepted", '(bpf as guard,"tcp port 80")')
        assert json.loads(ffpf(*words, "--json", code=3).stdout)["narrowed"] == ""

    def test_check_helps(self, directory: Path) -> None:
        words = ("check", "(device,eth0) -> (bpf,tcp) -> (grab)", "--policies", str(directory))
        assert ffpf(*words, code=3).stdout.splitlines()[-1] == 'help: `--narrow` puts in (bpf as guard,"tcp port 80")'

    def test_check_says_so_if_there_was_no_time_to_find_help(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["check", "(device,eth0) -> (bpf,tcp) -> (grab)", "--policies", str(directory)]
        said = {0.0: "looks for what to put in for longer", 60.0: 'puts in (bpf as guard,"tcp port 80")'}
        for help_s, last in said.items():
            monkeypatch.setattr(deciding, "HELP_S", help_s)
            done = CliRunner().invoke(app, words, catch_exceptions=False)
            assert done.stdout.splitlines()[-1] == f"help: `--narrow` {last}"

    def test_check_says_why_not(self, directory: Path) -> None:
        done = ffpf("check", "(device,lo)", "--policies", str(directory), "--narrow", code=3)
        assert done.stdout.splitlines()[-1].startswith("cannot be narrowed: rule web wants: every tap is one of `eth*`")


@pytest.mark.root
def test_only_what_is_allowed_is_delivered(network: Network, directory: Path, tmp_path: Path) -> None:
    """The policy's answer by plain Python, of packets of every kind."""
    (rule,) = parse_policy((directory / "web.toml").read_text(), "web.toml")
    (directory / "never.toml").write_text(
        '[[rule]]\nname = "mail"\nsubjects = ["*"]\ntaps = ["*"]\nnever = { tcp_port = 25 }\n'
    )
    (forbidding,) = parse_policy((directory / "never.toml").read_text(), "never.toml")
    frames = list(dict.fromkeys(_frames()))
    written = tmp_path / "x.pcapng"
    command = network.command(
        FFPF, "grab", "-i", "tap0", "--narrow", "--policies", str(directory),
        "-w", str(written), "--duration", "4", "--json", "tcp",
    )  # fmt: skip
    grabbing = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert grabbing.stderr is not None and grabbing.stdout is not None
    said = grabbing.stderr.readline()
    assert said.startswith('ffpf: flow1: narrowed by (bpf as guard,"tcp port 80'), said
    time.sleep(1.5)
    network.send(frames)
    out, _ = grabbing.communicate(timeout=60)
    assert grabbing.returncode == 0
    assert json.loads(out)["flows"][0]["narrowed"].startswith("(bpf as guard,")
    with written.open("rb") as file:
        got = [bytes(data) for _, data in dpkt.pcapng.Reader(file)]
    may = [
        frame
        for frame in frames
        if wire.must(rule.allow[0].packets, frame) and not wire.may(forbidding.never[0], frame)
    ]
    assert set(got) <= set(may)
    for ports in ((80, 5000), (5000, 80)):
        assert ether(0x0800, ipv4(6, tcp(*ports))) in got


def _frames() -> Iterator[bytes]:
    for ports in ((80, 5000), (5000, 80), (80, 25), (25, 80), (25, 5000), (443, 5000)):
        yield from everywhere(6, tcp(*ports)).values()
        yield from nowhere(6, tcp(*ports)).values()
        yield from everywhere(17, tcp(*ports)).values()
