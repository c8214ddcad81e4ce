"""The other side of the sandbox: a zygote that has imported all that decisions need, and one child of it per question.

    parent  --question's sockets-->  zygote  --fork-->  child: confined, answers one question, ends

The zygote handles nothing that a user wrote: it forks, kills a child whose parent hangs up, and tells how it ended. It
opens no file of the parent's, has none of its descriptors, and ends when the parent does. The child reads the text,
calls libpcap and the solvers, and can be taken over by what it reads, as far as anybody knows; so it has nothing but
the socket to its parent (`ffpf_bpf/flow/confinement.py`). One is forked ahead, for the next question about the policies
that were asked about last: it is as fresh, and confined before anybody asks.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, NoReturn

from ffpf_bpf import authorise, compiler
from ffpf_bpf.authorise import Decision, Obligation, Policies, Subject
from ffpf_bpf.authorise.policy import Allow, PacketClass, Rule
from ffpf_bpf.authorise.proof.prefixes import prepare
from ffpf_bpf.compiler.pcap import offline_filter
from ffpf_bpf.errors import ExpressionError, FfpfError
from ffpf_bpf.flow.confinement import (
    CHANNEL,
    NOBODY,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    confine,
    leave_namespaces,
    limit_cpu,
    move,
    prctl,
    set_name,
)
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.predicate import Program, run

if TYPE_CHECKING:
    from pydantic import TypeAdapter

READY, FORKED = b"ready", b"forked"
OUT_OF_MEMORY = 70  # exit status
SPARE_AFTER_MS = 100  # without a question
LARGEST_MESSAGE = 4_096
SOLVERS = ("z3", "bitwuzla")
USUAL_FLOW = '(device,lo) -> (bpf,"tcp port 80 and src net 10.1.0.0/16") -> (grab,snaplen=96)'

Tell = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class CompileQuestion:
    """The classic BPF of the filters of a flow expression."""

    text: str

    def answer(self, policies: Policies | None, missing: str, tell: Tell) -> Any:
        try:
            predicates = compiler.compile_predicates(build(parse(self.text)))
        except ExpressionError as error:
            return {"error": [error.message, error.where, error.help, error.excerpt]}
        except FfpfError as error:
            return {"failure": [error.message, error.where, error.help]}
        return {
            "predicates": {
                text: [[i.code, i.jump_true, i.jump_false, i.k] for i in program.instructions]
                for text, program in predicates.items()
            }
        }


@dataclass(frozen=True, slots=True)
class _PolicyQuestion:
    """About the definition that text, classic BPF and buffer make. What is undecided after `limit_s` is told by whoever
    answers; that is before the child is killed."""

    text: str
    predicates: dict[str, Program]
    buffer_bytes: int
    subject: Subject
    live_flows: int
    limit_s: float

    def answer(self, policies: Policies | None, missing: str, tell: Tell) -> Any:
        if missing:
            return {"missing": missing}
        assert policies is not None
        return self.by(policies, tell)

    def by(self, policies: Policies, tell: Tell) -> Any:
        """The answer where both solvers are there. What is told goes to whoever asked at once."""
        raise NotImplementedError


class DecideQuestion(_PolicyQuestion):
    """The decision."""

    __slots__ = ()

    def by(self, policies: Policies, tell: Tell) -> Any:
        definition = Definition(build(parse(self.text)), self.predicates, self.buffer_bytes)
        # A packet is shown only if the interpreter and libpcap agree about it.
        decision = authorise.decide(
            definition,
            policies,
            self.subject,
            live_flows=self.live_flows,
            limit_s=self.limit_s,
            executors=(run, offline_filter),
            tell=lambda obligation: tell(obligation_form().dump_python(obligation, mode="json")),
        )
        return {"decision": decision_form().dump_python(decision, mode="json")}


class NarrowQuestion(_PolicyQuestion):
    """The flow that the policies make of a definition which they refuse: text, to be compiled and decided on as any
    other."""

    __slots__ = ()

    def by(self, policies: Policies, tell: Tell) -> Any:
        known = dict(self.predicates)

        def define(expression: Expression) -> Definition:
            graph = build(expression)
            if graph.filters - known.keys():
                known.update(compiler.compile_predicates(graph))
            return Definition(graph, {text: known[text] for text in graph.filters}, self.buffer_bytes)

        narrowing = authorise.narrowed(
            define(parse(self.text)), policies, self.subject, define, live_flows=self.live_flows, limit_s=self.limit_s
        )
        return {"narrowed": [narrowing.text, narrowing.why]}


Question = CompileQuestion | DecideQuestion | NarrowQuestion


@cache
def decision_form() -> TypeAdapter[Decision]:
    """How a decision travels as JSON: by the types of its fields, whatever fields there are."""
    from pydantic import TypeAdapter  # noqa: PLC0415 - only here, and where policies are read

    return TypeAdapter(Decision)


@cache
def obligation_form() -> TypeAdapter[Obligation]:
    """Likewise, an obligation of it."""
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(Obligation)


def main(control_fd: int, parent: int) -> NoReturn:
    """The zygote's life. `parent` is the process that started it, at the other end of `control_fd`."""
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    _follow(parent)
    leave_namespaces()
    missing = _prepare()
    control.send(READY)
    _Zygote(control, missing).serve()


