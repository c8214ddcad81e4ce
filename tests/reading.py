"""Ethernet frames taken apart by hand: the headers and fields that `pkt` names, where pcap looks for them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

TAGS = (0x8100, 0x88A8, 0x9100)


@dataclass(frozen=True)
class Packet:
    """A frame by hand: the headers it has, and the values of each field, none where a byte of it is missing."""

    headers: frozenset[str]
    values: dict[str, tuple[int | str, ...]]


class Reading:
    """Takes one frame apart."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.headers: set[str] = set()
        self.values: dict[str, tuple[int | str, ...]] = {}

    def number(self, name: str, at: int, size: int, shift: int = 0, mask: int = 0xFFFF_FFFF) -> None:
        if at + size <= len(self.frame):
            self.add(name, int.from_bytes(self.frame[at : at + size], "big") >> shift & mask)

    def address(self, name: str, at: int, size: int) -> None:
        raw = self.frame[at : at + size]
        if len(raw) == size:
            self.add(name, raw.hex(":") if size == 6 else str(ip_address(raw)))

    def add(self, name: str, value: int | str) -> None:
        header, _, field = name.rpartition(".")
        either = {"src": "host", "dst": "host", "sport": "port", "dport": "port"}.get(field)
        for each in (name, f"{header}.{either}") if either else (name,):
            self.values[each] = (*self.values.get(each, ()), value)

    def packet(self) -> Packet:
        self.add("pkt.len", len(self.frame))
        self.address("pkt.eth.dst", 0, 6)
        self.address("pkt.eth.src", 6, 6)
        self.number("pkt.eth.type", 12, 2)
        match int.from_bytes(self.frame[12:14], "big"):
            case kind if kind in TAGS:
                self.headers.add("pkt.vlan")
                self.number("pkt.vlan.id", 14, 2, mask=0xFFF)
                self.number("pkt.vlan.priority", 14, 1, shift=5)
            case 0x0806:
                self.headers.add("pkt.arp")
                self.number("pkt.arp.op", 20, 2)
                self.address("pkt.arp.src", 28, 4)
                self.address("pkt.arp.dst", 38, 4)
            case 0x0800:
                self.ip()
            case 0x86DD:
                self.ip6()
        return Packet(frozenset(self.headers), self.values)

    def ip(self) -> None:
        self.headers.add("pkt.ip")
        for name, at, size, shift, mask in (
            ("tos", 15, 1, 0, 0xFF), ("dscp", 15, 1, 2, 0xFF), ("len", 16, 2, 0, 0xFFFF), ("id", 18, 2, 0, 0xFFFF),
            ("flags", 20, 1, 5, 7), ("fragment_offset", 20, 2, 0, 0x1FFF), ("ttl", 22, 1, 0, 0xFF), ("proto", 23, 1, 0, 0xFF),
        ):  # fmt: skip
            self.number(f"pkt.ip.{name}", at, size, shift, mask)
        self.address("pkt.ip.src", 26, 4)
        self.address("pkt.ip.dst", 30, 4)
        if len(self.frame) < 24:
            return
        name = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}.get(self.frame[23])
        if name:
            self.headers.add(f"pkt.{name}")
            if self.values["pkt.ip.fragment_offset"] == (0,):
                self.inner(name, 14 + 4 * (self.frame[14] & 0xF))

    def ip6(self) -> None:
        self.headers.add("pkt.ip6")
        self.number("pkt.ip6.payload_len", 18, 2)
        self.number("pkt.ip6.next_header", 20, 1)
        self.number("pkt.ip6.hop_limit", 21, 1)
        self.address("pkt.ip6.src", 22, 16)
        self.address("pkt.ip6.dst", 38, 16)
        names = {6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}
        following = self.frame[20] if len(self.frame) > 20 else 59
        if following in names:
            self.headers.add(f"pkt.{names[following]}")
            self.inner(names[following], 54)
        elif following == 44 and len(self.frame) > 54 and self.frame[54] in names:
            self.headers.add(f"pkt.{names[self.frame[54]]}")  # a fragment: no fields, for pcap

    def inner(self, name: str, at: int) -> None:
        if name in ("icmp", "icmp6"):
            self.number(f"pkt.{name}.type", at, 1)
            self.number(f"pkt.{name}.code", at + 1, 1)
            return
        self.number(f"pkt.{name}.sport", at, 2)
        self.number(f"pkt.{name}.dport", at + 2, 2)
        if name == "udp":
            self.number("pkt.udp.len", at + 4, 2)
        if name == "tcp":
            for field, offset, size in (("seq", 4, 4), ("ack", 8, 4), ("flags", 13, 1), ("window", 14, 2)):
                self.number(f"pkt.tcp.{field}", at + offset, size)
