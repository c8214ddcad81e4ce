"""What switching a flow on and off costs its application.

    python -m benchmarks.switch [--quick]

Microseconds per call from Python, everything that the call does included: medians over many calls, for a flow alone at
its tap and for one among ten.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.table import Row, Table, main
from ffpf_bpf.flow import Flow
from tests.network import two_namespaces

GOAL_US = 5.0


def run(quick: bool = False) -> Table:
    """All rows."""
    pairs, waits = (50, 2) if quick else (20_000, 50)
    rows = [*_rows(1, pairs, waits), *_rows(10, pairs, waits)]
    notes = ("`pause(wait=True)` waits for an RCU grace period.",)
    return Table("Switching (microseconds per call)", tuple(rows), notes)


def _rows(flows: int, pairs: int, waits: int) -> Iterator[Row]:
    with two_namespaces("switch") as network, network.enter(), ExitStack() as stack:
        for number in range(flows):
            flow = stack.enter_context(Flow.create())
            flow.populate(f'(device,tap0) -> (bpf,"tcp port {80 + number}") -> (grab,snaplen=96)').instantiate()
        activate, pause = _median_us(flow, pairs, wait=False)
        _, waiting = _median_us(flow, waits, wait=True)
    among = "alone" if flows == 1 else f"among {flows}"
    goal = f"<= {GOAL_US:.0f}"
    for name, us in (("activate", activate), ("pause", pause)):
        yield Row(f"{name}, {among}", f"{us:.2f}", goal=goal, met=us <= GOAL_US)
    yield Row(f"pause(wait=True), {among}", f"{waiting:,.0f}")


def _median_us(flow: Flow, pairs: int, *, wait: bool) -> tuple[float, float]:
    times: tuple[list[int], list[int]] = ([], [])
    for _ in range(pairs):
        before = time.perf_counter_ns()
        flow.activate()
        between = time.perf_counter_ns()
        flow.pause(wait=wait)
        after = time.perf_counter_ns()
        times[0].append(between - before)
        times[1].append(after - between)
    activate, pause = (statistics.median(found) / 1000 for found in times)
    return activate, pause


if __name__ == "__main__":
    main(run, "activate and pause")
