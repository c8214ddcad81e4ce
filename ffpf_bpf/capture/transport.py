"""What IP carries -> words: TCP, UDP, SCTP, ICMP, ESP. Each layer is a function of a datagram; none of them raises.

The manner is tcpdump's; what the capture cut off is `[|layer]`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

import dpkt

from ffpf_bpf.capture import dns

MOST_CHUNKS = 8
TCP, UDP = 6, 17
DNS_PORTS = {53, 5353, 5355}
TCP_FLAGS = "FSRP.UEW"
TCP_OPTIONS = {1: "nop", 2: "mss", 3: "wscale", 4: "sackOK", 5: "sack", 8: "TS"}
ICMP_UNREACHABLE = {
    0: "net {0} unreachable",
    1: "host {0} unreachable",
    2: "{0} protocol {1} unreachable",
    3: "{0} {2} port {3} unreachable",
    4: "{0} unreachable - need to frag (mtu {4})",
    9: "net {0} unreachable - admin prohibited",
    10: "host {0} unreachable - admin prohibited",
    13: "host {0} unreachable - admin prohibited filter",
}
ICMP6_UNREACHABLE = {
    0: "unreachable route {0}",
    1: "unreachable prohibited {0}",
    3: "unreachable address {0}",
    4: "unreachable port, {0} {2} port {3}",
}
ICMP6_TYPES = {
    130: "multicast listener query", 131: "multicast listener report", 132: "multicast listener done",
    133: "router solicitation", 134: "router advertisement", 143: "multicast listener report v2",
}  # fmt: skip
SCTP_CHUNKS = [
    "DATA", "INIT", "INIT ACK", "SACK", "HB REQ", "HB ACK", "ABORT", "SHUTDOWN", "SHUTDOWN ACK", "OP ERR",
    "COOKIE ECHO", "COOKIE ACK", "ECN ECHO", "CWR", "SHUTDOWN COMPLETE",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Datagram:
    """What IP carries: `length` bytes on the wire, `data` of them captured. `extensions` are the headers on the way."""

    source: str
    target: str
    data: bytes
    length: int
    depth: int
    extensions: str = ""

    @property
    def ends(self) -> str:
        return f"{self.source} > {self.target}:{self.extensions}"

    @property
    def port_ends(self) -> str:
        """With the ports, which the first four bytes are in TCP, UDP and SCTP."""
        source, target = struct.unpack_from("!HH", self.data)
        return f"{self.source}.{source} > {self.target}.{target}:{self.extensions}"


def _tcp(datagram: Datagram) -> str:
    data = datagram.data
    if len(data) < 20:
        return f"{datagram.port_ends if len(data) >= 4 else datagram.ends} [|tcp]"
    header_bytes = (data[12] >> 4) * 4
    if not 20 <= header_bytes <= datagram.length:
        wrong = "too short, < 20" if header_bytes < 20 else f"too long, > {datagram.length}"
        return f"{datagram.port_ends} tcp {datagram.length} [bad hdr length {header_bytes} - {wrong}]"
    tcp = dpkt.tcp.TCP(data)
    length = datagram.length - header_bytes
    flags = "".join(letter for bit, letter in enumerate(TCP_FLAGS) if tcp.flags >> bit & 1) or "none"
    words = [f"Flags [{flags}]"]
    if length or set(flags) & set("FSR"):
        words.append(f"seq {tcp.seq}:{(tcp.seq + length) & 0xFFFFFFFF}" if length else f"seq {tcp.seq}")
    if "." in flags:
        words.append(f"ack {tcp.ack}")
    words.append(f"win {tcp.win}")
    if "U" in flags:
        words.append(f"urg {tcp.urp}")
    if header_bytes > 20:
        words.append(f"options [{','.join(_tcp_options(tcp.opts, header_bytes - 20))}]")
    return f"{datagram.port_ends} {', '.join(words)}, length {length}"


def _tcp_options(options: bytes, length: int) -> list[str]:
    """RFC 9293 section 3.1: `length` bytes on the wire, `options` of them captured."""
    words: list[str] = []
    offset = 0
    missing = len(options) < length
    while offset < len(options):
        code = options[offset]
        if code == 0:
            return [*words, "eol"]
        size = 1 if code == 1 else options[offset + 1] if offset + 1 < len(options) else 0
        value = options[offset + 2 : offset + size]
        offset += size
        if not size or (code != 1 and size < 2) or offset > len(options):
            return [*words, "[|tcp]" if missing else "[bad opt]"]
        words.append(_tcp_option(code, value))
    return [*words, "[|tcp]"] if missing else words


def _tcp_option(code: int, value: bytes) -> str:
    name = TCP_OPTIONS.get(code)
    match name, len(value):
        case "nop" | "sackOK", 0:
            return name
        case ("mss", 2) | ("wscale", 1):
            return f"{name} {int.from_bytes(value)}"
        case "TS", 8:
            return "TS val {} ecr {}".format(*struct.unpack("!II", value))
        case "sack", size if size and size % 8 == 0:
            edges = "".join("{{{}:{}}}".format(*pair) for pair in struct.iter_unpack("!II", value))
            return f"sack {size // 8} {edges}"
        case _:
            return f"unknown-{code} 0x{value.hex()}" if value else f"unknown-{code}"


def _udp(datagram: Datagram) -> str:
    data = datagram.data
    if len(data) < 8:
        return f"{datagram.port_ends if len(data) >= 4 else datagram.ends} [|udp]"
    udp = dpkt.udp.UDP(data)
    total = udp.ulen or datagram.length  # 0: segmentation is left to the interface
    if total < 8:
        return f"{datagram.port_ends} truncated-udplength {total}"
    if DNS_PORTS & {udp.sport, udp.dport}:
        return f"{datagram.port_ends} {dns.describe(data[8:total], total - 8)}"
    return f"{datagram.port_ends} UDP, length {total - 8}"


def _sctp(datagram: Datagram) -> str:
    data = datagram.data
    if len(data) < 12:
        return f"{datagram.port_ends if len(data) >= 4 else datagram.ends} [|sctp]"
    offset = 12
    words: list[str] = []
    while offset + 4 <= len(data) and len(words) < MOST_CHUNKS:
        kind, size = struct.unpack_from("!BxH", data, offset)
        words.append(f"({len(words) + 1}) [{SCTP_CHUNKS[kind] if kind < len(SCTP_CHUNKS) else f'type {kind}'}]")
        offset += max((size + 3) & ~3, 4)
    more = [] if offset >= len(data) else ["..." if len(words) == MOST_CHUNKS else "[|sctp]"]
    return f"{datagram.port_ends} sctp {' '.join([*words, f'length {datagram.length - 12}', *more])}"


def _icmp(datagram: Datagram) -> str:
    data = datagram.data
    if len(data) < 8:
        return f"{datagram.ends} [|icmp]"
    kind, code, first, second = struct.unpack_from("!BBxxHH", data)
    match kind:
        case 0 | 8:
            text = f"echo {'request' if kind else 'reply'}, id {first}, seq {second}"
        case 3:
            quoted = _quoted(data[8:], ICMP_UNREACHABLE.get(code, f"{{0}} unreachable - #{code}"), mtu=second)
            text = quoted or "unreachable [|icmp]"
        case 5:
            text = _quoted(data[8:], f"redirect {{0}} to host {ip_text(data[4:8])}") or "redirect [|icmp]"
        case 11:
            text = "ip reassembly time exceeded" if code else "time exceeded in-transit"
        case 13 | 14:
            text = f"time stamp {'query' if kind == 13 else 'reply'} id {first} seq {second}"
        case _:
            text = f"type-#{kind}"
    return f"{datagram.ends} ICMP {text}, length {datagram.length}"


def _icmp6(datagram: Datagram) -> str:
    data = datagram.data
    if len(data) < 8:
        return f"{datagram.ends} [|icmp6]"
    kind, code, first, second = struct.unpack_from("!BBxxHH", data)
    match kind:
        case 128 | 129:
            text = f"echo {'request' if kind == 128 else 'reply'}, id {first}, seq {second}"
        case 135 | 136 if len(data) < 24:
            text = "neighbor [|icmp6]"
        case 135:
            text = f"neighbor solicitation, who has {ip6_text(data[8:24])}"
        case 136:
            text = f"neighbor advertisement, tgt is {ip6_text(data[8:24])}"
        case 1:
            quoted = _quoted(data[8:], ICMP6_UNREACHABLE.get(code, f"unreachable code-#{code} {{0}}"))
            text = f"destination unreachable, {quoted or '[|icmp6]'}"
        case 2:
            text = f"packet too big, mtu {first << 16 | second}"
        case 3:
            quoted = _quoted(data[8:], f"time exceeded {'reassembly' if code else 'in-transit'} for {{0}}")
            text = quoted or "time exceeded [|icmp6]"
        case _:
            text = ICMP6_TYPES.get(kind, f"type-#{kind}")
    return f"{datagram.ends} ICMP6, {text}, length {datagram.length}"


def _quoted(data: bytes, words: str, mtu: int = 0) -> str:
    """`words` about the packet that an error quotes: {0} its target, {1} its protocol, {2} by name, {3} its port.

    Empty if not even its header was captured.
    """
    version = data[0] >> 4 if data else 0
    if version == 6 and len(data) >= 40:
        target, protocol, ports = ip6_text(data[24:40]), data[6], data[40:]
    elif version == 4 and len(data) >= 20:
        target, protocol, ports = ip_text(data[16:20]), data[9], data[(data[0] & 15) * 4 :]
    else:
        return ""
    port = int.from_bytes(ports[2:4]) if len(ports) >= 4 else "?"
    name = {TCP: "tcp", UDP: "udp"}.get(protocol, f"protocol {protocol}")
    return words.format(target, protocol, name, port, mtu)


def _esp(datagram: Datagram) -> str:
    if len(datagram.data) < 8:
        return f"{datagram.ends} [|esp]"
    index, sequence = struct.unpack_from("!II", datagram.data)
    return f"{datagram.ends} ESP(spi=0x{index:08x},seq=0x{sequence:x}), length {datagram.length}"


TRANSPORTS: dict[int, Callable[[Datagram], str]] = {
    1: _icmp,
    TCP: _tcp,
    UDP: _udp,
    50: _esp,
    58: _icmp6,
    132: _sctp,
}


def ip_text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET, address)


def ip6_text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6, address)
