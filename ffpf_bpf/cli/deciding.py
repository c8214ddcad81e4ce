"""`ffpf check`: the policy's decision, without touching the kernel."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from ffpf_bpf.authorise import Decision
from ffpf_bpf.authorise.decision import shown
from ffpf_bpf.cli import options
from ffpf_bpf.cli.refutations import write_refutations
from ffpf_bpf.errors import Rejected
from ffpf_bpf.flow import Flow

REJECTED = 3


def check(
    expressions: options.Expressions,
    policies: options.Policies = None,
    user: options.User = None,
    buffer: options.Buffer = "4MiB",
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
    decisions = []
    for argument in expressions:
        flow = Flow.create(policies=policies, subject=subject)
        try:
            flow.populate(options.expression_text(argument), buffer_bytes=options.size_in_bytes(buffer))
        except Rejected as error:
            assert isinstance(error.decision, Decision)
            decisions.append((shown(argument).strip("`"), error.decision))
        else:
            decisions.append((flow.definition.text, flow.authorise()))
    if json:
        documents = [{"expression": text, **decision.as_json()} for text, decision in decisions]
        print(json_module.dumps(documents[0] if len(documents) == 1 else documents))
    else:
        for text, decision in decisions:
            print(f"{text}\n{decision.text()}")
    if counterexample is not None:
        written = write_refutations(counterexample, decisions)
        said = f"{counterexample}: {written} packet{'' if written == 1 else 's'} that should not be shown"
        print(said if written else f"{counterexample}: not written, for no packet refutes anything", file=sys.stderr)
    raise typer.Exit(0 if all(decision.accepted for _, decision in decisions) else REJECTED)
