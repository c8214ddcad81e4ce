"""`scan`: packets that contain one of many byte strings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.automaton import Automaton, build
from ffpf_bpf.graph.effect import Fate, Primitive, Table
from ffpf_bpf.graph.expression import Node, Role, check_text

MOST_PATTERNS = 1_000
LONGEST_PATTERN = 255
FLAGS = "if"
FIXED_BYTES = 40  # of struct memory, bpf_src/scan.c
USAGE = '`(scan,"attack|GET /admin")`; `\\xHH` is any byte, `\\|` a bar and `\\\\` a backslash'
# Each byte of a pattern as it stands in the text.
WRITTEN = [chr(byte) if 0x20 <= byte <= 0x7E else f"\\x{byte:02x}" for byte in range(256)]
WRITTEN[ord("\\")], WRITTEN[ord("|")] = r"\\", r"\|"
Patterns = str | bytes | Sequence[str | bytes]


@dataclass(frozen=True, slots=True)
class Scan(Node):
    r"""Packets whose payload contains one of the `patterns`, byte for byte. The result is the number of the pattern
    whose match ends first, 1 for the first pattern; of several that end at one byte, that of the first in the list.

    Text `(scan,"attack|GET /admin")`, Python `scan(["attack", b"\x90\x90"], ignore_case=True, whole_frame=True)`. In
    the text `|` stands between patterns, `\xHH` for the byte HH, `\|` for a bar and `\\` for a backslash; a quoted
    expression makes one backslash of two, so that `"\x90"` is that byte, and `"\\\\"` a backslash. `(?i)` in front
    ignores the case of ASCII letters, `(?f)` scans the whole frame, `(?if)` both. Python takes such a text as well; in
    a list each character stands for itself. Text is UTF-8.

    The payload is what is behind the header of TCP, UDP, SCTP or ICMP, up to the frame's end, padding included; behind
    the IP header for other protocols and later fragments; behind Ethernet header and VLAN tags for what is not IP. A
    match that lies in several packets is not found.

    All patterns are looked for at once, by the automaton of Aho and Corasick (CACM 18(6), 1975): the time for a packet
    grows with its length, not with the number of patterns. A pattern that contains another one, and goes on behind it,
    is never the result. The table takes 64 KiB to 32 MiB that all CPUs share: for a thousand patterns of usual length
    about 1 MiB.

    Its memory on each CPU is 40 bytes, of which the first 8 count the packets without a match that were not scanned to
    their end (bytes beyond 65,280, of frames that a network card or the stack has joined), then 8 bytes for each
    pattern: the packets it was the result of.

    Takes Linux 6.4. Raises ExpressionError unless there are 1 to 1,000 patterns, all different, of 1 to 255 bytes, with
    at most 65,536 different beginnings.
    """

    class_name: ClassVar[str] = "scan"
    role: ClassVar[Role] = Role.DECIDES
    stops_as: ClassVar[Fate | None] = Fate.FILTERED
    least_mbuf_bytes: ClassVar[int] = FIXED_BYTES + 8
    counts: ClassVar[tuple[str, ...]] = ("unscanned",)
    example: ClassVar[str] = '(device,eth0) -> (bpf,"tcp port 80") -> (scan,"(?i)cmd.exe|/etc/passwd") -> (grab)'

    patterns: Patterns  # a tuple of bytes, once it is checked
    ignore_case: bool = False
    whole_frame: bool = False
    automaton: Automaton = field(init=False, repr=False, compare=False)
    shown: tuple[str, ...] = field(init=False, repr=False, compare=False)  # each pattern as it stands in the text

    def __post_init__(self) -> None:
        flags = ""
        if isinstance(self.patterns, str):
            flags, patterns = _read(self.patterns, self.where)
        else:
            patterns = tuple(_listed(self.patterns, self.where))
        for name, flag in (("ignore_case", "i"), ("whole_frame", "f")):
            if not isinstance(getattr(self, name), bool):
                raise ExpressionError(
                    f"`{name}` is {getattr(self, name)!r}, neither True nor False",
                    where=self.where,
                    help=f"write `{name}=True`",
                )
            object.__setattr__(self, name, getattr(self, name) or flag in flags)
        _check(patterns, self.ignore_case, self.where)
        object.__setattr__(self, "patterns", patterns)
        object.__setattr__(self, "shown", tuple(map(_written, patterns)))
        Node.__post_init__(self)
        if self.mbuf_bytes < self.default_mbuf_bytes:
            raise ExpressionError(
                f"{self.mbuf_bytes} bytes of memory do not suit {len(patterns):,} patterns",
                where=self.where,
                help=f"at least {self.default_mbuf_bytes}",
            )
        try:
            object.__setattr__(self, "automaton", build(patterns, self.ignore_case))
        except ExpressionError as error:
            raise ExpressionError(error.message, where=self.where, help=error.help) from None

    @classmethod
    def parse(cls, expression: str, *, name: str, mbuf_bytes: int) -> Self:
        return cls(expression, name=name, mbuf_bytes=mbuf_bytes)

    @property
    def default_mbuf_bytes(self) -> int:
        return FIXED_BYTES + 8 * len(self.patterns)

    @property
    def expression(self) -> str:
        flags = "i" * self.ignore_case + "f" * self.whole_frame
        patterns = "|".join(self.shown)
        if flags:
            return f"(?{flags}){patterns}"
        return rf"\x28{patterns[1:]}" if patterns.startswith("(?") else patterns

    @property
    def arguments(self) -> tuple[str, ...]:
        patterns = [repr(pattern.decode() if _is_plain(pattern) else pattern) for pattern in self._patterns]
        flags = [f"{name}=True" for name in ("ignore_case", "whole_frame") if getattr(self, name)]
        return f"[{', '.join(patterns)}]", *flags

    @property
    def results(self) -> range:
        return range(1, len(self._patterns) + 1)

    @property
    def effect(self) -> Primitive:
        made = self.automaton
        walked = (made.shift, int(made.wide), made.accepting, made.reach, made.row)
        arguments = (*walked, len(self._patterns), int(self.whole_frame))
        table = Table(made.table_bytes, made.table)
        return Primitive("scan", "ffpf_scan", arguments, table, selects=True, calls=("bpf_iter_num",))

    def report(self, memories: Sequence[memoryview]) -> dict[str, Any]:
        """`hits`: for each pattern that was the result of a packet, as it is written, how many packets."""
        words = [np.frombuffer(memory, np.uint64, len(self.shown), FIXED_BYTES) for memory in memories]
        totals = zip(self.shown, np.stack(words).sum(axis=0, dtype=np.uint64).tolist(), strict=True)
        hits = {shown: total for shown, total in totals if total}
        return {**Node.report(self, memories), "hits": hits}

    @property
    def _patterns(self) -> tuple[bytes, ...]:
        assert isinstance(self.patterns, tuple)
        return self.patterns


def _read(text: str, where: str) -> tuple[str, tuple[bytes, ...]]:
    """Flags and patterns of a text."""
    check_text(text, where)
    flags = ""
    if text.startswith("(?"):
        flags, closing, text = text[2:].partition(")")
        if not closing or not flags or set(flags) - set(FLAGS):
            raise ExpressionError(
                f"`(?{flags}{closing}` are no flags",
                where=where,
                help="`(?i)` ignores case, `(?f)` scans the whole frame; a pattern may begin with `\\x28?`",
            )
    if not text:
        return flags, ()
    patterns = [bytearray()]
    for part in re.findall(r"\\x[0-9A-Fa-f]{2}|\\.?|[^\\|]+|\|", text, re.DOTALL):
        if part == "|":
            patterns.append(bytearray())
        elif part[0] != "\\":
            patterns[-1] += part.encode()
        elif part[1:] in ("\\", "|"):
            patterns[-1] += part[1:].encode()
        elif len(part) == 4:
            patterns[-1].append(int(part[2:], 16))
        else:
            raise ExpressionError(f"`{part}` is no escape", where=where, help=USAGE)
    return flags, tuple(map(bytes, patterns))


def _listed(patterns: object, where: str) -> Iterator[bytes]:
    """The patterns of a Python value."""
    if isinstance(patterns, bytes):
        patterns = [patterns]
    if not isinstance(patterns, Sequence):
        raise ExpressionError(f"{patterns!r} is no list of patterns", where=where, help='as in `scan(["attack"])`')
    for pattern in patterns:
        if isinstance(pattern, str):
            check_text(pattern, where)
            yield pattern.encode()
        elif isinstance(pattern, bytes):
            yield pattern
        else:
            raise ExpressionError(f"{pattern!r} is no pattern", where=where, help="patterns are text or bytes")


def _check(patterns: tuple[bytes, ...], ignore_case: bool, where: str) -> None:
    if not patterns:
        raise ExpressionError("no pattern", where=where, help=USAGE)
    if len(patterns) > MOST_PATTERNS:
        raise ExpressionError(
            f"{len(patterns):,} patterns", where=where, help=f"at most {MOST_PATTERNS:,}; use several nodes with `|`"
        )
    numbers: dict[bytes, int] = {}
    for number, pattern in enumerate(patterns, 1):
        if not pattern:
            raise ExpressionError(f"pattern {number} is empty", where=where, help="write `\\|` for a bar in a pattern")
        if len(pattern) > LONGEST_PATTERN:
            raise ExpressionError(
                f"pattern {number} has {len(pattern):,} bytes", where=where, help=f"at most {LONGEST_PATTERN}"
            )
        before = numbers.setdefault(pattern.lower() if ignore_case else pattern, number)
        if before != number:
            raise ExpressionError(
                f"patterns {before} and {number} are the same: `{_written(pattern)}`",
                where=where,
                help="leave one out" + ("; case tells nothing apart here" if ignore_case else ""),
            )


def _is_plain(pattern: bytes) -> bool:
    return all(0x20 <= byte <= 0x7E for byte in pattern)


def _written(pattern: bytes) -> str:
    """A pattern as it stands in the text."""
    return "".join(map(WRITTEN.__getitem__, pattern))
