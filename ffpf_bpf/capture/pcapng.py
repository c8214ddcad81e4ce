"""Ring memory -> a pcapng file or pipe, as it is: a slot of the ring already is an Enhanced Packet Block.

Promises: packets are written whole slot by whole slot, so a file is valid up to its last whole block at any moment,
SIGKILL included; what a failed write left of a block in a file is cut off again. Must not: parse or copy packets.

The format is draft-ietf-opsawg-pcapng: Section Header 4.1, Interface Description 4.2, Interface Statistics 4.6.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import select
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ffpf_bpf.capture.layout import BLOCK_TYPE
from ffpf_bpf.errors import CaptureError

SECTION_HEADER, INTERFACE_DESCRIPTION, INTERFACE_STATISTICS = 0x0A0D0D0A, 1, 5
BYTE_ORDER = 0x1A2B3C4D
COMMENT = 1  # opt_comment, in any block
SHB_HARDWARE, SHB_OS, SHB_USERAPPL = 2, 3, 4
IF_NAME, IF_TSRESOL, IF_FILTER, IF_OS = 2, 9, 11, 12
ISB_STARTTIME, ISB_ENDTIME = 2, 3
ISB_IFRECV, ISB_IFDROP, ISB_FILTERACCEPT, ISB_OSDROP, ISB_USRDELIV = 4, 5, 6, 7, 8
NANOSECONDS = 9  # if_tsresol: time stamps count 10^-9 s
FILTER_TEXT = b"\0"  # if_filter: what follows is the filter as text, not its byte code
LONGEST_OPTION = 65535  # bytes
STANDARD_OUTPUT = 1
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Option = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class InterfaceDescription:
    """An interface of the file; a slot names it by its place among them. `filter` is the flow expression.

    `snaplen` is in bytes, 0 for no limit; `link_type` is a LINKTYPE_ value, 1 for Ethernet.
    """

    name: str
    snaplen: int
    filter: str
    link_type: int = 1


@dataclass(frozen=True, slots=True)
class InterfaceStatistics:
    """What became of the packets of interface number `interface`; what is None is not written.

    Times are wall clock nanoseconds. `received` came in at the interface and `dropped` were lost there; of these,
    `accepted` passed the filter; of these, `os_dropped` found no room in the ring and `delivered` reached the reader.
    """

    interface: int
    start_ns: int
    end_ns: int
    received: int | None = None
    dropped: int | None = None
    accepted: int | None = None
    os_dropped: int | None = None
    delivered: int | None = None


class PcapngWriter:
    """A pcapng file at `path`, or standard output for `-`, with one section.

    Raises CaptureError if it cannot be opened or written. After a failed write `broken` is true: what was written
    until then is kept (in a file, up to its last whole block), and nothing more is written.
    """

    def __init__(
        self,
        path: str,
        interfaces: Sequence[InterfaceDescription],
        comment: str = "",
        hardware: str = "",
        application: str = "ffpf_bpf",
    ) -> None:
        self.packets_written = 0
        self.bytes_written = 0
        self.broken = False
        self._path = path
        self._descriptor = _open(path)
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        try:
            header = _section_header(comment, hardware or platform.machine(), application)
            header += b"".join(map(_interface_description, interfaces))
            self._write_whole(memoryview(header), len(header))
        except BaseException:
            self._release()
            raise

    def write(self, blocks: npt.NDArray[Any] | memoryview) -> None:
        """Writes a batch of ring slots as it is; all of one size, which their first block says.

        Returns when all of it is written, and waits for a slow reader of a pipe. Raises CaptureError if the file
        cannot grow or the reader is gone, and ValueError for memory that is not whole slots.
        """
        memory = _bytes_of(blocks)
        if memory.nbytes == 0:
            return
        slot_bytes = _slot_bytes(memory)
        self.packets_written += self._write_whole(memory, slot_bytes)
        if self.broken:
            raise self._failure

    def close(self, statistics: Sequence[InterfaceStatistics] | None = None) -> None:
        """Writes the statistics, unless the writer is broken, and closes. Closing again does nothing."""
        if self._descriptor < 0:
            return
        try:
            if statistics and not self.broken:
                blocks = b"".join(map(_interface_statistics, statistics))
                self._write_whole(memoryview(blocks), len(blocks))
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
