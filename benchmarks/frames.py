"""Packets for the benchmarks: whole Ethernet frames, at least 60 bytes."""

from __future__ import annotations

import struct
from ipaddress import ip_address

TCP, UDP, ICMP, SCTP = 6, 17, 1, 132
SYN, ACK = 0x02, 0x10
SMALLEST_FRAME = 60


def ethernet(kind: int, payload: bytes, vlan: int = 0) -> bytes:
    tag = struct.pack(">HH", vlan, 7) if vlan else b""
    addresses = bytes.fromhex("020000000001020000000002")
    return (addresses + tag + struct.pack(">H", kind) + payload).ljust(SMALLEST_FRAME, b"\0")


def ipv4(
    protocol: int, payload: bytes, *, source: str = "10.77.0.2", to: str = "10.77.0.9", fragment: int = 0,
    options: int = 0, vlan: int = 0,
) -> bytes:  # fmt: skip
    """An IPv4 frame; `options` counts 32-bit words of IP options."""
    header = struct.pack(">BBHHHBBH", 0x45 + options, 0, 20 + 4 * options + len(payload), 1, fragment, 64, protocol, 0)
    addresses = ip_address(source).packed + ip_address(to).packed
    return ethernet(0x0800, header + addresses + b"\1" * 4 * options + payload, vlan)


def ipv6(following: int, payload: bytes) -> bytes:
    addresses = ip_address("fd00::2").packed + ip_address("fd00::9").packed
    return ethernet(0x86DD, struct.pack(">IHBB", 6 << 28, len(payload), following, 64) + addresses + payload)


def arp(source: str, to: str) -> bytes:
    senders, targets = (bytes(6) + ip_address(address).packed for address in (source, to))
    return ethernet(0x0806, struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + senders + targets)


def tcp(source: int, to: int, flags: int = ACK) -> bytes:
    return struct.pack(">HHIIBBHHH", source, to, 1, 1, 0x50, flags, 1024, 0, 0)


def udp(source: int, to: int, payload: bytes = b"x" * 32) -> bytes:
    return struct.pack(">HHHH", source, to, 8 + len(payload), 0) + payload


# Every kind of packet that the measured filters tell apart: what is compared has the same verdict on all of them.
ASSORTED = (
    *(ipv4(TCP, tcp(1234, port)) for port in (80, 443, 53, 22)),
    *(ipv4(TCP, tcp(port, 1234, SYN)) for port in (80, 443, 53, 22)),
    *(ipv4(UDP, udp(1234, port)) for port in (80, 443, 53, 22)),
    *(ipv4(protocol, udp(port, port), options=3) for protocol in (UDP, TCP, SCTP) for port in (53, 80)),
    *(ipv4(UDP, udp(53, 80), fragment=fragment) for fragment in (0x2000, 0x4000, 0x0001, 0x20B9)),
    *(ipv4(TCP, tcp(80, 80, SYN), fragment=fragment) for fragment in (0x2000, 0x4000, 0x0001, 0x20B9)),
    *(ipv4(ICMP, b"\x08\0" + bytes(30), source=source) for source in ("10.0.0.1", "10.1.2.3", "10.2.0.1")),
    *(ipv4(TCP, tcp(9, 9), to=to) for to in ("10.0.0.1", "10.1.2.3", "10.2.0.1", "11.1.0.0")),
    *(arp(source, "10.77.0.9") for source in ("10.0.0.1", "10.1.9.9", "10.3.0.1")),
    *(arp("10.77.0.9", to) for to in ("10.0.0.1", "10.1.9.9", "10.3.0.1")),
    *(ipv6(protocol, udp(port, 1234)) for protocol in (UDP, TCP, SCTP, 58) for port in (53, 80, 443, 22)),
    *(ipv6(44, bytes([protocol, 0, 0, 0, 0, 0, 0, 1]) + tcp(80, 80)) for protocol in (TCP, UDP)),
    *(ipv4(TCP, tcp(80, 80), vlan=vlan) for vlan in (0x8100, 0x88A8, 0x9100)),
    ethernet(0x86DD, bytes(46), vlan=0x8100),
    ethernet(0x88CC, bytes(46)),
)
