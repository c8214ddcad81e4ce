"""Nanoseconds per packet of a loaded XDP program, by BPF_PROG_TEST_RUN.

A call with repeat > 1 puts the program into the kernel's XDP dispatcher and waits 24 ms for it, unless it is in there
already because it is attached somewhere: so the meter attaches what it measures, in generic mode, to interfaces of a
namespace of its own where nothing ever arrives. Then a call costs microseconds, and programs can be measured in turn.

The kernel's `duration` is a whole number of nanoseconds. The fraction comes from the thread's CPU time, which stands
still while the thread waits; the fixed cost of a call, 6 to 14 microseconds, is taken off. Where the two disagree,
`duration` is right.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pyroute2 import netns

from ffpf_bpf.kernel import calls, interfaces
from ffpf_bpf.kernel.maps import Descriptor
from tests.network import ip

REPEAT = 100_000
ROUNDS = 9
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Case:
    """A program, by its descriptor, and the packet it runs on; `before` each measurement, what makes room."""

    program: int
    packet: bytes
    before: Callable[[], object] | None = None


def measure(cases: Mapping[str, Case], *, rounds: int = ROUNDS, repeat: int = REPEAT) -> dict[str, float]:
    """Nanoseconds per packet for each case, the loop of BPF_PROG_TEST_RUN (6 to 30 ns) included.

    The cases are measured in turn, round after round, in alternating order; of each the median of the fastest third
    counts, since whatever else the machine does only ever adds. Each program must be attached somewhere.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in sorted(cases, reverse=bool(number % 2)):
            found[name].append(run_ns(cases[name], repeat))
    return {name: statistics.median(sorted(values)[: max(1, rounds // 3)]) for name, values in found.items()}


def run_ns(case: Case, repeat: int = REPEAT) -> float:
    """One measurement."""
    if case.before is not None:
        case.before()
    before = time.thread_time_ns()
    calls.test_run(case.program, case.packet, 1)
    call_ns = time.thread_time_ns() - before
    before = time.thread_time_ns()
    duration_ns = calls.test_run(case.program, case.packet, repeat).duration_ns
    precise_ns = (time.thread_time_ns() - before - call_ns) / repeat
    return precise_ns if abs(precise_ns - duration_ns - 0.5) <= 0.75 else duration_ns + 0.5


class Rig:
    """A namespace with interfaces where no packet comes, to attach what is measured. Use it with `with`."""

    def __init__(self, places: int = 4) -> None:
        self._name = f"ffpf-meter-{os.getpid()}-{next(_numbers)}"
        with ExitStack() as stack:
            ip("netns", "add", self._name)
            stack.callback(ip, "netns", "delete", self._name)
            for pair in range(0, places, 2):
                ip("-n", self._name, "link", "add", f"p{pair}", "type", "veth", "peer", "name", f"p{pair + 1}")
            self._stack = stack.pop_all()

    @contextmanager
    def attached(self, *programs: int) -> Iterator[None]:
        """The programs, in generic mode, each at a place of its own."""
        with ExitStack() as stack:
            netns.pushns(self._name)
            try:
                for number, program in enumerate(programs):
                    index = interfaces.find(f"p{number}").index
                    stack.enter_context(Descriptor(calls.attach_xdp(program, index, calls.XDP_FLAGS_SKB_MODE)))
            finally:
                netns.popns()
            yield

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()


@contextmanager
def empty_program() -> Iterator[int]:
    """A loaded program that only says XDP_PASS: what it takes is the loop of BPF_PROG_TEST_RUN."""
    with Descriptor(calls.load_program("empty", calls.PASS_PROGRAM)) as program:
        yield program.fileno
