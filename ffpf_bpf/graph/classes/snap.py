"""`snap`: of grabbed packets, the headers and so many bytes of payload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Depth, Transform
from ffpf_bpf.graph.expression import Node, Role, check_number
from ffpf_bpf.graph.parameters import whole_number

MOST_PAYLOAD = 65_535
HELP = "`(snap)` shows headers only, `(snap,64)` 64 bytes of payload as well"


@dataclass(frozen=True, slots=True)
class Snap(Node):
    """Shows of each packet its headers and the first `payload` bytes behind them; the packet itself is not touched.

    Text `(snap)`, headers only, or `(snap,payload=64)`; `(snap,64)`, `(snap,headers)` and `(snap,headers+64)` mean the
    same. Python `snap()`, `snap(payload=64)`. Headers are the Ethernet header with up to two VLAN tags, the IP header
    with its options or up to 8 extension headers, and that of TCP with its options, UDP, SCTP or ICMP. All else is
    payload: what is not IP from behind the Ethernet header on, tunnels from behind the outer headers on, later
    fragments from behind the IP header on. Of a transport header that is cut, what is there is shown; an IP header that
    is cut is payload. Padding behind a short packet counts as payload.

    A record still tells the packet's length on the wire. `(grab,snaplen=96)` behind it shows the smaller of both. The
    ring has room for what the grab takes, so give it a snaplen to save memory.

    Raises ExpressionError unless `payload` is from 0 to 65,535 bytes.
    """

    class_name: ClassVar[str] = "snap"
    role: ClassVar[Role] = Role.TRANSFORMS
    example: ClassVar[str] = '(device,eth0) -> (bpf,"tcp port 80") -> (snap,payload=64) -> (grab,snaplen=256)'

    payload: int = 0

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_number(self.payload, self.where, "snap(payload=64)")
        if not 0 <= self.payload <= MOST_PAYLOAD:
            raise ExpressionError(
                f"{self.payload} bytes of payload", where=self.where, help=f"0 to {MOST_PAYLOAD} bytes"
            )

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        if expression in ("", "headers"):
            return cls(name=name, mbuf_bytes=mbuf_bytes)
        digits = expression.removeprefix("headers+").removeprefix("payload=")
        payload = whole_number(digits, "a number of bytes", where=f"({cls.class_name})", help=HELP)
        return cls(payload, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        return f"payload={self.payload}" if self.payload else ""

    @property
    def serves_policy(self) -> bool:
        # It asks for no payload, and this may show all of it.
        return not self.payload

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"payload={self.payload}",) if self.payload else ()

    @property
    def effect(self) -> Transform:
        leaves = Depth.ALL if self.payload else Depth.HEADERS
        return Transform("snap", keep="ffpf_snap_keep", arguments=(self.payload,), leaves=leaves)
