"""The other side of the sandbox: a zygote that has imported all that decisions need, and one child of it per question.

    parent  --question's sockets-->  zygote  --fork-->  child: confined, answers one question, ends

The zygote handles nothing that a user wrote: it forks, kills a child whose parent hangs up, and tells how it ended. It
opens no file of the parent's, has none of its descriptors, and ends when the parent does. The child reads the text,
calls libpcap and the solvers, and can be taken over by what it reads, as far as anybody knows; so it has nothing but
the socket to its parent. `confine` says what it may use.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pickle
import resource
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
from ffpf_bpf.flow import seccomp
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.predicate import Program, run

if TYPE_CHECKING:
    from pydantic import TypeAdapter

READY, FORKED = b"ready", b"forked"
OUT_OF_MEMORY = 70  # exit status
MEMORY_BYTES = 2 << 30  # more than the zygote has
MOST_DESCRIPTORS = 16
NOBODY = 65_534
CHANNEL = 3
LARGEST_MESSAGE = 4_096
SOLVERS = ("z3", "bitwuzla")
USUAL_FLOW = '(device,lo) -> (bpf,"tcp port 80 and src net 10.1.0.0/16") -> (grab,snaplen=96)'

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 1, 4, 15, 38
CAPABILITY_VERSION_3 = 0x2008_0522
CLONE_NEWIPC, CLONE_NEWNET = 0x0800_0000, 0x4000_0000


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
    _leave_namespaces()
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
    _prctl(PR_SET_NAME, ctypes.create_string_buffer(b"ffpf-decider"))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    look(0, None)


def _leave_namespaces() -> None:
    """Keep no network of the parent's alive, and have none; only root may."""
    with suppress(OSError):
        _checked(_libc().unshare(CLONE_NEWNET | CLONE_NEWIPC), "unshare")


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
    with suppress(FfpfError):  # without libpcap each question is answered so
        graph = build(parse(USUAL_FLOW))
        usual = Definition(graph, compiler.compile_predicates(graph), 1 << 20)
        if not missing:
            decision = authorise.decide(usual, usual_policies(), Subject("nobody", frozenset(), NOBODY))
            decision_form().dump_python(decision, mode="json")
    gc.collect()
    gc.freeze()
    return missing


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    pidfd: int
    watched: socket.socket  # the parent's, for this child: it hangs up to have it killed


class _Zygote:
    def __init__(self, control: socket.socket, missing: str) -> None:
        self._control = control
        self._missing = missing
        self._known: tuple[str, Policies | None] = ("", None)
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, _Child] = {}  # by both descriptors

    def serve(self) -> NoReturn:
        while True:
            # One at a time: what it opens may have the number of what the next event was about.
            fd, _ = self._poll.poll()[0]
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
            if shared and request["policies"] != self._known[0]:
                self._known = (request["policies"], _unpickled(shared[0]))
                prepare(self._known[1])
                gc.freeze()
            pid = os.fork()
            if pid == 0:
                self._answer(channel, os.getppid(), request["cpu_s"], self._known[1] if shared else None)
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

    def _answer(self, channel: int, zygote: int, cpu_s: int, policies: Policies | None) -> NoReturn:
        status = 1
        try:
            confine(channel, zygote, cpu_s)
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


def _answered(question: Question, policies: Policies | None, missing: str, tell: Tell) -> Any:
    try:
        return question.answer(policies, missing, tell)
    except MemoryError:
        raise
    except Exception as error:  # a defect of ours: it is told
        return {"defect": f"{type(error).__name__}: {error}"}


def confine(channel: int, zygote: int, cpu_s: int) -> None:
    """Give up all but memory, `cpu_s` seconds of CPU and the channel, which becomes descriptor 3. For a child of the
    zygote: root becomes nobody, no file can be written, no process started, no program run, no socket opened."""
    os.setsid()  # a group of its own, to be killed as one
    if channel != CHANNEL:
        os.dup2(channel, CHANNEL)
    os.closerange(CHANNEL + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _be_first_to_go()
    with open("/proc/self/statm", "rb") as statm:
        has_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    for limit, most in (
        (resource.RLIMIT_AS, has_bytes + MEMORY_BYTES),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MOST_DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (allowed, allowed))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _drop_capabilities()
    # The kernel resets both when the user changes.
    _prctl(PR_SET_DUMPABLE, 0)
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != zygote:
        os._exit(1)
    seccomp.restrict()


def _be_first_to_go() -> None:
    """Where the host runs out of memory, we are what it should take."""
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(b"1000")
    except OSError:
        pass  # not ours to change: the limit on memory holds all the same


def _drop_capabilities() -> None:
    """Also of a user who has some without being root."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _checked(_libc().capset(header, none), "capset")


def _prctl(option: int, value: Any) -> None:
    value = ctypes.c_ulong(value) if isinstance(value, int) else value
    _checked(_libc().prctl(option, value, *[ctypes.c_ulong(0)] * 3), "prctl")


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


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
