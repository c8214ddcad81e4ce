"""tc's qdiscs and filters, and interfaces, by rtnetlink (rtnetlink(7); include/uapi/linux/pkt_sched.h, pkt_cls.h).

By sockets alone, since the guardian, which waits beside each filter, is this module and little more. Every error is an
OSError with the kernel's errno. Imports nothing of this project.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

PARENTS = {"tc-ingress": 0xFFFFFFF2, "tc-egress": 0xFFFFFFF3}
CLSACT_PARENT, CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
ETH_P_ALL = 3
NEWQDISC, DELQDISC, GETQDISC, NEWTFILTER, DELTFILTER, GETTFILTER = 36, 37, 38, 44, 45, 46
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP, EXCL, CREATE = 1, 4, 0x300, 0x200, 0x400
KIND, OPTIONS = 1, 2  # TCA_
BPF_FD, BPF_NAME, BPF_FLAGS, BPF_ID = 6, 7, 8, 11  # TCA_BPF_
DIRECT_ACTION = 1
NEWLINK, DELLINK, GETLINK = 16, 17, 18
GROUP_LINK = 1  # RTMGRP_LINK
IFNAME, MTU, NEW_NAMESPACE = 3, 4, 45  # IFLA_
IFF_UP = 1
IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg
HEADER, TCMSG, ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxxxiIII"), struct.Struct("=HH")
ANSWER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Filter:
    """A BPF filter of an interface: `parent` is a direction, `priority` and `handle` its place, `program` the id of
    what it runs."""

    interface: int
    parent: int
    priority: int
    handle: int
    name: str
    program: int


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of an interface; `kind` is its ARPHRD_ number, `is_gone` that it is there no more,
    `is_elsewhere` that it was moved to another namespace."""

    index: int
    name: str
    mtu: int
    is_up: bool
    kind: int = 0
    is_gone: bool = False
    is_elsewhere: bool = False


