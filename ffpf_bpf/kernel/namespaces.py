"""Network namespaces: by name, as `ip netns` has them, or the one that the calling thread is in.

What is to be done in another namespace is done by a thread of its own, which enters it and ends: the caller is never
elsewhere, whatever is raised, and neither are other threads. Nothing but that thread enters, so `/sys` and mounts stay.
"""

from __future__ import annotations

import ctypes
import difflib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel.maps import Descriptor

DIRECTORY = Path("/run/netns")
OWN = "/proc/thread-self/ns/net"
CLONE_NEWNET = 0x40000000
Result = TypeVar("Result")


class Namespace(Descriptor):
    """A network namespace that is held open: `name` is "" for one that was not named. `inode` tells it from others."""

    def __init__(self, name: str, descriptor: int) -> None:
        super().__init__(descriptor)
        self.name = name
        self.inode = os.fstat(descriptor).st_ino

    def visit(self, act: Callable[[], Result], undo: Callable[[Result], object] | None = None) -> Result:
        """Do something in it. Raises KernelError without the right to enter, and what `act` raises. If the caller is
        interrupted meanwhile, what was done by then is undone, and the interrupt goes on."""
        return act() if self.inode == own() else _Visit(self, act, undo).result()

    def copy(self) -> Namespace:
        """The same, held once more."""
        return Namespace(self.name, os.dup(self.fileno))

    def enter(self) -> None:
        """Move this thread into it, for good."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(self.fileno, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise KernelError(
                f"cannot enter the network namespace: {os.strerror(number).lower()}",
                errno=number,
                where=self.name,
                help="that takes CAP_SYS_ADMIN: run as root, or start the program inside (`ip netns exec`)",
            )


def own() -> int:
    """The inode of the namespace that this thread is in."""
    return os.stat(OWN).st_ino


def find(name: str, of: Namespace | None = None) -> Namespace:
    """The namespace of that name, or for "" the one `of` whoever asks, by default this thread's own. Raises KernelError
    if there is none, and for a second name of one: policies are about names, and another name must not get past
    them."""
    try:
        if not name:
            return of.copy() if of is not None else Namespace("", os.open(OWN, os.O_RDONLY | os.O_CLOEXEC))
        namespace = Namespace(name, os.open(DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise _missing(name, error) from None
    try:
        known = names()
        if name not in known:
            raise _missing(name, FileNotFoundError())
        others = [other for other, inode in known.items() if inode == namespace.inode and other != name]
        if namespace.inode == (of.inode if of is not None else own()):
            raise KernelError(
                f"network namespace `{name}` is the one that this process is in",
                errno=errno.EEXIST,
                help="leave out the name: an interface has one name only, which policies are about",
            )
        if others:
            raise KernelError(
                f"network namespace `{name}` is also called {_listed(others)}",
                errno=errno.EEXIST,
                help="a namespace has one name only, which policies are about: `umount` and remove the others in "
                f"{DIRECTORY}",
            )
    except BaseException:
        namespace.close()
        raise
    return namespace


@contextmanager
def opened(
    wanted: Iterable[str], *, may_miss: bool = False, of: Namespace | None = None
) -> Iterator[dict[str, Namespace | None]]:
    """The namespaces of these names, open for a while, for one that is at home in `of`. With `may_miss`, None for one
    that is not there."""
    with ExitStack() as stack:
        spaces: dict[str, Namespace | None] = {}
        for name in wanted:
            try:
                spaces[name] = stack.enter_context(find(name, of))
            except KernelError as error:
                if not may_miss or error.errno != errno.ENOENT:
                    raise
                spaces[name] = None
        yield spaces


def names() -> dict[str, int]:
    """The names that there are, with the inode of each. Files that are no namespaces (yet) are left out."""
    device = os.stat(OWN).st_dev
    found = {}
    try:
        entries = sorted(os.scandir(DIRECTORY), key=lambda entry: entry.name)
    except OSError:
        return {}
    for entry in entries:
        try:
            status = entry.stat()
        except OSError:
            continue
        if status.st_dev == device:
            found[entry.name] = status.st_ino
    return found


def _missing(name: str, error: OSError) -> KernelError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        message = f"cannot open a network namespace: {os.strerror(error.errno).lower()}"
        return KernelError(message, errno=error.errno, help="raise the limit of open files (`ulimit -n`)")
    known = list(names())
    if error.errno in (errno.EACCES, errno.EPERM):
        return KernelError(
            f"cannot open network namespace `{name}`: {os.strerror(error.errno).lower()}",
            errno=error.errno,
            help=f"that takes the right to read {DIRECTORY / name}, and CAP_SYS_ADMIN to enter: run as root",
        )
    near = difflib.get_close_matches(name, known, n=1)
    there = f"there are {_listed(known)}" if known else "there is none; `ip netns add NAME` makes one"
    help = f"did you mean `{near[0]}`?" if near else there
    return KernelError(f"no network namespace `{name}`", errno=errno.ENOENT, help=help)


def _listed(known: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in known)


class _Visit(Generic[Result]):
    """A thread inside a namespace, which its caller waits for, whatever interrupts it."""

    def __init__(
        self, namespace: Namespace, act: Callable[[], Result], undo: Callable[[Result], object] | None
    ) -> None:
        self._namespace, self._act, self._undo = namespace, act, undo
        self._done: list[Result] = []
        self._raised: list[BaseException] = []
        self._gate = threading.Lock()
        self._begun = self._given_up = False
        self._over = threading.Event()

    def result(self) -> Result:
        interrupt: BaseException | None = None
        try:
            threading.Thread(target=self._run, name="ffpf-netns").start()
        except BaseException as error:
            with self._gate:
                self._given_up = not self._begun
            if self._given_up:
                raise
            interrupt = error
        while not self._over.is_set():
            try:
                self._over.wait()
            except BaseException as error:
                interrupt = interrupt or error
        if interrupt is not None:
            if self._done and self._undo is not None:
                self._undo(self._done[0])
            raise interrupt
        if self._raised:
            raise self._raised[0]
        return self._done[0]

    def _run(self) -> None:
        with self._gate:
            if self._given_up:
                return
            self._begun = True
        try:
            self._namespace.enter()
            self._done.append(self._act())
        except BaseException as error:
            self._raised.append(error)
        finally:
            self._over.set()
