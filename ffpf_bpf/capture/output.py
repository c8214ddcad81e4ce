"""Bytes to a file, a pipe or standard output, in units that are there whole or not at all.

Promises: units are only ever appended, so a file is valid up to its last whole unit at any moment, SIGKILL included;
what a failed write left of a unit in a file is cut off again. Must not: know what the units are.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
from typing import Protocol

from ffpf_bpf.errors import CaptureError

STANDARD_OUTPUT = 1
FILE_MODE = 0o644  # less the umask
REMEDIES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EFBIG: "raise the limit (`ulimit -f`) or write elsewhere",
}


class Output(Protocol):
    """Where a writer's blocks go. Counts what is there whole; once `broken`, takes nothing more."""

    @property
    def where(self) -> str: ...
    @property
    def packets_written(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...
    @property
    def broken(self) -> bool: ...

    def append(self, memory: memoryview, unit_bytes: int, packets_per_unit: int) -> None:
        """Whole units. Raises CaptureError if they, or earlier ones, cannot be written."""

    def close(self) -> None:
        """Raises CaptureError if something could not be written. Again: does nothing."""


class PlainOutput:
    """The file at `path`, which is overwritten, or standard output for `-`.

    Raises CaptureError if it cannot be opened or written. `packets_written` and `bytes_written` count whole units. Once
    `broken`, nothing more is written, and a file ends with a whole unit.
    """

    def __init__(self, path: str) -> None:
        self.packets_written = 0
        self.bytes_written = 0
        self.broken = False
        self.where = "standard output" if path == "-" else path
        self.descriptor = _open_standard_output() if path == "-" else _open_file(path)
        try:
            self._start = _position(self.descriptor)
        except BaseException:
            self.close()
            raise

    @property
    def is_closed(self) -> bool:
        return self.descriptor < 0

    def append(self, memory: memoryview, unit_bytes: int, packets_per_unit: int) -> None:
        """Returns when all is written; waits for a slow reader."""
        if self.is_closed or self.broken:
            raise nothing_more(self.where)
        sent = 0
        try:
            while sent < memory.nbytes:
                sent += _write_some(self.descriptor, memory[sent:])
        except OSError as failure:
            self.broken = True
            self._settle(self._sent(sent), unit_bytes, packets_per_unit)
            raise self._explain(failure) from failure
        except BaseException:
            # A signal's exception may come between the system call and the addition. A file still knows how much was
            # written; a pipe then ends within a block, for all we know, so nothing may follow.
            self.broken = self._start is None
            self._settle(self._sent(sent), unit_bytes, packets_per_unit)
            raise
        self._settle(sent, unit_bytes, packets_per_unit)

    def close(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            try:
                os.close(descriptor)
            except OSError as failure:  # a network file system tells late
                raise CaptureError(f"cannot close: {_reason(failure)}", where=self.where) from failure

    def _settle(self, sent: int, unit_bytes: int, packets_per_unit: int) -> None:
        """Counts the whole units of `sent` bytes; a file loses the rest."""
        units, rest = divmod(sent, unit_bytes)
        self.bytes_written += units * unit_bytes
        self.packets_written += units * packets_per_unit
        if rest and self._start is not None:
            end = self._start + self.bytes_written
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.ftruncate(self.descriptor, end)
                os.lseek(self.descriptor, end, os.SEEK_SET)

    def _sent(self, counted: int) -> int:
        """How much of the batch that failed was written: a file knows, of a pipe we have what was counted."""
        if self._start is None:
            return counted
        return os.lseek(self.descriptor, 0, os.SEEK_CUR) - self._start - self.bytes_written

    def _explain(self, failure: OSError) -> CaptureError:
        if failure.errno == errno.EPIPE:
            reader = "standard output" if self.where == "standard output" else "the pipe"
            return CaptureError(
                f"the reader of {reader} is gone",
                where="" if self.where == "standard output" else self.where,
                help=f"keep it running until the capture ends; {self.packets_written} packets were written",
            )
        kept = f"what was written is whole: {self.packets_written} packets"
        remedy = REMEDIES.get(failure.errno or 0)
        return CaptureError(
            f"cannot write: {_reason(failure)}", where=self.where, help=f"{remedy}; {kept}" if remedy else kept
        )


def nothing_more(where: str) -> CaptureError:
    return CaptureError("nothing more can be written", where=where, help="open another file")


def _open_file(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    except ValueError as failure:
        raise CaptureError("a file name has no NUL byte", where=repr(path), help="name another file") from failure
    except OSError as failure:
        raise CaptureError(f"cannot open: {_reason(failure)}", where=path, help=_opening_help(path, failure)) from None
    return _no_terminal(descriptor, path)


def _open_standard_output() -> int:
    try:
        descriptor = fcntl.fcntl(STANDARD_OUTPUT, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as failure:
        raise CaptureError(
            f"cannot write: {_reason(failure)}", where="standard output", help="redirect it to a file or a pipe"
        ) from None
    return _no_terminal(descriptor, "standard output")


def _no_terminal(descriptor: int, where: str) -> int:
    if os.isatty(descriptor):
        os.close(descriptor)
        raise CaptureError(
            "packets are not written to a terminal", where=where, help="redirect: `> capture.pcapng` or `| tshark -r -`"
        )
    return descriptor


def _opening_help(path: str, failure: OSError) -> str:
    parent = os.path.dirname(path) or "."
    match failure.errno:
        case errno.ENOENT if path and not os.path.isdir(parent):
            return f"make the directory first: `mkdir -p {parent}`"
        case errno.EISDIR:
            return f"name a file in it: `{os.path.join(path, 'capture.pcapng')}`"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "write to a directory of your own, or to standard output with `-`"
        case _:
            return "name another file"


def _position(descriptor: int) -> int | None:
    """Where a regular file will be written; None for what is no regular file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    appending = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
    return os.lseek(descriptor, 0, os.SEEK_END if appending else os.SEEK_CUR)


def _write_some(descriptor: int, memory: memoryview) -> int:
    """One write; waits where a non-blocking pipe would not. (Python itself tries again after EINTR, PEP 475.)"""
    while True:
        try:
            return os.write(descriptor, memory)
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


def _reason(failure: OSError) -> str:
    return os.strerror(failure.errno or 0).lower()
