"""libxdp, as far as a program joins and leaves the dispatcher by which it runs several programs at one interface.

    python libxdp.py is_attached|detach INTERFACE PROGRAM     asks, or leaves; the exit code is 0, or an errno

The library replaces the dispatcher as a whole, in one step, and pins what it is made of below /sys/fs/bpf/xdp, so that
every user of the library finds it (xdp-tools, lib/libxdp/protocol.org). Every error is an OSError. Imports nothing of
this project, and runs in processes of its own, since the library keeps descriptors, and the mode it found a kernel in.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Any

LIBRARY = "libxdp.so.1"
ANY_MODE = 0  # XDP_MODE_UNSPEC: the one in which the dispatcher is attached


class Component:
    """A loaded program of type ext, and the interface whose dispatcher it is for."""

    def __init__(self, interface: int, program_id: int) -> None:
        """Raises OSError if the library is missing (ELIBACC), or the program is."""
        try:
            self._library: Any = ctypes.CDLL(LIBRARY, use_errno=True)
        except OSError as error:
            raise OSError(errno.ELIBACC, str(error)) from None
        self._library.libxdp_set_print(None)
        self._library.xdp_program__from_id.restype = ctypes.c_void_p
        self._library.libxdp_get_error.argtypes = (ctypes.c_void_p,)
        self._library.libxdp_get_error.restype = ctypes.c_long
        program = self._library.xdp_program__from_id(program_id)
        _check(self._library.libxdp_get_error(program))
        self._program = ctypes.c_void_p(program)
        self._interface = interface

    def attach(self) -> None:
        """Join the dispatcher: with the priority and the chain action that the library gives those that ask for none,
        50 and XDP_PASS."""
        _check(self._library.xdp_program__attach(self._program, self._interface, ANY_MODE, 0))

    def is_attached(self) -> None:
        """Raises OSError (ENOENT) if the interface's dispatcher does not have it."""
        _check(0 if self._library.xdp_program__is_attached(self._program, self._interface) else -errno.ENOENT)

    def detach(self) -> None:
        """Leave it; the dispatcher goes with its last component."""
        _check(self._library.xdp_program__detach(self._program, self._interface, ANY_MODE, 0))


def _check(result: int) -> None:
    if result:
        raise OSError(-result, os.strerror(-result))


def main(action: str, interface: int, program_id: int) -> int:
    try:
        getattr(Component(interface, program_id), action)()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
