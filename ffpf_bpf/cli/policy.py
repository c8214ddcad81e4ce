"""`ffpf policy`: what policies say, what is odd about them, what another version changes, and their tests.

None of it touches the kernel or needs root. Exit codes: 0 nothing found, 1 findings, differences or failed tests, 3 a
policy, or a test, that cannot be read.
"""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ffpf_bpf.authorise import Decision, Subject, current_subject, read_policies
from ffpf_bpf.authorise.decision import shown
from ffpf_bpf.authorise.sentences import counted
from ffpf_bpf.authorise.subject import unknown_on_this_host
from ffpf_bpf.cli import options
from ffpf_bpf.errors import ExpressionError, FfpfError, Rejected
from ffpf_bpf.flow import Flow

if TYPE_CHECKING:
    from ffpf_bpf.authorise.trials import Trial

FOUND = 1
SHOWS = {"all": "with payload", "headers": "headers", "anonymised": "headers with pseudonyms"}

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A directory of policy files.")]

Limit = Annotated[
    float,
    typer.Option("--limit", metavar="SECONDS", min=0.0, help="How long the solvers may take, all questions together."),
]


@app.callback()
def everything() -> None:
    """Check, explain, compare and test policies; needs no root.

    Examples: ffpf policy check policies; ffpf policy explain policies --as alice:students;
    ffpf policy diff old new; ffpf policy test policies
    """


@app.command("check")
def check(directory: Directory, limit: Limit = 60.0, json: options.Json = False) -> None:
    """Find what is odd about policies: rules and classes without effect, orders and limits that no flow can meet.

    Exit code 0: nothing found, 1: findings, 3: a policy that cannot be read. Example: ffpf policy check policies
    """
    from ffpf_bpf.authorise.proof.witness import described  # noqa: PLC0415
    from ffpf_bpf.authorise.review import review  # noqa: PLC0415 - and with it the solvers

    policies = read_policies(directory)
    unknown = unknown_on_this_host(text for rule in policies.rules for text in rule.subjects)
    remarks = review(policies, unknown, limit_s=limit)
    warnings = [remark for remark in remarks if not remark.is_note]
    if json:
        findings = [
            {
                "kind": str(remark.flaw),
                "note": remark.is_note,
                "where": remark.where,
                "rule": remark.rule,
                "text": remark.text,
                "help": remark.help,
                "packet": remark.packet.hex(),
                "described": described(remark.packet) if remark.packet else "",
            }
            for remark in remarks
        ]
        _print_json({"rules": len(policies.rules), "findings": findings})
    else:
        for remark in remarks:
            print("\n".join(remark.lines()))
        notes = len(remarks) - len(warnings)
        found = f"{counted(len(warnings), 'warning')}, {counted(notes, 'note')}" if remarks else "nothing odd"
        print(f"{directory}: {counted(len(policies.rules), 'rule')}, {found}")
        if not policies.rules:
            print("    without a rule everybody is refused, root too")
    raise typer.Exit(FOUND if warnings else 0)


@app.command("explain")
def explain(directory: Directory, user: options.User = None, json: options.Json = False) -> None:
    """Say in sentences what a user may see, and what nobody shows them; by default you.

    Example: ffpf policy explain policies --as alice:students
    """
    from ffpf_bpf.authorise.explanation import explanation  # noqa: PLC0415 - only here
    from ffpf_bpf.authorise.sentences import NO_END, explained  # noqa: PLC0415

    policies = read_policies(directory)
    subject = options.subject(user) if user is not None else current_subject()
    if not json:
        print("\n".join(explanation(policies, subject)))
        return
    naming = policies.naming(subject)
    rules = [
        {"name": rule.name, "where": rule.where, "allows": bool(rule.classes), "text": list(explained(rule))}
        for rule in naming
    ]
    lines = list(explanation(policies, subject, NO_END))
    together = lines[lines.index("Together:") + 1 :] if naming else lines
    _print_json(
        {
            "user": subject.user,
            "groups": sorted(subject.groups),
            "rules": rules,
            "together": [line.strip() for line in together],
        }
    )


