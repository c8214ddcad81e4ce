"""`newflow`: the first packet of each flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ffpf_bpf.graph.classes.head import BUCKET_BYTES, buckets
from ffpf_bpf.graph.effect import Depth, Fate, Primitive, Table
from ffpf_bpf.graph.expression import Node, Role


@dataclass(frozen=True, slots=True)
class Newflow(Node):
    """The first packet of each flow, a 5-tuple, both directions together: what `head(1)` passes, with its table, its
    counts `flows` and `evicted`, and its limits.

    Text `(newflow)`, Python `newflow()`. A flow that was evicted from the table is new when it comes again. Packets it
    stops have the fate `filtered`.
    """

    class_name: ClassVar[str] = "newflow"
    role: ClassVar[Role] = Role.DECIDES
    stops_as: ClassVar[Fate | None] = Fate.FILTERED
    least_mbuf_bytes: ClassVar[int] = BUCKET_BYTES
    most_mbuf_bytes: ClassVar[int] = 1 << 28
    mbuf_per_cpu: ClassVar[bool] = False
    counts: ClassVar[tuple[str, ...]] = ("flows", "evicted")
    example: ClassVar[str] = "(device,eth0) -> (newflow) -> (grab,snaplen=96)"

    @property
    def default_mbuf_bytes(self) -> int:
        return 1 << 20

    @property
    def effect(self) -> Primitive:
        arguments = (buckets(self.mbuf_bytes), 1, 0)
        return Primitive(
            "head", "ffpf_head", arguments, Table(self.mbuf_bytes), tells=Depth.COUNTS, calls=("jiffies64",)
        )
