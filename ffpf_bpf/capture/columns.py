"""A batch's headers as columns, taken apart with numpy: all packets at once, none in Python.

Understood is what bpf_src/dissect.h says: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with up to 8 extension
headers, fragments, ports of TCP, UDP and SCTP. Tunnels are the payload of what carries them. Bytes that were not
captured are not there.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np

from ffpf_bpf.capture.layout import HEADER_BYTES

NO_VLAN = 0xFFFF
ETHERNET_BYTES, MOST_TAGS, MOST_EXTENSIONS = 14, 2, 8
TAGS = (0x8100, 0x88A8, 0x9100)
IP4, IP6 = 0x0800, 0x86DD
ICMP, TCP, UDP, FRAGMENT, AH, ICMP6, SCTP = 1, 6, 17, 44, 51, 58, 132
EXTENSIONS = (0, 43, FRAGMENT, AH, 60, 135)
FIXED_BYTES = {UDP: 8, ICMP: 8, ICMP6: 8, SCTP: 12}
Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(slots=True)
class Headers:
    """A value for each packet, named and numbered as the members of `struct ffpf_headers` (bpf_src/ffpf.h): offsets in
    bytes, `vlan` 65,535 without a tag, `version` 0 if it is not IP, `fragment` 0 for none, 1 for the first, 2 for a
    later one, `ports` and `tcp` whether these are there."""

    ethertype: Array
    vlan: Array
    l3: Array
    l4: Array
    payload: Array
    sport: Array
    dport: Array
    version: Array
    protocol: Array
    fragment: Array
    ports: Array
    tcp_flags: Array
    traffic: Array
    ttl: Array
    tcp: Array


class _Bytes:
    """The captured bytes of all packets. What is asked for must be there: `has` tells."""

    def __init__(self, records: Array) -> None:
        whole = np.ascontiguousarray(records)
        self.flat = whole.view(np.uint8).reshape(-1)
        self.first = np.arange(len(whole), dtype=np.int64) * whole.itemsize + HEADER_BYTES
        room = whole.dtype["data"].itemsize
        self.captured = np.minimum(whole["captured"].astype(np.int64), room)

    def has(self, rows: Array, end: Any) -> Array:
        return cast(Array, self.captured[rows] >= end)

    def byte(self, rows: Array, offset: Any) -> Array:
        return cast(Array, self.flat[self.first[rows] + offset])

    def be16(self, rows: Array, offset: Any) -> Array:
        at = self.first[rows] + offset
        return cast(Array, self.flat[at].astype(np.uint16) << 8 | self.flat[at + 1])


def dissect(records: Array) -> Headers:
    """The headers of each packet of ring slots (`layout.slot_dtype`), shape (packets,) each."""
    data, count = _Bytes(records), len(records)

    def column(kind: type, value: int = 0) -> Array:
        return np.full(count, value, kind)

    found = Headers(
        *(column(np.uint16, value) for value in (0, NO_VLAN)),
        *(column(np.int64, value) for value in (ETHERNET_BYTES, 0, 0)),
        *(column(np.uint16) for _ in range(2)),
        *(column(np.uint8) for _ in range(8)),
    )
    _ethernet(data, found)
    found.l4[:] = found.l3
    _ip4(data, found)
    _ip6(data, found)
    _transport(data, found)
    return found


def _ethernet(data: _Bytes, found: Headers) -> None:
    rows = np.flatnonzero(data.captured >= ETHERNET_BYTES)
    found.ethertype[rows] = data.be16(rows, 12)
    for number in range(MOST_TAGS):
        rows = np.flatnonzero(np.isin(found.ethertype, TAGS))
        rows = rows[data.has(rows, found.l3[rows] + 4)]
        if not len(rows):
            return
        if number == 0:
            found.vlan[rows] = data.be16(rows, ETHERNET_BYTES) & 0xFFF
        found.ethertype[rows] = data.be16(rows, found.l3[rows] + 2)
        found.l3[rows] += 4


def _ip4(data: _Bytes, found: Headers) -> None:
    rows = np.flatnonzero(found.ethertype == IP4)
    rows = rows[data.has(rows, found.l3[rows] + 20)]
    first = data.byte(rows, found.l3[rows])
    is_ip = (first >> 4 == 4) & (first & 15 >= 5)
    rows, first = rows[is_ip], first[is_ip]
    l3 = found.l3[rows]
    fragment = data.be16(rows, l3 + 6)
    found.version[rows] = 4
    found.traffic[rows] = data.byte(rows, l3 + 1)
    found.ttl[rows] = data.byte(rows, l3 + 8)
    found.protocol[rows] = data.byte(rows, l3 + 9)
    found.fragment[rows] = np.where(fragment & 0x1FFF, 2, np.where(fragment & 0x2000, 1, 0))
    found.l4[rows] = l3 + (first & 15).astype(np.int64) * 4


def _ip6(data: _Bytes, found: Headers) -> None:
    rows = np.flatnonzero(found.ethertype == IP6)
    rows = rows[data.has(rows, found.l3[rows] + 40)]
    first = data.byte(rows, found.l3[rows])
    rows = rows[first >> 4 == 6]
    l3 = found.l3[rows]
    found.version[rows] = 6
    found.traffic[rows] = data.be16(rows, l3) >> 4 & 0xFF
    found.ttl[rows] = data.byte(rows, l3 + 7)
    found.protocol[rows] = data.byte(rows, l3 + 6)
    found.l4[rows] = l3 + 40
    for _ in range(MOST_EXTENSIONS):
        rows = rows[np.isin(found.protocol[rows], EXTENSIONS) & (found.fragment[rows] != 2)]
        rows = rows[data.has(rows, found.l4[rows] + 8)]
        if not len(rows):
            return
        _extension(data, found, rows)


def _extension(data: _Bytes, found: Headers, rows: Array) -> None:
    l4, kind = found.l4[rows], found.protocol[rows]
    length = data.byte(rows, l4 + 1).astype(np.int64)
    size = np.where(kind == AH, (length + 2) * 4, (length + 1) * 8)
    is_fragment = kind == FRAGMENT
    size[is_fragment] = 8
    cut = rows[is_fragment]
    where = data.be16(cut, found.l4[cut] + 2)
    known = found.fragment[cut]
    found.fragment[cut] = np.where(where >> 3, 2, np.where(where & 1, 1, known))
    found.protocol[rows] = data.byte(rows, l4)
    found.l4[rows] = l4 + size


def _transport(data: _Bytes, found: Headers) -> None:
    header_bytes = np.zeros(len(found.l4), np.int64)
    has_header = (found.version != 0) & (found.fragment != 2)
    rows = np.flatnonzero(has_header & np.isin(found.protocol, (TCP, UDP, SCTP)))
    rows = rows[data.has(rows, found.l4[rows] + 4)]
    found.ports[rows] = 1
    found.sport[rows] = data.be16(rows, found.l4[rows])
    found.dport[rows] = data.be16(rows, found.l4[rows] + 2)
    for protocol, size in FIXED_BYTES.items():
        header_bytes[has_header & (found.protocol == protocol)] = size
    rows = np.flatnonzero(has_header & (found.protocol == TCP))
    header_bytes[rows] = 1 << 32  # to the end, if the header is cut
    rows = rows[data.has(rows, found.l4[rows] + 20)]
    found.tcp[rows] = 1
    found.tcp_flags[rows] = data.byte(rows, found.l4[rows] + 13)
    header_bytes[rows] = (data.byte(rows, found.l4[rows] + 12) >> 4).astype(np.int64) * 4
    found.payload[:] = np.minimum(data.captured, found.l4 + header_bytes)


def addresses(records: Array, headers: Headers) -> tuple[list[str], Array, Array]:
    """The addresses that occur, as text, and for each packet the number of its source and of its destination among
    them, -1 if it is not IP."""
    data = _Bytes(records)
    names: list[str] = []
    places = [np.full(len(records), -1, np.int32) for _ in range(2)]
    for version, start, size, family in ((4, 12, 4, socket.AF_INET), (6, 8, 16, socket.AF_INET6)):
        rows = np.flatnonzero(headers.version == version)
        if not len(rows):
            continue
        at = data.first[rows] + headers.l3[rows] + start
        both = np.concatenate([at, at + size])
        raw = data.flat[both[:, None] + np.arange(size)]
        keys = raw.view(np.uint32).reshape(-1) if size == 4 else raw.view("V16").reshape(-1)
        _, first, number = np.unique(keys, return_index=True, return_inverse=True)
        for place, half in zip(places, np.split(number.reshape(-1), 2), strict=True):
            place[rows] = half + len(names)
        names += [socket.inet_ntop(family, raw[each].tobytes()) for each in first.tolist()]
    return names, places[0], places[1]
