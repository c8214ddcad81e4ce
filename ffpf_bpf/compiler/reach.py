"""How far into a frame the programs of a segment look, at most: so much of it must be in one piece.

Counted in bytes from the frame's start, twice: for most frames, and for those with IPv6 extension headers, which may be
long. What a node reads is known by what it may tell: counts and headers are found in the headers, all else anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ffpf_bpf.compiler.bounds import reach_of
from ffpf_bpf.compiler.frame import SegmentFlow
from ffpf_bpf.graph.effect import Arrival, Delivery, Depth, Predicate, Primitive, Transform

LONGEST = 0x10000 - 4  # FFPF_LONGEST_REACH
# Ethernet and two tags (22), IPv4 with options (60) or IPv6 (40), TCP with options (60).
HEADERS = 22 + 60 + 60
# 8 extension headers of up to 2,048 bytes; see bpf_src/dissect.c.
FAR_HEADERS = HEADERS + 8 * 2048


class Reach(NamedTuple):
    """Bytes from the frame's start, of most frames and of those with IPv6 extension headers."""

    near: int = 0
    far: int = 0

    def joined(self, other: Reach) -> Reach:
        """How far the farther one of both reaches."""
        return Reach(max(self.near, other.near), max(self.far, other.far))


def segment_reach(flows: Iterable[SegmentFlow]) -> Reach:
    """How far the programs of a segment that holds `flows` look."""
    found = Reach()
    for flow in flows:
        for _, leaf in flow.graph.leaves():
            match leaf.node.effect:
                case Arrival() | Delivery():
                    pass
                case Predicate(filter=text):
                    bytes_ = reach_of(flow.predicates[text])
                    found = found.joined(Reach(bytes_, bytes_))
                case Primitive(tells=Depth.COUNTS | Depth.ANONYMISED | Depth.HEADERS) | Transform():
                    found = found.joined(Reach(HEADERS, FAR_HEADERS))
                case Primitive():
                    found = found.joined(Reach(LONGEST, LONGEST))
                case other:
                    raise TypeError(f"an effect nobody knows: {other!r}")
    assert found.far <= LONGEST
    return found
