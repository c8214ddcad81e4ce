"""Narrowing: a flow that is refused, with what the rules want put into it.

    narrow(definition, policies, subject, define) -> Narrowing

What is put in only takes packets away, or shows less of them. The least is looked for: clauses of a guard are added
one by one, each because a packet was found that the rules forbid and the clause does not let pass, until none is
found. Nothing in here is trusted: the flow that comes out is decided on as any other.

A rule's taps, classes, flows, buffer and memory are no matter of packets: there is nothing to put in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ffpf_bpf.authorise.content import content_claims, permitted
from ffpf_bpf.authorise.decision import Finding, Result
from ffpf_bpf.authorise.guard import NO_MORE_TAGS, TooLong, in_classes, keys, text_of, whole, without
from ffpf_bpf.authorise.inference import inference_claims
from ffpf_bpf.authorise.insertion import Names, behind_devices, in_front, places
from ffpf_bpf.authorise.judgement import bounds, examined, hold
from ffpf_bpf.authorise.mending import Cannot, mended
from ffpf_bpf.authorise.narrowing import Narrowing
from ffpf_bpf.authorise.policy import Allow, Never, PacketClass, Policies, Rule
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import Undecided
from ffpf_bpf.authorise.proof.paths import depths
from ffpf_bpf.authorise.proof.prover import Prover
from ffpf_bpf.authorise.proof.solvers import Clock, Verdict, solve
from ffpf_bpf.authorise.proof.wire import MOST_TAGS, Wire
from ffpf_bpf.authorise.proof.witness import tags_of
from ffpf_bpf.authorise.sentences import ordered
from ffpf_bpf.authorise.shape import check_order
from ffpf_bpf.authorise.subject import Subject
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.anonymise import Anonymise
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.classes.snap import Snap
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import Depth
from ffpf_bpf.graph.expression import Expression, Node, Role, any_of, nodes
from ffpf_bpf.graph.predicate import run
from ffpf_bpf.graph.printer import text

NARROW_S = 20.0
PROOF_S = 4.0  # for one candidate: the decision on it must not take longer
MOST_ROUNDS = 60
MANY_ROUNDS = 4  # for one thing that is forbidden, or told: then all that may help at once, or nothing
MOST_CLASSES = 32  # of which those are left out that the flow has no packet of
MOST_REASONS = 3
OUT_OF_TIME = "there was no time to find what to put in"
Define = Callable[[Expression], Definition]
_Settled = tuple[str, Never | Depth]  # a claim about content, and what it is about


def narrow(
    definition: Definition,
    policies: Policies,
    subject: Subject,
    define: Define,
    *,
    live_flows: int = 0,
    limit_s: float = NARROW_S,
) -> Narrowing:
    """The definition narrowed to what the policies allow the subject, in at most about `limit_s`. `define` makes the
    definition that an expression and the same buffer make. A flow that is accepted stays as it is."""
    clock = Clock(limit_s)
    try:
        return _Search(definition, policies, subject, define, live_flows, clock).run()
    except (Cannot, ExpressionError) as error:
        return Narrowing(why=str(error))


@dataclass(frozen=True, slots=True)
class _Failing:
    """A claim that does not hold. It is about what may be shown so deep, what is never, what a node may see, or (None)
    what is told."""

    about: Depth | Never | PacketClass | None
    claim: str
    finding: Finding

    def __str__(self) -> str:
        return f"{self.claim}; {self.finding.evidence}"


class _Search:
    def __init__(
        self,
        definition: Definition,
        policies: Policies,
        subject: Subject,
        define: Define,
        live_flows: int,
        clock: Clock,
    ) -> None:
        self.definition, self.policies, self.subject = definition, policies, subject
        self.define, self.live_flows, self.clock = define, live_flows, clock
        self._known: dict[tuple[Expression, tuple[str, ...]], _Failing | None] = {}
        naming = policies.naming(subject)
        self.allowing = [rule for rule in naming if rule.classes]
        self.forbidding = [rule for rule in naming if any(map(rule.may_concern, definition.graph.taps))]

    def run(self) -> Narrowing:
        if not self.allowing:
            raise Cannot("no rule names the user")
        whys: list[str] = []
        bases = list(self._bases(whys))
        whole = self.definition.graph.expression
        if any(base == whole and self.failing(base, rules) is None for base, rules in bases):
            return Narrowing()
        for base, rules in bases:
            reasons: list[str] = []
            for deeper in self._views(base, rules):
                try:
                    return self._found(_Guarding(self, deeper, rules).run(), rules)
                except Cannot as error:
                    reasons.append(str(error))
                except TooLong:
                    reasons.append("what the rules say of packets is too long for a filter")
            # That nothing may be shown so deep says less than why it may not be told, where less is shown.
            whys.append(min(reasons, key=lambda reason: "no rule allows it" in reason))
        raise Cannot("; ".join(list(dict.fromkeys(whys))[:MOST_REASONS]))

    def _bases(self, whys: list[str]) -> Iterator[tuple[Expression, Sequence[Rule]]]:
        """The flow as the shape and means of a rule want it, with the rules that carry it then: all together, whose
        allows add up, then the rule itself."""
        found: list[tuple[Expression, Rule]] = []
        for rule in self.allowing:
            try:
                found.append((mended(self.definition, rule, self.define, self.prover, self.live_flows), rule))
            except Cannot as error:
                whys.append(f"rule {rule.name} {error}")
        found.sort(key=lambda one: sum(1 for _ in nodes(one[0])))
        seen: list[tuple[Expression, Sequence[Rule]]] = []
        for base, rule in found:
            prover = self.prover(self.define(base))
            carrying = [each for each in self.allowing if self._carries(each, prover)]
            for rules in (carrying, [rule]):
                if rules and (base, rules) not in seen:
                    seen.append((base, rules))
                    yield base, rules

    def _carries(self, rule: Rule, prover: Prover) -> bool:
        """But for what nodes may see."""
        about_packets = [each for each in rule.order if isinstance(each.required, PacketClass)]
        others = tuple(each for each in rule.order if each not in about_packets)
        return hold(examined(bounds(replace(rule, order=others), prover, self.live_flows)))

    def _views(self, base: Expression, rules: Sequence[Rule]) -> Iterator[Expression]:
        """The flow with more and more hidden in front of its sinks; first as much as the rules want of a packet that it
        shows and must not."""
        plans = {
            Depth.ALL: base,
            Depth.HEADERS: self._hidden(base, Depth.HEADERS, partial(Snap), "guard_snap"),
            Depth.ANONYMISED: self._hidden(base, Depth.ANONYMISED, partial(Anonymise), "guard_anonymise"),
        }
        failing = self.failing(base, rules)
        first = Depth.ALL
        if failing and isinstance(failing.about, Depth) and failing.finding.packets:
            (frame, *_) = failing.finding.packets
            prover = self.prover(self.define(base))
            lesser = (Depth.HEADERS, Depth.ANONYMISED)
            first = next((d for d in lesser if prover.holds_of(permitted(prover.wire, d, rules), frame)), first)
        order = [first, *(depth for depth in plans if depth is not first)]
        yield from dict.fromkeys(plans[depth] for depth in order if depth is first or plans[depth] != base)

    def _hidden(self, base: Expression, depth: Depth, make: Callable[..., Node], name: str) -> Expression:
        graph = self.define(base).graph
        names = Names.of(base)
        deep = {graph.ids[step] for step, shown in depths(graph).items() if shown > depth}
        ids = iter([graph.ids[step] for step, leaf in graph.leaves() if leaf.node.role is Role.SINK])
        # Sinks stand in the steps in the order of the text.
        return in_front(
            base, lambda node: node.role is Role.SINK and next(ids) in deep, lambda: make(name=names.fresh(name))
        )

    def prover(self, definition: Definition) -> Prover:
        if not self.clock.left_ms:
            raise Cannot(OUT_OF_TIME)
        return Prover(definition, Clock(min(PROOF_S, self.clock.left_ms / 1000)))

    def failing(
        self, expression: Expression, rules: Sequence[Rule], settled: set[_Settled] | None = None
    ) -> _Failing | None:
        """The first claim about packets that does not hold of the flow. What is `settled` is known to hold, of a flow
        that takes more packets; it is added to."""
        key = (expression, tuple(rule.name for rule in rules))
        if key not in self._known:
            settled = set() if settled is None else settled
            self._known[key] = self._examined(self.prover(self.define(expression)), rules, settled)
        return self._known[key]

    def _examined(self, prover: Prover, rules: Sequence[Rule], settled: set[_Settled]) -> _Failing | None:
        for rule in rules:
            for order in rule.order:
                if isinstance(order.required, PacketClass):
                    finding = check_order(prover, order)
                    if finding.result is not Result.PROVED:
                        return _Failing(order.required, ordered(order), finding)
        for _, _, claim, examine in content_claims(prover, rules, self.forbidding):
            about = next(each for each in examine.args if isinstance(each, Never | Depth))
            if (claim, about) in settled:
                continue
            finding = examine()
            if finding.result is not Result.PROVED:
                return _Failing(about, claim, finding)
            settled.add((claim, about))
        for _, _, claim, examine in inference_claims(prover, rules, self.forbidding):
            finding = examine()
            if finding.result is not Result.PROVED:
                return _Failing(None, claim, finding)
        return None

    def _found(self, expression: Expression, rules: Sequence[Rule]) -> Narrowing:
        """The flow, if it is within the bounds of the rules with what was put in."""
        prover = self.prover(self.define(expression))
        for rule in rules:
            for obligation in examined(bounds(rule, prover, self.live_flows)):
                if obligation.result is not Result.PROVED:
                    raise Cannot(f"rule {rule.name} wants: {obligation.claim}; {obligation.evidence}")
        return Narrowing(text(expression))


class _Guarding:
    """The search for a guard in front of `base`, as `rules` together want it. `chosen` are its clauses, for each number
    of VLAN tags of the packets that the flow takes: they are told apart, since headers are elsewhere behind tags."""

    def __init__(self, search: _Search, base: Expression, rules: Sequence[Rule]) -> None:
        self.search, self.base, self.rules = search, base, rules
        self.prover = search.prover(search.define(base))
        self.chosen: dict[int, list[str]] = {}
        self.takes: tuple[int, ...] = ()
        self.is_full = False
        self._known: dict[t.Term, bool] = {}
        self._settled: set[_Settled] = set()  # more clauses only take packets away
        self._rounds: Counter[Depth | Never | PacketClass | None] = Counter()

    def run(self) -> Expression:
        try:
            self.takes = tuple(tags for tags in range(MOST_TAGS + 1) if self._takes(tags)) or (0,)
        except Undecided as error:
            raise Cannot(f"undecided: {error}") from None
        self.chosen = {tags: [] for tags in self.takes}
        for _ in range(MOST_ROUNDS):
            expression = self._guarded()
            failing = self.search.failing(expression, self.rules, self._settled)
            if failing is None:
                self._check_not_empty(self.search.prover(self.search.define(expression)))
                return expression
            self._exclude(failing)
        raise Cannot(OUT_OF_TIME)

    def _takes(self, tags: int) -> bool:
        """Whether packets with so many tags come to where it matters."""
        wire = Wire()
        has = t.all_of(wire.tagged(number) for number in range(tags))
        no_more = t.negated(wire.tagged(tags)) if tags < MOST_TAGS else t.TRUE
        answer = solve(t.all_of((self._matters(self.prover), has, no_more)), self.search.clock)
        return answer.verdict is not Verdict.NONE

    @staticmethod
    def _matters(prover: Prover) -> t.Term:
        graph = prover.definition.graph
        shown = depths(graph)
        return t.any_of(map(prover.arriving, shown) if shown else prover.truths)

    def _check_not_empty(self, prover: Prover) -> None:
        graph = prover.definition.graph
        if (
            graph.sinks
            and solve(t.any_of(map(prover.arriving, graph.sinks)), self.search.clock).verdict is Verdict.NONE
        ):
            raise Cannot("nothing would be left of it: no packet that it grabs may be shown")

    def _guarded(self) -> Expression:
        texts = self._texts()
        if not texts:
            return self.base
        missing = [rule.name for rule in self.rules if not rule.allows_class(Bpf.class_name)]
        if missing:
            raise Cannot(f"rule {missing[0]} allows no `bpf`, which a guard is made of")
        names = Names.of(self.base)

        def guard() -> Expression:
            return any_of(*(Bpf(each, name=names.fresh("guard")) for each in texts))

        return behind_devices(self.base, guard)

    def _texts(self) -> list[str]:
        """The filters that are its alternatives; none if it lets everything pass."""
        self._drop_what_is_too_many()
        if set(self.chosen) == set(self.takes) and not any(self.chosen.values()):
            return []
        found = []
        for tags, clauses in sorted(self.chosen.items()):
            if not clauses and tags - 1 in self.chosen and not self.chosen[tags - 1] and tags > 1:
                continue  # the alternative before says it, too
            is_last = not any(other > tags for other in self.takes)
            is_open = not clauses and tags + 1 in self.chosen and not self.chosen[tags + 1] and tags
            found.append(text_of(tags, [*clauses, *([] if is_last or is_open else [NO_MORE_TAGS])]))
        return found

    def _drop_what_is_too_many(self) -> None:
        """Alternatives for tagged packets, where the rules allow fewer nodes."""
        limits = [rule.limits.nodes for rule in self.rules if rule.limits.nodes is not None]
        if not limits:
            return
        has, each = sum(1 for _ in nodes(self.base)), places(self.base)
        room = (min(limits) - has) // each
        if not room:
            raise Cannot(f"a guard would make {has + each:,} nodes, of {min(limits):,} that are allowed")
        for tags in sorted(self.chosen)[room:]:
            del self.chosen[tags]

    def _exclude(self, failing: _Failing) -> None:
        """Choose one more clause, that keeps out the packets which show that the claim does not hold."""
        if failing.finding.result is not Result.REFUTED or not failing.finding.packets:
            if len(self.chosen) > 1:
                del self.chosen[max(self.chosen)]  # less to prove
            else:
                self._choose_all(failing)
            return
        for frame in failing.finding.packets:
            tags = tags_of(frame)
            if tags not in self.chosen:
                tags = min(self.chosen)
            clauses = self._clauses(failing.about, tags)
            if clauses is None:
                self._drop(tags, failing)
                return
            for clause in clauses:
                if clause not in self.chosen[tags] and not self._passes(tags, clause, frame):
                    self._choose(failing.about, clauses if self._is_enough(failing) else [clause])
                    return
        raise Cannot(str(failing))

    def _is_enough(self, failing: _Failing) -> bool:
        """Whether one clause after the other was tried for long enough. Raises Cannot if more of them hardly help."""
        self._rounds[failing.about] += 1
        if self._rounds[failing.about] > MANY_ROUNDS and not isinstance(failing.about, Never):
            raise Cannot(str(failing))
        return self._rounds[failing.about] > MANY_ROUNDS

    def _choose(self, about: Depth | Never | PacketClass | None, wanted: list[str]) -> None:
        """For packets with other numbers of tags too, if they say the same of them."""
        for tags, clauses in self.chosen.items():
            known = self._clauses(about, tags) or []
            clauses += [clause for clause in wanted if clause in known and clause not in clauses]

    def _choose_all(self, failing: _Failing) -> None:
        if self.is_full:
            raise Cannot(str(failing))
        self.is_full = True
        about: list[Never | Depth] = [
            *(never for rule in self.search.forbidding for never in rule.never),
            *self._depths(),
        ]
        for tags in list(self.chosen):
            for each in about:
                clauses = self._clauses(each, tags)
                if clauses is None:
                    self._drop(tags, failing)
                    break
                self.chosen[tags] += [clause for clause in clauses if clause not in self.chosen[tags]]

    def _depths(self) -> list[Depth]:
        return sorted(set(depths(self.prover.definition.graph).values()))

    def _drop(self, tags: int, failing: _Failing) -> None:
        """Packets with so many tags may not pass at all."""
        if len(self.chosen) == 1:
            raise Cannot(str(failing))
        del self.chosen[tags]

    def _clauses(self, about: Depth | Never | PacketClass | None, tags: int) -> list[str] | None:
        """Clauses of which one may help; None if no packet with so many tags may pass."""
        match about:
            case Never():
                return list(without(about, tags))
            case PacketClass():
                found = keys(about, tags)
                return None if found is None else list(found)
            case Depth():
                return self._of_classes([each.packets for each in self._allows if each.show >= about], tags)
        return list(dict.fromkeys(self._telling(tags)))

    def _telling(self, tags: int) -> Iterator[str]:
        """Clauses of which one may keep out packets of which something is told that is hidden."""
        for allows in ([each for each in self._allows if not each.hide], self._allows):
            yield from self._of_classes([each.packets for each in allows], tags) or ()
        for never in (never for rule in self.search.forbidding for never in rule.never):
            yield from without(never, tags)
        if not self._has(t.negated(t.any_of((self.prover.wire.is_ip4, self.prover.wire.is_ip6)))):
            yield "ip or ip6"
        yield from whole(tags)

    @property
    def _allows(self) -> list[Allow]:
        return [allow for rule in self.rules for allow in rule.allow]

    def _of_classes(self, classes: list[PacketClass], tags: int) -> list[str] | None:
        told = [each for each in dict.fromkeys(classes) if keys(each, tags) is not None]
        if 1 < len(told) <= MOST_CLASSES:
            told = [each for each in told if self._has(self.prover.wire.must(each))] or told
        return list(in_classes(told, tags)) if told else None

    def _has(self, truth: t.Term) -> bool:
        """Whether the flow as it is takes such packets."""
        if truth not in self._known:
            answer = solve(t.all_of((self._matters(self.prover), truth)), self.search.clock)
            self._known[truth] = answer.verdict is not Verdict.NONE
        return self._known[truth]

    def _passes(self, tags: int, clause: str, frame: bytes) -> bool:
        filter_text = text_of(tags, [clause])
        device = next(node for node in nodes(self.base) if node.role is Role.DEVICE)
        definition = self.search.define(behind_devices(device, lambda: Bpf(filter_text)))
        return bool(run(definition.predicates[Bpf(filter_text).filter], frame))
