"""What a packet must be and what it may contain: AUTHORISATION.md on concrete bytes, in plain Python.

A second opinion on the proofs. It is written from AUTHORISATION.md and the RFCs, never from `authorise/proof`, and
shares no code with it, so that a mistake in either shows. Every answer is three-valued inside: True, False, or None
where bytes are missing or hide it; what a packet *must* be is True, what it *may* be is not False.

Where AUTHORISATION.md leaves room, the reading that protects more is taken:
- a frame whose type is not there may be any carrier, an IP packet whose protocol is not there any carrier of IP;
- AH behind IPv6 is an extension header and `ah`, a fragment header behind a fragment header `extension` and `other`:
  both have to be ignored;
- a third VLAN tag holds for `vlan` even where `tags` are ignored;
- of a packet in two allows that show as much, one of which hides payload, the other addresses, both are hidden;
- of packets that a `never` forbids, however little it forbids to show, the payload is hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ffpf_bpf.authorise.policy import Allow, Network, Never, PacketClass, Part
from ffpf_bpf.graph.effect import Depth

IPV4, IPV6, ARP, RARP = 0x0800, 0x86DD, 0x0806, 0x8035
TAGS = (0x8100, 0x88A8, 0x9100)
ODD_TAGS = (0x9200, 0x9300)
MOST_TAGS = 2
LARGEST_LENGTH = 1_535
ICMP, TCP, UDP, FRAGMENT, ICMP6, SCTP = 1, 6, 17, 44, 58, 132
WITH_PORTS = (TCP, UDP, SCTP)
EXTENSIONS = (0, 43, 51, 60, 135, 139, 140)

ETHERTYPES = {
    0x8847: "mpls", 0x8848: "mpls", 0x8864: "pppoe", 0x88E5: "macsec", 0x88E7: "pbb", 0x22F3: "trill", 0x894F: "nsh",
}  # fmt: skip
PROTOCOLS = {
    137: "mpls", 4: "ipip", 41: "6in4", 47: "gre", 97: "etherip", 115: "l2tp", 103: "pim", 50: "esp", 51: "ah",
    108: "ipcomp",
}  # fmt: skip
UDP_PORTS = {
    6635: "mpls", 6636: "mpls", 1701: "l2tp", 3653: "6in4", 4191: "6in4", 5072: "6in4", 5437: "6in4", 41641: "wireguard", 9993: "zerotier", 4500: "esp", 10000: "esp", 10500: "esp", 434: "ipip", 4754: "gre", 4755: "gre",
    4789: "vxlan", 8472: "vxlan", 4790: "vxlan", 6081: "geneve", 2152: "gtp", 3386: "gtp", 3544: "teredo", 6080: "gue",
    5555: "gue", 4341: "lisp", 4342: "lisp", 5247: "capwap", 12222: "capwap", 51820: "wireguard", 1194: "openvpn",
    2268: "amt", 6343: "mirror", 37008: "mirror", 7932: "mirror", 9899: "sctp",
}  # fmt: skip
SERVICES = frozenset({53, *range(67, 70), 88, 123, 137, 138, 161, 162, 389, 443, 500, 514, 520, 521, 546, 547, 853})
ICMP_ERRORS = (3, 4, 5, 11, 12, 31, 40)
ICMP6_ERRORS = (*range(128), 137)
PLAIN_ETHERTYPES = (ARP, RARP, 0x0842, 0x8809, 0x8863, 0x888E, 0x88CC, 0x88F7)
PLAIN_PROTOCOLS = (ICMP, ICMP6, 2, TCP, UDP, 33, 46, 59, 88, 89, 112, SCTP)

WHOLE_ADDRESSES = False

OVER_UDP = frozenset(UDP_PORTS.values()) | {"service"}
OVER_IP = OVER_UDP | set(PROTOCOLS.values()) | {"fragment", "icmp-error", "other"}
CARRIERS = OVER_IP | set(ETHERTYPES.values()) | {"extension", "tags", "llc"}

Three = bool | None
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame by the reference dissection; None where a byte is missing. `tags` are VLAN ids; `offset` is that of
    fragments; `source` and `target` what is there of the addresses of IP, ARP and RARP."""

    tags: tuple[int | None, ...] = ()
    ethertype: int | None = None
    l3: int = 14
    protocol: int | None = None
    offset: int | None = None
    l4: int = 0
    source: bytes = b""
    target: bytes = b""

    @property
    def is_ip(self) -> Three:
        return None if self.ethertype is None else self.ethertype in (IPV4, IPV6)

    @property
    def has_extension(self) -> bool:
        """An IPv6 extension header other than the one fragment header that is looked through."""
        return self.ethertype == IPV6 and (self.protocol in EXTENSIONS or self.protocol == FRAGMENT)


