"""What commands print of a flow at its end: a table of nodes and the ledger, or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ffpf_bpf.flow import Flow, Ledger


def as_json(flow: Flow) -> dict[str, Any]:
    """One flow, as in `{"flows": [...]}`."""
    statistics = flow.stats()
    return {
        "flow": flow.id,
        "expression": flow.definition.text,
        "state": str(flow.state),
        "taps": list(flow.taps),
        "nodes": [node.as_json() for node in statistics.nodes],
        "ledger": statistics.ledger.as_json(),
    }


def text(flow: Flow) -> str:
    """One flow for people."""
    statistics = flow.stats()
    taps = ", ".join(f"{tap['tap']} ({tap['mode']})" for tap in flow.taps)
    rows = [("node", "", "in", "out", "counted")]
    for node in statistics.nodes:
        counts = ", ".join(f"{count:,} {unit}" for unit, count in node.counts.items())
        label = f"{node.class_name} {node.expression}".strip()
        rows.append((node.id, label[:44], f"{node.packets_in:,}", f"{node.packets_out:,}", counts))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            ["", row[0].ljust(widths[0]), row[1].ljust(widths[1]), *_right(row[2:4], widths[2:4]), row[4]]
        ).rstrip()
        for row in rows
    ]
    return "\n".join([f"{flow.id} on {taps}: {flow.definition.text}", *lines, f"  {ledger_text(statistics.ledger)}"])


def _right(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]


def ledger_text(ledger: Ledger) -> str:
    """`1,000 seen = 900 delivered + 100 filtered`: the fates that occurred."""
    fates = {name: count for name, count in ledger.as_json().items() if name != "seen" and count}
    parts = " + ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in fates.items())
    return f"{ledger.seen:,} seen = {parts or '0'}"
