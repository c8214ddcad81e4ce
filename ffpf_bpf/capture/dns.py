"""A DNS message -> words, in tcpdump's manner: `7+ A? example.com. (29)`, `7 1/0/0 A 192.0.2.1 (45)`.

dpkt unpacks the names; it gives up on a message with one record type it does not know (HTTPS, say), so the records are
walked here. Names come from strangers and go to terminals: only printable ASCII leaves this module.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import dpkt

from ffpf_bpf.capture.packet import printable

MOST_ANSWERS = 8
RESPONSE, AUTHORITATIVE, CUT_SHORT, RECURSION_DESIRED, RECURSION_AVAILABLE = 0x8000, 0x400, 0x200, 0x100, 0x80
OPCODES = {0: "", 1: " inv_q", 2: " stat", 4: " notify", 5: " update"}
ANSWER_CODES = {0: "", 1: " FormErr", 2: " ServFail", 3: " NXDomain", 4: " NotImp", 5: " Refused", 6: " YXDomain"}
TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 41: "OPT",
    43: "DS", 46: "RRSIG", 48: "DNSKEY", 64: "SVCB", 65: "HTTPS", 255: "ANY",
}  # fmt: skip
CUT_OFF = (dpkt.UnpackError, struct.error, ValueError)  # ValueError: a name that is not UTF-8, an address too short


def describe(data: bytes, length: int) -> str:
    """The message in words; `length` is its length on the wire, in bytes. Never raises."""
    if len(data) < 12:
        return "[|domain]"
    number, flags, questions, *counts = struct.unpack_from("!6H", data)
    opcode = OPCODES.get(flags >> 11 & 15, f" op{flags >> 11 & 15}")
    if not flags & RESPONSE:
        recursive = "+" if flags & RECURSION_DESIRED else ""
        more = "".join(f" [{count}{name}]" for count, name in zip(counts, ("a", "n", "au"), strict=True) if count)
        return f"{number}{recursive}{opcode}{more}{_joined(_asked(data, questions), '')} ({length})"
    code = ANSWER_CODES.get(flags & 15, f" Resp{flags & 15}")
    marks = ("*" if flags & AUTHORITATIVE else "") + ("" if flags & RECURSION_AVAILABLE else "-")
    marks += "|" if flags & CUT_SHORT else ""
    found = "/".join(map(str, counts))
    return f"{number}{opcode}{code}{marks} {found}{_joined(_answered(data, questions, counts[0]), ',')} ({length})"


def _joined(words: Iterator[str], separator: str) -> str:
    """The words as far as they go; the capture, or a malformed message, may end anywhere."""
    said: list[str] = []
    try:
        said.extend(words)
    except CUT_OFF:
        said.append(" [|domain]")
    return separator.join(said)


def _asked(data: bytes, questions: int) -> Iterator[str]:
    offset = 12
    for _ in range(min(questions, MOST_ANSWERS)):
        name, offset = _name(data, offset)
        kind, _ = struct.unpack_from("!HH", data, offset)
        offset += 4
        yield f" {TYPES.get(kind, f'Type{kind}')}? {name}"


def _answered(data: bytes, questions: int, answers: int) -> Iterator[str]:
    offset = 12
    for _ in range(questions):
        offset = _name(data, offset)[1] + 4
    for _ in range(min(answers, MOST_ANSWERS)):
        offset = _name(data, offset)[1]
        kind, size = struct.unpack_from("!HxxxxxxH", data, offset)
        offset += 10
        yield f" {TYPES.get(kind, f'Type{kind}')}{_value(kind, data, offset, size)}"
        offset += size
    if answers > MOST_ANSWERS:
        yield " ..."


def _value(kind: int, data: bytes, offset: int, size: int) -> str:
    """What a record of that type says; empty where tcpdump says nothing either."""
    value = data[offset : offset + size]
    if len(value) < size:
        raise dpkt.NeedData
    match TYPES.get(kind):
        case "A":
            return f" {socket.inet_ntop(socket.AF_INET, value)}"
        case "AAAA":
            return f" {socket.inet_ntop(socket.AF_INET6, value)}"
        case "NS" | "CNAME" | "PTR":
            return f" {_name(data, offset)[0]}"
        case "MX":
            return f" {_name(data, offset + 2)[0]} {int.from_bytes(value[:2])}"
        case "SRV":
            priority, weight, port = struct.unpack_from("!HHH", value)
            return f" {_name(data, offset + 6)[0]}:{port} {priority} {weight}"
        case "TXT":
            return f' "{printable(value[1 : 1 + value[0]].decode("latin-1"))}"' if value else ""
        case _:
            return ""


def _name(data: bytes, offset: int) -> tuple[str, int]:
    name, following = dpkt.dns.unpack_name(data, offset)
    return f"{printable(name)}.", following
