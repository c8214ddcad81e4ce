"""`ffpf doctor`: what works on this host, what does not, and the command that mends it."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from ffpf_bpf.cli import options
from ffpf_bpf.compiler import versions
from ffpf_bpf.errors import FfpfError
from ffpf_bpf.kernel import dispatcher, filters, namespaces, probes
from ffpf_bpf.kernel.finding import Finding
from ffpf_bpf.kernel.guards import Stale

NOT_ALLOWED = 4


def doctor(
    json: options.Json = False,
    netns: options.Netns = None,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean", help="Remove filters and components that flows left whose guardian was killed as well."
        ),
    ] = False,
) -> None:
    """Try everything a flow needs, and say what is missing."""

    def leftovers() -> list[Finding]:
        return [_removed(found) if clean else _stale(found) for found in (*filters.stale(), *dispatcher.stale())]

    with namespaces.find(netns or "") as space:
        left = space.visit(leftovers)
        there = space.visit(lambda: list(probes.examine_interfaces()))
    findings = [*_compilers(), *probes.examine(), *there, *left]
    if json:
        fields = ("name", "works", "seen", "mend", "needed")
        print(json_module.dumps([{name: getattr(finding, name) for name in fields} for finding in findings]))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = "ok  " if finding.works else "FAIL" if finding.needed else "no  "
            print(f"{mark}  {finding.name:<{width}}  {finding.seen}")
            if not finding.works and finding.mend:
                print(f"      {'':<{width}}  help: {finding.mend}")
    raise typer.Exit(0 if all(finding.works or not finding.needed for finding in findings) else NOT_ALLOWED)


def _stale(found: Stale) -> Finding:
    return Finding(
        found.tap, False, f"a {found.kind} of process {found.pid}, which has died, still runs", "ffpf doctor --clean"
    )


def _removed(found: Stale) -> Finding:
    try:
        found.remove()
    except FfpfError as error:
        return Finding(found.tap, False, error.message, error.help)
    return Finding(found.tap, True, f"the {found.kind} of process {found.pid}, which has died, was removed")


def _compilers() -> list[Finding]:
    try:
        return [Finding(name, True, version) for name, version in versions().items()]
    except FfpfError as error:
        return [Finding("compiler", False, error.message, error.help)]
