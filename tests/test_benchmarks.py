"""Each benchmark runs, and its table has all its rows. What they measure is not judged here."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.table import Row, Table

ROOT = Path(__file__).parent.parent
ROWS = {
    "instantiate": (
        "tap attached already: in all",
        "first flow of a tap: in all",
        *(f"  of that {part}" for part in ("populate", "authorise", "compile", "load", "attach", "link")),
    ),
    "authorise": (
        "host in a /16",
        "src and not port",
        "20 ports x 10 nets",
        "40 /28 x 20 ports, 200 prefixes",
        "200 /28, 1,000 prefixes",
        "a net, 20,000 prefixes",
        "a net, 20,000 prefixes, headers, never mail",
        "20,000 prefixes that do not suffice",
        "20 nodes with orders and sampling",
        "payload at a variable offset, seen",
        *(f"{what}, never mail" for what in ("tcp port 80 and not port 25", "udp port 53", "DNS over v6")),
        "host in another /16",
        "not tcp port 25, never mail",
        "200 /28, one beyond 1,000 prefixes",
        "payload at a variable offset, hidden",
        "division and remainder",
        "sums of products",
    ),
    "packet": (
        *(
            f"filter: {text}"
            for text in (
                "tcp port 80", "udp port 53", "host 10.0.0.1", "net 10.1.0.0/16", "tcp[13] & 2 != 0", "ip6 and tcp",
                "vlan and ip", "icmp", "port 443 or port 80", "median ratio",
            )
        ),
        "whole chain: tcp port 80, counted",
        "idle tap / empty program, with the loop",
        "10 flows (ten ports) / 1",
        "10 flows (ten kinds of filter) / 1",
    ),
    "nodes": (
        *(f"histogram of {what}" for what in ("sizes, log2", "sizes, linear", "inter-arrival times")),
        *(f"sampler {what}" for what in ("1 in 10", "p=0.1", "1 flow in 2, IPv4", "1 flow in 2, IPv6")),
        *(f"limit, {what}" for what in ("passes", "stops")),
        *(f"tcpflags, {what}" for what in ("passes", "stops", "IPv6")),
        *(f"classify by {what}, two edges" for what in ("port", "flow")),
        *(
            f"{what} / {rival}"
            for what in (
                "head 10, one flow", "head 10, 8,192 flows in turn", "newflow, one flow",
                "newflow, each packet a new flow",
            )
            for rival in ("LRU hash", "own table")
        ),
        *(
            f"{what} / {rival}"
            for what in (
                "grab 96 of 60 bytes", "grab all of 1,514 bytes", "snap of 1,514 bytes",
                *(f"anonymise, {which}" for which in ("IPv4 addresses known", "IPv4 source new")),
                *(f"anonymise, {which}" for which in ("IPv6 addresses known", "IPv6 source new")),
            )
            for rival in ("BPF ring buffer", "own ring")
        ),
        *(f"anonymise, IPv{version} source new / own ring, rewritten apart" for version in (4, 6)),
        *(f"scan 1,514 bytes for {count} patterns, {kind}" for count in ("10", "1,000") for kind in ("requests", "worst")),
        "scan for 1,000 / 10 patterns, requests",
        *(
            f"scan for {count} patterns, {kind} / {rival}"
            for count in ("10", "1,000")
            for kind in ("requests", "worst")
            for rival in ("Python re on", "Python `in` on", "frames to numpy, then")
        ),
        *(
            f"{flows} in common / {other}"
            for flows in ("2 flows, (sampler,2)", "8 flows, a long filter", "8 flows, a scan for 1,000 patterns")
            for other in ("in each", "one flow")
        ),
        *(f"{what} / in the same chain" for what in ("bpf: tcp port 80", "packetcount", "bytecount", "tcpflags, passes")),
        *(f"{what}, in the same chain" for what in ("newflow, one flow / own table", "snap of 1,514 bytes / own ring")),
        "bpf: tcp port 80", "packetcount", "bytecount",
    ),
    "switch": tuple(
        f"{call}, {among}" for among in ("alone", "among 10") for call in ("activate", "pause", "pause(wait=True)")
    ),
    "files": (
        *(f"{frames}: -w / {rival}" for frames in ("64-byte frames, snaplen 96", "1,514-byte frames, whole") for rival in ("tcpdump", "dumpcap", "itself, compressed")),
        *(f"{frames}: {what}" for frames in ("64-byte frames, snaplen 96", "1,514-byte frames, whole") for what in ("-w at a monitor port / tcpdump -w", "-w / what is sent when nobody grabs", "the writer's CPU / writing as many bytes")),
        "  the writer's CPU, ns each", "batches, our file / scapy's RawPcapReader", "Arrow columns, our file / dpkt's Reader",
    ),
    "lossless": (
        "  monitor port to numpy / a program that only drops", "  16 applications / a program that only drops",
        *(
            f"monitor port to numpy / {rival}: lossless"
            for rival in ("Python recv", "scapy's AsyncSniffer", "libpcap by ctypes", "tcpdump -w /dev/null")
        ),
        "  CPU of the consumer, ns each / tcpdump -w /dev/null",
        "whole machine: flow / tcpdump", "whole machine: flow at a monitor port / tcpdump",
        "16 applications, the same packets / 16 tcpdumps",
    ),
    "producing": (
        "grab / bpf_ringbuf_output", "grab / bpf_perf_event_output", "  without the clock",
        *(f"{work}, {size}" for work in ("one more reader of a packet / one more copy", "  8 readers / one") for size in ("60 bytes", "1,514 bytes")),
    ),
    "delivery": (
        "numpy batches / Python recv: packets delivered",
        "  the same without the stack's share",
        "numpy batches / scapy's AsyncSniffer: packets delivered",
        "numpy batches / Python recv: packets per second of the consumer's CPU",
        "numpy batches / tcpdump: CPU added where packets arrive",
        "numpy batches / tcpdump: CPU of the reading process",
    ),
    "traffic": (
        "32 flows at XDP and tc / an empty XDP program", "32 flows at XDP / an empty XDP program",
        "32 flows at tc / nothing",
    ),
}  # fmt: skip


HEADINGS = {"authorise": ["decision", "in", "process", "sandbox", "goal", "met", "terms", "z3", "Bitwuzla", "result"]}


@pytest.mark.root
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("short_grace_periods")
def test_each_benchmark_fills_its_table() -> None:
    """Two at a time: they wait much, and are not judged."""
    with ThreadPoolExecutor(2) as pool:
        problems = [problem for problem in pool.map(problem_of, ROWS) if problem]
    assert not problems, "\n\n".join(problems)


def problem_of(name: str) -> str:
    """What is wrong with a quick run of a benchmark."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    if shown.returncode:
        return f"{name} ended with {shown.returncode}: {shown.stderr}"
    lines = shown.stdout.splitlines()
    if lines[2].split() != HEADINGS.get(name, ["work", "ours", "rival", "ratio", "goal", "met"]):
        return f"{name} has the heading {lines[2]}"
    missing = [row for row in ROWS[name] if not any(line.startswith(row) for line in lines[4:])]
    return f"{name} lacks {missing}" if missing else ""


def test_deciding_runs_as_a_script() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "authorise.py"), "--help"]
    shown = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "--quick" in shown.stdout


def test_tables_align_and_escape() -> None:
    table = Table("Title", (Row("a|b", "1"), Row("longer work", "22", "3", "7.3", "<= 8", True)), ("a note",))
    lines = table.text().splitlines()
    assert lines[4].startswith("a|b          1")
    assert lines[5] == "longer work  22    3      7.3    <= 8  yes"
    assert "| a\\|b | 1 |  |  |  |  |" in table.markdown()