class Netlink:
    """A socket to the kernel, in the network namespace of the thread that opened it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._lock = threading.Lock()
        self._sequence = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def add_clsact(self, interface: int) -> bool:
        """Give an interface the qdisc that filters of both directions hang on. False if there is one there already."""
        message = _tcmsg(interface, CLSACT_HANDLE, CLSACT_PARENT, 0) + _attribute(KIND, b"clsact\0")
        try:
            list(self._ask(NEWQDISC, ACK | CREATE | EXCL, message))
        except FileExistsError:
            return False
        return True

    def delete_clsact(self, interface: int) -> None:
        message = _tcmsg(interface, CLSACT_HANDLE, CLSACT_PARENT, 0) + _attribute(KIND, b"clsact\0")
        list(self._ask(DELQDISC, ACK, message))

    def ingress_qdisc(self, interface: int) -> str:
        """The kind of the qdisc for filters that an interface has: `clsact`, `ingress`, or "" for none."""
        for answer in self._ask(GETQDISC, DUMP, _tcmsg(interface, 0, 0, 0)):
            _, index, handle, parent, _ = _read_tcmsg(answer)
            if index == interface and handle == CLSACT_HANDLE and parent == CLSACT_PARENT:
                return _text(_attributes(answer[TCMSG.size :]).get(KIND, b""))
        return ""

    def add_filter(self, found: Filter, program: int) -> None:
        """Hang a program, by its descriptor, on an interface as `found` says; its result is the verdict."""
        options = (
            _attribute(BPF_FD, struct.pack("=I", program))
            + _attribute(BPF_NAME, found.name.encode() + b"\0")
            + _attribute(BPF_FLAGS, struct.pack("=I", DIRECT_ACTION))
        )
        list(self._ask(NEWTFILTER, ACK | CREATE | EXCL, _of(found) + _attribute(OPTIONS | 1 << 15, options)))

    def delete_filter(self, found: Filter) -> None:
        list(self._ask(DELTFILTER, ACK, _of(found)))

    def filters(self, interface: int, parent: int) -> Iterator[Filter]:
        """All filters of an interface in one direction; those that are no BPF have no name."""
        for answer in self._ask(GETTFILTER, DUMP, _tcmsg(interface, 0, parent, 0)):
            _, index, handle, found_parent, info = _read_tcmsg(answer)
            if index != interface or not handle:
                continue
            attributes = _attributes(answer[TCMSG.size :])
            options = _attributes(attributes.get(OPTIONS, b"")) if _text(attributes.get(KIND, b"")) == "bpf" else {}
            program = struct.unpack("=I", options.get(BPF_ID, bytes(4)))[0]
            yield Filter(index, found_parent, info >> 16, handle, _text(options.get(BPF_NAME, b"")), program)

    def links(self) -> Iterator[Link]:
        """All interfaces."""
        return (_link(NEWLINK, answer) for answer in self._ask(GETLINK, DUMP, IFINFO.pack(0, 0, 0, 0, 0)))

    def _ask(self, kind: int, flags: int, message: bytes) -> Iterator[bytes]:
        """What the kernel answers, message by message, without their headers. Raises OSError."""
        with self._lock:
            self._sequence += 1
            header = HEADER.pack(HEADER.size + len(message), kind, REQUEST | flags, self._sequence, 0)
            self._socket.send(header + message)
            while True:
                answers = self._socket.recv(ANSWER_BYTES)
                while answers:
                    length, found, _, sequence, _ = HEADER.unpack_from(answers)
                    body, answers = answers[HEADER.size : length], answers[(length + 3) & ~3 :]
                    if sequence != self._sequence:
                        continue
                    if found == ERROR:
                        number = -struct.unpack_from("=i", body)[0]
                        if number:
                            raise OSError(number, os.strerror(number))
                        return
                    if found == DONE:
                        return
                    yield body


class LinkMonitor:
    """A socket that hears of changes of interfaces, in the network namespace of the thread that opened it."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, GROUP_LINK))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def changes(self) -> Iterator[Link]:
        """What has changed and was not told yet. Raises OSError (ENOBUFS) if some of it was lost."""
        while True:
            try:
                messages = self._socket.recv(ANSWER_BYTES)
            except BlockingIOError:
                return
            while messages:
                length, kind, _, _, _ = HEADER.unpack_from(messages)
                if kind in (NEWLINK, DELLINK):
                    yield _link(kind, messages[HEADER.size : length])
                messages = messages[(length + 3) & ~3 :]


def remove(netlink: Netlink, interface: int, parent: int, name: str) -> bool:
    """Remove the filter of that name; then the qdisc, if it was made for it, or for one before, and nothing hangs on
    it. False if there was no such filter."""
    there = [found for found in netlink.filters(interface, parent) if found.name == name]
    for found in there:
        netlink.delete_filter(found)
    is_used = any(list(netlink.filters(interface, other)) for other in PARENTS.values())
    if made_qdisc(name) and not is_used and netlink.ingress_qdisc(interface) == "clsact":
        netlink.delete_clsact(interface)
    return bool(there)


def made_qdisc(name: str) -> bool:
    """Whether a filter's name says that its qdisc goes with it."""
    return name.endswith(":qdisc")


def _link(message_kind: int, message: bytes) -> Link:
    _, kind, index, flags, _ = IFINFO.unpack_from(message)
    attributes = _attributes(message[IFINFO.size :])
    name = os.fsdecode(attributes.get(IFNAME, b"").rstrip(b"\0"))
    mtu = struct.unpack("=I", attributes.get(MTU, bytes(4)))[0]
    return Link(index, name, mtu, bool(flags & IFF_UP), kind, message_kind == DELLINK, NEW_NAMESPACE in attributes)


def _of(found: Filter) -> bytes:
    info = found.priority << 16 | socket.htons(ETH_P_ALL)
    return _tcmsg(found.interface, found.handle, found.parent, info) + _attribute(KIND, b"bpf\0")


def _tcmsg(interface: int, handle: int, parent: int, info: int) -> bytes:
    return TCMSG.pack(0, interface, handle, parent, info)


def _read_tcmsg(answer: bytes) -> tuple[int, int, int, int, int]:
    return TCMSG.unpack_from(answer)


def _attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if length < ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
