"""`histogram`: how values spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Depth, Primitive, Table
from ffpf_bpf.graph.expression import Node, Role, check_number, check_text, word
from ffpf_bpf.graph.parameters import whole_number, words

VALUES = ("size", "iat")
LOG2_BINS = 65  # one for each length of a number in binary, from 0 to 64
MOST_BINS = 4_096
HELP = '`(histogram,size)`, `(histogram,iat)`, or with 24 bins of 64 bytes: `(histogram,"size linear=64x24")`'


@dataclass(frozen=True, slots=True)
class Histogram(Node):
    """Counts packets by `value`: `size`, bytes on the wire, or `iat`, nanoseconds since the packet before.

    Text `(histogram,size)`, `(histogram,"iat linear=1000x100")`, Python `histogram("size")`,
    `histogram("iat", width=1000, bins=100)`. By default bins are powers of two: bin k holds values from 2^(k-1) to
    2^k - 1, bin 0 the value 0. Linear ones are `width` wide; the last also takes whatever is larger.

    Its memory is 8 bytes for each bin on each CPU, exact on several. Inter-arrival times are between packets of all
    CPUs, by the time each entered the chain; the first packet has none, and one that overtook counts as 0. The time of
    the last packet is a word that all CPUs write, the price of a time across CPUs. Raises ExpressionError unless bins
    are from 1 to 4,096 and the width from 1 to 2^63 - 1.
    """

    class_name: ClassVar[str] = "histogram"
    role: ClassVar[Role] = Role.DOES
    example: ClassVar[str] = '(device,eth0) -> (bpf,"udp") -> (histogram,size)'

    value: str
    width: int = 0
    bins: int = 0

    def __post_init__(self) -> None:
        check_text(self.value, self.where)
        check_number(self.width, self.where, 'histogram("size", width=64, bins=24)')
        check_number(self.bins, self.where, 'histogram("size", width=64, bins=24)')
        if self.value not in VALUES:
            raise ExpressionError(f"`{self.value}` is no value of a packet", where=self.where, help=HELP)
        is_linear = 1 <= self.bins <= MOST_BINS and 1 <= self.width < 1 << 63
        if not is_linear and (self.width, self.bins) != (0, 0):
            raise ExpressionError(
                f"{self.bins} bins of width {self.width}",
                where=self.where,
                help=f"1 to {MOST_BINS} bins, from 1 wide: `linear=64x24`, in Python `width=64, bins=24`",
            )
        Node.__post_init__(self)
        if self.mbuf_bytes < self.default_mbuf_bytes:
            raise ExpressionError(
                f"{self.mbuf_bytes} bytes of memory do not suit these bins",
                where=self.where,
                help=f"at least {self.default_mbuf_bytes}",
            )

    @property
    def default_mbuf_bytes(self) -> int:
        return 8 * (self.bins or LOG2_BINS)

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        where = f"({cls.class_name})"
        bare, named = words(expression, frozenset({"linear"}), where=where, help=HELP)
        if len(bare) != 1:
            raise ExpressionError(f"`{expression}` is no value of a packet", where=where, help=HELP)
        width = bins = 0
        if "linear" in named:
            texts = named["linear"].split("x")
            if len(texts) != 2:
                raise ExpressionError(f"`{named['linear']}` is no width and number of bins", where=where, help=HELP)
            width, bins = (whole_number(text, "a number", where=where, help=HELP) for text in texts)
            if not bins:
                raise ExpressionError(f"{bins} bins of width {width}", where=where, help=HELP)
        return cls(bare[0], width, bins, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        return f"{self.value} linear={self.width}x{self.bins}" if self.bins else self.value

    @property
    def arguments(self) -> tuple[str, ...]:
        return (repr(self.value), *((f"width={self.width}", f"bins={self.bins}") if self.bins else ()))

    @property
    def effect(self) -> Primitive:
        bins = self.bins or LOG2_BINS
        if self.value == "size":
            return Primitive("histogram", "ffpf_histogram_size", (self.width, bins), tells=Depth.COUNTS)
        return Primitive(
            "histogram",
            "ffpf_histogram_iat",
            (self.width, bins),
            Table(64),
            tells=Depth.COUNTS,
            calls=("ktime_get_ns",),
        )

    def report(self, memories: Sequence[memoryview]) -> dict[str, Any]:
        """`bins`: for each bin that is not empty its least value, its largest (None: no limit), and its packets."""
        totals = [sum(word(memory, number) for memory in memories) for number in range(self.bins or LOG2_BINS)]
        return {"bins": [[*self._bounds(number), total] for number, total in enumerate(totals) if total]}

    def _bounds(self, number: int) -> tuple[int, int | None]:
        if not self.bins:
            return (1 << number) >> 1, (1 << number) - 1
        last = number == self.bins - 1
        return number * self.width, None if last else (number + 1) * self.width - 1
