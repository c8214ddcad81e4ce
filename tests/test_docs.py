"""What the documents say is so: their commands run and print what is printed there, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ffpf_bpf.cli import app
from ffpf_bpf.compiler import segment
from ffpf_bpf.errors import AuditError, CaptureError, ExpressionError, FfpfError, KernelError, Rejected
from ffpf_bpf.flow import Ledger, chains
from ffpf_bpf.graph import memory, predicate
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.kernel import tap
from tests.network import Network

ROOT = Path(__file__).resolve().parents[1]
FFPF = (sys.executable, "-c", "from ffpf_bpf.cli import main; main()")
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
README, ARCHITECTURE, CONTRIBUTING = (path.read_text(encoding="utf-8") for path in DOCUMENTS[:3])
TIME = re.compile(r"\(\d+\.\d+ ms\)")


def sessions(document: str) -> list[tuple[str, str, str]]:
    """The prompt, command and output of each command in the document's console blocks."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", document, re.MULTILINE | re.DOTALL):
        for prompt, command, output in re.findall(r"^([$#]) (.*)\n((?:(?![$#] ).*\n)*)", block, re.MULTILINE):
            found.append((prompt, command, output))
    return found


def by_anybody() -> list[tuple[str, str]]:
    return [(command, output) for prompt, command, output in sessions(README) if prompt == "$"]


