"""Why a driver takes no program at XDP, in the kernel's own words.

The kernel has them in the answer to netlink alone, not to bpf(2), by which links are made. So what was refused is asked
for once more by netlink (rtnetlink(7), IFLA_XDP).
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from ffpf_bpf.kernel.netlink import ATTRIBUTE, HEADER

SETLINK, REQUEST, ACK = 19, 1, 4
IFLA_XDP, XDP_FD, XDP_FLAGS = 43 | 1 << 15, 1, 3
IF_NOT_THERE = 1  # XDP_FLAGS_UPDATE_IF_NOEXIST
SOL_NETLINK, CAP_ACK, EXT_ACK = 270, 10, 11
HAS_WORDS, WORDS = 0x200, 1  # NLM_F_ACK_TLVS, NLMSGERR_ATTR_MSG
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
ANSWER_BYTES = 1 << 13
NO_PROGRAM = -1


def explained(number: int, program: int, index: int, flags: int) -> str:
    """An errno, and what the kernel has to say of it: the program, by descriptor, was refused at an interface."""
    reason = os.strerror(number).lower()
    try:
        words = _asked(program, index, flags | IF_NOT_THERE)
        if words is None:  # not refused any more: what is attached by netlink would stay
            _asked(NO_PROGRAM, index, flags)
    except OSError:
        return reason
    return f"{reason}: {words}" if words else reason


def _asked(program: int, index: int, flags: int) -> str | None:
    """What the kernel says of having that program at an interface; None if it has it now."""
    attributes = ATTRIBUTE.pack(8, XDP_FD) + struct.pack("=i", program) + ATTRIBUTE.pack(8, XDP_FLAGS)
    attributes += struct.pack("=I", flags)
    body = LINK.pack(0, 0, index, 0, 0) + ATTRIBUTE.pack(ATTRIBUTE.size + len(attributes), IFLA_XDP) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        for option in (CAP_ACK, EXT_ACK):
            kernel.setsockopt(SOL_NETLINK, option, 1)
        kernel.send(HEADER.pack(HEADER.size + len(body), SETLINK, REQUEST | ACK, 1, 0) + body)
        answer = kernel.recv(ANSWER_BYTES)
    has_words = HEADER.unpack_from(answer)[2] & HAS_WORDS
    number = -struct.unpack_from("=i", answer, HEADER.size)[0]
    if not number:
        return None
    at = 2 * HEADER.size + 4
    while has_words and at + ATTRIBUTE.size <= len(answer):
        length, kind = ATTRIBUTE.unpack_from(answer, at)
        if kind == WORDS:
            return answer[at + ATTRIBUTE.size : at + length].rstrip(b"\0").decode(errors="replace")
        at += max(ATTRIBUTE.size, length + 3 & ~3)
    if number == errno.EPERM:
        raise OSError(number, os.strerror(number))
    return ""
