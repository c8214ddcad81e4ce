"""Packets which carry TCP port 25 where a filter on ports does not look: one of each way that is known.

`CARRIERS` are those that AUTHORISATION.md looks for, with the names of its table that each is found by. `BEYOND` are
carriers which it does not look for: real ones, so that what is not proved is written down. `ORDINARY` carry nothing.
The RFCs are named where a header is made by hand.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.corpus.packets import (
    ALICE,
    BOB,
    EVERYBODY,
    STP_GROUP,
    arp,
    authentication,
    ether,
    extension,
    geneve,
    icmp,
    ipv4,
    ipv6,
    llc,
    mpls,
    pppoe,
    sctp,
    snap,
    tcp,
    udp,
    vlan,
    vxlan,
)

PORT = 25
MAIL = tcp(40_000, PORT, b"EHLO example.org\r\n", flags=0x18)
MAIL4 = ipv4(6, MAIL, "192.0.2.1", "192.0.2.2")
MAIL6 = ipv6(6, MAIL, "2001:db8:9::1", "2001:db8:9::2")
MAIL_FRAME = ether(0x0800, MAIL4)
WEB = tcp(40_000, 80, b"GET / HTTP/1.1\r\n\r\n", flags=0x18)


@dataclass(frozen=True, slots=True)
class Carrier:
    """A frame around TCP port 25. `found_by` are carriers of AUTHORISATION.md, () if the outer headers show it."""

    name: str
    frame: bytes
    found_by: tuple[str, ...] = ()


def gre(kind: int, payload: bytes, *, flags: int = 0, options: bytes = b"") -> bytes:
    """RFC 2784 and 2890; version 1 is PPTP's, RFC 2637."""
    return struct.pack("!HH", flags, kind) + options + payload


def over_udp(port: int, payload: bytes, *, source: int = 40_000) -> bytes:
    return ether(0x0800, ipv4(17, udp(source, port, payload)))


def over_udp6(port: int, payload: bytes) -> bytes:
    return ether(0x86DD, ipv6(17, udp(40_000, port, payload)))


def over_ip(protocol: int, payload: bytes) -> bytes:
    return ether(0x0800, ipv4(protocol, payload))


def over_ip6(protocol: int, payload: bytes) -> bytes:
    return ether(0x86DD, ipv6(protocol, payload))


def fragment6(protocol: int, payload: bytes, *, eighths: int = 0, more: int = 0) -> bytes:
    """RFC 8200, section 4.5."""
    return struct.pack("!BBHI", protocol, 0, eighths << 3 | more, 7) + payload


def ppp(payload: bytes) -> bytes:
    """RFC 1661: address, control, protocol IPv4."""
    return b"\xff\x03\x00\x21" + payload


def error(kind: int, quoted: bytes, code: int = 0) -> bytes:
    """RFC 792 and RFC 4443: 8 bytes, and the packet in error."""
    return struct.pack("!BBHI", kind, code, 0, 0) + quoted


