"""The sandbox: whatever the child does, an answer comes in time, and the next question is not the worse for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ffpf_bpf import authorise, compiler
from ffpf_bpf.authorise import Decision, Kind, Obligation, Policies, Result, Subject, read_policies, schema
from ffpf_bpf.errors import ExpressionError, Rejected
from ffpf_bpf.flow import Flow, decider, questions, sandbox
from ffpf_bpf.flow.sandbox import Sandbox
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.classes.callback import Callback
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import Grab
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.printer import text as printed

WEB = '(device,eth0) -> (bpf,"tcp port 80") -> (grab,snaplen=96)'
RULE = '[[rule]]\nname = "all"\nsubjects = ["*"]\ntaps = ["*@*"]\nclasses = ["*"]\n'
RULE += "allow = [{}]\n" if "allow" in schema.TABLES["rule"].model_fields else ""
LIMIT_S = 0.6
LATEST_S = LIMIT_S + 0.5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies")
    (path / "all.toml").write_text(RULE)
    return path


@pytest.fixture(scope="module")
def policies(directory: Path) -> Policies:
    return read_policies(directory)


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[Sandbox]:
    made = Sandbox("tests.misbehaviour")
    yield made
    made.close()


@pytest.fixture
def bad(misbehaving: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(questions, "SANDBOX", misbehaving)
    return misbehaving


def definition(text: str = WEB) -> Definition:
    graph = build(parse(text))
    return Definition(graph, compiler.compile_predicates(graph), 1 << 16)


def subject(user: str) -> Subject:
    return Subject(user, frozenset({"users"}), 1000)


def decide(policies: Policies, user: str = "alice", limit_s: float = LIMIT_S, text: str = WEB) -> Decision:
    return questions.decide(definition(text), policies, subject(user), limit_s=limit_s)


def test_it_decides_as_without_it(policies: Policies) -> None:
    decision = decide(policies)
    assert decision == authorise.decide(definition(), policies, subject("alice"))
    assert decision.accepted
    refused = questions.decide(definition(), Policies(), subject("alice"))
    assert refused == authorise.decide(definition(), Policies(), subject("alice"))
    assert not refused.accepted


def test_packets_come_through() -> None:
    """As every byte that a counterexample has."""
    packets = (bytes(range(256)), b"", bytes(70_000))
    said = Obligation("all", Kind.CONTENT, "claim", "", Result.REFUTED, 1.0, "evidence", packets=packets)
    digest = definition().digest
    decision = Decision(False, ("no",), (said,), digest)
    answer = {"decision": decider.decision_form().dump_python(decision, mode="json")}
    assert questions._decision(json.loads(json.dumps(answer)), digest) == decision


FLOWS = [
    "(device,eth0)",
    WEB,
    '(device,eth0) | (device,eth1@xdp) -> !(bpf,"udp") -> (sampler,2) & (bpf,"ip6") -> (packetcount as n) -> (grab)',
    '(device,eth0) -> (bpf as a,"tcp port 80") | (bpf,"proto \\tcp and len > 60") -> (bytecount,,64) -> (callback,f)',
    '(device,eth0) -> (classify,dport) -80,443-> ((bpf,"ip") -> (grab)) | -8000..8080-> (packetcount) | -*-> (head,5)',
    '(device,eth0) -> (anonymise,"ports key=00112233445566778899aabbccddeeff") -> (grab,snaplen=64)',
]


@pytest.mark.parametrize("text", FLOWS)
def test_definitions_are_those_made_here(text: str) -> None:
    graph = build(parse(text))
    here = Definition(graph, compiler.compile_predicates(graph), 1 << 16)
    for expression in (text, graph.expression, parse(text), printed(graph.expression)):
        there = questions.define(expression, 1 << 16)
        assert there == here
        assert there.digest == here.digest


def test_values_are_decided_by_their_text(policies: Policies) -> None:
    def save(batch: object) -> None: ...

    values: list[Expression] = [
        Device("eth0") >> Bpf("udp") >> Callback(save, packets=True, snaplen=96),
        Device("eth0") >> (Bpf("udp", name="x") | ~Bpf("tcp")) >> (Grab(64) | Callback(lambda batch: None)),
    ]
    for value in values:
        made = questions.define(value, 1 << 16)
        from_text = questions.define(printed(value), 1 << 16)
        assert made.digest == from_text.digest
        assert made.graph.expression == from_text.graph.expression
        decision = questions.decide(made, policies, subject("alice"))
        assert decision.accepted
        assert decision.digest == from_text.digest
    assert any(
        leaf.node.function is save
        for _, leaf in questions.define(values[0], 1 << 16).graph.leaves()
        if isinstance(leaf.node, Callback)
    )


def test_errors_are_those_made_here(directory: Path) -> None:
    for text in ('(device,eth0) -> (bpf,"tcp prt 80")', '(device,eth0) -> (bpf,"port port")', "(device,eth0) -> (bfp)",
                 "", "(grab)", '(device,eth0) -> (bpf,"len / 0 = 1")', "(device,eth0) -> (bpf,(udp\n))"):  # fmt: skip
        with pytest.raises(ExpressionError) as here:
            Flow.create().populate(text)
        with pytest.raises(ExpressionError) as there:
            Flow.create(policies=directory).populate(text)
        assert str(there.value) == str(here.value)


class TestWithoutAnAnswer:
    """Each ends in time, says what it was, and the next decision is as ever."""

    @pytest.mark.parametrize(
        ("user", "reason"),
        [
            ("sleep", "undecided after 0.6 s"),
            ("spin", "undecided after 0.6 s"),
            ("threads", "undecided after 0.6 s"),
            ("deaf", "undecided after 0.6 s"),
            ("stop", "undecided after 0.6 s"),
            ("segfault", "the decider crashed (SIGSEGV)"),
            ("exit:7", "the decider ended without an answer (exit status 7)"),
            ("exit:0", "a malformed answer of the decider"),
            ("raise", "the decider failed: ValueError: \N{REPLACEMENT CHARACTER}[31mno"),
            ("recurse", "the decider failed: RecursionError: maximum recursion depth exceeded"),
            ("leave", "the decider failed: PermissionError"),
            ("flood", "the decider's answer is longer than 8,388,608 bytes"),
        ],
    )
    def test_it_is_rejected(self, policies: Policies, bad: Sandbox, user: str, reason: str) -> None:
        decide(policies)
        zygote = bad.pid
        began_s = time.monotonic()
        decision = decide(policies, user)
        assert time.monotonic() - began_s < LATEST_S
        assert not decision.accepted
        assert decision.digest == definition().digest
        assert decision.reasons[0].startswith(reason)
        assert decide(policies).accepted
        assert bad.pid == zygote
        wait_for(lambda: asked_of(zygote) == [])

    @pytest.mark.parametrize("user", ["grow", "grow-in-c"])
    def test_memory(self, policies: Policies, bad: Sandbox, user: str) -> None:
        decision = decide(policies, user, limit_s=20)
        assert not decision.accepted
        assert "memory" in decision.text().lower() or "SIGABRT" in decision.text()
        assert decide(policies).accepted

    def test_cpu_is_limited_though_nobody_watches(self, policies: Policies, bad: Sandbox) -> None:
        """The wall limit comes first; the child would end without it, too."""
        decide(policies)
        ours, theirs = sandbox.socket.socketpair()
        watch, watched = sandbox.socket.socketpair(sandbox.socket.AF_UNIX, sandbox.socket.SOCK_SEQPACKET)
        question = decider.DecideQuestion(WEB, {}, 1, subject("spin"), 0, 1.0)
        with ours, theirs, watch, watched:
            zygote = bad._zygote
            assert zygote is not None
            shared, digest = bad._shared(policies)
            fds = [theirs.fileno(), watched.fileno(), shared]
            sandbox.socket.send_fds(zygote.control, [json.dumps({"policies": digest, "cpu_s": 1}).encode()], fds)
            os.close(shared)
            assert watch.recv(99) == decider.FORKED
            ours.sendall(sandbox.pickle.dumps(question))
            ours.shutdown(sandbox.socket.SHUT_WR)
            watch.settimeout(10)
            status, _ = json.loads(watch.recv(99))
        assert status in (-signal.SIGXCPU, -signal.SIGKILL)

    ANSWERS = [
        b"", b"{", b"[]", b"null", b"{}", b'{"decision": null}', b'{"decision": {}}', b"[" * 100_000, b"\xff\xfe", b"NaN",
        b'{"decision": {"accepted": true, "reasons": [], "obligations": [], "digest": "0", "rule": "all"}}',
        b'{"decision": {"accepted": "yes", "reasons": [], "obligations": [], "digest": "DIGEST", "rule": "all"}}',
        b'{"decision": {"accepted": 1, "reasons": [], "obligations": [], "digest": "DIGEST", "rule": "all"}}',
        b'{"decision": {"accepted": true, "reasons": [], "obligations": [], "digest": "DIGEST", "rule": ""}}',
        b'{"decision": {"accepted": true, "reasons": ["x"], "obligations": [{}], "digest": "DIGEST", "rule": "all"}}',
        b'{"decision": {"accepted": false, "reasons": [], "obligations": [], "digest": "DIGEST", "rule": ""}}',
        b'{"decision": {"accepted": true, "reasons": [], "obligations": [], "digest": "DIGEST", "rule": "all", "expires_s": NaN}}',
        b'{"predicates": {}}', b'{"error": ["a", "b", "c", "d"]}', b'{"missing": 3}',
    ]  # fmt: skip

    @pytest.mark.parametrize("answer", ANSWERS)
    def test_malformed_answers(self, policies: Policies, bad: Sandbox, tmp_path: Path, answer: bytes) -> None:
        file = readable(tmp_path / "answer", answer.replace(b"DIGEST", definition().digest.encode()))
        decision = decide(policies, f"answer:{file}")
        assert not decision.accepted
        assert decision.reasons[0] in (sandbox.MALFORMED, "the decider answered about another definition")
        assert decision.digest == definition().digest

    def test_what_it_found_before_it_was_killed(self, policies: Policies, bad: Sandbox) -> None:
        decision = decide(policies, "stall:shows payload", limit_s=0.6)
        assert not decision.accepted
        *found, last = decision.obligations
        assert found and all(each.result is Result.PROVED and each.kind is Kind.MEANS for each in found)
        assert (last.kind, last.result, last.evidence) == (Kind.CONTENT, Result.REFUSED, "undecided: out of time")
        assert "shows payload" in last.claim and last.help in decision.text()

    @pytest.mark.parametrize("line", [b"{}", b"no", b"[]", b'{"rule": "all"}'])
    def test_what_it_told_is_malformed(self, line: bytes) -> None:
        assert questions._told([line]) == ()

    def test_what_it_says_is_harmless_to_a_terminal(self, policies: Policies, bad: Sandbox, tmp_path: Path) -> None:
        said = {
            "accepted": False,
            "reasons": ["\x1b[2J no"],
            "obligations": [],
            "digest": definition().digest,
            "rule": "",
        }
        file = readable(tmp_path / "answer", json.dumps({"decision": said}).encode())
        decision = decide(policies, f"answer:{file}")
        assert decision.reasons == ("\N{REPLACEMENT CHARACTER}[2J no",)

    def test_a_solver_is_missing(self, policies: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
        without = Sandbox("tests.misbehaviour")
        monkeypatch.setattr(sandbox, "BOOT", sandbox.BOOT.replace(".main(", ".main_without_z3("))
        monkeypatch.setattr(questions, "SANDBOX", without)
        try:
            decision = decide(policies)
            assert decision.reasons == ("the solver z3 is missing: run `pip install -e .` for what ffpf needs",)
            assert questions.define(WEB, 1 << 16) == definition()
        finally:
            without.close()

    def test_it_cannot_be_started(self, policies: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
        for executable, reason in (("/bin/false", "ends as soon"), ("/nonexistent", "cannot be started: no such file")):
            broken = Sandbox()
            monkeypatch.setattr(questions, "SANDBOX", broken)
            monkeypatch.setattr(sys, "executable", executable)
            assert reason in decide(policies).reasons[0]
            broken.close()


@pytest.mark.parametrize(
    "text",
    [
        '(device,eth0) -> (bpf,"' + " or ".join(f"port {n}" for n in range(1000)) + '")',
        '(device,eth0) -> (bpf,"' + " or ".join(f"host 10.{n >> 8}.{n & 255}.1" for n in range(860)) + '")',
        '(device,eth0) -> (bpf,"' + "(" * 7000 + "udp" + ")" * 7000 + '")',
        '(device,eth0) -> (bpf,"' + "not " * 4000 + 'udp")',
        "(device,eth0) -> " + "(" * 10_000 + "(bpf,udp)" + ")" * 10_000,
        "(device,eth0) -> " + "!" * 10_000 + "(bpf,udp)",
        "(device,eth0) -> " + " | ".join("(bpf,udp)" for _ in range(20_000)),
        "(device,eth0) -> (bpf,udp)" + " " * (1 << 18),
        '(device,eth0) -> (bpf,"len = ' + "+".join("len" for _ in range(3_000)) + '")',
    ],
    ids=["ports", "hosts", "parentheses", "nots", "nested", "inverted", "nodes", "text", "sum"],
)
def test_huge_expressions(text: str) -> None:
    """A definition, or an error with help; in time, and it hurts nobody."""
    questions.define(WEB, 1 << 16)
    began_s = time.monotonic()
    try:
        questions.define(text, 1 << 16, limit_s=2)
    except (ExpressionError, Rejected) as error:
        assert error.help
        print(str(error)[:200])
    # The parent repeats what a child could do in time.
    assert time.monotonic() - began_s < 2 * 2 + 0.5
    assert questions.define(WEB, 1 << 16) == definition()


def test_libpcap_is_not_called_here(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("in this process")

    monkeypatch.setattr(compiler, "compile_filter", never)
    monkeypatch.setattr(authorise, "decide", never)
    flow = Flow.create(policies=directory).populate(WEB)
    assert flow.authorise().accepted
    monkeypatch.undo()
    assert (
        flow.definition.digest
        == Flow.create().populate(WEB, buffer_bytes=flow.definition.buffer_bytes).definition.digest
    )


def test_nothing_is_started_without_policies() -> None:
    program = (
        "from ffpf_bpf import Flow; from ffpf_bpf.flow.sandbox import SANDBOX; import sys;"
        f"flow = Flow.create().populate({WEB!r}); flow.authorise(); print(SANDBOX.pid);"
        "print([name for name in ('z3', 'bitwuzla') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n[]\n"


class TestInstructions:
    """What comes back as classic BPF is checked like any other."""

    @pytest.mark.parametrize(
        "predicates",
        [
            None, [], {}, {"udp": []}, {"tcp port 80": None}, {"tcp port 80": [[6, 0, 0]]}, {"tcp port 80": [6, 0, 0, 0]},
            {"tcp port 80": [[6, 0, 0, 1 << 32]]}, {"tcp port 80": [[6, -1, 0, 0]]}, {"tcp port 80": [[6, 0, 0, 1.0]]},
            {"tcp port 80": [[6, 0, 0, True]]}, {"tcp port 80": [["6", 0, 0, 0]]}, {"tcp port 80": [[1 << 16, 0, 0, 0]]},
            {"tcp port 80": [[6, 0, 0, 0]], "udp": [[6, 0, 0, 0]]},
        ],
    )  # fmt: skip
    def test_malformed(self, predicates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(questions.SANDBOX, "ask", lambda *_: {"predicates": predicates})
        with pytest.raises(Rejected, match="malformed"):
            questions.define(WEB, 1 << 16)

    @pytest.mark.parametrize(
        "program",
        [
            [], [[5, 0, 0, 0]], [[0x15, 9, 9, 0], [6, 0, 0, 0]], [[0x30, 0, 0, 0xFFFFF000], [6, 0, 0, 0]],
            [[0x38, 0, 0, 0], [6, 0, 0, 0]], [[0x4006, 0, 0, 0]], [[0x128, 0, 0, 0], [6, 0, 0, 0]], [[0x0E, 0, 0, 0]],
        ],
    )  # fmt: skip
    def test_harmful(self, program: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(questions.SANDBOX, "ask", lambda *_: {"predicates": {"tcp port 80": program}})
        with pytest.raises(ExpressionError):
            questions.define(WEB, 1 << 16)


@pytest.mark.parametrize("forked", ["ahead", "when asked"])
def test_what_the_child_has(policies: Policies, bad: Sandbox, monkeypatch: pytest.MonkeyPatch, forked: str) -> None:
    monkeypatch.setenv("FFPF_SECRET", "x")
    if forked == "ahead":
        decide(policies)
        spare = spare_of(bad)
    state = json.loads(decide(policies, "state").reasons[0])
    assert forked != "ahead" or state["pid"] == spare
    assert state["environment"] == ["LC_CTYPE", "OPENBLAS_NUM_THREADS"] or state["environment"] == [
        "OPENBLAS_NUM_THREADS"
    ]
    assert state["fds"] == {"0": "null", "1": "null", "2": "null", "3": "0o14"}
    assert state["session"]
    status = state["status"]
    assert {status[name] for name in ("CapEff", "CapPrm", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert state["tried"]["setuid"] == "PermissionError"
    assert state["tried"]["write"] in ("OSError", "PermissionError")
    assert state["tried"]["thread"] == "done"
    for name in ("fork", "exec", "kill-itself", "kill-parent", "connect"):
        assert state["tried"][name] == "PermissionError", name
    if os.geteuid() == 0:
        assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
        assert status["Groups"] == ""
        assert state["tried"]["shadow"] == "PermissionError"


def test_check_says_so(directory: Path) -> None:
    text = '(device,eth0) -> (bpf,"' + " or ".join(f"port {n}" for n in range(1000)) + '")'
    command = [str(Path(sys.executable).parent / "ffpf"), "check", text, "--policies", str(directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert (found["decision"], found["reasons"], found["expression"]) == ("rejected", ["undecided after 5 s"], text)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root leaves namespaces")
def test_it_keeps_no_network_alive(policies: Policies, bad: Sandbox) -> None:
    decide(policies)
    assert os.readlink(f"/proc/{bad.pid}/ns/net") != os.readlink("/proc/self/ns/net")


def test_solvers_work_there(policies: Policies, bad: Sandbox) -> None:
    """What they need is not among what is refused."""
    decision = decide(policies, "solve", limit_s=20)
    assert decision.accepted, decision.text()


class TestTheZygote:
    """It is restarted, it ends with its parent, and it is nobody else's."""

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
    def test_it_was_ended_between_decisions(self, policies: Policies, bad: Sandbox, number: int) -> None:
        assert decide(policies).accepted
        before = bad.pid
        assert before
        os.kill(before, number)
        first = decide(policies)
        assert first.accepted or number == signal.SIGSTOP
        assert decide(policies).accepted
        assert bad.pid != before
        assert not os.path.exists(f"/proc/{before}")

    def test_it_was_ended_while_it_decided(self, policies: Policies, bad: Sandbox) -> None:
        decide(policies)
        zygote = bad.pid
        assert zygote
        threading.Timer(0.3, os.kill, (zygote, signal.SIGKILL)).start()
        decision = decide(policies, "sleep")
        assert decision.reasons == ("the decider was killed while it decided",)
        assert decide(policies).accepted

    def test_a_terminal_does_not_interrupt_it(self, policies: Policies, bad: Sandbox) -> None:
        decide(policies)
        assert bad.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(bad.pid, number)
        before = bad.pid
        assert decide(policies).accepted
        assert bad.pid == before

    @pytest.mark.parametrize("user", ["alice", "deaf"])
    def test_a_killed_parent_leaves_nothing(self, directory: Path, user: str) -> None:
        program = (
            "import sys, time; from ffpf_bpf.authorise import read_policies; from pathlib import Path;"
            "from tests import test_sandbox as t; from ffpf_bpf.flow import questions;"
            "questions.SANDBOX = t.Sandbox('tests.misbehaviour');"
            f"p = read_policies(Path({str(directory)!r})); t.decide(p, limit_s=9); print(questions.SANDBOX.pid, flush=True);"
            f"t.decide(p, {user!r}, limit_s=60); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout
            zygote = int(parent.stdout.readline())
            wait_for(lambda: (asked_of if user == "deaf" else children_of)(zygote) != [])
            below = [zygote, *children_of(zygote)]
            parent.kill()
        wait_for(lambda: not any(map(running, below)))

    def test_a_thread_that_started_it_may_end(self, policies: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
        made = Sandbox()
        monkeypatch.setattr(questions, "SANDBOX", made)
        thread = threading.Thread(target=lambda: decide(policies))
        thread.start()
        thread.join()
        before = made.pid
        assert before
        time.sleep(0.2)
        assert decide(policies).accepted
        assert made.pid == before
        made.close()
        assert made.pid is None
        assert not running(before)

    def test_a_fork_has_its_own(self, policies: Policies, bad: Sandbox) -> None:
        assert decide(policies).accepted
        before = bad.pid
        os.register_at_fork(after_in_child=bad.forget)
        child = os.fork()
        if child == 0:
            try:
                good = bad.pid is None and decide(policies, limit_s=9).accepted and bad.pid not in (None, before)
                bad.close()
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        assert decide(policies).accepted
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert decide(policies).accepted
        assert bad.pid == before

    def test_threads(self, policies: Policies, bad: Sandbox) -> None:
        """They do not wait for one another."""
        decide(policies)
        users = ["sleep", "deaf", "segfault", "alice", "bob", "carol"] * 2
        found: dict[int, Decision] = {}
        began_s = time.monotonic()

        def one(number: int) -> None:
            found[number] = decide(policies, users[number], limit_s=2)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(len(users))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began_s < 2.5
        for number, user in enumerate(users):
            assert found[number].accepted is (user in ("alice", "bob", "carol")), (user, found[number])

    def test_no_descriptor_is_left(self, policies: Policies, bad: Sandbox) -> None:
        decide(policies)
        assert bad.pid

        def count() -> tuple[int, int]:
            return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{bad.pid}/fd"))

        time.sleep(0.2)  # the zygote closes its own once the answer is here
        before = count()
        for user in ("alice", "segfault", "exit:3", "flood", "alice"):
            decide(policies, user)
        questions.decide(definition(), Policies(policies.rules), subject("alice"))
        wait_for(lambda: count() == before)

    def test_policies_are_sent_when_they_change(self, policies: Policies, bad: Sandbox) -> None:
        none = Policies((), "of nothing")
        for _ in range(2):
            assert decide(policies).accepted
            assert not decide(none).accepted

    def test_an_interrupted_decision_is_ended(self, policies: Policies, bad: Sandbox) -> None:
        decide(policies)
        zygote = bad.pid
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            decide(policies, "deaf", limit_s=30)
        wait_for(lambda: asked_of(zygote) == [])
        assert decide(policies).accepted


class TestTheSpare:
    """A child that is there before the question."""

    def test_each_question_has_its_own(self, policies: Policies, bad: Sandbox) -> None:
        decide(policies)
        asked = set()
        for _ in range(3):
            spare = spare_of(bad)
            assert json.loads(decide(policies, "state").reasons[0])["pid"] == spare
            asked.add(spare)
            assert not running(spare)
        assert len(asked) == 3

    def test_it_knows_no_other_policies(self, policies: Policies, bad: Sandbox) -> None:
        assert decide(policies).accepted
        spare = spare_of(bad)
        assert not decide(Policies((), "of nothing")).accepted
        assert not running(spare)
        assert spare_of(bad) != spare
        assert decide(policies).accepted

    def test_it_was_ended(self, policies: Policies, bad: Sandbox) -> None:
        decide(policies)
        before = bad.pid
        spare = spare_of(bad)
        os.kill(spare, signal.SIGKILL)
        wait_for(lambda: not running(spare))
        assert decide(policies).accepted
        assert bad.pid == before

    def test_it_cannot_be_asked_in_time(self, policies: Policies, bad: Sandbox) -> None:
        decide(policies)
        os.kill(spare_of(bad), signal.SIGSTOP)
        assert decide(policies, limit_s=0.6).reasons[0].startswith("undecided after 0.6 s")
        assert decide(policies).accepted

    def test_its_cpu_is_limited(self, policies: Policies, bad: Sandbox) -> None:
        decide(policies)
        spare = spare_of(bad)
        decision = decide(policies, "spin", limit_s=1)
        assert decision.reasons[0].startswith("undecided after 1 s")
        assert not running(spare)

    def test_none_is_kept_for_those_without_policies(self) -> None:
        without = Sandbox()
        try:
            without.ask(decider.CompileQuestion(WEB), LIMIT_S)
            time.sleep(0.5)
            assert without.pid and children_of(without.pid) == []
        finally:
            without.close()


def readable(file: Path, content: bytes) -> Path:
    """A file where a child can read it."""
    file.write_bytes(content)
    file.chmod(0o644)
    for directory in file.parents:
        if directory.stat().st_uid == os.geteuid() and str(directory) not in ("/", "/tmp"):
            directory.chmod(0o755)
    return file


def spare_of(sandbox: Sandbox) -> int:
    """The child that waits for the next question, once it does."""
    assert sandbox.pid
    wait_for(lambda: set(children_of(sandbox.pid)) != set(asked_of(sandbox.pid)))
    (spare,) = set(children_of(sandbox.pid)) - set(asked_of(sandbox.pid))
    return spare


def asked_of(pid: int | None) -> list[int]:
    """The children that have a question."""
    return [child for child in children_of(pid) if name_of(child) != "ffpf-spare"]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def children_of(pid: int | None) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(name))
    return found


def running(pid: int) -> bool:
    """Whether a thread of the process runs: the first may have ended while others still hold its descriptors."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # it has ended
            states.append(stat.read_text().rpartition(")")[2].split()[0])
    return any(state not in "ZX" for state in states)


def wait_for(condition: Any, within_s: float = 3.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)
