"""The flow definition: what `populate` makes, `authorise` decides on and the compiler takes. A plain value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from ffpf_bpf.graph.graph import Graph
from ffpf_bpf.graph.predicate import Program
from ffpf_bpf.graph.printer import text


@dataclass(frozen=True, slots=True)
class Definition:
    """A graph, the classic BPF of its filters by their text, and the buffer it asks for in bytes per CPU."""

    graph: Graph
    predicates: Mapping[str, Program]
    buffer_bytes: int

    @property
    def text(self) -> str:
        """The flow expression, complete with the `(grab)` that the short form leaves out, without secrets."""
        return text(self.graph.expression, hidden=True)

    @property
    def digest(self) -> str:
        """SHA-256 over everything a decision depends on: the graph, the very instructions, the buffer."""
        graph = self.graph
        parts = [text(graph.expression), repr((graph.steps, graph.stops, graph.ends)), str(self.buffer_bytes)]
        parts += [f"{filter_text}={program.digest}" for filter_text, program in sorted(self.predicates.items())]
        return sha256("\0".join(parts).encode()).hexdigest()
