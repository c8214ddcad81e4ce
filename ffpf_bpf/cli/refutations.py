"""The packets that refute decisions, as a pcapng file: for `ffpf check --counterexample FILE`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ffpf_bpf.authorise import Decision, Result
from ffpf_bpf.capture.output import FILE_MODE
from ffpf_bpf.capture.pcapng import Frame, InterfaceDescription, file_of
from ffpf_bpf.errors import CaptureError

COMMENT = "made by ffpf check: packets that a flow would show and a policy forbids"


def write_refutations(path: Path, decisions: Sequence[tuple[str, Decision]]) -> int:
    """Write the packets of the obligations that are refuted, one interface for each flow, whose expression is its
    filter. Returns how many; nothing is written if there are none. The file is there whole or not at all. Raises
    CaptureError."""
    interfaces = [InterfaceDescription(f"flow {n}", 0, text) for n, (text, _) in enumerate(decisions, 1)]
    frames = [
        Frame(number, packet, comment)
        for number, (_, decision) in enumerate(decisions)
        for packet, comment in _refuting(decision)
    ]
    if frames:
        put_whole(path, file_of(interfaces, frames, COMMENT))
    return len(frames)


def _refuting(decision: Decision) -> Iterator[tuple[bytes, str]]:
    for obligation in decision.obligations:
        if obligation.result is Result.REFUTED:
            count = len(obligation.packets)
            for number, packet in enumerate(obligation.packets, 1):
                which = f" (packet {number} of {count})" if count > 1 else ""
                said = f"rule {obligation.rule}: {obligation.kind}: {obligation.claim}{which}: {obligation.evidence}"
                yield packet, said


def put_whole(path: Path, data: bytes) -> None:
    """Write a file in one step: until then, and if it fails, what was there stays. Raises CaptureError."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise CaptureError("not a regular file", where=str(path), help="name a file to be written")
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name[:200]}.", dir=target.parent)
        with open(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, FILE_MODE & ~_umask())
        os.replace(temporary, target)
        temporary = ""
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CaptureError(f"cannot write: {reason}", where=str(path), help="name another file") from None
    finally:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
