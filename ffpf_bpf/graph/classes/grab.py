"""`grab`: delivers packets to the application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Delivery
from ffpf_bpf.graph.expression import Node, Role, check_number

LONGEST_SNAPLEN = 65_535


@dataclass(frozen=True, slots=True)
class Grab(Node):
    """A sink: the first `snaplen` bytes of each packet that reaches it go to the flow's ring; 0 means whole packets.

    Text `(grab)` or `(grab,snaplen=96)`, Python `grab(snaplen=96)`. A packet that reaches several is delivered once,
    at the largest of their snap lengths. Raises ExpressionError for a snaplen above 65,535 bytes.
    """

    class_name: ClassVar[str] = "grab"
    role: ClassVar[Role] = Role.SINK
    example: ClassVar[str] = '(device,eth0) -> (bpf,"udp port 53") -> (grab,snaplen=512)'

    snaplen: int = 0

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_number(self.snaplen, self.where, "grab(snaplen=96)")
        check_snaplen(self.snaplen, self.where)

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        digits = expression.removeprefix("snaplen=")
        if expression and not (digits.isascii() and digits.isdecimal() and len(digits) <= 5):
            raise ExpressionError(
                f"`{expression}` is not a snaplen", where=f"({cls.class_name})", help="write `(grab,snaplen=96)`"
            )
        return cls(int(digits or 0), name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        return f"snaplen={self.snaplen}" if self.snaplen else ""

    @property
    def arguments(self) -> tuple[str, ...]:
        return (f"snaplen={self.snaplen}",) if self.snaplen else ()

    @property
    def effect(self) -> Delivery:
        return Delivery(self.snaplen)


def check_snaplen(snaplen: int, where: str) -> None:
    """Refuse a snap length that no packet has. Raises ExpressionError."""
    if not 0 <= snaplen <= LONGEST_SNAPLEN:
        raise ExpressionError(
            f"a snaplen of {snaplen} bytes",
            where=where,
            help=f"1 to {LONGEST_SNAPLEN} bytes, or 0 for whole packets",
        )
