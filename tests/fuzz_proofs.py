"""Random flows and policies decided by the proofs, and every answer doubted by packets.

- Proved: no packet of many, near what filter and policy name, is shown although it may not be, and no two that are
  equal but for what is hidden are told apart.
- Refuted: the packet of the refutation passes in the interpreter, in libpcap and (as root) in the kernel's program, and
  may not be shown; the two packets of an inference are equal but for what is hidden, and are told apart.

    .venv/bin/python -m tests.fuzz_proofs --pairs 20000 --packets 10000 --seed 1
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ffpf_bpf.authorise import Decision, Policies, Subject, decide
from ffpf_bpf.authorise.decision import OUT_OF_TIME, Kind, Obligation, Result
from ffpf_bpf.compiler import compile_predicates
from ffpf_bpf.compiler.pcap import offline_filter
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.scan import Scan
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import Depth
from ffpf_bpf.graph.expression import Role
from ffpf_bpf.graph.graph import Graph, Leaf
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.predicate import Program
from ffpf_bpf.graph.predicate import run as run_one
from tests import wire
from tests.flows import CHANCE, Walk, showing, tell_apart, violations
from tests.near import changed, near
from tests.pairs import Pair, pair
from tests.vectors import Packets, packed

ALICE = Subject("alice", frozenset({"users"}), 1000)
MOST_LOOKED_AT = 1_500  # packets that reach one step, looked at by `wire`
HIDING = 1_000  # pairs of packets for inference, at most


@dataclass(frozen=True, slots=True)
class Case:
    """A pair that compiles, and its parts."""

    pair: Pair
    graph: Graph
    programs: Mapping[str, Program]

    @property
    def definition(self) -> Definition:
        return Definition(self.graph, MappingProxyType(dict(self.programs)), 1 << 16)


@dataclass
class Report:
    """`counts` of pairs by what became of them; `problems` are sentences, with the pair and the packets."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([", ".join(f"{name} {count}" for name, count in sorted(self.counts.items())), *self.problems])


def made(seed: int) -> Case | None:
    """The case of that seed; None if libpcap finds that its filter rejects everything, or the graph is refused."""
    found = pair(seed)
    try:
        graph = build(parse(f"(device,tap0) -> {found.flow}"))
        return Case(found, graph, compile_predicates(graph))
    except ExpressionError:
        return None


def decided(case: Case) -> Decision:
    return decide(case.definition, Policies((case.pair.rule,)), ALICE)


def doubt(seed: int, packets: int, report: Report, *, kernel: bool = False) -> None:
    """One pair, decided and doubted."""
    case = made(seed)
    if case is None:
        report.counts["not a flow"] += 1
        return
    decision = decided(case)
    chance = random.Random(seed)
    report.counts["accepted" if decision.accepted else "rejected"] += 1
    if not decision.obligations:
        report.problems.append(f"seed {seed}: not decided: {decision.reasons}\n    {case.pair.text}")
    for kind, disprove in ((Kind.CONTENT, _shown), (Kind.INFERENCE, _told)):
        obligations = [each for each in decision.obligations if each.kind is kind]
        results = {each.result for each in obligations}
        for each in obligations:
            report.counts[f"{kind} {each.result}"] += 1
            if each.result is Result.REFUTED:
                for problem in _refutation(case, each, kernel):
                    report.problems.append(
                        f"seed {seed}: {kind} refuted, but {problem}\n    {each.evidence}\n    {case.pair.text}"
                    )
        if not results and any(OUT_OF_TIME in each.evidence for each in decision.obligations):
            report.counts[f"{kind} not asked, for want of time"] += 1
            continue
        if results <= {Result.PROVED} and not (kind is Kind.INFERENCE and _scans(case) and not decision.accepted):
            for problem in disprove(case, chance, packets, report):
                report.problems.append(f"seed {seed}: {kind} proved, but {problem}\n    {case.pair.text}")


def _scans(case: Case) -> bool:
    """Whether a node tells what payload contains: that is content, and asked for there."""
    return any(isinstance(leaf.node, Scan) for _, leaf in case.graph.leaves())


def _shown(case: Case, chance: random.Random, packets: int, report: Report) -> Iterator[str]:
    """A packet that is shown although it may not be."""
    rule = case.pair.rule
    walk = Walk(case.graph, case.programs, _rows(case, chance, packets))
    if any(here.any() for here in walk.reached().values()):
        report.counts["content proved of packets that came"] += 1
    for step, depth, packet in violations(walk, rule.allow, rule.never, MOST_LOOKED_AT):
        yield f"{step} shows {depth.word} of {packet.hex()} ({_why(case, packet)})"
        return


def _told(case: Case, chance: random.Random, packets: int, report: Report) -> Iterator[str]:
    """Two packets that are told apart by what is hidden of both."""
    rule = case.pair.rule
    count = min(packets, HIDING)
    rows = _rows(case, chance, count)
    secret = np.zeros(rows.data.shape, np.bool_)
    for row in range(count):
        secret[row, list(_secret(case, rows[row]))] = True
    noise = changed(chance, rows, list(case.programs.values()), [each.packets for each in rule.allow])
    others = Packets(np.where(secret, noise.data, rows.data), rows.lengths)
    differs = tell_apart(Walk(case.graph, case.programs, rows), Walk(case.graph, case.programs, others))
    for row in np.flatnonzero(differs).tolist():
        one, other = rows[row], others[row]
        if _alike(case, one, other) and _secret(case, one) == _secret(case, other):
            yield f"these are told apart: {one.hex()} and {other.hex()}"
            return


