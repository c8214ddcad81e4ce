"""Rows of a benchmark, shown aligned on a terminal or as Markdown."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

HEADINGS = ("work", "ours", "rival", "ratio", "goal", "met")


class Cells(Protocol):
    """A row: its cells, as many as there are headings."""

    @property
    def cells(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison, as text; `met` is None where there is no goal."""

    work: str
    ours: str
    rival: str = ""
    ratio: str = ""
    goal: str = ""
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        met = "" if self.met is None else "yes" if self.met else "NO"
        return self.work, self.ours, self.rival, self.ratio, self.goal, met


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title, and what one must know to read them."""

    title: str
    rows: tuple[Cells, ...]
    notes: tuple[str, ...] = ()
    headings: tuple[str, ...] = HEADINGS

    def text(self) -> str:
        """Aligned columns."""
        lines = [self.headings, *(row.cells for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        notes = [line for note in self.notes for line in textwrap.wrap(note, 120)]
        first, *shown = ["  ".join(cells).rstrip() for cells in padded]
        return "\n".join([self.title, "", first, "  ".join("-" * width for width in widths), *shown, "", *notes])

    def markdown(self) -> str:
        """A Markdown table."""
        lines = [self.headings, tuple("---" for _ in self.headings), *(row.cells for row in self.rows)]
        shown = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        return "\n".join([f"### {self.title}", "", *shown, "", *(f"- {note}" for note in self.notes)])


def main(run: Callable[[bool], Table], description: str, arguments: Sequence[str] | None = None) -> None:
    """The command line that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it runs, measures nothing")
    print(run(parser.parse_args(arguments).quick).text())
