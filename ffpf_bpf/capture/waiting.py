"""How a reader waits for packets: naps while they come, sleeps while none comes, and is woken by the next one.

A nap costs the kernel side nothing per packet, and collects a batch. A reader that finds nothing asks to be rung: it
notes the number of the entry it waits for where the kernel side looks after each packet, and sleeps on a descriptor.

No packet is slept through. Whoever asks looks for packets once more before it sleeps, and the kernel side looks at the
number after it has published an entry. On x86 either's store may still wait in its CPU's buffer when it looks at the
other's: then both miss. So the first sleep is short, far longer than any store waits, and ends in another look; without
that, the kernel side would need a full barrier for each packet.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Iterable

LONGEST_NAP_S = 0.005
ENOUGH = 1 / 8  # of a ring: worth reading at once
FIRST_SLEEP_S = 0.001
LONGEST_SLEEP_S = 0.1  # whatever else is to be looked at: the clock, the interfaces, whether to end
# What asks to be rung: the descriptors to sleep on, or None if there are packets already.
Listen = Callable[[], list[int] | None]


class Pace:
    """While packets come, a reader naps until its fullest ring has filled to an eighth, as it did before; 5 ms at most.
    Many packets at a time cost less each, and seven eighths are left for a burst. When none has come, it sleeps until
    it is rung, and does so at once where packets are farther apart than the longest nap. So it wakes 200 times a
    second, unless its ring fills sooner, and a packet that comes after a pause is read within a millisecond."""

    def __init__(self) -> None:
        self._is_quiet = False
        self._read_s = 0.0
        self._begin()

    def rest(self, listen: Listen, taken: float, waiting: float, most_s: float | None = None) -> None:
        """Return when it is worth looking again, at the latest after `most_s`. `taken` is how full the fullest ring was
        before it was read, `waiting` how full it is again, as parts of 1."""
        if taken and not self._is_sparse():
            if nap_s := self._nap_s(taken, waiting):
                time.sleep(_at_most(nap_s, most_s))
        elif (found := listen()) is not None:
            poll = select.poll()
            for descriptor in found:
                poll.register(descriptor, select.POLLIN)
            poll.poll(1000 * _at_most(self._sleep_s(), most_s))
            self._begin()

    async def rest_async(self, listen: Listen, taken: float, waiting: float) -> None:
        """The same in an event loop, where other tasks run meanwhile."""
        if taken and not self._is_sparse():
            await asyncio.sleep(self._nap_s(taken, waiting))
        elif (found := listen()) is None:
            await asyncio.sleep(0)
        else:
            await _rung(found, self._sleep_s())
            self._begin()

    def _nap_s(self, taken: float, waiting: float) -> float:
        """For how long to nap; 0: not at all."""
        self._taken += taken
        if waiting >= ENOUGH:
            return 0.0
        nap_s = min(LONGEST_NAP_S, (time.monotonic() - self._since_s) * ENOUGH / self._taken)
        self._begin()
        return nap_s

    def _is_sparse(self) -> bool:
        """Whether what was read came alone, after a pause."""
        now_s = time.monotonic()
        since_s, self._read_s = now_s - self._read_s, now_s
        was_quiet, self._is_quiet = self._is_quiet, False
        return was_quiet and since_s > LONGEST_NAP_S

    def _sleep_s(self) -> float:
        """For how long to sleep, if nobody rings."""
        was_quiet, self._is_quiet = self._is_quiet, True
        return LONGEST_SLEEP_S if was_quiet else FIRST_SLEEP_S

    def _begin(self) -> None:
        """What is taken from now on tells how fast packets come."""
        self._since_s, self._taken = time.monotonic(), 0.0


def together(found: Iterable[list[int] | None]) -> list[int] | None:
    """What several readers that listen sleep on, or None if one of them has packets."""
    asked = list(found)
    return None if None in asked else [descriptor for each in asked if each for descriptor in each]


async def _rung(descriptors: list[int], most_s: float) -> None:
    """Until one of them is readable."""
    loop = asyncio.get_running_loop()
    rung = loop.create_future()

    def ring() -> None:
        if not rung.done():
            rung.set_result(None)

    for descriptor in descriptors:
        loop.add_reader(descriptor, ring)
    try:
        await asyncio.wait({rung}, timeout=most_s)
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)


def _at_most(seconds: float, most_s: float | None) -> float:
    return seconds if most_s is None else max(0.0, min(seconds, most_s))
