"""What is around the code: the Makefile, .ci/run, the Vagrantfile, and the demo, run as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "demo.py"
TARGETS = ["help", "setup", "build", "demo", "test", "test-vm", "check", "bench", "clean"]


def make(*words: str) -> str:
    # Under `make test` this is a make inside a make, which would print directories and share its jobs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_is_the_default_and_lists_every_target() -> None:
    assert make() == make("help")
    assert [line.split()[1] for line in make("help").splitlines()] == TARGETS


def test_every_documented_target_can_be_planned() -> None:
    for target in TARGETS:
        make("-n", target)


def test_demo_and_test_set_up_all_they_need() -> None:
    for target in ("demo", "test", "test-vm", "check", "check-vagrant", "bench"):
        planned = make("-n", "--always-make", target)
        for step in ("dpkg-query", "venv --system-site-packages", "install", "-emit-llvm"):
            assert step in planned, f"{target} without {step}"


def test_virtual_machines_are_installed_for_their_target_only() -> None:
    for target, wanted in (("test-vm", True), ("test", False)):
        assert ("qemu-system-x86 busybox-static" in make("-n", "--always-make", target)) is wanted
    planned = make("-n", "test-vm", "KERNELS=6.1 6.12", "PYTEST=tests/test_grab.py -k whole")
    assert "-m tests.vm 6.1 6.12 -- tests/test_grab.py -k whole" in planned


def test_bitcode_is_rebuilt_for_a_changed_header_and_only_then() -> None:
    sources = sorted(source.stem for source in (ROOT / "bpf_src").glob("*.c"))
    planned = make("-n", "--what-if=bpf_src/ffpf.h", "build")
    assert sorted(re.findall(r"-emit-llvm -c bpf_src/(\w+)\.c", planned)) == sources
    assert "-emit-llvm" not in make("-n", *(f"--old-file={path}" for path in ("packages", "Makefile")), "build")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert re.findall(r"^run (.*)$", script, re.MULTILINE) == [
        "make check-code",
        "make check-vagrant",
        "make test",
        "make test-vm KERNELS=5.10",
        "make demo",
    ]
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_vagrant_provisions_by_make() -> None:
    text = (ROOT / "Vagrantfile").read_text(encoding="utf-8")
    assert "make setup build" in text
    assert '".venv/"' in text


@pytest.mark.parametrize(("kernel", "valid"), [("", True), ("6.12", True), ("2.4", False)])
def test_vagrantfile_is_valid(kernel: str, valid: bool, tmp_path: Path) -> None:
    if shutil.which("vagrant") is None:
        pytest.skip("vagrant is missing")
    environment = {**os.environ, "VAGRANT_HOME": str(tmp_path), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot")}
    environment |= {"FFPF_VM_KERNEL": kernel} if kernel else {}
    done = subprocess.run(
        ["vagrant", "validate", "-p"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is valid, done.stdout + done.stderr
    assert valid or "FFPF_VM_KERNEL=2.4: there are 6.1, 6.12" in done.stderr


@pytest.mark.root
def test_demo_runs_through_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--seconds", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "ACCEPTED by rule operators" in done.stdout
    assert "    rule students: put a `sampler` in front of each `grab`" in done.stdout
    assert "demo0 in native mode" in done.stdout
    assert re.search(r"the interface received \d+ packets, the flow saw 0$", done.stdout, re.MULTILINE)
    assert "left by the demo: nothing" in done.stdout
    file = Path(done.stdout.splitlines()[-1])
    assert list(tmp_path.iterdir()) == [file]
    assert packets_in(file) == delivered(done.stdout) > 0


def delivered(output: str) -> int:
    """From the last ledger, whose fates sum to what was seen."""
    seen, fates = re.findall(r"^  ([\d,]+) seen = (.*)$", output, re.MULTILINE)[-1]
    counts = {name: int(count.replace(",", "")) for count, name in re.findall(r"([\d,]+) (\w+(?: \w+)*)", fates)}
    assert set(counts) == {"filtered", "sampled", "counted", "delivered"}
    assert int(seen.replace(",", "")) == sum(counts.values())
    return counts["delivered"]


def packets_in(file: Path) -> int:
    done = subprocess.run(["tshark", "-n", "-r", file], capture_output=True, text=True, check=True)
    return len(done.stdout.splitlines())


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_removes_its_namespaces(number: signal.Signals, tmp_path: Path) -> None:
    with started_demo(tmp_path) as demo:
        demo.send_signal(number)
        assert demo.wait(timeout=30) == 128 + number
        assert spaces_of(demo.pid) == []
        assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_next_demo_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    with started_demo(tmp_path) as demo:
        demo.kill()
        demo.wait(timeout=30)
        assert len(spaces_of(demo.pid)) == 2
        with started_demo(tmp_path) as following:
            assert spaces_of(demo.pid) == []
            following.terminate()
            following.wait(timeout=30)


def started_demo(temporary: Path) -> subprocess.Popen[bytes]:
    """A demo in the middle of its traffic, with temporary files there."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    demo = subprocess.Popen([sys.executable, "-u", DEMO, "--seconds", "60"], stdout=subprocess.PIPE, env=environment)
    assert demo.stdout is not None
    for text in demo.stdout:
        if b" seen = " in text:
            return demo
    raise AssertionError(f"the demo ended: {demo.wait()}")


def spaces_of(process: int) -> list[str]:
    """The names of a demo's namespaces."""
    return [name for name in os.listdir("/run/netns") if name.startswith(f"ffpf-demo-{process}-")]
