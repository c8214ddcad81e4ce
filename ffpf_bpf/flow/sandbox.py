"""A process apart for what untrusted text is given to, with limits: who reads, compiles and decides on it.

Each question goes to a fresh child (`ffpf_bpf/flow/decider.py`) of a zygote, which this process starts with the first
question and keeps; so one that hung, grew or crashed says nothing about the next. An answer comes within `limit_s` and
half a second; only the start of the zygote, which handles nothing that a user wrote, has its own time. Every way to end
without an answer is `Unanswered`, with the reason. An answer is lines of JSON of bounded size, of which the last one
counts unless the time is over, from a process that may have been taken over: `ffpf_bpf/flow/questions.py` believes of
it what it can check.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ffpf_bpf.authorise import Policies
from ffpf_bpf.flow import confinement, decider
from ffpf_bpf.flow.decider import Question

LIMIT_S = 5.0
START_S = 30.0
GRACE_S = 0.25  # for the zygote to kill a child and say so
LARGEST_ANSWER = 8 << 20
MALFORMED = "a malformed answer of the decider"
BOOT = (
    "import importlib, sys; name, fd, parent, *sys.path = sys.argv[1:];"
    "importlib.import_module(name).main(int(fd), int(parent))"
)


class Unanswered(Exception):
    """Why a question has no answer, and the `lines` that came before the time was over."""

    def __init__(self, why: str, lines: Sequence[bytes] = (), *, is_late: bool = False) -> None:
        super().__init__(why)
        self.lines = lines
        self.is_late = is_late


class Sandbox:
    """The zygote of this process, and questions to it, from any thread. `module` is what runs there."""

    def __init__(self, module: str = decider.__name__) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._zygote: _Zygote | None = None
        self._policies: tuple[str, int] | None = None  # digest, and a file in memory

    def start(self) -> None:
        """Start the zygote if there is none, without waiting for it, so that the first question waits less."""
        with self._lock, suppress(Unanswered):
            self._running()

    def ask(self, question: Question, limit_s: float, policies: Policies | None = None) -> dict[str, Any]:
        """The answer, an object of JSON. Raises Unanswered."""
        message = pickle.dumps(question)
        for is_last in (False, True):
            with self._lock:
                zygote = self._running()
                shared, digest = self._shared(policies) if policies is not None else (None, "")
            try:
                zygote.wait_until_ready()
                return _Exchange(zygote, limit_s).run(message, shared, digest)
            except _Gone:
                # It never came to the question: somebody ended the zygote since the last one.
                with self._lock:
                    self._drop(zygote)
                if is_last:
                    raise Unanswered("the decider ends as soon as it is started") from None
            except OSError as error:
                raise Unanswered(f"the decider cannot be asked: {(error.strerror or str(error)).lower()}") from None
            finally:
                if shared is not None:
                    os.close(shared)
        raise AssertionError

    def close(self) -> None:
        """End the zygote; the next question starts another."""
        with self._lock:
            if self._zygote is not None:
                self._drop(self._zygote)
            if self._policies is not None:
                os.close(self._policies[1])
                self._policies = None

    def forget(self) -> None:
        """In a child of this process: the zygote is the parent's."""
        self._lock = threading.Lock()
        if self._zygote is not None:
            self._zygote.forget()
            self._zygote = None
        if self._policies is not None:
            os.close(self._policies[1])
            self._policies = None

    @property
    def pid(self) -> int | None:
        """The zygote's."""
        return self._zygote.process.pid if self._zygote is not None else None

    def _running(self) -> _Zygote:
        if self._zygote is not None and self._zygote.process.poll() is not None:
            self._drop(self._zygote)
        if self._zygote is None:
            try:
                self._zygote = _Zygote(self._module)
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                raise Unanswered(f"the decider cannot be started: {why}") from None
        return self._zygote

    def _drop(self, zygote: _Zygote) -> None:
        zygote.close()
        if self._zygote is zygote:
            self._zygote = None

    def _shared(self, policies: Policies) -> tuple[int, str]:
        """The policies as a file in memory, which the zygote reads once: a descriptor to close, and their digest."""
        if self._policies is None or not policies.digest or self._policies[0] != policies.digest:
            content = pickle.dumps(policies)
            digest = policies.digest or sha256(content).hexdigest()
            with ExitStack() as undo:
                fd = os.memfd_create("ffpf_policies")
                undo.callback(os.close, fd)
                with open(fd, "wb", closefd=False) as file:
                    file.write(content)
                undo.pop_all()
            if self._policies is not None:
                os.close(self._policies[1])
            self._policies = (digest, fd)
        return os.dup(self._policies[1]), self._policies[0]


class _Gone(Exception):
    """The zygote has ended, or was never there."""


