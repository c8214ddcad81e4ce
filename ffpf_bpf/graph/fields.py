"""`pkt`: the fields of a packet by name, as in `pkt.tcp.dport == 443`.

    device("eth0") >> (pkt.tcp.dport == 443) >> grab()
    pkt.ip.src.in_net("10.0.0.0/8") & (pkt.tcp.flags.has("syn") | pkt.udp) & ~(pkt.ip.ttl < 5)

A field compared is a `Condition`; a header alone, as `pkt.tcp`, is one too: the packet is of that protocol, later
fragments included. TCP, UDP and SCTP are those over IPv4 and IPv6, and their fields are where pcap finds them: in
whole packets and first fragments of IPv4, and right behind the fixed header of IPv6.

Of packets with a VLAN tag there are only `pkt.eth`, `pkt.vlan` and `pkt.len`; all else is of untagged packets, as in
pcap-filter(7). Unlike pcap's `vlan`, a condition on `pkt.vlan` does not shift what follows in the text, so it may stand
anywhere; but joining it by `&` with another header is refused, as no packet would have both. To read behind a tag write
`bpf(f"vlan 5 and ({condition})")`; chaining the two by `>>` passes nothing, as it does in text.
"""

from __future__ import annotations

from typing import NoReturn

from ffpf_bpf.graph.addresses import Ipv4, Ipv6, MacAddress
from ffpf_bpf.graph.comparisons import Flags, Number, Port, Reading
from ffpf_bpf.graph.condition import Condition, Form, NoField, Reach, joined, no_field, refuse

BYTE, HALF, WORD = 0xFF, 0xFFFF, 0xFFFF_FFFF
TCP_FLAGS = (
    ("fin", 1), ("syn", 2), ("rst", 4), ("push", 8), ("psh", 8), ("ack", 16), ("urg", 32), ("ece", 64), ("cwr", 128),
)  # fmt: skip
IP_FLAGS = (("mf", 1), ("df", 2), ("reserved", 4))
# The types that pcap's `vlan` takes for a tag.
TAGGED = joined("or", *(Form(f"ether[12:2] = {kind}") for kind in ("0x8100", "0x88a8", "0x9100")))
# Where IPv4 has it pcap finds the header by itself; in IPv6 it follows the fixed 40 bytes.
OVER_IP6 = {"tcp": Form("ip6[6] = 6"), "udp": Form("ip6[6] = 17"), "sctp": Form("ip6[6] = 132")}


class Header(Condition):
    """A header: as a condition, that the packet has it."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Condition):
            refuse(f"`{self!r}` is a header, not a value: got {other!r}", "compare one of its fields")
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __getitem__(self, _: object) -> NoReturn:
        _refuse_payload(f"{self!r}[...]")

    @property
    def payload(self) -> NoReturn:
        """Refused: filters read headers."""
        _refuse_payload(f"{self!r}.payload")

    def __getattr__(self, name: str) -> NoReturn:
        raise _unknown(self, name)


def _at(word: str) -> tuple[Reading, ...]:
    return (Reading((word,)),)


def _over_both(protocol: str, offset: int, size: int) -> tuple[Reading, ...]:
    """`size` bytes of a header over IPv4 and over IPv6."""
    length = f":{size}" if size > 1 else ""
    behind_ip6 = Reading((f"ip6[{40 + offset}{length}]",), OVER_IP6[protocol])
    return (Reading((f"{protocol}[{offset}{length}]",)), behind_ip6)


def _port(protocol: str, name: str) -> Port:
    match name:
        case "sport":
            head, readings = f"{protocol} src", _over_both(protocol, 0, 2)
        case "dport":
            head, readings = f"{protocol} dst", _over_both(protocol, 2, 2)
        case _:
            head, readings = protocol, ()
    return Port(f"pkt.{protocol}.{name}", readings, most=HALF, head=head)


def _mac(name: str, *words: str) -> MacAddress:
    head = "ether" if name == "host" else f"ether {name}"
    return MacAddress(f"pkt.eth.{name}", (Reading(words),) if words else (), reach=Reach.LINK, head=head)


def _ipv4(name: str, *words: str) -> Ipv4:
    head = "ip" if name == "host" else f"ip {name}"
    readings = (Reading(words),) if words else ()
    return Ipv4(f"pkt.ip.{name}", readings, head=head, present=Form("ip"), counterpart=f"pkt.ip6.{name}")


def _ipv6(name: str, *words: str) -> Ipv6:
    head = "ip6" if name == "host" else f"ip6 {name}"
    readings = (Reading(words),) if words else ()
    return Ipv6(f"pkt.ip6.{name}", readings, head=head, present=Form("ip6"), counterpart=f"pkt.ip.{name}")


class Ethernet:
    """The Ethernet header, which every packet has."""

    __slots__ = ()

    src = _mac("src", "ether[6:4]", "ether[10:2]")
    """Source address."""
    dst = _mac("dst", "ether[0:4]", "ether[4:2]")
    """Destination address."""
    host = _mac("host")
    """Source or destination address."""
    type = Number("pkt.eth.type", _at("ether[12:2]"), most=HALF, digits="#06x", reach=Reach.LINK)
    """Type of what follows, as it stands in the frame: 0x8100 for a tagged one. Below 0x600 it is a length."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _unknown(self, name)

    def __repr__(self) -> str:
        return "pkt.eth"


