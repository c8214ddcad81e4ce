"""What a node asks of the compiler: plain values, one of which each node class returns as its `effect`.

A node class never touches the compiler. It says what it needs, and the compiler has one way to lower each kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Fate(IntEnum):
    """What became of a packet that a flow saw: exactly one each. The numbers are those of `enum ffpf_fate`, ffpf.h."""

    FILTERED = 0
    SAMPLED = 1
    LIMITED = 2
    COUNTED = 3
    DELIVERED = 4
    RING_FULL = 5


@dataclass(frozen=True, slots=True)
class Arrival:
    """A device: true for packets that arrive at the tap `interface@hook`, known when a tap's programs are compiled."""

    interface: str
    hook: str


@dataclass(frozen=True, slots=True)
class Predicate:
    """A pcap filter, decided on the packet alone."""

    filter: str


@dataclass(frozen=True, slots=True)
class Primitive:
    """A C function of bpf_src/: `int FUNCTION(const struct ffpf_packet *, void *mbuf, __u64 argument...)`.

    It is in `bpf_src/MODULE.c` and returns non-zero to let the packet go on. `mbuf` is this CPU's memory of the node.
    """

    module: str
    function: str
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A sink: the first `snaplen` bytes go to the flow's ring (0: the whole packet)."""

    snaplen: int


Effect = Arrival | Predicate | Primitive | Delivery
