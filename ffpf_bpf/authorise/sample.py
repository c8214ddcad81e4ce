"""What is seen of classes of packets before a solver is asked: that one is not within others, by plain packets, told by
their addresses, protocol, ports and tag alone; and that one is within another, by their keys.

Of a plain packet it is certain what class it is in, whether an allow or a never asks. So a sample that is in one class
and in none of the others shows that these do not say the same; that there is no such sample shows nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from ffpf_bpf.authorise.policy import Network, PacketClass
from ffpf_bpf.authorise.proof.wire import IPV4, IPV6, SCTP, TCP, UDP, UDP_CARRIERS, port_keys

OTHER_PORTS = (53_211, 50_321)
OTHER_ADDRESSES = {4: (203 << 24 | 113 << 8 | 77, 203 << 24 | 113 << 8 | 78), 6: (0x20010DB8 << 96 | 77 << 64, 78)}
TUNNELS = frozenset(port for ports in UDP_CARRIERS.values() for port in ports)
ETHERTYPES = {4: IPV4, 6: IPV6}


@dataclass(frozen=True, slots=True)
class Sample:
    """An IP packet that is whole, no fragment and no tunnel."""

    version: int
    source: int
    target: int
    protocol: int
    ports: tuple[int, int]
    vlan: int | None = None


class Outline:
    """A class of packets, by what it says of plain ones."""

    def __init__(self, packets: PacketClass) -> None:
        self.packets = packets
        self._ports = [
            (protocols, _Spans((0, *span) for span in spans), sides) for spans, protocols, sides in port_keys(packets)
        ]
        self._nets = [(_Spans(map(_span, nets)), sides) for nets, sides in self._net_keys() if nets]
        self._vlan = _Spans((0, *span) for span in packets.vlan)

    def has(self, sample: Sample) -> bool:
        """Whether the packet is in the class."""
        packets = self.packets
        for protocols, spans, sides in self._ports:
            if sample.protocol not in protocols or not any(spans.have(0, sample.ports[side]) for side in sides):
                return False
        ends = sample.source, sample.target
        for nets, sides in self._nets:
            if not any(nets.have(sample.version, ends[side]) for side in sides):
                return False
        if (packets.ethertypes or packets.protocols) and not (
            ETHERTYPES[sample.version] in packets.ethertypes or sample.protocol in packets.protocols
        ):
            return False
        if packets.vlan or packets.untagged:
            return packets.untagged if sample.vlan is None else self._vlan.have(0, sample.vlan)
        return True

    def covers(self, other: Outline) -> bool:
        """Whether it is plain that each packet that must be in the other must be in this one: what holds of every key
        of this one is said by a key of the other. If it is not plain, it may be so nevertheless."""
        return all(any(mine.covers(key) for key in other._keys) for mine in self._keys)

    @cached_property
    def _keys(self) -> list[_Key]:
        packets = self.packets
        types = [*((0, each, each) for each in packets.ethertypes), *((1, each, each) for each in packets.protocols)]
        tags = [*((0, *span) for span in packets.vlan), *([(1, 0, 0)] if packets.untagged else [])]
        found = [_Key("port", frozenset(protocols), spans, frozenset(sides)) for protocols, spans, sides in self._ports]
        found += [_Key("net", frozenset(), nets, frozenset(sides)) for nets, sides in self._nets]
        found += [_Key("type", frozenset(), _Spans(types), frozenset())] if types else []
        found += [_Key("tag", frozenset(), _Spans(tags), frozenset())] if tags else []
        return found

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """Some that are in the class, from its ends; none if these are no plain packets."""
        return tuple(dict.fromkeys(sample for sample in self._tries() if self.has(sample)))

    def _tries(self) -> Iterator[Sample]:
        packets = self.packets
        protocols = packets.protocols or ((TCP, UDP, SCTP) if packets.ethertypes or self._ports else (TCP,))
        vlan = packets.vlan[0][0] if packets.vlan and not packets.untagged else None
        for version, protocol in product((4, 6), protocols):
            if protocol not in (TCP, UDP, SCTP):
                continue
            ends = [list(_ends(spans, version)) for spans in self._sides()]
            for source, target in zip(
                *(_even(each, OTHER_ADDRESSES[version][i]) for i, each in enumerate(ends)), strict=True
            ):
                for ports in self._port_pairs():
                    if protocol != UDP or TUNNELS.isdisjoint(ports):
                        yield Sample(version, source, target, protocol, ports, vlan)

    def _net_keys(self) -> tuple[tuple[tuple[Network, ...], tuple[int, ...]], ...]:
        return (self.packets.src, (0,)), (self.packets.dst, (1,)), (self.packets.net, (0, 1))

    def _sides(self) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
        """Nets for either end; what is said of either is tried of the first that is free."""
        source, target, either = self.packets.src, self.packets.dst, self.packets.net
        return (source or either, target) if either and not source else (source, target or either)

    def _port_pairs(self) -> Iterator[tuple[int, int]]:
        found: list[int | None] = [None, None]
        for spans, _, sides in port_keys(self.packets):
            free = [side for side in sides if found[side] is None]
            if free:
                found[free[-1]] = spans[0][0]
        yield tuple(OTHER_PORTS[side] if port is None else port for side, port in enumerate(found))  # type: ignore[misc]


class _Spans:
    """Spans of numbers of several kinds, to be looked up."""

    def __init__(self, spans: Iterable[tuple[int, int, int]]) -> None:
        found = sorted(spans)
        self._firsts = [(kind, first) for kind, first, _ in found]
        self._lasts: list[int] = []
        for number, (kind, _, last) in enumerate(found):
            same = number and found[number - 1][0] == kind
            self._lasts.append(max(last, self._lasts[-1]) if same else last)
        self._all = found

    def have(self, kind: int, value: int) -> bool:
        return self._have_all(kind, value, value)

    def cover(self, other: _Spans) -> bool:
        """Whether each span of the other is in one of these."""
        return all(self._have_all(*span) for span in other._all)

    def _have_all(self, kind: int, first: int, last: int) -> bool:
        at = bisect_right(self._firsts, (kind, first)) - 1
        return at >= 0 and self._firsts[at][0] == kind and last <= self._lasts[at]


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of a class: it holds if what `name` says, of one of the `sides` of packets of these protocols, where it is
    about some, is one of the values."""

    name: str
    protocols: frozenset[int]
    values: _Spans
    sides: frozenset[int]

    def covers(self, other: _Key) -> bool:
        """Whether it holds wherever the other does, as they are written."""
        return (
            self.name == other.name
            and self.protocols >= other.protocols
            and self.sides >= other.sides
            and self.values.cover(other.values)
        )


def _span(net: Network) -> tuple[int, int, int]:
    return net.version, int(net.network_address), int(net.broadcast_address)


def _ends(nets: Sequence[Network], version: int) -> Iterator[int]:
    """Addresses of the first and the last net of a version."""
    some = [net for net in nets if net.version == version]
    if some:
        yield int(some[0].network_address)
        yield int(some[-1].broadcast_address)


def _even(ends: Sequence[int], other: int) -> Sequence[int]:
    return ends or (other, other)


def within(one: Outline, others: Sequence[Outline]) -> bool:
    """Whether no sample shows that `one` is not within the others together."""
    return all(any(other.has(sample) for other in others) for sample in one.samples)
