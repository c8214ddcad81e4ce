"""A flow as formulas: for each step of its graph, the packets for which it is true.

Filters are exact. So are `classify` and `tcpflags`, but behind IPv6 extension headers. What else decides, by chance,
state or payload, is a free variable, one for each step: both answers are thought possible. So what is proved holds
whatever it answers; a packet that is found may be one that such a node would never let pass: `prover.py` shows none
that hangs on that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import accepts
from ffpf_bpf.authorise.proof.headers import OF_TRANSPORT, RESULT_BITS, Headers
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import Wire
from ffpf_bpf.graph.classes.classify import FIELDS
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import Depth, Primitive, Transform
from ffpf_bpf.graph.effect import Predicate as Filter
from ffpf_bpf.graph.expression import Node, Ranges, Role
from ffpf_bpf.graph.graph import Case, Complement, Graph, Intersection, Leaf, Union
from ffpf_bpf.graph.views import views


@dataclass(slots=True)
class Paths:
    """The steps of a definition as truths about the packet `p` that arrives at one of its taps. `told` says of some
    nodes, by name, which packets and answers are known to go together."""

    definition: Definition
    wire: Wire
    filters: dict[str, Term] = field(default_factory=dict)
    told: dict[str, Term] = field(default_factory=dict)
    headers: Headers = field(init=False)

    def __post_init__(self) -> None:
        self.headers = Headers(self.wire)

    @property
    def graph(self) -> Graph:
        return self.definition.graph

    def truths(self, cut: Callable[[Node], bool] = lambda _: False) -> list[Term]:
        """One for each step. Nodes that are `cut` let nothing go on. Raises Undecided."""
        found: list[Term] = []
        results: dict[int, Term] = {}
        for index, step in enumerate(self.graph.steps):
            match step:
                case Leaf(node=node, source=source):
                    arriving = t.TRUE if source is None else found[source]
                    truth = t.FALSE if cut(node) else t.all_of((arriving, self._decides(index, node, results)))
                case Union(inputs=inputs):
                    truth = t.any_of(found[i] for i in inputs)
                case Intersection(inputs=inputs):
                    truth = t.all_of(found[i] for i in inputs)
                case Complement(source=source, inner=inner):
                    truth = t.all_of((t.TRUE if source is None else found[source], t.negated(found[inner])))
                case Case(source=source, ranges=ranges, inverted=inverted):
                    inside = _in_ranges(results[source], ranges)
                    truth = t.all_of((found[source], t.negated(inside) if inverted else inside))
                case _:
                    raise TypeError(f"not a step: {step!r}")
            found.append(truth)
        return found

    def reading_payload(self) -> frozenset[Term]:
        """The free variables of nodes that decide by payload, and so differently of two packets with equal headers."""
        found: set[Term] = set()
        for index, leaf in self.graph.leaves():
            effect = leaf.node.effect
            if isinstance(effect, Primitive) and effect.tells > Depth.COUNTS:
                name = self.graph.ids[index]
                found |= {t.free(name), t.free(f"{name}.result", RESULT_BITS)}
        return frozenset(found)

    def _decides(self, index: int, node: Node, results: dict[int, Term]) -> Term:
        """Whether the node lets a packet go on that comes to it."""
        name = self.graph.ids[index]
        effect = node.effect
        if node.role is Role.DEVICE:
            return self._arrives(node)
        if isinstance(effect, Filter):
            return self.accepted(effect.filter)
        if not isinstance(effect, Primitive) or (node.role is not Role.DECIDES and not effect.selects):
            return t.TRUE
        if effect.selects:
            if effect.function == "ffpf_classify":
                results[index] = self._classified(effect, name)
                return t.TRUE
            results[index] = t.free(f"{name}.result", RESULT_BITS)
            return t.free(name)
        return self._flagged(effect, name) if effect.function == "ffpf_tcpflags" else t.free(name)

    def _arrives(self, device: Node) -> Term:
        """A packet arrives at one tap."""
        taps = [tap.tap for tap in self.graph.taps]
        if len(taps) <= 1:
            return t.TRUE
        number = taps.index(device.tap)  # type: ignore[attr-defined]
        return t.equal(t.free("tap", 8), t.const(number, 8))

    def accepted(self, filter_text: str) -> Term:
        """The packets that a filter of the definition accepts. Raises Undecided."""
        if filter_text not in self.filters:
            self.filters[filter_text] = accepts(self.definition.predicates[filter_text])
        return self.filters[filter_text]

    def _classified(self, effect: Primitive, name: str) -> Term:
        """The result of `classify`."""
        result = t.free(f"{name}.result", RESULT_BITS)
        field, parts = FIELDS[effect.arguments[0]], effect.arguments[1]
        known = self.headers.field(field)
        if known is None:
            self.told[name] = t.less(result, t.const(parts, RESULT_BITS))
            return result
        if field not in OF_TRANSPORT:
            return known
        self._tell(name, t.equal(result, self.headers.behind_extension(field)))
        return t.ite(self.headers.is_told, known, result)

    def _flagged(self, effect: Primitive, name: str) -> Term:
        """The verdict of `tcpflags`."""
        headers, verdict = self.headers, t.free(name)
        known = t.all_of((headers.is_segment, _flags_are(headers.flags, effect)))
        extended = t.all_of((headers.is_extended_segment, _flags_are(headers.extended_flags, effect)))
        self._tell(name, t.negated(t.differ(verdict, extended)))
        return t.ite(headers.is_told, known, verdict)

    def _tell(self, name: str, extended: Term) -> None:
        one = t.all_of((self.headers.has_one_extension, extended))
        self.told[name] = t.any_of((self.headers.is_told, one))


def _flags_are(flags: Term, effect: Primitive) -> Term:
    """One of the ways holds that `tcpflags` was given."""
    ways, packed = effect.arguments
    holds = []
    for way in range(ways):
        matter, wanted = packed >> (16 * way + 8) & 0xFF, packed >> 16 * way & 0xFF
        masked = t.bit_and(flags, t.const(matter, 8))
        holds.append(t.equal(masked, t.const(wanted, 8)))
    return t.any_of(holds)


def depths(graph: Graph) -> dict[int, Depth]:
    """For each step that shows something of packets, the most it shows: a sink what the transforms on the way leave, a
    node what it tells."""
    found: dict[int, Depth] = {}
    for sink, view in views(graph).items():
        effects = [step.node.effect for step in map(graph.steps.__getitem__, view) if isinstance(step, Leaf)]
        found[sink] = min((each.leaves for each in effects if isinstance(each, Transform)), default=Depth.ALL)
    for index, leaf in graph.leaves():
        effect = leaf.node.effect
        if isinstance(effect, Primitive) and effect.tells > Depth.COUNTS:
            found[index] = effect.tells
    return found


def _in_ranges(result: Term, ranges: Ranges) -> Term:
    return t.any_of(t.between(result, low, high) for low, high in ranges)
