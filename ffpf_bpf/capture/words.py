"""A packet -> one line of text for a terminal, in tcpdump's manner (`tcpdump -n -S`, with the tags of `-e`).

Promises: never raises, whatever the bytes, and the line is printable ASCII, for packets come from strangers and go to
terminals. What the capture cut off is `[|layer]`, as in tcpdump. Each layer is a function of its bytes, as far as they
were captured, and of its length on the wire; it checks both before it reads.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import replace

import dpkt

from ffpf_bpf.capture.packet import Packet, printable
from ffpf_bpf.capture.transport import TRANSPORTS, Datagram, ip6_text, ip_text

MOST_NESTED = 8  # tags, labels and tunnels, one in another
MOST_LABELS = 8
TAGS = {0x8100, 0x88A8, 0x9100, 0x9200}
FRAGMENT, AUTHENTICATION = 44, 51
ETHERTYPES = {0x888E: "EAPOL", 0x88CC: "LLDP", 0x88E5: "MACsec", 0x88F7: "PTP", 0x9000: "Loopback"}
PPPOE_CODES = {0x09: "PADI", 0x07: "PADO", 0x19: "PADR", 0x65: "PADS", 0xA7: "PADT"}
PPP_PROTOCOLS = {0xC021: "LCP", 0xC023: "PAP", 0xC223: "CHAP", 0x8021: "IPCP", 0x8057: "IP6CP"}
IP6_EXTENSIONS = {0: " HBH", 43: " srcrt", 60: " DSTOPT", AUTHENTICATION: " AH"}


def line(packet: Packet) -> str:
    """The packet in one line, its time in the local time zone."""
    seconds, nanoseconds = divmod(packet.time_ns, 10**9)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{clock}.{nanoseconds:09} {printable(packet.interface)} {_ethernet(packet.data, packet.length, 0)}"


# Frames


def _ethernet(data: bytes, length: int, depth: int) -> str:
    if len(data) < 14:
        return "[|ether]"
    ethertype = int.from_bytes(data[12:14])
    known = _frame(ethertype, data[14:], length - 14, depth)
    return known or f"{_mac(data[6:])} > {_mac(data)}, ethertype Unknown (0x{ethertype:04x}), length {length}"


def _frame(ethertype: int, data: bytes, length: int, depth: int) -> str:
    """What an ethertype stands for; empty if it is not known."""
    if depth > MOST_NESTED:
        return f"..., length {length}"
    match ethertype:
        case 0x0800:
            return _ip(data, length, depth)
        case 0x86DD:
            return _ip6(data, length, depth)
        case 0x0806:
            return f"ARP, {_arp(data)}, length {length}"
        case 0x8035:
            return f"RARP, {_arp(data)}, length {length}"
        case 0x8847 | 0x8848:
            return _mpls(data, length, depth)
        case 0x8863 | 0x8864:
            return _pppoe(data, length, depth)
        case _ if ethertype in TAGS:
            return _vlan(data, length, depth)
        case _ if ethertype <= 1500:
            return _llc(data[:ethertype], ethertype, depth)
        case _:
            name = ETHERTYPES.get(ethertype)
            return f"{name}, length {length}" if name else ""


def _vlan(data: bytes, length: int, depth: int) -> str:
    if len(data) < 4:
        return "[|vlan]"
    tag, ethertype = struct.unpack_from("!HH", data)
    eligible = ", DEI" if tag & 0x1000 else ""
    inner = _frame(ethertype, data[4:], length - 4, depth + 1)
    return f"vlan {tag & 0xFFF}, p {tag >> 13}{eligible}, " + (
        inner or f"ethertype Unknown (0x{ethertype:04x}), length {length - 4}"
    )


def _mpls(data: bytes, length: int, depth: int) -> str:
    text, offset = "MPLS", 0
    while True:
        if offset == 4 * MOST_LABELS:
            return f"{text} ..."
        if len(data) < offset + 4:
            return f"{text} [|mpls]"
        entry = int.from_bytes(data[offset : offset + 4])
        bottom = entry & 0x100
        stack = ", [S]" if bottom else ""
        text += f" (label {entry >> 12}, tc {entry >> 9 & 7}{stack}, ttl {entry & 0xFF})"
        offset += 4
        if bottom:
            break
    ethertype = {4: 0x0800, 6: 0x86DD}.get(data[offset] >> 4 if len(data) > offset else 0, 0xFFFF)
    inner = _frame(ethertype, data[offset:], length - offset, depth + 1)
    return f"{text} {inner}" if inner else f"{text}, length {length - offset}"


def _pppoe(data: bytes, length: int, depth: int) -> str:
    if len(data) < 6:
        return "PPPoE [|pppoe]"
    code, session = struct.unpack_from("!xBH", data)
    text = f"PPPoE [ses 0x{session:x}]" if session else "PPPoE"
    if code:
        return f"{text} {PPPOE_CODES.get(code, f'code 0x{code:02x}')}, length {length - 6}"
    if len(data) < 8:
        return f"{text} [|ppp]"
    protocol = int.from_bytes(data[6:8])
    ethertype = {0x21: 0x0800, 0x57: 0x86DD}.get(protocol, 0xFFFF)
    inner = _frame(ethertype, data[8:], length - 8, depth + 1)
    name = PPP_PROTOCOLS.get(protocol, f"PPP protocol 0x{protocol:04x}")
    return f"{text} {inner or f'{name}, length {length - 8}'}"


def _llc(data: bytes, length: int, depth: int) -> str:
    """802.2, and the spanning tree in it."""
    if len(data) < 3:
        return "[|llc]"
    destination, source, control = data[:3]
    if (destination, source) == (0xAA, 0xAA):
        if len(data) < 8:
            return "[|snap]"
        organisation, ethertype = int.from_bytes(data[3:6]), int.from_bytes(data[6:8])
        inner = _frame(ethertype, data[8:], length - 8, depth + 1) if not organisation else ""
        return inner or f"SNAP, oui 0x{organisation:06x}, pid 0x{ethertype:04x}, length {length - 8}"
    if (destination, source) == (0x42, 0x42):
        return f"STP {_stp(data[3:])}, length {length - 3}"
    return f"LLC, dsap 0x{destination:02x}, ssap 0x{source:02x}, cmd 0x{control:02x}, length {length}"


def _stp(data: bytes) -> str:
    if len(data) < 4:
        return "[|stp]"
    kind = {0x00: "802.1d, Config", 0x02: "802.1w, Rapid STP", 0x80: "802.1d, Topology Change"}.get(data[3])
    if kind is None or data[3] == 0x80:
        return kind or f"type 0x{data[3]:02x}"
    if len(data) < 35:
        return f"{kind} [|stp]"
    message = dpkt.stp.STP(data)
    flags = f"0x{message.flags:02x}" if message.flags else "none"
    bridge = f"{message.bridge_id[:2].hex()}.{_mac(message.bridge_id[2:])}.{message.port_id:04x}"
    return f"{kind}, Flags [{flags}], bridge-id {bridge}"


def _arp(data: bytes) -> str:
    if len(data) < 8:
        return "[|arp]"
    if data[:6] != bytes.fromhex("000108000604"):
        hardware, protocol = struct.unpack_from("!HH", data)
        return f"hardware {hardware}, protocol 0x{protocol:04x}"
    if len(data) < 28:
        return "[|arp]"
    arp = dpkt.arp.ARP(data)
    sender, target = ip_text(arp.spa), ip_text(arp.tpa)
    match arp.op:
        case dpkt.arp.ARP_OP_REQUEST:
            known = f" ({_mac(arp.tha)})" if any(arp.tha) and arp.tha != b"\xff" * 6 else ""
            return f"Request who-has {target}{known} tell {sender}"
        case dpkt.arp.ARP_OP_REPLY:
            return f"Reply {sender} is-at {_mac(arp.sha)}"
        case dpkt.arp.ARP_OP_REVREQUEST:
            return f"Reverse Request who-is {_mac(arp.tha)} tell {_mac(arp.sha)}"
        case dpkt.arp.ARP_OP_REVREPLY:
            return f"Reverse Reply {_mac(arp.tha)} at {target}"
        case operation:
            return f"op {operation}"


# Internet


def _ip(data: bytes, length: int, depth: int) -> str:
    if len(data) < 20:
        return "IP [|ip]"
    if data[0] >> 4 != 4:
        return f"IP wrong version {data[0] >> 4}, length {length}"
    header_bytes = (data[0] & 15) * 4
    if header_bytes < 20:
        return f"IP bad-hlen {header_bytes}"
    ip = dpkt.ip.IP(data[:20])  # the header only: what is inside may be anything, and is ours to read
    total = ip.len or length  # 0: segmentation is left to the interface
    if total < header_bytes:
        return f"IP bad-len {total}"
    missing = f"truncated-ip - {total - length} bytes missing! " if total > length else ""
    payload = data[header_bytes:total]
    datagram = Datagram(ip_text(ip.src), ip_text(ip.dst), payload, total - header_bytes, depth)
    if ip.offset:
        return f"IP {missing}{datagram.ends} ip-proto-{ip.p}, fragment at {ip.offset * 8}, length {datagram.length}"
    return f"IP {missing}{_carried(ip.p, datagram)}"


def _ip6(data: bytes, length: int, depth: int) -> str:
    if len(data) < 40:
        return "IP6 [|ip6]"
    if data[0] >> 4 != 6:
        return f"IP6 wrong version {data[0] >> 4}, length {length}"
    payload, following = struct.unpack_from("!HB", data, 4)
    total = 40 + payload if payload else length  # 0: segmentation is left to the interface, or a jumbogram
    missing = f"truncated-ip6 - {total - length} bytes missing! " if total > length else ""
    datagram = Datagram(ip6_text(data[8:24]), ip6_text(data[24:40]), data[40:total], max(total - 40, 0), depth)
    return f"IP6 {missing}{_extended(following, datagram)}"


def _extended(following: int, datagram: Datagram) -> str:
    """Past the extension headers of IPv6 (RFC 8200 section 4)."""
    for _ in range(MOST_NESTED):
        if following not in IP6_EXTENSIONS and following != FRAGMENT:
            return _carried(following, datagram)
        data, words = datagram.data, datagram.extensions
        if len(data) < 8:
            return f"{datagram.ends} [|ip6 extension]"
        if following == FRAGMENT:
            offset, size = int.from_bytes(data[2:4]) & 0xFFF8, 8
            words += f" frag ({offset}|{datagram.length - size})"
            if offset:
                return f"{datagram.source} > {datagram.target}:{words}"
        else:
            size = (data[1] + 2) * 4 if following == AUTHENTICATION else (data[1] + 1) * 8
            words += IP6_EXTENSIONS[following]
        following = data[0]
        datagram = replace(datagram, data=data[size:], length=max(datagram.length - size, 0), extensions=words)
    return f"{datagram.ends} ..."


def _carried(protocol: int, datagram: Datagram) -> str:
    if protocol in CARRIED:
        return CARRIED[protocol](datagram)
    return f"{datagram.ends} ip-proto-{protocol} {datagram.length}"


def _gre(datagram: Datagram) -> str:
    """RFC 2784 and 2890; version 1 is PPTP's."""
    data = datagram.data
    if len(data) < 4:
        return f"{datagram.ends} [|gre]"
    flags, ethertype = struct.unpack_from("!HH", data)
    text = f"{datagram.ends} GREv{flags & 7}, length {datagram.length}"
    if flags & 7:
        return text
    header_bytes = 4 + 4 * sum(bool(flags & bit) for bit in (0x8000, 0x2000, 0x1000))
    length = datagram.length - header_bytes
    if ethertype == 0x6558:
        return f"{text}: {_ethernet(data[header_bytes:], length, datagram.depth + 1)}"
    inner = _frame(ethertype, data[header_bytes:], length, datagram.depth + 1)
    return f"{text}: {inner or f'gre-proto-0x{ethertype:x}'}"


def _tunnel(ethertype: int) -> Callable[[Datagram], str]:
    return lambda outer: f"{outer.ends} {_frame(ethertype, outer.data, outer.length, outer.depth + 1)}"


CARRIED: dict[int, Callable[[Datagram], str]] = {
    **TRANSPORTS,
    4: _tunnel(0x0800),
    41: _tunnel(0x86DD),
    47: _gre,
}


# Names


def _mac(data: bytes) -> str:
    return data[:6].hex(":")
