"""Random flows and policies decided by the proofs, and every answer doubted by packets.

- Proved: no packet of many, near what filter and policy name, is shown although it may not be, and no two that are
  equal but for what is hidden are told apart.
- Refuted: the packet of the refutation passes in the interpreter, in libpcap and (as root) in the kernel's program, and
  may not be shown; the two packets of an inference are equal but for what is hidden, and are told apart.

    .venv/bin/python -m tests.fuzz_proofs --pairs 20000 --packets 10000 --seed 1 --jobs 2

A line each minute, and the last one, also when interrupted, say of all pairs so far:

- pairs: a flow and a policy, one seed each, that were decided; of `not a flow` libpcap refuses the filter, or finds that
  it passes nothing. `accepted` and `rejected` add up to the pairs.
- `content`, `inference` with `proved`, `refuted`, `refused`: obligations of the decisions. A pair has one about content
  for each sink or node that shows something and each class of the policy that may forbid it, one about inference for
  each set of hidden parts. `refused` is neither: out of time, or what a node lets pass cannot be told.
- `inference not asked`: pairs whose time was over before.
- `content doubted`, `inference doubted`: obligations that were proved and that packets were then tried on: each of
  content with `--packets` of its own, of which all that reach what it is about were looked at (`packets looked at`, those
  of all obligations); inference, of a pair whose obligations about it were all proved, with as many pairs of packets.
- `content doubted by what came`: of these the ones that a packet reached at all.
- `refuted in the kernel`: packets of refutations that the compiled program delivered, with `--kernel`. The others are of
  flows with nodes that chance decides, or refute what a node shows that is no sink.
- problems: what is wrong with an answer, printed when it is found.

A run that ended early goes on at the seed that lies as far behind its own as there are pairs and `not a flow`.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from types import MappingProxyType

import numpy as np

from ffpf_bpf.authorise import Decision, Policies, Subject, decide
from ffpf_bpf.authorise.decision import OUT_OF_TIME, Kind, Obligation, Result
from ffpf_bpf.authorise.policy import Never
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
LIMIT_S = 60.0  # of a decision: other programs may run beside
OTHERS = 10  # that a packet is compared with, which have other bytes where something is hidden
BATCH = 5  # seeds that a job is given at once
PROGRESS_S = 60.0


@dataclass(frozen=True)
class Case:
    """A pair that compiles, and its parts."""

    pair: Pair
    graph: Graph
    programs: Mapping[str, Program]

    @property
    def definition(self) -> Definition:
        return Definition(self.graph, MappingProxyType(dict(self.programs)), 1 << 16)

    @cached_property
    def pseudonyms(self) -> bool:
        """Whether a sink shows packets with pseudonyms for addresses."""
        return Depth.ANONYMISED in showing(self.graph).values()


@dataclass(frozen=True, slots=True)
class Claim:
    """That a step, which shows so much of packets, shows none that `never` forbids; without one, none but what is
    allowed."""

    step: int
    depth: Depth
    never: Never | None

    def is_broken_by(self, case: Case, packet: bytes) -> bool:
        if self.never:
            return wire.may(self.never, packet)
        return not any(allow.show >= self.depth and wire.must(allow.packets, packet) for allow in case.pair.rule.allow)


@dataclass
class Report:
    """`counts` of pairs by what became of them; `problems` are sentences, with the pair and the packets."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.counts += other.counts
        self.problems += other.problems

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(self.counts.items()) if name != "pairs")
        return f"{self.counts['pairs']:,} pairs, {len(self.problems)} problems: {counts}"


def made(seed: int) -> Case | None:
    """The case of that seed; None if libpcap finds that its filter rejects everything, or the graph is refused."""
    found = pair(seed)
    try:
        graph = build(parse(f"(device,tap0) -> {found.flow}"))
        return Case(found, graph, compile_predicates(graph))
    except ExpressionError:
        return None


def decided(case: Case) -> Decision:
    return decide(case.definition, Policies((case.pair.rule,)), ALICE, limit_s=LIMIT_S)


