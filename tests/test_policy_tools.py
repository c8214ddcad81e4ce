"""`ffpf policy` and `ffpf check --counterexample`: each kind of finding with a policy that has it and one that has not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from ffpf_bpf.authorise import Policies, PolicyError, Subject
from ffpf_bpf.authorise.difference import Change, compare
from ffpf_bpf.authorise.explanation import explanation
from ffpf_bpf.authorise.policy import Never
from ffpf_bpf.authorise.review import Flaw, review
from ffpf_bpf.authorise.sample import Outline
from ffpf_bpf.authorise.schema import parse_policy
from ffpf_bpf.authorise.taps import at_another_hook, covers, told_apart
from ffpf_bpf.authorise.trials import parse_trials
from ffpf_bpf.graph.effect import Depth
from tests import wire
from tests.near import near
from tests.pairs import _Chance

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).parent.parent / "policies"
FFPF = (sys.executable, "-c", "from ffpf_bpf.cli import main; main()")
HEAD = '[[rule]]\nname = "r"\nsubjects = ["group:a"]\ntaps = ["eth*@*"]\n'
ALL = HEAD + 'classes = ["*"]\n'
NEVER = '\n[[rule]]\nname = "n"\nsubjects = ["*"]\ntaps = ["*@*"]\n'
WEB = ALL + "allow = { tcp_port = 80 }\n"


def policies(text: str) -> Policies:
    return Policies(parse_policy(text, "p.toml"))


def ffpf(*words: str, code: int = 0) -> str:
    done = subprocess.run([*FFPF, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def directory(path: Path, text: str, tests: str = "") -> str:
    path.mkdir(exist_ok=True)
    (path / "p.toml").write_text(text)
    if tests:
        (path / "tests").mkdir()
        (path / "tests" / "t.toml").write_text(tests)
    return str(path)


# Check.

ODD = [
    ("three ports of two", Flaw.EMPTY, "p.toml:6:1", "no packet can be one of these",
     ALL + "allow = { tcp_port = 443, port = 22, src_port = 80 }\n",
     ALL + "allow = { tcp_port = 443, port = 22 }\n"),
    ("an allow in a wider one", Flaw.REPEATED, "p.toml:6:10", "rule `r` (p.toml:6:29) allows it already",
     ALL + 'allow = [{ tcp_port = 80 }, { port = "70-90" }]\n',
     ALL + 'allow = [{ tcp_port = 80 }, { udp_port = "70-90" }]\n'),
    ("an allow twice", Flaw.REPEATED, "p.toml:6:29", "allows it already",
     ALL + "allow = [{ tcp_port = 80 }, { tcp_port = 80 }]\n",
     ALL + 'allow = [{ tcp_port = 80, show = "headers" }, { tcp_port = [80, 81], show = "anonymised" }]\n'),
    ("an allow in two others", Flaw.REPEATED, "p.toml:6:10", "together allow it already",
     ALL + 'allow = [{ port = "80-90" }, { port = "70-85" }, { port = "86-95" }]\n',
     ALL + 'allow = [{ port = "80-90" }, { port = "70-85" }, { port = "87-95" }]\n'),
    ("an allow in another rule", Flaw.REPEATED, "p.toml:6:1", "rule `s`",
     WEB + '[[rule]]\nname = "s"\nsubjects = ["*"]\ntaps = ["e*@*"]\nclasses = ["*"]\nallow = { proto = "tcp" }\n',
     WEB + '[[rule]]\nname = "s"\nsubjects = ["*"]\ntaps = ["e*@*"]\nclasses = ["*"]\nallow = { proto = "tcp" }\nlimits = { flows = 1 }\n'),
    ("an allow in another rule at fewer taps", Flaw.REPEATED, "p.toml:6:1", "rule `s`",
     WEB + '[[rule]]\nname = "s"\nsubjects = ["*"]\ntaps = ["eth*@*"]\nclasses = ["*"]\nallow = { proto = "tcp" }\n',
     WEB + '[[rule]]\nname = "s"\nsubjects = ["*"]\ntaps = ["eth*@xdp"]\nclasses = ["*"]\nallow = { proto = "tcp" }\n'),
    ("a never at xdp of an allow at every hook", Flaw.ELSEWHERE, "p.toml:8:1", "rule `r` allows",
     WEB + NEVER.replace("*@*", "eth0") + "never = { port = 25 }\n",
     WEB + NEVER.replace("*@*", "eth0@*") + "never = { port = 25 }\n"),
    ("a never in a wider one", Flaw.REPEATED, "p.toml:12:36", "forbids it already",
     WEB + NEVER + 'never = [{ net = "10.77.0.0/16" }, { net = "10.77.9.0/24" }]\n',
     WEB + NEVER + 'never = [{ net = "10.77.0.0/16", show = "headers" }, { net = "10.77.9.0/24" }]\n'),
    ("an allow that is forbidden", Flaw.FORBIDDEN, "p.toml:6:10", "all of it is forbidden by rule `n` (p.toml:13:1)",
     ALL + 'allow = [{ net = "10.77.3.0/24" }, { tcp_port = 80 }]\n' + NEVER + '\nnever = { net = "10.77.0.0/16" }\n',
     ALL + 'allow = [{ net = "10.77.3.0/24" }, { tcp_port = 80 }]\n' + NEVER + '\nnever = { net = "10.77.3.0/25" }\n'),
    ("payload that is forbidden", Flaw.FORBIDDEN, "p.toml:6:10", "no more than headers",
     ALL + "allow = [{ tcp_port = 25 }, { udp_port = 53 }]\n" + NEVER + 'never = { tcp_port = 25, show = "all" }\n',
     ALL + 'allow = [{ tcp_port = 25, show = "headers" }, { udp_port = 53 }]\n' + NEVER + 'never = { tcp_port = 25, show = "all" }\n'),
    ("a never that forbids a whole rule", Flaw.FORBIDDEN, "p.toml:12:1", "forbids everything that rule `r` (p.toml:1:1) allows",
     WEB + NEVER + "never = { tcp_port = 80 }\n",
     WEB + NEVER.replace('"*@*"', '"eth0@*"') + "never = { tcp_port = 80 }\n"),
    ("an order about a class that is not allowed", Flaw.IDLE, "p.toml:7:10", "asks nothing",
     HEAD + 'classes = ["grab", "sampler"]\nallow = "everything"\norder = [{ function = "scan", after = "sampler" }]\n',
     HEAD + 'classes = ["grab", "sampler"]\nallow = "everything"\norder = [{ function = "grab", after = "sampler" }]\n'),
    ("orders in a circle", Flaw.UNMEETABLE, "p.toml:7:52", "no flow can use `snap` and `sampler`",
     ALL + 'allow = "everything"\norder = [{ function = "snap", after = "sampler" }, { function = "sampler", after = "snap" }]\n',
     ALL + 'allow = "everything"\norder = [{ function = "snap", after = "sampler" }, { function = "grab", after = "snap" }]\n'),
    ("an order after packets that cannot be", Flaw.UNMEETABLE, "p.toml:7:10", "no flow can use `grab`",
     ALL + 'allow = "everything"\norder = [{ function = "grab", after = { tcp_port = 443, port = 22, src_port = 80 } }]\n',
     ALL + 'allow = "everything"\norder = [{ function = "grab", after = { tcp_port = 443, port = 22 } }]\n'),
    ("sampling without a sampler", Flaw.UNMEETABLE, "p.toml:1:1", "`sampler` is none of the classes",
     HEAD + 'classes = ["grab"]\nallow = "everything"\nlimits = { sample_at_least = 10 }\n',
     HEAD + 'classes = ["grab", "sampler"]\nallow = "everything"\nlimits = { sample_at_least = 10 }\n'),
    ("a rate without a limit", Flaw.UNMEETABLE, "p.toml:1:1", "`limit` is none of the classes",
     HEAD + 'classes = ["grab"]\nallow = "everything"\nlimits = { packets_per_second = 10 }\n',
     HEAD + 'classes = ["grab", "limit"]\nallow = "everything"\nlimits = { packets_per_second = 10 }\n'),
    ("one node", Flaw.UNMEETABLE, "p.toml:1:1", "no flow has 1 node",
     ALL + 'allow = "everything"\nlimits = { nodes = 1 }\n',
     ALL + 'allow = "everything"\nlimits = { nodes = 2 }\n'),
    ("too few nodes for what is wanted", Flaw.UNMEETABLE, "p.toml:1:1", "takes 3",
     HEAD + 'classes = ["grab", "sampler"]\nallow = "everything"\nlimits = { sample_at_least = 10, nodes = 2 }\n',
     HEAD + 'classes = ["grab", "sampler"]\nallow = "everything"\nlimits = { sample_at_least = 10, nodes = 3 }\n'),
    ("a buffer that is too small", Flaw.UNMEETABLE, "p.toml:1:1", "the least is 4,096 bytes",
     ALL + 'allow = "everything"\nlimits = { buffer = 100 }\n',
     ALL + 'allow = "everything"\nlimits = { buffer = 4096 }\n'),
    ("headers without a transform", Flaw.UNMEETABLE, "p.toml:1:1", "a sink shows more than headers",
     HEAD + 'classes = ["grab"]\nallow = { show = "headers" }\n',
     HEAD + 'classes = ["grab", "snap"]\nallow = { show = "headers" }\n'),
    ("a sink where only counts are allowed", Flaw.UNMEETABLE, "p.toml:1:1", "nothing but counts",
     HEAD + 'classes = ["grab"]\nallow = { show = "counts" }\n',
     HEAD + 'classes = ["packetcount"]\nallow = { show = "counts" }\n'),
    ("a snap length without a sink", Flaw.IDLE, "p.toml:1:1", "`snaplen` asks nothing",
     HEAD + 'classes = ["packetcount"]\nallow = { show = "counts" }\nlimits = { snaplen = 96 }\n',
     HEAD + 'classes = ["grab"]\nallow = "everything"\nlimits = { snaplen = 96 }\n'),
]  # fmt: skip


@pytest.mark.parametrize(("flaw", "where", "said", "odd", "plain"), [case[1:] for case in ODD], ids=[c[0] for c in ODD])
def test_findings(flaw: Flaw, where: str, said: str, odd: str, plain: str) -> None:
    found = review(policies(odd))
    assert [(remark.flaw, remark.where) for remark in found if said in remark.text] == [(flaw, where)], found
    assert not [remark for remark in review(policies(plain)) if remark.flaw is flaw]


def test_example_packets_are_in_the_class_and_forbidden() -> None:
    text = ALL + "allow = [{ tcp_port = 25 }, { udp_port = 53 }]\n" + NEVER + "never = { tcp_port = 25 }\n"
    rule, never = policies(text).rules
    (remark,) = review(policies(text))
    assert wire.must(rule.allow[0].packets, remark.packet)
    assert wire.may(never.never[0], remark.packet)


def test_unknown_subjects_are_notes() -> None:
    (remark,) = review(policies(WEB), {"group:a"})
    assert remark.is_note
    assert remark.text == "this host does not know `group:a`, so nobody is named by rule `r`"
    assert review(policies(WEB)) == ()


def test_what_is_not_decided_in_time_is_a_note() -> None:
    (remark,) = review(policies(WEB), limit_s=0)
    assert (remark.flaw, remark.is_note) == (Flaw.UNDECIDED, True)


def test_shipped_policies_have_no_findings() -> None:
    rules = [one for file in sorted(SHIPPED.glob("*.toml")) for one in parse_policy(file.read_text(), file.name)]
    assert review(Policies(tuple(rules))) == ()


# Taps.


def test_taps_that_globs_tell_apart() -> None:
    globs = ["eth*@*", "veth*@*", "*@*", "eth*", "eth[0-3]", "*0", "a?b@tc-*", "lo", "w[!a-c]*"]
    found = told_apart(globs)
    for device in found:
        assert len(device.interface) <= 15
    sets = {frozenset(g for g in globs if fnmatchcase(d.interface, g.split("@")[0])) for d in found}
    assert any({"eth[0-3]", "*0"} <= each for each in sets)
    assert any("eth[0-3]" in each and "*0" not in each for each in sets)
    assert any({"w[!a-c]*", "*0"} <= each for each in sets)


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        ('"*@*"', '"eth*"', True),
        ('"eth*"', '"*@*"', False),
        ('"e*", "v*"', '"eth*", "veth*"', True),
        ('"eth[0-4]", "eth[5-9]*"', '"eth?"', False),
        ('"eth[0-9]"', '"eth[2-3]"', True),
        ('"eth*"', '"eth*@tc-ingress"', False),
        ('"*@*"', '"*@*"', True),
    ],
)
def test_covers(wide: str, narrow: str, covered: bool) -> None:
    one, other = (policies(WEB.replace('"eth*@*"', taps)).rules[0] for taps in (wide, narrow))
    assert covers(one, other) is covered


# Explain.


@pytest.mark.parametrize(
    ("some", "more", "left_out"),
    [
        ("eth0", "eth*@*", ("eth0@tc-ingress", "eth0@xdp")),
        ("eth*", "eth1@tc-ingress", ("eth1@tc-ingress", "eth1@xdp")),
        ("eth0@tc-*", "eth0", ("eth0@xdp", "eth0@tc-ingress")),
        ("*/eth*", "blue/eth0@*", ("blue/eth0@tc-ingress", "blue/eth0@xdp")),
        ("eth0@*", "eth*@*", None),
        ("eth0", "eth0", None),
        ("eth0", "veth0@*", None),
        ("eth0", "blue/eth0@*", None),
    ],
)
def test_hooks_that_are_left_out(some: str, more: str, left_out: tuple[str, str] | None) -> None:
    found = at_another_hook((some,), (more,))
    assert (found and tuple(f"{device.place}@{device.hook}" for device in found)) == left_out


def test_explanation() -> None:
    lines = explanation(policies(WEB + NEVER + "never = { tcp_port = 25 }\n"), Subject("alice", frozenset({"a"}), -1))
    assert lines[0] == "User `alice`, in `a`: 2 rules."
    assert "  packets by TCP port 80: with payload" in lines
    assert lines[-1] == "  What n forbids holds for flows by rule r."
    only = explanation(policies(WEB + NEVER + "never = { tcp_port = 25 }\n"), Subject("bob", frozenset(), -1))
    assert only[-1] == "  They may capture nothing: no rule that names them allows anything."
    assert explanation(policies(WEB), Subject("bob", frozenset(), -1)) == (
        "`bob` may capture nothing: no rule names them.",
    )


A = Subject("alice", frozenset({"a"}), -1)


def many(number: int, allow: str, forbid: str = "") -> Policies:
    """Rules with `N` in their text."""
    text = ALL.replace('"r"', '"rN"') + allow + "\n" + forbid + "\n"
    return policies("".join(text.replace("N", str(each)) for each in range(1, number + 1)))


def test_explanation_of_many_rules_is_short() -> None:
    some = many(1_500, "allow = { tcp_port = N }", "never = { udp_port = N }")
    lines = explanation(some, A)
    assert sum(map(len, lines)) < 1_000_000
    together = lines[lines.index("Together:") :]
    assert len(together) == 4
    assert together[2].endswith("that can be at taps of any two of r1 and 1,499 more.")
    assert together[3] == "  What r1 and 1,499 more forbid holds for flows by rules r1 and 1,499 more."
    assert "r1500" in explanation(some, A, 10_000)[-1]


def test_long_lists_are_cut_short() -> None:
    nets = ", ".join(f'"10.0.{number}.0/25"' for number in range(200))
    some = many(1, f"allow = {{ net = [{nets}] }}")
    lines = "\n".join(explanation(some, A))
    assert "from or to 10.0.0.0/25 and 199 more" in lines


def test_rules_at_several_taps_are_told_together() -> None:
    text = "".join(
        ALL.replace("eth*@*", taps).replace('"r"', f'"{name}"') + "allow = { tcp_port = 80 }\n"
        for name, taps in (("one", "eth*@*"), ("two", "eth*@*"), ("three", "e*@*"), ("apart", "lo@*"))
    )
    lines = explanation(policies(text), A)
    assert lines[-2].endswith("at taps of one and two; any of one and two and any of three.")


# Many rules.

DISTINCT = 'allow = { net = "10.1.0.0/16", tcp_port = N }', 'never = { net = "192.168.0.0/16", udp_port = N }'


def test_eighty_rules_are_reviewed_wholly() -> None:
    some = many(80, *DISTINCT)
    start = time.process_time()
    assert review(some) == ()
    assert time.process_time() - start < 10
    repeated = Policies(
        (*some.rules, *policies(ALL.replace('"r"', '"s"') + DISTINCT[0].replace("N", "7") + "\n").rules)
    )
    found = review(repeated)
    assert [(remark.flaw, remark.rule) for remark in found] == [(Flaw.REPEATED, "s")]
    assert "rule `r7`" in found[0].text


def test_eighty_rules_that_are_all_odd_are_reviewed_quickly() -> None:
    classes = (
        '[{ net = "10.N.0.0/16", tcp_port = [80, 443] }, { net = "10.N.1.0/24", tcp_port = 80 }, { dst_port = 25 }]'
    )
    some = many(80, f"allow = {classes}\nnever = {{ port = 25 }}")
    start = time.process_time()
    found = review(some)
    assert time.process_time() - start < 10
    assert {flaw: sum(each.flaw is flaw for each in found) for flaw in (Flaw.REPEATED, Flaw.FORBIDDEN)} == {
        Flaw.REPEATED: 80 + 79 + 79,  # the nets within nets, and of each `25` all but the first
        Flaw.FORBIDDEN: 80,
    }


def test_what_is_plainly_within_is_within() -> None:
    """By the second opinion of tests/wire.py: of allows in allows, and of allows in nevers."""
    told = 0
    for seed in range(300):
        chance = _Chance(seed)
        wide, narrow = chance.packets(), chance.packets()
        narrow = replace(
            wide, **{key: getattr(narrow, key) for key in narrow.keys if not getattr(wide, key) or seed % 4}
        )
        if not Outline(wide).covers(Outline(narrow)):
            continue
        told += 1
        rows = near(chance.chance, [], [wide, narrow], 400)
        for frame in map(rows.__getitem__, range(len(rows))):
            if wire.must(narrow, frame):
                assert wire.must(wide, frame), (wide, narrow, frame.hex())
                assert wire.may(Never(wide, ignore=frozenset("*")), frame), (wide, narrow, frame.hex())
    assert 50 < told < 350, told


@pytest.mark.parametrize(
    ("wide", "narrow", "is_plain"),
    [
        ('net = "10.0.0.0/8"', 'src = "10.1.0.0/16", tcp_port = 80', True),
        ('src = "10.1.0.0/16"', 'net = "10.1.0.0/16"', False),
        ('net = "10.1.0.0/16"', 'net = ["10.1.2.0/24", "10.2.0.0/24"]', False),
        ("port = [80, 443]", "tcp_port = 443", True),
        ("tcp_port = 443", "port = 443", False),
        ('dst_port = "80-90"', 'port = "80-90"', False),
        ('port = "80-90"', 'dst_port = "85-90", vlan = 7', True),
        ('vlan = [7, "none"]', "vlan = 7", True),
        ("vlan = 7", 'vlan = [7, "none"]', False),
        ('proto = ["arp", "tcp"]', 'proto = "tcp"', True),
        ('proto = "tcp"', 'proto = ["arp", "tcp"]', False),
        ('proto = "tcp"', "tcp_port = 80", False),
    ],
)
def test_what_is_plain(wide: str, narrow: str, is_plain: bool) -> None:
    (rule,) = policies(ALL + f"allow = [{{ {wide} }}, {{ {narrow} }}]\n").rules
    outer, inner = (Outline(allow.packets) for allow in rule.allow)
    assert outer.covers(inner) is is_plain
    assert outer.covers(outer)


@pytest.mark.parametrize("limit_s", [0.0, 0.5])
def test_reviews_and_comparisons_end_in_time(limit_s: float) -> None:
    old = many(300, *DISTINCT)
    new = many(300, *(text.replace("= N", '= "N-600"') for text in DISTINCT))
    for call in (lambda: review(new, limit_s=limit_s), lambda: compare(old, new, limit_s=limit_s)):
        start = time.monotonic()
        call()
        assert time.monotonic() - start < limit_s + 2
    (remark,) = (each for each in review(new, limit_s=limit_s) if each.flaw is Flaw.UNDECIDED)
    assert re.search(r"\d+ of 300 rules not wholly reviewed for want of time", remark.text)
    assert "--limit" in remark.help
    (said,) = compare(old, new, limit_s=limit_s).undecided
    assert re.search(r"[\d,]+ of [\d,]+ causes not compared: out of time", said)


# Diff.


def may_be_shown(some: Policies, subject: Subject, change: Change, depth: Depth) -> bool:
    """By the second opinion of tests/wire.py."""
    device = told_apart([change.taps[0]])[0]
    rules = [rule for rule in some.rules if rule.names(subject) and rule.allows_tap(device)]
    allows = [allow for rule in rules for allow in rule.allow]
    nevers = [never for rule in rules for never in rule.never]
    return wire.shown_allowed(allows, nevers, depth, change.packet)


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        (WEB, WEB, []),
        (WEB, WEB.replace("80", "[80, 443]"), [True]),
        (WEB.replace("80", "[80, 443]"), WEB, [False]),
        (WEB, WEB.replace("80", "443"), [True, False]),
        (WEB, WEB + NEVER + 'never = { net = "10.77.0.0/16" }\n', [False]),
        (WEB + NEVER + 'never = { net = "10.77.0.0/16" }\n', WEB, [True]),
        (WEB, WEB + NEVER + "never = { vlan = 7, tcp_port = 25, ignore = ['*'] }\n", [False]),
        (WEB, WEB.replace("80 }", '80, show = "headers" }'), [False]),
        (WEB, WEB.replace("{ tcp_port = 80 }", '[{ tcp_port = 80, proto = "ip" }, { tcp_port = 80, proto = "ip6" }]'), []),
        (WEB, WEB + "limits = { flows = 2 }\n", []),
        ("", WEB, [True]),
    ],
)  # fmt: skip
def test_differences_of_packets(before: str, after: str, changes: list[bool]) -> None:
    old, new = policies(before), policies(after)
    subject = Subject("x", frozenset({"a"}), -1)
    found = compare(old, new, subject)
    assert found.undecided == ()
    assert sorted({change.allowed for change in found.packets}) == sorted(set(changes))
    for change in found.packets:
        for depth in change.depths:
            assert may_be_shown(new, subject, change, depth) is change.allowed
            assert may_be_shown(old, subject, change, depth) is not change.allowed
    assert bool(found) is (before != after)


def test_each_subject_that_is_named_is_compared() -> None:
    other = WEB.replace('"r"', '"s"').replace("group:a", "user:eve").replace("80", "443")
    found = compare(policies(WEB), policies(WEB + other))
    assert [change.subjects for change in found.packets] == [("user eve",)]
    assert found.rules == (("s", "is new, at p.toml:7:1"),)
    assert not compare(policies(WEB), policies(WEB + other), Subject("bob", frozenset({"a"}), -1))


def test_differences_of_rules_in_words() -> None:
    old = HEAD + 'classes = ["grab"]\nallow = { tcp_port = 80 }\nlimits = { flows = 2 }\n'
    new = (
        HEAD
        + 'classes = ["grab", "sampler"]\nallow = { tcp_port = 80 }\norder = [{ function = "grab", after = "sampler" }]\n'
    )
    assert [text for _, text in compare(policies(old), policies(new)).rules] == [
        "`classes`, new: sampler",
        "`order`, new: `grab` comes after `sampler` on every path",
        "`limits`: no bound, was at most 2 flows at once",
    ]


# Test.

TRIAL = """
[[test]]
name = "web"
as = "alice:a"
flow = '(device,eth0) -> (bpf,"tcp port 80") -> (grab)'
expect = "accepted"
rule = "r"