class Vlan(Header):
    """The outer VLAN tag, of 802.1Q or 802.1ad."""

    __slots__ = ()

    id = Number("pkt.vlan.id", (Reading(("ether[14:2] & 0xfff",), TAGGED),), most=0xFFF, reach=Reach.TAG)
    """The VLAN's number."""
    priority = Number("pkt.vlan.priority", (Reading(("ether[14] >> 5",), TAGGED),), most=7, reach=Reach.TAG)
    """Class of service, 0 to 7."""


class Arp(Header):
    """ARP, of IPv4 addresses."""

    __slots__ = ()

    op = Number("pkt.arp.op", _at("arp[6:2]"), most=HALF)
    """Operation: 1 asks, 2 answers."""
    src = Ipv4("pkt.arp.src", _at("arp[14:4]"), head="arp src", present=Form("arp"))
    """The sender's address."""
    dst = Ipv4("pkt.arp.dst", _at("arp[24:4]"), head="arp dst", present=Form("arp"))
    """The address asked for."""
    host = Ipv4("pkt.arp.host", head="arp", present=Form("arp"))
    """Either of both."""


class Ip(Header):
    """IPv4."""

    __slots__ = ()

    src = _ipv4("src", "ip[12:4]")
    """Source address."""
    dst = _ipv4("dst", "ip[16:4]")
    """Destination address."""
    host = _ipv4("host")
    """Source or destination address."""
    proto = Number("pkt.ip.proto", _at("ip[9]"), most=BYTE)
    """Number of the protocol inside; for TCP and the like there are `pkt.tcp` and so on."""
    ttl = Number("pkt.ip.ttl", _at("ip[8]"), most=BYTE)
    """Time to live."""
    tos = Number("pkt.ip.tos", _at("ip[1]"), most=BYTE)
    """Type of service: DSCP and ECN, 8 bits."""
    dscp = Number("pkt.ip.dscp", _at("ip[1] >> 2"), most=63)
    """The upper 6 bits of the type of service."""
    len = Number("pkt.ip.len", _at("ip[2:2]"), most=HALF)
    """Length in bytes, header included, as the header says."""
    id = Number("pkt.ip.id", _at("ip[4:2]"), most=HALF)
    """Identification, which fragments share."""
    flags = Flags("pkt.ip.flags", _at("ip[6] >> 5"), most=7, names=IP_FLAGS)
    """`df` (do not fragment), `mf` (more fragments), `reserved`."""
    fragment_offset = Number("pkt.ip.fragment_offset", _at("ip[6:2] & 0x1fff"), most=0x1FFF)
    """Where this fragment belongs, in units of 8 bytes; 0 for the first and for whole packets."""


class Ip6(Header):
    """IPv6."""

    __slots__ = ()

    src = _ipv6("src", "ip6[8:4]", "ip6[12:4]", "ip6[16:4]", "ip6[20:4]")
    """Source address."""
    dst = _ipv6("dst", "ip6[24:4]", "ip6[28:4]", "ip6[32:4]", "ip6[36:4]")
    """Destination address."""
    host = _ipv6("host")
    """Source or destination address."""
    next_header = Number("pkt.ip6.next_header", _at("ip6[6]"), most=BYTE)
    """Number of the header that follows: a protocol or an extension."""
    hop_limit = Number("pkt.ip6.hop_limit", _at("ip6[7]"), most=BYTE)
    """Hop limit."""
    payload_len = Number("pkt.ip6.payload_len", _at("ip6[4:2]"), most=HALF)
    """Bytes behind the fixed header, as the header says."""


