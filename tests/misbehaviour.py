"""A decider that does what a subject's name says: `main` is run by the zygote in place of the real one's."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from ffpf_bpf import authorise
from ffpf_bpf.authorise import Decision, Narrowing, Obligation, Policies, Subject
from ffpf_bpf.flow import confinement, decider
from ffpf_bpf.graph.definition import Definition

really_decide, really_narrow = authorise.decide, authorise.narrowed


def main(control_fd: int, parent: int) -> None:
    authorise.decide = act  # type: ignore[assignment]
    authorise.narrowed = act_instead  # type: ignore[assignment]
    confinement.MEMORY_BYTES = 256 << 20
    decider.main(control_fd, parent)


def main_without_z3(control_fd: int, parent: int) -> None:
    sys.modules["z3"] = None  # type: ignore[assignment]
    decider.main(control_fd, parent)


def act(definition: Definition, policies: Policies | None, subject: Subject, **more: Any) -> Decision:
    what, _, argument = subject.user.partition(":")
    if what in ACTS:
        ACTS[what](argument, definition)
    if what == "stall":
        return really_decide(definition, policies, subject, **{**more, "tell": partial(stall, argument, more["tell"])})
    if what == "state":
        return Decision(False, (json.dumps(state()),), (), definition.digest)
    return really_decide(definition, policies, subject, **more)


def act_instead(definition: Definition, policies: Policies, subject: Subject, *rest: Any, **more: Any) -> Narrowing:
    what, _, argument = subject.user.partition(":")
    if what in ACTS:
        ACTS[what](argument, definition)
    return really_narrow(definition, policies, subject, *rest, **more)


def stall(evidence: str, tell: decider.Tell, obligation: Obligation) -> None:
    """Sleep as soon as this is told."""
    tell(obligation)
    if evidence in obligation.claim:
        time.sleep(60)


def spin(_argument: str, _definition: Definition) -> None:
    while True:
        pass


def spin_in_threads(_argument: str, definition: Definition) -> None:
    for _ in range(4):
        threading.Thread(target=lambda: sum(iter(int, 1)), daemon=True).start()
    spin("", definition)


def ignore_everything(_argument: str, definition: Definition) -> None:
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    spin("", definition)


def allocate(_argument: str, _definition: Definition) -> None:
    held = []
    while True:
        held.append(bytes(1 << 24))


def allocate_in_c(_argument: str, _definition: Definition) -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while address := libc.malloc(1 << 24):
        ctypes.memset(address, 1, 1 << 24)
    libc.abort()


def segfault(_argument: str, _definition: Definition) -> None:
    ctypes.string_at(0)


def answer(argument: str, _definition: Definition) -> None:
    """Write what a file holds as the answer."""
    socket.socket(fileno=os.dup(confinement.CHANNEL)).sendall(Path(argument).read_bytes())
    os._exit(0)


def flood(_argument: str, _definition: Definition) -> None:
    while True:
        os.write(confinement.CHANNEL, bytes(1 << 16))


def leave_a_child(argument: str, _definition: Definition) -> None:
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)


def solve(_argument: str, _definition: Definition) -> None:
    """Both solvers, with the threads that their time limits are."""
    import bitwuzla
    import z3

    solver = z3.Solver()
    solver.set("timeout", 20_000)
    a, b = z3.BitVecs("a b", 32)
    solver.add(a * b == 0x1234567, a > 3, b > 3)
    assert solver.check() == z3.sat
    terms = bitwuzla.TermManager()
    options = bitwuzla.Options()
    options.set(bitwuzla.Option.TIME_LIMIT_PER, 20_000)
    other = bitwuzla.Bitwuzla(terms, options)
    sort = terms.mk_bv_sort(8)
    other.assert_formula(terms.mk_term(bitwuzla.Kind.DISTINCT, [terms.mk_const(sort), terms.mk_const(sort)]))
    assert other.check_sat() == bitwuzla.Result.SAT


def raise_it(_argument: str, _definition: Definition) -> None:
    raise ValueError("\x1b[31mno")


def kill_zygote(_argument: str, _definition: Definition) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


ACTS: dict[str, Any] = {
    "sleep": lambda argument, _definition: time.sleep(float(argument or 60)),
    "spin": spin,
    "threads": spin_in_threads,
    "deaf": ignore_everything,
    "grow": allocate,
    "grow-in-c": allocate_in_c,
    "segfault": segfault,
    "solve": solve,
    "exit": lambda argument, _definition: os._exit(int(argument)),
    "stop": lambda _argument, _definition: signal.raise_signal(signal.SIGSTOP),
    "raise": raise_it,
    "recurse": lambda _argument, _definition: recurse(),
    "answer": answer,
    "flood": flood,
    "leave": leave_a_child,
    "kill-zygote": kill_zygote,
}


def recurse() -> None:
    recurse()


def state() -> dict[str, Any]:
    """What a child has."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    tried = {}
    for name, attempt in {
        "write": lambda: Path("/tmp/ffpf-sandbox-was-here").write_bytes(b"x"),
        "shadow": lambda: Path("/etc/shadow").read_bytes(),
        "setuid": lambda: os.setuid(0),
        "kill-parent": lambda: os.kill(os.getppid(), 0),
        "connect": lambda: socket.create_connection(("127.0.0.1", 1), 0.2),
        "fork": fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "kill-itself": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "thread": start_thread,
    }.items():
        try:
            attempt()
            tried[name] = "done"
        except OSError as error:
            tried[name] = type(error).__name__
    return {
        "status": {
            key: status[key].strip() for key in ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapAmb", "NoNewPrivs")
        },
        "fds": fds(),
        "environment": sorted(os.environ),
        "session": os.getsid(0) == os.getpid(),
        "pid": os.getpid(),
        "tried": tried,
    }


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def fds() -> dict[str, str]:
    """Its descriptors. /proc/self/fd is not its own to read."""
    found = {}
    for fd in range(64):
        try:
            kind = os.fstat(fd)
        except OSError:
            continue
        found[str(fd)] = "null" if kind.st_rdev == os.stat("/dev/null").st_rdev else oct(kind.st_mode >> 12)
    return found
