"""How long decisions take: what is proved, what is refuted with a packet, and what is beyond the solvers.

    python -m benchmarks.authorise [--quick]          or python benchmarks/authorise.py

Each decision is about a new definition, as `instantiate` asks; policies are read and filters compiled already. Minimum
of several rounds, in a warm process and through the sandbox, a process of its own for each decision.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.table import Table, main
from ffpf_bpf import authorise
from ffpf_bpf.authorise import Decision, Policies, Result, Rule, Subject
from ffpf_bpf.authorise.policy import Allow, Limits, Never, Order, PacketClass, Part, Span
from ffpf_bpf.authorise.proof import solvers
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.compiler import compile_predicates
from ffpf_bpf.flow import questions
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import Depth
from ffpf_bpf.graph.parser import parse

ALICE = Subject("alice", frozenset({"users"}), 1000)
HEADINGS = ("decision", "in process", "sandbox", "goal", "met", "terms", "z3", "Bitwuzla", "result")
BUFFER_BYTES = 1 << 20
ROUNDS = 12
PAUSE_S = 0.3
LIMIT_S = 2.0  # of what has no answer
LATE_S = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """A flow behind `(device,tap0) ->`, the rule that it is asked of, and what must come out; `goal_ms` warm."""

    name: str
    flow: str
    rule: Rule
    result: Result = Result.PROVED
    goal_ms: float | None = None

    @property
    def definition(self) -> Definition:
        graph = build(parse(f"(device,tap0) -> {self.flow}"))
        return Definition(graph, compile_predicates(graph), BUFFER_BYTES)


@dataclass
class Work:
    """What the solvers were asked in one decision."""

    z3_ms: float = 0.0
    bitwuzla_ms: float = 0.0
    terms: int = 0  # of all questions
    asked: int = field(default=0)


@dataclass(frozen=True, slots=True)
class Line:
    """A decision in the table."""

    cells: tuple[str, ...]


def run(quick: bool = False) -> Table:
    """All rows."""
    authorise.decide(QUESTIONS[0].definition, Policies((QUESTIONS[0].rule,)), ALICE)
    lines = [_line(question, 1 if quick else ROUNDS) for question in QUESTIONS]
    for question in BEYOND:
        lines.append(_beyond(question, 0.5 if quick else LIMIT_S))
    notes = (
        "The least of several rounds. In process: `authorise.decide`, the process being warm. Sandbox: the same in a "
        "fresh child of the zygote, with all that is sent and checked; somebody asked about the same policies before, "
        f"but not in the last {PAUSE_S:g} s, so that a child waits. What has no answer must end in time in both.",
        "Terms: nodes of the formulas that were asked, all together. z3 and Bitwuzla: what each took of the time in "
        "process, translation included.",
        f"The last rows have no answer: they end as refused within the limit ({LIMIT_S:g} s) and {LATE_S:g} s.",
    )
    return Table("Deciding (ms)", tuple(lines), notes, HEADINGS)


def _line(question: Question, rounds: int) -> Line:
    definition, policies = question.definition, Policies((question.rule,), question.name)
    inside: list[float] = []
    works: list[Work] = []
    outside: list[float] = []
    for _ in range(rounds):
        with _watched() as work:
            ms, decision = _timed(lambda: authorise.decide(definition, policies, ALICE))
        _check(question, decision)
        inside.append(ms)
        works.append(work)
        time.sleep(PAUSE_S)
        ms, decision = _timed(lambda: questions.decide(definition, policies, ALICE))
        _check(question, decision)
        outside.append(ms)
    best = min(inside)
    work = works[inside.index(best)]
    goal = "" if question.goal_ms is None else f"<= {question.goal_ms:.0f}"
    met = "" if question.goal_ms is None else "yes" if best <= question.goal_ms else "NO"
    solving = (f"{work.terms:,}", f"{work.z3_ms:.1f}", f"{work.bitwuzla_ms:.1f}")
    return Line((question.name, f"{best:.1f}", f"{min(outside):.1f}", goal, met, *solving, str(question.result)))


def _beyond(question: Question, limit_s: float) -> Line:
    """Of a question without an answer: it ends in time."""
    definition, policies = question.definition, Policies((question.rule,), question.name)
    with _watched() as work:
        ms, decision = _timed(lambda: authorise.judgement.decide(definition, policies, ALICE, limit_s=limit_s))
    _check(question, decision)
    outside, decision = _timed(lambda: questions.decide(definition, policies, ALICE, limit_s=limit_s))
    assert not decision.accepted, question.name
    most = 1000 * (limit_s + LATE_S)
    met = "yes" if max(ms, outside) <= most else "NO"
    solving = (f"{work.terms:,}", f"{work.z3_ms:.1f}", f"{work.bitwuzla_ms:.1f}")
    return Line((question.name, f"{ms:.1f}", f"{outside:.1f}", f"<= {most:.0f}", met, *solving, str(Result.REFUSED)))


def _check(question: Question, decision: Decision) -> None:
    """It is what it must be, or the figures mean nothing."""
    found = {obligation.result for obligation in decision.obligations}
    if question.result is Result.PROVED:
        assert decision.accepted, f"{question.name}: {decision.text()}"
    else:
        assert question.result in found and not decision.accepted, f"{question.name}: {decision.text()}"
    if question.result is Result.REFUTED:
        assert any(each.packets for each in decision.obligations), f"{question.name}: no packet"


def _timed(call: Callable[[], Decision]) -> tuple[float, Decision]:
    before = time.perf_counter()
    decision = call()
    return 1000 * (time.perf_counter() - before), decision


@contextmanager
def _watched() -> Iterator[Work]:
    """Count what goes to the solvers. Counting itself is not cheap: it comes after."""
    work = Work()
    asked: list[t.Term] = []
    with ExitStack() as stack:

        def watch(owner: Any, name: str, part: str) -> None:
            original = getattr(owner, name)

            def timed(*arguments: Any) -> Any:
                before = time.perf_counter()
                try:
                    return original(*arguments)
                finally:
                    setattr(work, part, getattr(work, part) + 1000 * (time.perf_counter() - before))
                    asked.extend(each for each in arguments if isinstance(each, t.Term))

            setattr(owner, name, timed)
            stack.callback(setattr, owner, name, original)

        watch(solvers._Z3, "solve", "z3_ms")
        watch(solvers._Bitwuzla, "verdict", "bitwuzla_ms")
        yield work
    work.asked = len(asked)
    work.terms = sum(len(t.in_order([each])) for each in dict.fromkeys(asked))


# What is decided.


def _nets(count: int, prefix: int) -> tuple[IPv4Network, ...]:
    """So many nets that are not neighbours."""
    start, step = int(TEN[0].network_address), 2 << (32 - prefix)
    return tuple(IPv4Network((start + number * step, prefix)) for number in range(count))


def _scattered(count: int) -> tuple[IPv4Network, ...]:
    """So many small nets, all over 10.0.0.0/8."""
    places = sorted({number * 40_503 % 65_536 for number in range(count)})
    return tuple(IPv4Network((10 << 24 | place << 8 | place * 7 % 16 << 4, 28)) for place in places)


def _rule(*allows: Allow, never: tuple[Never, ...] = (), order: tuple[Order, ...] = (), **limits: Any) -> Rule:
    return Rule("rule", ("*",), ("*@*",), ("*",), allows, never, order, Limits(**limits))


def _grabbing(text: str) -> str:
    return f'(bpf,"{text}") -> (grab)'


def _or(word: str, values: Any) -> str:
    return "(" + " or ".join(f"{word} {value}" for value in values) + ")"


def _ports(*ports: int) -> tuple[Span, ...]:
    return tuple((port, port) for port in ports)


TEN, SIXTEEN = (ip_network("10.0.0.0/8"),), (ip_network("10.1.0.0/16"),)
PORTS = tuple(range(1000, 1020))
IGNORED = frozenset({"service"})  # as where a policy does not say
NO_MAIL = _rule(Allow(PacketClass()), never=(Never(PacketClass(tcp_port=_ports(25)), ignore=IGNORED),))
FRAGMENTS = "ip[6:2] & 0x1fff = 0"
NETS_40 = tuple(IPv4Network((int(net.network_address) + 64, 28)) for net in _nets(200, 24)[::5])
NETS_200 = tuple(IPv4Network((int(net.network_address) + 32, 28)) for net in _nets(1_000, 24)[::5])
HEADERS = Allow(PacketClass(), Depth.HEADERS, frozenset({Part.PAYLOAD}))
GET = "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420"
BRANCH = '(sampler,20) -> (bpf,"src net 10.{0}.0.0/16") -> (bytecount) -> (snap) -> (grab)'
GRAPH = (
    f'(bpf,"tcp and net 10.0.0.0/8") -> (packetcount) -> (({BRANCH.format(1)}) | ({BRANCH.format(2)})'
    ' | ((bpf,"dst port 443") -> (sampler,10) -> (tcpflags,syn) -> (bytecount) -> (anonymise) -> (grab)) | '
    "(histogram,size))"
)
ORDERS = (
    Order("grab", "bytecount"),
    Order("grab", 10),
    Order("bytecount", PacketClass(protocols=(6,), net=TEN)),
    Order("tcpflags", PacketClass(tcp_port=_ports(443))),
)
GRAPH_RULE = _rule(
    Allow(PacketClass(protocols=(6,), net=TEN), Depth.HEADERS, frozenset({Part.PAYLOAD})),
    never=(Never(PacketClass(vlan=((7, 7),)), ignore=frozenset({"fragment"})),),
    order=ORDERS,
    sample_at_least=10,
)
SCATTERED = _scattered(20_000)
WEB = f'(bpf,"tcp src port 80 and dst port 81 and src net {SCATTERED[7]}") -> (snap) -> (grab)'
LONG = _rule(
    Allow(PacketClass(net=SCATTERED), Depth.HEADERS, frozenset({Part.PAYLOAD})),
    never=(Never(PacketClass(dst=TEN, tcp_port=_ports(25)), ignore=IGNORED),),
)

QUESTIONS = (
    Question("host in a /16", _grabbing("ip host 10.1.2.3"), _rule(Allow(PacketClass(net=SIXTEEN))), goal_ms=30),
    Question("src and not port", _grabbing("src net 10.1.0.0/16 and not port 80"), _rule(Allow(PacketClass(src=TEN)))),
    Question(
        "20 ports x 10 nets",
        _grabbing(f"tcp and {_or('net', _nets(10, 24))} and {_or('dst port', PORTS)}"),
        _rule(Allow(PacketClass(net=_nets(10, 24), tcp_port=((1000, 1019),)))),
    ),
    Question(
        "40 /28 x 20 ports, 200 prefixes",
        _grabbing(f"{_or('src net', NETS_40)} and {_or('dst port', PORTS)}"),
        _rule(Allow(PacketClass(src=_nets(200, 24), dst_port=((1000, 1019),)))),
        goal_ms=200,
    ),
    Question(
        "200 /28, 1,000 prefixes",
        _grabbing(_or("src net", NETS_200)),
        _rule(Allow(PacketClass(src=_nets(1_000, 24)))),
        goal_ms=400,
    ),
    Question(
        "a net, 20,000 prefixes",
        _grabbing("src net 10.0.2.0/25"),
        _rule(Allow(PacketClass(src=_nets(20_000, 24)))),
    ),
    Question("a net, 20,000 prefixes, headers, never mail", WEB, LONG, goal_ms=5_000),
    Question(
        "20,000 prefixes that do not suffice",
        '(bpf,"tcp port 80 and net 10.0.0.0/16") -> (snap) -> (grab)',
        LONG,
        Result.REFUTED,
        goal_ms=5_000,
    ),
    Question("20 nodes with orders and sampling", GRAPH, GRAPH_RULE, goal_ms=500),
    Question(
        "payload at a variable offset, seen",
        _grabbing(f"tcp port 80 and {GET}"),
        _rule(Allow(PacketClass(tcp_port=_ports(80)))),
    ),
    Question("tcp port 80 and not port 25, never mail", _grabbing("tcp port 80 and not port 25"), NO_MAIL),
    Question("udp port 53, never mail", _grabbing("udp port 53"), NO_MAIL),
    Question("DNS over v6, never mail", _grabbing("ip6 and udp port 53"), NO_MAIL),
    Question("host in another /16", _grabbing("host 10.2.2.3"), _rule(Allow(PacketClass(net=SIXTEEN))), Result.REFUTED),
    Question("not tcp port 25, never mail", _grabbing("not tcp port 25"), NO_MAIL, Result.REFUTED),
    Question(
        "200 /28, one beyond 1,000 prefixes",
        _grabbing(_or("src net", (*NETS_200[:-1], "172.16.5.0/28"))),
        _rule(Allow(PacketClass(src=_nets(1_000, 24)))),
        Result.REFUTED,
    ),
    Question("payload at a variable offset, hidden", f'(bpf,"{GET}") -> (packetcount)', _rule(HEADERS), Result.REFUTED),
)

_DIVIDED = "ether[0:4] / ether[4:4] * ether[4:4] + ether[0:4] % ether[4:4] != ether[0:4]"
# Distributed: never different, which 32 bits by 32 bits hide from solvers.
_A, _B, _C, _D = (f"ether[{4 * number}:4]" for number in range(4))
_MULTIPLIED = f"({_A} + {_B}) * ({_C} + {_D}) != {_A} * {_C} + {_A} * {_D} + {_B} * {_C} + {_B} * {_D}"
BEYOND = (
    Question("division and remainder", _grabbing(_DIVIDED), _rule(Allow(PacketClass(src=TEN))), Result.REFUSED),
    Question(
        "sums of products",
        _grabbing(_MULTIPLIED),
        _rule(Allow(PacketClass(src=TEN))),
        Result.REFUSED,
    ),
)


if __name__ == "__main__":
    main(run, "deciding flows")
