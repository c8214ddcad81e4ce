"""Maps as context managers, and as memory of this process."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import weakref
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel import calls

PAGE = mmap.PAGESIZE
# What stands for the memory of a map that is closed: made beforehand, for closing must not want memory.
CLOSED_MEMORY = memoryview(b"")
CLOSED_MEMORY.release()

_open: weakref.WeakSet[Descriptor] = weakref.WeakSet()


class Descriptor:
    """A kernel object held by a file descriptor: gone when closed, or when this process dies."""

    start = 0  # of a map's value, where its use begins

    def __init__(self, descriptor: int) -> None:
        self.fileno = descriptor
        _open.add(self)

    def close(self) -> None:
        if self.fileno >= 0:
            descriptor, self.fileno = self.fileno, -1
            _open.discard(self)
            calls.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MappedArray(Descriptor):
    """An array map of `entries` values, shared with this process as `memory` (zeroed at first). One value may
    begin `start` bytes behind the beginning of its pages."""

    def __init__(self, name: str, value_bytes: int, entries: int = 1, *, start: int = 0) -> None:
        self.start = start
        super().__init__(calls.create_map(calls.MAP_ARRAY, name, 4, start + value_bytes, entries, calls.F_MMAPABLE))
        try:
            self.memory = memoryview(_map_memory(self.fileno, _to_pages((start + value_bytes) * entries)))[start:]
        except BaseException:
            super().close()
            raise

    def close(self) -> None:
        # Whoever still holds a view of the memory keeps the pages, and only those, until it lets go.
        memory, self.memory = self.memory, CLOSED_MEMORY
        with contextlib.suppress(BufferError):
            memory.release()
        super().close()


class Array(Descriptor):
    """An array map of one value, the kernel's own."""

    def __init__(self, name: str, value_bytes: int) -> None:
        super().__init__(calls.create_map(calls.MAP_ARRAY, name, 4, value_bytes, 1))


class ProgArray(Descriptor):
    """A prog array: what its owner's programs may follow."""

    def __init__(self, name: str, entries: int) -> None:
        super().__init__(calls.create_map(calls.MAP_PROG_ARRAY, name, 4, 4, entries))

    def set(self, index: int, program: Descriptor) -> None:
        calls.set_program(self.fileno, index, program.fileno)

    def clear(self, index: int) -> None:
        calls.clear_program(self.fileno, index)


def _map_memory(descriptor: int, size: int, **how: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, size, **how)
    except OSError as error:
        number = error.errno or errno.EIO
        raise KernelError(
            f"cannot map {size:,} bytes: {os.strerror(number).lower()}",
            errno=number,
            help="use smaller buffers (`--buffer`), or raise the memory limit of this process",
        ) from None


class Bell(Descriptor):
    """A BPF ring buffer that nothing is written into: a program that outputs to it makes the descriptor readable, and
    wakes who polls it, until it is `quiet` again."""

    def __init__(self, name: str, size_bytes: int = PAGE) -> None:
        super().__init__(calls.create_map(calls.MAP_RINGBUF, name, 0, 0, size_bytes))
        try:
            with ExitStack() as stack:
                # Two pages of 64-bit positions (kernel/bpf/ringbuf.c): how far it was read, and how far written.
                pages = [(mmap.PROT_READ | mmap.PROT_WRITE, 0), (mmap.PROT_READ, PAGE)]
                opened = [_map_memory(self.fileno, PAGE, prot=prot, offset=offset) for prot, offset in pages]
                self._read, self._written = (stack.enter_context(memoryview(page).cast("Q")) for page in opened)
                self._views = stack.pop_all()
        except BaseException:
            super().close()
            raise

    def quiet(self) -> None:
        """All that was rung so far has been heard."""
        self._read[0] = self._written[0]

    def close(self) -> None:
        self._views.close()
        super().close()


def _to_pages(size: int) -> int:
    return (size + PAGE - 1) // PAGE * PAGE


def forget_all() -> None:
    """In a child of a fork: close the inherited descriptors, which takes nothing from the parent."""
    for descriptor in list(_open):
        with contextlib.suppress(OSError):
            os.close(descriptor.fileno)
        descriptor.fileno = -1
    _open.clear()