def multipart(kind: int, quoted: bytes) -> bytes:
    """RFC 4884: the length of what is quoted in words, then extension objects (RFC 4950: MPLS)."""
    quoted = quoted.ljust(128, b"\x00")
    objects = struct.pack("!BBH", 0x20, 0, 0) + struct.pack("!HBBI", 8, 1, 1, 16 << 12 | 1 << 8 | 64)
    return struct.pack("!BBHBBH", kind, 0, 0, 0, len(quoted) // 4, 0) + quoted + objects


def trill(frame: bytes) -> bytes:
    """RFC 6325: version and hop count, egress, ingress."""
    return struct.pack("!HHH", 0x003F, 1, 2) + frame


def nsh(payload: bytes, following: int = 1) -> bytes:
    """RFC 8300, MD type 1."""
    return struct.pack("!HBBI", 0x0FC6, 1, following, 0x0000_01FF) + bytes(16) + payload


def gtp(payload: bytes, kind: int = 0xFF) -> bytes:
    """3GPP TS 29.281: version 1, a G-PDU."""
    return struct.pack("!BBHI", 0x30, kind, len(payload), 0x1234) + payload


def capwap(frame: bytes) -> bytes:
    """RFC 5415, section 4.3: HLEN 2, WBID 1, a frame of IEEE 802.3 (T is 0)."""
    return struct.pack("!BBHHH", 0x00, 0x10, 0x0200, 0, 0) + frame


def lisp(payload: bytes) -> bytes:
    """RFC 9300, section 5.1."""
    return struct.pack("!II", 0x8000_0001, 0) + payload


def gue(payload: bytes, protocol: int = 4) -> bytes:
    """draft-ietf-intarea-gue, version 0 without extensions."""
    return struct.pack("!BBH", 0, protocol, 0) + payload


def vxlan_gpe(payload: bytes, following: int = 1) -> bytes:
    """draft-ietf-nvo3-vxlan-gpe."""
    return struct.pack("!BHBI", 0x0C, 0, following, 5 << 8) + payload


def esp_null(payload: bytes, following: int) -> bytes:
    """RFC 4303 with RFC 2410: not encrypted."""
    padding = -(len(payload) + 2) % 4
    return struct.pack("!II", 0x1000, 1) + payload + bytes(range(1, padding + 1)) + bytes((padding, following))


def sctp_data(payload: bytes) -> bytes:
    """RFC 9260: a DATA chunk."""
    chunk = struct.pack("!BBHIHHI", 0, 3, 16 + len(payload), 1, 1, 1, 0) + payload
    return struct.pack("!HHII", 2905, 2905, 1, 0) + chunk


def cisco_isl(frame: bytes) -> bytes:
    """Cisco's Inter-Switch Link: 26 bytes before the frame; SNAP; the length where Ethernet has its type."""
    return (
        bytes.fromhex("01000c000000")
        + ALICE
        + struct.pack("!H", len(frame) + 16)
        + b"\xaa\xaa\x03\x00\x00\x0c"
        + struct.pack("!HHH", 7 << 1, 0, 0)
        + frame
    )


LATER_V4 = ipv4(6, MAIL, fragment=0x00B9)
SHORT_V4 = 34 + 2


def redirect6(quoted: bytes) -> bytes:
    """RFC 4861, section 4.5: target, destination, and the option Redirected Header (4), which quotes the packet."""
    option = struct.pack("!BBHI", 4, (8 + len(quoted) + 7) // 8, 0, 0) + quoted
    return struct.pack("!BBHI", 137, 0, 0, 0) + bytes(32) + option


def sflow(frame: bytes) -> bytes:
    """sFlow version 5: one flow sample with one raw packet header."""
    header = struct.pack("!IIII", 1, len(frame), 0, len(frame)) + frame + bytes(-len(frame) % 4)
    record = struct.pack("!II", 1, len(header)) + header
    sample = struct.pack("!IIIIIIII", 1, 1, 256, 256, 0, 1, 2, 1) + record
    return (
        struct.pack("!II", 5, 1)
        + bytes(4)
        + struct.pack("!IIII", 0, 1, 1, 1)
        + struct.pack("!II", 1, len(sample))
        + sample
    )


def mobile_ip(payload: bytes) -> bytes:
    """RFC 3519: MIP tunnel data, type 4."""
    return struct.pack("!BBH", 4, 4, 0) + payload


def amt(payload: bytes) -> bytes:
    """RFC 7450: multicast data, type 6."""
    return b"\x06\x00" + payload


def ayiya(packet: bytes) -> bytes:
    """draft-massar-v6ops-ayiya: an identity of 16 bytes, a signature of 20, then IPv6."""
    return struct.pack("!BBBBI", 0x41, 0x52, 0x11, 41, 0) + bytes(36) + packet


def stt(frame: bytes) -> bytes:
    """draft-davie-stt: a header that looks like TCP's, then 18 bytes, then a frame."""
    return tcp(40_000, 7471, bytes(18) + frame)


def source_routed(target: str) -> bytes:
    """RFC 791: a loose source route; the destination address is that of the next router only."""
    plain = ipv4(6, WEB, words=7)
    option = b"\x83\x07\x04" + bytes(map(int, target.split("."))) + b"\x00"
    return plain[:20] + option + plain[28:]


CARRIERS: tuple[Carrier, ...] = (
    # The outer headers show these, if one looks where they are.
    Carrier("plain IPv4", ether(0x0800, MAIL4)),
    Carrier("plain IPv6", ether(0x86DD, MAIL6)),
    Carrier("IPv4 with options", ether(0x0800, ipv4(6, MAIL, words=9))),
    Carrier("first fragment", ether(0x0800, ipv4(6, MAIL, fragment=0x2000))),
    Carrier("first fragment, IPv6", over_ip6(44, fragment6(6, MAIL, more=1))),
    Carrier("atomic fragment, IPv6", over_ip6(44, fragment6(6, MAIL))),
    Carrier("VLAN", ether(0x8100, vlan(5, 0x0800, MAIL4))),
    Carrier("VLAN, IPv6", ether(0x8100, vlan(5, 0x86DD, MAIL6))),
    Carrier("priority tag", ether(0x8100, vlan(0xE000, 0x0800, MAIL4))),
    Carrier("QinQ", ether(0x8100, vlan(1, 0x8100, vlan(2, 0x0800, MAIL4)))),
    Carrier("802.1ad", ether(0x88A8, vlan(1, 0x8100, vlan(2, 0x0800, MAIL4)))),
    Carrier("0x9100", ether(0x9100, vlan(1, 0x8100, vlan(2, 0x0800, MAIL4)))),
    # Cut: what is not there cannot be excluded.
    Carrier("cut within the ports", ether(0x0800, MAIL4)[:SHORT_V4]),
    Carrier("cut behind Ethernet", ether(0x0800, MAIL4)[:14], ("other",)),
    Carrier("cut within a tag", ether(0x8100, vlan(5, 0x0800, MAIL4))[:16], ("other",)),
    Carrier("cut IPv6", ether(0x86DD, MAIL6)[:20], ("other",)),
    # Later fragments.
    Carrier("later fragment", ether(0x0800, LATER_V4)),
    Carrier("later fragment, IPv6", over_ip6(44, fragment6(6, MAIL, eighths=185))),
    Carrier("later fragment of UDP", ether(0x0800, ipv4(17, MAIL4, fragment=0x00B9)), ("fragment",)),
    Carrier("later fragment of UDP, IPv6", over_ip6(44, fragment6(17, MAIL4, eighths=185)), ("fragment",)),
    Carrier("later fragment of ICMP", ether(0x0800, ipv4(1, MAIL4, fragment=0x0003)), ("fragment",)),
    Carrier("later fragment of ICMPv6", over_ip6(44, fragment6(58, MAIL6, eighths=3)), ("fragment",)),
    Carrier("later fragment of GRE", ether(0x0800, ipv4(47, MAIL4, fragment=0x0003)), ("gre", "fragment")),
    Carrier("later fragment in QinQ", ether(0x88A8, vlan(1, 0x8100, vlan(2, 0x0800, LATER_V4)))),
    # IPv6 extension headers.
    Carrier("hop-by-hop", over_ip6(0, extension(6) + MAIL), ("extension",)),
    Carrier("routing", over_ip6(43, extension(6, 2) + MAIL), ("extension",)),
    Carrier("destination options", over_ip6(60, extension(6, 1) + MAIL), ("extension",)),
    Carrier("AH, IPv6", over_ip6(51, authentication(6) + MAIL), ("extension", "ah")),
    Carrier("mobility", over_ip6(135, extension(6) + MAIL), ("extension",)),
    Carrier("HIP", over_ip6(139, extension(6, 4) + MAIL), ("extension",)),
    Carrier("shim6", over_ip6(140, extension(6) + MAIL), ("extension",)),
    Carrier("hop-by-hop, fragment", over_ip6(0, extension(44) + fragment6(6, MAIL)), ("extension",)),
    Carrier("fragment, destination options", over_ip6(44, fragment6(60, extension(6) + MAIL)), ("extension",)),
    Carrier("fragment twice", over_ip6(44, fragment6(44, fragment6(6, MAIL))), ("extension", "other")),
    Carrier("a chain of six", over_ip6(0, extension(60) + extension(43) + extension(44) + fragment6(60, extension(6)) + MAIL), ("extension",)),
    Carrier("segment routing over IPv6", over_ip6(43, struct.pack("!BBBBI", 41, 2, 4, 0, 0) + bytes(16) + MAIL6), ("extension",)),
    Carrier("hop-by-hop behind a tag", ether(0x8100, vlan(5, 0x86DD, ipv6(0, extension(6) + MAIL))), ("extension",)),
    # Tags.
    Carrier("triple tag", ether(0x8100, vlan(1, 0x8100, vlan(2, 0x8100, vlan(3, 0x0800, MAIL4)))), ("tags",)),
    Carrier("triple tag, mixed", ether(0x88A8, vlan(1, 0x88A8, vlan(2, 0x9100, vlan(3, 0x0800, MAIL4)))), ("tags",)),
    Carrier("0x9200", ether(0x9200, vlan(1, 0x0800, MAIL4)), ("tags",)),
    Carrier("0x9300", ether(0x9300, vlan(1, 0x0800, MAIL4)), ("tags",)),
    Carrier("0x9200 behind a tag", ether(0x8100, vlan(1, 0x9200, vlan(2, 0x0800, MAIL4))), ("tags",)),
    # Link layers.
    Carrier("SNAP", snap(0, 0x0800, MAIL4), ("llc",)),
    Carrier("SNAP of 802.1H", snap(0x0000F8, 0x0800, MAIL4), ("llc",)),
    Carrier("LLC 06, IP", llc(0x06, 0x06, b"\x03", MAIL4), ("llc",)),
    Carrier("SNAP behind a tag", ether(0x8100, vlan(5, 8 + len(MAIL4), b"\xaa\xaa\x03\x00\x00\x00\x08\x00" + MAIL4)), ("llc",)),
    Carrier("length field of 1,535", ether(1_535, b"\xaa\xaa\x03\x00\x00\x00\x08\x00" + MAIL4), ("llc",)),
    Carrier("Cisco ISL", cisco_isl(MAIL_FRAME), ("llc",)),
    Carrier("jumbo LLC", ether(0x8870, b"\xaa\xaa\x03\x00\x00\x00\x08\x00" + MAIL4), ("other",)),
    Carrier("MPLS, 1 label", ether(0x8847, mpls(16, payload=MAIL4)), ("mpls",)),
    Carrier("MPLS, 2 labels", ether(0x8847, mpls(100, 16, payload=MAIL4)), ("mpls",)),
    Carrier("MPLS, 3 labels, IPv6", ether(0x8847, mpls(3, 2, 16, payload=MAIL6)), ("mpls",)),
    Carrier("MPLS, pseudowire", ether(0x8847, mpls(16, payload=bytes(4) + MAIL_FRAME)), ("mpls",)),
    Carrier("MPLS, upstream", ether(0x8848, mpls(16, payload=MAIL4)), ("mpls",)),
    Carrier("MPLS behind a tag", ether(0x8100, vlan(5, 0x8847, mpls(16, payload=MAIL4))), ("mpls",)),
    Carrier("PPPoE", ether(0x8864, pppoe(39, 0x21, MAIL4)), ("pppoe",)),
    Carrier("PPPoE, IPv6", ether(0x8864, pppoe(39, 0x57, MAIL6)), ("pppoe",)),
    Carrier("PPPoE behind a tag", ether(0x8100, vlan(5, 0x8864, pppoe(39, 0x21, MAIL4))), ("pppoe",)),
    Carrier("MACsec, integrity only", ether(0x88E5, struct.pack("!BBI", 0x00, 0, 1) + MAIL_FRAME[12:] + bytes(16)), ("macsec",)),
    Carrier("PBB", ether(0x88E7, struct.pack("!I", 0x1234) + MAIL_FRAME), ("pbb",)),
    Carrier("PBB behind a backbone tag", ether(0x88A8, vlan(5, 0x88E7, struct.pack("!I", 0x1234) + MAIL_FRAME)), ("pbb",)),
    Carrier("TRILL", ether(0x22F3, trill(MAIL_FRAME)), ("trill",)),
    Carrier("NSH", ether(0x894F, nsh(MAIL4)), ("nsh",)),
    Carrier("FabricPath", ether(0x8903, struct.pack("!H", 0x003F) + MAIL_FRAME), ("other",)),
    Carrier("batman-adv", ether(0x4305, bytes((0x40, 15, 50, 0)) + BOB + MAIL_FRAME), ("other",)),
    Carrier("Transparent Ethernet Bridging", ether(0x6558, MAIL_FRAME), ("other",)),
    Carrier("BIER", ether(0xAB37, bytes(12) + MAIL4), ("other",)),
    Carrier("HSR", ether(0x892F, struct.pack("!HHH", 0x1000, 1, 0x0800) + MAIL4), ("other",)),
    Carrier("redundancy tag (802.1CB)", ether(0xF1C1, struct.pack("!HHH", 0, 1, 0x0800) + MAIL4), ("other",)),
    Carrier("VN-tag (802.1BR)", ether(0x893F, bytes(6) + struct.pack("!H", 0x0800) + MAIL4), ("other",)),
    Carrier("VN-tag (Cisco)", ether(0x8926, struct.pack("!IH", 1, 0x0800) + MAIL4), ("other",)),
    Carrier("Cisco MetaData (SGT)", ether(0x8909, struct.pack("!BBHHH", 1, 1, 1, 7, 0x0800) + MAIL4), ("other",)),
    Carrier("DSA tag", ether(0xDADA, bytes(2) + struct.pack("!IH", 0x4000_0000, 0x0800) + MAIL4), ("other",)),
    Carrier("congestion tag", ether(0x22E9, struct.pack("!HH", 0, 0x0800) + MAIL4), ("other",)),
    Carrier("6LoWPAN encapsulation", ether(0xA0ED, b"\x41" + MAIL6), ("other",)),
    Carrier("local experimental", ether(0x88B5, MAIL4), ("other",)),
    Carrier("ERSPAN as ethertype", ether(0x88BE, bytes(8) + MAIL_FRAME), ("other",)),
    # IP in, or directly on, IP.
    Carrier("IP in IP", over_ip(4, MAIL4), ("ipip",)),
    Carrier("6in4", over_ip(41, MAIL6), ("6in4",)),
    Carrier("4in6", over_ip6(4, MAIL4), ("ipip",)),
    Carrier("6in6", over_ip6(41, MAIL6), ("6in4",)),
    Carrier("IP in IP, first fragment", ether(0x0800, ipv4(4, MAIL4, fragment=0x2000)), ("ipip",)),
    Carrier("IP in IP in IP", over_ip(4, ipv4(4, MAIL4)), ("ipip",)),
    Carrier("IPv6 tunnel limit, 4in6", over_ip6(60, bytes((4, 0, 4, 1, 4, 1, 1, 0)) + MAIL4), ("extension",)),
    Carrier("GRE", over_ip(47, gre(0x0800, MAIL4)), ("gre",)),
    Carrier("GRE with key", over_ip(47, gre(0x0800, MAIL4, flags=0x2000, options=bytes(4))), ("gre",)),
    Carrier("GRE with checksum, key and number", over_ip(47, gre(0x86DD, MAIL6, flags=0xB000, options=bytes(12))), ("gre",)),
    Carrier("GRE, Ethernet (NVGRE)", over_ip(47, gre(0x6558, MAIL_FRAME, flags=0x2000, options=bytes(4))), ("gre",)),
    Carrier("PPTP", over_ip(47, gre(0x880B, ppp(MAIL4), flags=0x3081, options=bytes(12))), ("gre",)),
    Carrier("ERSPAN II", over_ip(47, gre(0x88BE, bytes(8) + MAIL_FRAME, flags=0x1000, options=bytes(4))), ("gre",)),
    Carrier("WCCP in GRE", over_ip(47, gre(0x883E, bytes(4) + MAIL4)), ("gre",)),
    Carrier("MPLS in GRE", over_ip(47, gre(0x8847, mpls(16, payload=MAIL4))), ("gre",)),
    Carrier("GRE over IPv6", over_ip6(47, gre(0x0800, MAIL4)), ("gre",)),
    Carrier("EtherIP", over_ip(97, b"\x30\x00" + MAIL_FRAME), ("etherip",)),
    Carrier("L2TPv3", over_ip(115, struct.pack("!I", 7) + MAIL_FRAME), ("l2tp",)),
    Carrier("L2TPv3 over IPv6", over_ip6(115, struct.pack("!IQ", 7, 1) + MAIL_FRAME), ("l2tp",)),
    Carrier("MPLS in IP", over_ip(137, mpls(16, payload=MAIL4)), ("mpls",)),
    Carrier("AH, IPv4", over_ip(51, authentication(6) + MAIL), ("ah",)),
    Carrier("ESP, not encrypted", over_ip(50, esp_null(MAIL, 6)), ("esp",)),
    Carrier("ESP over IPv6", over_ip6(50, esp_null(MAIL, 6)), ("esp",)),
    Carrier("IPComp", over_ip(108, struct.pack("!BBH", 6, 0, 2) + MAIL), ("ipcomp",)),
    Carrier("PIM register", over_ip(103, struct.pack("!BBHI", 0x21, 0, 0, 0) + MAIL4), ("pim",)),
    Carrier("minimal encapsulation (RFC 2004)", over_ip(55, struct.pack("!BBH", 6, 0, 0) + bytes(4) + MAIL), ("other",)),
    Carrier("IP in IP, KA9Q", over_ip(94, MAIL4), ("other",)),
    Carrier("encapsulation header (RFC 1241)", over_ip(98, bytes(8) + MAIL4), ("other",)),
    Carrier("wrapped ESP", over_ip(141, struct.pack("!BBBB", 6, 8, 0, 0) + esp_null(MAIL, 6)), ("other",)),
    Carrier("Ethernet in IPv6 (RFC 8986)", over_ip6(143, MAIL_FRAME), ("other",)),
    Carrier("AGGFRAG", over_ip(144, bytes(4) + MAIL4), ("other",)),
    Carrier("NSH in IP", over_ip(145, nsh(MAIL4)), ("other",)),
    Carrier("Homa", over_ip(146, MAIL), ("other",)),
    Carrier("experimental protocol", over_ip(253, MAIL4), ("other",)),
    Carrier("IPv4 with hop-by-hop options", over_ip(0, extension(6) + MAIL), ("other",)),
    Carrier("IPv4 with a fragment header", over_ip(44, fragment6(6, MAIL)), ("other",)),
    # On UDP.
    Carrier("VXLAN", over_udp(4789, vxlan(5, MAIL_FRAME)), ("vxlan",)),
    Carrier("VXLAN from its port", over_udp(40_000, vxlan(5, MAIL_FRAME), source=4789), ("vxlan",)),
    Carrier("VXLAN over IPv6", over_udp6(4789, vxlan(5, MAIL_FRAME)), ("vxlan",)),
    Carrier("VXLAN, Linux", over_udp(8472, vxlan(5, MAIL_FRAME)), ("vxlan",)),
    Carrier("VXLAN-GPE", over_udp(4790, vxlan_gpe(MAIL4)), ("vxlan",)),
    Carrier("VXLAN in a first fragment, IPv6", over_ip6(44, fragment6(17, udp(40_000, 4789, vxlan(5, MAIL_FRAME)), more=1)), ("vxlan",)),
    Carrier("VXLAN behind a tag", ether(0x8100, vlan(5, 0x0800, ipv4(17, udp(40_000, 4789, vxlan(5, MAIL_FRAME))))), ("vxlan",)),
    Carrier("GENEVE", over_udp(6081, geneve(5, 0x6558, MAIL_FRAME)), ("geneve",)),
    Carrier("GENEVE with options, IP", over_udp(6081, geneve(5, 0x0800, MAIL4, bytes(8))), ("geneve",)),
    Carrier("GTP-U", over_udp(2152, gtp(MAIL4)), ("gtp",)),
    Carrier("GTP-U error indication", over_udp(2152, gtp(MAIL4, 0x1A)), ("gtp",)),
    Carrier("Teredo", over_udp(3544, MAIL6), ("teredo",)),
    Carrier("GUE", over_udp(6080, gue(MAIL4)), ("gue",)),
    Carrier("GUE, version 1", over_udp(6080, MAIL4), ("gue",)),
    Carrier("LISP", over_udp(4341, lisp(MAIL4)), ("lisp",)),
    Carrier("CAPWAP", over_udp(5247, capwap(MAIL_FRAME)), ("capwap",)),
    Carrier("WireGuard", over_udp(51820, struct.pack("<IIQ", 4, 1, 1) + bytes(80)), ("wireguard",)),
    Carrier("MPLS in UDP", over_udp(6635, mpls(16, payload=MAIL4)), ("mpls",)),
    Carrier("MPLS in DTLS", over_udp(6636, bytes(13) + bytes(60)), ("mpls",)),
    Carrier("L2TPv2", over_udp(1701, struct.pack("!HHH", 0x0002, 1, 1) + ppp(MAIL4)), ("l2tp",)),
    Carrier("ESP in UDP", over_udp(4500, esp_null(MAIL, 6)), ("esp",)),
    Carrier("UDP cut within its ports", over_udp(4789, vxlan(5, MAIL_FRAME))[:36], ("vxlan", "geneve")),
    # Errors quote.
    Carrier("ICMP unreachable", over_ip(1, error(3, MAIL4, 3)), ("icmp-error",)),
    Carrier("ICMP source quench", over_ip(1, error(4, MAIL4)), ("icmp-error",)),
    Carrier("ICMP redirect", over_ip(1, error(5, MAIL4)), ("icmp-error",)),
    Carrier("ICMP time exceeded", over_ip(1, error(11, MAIL4)), ("icmp-error",)),
    Carrier("ICMP parameter problem", over_ip(1, error(12, MAIL4)), ("icmp-error",)),
    Carrier("ICMP conversion failed (RFC 1475)", over_ip(1, error(31, MAIL4)), ("icmp-error",)),
    Carrier("ICMP security failure (RFC 2521)", over_ip(1, error(40, MAIL4)), ("icmp-error",)),
    Carrier("ICMP, multipart", over_ip(1, multipart(11, MAIL4)), ("icmp-error",)),
    Carrier("ICMPv6 unreachable", over_ip6(58, error(1, MAIL6, 4)), ("icmp-error",)),
    Carrier("ICMPv6 packet too big", over_ip6(58, error(2, MAIL6)), ("icmp-error",)),
    Carrier("ICMPv6 time exceeded, multipart", over_ip6(58, multipart(3, MAIL6)), ("icmp-error",)),
    Carrier("ICMPv6 parameter problem", over_ip6(58, error(4, MAIL6, 1)), ("icmp-error",)),
    Carrier("ICMPv6, private error", over_ip6(58, error(100, MAIL6)), ("icmp-error",)),
    Carrier("ICMP cut before its type", over_ip(1, error(3, MAIL4, 3))[:34], ("icmp-error",)),
    Carrier("VXLAN whose sender takes source port 53", over_udp(4789, vxlan(5, MAIL_FRAME), source=53), ("service",)),
    Carrier("GENEVE: all of the 16 bits may be used (RFC 8926, section 3.3)", over_udp(6081, geneve(5, 0x0800, MAIL4), source=700), ("geneve",)),
    Carrier("ESP in UDP behind a NAT that maps ports below 1024 (RFC 3948)", over_udp(4500, esp_null(MAIL, 6), source=612), ("esp",)),
    Carrier("VXLAN from port 80", over_udp(4789, vxlan(5, MAIL_FRAME), source=80), ("vxlan",)),
    Carrier("VXLAN from port 54", over_udp(4789, vxlan(5, MAIL_FRAME), source=54), ("vxlan",)),
    Carrier("VXLAN from a port of DHCPv6", over_udp(4789, vxlan(5, MAIL_FRAME), source=547), ("service",)),
    Carrier("VXLAN from port 0", over_udp(4789, vxlan(5, MAIL_FRAME), source=0), ("vxlan",)),
    Carrier("TSP (RFC 5572): IPv6 in UDP", over_udp(3653, MAIL6), ("6in4",)),
    Carrier("Tailscale (WireGuard)", over_udp(41641, struct.pack("<IIQ", 4, 1, 1) + bytes(80)), ("wireguard",)),
    Carrier("ZeroTier", over_udp(9993, bytes(28) + MAIL_FRAME, source=9993), ("zerotier",)),
    Carrier("ICMPv6 redirect (RFC 4861): Redirected Header quotes the packet", over_ip6(58, redirect6(MAIL6)), ("icmp-error",)),
    Carrier("UDP-Lite CAPWAP data over IPv6 (RFC 5415, section 3)", over_ip6(136, udp(40_000, 5247, capwap(MAIL_FRAME))), ("other",)),
    Carrier("sFlow: sampled headers of packets", over_udp(6343, sflow(MAIL_FRAME)), ("mirror",)),
    Carrier("GRE in UDP (RFC 8086)", over_udp(4754, gre(0x0800, MAIL4)), ("gre",)),
    Carrier("GRE in DTLS (RFC 8086)", over_udp(4755, bytes(73)), ("gre",)),
    Carrier("Mobile IP through NAT (RFC 3519)", over_udp(434, mobile_ip(MAIL4)), ("ipip",)),
    Carrier("AMT (RFC 7450)", over_udp(2268, amt(MAIL4)), ("amt",)),
    Carrier("LISP control, encapsulated (RFC 9301, section 5.8)", over_udp(4342, struct.pack("!I", 0x8000_0000) + MAIL4), ("lisp",)),
    Carrier("GTP version 0 (3GPP TS 09.60)", over_udp(3386, struct.pack("!BBH", 0x1E, 0xFF, len(MAIL4)) + bytes(16) + MAIL4), ("gtp",)),
    Carrier("FOU, as `ip fou add port 5555 ipproto 4`", over_udp(5555, MAIL4), ("gue",)),
    Carrier("TZSP (remote capture)", over_udp(37008, b"\x01\x00\x00\x01\x01" + MAIL_FRAME), ("mirror",)),
    Carrier("HP ERM (remote mirror)", over_udp(7932, bytes(12) + MAIL_FRAME), ("mirror",)),
    Carrier("LWAPP data (RFC 5412)", over_udp(12222, struct.pack("!BBHH", 0, 0, len(MAIL_FRAME), 0) + MAIL_FRAME), ("capwap",)),
    Carrier("OpenVPN, no cipher", over_udp(1194, b"\x30" + MAIL4), ("openvpn",)),
    Carrier("IPsec in UDP, Cisco", over_udp(10_000, esp_null(MAIL, 6)), ("esp",)),
    Carrier("Mobile IPv6 over IPv4 (RFC 5555): IPv6 in UDP", over_udp(4191, MAIL6), ("6in4",)),
    Carrier("Proxy Mobile IPv6 (RFC 5844, section 4)", over_udp(5437, MAIL4), ("6in4",)),
    Carrier("AYIYA (draft-massar-v6ops-ayiya)", over_udp(5072, ayiya(MAIL6)), ("6in4",)),
    Carrier("HIP through NAT (RFC 9028): ESP in UDP", over_udp(10_500, esp_null(MAIL, 6)), ("esp",)),
    Carrier("SCTP in UDP (RFC 6951)", over_udp(9899, sctp_data(MAIL4)), ("sctp",)),
)  # fmt: skip

BEYOND: tuple[Carrier, ...] = (
    Carrier("ESP in TCP (RFC 9329)", over_ip(6, tcp(40_000, 4500, struct.pack("!H", 60) + esp_null(MAIL, 6)))),
    Carrier("STT", over_ip(6, stt(MAIL_FRAME))),
    Carrier("OpenFlow packet-in", over_ip(6, tcp(40_000, 6653, struct.pack("!BBHI", 4, 10, 24 + len(MAIL_FRAME), 1) + bytes(16) + MAIL_FRAME))),
)  # fmt: skip

ORDINARY: tuple[Carrier, ...] = (
    Carrier("web", over_ip(6, WEB)),
    Carrier("web, IPv6", over_ip6(6, WEB)),
    Carrier("web behind a tag", ether(0x8100, vlan(5, 0x0800, ipv4(6, WEB)))),
    Carrier("web behind two tags", ether(0x88A8, vlan(5, 0x8100, vlan(6, 0x86DD, ipv6(6, WEB))))),
    Carrier("web with IP options", ether(0x0800, ipv4(6, WEB, words=8))),
    Carrier("web, first fragment", ether(0x0800, ipv4(6, WEB, fragment=0x2000))),
    Carrier("web, first fragment, IPv6", over_ip6(44, fragment6(6, WEB, more=1))),
    Carrier("TLS", over_ip(6, tcp(443, 50_000, b"\x16\x03\x01\x00\x05hello"))),
    Carrier("ssh", over_ip(6, tcp(50_000, 22, b"SSH-2.0-OpenSSH_9.2\r\n"))),
    Carrier("a SYN", over_ip(6, tcp(50_000, 443, flags=2))),
    Carrier("DNS", over_udp(53, b"\x12\x34" + bytes(30))),
    Carrier("DNS, IPv6", over_udp6(53, b"\x12\x34" + bytes(30))),
    Carrier("UDP port 25", over_udp(25, b"hello")),
    Carrier("NTP", over_udp(123, bytes(48))),
    Carrier("DHCP", ether(0x0800, ipv4(17, udp(68, 67, bytes(240)), "0.0.0.0", "255.255.255.255"), target=EVERYBODY)),
    Carrier("DHCPv6", over_udp6(547, bytes(40))),
    Carrier("QUIC", over_udp(443, b"\xc3\x00\x00\x00\x01" + bytes(1200))),
    Carrier("mDNS", over_udp(5353, bytes(30), source=5353)),
    Carrier("ping", over_ip(1, icmp(8))),
    Carrier("its reply", over_ip(1, icmp(0))),
    Carrier("ping, IPv6", over_ip6(58, icmp(128))),
    Carrier("neighbour solicitation", over_ip6(58, icmp(135))),
    Carrier("ARP", ether(0x0806, arp(1), target=EVERYBODY)),
    Carrier("RARP", ether(0x8035, arp(3), target=EVERYBODY)),
    Carrier("LLDP", ether(0x88CC, bytes(46))),
    Carrier("LACP", ether(0x8809, b"\x01" + bytes(45), target=STP_GROUP)),
    Carrier("PTP", ether(0x88F7, bytes(46))),
    Carrier("EAPOL", ether(0x888E, bytes(46))),
    Carrier("PPPoE discovery", ether(0x8863, b"\x11\x09" + bytes(44))),
    Carrier("IGMP", over_ip(2, b"\x16" + bytes(7))),
    Carrier("OSPF", over_ip(89, b"\x02\x01" + bytes(42))),
    Carrier("VRRP", over_ip(112, b"\x21" + bytes(19))),
    Carrier("SCTP", over_ip(132, sctp(2905, 2905))),
    Carrier("SCTP with data", over_ip(132, sctp_data(b"m3ua"))),
    Carrier("no next header", over_ip6(59, b"")),
)  # fmt: skip