def _follow(parent: int) -> None:
    """End with the parent, though it was killed. The signal comes when the thread that started us ends, too: then there
    is still a parent. The end of file on the control socket is the other way to know."""

    def look(_number: int, _frame: object) -> None:
        if os.getppid() != parent:
            os._exit(0)

    signal.signal(signal.SIGTERM, look)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_name("ffpf-decider")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    look(0, None)


def usual_policies() -> Policies:
    """Policies about `USUAL_FLOW` that make use of what most do."""
    allow = Allow(PacketClass(net=(ip_network("10.0.0.0/8"),)))
    return Policies((Rule("usual", ("*",), ("*",), ("*",), (allow,)),))


def _prepare() -> str:
    """Import and build what every child would, by deciding once. The solver that is missing, or ""."""
    missing = ""
    for name in (*SOLVERS, "ffpf_bpf.authorise.narrow"):
        try:
            importlib.import_module(name)
        except Exception:  # whatever keeps it from being used
            missing = missing or name
    _rehearse(missing)
    gc.collect()
    gc.freeze()
    return missing


def _rehearse(missing: str) -> None:
    """Decide, unless a solver is missing."""
    with suppress(FfpfError):  # without libpcap each question is answered so
        graph = build(parse(USUAL_FLOW))
        usual = Definition(graph, compiler.compile_predicates(graph), 1 << 20)
        if not missing:
            decision = authorise.decide(usual, usual_policies(), Subject("nobody", frozenset(), NOBODY))
            decision_form().dump_python(decision, mode="json")


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    pidfd: int
    watched: socket.socket  # the parent's, for this child: it hangs up to have it killed


@dataclass(frozen=True, slots=True)
class _Spare:
    """A child that waits at the other end of `line` for its question, about the policies of `digest`. It has decided
    already, on something else: a child that was just forked spends most of its time on making memory its own."""

    pid: int
    line: socket.socket
    digest: str


