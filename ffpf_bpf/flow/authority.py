"""On whose behalf a flow grabs, and who decides: its subject, its policies, its audit journal.

Without a policy directory definitions are made in this process, as fast as can be, and root may grab everything; with
one, what a user wrote goes to the sandbox first. Where there is a journal, every decision is in it before it counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ffpf_bpf import authorise, compiler
from ffpf_bpf.authorise import Decision, Narrowing, PolicyError, Subject
from ffpf_bpf.authorise.journal import Journal
from ffpf_bpf.errors import Rejected
from ffpf_bpf.flow import questions
from ffpf_bpf.flow.chains import BeforeLoad
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.device import placed
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression
from ffpf_bpf.graph.parser import parse

NOT_READ = "(not read)"  # secrets can be left out only of a text that was read


@dataclass(frozen=True, slots=True)
class Authority:
    """What `Flow.create` was told. Whatever cannot be written to the journal is refused: Rejected."""

    subject: Subject
    policies: Path | None
    journal: Journal | None

    def define(self, expression: Expression | str, buffer_bytes: int, flow: str, namespace: str = "") -> Definition:
        """The definition that a flow expression and a buffer make, with devices in that namespace if they name none.
        Raises ExpressionError, and Rejected where the sandbox has no answer."""
        if self.policies is None:
            graph = build(placed(parse(expression) if isinstance(expression, str) else expression, namespace))
            return Definition(graph, compiler.compile_predicates(graph), buffer_bytes)
        try:
            return questions.define(expression, buffer_bytes, namespace)
        except Rejected as error:
            assert isinstance(error.decision, Decision)
            self._journalled(error.decision, NOT_READ, "", flow)
            raise

    def decide(self, definition: Definition, live_flows: int, flow: str) -> tuple[Decision, str]:
        """The decision, by the policies as they are now, and the id of its line in the journal. Raises PolicyError."""
        if self.policies is None:
            decision = authorise.decide(definition, None, self.subject, live_flows=live_flows)
            return decision, self._journalled(decision, definition.text, "", flow)
        try:
            policies = authorise.read_policies(self.policies)
        except PolicyError as error:
            denied = Decision(False, (str(error),), (), definition.digest)
            self._journalled(denied, definition.text, "", flow)
            raise
        decision = questions.decide(definition, policies, self.subject, live_flows=live_flows)
        return decision, self._journalled(decision, definition.text, policies.digest, flow)

    def narrow(self, definition: Definition, live_flows: int, limit_s: float | None = None) -> Narrowing:
        """The definition narrowed to what the policies allow. Where they cannot be read, the decision says so."""
        if self.policies is None:
            return Narrowing()
        try:
            policies = authorise.read_policies(self.policies)
        except PolicyError as error:
            return Narrowing(why=str(error))
        limit_s = questions.NARROW_S if limit_s is None else limit_s
        return questions.narrow(definition, policies, self.subject, live_flows=live_flows, limit_s=limit_s)

    def before_load(self, decision: Decision, line: str) -> BeforeLoad | None:
        """What is to be called with the programs of each tap before they are loaded."""
        return partial(self._loading, decision, line) if self.journal is not None else None

    def rejected(self, decision: Decision) -> Rejected:
        """The error that says so."""
        reasons = "".join(f"\n    {reason}" for reason in decision.reasons)
        if self.policies is None:
            remedy = "run as root, or name a directory of policies that allow it (`--policies`)"
        else:
            remedy = f"`ffpf check` shows every obligation; the policies are in {self.policies}"
        return Rejected(f"rejected by policy{reasons}", decision=decision, help=remedy)

    def _journalled(self, decision: Decision, definition: str, policy_digest: str, flow: str) -> str:
        if self.journal is None:
            return ""
        try:
            return self.journal.decided(decision, self.subject, definition, policy_digest, flow)
        except OSError as error:
            raise _unaudited(self.journal, error, decision) from None

    def _loading(self, decision: Decision, line: str, tap: str, programs: Mapping[str, bytes]) -> None:
        assert self.journal is not None
        try:
            self.journal.loading(line, tap, programs)
        except OSError as error:
            raise _unaudited(self.journal, error, decision) from None


def _unaudited(journal: Journal, error: OSError, decision: Decision) -> Rejected:
    return Rejected(
        f"refused, because it cannot be audited: {(error.strerror or str(error)).lower()}",
        decision=decision,
        where=str(journal.path),
        help="see that the audit journal can be written",
    )
