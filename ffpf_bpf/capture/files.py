"""pcap and pcapng files, of any byte order and resolution, plain or compressed -> the batches that a ring gives.

Promises: a file of this project is viewed where it lies, without a copy; any other is copied into slots of the same
layout. What is at the end of a file that was cut short, or is still being written, is left out, and told. Nothing in a
file makes it read beyond the file. Must not: look into packets.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import gzip
import io
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np

from ffpf_bpf.capture.delivery import Deliverer, Idle
from ffpf_bpf.capture.layout import BLOCK_TYPE, HEADER_BYTES, slot_dtype
from ffpf_bpf.capture.ring import MOST_RECORDS, Batch
from ffpf_bpf.errors import CaptureError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
PCAP_MAGIC = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}  # nanoseconds that a fraction of a second counts
PCAPNG_MAGIC, BYTE_ORDER = b"\x0a\x0d\x0d\x0a", 0x1A2B3C4D
INTERFACE, OLD_PACKET, SIMPLE_PACKET = 1, 2, 3
IF_NAME, IF_TSRESOL, IF_TSOFFSET = 2, 9, 14
ETHERNET = 1
LONGEST_PACKET = 1 << 18  # libpcap's MAXIMUM_SNAPLEN
LONGEST_BLOCK = 1 << 26
CHUNK_BYTES = 4 << 20
MOST_BATCH_BYTES = 8 << 20
MOST_GATHERED_BYTES = 192  # of a packet: longer ones are quicker copied one by one
SHORTEST_RUN = 16  # blocks of one size that are worth a view


@dataclass(slots=True)
class _Interface:
    name: str
    link_type: int
    snaplen: int
    unit: tuple[int, int] = (1000, 1)  # a unit of its time stamps is that many nanoseconds, as a fraction
    offset_ns: int = 0


@dataclass(slots=True)
class _Packets:
    """Packets on their way into a batch: where each lies in the chunk, and its fields."""

    places: list[tuple[int, int]] = field(default_factory=list)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)  # interface, time (2), captured, original
    longest: int = 0

    def add(self, interface: int, time_ns: int, at: int, captured: int, original: int) -> None:
        time_ns &= 0xFFFF_FFFF_FFFF_FFFF
        self.places.append((at, captured))
        self.rows.append((interface, time_ns >> 32, time_ns & 0xFFFF_FFFF, captured, original))
        self.longest = max(self.longest, captured)

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= MOST_RECORDS or len(self.rows) * self.longest >= MOST_BATCH_BYTES

    def batch(self, memory: memoryview) -> Batch:
        """Their batch, a copy."""
        records = _slots(len(self.rows), self.longest)
        columns = np.array(self.rows, np.uint32).reshape(-1, 5).T
        for name, column in zip(("interface", "time_high", "time_low", "captured", "original"), columns, strict=True):
            records[name] = column
        _copy_data(records, memory, self.places)
        self.__init__()  # type: ignore[misc]
        return Batch(records, 0, 0)


class CaptureFile(Deliverer):
    """A capture file, read from its beginning to its end: `ffpf_bpf.open(path)`; `-` is standard input.

    Raises CaptureError if it cannot be opened, is no capture file, or is damaged. Only Ethernet is understood.
    `interfaces` are the names that it has told so far; a record's `interface` is an index into it.
    """

    first_interface = 0
    _is_live = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.where = "standard input" if self.path == "-" else self.path
        self.packets_read = 0
        self.cut_short = False
        self._found: list[_Interface] = []
        self._first = 0  # of the section's interfaces
        self._order = "<"
        self._ahead: list[Batch] = []
        try:
            self._chunks = _Chunks(self.path)
        except OSError as failure:
            reason = os.strerror(failure.errno or 0).lower()
            raise CaptureError(f"cannot open: {reason}", where=self.where, help="name a pcap or pcapng file") from None
        try:
            self._reading = self._read()
            # The first packets, so that the interfaces in front of them are known.
            first = next(self._reading, None)
        except BaseException:
            self._chunks.close()
            raise
        if first is not None:
            self._ahead.append(first)

    @property
    def interfaces(self) -> tuple[str, ...]:
        return tuple(interface.name for interface in self._found)

    def _arriving(self, duration_s: float | None, idle: Idle | None) -> Iterator[Batch | None]:
        """Its packets, in the file's order, in batches that stay valid. A file does not wait, so neither limit means
        anything."""
        while (batch := self.next_batch()) is not None:
            yield batch

    def next_batch(self) -> Batch | None:
        """The packets that follow; None at the end."""
        batch = self._ahead.pop() if self._ahead else next(self._reading, None)
        if batch is not None:
            self.packets_read += len(batch)
        return batch

    def close(self) -> None:
        """Closing again does nothing."""
        self._reading.close()
        self._chunks.close()

    def _read(self) -> Generator[Batch, None, None]:
        start = self._chunks.ahead(28)
        magic = int.from_bytes(start[:4], "little")
        swapped = int.from_bytes(start[:4], "big")
        if start[:4] == PCAPNG_MAGIC:
            yield from self._pcapng()
        elif len(start) >= 24 and (magic in PCAP_MAGIC or swapped in PCAP_MAGIC):
            self._order = "<" if magic in PCAP_MAGIC else ">"
            yield from self._pcap(PCAP_MAGIC[magic if magic in PCAP_MAGIC else swapped], start)
        else:
            what = "it is empty" if not start else "no pcap or pcapng file"
            raise CaptureError(what, where=self.where, help="name a file that tcpdump, Wireshark or ffpf wrote")
        self.cut_short = self.cut_short or self._chunks.cut_short

    # pcap

    def _pcap(self, fraction_ns: int, header: bytes) -> Iterator[Batch]:
        snaplen, link_type = struct.unpack_from(f"{self._order}II", header, 16)
        self._found.append(_Interface("if0", link_type & 0xFFFF, snaplen))
        self._check_link_type(0)
        self._chunks.skip(24)
        for memory, base in self._chunks:
            at, end = 0, len(memory)
            while starts := _records(memory, at, self._order):
                captured = struct.unpack_from(f"{self._order}I", memory, starts[-1] + 8)[0]
                at = starts[-1] + 16 + captured
                yield _copied(memory, starts, self._order, fraction_ns)
            if at + 16 <= end:
                captured = struct.unpack_from(f"{self._order}I", memory, at + 8)[0]
                if captured > LONGEST_PACKET:
                    raise self._damaged(base + at, f"a packet of {captured:,} bytes")
            self._chunks.skip(at)
        self.cut_short = bool(self._chunks.left)

    # pcapng

    def _pcapng(self) -> Iterator[Batch]:
        packets = _Packets()
        for memory, base in self._chunks:
            at, end = 0, len(memory)
            while at + 12 <= end:
                try:
                    kind, length = self._block(memory, at, base)
                    if at + length > end:
                        break
                    self._check_end(memory, at, length, base)
                    run = self._run(memory, at, length) if kind == BLOCK_TYPE else None
                    if run is None:
                        self._take(packets, memory, at, kind, length, base)
                except CaptureError:
                    yield from self._flush(packets, memory)
                    raise
                if run is not None:
                    yield from self._flush(packets, memory)
                    yield Batch(run, 0, 0)
                elif packets.is_full:
                    yield packets.batch(memory)
                at += length if run is None else run.nbytes
            yield from self._flush(packets, memory)
            self._chunks.skip(at)
        self.cut_short = bool(self._chunks.left)

    def _block(self, memory: memoryview, at: int, base: int) -> tuple[int, int]:
        """Type and length of a block, of which 12 bytes are there."""
        if memory[at : at + 4] == PCAPNG_MAGIC:
            self._section(memory, at, base)
        kind, length = struct.unpack_from(f"{self._order}II", memory, at)
        if not 12 <= length <= LONGEST_BLOCK or length % 4:
            raise self._damaged(base + at, f"a block of {length:,} bytes")
        return kind, length

    def _check_end(self, memory: memoryview, at: int, length: int, base: int) -> None:
        if struct.unpack_from(f"{self._order}I", memory, at + length - 4)[0] != length:
            raise self._damaged(base + at, "a block whose two lengths differ")

    def _take(self, packets: _Packets, memory: memoryview, at: int, kind: int, length: int, base: int) -> None:
        if kind == INTERFACE:
            self._interface(memory[at : at + length], base + at)
        elif kind in (BLOCK_TYPE, OLD_PACKET, SIMPLE_PACKET):
            self._packet(packets, memory, at, kind, length, base)

    def _section(self, memory: memoryview, at: int, base: int) -> None:
        for order in "<>":
            if struct.unpack_from(f"{order}I", memory, at + 8)[0] == BYTE_ORDER:
                self._order, self._first = order, len(self._found)
                return
        raise self._damaged(base + at, "a section of an unknown byte order")

    def _interface(self, block: memoryview, at: int) -> None:
        if len(block) < 20:
            raise self._damaged(at, "an interface block that is too short")
        link_type, snaplen = struct.unpack_from(f"{self._order}HxxI", block, 8)
        found = _Interface(f"if{len(self._found)}", link_type, snaplen)
        for code, value in _options(block[16:-4], self._order):
            if code == IF_NAME:
                found.name = bytes(value).decode(errors="replace").rstrip("\0") or found.name
            elif code == IF_TSRESOL and len(value) == 1:
                found.unit = _unit(value[0])
            elif code == IF_TSOFFSET and len(value) == 8:
                found.offset_ns = struct.unpack(f"{self._order}q", value)[0] * 10**9
        self._found.append(found)

    def _packet(self, packets: _Packets, memory: memoryview, at: int, kind: int, length: int, base: int) -> None:
        number = high = low = 0
        if kind == SIMPLE_PACKET:
            header_bytes = 12
            (original,) = struct.unpack_from(f"{self._order}I", memory, at + 8)
            captured = min(original, length - 16)
        else:
            header_bytes = 28
            if length < 32:
                raise self._damaged(base + at, "a packet block that is too short")
            shape = "IIIII" if kind == BLOCK_TYPE else "HxxIIII"
            number, high, low, captured, original = struct.unpack_from(f"{self._order}{shape}", memory, at + 8)
        place = self._first + number
        if place >= len(self._found):
            raise self._damaged(base + at, f"a packet of interface {number}, which the file does not have")
        interface = self._found[place]
        if kind == SIMPLE_PACKET and interface.snaplen:
            captured = min(captured, interface.snaplen)
        if captured > length - header_bytes - 4 or captured > LONGEST_PACKET:
            raise self._damaged(base + at, f"a packet of {captured:,} bytes in a block of {length:,}")
        self._check_link_type(place)
        times, divisor = interface.unit
        time_ns = (high << 32 | low) * times // divisor + interface.offset_ns if kind != SIMPLE_PACKET else 0
        packets.add(place, time_ns, at + header_bytes, captured, original)

    def _run(self, memory: memoryview, at: int, length: int) -> np.ndarray[Any, Any] | None:
        """Blocks of one size from here on, viewed as they lie, if they are as this project writes them."""
        if self._first or self._order != "<" or length <= HEADER_BYTES + 4:
            return None
        count = min((len(memory) - at) // length, MOST_RECORDS)
        if count < SHORTEST_RUN or struct.unpack_from("<II", memory, at + length) != (BLOCK_TYPE, length):
            return None
        records = np.frombuffer(memory, slot_dtype(length), count, at)
        is_slot = records["block_type"] == BLOCK_TYPE
        for name in ("block_length", "trailer"):
            is_slot &= records[name] == length
        is_slot &= records["captured"] <= min(length - HEADER_BYTES - 4, LONGEST_PACKET)
        is_slot &= records["interface"] < len(self._found)
        run = int(count if is_slot.all() else np.argmin(is_slot))
        if run < SHORTEST_RUN:
            return None
        for place in np.unique(records["interface"][:run]).tolist():
            interface = self._found[place]
            if interface.unit != (1, 1) or interface.offset_ns:
                return None
            self._check_link_type(place)
        return records[:run]

    def _flush(self, packets: _Packets, memory: memoryview) -> Iterator[Batch]:
        if packets.rows:
            yield packets.batch(memory)

    def _check_link_type(self, place: int) -> None:
        interface = self._found[place]
        if interface.link_type != ETHERNET:
            raise CaptureError(
                f"interface `{interface.name}` has link type {interface.link_type}, not Ethernet",
                where=self.where,
                help="capture on an Ethernet interface, not on `any`; see `capinfos` for what the file has",
            )

    def _damaged(self, at: int, what: str) -> CaptureError:
        return CaptureError(
            f"the file is damaged at byte {at:,}: {what}",
            where=self.where,
            help="what came before is whole; `tshark -r IN -w OUT` may save more",
        )


class _Chunks:
    """A file's bytes, as a mapping where it can be mapped, else piece by piece: what the reader did not `skip` of a
    piece comes again, with more behind it."""

    def __init__(self, path: str) -> None:
        self.cut_short = False
        self.left = 0
        self._mapped: mmap.mmap | None = None
        self._skipped = 0
        self._pending = b""
        self._file: BinaryIO = sys.stdin.buffer if path == "-" else cast(BinaryIO, open(path, "rb"))  # noqa: SIM115
        self._stream: Any = self._file
        try:
            self._open(path)
        except BaseException:
            self.close()
            raise

    def ahead(self, count: int) -> bytes:
        """The first bytes, at most `count`."""
        if self._mapped is not None:
            return self._mapped[:count]
        while len(self._pending) < count and (piece := self._piece(count)):
            self._pending += piece
        return self._pending[:count]

    def skip(self, count: int) -> None:
        """The reader is done with so many bytes more."""
        self._skipped += count
        if self._mapped is None:
            self._pending = self._pending[count:]

    def __iter__(self) -> Iterator[tuple[memoryview, int]]:
        """A piece, and where in the file it is."""
        if self._mapped is not None:
            yield memoryview(self._mapped)[self._skipped :], self._skipped
            self.left = len(self._mapped) - self._skipped
            return
        while piece := self._piece(CHUNK_BYTES):
            self._pending += piece
            yield memoryview(self._pending), self._skipped
        if self._pending:
            yield memoryview(self._pending), self._skipped
        self.left = len(self._pending)

    def close(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def _open(self, path: str) -> None:
        magic = self._file.read(4) if path != "-" else b""
        if path != "-" and self._file.seekable():
            self._file.seek(0)
        elif path != "-":
            self._pending = magic
        if magic[:2] == GZIP:
            self._stream = gzip.GzipFile(fileobj=self._file)
        elif magic == ZSTD:
            import zstandard  # noqa: PLC0415 - only where something is compressed

            self._stream = zstandard.ZstdDecompressor().stream_reader(self._file, read_across_frames=True)
        elif magic and self._file.seekable():
            try:
                self._mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            except (ValueError, OSError):
                return  # read it, then

    def _piece(self, count: int) -> bytes:
        try:
            return bytes(self._stream.read(count))
        except (EOFError, zlib.error, gzip.BadGzipFile, OSError, io.UnsupportedOperation) as failure:
            if isinstance(failure, IsADirectoryError):
                raise
            self.cut_short = True
            return b""
        except Exception as failure:
            if type(failure).__name__ != "ZstdError":
                raise
            self.cut_short = True
            return b""


def _records(memory: memoryview, at: int, order: str) -> list[int]:
    """Where the pcap records of the next batch begin, those that are whole and not too long."""
    starts: list[int] = []
    captured_of, last, most, longest = struct.Struct(f"{order}I").unpack_from, len(memory) - 16, MOST_RECORDS, 0
    while at <= last and len(starts) < most:
        (captured,) = captured_of(memory, at + 8)
        if captured > longest:
            if captured > LONGEST_PACKET:
                break
            longest = captured
            most = min(MOST_RECORDS, MOST_BATCH_BYTES // longest + 1)
        if at + captured > last:
            break
        starts.append(at)
        at += 16 + captured
    return starts


def _copied(memory: memoryview, starts: list[int], order: str, fraction_ns: int) -> Batch:
    """The pcap records at these places as slots."""
    flat, at = np.frombuffer(memory, np.uint8), np.array(starts, np.int64)
    fields = flat[at[:, None] + np.arange(16)].view(f"{order}u4").astype(np.uint64).T
    times = fields[0] * np.uint64(10**9) + fields[1] * np.uint64(fraction_ns)
    longest = int(fields[2].max())
    records = _slots(len(starts), longest)
    for name, column in zip(("time_high", "captured", "original"), (times >> np.uint64(32), *fields[2:]), strict=True):
        records[name] = column
    records["time_low"] = times & np.uint64(0xFFFF_FFFF)
    if longest <= MOST_GATHERED_BYTES:
        columns = np.arange(longest)
        bytes_at = np.minimum(at[:, None] + 16 + columns, len(flat) - 1)
        records["data"][:, :longest] = np.where(columns < fields[2][:, None], flat[bytes_at], 0)
        return Batch(records, 0, 0)
    _copy_data(records, memory, zip((at + 16).tolist(), fields[2].tolist(), strict=True))
    return Batch(records, 0, 0)


def _copy_data(records: np.ndarray[Any, Any], memory: memoryview, places: Iterable[tuple[int, int]]) -> None:
    """The packets' bytes, which lie at these places, so many of each, into the slots."""
    content = records.view(np.uint8).data
    for number, (at, captured) in enumerate(places):
        to = number * records.itemsize + HEADER_BYTES
        content[to : to + captured] = memory[at : at + captured]


def _slots(count: int, longest: int) -> np.ndarray[Any, Any]:
    """Empty slots for packets of up to so many bytes."""
    slot_bytes = max(HEADER_BYTES + 8, (HEADER_BYTES + longest + 3 & ~3) + 4)
    records = np.zeros(count, slot_dtype(slot_bytes))
    records["block_type"] = BLOCK_TYPE
    records["block_length"] = records["trailer"] = slot_bytes
    return records


def _unit(resolution: int) -> tuple[int, int]:
    """if_tsresol as nanoseconds for a unit: 10^-n s, or 2^-n s if the highest bit is set."""
    if resolution & 0x80:
        return 10**9, 1 << (resolution & 0x7F)
    return (10 ** (9 - resolution), 1) if resolution <= 9 else (1, 10 ** (resolution - 9))


def _options(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at + 4 <= len(content):
        code, size = struct.unpack_from(f"{order}HH", content, at)
        if not code:
            return
        yield code, content[at + 4 : at + 4 + size]
        at += 4 + (size + 3 & ~3)
