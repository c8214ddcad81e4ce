"""What a child of the sandbox may use: memory, some CPU, and the channel to whoever asks.

Root becomes nobody, no file can be written, no process started, no program run, no socket opened.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import time
from contextlib import suppress
from functools import cache
from typing import Any

from ffpf_bpf.flow import seccomp

MEMORY_BYTES = 2 << 30  # more than it has when it begins
MOST_DESCRIPTORS = 16
NOBODY = 65_534
CHANNEL = 3

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 1, 4, 15, 38
CAPABILITY_VERSION_3 = 0x2008_0522
CLONE_NEWIPC, CLONE_NEWNET = 0x0800_0000, 0x4000_0000


def confine(channel: int, parent: int) -> None:
    """Give up all but memory, CPU and the channel, which becomes descriptor 3. For a child of `parent`."""
    os.setsid()  # a group of its own, to be killed as one
    move(channel, CHANNEL)
    os.closerange(CHANNEL + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _be_first_to_go()
    with open("/proc/self/statm", "rb") as statm:
        has_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, has_bytes + MEMORY_BYTES)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, MOST_DESCRIPTORS)
    _limit(resource.RLIMIT_CORE, 0)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _drop_capabilities()
    # The kernel resets both when the user changes.
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
    seccomp.restrict()


def limit_cpu(more_s: int) -> None:
    """End this process after so many seconds of CPU more."""
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + more_s)


def move(descriptor: int, to: int) -> None:
    """Give a descriptor another number."""
    if descriptor != to:
        os.dup2(descriptor, to)
        os.close(descriptor)


def set_name(name: str) -> None:
    """What `ps` calls this process, at most 15 characters."""
    prctl(PR_SET_NAME, ctypes.create_string_buffer(name.encode()))


def leave_namespaces() -> None:
    """Keep no network of the parent's alive, and have none; only root may."""
    with suppress(OSError):
        _checked(_libc().unshare(CLONE_NEWNET | CLONE_NEWIPC), "unshare")


def prctl(option: int, value: Any) -> None:
    """prctl(2), with one argument. Raises OSError."""
    value = ctypes.c_ulong(value) if isinstance(value, int) else value
    _checked(_libc().prctl(option, value, *[ctypes.c_ulong(0)] * 3), "prctl")


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (allowed, allowed))


def _be_first_to_go() -> None:
    """Where the host runs out of memory, we are what it should take."""
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:
            file.write(b"1000")
    except OSError:
        pass  # not ours to change: the limit on memory holds all the same


def _drop_capabilities() -> None:
    """Also of a user who has some without being root."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _checked(_libc().capset(header, none), "capset")


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
