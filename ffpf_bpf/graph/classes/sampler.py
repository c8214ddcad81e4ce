"""`sampler`: some of the packets, or of the flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Depth, Fate, Primitive
from ffpf_bpf.graph.expression import Node, Role, check_number
from ffpf_bpf.graph.parameters import whole_number, words

RANGE = "a whole number from 1 to 4294967295"
IN_PYTHON = "`sampler(10)` passes 1 packet in 10, `sampler(p=0.1)` at random, `sampler(flow=10)` 1 flow in 10"
HELP = "`(sampler,10)` passes 1 packet in 10, `(sampler,p=0.1)` at random, `(sampler,flow=1/10)` 1 flow in 10"


@dataclass(frozen=True, slots=True)
class Sampler(Node):
    """Passes a share of the packets. One of three ways:

    `one_in`, text `(sampler,10)`, Python `sampler(10)`: every 10th packet, counted per CPU: the first that reaches it
    on a CPU, then every tenth after it. From 1 to 2^32 - 1.
    `p`, text `(sampler,p=0.01)`, Python `sampler(p=0.01)`: each packet with that probability, in steps of 2^-32.
    `flow`, text `(sampler,flow=1/64)`, Python `sampler(flow=64)`: all packets of 1 flow in 64, chosen by a hash of
    addresses, ports and protocol that is the same in both directions, so that whole conversations stay. The choice is
    the same for all flows and taps of a process and another one in each process. Fragments go by addresses and
    protocol alone, those of IPv6 by addresses; what is not IP goes by its MAC addresses.

    Packets it leaves out have the fate `sampled`. Raises ExpressionError for anything else. After FFPF (OSDI 2004),
    section 3.1, and RFC 5475, sections 5.2 and 6.2.
    """

    class_name: ClassVar[str] = "sampler"
    role: ClassVar[Role] = Role.DECIDES
    stops_as: ClassVar[Fate | None] = Fate.SAMPLED
    least_mbuf_bytes: ClassVar[int] = 4
    example: ClassVar[str] = '(device,eth0) -> (sampler,flow=1/64) -> (bpf,"tcp") -> (grab,snaplen=96)'

    one_in: int = 0
    p: float = 0.0
    flow: int = 0

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_number(self.one_in, self.where, "sampler(10)")
        check_number(self.flow, self.where, "sampler(flow=64)")
        if isinstance(self.p, bool) or not isinstance(self.p, int | float):
            raise ExpressionError(f"{self.p!r} is no probability", where=self.where, help=HELP)
        if self.p and not 1 / (1 << 32) <= self.p <= 1:
            raise ExpressionError(f"cannot sample with p={self.p!r}", where=self.where, help="from 2^-32 to 1")
        object.__setattr__(self, "p", float(self.p))
        if sum(value != 0 for value in (self.one_in, self.p, self.flow)) > 1:
            raise ExpressionError("several ways to sample at once", where=self.where, help=HELP)
        if not (self.one_in or self.p or self.flow):
            raise ExpressionError("no share to pass is given, or 0", where=self.where, help=IN_PYTHON)
        if not self.p and not 1 <= (self.flow or self.one_in) < 1 << 32:
            raise ExpressionError(
                f"cannot sample 1 in {self.flow or self.one_in}",
                where=self.where,
                help=RANGE,
            )

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        where = f"({cls.class_name})"
        bare, named = words(expression, frozenset({"p", "flow"}), where=where, help=HELP)
        if len(bare) + len(named) > 1:
            raise ExpressionError("several ways to sample at once", where=where, help=HELP)
        if "p" in named:
            p = _probability(named["p"], where)
            if not p:
                raise ExpressionError(f"cannot sample with p={p!r}", where=where, help="from 2^-32 to 1")
            return cls(p=p, name=name, mbuf_bytes=mbuf_bytes)
        if "flow" in named:
            share = named["flow"].removeprefix("1/")
            return cls(flow=_one_in(share, "a share of flows", where), name=name, mbuf_bytes=mbuf_bytes)
        return cls(_one_in("".join(bare), "a number of packets", where), name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        if self.flow:
            return f"flow=1/{self.flow}"
        return f"p={self.p!r}" if self.p else str(self.one_in)

    @property
    def arguments(self) -> tuple[str, ...]:
        if self.flow:
            return (f"flow={self.flow}",)
        return (f"p={self.p!r}",) if self.p else (str(self.one_in),)

    @property
    def leaves_one_in(self) -> float:
        """Of the packets of any conversation at most one in so many is left, in the long run."""
        return 1.0 if self.flow else 1 / self.p if self.p else float(self.one_in)

    @property
    def effect(self) -> Primitive:
        if self.flow:
            return Primitive("sampler", "ffpf_sampler_flow", (-(-(1 << 32) // self.flow),), tells=Depth.COUNTS)
        if self.p:
            return Primitive(
                "sampler",
                "ffpf_sampler_random",
                (round(self.p * (1 << 32)),),
                tells=Depth.COUNTS,
                calls=("get_prandom_u32",),
            )
        return Primitive("sampler", "ffpf_sampler", (self.one_in,), tells=Depth.COUNTS)


def _one_in(text: str, what: str, where: str) -> int:
    number = whole_number(text, what, where=where, help=HELP)
    if not number:
        raise ExpressionError("cannot sample 1 in 0", where=where, help=RANGE)
    return number


def _probability(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ExpressionError(f"`{text}` is not a probability", where=where, help=HELP) from None