def table(document: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, or of the first table whose head begins so."""
    lines = document[document.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize(("command", "printed"), by_anybody(), ids=[command[:60] for command, _ in by_anybody()])
def test_commands_print_what_the_readme_says(command: str, printed: str, tmp_path: Path) -> None:
    program, *words = shlex.split(command)
    assert program == "ffpf"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run([*FFPF, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    if "-o" in words:
        file = tmp_path / words[words.index("-o") + 1]
        assert file.stat().st_size > 100
    else:
        assert TIME.sub("", done.stdout + done.stderr) == TIME.sub("", printed)
    rejected, wrong = "REJECTED" in printed, printed.startswith("ffpf: ")
    assert done.returncode == (3 if rejected else 2 if wrong else 0)


def test_commands_of_root_are_ones_that_ffpf_takes() -> None:
    """Their outputs are of real runs; here their options and expressions are understood."""
    commands = [shlex.split(command) for prompt, command, _ in sessions(README) if prompt == "#"]
    assert len(commands) >= 4
    for program, name, *words in commands:
        assert program == "ffpf"
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        with command.make_context(name, words) as context:
            for expression in context.params.get("expressions", ()):
                parse(expression)


def test_commands_are_those_of_the_command_line() -> None:
    listed = [quoted(cell)[0].removeprefix("ffpf ") for cell, *_ in table(README, "## Commands")]
    assert listed == list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for name in listed:
        subprocess.run([*FFPF, name, "--help"], capture_output=True, timeout=60, check=True)


def test_exit_codes_are_those_of_the_errors() -> None:
    codes = {code.split()[0]: words[0] for code, *words in table(README, "| exit code")}
    assert list(codes) == ["0", "1", "2", "3", "4", "130"]
    for error, word in ((FfpfError, "failed"), (CaptureError, "failed"), (ExpressionError, "usage"),
                        (Rejected, "policy"), (AuditError, "audit"), (KernelError, "kernel")):  # fmt: skip
        assert word in codes[str(error.exit_code)]


def test_node_classes_are_those_there_are() -> None:
    rows = table(README, "### Node classes")
    assert {quoted(name)[0] for name, *_ in rows if name} == set(CLASSES)
    names: dict[str, object] = {**CLASSES}
    for _, in_text, in_python, *_ in rows:
        assert parse(quoted(in_text)[0].replace("\\|", "|")) == eval(quoted(in_python)[0], names)


def test_fates_are_those_of_the_ledger() -> None:
    fates = [fate for cell, *_ in table(README, "### The ledger") for fate in quoted(cell)]
    assert {*fates, "seen"} == set(Ledger.__slots__)


@pytest.mark.root
def test_the_python_of_the_readme_runs(network: Network) -> None:
    printed = []
    for program in re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        command = network.command(sys.executable, "-c", program.replace('"eth0"', f'"{network.tap}"'))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert "webbytes 0 0 {'bytes': 0}" in printed[0]
    assert "Ledger(seen=" in printed[0]
    assert printed[1].splitlines()[0].startswith("(tcp dst port")
    assert printed[3].startswith("{6: ") and "('192.0.2.1', 66)" in printed[3]
    assert len(printed) == 4


def test_the_worked_example_shows_what_the_files_say() -> None:
    """Each block below a file's name is a part of it."""
    shown: dict[str, list[str]] = {}
    name = ""
    for title, block in re.findall(r"^`([a-z0-9_/.]+)`:$|^```(?:python|c)\n(.*?)^```$", CONTRIBUTING, re.M | re.S):
        name = title or name
        if block:
            shown.setdefault(name, []).append(block)
    assert [Path(file).stem for file in shown] == ["tcpflags", "tcpflags", "test_tcpflags"]
    for file, blocks in shown.items():
        content = (ROOT / file).read_text(encoding="utf-8")
        for block in blocks:
            assert all(part.strip("\n") in content for part in block.split("\n\n\n")), f"{file}: {block}"


@pytest.mark.root
def test_a_class_is_its_three_files(tmp_path: Path) -> None:
    """The project without those of the worked example: it knows nothing of the class. Then with them again."""
    for name in ("Makefile", "pyproject.toml", "bpf_src", "ffpf_bpf", "tests"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    files = ["ffpf_bpf/graph/classes/tcpflags.py", "bpf_src/tcpflags.c", "tests/test_tcpflags.py"]
    bitcode = "ffpf_bpf/compiler/bitcode/tcpflags.bc"
    for name in (*files, bitcode):
        (tmp_path / name).unlink()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["PYTHONPATH"] = str(tmp_path)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    compile_ = (*FFPF, "compile", "(device,eth0) -> (tcpflags,syn) -> (packetcount)")
    listed = run(*FFPF, "nodes")
    assert listed.returncode == 0, listed.stderr
    assert "tcpflags" not in listed.stdout
    assert "unknown node class `tcpflags`" in run(*compile_).stderr
    without = run(*pytest_, "tests/test_surface.py")
    assert without.returncode == 0, without.stdout
    for name in files:
        shutil.copy(ROOT / name, tmp_path / name)
    for command in (
        ("make", "--old-file=packages", bitcode),
        (*pytest_, "tests/test_tcpflags.py", "-k", "text_and_python or inverted or refused"),
        (*pytest_, "tests/test_surface.py"),
        compile_,
        (sys.executable, "-c", "from ffpf_bpf import device, tcpflags; device('eth0') >> tcpflags('syn')"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / target.partition("#")[0]).exists(), f"{document.name}: {target}"
    for path in quoted(text):
        # Paths of this project, but not patterns like `ffpf_bpf/graph/classes/NAME.py`.
        if re.fullmatch(r"(ffpf_bpf|bpf_src|tests|policies|examples|benchmarks)/[a-z0-9_/.-]*", path):
            assert (ROOT / path).exists(), f"{document.name}: `{path}`"


def test_figures_of_the_architecture_are_those_of_the_code() -> None:
    for figure in (
        f"{tap.MOST_SEGMENTS} segments",
        f"more than {chains.LONGEST_CHAIN} segments",
        f"{chains.MOST_FLOWS_IN_SEGMENT} flows in a segment",
        f"{segment.MOST_SINKS} sinks",
        f"`struct ffpf_tap`, {memory.TAP_BYTES} bytes",
        f"`struct ffpf_scratch`, {memory.SCRATCH_BYTES} bytes",
        f"`struct ffpf_flow`, {memory.FLOW_BYTES} bytes",
        f"`struct ffpf_cpu`, {memory.CPU_BYTES} bytes",
        f"any length up to {predicate.LONGEST_FRAME:,} bytes",
    ):
        assert figure in ARCHITECTURE, figure


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in (README, CONTRIBUTING):
        for target in re.findall(r"(?:^ +[$#] |`)make ([a-z-]+)", document, re.MULTILINE):
            assert target in targets, f"make {target}"


def test_nothing_here_is_of_one_machine() -> None:
    for document in (*DOCUMENTS, *(ROOT / "examples").glob("*.py")):
        text = document.read_text(encoding="utf-8")
        assert not re.search(r"/work/|/tmp/|/home/", text), document.name
    assert os.access(ROOT / "README.md", os.R_OK)
