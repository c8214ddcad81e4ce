"""Where the taps of a flow are, as interfaces come and go, and what is told about that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ffpf_bpf.errors import KernelError
from ffpf_bpf.flow.chains import Chain, Member
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.kernel.interfaces import Interface, is_layer_3
from ffpf_bpf.kernel.netlink import Link
from ffpf_bpf.kernel.watch import Interfaces

ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a tap of a flow: `what` is one of `attached`, `gone`, `renamed`, `moved`, `detached`, `down`,
    `up`, `mtu` and `refused`, and `said` the same in words. `number` counts the events of a flow, from 1."""

    number: int
    time_ns: int
    tap: str
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.tap}: {self.said}"

    def as_json(self) -> dict[str, Any]:
        return {"time_ns": self.time_ns, "tap": self.tap, "event": self.what, "said": self.said}


@dataclass(frozen=True, slots=True)
class Happening:
    """An event before it has a number and a time."""

    tap: str
    what: str
    said: str


@dataclass(eq=False, slots=True)
class Place:
    """A tap of a flow by its name, with the number that records have, and where it is attached, if it is."""

    device: Device
    tap: str
    number: int
    interface: Interface | None = None
    chain: Chain | None = None
    member: Member | None = None
    link: Link | None = field(default=None)
    mode: str = ABSENT
    refusal: str = ""
    is_suspect: bool = False

    @property
    def shown(self) -> dict[str, str]:
        """What `Flow.taps` has of it."""
        shown = {"tap": self.tap, "mode": self.mode} | ({"refusal": self.refusal} if self.refusal else {})
        return shown | ({"monitor": "yes"} if self.device.monitor and self.mode != ABSENT else {})

    def enter(self, interface: Interface, chain: Chain, member: Member) -> None:
        """It is attached."""
        self.interface, self.chain, self.member, self.link = interface, chain, member, None
        self.mode, self.refusal, self.is_suspect = chain.tap.mode, chain.tap.refusal, False

    def is_detached(self) -> bool:
        """Whether it has not been attached since the last time that this was asked, though nobody told: for an
        interface that went, somebody does in between."""
        was_suspect = self.is_suspect
        try:
            self.is_suspect = self.chain is not None and not self.chain.is_attached()
        except KernelError:  # it does not say
            self.is_suspect = False
        return was_suspect and self.is_suspect

    def lost(self, known: Interfaces | None) -> Happening | None:
        """Why it is not attached to what it is called after, if so. A tap is a name, which policies are about: another
        name, or the name in another namespace, is another tap."""
        assert self.interface is not None
        if known is None or known.namespace != self.interface.namespace:
            return Happening(self.tap, "gone", "its network namespace is gone")
        link = known.links.get(self.interface.index)
        if link is None:
            if self.interface.index in known.elsewhere:
                return Happening(self.tap, "moved", "the interface was moved to another network namespace")
            return Happening(self.tap, "gone", "the interface is gone")
        name = self.interface.name.rpartition("/")[2]
        if link.name != name:
            return Happening(self.tap, "renamed", f"the interface was renamed to `{link.name}`")
        if is_layer_3(link.kind) != self.interface.is_layer_3:
            return Happening(self.tap, "gone", f"the interface is of another kind now (ARPHRD {link.kind})")
        assert self.chain is not None
        return (
            Happening(self.tap, "detached", "our filter or link was detached by somebody")
            if self.chain.is_closed
            else None
        )

    def changed(self, link: Link) -> list[Happening]:
        """What is told of an interface that stays."""
        before, self.link = self.link, link
        told = []
        if before is None:
            if not link.is_up:
                told.append(Happening(self.tap, "down", "the interface is down"))
            return told
        if link.is_up != before.is_up:
            word = "up" if link.is_up else "down"
            told.append(Happening(self.tap, word, f"the interface is {word}"))
        if link.mtu != before.mtu:
            told.append(Happening(self.tap, "mtu", f"the MTU is {link.mtu} now, it was {before.mtu}"))
        return told