@lru_cache(maxsize=2)  # each answer about a frame asks for it
def dissect(frame: bytes) -> Seen:
    """The frame as AUTHORISATION.md, "The reference dissection", sees it."""
    tags: list[int | None] = []
    at = 12
    ethertype = _number(frame, at, 2)
    while ethertype in TAGS and len(tags) < MOST_TAGS:
        control = _number(frame, at + 2, 2)
        tags.append(None if control is None else control & 0xFFF)
        at += 4
        ethertype = _number(frame, at, 2)
    l3 = at + 2
    match ethertype:
        case 0x0800:
            first, flags = _number(frame, l3, 1), _number(frame, l3 + 6, 2)
            l4 = l3 + 4 * ((first or 0) & 15)
            offset = None if flags is None else flags & 0x1FFF
            ends = frame[l3 + 12 : l3 + 16], frame[l3 + 16 : l3 + 20]
            return Seen(tuple(tags), ethertype, l3, _number(frame, l3 + 9, 1), offset, l4, *ends)
        case 0x86DD:
            ends = frame[l3 + 8 : l3 + 24], frame[l3 + 24 : l3 + 40]
            protocol = _number(frame, l3 + 6, 1)
            if protocol != FRAGMENT:
                return Seen(tuple(tags), ethertype, l3, protocol, 0, l3 + 40, *ends)
            flags = _number(frame, l3 + 42, 2)
            offset = None if flags is None else flags >> 3
            return Seen(tuple(tags), ethertype, l3, _number(frame, l3 + 40, 1), offset, l3 + 48, *ends)
        case 0x0806 | 0x8035:
            ends = frame[l3 + 14 : l3 + 18], frame[l3 + 24 : l3 + 28]
            return Seen(tuple(tags), ethertype, l3, source=ends[0], target=ends[1])
        case _:
            return Seen(tuple(tags), ethertype, l3)


def must(packet_class: PacketClass, frame: bytes) -> bool:
    """Whether the packet is in the class for certain: what `allow` asks."""
    return _holds(packet_class, dissect(frame), frame, None) is True


def may(never: Never, frame: bytes) -> bool:
    """Whether it cannot be excluded that the packet, or one that it carries, is in the class of `never`."""
    ignored = CARRIERS if "*" in never.ignore else never.ignore
    if carriers(frame) - ignored:
        return True
    return _holds(never.packets, dissect(frame), frame, ignored) is not False


def carriers(frame: bytes) -> frozenset[str]:
    """The carriers that the packet may be."""
    seen = dissect(frame)
    match seen.ethertype:
        case None:
            return frozenset(CARRIERS)
        case kind if kind in TAGS or kind in ODD_TAGS:
            return frozenset({"tags"})
        case kind if kind <= LARGEST_LENGTH:
            return frozenset({"llc"})
        case kind if kind in (IPV4, IPV6):
            return _ip_carriers(seen, frame)
        case kind if kind in PLAIN_ETHERTYPES:
            return frozenset()
        case kind:
            return frozenset({ETHERTYPES.get(kind, "other")})


def shown_allowed(allows: Iterable[Allow], nevers: Iterable[Never], depth: Depth, frame: bytes) -> bool:
    """Whether the packet may be shown at that depth."""
    if not any(allow.show >= depth and must(allow.packets, frame) for allow in allows):
        return False
    return not any(depth >= never.show and may(never, frame) for never in nevers)


def payload_start(frame: bytes) -> int:
    """Where its payload begins; the frame's length if it has none. No header is shorter than its fixed part: an IHL
    below 5 or a data offset below 5 do not make payload of addresses and ports."""
    seen, _ = _behind_extensions(dissect(frame), frame)
    start = seen.l3 + (28 if seen.ethertype in (ARP, RARP) else 0)
    if seen.is_ip:
        start = seen.l4
        if seen.protocol is None or seen.offset is None:
            start = len(frame)
        elif seen.offset == 0:
            start += _transport_bytes(seen, frame)
        start = max(start, seen.l3 + 20)
    return min(start, len(frame))


def address_bytes(frame: bytes) -> set[int]:
    """Where its addresses are, those of Ethernet, IP and ARP, the hardware's in ARP too; and what tells of them: IPv4's
    checksum and options, IPv6's extension headers but for what comes next and their length, the checksums of transport
    headers, TCP's options, ICMP but for type and code."""
    seen, found = _behind_extensions(dissect(frame), frame)
    found |= set(range(12))
    match seen.ethertype:
        case 0x0800:
            found |= set(range(seen.l3 + 10, seen.l4))  # behind the header are ports
        case 0x86DD:
            found |= set(range(seen.l3 + 8, seen.l3 + 40))
        case 0x0806 | 0x8035:
            found |= set(range(seen.l3 + 8, seen.l3 + 28))
    if seen.is_ip and seen.l4 >= seen.l3 + 20 and seen.offset == 0:
        match seen.protocol:
            case 6:
                found |= {seen.l4 + 16, seen.l4 + 17, *range(seen.l4 + 20, seen.l4 + _transport_bytes(seen, frame))}
            case 17:
                found |= {seen.l4 + 6, seen.l4 + 7}
            case 132:
                found |= set(range(seen.l4 + 8, seen.l4 + 12))
            case 1 | 58:
                found |= set(range(seen.l4 + 2, seen.l4 + 8))
    return {at for at in found if at < len(frame)}


