"""A graph as text for a terminal, and as SVG.

What is drawn are nodes and the joins that something reads. A case is no box but a label on its edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ffpf_bpf.graph.expression import AllOf, AnyOf, Expression, Node, Not, Role, Select, Then
from ffpf_bpf.graph.graph import Case, Graph, Intersection, Leaf, Union, dead_ends, sources
from ffpf_bpf.graph.printer import results
from ffpf_bpf.graph.printer import text as expression_text
from ffpf_bpf.graph.sharing import Merged

BOX_HEIGHT, ROW_GAP, COLUMN_GAP, MARGIN = 46, 22, 54, 16
CHARACTER_WIDTH, BOX_PADDING = 7.3, 22
LONGEST_LABEL, LONGEST_RESULTS = 44, 24
FILLS = {
    Role.DEVICE: "#dbeafe",
    Role.DECIDES: "#fef3c7",
    Role.DOES: "#dcfce7",
    Role.TRANSFORMS: "#ede9fe",
    Role.SINK: "#fce7f3",
}
JOINS = {Union: "any", Intersection: "all"}


def text(graph: Graph) -> str:
    """The graph as a tree: what stands below comes later; branches are indented under `any of`, `all of`, `not`."""
    ids = iter([graph.ids[index] for index, _ in graph.leaves()])
    return "\n".join(_lines(graph.expression, ids, ""))


def merged_text(merged: Merged) -> str:
    """Several graphs as one: first what flows share, then each flow's own steps, with the steps they read."""
    graph, users = merged.graph, merged.users
    drawn = _drawn(graph)
    width = max(len(graph.ids[index]) for index in drawn)
    lines = []
    for group in sorted({users[index] for index in drawn}, key=lambda group: (-len(group), group)):
        numbers = ", ".join(str(number) for number in group)
        lines.append(f"shared by {len(group)} flows: {numbers}" if len(group) > 1 else f"flow {numbers}")
        for index, read in drawn.items():
            if users[index] == group:
                behind = ", ".join(f"{graph.ids[source]}{case and f' -{case}->'}" for source, case in read)
                title, label = f"  {graph.ids[index]:<{width}}", _label(graph, index)[1]
                lines.append(f"{title}  {label}{f'  <- {behind}' if behind else ''}")
    return "\n".join(lines)


def svg(graph: Graph, users: Sequence[tuple[int, ...]] = ()) -> str:
    """The graph as a picture: packets go from left to right. `users` are the flows that have each step, of a merged
    graph: what several have is drawn with a thick frame."""
    drawn = _drawn(graph)
    boxes = _place(graph, drawn, users)
    width = max(box.x + box.width for box in boxes.values()) + MARGIN
    height = max(box.y for box in boxes.values()) + BOX_HEIGHT + MARGIN
    edges = [_edge(boxes[source], boxes[index], case) for index, read in drawn.items() for source, case in read]
    shapes = [_shape(box) for box in boxes.values()]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
            ' font-family="monospace" font-size="12">',
            f"<title>{escape(expression_text(graph.expression, hidden=True))}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path d="M0 0 8 4 0 8z" fill="#475569"/></marker></defs>',
            '<rect width="100%" height="100%" fill="white"/>',
            *edges,
            *shapes,
            "</svg>\n",
        ]
    )


def _lines(expression: Expression, ids: Iterator[str], lead: str) -> Iterator[str]:
    match expression:
        case Node():
            yield f"{lead}{next(ids)}  {expression_text(expression, hidden=True)}"
        case Then(stages=stages):
            for number, stage in enumerate(stages):
                if number:
                    yield f"{lead}  v"
                yield from _lines(stage, ids, lead)
        case AnyOf(branches=parts) | AllOf(branches=parts):
            yield f"{lead}{'any' if isinstance(expression, AnyOf) else 'all'} of"
            for number, part in enumerate(parts):
                if number:
                    yield f"{lead}  |"
                yield from _lines(part, ids, f"{lead}  | ")
        case Not(inner=inner):
            yield f"{lead}not"
            yield from _lines(inner, ids, f"{lead}  ! ")
        case Select(node=node, cases=cases):
            yield from _lines(node, ids, lead)
            for number, (ranges, case) in enumerate(cases):
                if number:
                    yield f"{lead}  |"
                yield f"{lead}  | -{results(ranges)}->"
                yield from _lines(case, ids, f"{lead}  |   ")
        case _:
            raise TypeError(f"not a flow expression: {expression!r}")


