"""`device`: where packets come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Arrival
from ffpf_bpf.graph.expression import Node, Role, check_text

HOOKS = ("xdp", "tc-ingress", "tc-egress")


@dataclass(frozen=True, slots=True)
class Device(Node):
    """A tap: `NAME` or `NAME@HOOK`, the hook one of `xdp` (default) and `tc-ingress`, which see what arrives, and
    `tc-egress`, which sees what is sent.

    Text `(device,eth0)`, Python `device("eth0")`. Every path of a flow begins with one. The interface need not exist
    before the flow is instantiated.

    `(device,eth0,monitor)`, Python `device("eth0", monitor=True)`, is a port to which only mirrored traffic comes, at
    XDP: while a flow is active there, frames end behind the flows instead of going on into the network stack. All flows
    at an interface must say so, or none.

    Raises ExpressionError for a name the kernel would not take (1 to 15 bytes, no space or `/`; net/core/dev.c,
    dev_valid_name), for an unknown hook, and for a monitor port that is not at XDP.
    """

    class_name: ClassVar[str] = "device"
    role: ClassVar[Role] = Role.DEVICE
    example: ClassVar[str] = "(device,eth0) | (device,eth1) -> (packetcount)"

    word: ClassVar[str] = "monitor"

    tap: str
    monitor: bool = False

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_text(self.tap, self.where)
        object.__setattr__(self, "tap", self.tap.strip())
        if self.hook == "xdp":
            object.__setattr__(self, "tap", self.interface)
        if self.tap.endswith(f",{self.word}"):
            raise ExpressionError(
                f"`{self.tap}` is taken for a monitor port", where=self.where, help='`device("eth0", monitor=True)`'
            )
        if not self.interface:
            raise ExpressionError("no interface named", where=self.where, help="write `(device,eth0)`")
        if not self.tap.isprintable():
            raise ExpressionError(
                "a name with characters that cannot be seen", where=self.where, help="`ip link` lists the interfaces"
            )
        if len(self.interface.encode()) > 15 or self.interface in (".", "..") or set(self.interface) & set("/ :"):
            raise ExpressionError(
                f"`{self.interface}` cannot be the name of an interface",
                where=self.where,
                help="1 to 15 bytes without space, `/` and `:`; `ip link` lists the interfaces",
            )
        if self.hook not in HOOKS:
            raise ExpressionError(
                f"unknown hook `{self.hook}`", where=self.where, help=f"one of {', '.join(HOOKS)}, as in `eth0@xdp`"
            )
        if self.monitor not in (False, True):
            raise ExpressionError(
                f"{self.monitor!r} is neither yes nor no", where=self.where, help='`device("eth0", monitor=True)`'
            )
        if self.monitor and self.hook != "xdp":
            raise ExpressionError(
                f"a monitor port is at XDP, not at `{self.hook}`",
                where=self.where,
                help=f"write `(device,{self.interface},monitor)`, or leave `monitor` out: at tc frames go on",
            )

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        tap, comma, word = expression.rpartition(",")
        monitor = bool(comma) and word.strip() == cls.word
        return cls(tap if monitor else expression, monitor, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def interface(self) -> str:
        return self.tap.partition("@")[0]

    @property
    def hook(self) -> str:
        _, at, hook = self.tap.partition("@")
        return hook if at else "xdp"

    @property
    def expression(self) -> str:
        return f"{self.tap},{self.word}" if self.monitor else self.tap

    @property
    def arguments(self) -> tuple[str, ...]:
        return (repr(self.tap), "monitor=True") if self.monitor else (repr(self.tap),)

    @property
    def effect(self) -> Arrival:
        return Arrival(self.interface, self.hook)