[[test]]
name = "no mail"
as = "alice:a"
flow = '(device,eth0) -> (bpf,"tcp port 25") -> (grab)'
expect = "rejected"
because = "no rule allows it"
counterexample = ":25"
"""


def test_shipped_tests_pass() -> None:
    assert ffpf("policy", "test", str(SHIPPED)).endswith("22 tests: 22 passed, 0 failed\n")


def test_tests_pass_and_fail(tmp_path: Path) -> None:
    path = directory(tmp_path / "good", WEB, TRIAL)
    assert "2 tests: 2 passed, 0 failed" in ffpf("policy", "test", path)
    wrong = TRIAL.replace('"accepted"\nrule = "r"', '"rejected"').replace(":25", ":443")
    failed = ffpf("policy", "test", directory(tmp_path / "bad", WEB, wrong), code=1)
    assert "FAIL  tests/t.toml:2:1  web" in failed
    assert "expected rejected, was accepted by rule r" in failed
    assert "expected a packet with `:443`, was IPv4 TCP" in failed
    assert "2 tests: 0 passed, 2 failed" in failed
    document = json.loads(ffpf("policy", "test", path, "--json"))
    assert (document["passed"], document["failed"], len(document["tests"])) == (2, 0, 2)


def test_a_flow_that_cannot_be_read_fails_its_test(tmp_path: Path) -> None:
    wrong = TRIAL.replace("(bpf,", "(bfp,", 1)
    assert "unknown node class `bfp`" in ffpf("policy", "test", directory(tmp_path / "p", WEB, wrong), code=1)


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (("name =", "nmae ="), "t.toml:3:1", "unknown key `nmae`"),
        (("expect =", "#"), "t.toml:2:1", "`expect` is missing"),
        (('as = "alice:a"', "#"), "t.toml:2:1", "`as` is missing"),
        (('"accepted"', '"yes"'), "t.toml:6:1", "`expect`: input should be 'accepted' or 'rejected'"),
        (('rule = "r"', 'because = "x"'), "t.toml:7:1", "`because` is about a flow that is rejected"),
        (('rule = "r"', 'buffer = "4 parsecs"'), "t.toml:7:1", "`4 parsecs` is not a number of bytes"),
        (('rule = "r"', 'rule = ""'), "t.toml:7:1", "an empty text"),
        (("[[test]]", "[[tests]]"), "t.toml:2:1", "unknown key `tests`"),
        (('"web"', '"web'), "t.toml:3:12", "not TOML: illegal character '\\n'"),
    ],
)
def test_broken_tests(change: tuple[str, str], where: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_trials(TRIAL.replace(*change, 1), "t.toml")
    assert (caught.value.where, caught.value.message) == (where, message)
    assert caught.value.help


# The command line.


def test_check_on_the_command_line(tmp_path: Path) -> None:
    plain = directory(tmp_path / "plain", WEB.replace("group:a", "user:root"))
    assert ffpf("policy", "check", plain) == f"{plain}: 1 rule, nothing odd\n"
    odd = directory(tmp_path / "odd", ODD[0][4])
    assert "p.toml:6:1: warning: no packet can be one of these" in ffpf("policy", "check", odd, code=1)
    document = json.loads(ffpf("policy", "check", odd, "--json", code=1))
    assert document["findings"][-1]["kind"] == "empty"
    stranger = directory(tmp_path / "stranger", WEB.replace("group:a", "user:no-such-user"))
    assert "note: this host does not know `user:no-such-user`" in ffpf("policy", "check", stranger)


def test_explain_and_diff_on_the_command_line(tmp_path: Path) -> None:
    old, new = directory(tmp_path / "old", WEB), directory(tmp_path / "new", WEB.replace("80", "[80, 443]"))
    assert "packets by TCP port 80: with payload" in ffpf("policy", "explain", old, "--as", "alice:a")
    assert json.loads(ffpf("policy", "explain", old, "--as", "bob:b", "--json"))["rules"] == []
    assert ffpf("policy", "diff", old, old) == "no difference\n"
    assert "+ allowed now, with payload, headers, headers with pseudonyms: IPv4 TCP" in ffpf(
        "policy", "diff", old, new, code=1
    )
    assert json.loads(ffpf("policy", "diff", old, new, "--json", "--as", "bob:b"))["packets"] == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("check", "/nonexistent"), 3, "ffpf: /nonexistent: cannot be read: no such file or directory\nhelp:"),
        (("diff", str(SHIPPED), "/nonexistent"), 3, "ffpf: /nonexistent: cannot be read"),
        (("explain", str(SHIPPED), "--as", "no-such-user"), 2, "ffpf: unknown user `no-such-user`\nhelp:"),
        (("explain", str(SHIPPED), "--as", ":a"), 2, "ffpf: --as: `:a` names no user\nhelp:"),
        (("check",), 2, "Missing argument"),
        (("test", str(SHIPPED.parent / "examples" / "policies")), 1, "no tests\nhelp: put `[[test]]`"),
        (("test", "/nonexistent"), 3, "ffpf: /nonexistent: cannot be read"),
    ],
)  # fmt: skip
def test_errors(words: tuple[str, ...], code: int, message: str) -> None:
    assert message in ffpf("policy", *words, code=code)


@pytest.mark.parametrize("command", ["check", "explain", "diff", "test"])
def test_help_has_an_example(command: str) -> None:
    assert f"ffpf policy {command}" in " ".join(ffpf("policy", command, "--help").split())


# Counterexamples.


def test_counterexamples_are_a_file_that_tcpdump_reads(tmp_path: Path) -> None:
    path, file = directory(tmp_path / "p", WEB), tmp_path / "why.pcapng"
    flows = ['(device,eth0) -> (bpf,"tcp port 25") -> (grab)', '(device,eth0) -> (bpf,"udp port 53") -> (grab)']
    said = ffpf("check", *flows, "--policies", path, "--as", "x:a", "--counterexample", str(file), code=3)
    assert f"{file}: 2 packets that should not be shown" in said
    read = subprocess.run(["tcpdump", "-nr", file], capture_output=True, text=True, check=True)
    assert "link-type EN10MB" in read.stderr
    first, second = read.stdout.splitlines()
    assert ".25" in first
    assert ".53" in second
    content = file.read_bytes()
    assert all(text.encode() in content for text in (*flows, "rule r: content: `grab1` shows payload of nothing but"))
    assert list(tmp_path.iterdir()) == [tmp_path / "p", file] or len(list(tmp_path.iterdir())) == 2


def test_counterexamples_that_are_none_or_cannot_be_written(tmp_path: Path) -> None:
    path, file = directory(tmp_path / "p", WEB), tmp_path / "why.pcapng"
    words = ("--policies", path, "--as", "x:a", "--counterexample")
    accepted, refused = "(device,eth0) -> (packetcount)", "(device,eth0) -> (grab)"
    assert "not written, for no packet refutes anything" in ffpf("check", accepted, *words, str(file))
    assert not file.exists()
    assert "cannot write: no such file or directory" in ffpf("check", refused, *words, "/nonexistent/x", code=1)
    assert "not a regular file" in ffpf("check", refused, *words, "/dev/null", code=1)
    assert Path("/dev/null").is_char_device()


def test_json_has_packets_in_hex_and_in_words(tmp_path: Path) -> None:
    path = directory(tmp_path / "p", WEB)
    refused = ffpf("check", "(device,eth0) -> (grab)", "--policies", path, "--as", "x:a", "--json", code=3)
    document = json.loads(refused)
    (shown,) = [each for each in document["obligations"] if each["packets"]]
    assert bytes.fromhex(shown["packets"][0])
    assert shown["described"][0].startswith("IPv4")
    assert shown["help"] == "put a filter in front of grab1 that passes nothing but packets by TCP port 80"
    assert document["ms"] > 0
