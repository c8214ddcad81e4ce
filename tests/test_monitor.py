"""Monitor ports: frames end behind the flows, if all flows there say so and a policy lets them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ffpf_bpf import compiler
from ffpf_bpf.authorise import Policies, Rule, Subject
from ffpf_bpf.authorise.difference import compare
from ffpf_bpf.authorise.judgement import decide
from ffpf_bpf.authorise.review import carries_as_much
from ffpf_bpf.authorise.schema import parse_policy
from ffpf_bpf.authorise.sentences import explained
from ffpf_bpf.compiler.audit import audit
from ffpf_bpf.compiler.grant import deliver_grant
from ffpf_bpf.compiler.hook import TC, XDP, monitoring
from ffpf_bpf.errors import AuditError, ExpressionError, FfpfError, KernelError
from ffpf_bpf.flow import Flow
from ffpf_bpf.flow.grabber import planned_parts
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.parser import parse
from tests.network import Network, send, two_namespaces, udp
from tests.policies import rule

MONITOR, PLAIN = "(device,tap0,monitor) -> {}", "(device,tap0) -> {}"
GRAB, COUNT = "(grab,snaplen=96)", "(packetcount)"
ALICE = Subject("alice", frozenset(), 1000)
QUIET_S = 0.2


def definition(text: str) -> Definition:
    graph = build(parse(text))
    return Definition(graph, compiler.compile_predicates(graph), 1 << 20)


# What is compiled.


def test_a_tap_is_a_monitor_port_or_it_is_not() -> None:
    with pytest.raises(ExpressionError, match="`tap0` is a monitor port, and is not"):
        build(parse("(device,tap0,monitor) | (device,tap0) -> (grab)"))
    graph = build(parse("(device,tap0,monitor) | (device,tap1) -> (grab)"))
    assert [graph.ends_frames(device.tap) for device in graph.taps] == [True, False]


def test_only_programs_of_flows_that_say_so_end_frames() -> None:
    (tap, one, cpus, _), (_, other, *_) = (planned_parts(definition(text.format(GRAB)))[0] for text in (MONITOR, PLAIN))
    dropping = compiler.compile_segment((one,), tap, cpus)
    passing = compiler.compile_segment((other,), tap, cpus)
    with pytest.raises(FfpfError, match="`tap0` is a monitor port of some of these flows only"):
        compiler.compile_segment((one, other), tap, cpus)
    program = dropping[compiler.SEGMENT_PROGRAM].programs[compiler.SEGMENT_PROGRAM]
    with pytest.raises(AuditError, match=r"ends with 1; granted: XDP_PASS \(2\)"):
        audit(program, deliver_grant((one,)))
    program = passing[compiler.SEGMENT_PROGRAM].programs[compiler.SEGMENT_PROGRAM]
    with pytest.raises(AuditError, match=r"ends with 2; granted: XDP_DROP \(1\)"):
        audit(program, deliver_grant((one,), monitoring(XDP)))
    with pytest.raises(FfpfError, match="a monitor port is at XDP"):
        monitoring(TC)


# What policies say.


def only(text: str) -> Rule:
    (one,) = parse_policy(text, "x.toml")
    return one


def rules() -> tuple[Rule, Rule]:
    """Without, and with."""
    text = rule(taps='["tap0"]', subjects='["user:alice"]')
    return only(text), only(f"{text}\nmonitor = true")


def test_a_policy_must_allow_it() -> None:
    without, with_it = rules()
    for text, one, accepted in (
        (PLAIN, without, True), (PLAIN, with_it, True), (MONITOR, without, False), (MONITOR, with_it, True)
    ):  # fmt: skip
        decision = decide(definition(text.format(COUNT)), Policies((one,)), ALICE)
        assert decision.accepted is accepted
        said = [each.evidence for each in decision.obligations if "may not be a monitor port" in each.evidence]
        assert bool(said) is not accepted


def test_it_is_explained_and_compared() -> None:
    without, with_it = rules()
    sentence = "Flows may make its taps at XDP monitor ports, whose frames end there and do not reach the host."
    assert sentence in explained(with_it)
    assert sentence not in explained(without)
    found = compare(Policies((without,)), Policies((with_it,)))
    assert [text for _, text in found.rules] == ["`monitor`: true, was false"]
    assert carries_as_much(with_it, without) and not carries_as_much(without, with_it)


# In the kernel.


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with two_namespaces("ffmon") as made:
        yield made


class Stack:
    """What of the frames that are sent to the tap reaches the network stack."""

    def __init__(self, network: Network) -> None:
        self.network = network
        with network.enter():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            self.socket.bind((network.tap, 0x0800))
        self.socket.settimeout(QUIET_S)

    def gets(self, port: int) -> bool:
        with self.network.sender() as raw:
            send(raw, [udp(port)])
        try:
            while True:
                if int.from_bytes(self.socket.recv(2048)[36:38]) == port:
                    return True
        except TimeoutError:
            return False


@pytest.fixture
def stack(network: Network) -> Iterator[Stack]:
    made = Stack(network)
    with made.socket:
        yield made


def entered(text: str, into: ExitStack) -> Flow:
    return into.enter_context(Flow.create()).populate(text).instantiate()


@pytest.mark.root
def test_frames_end_behind_active_flows(network: Network, stack: Stack) -> None:
    with network.enter(), ExitStack() as every:
        assert stack.gets(1)
        flow = entered(MONITOR.format('(bpf,"udp dst port 2") -> (grab,snaplen=96)'), every)
        assert stack.gets(1), "a flow that is not active changes nothing"
        flow.activate()
        other = entered(MONITOR.format(COUNT), every)
        assert not stack.gets(2) and not stack.gets(3)
        assert flow.taps[0]["monitor"] == "yes"
        flow.pause(wait=True)
        assert stack.gets(2)
        other.activate()
        assert not stack.gets(2)
        assert flow.stats().ledger.delivered == 1 and flow.stats().ledger.filtered == 1
        assert other.stats().ledger.counted == 1
        other.close()
        assert stack.gets(2)
        flow.activate()
        assert not stack.gets(2)
        flow.close()
        assert stack.gets(2)


@pytest.mark.root
@pytest.mark.parametrize(
    ("there", "refused"),
    [
        (MONITOR, PLAIN),
        (PLAIN, MONITOR),
        ("(device,tap0@tc-ingress) -> {}", MONITOR),
        (MONITOR, "(device,tap0@tc-ingress) -> {}"),
        ("(device,tap0@tc-egress) -> {}", "(device,tap0,monitor) | (device,tap0@tc-ingress) -> {}"),
    ],
)
def test_no_flow_makes_packets_of_another_vanish(network: Network, stack: Stack, there: str, refused: str) -> None:
    with network.enter(), ExitStack() as every:
        entered(there.format(COUNT), every).activate()
        before = stack.gets(1)
        with pytest.raises(KernelError, match="monitor port") as error, ExitStack() as second:
            entered(refused.format(COUNT), second)
        assert error.value.help
        assert stack.gets(1) is before


@pytest.mark.root
def test_what_is_sent_is_not_touched(network: Network, stack: Stack) -> None:
    with network.enter(), ExitStack() as every:
        egress = entered("(device,tap0@tc-egress) -> (packetcount)", every).activate()
        entered(MONITOR.format(COUNT), every).activate()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((network.tap, 0))
            raw.send(udp(9))
        assert egress.stats().ledger.counted >= 1


@pytest.mark.root
def test_the_command_line_says_so(network: Network) -> None:
    ffpf = [sys.executable, "-c", "from ffpf_bpf.cli import main; main()"]
    command = network.command(*ffpf, "grab", "-i", "tap0@xdp,monitor", "--duration", "0.2")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "tap0: a monitor port: while this runs, what arrives there does not reach the host" in done.stderr
    assert "tap0 (native, monitor): (device,tap0,monitor) -> (grab)" in done.stderr
    with network.enter(), ExitStack() as every:
        entered(MONITOR.format(COUNT), every)
        seen = subprocess.run(
            network.command(*ffpf, "doctor"), capture_output=True, text=True, timeout=120, check=False
        )
    assert "a monitor port, whose frames end there" in " ".join(seen.stdout.split())


@pytest.mark.root
def test_a_policy_directory_is_asked(network: Network, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "a.toml").write_text(rule(taps='["tap0"]', subjects='["*"]'))
    with network.enter(), Flow.create(policies=tmp_path) as flow:
        flow.populate(MONITOR.format(COUNT))
        with pytest.raises(FfpfError, match="reject|not allowed|monitor"):
            flow.instantiate()
