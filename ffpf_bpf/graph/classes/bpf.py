"""`bpf`: a pcap filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Fate, Predicate
from ffpf_bpf.graph.expression import Node, Nodelike, Role, check_text

LONGEST_FILTER = 16_384


@dataclass(frozen=True, slots=True)
class Bpf(Node):
    """A filter in the language of tcpdump, pcap-filter(7), with its meaning to the last truncated packet.

    Text `(bpf,"tcp port 80")`, Python `bpf("tcp port 80")`. An empty filter passes everything. Addresses, ports and
    protocols are literals: names are refused, nothing is resolved. Whether libpcap takes the text is found when the
    flow is populated. In Python a condition may stand for the text: `bpf(pkt.tcp.dport == 443, name="web")`. Raises
    ExpressionError for a text of over 16,384 bytes.
    """

    class_name: ClassVar[str] = "bpf"
    role: ClassVar[Role] = Role.DECIDES
    example: ClassVar[str] = '(device,eth0) -> (bpf,"tcp port 80 and not net 10.0.0.0/8") -> (grab,snaplen=96)'
    stops_as: ClassVar[Fate | None] = Fate.FILTERED

    filter: str

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        if isinstance(self.filter, Nodelike):
            object.__setattr__(self, "filter", self.filter.as_node().expression)
        check_text(self.filter, self.where)
        # libpcap takes any white space for one blank; so printed forms have no line breaks.
        object.__setattr__(self, "filter", " ".join(self.filter.split()))
        if "\0" in self.filter:
            raise ExpressionError("a filter with a NUL byte", where=self.where, help="filters are text")
        if len(self.filter.encode()) > LONGEST_FILTER:
            raise ExpressionError(
                f"a filter of {len(self.filter.encode()):,} bytes",
                where=self.where,
                help=f"at most {LONGEST_FILTER:,} bytes of text; split it into several nodes with `|`",
            )

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        return cls(expression, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        return self.filter

    @property
    def arguments(self) -> tuple[str, ...]:
        return (repr(self.filter),)

    @property
    def effect(self) -> Predicate:
        return Predicate(self.filter)
