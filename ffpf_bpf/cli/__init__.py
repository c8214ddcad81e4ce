"""`ffpf`, the command line. Exit codes: 0 done, 1 failed, 2 usage, 3 rejected by policy, 4 the kernel or the privileges
do not allow it, 130 interrupted."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from ffpf_bpf.cli import compiling, deciding, doctor, drawing, grabbing
from ffpf_bpf.errors import FfpfError

INTERRUPTED = 130

app = typer.Typer(
    help="Grab flows from network interfaces: filter graphs, authorised, compiled to eBPF, chained at XDP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("grab")(grabbing.grab)
app.command("run")(grabbing.run)
app.command("check")(deciding.check)
app.command("compile")(compiling.compile_expression)
app.command("draw")(drawing.draw)
app.command("doctor")(doctor.doctor)


def main() -> NoReturn:
    """Run the command line; every error a user can cause ends in one message and its exit code."""
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


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
