"""Compression of what is written, in a thread of its own: whoever writes only copies what he has.

Promises: a file is a sequence of zstd frames (RFC 8878), each of whole blocks: it ends with a whole frame even where
the disk was full, and can be read up to its last whole frame at any moment. What is queued is bounded: then the
writer waits, as for a slow disk.
"""

from __future__ import annotations

import threading
import time

from ffpf_bpf.capture.output import Output, nothing_more
from ffpf_bpf.errors import CaptureError, ExpressionError

FRAME_BYTES = 1 << 20  # before compression; what comes slower is written after LONGEST_WAIT_S
LONGEST_WAIT_S = 0.5
MOST_QUEUED_BYTES = 32 << 20
LEVEL = 1
SUFFIXES = {".zst": "zstd", ".zstd": "zstd"}
UNKNOWN = (".gz", ".xz", ".bz2", ".lz4")


def compression_of(path: str, wanted: str = "") -> str:
    """The compression for a file of that name: "zstd" or "". Raises ExpressionError for what is not known."""
    if wanted and wanted != "zstd":
        raise ExpressionError(f"`{wanted}` is no compression", where="--compress", help="write `--compress zstd`")
    if not wanted and path.endswith(UNKNOWN):
        raise ExpressionError("files are compressed by zstd only", where=path, help="name it `.pcapng.zst`")
    return wanted or next((kind for suffix, kind in SUFFIXES.items() if path.endswith(suffix)), "")


def compressed(output: Output, kind: str) -> Output:
    """What is appended to it comes compressed into `output`, which it closes."""
    return CompressedOutput(output) if compression_of("", kind) else output


class CompressedOutput:
    """`packets_written` and `bytes_written` count whole frames: what is in the file, compressed."""

    def __init__(self, output: Output) -> None:
        import zstandard  # noqa: PLC0415 - only where something is compressed

        self.where = output.where
        self._output = output
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self._queue: list[bytes] = []
        self._queued_bytes = self._queued_packets = self._packets = 0
        self._first_s = 0.0
        self._failure: BaseException | None = None
        self._closing = self._is_told = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="ffpf-zstd", daemon=True)
        self._thread.start()

    @property
    def packets_written(self) -> int:
        return self._packets

    @property
    def bytes_written(self) -> int:
        return self._output.bytes_written

    @property
    def broken(self) -> bool:
        return self._failure is not None

    def append(self, memory: memoryview, unit_bytes: int, packets_per_unit: int) -> None:
        """Waits while too much is queued. Raises what an earlier unit met."""
        with self._changed:
            while self._queued_bytes > MOST_QUEUED_BYTES and self._failure is None:
                self._changed.wait()
            if self._failure is not None or self._closing:
                raise self._told()
            if not self._queue:
                self._first_s = time.monotonic()
            self._queue.append(bytes(memory))
            self._queued_bytes += memory.nbytes
            self._queued_packets += memory.nbytes // unit_bytes * packets_per_unit
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        try:
            if self._failure is not None and not self._is_told:
                raise self._told()
        finally:
            self._output.close()

    def _told(self) -> CaptureError:
        """What went wrong, with what it left."""
        failure = None if self._is_told else self._failure
        self._is_told = True
        if not isinstance(failure, CaptureError):
            return nothing_more(self.where)
        whole = f"what was written is whole: {self._packets} packets"
        remedy = failure.help.split("; ")[0]
        return CaptureError(failure.message, where=failure.where, help=f"{remedy}; {whole}")

    def _run(self) -> None:
        try:
            while (taken := self._take()) is not None:
                content, packets = taken
                frame = self._compressor.compress(content)
                self._output.append(memoryview(frame), len(frame), 0)
                with self._changed:
                    self._packets += packets
        except BaseException as failure:  # the writer tells it
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _take(self) -> tuple[bytes, int] | None:
        """What is queued, when it is enough or old enough; None at the end."""
        with self._changed:
            while not self._closing and self._queued_bytes < FRAME_BYTES:
                left_s = self._first_s + LONGEST_WAIT_S - time.monotonic() if self._queue else None
                if left_s is not None and left_s <= 0:
                    break
                self._changed.wait(left_s)
            if not self._queue:
                return None
            content, packets = b"".join(self._queue), self._queued_packets
            self._queue.clear()
            self._queued_bytes = self._queued_packets = 0
            self._changed.notify_all()
            return content, packets
