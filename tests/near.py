"""Packets near what filters and policies ask for: so that many of them pass, and many of them only just do not.

A library of frames of every kind; fields set to what the packet classes name and to their neighbours; bytes set to what
the filters compare them with; and packets steered through a filter, branch by branch, to where it accepts.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ffpf_bpf.authorise.policy import PacketClass
from ffpf_bpf.graph.predicate import Instruction, Program
from tests import wire
from tests.carriers import BEYOND, CARRIERS, ORDINARY
from tests.corpus.packets import packets
from tests.vectors import Packets, packed

WIDTH = 192
SHORTEST = 14
SEED = 4
Places = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Library:
    """Frames, and where their headers are: `l3`, `l4`, and the type there."""

    rows: Packets
    kind: Places
    l3: Places
    l4: Places
    tagged: Places


@cache
def library() -> Library:
    cases = [case.frame for case in (*CARRIERS, *BEYOND, *ORDINARY)]
    frames = [frame[:WIDTH] for frame in (*packets(SEED), *(cases * 4)) if len(frame) <= 4 * WIDTH]
    seen = [wire.dissect(frame) for frame in frames]
    return Library(
        packed(frames, WIDTH),
        np.array([each.ethertype or 0 for each in seen]),
        np.array([each.l3 for each in seen]),
        np.array([min(each.l4 or each.l3, WIDTH - 8) for each in seen]),
        np.array([len(each.tags) for each in seen]),
    )


@dataclass
class Hints:
    """What is worth writing: values of fields as bytes, and bytes at places."""

    ipv4: list[bytes]
    ipv6: list[bytes]
    ports: list[bytes]
    protocols: list[bytes]
    vlans: list[bytes]
    places: list[tuple[int, bytes]]


def hints(programs: Iterable[Program], classes: Iterable[PacketClass]) -> Hints:
    """What the classes name and the filters compare with, and neighbours of it."""
    found = Hints([], [], [], [bytes((each,)) for each in (6, 6, 17, 17, 1, 58, 132, 44, 47)], [], [])
    ports: set[int] = set()
    vlans: set[int] = {0}
    for each in classes:
        for net in (*each.src, *each.dst, *each.net):
            first, last, most = int(net.network_address), int(net.broadcast_address), (1 << net.max_prefixlen) - 1
            values = (
                first,
                last,
                max(0, first - 1),
                min(most, last + 1),
                first ^ (1 << (net.max_prefixlen - net.prefixlen)) & most,
            )
            (found.ipv4 if net.version == 4 else found.ipv6).extend(
                value.to_bytes(net.max_prefixlen // 8, "big") for value in values
            )
        for spans in (each.port, each.src_port, each.dst_port, each.tcp_port, each.udp_port, each.sctp_port):
            for low, high in spans:
                ports |= {low, high, low - 1, high + 1}
        found.protocols += [bytes((protocol,)) for protocol in each.protocols]
        for low, high in each.vlan:
            vlans |= {low, high, low - 1, high + 1}
    for program in programs:
        _of_program(program, found)
    ports |= {25, 53, 80, 4789, 6081}
    found.ports = [port.to_bytes(2, "big") for port in ports if 0 <= port <= 0xFFFF]
    found.vlans = [vlan.to_bytes(2, "big") for vlan in vlans if 0 <= vlan <= 0xFFF]
    found.ipv4 = found.ipv4 or [bytes((10, 0, 0, 1))]
    found.ipv6 = found.ipv6 or [bytes.fromhex("20010db8") + bytes(11) + b"\x01"]
    return found


def _of_program(program: Program, found: Hints) -> None:
    """Constants of jumps, at the place of the load before them."""
    place, size, by_x = -1, 1, False
    for i in program.instructions:
        if i.kind == 0 and i.mode in (0x20, 0x40):
            place, size, by_x = i.k, i.size, i.mode == 0x40
        elif i.kind == 5 and i.operation and not i.by_x and 0 <= place < WIDTH - 24:
            at = place + (20 if by_x else 0)
            for value in (i.k, i.k, i.k + 1, i.k - 1):
                if 0 <= value < 1 << 8 * size:
                    found.places.append((at, value.to_bytes(size, "big")))


def near(chance: random.Random, programs: Sequence[Program], classes: Sequence[PacketClass], count: int) -> Packets:
    """`count` packets of 14 to 192 bytes."""
    known, wanted = library(), hints(programs, classes)
    numbers = np.random.default_rng(chance.randrange(1 << 32))
    rows = numbers.integers(0, len(known.rows), count)
    made = Packets(known.rows.data[rows], known.rows.lengths[rows])
    _set_fields(numbers, made, known, rows, wanted)
    _set_places(numbers, made, wanted)
    steered = [_steered(chance, programs, made[row]) for row in range(min(count // 4, 160))]
    if steered and programs:
        # Each of them as it is, and many times a little changed.
        copies = packed(steered, WIDTH)
        times = numbers.integers(0, len(steered), count // 2)
        times[: len(steered)] = np.arange(len(steered))
        made.data[: count // 2], made.lengths[: count // 2] = copies.data[times], copies.lengths[times]
        later = Packets(made.data[len(steered) : count // 2], made.lengths[len(steered) : count // 2])
        _change(numbers, later, wanted)
    _change(numbers, Packets(made.data[count // 2 :], made.lengths[count // 2 :]), wanted)
    return made


def changed(
    chance: random.Random, rows: Packets, programs: Sequence[Program], classes: Sequence[PacketClass]
) -> Packets:
    """The same packets with other bytes in many places, lengths as they were."""
    numbers = np.random.default_rng(chance.randrange(1 << 32))
    made = Packets(rows.data.copy(), rows.lengths.copy())
    noise = numbers.integers(0, 256, made.data.shape, dtype=np.uint8)
    noisy = numbers.random(made.data.shape) < numbers.random((len(made), 1)) ** 2
    made.data[noisy] = noise[noisy]
    _set_places(numbers, made, hints(programs, classes), share=0.3)
    return made


def _set_fields(numbers: np.random.Generator, made: Packets, known: Library, rows: Places, wanted: Hints) -> None:
    kind, l3, l4, tagged = known.kind[rows], known.l3[rows], known.l4[rows], known.tagged[rows]
    ipv4, ipv6, arp = kind == 0x0800, kind == 0x86DD, (kind == 0x0806) | (kind == 0x8035)
    _write(numbers, made, ipv4, l3 + 12, wanted.ipv4)
    _write(numbers, made, ipv4, l3 + 16, wanted.ipv4)
    _write(numbers, made, arp, l3 + 14, wanted.ipv4)
    _write(numbers, made, arp, l3 + 24, wanted.ipv4)
    _write(numbers, made, ipv6, l3 + 8, wanted.ipv6)
    _write(numbers, made, ipv6, l3 + 24, wanted.ipv6)
    _write(numbers, made, ipv4, l3 + 9, wanted.protocols, 0.3)
    _write(numbers, made, ipv6, l3 + 6, wanted.protocols, 0.3)
    _write(numbers, made, ipv4 | ipv6, l4, wanted.ports)
    _write(numbers, made, ipv4 | ipv6, l4 + 2, wanted.ports)
    _write(numbers, made, tagged > 0, np.full(len(rows), 14), wanted.vlans)
    _write(numbers, made, tagged > 1, np.full(len(rows), 18), wanted.vlans)
    _write(numbers, made, ipv4, l3, [bytes((0x40 | words,)) for words in range(16)], 0.05)
    _write(numbers, made, ipv4, l3 + 6, [b"\x00\x00", b"\x20\x00", b"\x00\x01", b"\x1f\xff"], 0.1)


def _write(
    numbers: np.random.Generator, made: Packets, here: Any, at: Places, values: Sequence[bytes], share: float = 0.6
) -> None:
    """One of `values` at each packet's own place, in a share of the packets `here`."""
    if not values:
        return
    chosen = np.flatnonzero(here & (numbers.random(len(made)) < share))
    table = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
    picked = table[numbers.integers(0, len(values), len(chosen))]
    for number in range(table.shape[1]):
        made.data[chosen, np.minimum(at[chosen] + number, WIDTH - 1)] = picked[:, number]