def in_allows(allows: Sequence[Allow], frame: bytes) -> tuple[bool, ...]:
    """Which allows are about the packet."""
    return tuple(must(allow.packets, frame) for allow in allows)


def in_nevers(nevers: Sequence[Never], frame: bytes) -> tuple[bool, ...]:
    """Which nevers the packet may contain something of."""
    return tuple(may(never, frame) for never in nevers)


def hidden(allows: Sequence[Allow], nevers: Sequence[Never], frame: bytes, *, pseudonyms: bool = False) -> set[int]:
    """The places of a packet that no verdict may depend on, of a flow that shows `pseudonyms` or not. The allows that
    show the most say what is hidden, and allows add up. Of what a never forbids, as of what no allow is about, the
    payload is hidden; of what may be shown with pseudonyms at most, where there are any, the addresses as well."""
    about = [allow for allow, here in zip(allows, in_allows(allows, frame), strict=True) if here]
    most = max((allow.show for allow in about), default=None)
    hides = {allow.hide for allow in about if allow.show is most}
    least = (hide for hide in hides if not any(other < hide for other in hides))
    parts = frozenset[Part]().union(*least) if about else frozenset({Part.PAYLOAD})
    forbidden = [never.show for never, here in zip(nevers, in_nevers(nevers, frame), strict=True) if here]
    if forbidden:
        parts |= {Part.PAYLOAD}
    if pseudonyms and Depth.HEADERS in forbidden:
        parts |= {Part.ADDRESSES}
    places: set[int] = set()
    if Part.PAYLOAD in parts:
        places |= set(range(payload_start(frame), len(frame)))
    if Part.ADDRESSES in parts:
        places |= address_bytes(frame)
    return places


def _behind_extensions(seen: Seen, frame: bytes) -> tuple[Seen, set[int]]:
    """The header behind all IPv6 extension headers (RFC 8200, section 4; AH: RFC 4302, section 2), and where these say
    more than what comes next and how long they are; fragment headers do not."""
    contents: set[int] = set()
    while seen.has_extension and seen.offset == 0:
        at, offset = seen.l4, 0
        length, flags = _number(frame, at + 1, 1) or 0, _number(frame, at + 2, 2)
        match seen.protocol:
            case 44:
                size, offset = 8, None if flags is None else flags >> 3
            case 51:
                size = 4 * (length + 2)
            case _:
                size = 8 * (length + 1)
        if seen.protocol != FRAGMENT:
            contents |= set(range(at + 2, at + size))
        seen = replace(seen, protocol=_number(frame, at, 1), l4=at + size, offset=offset)
    return seen, contents


def _transport_bytes(seen: Seen, frame: bytes) -> int:
    if seen.protocol == TCP:
        words = _number(frame, seen.l4 + 12, 1)
        return len(frame) if words is None else 4 * max(5, words >> 4)
    return {UDP: 8, SCTP: 12, ICMP: 8, ICMP6: 8}.get(seen.protocol or 0, 0)


def _ip_carriers(seen: Seen, frame: bytes) -> frozenset[str]:
    protocol = seen.protocol
    if protocol is None:
        return OVER_IP | {"extension"} if seen.ethertype == IPV6 else OVER_IP
    found: set[str] = set()
    if seen.has_extension:
        found.add("extension")
    if protocol in PROTOCOLS:
        found.add(PROTOCOLS[protocol])
    elif protocol not in PLAIN_PROTOCOLS and not (seen.has_extension and protocol != FRAGMENT):
        found.add("other")
    if seen.offset == 0:
        return frozenset(found | _upper_carriers(seen, frame))
    if found or protocol in (UDP, ICMP, ICMP6):
        found.add("fragment")
    return frozenset(found)


def _upper_carriers(seen: Seen, frame: bytes) -> frozenset[str]:
    """What its UDP ports or its ICMP type say."""
    if seen.protocol == UDP:
        first, second = _ports(seen, frame)
        return _tunnels(first, second) | _tunnels(second, first)
    if seen.protocol in (ICMP, ICMP6):
        kind = _number(frame, seen.l4, 1)
        if kind is None or kind in (ICMP_ERRORS if seen.protocol == ICMP else ICMP6_ERRORS):
            return frozenset({"icmp-error"})
    return frozenset()


