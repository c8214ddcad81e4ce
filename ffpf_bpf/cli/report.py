"""What commands print: packets, and of a flow at its end a table of nodes and the ledger, or JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ffpf_bpf.capture.packet import Packet
from ffpf_bpf.flow import Flow, Ledger

LONGEST_LABEL, LONGEST_EXPRESSION = 44, 500
MOST_BARS, BAR_WIDTH = 24, 30


def as_json(flow: Flow) -> dict[str, Any]:
    """One flow, as in `{"flows": [...]}`."""
    statistics = flow.stats()
    return {
        "flow": flow.id,
        "expression": flow.definition.text,
        "narrowed": flow.narrowed,
        "state": str(flow.state),
        "taps": list(flow.taps),
        "nodes": [node.as_json() for node in statistics.nodes],
        "ledger": statistics.ledger.as_json(),
        **({"events": [event.as_json() for event in flow.events]} if flow.events else {}),
    }


def text(flow: Flow) -> str:
    """One flow for people."""
    statistics = flow.stats()
    shown = (f"{tap['tap']} ({tap['mode']}{', monitor' if 'monitor' in tap else ''})" for tap in flow.taps)
    taps = ", ".join(shown) or "no interface"
    rows = [("node", "", "in", "out", "counted")]
    behind: list[list[str]] = [[]]
    for node in statistics.nodes:
        plain = {unit: count for unit, count in node.counts.items() if isinstance(count, int)}
        counts = ", ".join(f"{count:,} {unit}" for unit, count in plain.items())
        label = _shortened(f"{node.class_name} {node.expression}".strip(), LONGEST_LABEL)
        shared = "shared" if node.shared else ""
        counted = ", ".join(part for part in (counts, shared) if part)
        rows.append((node.id, label, f"{node.packets_in:,}", f"{node.packets_out:,}", counted))
        behind.append([line for unit, count in node.counts.items() if unit not in plain for line in _bars(count)])
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for row, extra in zip(rows, behind, strict=True):
        cells = ["", row[0].ljust(widths[0]), row[1].ljust(widths[1]), *_right(row[2:4], widths[2:4]), row[4]]
        lines += ["  ".join(cells).rstrip(), *(f"      {line}" for line in extra)]
    expression = _shortened(flow.definition.text, LONGEST_EXPRESSION)
    return "\n".join([f"{flow.id} on {taps}: {expression}", *lines, f"  {ledger_text(statistics.ledger)}"])


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _bars(counted: Any) -> list[str]:
    """What a node counted of many things, a line each with a bar: a list of rows that end in a number, or a mapping."""
    items = list(counted.items()) if isinstance(counted, dict) else [(_range(row[:-1]), row[-1]) for row in counted]
    if not items:
        return []
    items = sorted(items, key=lambda item: -item[1]) if isinstance(counted, dict) else items
    shown = items[:MOST_BARS]
    names, largest = [str(name) for name, _ in shown], max(count for _, count in items)
    width, digits = max(len(name) for name in names), max(len(f"{count:,}") for _, count in shown)
    lines = [
        f"{name:>{width}}  {count:>{digits},}  {'#' * max(1, round(BAR_WIDTH * count / largest))}"
        for name, (_, count) in zip(names, shown, strict=True)
    ]
    return lines + ([f"and {len(items) - MOST_BARS} more"] if len(items) > MOST_BARS else [])


def _range(bounds: Sequence[int | None]) -> str:
    """`64..127`, or `128..` where there is no end."""
    return "..".join("" if bound is None else f"{bound:,}" for bound in bounds)


def _right(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]


def ledger_text(ledger: Ledger) -> str:
    """`1,000 seen = 900 delivered + 100 filtered`: the fates that occurred."""
    fates = {name: count for name, count in ledger.as_json().items() if name != "seen" and count}
    parts = " + ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in fates.items())
    return f"{ledger.seen:,} seen = {parts or '0'}"


def print_packets(packets: Iterable[Packet]) -> bool:
    """A line for each. False if the reader has seen enough, as in `| head`: an end like any other."""
    from ffpf_bpf.capture.words import line  # noqa: PLC0415 - and with it dpkt

    try:
        for packet in packets:
            print(line(packet))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python must not flush there again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