def _set_places(numbers: np.random.Generator, made: Packets, wanted: Hints, share: float = 0.05) -> None:
    for at, value in wanted.places[:200]:
        chosen = np.flatnonzero(numbers.random(len(made)) < share)
        made.data[chosen, at : at + len(value)] = np.frombuffer(value, np.uint8)


def _change(numbers: np.random.Generator, made: Packets, wanted: Hints) -> None:
    """Of some packets a byte or two, a bit, or the end."""
    count = len(made)
    for share in (0.4, 0.2):
        chosen = np.flatnonzero(numbers.random(count) < share)
        places = np.minimum(numbers.integers(0, 64, len(chosen)), made.lengths[chosen].astype(np.int64) - 1)
        made.data[chosen, places] ^= (1 << numbers.integers(0, 8, len(chosen))).astype(np.uint8)
    chosen = np.flatnonzero(numbers.random(count) < 0.15)
    cut = numbers.integers(SHORTEST, 80, len(chosen)).astype(np.uint64)
    made.lengths[chosen] = np.minimum(made.lengths[chosen], cut)
    _set_places(numbers, made, wanted, share=0.01)


@dataclass
class _Field:
    """What a register holds: `(bytes >> shift) & mask` at a place; place -1 is the packet's length."""

    place: int
    size: int
    shift: int = 0
    mask: int = 0xFFFFFFFF


def _steered(chance: random.Random, programs: Sequence[Program], frame: bytes) -> bytes:
    for program in chance.sample(list(programs), len(programs)):
        frame = steer(chance, program, frame)
    return frame


