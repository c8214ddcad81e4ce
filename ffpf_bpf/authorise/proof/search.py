"""Is there a packet for which a truth about the reference dissection holds? Asked of policies alone, without a flow."""

from __future__ import annotations

from collections.abc import Callable

from ffpf_bpf.authorise.decision import Result
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import Undecided
from ffpf_bpf.authorise.proof.prover import Prover
from ffpf_bpf.authorise.proof.solvers import Clock
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.authorise.proof.wire import Wire
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.parser import parse

OUT_OF_TIME = "out of time"
EVERY_PACKET = "(device,lo) -> (packetcount)"

Question = Callable[[Wire], Term]


class Search:
    """Questions that share the time that `clock` gives."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._prover = Prover(Definition(build(parse(EVERY_PACKET)), {}, 1 << 12), clock)

    def packet(self, question: Question) -> bytes | None:
        """A packet for which the truth holds, as ordinary as can be; None if two solvers agree that there is none, or
        one is certain and the other has no answer. Raises Undecided."""
        self.check_time()
        try:
            if question(self._prover.wire) is t.FALSE:
                return None
            finding = self._prover.none(t.TRUE, question, lambda _: "")
        except t.OutOfTime:
            raise Undecided(OUT_OF_TIME) from None
        match finding.result:
            case Result.REFUTED:
                return finding.packets[0]
            case Result.PROVED:
                return None
        raise Undecided(finding.evidence.removeprefix("undecided: "))

    def holds(self, question: Question, packet: bytes) -> bool:
        """Whether the truth holds of that packet. Raises Undecided if there is no time."""
        try:
            return self._prover.holds_of(question(self._prover.wire), packet)
        except t.OutOfTime:
            raise Undecided(OUT_OF_TIME) from None

    def check_time(self) -> None:
        """Raises Undecided if the time is over."""
        if not self._clock.left_ms:
            raise Undecided(OUT_OF_TIME)
