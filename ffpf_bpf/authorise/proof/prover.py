"""One definition under proof: its paths, the time that is left, and packets that were tried before they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

from ffpf_bpf.authorise.decision import Finding, Result
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.cases import Case, has_tag, tagged, untagged
from ffpf_bpf.authorise.proof.paths import Paths
from ffpf_bpf.authorise.proof.solvers import Answer, Clock, Solvers, Verdict, first_opinion
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import Wire
from ffpf_bpf.authorise.proof.witness import described, fields_of, is_byte, ordinary, packet_of
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import Depth, Primitive
from ffpf_bpf.graph.graph import Leaf
from ffpf_bpf.graph.predicate import Program, run

Execute = Callable[[Program, bytes], int]
Twin = Mapping[Term, Term]
PORTS_FILTER = "tcp or udp or sctp"
# What leaves a node no packet of which it is unknown what it finds.
FILTERS = {"tcpflags": "tcp", "dport": PORTS_FILTER, "sport": PORTS_FILTER, "proto": "tcp or udp or icmp or icmp6"}


class Prover:
    """`executors` run a filter on a frame; all must agree with the formula before a packet is shown."""

    def __init__(self, definition: Definition, clock: Clock, executors: Sequence[Execute] = (run,)) -> None:
        self.definition = definition
        self.clock = clock
        self.wire = Wire()
        self.paths = Paths(definition, self.wire)
        self._executors = executors
        self._solvers = Solvers()

    @cached_property
    def truths(self) -> list[Term]:
        """Which packets come to each step. Raises Undecided."""
        return self.paths.truths()

    def arriving(self, step: int) -> Term:
        """Which packets come to a node, whether it lets them go on or not. Raises Undecided."""
        leaf = self.definition.graph.steps[step]
        assert isinstance(leaf, Leaf)
        return t.TRUE if leaf.source is None else self.truths[leaf.source]

    def none(
        self,
        concerned: Term,
        violates: Callable[[Wire], Term],
        why: Callable[[bytes], str],
        rather: Callable[[Wire], Term] = lambda _: t.TRUE,
    ) -> Finding:
        """That no packet exists of those `concerned` for which `violates` holds. `why` says of one that does what is
        wrong with it; one for which `rather` holds is shown, if there is one."""

        def question(case: Case) -> tuple[Term, Twin]:
            known = t.replaced([concerned], case.known)[0]
            return (t.FALSE if known is t.FALSE else t.all_of((known, violates(case.wire)))), {}

        return self._none(concerned, question, lambda frame, _: f"{described(frame)}: {why(frame)}", rather)

    def no_pair(
        self,
        concerned: Term,
        question: Callable[[Case], tuple[Term, Twin]],
        why: Callable[[bytes, bytes], str],
    ) -> Finding:
        """That no two packets, one of them `concerned`, exist for which a truth holds: one, and another whose bytes are
        the twin, of those of the first and of `q`; `question` gives both for each case."""
        return self._none(concerned, question, why)

    def _none(
        self,
        concerned: Term,
        question: Callable[[Case], tuple[Term, Twin]],
        why: Callable[[bytes, bytes], str],
        rather: Callable[[Wire], Term] = lambda _: t.TRUE,
    ) -> Finding:
        confirmed = True
        doubt: Finding | None = None
        for case in self._cases(concerned):
            if not case.known and self.is_none(t.all_of((concerned, case.holds))):
                continue
            truth, twin = question(case)
            truth = t.all_of((truth, case.holds))
            preferences = [each for each in (rather(case.wire), *ordinary(case.wire)) if each is not t.TRUE]
            answer = self._solvers.solve(truth, self.clock, preferences)
            confirmed &= answer.confirmed
            match answer.verdict:
                case Verdict.UNKNOWN:
                    return doubt or Finding(Result.REFUSED, f"undecided: {answer.why}")
                case Verdict.SOME:
                    found = self._shown(truth, twin, answer, case, why)
                    if found.result is Result.REFUTED:
                        return found
                    doubt = doubt or found
        return doubt or Finding(Result.PROVED, "of every packet" + (", two solvers agree" if confirmed else ""))

    def _cases(self, concerned: Term) -> Iterator[Case]:
        yield from self._untagged
        if not self.is_none(t.all_of((concerned, has_tag()))):
            yield from self._tagged

    # Kept, for what is said of the packets of a case is asked again with the next obligation.

    @cached_property
    def _untagged(self) -> tuple[Case, ...]:
        return tuple(untagged())

    @cached_property
    def _tagged(self) -> tuple[Case, ...]:
        return tuple(tagged())

    def is_none(self, truth: Term) -> bool:
        """Whether it is certain that there is no such packet."""
        answer = self._solvers.solve(truth, self.clock)
        return answer.verdict is Verdict.NONE and answer.confirmed

    def accepts_all(self, filter_text: str) -> bool:
        """Whether it is certain that a filter of the definition accepts every packet. Raises Undecided."""
        return self.is_none(t.negated(self.paths.accepted(filter_text)))

    def may_be(self, concerned: Term, what: Callable[[Wire], Term], limit_ms: int) -> bool:
        """Whether `what` holds of any of the packets `concerned`, or that is not known in time: by one solver, for what
        is only said."""
        clock = Clock(min(self.clock.left_ms, limit_ms) / 1000)
        for case in self._cases(concerned):
            known = t.replaced([concerned], case.known)[0]
            truth = t.FALSE if known is t.FALSE else t.all_of((known, case.holds, what(case.wire)))
            if first_opinion(truth, clock) is not Verdict.NONE:
                return True
        return False

    def _shown(
        self, truth: Term, twin: Twin, answer: Answer, case: Case, why: Callable[[bytes, bytes], str]
    ) -> Finding:
        """The packets that show it, if they do: where a node may or may not let them pass, others for which that is
        known."""
        shown, doubtful = self._tried(truth, twin, answer, case, why)
        if not doubtful:
            return shown
        told = list(self.paths.told.values())
        known = (t.equal(variable, value) for variable, value in case.known.items())
        truth = t.all_of((truth, *known, *told, *t.replaced(told, twin)))
        answer = self._solvers.solve(truth, self.clock, ordinary(case.wire))
        if answer.verdict is Verdict.SOME and doubtful in self.paths.told:
            return self._tried(truth, twin, answer, case, why, is_told=True)[0]
        return shown

    def _tried(
        self,
        truth: Term,
        twin: Twin,
        answer: Answer,
        case: Case,
        why: Callable[[bytes, bytes], str],
        *,
        is_told: bool = False,
    ) -> tuple[Finding, str]:
        """What the packets of an answer show, and the node of which it is doubtful whether it lets them pass: if what
        nodes answer is told, none of those that the paths tell of."""
        known = {variable: t.value_of(value) or 0 for variable, value in case.known.items()}
        values = self._plainest(truth, {**answer.values, **known}, set(known))
        frame = packet_of(values)
        if twin:
            frame, values = self._nearest(truth, twin, values, frame)
        frames = (frame, self._second(twin, values, frame)) if twin else (frame,)
        if trouble := self._replayed(truth, values, frames):
            return Finding(Result.REFUSED, f"undecided: {trouble}", packets=frames), ""
        sure = frozenset(self.paths.told) if is_told else frozenset()
        if doubtful := self._doubtful(truth, self._values(values, frame), sure):
            trouble = f"undecided: whether `{doubtful}` lets {described(frame)} pass cannot be told"
            return Finding(Result.REFUSED, trouble, packets=frames, help=self._filter_for(doubtful)), doubtful
        return Finding(Result.REFUTED, why(frame, frames[-1]), packets=frames), ""

    def _filter_for(self, name: str) -> str:
        """What makes it known what the node lets pass."""
        graph = self.definition.graph
        node = next(leaf.node for index, leaf in graph.leaves() if graph.ids[index] == name)
        text = FILTERS.get(node.expression.lower()) if node.class_name == "classify" else FILTERS.get(node.class_name)
        filter_text = f'`(bpf,"{text}")`' if text else "a filter, as `(bpf,...)`,"
        return f"put {filter_text} in front of {name}, or one that passes less"

    def _second(self, twin: Twin, values: Mapping[Term, int], frame: bytes) -> bytes:
        found = bytearray(frame)
        told = [(t.offset_of(at), term) for at, term in twin.items() if is_byte(at) and t.offset_of(at) < len(frame)]
        results = t.evaluate([term for _, term in told], self._values(values, frame))
        for (offset, _), result in zip(told, results, strict=True):
            found[offset] = result
        return bytes(found)

    def _nearest(
        self, truth: Term, twin: Twin, values: Mapping[Term, int], frame: bytes
    ) -> tuple[bytes, Mapping[Term, int]]:
        """The first packet and the values with which the two differ in few bytes: one byte after the other is made that
        of the first, or else that of the second, where they still show it, as long as there is time."""
        second = self._second(twin, values, frame)
        for offset in [at for at, (one, other) in enumerate(zip(frame, second, strict=True)) if one != other]:
            nearer = {**values, t.byte(offset, "q"): frame[offset]}
            changed = frame[:offset] + second[offset : offset + 1] + frame[offset + 1 :]
            for ends, other_values in ((frame, nearer), (changed, values)):
                if self.clock.left_ms and t.evaluate([truth], self._values(other_values, ends))[0]:
                    frame, values = ends, other_values
                    break
        return frame, values

    def _plainest(self, truth: Term, values: Mapping[Term, int], kept: set[Term]) -> Mapping[Term, int]:
        """The values without those of fields that may as well be as usual."""
        for field in fields_of(packet_of(values)):
            fewer = {
                term: value
                for term, value in values.items()
                if term in kept or not (is_byte(term) and t.offset_of(term) in field)
            }
            if len(fewer) < len(values) and t.evaluate([truth], self._values(fewer, packet_of(fewer)))[0]:
                values = fewer
        return values

    def holds_of(self, truth: Term, frame: bytes) -> bool:
        """Whether a truth about `p` holds of the frame, free variables being false."""
        return bool(t.evaluate([truth], self._values({}, frame))[0])

    def _replayed(self, truth: Term, values: Mapping[Term, int], frames: Sequence[bytes]) -> str:
        """Why the frames do not show what they should, or ""."""
        values = self._values(values, frames[0])
        if not t.evaluate([truth], values)[0]:
            return "the solver's packet does not do what it says"
        for text, accepted in self.paths.filters.items():
            program = self.definition.predicates[text]
            for frame in frames:
                expected = self.holds_of(accepted, frame)
                if any(bool(execute(program, frame)) != expected for execute in self._executors):
                    return "the formula of a filter and the filter disagree"
        return ""

    def _doubtful(self, truth: Term, values: dict[Term, int], sure: frozenset[str]) -> str:
        """A node whose verdict depends on the packet, in a way that the formula does not know, and decides here; none
        of those that are sure."""
        free = [term for term in t.variables([truth]) if term.op == "free"]
        known: dict[str, list[Term]] = {}
        for index, step in enumerate(self.definition.graph.steps):
            if not isinstance(step, Leaf) or not isinstance(step.node.effect, Primitive):
                continue
            effect = step.node.effect
            if effect.tells is Depth.COUNTS and not effect.selects and effect.function != "ffpf_tcpflags":
                continue  # by chance or by what came before: it may let pass any packet
            name = self.definition.graph.ids[index]
            # Of the first packet and, with a quote, of the second.
            own = [term for term in free if str(term.args[0]).rstrip("'").split(".")[0] == name]
            if own and name not in sure:
                known[name] = own
        if not known:
            return ""
        # One by one, and all together: two nodes may each do without the other.
        for name, own in (*known.items(), (next(iter(known)), [term for each in known.values() for term in each])):
            tries = [dict.fromkeys(own, value) for value in (0, -1)]
            tries += [{variable: value} for variable in own for value in (0, -1, values.get(variable, 0) ^ 1)]
            for changed in tries:
                fitting = {variable: value & (1 << max(variable.width, 1)) - 1 for variable, value in changed.items()}
                if not t.evaluate([truth], {**values, **fitting})[0]:
                    return name
        return ""

    @staticmethod
    def _values(values: Mapping[Term, int], frame: bytes) -> dict[Term, int]:
        """The values, where bytes and length of `p` are those of the frame; those of no value are 0, as most bytes of a
        long frame are."""
        others = {term: value for term, value in values.items() if not is_byte(term)}
        return {**others, t.length(): len(frame), **{t.byte(at): value for at, value in enumerate(frame) if value}}
