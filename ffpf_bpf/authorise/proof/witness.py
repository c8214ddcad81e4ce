"""Packets that show why a proof fails: made of what the solver found, as ordinary as they can be, and tried.

The solver speaks only of bytes that some filter or rule looks at. The others are filled in so that the packet reads
well: usual addresses and ports, lengths and checksums that are right.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import ip_address

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import (
    ARP,
    ICMP,
    ICMP6,
    IPV4,
    IPV6,
    MOST_TAGS,
    RARP,
    SCTP,
    TAG_TYPES,
    TCP,
    UDP,
    Wire,
)

MACS = bytes.fromhex("020000000002020000000001")
SOURCE4, TARGET4 = ip_address("192.0.2.1").packed, ip_address("198.51.100.2").packed
SOURCE6, TARGET6 = ip_address("2001:db8::1").packed, ip_address("2001:db8::2").packed


def ordinary(wire: Wire) -> tuple[Term, ...]:
    """What makes a packet look ordinary, the most important first."""
    no_tag = t.negated(wire.tagged(0))
    ip4, ip6 = t.all_of((no_tag, wire.is_ip4)), t.all_of((no_tag, wire.is_ip6))
    size = t.length()

    def right_length(field: int, behind: int) -> Term:
        stated = t.concat(t.byte(field), t.byte(field + 1))
        return t.equal(t.add(t.widened(stated, t.LENGTH_BITS), t.const(behind, t.LENGTH_BITS)), size)

    header4 = t.all_of((t.equal(t.byte(14), t.const(0x45, 8)), right_length(16, 14)))
    header6 = t.all_of((t.equal(t.byte(14), t.const(0x60, 8)), right_length(18, 54)))
    whole = t.equal(t.bit_and(t.concat(t.byte(20), t.byte(21)), t.const(0x3FFF, 16)), t.const(0, 16))
    usual = t.any_of(wire.is_protocol(each) for each in (TCP, UDP, ICMP, ICMP6))
    return (
        t.any_of((ip4, ip6)),
        t.between(size, 60, 1514),
        t.ite(ip4, header4, t.ite(ip6, header6, t.TRUE)),
        t.ite(ip4, whole, t.TRUE),
        t.ite(t.any_of((ip4, ip6)), usual, t.TRUE),
        t.ite(t.all_of((ip4, t.equal(t.byte(23), t.const(TCP, 8)))), t.equal(t.byte(46), t.const(0x50, 8)), t.TRUE),
        t.between(size, 60, 128),
    )


def is_byte(term: Term) -> bool:
    """A byte of the packet `p`."""
    return term.op == "byte" and term.args[0] == "p"


def tags_of(frame: bytes) -> int:
    """How many VLAN tags it has, of those that are looked through."""
    number = 0
    while number < MOST_TAGS and int.from_bytes(frame[12 + 4 * number : 14 + 4 * number]) in TAG_TYPES:
        number += 1
    return number


def fields_of(frame: bytes) -> list[range]:
    """The bytes that can often be as usual, field by field: MAC addresses, addresses, ports, and all that is not told
    by name."""
    start = 14 + 4 * tags_of(frame)
    is_ip6 = frame[start - 2 : start] == struct.pack("!H", IPV6)
    first, size = (8, 16) if is_ip6 else (12, 4)
    source, target = start + first, start + first + size
    transport = start + (40 if is_ip6 else 4 * (frame[start] & 15 if len(frame) > start else 5))
    return [
        range(12),
        range(transport + 4, len(frame)),
        range(source, target),
        range(target, target + size),
        range(transport, transport + 2),
        range(transport + 2, transport + 4),
        range(start + 4, start + 6),
        range(start + 8, start + 9),
    ]


def packet_of(values: Mapping[Term, int]) -> bytes:
    """The frame of a solver's values. Bytes that they do not say are filled in."""
    size = values.get(t.length(), 64)
    known = {t.offset_of(term): value for term, value in values.items() if is_byte(term)}
    frame = bytearray(size)
    told = set()
    for offset, value in known.items():
        if offset < size:
            frame[offset] = value
            told.add(offset)
    _Filling(frame, told).fill()
    return bytes(frame)