class Tcp(Header):
    """TCP over IPv4 or IPv6."""

    __slots__ = ()

    sport = _port("tcp", "sport")
    """Source port."""
    dport = _port("tcp", "dport")
    """Destination port."""
    port = _port("tcp", "port")
    """Source or destination port."""
    seq = Number("pkt.tcp.seq", _over_both("tcp", 4, 4), most=WORD)
    """Sequence number."""
    ack = Number("pkt.tcp.ack", _over_both("tcp", 8, 4), most=WORD)
    """Acknowledgement number, also where the flag `ack` is not set."""
    flags = Flags("pkt.tcp.flags", _over_both("tcp", 13, 1), most=BYTE, digits="#04x", names=TCP_FLAGS)
    """`fin`, `syn`, `rst`, `push` or `psh`, `ack`, `urg`, `ece`, `cwr`."""
    window = Number("pkt.tcp.window", _over_both("tcp", 14, 2), most=HALF)
    """Window as the header has it, unscaled."""


class Udp(Header):
    """UDP over IPv4 or IPv6."""

    __slots__ = ()

    sport = _port("udp", "sport")
    """Source port."""
    dport = _port("udp", "dport")
    """Destination port."""
    port = _port("udp", "port")
    """Source or destination port."""
    len = Number("pkt.udp.len", _over_both("udp", 4, 2), most=HALF)
    """Length in bytes, header included, as the header says."""


class Sctp(Header):
    """SCTP over IPv4 or IPv6."""

    __slots__ = ()

    sport = _port("sctp", "sport")
    """Source port."""
    dport = _port("sctp", "dport")
    """Destination port."""
    port = _port("sctp", "port")
    """Source or destination port."""


class Icmp(Header):
    """ICMP, of IPv4."""

    __slots__ = ()

    type = Number("pkt.icmp.type", _at("icmp[icmptype]"), most=BYTE)
    """Type: 8 asks for an echo, 0 answers."""
    code = Number("pkt.icmp.code", _at("icmp[icmpcode]"), most=BYTE)
    """Code, which refines the type."""


class Icmp6(Header):
    """ICMPv6."""

    __slots__ = ()

    type = Number("pkt.icmp6.type", _at("icmp6[icmp6type]"), most=BYTE)
    """Type: 128 asks for an echo, 129 answers."""
    code = Number("pkt.icmp6.code", _at("icmp6[icmp6code]"), most=BYTE)
    """Code, which refines the type."""


class Fields:
    """What a packet has: its headers, and its length."""

    __slots__ = ()

    len = Number("pkt.len", _at("len"), most=WORD, reach=Reach.LINK)
    """Length of the frame in bytes, Ethernet header included, as it was on the wire."""
    eth = Ethernet()
    vlan = Vlan(TAGGED, Form("pkt.vlan"), Reach.TAG)
    arp = Arp(Form("arp"), Form("pkt.arp"))
    ip = Ip(Form("ip"), Form("pkt.ip"))
    ip6 = Ip6(Form("ip6"), Form("pkt.ip6"))
    tcp = Tcp(Form("tcp"), Form("pkt.tcp"))
    udp = Udp(Form("udp"), Form("pkt.udp"))
    sctp = Sctp(Form("sctp"), Form("pkt.sctp"))
    icmp = Icmp(Form("icmp"), Form("pkt.icmp"))
    icmp6 = Icmp6(Form("icmp6"), Form("pkt.icmp6"))

    @property
    def payload(self) -> NoReturn:
        """Refused: filters read headers."""
        _refuse_payload("pkt.payload")

    def __getitem__(self, _: object) -> NoReturn:
        _refuse_payload("pkt[...]")

    def __getattr__(self, name: str) -> NoReturn:
        raise _unknown(self, name)

    def __repr__(self) -> str:
        return "pkt"


def _unknown(owner: object, name: str) -> NoField:
    own = [each for each, value in vars(type(owner)).items() if each[0] != "_" and not isinstance(value, property)]
    return no_field(owner, name, own)


def _refuse_payload(what: str) -> NoReturn:
    refuse(
        f"`{what}` is no field: conditions are on fields of headers",
        'bytes are for text, as in `bpf("udp[8:2] = 0x1234")`, or for Python, once grabbed',
    )


pkt = Fields()
