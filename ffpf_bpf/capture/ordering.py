"""Batches of several CPUs in the order of time, as far as a bounded look back tells.

CPUs record side by side, so a batch of one may begin before the end of another's. Packets are held back until all CPUs
have been read for `look_back_s` since; what comes even later than that is passed on at once, out of order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from ffpf_bpf.capture.ring import Batch


def in_order(batches: Iterable[Batch | None], look_back_s: float, *, live: bool = True) -> Iterator[Batch]:
    """The packets of `batches`, in which None says that nothing came, sorted by time; copies, `cpu` is -1.

    Where they are not `live` but from a file, it is their own times that count.
    """
    held: list[tuple[float, Batch]] = []
    newest_ns = 0
    for batch in batches:
        now_s = time.monotonic()
        if batch is not None:
            held.append((now_s, batch.copy()))
            newest_ns = max(newest_ns, int(batch.time_ns.max()))
        if live:
            old = [int(each.time_ns.max()) for read_s, each in held if read_s <= now_s - look_back_s]
            horizon_ns = max(old, default=0)
        else:
            horizon_ns = max(0, newest_ns - int(look_back_s * 1e9))
        if horizon_ns and (ready := _take(held, horizon_ns)) is not None:
            yield ready
    if held and (ready := _take(held, 2**64 - 1)) is not None:
        yield ready


def _take(held: list[tuple[float, Batch]], horizon_ns: int) -> Batch | None:
    """Those up to the horizon, taken out."""
    taken: list[Batch] = []
    left, lost = [], 0
    for read_s, batch in held:
        due = batch.time_ns <= np.uint64(horizon_ns)
        if not due.any():
            left.append((read_s, batch))
            continue
        lost += batch.lost
        taken.append(batch.chosen(due))
        if not due.all():
            left.append((read_s, batch.chosen(~due, lost=0)))
    held[:] = left
    if not taken:
        return None
    tags = [batch.tags for batch in taken if batch.tags is not None]
    records = np.concatenate([batch.records for batch in taken])
    found = Batch(records, -1, lost, np.concatenate(tags) if tags else None)
    return found.chosen(np.argsort(found.time_ns, kind="stable"))
