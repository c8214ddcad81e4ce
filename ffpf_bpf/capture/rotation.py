"""A capture in several pcapng files: a new one when a file is large or old enough, as tcpdump's -C, -G and -W have it.

Promises: each file is a whole capture of its own, with the interfaces, and at its end the statistics of its time. Files
are cut between packets, each in exactly one file. Must not: look at packets.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ffpf_bpf.capture.closing import Closing
from ffpf_bpf.capture.compression import SUFFIXES, compression_of
from ffpf_bpf.capture.pcapng import InterfaceDescription, InterfaceStatistics, PcapngWriter
from ffpf_bpf.errors import ExpressionError

MEGABYTE = 1_000_000  # tcpdump's, of -C


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is followed by another: `size_bytes` before compression (-C), `period_s` (-G), `files` (-W).

    With `size_bytes`, names are numbered; after `files` of them the first is overwritten. With `period_s`, names are
    made by strftime, in local time, and the capture is over after `files` of them.
    """

    size_bytes: int | None = None
    period_s: float | None = None
    files: int | None = None

    def __post_init__(self) -> None:
        if self.files is not None and self.size_bytes is None and self.period_s is None:
            raise ExpressionError("a number of files of what size?", where="-W", help="add `-C SIZE` or `-G SECONDS`")

    @property
    def is_none(self) -> bool:
        return self.size_bytes is None and self.period_s is None

    @property
    def ends(self) -> bool:
        """Whether the capture is over after so many files."""
        return self.files is not None and self.period_s is not None and self.size_bytes is None

    def name(self, path: str, opened_s: float, number: int) -> str:
        """The name of file `number` of those since `opened_s`, seconds since the epoch."""
        if self.period_s is not None:
            path = time.strftime(path, time.localtime(opened_s))
        digits = len(str(self.files - 1)) if self.files is not None and self.files > 1 else 0
        if self.size_bytes is None or (not number and not digits):
            return path
        stem, suffix = _parted(path)
        return f"{stem}{number:0{digits}}{suffix}"


class RotatingWriter(Closing):
    """The files of one capture at `path`: one alone, if the rotation says nothing.

    `statistics` tells what was counted so far, a value for each number that `write` gets as `interface`; how many of
    these packets were delivered is known here.
    """

    def __init__(
        self,
        path: str,
        interfaces: Sequence[InterfaceDescription],
        comment: str = "",
        rotation: Rotation = Rotation(),
        compress: str = "",
        statistics: Callable[[], Sequence[InterfaceStatistics]] = list,
    ) -> None:
        if path == "-" and not rotation.is_none:
            raise ExpressionError("standard output is one file", where="-w -", help="name a file to rotate")
        self.files = 0
        self._path, self._interfaces, self._comment, self._rotation = path, list(interfaces), comment, rotation
        self._compress = compression_of(path, compress)
        self._statistics = statistics
        self._delivered: Counter[int] = Counter()
        self._before: dict[int, InterfaceStatistics] = {}
        self._whole = self._number = 0
        self._period_began_s = time.time()
        self._open()

    @property
    def packets_written(self) -> int:
        """In all files."""
        return self._whole + self._writer.packets_written

    @property
    def is_over(self) -> bool:
        """Whether the last file that the rotation allows is old enough."""
        return self._rotation.ends and self.files >= (self._rotation.files or 0) and self._is_old()

    def add_interface(self, interface: InterfaceDescription) -> int:
        """The number of one more interface, of this file and of those that follow."""
        self._bytes += self._writer.add_interface(interface)
        self._interfaces.append(interface)
        return len(self._interfaces) - 1

    def write(self, records: np.ndarray[Any, Any], interface: int = 0) -> None:
        """A batch of ring slots, counted as delivered for `interface`; cut where a file ends."""
        if self._is_old():
            if self.is_over:
                return
            self._period_began_s = time.time()
            self._number = 0
            self._rotate()
        while len(records):
            if not self._room():
                self._number = (self._number + 1) % (self._rotation.files or 1 << 63)
                self._rotate()
            count = self._fitting(records)
            self._writer.write(records[:count])
            self._bytes += records[:count].nbytes
            self._delivered[interface] += count
            records = records[count:]

    def close(self) -> None:
        """The end of the last file, with its statistics. Closing again does nothing."""
        if self._writer.is_closed:
            return
        self._writer.close(self._statistics_of_file())

    def _rotate(self) -> None:
        self.close()
        self._whole += self._writer.packets_written
        self._open()

    def _open(self) -> None:
        self.name = self._rotation.name(self._path, self._period_began_s, self._number)
        self._writer = PcapngWriter(self.name, self._interfaces, self._comment, compress=self._compress)
        self._bytes = self._writer.header_bytes
        self.files += 1

    def _is_old(self) -> bool:
        period_s = self._rotation.period_s
        return period_s is not None and time.time() - self._period_began_s >= period_s

    def _room(self) -> bool:
        """As tcpdump: a file that is larger than the limit gets no more, so it ends with the packet that made it so."""
        return self._rotation.size_bytes is None or self._bytes <= self._rotation.size_bytes

    def _fitting(self, records: np.ndarray[Any, Any]) -> int:
        if self._rotation.size_bytes is None:
            return len(records)
        return min(len(records), (self._rotation.size_bytes - self._bytes) // records.itemsize + 1)

    def _statistics_of_file(self) -> list[InterfaceStatistics]:
        found = []
        for total in self._statistics():
            now = replace(total, delivered=self._delivered[total.interface])
            before = self._before.get(total.interface)
            found.append(now.since(before) if before else now)
            self._before[total.interface] = now
        return found


def _parted(path: str) -> tuple[str, str]:
    """A path without the suffix that says how it is compressed, and that."""
    suffix = next((suffix for suffix in SUFFIXES if path.endswith(suffix)), "")
    return path[: len(path) - len(suffix)], suffix
