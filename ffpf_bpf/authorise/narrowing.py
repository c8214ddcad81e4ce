"""What came of narrowing a flow: a plain value, which needs no solver."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ffpf_bpf.graph.expression import Expression, nodes
from ffpf_bpf.graph.printer import text as printed


@dataclass(frozen=True, slots=True)
class Narrowing:
    """`text` is the flow with what was put in, "" if nothing is to be put in; `why` says why it cannot be narrowed, or
    is ""."""

    text: str = ""
    why: str = ""


def inserted(before: Expression, after: Expression) -> tuple[str, ...]:
    """The texts of the nodes that were put in, or put in place of others."""
    kept = Counter(nodes(before))
    found = []
    for node in nodes(after):
        if kept[node]:
            kept[node] -= 1
        else:
            found.append(printed(node, hidden=True))
    return tuple(found)
