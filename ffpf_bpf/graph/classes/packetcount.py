"""`packetcount`: how many packets came by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ffpf_bpf.graph.effect import Depth, Primitive
from ffpf_bpf.graph.expression import Node, Role


@dataclass(frozen=True, slots=True)
class Packetcount(Node):
    """Counts packets in 64 bits, exactly, on every CPU; passes every packet on.

    Text `(packetcount)`, Python `packetcount()`. The count is the first 8 bytes of each CPU's memory of the node
    and is summed by `Flow.stats()`.
    """

    class_name: ClassVar[str] = "packetcount"
    role: ClassVar[Role] = Role.DOES
    example: ClassVar[str] = '(device,eth0) -> (bpf,"icmp or icmp6") -> (packetcount)'
    least_mbuf_bytes: ClassVar[int] = 8
    counts: ClassVar[tuple[str, ...]] = ("packets",)

    @property
    def effect(self) -> Primitive:
        return Primitive("packetcount", "ffpf_packetcount", tells=Depth.COUNTS)