def claims(case: Case) -> list[Claim]:
    """What is asked about content, in the order of the decision's obligations."""
    return [
        Claim(step, depth, never)
        for step, depth in showing(case.graph).items()
        for never in (None, *(never for never in case.pair.rule.never if depth >= never.show))
    ]


def doubt(seed: int, packets: int, report: Report, *, kernel: bool = False) -> None:
    """One pair, decided and doubted."""
    case = made(seed)
    if case is None:
        report.counts["not a flow"] += 1
        return
    decision = decided(case)
    report.counts.update(["pairs", "accepted" if decision.accepted else "rejected"])
    chance = random.Random(seed)
    problems = _doubts(case, decision, chance, packets, report, kernel)
    report.problems += [f"seed {seed}: {problem}\n    {case.pair.text}" for problem in problems]


def _doubts(
    case: Case, decision: Decision, chance: random.Random, packets: int, report: Report, kernel: bool
) -> Iterator[str]:
    """What is wrong with the decision."""
    if not decision.obligations:
        yield f"not decided: {decision.reasons}"
    for each in decision.obligations:
        report.counts[f"{each.kind} {each.result}"] += 1
        if each.result is Result.REFUTED:
            for problem in _refutation(case, each, report, kernel):
                yield f"{each.kind} refuted, but {problem}\n    {each.evidence}"
    content, inference = (
        [each for each in decision.obligations if each.kind is kind] for kind in (Kind.CONTENT, Kind.INFERENCE)
    )
    asked = list(zip(claims(case), content, strict=False))  # the time may be over before all are
    assert all(f"`{case.graph.ids[claim.step]}`" in each.claim for claim, each in asked)
    proved = [claim for claim, each in asked if each.result is Result.PROVED]
    yield from (f"content proved, but {problem}" for problem in _shown(case, proved, chance, packets, report))
    if not inference and any(OUT_OF_TIME in each.evidence for each in decision.obligations):
        report.counts["inference not asked"] += 1
    elif all(each.result is Result.PROVED for each in inference) and (decision.accepted or not _scans(case)):
        yield from (f"inference proved, but {problem}" for problem in _told(case, chance, packets, report))


def _scans(case: Case) -> bool:
    """Whether a node tells what payload contains: that is content, and asked for there."""
    return any(isinstance(leaf.node, Scan) for _, leaf in case.graph.leaves())


def _shown(case: Case, claimed: Sequence[Claim], chance: random.Random, packets: int, report: Report) -> Iterator[str]:
    """Packets that are shown although they may not be: of each claim that is broken, one."""
    if not claimed:
        return
    walk = Walk(case.graph, case.programs, _rows(case, chance, packets))
    reached = walk.reached()
    for claim in claimed:
        rows = np.flatnonzero(reached[claim.step]).tolist()
        report.counts["content doubted"] += 1
        report.counts["content doubted by what came"] += bool(rows)
        report.counts["packets looked at"] += len(rows)
        for packet in map(walk.packets.__getitem__, rows):
            if claim.is_broken_by(case, packet):
                name = case.graph.ids[claim.step]
                yield f"{name} shows {claim.depth.word} of {packet.hex()} ({_why(case, packet)})"
                break


