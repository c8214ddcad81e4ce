"""Policies as values: what an administrator allows and forbids, after it was read and checked.

How rules combine is in AUTHORISATION.md: one must carry the complete flow, allows add up, a never always wins. `where`
is the place of each in its file, as `students.toml:12:1`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network

from ffpf_bpf.authorise.subject import Subject
from ffpf_bpf.errors import FfpfError
from ffpf_bpf.graph import globs
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.effect import Depth, tap_parts

ANY = "*"
Network = IPv4Network | IPv6Network
Span = tuple[int, int]  # both ends included


class PolicyError(FfpfError):
    """A policy that cannot be read or does not mean anything: it denies, whatever else is in the directory."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class PacketClass:
    """Packets by what stands in their headers: those for which every key that is given (is not empty) holds for one of
    its values. What "holds" means for `allow`, `never` and `order` is in AUTHORISATION.md."""

    src: tuple[Network, ...] = ()
    dst: tuple[Network, ...] = ()
    net: tuple[Network, ...] = ()
    ethertypes: tuple[int, ...] = ()  # of `proto`: it holds if the ethertype or the protocol is one of these
    protocols: tuple[int, ...] = ()
    port: tuple[Span, ...] = ()
    src_port: tuple[Span, ...] = ()
    dst_port: tuple[Span, ...] = ()
    tcp_port: tuple[Span, ...] = ()
    udp_port: tuple[Span, ...] = ()
    sctp_port: tuple[Span, ...] = ()
    vlan: tuple[Span, ...] = ()
    untagged: bool = False  # of `vlan`: "none"

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields that say something."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name))


class Part(StrEnum):
    """What a rule can hide of packets."""

    PAYLOAD = "payload"
    ADDRESSES = "addresses"


# Tunnels by UDP whose other end has the port of a service: not looked for, unless `ignore` is given without it.
IGNORED_BY_DEFAULT = frozenset({"service"})
# Services by UDP that hosts ask from any port, a tunnel's too: DNS, DHCP, TFTP, Kerberos, NTP, NetBIOS, SNMP, LDAP,
# QUIC, IKE, syslog, RIP, RIPng, DHCPv6, DNS over QUIC. https://www.iana.org/assignments/service-names-port-numbers
SERVICE_PORTS = (53, 67, 68, 69, 88, 123, 137, 138, 161, 162, 389, 443, 500, 514, 520, 521, 546, 547, 853)
HIDDEN_BY: dict[Depth, frozenset[Part]] = {
    Depth.ALL: frozenset(),
    Depth.HEADERS: frozenset({Part.PAYLOAD}),
    Depth.ANONYMISED: frozenset({Part.PAYLOAD, Part.ADDRESSES}),
    Depth.COUNTS: frozenset({Part.PAYLOAD}),
}
CARRIERS = (
    "fragment", "extension", "tags", "llc", "mpls", "pppoe", "macsec", "pbb", "trill", "nsh", "ipip", "6in4", "gre",
    "etherip", "l2tp", "pim", "esp", "ah", "ipcomp", "vxlan", "geneve", "gtp", "teredo", "gue", "lisp", "capwap",
    "amt", "wireguard", "zerotier", "openvpn", "sctp", "mirror", "service", "icmp-error", "other",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Allow:
    """Packets that must be in the class may be shown up to the depth `show`; what is in `hide` must not be told by
    counters either."""

    packets: PacketClass
    show: Depth = Depth.ALL
    hide: frozenset[Part] = frozenset()
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Never:
    """Packets that may possibly contain one of the class must not be shown at the depth `show` or more. What is inside
    the carriers `ignore` is not looked for."""

    packets: PacketClass
    show: Depth = Depth.ANONYMISED
    ignore: frozenset[str] = frozenset()
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Order:
    """On every path, each node of class `function` has `required` in front of it (or behind it: `after` is False): a
    node of that class; or, only in front, packets that must be in a class; or a sampler of at least 1 in N."""

    function: str
    required: str | PacketClass | int
    after: bool = True
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds; None is no bound. `buffer_bytes` is per CPU, `memory_bytes` of nodes, `snaplen` in bytes,
    `sample_at_least` the N of 1 in N, `packets_per_second` delivered to all sinks together, `expires_s` the seconds
    that a flow may live."""

    flows: int | None = None
    nodes: int | None = None
    snaplen: int | None = None
    buffer_bytes: int | None = None
    memory_bytes: int | None = None
    sample_at_least: int | None = None
    packets_per_second: int | None = None
    expires_s: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[rule]]`. `where` is its place in its file: `students.toml:12:1`. A rule without `classes` allows nothing
    and only says `never`."""

    name: str
    subjects: tuple[str, ...]
    taps: tuple[str, ...]
    classes: tuple[str, ...] = ()
    allow: tuple[Allow, ...] = ()
    never: tuple[Never, ...] = ()
    order: tuple[Order, ...] = ()
    limits: Limits = Limits()
    monitor: bool = False  # whether its taps may be monitor ports
    where: str = field(default="", compare=False)

    def names(self, subject: Subject) -> bool:
        """Whether the rule is about this subject."""
        wanted = {ANY, f"user:{subject.user}", *(f"group:{group}" for group in subject.groups)}
        return not wanted.isdisjoint(self.subjects)

    def allows_tap(self, device: Device) -> bool:
        """Whether the device is at one of its taps: if it is a glob, wherever it may be."""
        if not device.is_glob:
            return matches_any(self.taps, device)
        return globs.covers(self._interfaces(device), device.interface)

    def may_concern(self, device: Device) -> bool:
        """Whether the device is at one of its taps: if it is a glob, at any place where it may be."""
        if not device.is_glob:
            return self.allows_tap(device)
        return any(globs.meet(device.interface, glob) for glob in self._interfaces(device))

    def _interfaces(self, device: Device) -> list[str]:
        """The globs on interfaces of its taps in the namespace and at the hook of the device."""
        taps = [tap_parts(glob) for glob in self.taps]
        return [
            interface
            for namespace, interface, hook in taps
            if fnmatchcase(device.namespace, namespace) and fnmatchcase(device.hook, hook)
        ]

    def allows_class(self, name: str) -> bool:
        """`device` need not be listed: `taps` says which."""
        return name == Device.class_name or name in self.classes or ANY in self.classes


@dataclass(frozen=True, slots=True)
class Policies:
    """The rules of a directory, in the order of the file names and of the files. None at all denies everybody. `digest`
    is SHA-256 over the files they come from, names and contents; "" if they come from none."""

    rules: tuple[Rule, ...] = ()
    digest: str = field(default="", compare=False)

    def naming(self, subject: Subject) -> tuple[Rule, ...]:
        """The rules about this subject."""
        return tuple(rule for rule in self.rules if rule.names(subject))


def matches_any(globs: Iterable[str], device: Device) -> bool:
    """Whether the device, no glob itself, is at one of these taps."""
    return any(matches_tap(glob, device) for glob in globs)


def matches_tap(glob: str, device: Device) -> bool:
    """Namespace, interface and hook are matched apart, so a `*` for one never reaches into another. A glob that names
    no namespace is about the one that the process is in."""
    return all(map(fnmatchcase, (device.namespace, device.interface, device.hook), tap_parts(glob)))
