"""Network interfaces, by namespace and name."""

from __future__ import annotations

import difflib
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel.namespaces import Namespace, own

SIOCGIFMTU, SIOCGIFHWADDR = 0x8921, 0x8927
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772  # <linux/if_arp.h>
ETHERNET_HEADER_BYTES = 14
VLAN_TAG_BYTES = 4


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface: its name as a flow has it, index, largest payload in bytes, and its network namespace's inode."""

    name: str
    index: int
    mtu: int
    namespace: int

    @property
    def longest_frame(self) -> int:
        """Bytes of the longest frame: header, two VLAN tags, payload."""
        return self.mtu + ETHERNET_HEADER_BYTES + 2 * VLAN_TAG_BYTES


def find(name: str, namespace: Namespace | None = None) -> Interface:
    """The interface called `name`, of the thread's namespace or of another. Raises KernelError with the nearest name if
    there is none."""
    try:
        if namespace is None:
            return _find(name, "", own())
        return namespace.visit(lambda: _find(name, namespace.name, namespace.inode))
    except OSError as error:  # no descriptor is left
        number = error.errno or errno.EIO
        raise KernelError(f"cannot ask for it: {os.strerror(number).lower()}", errno=number, where=name) from None


def matching(glob: str, namespace: Namespace) -> list[str]:
    """The names of its interfaces that a glob matches, those that were made first in front."""
    known = sorted(namespace.visit(socket.if_nameindex))
    return [name for _, name in known if fnmatchcase(name, glob) and name.isprintable()]


def _find(name: str, namespace: str, inode: int) -> Interface:
    place = f"{namespace}/" if namespace else ""
    try:
        index = socket.if_nametoindex(name)
        mtu = _mtu(name)
    except OSError:
        names = [other for _, other in socket.if_nameindex()]
        near = difflib.get_close_matches(name, names, n=1)
        raise KernelError(
            f"no interface `{place}{name}`",
            errno=errno.ENODEV,
            help=f"did you mean `{place}{near[0]}`?" if near else f"there are {', '.join(names)}",
        ) from None
    real = socket.if_indextoname(index)
    if real != name:
        # A policy's taps are names: another name for the same interface must not get past them.
        raise KernelError(f"`{name}` is another name of `{real}`", errno=errno.ENODEV, help=f"write `{real}`")
    _refuse_if_no_ethernet(name)
    return Interface(f"{place}{name}", index, mtu, inode)


def _refuse_if_no_ethernet(name: str) -> None:
    """Raise KernelError for an interface whose packets have no Ethernet header: filters, nodes and proofs want one."""
    (kind,) = struct.unpack_from("H", _asked(name, SIOCGIFHWADDR))
    if kind not in (ARPHRD_ETHER, ARPHRD_LOOPBACK):
        raise KernelError(
            f"packets of `{name}` have no Ethernet header (ARPHRD {kind})",
            errno=errno.EPROTONOSUPPORT,
            help="flows grab Ethernet frames: take the interface that carries it, or a `tap` device instead of `tun`",
        )


def _mtu(name: str) -> int:
    return int(struct.unpack_from("i", _asked(name, SIOCGIFMTU))[0])


def _asked(name: str, request: int) -> bytes:
    """What the kernel says of an interface: struct ifreq (netdevice(7)) behind the name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return fcntl.ioctl(probe, request, struct.pack("16s24x", name.encode()))[16:]
