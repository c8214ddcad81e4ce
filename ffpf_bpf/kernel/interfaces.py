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
# <linux/if_arp.h>: frames with an Ethernet header; and what has no header of the link layer (dev_is_mac_header_xmit),
# such as tun and WireGuard, modems, PPP, ipip, ip6tnl and sit.
ETHERNET = frozenset({1, 772})  # ETHER, LOOPBACK
LAYER_3 = frozenset({65534, 519, 512, 768, 769, 776})  # NONE, RAWIP, PPP, TUNNEL, TUNNEL6, SIT
ETHERNET_HEADER_BYTES = 14
VLAN_TAG_BYTES = 4


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface: its name as a flow has it, index, largest payload in bytes, its network namespace's inode, and
    whether it is a layer 3 device, whose packets have no header of the link layer."""

    name: str
    index: int
    mtu: int
    namespace: int
    is_layer_3: bool = False

    @property
    def longest_frame(self) -> int:
        """Bytes of the longest frame: header, two VLAN tags, payload."""
        return self.mtu + ETHERNET_HEADER_BYTES + 2 * VLAN_TAG_BYTES

    def check_hook(self, hook: str) -> None:
        """Raise KernelError for one at which its packets cannot be shown as frames."""
        if self.is_layer_3 and hook == "xdp":
            raise KernelError(
                f"packets of `{self.name}` have no Ethernet header at XDP",
                errno=errno.EPROTONOSUPPORT,
                help=f"grab at tc, where they are shown with one: `{self.name}@tc-ingress`, what arrives, or "
                f"`{self.name}@tc-egress`, what is sent",
            )


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
    return Interface(f"{place}{name}", index, mtu, inode, _is_layer_3(name))


def is_layer_3(kind: int) -> bool:
    """Whether packets of a kind of interface (ARPHRD_) have no header of the link layer."""
    return kind in LAYER_3


def _is_layer_3(name: str) -> bool:
    """Raises KernelError for an interface whose packets have a header of another kind than Ethernet's: filters, nodes
    and proofs are about that."""
    (kind,) = struct.unpack_from("H", _asked(name, SIOCGIFHWADDR))
    if kind not in ETHERNET and not is_layer_3(kind):
        raise KernelError(
            f"packets of `{name}` have another header than Ethernet's (ARPHRD {kind})",
            errno=errno.EPROTONOSUPPORT,
            help="flows grab Ethernet frames, and packets without such a header: take the interface that carries it",
        )
    return is_layer_3(kind)


def _mtu(name: str) -> int:
    return int(struct.unpack_from("i", _asked(name, SIOCGIFMTU))[0])


def _asked(name: str, request: int) -> bytes:
    """What the kernel says of an interface: struct ifreq (netdevice(7)) behind the name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return fcntl.ioctl(probe, request, struct.pack("16s24x", name.encode()))[16:]
