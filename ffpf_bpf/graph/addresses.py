"""Addresses as fields of a packet: equal to one, one of a list, or in a network.

Literals only: a host name is refused, nothing is resolved. What they share with numbers is in `comparisons`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from typing import ClassVar

from ffpf_bpf.graph.comparisons import Field
from ffpf_bpf.graph.condition import Condition, Form, joined, negated, refuse


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Address(Field):
    """An address in pcap's own words: `head` is `ip src`, or `ip` for either; `present` says that there is one."""

    head: str = field(kw_only=True)
    present: Form | None = field(default=None, kw_only=True)

    def _with_value(self, sign: str, value: object) -> tuple[str, Form]:
        address = self._checked(value)
        same = self._filter(address)
        if sign == "==":
            return repr(address), same
        return repr(address), joined("and", *([self.present] if self.present else []), negated(same))

    def _one_of(self, values: Sequence[object]) -> tuple[str, Form]:
        addresses = sorted({self._checked(value) for value in values})
        return repr(addresses), joined("or", *map(self._filter, addresses))

    def _filter(self, address: str) -> Form:
        return Form(f"{self.head} host {address}")

    def _checked(self, value: object) -> str:
        """The address as it is always written."""
        raise NotImplementedError(f"{type(self).__name__} has no addresses")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MacAddress(Address):
    """An Ethernet address, as in `00:11:22:33:44:55` or `00-11-22-33-44-55`."""

    example: ClassVar[str] = '"00:11:22:33:44:55"'

    def _checked(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(MAC_PATTERN, value):
            refuse(f"`{self.python}` compares with an Ethernet address, got {value!r}", f"write `{self._usage}`")
        return value.replace("-", ":").lower()


MAC_PATTERN = "[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{2}(?:-[0-9A-Fa-f]{2}){5}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ipv4(Address):
    """An IPv4 address. `counterpart` is the field that has the IPv6 one, "" if there is none."""

    example: ClassVar[str] = '"10.0.0.1"'
    example_network: ClassVar[str] = '"10.0.0.0/8"'
    version: ClassVar[int] = 4

    counterpart: str = field(default="", kw_only=True)

    def in_net(self, network: object) -> Condition:
        """The address lies in the network, as in `pkt.ip.src.in_net("10.0.0.0/8")`."""
        checked = self._network(network)
        return self._called(f"in_net({str(checked)!r})", Form(f"{self.head} net {checked}"))

    def _checked(self, value: object) -> str:
        try:
            address = ip_address(_literal(value))
        except ValueError:
            if isinstance(value, str) and "/" in value:
                refuse(f"`{value}` is no single address", f"for a network write `{self.python}.in_net({value!r})`")
            refuse(
                f"`{self.python}` compares with an IPv{self.version} address, got {value!r}",
                f"no name is resolved; write the address, as in `{self._usage}`",
            )
        self._check_version(address)
        return str(address)

    def _network(self, value: object) -> IPv4Network | IPv6Network:
        try:
            network = ip_network(_literal(value), strict=False)
        except ValueError:
            refuse(
                f"`{self.python}.in_net` takes an IPv{self.version} network, got {value!r}",
                f"no name is resolved; write it as in `{self.python}.in_net({self.example_network})`",
            )
        self._check_version(network)
        if ip_interface(_literal(value)).ip != network.network_address:
            refuse(f"`{value}` has bits behind its prefix", f"the network is `{network}`")
        return network

    def _check_version(self, value: IPv4Address | IPv6Address | IPv4Network | IPv6Network) -> None:
        if value.version != self.version:
            refuse(
                f"`{value}` is of IPv{value.version}, and `{self.python}` of IPv{self.version}",
                f"use `{self.counterpart}`" if self.counterpart else f"write `{self._usage}`",
            )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ipv6(Ipv4):
    """An IPv6 address. `counterpart` is the field that has the IPv4 one."""

    example: ClassVar[str] = '"2001:db8::1"'
    example_network: ClassVar[str] = '"2001:db8::/32"'
    version: ClassVar[int] = 6


def _literal(value: object) -> str:
    """The text of an address or network. Raises ValueError for what is none, and for one with an interface."""
    if not isinstance(value, str | IPv4Address | IPv6Address | IPv4Network | IPv6Network) or "%" in str(value):
        raise ValueError
    return str(value)
