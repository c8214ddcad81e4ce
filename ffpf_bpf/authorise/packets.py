"""The TOML form of packet classes: a table of nets, protocols, ports and VLANs -> PacketClass.

What is listed is sorted and joined, so lists of 20,000 nets stay as small as what they mean. A class in which one key
excludes another, so that it could never hold, is an error, and so is an empty list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator, model_validator

from ffpf_bpf.authorise.contradiction import check_can_hold
from ffpf_bpf.authorise.mistake import mistake, nearest, quoted
from ffpf_bpf.authorise.policy import Network, PacketClass, Span
from ffpf_bpf.authorise.protocols import ETHERTYPES, PROTOCOLS

Value = TypeVar("Value")
Protocols = tuple[tuple[int, ...], tuple[int, ...]]  # ethertypes, and protocols of IP
Vlans = tuple[tuple[Span, ...], bool]  # ids, and whether untagged
FAMILIES: dict[type[Network], tuple[int, int]] = {IPv4Network: (AF_INET, 32), IPv6Network: (AF_INET6, 128)}
MAPPED = 0xFFFF  # the first 96 bits of ::ffff:10.0.0.1
LAST_IPV4 = (1 << 32) - 1
UNTAGGED = "none"
NET_HELP = 'write addresses and nets as in `["10.1.0.0/16", "2001:db8::/32"]`; no name is resolved'
PORT_HELP = 'ports are numbers: `80`, `"8000-8100"`, or a list of these'
VLAN_HELP = 'VLANs are `7`, `"10-20"`, `"none"` for no tag, or a list of these'


class Table(BaseModel):
    """A table of a policy file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _each(value: object, read: Callable[[object], Value], help: str) -> list[Value]:
    """What is read of a list, or of one value that stands for a list of one."""
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise mistake("an empty list holds for no packet", f"leave the key out to take any; {help}")
    found = []
    for index, item in enumerate(listed):
        try:
            found.append(read(item))
        except _Wrong as wrong:
            raise mistake(*wrong.args, index) from None
    return found


class _Wrong(Exception):
    """Message and help about one item of a list."""


def _nets(value: object) -> tuple[Network, ...]:
    read = _each(value, _net, NET_HELP)
    four = _joined(span for version, span in read if version is IPv4Network)
    six = _joined(span for version, span in read if version is IPv6Network)
    return (*_summed(four, IPv4Network), *_summed(six, IPv6Network))


def _net(item: object) -> tuple[type[Network], Span]:
    """Version, and first and last address. `ip_network` would take ten times as long."""
    if not isinstance(item, str):
        raise _Wrong(f"{quoted(item)} is no net", NET_HELP)
    address, slash, length = item.partition("/")
    version: type[Network] = IPv6Network if ":" in address else IPv4Network
    family, bits = FAMILIES[version]
    try:
        first = int.from_bytes(inet_pton(family, address))
    except (OSError, ValueError):
        raise _Wrong(f"{quoted(item)} is no net", NET_HELP) from None
    if not slash:
        length = str(bits)
    if not (length.isascii() and length.isdecimal() and len(length) <= 3 and int(length) <= bits):
        raise _Wrong(f"{quoted(length)} is no prefix length", f"0 to {bits} bits, as in `{address}/{bits}`")
    behind = (1 << bits - int(length)) - 1
    if first & behind:
        right = version((first & ~behind, int(length)))
        raise _Wrong(f"{quoted(item)} has bits behind its prefix", f"the net is `{right}`")
    if version is IPv6Network and first >> 32 == MAPPED and behind <= LAST_IPV4:
        four = IPv4Network((first & LAST_IPV4, int(length) - 96))
        raise _Wrong(f"{quoted(item)} is of IPv4 in the form of IPv6, which no packet has", f"write `{four}`")
    return version, (first, first | behind)


def _summed(spans: tuple[Span, ...], version: type[Network]) -> Iterator[Network]:
    """The fewest nets that are the spans."""
    bits = FAMILIES[version][1]
    for first, last in spans:
        at = first
        while at <= last:
            aligned = (at & -at).bit_length() - 1 if at else bits
            host_bits = min(aligned, (last - at + 1).bit_length() - 1)
            yield version((at, bits - host_bits))
            at += 1 << host_bits


def _protocols(value: object) -> Protocols:
    read = _each(value, _protocol, f"the protocols are {', '.join((*ETHERTYPES, *PROTOCOLS))}")
    ethertypes = {number for table, number in read if table is ETHERTYPES}
    return tuple(sorted(ethertypes)), tuple(sorted({number for table, number in read if table is PROTOCOLS}))


def _protocol(item: object) -> tuple[dict[str, int], int]:
    """The table it is in, and its number."""
    if isinstance(item, int) and not isinstance(item, bool):
        if not 0 <= item <= 255:
            raise _Wrong(f"{item} is no protocol of IP", "0 to 255; ethertypes have names, as `arp`")
        return PROTOCOLS, item
    if isinstance(item, str):
        for table in (ETHERTYPES, PROTOCOLS):
            if item in table:
                return table, table[item]
    known = (*ETHERTYPES, *PROTOCOLS)
    raise _Wrong(f"unknown protocol {quoted(item)}", nearest(str(item), known, "a number from 0 to 255, or one of"))


def _ports(value: object) -> tuple[Span, ...]:
    return _joined(_each(value, lambda item: _span(item, 65_535, "port", PORT_HELP), PORT_HELP))


def _vlans(value: object) -> Vlans:
    read = _each(value, lambda item: None if item == UNTAGGED else _span(item, 4_095, "VLAN", VLAN_HELP), VLAN_HELP)
    return _joined(span for span in read if span is not None), None in read


def _span(item: object, most: int, what: str, help: str) -> Span:
    if isinstance(item, int) and not isinstance(item, bool):
        first = last = item
    elif isinstance(item, str) and (found := re.fullmatch(r"([0-9]{1,5})(?: ?- ?([0-9]{1,5}))?", item)):
        first, last = int(found[1]), int(found[2] or found[1])
    else:
        raise _Wrong(f"{quoted(item)} is no {what}", help)
    if not 0 <= first <= most or not 0 <= last <= most:
        raise _Wrong(f"{quoted(item)} is no {what}", f"0 to {most:,}")
    if first > last:
        raise _Wrong(f"{quoted(item)} is no range", f'write `"{last}-{first}"`')
    return first, last


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted, those that overlap or touch as one."""
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return tuple(joined)


Nets = Annotated[tuple[Network, ...], PlainValidator(_nets)]
Ports = Annotated[tuple[Span, ...], PlainValidator(_ports)]


class PacketTable(Table):
    """The keys of a packet class."""

    src: Nets = ()
    dst: Nets = ()
    net: Nets = ()
    proto: Annotated[Protocols, PlainValidator(_protocols)] = ((), ())
    port: Ports = ()
    src_port: Ports = ()
    dst_port: Ports = ()
    tcp_port: Ports = ()
    udp_port: Ports = ()
    sctp_port: Ports = ()
    vlan: Annotated[Vlans, PlainValidator(_vlans)] = ((), False)

    @property
    def packets(self) -> PacketClass:
        return PacketClass(
            *(self.src, self.dst, self.net, *self.proto, self.port, self.src_port, self.dst_port),
            *(self.tcp_port, self.udp_port, self.sctp_port, *self.vlan),
        )

    @model_validator(mode="after")
    def _check(self) -> PacketTable:
        check_can_hold(self.packets)
        return self
