"""The end of a flow's time: a policy may say how long it lives."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol


class Closable(Protocol):
    """What has an end."""

    def close(self) -> None: ...


class Expiry:
    """Closes its owner when its time is over, from a thread of its own, unless cancelled. Keeps nobody alive."""

    def __init__(self, owner: Closable) -> None:
        self._owner = weakref.ref(owner)
        self._timer: threading.Timer | None = None
        self._began_s = time.monotonic()

    def set(self, expires_s: float | None) -> None:
        """Let the owner live for so long since it began; None: without end."""
        self.cancel()
        if expires_s is not None:
            left_s = max(0.0, self._began_s + expires_s - time.monotonic())
            self._timer = threading.Timer(min(left_s, threading.TIMEOUT_MAX), _close, (self._owner,))
            self._timer.daemon = True
            self._timer.start()

    def cancel(self) -> None:
        """The owner is closed already, or has another time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _close(owner: weakref.ref[Closable]) -> None:
    if (alive := owner()) is not None:
        alive.close()
