"""What of a packet a sink shows: the transforms on the way to it.

Transforms change the copy that is grabbed, so they hold for a sink only if every way to it passes them: a packet that
came another way would be shown as it is. Where the ways to a sink differ in their transforms, the graph is refused.

- leaf: what its source shows, and the leaf itself if it transforms;
- union: what its inputs show, if they agree;
- intersection: a packet passed every input, so what any of them changes is changed;
- complement and case: what their source shows; a NOT holds only nodes that decide.
"""

from __future__ import annotations

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.expression import Role
from ffpf_bpf.graph.graph import Case, Complement, Graph, Intersection, Leaf, Union

View = tuple[int, ...]
AMBIGUOUS: View = (-1,)


def views(graph: Graph) -> dict[int, View]:
    """For each sink the steps of the transforms that its copies pass, in order. Raises ExpressionError if the ways to a
    sink differ in them."""
    shown: list[View] = []
    found: dict[int, View] = {}
    for index, step in enumerate(graph.steps):
        match step:
            case Leaf(node=node, source=source):
                view = () if source is None else shown[source]
                if node.role is Role.TRANSFORMS and view != AMBIGUOUS:
                    view = (*view, index)
                if node.role is Role.SINK:
                    if view == AMBIGUOUS:
                        raise _differing(graph, index)
                    found[index] = view
            case Union(inputs=inputs):
                several = {shown[i] for i in inputs}
                view = several.pop() if len(several) == 1 else AMBIGUOUS if several else ()
            case Intersection(inputs=inputs):
                several = {shown[i] for i in inputs}
                view = AMBIGUOUS if AMBIGUOUS in several else tuple(sorted({at for other in several for at in other}))
            case Complement(source=source):
                view = () if source is None else shown[source]
            case Case(source=source):
                view = shown[source]
            case _:
                raise TypeError(f"not a step: {step!r}")
        shown.append(view)
    return found


def _differing(graph: Graph, sink: int) -> ExpressionError:
    names = [graph.ids[index] for index, leaf in graph.leaves() if leaf.node.role is Role.TRANSFORMS]
    return ExpressionError(
        f"the ways to this sink differ in what they show ({', '.join(f'`{name}`' for name in names)})",
        where=graph.ids[sink],
        help="put the transform behind the branches, or end each branch in a sink of its own",
    )
