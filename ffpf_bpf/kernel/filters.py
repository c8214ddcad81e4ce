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
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel import privileges
from ffpf_bpf.kernel.guards import Guardian, Owner, Stale, this_process
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Descriptor
from ffpf_bpf.kernel.netlink import PARENTS, Filter, Netlink, made_qdisc, remove

FIRST, LAST = 1, 8  # priorities: the lowest goes first, and one priority takes filters of one kind only
HANDLES = 0x66660000  # so high that nobody who counts from 1 takes ours for theirs
NAME = re.compile(r"ffpf:(?P<pids>\d+):(?P<pid>\d+):(?P<start>\d+):[0-9a-f]+(?P<qdisc>:qdisc)?")


class FilterAttachment:
    """A filter that runs an entry program, and its guardian."""

    mode = "cls_bpf"

    def __init__(
        self, interface: Interface, filter: Filter, netlink: Netlink, guardian: Guardian, refusal: str
    ) -> None:
        self.refusal = refusal
        self._interface = interface
        self._filter = filter
        self._netlink = netlink
        self._guardian = guardian

    def is_there(self) -> bool:
        try:
            return any(found.name == self._filter.name for found in self._all())
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                return False
            # A filter that cannot be asked for may well be there, with flows on it.
            raise _explained("ask for", error) from None

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
                guardian = undo.enter_context(Guardian("filter", interface.index, parent, name))
                if not qdisc and not netlink.add_clsact(interface.index):
                    continue  # somebody else was quicker: it is theirs
                undo.callback(_remove_quietly, netlink, interface.index, parent, name)
                found = _add(netlink, Filter(interface.index, parent, FIRST, _handle(), name, 0), program)
                undo.pop_all()
                return FilterAttachment(interface, found, netlink, guardian, why)
    except OSError as error:
        raise _explained("attach", error) from None


def stale() -> list[Stale]:
    """The filters of this network namespace whose owners have died, and nobody removed them."""
    found = []
    with contextlib.closing(Netlink()) as netlink:
        for index, interface in socket.if_nameindex():
            for hook, parent in PARENTS.items():
                with contextlib.suppress(OSError):  # the interface has gone
                    for filter in netlink.filters(index, parent):
                        if pid := _dead_owner(filter.name):
                            found.append(Stale(f"{interface}@{hook}", pid, "filter", partial(_clean, filter)))
    return found


def _clean(stale: Filter) -> None:
    """Remove a stale filter, and the qdisc if it was made for it and nothing else uses it. Raises KernelError."""
    try:
        with contextlib.closing(Netlink()) as netlink:
            remove(netlink, stale.interface, stale.parent, stale.name)
    except OSError as error:
        raise _explained("remove", error) from None


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
    owner = this_process()
    words = f"ffpf:{owner.pids}:{owner.pid}:{owner.began}:{secrets.token_hex(4)}"
    return words + (":qdisc" if owns_qdisc else "")


def _handle() -> int:
    return HANDLES | secrets.randbits(16)


def _dead_owner(name: str) -> int:
    """The process that a filter of ours was made by, if it is not there any more; 0 if it is, or the filter is nobody's
    of ours."""
    ours = NAME.fullmatch(name)
    if ours is None:
        return 0
    owner = Owner(int(ours["pids"]), int(ours["pid"]), int(ours["start"]))
    return owner.pid if owner.is_dead else 0


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


def _explained(what: str, error: OSError) -> KernelError:
    number = error.errno or errno.EIO
    message = f"cannot {what} a filter: {os.strerror(number).lower()}"
    match number:
        case errno.EPERM | errno.EACCES:
            mend = privileges.remedy()
        case errno.ENOENT | errno.EOPNOTSUPP:
            mend = "a kernel with NET_CLS_BPF and NET_SCH_INGRESS: `modprobe cls_bpf sch_ingress`"
        case _:
            mend = "`ffpf doctor` tells what works here"
    return KernelError(message, errno=number, help=mend)
