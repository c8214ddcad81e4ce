"""Interfaces as they come and go, by events of rtnetlink: one thread for all namespaces that flows grab in.

A namespace that is known by name is let go of as soon as the name is: a socket in it would keep it, and its interfaces,
there. Names appear and vanish by mounts, of which the kernel tells too (poll on mountinfo, proc_pid_mountinfo(5)).
Nothing is polled by the clock.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel import namespaces
from ffpf_bpf.kernel.namespaces import Namespace
from ffpf_bpf.kernel.netlink import Link, LinkMonitor, Netlink

MOUNTS = "/proc/thread-self/mountinfo"


@dataclass(frozen=True, slots=True)
class Interfaces:
    """The interfaces of a namespace at one moment, by index; and which of those that were there were moved to another
    namespace."""

    namespace: int
    links: Mapping[int, Link]
    elsewhere: frozenset[int] = frozenset()


Known = Mapping[str, Interfaces | None]  # by the name of the namespace; None: there is none of that name


class Listener(Protocol):
    """Who wants to know."""

    def look(self, known: Known) -> None:
        """What there is now, after each change of the namespaces that it named, and once at first."""


class Watcher:
    """The thread, and who listens. It is there while somebody does."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a flow may be closed by the garbage collector, anywhere
        self._listeners: dict[Listener, dict[str, _Watched | None]] = {}
        self._wake = self._woken = -1
        self._thread: threading.Thread | None = None

    def add(self, listener: Listener, spaces: Mapping[str, Namespace | None]) -> None:
        """Tell a listener of changes in these namespaces, by name, which are copied; None where there is none of that
        name yet. Raises KernelError."""
        try:
            self._listen(listener, spaces)
        except OSError as error:
            raise KernelError(
                f"cannot watch interfaces: {os.strerror(error.errno or 0).lower()}",
                errno=error.errno or 0,
                help="raise the limit of open files (`ulimit -n`)",
            ) from None
        listener.look(self.known(listener))

    def _listen(self, listener: Listener, spaces: Mapping[str, Namespace | None]) -> None:
        with self._lock, ExitStack() as undo:
            watched: dict[str, _Watched | None] = {}
            for name, space in spaces.items():
                watched[name] = self._opened(space) if space is not None else None
                undo.callback(self._close_unless_used, watched[name])
            self._listeners[listener] = watched
            undo.callback(self._listeners.pop, listener)
            self._start()
            undo.pop_all()

    def remove(self, listener: Listener) -> None:
        """No more of that. A call of `look` may be on its way."""
        with self._lock:
            watched = self._listeners.pop(listener, {})
            for each in watched.values():
                self._close_unless_used(each)
            self._rouse()

    def known(self, listener: Listener) -> Known:
        """What there is now, in the namespaces that a listener named."""
        with self._lock:
            watched = self._listeners.get(listener, {})
            return {name: each.interfaces if each is not None else None for name, each in watched.items()}

    def forget(self) -> None:
        """In a child that inherited it: the thread is the parent's."""
        if self._thread is not None:
            self._stop()
        self._lock, self._listeners = threading.RLock(), {}

    def _opened(self, space: Namespace) -> _Watched:
        for each in self._each_watched():
            if each.inode == space.inode:
                return each
        return _Watched(space)

    def _each_watched(self) -> Iterator[_Watched]:
        listeners = list(self._listeners.values())
        every = (each for watched in listeners for each in watched.values() if each is not None)
        return iter(dict.fromkeys(every))

    def _close_unless_used(self, watched: _Watched | None) -> None:
        if watched is not None and watched not in self._each_watched():
            watched.close()

    def _start(self) -> None:
        if self._thread is not None:
            self._rouse()
            return
        with ExitStack() as undo:
            mounts = undo.enter_context(open(MOUNTS, "rb"))
            self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(self._stop)
            run = (self._woken, mounts)
            self._thread = threading.Thread(target=self._run, args=run, name="ffpf-watch", daemon=True)
            self._thread.start()
            undo.pop_all()

    def _rouse(self) -> None:
        if self._thread is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake, b"!")

    def _stop(self) -> None:
        self._thread = None
        os.close(self._woken)
        os.close(self._wake)

    def _run(self, woken: int, mounts: BinaryIO) -> None:
        with mounts:
            while True:
                poll = select.poll()
                poll.register(woken, select.POLLIN)
                poll.register(mounts, select.POLLPRI)
                with self._lock:
                    if not self._listeners:
                        self._stop()
                        return
                    watched = {each.fileno(): each for each in self._each_watched()}
                    for fd in watched:
                        poll.register(fd, select.POLLIN)
                for fd, _ in poll.poll():
                    if fd == woken:
                        with contextlib.suppress(BlockingIOError):
                            os.read(woken, 1 << 12)
                    elif fd == mounts.fileno():
                        self._look_at_names()
                    else:
                        self._read(watched[fd])

    def _read(self, watched: _Watched) -> None:
        """Tell of each change by itself, so that what is undone at once is seen too."""
        changes = watched.changes()
        while True:
            with self._lock:
                if watched not in self._each_watched() or next(changes, None) is None:
                    return
                listeners = [each for each, spaces in list(self._listeners.items()) if watched in spaces.values()]
            self._tell(listeners)

    def _look_at_names(self) -> None:
        """Some name may be of another namespace now, or of none."""
        names = namespaces.names()
        told = []
        with self._lock:
            for listener, watched in list(self._listeners.items()):
                for name, each in watched.items():
                    inode = each.inode if each is not None else None
                    if name and names.get(name) != inode:
                        watched[name] = None
                        self._close_unless_used(each)
                        with contextlib.suppress(KernelError, OSError), namespaces.find(name) as space:
                            watched[name] = self._opened(space)
                        told.append(listener)
        self._tell(list(dict.fromkeys(told)))

    def _tell(self, listeners: list[Listener]) -> None:
        for listener in listeners:
            known = self.known(listener)
            if not known:
                continue
            try:
                listener.look(known)
            except Exception:  # a defect, which must not keep the others from being told
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


class _Watched:
    """The interfaces of one namespace, and the socket that tells of changes."""

    def __init__(self, space: Namespace) -> None:
        self.inode = space.inode
        with ExitStack() as undo:
            self._space = undo.enter_context(space.copy())
            # First the changes, then what there is: so none is missed.
            self._monitor = undo.enter_context(closing(self._space.visit(LinkMonitor, LinkMonitor.close)))
            self.interfaces = Interfaces(self.inode, self._space.visit(_all_links))
            self._undo = undo.pop_all()

    def fileno(self) -> int:
        return self._monitor.fileno()

    def close(self) -> None:
        self._undo.close()

    def changes(self) -> Iterator[Link]:
        """Take in what has changed, one by one."""
        try:
            for link in self._monitor.changes():
                before = self.interfaces
                links = dict(before.links)
                elsewhere = before.elsewhere - {link.index}
                links.pop(link.index, None)
                if not link.is_gone:
                    links[link.index] = link
                elif link.is_elsewhere:
                    elsewhere |= {link.index}
                if links != before.links:
                    self.interfaces = Interfaces(self.inode, links, elsewhere)
                    yield link
        except OSError:  # too many at once: look at what there is
            self.interfaces = Interfaces(self.inode, self._space.visit(_all_links))
            yield Link(0, "", 0, False)


def _all_links() -> dict[int, Link]:
    with closing(Netlink()) as netlink:
        return {link.index: link for link in netlink.links()}


WATCHER = Watcher()
