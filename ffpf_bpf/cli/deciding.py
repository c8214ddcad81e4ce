"""`ffpf check`: the policy's decision, without touching the kernel."""

from __future__ import annotations

import json as json_module
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ffpf_bpf.authorise import Decision
from ffpf_bpf.authorise.decision import Kind, Result, shown
from ffpf_bpf.cli import options
from ffpf_bpf.cli.refutations import write_refutations
from ffpf_bpf.errors import Rejected
from ffpf_bpf.flow import Flow

REJECTED = 3
HELP_S = 5.0  # for decision and help together
LEAST_HELP_S = 0.5


def check(
    expressions: options.Expressions,
    policies: options.Policies = None,
    user: options.User = None,
    buffer: options.Buffer = "4MiB",
    narrow: options.Narrow = False,
    netns: options.Netns = None,
    counterexample: Annotated[
        Path | None,
        typer.Option("--counterexample", metavar="FILE", help="Write the packets that refute it to a pcapng file."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Authorise only: print the decision on each flow expression. Needs no root.

    Example: ffpf check '(device,eth0) -> (grab)' --policies policies --as alice:students --counterexample why.pcapng
    """
    subject = options.subject(user) if user is not None else None
    verdicts = []
    for argument in expressions:
        flow = Flow.create(policies=policies, subject=subject, netns=netns)
        start_s = time.monotonic()
        try:
            flow.populate(options.expression_text(argument), **options.buffer(buffer), narrow=narrow)
        except Rejected as error:
            assert isinstance(error.decision, Decision)
            verdicts.append(_Verdict(shown(argument).strip("`"), error.decision))
            continue
        decision = flow.authorise()
        said = options.narrowing(flow)
        if not (narrow or json or decision.accepted):
            said = _help(flow, decision, start_s + HELP_S)
        verdicts.append(_Verdict(flow.definition.text, decision, flow.narrowed, said))
    if json:
        documents = [each.as_json() for each in verdicts]
        print(json_module.dumps(documents[0] if len(documents) == 1 else documents))
    else:
        print("\n".join(each.text() for each in verdicts))
    if counterexample is not None:
        written = write_refutations(counterexample, [(each.expression, each.decision) for each in verdicts])
        what = f"{counterexample}: {written} packet{'' if written == 1 else 's'} that should not be shown"
        print(what if written else f"{counterexample}: not written, for no packet refutes anything", file=sys.stderr)
    raise typer.Exit(0 if all(each.decision.accepted for each in verdicts) else REJECTED)


@dataclass(frozen=True, slots=True)
class _Verdict:
    expression: str
    decision: Decision
    narrowed: str = ""
    said: str = ""  # of narrowing

    def text(self) -> str:
        before = [self.said] if self.narrowed else []
        behind = [self.said] if self.said and not self.narrowed else []
        return "\n".join([self.expression, *before, self.decision.text(), *behind])

    def as_json(self) -> dict[str, Any]:
        return {"expression": self.expression, "narrowed": self.narrowed, **self.decision.as_json()}


def _help(flow: Flow, decision: Decision, end_s: float) -> str:
    """What narrowing would put into a flow that is refused for its packets, if that is found before `end_s`."""
    refuted = (Kind.CONTENT, Result.REFUTED)
    if not any((each.kind, each.result) == refuted for each in decision.obligations):
        return ""
    left_s = end_s - time.monotonic()
    if left_s >= LEAST_HELP_S:
        if remedy := flow.remedy(left_s):
            return f"help: `--narrow` puts in {remedy}"
        if end_s - time.monotonic() >= LEAST_HELP_S:
            return ""  # it was not for want of time
    return "help: `--narrow` looks for what to put in for longer"
