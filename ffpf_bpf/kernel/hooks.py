"""Which hooks this kernel has, found by trying each in a network namespace of its own: no interface is touched."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from ffpf_bpf.errors import FfpfError, KernelError
from ffpf_bpf.kernel import attachment, calls
from ffpf_bpf.kernel.maps import Descriptor
from ffpf_bpf.kernel.netlink import PARENTS, Filter, Netlink

CLONE_NEWNET = 0x40000000
LOOPBACK = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """A hook: its name, whether a program could be attached, and what was seen."""

    name: str
    works: bool
    seen: str


def examine() -> list[Trial]:
    """Try every hook; leaves nothing behind. Without the right to make a namespace, nothing is tried."""
    found: list[Trial] = []
    thread = threading.Thread(target=lambda: found.extend(_trials()), name="ffpf-hooks")
    # A namespace is a thread's own, and ends with it.
    thread.start()
    thread.join()
    return found


def _trials() -> Iterator[Trial]:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        return
    yield _tried("native XDP", "on a veth pair", _native)
    yield _tried("generic XDP", "on a loopback interface", lambda: _attach(LOOPBACK, calls.XDP_FLAGS_SKB_MODE))
    yield Trial("tcx", True, "links") if attachment.has_tcx() else Trial("tcx", False, "this kernel has no tcx links")
    yield _tried("cls_bpf", "a filter behind clsact", _filter)


def _tried(name: str, seen: str, attempt: Callable[[], None]) -> Trial:
    try:
        attempt()
    except FfpfError as error:
        return Trial(name, False, error.message)
    return Trial(name, True, seen)


def _native() -> None:
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 - 0.2 s, for those that ask

    with IPRoute() as routes:
        try:
            routes.link("add", ifname="ffpf0", kind="veth", peer="ffpf1")
        except NetlinkError as error:
            raise _refused("no veth pair to try it on", error.code) from None
        _attach(routes.link_lookup(ifname="ffpf0")[0], calls.XDP_FLAGS_DRV_MODE)


def _attach(index: int, flags: int) -> None:
    with Descriptor(calls.load_program("ffpf_probe", calls.PASS_PROGRAM)) as program:
        calls.close(calls.attach_xdp(program.fileno, index, flags))


def _filter() -> None:
    place = Filter(LOOPBACK, PARENTS["tc-ingress"], 1, 1, "ffpf_probe", 0)
    with (
        Descriptor(calls.load_program("ffpf_probe", calls.PASS_PROGRAM, calls.PROG_SCHED_CLS)) as program,
        closing(Netlink()) as netlink,
    ):
        try:
            netlink.add_clsact(LOOPBACK)
            netlink.add_filter(place, program.fileno)
        except OSError as error:
            raise _refused("tc takes no filter", error.errno or errno.EIO) from None


def _refused(what: str, number: int) -> KernelError:
    return KernelError(f"{what}: {os.strerror(number).lower()}", errno=number)
