"""A packet as a plain value: for callbacks and for printing, one at a time. Batches never become packets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Packet:
    """`data` is what was captured, from the Ethernet header on; `length` is what was on the wire, in bytes.

    `time_ns` is the wall clock in nanoseconds since the epoch; `interface` is the name of the device. `result` is what
    the last node with results on its way made of it, None if there was none.
    """

    time_ns: int
    data: bytes
    length: int
    interface: str
    result: int | None = None


def printable(text: str) -> str:
    """`text` as printable ASCII: names come from strangers and go to terminals, which obey control characters."""
    return text.encode("unicode_escape").decode("ascii")