class _Zygote:
    def __init__(self, control: socket.socket, missing: str) -> None:
        self._control = control
        self._pid = os.getpid()
        self._missing = missing
        self._known: tuple[str, Policies | None] = ("", None)
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, _Child] = {}  # by both descriptors
        self._spare: _Spare | None = None

    def serve(self) -> NoReturn:
        while True:
            # One at a time: what it opens may have the number of what the next event was about.
            events = self._poll.poll(SPARE_AFTER_MS if self._lacks_spare() else None)
            if not events:
                self._make_spare()
                continue
            fd, _ = events[0]
            child = self._children.get(fd)
            if child is None:
                self._receive()
            elif fd == child.pidfd:
                self._bury(child)
            else:
                self._poll.unregister(fd)
                _kill(child.pid)

    def _receive(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._control, LARGEST_MESSAGE, 3)
        if not message:
            os._exit(0)
        channel, watched_fd, *shared = fds
        request = json.loads(message)
        watched = socket.socket(fileno=watched_fd)
        try:
            pid = self._handed_over(channel, request) if shared else None
            if shared and request["policies"] != self._known[0]:
                self._known = (request["policies"], _unpickled(shared[0]))
                prepare(self._known[1])
                gc.freeze()
            if pid is None:
                pid = os.fork()
                if pid == 0:
                    self._live(channel, request["cpu_s"], self._known[1] if shared else None)
        finally:
            for fd in (channel, *shared):
                os.close(fd)
        child = _Child(pid, os.pidfd_open(pid), watched)
        for fd in (child.pidfd, watched.fileno()):
            self._children[fd] = child
            self._poll.register(fd, select.POLLIN)
        _send(watched, FORKED)

    def _bury(self, child: _Child) -> None:
        _kill(child.pid)  # what it may have left of its group
        _, status, usage = os.wait4(child.pid, 0)
        _send(child.watched, json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024]).encode())
        for fd in (child.pidfd, child.watched.fileno()):
            del self._children[fd]
        with suppress(KeyError):  # the parent hung up
            self._poll.unregister(child.watched)
        self._poll.unregister(child.pidfd)
        os.close(child.pidfd)
        child.watched.close()

    def _lacks_spare(self) -> bool:
        """Whether somebody who asked about policies may well ask again, and nobody waits for an answer."""
        return self._spare is None and self._known[1] is not None and not self._children

    def _make_spare(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid = os.fork()
            if pid == 0:
                self._live(theirs.fileno(), None, self._known[1])
        self._spare = _Spare(pid, ours, self._known[0])

    def _handed_over(self, channel: int, request: dict[str, Any]) -> int | None:
        """The process id of the spare child, which has the question now; None if there is none that knows about it."""
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        with spare.line, suppress(OSError):  # it may have ended
            if spare.digest == request["policies"]:
                socket.send_fds(spare.line, [str(request["cpu_s"]).encode()], [channel])
                return spare.pid
        _kill(spare.pid)
        os.waitpid(spare.pid, 0)
        return None

    def _live(self, channel: int, cpu_s: int | None, policies: Policies | None) -> NoReturn:
        """The life of a child: with `cpu_s`, `channel` leads to whoever asks; as a spare one it comes through that."""
        status = 1
        try:
            set_name("ffpf-decider" if cpu_s is not None else "ffpf-spare")
            confine(channel, self._pid)
            if cpu_s is None:
                _rehearse(self._missing)
                cpu_s = _wait_for_question()
            limit_cpu(cpu_s)
            set_name("ffpf-decider")
            with socket.socket(fileno=CHANNEL) as connection:
                question: Question = pickle.loads(_read_all(connection))

                def tell(found: Any) -> None:
                    connection.sendall(json.dumps(found).encode() + b"\n")

                tell(_answered(question, policies, self._missing, tell))
            status = 0
        except MemoryError:
            status = OUT_OF_MEMORY
        finally:
            os._exit(status)


def _wait_for_question() -> int:
    """The seconds of CPU that it may take: the channel to whoever asks takes the place of the one that brings it."""
    with socket.socket(fileno=CHANNEL) as line:
        message, descriptors, _, _ = socket.recv_fds(line, LARGEST_MESSAGE, 1)
    if not descriptors:
        os._exit(0)  # the zygote has ended
    move(descriptors[0], CHANNEL)
    return int(message)


def _answered(question: Question, policies: Policies | None, missing: str, tell: Tell) -> Any:
    try:
        return question.answer(policies, missing, tell)
    except MemoryError:
        raise
    except Exception as error:  # a defect of ours: it is told
        return {"defect": f"{type(error).__name__}: {error}"}


def _kill(pid: int) -> None:
    """A child of ours that is not waited for yet, and its group, which it may not have made yet."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _send(watched: socket.socket, message: bytes) -> None:
    with suppress(OSError):  # the parent hung up: it does not want to know
        watched.send(message, socket.MSG_DONTWAIT)


def _unpickled(fd: int) -> Policies:
    policies = pickle.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    assert isinstance(policies, Policies)
    return policies


def _read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)