class _Zygote:
    """A zygote that was started, and our end of its control socket."""

    def __init__(self, module: str) -> None:
        self._starting = threading.Lock()
        self._ready = False
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as undo, theirs:
            undo.callback(self.control.close)
            path = [entry for entry in map(os.path.abspath, filter(None, sys.path)) if entry]
            path.append(str(Path(__file__).parents[2]))
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", BOOT, module, str(theirs.fileno()), str(os.getpid()), *path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"OPENBLAS_NUM_THREADS": "1"},
                cwd="/",
                close_fds=True,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            undo.pop_all()

    def wait_until_ready(self) -> None:
        """Return when it has imported everything. Raises _Gone, or Unanswered if that takes too long."""
        with self._starting:
            if self._ready:
                return
            self.control.settimeout(START_S)
            try:
                self._ready = self.control.recv(len(decider.READY)) == decider.READY
            except TimeoutError:
                self.kill()
                raise Unanswered(f"the decider did not start within {START_S:g} s") from None
            except OSError:
                raise _Gone from None
            if not self._ready:
                raise _Gone

    def kill(self) -> None:
        """At once. The kernel kills its children."""
        with suppress(ProcessLookupError):
            self.process.kill()

    def close(self) -> None:
        """It ends when its socket is closed; if not, it is killed."""
        self.control.close()
        try:
            self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()

    def forget(self) -> None:
        self.control.close()
        self.process.returncode = 0  # not ours to wait for


class _Exchange:
    """One question: sent, answered, and how the child ended, all before `limit_s` is over."""

    def __init__(self, zygote: _Zygote, limit_s: float) -> None:
        self._zygote = zygote
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s
        self._answer = bytearray()

    def run(self, message: bytes, shared: int | None, digest: str) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        # Closing `watch` tells the zygote to kill the child, whatever takes us out of here.
        watch, watched = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, watch:
            with theirs, watched:
                fds = [theirs.fileno(), watched.fileno(), *([shared] if shared is not None else [])]
                self._request(json.dumps({"policies": digest, "cpu_s": int(self._limit_s) + 2}).encode(), fds)
            try:
                self._await_fork(watch)
                answer = self._talk(ours, message)
                ended = self._receive(watch)
            except TimeoutError:
                self._kill(watch)
                *lines, _ = bytes(self._answer).split(b"\n")
                raise Unanswered(f"undecided after {self._limit_s:g} s", lines, is_late=True) from None
            finally:
                with suppress(OSError):
                    watch.shutdown(socket.SHUT_RDWR)  # not only closed: a fork of us may hold it as well
        return self._judged(answer, ended)

    def _request(self, request: bytes, fds: list[int]) -> None:
        poll = select.poll()
        poll.register(self._zygote.control, select.POLLOUT)
        try:
            if not poll.poll(1000 * self._left_s()):
                raise TimeoutError
            socket.send_fds(self._zygote.control, [request], fds, socket.MSG_DONTWAIT)
        except (TimeoutError, BlockingIOError):
            self._zygote.kill()
            raise Unanswered(f"undecided after {self._limit_s:g} s") from None
        except OSError:
            raise _Gone from None

    def _await_fork(self, watch: socket.socket) -> None:
        if self._receive(watch) != decider.FORKED:
            raise _Gone

    def _talk(self, ours: socket.socket, message: bytes) -> bytes:
        """All that the child answers; as far as it came, if it ended early."""
        answer = self._answer
        try:
            ours.settimeout(self._left_s())
            ours.sendall(message)
            ours.shutdown(socket.SHUT_WR)
            while len(answer) <= LARGEST_ANSWER:
                ours.settimeout(self._left_s())
                part = ours.recv(1 << 16)
                if not part:
                    return bytes(answer)
                answer += part
        except ConnectionError:
            return bytes(answer)
        raise Unanswered(f"the decider's answer is longer than {LARGEST_ANSWER:,} bytes")

    def _receive(self, watch: socket.socket) -> bytes:
        watch.settimeout(self._left_s())
        try:
            return watch.recv(decider.LARGEST_MESSAGE)
        except ConnectionError:
            return b""

    def _left_s(self) -> float:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _kill(self, watch: socket.socket) -> None:
        """Have the child killed, and see that it is; if the zygote does not do it, it goes itself."""
        watch.shutdown(socket.SHUT_WR)
        watch.settimeout(GRACE_S)
        try:
            while (said := watch.recv(decider.LARGEST_MESSAGE)) == decider.FORKED:
                pass
            if said:
                return
        except OSError:
            pass
        self._zygote.kill()

    def _judged(self, answer: bytes, ended: bytes) -> dict[str, Any]:
        if not ended:
            raise Unanswered("the decider was killed while it decided")
        status, most_bytes = json.loads(ended)
        memory = f", with {most_bytes >> 20:,} MiB in use"
        match status:
            case 0:
                pass
            case decider.OUT_OF_MEMORY:
                raise Unanswered(f"undecided: it needs more memory than {confinement.MEMORY_BYTES >> 30} GiB")
            case int() if status == -signal.SIGXCPU:
                raise Unanswered(f"undecided after {self._limit_s:g} s of CPU")
            case int() if status == -signal.SIGKILL:
                raise Unanswered(f"the decider was killed{memory}")
            case int() if status < 0:
                raise Unanswered(f"the decider crashed ({_signal_name(-status)}){memory}")
            case _:
                raise Unanswered(f"the decider ended without an answer (exit status {status})")
        try:
            found = json.loads(answer.rstrip(b"\n").rpartition(b"\n")[2])
        except (ValueError, RecursionError):
            raise Unanswered(MALFORMED) from None
        if not isinstance(found, dict):
            raise Unanswered(MALFORMED)
        return found


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


SANDBOX = Sandbox()
os.register_at_fork(after_in_child=SANDBOX.forget)
atexit.register(SANDBOX.close)
