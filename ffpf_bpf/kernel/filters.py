"""At tc without tcx links: a filter (cls_bpf, direct action) of the interface's clsact qdisc, by netlink.

The kernel keeps filters when their maker dies, so a guardian waits beside each (`guardian.py`) and removes it then. A
filter's name says whose it is, so that one whose guardian was killed as well is known: `stale`, `ffpf doctor --clean`.
What others hang on the interface stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel import privileges
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Descriptor
from ffpf_bpf.kernel.netlink import PARENTS, Filter, Netlink, made_qdisc, remove

GUARDIAN = Path(__file__).with_name("guardian.py")
LONGEST_START_S, LONGEST_END_S = 10.0, 5.0
FIRST, LAST = 1, 8  # priorities: the lowest goes first, and one priority takes filters of one kind only
HANDLES = 0x66660000  # so high that nobody who counts from 1 takes ours for theirs
NAME = re.compile(r"ffpf:(?P<pids>\d+):(?P<pid>\d+):(?P<start>\d+):[0-9a-f]+(?P<qdisc>:qdisc)?")


@dataclass(frozen=True, slots=True)
class Stale:
    """A filter whose owner, process `pid`, has died: at which tap."""

    tap: str
    pid: int
    filter: Filter


class FilterAttachment:
    """A filter that runs an entry program, and its guardian."""

    mode = "cls_bpf"

    def __init__(
        self, interface: Interface, filter: Filter, netlink: Netlink, guardian: _Guardian, refusal: str
    ) -> None:
        self.refusal = refusal
        self._interface = interface
        self._filter = filter
        self._netlink = netlink
        self._guardian = guardian

    def is_there(self) -> bool:
        try:
            return any(found.name == self._filter.name for found in self._all())
        except OSError:
            return False

    def holds(self, interface: Interface) -> bool:
        return interface.index == self._filter.interface and self.is_there()

    def close(self) -> None:
        with contextlib.closing(self._netlink), self._guardian, contextlib.suppress(OSError):
            remove(self._netlink, self._filter.interface, self._filter.parent, self._filter.name)

    def _all(self) -> Iterator[Filter]:
        return self._netlink.filters(self._filter.interface, self._filter.parent)


def attach(program: Descriptor, interface: Interface, hook: str, why: str) -> FilterAttachment:
    """Hang a program on an interface, in front of the filters that are there; `why` it is no link. Raises
    KernelError."""
    parent = PARENTS[hook]
    try:
        while True:
            with ExitStack() as undo:
                netlink = undo.enter_context(contextlib.closing(Netlink()))
                qdisc = netlink.ingress_qdisc(interface.index)
                if qdisc == "ingress" and hook == "tc-egress":
                    raise _no_egress_side(interface.name)
                name = _name(owns_qdisc=not qdisc or _is_ours(netlink, interface.index))
                # From here on somebody cleans up, whatever happens to this process.
                guardian = undo.enter_context(_Guardian(interface.index, parent, name))
                if not qdisc and not netlink.add_clsact(interface.index):
                    continue  # somebody else was quicker: it is theirs
                undo.callback(_remove_quietly, netlink, interface.index, parent, name)
                found = _add(netlink, Filter(interface.index, parent, FIRST, _handle(), name, 0), program)
                undo.pop_all()
                return FilterAttachment(interface, found, netlink, guardian, why)
    except OSError as error:
        raise _explained(error) from None


def stale() -> list[Stale]:
    """The filters of this network namespace whose owners have died, and nobody removed them."""
    found = []
    with contextlib.closing(Netlink()) as netlink:
        for index, interface in socket.if_nameindex():
            for hook, parent in PARENTS.items():
                with contextlib.suppress(OSError):  # the interface has gone
                    for filter in netlink.filters(index, parent):
                        if pid := _dead_owner(filter.name):
                            found.append(Stale(f"{interface}@{hook}", pid, filter))
    return found


def clean(found: Stale) -> None:
    """Remove a stale filter, and the qdisc if it was made for it and nothing else uses it. Raises KernelError."""
    try:
        with contextlib.closing(Netlink()) as netlink:
            remove(netlink, found.filter.interface, found.filter.parent, found.filter.name)
    except OSError as error:
        raise _explained(error) from None


class _Guardian:
    """The process that removes a filter when this one has died."""

    def __init__(self, interface: int, parent: int, name: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._socket = Descriptor(ours.detach())  # closed in a child that a fork makes of this process
            words = [str(word) for word in (os.getpid(), interface, parent)]
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(GUARDIAN), *words, name],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={},
                    start_new_session=True,
                )
            except BaseException:
                self._socket.close()
                raise
        try:
            self._wait_until_there()
        except BaseException:
            self.close()
            raise

    def _wait_until_there(self) -> None:
        with socket.socket(fileno=os.dup(self._socket.fileno)) as answers:
            answers.settimeout(LONGEST_START_S)
            try:
                said = answers.recv(1)
            except TimeoutError:
                said = b""
        if not said:
            raise KernelError(
                "the process that would remove the filter did not start",
                errno=errno.ECHILD,
                help=f"`{sys.executable} {GUARDIAN}` says why",
            )

    def close(self) -> None:
        """Let it go, and wait for its end."""
        self._socket.close()
        try:
            self._process.wait(LONGEST_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> _Guardian:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _add(netlink: Netlink, wanted: Filter, program: Descriptor) -> Filter:
    """Add a filter, in front if it can be there."""
    for priority in range(FIRST, LAST + 1):
        found = Filter(wanted.interface, wanted.parent, priority, wanted.handle, wanted.name, 0)
        try:
            netlink.add_filter(found, program.fileno)
        except OSError as error:
            # Filters of another kind, or for one protocol, have this priority.
            if error.errno not in (errno.EINVAL, errno.ENOSPC, errno.ENOENT, errno.EEXIST) or priority == LAST:
                raise
        else:
            return found
    raise AssertionError("unreachable")


def _name(*, owns_qdisc: bool) -> str:
    pid = os.getpid()
    return f"ffpf:{_pid_namespace()}:{pid}:{_start_of(pid)}:{secrets.token_hex(4)}" + (":qdisc" if owns_qdisc else "")


def _handle() -> int:
    return HANDLES | secrets.randbits(16)


def _dead_owner(name: str) -> int:
    """The process that a filter of ours was made by, if it is not there any more; 0 if it is, or the filter is nobody's
    of ours. Those of another PID namespace cannot be judged, so they are not."""
    ours = NAME.fullmatch(name)
    if ours is None or int(ours["pids"]) != _pid_namespace():
        return 0
    return int(ours["pid"]) if _start_of(int(ours["pid"])) != int(ours["start"]) else 0


def _start_of(pid: int) -> int:
    """When a process began, in ticks since the host did; -1 if there is none (proc(5), stat, field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return -1
    state, *fields = stat.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(fields[18])


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _is_ours(netlink: Netlink, interface: int) -> bool:
    """Whether a qdisc was made for one of our filters: then it goes with the last of them."""
    beside = [found.name for parent in PARENTS.values() for found in netlink.filters(interface, parent)]
    return any(NAME.fullmatch(name) and made_qdisc(name) for name in beside)


def _no_egress_side(interface: str) -> KernelError:
    return KernelError(
        "the interface has an `ingress` qdisc, which has no egress side",
        errno=errno.EBUSY,
        help=f"in its place, with its filters, `tc qdisc add dev {interface} clsact` has both",
    )


def _remove_quietly(netlink: Netlink, interface: int, parent: int, name: str) -> None:
    with contextlib.suppress(OSError):
        remove(netlink, interface, parent, name)


def _explained(error: OSError) -> KernelError:
    number = error.errno or errno.EIO
    message = f"cannot attach a filter: {os.strerror(number).lower()}"
    match number:
        case errno.EPERM | errno.EACCES:
            mend = privileges.remedy()
        case errno.ENOENT | errno.EOPNOTSUPP:
            mend = "a kernel with NET_CLS_BPF and NET_SCH_INGRESS: `modprobe cls_bpf sch_ingress`"
        case _:
            mend = "`ffpf doctor` tells what works here"
    return KernelError(message, errno=number, help=mend)
