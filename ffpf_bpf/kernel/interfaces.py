"""Network interfaces of this network namespace, by name."""

from __future__ import annotations

import difflib
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass

from ffpf_bpf.errors import KernelError

SIOCGIFMTU, SIOCGIFHWADDR = 0x8921, 0x8927
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772  # <linux/if_arp.h>
ETHERNET_HEADER_BYTES = 14
VLAN_TAG_BYTES = 4


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface: name, index, largest payload in bytes, and which network namespace it is in."""

    name: str
    index: int
    mtu: int
    namespace: int

    @property
    def longest_frame(self) -> int:
        """Bytes of the longest frame: header, two VLAN tags, payload."""
        return self.mtu + ETHERNET_HEADER_BYTES + 2 * VLAN_TAG_BYTES


def find(name: str) -> Interface:
    """The interface called `name`. Raises KernelError with the nearest name if there is none."""
    try:
        index = socket.if_nametoindex(name)
        mtu = _mtu(name)
    except OSError:
        names = [other for _, other in socket.if_nameindex()]
        near = difflib.get_close_matches(name, names, n=1)
        raise KernelError(
            f"no interface `{name}`",
            errno=errno.ENODEV,
            help=f"did you mean `{near[0]}`?" if near else f"there are {', '.join(names)}",
        ) from None
    real = socket.if_indextoname(index)
    if real != name:
        # A policy's taps are names: another name for the same interface must not get past them.
        raise KernelError(f"`{name}` is another name of `{real}`", errno=errno.ENODEV, help=f"write `{real}`")
    _refuse_if_no_ethernet(name)
    return Interface(name, index, mtu, os.stat("/proc/self/ns/net").st_ino)


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
