"""What a flow does when its interfaces come and go: leaves what is not its tap any more, and tells; if it is to follow,
joins what is.

Leaving is done by the thread that watches, at once. Joining is done by another one, since the policies are asked first,
as they are then: no tap is attached that they do not allow.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ffpf_bpf.errors import FfpfError
from ffpf_bpf.flow.grabber import Grabber
from ffpf_bpf.flow.places import Event, Happening
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.kernel.netlink import Link
from ffpf_bpf.kernel.watch import WATCHER, Known

if TYPE_CHECKING:
    from ffpf_bpf.flow.flow import Flow

MOST_EVENTS = 1_000
LOST = ("gone", "renamed", "moved", "detached")
CHECK_PERIOD_S = 1.0


class Following:
    """Listens for a flow, which it does not keep alive. `lost` is the first tap that it lost."""

    def __init__(self, flow: Flow, is_wanted: bool) -> None:
        self.is_wanted = is_wanted
        self.events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self.lost: Event | None = None
        self._flow = weakref.ref(flow)
        self._told = 0
        self._telling = threading.Lock()
        self._refused: dict[str, tuple[Link, str]] = {}  # as it was then, and why: tried again once it changes
        self._is_joining = False
        self._checked_s = 0.0

    def look(self, known: Known) -> None:
        """Compare the flow's taps with what there is."""
        flow = self._flow()
        if flow is None:
            return
        with flow.switching:
            grabber = flow.grabber
            if grabber is None or not known:
                return
            told = grabber.look(known)
            self.tell(told)
            # Whoever detached us is not fought.
            left = {each.tap for each in told if each.what == "detached"}
            self._refused |= {
                device.at(link.name): (link, "")
                for device, link in grabber.newcomers(known)
                if device.at(link.name) in left
            }
            if not self.is_wanted or self._is_joining or self._next(grabber, known) is None:
                return
            self._is_joining = True
        threading.Thread(target=self._join, args=(grabber,), name="ffpf-join", daemon=True).start()

    def check(self) -> None:
        """Once a second, look for what somebody else has detached: of that, nobody tells."""
        now_s = time.monotonic()
        flow = self._flow()
        if flow is None or now_s < self._checked_s + CHECK_PERIOD_S:
            return
        self._checked_s = now_s
        with flow.switching:
            if flow.grabber is not None and flow.grabber.abandon_detached():
                self.look(WATCHER.known(self))

    def tell(self, happenings: Iterable[Happening]) -> None:
        """These happened now."""
        with self._telling:
            for each in happenings:
                self._told += 1
                self.events.append(Event(self._told, time.time_ns(), each.tap, each.what, each.said))
                if each.what in LOST and self.lost is None:
                    self.lost = self.events[-1]

    def _next(self, grabber: Grabber, known: Known) -> tuple[Device, Link] | None:
        """An interface to join that was not refused as it is."""
        found = grabber.newcomers(known)
        refused = {tap: link for tap, (link, _) in self._refused.items()}
        return next(((device, link) for device, link in found if refused.get(device.at(link.name)) != link), None)

    def _join(self, grabber: Grabber) -> None:
        """Join what is there, one after the other."""
        while (flow := self._flow()) is not None:
            known = WATCHER.known(self)
            with flow.switching:
                found = self._next(grabber, known) if flow.grabber is grabber else None
                if found is None:
                    self._is_joining = False
                    return
            device, link = found
            try:
                before_load = flow.admit()
                with flow.switching:
                    if flow.grabber is grabber:
                        self.tell([grabber.join(device, link.name, before_load)])
            except FfpfError as error:
                tap, said = device.at(link.name), f"not attached: {' '.join(error.message.split())}"
                before, said_before = self._refused.get(tap, (None, ""))
                self._refused[tap] = link, said
                if before is None or before.index != link.index or said != said_before:
                    self.tell([Happening(tap, "refused", said)])
            except BaseException:
                self._is_joining = False
                raise
            # It may have changed between the look and the join.
            self.look(WATCHER.known(self))
