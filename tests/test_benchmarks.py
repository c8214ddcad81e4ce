"""Each benchmark runs, and its table has all its rows. What they measure is not judged here."""

from __future__ import annotations

import subprocess
import sys
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
    "switch": tuple(
        f"{call}, {among}" for among in ("alone", "among 10") for call in ("activate", "pause", "pause(wait=True)")
    ),
    "delivery": (
        "numpy batches / Python recv: packets delivered",
        "  the same without the stack's share",
        "numpy batches / Python recv: packets per second of the consumer's CPU",
        "numpy batches / tcpdump: CPU added where packets arrive",
        "numpy batches / tcpdump: CPU of the reading process",
    ),
}  # fmt: skip


@pytest.mark.root
@pytest.mark.parametrize("name", ROWS)
def test_each_benchmark_fills_its_table(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[2].split() == ["work", "ours", "rival", "ratio", "goal", "met"]
    missing = [row for row in ROWS[name] if not any(line.startswith(row) for line in lines[4:])]
    assert not missing


def test_tables_align_and_escape() -> None:
    table = Table("Title", (Row("a|b", "1"), Row("longer work", "22", "3", "7.3", "<= 8", True)), ("a note",))
    lines = table.text().splitlines()
    assert lines[4].startswith("a|b          1")
    assert lines[5] == "longer work  22    3      7.3    <= 8  yes"
    assert "| a\\|b | 1 |  |  |  |  |" in table.markdown()
