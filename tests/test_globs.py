"""Globs on interfaces, in flows and in rules: what covers what, exactly, since a flow is allowed by it."""

from __future__ import annotations

import random
from fnmatch import fnmatchcase
from itertools import product

import pytest

from ffpf_bpf.authorise.policy import Rule
from ffpf_bpf.authorise.taps import told_apart
from ffpf_bpf.graph import globs
from ffpf_bpf.graph.classes.device import Device

SEED = 5150
LETTERS = "ab"
NAMES = ["".join(letters) for length in range(1, 7) for letters in product("abc", repeat=length)]
PARTS = ["a", "b", "*", "?", "[ab]", "[!a]", "[b-c]", "[!b-c]"]


def rule(*taps: str) -> Rule:
    return Rule("r", ("*",), taps)


@pytest.mark.parametrize(
    ("glob", "wide", "covered"),
    [
        ("veth*", ["veth*"], True),
        ("veth*", ["veth?"], False),  # a `?` is not what a `*` stands for
        ("veth?", ["veth*"], True),
        ("veth*", ["v*"], True),
        ("v*", ["veth*"], False),
        ("veth[0-3]", ["veth0", "veth1", "veth[23]"], True),
        ("veth[0-3]", ["veth0", "veth1", "veth3"], False),
        ("*", ["[a-zA-Z0-9._-]*"], False),  # an interface may be called `+`
        ("*", ["[a-z]*", "[!a-z]*"], True),
        ("[a-z]*", ["[a-y]*"], False),
        ("[!a]*", ["[!a-b]*"], False),
        ("é*", ["[à-ö]*"], True),
        ("[à-ö]*", ["[à-õ]*"], False),
        ("????????????????*", ["eth0"], True),  # no name is so long
        ("*", [], False),
        ("[*]x*", ["?x*"], True),
        ("[*]x*", ["xx*"], False),
    ],
)
def test_covers(glob: str, wide: list[str], covered: bool) -> None:
    assert globs.covers(wide, glob) is covered
    assert rule(*wide).allows_tap(Device(glob)) is covered


@pytest.mark.parametrize(
    ("glob", "other", "met"),
    [
        ("veth*", "veth0", True),
        ("veth*", "eth*", False),
        ("*a", "b*", True),
        ("[!a-c]*", "[a-c]*", False),
        ("??", "?", False),
        ("[*]", "*", True),
    ],
)
def test_meet(glob: str, other: str, met: bool) -> None:
    assert globs.meet(glob, other) is globs.meet(other, glob) is met
    assert rule(other).may_concern(Device(glob)) is met


def test_random_globs_against_all_short_names() -> None:
    rng = random.Random(SEED)
    seen = {True: 0, False: 0}
    for _ in range(400):
        some = ["".join(rng.choices(PARTS, k=rng.randint(1, 4))) for _ in range(rng.randint(2, 4))]
        glob, *wide = some
        matched = [name for name in NAMES if fnmatchcase(name, glob)]
        covered = globs.covers(wide, glob)
        # What it says is true of all names: so of these. If it says no, there may be a name with other letters.
        if covered:
            assert all(any(fnmatchcase(name, each) for each in wide) for name in matched), some
        if any(fnmatchcase(name, wide[0]) for name in matched):
            assert globs.meet(glob, wide[0]), some
        seen[covered] += 1
    assert min(seen.values()) > 30, seen


def test_what_takes_too_long_is_answered_on_the_safe_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(globs, "MOST_STATES", 1)
    assert globs.covers(["veth*"], "veth*x") is False
    assert globs.meet("aaaa*", "bbbb*") is True


@pytest.mark.parametrize(
    ("taps", "device", "allowed", "concerned"),
    [
        (("eth*",), "blue/eth0", False, False),
        (("eth*",), "blue/eth*", False, False),
        (("*@*",), "blue/eth0@tc-egress", False, False),
        (("blue/eth*",), "eth0", False, False),
        (("blue/eth*",), "blue/eth*", True, True),
        (("b*/eth0", "b*/eth1"), "blue/eth[01]", True, True),
        (("b*/eth0", "green/eth1"), "blue/eth[01]", False, True),
        (("*/eth0",), "eth0", True, True),
        (("?*/eth0",), "eth0", False, False),
        (("eth*",), "eth*@tc-egress", False, False),
        (("eth*@tc-*",), "eth*@tc-egress", True, True),
    ],
)
def test_rules_and_devices(taps: tuple[str, ...], device: str, allowed: bool, concerned: bool) -> None:
    assert rule(*taps).allows_tap(Device(device)) is allowed
    assert rule(*taps).may_concern(Device(device)) is concerned


def test_taps_of_namespaces_are_told_apart() -> None:
    found = [device.tap for device in told_apart(["eth*", "blue/eth*", "*/eth0"])]
    assert found == ["eth", "eth0", "z0/eth0", "blue/eth", "blue/eth0"]
    assert all(device.namespace == "" for device in told_apart(["eth*", "*@*"]))


@pytest.mark.parametrize("never", ["veth0", "veth?", "*1"])
def test_a_never_at_one_of_many_is_one_for_all(never: str) -> None:
    """A flow on `veth*` may see packets of any of them, so what is forbidden at one is forbidden to it."""
    assert rule(never).may_concern(Device("veth*"))
    assert not rule(never).allows_tap(Device("veth*"))
    assert not rule(f"blue/{never}").may_concern(Device("veth*"))
