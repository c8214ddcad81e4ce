"""`ffpf`, the command line. Exit codes: 0 done, 1 failed, 2 usage, 3 rejected by policy, 4 the kernel or the privileges
do not allow it, 130 interrupted."""

from __future__ import annotations

import os
import signal
import sys
from importlib import metadata
from types import FrameType
from typing import Annotated, NoReturn

import typer

from ffpf_bpf.cli import classes, compiling, deciding, doctor, drawing, grabbing, policy, reading
from ffpf_bpf.errors import FfpfError

INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"ffpf {metadata.version('ffpf_bpf')}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def everything(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Grab flows from network interfaces: filter graphs, authorised, compiled to eBPF, chained at XDP."""


app.command("grab")(grabbing.grab)
app.command("run")(grabbing.run)
app.command("read")(reading.read)
app.command("check")(deciding.check)
app.add_typer(policy.app, name="policy")
app.command("compile")(compiling.compile_expression)
app.command("draw")(drawing.draw)
app.command("nodes")(classes.show_nodes)
app.command("doctor")(doctor.doctor)


def main() -> NoReturn:
    """Run the command line; every error a user can cause ends in one message and its exit code."""
    _open_standard_streams()
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        app()
    except FfpfError as error:
        print(f"ffpf: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more when it closes the stream.
        sys.stdout = None
        sys.exit(0)
    raise SystemExit(0)


def _open_standard_streams() -> None:
    """Give /dev/null to each standard stream that was closed: or a file that is opened would take its number, and what
    is said to the user would go into it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for good


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
