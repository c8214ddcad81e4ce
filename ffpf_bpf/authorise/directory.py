"""The policy directory: the only place where authorisation reads files.

Fails closed. Whoever can change a policy can grab everything, so a file or directory that is a symlink, that others
may write to, or that belongs to neither root nor this process's user, is an error, and one error denies everything.
Files are opened once, relative to the open directory, and what is checked is what was opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from ffpf_bpf.authorise.decision import shown
from ffpf_bpf.authorise.policy import Policies, PolicyError, Rule

LARGEST_FILE = 4 << 20
ACL = "system.posix_acl_access"


def read_policies(directory: Path) -> Policies:
    """The rules of every `*.toml` in `directory` (its subdirectories are not read), by file name. Raises PolicyError,
    with file, line and column, if anything about any of them is wrong. No file at all denies everybody."""
    return _parsed(read_files(directory))


def read_files(directory: Path) -> tuple[tuple[str, str], ...]:
    """Name and text of every `*.toml` in `directory`, by name. Raises PolicyError."""
    with _opened(str(directory), os.O_DIRECTORY, None, str(directory)) as directory_fd:
        names = sorted(name for name in os.listdir(directory_fd) if name.endswith(".toml"))
        return tuple((name, _read(directory_fd, name)) for name in names)


@lru_cache(maxsize=4)
def _parsed(files: tuple[tuple[str, str], ...]) -> Policies:
    """The policies that files of these names and contents are; kept, since they seldom change."""
    from ffpf_bpf.authorise.schema import parse_policy  # noqa: PLC0415 - and with it pydantic

    rules: dict[str, Rule] = {}
    for name, content in files:
        for rule in parse_policy(content, shown(name).strip("`")):
            if rule.name in rules:
                raise PolicyError(
                    f"a second rule is called `{rule.name}`",
                    where=rule.where,
                    help=f"the first is at {rules[rule.name].where}; give each rule its own name",
                )
            rules[rule.name] = rule
    return Policies(tuple(rules.values()), sha256(repr(files).encode()).hexdigest())


def _read(directory_fd: int, name: str) -> str:
    # O_NONBLOCK: a FIFO of that name must not hang us.
    where = shown(name).strip("`")
    with _opened(name, os.O_NONBLOCK, directory_fd, where) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PolicyError("not a regular file", where=where, help="remove it from the policy directory")
        with os.fdopen(os.dup(fd), "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise PolicyError(f"larger than {LARGEST_FILE:,} bytes", where=where, help="split it into several files")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise PolicyError("not UTF-8", where=f"{where}:{line}:{column}", help="save the file as UTF-8") from None


@contextmanager
def _opened(path: str, flags: int, directory_fd: int | None, where: str) -> Iterator[int]:
    """An open file or directory that only root and we can have written. OSErrors of the block are PolicyErrors too."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=directory_fd)
    except (OSError, ValueError) as error:
        raise _unreadable(error, path, directory_fd, where) from None
    try:
        _check_owner(os.fstat(fd), where)
        _check_list(fd, where)
        yield fd
    except OSError as error:
        raise _unreadable(error, path, directory_fd, where) from None
    finally:
        os.close(fd)


def _check_owner(status: os.stat_result, where: str) -> None:
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        raise PolicyError(
            "its group may write to it", where=where, help=f"check what it says, then `chmod g-w {where}`"
        )
    if status.st_mode & stat.S_IWOTH:
        raise PolicyError("others may write to it", where=where, help=f"check what it says, then `chmod o-w {where}`")
    if status.st_uid not in (0, os.geteuid()):
        raise PolicyError(
            f"it belongs to uid {status.st_uid}", where=where, help=f"check what it says, then `chown root {where}`"
        )


def _check_list(fd: int, where: str) -> None:
    """What an access control list lets anybody named do is at most what the mode says of the group (acl(5))."""
    if os.fstat(fd).st_mode & stat.S_IWGRP and ACL in os.listxattr(fd):
        raise PolicyError(
            "an access control list lets others write to it",
            where=where,
            help=f"check what it says, then `setfacl -b {where}`",
        )


def _unreadable(error: OSError | ValueError, path: str, directory_fd: int | None, where: str) -> PolicyError:
    what = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
    if not isinstance(error, OSError):
        return PolicyError(f"not a path: {what}", where=ascii(where), help="name a directory of policies")
    try:
        linked = stat.S_ISLNK(os.stat(path, dir_fd=directory_fd, follow_symlinks=False).st_mode)
    except OSError:
        linked = False
    if linked:
        return PolicyError("a symlink", where=where, help="put the file or directory itself there")
    return PolicyError(
        f"cannot be read: {what}", where=where, help="a policy that cannot be read denies; see that it is readable"
    )
