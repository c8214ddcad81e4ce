"""What rules want of packets, as clauses of pcap filters: what a guard is made of.

Nothing here is trusted: whoever inserts a guard has the flow decided on again, so a clause that says too little only
leads to a refusal. Each clause is about packets with so many VLAN tags, in a text that begins with as many `vlan and`:
there all headers are where the text says they are, whatever else it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ffpf_bpf.authorise.policy import CARRIERS, SERVICE_PORTS, Network, Never, PacketClass, Span
from ffpf_bpf.authorise.proof.wire import (
    ALONE_PROTOCOLS,
    ALONE_TYPES,
    ETHERTYPE_CARRIERS,
    EXTENSIONS,
    FRAGMENT_HEADER,
    ICMP,
    ICMP6,
    ICMP6_REDIRECT,
    ICMP_ERRORS,
    LARGEST_LLC,
    LOWEST_ICMP6_ANSWER,
    PROTOCOL_CARRIERS,
    TAG_TYPES,
    UDP_CARRIERS,
    port_keys,
)
from ffpf_bpf.authorise.protocols import ARP, IPV4, IPV6, RARP, SCTP, TCP, UDP
from ffpf_bpf.graph.classes.bpf import LONGEST_FILTER

NO_MORE_TAGS = "not vlan"  # behind all else: it moves what follows
OUTERMOST = r"ether\[14:2\] & 0xfff = (\d+)"  # which `vlan 7` says as well
ETHERTYPE_WORDS = {IPV4: "ip", IPV6: "ip6", ARP: "arp", RARP: "rarp"}
PROTOCOL_WORDS = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
ICMP_ONLY = ("icmp", "icmp6")  # each over its own IP
NO_FRAGMENT = "not ip[6:2] & 0x1fff != 0"
OF_ONE_PROTOCOL = "and ip[6:2] & 0x1fff != 0)"


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
    yield from _no_tunnel(carriers)
    if "icmp-error" in carriers:
        yield f"not ({any_clause([f'icmp[0] = {each}' for each in ICMP_ERRORS])})"
        yield f"not (icmp6 and (ip6[40] < {LOWEST_ICMP6_ANSWER} or ip6[40] = {ICMP6_REDIRECT}))"
    yield NO_FRAGMENT
    yield f"not ip6[6] = {FRAGMENT_HEADER}"
    if "extension" in carriers:
        yield f"not ({any_clause([f'ip6[6] = {each}' for each in EXTENSIONS])})"
    yield from _kinds(carriers, tags)
    yield "not (ip proto 58 or ip6 proto 1)"
    yield NO_MORE_TAGS


def _no_tunnel(carriers: frozenset[str]) -> Iterator[str]:
    """No UDP port of a tunnel, whatever the other end is: that a service's is let pass is no reason to let it."""
    looked_into = [port for name in UDP_CARRIERS if name in carriers for port in UDP_CARRIERS[name]]
    ignored = [port for name in UDP_CARRIERS if name not in carriers for port in UDP_CARRIERS[name]]
    if looked_into:
        yield f"not ({_udp(looked_into)})"
    if ignored and "service" in carriers:
        yield f"not ({_udp(SERVICE_PORTS)} and ({_udp(ignored)}))"


def _udp(ports: Sequence[int]) -> str:
    return f"udp port {' or '.join(map(str, ports))}"


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
        ethertypes = [
            _ethertype(each)
            for each in (
                *(each for each in ALONE_TYPES if each not in TAG_TYPES),
                *listed(ETHERTYPE_CARRIERS, wanted=False),
            )
        ]
        ethertypes += [] if "llc" in carriers else [llc]
        yield any_clause(ethertypes)
        plain = [each for each in ALONE_PROTOCOLS if each not in (ICMP, ICMP6)]
        protocols = [_protocol(each) for each in (*plain, *listed(PROTOCOL_CARRIERS, wanted=False))]
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
    return tuple(dict.fromkeys(each for _, protocols, _ in port_keys(packets) for each in protocols))


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
