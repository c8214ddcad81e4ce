"""`classify`: a number that edges can select on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Depth, Primitive
from ffpf_bpf.graph.expression import Node, Role, check_number, check_text
from ffpf_bpf.graph.parameters import whole_number

# In the order of enum field in bpf_src/classify.c.
FIELDS = ("dport", "sport", "proto", "ethertype", "vlan", "version", "dscp", "ttl", "tcpflags", "length", "flow")
RESULTS = {
    **dict.fromkeys(("proto", "ttl", "tcpflags"), range(1 << 8)),
    "dscp": range(1 << 6),
    "vlan": range(1 << 12),
    "version": range(4, 7),
}
HELP = (
    f"one of {', '.join(FIELDS[:-1])}, or `flow=16` for 16 parts of the flows, in Python `classify('flow', parts=16)`"
)


@dataclass(frozen=True, slots=True)
class Classify(Node):
    """Gives each packet a result of 16 bits, on which edges select; passes every packet on.

    Text `(classify,dport) -80-> (grab) | -443,8000..8080-> (bytecount) | -*-> (packetcount)`, Python
    `classify("dport").on({80: grab(), (443, range(8000, 8081)): bytecount(), "*": packetcount()})`.

    Fields: `dport`, `sport` of TCP, UDP and SCTP (first fragments have them, later ones do not); `proto`, IPv4's or the
    last next header of IPv6; `ethertype`, behind VLAN tags; `vlan`, the outer id; `version` of IP, 4 or 6; `dscp`;
    `ttl` or hop limit; `tcpflags`; `length` in bytes on the wire; `flow=N`, in Python `classify("flow", parts=N)`,
    from 0 to N - 1 by a hash of the 5-tuple that is the same in both directions. A packet that has no such field has no
    result, and goes to `-*->` only. A record of a flow that has one says the result of the last such node on the
    packet's way. After Streamline (de Bruijn, Bos and Bal, TOCS 2011). Raises ExpressionError for an unknown field, and
    unless N is from 1 to 65,536.
    """

    class_name: ClassVar[str] = "classify"
    role: ClassVar[Role] = Role.DECIDES
    example: ClassVar[str] = (
        "(device,eth0) -> (classify,dport) -53-> (grab) | -80,443-> (bytecount) | -*-> (packetcount)"
    )

    field: str
    parts: int = 0

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_text(self.field, self.where)
        check_number(self.parts, self.where, 'classify("flow", parts=16)')
        object.__setattr__(self, "field", self.field.strip().lower())
        if self.field not in FIELDS:
            raise ExpressionError(f"unknown field `{self.field}`", where=self.where, help=HELP)
        if (self.field == "flow") != bool(self.parts) or not 0 <= self.parts <= 65_536:
            raise ExpressionError(
                f"`{self.field}` in {self.parts} parts",
                where=self.where,
                help="`flow=N` with N from 1 to 65536, in Python `classify('flow', parts=N)`",
            )

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        field, equals, parts = expression.partition("=")
        where = f"({cls.class_name})"
        number = whole_number(parts, "a number of parts", where=where, help=HELP) if equals else 0
        return cls(field, number, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        return f"{self.field}={self.parts}" if self.parts else self.field

    @property
    def arguments(self) -> tuple[str, ...]:
        return (repr(self.field), f"parts={self.parts}") if self.parts else (repr(self.field),)

    @property
    def results(self) -> range:
        return range(self.parts) if self.parts else RESULTS.get(self.field, range(1 << 16))

    @property
    def effect(self) -> Primitive:
        arguments = (FIELDS.index(self.field), self.parts)
        return Primitive("classify", "ffpf_classify", arguments, selects=True, tells=Depth.COUNTS)
