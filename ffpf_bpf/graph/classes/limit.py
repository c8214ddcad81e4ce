"""`limit`: no more than a rate."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Depth, Fate, Primitive, Table
from ffpf_bpf.graph.expression import Node, Role, check_number, check_text
from ffpf_bpf.graph.parameters import amount, amount_text, decimal_amount, instead_of_decimals, words

PERIODS_NS = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
TICKS_PER_NS = 256  # the kernel side counts time in these
LEAST_BURST_BYTES = 1_522  # the largest Ethernet frame without jumbo
LONGEST_BURST_TICKS = 1 << 60
MULTIPLIER_BITS = 40  # with 16 bits of length it stays within 64; if it has more, the burst bounds the product
HELP = '`(limit,1000/s)`, `(limit,"5MB/s burst=64KiB")`, `(limit,"10Mbit/s")`; per second, minute (`/m`) or hour (`/h`)'


@dataclass(frozen=True, slots=True)
class Limit(Node):
    """A token bucket: passes packets up to `rate`, and `burst` of them, or bytes, at once after a pause.

    Text `(limit,1000/s)`, `(limit,"5MB/s burst=64KiB")`, Python `limit("1000/s", burst=50)`. The rate is a number of
    packets, or of bytes on the wire (`B`, `kB`, `KiB`, `MB`, ..., `Mbit`), per second, minute (`/m`) or hour (`/h`).
    The burst is in the rate's unit; by default a tenth of a second's worth, at least 1 packet or 65,535 bytes. A packet
    longer than the burst never passes.

    The bucket is one for all CPUs, in 8 bytes of memory that they share; it begins full. A packet that loses the race
    for it 8 times is left out as well. Packets it leaves out have the fate `limited`. Raises ExpressionError for a rate
    or burst that is none, a burst below 1,522 bytes, and one that takes over 52 days to fill.
    The generic cell rate algorithm (ITU-T I.371, annex A).
    """

    class_name: ClassVar[str] = "limit"
    role: ClassVar[Role] = Role.DECIDES
    stops_as: ClassVar[Fate | None] = Fate.LIMITED
    least_mbuf_bytes: ClassVar[int] = 8
    mbuf_per_cpu: ClassVar[bool] = False
    example: ClassVar[str] = '(device,eth0) -> (bpf,"udp port 53") -> (limit,"1000/s burst=50") -> (grab)'

    rate: str
    burst: int = 0

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        if not isinstance(self.rate, str):
            help = 'write it in quotes, as in `limit("1000/s")`'
            raise ExpressionError(f"{self.rate!r} is not a rate", where=self.where, help=help)
        check_text(self.rate, self.where)
        check_number(self.burst, self.where, 'limit("1000/s", burst=50)')
        number, unit, period = self._rate
        object.__setattr__(self, "rate", f"{amount_text(number, unit)}/{period}")
        if not self.burst:
            object.__setattr__(self, "burst", self._default_burst)
        least = LEAST_BURST_BYTES if unit == "bytes" else 1
        if self.burst < least:
            raise ExpressionError(f"a burst of {self.burst} {unit}", where=self.where, help=f"at least {least}")
        if self.burst * PERIODS_NS[period] * TICKS_PER_NS // number > LONGEST_BURST_TICKS:
            raise ExpressionError(
                f"a burst of {self.burst} {unit} takes too long to fill at {self.rate}",
                where=self.where,
                help="at most 52 days: a smaller burst, or a higher rate",
            )

    @property
    def _rate(self) -> tuple[int, str, str]:
        """Number, unit and period."""
        text, slash, period = self.rate.partition("/")
        found = amount(text.strip())
        if found is None or not slash or period.strip() not in PERIODS_NS or not 1 <= found[0] <= 10**12:
            raise ExpressionError(f"`{self.rate}` is not a rate", where=self.where, help=_instead(self.rate))
        return found[0], found[1], period.strip()

    @property
    def packets_per_second(self) -> Fraction | None:
        """The rate; None if it is of bytes, which bounds no number of packets."""
        number, unit, period = self._rate
        return Fraction(number * PERIODS_NS["s"], PERIODS_NS[period]) if unit == "packets" else None

    @property
    def _default_burst(self) -> int:
        number, unit, period = self._rate
        tenth = number * 10**8 // PERIODS_NS[period]
        return max(tenth, 65_535 if unit == "bytes" else 1)

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        where = f"({cls.class_name})"
        bare, named = words(expression, frozenset({"burst"}), where=where, help=HELP)
        burst = 0
        if "burst" in named:
            found = amount(named["burst"])
            unit = amount(bare[0].partition("/")[0]) if bare else None
            if found is None or not found[0] or (unit and found[1] != unit[1]):
                help = instead_of_decimals(named["burst"], _in_unit(unit[1]) if unit else HELP)
                raise ExpressionError(f"`{named['burst']}` is not a burst", where=where, help=help)
            burst = found[0]
        return cls(" ".join(bare), burst, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        if self.burst == self._default_burst:
            return self.rate
        return f"{self.rate} burst={amount_text(self.burst, self._rate[1])}"

    @property
    def arguments(self) -> tuple[str, ...]:
        return (repr(self.rate),) if self.burst == self._default_burst else (repr(self.rate), f"burst={self.burst}")

    @property
    def effect(self) -> Primitive:
        number, unit, period = self._rate
        ticks = PERIODS_NS[period] * TICKS_PER_NS
        shift = max(0, MULTIPLIER_BITS - (ticks // number).bit_length())
        filling = self.burst * ticks // number
        arguments = (int(unit == "bytes"), (ticks << shift) // number, shift, filling, self.burst)
        return Primitive(
            "limit", "ffpf_limit", arguments, Table(self.mbuf_bytes), tells=Depth.COUNTS, calls=("ktime_get_ns",)
        )


def _in_unit(unit: str) -> str:
    """The help on a burst that is none, beside a rate of packets or bytes."""
    example = "burst=64KiB" if unit == "bytes" else "burst=50"
    return f"as the rate is of {unit}, so is the burst: `{example}`"


def _instead(rate: str) -> str:
    """The help on a rate that is none: what to write instead, where that is clear."""
    number, slash, period = (part.strip() for part in rate.partition("/"))
    if not slash and amount(number):
        return f"per second, minute or hour: `{number}/s`, `{number}/m` or `{number}/h`"
    found, period = decimal_amount(number), period if slash else "s"
    if found is None or not found[0] or period not in PERIODS_NS:
        return HELP
    for longer, ns in PERIODS_NS.items():
        value = found[0] * ns / PERIODS_NS[period]
        if ns >= PERIODS_NS[period] and value.denominator == 1:
            return f"whole numbers only: write `{amount_text(int(value), found[1])}/{longer}`"
    return HELP
