"""`device`: where packets come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.effect import Arrival, tap_name, tap_parts
from ffpf_bpf.graph.expression import Expression, Node, Role, check_text, mapped

GLOB = "*?["
LONGEST_GLOB = 64
LONGEST_NAMESPACE_BYTES = 255  # of a file's name
HOOKS = ("xdp", "tc-ingress", "tc-egress")


@dataclass(frozen=True, slots=True)
class Device(Node):
    """A tap: `NAME` or `NAME@HOOK`, the hook one of `xdp` (default) and `tc-ingress`, which see what arrives, and
    `tc-egress`, which sees what is sent. `NAMESPACE/NAME` is in a network namespace, as `ip netns` lists them. Layer 3
    devices, such as those of tun and WireGuard, have the hooks of tc alone; their packets are shown with an Ethernet
    header without addresses.

    Text `(device,eth0)`, Python `device("eth0")`. Every path of a flow begins with one. The interface need not exist
    before the flow is instantiated. `*`, `?` and `[...]` in its name make it a glob, for all interfaces of that
    namespace which it matches: `(device,veth*)`.

    `(device,eth0,monitor)`, Python `device("eth0", monitor=True)`, is a port to which only mirrored traffic comes, at
    XDP: while a flow is active there, frames end behind the flows instead of going on into the network stack. All flows
    at an interface must say so, or none.

    Raises ExpressionError for a name the kernel would not take (1 to 15 bytes, no space or `/`; net/core/dev.c,
    dev_valid_name), for an unknown hook, for a namespace that is no name of a file, and for a monitor port that is not
    at XDP.
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
            object.__setattr__(self, "tap", self.place)
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
        self._check_name()
        if "/" in self.tap:
            check_namespace(self.namespace, self.where)
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

    def _check_name(self) -> None:
        name = self.interface
        is_long = len(name) > LONGEST_GLOB if self.is_glob else len(name.encode()) > 15
        if is_long or name in (".", "..") or set(name) & set("/ :"):
            raise ExpressionError(
                f"`{name}` cannot be the name of an interface",
                where=self.where,
                help="1 to 15 bytes without space, `/` and `:`; `ip link` lists the interfaces",
            )

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        tap, comma, word = expression.rpartition(",")
        monitor = bool(comma) and word.strip() == cls.word
        return cls(tap if monitor else expression, monitor, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def namespace(self) -> str:
        """The name of its network namespace; "" for the one that the process is in."""
        return tap_parts(self.tap)[0]

    @property
    def interface(self) -> str:
        return tap_parts(self.tap)[1]

    @property
    def hook(self) -> str:
        return tap_parts(self.tap)[2]

    @property
    def place(self) -> str:
        """Namespace and interface, as they are written."""
        return f"{self.namespace}/{self.interface}" if "/" in self.tap else self.interface

    @property
    def is_glob(self) -> bool:
        """Whether it is about every interface that its name matches."""
        return bool(set(GLOB) & set(self.interface))

    def at(self, interface: str) -> str:
        """The tap of that interface, one that its glob matches."""
        return tap_name(f"{self.namespace}/{interface}" if self.namespace else interface, self.hook)

    @property
    def expression(self) -> str:
        return f"{self.tap},{self.word}" if self.monitor else self.tap

    @property
    def arguments(self) -> tuple[str, ...]:
        return (repr(self.tap), "monitor=True") if self.monitor else (repr(self.tap),)

    @property
    def effect(self) -> Arrival:
        return Arrival(self.tap)


def check_namespace(name: str, where: str) -> None:
    """Refuse what cannot be the name of a network namespace. Raises ExpressionError."""
    check_text(name, where)
    is_name = 0 < len(name.encode()) <= LONGEST_NAMESPACE_BYTES and name not in (".", "..") and name.isprintable()
    if not is_name or "/" in name:
        raise ExpressionError(
            f"`{name}` cannot be the name of a network namespace",
            where=where,
            help="`ip netns` lists the names, as in `blue/eth0`",
        )


def placed(expression: Expression, namespace: str) -> Expression:
    """The expression, its devices in that namespace where they name none."""

    def place(node: Node) -> Node:
        if isinstance(node, Device) and not node.namespace:
            return replace(node, tap=f"{namespace}/{node.tap}")
        return node

    return mapped(expression, place) if namespace else expression
