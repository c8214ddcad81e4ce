"""What a flow and a capture file have in common: batches, and everything that is made of batches."""

from __future__ import annotations

import asyncio
import collections
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Self

from ffpf_bpf.capture import arrow
from ffpf_bpf.capture.closing import Closing
from ffpf_bpf.capture.ordering import in_order
from ffpf_bpf.capture.packet import Packet
from ffpf_bpf.capture.ring import Batch

Idle = Callable[[], bool]
LOOK_BACK_S = 0.02


class Deliverer(Closing):
    """Gives packets. `duration_s` and `idle` are those of `batches`."""

    _is_live = True
    first_interface: int

    def __init__(self) -> None:
        self._unread: collections.deque[Packet] = collections.deque()

    @property
    @abstractmethod
    def interfaces(self) -> tuple[str, ...]:
        """Names; a record's `interface`, less `first_interface`, is an index into them."""

    @abstractmethod
    def _arriving(self, duration_s: float | None, idle: Idle | None) -> Iterator[Batch | None]:
        """Batches, and None whenever nothing waits."""

    def batches(self, *, duration_s: float | None = None, idle: Idle | None = None) -> Iterator[Batch]:
        """Packets as they come, in numpy batches that are views of where they lie, each valid until the next one;
        `copy` keeps one.

        Ends after `duration_s`, or when `idle`, called whenever nothing waits, returns True, or the flow is closed,
        be it because its time is over; of a file, at its end.
        """
        return (batch for batch in self._arriving(duration_s, idle) if batch is not None)

    def ordered(
        self, *, look_back_s: float = LOOK_BACK_S, duration_s: float | None = None, idle: Idle | None = None
    ) -> Iterator[Batch]:
        """As `batches`, copies, sorted by time over all CPUs; each packet comes `look_back_s` later. What is late by
        more than that comes out of order."""
        return in_order(self._arriving(duration_s, idle), look_back_s, live=self._is_live)

    def packets(self, *, duration_s: float | None = None, idle: Idle | None = None) -> Iterator[Packet]:
        """Packets one at a time, as copies. For speed use `batches`."""
        while self._unread:
            yield self._unread.popleft()
        for batch in self.batches(duration_s=duration_s, idle=idle):
            self._unread.extend(batch.packets(self.interfaces, self.first_interface))
            while self._unread:
                yield self._unread.popleft()

    def arrow(
        self,
        *,
        data: bool = True,
        ordered: bool = False,
        duration_s: float | None = None,
        idle: Idle | None = None,
    ) -> Iterator[Any]:
        """As `batches`, but Arrow record batches, which stay valid: time, lengths, 5-tuple and other headers in
        columns (null where a packet has none), and its bytes, unless `data` is False. Raises CaptureError without
        pyarrow."""
        arrow.pyarrow()
        each = self.ordered if ordered else self.batches
        return (
            arrow.record_batch(batch, self.interfaces, self.first_interface, data)
            for batch in each(duration_s=duration_s, idle=idle)
        )

    def reader(
        self, *, data: bool = True, ordered: bool = False, duration_s: float | None = None, idle: Idle | None = None
    ) -> Any:
        """The same as a `pyarrow.RecordBatchReader`, which others read as it comes: `duckdb.sql("... from reader")`."""
        batches = self.arrow(data=data, ordered=ordered, duration_s=duration_s, idle=idle)
        return arrow.pyarrow().RecordBatchReader.from_batches(arrow.schema(data), batches)

    def table(
        self, *, data: bool = True, ordered: bool = False, duration_s: float | None = None, idle: Idle | None = None
    ) -> Any:
        """All of that as one `pyarrow.Table`: `polars.from_arrow(flow.table(duration_s=10))`."""
        return self.reader(data=data, ordered=ordered, duration_s=duration_s, idle=idle).read_all()

    def dataframe(
        self, *, data: bool = False, ordered: bool = False, duration_s: float | None = None, idle: Idle | None = None
    ) -> Any:
        """The same as a `pandas.DataFrame`, the packets' bytes only with `data`."""
        return self.table(data=data, ordered=ordered, duration_s=duration_s, idle=idle).to_pandas()

    def start(self, function: Callable[[Batch], object] | None = None) -> Background:
        """Call `function` with each batch, and the flow's callbacks, on a thread of their own, until `stop`."""
        return Background(self, function)

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """`async for batch in flow`: as `batches`, without a time limit, for which there is `asyncio.timeout`."""
        for batch in self.batches():
            yield batch
            await asyncio.sleep(0)


class Background:
    """A thread that takes packets. `stop`, or the end of `with`, ends it, and raises what went wrong in it."""

    def __init__(self, source: Deliverer, function: Callable[[Batch], object] | None) -> None:
        self._source, self._function = source, function
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ffpf-callbacks", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Returns when what was taken is dealt with. Again: does nothing."""
        self._stopping.set()
        self._thread.join()
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            failure = None  # or the error would keep the batch, and the batch the ring

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            for batch in self._source.batches(idle=self._stopping.is_set):
                if self._function is not None:
                    self._function(batch)
                if self._stopping.is_set():
                    return
        except BaseException as failure:  # told by `stop`
            self._failure = failure
