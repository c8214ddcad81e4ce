"""System calls that a child of the sandbox has no use for are refused by the kernel.

What matters: it starts no process, which would outlive it, runs no program, opens no socket, signals nobody but itself.
Everything else is left to what it may do as nobody, without capabilities. On machines that are not in `CALLS` there is
no filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from functools import cache

from ffpf_bpf.graph.predicate import ABS, JEQ, JMP, JSET, LD, RET, WORD

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
ALLOW, REFUSE = 0x7FFF_0000, 0x0005_0000  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO, with the number
CLONE_THREAD = 0x0001_0000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # in struct seccomp_data; the low word of an argument

# <asm/unistd.h> of each machine; AUDIT_ARCH_* of <linux/audit.h>.
ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
CALLS: dict[str, dict[str, int]] = {
    "x86_64": {
        "clone": 56, "clone3": 435, "tgkill": 234,
        "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "tkill": 200, "rt_sigqueueinfo": 129,
        "rt_tgsigqueueinfo": 297, "pidfd_send_signal": 424, "ptrace": 101, "process_vm_readv": 310,
        "process_vm_writev": 311, "socket": 41, "socketpair": 53, "connect": 42, "bpf": 321, "perf_event_open": 298,
        "io_uring_setup": 425, "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249, "unshare": 272,
        "setns": 308, "mount": 165,
    },
    "aarch64": {
        "clone": 220, "clone3": 435, "tgkill": 131,
        "execve": 221, "execveat": 281, "kill": 129, "tkill": 130, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "pidfd_send_signal": 424, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "socket": 198,
        "socketpair": 199, "connect": 203, "bpf": 280, "perf_event_open": 241, "io_uring_setup": 425,
        "userfaultfd": 282, "keyctl": 219, "add_key": 217, "request_key": 218, "unshare": 97, "setns": 268,
        "mount": 40,
    },
}  # fmt: skip
HIGHEST = 0x4000_0000  # from here on they are x32's


def restrict() -> None:
    """Refuse them, for this process and for good. Needs PR_SET_NO_NEW_PRIVS. Raises OSError."""
    machine = platform.machine()
    if machine not in CALLS:
        return
    content = _filter(ARCHITECTURES[machine], CALLS[machine], os.getpid())
    instructions = ctypes.create_string_buffer(content, len(content))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(content) // 8, ctypes.addressof(instructions)))
    if _libc().prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), program, *[ctypes.c_ulong(0)] * 2):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _filter(architecture: int, calls: dict[str, int], pid: int) -> bytes:
    """Classic BPF over struct seccomp_data."""
    refuse, unknown = (_instruction(RET, 0, 0, REFUSE | number) for number in (errno.EPERM, errno.ENOSYS))
    allow = _instruction(RET, 0, 0, ALLOW)
    argument = _load(FIRST_ARGUMENT)
    parts = [_load(ARCHITECTURE), _instruction(JMP | JEQ, 1, 0, architecture), refuse, _load(NUMBER)]
    parts += [_instruction(JMP | JSET, 0, 1, HIGHEST), refuse]
    # Threads are made by `clone`, to which libc turns where `clone3`, whose flags no filter can see, is unknown.
    parts += [_instruction(JMP | JEQ, 0, 1, calls["clone3"]), unknown]
    thread = [argument, _instruction(JMP | JSET, 1, 0, CLONE_THREAD), refuse, allow]
    itself = [argument, _instruction(JMP | JEQ, 1, 0, pid), refuse, allow]
    for name, checks in (("clone", thread), ("tgkill", itself)):
        parts += [_instruction(JMP | JEQ, 0, len(checks), calls[name]), *checks]
    for name in calls.keys() - {"clone", "clone3", "tgkill"}:
        parts += [_instruction(JMP | JEQ, 0, 1, calls[name]), refuse]
    return b"".join([*parts, allow])


def _load(offset: int) -> bytes:
    return _instruction(LD | WORD | ABS, 0, 0, offset)


def _instruction(code: int, jump_true: int, jump_false: int, k: int) -> bytes:
    return struct.pack("HBBI", code, jump_true, jump_false, k)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
