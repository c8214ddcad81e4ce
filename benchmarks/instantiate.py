"""How long it takes until a flow stands in the kernel.

    python -m benchmarks.instantiate [--quick]

One flow `(device,tap0) -> (bpf,"tcp port N") -> (grab,snaplen=96)`, authorised by the policies in policies/; N is new
each time, so no cache knows the filter. The process is warm. The rival is the same filter in C through bcc, which
counts packets; where bcc has no kernel headers, clang-19 as a process and the load.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks import rivals
from benchmarks.headers import NoHeaders, kernel_headers
from benchmarks.table import Row, Table, main
from ffpf_bpf import compiler
from ffpf_bpf.flow import Flow
from ffpf_bpf.kernel import calls, interfaces
from ffpf_bpf.kernel import tap as tap_module
from ffpf_bpf.kernel.maps import Descriptor
from ffpf_bpf.kernel.programs import load
from tests.network import two_namespaces

GOAL_MS, GOAL_RATIO = 25.0, 0.25
POLICIES = Path(__file__).parent.parent / "policies"
_ports = count(1024)


@dataclass
class Parts:
    """Milliseconds of each part of each round."""

    rounds: list[dict[str, float]] = field(default_factory=list)

    def add(self, name: str, ms: float) -> None:
        self.rounds[-1][name] = self.rounds[-1].get(name, 0.0) + ms

    def median(self, name: str) -> float:
        return statistics.median(parts.get(name, 0.0) for parts in self.rounds)


def run(quick: bool = False) -> Table:
    """All rows."""
    rounds = 2 if quick else 30
    later, first, rival, rival_attached = Parts(), Parts(), Parts(), Parts()
    notes = ["Medians. Load is the verifier and the JIT; attach is the kernel's XDP attach, which waits."]
    with two_namespaces("instantiate") as network, network.enter(), ExitStack() as stack:
        build, name = _rival(stack, notes)
        for _ in range(3 if not quick else 1):
            _instantiate(Parts())
            build(False)
        for number in range(rounds):
            with _flow().instantiate():
                _instantiate(later)
            _instantiate(first)
            if number < max(2, rounds // 3):
                rival.rounds.append({"total": build(False)})
                rival_attached.rounds.append({"total": build(True)})
    rows = [
        *_rows("tap attached already", later, name, rival),
        *_rows("first flow of a tap", first, f"{name} + attach", rival_attached),
    ]
    return Table("Instantiating a flow (ms)", tuple(rows), tuple(notes))


def _rows(work: str, ours: Parts, name: str, rival: Parts) -> Iterator[Row]:
    total, other = ours.median("total"), rival.median("total")
    yield Row(f"{work}: in all", f"{total:.1f}", "", "", f"<= {GOAL_MS:.0f}", total <= GOAL_MS)
    ratio, goal = total / other, f"<= {GOAL_RATIO}"
    yield Row(f"{work}: {name}", f"{total:.1f}", f"{other:.1f}", f"{ratio:.2f}", goal, ratio <= GOAL_RATIO)
    for part in ("populate", "authorise", "compile", "load", "attach", "link"):
        yield Row(f"  of that {part}", f"{ours.median(part):.1f}")


def _flow() -> Flow:
    expression = f'(device,tap0) -> (bpf,"tcp port {next(_ports)}") -> (grab,snaplen=96)'
    return Flow.create(policies=POLICIES).populate(expression)


def _instantiate(parts: Parts) -> None:
    """One flow comes and goes; the time of its coming in parts."""
    parts.rounds.append({})
    with ExitStack() as stack:
        for owner, name, part in (
            (Flow, "authorise", "authorise"),
            (compiler, "compile_segment", "compile"),
            (compiler, "compile_entry", "compile"),
            (tap_module.Tap, "load_segment", "load"),
            (tap_module, "load", "load"),
            (calls, "attach_xdp", "attach"),
            (tap_module.Tap, "link", "link"),
        ):
            stack.enter_context(_timed(parts, owner, name, part))
        before = time.perf_counter()
        flow = _flow()
        populated = time.perf_counter()
        flow.instantiate()
        after = time.perf_counter()
    parts.add("populate", 1000 * (populated - before))
    parts.add("total", 1000 * (after - before))
    flow.close()


@contextmanager
def _timed(parts: Parts, owner: Any, name: str, part: str) -> Iterator[None]:
    """Time the calls of `owner.name`; a call inside a timed call of the same part is not counted twice."""
    original: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        already = parts.rounds[-1].get(part, 0.0)
        before = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            parts.rounds[-1][part] = already + 1000 * (time.perf_counter() - before)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _rival(stack: ExitStack, notes: list[str]) -> tuple[Callable[[bool], float], str]:
    """How to build the rival once (attached at tap0 or not), in milliseconds, and what it is."""
    try:
        notes.append(f"bcc compiles with {stack.enter_context(kernel_headers())}.")
    except NoHeaders as error:
        notes.append(f"bcc.BPF(text=...): not runnable here: {error}. In its place clang-19 as a process, and load.")
        return _with_clang, "clang-19"
    return _with_bcc, "bcc"


def _with_bcc(attach: bool) -> float:
    from bcc import BPF  # noqa: PLC0415 - half a second to import

    source = (rivals.HANDWRITTEN / "bcc.c").read_text(encoding="utf-8").replace("PORT)", f"{next(_ports)})")
    before = time.perf_counter()
    program = BPF(text=source)
    function = program.load_func("filter", BPF.XDP)
    with ExitStack() as stack:
        if attach:
            stack.enter_context(_attached(function.fd))
        after = time.perf_counter()
    program.cleanup()
    return 1000 * (after - before)


def _with_clang(attach: bool) -> float:
    source = (rivals.HANDWRITTEN / "tcp_port_80.c").read_text(encoding="utf-8").replace("80)", f"{next(_ports)})")
    before = time.perf_counter()
    with ExitStack() as stack:
        program = stack.enter_context(load(rivals.compile_text(source).programs["filter"], {}))
        if attach:
            stack.enter_context(_attached(program.fileno))
        after = time.perf_counter()
    return 1000 * (after - before)


def _attached(program: int) -> Descriptor:
    return Descriptor(calls.attach_xdp(program, interfaces.find("tap0").index, calls.XDP_FLAGS_DRV_MODE))


if __name__ == "__main__":
    main(run, "instantiating a flow")
