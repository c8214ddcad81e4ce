"""Authorisation: `decide(definition, policies, subject)` says yes or no to a complete flow definition, with reasons.

Pure: only `read_policies` reads files, and only `subject_of` and `current_subject` ask the user database. It fails
closed: a policy that cannot be read denies, no rule for the subject denies, and so does an error in here.

The solvers are imported by the first decision that asks policies: a process that has them decide elsewhere, or has no
policies, starts without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ffpf_bpf.authorise.decision import Decision, Kind, Obligation, Result
from ffpf_bpf.authorise.directory import read_policies
from ffpf_bpf.authorise.narrowing import Narrowing, inserted
from ffpf_bpf.authorise.policy import Limits, Order, Policies, PolicyError, Rule
from ffpf_bpf.authorise.subject import Subject, current_subject, subject_of
from ffpf_bpf.authorise.unrestricted import decide_without_policies
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression

__all__ = [
    "Decision",
    "Kind",
    "Limits",
    "Narrowing",
    "Obligation",
    "Order",
    "Policies",
    "PolicyError",
    "Result",
    "Rule",
    "Subject",
    "current_subject",
    "decide",
    "inserted",
    "narrowed",
    "read_policies",
    "subject_of",
]


def decide(
    definition: Definition, policies: Policies | None, subject: Subject, *, live_flows: int = 0, **more: Any
) -> Decision:
    """The decision on the complete definition, as `judgement.decide` makes it. `policies=None` is a host without a
    policy directory."""
    if policies is None:
        return decide_without_policies(definition, subject)
    from ffpf_bpf.authorise import judgement  # noqa: PLC0415 - and with it the solvers

    return judgement.decide(definition, policies, subject, live_flows=live_flows, **more)


def narrowed(
    definition: Definition,
    policies: Policies,
    subject: Subject,
    define: Callable[[Expression], Definition],
    *,
    live_flows: int = 0,
    **more: Any,
) -> Narrowing:
    """What becomes of a flow with what the policies want put into it, as `narrow.narrow` finds it."""
    from ffpf_bpf.authorise import narrow  # noqa: PLC0415 - and with it the solvers

    return narrow.narrow(definition, policies, subject, define, live_flows=live_flows, **more)
