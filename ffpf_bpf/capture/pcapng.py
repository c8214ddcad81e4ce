"""Ring memory -> a pcapng file or pipe, as it is: a slot of the ring already is an Enhanced Packet Block.

Promises: a file is valid up to its last whole block at any moment, SIGKILL included (capture/output.py). Must not:
parse packets, or copy them but to compress them.

The format is draft-ietf-opsawg-pcapng: Section Header 4.1, Interface Description 4.2, Interface Statistics 4.6.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ffpf_bpf.capture.closing import Closing
from ffpf_bpf.capture.compression import compressed
from ffpf_bpf.capture.layout import BLOCK_TYPE
from ffpf_bpf.capture.output import Output, PlainOutput
from ffpf_bpf.graph.memory import BLOCK_BYTES

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

    def since(self, earlier: InterfaceStatistics) -> InterfaceStatistics:
        """What came after `earlier`, which ended when this began."""
        counts: dict[str, Any] = {
            name: now if now is None else now - (getattr(earlier, name) or 0)
            for name in ("received", "dropped", "accepted", "os_dropped", "delivered")
            for now in [getattr(self, name)]
        }
        return replace(self, start_ns=earlier.end_ns, **counts)


@dataclass(frozen=True, slots=True)
class Frame:
    """A packet that was made, not captured: its number of interface, its bytes, and a comment about it."""

    interface: int
    data: bytes
    comment: str


def file_of(interfaces: Sequence[InterfaceDescription], frames: Sequence[Frame], comment: str = "") -> bytes:
    """A whole pcapng file. The frames are a second apart, the first one at the beginning of 1970."""
    blocks = [_section_header(comment, platform.machine(), "ffpf_bpf"), *map(_interface_description, interfaces)]
    for number, frame in enumerate(frames):
        size = len(frame.data)
        head = struct.pack("<I", frame.interface) + _time(number * 10**9) + struct.pack("<II", size, size)
        blocks.append(_block(BLOCK_TYPE, head + frame.data + bytes(-size % 4), [(COMMENT, _text(frame.comment))]))
    return b"".join(blocks)


class PcapngWriter(Closing):
    """A pcapng file at `path`, or standard output for `-`, with one section; with `compress` "zstd", compressed.

    A file that exists is overwritten. Raises CaptureError if it cannot be opened or written. `packets_written` and
    `bytes_written` count what is in the file, whole blocks (whole zstd frames, which another thread makes). Once
    `broken`, nothing more is written, and a file ends with a whole block.
    """

    def __init__(
        self,
        path: str,
        interfaces: Sequence[InterfaceDescription],
        comment: str = "",
        hardware: str = "",
        application: str = "ffpf_bpf",
        compress: str = "",
    ) -> None:
        self._output: Output = PlainOutput(path)
        try:
            if compress:
                self._output = compressed(self._output, compress)
            header = _section_header(comment, hardware or platform.machine(), application)
            header += b"".join(map(_interface_description, interfaces))
            self.header_bytes = len(header)
            self._output.append(memoryview(header), len(header), 0)
        except BaseException:
            self.is_closed = True
            self._output.close()
            raise
        self.is_closed = False

    @property
    def packets_written(self) -> int:
        return self._output.packets_written

    @property
    def bytes_written(self) -> int:
        return self._output.bytes_written

    @property
    def broken(self) -> bool:
        return self._output.broken

    def add_interface(self, interface: InterfaceDescription) -> int:
        """One more interface, for packets that are written from now on; the bytes that it takes. Its number is the next
        one."""
        block = _interface_description(interface)
        self._output.append(memoryview(block), len(block), 0)
        return len(block)

    def write(self, blocks: npt.NDArray[Any] | memoryview) -> None:
        """Writes a batch of ring slots as it is; they are of one size, which the first of them says.

        Returns when all is written, or queued to be compressed; waits for a slow reader. Raises CaptureError if the
        file cannot grow or the reader is gone, and ValueError, before anything is written, for memory that is not
        whole slots.
        """
        memory = _bytes_of(blocks)
        if memory.nbytes:
            self._output.append(memory, _slot_bytes(memory), 1)

    def close(self, statistics: Sequence[InterfaceStatistics] | None = None) -> None:
        """Writes the statistics, unless the writer is broken, and closes. Closing again does nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        try:
            if statistics and not self.broken:
                blocks = b"".join(map(_interface_statistics, statistics))
                self._output.append(memoryview(blocks), len(blocks), 0)
        finally:
            self._output.close()


