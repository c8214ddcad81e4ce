"""A process beside a filter of tc, which removes it when its owner has died: the kernel would keep it.

    python guardian.py OWNER INTERFACE PARENT NAME

It is in the network namespace of the interface, says that it is there by one byte on its standard input, a socket, and
waits until the other end is closed or the process OWNER is gone. Imports nothing of this project but `netlink`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # what is meant for its owner


def main(owner: int, interface: int, parent: int, name: str) -> None:
    """Wait for the end of the owner, and remove the filter of that name."""
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import netlink  # type: ignore[import-not-found] # noqa: PLC0415 - as a program, this is no part of a package

    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    kernel = netlink.Netlink()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    with suppress(OSError):  # a kernel without pidfds (5.3), or an owner that is gone: then the socket is closed
        poll.register(os.pidfd_open(owner), select.POLLIN)
    with suppress(OSError):
        os.write(0, b"!")
    poll.poll()
    with suppress(OSError):  # the interface is gone, and its filters with it
        netlink.remove(kernel, interface, parent, name)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