def _tunnels(port: int | None, other: int | None) -> frozenset[str]:
    """What `port` may be of, `other` being the port of the other end."""
    names = set(UDP_PORTS.values()) if port is None else {UDP_PORTS[port]} if port in UDP_PORTS else set()
    if not names:
        return frozenset()
    if other is None:
        return frozenset(names | {"service"})
    return frozenset({"service"} if other in SERVICES else names)


def _holds(wanted: PacketClass, seen: Seen, frame: bytes, ignored: frozenset[str] | None) -> Three:
    """Whether every key that is given holds. `ignored` are the carriers that `never` ignores; None for `allow`."""
    loose = ignored is not None
    hides_protocol = loose and seen.has_extension and "extension" not in (ignored or ())
    hides_ports = loose and "fragment" not in (ignored or ())
    protocol = None if hides_protocol else seen.protocol

    def is_ip_with(protocols: Iterable[int]) -> Three:
        return _all((seen.is_ip, None if protocol is None else protocol in protocols))

    def port(spans: Sequence[Span], protocols: Iterable[int], *ends: int) -> Three:
        carried = is_ip_with(protocols)
        if carried is False:
            return False
        if seen.offset is None:
            return None
        if seen.offset:
            return None if hides_ports else False
        ports = (None, None) if hides_protocol else _ports(seen, frame)
        return _all((carried, _any(_within(ports[end], spans) for end in ends)))

    def address(nets: Sequence[Network], *ends: bytes) -> Three:
        return _any(_in_net(seen, end, net) for end in ends for net in nets)

    keys: list[Three] = []
    for name in wanted.keys:
        values = getattr(wanted, name)
        match name:
            case "src":
                keys.append(address(values, seen.source))
            case "dst":
                keys.append(address(values, seen.target))
            case "net":
                keys.append(address(values, seen.source, seen.target))
            case "port":
                keys.append(port(values, WITH_PORTS, 0, 1))
            case "src_port":
                keys.append(port(values, WITH_PORTS, 0))
            case "dst_port":
                keys.append(port(values, WITH_PORTS, 1))
            case "tcp_port" | "udp_port" | "sctp_port":
                protocols = {"tcp_port": TCP, "udp_port": UDP, "sctp_port": SCTP}
                keys.append(port(values, (protocols[name],), 0, 1))
            case "ethertypes" | "protocols" | "vlan" | "untagged":
                pass  # two fields are one key of a policy: below
            case _:
                raise TypeError(f"not a key of a packet class: {name}")
    if wanted.ethertypes or wanted.protocols:
        by_type = None if seen.ethertype is None else seen.ethertype in wanted.ethertypes
        keys.append(_any((by_type, is_ip_with(wanted.protocols) if wanted.protocols else False)))
    if wanted.vlan or wanted.untagged:
        keys.append(_vlan_may(wanted, seen) if loose else _vlan_must(wanted, seen))
    return _all(keys)


def _vlan_must(wanted: PacketClass, seen: Seen) -> Three:
    if seen.tags:
        return _within(seen.tags[0], wanted.vlan)
    return None if seen.ethertype is None else wanted.untagged


def _vlan_may(wanted: PacketClass, seen: Seen) -> Three:
    found: list[Three] = [_within(tag, wanted.vlan) for tag in seen.tags]
    if seen.ethertype is None:
        found.append(None)  # it may be another tag, or none
    elif not seen.tags:
        found.append(wanted.untagged)
    elif seen.ethertype in TAGS:
        found.append(bool(wanted.vlan))
    return _any(found)


def _in_net(seen: Seen, address: bytes, net: Network) -> Three:
    if seen.ethertype is None:
        return None
    if seen.ethertype not in ((IPV4, ARP, RARP) if net.version == 4 else (IPV6,)):
        return False
    bits = net.max_prefixlen
    if 8 * len(address) < (bits if WHOLE_ADDRESSES else net.prefixlen):
        return None
    value = int.from_bytes(address.ljust(bits // 8, b"\0"), "big")
    return (value ^ int(net.network_address)) >> (bits - net.prefixlen) == 0


def _ports(seen: Seen, frame: bytes) -> tuple[int | None, int | None]:
    return _number(frame, seen.l4, 2), _number(frame, seen.l4 + 2, 2)


def _within(value: int | None, spans: Sequence[Span]) -> Three:
    if not spans:
        return False
    return None if value is None else any(low <= value <= high for low, high in spans)


def _any(values: Iterable[Three]) -> Three:
    found = set(values)
    return True if True in found else None if None in found else False


def _all(values: Iterable[Three]) -> Three:
    found = set(values)
    return False if False in found else None if None in found else True


def _number(frame: bytes, at: int, size: int) -> int | None:
    """Big-endian; None if a byte of it is not there."""
    return int.from_bytes(frame[at : at + size], "big") if at + size <= len(frame) else None
