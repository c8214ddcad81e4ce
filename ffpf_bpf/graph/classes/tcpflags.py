"""`tcpflags`: TCP segments by their flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Depth, Fate, Primitive
from ffpf_bpf.graph.expression import Node, Role, check_text

FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}
MOST_WAYS = 4
HELP = 'flags that must be set, `!` before those that must not, `|` between ways: `(tcpflags,"syn !ack | rst")`'


@dataclass(frozen=True, slots=True)
class Tcpflags(Node):
    """TCP segments whose flags are as said, over IPv4 and IPv6, behind VLAN tags and extension headers too.

    Text `(tcpflags,syn)`, `(tcpflags,"syn !ack | rst")`, Python `tcpflags("syn !ack")`. Each of up to four ways, joined
    by `|`, names flags that must be set and, with `!`, flags that must not; others do not matter. The flags are fin,
    syn, rst, psh, ack, urg, ece and cwr (RFC 9293, section 3.1). Segments whose TCP header is cut, and later fragments,
    do not pass. Raises ExpressionError for other words, and for a flag that must be set and must not.
    """

    class_name: ClassVar[str] = "tcpflags"
    role: ClassVar[Role] = Role.DECIDES
    stops_as: ClassVar[Fate | None] = Fate.FILTERED
    example: ClassVar[str] = '(device,eth0) -> (tcpflags,"syn !ack") -> (packetcount)'

    flags: str

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_text(self.flags, self.where)
        ways = [" ".join(way.lower().split()) for way in self.flags.split("|")]
        object.__setattr__(self, "flags", " | ".join(ways))
        if len(ways) > MOST_WAYS:
            raise ExpressionError(f"{len(ways)} ways", where=self.where, help=f"at most {MOST_WAYS}; use two nodes")
        for way in ways:
            self._bits(way)

    def _bits(self, way: str) -> tuple[int, int]:
        """Which flags matter, and which of these are set."""
        matter = wanted = 0
        if not way:
            raise ExpressionError("no flag", where=self.where, help=HELP)
        for word in way.split():
            flag = FLAGS.get(word.removeprefix("!"))
            if flag is None:
                raise ExpressionError(f"`{word}` is no TCP flag", where=self.where, help=f"one of {', '.join(FLAGS)}")
            is_wanted = 0 if word.startswith("!") else flag
            if matter & flag and wanted & flag != is_wanted:
                raise ExpressionError(
                    f"`{word.removeprefix('!')}` cannot be set and not set", where=self.where, help=HELP
                )
            matter, wanted = matter | flag, wanted | is_wanted
        return matter, wanted

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        return cls(expression, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        return self.flags

    @property
    def arguments(self) -> tuple[str, ...]:
        return (repr(self.flags),)

    @property
    def effect(self) -> Primitive:
        ways = [self._bits(way) for way in self.flags.split("|")]
        packed = sum((matter << 8 | wanted) << 16 * number for number, (matter, wanted) in enumerate(ways))
        return Primitive("tcpflags", "ffpf_tcpflags", (len(ways), packed), tells=Depth.COUNTS)
