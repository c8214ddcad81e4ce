"""What a packet costs at each node class, against the same function written in C by hand at XDP.

    python -m benchmarks.nodes [--quick]

A flow `(device) -> NODE -> (packetcount)`, or `-> NODE -> (grab)`, as the product runs it, against one program of
`handwritten/`. Nanoseconds per packet by BPF_PROG_TEST_RUN, as in `benchmarks.packet`. Before anything is measured both
get assorted packets, and must have let the same ones pass, counted the same and recorded the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import agreement, meter, scanning, sharing
from benchmarks.meter import Case, Rig
from benchmarks.node_chains import chain, varied
from benchmarks.node_rivals import LoadedRival, Rival
from benchmarks.node_works import WORKS, Work
from benchmarks.packet import Effort
from benchmarks.table import Row, Table, main
from ffpf_bpf.flow.chains import FLOW_SEED
from tests.network import Network, two_namespaces

GOAL = 1.2
WITHOUT = "(packetcount)"
WITHOUT_RIVAL = Rival("packetcount", ("-DNOTHING",))
NOTES = (
    "The loop of BPF_PROG_TEST_RUN, as an empty program shows it, is taken off, and what makes packets different where "
    "they are. In brackets what the node adds: less a flow that only counts, and the rival less one that only counts.",
    "A rival is one C program, inlined whole, with toggle and counters. It works out of the headers what it needs and "
    "nothing else; hashes and pseudonyms are the same functions, so that both let the same packets pass.",
    "In the same chain: the rival is a chain's one segment, behind an entry program, and asks for what follows. So "
    "what differs is the node's; the rest is the price of flows that come and go.",
    "LRU hash: the kernel's, by the flow's 64-bit hash. Own table: buckets of 8, as the flow has. BPF ring buffer: "
    "reserved and submitted, nobody woken. Own ring: slots of an array for each CPU; rewritten apart: in memory of the "
    "CPU, so that what is not rewritten yet is never in the ring, as in the flow. Rings are emptied in between.",
    "Scan: the rival is Aho and Corasick's automaton, a byte at a time. Python searches for the alternation of all "
    "patterns (`re`), or for one after the other (`in`).",
    "In common / in each: flows that begin alike run that once / the same flows, with names that tell them apart.",
)


def run(quick: bool = False) -> Table:
    """All rows. Raises ValueError if a flow and its rival disagree on a packet."""
    effort = Effort(1, 2, 2_000) if quick else Effort(7, 6, meter.REPEAT)
    with Rig(8) as rig, two_namespaces("nodes") as network, two_namespaces("without") as without:
        places = Places(rig, network, without)
        rows: list[Row] = []
        ours_ns: dict[str, float] = {}
        for work in (*WORKS, *scanning.works()):
            check(places, work)
            net_ns = measure(places, effort, work)
            rows += work_rows(work, net_ns)
            ours_ns[work.name] = net_ns["ours"]
        rows += scanning.rows(network, ours_ns, effort)
        rows += sharing.rows(rig, network, without, effort)
    return Table("A packet at a node (ns)", tuple(rows), NOTES)


@dataclass(frozen=True, slots=True)
class Places:
    """Where rivals are attached, where the flow is, and where one is that only counts."""

    rig: Rig
    network: Network
    without: Network


def check(places: Places, work: Work) -> None:
    """Raise ValueError unless the flow and each rival do the same."""
    for rival, chained in (*((rival, False) for rival in work.rivals), (work.rivals[-1], True)):
        with (
            chain(places.network, work.expression) as ours,
            LoadedRival(rival, FLOW_SEED, chained=chained) as loaded,
        ):
            agreement.check(work, ours, loaded)


def measure(places: Places, effort: Effort, work: Work) -> dict[str, float]:
    """Nanoseconds per packet, medians over several loads: `ours`, `rival 0` and so on, the last of them `chained`, and
    `without` the node."""
    found: dict[str, list[float]] = {}
    for _ in range(effort.loads):
        for name, net_ns in _measured(places, effort, work).items():
            found.setdefault(name, []).append(net_ns)
    return {name: statistics.median(values) for name, values in found.items()}


def work_rows(work: Work, net_ns: dict[str, float]) -> Iterator[Row]:
    """A row for each rival, and one for the last of them in a chain."""
    ours = net_ns["ours"]
    for number, rival in enumerate(work.rivals):
        theirs = net_ns[f"rival {number}"]
        yield Row(
            f"{work.name} / {rival.how}" if rival.how else work.name,
            f"{ours:.1f} ({ours - net_ns['without']:+.1f})",
            f"{theirs:.1f} ({theirs - net_ns['without rival']:+.1f})",
            *_judged(ours, theirs),
        )
    theirs = net_ns["chained"]
    how = work.rivals[-1].how
    yield Row(
        f"{work.name} / {how + ', ' if how else ''}in the same chain", f"{ours:.1f}", f"{theirs:.1f}",
        *_judged(ours, theirs),
    )  # fmt: skip


def _judged(ours_ns: float, theirs_ns: float) -> tuple[str, str, bool]:
    # A quick run may measure nothing.
    ratio = ours_ns / theirs_ns if theirs_ns > 0 else math.inf
    return f"{ratio:.2f}", f"<= {GOAL}", ratio <= GOAL


def _measured(places: Places, effort: Effort, work: Work) -> dict[str, float]:
    """Nanoseconds per packet, less the empty program's, of programs that lie anywhere in memory."""
    with ExitStack() as stack:
        ours = stack.enter_context(chain(places.network, work.expression))
        without = stack.enter_context(chain(places.without, f"(device,tap0) -> {WITHOUT}"))
        loaded = [stack.enter_context(LoadedRival(rival, FLOW_SEED)) for rival in (*work.rivals, WITHOUT_RIVAL)]
        chained = stack.enter_context(LoadedRival(work.rivals[-1], FLOW_SEED, chained=True))
        programs = {"ours": ours.program, "without": without.program, "without rival": loaded[-1].program}
        programs["chained"] = chained.program
        programs["empty"] = stack.enter_context(meter.empty_program())
        programs |= {f"rival {number}": rival.program for number, rival in enumerate(loaded[:-1])}
        drains = {"ours": ours.drain, "chained": chained.drain} | {
            f"rival {number}": rival.drain for number, rival in enumerate(loaded[:-1])
        }
        attached = [program for name, program in programs.items() if work.vary or name not in ("ours", "without")]
        if work.vary is not None:
            programs = {name: stack.enter_context(varied(work.vary, it)) for name, it in programs.items()}
            attached = list(programs.values())
        stack.enter_context(places.rig.attached(*attached))
        cases = {name: Case(program, work.packet, drains.get(name)) for name, program in programs.items()}
        times = meter.measure(cases, rounds=effort.rounds, repeat=min(effort.repeat, work.most_packets))
    return {name: ns - times["empty"] for name, ns in times.items()}


if __name__ == "__main__":
    main(run, "a packet at each node class")
