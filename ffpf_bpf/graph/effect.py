"""What a node asks of the compiler: plain values, one of which each node class returns as its `effect`.

A node class never touches the compiler. It says what it needs, and the compiler has one way to lower each kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase


class Fate(IntEnum):
    """What became of a packet that a flow saw: exactly one each. The numbers are those of `enum ffpf_fate`, ffpf.h."""

    FILTERED = 0
    SAMPLED = 1
    LIMITED = 2
    COUNTED = 3
    DELIVERED = 4
    RING_FULL = 5


class Depth(IntEnum):
    """How much of a packet something shows, from least to most: that it was there; its headers with pseudonyms for
    addresses; its headers; its payload too."""

    COUNTS = 0
    ANONYMISED = 1
    HEADERS = 2
    ALL = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A device: true for packets that arrive at the tap, or at one that its glob matches, known when a tap's programs
    are compiled."""

    tap: str

    def is_at(self, tap: str) -> bool:
        """Whether packets of that tap arrive. Only the interface may be a glob."""
        if tap == self.tap:
            return True
        namespace, glob, hook = tap_parts(self.tap)
        there, interface, where = tap_parts(tap)
        return (namespace, hook) == (there, where) and fnmatchcase(interface, glob)


def tap_name(interface: str, hook: str) -> str:
    """A tap as users write it: the hook is left out where it is XDP."""
    return interface if hook == "xdp" else f"{interface}@{hook}"


def tap_parts(tap: str) -> tuple[str, str, str]:
    """Namespace, interface and hook of a tap, or of a glob on taps: `NAMESPACE/INTERFACE@HOOK`. The namespace is ""
    where none is named, which is the one that the process is in; the hook is xdp where none is."""
    namespace, slash, rest = tap.partition("/")
    interface, at, hook = (rest if slash else tap).partition("@")
    return namespace if slash else "", interface, hook if at else "xdp"


@dataclass(frozen=True, slots=True)
class Predicate:
    """A pcap filter, decided on the packet alone."""

    filter: str


@dataclass(frozen=True, slots=True)
class Table:
    """Memory of a node that all CPUs share, beside its memory per CPU: `size_bytes` from a multiple of 64, which begins
    with `contents` when the flow is instantiated, goes on with `random_bytes` drawn then, and is zero behind them."""

    size_bytes: int
    contents: bytes = b""
    random_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Primitive:
    """A C function of bpf_src/: `int FUNCTION(const struct ffpf_packet *, void *mbuf, __u64 argument...)`.

    It is in `bpf_src/MODULE.c` and returns non-zero to let the packet go on. `mbuf` is this CPU's memory of the node.
    With a `table`, `void *table` stands behind `mbuf`. If it `selects`, it returns the node's result instead: 0 to
    65,535, NO_RESULT for a packet that goes on without one, or -1 to stop the packet.

    `tells` is the most of a packet that its verdicts, results and memory tell the application. COUNTS, if what they
    depend on is no payload. Where it is not ALL, it may find the headers of a packet and no more (compiler/reach.py).

    `calls` are the names of what it calls of the kernel: of `ktime_get_ns`, `jiffies64`, `get_prandom_u32` and
    `bpf_iter_num`. The compiled program is held against it before it is loaded (compiler/audit.py).
    """

    module: str
    function: str
    arguments: tuple[int, ...] = ()
    table: Table | None = None
    selects: bool = False
    tells: Depth = Depth.ALL
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Transform:
    """C functions of `bpf_src/MODULE.c` that change the grabbed copy of a packet, never the packet.

    `keep`, if any: `__u64 KEEP(const struct ffpf_packet *, void *mbuf, argument...)`, the bytes of the packet to show
    at most. `rewrite`, if any: `void REWRITE(const struct ffpf_packet *, struct ffpf_copy *, void *mbuf, argument...)`,
    which overwrites bytes of the copy and may make it shorter, but moves none. With a `table`, `void *table` stands
    behind `mbuf` in both.

    What is rewritten is not in the ring, which the application sees, but at first in a `struct ffpf_copy` with room for
    `copy_bytes` (a multiple of 8) at the beginning of the mbuf: of the first node, if several rewrite. It is as long as
    the nodes that rewrite keep, however little of it the sink takes, so that they find whole headers.

    Of the packet itself they may find the headers and no more (compiler/reach.py); the copy has the rest.

    `known`, if any, is a shorter way for most packets, where nothing else changes the copy: `__s64 KNOWN(const struct
    ffpf_packet *, void *record, void *mbuf, argument..., __u64 wanted)` writes what rewriting would come to straight
    into the record, where that has room for `known_bytes`, and returns how many bytes, at most `wanted`; or -1, with
    nothing written, if the others are to be asked.

    `leaves` is the most of a packet that the copy shows then. `calls` as those of a `Primitive`.
    """

    module: str
    keep: str = ""
    rewrite: str = ""
    arguments: tuple[int, ...] = ()
    table: Table | None = None
    copy_bytes: int = 0
    known: str = ""
    known_bytes: int = 0
    leaves: Depth = Depth.ALL
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A sink: the first `snaplen` bytes go to the flow's ring (0: the whole packet)."""

    snaplen: int


Effect = Arrival | Predicate | Primitive | Transform | Delivery
NO_RESULT = 65_536  # FFPF_NO_RESULT, ffpf.h