class _Filling:
    """Fills in the bytes of a frame that are not told."""

    def __init__(self, frame: bytearray, told: set[int]) -> None:
        self._frame = frame
        self._told = told

    def fill(self) -> None:
        self._put(0, MACS)
        start = 14
        for _ in range(MOST_TAGS):
            if self._number(start - 2, 2) not in TAG_TYPES:
                break
            self._put(start + 2, struct.pack("!H", IPV4))
            start += 4
        if not self._told & {start - 2, start - 1}:
            self._put(start - 2, struct.pack("!H", IPV4))
        match self._number(start - 2, 2):
            case 0x0800:
                self._ip4(start)
            case 0x86DD:
                self._ip6(start)
            case 0x0806 | 0x8035:
                self._put(start, bytes.fromhex("0001080006040001") + MACS[6:] + SOURCE4 + bytes(6) + TARGET4)

    def _ip4(self, at: int) -> None:
        frame = self._frame
        rest = max(len(frame) - at, 0) & 0xFFFF
        self._put(at, struct.pack("!BBHHHBBH", 0x45, 0, rest, 1, 0, 64, TCP, 0) + SOURCE4 + TARGET4)
        if not self._number(at + 6, 2) & 0x1FFF:
            self._transport(at + 4 * (self._number(at, 1) & 15), self._number(at + 9, 1))
        header = bytes(frame[at : at + 20])
        if len(header) == 20 and header[0] == 0x45:
            total = sum(struct.unpack("!10H", header[:10] + b"\0\0" + header[12:]))
            total = (total & 0xFFFF) + (total >> 16)
            self._put(at + 10, struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF))

    def _ip6(self, at: int) -> None:
        rest = max(len(self._frame) - at - 40, 0) & 0xFFFF
        self._put(at, struct.pack("!IHBB", 0x60000000, rest, TCP, 64) + SOURCE6 + TARGET6)
        if self._number(at + 6, 1) == 44:
            self._put(at + 40, struct.pack("!BBHI", UDP, 0, 0, 1))
            self._transport(at + 48, self._number(at + 40, 1))
        else:
            self._transport(at + 40, self._number(at + 6, 1))

    def _transport(self, at: int, protocol: int) -> None:
        rest = max(len(self._frame) - at, 8) & 0xFFFF
        match protocol:
            case 6:
                self._put(at, struct.pack("!HHIIBBHHH", 49152, 80, 1, 0, 0x50, 0x10, 1024, 0, 0))
            case 17:
                self._put(at, struct.pack("!HHHH", 49152, 53, rest, 0))
            case 132:
                self._put(at, struct.pack("!HHII", 49152, 80, 1, 0))
            case 1:
                self._put(at, struct.pack("!BBHHH", 8, 0, 0, 1, 1))
            case 58:
                self._put(at, struct.pack("!BBHHH", 128, 0, 0, 1, 1))

    def _put(self, at: int, data: bytes) -> None:
        for offset, value in enumerate(data, at):
            if offset < len(self._frame) and offset not in self._told:
                self._frame[offset] = value

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._frame[at : at + size], "big")


def described(frame: bytes) -> str:
    """The frame in words: `IPv4 TCP 192.0.2.1:49152 > 198.51.100.2:80, 64 bytes`."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(frame[at : at + size], "big")

    words: list[str] = []
    start = 14
    for _ in range(MOST_TAGS):
        if number(start - 2, 2) not in TAG_TYPES or len(frame) < start + 4:
            break
        words.append(f"VLAN {number(start, 2) & 0xFFF}")
        start += 4
    kind = number(start - 2, 2)
    if kind == IPV4 and len(frame) >= start + 20:
        protocol, offset = number(start + 9, 1), (number(start + 6, 2) & 0x1FFF) * 8
        ends = [str(ip_address(frame[start + at : start + at + 4])) for at in (12, 16)]
        words.append(_transport_words("IPv4", frame, start + 4 * (number(start, 1) & 15), protocol, offset, ends))
    elif kind == IPV6 and len(frame) >= start + 40:
        protocol, at, offset = number(start + 6, 1), start + 40, 0
        name = "IPv6"
        if protocol == 44 and len(frame) >= at + 8:
            protocol, offset, at, name = number(at, 1), number(at + 2, 2) >> 3 << 3, at + 8, "IPv6 fragment"
        ends = [str(ip_address(frame[start + first : start + first + 16])) for first in (8, 24)]
        words.append(_transport_words(name, frame, at, protocol, offset, [f"[{end}]" for end in ends]))
    elif kind in (ARP, RARP) and len(frame) >= start + 28:
        sender, target = (ip_address(frame[start + at : start + at + 4]) for at in (14, 24))
        words.append(f"{'ARP' if kind == ARP else 'RARP'} {sender} > {target}")
    elif kind < 0x600:
        words.append("802.3 LLC")
    else:
        words.append(f"ethertype {kind:#06x}")
    return f"{' '.join(words)}, {len(frame)} bytes"


PROTOCOL_NAMES = {
    TCP: "TCP", UDP: "UDP", SCTP: "SCTP", ICMP: "ICMP", ICMP6: "ICMPv6", 4: "IP-in-IP", 41: "6in4", 47: "GRE",
    50: "ESP", 51: "AH", 0: "hop-by-hop", 43: "routing", 60: "destination options",
}  # fmt: skip


def _transport_words(version: str, frame: bytes, at: int, protocol: int, offset: int, ends: list[str]) -> str:
    name = PROTOCOL_NAMES.get(protocol, f"protocol {protocol}")
    source, target = ends
    if offset:
        return f"{version} {name} {source} > {target}, fragment at {offset}"
    if protocol in (TCP, UDP, SCTP) and len(frame) >= at + 4:
        ports = struct.unpack("!HH", frame[at : at + 4])
        return f"{version} {name} {source}:{ports[0]} > {target}:{ports[1]}"
    if protocol in (ICMP, ICMP6) and len(frame) > at:
        return f"{version} {name} type {frame[at]} {source} > {target}"
    return f"{version} {name} {source} > {target}"
