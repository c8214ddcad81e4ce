"""Run the kernel tests in virtual machines, two at a time, and print what they found.

    python -m tests.vm                                     # the matrix: every kernel, the tests for it
    python -m tests.vm 6.1 newest                          # these kernels
    python -m tests.vm 6.1 -- tests/test_grab.py -k whole  # pytest's own words, and what it prints
    python -m tests.vm 6.1 --command .venv/bin/ffpf doctor # any command

Exit codes: 0 all well, 1 something failed, 2 usage or something missing, 130 interrupted. Consoles, junit files and
doctor's findings are in build/vm afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm import guest, initramfs, kernels, machine, matrix, objects
from tests.vm.kernels import Kernel, KernelMissing, Wanted
from tests.vm.matrix import Report

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "vm"
SELECTION = "vm"
# Each takes a guest time to import, and none has work to do there.
WITHOUT = ("-p", "no:cacheprovider", "-p", "no:xdist")
# So the console of a machine that hung says in which test.
PRINTS = ("-v", "--color=no", "--tb=short", "--durations=10", "--timeout=120")
AT_A_TIME = 2
LIMIT_S = 480.0
LAST_LINES = 40


@dataclass(frozen=True, slots=True)
class Job:
    """What every machine runs, for how long at most, and whether all it prints is shown."""

    command: Sequence[str]
    limit_s: float
    shown: bool


def main() -> int:
    arguments = _arguments()
    try:
        wanted = kernels.find(arguments.kernels)
        if missing := machine.missing():
            raise KernelMissing(missing)
        job = _job(arguments)
    except KernelMissing as error:
        print(error, file=sys.stderr)
        return 2
    objects.forget(kernels.cache() / objects.DIRECTORY)
    began_s = time.monotonic()
    try:
        reports = asyncio.run(_run(wanted, job))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, of_processors = time.monotonic() - began_s, used.ru_utime + used.ru_stime
    print(f"\n{seconds:.0f} s, {of_processors:.0f} s of processors, {'KVM' if machine.has_kvm() else 'emulated'}\n")
    if job.shown:
        return int(any(report.trouble or _failed(report) for report in reports))
    print(matrix.table(reports))
    return int(bool(matrix.failures(reports)))


def _arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        "python -m tests.vm",
        usage="%(prog)s [KERNEL...] [options] [-- PYTEST...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(wanted.name for wanted in kernels.MATRIX)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {names}; all of them by default")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help="kill a machine that takes longer")
    parser.add_argument("--command", nargs=argparse.REMAINDER, help="run this instead of pytest")
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:at], argparse.Namespace(pytest=words[at + 1 :]))


def _job(arguments: argparse.Namespace) -> Job:
    if arguments.command:
        return Job(arguments.command, arguments.limit, True)
    tests = arguments.pytest or ["-m", SELECTION, *_files()]
    junit = f"--junitxml={guest.RESULTS}/{guest.JUNIT}"
    pytest = [sys.executable, "-m", "pytest", *PRINTS, *WITHOUT, junit, *tests]
    return Job(pytest, arguments.limit, bool(arguments.pytest))


def _files() -> list[str]:
    """The files that hold tests for the matrix: found here, once, because to import all of them takes a guest long."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", SELECTION, *WITHOUT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KernelMissing(f"the tests cannot be collected:\n{done.stdout}{done.stderr}")
    return re.findall(r"^(tests/\S+\.py): \d+$", done.stdout, re.MULTILINE)


async def _run(wanted: Sequence[Wanted], job: Job) -> list[Report]:
    """Each kernel, AT_A_TIME of them; Ctrl-C and SIGTERM end them all."""
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        # SIGINT as well: a shell has what runs in the background ignore it.
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(wanted: Wanted) -> Report:
        async with room:
            try:
                kernel = await asyncio.to_thread(kernels.obtain, wanted, kernels.cache(), print)
            except KernelMissing as error:
                return Report(wanted.name, "", trouble=str(error))
            return await _report(kernel, job)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(each)) for each in wanted]
    return [task.result() for task in tasks]


async def _report(kernel: Kernel, job: Job) -> Report:
    began_s = time.monotonic()
    known = kernels.cache() / objects.DIRECTORY
    script = guest.script(kernel, ROOT, [job.command], initramfs.BUSYBOX, known)
    ended = await machine.run(kernel, script, job.limit_s)
    if not ended.booted and not ended.hung:
        # Emulated processors now and then do not follow a kernel that patches itself while it boots.
        print(f"{kernel.name} ({kernel.release}): did not boot, so once more", flush=True)
        ended = await machine.run(kernel, script, job.limit_s)
    objects.keep(ended.results, known)
    _keep(kernel, ended)
    junit = ended.results.get(guest.JUNIT)
    outcomes, findings = matrix.read(junit) if junit else ((), None)
    report = Report(kernel.name, kernel.release, outcomes, findings, _trouble(ended, job))
    became = report.trouble or (f"{len(outcomes)} tests" if junit else "ended")
    print(f"{kernel.name} ({kernel.release}): {became}, {time.monotonic() - began_s:.0f} s", flush=True)
    lines = ended.console.rstrip().splitlines()
    if job.shown or report.trouble:
        print("\n".join(f"    {line}" for line in (lines if job.shown else lines[-LAST_LINES:])), flush=True)
    return report


def _trouble(ended: machine.Ended, job: Job) -> str:
    """Why a machine gave no answer; failed tests are an answer (pytest's exit code 1)."""
    if ended.hung:
        return f"killed after {job.limit_s:.0f} s"
    if ended.exit_code is None:
        return "ended without a result"
    if ended.exit_code and not (ended.exit_code == 1 and guest.JUNIT in ended.results):
        return f"exit code {ended.exit_code}"
    return ""


def _failed(report: Report) -> bool:
    return any(outcome.result is matrix.Result.FAILED for outcome in report.outcomes)


def _keep(kernel: Kernel, ended: machine.Ended) -> None:
    """Results and console where people, and CI, find them; theirs, also if they became root by sudo."""
    directory = RESULTS / kernel.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "console.log").write_text(ended.console)
    for name, contents in ended.results.items():
        if "/" not in name:
            (directory / name).write_bytes(contents)
    owner = int(os.environ.get("SUDO_UID", "0"))
    for path in (RESULTS.parent, RESULTS, directory, *directory.iterdir()):
        if owner and path.stat().st_uid == 0:
            os.chown(path, owner, int(os.environ.get("SUDO_GID", owner)))


if __name__ == "__main__":
    sys.exit(main())
