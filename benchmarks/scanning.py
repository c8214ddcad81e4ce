"""Scanning payload: beside C by hand, beside Python on the same payload, and beside grabbing whole frames and scanning
in user space. Works and rows for `benchmarks.nodes`.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

from benchmarks import patterns
from benchmarks.frames import UDP, ipv4, udp
from benchmarks.node_chains import chain
from benchmarks.node_rivals import PERCPU_ARRAY, Global, Map, Rival
from benchmarks.node_works import Work
from benchmarks.packet import Effort
from benchmarks.table import Row
from ffpf_bpf.kernel import calls
from tests.network import Network

PAYLOAD_BYTES, HEADER_BYTES = 1_472, 42
FRAMES = 1_900
EXAMPLES = 50
FEW, MANY = 10, 1_000
WORDS = {count: patterns.words(count) for count in (FEW, MANY)}


def node(count: int) -> str:
    """The node that looks for so many patterns."""
    return f'(scan,"{b"|".join(WORDS[count]).decode()}")'


def works() -> Iterator[Work]:
    """Few patterns and many, in requests and in the worst payload there is."""
    for count, words in WORDS.items():
        made = patterns.automaton(words)
        maps: dict[str, Global | Map] = {
            "classes": Global(256, made.classes),
            "rows": Global(2 * ((1 << 16 << made.shift) + 256), made.rows),
            "hits": Map(PERCPU_ARRAY, 4, 8, count),
        }
        rival = Rival("scan", (f"-DSHIFT={made.shift}",), maps)
        several = [b"".join(words[number : number + 3]) for number in range(0, count, -(-count // EXAMPLES))]
        for kind, payload in (
            ("requests", patterns.ordinary(PAYLOAD_BYTES)), ("worst", patterns.worst(words, PAYLOAD_BYTES)),
        ):  # fmt: skip
            yield Work(
                work_name(count, kind), f"{node(count)} -> (packetcount)", (rival,), _frame(payload),
                most_packets=10_000, examples=tuple(_frame(b"..." + some) for some in several),
            )  # fmt: skip


def work_name(count: int, kind: str) -> str:
    return f"scan 1,514 bytes for {count:,} patterns, {kind}"


def rows(network: Network, ours_ns: Mapping[str, float], effort: Effort) -> Iterator[Row]:
    """What `ours_ns`, by name of the work, is beside other ways to find the same."""
    few, many = (ours_ns[work_name(count, "requests")] for count in (FEW, MANY))
    yield Row(f"scan for {MANY:,} / {FEW} patterns, requests", f"{many:.0f}", f"{few:.0f}", f"{many / few:.2f}")
    for count in (FEW, MANY):
        for kind, payload in (
            ("requests", patterns.ordinary(PAYLOAD_BYTES)), ("worst", patterns.worst(WORDS[count], PAYLOAD_BYTES)),
        ):  # fmt: skip
            ours = ours_ns[work_name(count, kind)]
            ways = _python_ways(count)
            calls_ns = {how: _call_ns(search, payload, effort) for how, search in ways.items()}
            for how, call_ns in calls_ns.items():
                yield _row(f"scan for {count:,} patterns, {kind} / Python {how} on the payload", ours, call_ns)
            quickest = min(calls_ns, key=lambda how: calls_ns[how])
            reader_ns = _after_capture_ns(network, ways[quickest], payload, effort)
            yield _row(
                f"scan for {count:,} patterns, {kind} / frames to numpy, then {quickest}: reader", ours, reader_ns
            )


def _row(work: str, ours_ns: float, rival_ns: float) -> Row:
    return Row(work, f"{ours_ns:.0f}", f"{rival_ns:,.0f}", f"{ours_ns / rival_ns:.2g}")


def _frame(payload: bytes) -> bytes:
    return ipv4(UDP, udp(1234, 80, payload))


def _python_ways(count: int) -> dict[str, Callable[[bytes], object]]:
    words = WORDS[count]
    return {
        "re": re.compile(b"|".join(map(re.escape, words))).search,
        "`in`": lambda payload: any(word in payload for word in words),
    }


def _call_ns(search: Callable[[bytes], object], payload: bytes, effort: Effort) -> float:
    """The fastest of several rounds of at least 10 ms."""
    found, calls_in_round = [], 1
    for _ in range(3 * effort.rounds):
        before = time.perf_counter_ns()
        for _ in range(calls_in_round):
            search(payload)
        spent = time.perf_counter_ns() - before
        found.append(spent / calls_in_round)
        calls_in_round = max(calls_in_round, int(10_000_000 / found[-1]))
    return min(found)


def _after_capture_ns(network: Network, search: Callable[[bytes], object], payload: bytes, effort: Effort) -> float:
    """Reading grabbed frames as numpy batches, and searching each record: of the reader, for each packet."""
    found = []
    with chain(network, "(device,tap0) -> (grab)") as grabbing:
        for _ in range(effort.rounds):
            calls.test_run(grabbing.program, _frame(payload), FRAMES)
            before, packets = time.perf_counter_ns(), 0
            for batch in grabbing.flows[0].poll():
                for record, captured in zip(batch.records["data"], batch.records["captured"].tolist(), strict=True):
                    search(record[HEADER_BYTES:captured].tobytes())
                packets += len(batch)
            found.append((time.perf_counter_ns() - before) / packets)
    return statistics.median(found)