def _bytes_of(blocks: npt.NDArray[Any] | memoryview) -> memoryview:
    array = np.asarray(blocks)
    if not array.flags.c_contiguous:
        raise ValueError("a batch is contiguous memory")
    return array.reshape(-1).view(np.uint8).data


def _slot_bytes(memory: memoryview) -> int:
    """The size of the slots in `memory`, from the first of them."""
    if memory.nbytes < BLOCK_BYTES:
        raise ValueError(f"{memory.nbytes} bytes are no slot")
    block_type, slot_bytes = struct.unpack_from("<II", memory)
    if block_type != BLOCK_TYPE or slot_bytes < BLOCK_BYTES or slot_bytes % 4:
        raise ValueError(f"no slot begins with type {block_type} and length {slot_bytes}")
    if memory.nbytes % slot_bytes:
        raise ValueError(f"{memory.nbytes} bytes are not whole slots of {slot_bytes}")
    return int(slot_bytes)


def _section_header(comment: str, hardware: str, application: str) -> bytes:
    system = os.uname()
    options = [
        (SHB_HARDWARE, _text(hardware)),
        (SHB_OS, _text(f"{system.sysname} {system.release}")),
        (SHB_USERAPPL, _text(application)),
        (COMMENT, _text(comment)),
    ]
    length_unknown = -1
    return _block(SECTION_HEADER, struct.pack("<IHHq", BYTE_ORDER, 1, 0, length_unknown), options)


def _interface_description(interface: InterfaceDescription) -> bytes:
    filter_text = _text(interface.filter, LONGEST_OPTION - len(FILTER_TEXT))
    system = os.uname()
    options = [
        (IF_NAME, _text(interface.name)),
        (IF_TSRESOL, bytes([NANOSECONDS])),
        (IF_FILTER, FILTER_TEXT + filter_text if filter_text else b""),
        (IF_OS, _text(f"{system.sysname} {system.release}")),
    ]
    return _block(INTERFACE_DESCRIPTION, struct.pack("<HHI", interface.link_type, 0, interface.snaplen), options)


def _interface_statistics(statistics: InterfaceStatistics) -> bytes:
    counts = {
        ISB_IFRECV: statistics.received,
        ISB_IFDROP: statistics.dropped,
        ISB_FILTERACCEPT: statistics.accepted,
        ISB_OSDROP: statistics.os_dropped,
        ISB_USRDELIV: statistics.delivered,
    }
    options = [
        (ISB_STARTTIME, _time(statistics.start_ns)),
        (ISB_ENDTIME, _time(statistics.end_ns)),
        *((code, struct.pack("<Q", count)) for code, count in counts.items() if count is not None),
    ]
    body = struct.pack("<I", statistics.interface) + _time(statistics.end_ns)
    return _block(INTERFACE_STATISTICS, body, options)


def _time(time_ns: int) -> bytes:
    """Time stamps are two words, the high one first, in any byte order."""
    return struct.pack("<II", time_ns >> 32, time_ns & 0xFFFFFFFF)


def _text(text: str, longest: int = LONGEST_OPTION) -> bytes:
    """UTF-8 of at most `longest` bytes, cut between characters."""
    return text.encode(errors="replace")[:longest].decode(errors="ignore").encode()


def _block(block_type: int, body: bytes, options: Sequence[Option]) -> bytes:
    """A block with those of the options that have a value."""
    given = b"".join(_option(code, value) for code, value in options if value)
    content = body + (given + _option(0, b"") if given else b"")
    length = len(content) + 12
    return struct.pack("<II", block_type, length) + content + struct.pack("<I", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)
