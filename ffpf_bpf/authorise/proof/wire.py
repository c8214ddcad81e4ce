"""The reference dissection of AUTHORISATION.md as formulas about the packet: what it must be, what it may contain.

Where headers begin depends on the packet, so each field is looked up among the few places where it can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ffpf_bpf.authorise.policy import CARRIERS, SERVICE_PORTS, Network, Never, PacketClass, Part, Span
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import there
from ffpf_bpf.authorise.proof.prefixes import tables
from ffpf_bpf.authorise.proof.terms import Term

ETHERNET_BYTES = 14
ARP_BYTES = 28
TAG_TYPES = (0x8100, 0x88A8, 0x9100)
MOST_TAGS = 2
IPV4, ARP, RARP, IPV6 = 0x0800, 0x0806, 0x8035, 0x86DD
ICMP, TCP, UDP, FRAGMENT_HEADER, ICMP6, SCTP = 1, 6, 17, 44, 58, 132
WITH_PORTS = (TCP, UDP, SCTP)
EXTENSIONS = (0, 43, 51, 60, 135, 139, 140)
LARGEST_LLC = 1_535
ICMP_ERRORS = (3, 4, 5, 11, 12, 31, 40)  # RFC 792, 1475, 2521
LOWEST_ICMP6_ANSWER, ICMP6_REDIRECT = 128, 137
# Of transport headers, what tells of addresses: checksums, and all of ICMP but type and code.
TELLING_BYTES = {TCP: (16, 18), UDP: (6, 8), SCTP: (8, 12), ICMP: (2, 8), ICMP6: (2, 8)}
TRANSPORT_BYTES = {UDP: 8, SCTP: 12, ICMP: 8, ICMP6: 8}  # and TCP, which says it

ETHERTYPE_CARRIERS = {
    "tags": (0x9200, 0x9300), "mpls": (0x8847, 0x8848), "pppoe": (0x8864,), "macsec": (0x88E5,), "pbb": (0x88E7,),
    "trill": (0x22F3,), "nsh": (0x894F,),
}  # fmt: skip
PROTOCOL_CARRIERS = {
    "mpls": (137,), "ipip": (4,), "6in4": (41,), "gre": (47,), "etherip": (97,), "l2tp": (115,), "pim": (103,),
    "esp": (50,), "ah": (51,), "ipcomp": (108,),
}  # fmt: skip
# https://tailscale.com/kb/1082 (41641), RFC 5572 (3653), 5555 (4191), 5844 (5437), 9028 (10500); AYIYA (5072)
UDP_CARRIERS = {
    "mpls": (6635, 6636), "l2tp": (1701,), "esp": (4500, 10000, 10500), "ipip": (434,),
    "6in4": (3653, 4191, 5072, 5437), "gre": (4754, 4755),
    "vxlan": (4789, 8472, 4790), "geneve": (6081,), "gtp": (2152, 3386), "teredo": (3544,), "gue": (6080, 5555),
    "lisp": (4341, 4342), "capwap": (5247, 12222), "wireguard": (51820, 41641), "zerotier": (9993,),
    "openvpn": (1194,), "amt": (2268,), "mirror": (6343, 37008, 7932), "sctp": (9899,),
}  # fmt: skip
ALONE_TYPES = (IPV4, ARP, RARP, IPV6, *TAG_TYPES, 0x0842, 0x8809, 0x8863, 0x888E, 0x88CC, 0x88F7)
ALONE_PROTOCOLS = (ICMP, 2, TCP, UDP, 33, 46, ICMP6, 59, 88, 89, 112, SCTP)


@dataclass(frozen=True, slots=True)
class Field:
    """Bytes of the packet whose place depends on it: their value, and whether they are there."""

    value: Term
    there: Term


class Wire:
    """The packet `p`, dissected: any packet, or those of one case, which have so many `tags`, and the bytes `known`."""

    def __init__(self, tags: int | None = None, known: Mapping[Term, Term] | None = None) -> None:
        self._tags = tags
        self._known = known or {}
        self._header_bytes: dict[int, Term] = {}
        self._telling: dict[int, Term] = {}

    def bytes_at(self, offset: int, size: int) -> Term:
        variables = (t.byte(offset + number) for number in range(size))
        return t.concat(*(self._known.get(each, each) for each in variables))

    def _field(self, places: Sequence[tuple[Term, int]], size: int) -> Field:
        """`places` are conditions, of which one holds, with the offset then."""
        *others, (_, last) = [place for place in places if place[0] is not t.FALSE] or places[-1:]
        value, is_there = self.bytes_at(last, size), there(last + size)
        for here, offset in reversed(others):
            value = t.ite(here, self.bytes_at(offset, size), value)
            is_there = t.ite(here, there(offset + size), is_there)
        return Field(value, is_there)

    @cached_property
    def places(self) -> tuple[tuple[Term, int], ...]:
        """Where the layer behind Ethernet begins, for each number of tags."""
        if self._tags is not None:
            return ((t.TRUE, ETHERNET_BYTES + 4 * self._tags),)
        tagged = [one_of(self.bytes_at(12 + 4 * number, 2), TAG_TYPES) for number in range(MOST_TAGS)]
        first, second = tagged
        return (
            (t.negated(first), ETHERNET_BYTES),
            (t.all_of((first, t.negated(second))), ETHERNET_BYTES + 4),
            (t.all_of((first, second)), ETHERNET_BYTES + 8),
        )

    def tagged(self, number: int) -> Term:
        """Whether it has more than `number` tags."""
        return t.any_of(here for here, offset in self.places if offset >= ETHERNET_BYTES + 4 * (number + 1))

    def behind_ethernet(self, offset: int, size: int) -> Field:
        return self._field([(here, start + offset) for here, start in self.places], size)

    @cached_property
    def ethertype(self) -> Field:
        field = self.behind_ethernet(-2, 2)
        # Of what has no tag it is there: no question is about a shorter frame.
        return Field(field.value, t.TRUE) if self._tags == 0 else field

    def is_type(self, *types: int) -> Term:
        """The ethertype is there and one of these."""
        return t.all_of((self.ethertype.there, one_of(self.ethertype.value, types)))

    @cached_property
    def is_ip4(self) -> Term:
        return self.is_type(IPV4)

    @cached_property
    def is_ip6(self) -> Term:
        return self.is_type(IPV6)

    @cached_property
    def next_header(self) -> Field:
        return self.behind_ethernet(6, 1)

    @cached_property
    def has_fragment_header(self) -> Term:
        """Of IPv6, for certain."""
        return t.all_of((self.next_header.there, t.equal(self.next_header.value, t.const(FRAGMENT_HEADER, 8))))

    @cached_property
    def protocol4(self) -> Field:
        return self.behind_ethernet(9, 1)

    @cached_property
    def fragment4(self) -> Field:
        return self.behind_ethernet(6, 2)

    @cached_property
    def protocol6(self) -> Field:
        """The next header, or that behind the fragment header."""
        behind, direct = self.behind_ethernet(40, 1), self.next_header
        return Field(
            t.ite(self.has_fragment_header, behind.value, direct.value),
            t.ite(self.has_fragment_header, behind.there, direct.there),
        )

    @cached_property
    def later4(self) -> Term:
        """The fragment offset of IPv4 is not 0, or not there."""
        offset = t.extract(self.fragment4.value, 12, 0)
        return t.negated(t.all_of((self.fragment4.there, t.equal(offset, t.const(0, 13)))))

    @cached_property
    def later6(self) -> Term:
        """Likewise, of IPv6 with a fragment header."""
        field = self.behind_ethernet(42, 2)
        offset = t.extract(field.value, 15, 3)
        return t.all_of((self.has_fragment_header, t.negated(t.all_of((field.there, t.equal(offset, t.const(0, 13)))))))

    @cached_property
    def transports(self) -> tuple[tuple[Term, int, int], ...]:
        """Where the transport header begins, in a packet that is IP, and how far the IP header goes at least, whatever
        it says."""
        found: list[tuple[Term, int, int]] = []
        for here, start in self.places:
            header_words = t.extract(self.bytes_at(start, 1), 3, 0)
            for words in range(16):
                is_so = t.all_of((here, self.is_ip4, t.equal(header_words, t.const(words, 4))))
                found.append((is_so, start + 4 * words, start + 20))
            ip6 = t.all_of((here, self.is_ip6))
            found.append((t.all_of((ip6, self.has_fragment_header)), start + 48, start + 48))
            found.append((t.all_of((ip6, t.negated(self.has_fragment_header))), start + 40, start + 40))
        return tuple(place for place in found if place[0] is not t.FALSE)

    def behind_ip(self, offset: int, size: int) -> Field:
        if not self.transports:
            return Field(t.const(0, 8 * size), t.FALSE)
        return self._field([(here, start + offset) for here, start, _ in self.transports], size)

    @cached_property
    def ports(self) -> tuple[Field, Field]:
        """Source and destination."""
        return self.behind_ip(0, 2), self.behind_ip(2, 2)

    # What it must be.

    def must(self, packets: PacketClass) -> Term:
        """The packet is in the class for certain."""
        holds = [self._must_be_from(packets)]
        if packets.ethertypes or packets.protocols:
            holds.append(t.any_of((self.is_type(*packets.ethertypes), self.is_protocol(*packets.protocols))))
        for spans, protocols, sides in port_keys(packets):
            # A later fragment has no ports.
            placed = t.all_of((self.is_protocol(*protocols), t.negated(self.is_later)))
            holds.append(t.all_of((placed, t.any_of(self._must_have(self.ports[side], spans) for side in sides))))
        if packets.vlan or packets.untagged:
            tag = t.all_of((self.tagged(0), there(16), _in_spans(t.extract(self.bytes_at(14, 2), 11, 0), packets.vlan)))
            holds.append(t.any_of((tag, t.negated(self.tagged(0)) if packets.untagged else t.FALSE)))
        return t.all_of(holds)

    @cached_property
    def is_later(self) -> Term:
        return t.ite(self.is_ip4, self.later4, self.later6)

    def _must_be_from(self, packets: PacketClass) -> Term:
        source, target = (self._must_address(nets, side) for side, nets in enumerate((packets.src, packets.dst)))
        either = t.any_of(self._must_address(packets.net, side) for side in (0, 1)) if packets.net else t.TRUE
        return t.all_of((source, target, either))

    def _must_address(self, nets: tuple[Network, ...], side: int) -> Term:
        if not nets:
            return t.TRUE
        return t.any_of(t.all_of((is_it, is_there, inside)) for is_it, is_there, inside in self._addresses(nets, side))

    def _addresses(self, nets: tuple[Network, ...], side: int) -> Iterable[tuple[Term, Term, Term]]:
        """For IPv4 and ARP, and for IPv6, and nets of the same number of bytes: whether it is that, whether these bytes
        of the address are there, and whether they are of one of the nets."""
        is_arp = self.is_type(ARP, RARP)
        for version, size, inside in tables(nets):
            if version == 6:
                address = self.behind_ethernet(8 + 16 * side, 16)
                is_there = self.behind_ethernet(8 + 16 * side, size).there
                yield self.is_ip6, is_there, inside(address.value)
                continue
            in_ip, in_arp = (self.behind_ethernet(start, 4) for start in (12 + 4 * side, 14 + 10 * side))
            is_there = t.ite(
                is_arp,
                self.behind_ethernet(14 + 10 * side, size).there,
                self.behind_ethernet(12 + 4 * side, size).there,
            )
            yield t.any_of((self.is_ip4, is_arp)), is_there, inside(t.ite(is_arp, in_arp.value, in_ip.value))

    def is_protocol(self, *protocols: int) -> Term:
        """It is IP, and its protocol is there and one of these."""
        return t.any_of(
            t.all_of((is_it, field.there, one_of(field.value, protocols)))
            for is_it, field in ((self.is_ip4, self.protocol4), (self.is_ip6, self.protocol6))
        )

    def _must_have(self, port: Field, spans: Sequence[Span]) -> Term:
        return t.all_of((port.there, _in_spans(port.value, spans)))

    # What it may contain.

    def may(self, never: Never) -> Term:
        """It cannot be excluded that the packet, or one that it carries, is in the class."""
        packets, ignored = never.packets, never.ignore
        # Of a frame that ends before its type nothing can be told.
        untold = t.negated(self.ethertype.there)
        holds = [
            t.any_of((untold, *(self._may_address(nets, side) for side in sides)))
            for nets, sides in ((packets.src, (0,)), (packets.dst, (1,)), (packets.net, (0, 1)))
            if nets
        ]
        if packets.ethertypes or packets.protocols:
            of_ip = self._may_be(packets.protocols, ignored) if packets.protocols else t.FALSE
            holds.append(t.any_of((untold, self.is_type(*packets.ethertypes), of_ip)))
        for spans, protocols, sides in port_keys(packets):
            placed = t.any_of(self._may_have(self.ports[side], spans) for side in sides)
            later = t.FALSE if "fragment" in ignored else self.is_later
            known = t.any_of((self._offset_untold, t.ite(self.is_later, later, placed)))
            extended = t.FALSE if "extension" in ignored else self._extended
            holds.append(t.any_of((untold, t.all_of((self._may_be(protocols, ignored), t.any_of((extended, known)))))))
        if packets.vlan or packets.untagged:
            holds.append(self._may_vlan(packets))
        return t.any_of((t.all_of(holds), self._carries(ignored)))

    def _may_address(self, nets: tuple[Network, ...], side: int) -> Term:
        return t.any_of(
            t.all_of((is_it, t.any_of((t.negated(is_there), inside))))
            for is_it, is_there, inside in self._addresses(nets, side)
        )

    @cached_property
    def _extended(self) -> Term:
        """It is IPv6 with an extension header, a second fragment header included; one in front is looked through."""
        return t.all_of((self.is_ip6, one_of(self.protocol6.value, (*EXTENSIONS, FRAGMENT_HEADER))))

    @cached_property
    def _offset_untold(self) -> Term:
        """It is IP, and its fragment offset is not there."""
        cut6 = t.all_of((self.has_fragment_header, t.negated(self.behind_ethernet(42, 2).there)))
        return t.any_of((t.all_of((self.is_ip4, t.negated(self.fragment4.there))), t.all_of((self.is_ip6, cut6))))

    def _may_be(self, protocols: Sequence[int], ignored: frozenset[str]) -> Term:
        told = (
            t.all_of((is_it, t.any_of((t.negated(field.there), one_of(field.value, protocols)))))
            for is_it, field in ((self.is_ip4, self.protocol4), (self.is_ip6, self.protocol6))
        )
        return t.any_of((*told, t.FALSE if "extension" in ignored else self._extended))

    def _may_have(self, port: Field, spans: Sequence[Span]) -> Term:
        return t.any_of((t.negated(port.there), _in_spans(port.value, spans)))

    def _may_vlan(self, packets: PacketClass) -> Term:
        ids = [
            t.all_of((self.tagged(number), t.any_of((t.negated(there(16 + 4 * number)), _in_spans(id, packets.vlan)))))
            for number in range(MOST_TAGS)
            for id in (t.extract(self.bytes_at(14 + 4 * number, 2), 11, 0),)
        ]
        third = self.is_type(*TAG_TYPES)  # behind two
        return t.any_of(
            (*ids, third, t.negated(self.ethertype.there), t.negated(self.tagged(0)) if packets.untagged else t.FALSE)
        )

    def _carries(self, ignored: frozenset[str]) -> Term:
        """It may carry another packet, in a carrier that is not ignored."""
        return t.any_of(truth for name, truth in self.carriers.items() if name not in ignored)

    @cached_property
    def carriers(self) -> dict[str, Term]:
        """For each carrier, whether it may be one."""
        found: dict[str, list[Term]] = {name: [] for name in CARRIERS}
        for name, types in ETHERTYPE_CARRIERS.items():
            found[name].append(self.is_type(*types))
        found["tags"].append(self.is_type(*TAG_TYPES))
        llc = t.all_of((self.ethertype.there, t.negated(t.at_least(self.ethertype.value, LARGEST_LLC + 1))))
        found["llc"].append(llc)
        for name, protocols in PROTOCOL_CARRIERS.items():
            found[name].append(self.is_protocol(*protocols))
        found["extension"].append(self._extended)
        # The rest of a datagram whose beginning is elsewhere.
        harmless = [each for each in ALONE_PROTOCOLS if each not in (UDP, ICMP, ICMP6)]
        ip = t.any_of((self.is_ip4, self.is_ip6))
        found["fragment"].append(t.all_of((ip, self.is_later, t.negated(self.is_protocol(*harmless)))))
        first = t.negated(self.is_later)
        datagram = t.all_of((first, self.is_protocol(UDP)))
        for port, other in (self.ports, self.ports[::-1]):
            # The other end of a tunnel has no port of a service, as a rule.
            served = one_of(other.value, SERVICE_PORTS)
            services = t.any_of((t.negated(other.there), served))
            others = t.any_of((t.negated(other.there), t.negated(served)))
            for name, ports in UDP_CARRIERS.items():
                tunnel = t.all_of((datagram, self._may_have(port, [(each, each) for each in ports])))
                found[name].append(t.all_of((tunnel, others)))
                found["service"].append(t.all_of((tunnel, services)))
        kind = self.behind_ip(0, 1)
        errors = t.any_of((t.negated(kind.there), one_of(kind.value, ICMP_ERRORS)))
        error6 = t.any_of(
            (t.negated(t.at_least(kind.value, LOWEST_ICMP6_ANSWER)), one_of(kind.value, (ICMP6_REDIRECT,)))
        )
        errors6 = t.any_of((t.negated(kind.there), error6))
        found["icmp-error"] += [
            t.all_of((first, self.is_protocol(ICMP), errors)),
            t.all_of((first, self.is_protocol(ICMP6), errors6)),
        ]
        known_types = [*ALONE_TYPES, *(kind for kinds in ETHERTYPE_CARRIERS.values() for kind in kinds)]
        known = (*ALONE_PROTOCOLS, *(number for numbers in PROTOCOL_CARRIERS.values() for number in numbers))
        # IPv4 has no extension headers: there these are unknown protocols.
        unknown4 = t.all_of((self.is_ip4, self.protocol4.there, t.negated(one_of(self.protocol4.value, known))))
        unknown6 = t.all_of(
            (self.is_ip6, self.protocol6.there, t.negated(one_of(self.protocol6.value, (*known, *EXTENSIONS))))
        )
        unknown_type = t.all_of((self.ethertype.there, t.negated(self.is_type(*known_types)), t.negated(llc)))
        found["other"] += [unknown_type, unknown4, unknown6]
        # Of what ends before it says what it is, nothing can be excluded.
        untold = t.negated(self.ethertype.there)
        untold4 = t.all_of((self.is_ip4, t.negated(self.protocol4.there)))
        untold6 = t.all_of((self.is_ip6, t.negated(self.protocol6.there)))
        never_in_ip = {"llc", *ETHERTYPE_CARRIERS} - set(PROTOCOL_CARRIERS)
        for name, truths in found.items():
            truths.append(untold)
            if name not in never_in_ip:
                truths.extend([untold6] if name == "extension" else [untold4, untold6])
        return {name: t.any_of(truths) for name, truths in found.items()}

    # What of it is hidden.

    def hides(self, offset: int, parts: frozenset[Part]) -> Term:
        """Whether byte `offset` is of one of these parts."""
        hidden = t.FALSE
        if Part.PAYLOAD in parts:
            hidden = t.any_of(self._is_payload(offset))
        if Part.ADDRESSES in parts:
            hidden = t.any_of((hidden, self._is_address(offset)))
        return hidden

    def _is_payload(self, offset: int) -> Iterable[Term]:
        """The ways in which the byte is behind the headers."""
        is_arp = self.is_type(ARP, RARP)
        no_ip = t.negated(t.any_of((self.is_ip4, self.is_ip6, is_arp)))
        for here, start in self.places:
            yield t.all_of((here, no_ip)) if start <= offset else t.FALSE
            yield t.all_of((here, is_arp)) if start + ARP_BYTES <= offset else t.FALSE
        for here, start, end in self.transports:
            if max(start, end) <= offset:
                yield t.all_of((here, t.negated(self._in_transport_header(offset - start))))

    def _in_transport_header(self, distance: int) -> Term:
        """The header behind IP has more than `distance` bytes."""
        if distance not in self._header_bytes:
            self._header_bytes[distance] = self._has_transport_bytes(distance)
        return self._header_bytes[distance]

    def _has_transport_bytes(self, distance: int) -> Term:
        words = t.extract(self.behind_ip(12, 1).value, 7, 4)
        tcp = t.TRUE if distance < 20 else t.at_least(words, distance // 4 + 1)
        fixed = [protocol for protocol, size in TRANSPORT_BYTES.items() if distance < size]
        return t.all_of(
            (
                t.negated(self.is_later),
                t.any_of((self.is_protocol(*fixed), t.all_of((self.is_protocol(TCP), tcp)))),
            )
        )

    def _is_address(self, offset: int) -> Term:
        """The byte is of an address, or tells of one: what `anonymise` leaves out of headers."""
        if offset < 12:
            return t.TRUE
        found = []
        for here, start in self.places:
            # Of IPv4 the checksum, addresses and options, as far as the header says that it goes: behind it are ports.
            words = t.extract(self.bytes_at(start, 1), 3, 0)
            ip4 = t.all_of((self.is_ip4, t.at_least(words, (offset - start) // 4 + 1)))
            for is_it, first, end in ((ip4, 10, 60), (self.is_ip6, 8, 40), (self.is_type(ARP, RARP), 8, 28)):
                if first <= offset - start < end:
                    found.append(t.all_of((here, is_it)))
        for here, start, end in self.transports:
            if end <= start <= offset:
                tells = t.all_of((t.negated(self.is_later), self._tells_of_addresses(offset - start)))
                # Routing headers, options and what is behind them: as payload is, since it may be one or the other.
                found.append(t.all_of((here, t.any_of((self._extended, tells)))))
        return t.any_of(found)

    def _tells_of_addresses(self, distance: int) -> Term:
        """So far into the transport header is a checksum, an option of TCP, or ICMP's own words."""
        if distance not in self._telling:
            fixed = [protocol for protocol, (first, end) in TELLING_BYTES.items() if first <= distance < end]
            options = t.all_of((self.is_protocol(TCP), self._in_transport_header(distance)))
            self._telling[distance] = t.any_of((self.is_protocol(*fixed), options if distance >= 20 else t.FALSE))
        return self._telling[distance]


def one_of(value: Term, numbers: Iterable[int]) -> Term:
    """Whether a bit vector is one of the numbers."""
    return t.any_of(t.equal(value, t.const(number, value.width)) for number in numbers)


def _in_spans(value: Term, spans: Iterable[Span]) -> Term:
    return t.any_of(t.between(value, low, high) for low, high in spans)


def port_keys(packets: PacketClass) -> Iterable[tuple[tuple[Span, ...], tuple[int, ...], tuple[int, ...]]]:
    """Of each key about ports that is given: the spans, the protocols, and which ports: 0 the source's, 1 the other."""
    keys = (
        (packets.port, WITH_PORTS, (0, 1)),
        (packets.src_port, WITH_PORTS, (0,)),
        (packets.dst_port, WITH_PORTS, (1,)),
        (packets.tcp_port, (TCP,), (0, 1)),
        (packets.udp_port, (UDP,), (0, 1)),
        (packets.sctp_port, (SCTP,), (0, 1)),
    )
    return (key for key in keys if key[0])
