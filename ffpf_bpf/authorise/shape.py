"""Shape: what comes before or after what, on every path of a graph.

Decided on the steps of the graph, so that OR, AND, NOT and sharing mean here what they mean to a packet, and per
class, not per node: each branch of an OR may use its own sampler. Where the graph has a path around, the filters may
still make it one that no packet can take, which is proved.

Before (dominance). A packet for which a step is true
- leaf: left its source and the node itself;
- union: left one of the inputs, so all of them must hold;
- intersection: left all of the inputs, so one that holds is enough;
- case: left its node;
- complement: left its `source`. What is inside the NOT does not count: the packets that go on are those it stopped.
A node inside one operand of `&` is reached from that operand's source only; the other operands say nothing about it.

After (post-dominance). What leaves a step goes to every step that reads it, so all of these must hold; a sink, and a
step that nothing reads, ends the path. To be stopped by a filter ends nothing. Inside a NOT, to be stopped is to go on:
nodes in there count for nothing, and a path out of them leads on from the NOT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ffpf_bpf.authorise.decision import Finding, Result
from ffpf_bpf.authorise.policy import Order, PacketClass
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import Undecided
from ffpf_bpf.authorise.proof.prover import Prover
from ffpf_bpf.authorise.sentences import packets
from ffpf_bpf.errors import with_article
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.classes.sampler import Sampler
from ffpf_bpf.graph.expression import Node, Role
from ffpf_bpf.graph.graph import Case, Complement, Graph, Intersection, Leaf, Union, sources

Wanted = Callable[[Node], bool]
MOST_LISTED = 8


def check_order(prover: Prover, order: Order) -> Finding:
    """Whether the order holds for each node of class `order.function`, or a path on which it does not."""
    finding = _check_order(prover, order)
    return replace(finding, help=_remedy(order)) if finding.result is Result.REFUTED else finding


def _remedy(order: Order) -> str:
    match order.required:
        case PacketClass() as one:
            return f"put a filter in front of each `{order.function}` that passes nothing but {packets(one)}"
        case int(one_in):
            return f"put `(sampler,{one_in})` in front of each `{order.function}`, on every path"
        case str(class_name):
            side = "in front of" if order.after else "behind"
            return f"put {with_article(class_name)} {side} each `{order.function}`, on every path"


def _check_order(prover: Prover, order: Order) -> Finding:
    graph, required = prover.definition.graph, order.required
    targets = tuple(index for index, leaf in graph.leaves() if _is(leaf.node, order.function))
    if not targets:
        return Finding(Result.PROVED, f"the flow has no `{order.function}`")
    match required:
        case PacketClass():
            return _check_packets(prover, targets, required)
        case int():
            wanted, missing = _sampler_of(required), f"sampler of 1 in {required:,} or more"
        case _:
            idle = [leaf.node for _, leaf in graph.leaves() if _is(leaf.node, required) and _is_idle(prover, leaf.node)]
            wanted = _of_class(required, idle)
            missing = f"`{required}` that stops any packet" if idle else f"`{required}`"
    if not order.after:
        if path := path_out(graph, targets, wanted):
            return Finding(Result.REFUTED, f"no {missing} on this path", _names(graph, path))
        return Finding(Result.PROVED, f"{missing} is behind {_listed(graph, targets)}")
    return _check_before(prover, targets, wanted, missing)


def _check_before(prover: Prover, targets: tuple[int, ...], wanted: Wanted, missing: str) -> Finding:
    """Whether each of the targets has such a node in front of it: on every path there is, or on every path that a
    packet can take, for without these nodes none is reached."""
    graph = prover.definition.graph
    path = path_around(graph, targets, wanted)
    if not path:
        return Finding(Result.PROVED, f"{missing} is in front of {_listed(graph, targets)}")
    around = Finding(Result.REFUTED, f"no {missing} on this path", _names(graph, path))
    if not prover.definition.predicates:
        return around  # no filter makes a path impossible
    try:
        reached = prover.paths.truths(wanted)
    except Undecided:
        return around
    comes_there = t.any_of(reached[target] for target in targets)
    finding = prover.none(comes_there, lambda _: t.TRUE, lambda _: f"no {missing} on this path")
    if finding.result is Result.PROVED:
        return Finding(Result.PROVED, f"no packet takes the path around {missing}", around.path)
    if finding.result is Result.REFUTED:
        return replace(around, packets=finding.packets)
    return replace(finding, path=around.path)


def _check_packets(prover: Prover, targets: tuple[int, ...], wanted: PacketClass) -> Finding:
    graph = prover.definition.graph
    names = tuple(graph.ids[target] for target in targets)
    try:
        reached = t.any_of(prover.arriving(target) for target in targets)
    except Undecided as error:
        return Finding(Result.REFUSED, f"undecided: {error}", names)
    finding = prover.none(reached, lambda wire: t.negated(wire.must(wanted)), lambda _: "it is none of these packets")
    return Finding(finding.result, finding.evidence, names[:1], finding.packets)


def _of_class(class_name: str, idle: Sequence[Node]) -> Wanted:
    return lambda node: _is(node, class_name) and node.serves_policy and node not in idle


def _is_idle(prover: Prover, node: Node) -> bool:
    """A filter that stops no packet."""
    if not isinstance(node, Bpf) or node.filter not in prover.definition.predicates:
        return False
    try:
        return prover.accepts_all(node.filter)
    except Undecided:
        return False


def _sampler_of(one_in: int) -> Wanted:
    return lambda node: isinstance(node, Sampler) and node.leaves_one_in >= one_in


def _is(node: Node, class_name: str) -> bool:
    """Whether an order about a class is about the node. One about `grab` is about every sink: what a rule asks of
    packets that are delivered does not depend on how."""
    return node.class_name == class_name or (class_name == "grab" and node.role is Role.SINK)


def check_sampling(prover: Prover, at_least: int) -> Finding:
    """Whether every path to a sink passes a sampler of at least 1 in `at_least`.

    It is about each path, not about the share of all packets: samplers side by side in an OR may add up.
    """
    if not prover.definition.graph.sinks:
        return Finding(Result.PROVED, "the flow has no sink")
    missing = f"sampler of 1 in {at_least} or more"
    finding = _check_before(prover, prover.definition.graph.sinks, _sampler_of(at_least), missing)
    if finding.result is not Result.REFUTED:
        return finding
    return replace(finding, help=f"put `(sampler,{at_least})` in front of the sinks, on every path")


def path_around(graph: Graph, targets: tuple[int, ...], wanted: Wanted) -> tuple[int, ...]:
    """Steps from a device to one of the leaves `targets`, no node in front of it `wanted`; () if there are none."""
    holds = _left_behind(graph, wanted)
    for target in targets:
        at = _source(graph, target)
        if at is not None and holds[at]:
            continue
        path = [target]
        while at is not None:
            path.append(at)
            match graph.steps[at]:
                case Union(inputs=inputs):
                    at = next(i for i in inputs if not holds[i])
                case Intersection(inputs=inputs):
                    at = inputs[0]
                case _:
                    at = _source(graph, at)
        return tuple(reversed(path))
    return ()


def path_out(graph: Graph, targets: tuple[int, ...], wanted: Wanted) -> tuple[int, ...]:
    """Steps from one of the leaves `targets` to an end, no node behind it `wanted`; () if there are none."""
    readers = _readers(graph)
    inverted = _inside_not(graph)
    holds = [False] * len(graph.steps)

    def good(step: int) -> bool:
        here = graph.steps[step]
        return holds[step] or (isinstance(here, Leaf) and wanted(here.node) and step not in inverted)

    for index in reversed(range(len(graph.steps))):
        holds[index] = bool(readers[index]) and all(good(reader) for reader in readers[index])
    escaping = [target for target in targets if not holds[target]]
    if not escaping:
        return ()
    path = escaping[:1]
    while bad := [reader for reader in readers[path[-1]] if not good(reader)]:
        # A way around a NOT says more than one through what is inside it.
        path.append(next((reader for reader in bad if reader not in inverted), bad[0]))
    return tuple(path)


def _left_behind(graph: Graph, wanted: Wanted) -> list[bool]:
    """For each step, whether every packet for which it is true left a node that is `wanted`."""
    holds: list[bool] = []
    for step in graph.steps:
        match step:
            case Leaf(node=node, source=source):
                holds.append(wanted(node) or (source is not None and holds[source]))
            case Union(inputs=inputs):
                holds.append(all(holds[i] for i in inputs))
            case Intersection(inputs=inputs):
                holds.append(any(holds[i] for i in inputs))
            case Complement(source=source) | Case(source=source):
                holds.append(source is not None and holds[source])
            case _:
                raise TypeError(f"not a step: {step!r}")
    return holds


def _source(graph: Graph, index: int) -> int | None:
    step = graph.steps[index]
    if isinstance(step, Leaf | Complement | Case):
        return step.source
    raise TypeError(f"{graph.ids[index]} has no single source")


def _readers(graph: Graph) -> list[list[int]]:
    readers: list[list[int]] = [[] for _ in graph.steps]
    for index, step in enumerate(graph.steps):
        for source in sources(step):
            readers[source].append(index)
    return readers


def _inside_not(graph: Graph) -> set[int]:
    """The steps that belong to the inside of a NOT."""
    inside: set[int] = set()
    for step in graph.steps:
        if isinstance(step, Complement):
            outside = set() if step.source is None else with_ancestors(graph, step.source)
            inside |= with_ancestors(graph, step.inner) - outside
    return inside


def with_ancestors(graph: Graph, *indices: int) -> set[int]:
    """These steps, and all that lead to them."""
    found: set[int] = set()
    pending = list(indices)
    while pending:
        at = pending.pop()
        if at not in found:
            found.add(at)
            pending += sources(graph.steps[at])
    return found


def _names(graph: Graph, path: tuple[int, ...]) -> tuple[str, ...]:
    """The nodes of a path, and the NOTs; joins are no nodes."""
    return tuple(graph.ids[i] for i in path if isinstance(graph.steps[i], Leaf | Complement))


def _listed(graph: Graph, indices: tuple[int, ...]) -> str:
    more = f" and {len(indices) - MOST_LISTED} more" if len(indices) > MOST_LISTED else ""
    return ", ".join(graph.ids[i] for i in indices[:MOST_LISTED]) + more
