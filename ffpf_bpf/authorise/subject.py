"""Who asks: a user, their groups and uid, as the user database of this host has them."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass

from ffpf_bpf.errors import ExpressionError

NO_UID = -1  # of a subject that is described, not looked up


@dataclass(frozen=True, slots=True)
class Subject:
    """The user on whose behalf a flow is made. `groups` are names, the primary group included."""

    user: str
    groups: frozenset[str]
    uid: int


def subject_of(user: str) -> Subject:
    """The subject with that login name. Raises ExpressionError if there is no such user."""
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):  # ValueError: a NUL in the name
        raise ExpressionError(
            f"unknown user `{user}`", help="name a user of this host; `getent passwd` lists them"
        ) from None
    return _subject(entry)


def current_subject() -> Subject:
    """The subject that this process acts as: its effective uid, whose number is the name where there is no other."""
    uid = os.geteuid()
    try:
        return _subject(pwd.getpwuid(uid))
    except KeyError:
        groups = frozenset(_group_name(gid) for gid in {os.getegid(), *os.getgroups()})
        return Subject(str(uid), groups, uid)


def unknown_on_this_host(subjects: Iterable[str]) -> frozenset[str]:
    """Those of the subjects, as rules write them, that the user database does not have."""
    look_up = {"user": pwd.getpwnam, "group": grp.getgrnam}
    unknown = set()
    for text in set(subjects):
        kind, _, name = text.partition(":")
        if kind in look_up:
            try:
                look_up[kind](name)
            except (KeyError, ValueError):
                unknown.add(text)
    return frozenset(unknown)


def _subject(entry: pwd.struct_passwd) -> Subject:
    gids = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Subject(entry.pw_name, frozenset(_group_name(gid) for gid in gids), entry.pw_uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
