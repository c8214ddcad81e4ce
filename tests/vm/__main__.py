"""Run the kernel tests in virtual machines, two at a time, and print what they found.

python -m tests.vm                                     # the matrix: every kernel, the tests for it
python -m tests.vm 6.1 newest                          # these kernels
python -m tests.vm 6.1 -- tests/test_grab.py -k whole  # one kernel, pytest's own words
python -m tests.vm 6.1 --command ffpf doctor           # one kernel, any command
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.vm import guest, initramfs, kernels, machine, matrix
from tests.vm.kernels import Kernel, KernelMissing, Wanted
from tests.vm.matrix import Report

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "vm"
SELECTION = "vm"
AT_A_TIME = 2
LIMIT_S = 300.0
LAST_LINES = 40


def main() -> int:
    arguments = _arguments()
    try:
        wanted = kernels.find(arguments.kernels)
        if arguments.command:
            pytest, tests = [], arguments.command
        else:
            tests = arguments.pytest or ["-m", SELECTION, *_files()]
            pytest = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                f"--junitxml={guest.RESULTS}/{guest.JUNIT}",
            ]
    except KernelMissing as error:
        print(error, file=sys.stderr)
        return 2
    began_s = time.monotonic()
    try:
        reports = asyncio.run(
            _run(wanted, [*pytest, *tests], arguments.limit, bool(arguments.command or arguments.pytest))
        )
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{time.monotonic() - began_s:.0f} s, {spent.ru_utime + spent.ru_stime:.0f} s of processor time")
    if arguments.command or arguments.pytest:
        return max((1 if report.trouble else 0) for report in reports)
    print(f"\n{matrix.table(reports)}")
    return 1 if matrix.failures(reports) else 0


def _arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        "tests.vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [wanted.name for wanted in kernels.MATRIX]
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(names)}; all of them by default")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help="kill a machine that takes longer")
    parser.add_argument("--command", nargs=argparse.REMAINDER, help="run this instead of pytest")
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:at], argparse.Namespace(pytest=words[at + 1 :]))


def _files() -> list[str]:
    """The files that hold tests for the matrix: found here, once, because to import all of them takes a guest long."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", SELECTION, "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    files = re.findall(r"^(tests/\S+\.py): \d+$", done.stdout, re.MULTILINE)
    if not files:
        raise KernelMissing(f"no tests for the matrix:\n{done.stdout}{done.stderr}")
    return files


async def _run(wanted: Sequence[Wanted], command: Sequence[str], limit_s: float, alone: bool) -> list[Report]:
    """Each kernel, AT_A_TIME of them; Ctrl-C and SIGTERM end them all."""
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(wanted: Wanted) -> Report:
        async with room:
            try:
                kernel = await asyncio.to_thread(kernels.obtain, wanted, kernels.cache(), print)
            except KernelMissing as error:
                return Report(wanted.name, "", trouble=str(error))
            return await _report(kernel, command, limit_s, alone)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(each)) for each in wanted]
    return [task.result() for task in tasks]


async def _report(kernel: Kernel, command: Sequence[str], limit_s: float, alone: bool) -> Report:
    began_s = time.monotonic()
    script = guest.script(kernel, ROOT, [command], initramfs.BUSYBOX)
    ended = await machine.run(kernel, script, limit_s)
    _keep(kernel, ended)
    trouble = _trouble(ended, limit_s)
    print(f"{kernel.name} ({kernel.release}): {trouble or 'ended'}, {time.monotonic() - began_s:.0f} s", flush=True)
    lines = ended.console.rstrip().splitlines()
    if alone or trouble:
        print("\n".join(f"    {line}" for line in (lines if alone else lines[-LAST_LINES:])), flush=True)
    junit = ended.results.get(guest.JUNIT)
    outcomes, findings = matrix.read(junit) if junit else ((), None)
    return Report(kernel.name, kernel.release, outcomes, findings, trouble)


def _trouble(ended: machine.Ended, limit_s: float) -> str:
    """Why a machine gave no answer; failed tests are an answer (pytest's exit code 1)."""
    if ended.hung:
        return f"killed after {limit_s:.0f} s"
    if ended.exit_code is None:
        return "ended without a result"
    if ended.exit_code and not (ended.exit_code == 1 and guest.JUNIT in ended.results):
        return f"exit code {ended.exit_code}"
    return ""


def _keep(kernel: Kernel, ended: machine.Ended) -> None:
    """Results and console where people, and CI, find them."""
    directory = RESULTS / kernel.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "console.log").write_text(ended.console)
    for name, contents in ended.results.items():
        (directory / name).write_bytes(contents)


if __name__ == "__main__":
    sys.exit(main())
