"""Guardians: a process beside each thing that the kernel would keep when its maker dies. See `guardian.py`."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel.maps import Descriptor

GUARDIAN = Path(__file__).with_name("guardian.py")
LONGEST_START_S, LONGEST_END_S = 10.0, 5.0
READY = b"!"
MOST_SAID = 16


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told from any that gets its number later: PID namespace, number, and when it began, in ticks."""

    pids: int
    pid: int
    began: int

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        return f"process {self.pid}" + ("" if self._is_near else " of another PID namespace")

    @property
    def is_alive(self) -> bool:
        """Whether it is there. One of another PID namespace cannot be judged, so it is neither alive nor dead."""
        return self._is_near and began(self.pid) == self.began

    @property
    def is_dead(self) -> bool:
        """Whether it is not there any more."""
        return self._is_near and began(self.pid) != self.began

    @property
    def _is_near(self) -> bool:
        return self.pids == pid_namespace()


@dataclass(frozen=True, slots=True)
class Stale:
    """What a dead process left at a tap because its guardian died as well: a `kind` of thing, which can be removed."""

    tap: str
    pid: int
    kind: str
    remove: Callable[[], object]


def this_process() -> Owner:
    """Raises KernelError if there is no descriptor left to look with."""
    pid = os.getpid()
    since = began(pid)
    if since < 0:
        raise KernelError("cannot read /proc", errno=errno.EMFILE, help="raise the limit of open files (`ulimit -n`)")
    return Owner(pid_namespace(), pid, since)


def began(pid: int) -> int:
    """When a process began, in ticks since the host did; -1 if there is none (proc(5), stat, field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return -1
    state, *fields = stat.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(fields[18])


def pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


class Guardian:
    """The process that removes a filter, or a component of a dispatcher, when this one has died or closes it."""

    def __init__(self, kind: str, *words: object) -> None:
        """Raises KernelError if it does not start, or could not do what it is for: with the errno it met."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._socket = Descriptor(ours.detach())  # closed in a child that a fork makes of this process
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(GUARDIAN), str(os.getpid()), kind, *map(str, words)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={name: value for name, value in os.environ.items() if name.startswith("LIBXDP_")},
                    start_new_session=True,
                )
            except BaseException:
                self._socket.close()
                raise
        try:
            self._wait_until_there(kind)
        except BaseException:
            self.close()
            raise

    def _wait_until_there(self, kind: str) -> None:
        with socket.socket(fileno=os.dup(self._socket.fileno)) as answers:
            answers.settimeout(LONGEST_START_S)
            try:
                said = answers.recv(MOST_SAID)
            except TimeoutError:
                said = b""
        if not said:
            raise KernelError(
                f"the process that would remove the {kind} did not start",
                errno=errno.ECHILD,
                help=f"`{sys.executable} {GUARDIAN}` says why",
            )
        if said != READY:
            raise KernelError(os.strerror(int(said)).lower(), errno=int(said))

    def close(self) -> None:
        """Let it go, and wait for its end."""
        self._socket.close()
        try:
            self._process.wait(LONGEST_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