def _drawn(graph: Graph) -> dict[int, list[tuple[int, str]]]:
    """The steps that are drawn, each with the drawn steps it reads, and the results that it takes of them, if it does
    not take all. A union of one thing is that thing."""
    unread = dead_ends(graph.steps)
    drawn: dict[int, list[tuple[int, str]]] = {}
    for index, step in enumerate(graph.steps):
        if isinstance(step, Case) or (isinstance(step, Union) and (index in unread or len(step.inputs) == 1)):
            continue
        drawn[index] = [_seen(graph, source) for source in sources(step)]
    return drawn


def _seen(graph: Graph, index: int) -> tuple[int, str]:
    match graph.steps[index]:
        case Case(source=source) as case:
            shown = "*" if case.inverted else results(case.ranges)
            return source, shown if len(shown) <= LONGEST_RESULTS else shown[: LONGEST_RESULTS - 3] + "..."
        case Union(inputs=(source,)):
            return _seen(graph, source)
        case _:
            return index, ""


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    width: float
    title: str
    label: str
    fill: str
    thick: bool


def _place(
    graph: Graph, drawn: Mapping[int, Sequence[tuple[int, str]]], users: Sequence[tuple[int, ...]]
) -> dict[int, _Box]:
    """Columns by distance from the start, rows in the order of the steps."""
    columns: dict[int, int] = {}
    for index, read in drawn.items():
        columns[index] = max((columns[source] + 1 for source, _ in read), default=0)
    labels = {index: _label(graph, index) for index in drawn}
    if users:
        labels = {index: (each[0] + _users(users[index]), *each[1:]) for index, each in labels.items()}
    widths = {
        index: max(len(title), len(label)) * CHARACTER_WIDTH + BOX_PADDING
        for index, (title, label, _) in labels.items()
    }
    lefts, x = [], float(MARGIN)
    for wanted in range(max(columns.values()) + 1):
        here = [index for index, column in columns.items() if column == wanted]
        cases = [len(case) * CHARACTER_WIDTH for index in here for _, case in drawn[index]]
        x += max(COLUMN_GAP, COLUMN_GAP / 2 + max(cases)) if wanted else 0
        lefts.append(x)
        x += max(widths[index] for index in here)
    rows = [0] * len(lefts)
    boxes = {}
    for index, column in columns.items():
        y = MARGIN + rows[column] * (BOX_HEIGHT + ROW_GAP)
        rows[column] += 1
        is_shared = bool(users) and len(users[index]) > 1
        boxes[index] = _Box(lefts[column], y, widths[index], *labels[index], is_shared)
    return boxes


def _users(flows: tuple[int, ...]) -> str:
    numbers = ", ".join(str(number) for number in flows)
    return f"  [shared by {len(flows)} flows: {numbers}]" if len(flows) > 1 else f"  [flow {numbers}]"


def _label(graph: Graph, index: int) -> tuple[str, str, str]:
    step = graph.steps[index]
    if isinstance(step, Leaf):
        label = expression_text(step.node, hidden=True)
        short = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 3] + "..."
        return graph.ids[index], short, FILLS[step.node.role]
    return graph.ids[index], JOINS.get(type(step), "not"), "#f1f5f9"


def _edge(start: _Box, end: _Box, case: str) -> str:
    x1, y1 = start.x + start.width, start.y + BOX_HEIGHT / 2
    x2, y2 = end.x, end.y + BOX_HEIGHT / 2
    bend = (x2 - x1) / 2
    path = (
        f'<path d="M{x1:.1f} {y1:.1f} C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"'
        ' fill="none" stroke="#475569" marker-end="url(#tip)"/>'
    )
    # Where the edge arrives: what leaves a node lies close together.
    label = f'<text x="{x2 - 10:.1f}" y="{y2 - 6:.1f}" text-anchor="end" fill="#475569">{escape(case)}</text>'
    return path + label if case else path


def _shape(box: _Box) -> str:
    return (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{BOX_HEIGHT}" rx="6"'
        f' fill="{box.fill}" stroke="#475569" stroke-width="{3 if box.thick else 1}"/>'
        f'<text x="{box.x + 10:.1f}" y="{box.y + 19:.1f}" font-weight="bold">{escape(box.title)}</text>'
        f'<text x="{box.x + 10:.1f}" y="{box.y + 36:.1f}">{escape(box.label)}</text>'
    )
