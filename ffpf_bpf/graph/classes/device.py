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
    before the flow is instantiated. Raises ExpressionError for a name the kernel would not take (1 to 15 bytes, no
    space or `/`; net/core/dev.c, dev_valid_name) and for an unknown hook.
    """

    class_name: ClassVar[str] = "device"
    role: ClassVar[Role] = Role.DEVICE
    example: ClassVar[str] = "(device,eth0) | (device,eth1) -> (packetcount)"

    tap: str

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_text(self.tap, self.where)
        object.__setattr__(self, "tap", self.tap.strip())
        if self.hook == "xdp":
            object.__setattr__(self, "tap", self.interface)
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

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        return cls(expression, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def interface(self) -> str:
        return self.tap.partition("@")[0]

    @property
    def hook(self) -> str:
        _, at, hook = self.tap.partition("@")
        return hook if at else "xdp"

    @property
    def expression(self) -> str:
        return self.tap

    @property
    def arguments(self) -> tuple[str, ...]:
        return (repr(self.tap),)

    @property
    def effect(self) -> Arrival:
        return Arrival(self.interface, self.hook)
