"""`head`: the beginning of each flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Depth, Fate, Primitive, Table
from ffpf_bpf.graph.expression import Node, Role, check_number
from ffpf_bpf.graph.parameters import amount, amount_text, instead_of_decimals

BUCKET_BYTES = 128  # 8 flows
MOST = 1 << 38
HELP = "`(head,10)` passes the first 10 packets of each flow, `(head,64KiB)` the first 64 KiB"


@dataclass(frozen=True, slots=True)
class Head(Node):
    """The first `packets`, or `bytes` on the wire, of each flow; the packet that crosses the limit still passes.

    Text `(head,10)`, `(head,64KiB)`, Python `head(10)`, `head(bytes=65536)`. A flow is a 5-tuple, both directions
    together; fragments go by addresses and protocol, those of IPv6 by addresses, what is not IP by its MAC addresses
    and ethertype.

    Its memory is a table that all CPUs share, 16 bytes for each flow in buckets of 8, by default 1 MiB for 65,536
    flows; a power of two is used. A new flow takes the place of the one of its bucket that was quiet for longest: that
    is counted as `evicted`, and were its packets to come again, they would count from the beginning. `flows` counts
    those that were put in. Exact on several CPUs, but for two that see the first packets of one flow within
    nanoseconds, which may both begin to count. A packet that loses the race for a place is left out, and the flow's
    next one gets it. Flows are known by 64-bit hashes under a secret of the process.

    Packets it stops have the fate `limited`. Raises ExpressionError unless the limit is from 1 to 2^38.
    After Scap's cut-off (Papadogiannakis et al., IMC 2012).
    """

    class_name: ClassVar[str] = "head"
    role: ClassVar[Role] = Role.DECIDES
    stops_as: ClassVar[Fate | None] = Fate.LIMITED
    least_mbuf_bytes: ClassVar[int] = BUCKET_BYTES
    most_mbuf_bytes: ClassVar[int] = 1 << 28
    mbuf_per_cpu: ClassVar[bool] = False
    counts: ClassVar[tuple[str, ...]] = ("flows", "evicted")
    example: ClassVar[str] = '(device,eth0) -> (bpf,"tcp") -> (head,10) -> (grab)'

    packets: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_number(self.packets, self.where, "head(10)")
        check_number(self.bytes, self.where, "head(bytes=65536)")
        if not (self.packets or self.bytes):
            raise ExpressionError("no number of packets or bytes to keep, or 0", where=self.where, help=HELP)
        if (self.packets and self.bytes) or not 1 <= self.packets + self.bytes <= MOST:
            shown = " and ".join(f"{n} {unit}" for n, unit in ((self.packets, "packets"), (self.bytes, "bytes")) if n)
            raise ExpressionError(f"cannot keep the first {shown} of a flow", where=self.where, help=HELP)

    @property
    def default_mbuf_bytes(self) -> int:
        return 1 << 20

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        found = amount(expression)
        if found is None:
            raise ExpressionError(
                f"`{expression}` is no number of packets or bytes",
                where=f"({cls.class_name})",
                help=instead_of_decimals(expression, HELP),
            )
        packets, size = (found[0], 0) if found[1] == "packets" else (0, found[0])
        return cls(packets, size, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        return amount_text(self.bytes, "bytes") if self.bytes else str(self.packets)

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"bytes={self.bytes}",) if self.bytes else (str(self.packets),)

    @property
    def effect(self) -> Primitive:
        arguments = (buckets(self.mbuf_bytes), self.bytes or self.packets, int(self.bytes > 0))
        return Primitive(
            "head", "ffpf_head", arguments, Table(self.mbuf_bytes), tells=Depth.COUNTS, calls=("jiffies64",)
        )


def buckets(mbuf_bytes: int) -> int:
    """The buckets of a flow table of so many bytes: a power of two."""
    return 1 << ((mbuf_bytes // BUCKET_BYTES).bit_length() - 1)