def steer(chance: random.Random, program: Program, frame: bytes) -> bytes:
    """The frame, changed as it goes through the program so that it may be accepted, mostly."""
    data = bytearray(frame)
    accepting = _accepting(program)
    at = a = x = 0
    register: _Field | None = None
    cells: dict[int, int] = {}

    def load(place: int, size: int) -> int:
        if place + size > WIDTH:
            raise IndexError
        data.extend(bytes(max(0, place + size - len(data))))
        return int.from_bytes(data[place : place + size], "big")

    try:
        while True:
            i = program.instructions[at]
            at += 1
            match i.kind, i.mode:
                case 0, 0x20 | 0x40:
                    place = i.k + (x if i.mode == 0x40 else 0)
                    a, register = load(place, i.size), _Field(place, i.size)
                case 0, 0x80:
                    a, register = len(data), _Field(-1, 4)
                case 0, mode:
                    a, register = i.k if mode == 0 else cells.get(i.k, 0), None
                case 1, mode:
                    if mode == 0xA0:
                        x = (load(i.k, 1) & 15) << 2
                    else:
                        x = {0x00: i.k, 0x80: len(data)}.get(mode, cells.get(i.k, 0))
                case 2 | 3, _:
                    cells[i.k] = a if i.kind == 2 else x
                case 4, _:
                    a, register = _calculated(i, a, x, register)
                case 5, _:
                    at += i.k if i.operation == 0 else _branch(chance, i, at, a, x, register, data, accepting)
                case 6, _:
                    return bytes(data)
                case _:
                    a, x = (x, x) if i.code & 0xF8 == 0x80 else (a, a)
    except (IndexError, ZeroDivisionError):
        return bytes(data)


def _accepting(program: Program) -> list[bool]:
    """From which instructions the program may come to accept."""
    found = [False] * len(program.instructions)
    for at in range(len(found) - 1, -1, -1):
        i = program.instructions[at]
        if i.kind == 6:
            found[at] = bool(i.k) or i.code & 0x18 == 0x10
        elif i.kind == 5:
            ways = (i.k, i.k) if i.operation == 0 else (i.jump_true, i.jump_false)
            found[at] = any(found[at + 1 + way] for way in ways)
        else:
            found[at] = found[at + 1]
    return found


def _calculated(i: Instruction, a: int, x: int, register: _Field | None) -> tuple[int, _Field | None]:
    operand = x if i.by_x else i.k
    known = register if register and not i.by_x and register.place >= 0 else None
    match i.operation:
        case 0x50:
            return a & operand, known and _Field(known.place, known.size, known.shift, known.mask & operand)
        case 0x70:
            return a >> min(operand, 32), known and _Field(
                known.place, known.size, known.shift + operand, known.mask >> operand
            )
        case operation:
            calculate = {
                0x00: lambda: a + operand, 0x10: lambda: a - operand, 0x20: lambda: a * operand,
                0x30: lambda: a // operand, 0x40: lambda: a | operand, 0x60: lambda: a << min(operand, 32),
                0x80: lambda: -a, 0x90: lambda: a % operand, 0xA0: lambda: a ^ operand,
            }  # fmt: skip
            return calculate[operation]() & 0xFFFFFFFF, None


def _branch(
    chance: random.Random,
    i: Instruction,
    at: int,
    a: int,
    x: int,
    register: _Field | None,
    data: bytearray,
    accepting: Sequence[bool],
) -> int:
    """How far to jump, after the packet was changed to go there."""
    k = x if i.by_x else i.k
    holds = {0x10: a == k, 0x20: a > k, 0x30: a >= k, 0x40: bool(a & k)}[i.operation]
    yes, no = accepting[at + i.jump_true], accepting[at + i.jump_false]
    wanted = yes if yes != no else holds if chance.random() < 0.6 else not holds
    if wanted == holds or register is None or chance.random() < 0.03:
        return i.jump_true if holds else i.jump_false
    bit = 1 << chance.randrange(8)
    values = {
        (0x10, True): k, (0x10, False): k ^ bit, (0x20, True): k + 1, (0x20, False): k, (0x30, True): k,
        (0x30, False): k - 1, (0x40, True): a | k, (0x40, False): a & ~k,
    }  # fmt: skip
    _put(data, register, values[i.operation, wanted] & 0xFFFFFFFF)
    return i.jump_true if wanted else i.jump_false


def _put(data: bytearray, register: _Field, value: int) -> None:
    if register.place < 0:
        length = min(max(value, SHORTEST), WIDTH)
        data[:] = bytes(data[:length]).ljust(length, b"\0")
        return
    here = slice(register.place, register.place + register.size)
    kept = int.from_bytes(data[here], "big") & ~(register.mask << register.shift)
    whole = kept | (value & register.mask) << register.shift
    data[here] = (whole & (1 << 8 * register.size) - 1).to_bytes(register.size, "big")
