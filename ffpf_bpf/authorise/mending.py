"""What a rule wants of a flow's shape and means, put into it: samplers, limits, snap lengths, classes it must pass."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from ffpf_bpf.authorise.decision import Finding, Result
from ffpf_bpf.authorise.insertion import Names, behind, behind_devices, in_front, with_snaplen
from ffpf_bpf.authorise.judgement import bounds, examined
from ffpf_bpf.authorise.means import check_packet_rate, check_snaplen
from ffpf_bpf.authorise.policy import Order, PacketClass, Rule
from ffpf_bpf.authorise.proof.prover import Prover
from ffpf_bpf.authorise.sentences import ordered
from ffpf_bpf.authorise.shape import check_order, check_sampling
from ffpf_bpf.errors import with_article
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.classes.limit import Limit
from ffpf_bpf.graph.classes.sampler import Sampler
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression, Node, Role, nodes

Ask = Callable[[Definition], Prover]
Define = Callable[[Expression], Definition]


class Cannot(Exception):
    """Why it cannot be narrowed."""


def mended(definition: Definition, rule: Rule, define: Define, ask: Ask, live_flows: int) -> Expression:
    """The flow with what the rule wants, but for what packets are. Raises Cannot."""
    expression = definition.graph.expression
    if (most := rule.limits.snaplen) is not None and not _proved(check_snaplen(definition.graph, most)):
        expression = with_snaplen(expression, most)
    mending = _Mending(expression, rule, define, ask)
    for order in rule.order:
        if not isinstance(order.required, PacketClass):
            mending.keep(order)
    if (one_in := rule.limits.sample_at_least) is not None:
        prover = mending.prover()
        if not _proved(check_sampling(prover, one_in)):
            mending.put(_is_sink, lambda name: Sampler(one_in, name=name), "guard_sampler")
    if rule.limits.packets_per_second is not None:
        mending.slow_down(rule.limits.packets_per_second)
    prover = mending.prover()
    for obligation in examined(bounds(rule, prover, live_flows)):
        about_packets = any(isinstance(o.required, PacketClass) and ordered(o) == obligation.claim for o in rule.order)
        if obligation.result is not Result.PROVED and not about_packets:
            raise Cannot(f"wants: {obligation.claim}; {obligation.evidence}")
    return mending.expression


class _Mending:
    def __init__(self, expression: Expression, rule: Rule, define: Define, ask: Ask) -> None:
        self.expression, self.rule = expression, rule
        self._names = Names.of(expression)
        self._define, self._ask = define, ask

    def prover(self) -> Prover:
        return self._ask(self._define(self.expression))

    def put(self, wanted: Callable[[Node], bool], make: Callable[[str], Node], name: str) -> None:
        """A node in front of each that is wanted."""
        self.expression = in_front(self.expression, wanted, lambda: make(self._names.fresh(name)))

    def keep(self, order: Order) -> None:
        """The order, by a node in front or behind; where that is not enough, since what it is about decides inside `!`
        or `&`, by one in front of all."""
        if _proved(check_order(self.prover(), order)):
            return
        make, name = self._required(order)
        before = self.expression

        def wanted(node: Node) -> bool:
            return node.class_name == order.function or (order.function == "grab" and _is_sink(node))

        if not order.after:
            self.expression = behind(before, wanted, lambda: make(self._names.fresh(name)))
            return
        self.put(wanted, make, name)
        if self.expression == before:
            self.expression = behind_devices(before, lambda: make(self._names.fresh(name)))

    def _required(self, order: Order) -> tuple[Callable[[str], Node], str]:
        """What makes the node that the order asks for, and its name."""
        limits = self.rule.limits
        match order.required:
            case int(one_in):
                return lambda name: Sampler(one_in, name=name), "guard_sampler"
            case "sampler":
                wanted = [o.required for o in self.rule.order if o.function == order.function]
                most = max([limits.sample_at_least or 1, *(each for each in wanted if isinstance(each, int))])
                return lambda name: Sampler(most, name=name), "guard_sampler"
            case "limit" if limits.packets_per_second is not None:
                # That it is slow enough is asked for afterwards.
                rate = f"{limits.packets_per_second}/s"
                return lambda name: Limit(rate, name=name), "guard_limit"
            case str(class_name) if class_name in CLASSES and CLASSES[class_name].role is not Role.SINK:
                kind = CLASSES[class_name]
                try:
                    kind()
                except Exception:
                    raise Cannot(f"wants: {ordered(order)}; {with_article(class_name)} needs more to be said") from None
                return lambda name: kind(name=name), f"guard_{class_name}"
        raise Cannot(f"wants: {ordered(order)}; a sink would show more, not less")

    def slow_down(self, most: int) -> None:
        """By a limit in front of each sink, of what other limits leave, or of one for all behind the devices."""
        graph = self._define(self.expression).graph
        if _proved(check_packet_rate(graph, most)):
            return
        sinks = sum(1 for node in nodes(self.expression) if _is_sink(node))
        has = sum(
            (node.packets_per_second or Fraction(0)) for node in nodes(self.expression) if isinstance(node, Limit)
        )
        share = int((most - has) // sinks)
        if share >= 1:
            self.put(_is_sink, lambda name: Limit(f"{share}/s", name=name), "guard_limit")
        elif most > has:
            rate = f"{int(most - has)}/s"
            self.expression = behind_devices(
                self.expression, lambda: Limit(rate, name=self._names.fresh("guard_limit"))
            )


def _is_sink(node: Node) -> bool:
    return node.role is Role.SINK


def _proved(finding: Finding) -> bool:
    return finding.result is Result.PROVED
