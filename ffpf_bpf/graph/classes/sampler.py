"""`sampler`: one packet in N."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Fate, Primitive
from ffpf_bpf.graph.expression import Node, Role, check_number


@dataclass(frozen=True, slots=True)
class Sampler(Node):
    """One packet in `one_in`, counted per CPU: the first that reaches it on a CPU, then every N-th after it.

    Text `(sampler,10)`, Python `sampler(10)`. Packets it leaves out have the fate `sampled`. Raises ExpressionError
    unless `one_in` is a whole number from 1 to 2^32 - 1. After FFPF (OSDI 2004), section 3.1.
    """

    class_name: ClassVar[str] = "sampler"
    role: ClassVar[Role] = Role.DECIDES
    stops_as: ClassVar[Fate | None] = Fate.SAMPLED
    least_mbuf_bytes: ClassVar[int] = 4

    one_in: int

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_number(self.one_in, self.where)
        if not 1 <= self.one_in < 1 << 32:
            raise ExpressionError(
                f"cannot sample 1 in {self.one_in}", where=self.where, help="a whole number from 1 to 4294967295"
            )

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        if not (expression.isascii() and expression.isdecimal() and len(expression) <= 10):
            raise ExpressionError(
                f"`{expression}` is not a number of packets" if expression else "no number of packets",
                where=f"({cls.class_name})",
                help="`(sampler,10)` passes 1 packet in 10",
            )
        return cls(int(expression), name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        return str(self.one_in)

    @property
    def arguments(self) -> tuple[str, ...]:
        return (str(self.one_in),)

    @property
    def effect(self) -> Primitive:
        return Primitive("sampler", "ffpf_sampler", (self.one_in,))
