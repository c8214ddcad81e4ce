"""A process beside what the kernel would keep when its owner dies, which removes it then.

    python guardian.py OWNER filter INTERFACE PARENT NAME     a filter of tc, by its name
    python guardian.py OWNER component INTERFACE PROGRAM      a component of libxdp's dispatcher, by its program's id

It is in the network namespace of the interface. A component it makes itself, of a program that is loaded. Then it says
that it is there by one byte on its standard input, a socket, or why not by an errno, and waits until the other end is
closed or the process OWNER is gone. Imports nothing of this project but `netlink` or `libxdp`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # what is meant for its owner


def main(owner: int, kind: str, interface: int, *words: str) -> None:
    """Wait for the end of the owner, and remove what is to go with it."""
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        remove = _filter(interface, *words) if kind == "filter" else _component(interface, *words)
    except OSError as error:
        os.write(0, str(error.errno).encode())
        return
    poll = select.poll()
    poll.register(0, select.POLLIN)
    with suppress(OSError):  # a kernel without pidfds (5.3), or an owner that is gone: then the socket is closed
        poll.register(os.pidfd_open(owner), select.POLLIN)
    with suppress(OSError):
        os.write(0, b"!")
    poll.poll()
    with suppress(OSError):  # the interface is gone, and what it had with it
        remove()


def _filter(interface: int, parent: str, name: str) -> Callable[[], object]:
    import netlink  # type: ignore[import-not-found] # noqa: PLC0415 - as a program, this is no part of a package

    kernel = netlink.Netlink()
    return lambda: netlink.remove(kernel, interface, int(parent), name)


def _component(interface: int, program: str) -> Callable[[], object]:
    import libxdp  # type: ignore[import-not-found] # noqa: PLC0415 - likewise

    component = libxdp.Component(interface, int(program))
    component.attach()
    detach: Callable[[], object] = component.detach
    return detach


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
