"""`bytecount`: how many bytes on the wire came by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ffpf_bpf.graph.effect import Depth, Primitive
from ffpf_bpf.graph.expression import Node, Role


@dataclass(frozen=True, slots=True)
class Bytecount(Node):
    """Counts bytes on the wire in 64 bits, exactly, on every CPU; passes every packet on.

    Text `(bytecount)`, Python `bytecount()`. The count is the first 8 bytes of each CPU's memory of the node
    and is summed by `Flow.stats()`.
    """

    class_name: ClassVar[str] = "bytecount"
    role: ClassVar[Role] = Role.DOES
    example: ClassVar[str] = '(device,eth0) -> (bpf,"tcp port 443") -> (bytecount)'
    least_mbuf_bytes: ClassVar[int] = 8
    counts: ClassVar[tuple[str, ...]] = ("bytes",)

    @property
    def effect(self) -> Primitive:
        return Primitive("bytecount", "ffpf_bytecount", tells=Depth.COUNTS)
