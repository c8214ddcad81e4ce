"""The audit journal: each decision, and what was compiled and loaded because of it, as one JSON line of a file.

    {"event": "decision", "id": ..., "time": ..., "subject": ..., "definition": ..., "accepted": ..., ...}
    {"event": "load", "id": ..., "time": ..., "tap": "eth0", "objects": {"ffpf_segment": SHA-256, ...}}

Two kinds of lines, because what is compiled for a tap depends on the flows that are there already, and is known only
when the flow is about to join them: a decision stands in the file before anything is made in the kernel, and the digest
of its programs, under the same id, before the kernel gets them. Programs that are made anew later, because another flow
joins or leaves, are of the same definitions and have no line.

A line is in the file, whole and synced to the disk, when `append` returns; otherwise `append` raises OSError, takes
back what it has written of it, and whoever asked must refuse the flow. Secrets of a definition are left out, and no
line holds a control character: JSON escapes them. Processes may write one file together.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from ffpf_bpf.authorise.decision import Decision
from ffpf_bpf.authorise.subject import Subject

LOCK_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal in the file `path`. Raises OSError where a line cannot be written."""

    path: Path

    def decided(self, decision: Decision, subject: Subject, definition: str, policy_digest: str, flow: str) -> str:
        """Write a decision on the definition, which is a text without secrets; the id of the line."""
        id = secrets.token_hex(8)
        self._write(
            "decision",
            id,
            flow=flow,
            pid=os.getpid(),
            subject={"user": subject.user, "uid": subject.uid, "groups": sorted(subject.groups)},
            definition=definition,
            definition_digest=decision.digest,
            policy_digest=policy_digest,
            accepted=decision.accepted,
            rule=decision.rule,
            reasons=list(decision.reasons),
            expires_s=decision.expires_s,
            obligations=[
                {
                    "rule": obligation.rule,
                    "kind": str(obligation.kind),
                    "claim": obligation.claim,
                    "path": obligation.path,
                    "result": str(obligation.result),
                    "evidence": obligation.evidence,
                    "ms": round(obligation.ms, 3),
                }
                for obligation in decision.obligations
            ],
        )
        return id

    def loading(self, id: str, tap: str, programs: Mapping[str, bytes]) -> None:
        """Write that programs, by their names, will be loaded at a tap because of the decision with that id."""
        digests = {name: sha256(instructions).hexdigest() for name, instructions in programs.items()}
        self._write("load", id, tap=tap, objects=digests)

    def _write(self, event: str, id: str, **more: Any) -> None:
        append(self.path, json.dumps({"event": event, "id": id, "time": _now(), **more}))


def append(path: Path, line: str) -> None:
    """Add a line to a file, with one write, and wait until it is on the disk. Raises OSError with the file as it was
    before, or at least without a broken line in it."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    try:
        _check(fd)
        _lock(fd)
        size = os.fstat(fd).st_size
        # A line that its writer could not end is ended here, so that it spoils no other.
        broken = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        content = b"\n" * broken + line.encode() + b"\n"
        try:
            if os.write(fd, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        except OSError:
            _take_back(fd, size)
            raise
        if size == 0:
            _sync_directory(path.parent)
    finally:
        os.close(fd)


def _check(fd: int) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
        raise OSError(errno.EPERM, "others may write to it")


def _lock(fd: int) -> None:
    """Only one writes at a time, so that what one takes back is its own."""
    end_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end_s:
                raise OSError(errno.EWOULDBLOCK, "another process holds its lock") from None
            time.sleep(0.005)


def _take_back(fd: int, size: int) -> None:
    try:
        os.ftruncate(fd, size)
    except OSError:
        # A file that may only grow: end the line instead.
        if os.fstat(fd).st_size > size:
            with suppress(OSError):
                os.write(fd, b"\n")


def _sync_directory(directory: Path) -> None:
    """The name of a new file has to be on the disk as well."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _now() -> str:
    """RFC 3339, UTC, with nanoseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
