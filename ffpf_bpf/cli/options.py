"""The options that commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from ffpf_bpf.authorise import Subject, subject_of
from ffpf_bpf.authorise.subject import NO_UID
from ffpf_bpf.capture.rotation import MEGABYTE, Rotation
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.flow import Flow

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

Policies = Annotated[
    Path | None,
    typer.Option(
        "--policies",
        envvar="FFPF_POLICIES",
        metavar="DIR",
        help="Directory of policy files; what no rule in it allows is denied.",
    ),
]
Audit = Annotated[
    Path | None,
    typer.Option(
        "--audit",
        metavar="FILE",
        help="Append each decision to FILE, a JSON line; refuse what cannot be written there.",
    ),
]
Narrow = Annotated[
    bool, typer.Option("--narrow", help="Put what the policies want into a flow that they refuse, and say what.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs to read.")]
Write = Annotated[
    str | None,
    typer.Option("-w", "--write", metavar="FILE|-", help="Write packets to a pcapng file, or to standard output."),
]
Read = Annotated[
    str | None,
    typer.Option(
        "-r", "--read", metavar="FILE", help="Run on the packets of a pcap or pcapng file; needs no root and no policy."
    ),
]
RotateSize = Annotated[
    str | None,
    typer.Option("-C", metavar="SIZE", help="Begin another file beyond SIZE: millions of bytes, or as in 64MiB."),
]
RotatePeriod = Annotated[
    float | None,
    typer.Option("-G", min=0.001, metavar="S", help="Begin another file every S seconds; -w may name it by strftime."),
]
RotateFiles = Annotated[
    int | None,
    typer.Option("-W", min=1, metavar="N", help="With -C, overwrite the first of N files; with -G, end after N."),
]
Compress = Annotated[
    str, typer.Option("--compress", metavar="zstd", help="Compress the file; a name that ends in .zst does, too.")
]
User = Annotated[
    str | None,
    typer.Option("--as", metavar="USER[:GROUP,...]", help="Decide as for this user; one with groups need not exist."),
]
Count = Annotated[int | None, typer.Option("-c", "--count", min=1, metavar="N", help="End after N packets.")]
Duration = Annotated[float | None, typer.Option("--duration", min=0, metavar="S", help="End after S seconds.")]
Buffer = Annotated[
    str,
    typer.Option("--buffer", metavar="SIZE", help="Packet ring for each CPU, as in 4MiB, 512KiB or 10000p (packets)."),
]
Pace = Annotated[
    str,
    typer.Option(
        "--pace", metavar="slow|fast", help="A full ring drops new packets (slow), or overwrites old ones (fast)."
    ),
]
Netns = Annotated[
    str | None,
    typer.Option("--netns", metavar="NAME", help="The network namespace of interfaces that name none (NAME/IF does)."),
]
Follow = Annotated[
    bool, typer.Option("--follow", help="Let interfaces come and go: grab from those that are there, and tell.")
]
Expressions = Annotated[
    list[str],
    typer.Argument(
        metavar="EXPR...", help="Flow expressions, as in '(device,eth0) -> (bpf,\"udp\")'; `@FILE` reads one."
    ),
]
Expression = Annotated[
    str,
    typer.Argument(
        metavar="EXPR", help="A flow expression, as in '(device,eth0) -> (bpf,\"udp\")'; `@FILE` reads one."
    ),
]


def expression_text(argument: str) -> str:
    """The expression itself, or what is in the file after `@`."""
    if not argument.startswith("@"):
        return argument
    try:
        return Path(argument[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a text file"
        raise ExpressionError(
            f"cannot read: {reason.lower()}", where=argument[1:], help="`@FILE` names a file with a flow expression"
        ) from None


def narrowing(flow: Flow) -> str:
    """What `--narrow` put in, or why nothing; "" if there was no need."""
    if flow.narrowed:
        return f"narrowed by {flow.narrowed}"
    return f"cannot be narrowed: {flow.not_narrowed}" if flow.not_narrowed else ""


def size_in_bytes(text: str, where: str = "--buffer") -> int:
    """`4MiB`, `512k`, `65536`."""
    found = re.fullmatch(r"(\d+)\s*(?:([kKmMgG])(?:i?[bB])?)?", text.strip())
    if found is None:
        raise ExpressionError(f"`{text}` is not a size", where=where, help="write 4MiB, 512KiB or a number of bytes")
    return int(found[1]) * UNITS[(found[2] or "").lower()]


class BufferSize(TypedDict, total=False):
    """What `Flow.populate` is told of it: one of these."""

    buffer_bytes: int
    buffer_packets: int


def buffer(text: str) -> BufferSize:
    """What `--buffer` says to `Flow.populate`: `4MiB`, or so many packets, `10000p`."""
    packets = re.fullmatch(r"(\d+)\s*p(?:ackets?)?", text.strip())
    return {"buffer_packets": int(packets[1])} if packets else {"buffer_bytes": size_in_bytes(text)}


def rotation(write: str | None, size: str | None, period_s: float | None, files: int | None) -> Rotation:
    """-C, -G and -W. A size without a unit is in millions of bytes, as tcpdump has it."""
    if write is None and any(given is not None for given in (size, period_s, files)):
        raise ExpressionError("no file to follow with another", where="-C, -G, -W", help="name it with `-w FILE`")
    size_bytes = None
    if size is not None:
        size_bytes = int(size) * MEGABYTE if size.isdecimal() else size_in_bytes(size, "-C")
        if not size_bytes:
            raise ExpressionError("files of no bytes", where="-C", help="write 10, for ten million bytes, or 64MiB")
    return Rotation(size_bytes, period_s, files)


def subject(text: str) -> Subject:
    """The user of `--as`: one of this host, or one with these groups, who need not exist."""
    user, colon, groups = text.partition(":")
    if not user:
        raise ExpressionError(f"`{text}` names no user", where="--as", help="write USER, or USER:GROUP,GROUP")
    if not colon:
        return subject_of(user)
    return Subject(user, frozenset(group for group in groups.split(",") if group), NO_UID)
