"""Frames dissected by hand, as `struct ffpf_headers` in bpf_src/ffpf.h describes it, and the hash of their flows.

Written from the comments there and in bpf_src/dissect.h, not from the C code, so that a mistake in either shows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

TAGS = (0x8100, 0x88A8, 0x9100)
MOST_TAGS = 2
NO_VLAN = 0xFFFF
HOP_BY_HOP, ICMP, TCP, UDP, ROUTING, FRAGMENT, AH, ICMP6, DESTINATION, SCTP, MOBILITY = (
    0, 1, 6, 17, 43, 44, 51, 58, 60, 132, 135,
)  # fmt: skip
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION, MOBILITY)
MOST_EXTENSIONS = 8
FIXED_BYTES = {UDP: 8, ICMP: 8, ICMP6: 8, SCTP: 12}
WORD = (1 << 64) - 1


@dataclass
class Headers:
    """What there is to know of a frame's headers; offsets in bytes."""

    ethertype: int = 0
    vlan: int = NO_VLAN
    l3: int = 14
    l4: int = 0
    payload: int = 0
    sport: int = 0
    dport: int = 0
    version: int = 0
    protocol: int = 0
    fragment: int = 0
    ports: int = 0
    tcp_flags: int = 0
    traffic: int = 0
    ttl: int = 0
    tcp: int = 0

    @classmethod
    def noted(cls, record: np.void) -> Headers:
        """The kernel's own, a record of layout.HEADERS_DTYPE."""
        return cls(**{each.name: int(record[each.name]) for each in fields(cls)})


def dissect(frame: bytes) -> Headers:
    """The headers of a frame of at least 14 bytes."""
    found = Headers(ethertype=number(frame, 12, 2))
    for tag in range(MOST_TAGS):
        if found.ethertype not in TAGS or len(frame) < found.l3 + 4:
            break
        if tag == 0:
            found.vlan = number(frame, found.l3, 2) & 0xFFF
        found.ethertype = number(frame, found.l3 + 2, 2)
        found.l3 += 4
    found.l4 = found.l3
    ip = frame[found.l3 :]
    if found.ethertype == 0x0800 and len(ip) >= 20 and ip[0] >> 4 == 4 and ip[0] & 15 >= 5:
        _ip4(found, ip)
    elif found.ethertype == 0x86DD and len(ip) >= 40 and ip[0] >> 4 == 6:
        _ip6(found, ip)
    _transport(found, frame)
    return found


def _ip4(found: Headers, ip: bytes) -> None:
    found.version, found.traffic, found.ttl, found.protocol = 4, ip[1], ip[8], ip[9]
    found.l4 += 4 * (ip[0] & 15)
    more, offset = number(ip, 6, 2) & 0x2000, number(ip, 6, 2) & 0x1FFF
    found.fragment = 2 if offset else 1 if more else 0


def _ip6(found: Headers, ip: bytes) -> None:
    found.version, found.traffic, found.ttl, found.protocol = 6, number(ip, 0, 2) >> 4 & 0xFF, ip[7], ip[6]
    at = 40
    for _ in range(MOST_EXTENSIONS):
        extension = ip[at : at + 8]
        if found.protocol not in EXTENSIONS or len(extension) < 8 or found.fragment == 2:
            break
        at += 4 * (extension[1] + 2) if found.protocol == AH else 8
        if found.protocol == FRAGMENT:
            offset, more = number(extension, 2, 2) >> 3, extension[3] & 1
            found.fragment = 2 if offset else 1 if more else found.fragment
        elif found.protocol != AH:
            at += 8 * extension[1]
        found.protocol = extension[0]
    found.l4 += at


def _transport(found: Headers, frame: bytes) -> None:
    header = frame[found.l4 :]
    header_bytes = 0
    if found.version and found.fragment != 2:
        if found.protocol in (TCP, UDP, SCTP) and len(header) >= 4:
            found.ports, found.sport, found.dport = 1, number(header, 0, 2), number(header, 2, 2)
        if found.protocol == TCP and len(header) >= 20:
            found.tcp, found.tcp_flags, header_bytes = 1, header[13], 4 * (header[12] >> 4)
        elif found.protocol == TCP:
            header_bytes = len(header)
        else:
            header_bytes = FIXED_BYTES.get(found.protocol, 0)
    found.payload = min(len(frame), found.l4 + header_bytes)


def flow_hash(frame: bytes, seed: int) -> int:
    """The hash of a frame's flow: addresses, ports and protocol, each end mixed for itself, so that it does not matter
    which is the source. Words are little-endian, as they lie in a machine's memory."""
    found = dissect(frame)
    ip = frame[found.l3 :]
    if found.version == 4:
        source, target = ip[12:16], ip[16:20]
    elif found.version == 6:
        source, target = ip[8:24], ip[24:40]
    else:
        source, target = frame[6:12], frame[:6]
    what = found.ethertype
    if found.version:
        # What the fragments of a datagram have in common; of IPv6, only the first one knows the protocol.
        is_fragment6 = found.version == 6 and found.fragment
        what = found.version << 32 | (FRAGMENT if is_fragment6 else found.protocol)
    with_ports = found.version and not found.fragment
    ends = (
        _end(seed ^ (found.sport << 32 if with_ports else 0), source),
        _end(seed ^ (found.dport << 32 if with_ports else 0), target),
    )
    return mix(sum(ends) + what & WORD) or 1


def _end(state: int, address: bytes) -> int:
    size = 6 if len(address) == 6 else 4
    for at in range(0, len(address), size):
        state = mix(state ^ int.from_bytes(address[at : at + size], "little"))
    return state


def mix(x: int) -> int:
    """Stafford's variant 13 of the finaliser of MurmurHash3."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def number(data: bytes, at: int, size: int) -> int:
    """Big-endian; 0 where a byte is missing."""
    return int.from_bytes(data[at : at + size], "big") if at + size <= len(data) else 0