def _secret(case: Case, packet: bytes) -> set[int]:
    pseudonyms = Depth.ANONYMISED in showing(case.graph).values()
    return wire.hidden(case.pair.rule.allow, case.pair.rule.never, packet, pseudonyms=pseudonyms)


def _alike(case: Case, one: bytes, other: bytes) -> bool:
    """Whether two packets are in the same allows and nevers, and equal but for what is hidden of one of them."""
    rule = case.pair.rule
    if len(one) != len(other) or wire.in_allows(rule.allow, one) != wire.in_allows(rule.allow, other):
        return False
    if wire.in_nevers(rule.never, one) != wire.in_nevers(rule.never, other):
        return False
    differs = {at for at, (mine, theirs) in enumerate(zip(one, other, strict=True)) if mine != theirs}
    return differs <= _secret(case, one) or differs <= _secret(case, other)


def _rows(case: Case, chance: random.Random, count: int) -> Packets:
    rule = case.pair.rule
    classes = [each.packets for each in (*rule.allow, *rule.never)]
    return near(chance, list(case.programs.values()), classes, count)


def _why(case: Case, packet: bytes) -> str:
    rule = case.pair.rule
    allowed = [each.show.word for each in rule.allow if wire.must(each.packets, packet)]
    forbidden = [number for number, each in enumerate(rule.never) if wire.may(each, packet)]
    return f"allowed: {allowed}, in never {forbidden}, carriers {sorted(wire.carriers(packet))}"


def _refutation(case: Case, obligation: Obligation, kernel: bool) -> Iterator[str]:
    """What is wrong with the packets of a refutation."""
    packets = obligation.packets
    if not packets:
        yield "there is no packet"
        return
    for packet in packets:
        for text, program in case.programs.items():
            if run_one(program, packet) != offline_filter(program, packet):
                yield f"interpreter and libpcap disagree about `{text}` on {packet.hex()}"
    if obligation.kind is Kind.CONTENT:
        yield from _content_refutation(case, packets[0], kernel)
    elif len(packets) != 2:
        yield f"{len(packets)} packets"
    elif not any(wire.dissect(packet).has_extension for packet in packets) and not _alike(case, *packets):
        # Behind an extension header filters are taken to read payload, whatever is there.
        yield f"these differ in more than what is hidden: {packets[0].hex()} and {packets[1].hex()}"
    elif not tell_apart(*(Walk(case.graph, case.programs, packed([packet])) for packet in packets)).any():
        yield f"these are not told apart: {packets[0].hex()} and {packets[1].hex()}"


def _content_refutation(case: Case, packet: bytes, kernel: bool) -> Iterator[str]:
    rule = case.pair.rule
    walk = Walk(case.graph, case.programs, packed([packet]))
    found = list(violations(walk, rule.allow, rule.never))
    if not found:
        reached = [case.graph.ids[step] for step, here in walk.reached().items() if here.any()]
        yield f"{packet.hex()} may be shown, or is not (reached {reached}; {_why(case, packet)})"
    elif kernel and _sinks(case) & {step for step, *_ in found} and not passes_in_kernel(case, packet):
        yield f"the kernel's program does not pass {packet.hex()}"


def _sinks(case: Case) -> set[str]:
    """The sinks, if nothing is left to chance: then what the kernel does is certain."""
    leaves = list(case.graph.leaves())
    if any(leaf.node.class_name in CHANCE for _, leaf in leaves):
        return set()
    return {case.graph.ids[index] for index, leaf in leaves if leaf.node.role is Role.SINK}


def passes_in_kernel(case: Case, packet: bytes) -> bool:
    """Whether the compiled flow delivers the packet. Takes root."""
    from tests.segment import loaded

    assert all(isinstance(case.graph.steps[sink], Leaf) for sink in case.graph.sinks)
    with loaded(f"(device,tap0) -> {case.pair.flow}") as (flow,):
        flow.run(packet)
        return any(len(batch) for batch in flow.batches())


def main(pairs: int, packets: int, seed: int, *, kernel: bool = False, seconds: float = float("inf")) -> Report:
    """Doubt so many pairs, each with so many packets; the report. Ends early after `seconds`."""
    report = Report()
    end_s = time.monotonic() + seconds
    for number in range(pairs):
        before = len(report.problems)
        doubt(seed + number, packets, report, kernel=kernel)
        for problem in report.problems[before:]:
            print(problem, flush=True)
        if time.monotonic() > end_s:
            break
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("pairs", 20_000), ("packets", 10_000), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kernel", action="store_true", help="refutations in the kernel too (root)")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    asked = parser.parse_args()
    found = main(asked.pairs, asked.packets, asked.seed, kernel=asked.kernel, seconds=asked.seconds)
    print(
        ", ".join(f"{name} {count}" for name, count in sorted(found.counts.items())),
        f"{len(found.problems)} problems",
        sep="\n",
    )
