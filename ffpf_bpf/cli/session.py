"""Flows run to their end: activated together, drained, paused, reported, closed."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TextIO

import numpy as np

from ffpf_bpf.capture.packet import Packet
from ffpf_bpf.capture.pcapng import InterfaceDescription, InterfaceStatistics
from ffpf_bpf.capture.ring import Batch
from ffpf_bpf.capture.rotation import RotatingWriter, Rotation
from ffpf_bpf.capture.waiting import Pace, together
from ffpf_bpf.cli import report
from ffpf_bpf.errors import FfpfError, IllegalState
from ffpf_bpf.flow import Flow, State

PROGRESS_PERIOD_S = 0.5
STATS_PERIOD_S = 1.0
FEW_SLOTS = 512


@dataclass(slots=True)
class Session:
    """What to do with the packets of `flows`, and when to end."""

    flows: list[Flow]
    write: str | None = None
    print_packets: bool = False
    count: int | None = None
    duration_s: float | None = None
    json: bool = False
    stats: bool = False
    rotation: Rotation = field(default_factory=Rotation)
    compress: str = ""
    grabbed: int = 0
    signal: int = 0
    _writer: RotatingWriter | None = None
    _started_ns: int = 0
    _shown_s: float = 0.0
    _stats_lines: int = 0
    _events_told: dict[str, int] = field(default_factory=dict)  # by flow, the last one's number
    _file_numbers: dict[str, list[int]] = field(default_factory=dict)  # by flow, of its taps in the file
    _rate_base: tuple[float, int] = field(default=(0.0, 0))

    def run(self) -> int:
        """Run to the end; the exit code. Raises what the flows or the file raise, with the flows closed."""
        previous = {number: signal.signal(number, self._end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._started_ns = time.time_ns()
            if self.write is not None:
                self._writer = RotatingWriter(
                    self.write, self._interfaces(), self._comment(), self.rotation, self.compress, self._statistics
                )
            self._grab()
        except FfpfError:
            self._finish()
            self._report()
            raise
        finally:
            try:
                self._finish()
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)
        self._report()
        return 128 + self.signal if self.signal else 0

    def _grab(self) -> None:
        self._each(lambda flow: flow.activate())
        self._shown_s = time.monotonic() if self.stats else 0.0
        end_s = None if self.duration_s is None else time.monotonic() + self.duration_s
        pace = Pace()
        while not self._ended(end_s):
            taken = self._waiting()
            self._each(self._poll)
            self._show_progress()
            self._show_stats()
            self._each(lambda flow: flow.check_taps())
            self._tell_events()
            left_s = None if end_s is None else end_s - time.monotonic()
            pace.rest(self._listen, taken, self._waiting(), left_s)
        last = [flow for flow in self.flows if not _is_over(flow)][-1:]
        self._each(lambda flow: flow.pause(wait=flow in last))
        self._each(self._drain)
        for flow in self.flows:
            if _is_over(flow):
                print(f"ffpf: {flow.id}: its time was over", file=sys.stderr)

    def _each(self, act: Callable[[Flow], object]) -> None:
        """Do something with each flow that is not over: a policy may let it live for some time only."""
        for flow in self.flows:
            if _is_over(flow):
                continue
            try:
                act(flow)
            except (IllegalState, ValueError):
                if not _is_over(flow):
                    raise

    def _waiting(self) -> float:
        """How full the fullest ring is."""
        found = [0.0]
        self._each(lambda flow: found.append(flow.waiting()))
        return max(found)

    def _listen(self) -> list[int] | None:
        """What to sleep on until a packet comes, unless one is there."""
        found: list[list[int] | None] = []
        self._each(lambda flow: found.append(flow.listen()))
        return together(found)

    def _poll(self, flow: Flow) -> int:
        """What waits; the number of its batches."""
        batches = 0
        for batch in flow.poll():
            batches += 1
            self._consume(flow, batch)
        return batches

    def _drain(self, flow: Flow) -> None:
        """What was recorded before the pause."""
        while self._poll(flow):
            pass

    def _consume(self, flow: Flow, batch: Batch) -> None:
        if self.count is not None:
            batch = batch.chosen(slice(max(0, self.count - self.grabbed)))
        if len(batch) == 0:
            return
        if self._writer is not None:
            self._writer.write(*self._numbered(flow, batch.records))
        if self.print_packets:
            self._print(batch.packets(flow.interfaces, flow.first_interface))
        self.grabbed += len(batch)

    def _numbered(self, flow: Flow, records: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
        """Records with the numbers that their taps have in the file, and the number of the flow's first."""
        if not flow.has_globs:
            return records, flow.first_interface
        assert self._writer is not None
        numbers = self._file_numbers.setdefault(flow.id, [])
        for name in flow.interfaces[len(numbers) :]:
            numbers.append(self._writer.add_interface(_description(flow, name)))
        records = records.copy()
        records["interface"] = np.array(numbers, np.uint32)[records["interface"] - np.uint32(flow.first_interface)]
        return records, numbers[0]

    def _tell_events(self) -> None:
        """What happened to interfaces."""
        for flow in self.flows:
            for event in flow.events:
                if event.number > self._events_told.get(flow.id, 0):
                    self._events_told[flow.id] = event.number
                    self._clear_progress()
                    print(f"ffpf: {flow.id}: {event}", file=sys.stderr, flush=True)

    def _print(self, packets: Iterable[Packet]) -> None:
        if not report.print_packets(packets):
            self.print_packets, self.count = False, 0

    def _ended(self, end_s: float | None) -> bool:
        if self.signal or (self.count is not None and self.grabbed >= self.count) or self._reader_gone():
            return True
        if all(flow.is_over for flow in self.flows) or (self._writer is not None and self._writer.is_over):
            return True
        return end_s is not None and time.monotonic() >= end_s

    def _reader_gone(self) -> bool:
        """Whoever read our standard output closed it: known without writing, so that a quiet flow ends too."""
        if not (self.print_packets or self.write == "-"):
            return False
        poll = select.poll()
        poll.register(sys.stdout, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))

    def _finish(self) -> None:
        """Close flows and file, whatever happened before."""
        self._clear_progress()
        try:
            Flow.close_all(self.flows)
        finally:
            if self._writer is not None:
                self._writer.close()

    def _end(self, number: int, _frame: FrameType | None) -> None:
        """The first signal ends the session in order; a second one at once, where a reader stands still."""
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number

    def _interfaces(self) -> list[InterfaceDescription]:
        """Those that are known. The taps of a glob are told when packets come."""
        return [_description(flow, name) for flow in self.flows if not flow.has_globs for name in flow.interfaces]

    def _comment(self) -> str:
        """Each flow and its graph: the digest is that of its decision, and of its line in an audit journal."""
        return "\n".join(
            f"{flow.id}: {flow.definition.text}\n{flow.id}: graph {flow.definition.digest}" for flow in self.flows
        )

    def _statistics(self) -> list[InterfaceStatistics]:
        """The ledger of each flow at its first tap: a file's statistics are by interface, a ledger by flow."""
        statistics = []
        for flow in self.flows:
            numbers = self._file_numbers.get(flow.id, []) if flow.has_globs else [flow.first_interface]
            if not numbers:
                continue
            ledger = flow.stats().ledger
            statistics.append(
                InterfaceStatistics(
                    interface=numbers[0],
                    start_ns=self._started_ns,
                    end_ns=time.time_ns(),
                    received=ledger.seen,
                    dropped=0,
                    accepted=ledger.delivered + ledger.ring_full,
                    os_dropped=ledger.ring_full,
                )
            )
        return statistics

    def _report(self) -> None:
        if self.json:
            self._print_json()
            return
        for flow in self.flows:
            print(report.text(flow), file=sys.stderr)
        delivered = sum(flow.stats().ledger.delivered for flow in self.flows)
        if lost := sum(flow.stats().ledger.ring_full for flow in self.flows):
            slow = "what they were written to" if self._writer is not None else "this reader"
            print(
                f"{lost:,} packets lost, because {slow} was too slow: take a larger `--buffer`, or less of each (`-s`)",
                file=sys.stderr,
            )
        if self._writer is not None:
            where = "standard output" if self.write == "-" else self._writer.name
            where = f"{self._writer.files} files, the last of them {where}" if self._writer.files > 1 else where
            written = self._writer.packets_written
            of = f" of {delivered:,}" if written < delivered else ""
            print(f"{written:,}{of} packets written to {where}", file=sys.stderr)
        elif self.print_packets and self.grabbed < delivered:
            print(f"{self.grabbed:,} of {delivered:,} packets printed", file=sys.stderr)

    def _show_stats(self) -> None:
        """The nodes' counters, every second: tables on a terminal in place of the last ones, or a line of JSON."""
        now_s = time.monotonic()
        if not self.stats or now_s < self._shown_s + STATS_PERIOD_S:
            return
        self._shown_s = now_s
        if self.json:
            self._print_json()
            return
        text = "\n".join(report.text(flow) for flow in self.flows)
        if sys.stderr.isatty() and not self.print_packets:
            up = f"\x1b[{self._stats_lines}A" if self._stats_lines else ""
            print(f"{up}\r\x1b[J{text}", file=sys.stderr, flush=True)
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            self._stats_lines = sum(max(1, -(-len(line) // columns)) for line in text.split("\n"))
        else:
            print(text, file=sys.stderr, flush=True)

    def _print_json(self) -> None:
        out: TextIO = sys.stderr if self.write == "-" else sys.stdout
        document: dict[str, Any] = {"flows": [report.as_json(flow) for flow in self.flows]}
        print(json.dumps(document), file=out, flush=True)

    def _show_progress(self) -> None:
        now_s = time.monotonic()
        if self.stats or self.print_packets or now_s < self._shown_s + PROGRESS_PERIOD_S or not sys.stderr.isatty():
            return
        before_s, before = self._rate_base
        ledgers = [flow.stats().ledger for flow in self.flows]
        seen, lost = (sum(getattr(ledger, name) for ledger in ledgers) for name in ("seen", "ring_full"))
        rate = (seen - before) / (now_s - before_s) if before_s else 0.0
        self._rate_base, self._shown_s = (now_s, seen), now_s
        text = f"{seen:,} seen, {rate:,.0f}/s, {self.grabbed:,} grabbed, {lost:,} lost (Ctrl-C ends)"
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def _clear_progress(self) -> None:
        if self._stats_lines:
            print(f"\x1b[{self._stats_lines}A\r\x1b[J", end="", file=sys.stderr, flush=True)
        elif self._shown_s and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _description(flow: Flow, tap: str) -> InterfaceDescription:
    return InterfaceDescription(tap, flow.snaplen, flow.definition.text)


def _is_over(flow: Flow) -> bool:
    return flow.state is State.CLOSED


def announce(flows: list[Flow], warn: Callable[[str], None]) -> None:
    """Say what a user should know before packets come: generic mode, and that nobody checked a policy."""
    for flow in flows:
        for tap in flow.taps:
            if tap["mode"] == "generic":
                warn(f"{tap['tap']}: attached in {tap['mode']} mode, which is slower; native: {tap.get('refusal', '')}")
            if "monitor" in tap:
                warn(f"{tap['tap']}: a monitor port: while this runs, what arrives there does not reach the host")
        if 0 < flow.ring_slots < FEW_SLOTS:
            warn(
                f"{flow.id}: a ring of {flow.ring_slots} packets: state a snaplen, or a larger --buffer, to lose fewer"
            )
    reasons = [reason for flow in flows if flow.decision for reason in flow.decision.reasons]
    for reason in dict.fromkeys(reasons):
        warn(reason)