def _told(case: Case, chance: random.Random, packets: int, report: Report) -> Iterator[str]:
    """Two packets that are told apart by what is hidden of both."""
    rule = case.pair.rule
    firsts = _rows(case, chance, -(-packets // OTHERS))
    secret = np.zeros(firsts.data.shape, np.bool_)
    for row in range(len(firsts)):
        secret[row, list(_secret(case, firsts[row]))] = True
    rows = Packets(np.repeat(firsts.data, OTHERS, 0), np.repeat(firsts.lengths, OTHERS))
    noise = changed(chance, rows, list(case.programs.values()), [each.packets for each in rule.allow])
    others = Packets(np.where(np.repeat(secret, OTHERS, 0), noise.data, rows.data), rows.lengths)
    differs = tell_apart(Walk(case.graph, case.programs, rows), Walk(case.graph, case.programs, others))
    report.counts["inference doubted"] += 1
    for row in np.flatnonzero(differs).tolist():
        one, other = rows[row], others[row]
        if _alike(case, one, other) and _secret(case, one) == _secret(case, other):
            yield f"these are told apart: {one.hex()} and {other.hex()}"
            return


def _secret(case: Case, packet: bytes) -> set[int]:
    return wire.hidden(case.pair.rule.allow, case.pair.rule.never, packet, pseudonyms=case.pseudonyms)


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


def _refutation(case: Case, obligation: Obligation, report: Report, kernel: bool) -> Iterator[str]:
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
        yield from _content_refutation(case, packets[0], report, kernel)
    elif len(packets) != 2:
        yield f"{len(packets)} packets"
    elif not any(wire.dissect(packet).has_extension for packet in packets) and not _alike(case, *packets):
        # Behind an extension header filters are taken to read payload, whatever is there.
        yield f"these differ in more than what is hidden: {packets[0].hex()} and {packets[1].hex()}"
    elif not tell_apart(*(Walk(case.graph, case.programs, packed([packet])) for packet in packets)).any():
        yield f"these are not told apart: {packets[0].hex()} and {packets[1].hex()}"


def _content_refutation(case: Case, packet: bytes, report: Report, kernel: bool) -> Iterator[str]:
    rule = case.pair.rule
    walk = Walk(case.graph, case.programs, packed([packet]))
    found = list(violations(walk, rule.allow, rule.never))
    if not found:
        reached = [case.graph.ids[step] for step, here in walk.reached().items() if here.any()]
        yield f"{packet.hex()} may be shown, or is not (reached {reached}; {_why(case, packet)})"
    elif kernel and _sinks(case) & {step for step, *_ in found}:
        if passes_in_kernel(case, packet):
            report.counts["refuted in the kernel"] += 1
        else:
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


def doubted(seeds: Iterable[int], packets: int, kernel: bool) -> Report:
    """What became of the pairs of these seeds."""
    report = Report()
    for seed in seeds:
        doubt(seed, packets, report, kernel=kernel)
    return report


def reports(pairs: int, packets: int, seed: int, kernel: bool, jobs: int) -> Iterator[Report]:
    """Of a few seeds each, by so many processes, as they are done, until there are so many pairs. A process that crashes
    raises BrokenProcessPool."""
    batches = (range(first, first + BATCH) for first in count(seed, BATCH))
    running: set[Future[Report]] = set()
    with ProcessPoolExecutor(jobs, initializer=_ignore_interrupts) as pool:
        try:
            while pairs > 0 or running:
                while pairs > 0 and len(running) < 2 * jobs:
                    running.add(pool.submit(doubted, next(batches), packets, kernel))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for report in (each.result() for each in done):
                    pairs -= report.counts["pairs"]
                    yield report
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Whoever waits for this process ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(
    pairs: int, packets: int, seed: int, *, kernel: bool = False, jobs: int = 1, seconds: float = float("inf")
) -> Report:
    """Doubt so many pairs, or a few more, each with so many packets; the report, printed as it grows. Ends early after
    `seconds`, or when interrupted."""
    report = Report()
    start_s = told_s = time.monotonic()

    def tell() -> None:
        print(f"{time.monotonic() - start_s:.0f} s: {report}", flush=True)

    try:
        for part in reports(pairs, packets, seed, kernel, jobs):
            report.add(part)
            for problem in part.problems:
                print(problem, flush=True)
            if time.monotonic() > told_s + PROGRESS_S:
                told_s = time.monotonic()
                tell()
            if time.monotonic() > start_s + seconds:
                break
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        tell()
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 20_000), ("packets", 10_000), ("seed", 1), ("jobs", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kernel", action="store_true", help="refutations in the kernel too (root)")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(1 if main(**vars(parser.parse_args())).problems else 0)