@app.command("diff")
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The directory of policy files as they were.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The directory as they are to be.")],
    user: options.User = None,
    limit: Limit = 60.0,
    json: options.Json = False,
) -> None:
    """Say what another version of policies allows and forbids, with a packet for each, and what it asks of flows.

    For each user and group that is named, or the one of --as. Exit code 0: no difference, 1: differences, 3: a policy
    that cannot be read. Example: ffpf policy diff /etc/ffpf policies --as alice:students
    """
    from ffpf_bpf.authorise.difference import compare  # noqa: PLC0415 - and with it the solvers
    from ffpf_bpf.authorise.proof.witness import described  # noqa: PLC0415

    subject = options.subject(user) if user is not None else None
    found = compare(read_policies(old), read_policies(new), subject, limit_s=limit)
    if json:
        _print_json(
            {
                "packets": [
                    {
                        "subjects": list(change.subjects),
                        "taps": list(change.taps),
                        "change": "allowed" if change.allowed else "forbidden",
                        "depths": [depth.word for depth in change.depths],
                        "packet": change.packet.hex(),
                        "described": described(change.packet),
                        "why": change.why,
                    }
                    for change in found.packets
                ],
                "rules": [{"rule": name, "text": text} for name, text in found.rules],
                "undecided": list(found.undecided),
            }
        )
        raise typer.Exit(FOUND if found else 0)
    head = ""
    for change in found.packets:
        title = f"{', '.join(change.subjects)}, at taps such as {', '.join(f'`{tap}`' for tap in change.taps)}:"
        if title != head:
            print(title)
            head = title
        depths = ", ".join(SHOWS[depth.word] for depth in change.depths)
        sign, word = ("+", "allowed") if change.allowed else ("-", "forbidden")
        print(f"  {sign} {word} now, {depths}: {described(change.packet)}\n      {change.why}")
    for name, text in found.rules:
        print(f"rule {name}: {text}")
    for text in found.undecided:
        print(f"undecided: {text}")
    if not found:
        print("no difference")
    raise typer.Exit(FOUND if found else 0)


@app.command("test")
def test(directory: Directory, json: options.Json = False) -> None:
    """Run the tests of policies: the files DIR/tests/*.toml, which say which flows must be accepted or rejected.

    Exit code 0: all passed, 1: some failed, or none is there, 3: a policy or a test that cannot be read. Example: ffpf
    policy test policies
    """
    from ffpf_bpf.authorise.trials import SUBDIRECTORY, read_trials  # noqa: PLC0415 - and with it pydantic

    read_policies(directory)
    trials = read_trials(directory)
    if not trials:
        raise FfpfError(
            "no tests",
            where=str(directory / SUBDIRECTORY),
            help="put `[[test]]` tables with `name`, `as`, `flow` and `expect` into a `.toml` file there",
        )
    results: list[dict[str, Any]] = []
    width = max(len(trial.where) for trial in trials)
    for trial in trials:
        start = time.monotonic()
        faults = _faults(directory, trial)
        ms = (time.monotonic() - start) * 1000
        results.append({"name": trial.name, "where": trial.where, "passed": not faults, "ms": round(ms, 3)})
        results[-1]["faults"] = list(faults)
        if not json:
            name = shown(trial.name).strip("`")
            print(f"{'FAIL' if faults else 'ok  '}  {trial.where:<{width}}  {name} ({ms:.0f} ms)", flush=True)
            for fault in faults:
                print(f"        {fault}")
    failed = sum(not result["passed"] for result in results)
    if json:
        _print_json({"passed": len(results) - failed, "failed": failed, "tests": results})
    else:
        print(f"{counted(len(results), 'test')}: {len(results) - failed} passed, {failed} failed")
    raise typer.Exit(FOUND if failed else 0)


def _faults(directory: Path, trial: Trial) -> tuple[str, ...]:
    """Decided as `ffpf check` decides."""
    try:
        return trial.faults(_decision(directory, options.subject(trial.user), trial))
    except ExpressionError as error:
        return tuple(str(error).splitlines())


def _decision(directory: Path, subject: Subject, trial: Trial) -> Decision:
    flow = Flow.create(policies=directory, subject=subject)
    try:
        return flow.populate(trial.flow, buffer_bytes=trial.buffer_bytes).authorise()
    except Rejected as error:
        assert isinstance(error.decision, Decision)
        return error.decision


def _print_json(document: dict[str, Any]) -> None:
    print(json_module.dumps(document))
