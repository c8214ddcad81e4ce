"""`callback`: gives packets to a Python function."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.grab import check_snaplen
from ffpf_bpf.graph.effect import Delivery
from ffpf_bpf.graph.expression import NAME_PATTERN, Node, Role, check_number, check_text
from ffpf_bpf.graph.parameters import whole_number, words

HELP = '`(callback,NAME)`, or `(callback,"NAME packets snaplen=96")`; in Python `callback(function)`'


@dataclass(frozen=True, slots=True)
class Callback(Node):
    """A sink: a Python function gets the packets that reach it, in batches, or with `packets` one at a time, which is
    slow. At most the first `snaplen` bytes of each; 0 means whole packets.

    Python `callback(function, packets=False, snaplen=96)`: called with a `Batch`, valid until it returns, or `Packet`.
    Text `(callback,NAME)`, `(callback,"NAME packets snaplen=96")`; the function is then given to `Flow.populate(text,
    callbacks={"NAME": function})`. It runs in the thread that takes the flow's packets: `Flow.dispatch`, `batches`,
    `poll` or `packets`, which pass on what reached a `grab`. What it raises comes out there, when the other sinks have
    had their part of the batch; its own is given up.

    Raises ExpressionError for what is neither a function nor a name, and a snaplen above 65,535 bytes.
    """

    class_name: ClassVar[str] = "callback"
    role: ClassVar[Role] = Role.SINK
    tells_apart: ClassVar[bool] = True
    example: ClassVar[str] = '(device,eth0) -> (bpf,"udp port 53") -> (callback,"dns packets snaplen=512")'

    function: Callable[[Any], object] | str = field(compare=False, repr=False)
    packets: bool = False
    snaplen: int = 0
    target: str = field(default="", init=False)

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        check_number(self.snaplen, self.where, "callback(function, snaplen=96)")
        if callable(self.function):
            name = getattr(self.function, "__name__", "")
            name = name if re.fullmatch(NAME_PATTERN, name) and name != "packets" else "function"
        else:
            if not isinstance(self.function, str):
                raise ExpressionError(f"{self.function!r} is no function", where=self.where, help=HELP)
            check_text(self.function, self.where)
            name = self.function
        if not re.fullmatch(NAME_PATTERN, name) or name == "packets":
            raise ExpressionError(f"`{name}` is no function's name", where=self.where, help=HELP)
        object.__setattr__(self, "target", name)
        check_snaplen(self.snaplen, self.where)

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        where = f"({cls.class_name})"
        bare, named = words(expression, frozenset({"snaplen"}), where=where, help=HELP)
        if not bare or bare[1:] not in ([], ["packets"]):
            raise ExpressionError(f"`{expression}` names no function", where=where, help=HELP)
        snaplen = whole_number(named.get("snaplen", "0"), "a snaplen", where=where, help=HELP)
        return cls(bare[0], len(bare) == 2, snaplen, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def expression(self) -> str:
        parts = [self.target, "packets" if self.packets else "", f"snaplen={self.snaplen}" if self.snaplen else ""]
        return " ".join(part for part in parts if part)

    @property
    def arguments(self) -> tuple[str, ...]:
        parts = [repr(self.target), "packets=True" if self.packets else ""]
        parts.append(f"snaplen={self.snaplen}" if self.snaplen else "")
        return tuple(part for part in parts if part)

    @property
    def effect(self) -> Delivery:
        return Delivery(self.snaplen)
