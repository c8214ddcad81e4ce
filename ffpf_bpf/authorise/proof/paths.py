"""A flow as formulas: for each step of its graph, the packets for which it is true.

Filters are exact. So are `classify` and `tcpflags` on ordinary headers. What else decides, by chance, state or payload,
is a free variable, one for each step: both answers are thought possible. So what is proved holds whatever it answers;
a packet that is found may be one that such a node would never let pass: `prover.py` shows none that hangs on that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import accepts
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import TCP, WITH_PORTS, Wire
from ffpf_bpf.graph.classes.classify import FIELDS
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import NO_RESULT, Depth, Primitive, Transform
from ffpf_bpf.graph.effect import Predicate as Filter
from ffpf_bpf.graph.expression import Node, Ranges, Role
from ffpf_bpf.graph.graph import Case, Complement, Graph, Intersection, Leaf, Union
from ffpf_bpf.graph.views import views

RESULT_BITS = 17
# Next headers behind which the program looks on for the transport header, which the formula does not.
WALKED = (0, 43, 44, 51, 60, 135)


@dataclass(slots=True)
class Paths:
    """The steps of a definition as truths about the packet `p` that arrives at one of its taps."""

    definition: Definition
    wire: Wire
    filters: dict[str, Term] = field(default_factory=dict)

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
            return self._accepted(effect.filter)
        if not isinstance(effect, Primitive) or (node.role is not Role.DECIDES and not effect.selects):
            return t.TRUE
        if effect.selects:
            exact = self._classified(effect, name) if effect.function == "ffpf_classify" else None
            results[index] = t.free(f"{name}.result", RESULT_BITS) if exact is None else exact
            return t.TRUE if exact is not None else t.free(name)
        return self._flagged(effect, name) if effect.function == "ffpf_tcpflags" else t.free(name)

    def _arrives(self, device: Node) -> Term:
        """A packet arrives at one tap."""
        taps = [(tap.interface, tap.hook) for tap in self.graph.taps]
        if len(taps) <= 1:
            return t.TRUE
        number = taps.index((device.interface, device.hook))  # type: ignore[attr-defined]
        return t.equal(t.free("tap", 8), t.const(number, 8))

    def _accepted(self, filter_text: str) -> Term:
        if filter_text not in self.filters:
            self.filters[filter_text] = accepts(self.definition.predicates[filter_text])
        return self.filters[filter_text]

    def _told(self) -> tuple[Term, Term, Term]:
        """The packets whose IP headers the dissector of the program takes for what the reference does; those that are
        no IP to it; and those with a fragment header that is cut, behind which it sees nothing. What is left it walks
        through, extension header by extension header."""
        wire = self.wire
        first = wire.behind_ethernet(0, 1)
        version, words = t.extract(first.value, 7, 4), t.extract(first.value, 3, 0)
        valid4 = t.all_of((wire.behind_ethernet(16, 4).there, t.equal(version, t.const(4, 4)), t.at_least(words, 5)))
        valid6 = t.all_of((wire.behind_ethernet(24, 16).there, t.equal(version, t.const(6, 4))))
        walked = t.any_of(t.equal(wire.protocol6.value, t.const(each, 8)) for each in WALKED)
        whole = t.any_of((t.negated(wire.has_fragment_header), wire.behind_ethernet(44, 4).there))
        straight = t.all_of((whole, t.any_of((t.negated(walked), wire.later6))))
        other = t.all_of((wire.ethertype.there, t.negated(wire.is_ip4), t.negated(wire.is_ip6)))
        no_ip = (t.all_of((wire.is_ip4, t.negated(valid4))), t.all_of((wire.is_ip6, t.negated(valid6))), other)
        plain = t.any_of((t.all_of((wire.is_ip4, valid4)), t.all_of((wire.is_ip6, valid6, straight))))
        return plain, t.any_of(no_ip), t.all_of((wire.is_ip6, valid6, t.negated(whole)))

    def _classified(self, effect: Primitive, name: str) -> Term | None:
        """The result of `classify`, where the formula knows it."""
        wire, unknown = self.wire, t.free(f"{name}.result", RESULT_BITS)
        none = t.const(NO_RESULT, RESULT_BITS)
        plain, no_ip, cut = self._told()
        protocol = t.ite(wire.is_ip4, wire.protocol4.value, wire.protocol6.value)
        match FIELDS[effect.arguments[0]]:
            case "dport" | "sport" as side:
                port = wire.ports[side == "dport"]
                with_ports = t.any_of(t.equal(protocol, t.const(each, 8)) for each in WITH_PORTS)
                has = t.all_of((plain, with_ports, t.negated(wire.is_later), wire.ports[1].there))
                is_known = t.any_of((plain, no_ip, cut))
                return t.ite(has, t.widened(port.value, RESULT_BITS), t.ite(is_known, none, unknown))
            case "proto":
                return t.ite(plain, t.widened(protocol, RESULT_BITS), t.ite(no_ip, none, unknown))
            case "version":
                number = t.ite(wire.is_ip4, t.const(4, RESULT_BITS), t.const(6, RESULT_BITS))
                return t.ite(plain, number, t.ite(no_ip, none, unknown))
            case "ethertype":
                return t.ite(wire.ethertype.there, t.widened(wire.ethertype.value, RESULT_BITS), unknown)
        return None

    def _flagged(self, effect: Primitive, name: str) -> Term:
        """The verdict of `tcpflags`, where the formula knows it."""
        wire = self.wire
        flags = wire.behind_ip(13, 1)
        ways, packed = effect.arguments
        holds = []
        for way in range(ways):
            matter, wanted = packed >> (16 * way + 8) & 0xFF, packed >> 16 * way & 0xFF
            masked = t.bit_and(flags.value, t.const(matter, 8))
            holds.append(t.equal(masked, t.const(wanted, 8)))
        protocol = t.ite(wire.is_ip4, wire.protocol4.value, wire.protocol6.value)
        segment = (t.equal(protocol, t.const(TCP, 8)), t.negated(wire.is_later), wire.behind_ip(19, 1).there)
        plain, no_ip, cut = self._told()
        return t.ite(t.any_of((plain, no_ip, cut)), t.all_of((plain, *segment, t.any_of(holds))), t.free(name))


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
