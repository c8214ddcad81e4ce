"""A graph as text for a terminal, and as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from ffpf_bpf.graph.expression import AllOf, AnyOf, Expression, Node, Not, Role, Select, Then
from ffpf_bpf.graph.graph import Case, Graph, Intersection, Leaf, Union, sources
from ffpf_bpf.graph.printer import results
from ffpf_bpf.graph.printer import text as expression_text
from ffpf_bpf.graph.sharing import Merged

BOX_HEIGHT, ROW_GAP, COLUMN_GAP, MARGIN = 46, 22, 54, 16
CHARACTER_WIDTH, BOX_PADDING = 7.3, 22
LONGEST_LABEL = 44
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
    width = max(len(name) for name in graph.ids)
    lines = []
    for group in sorted(set(users), key=lambda group: (-len(group), group)):
        numbers = ", ".join(str(number) for number in group)
        lines.append(f"shared by flows {numbers}" if len(group) > 1 else f"flow {numbers}")
        for index, step in enumerate(graph.steps):
            if users[index] == group:
                behind = ", ".join(graph.ids[source] for source in sources(step))
                title, label = f"  {graph.ids[index]:<{width}}", _label(graph, index)[1]
                lines.append(f"{title}  {label}{f'  <- {behind}' if behind else ''}")
    return "\n".join(lines)


def svg(graph: Graph, users: Sequence[tuple[int, ...]] = ()) -> str:
    """The graph as a picture: packets go from left to right. `users` are the flows that have each step, of a merged
    graph: what several have is drawn with a thick frame."""
    boxes = _place(graph, users)
    width = max(box.x + box.width for box in boxes) + MARGIN
    height = max(box.y for box in boxes) + BOX_HEIGHT + MARGIN
    edges = [_edge(boxes[source], boxes[index]) for index, step in enumerate(graph.steps) for source in sources(step)]
    shapes = [_shape(box) for box in boxes]
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


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    width: float
    title: str
    label: str
    fill: str
    thick: bool


def _place(graph: Graph, users: Sequence[tuple[int, ...]]) -> list[_Box]:
    """Columns by distance from the start, rows in the order of the steps."""
    columns: list[int] = []
    for step in graph.steps:
        columns.append(max((columns[source] + 1 for source in sources(step)), default=0))
    labels = [_label(graph, index) for index in range(len(graph.steps))]
    shared = [len(users[index]) > 1 if users else False for index in range(len(graph.steps))]
    if users:
        flows = [", ".join(str(number) for number in group) for group in users]
        labels = [
            (f"{title}  [flow{'s' if is_shared else ''} {numbers}]", label, fill)
            for (title, label, fill), numbers, is_shared in zip(labels, flows, shared, strict=True)
        ]
    widths = [max(len(title), len(label)) * CHARACTER_WIDTH + BOX_PADDING for title, label, _ in labels]
    column_widths = [
        max(width for width, column in zip(widths, columns, strict=True) if column == wanted)
        for wanted in range(max(columns) + 1)
    ]
    lefts = [MARGIN + sum(column_widths[:column]) + COLUMN_GAP * column for column in range(len(column_widths))]
    rows = [0] * len(column_widths)
    boxes = []
    for column, width, (title, label, fill), thick in zip(columns, widths, labels, shared, strict=True):
        y = MARGIN + rows[column] * (BOX_HEIGHT + ROW_GAP)
        rows[column] += 1
        boxes.append(_Box(lefts[column], y, width, title, label, fill, thick))
    return boxes


def _label(graph: Graph, index: int) -> tuple[str, str, str]:
    step = graph.steps[index]
    if isinstance(step, Leaf):
        label = expression_text(step.node, hidden=True)
        short = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 3] + "..."
        return graph.ids[index], short, FILLS[step.node.role]
    if isinstance(step, Case):
        label = results(step.ranges)
        return graph.ids[index], "-*->" if step.inverted else f"-{label}->", "#f1f5f9"
    return graph.ids[index], JOINS.get(type(step), "not"), "#f1f5f9"


def _edge(start: _Box, end: _Box) -> str:
    x1, y1 = start.x + start.width, start.y + BOX_HEIGHT / 2
    x2, y2 = end.x, end.y + BOX_HEIGHT / 2
    bend = (x2 - x1) / 2
    return (
        f'<path d="M{x1:.1f} {y1:.1f} C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"'
        ' fill="none" stroke="#475569" marker-end="url(#tip)"/>'
    )


def _shape(box: _Box) -> str:
    return (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{BOX_HEIGHT}" rx="6"'
        f' fill="{box.fill}" stroke="#475569" stroke-width="{3 if box.thick else 1}"/>'
        f'<text x="{box.x + 10:.1f}" y="{box.y + 19:.1f}" font-weight="bold">{escape(box.title)}</text>'
        f'<text x="{box.x + 10:.1f}" y="{box.y + 36:.1f}">{escape(box.label)}</text>'
    )
