"""What rules want of packets, as clauses of pcap filters: what a guard is made of.

Nothing here is trusted: whoever inserts a guard has the flow decided on again, so a clause that says too little only
leads to a refusal. Each clause is about packets with so many VLAN tags, in a text that begins with as many `vlan and`:
there all headers are where the text says they are, whatever else it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ffpf_bpf.authorise.policy import CARRIERS, Network, Never, PacketClass, Span
from ffpf_bpf.authorise.protocols import ARP, IPV4, IPV6, RARP, SCTP, TCP, UDP
from ffpf_bpf.graph.classes.bpf import LONGEST_FILTER

NO_MORE_TAGS = "not vlan"  # behind all else: it moves what follows
OUTERMOST = r"ether\[14:2\] & 0xfff = (\d+)"  # which `vlan 7` says as well
ETHERTYPE_WORDS = {IPV4: "ip", IPV6: "ip6", ARP: "arp", RARP: "rarp"}
PROTOCOL_WORDS = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
EXTENSIONS = (0, 43, 51, 60, 135, 139, 140)
FRAGMENT_HEADER = 44
# What is known to carry nothing, and the carriers: AUTHORISATION.md.
PLAIN_ETHERTYPES = (IPV4, IPV6, ARP, RARP, 0x0842, 0x8809, 0x8863, 0x888E, 0x88CC, 0x88F7)
PLAIN_PROTOCOLS = (TCP, UDP, SCTP, 2, 33, 46, 59, 88, 89, 112, 136)
ICMP_ONLY = ("icmp", "icmp6")  # each over its own IP
ETHERTYPE_CARRIERS = {
    "tags": (0x9200, 0x9300), "mpls": (0x8847, 0x8848), "pppoe": (0x8864,), "macsec": (0x88E5,), "pbb": (0x88E7,),
    "trill": (0x22F3,), "nsh": (0x894F,),
}  # fmt: skip
PROTOCOL_CARRIERS = {
    "mpls": (137,), "ipip": (4,), "6in4": (41,), "gre": (47,), "etherip": (97,), "l2tp": (115,), "pim": (103,),
    "esp": (50,), "ah": (51,), "ipcomp": (108,),
}  # fmt: skip
UDP_CARRIERS = {
    "mpls": (6635, 6636), "l2tp": (1701,), "esp": (4500,), "vxlan": (4789, 8472, 4790), "geneve": (6081,),
    "gtp": (2152,), "teredo": (3544,), "gue": (6080,), "lisp": (4341,), "capwap": (5247,), "wireguard": (51820,),
}  # fmt: skip
NO_FRAGMENT = "not ip[6:2] & 0x1fff != 0"
OF_ONE_PROTOCOL = "and ip[6:2] & 0x1fff != 0)"
ICMP_ERRORS = (3, 4, 5, 11, 12)
LARGEST_LLC = 1_535


class TooLong(Exception):
    """The policy does not fit into a filter."""


def all_clauses(clauses: Sequence[str]) -> str:
    """The clauses joined by `and`, which binds no tighter than `or`."""
    return " and ".join(_grouped(clause) if len(clauses) > 1 else clause for clause in clauses)


def any_clause(clauses: Sequence[str]) -> str:
    text = " or ".join(_grouped(clause) if len(clauses) > 1 else clause for clause in clauses)
    if len(text) > LONGEST_FILTER:
        raise TooLong
    return text


def text_of(tags: int, clauses: Sequence[str]) -> str:
    """The filter of an alternative: packets with so many tags, or at least so many, for which the clauses hold."""
    if NO_FRAGMENT in clauses:
        clauses = [each for each in clauses if not each.endswith(OF_ONE_PROTOCOL)]
    outer = next((found for each in clauses if (found := re.fullmatch(OUTERMOST, each))), None)
    others = [each for each in clauses if each != NO_MORE_TAGS and not (outer and each == outer[0])]
    parts = [f"vlan {outer[1]}" if outer and not number else "vlan" for number in range(tags)]
    parts += others
    parts += [NO_MORE_TAGS] if NO_MORE_TAGS in clauses else []
    text = all_clauses(parts)
    if len(text) > LONGEST_FILTER:
        raise TooLong
    return text


def keys(packets: PacketClass, tags: int, *, any_tag: bool = False) -> tuple[str, ...] | None:
    """A clause for each key of the class, as an `allow` means it; None if no packet with so many tags is in it. With
    `any_tag`, `vlan` may be about any of them, as in a `never`."""
    found: list[str] = []
    if packets.vlan or packets.untagged:
        if not (packets.vlan if tags else packets.untagged):
            return None
        places = range(tags) if any_tag else range(min(tags, 1))
        ids = [_number(f"ether[{14 + 4 * place}:2] & 0xfff", span) for place in places for span in packets.vlan]
        found += [any_clause(ids)] if ids else []
    protocols = [*map(_ethertype, packets.ethertypes), *map(_protocol, packets.protocols)]
    found += [any_clause(protocols)] if protocols else []
    for nets, side in ((packets.src, "src "), (packets.dst, "dst "), (packets.net, "")):
        found += [any_clause([_net(side, net) for net in nets])] if nets else []
    for key in ("tcp_port", "udp_port", "sctp_port", "port", "src_port", "dst_port"):
        if spans := getattr(packets, key):
            qualifier = key.replace("_", " ").removesuffix("port")
            found.append(any_clause([_port(qualifier, span) for span in spans]))
    return tuple(found)


def in_classes(classes: Sequence[PacketClass], tags: int) -> Iterator[str]:
    """Clauses that a packet which is in none of the classes does not all pass: those of the keys of the only class, or
    one for all classes."""
    told = [each for each in (keys(packets, tags) for packets in classes) if each is not None]
    if len(told) == 1:
        yield from told[0]
    elif told and all(told):
        yield any_clause(list(dict.fromkeys(map(all_clauses, told))))


def without(never: Never, tags: int) -> Iterator[str]:
    """Clauses that a packet which may be, or carry, one of the class does not all pass, those that take little first.
    There is none if every packet is of the class."""
    own = keys(never.packets, tags, any_tag=True)
    carriers = frozenset(CARRIERS) - never.ignore
    if own == ():
        return
    if own is not None:
        yield f"not {_grouped(all_clauses(own))}"
        if "fragment" in carriers and (protocols := _with_ports(never.packets)):
            words = any_clause([_protocol(each) for each in protocols])
            yield f"not ({_grouped(words)} {OF_ONE_PROTOCOL}"
    if ports := [port for name in UDP_CARRIERS if name in carriers for port in UDP_CARRIERS[name]]:
        listed = " or ".join(map(str, ports))
        yield f"not (udp src portrange 1024-65535 and udp dst portrange 1024-65535 and (udp port {listed}))"
    if "icmp-error" in carriers:
        yield f"not ({any_clause([f'icmp[0] = {each}' for each in ICMP_ERRORS])})"
        yield "not (icmp6 and ip6[40] < 128)"
    yield NO_FRAGMENT
    yield f"not ip6[6] = {FRAGMENT_HEADER}"
    if "extension" in carriers:
        yield f"not ({any_clause([f'ip6[6] = {each}' for each in EXTENSIONS])})"
    yield from _kinds(carriers, tags)
    yield "not (ip proto 58 or ip6 proto 1)"
    yield NO_MORE_TAGS


def whole(tags: int) -> Iterator[str]:
    """Clauses that leave out packets whose addresses are cut: a filter wants all of an address, a class only what its
    prefix reaches into."""
    for words, end in (("(arp or rarp)", 42), ("ip", 34), ("ip6", 54)):
        yield f"not ({words} and len < {end + 4 * tags})"


def _kinds(carriers: frozenset[str], tags: int) -> Iterator[str]:
    """Only ethertypes, and only protocols, that carry nothing, or what need not be looked into."""

    def listed(table: Mapping[str, tuple[int, ...]], *, wanted: bool) -> list[int]:
        return [number for name, numbers in table.items() if (name in carriers) is wanted for number in numbers]

    llc = f"ether[{12 + 4 * tags}:2] <= {LARGEST_LLC}"
    if "other" in carriers:
        ethertypes = [_ethertype(each) for each in (*PLAIN_ETHERTYPES, *listed(ETHERTYPE_CARRIERS, wanted=False))]
        ethertypes += [] if "llc" in carriers else [llc]
        yield any_clause(ethertypes)
        protocols = [_protocol(each) for each in (*PLAIN_PROTOCOLS, *listed(PROTOCOL_CARRIERS, wanted=False))]
        extensions = [] if "extension" in carriers else [f"ip6[6] = {each}" for each in EXTENSIONS]
        yield any_clause(["not ip and not ip6", *ICMP_ONLY, *protocols, *extensions])
        return
    ethertypes = [_ethertype(each) for each in listed(ETHERTYPE_CARRIERS, wanted=True)]
    if ethertypes := [*ethertypes, *([llc] if "llc" in carriers else [])]:
        yield f"not ({any_clause(ethertypes)})"
    if protocols := [_protocol(each) for each in listed(PROTOCOL_CARRIERS, wanted=True)]:
        yield f"not ({any_clause(protocols)})"


def _with_ports(packets: PacketClass) -> tuple[int, ...]:
    """The protocols whose ports the class is about."""
    found: list[int] = []
    for key, protocols in (
        ("tcp_port", (TCP,)), ("udp_port", (UDP,)), ("sctp_port", (SCTP,)),
        *((key, (TCP, UDP, SCTP)) for key in ("port", "src_port", "dst_port")),
    ):  # fmt: skip
        found += protocols if getattr(packets, key) else ()
    return tuple(dict.fromkeys(found))


def _ethertype(number: int) -> str:
    return ETHERTYPE_WORDS.get(number, f"ether proto 0x{number:04x}")


def _protocol(number: int) -> str:
    """Over IPv4 or IPv6."""
    return PROTOCOL_WORDS.get(number, f"proto {number}")


def _net(side: str, net: Network) -> str:
    if net.prefixlen == net.max_prefixlen:
        return f"{side}host {net.network_address}"
    return f"{side}net {net}"


def _port(qualifier: str, span: Span) -> str:
    first, last = span
    return f"{qualifier}port {first}" if first == last else f"{qualifier}portrange {first}-{last}"


def _number(what: str, span: Span) -> str:
    first, last = span
    return f"{what} = {first}" if first == last else f"{what} >= {first} and {what} <= {last}"


def _grouped(text: str) -> str:
    """In parentheses, if it joins anything."""
    is_one = text.startswith("not (") and text.endswith(")") and text.count("(") == text.count(" (")
    return text if is_one or not (" or " in text or " and " in text) else f"({text})"
