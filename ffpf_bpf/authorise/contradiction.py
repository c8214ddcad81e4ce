"""Keys of a packet class that exclude each other: then it could never hold, which is not what its author meant.

Decided on kinds of packets, ethertype and protocol of IP: every two keys have a kind in common, and so has each
protocol listed with every key. Then on values: `port` holds for one of `src_port` and `dst_port`, if both are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from ffpf_bpf.authorise.mistake import mistake
from ffpf_bpf.authorise.policy import Network, PacketClass, Span
from ffpf_bpf.authorise.protocols import (
    ARP,
    IPV4,
    IPV6,
    RARP,
    SCTP,
    TCP,
    UDP,
    ethertype_name,
    protocol_name,
)

Kinds = frozenset[tuple[int, int]]  # ethertype, and protocol or NO_PROTOCOL
NO_PROTOCOL = -1
NET_KEYS = ("src", "dst", "net")
PORT_KEYS = {
    "port": (TCP, UDP, SCTP), "src_port": (TCP, UDP, SCTP), "dst_port": (TCP, UDP, SCTP),
    "tcp_port": (TCP,), "udp_port": (UDP,), "sctp_port": (SCTP,),
}  # fmt: skip
EITHER = (("net", "src", "dst"), *((f"{of}port", "src_port", "dst_port") for of in ("", "tcp_", "udp_", "sctp_")))
IP_KINDS = {ethertype: frozenset((ethertype, protocol) for protocol in range(256)) for ethertype in (IPV4, IPV6)}
ARP_KINDS: Kinds = frozenset({(ARP, NO_PROTOCOL), (RARP, NO_PROTOCOL)})
HELP = "a packet is in a class only if every key holds; write two classes, or leave one out"


def check_can_hold(packets: PacketClass) -> None:
    """Raises the mistake, if there is one, about the later key."""
    kinds = dict(_kinds(packets))
    for name, some in _protocols(packets):
        for key, others in kinds.items():
            if not some & others:
                raise mistake(f"`{key}` with `proto` {name} can never hold", HELP, "proto")
    for (key, some), (other, others) in combinations(kinds.items(), 2):
        if not some & others:
            raise mistake(f"`{key}` with `{other}` can never hold", HELP, other)
    for either, first, second in EITHER:
        wanted, *sides = (_spans(getattr(packets, key)) for key in (either, first, second))
        if wanted and all(sides) and not any(_meet(wanted, side) for side in sides):
            raise mistake(f"`{either}` excludes `{first}` and `{second}`, so it can never hold", HELP, either)


def _kinds(packets: PacketClass) -> Iterator[tuple[str, Kinds]]:
    """For each key that is given, but for `proto` and `vlan`, the kinds of packets that it can hold for."""
    for key in NET_KEYS:
        if nets := getattr(packets, key):
            versions = {net.version for net in nets}
            four = IP_KINDS[IPV4] | ARP_KINDS if 4 in versions else frozenset()
            yield key, four | (IP_KINDS[IPV6] if 6 in versions else frozenset())
    for key, protocols in PORT_KEYS.items():
        if getattr(packets, key):
            yield key, frozenset((ethertype, protocol) for ethertype in IP_KINDS for protocol in protocols)


def _protocols(packets: PacketClass) -> Iterator[tuple[str, Kinds]]:
    for ethertype in packets.ethertypes:
        yield ethertype_name(ethertype), IP_KINDS.get(ethertype, frozenset({(ethertype, NO_PROTOCOL)}))
    for protocol in packets.protocols:
        yield protocol_name(protocol), frozenset((ethertype, protocol) for ethertype in IP_KINDS)


def _spans(values: tuple[Network | Span, ...]) -> list[tuple[int, int, int]]:
    """Sorted by first and last, behind a version (0 for ports)."""
    return sorted(
        (0, *value)
        if isinstance(value, tuple)
        else (value.version, int(value.network_address), int(value.broadcast_address))
        for value in values
    )


def _meet(some: list[tuple[int, int, int]], others: list[tuple[int, int, int]]) -> bool:
    """Whether two sorted lists, neither of which overlaps itself, have a value in common."""
    i = j = 0
    while i < len(some) and j < len(others):
        (version, first, last), (other_version, other_first, other_last) = some[i], others[j]
        if (version, last) < (other_version, other_first):
            i += 1
        elif (other_version, other_last) < (version, first):
            j += 1
        else:
            return True
    return False
