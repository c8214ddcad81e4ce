"""The worked examples of AUTHORISATION.md: each policy, and what is decided about the flows below it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ffpf_bpf.authorise.policy import CARRIERS
from tests.test_cli import ffpf
from tests.test_docs import quoted, table

PAGE = (Path(__file__).resolve().parents[1] / "AUTHORISATION.md").read_text(encoding="utf-8")


def examples() -> list[tuple[str, str, list[str]]]:
    """Policy, command, and what stands in its output, in this order."""
    found = []
    policy = ""
    for kind, block in re.findall(r"^```(toml|console)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if kind == "toml":
            policy = block
        else:
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                found.append((policy, command, output.splitlines()))
    return found


@pytest.mark.parametrize(("policy", "command", "expected"), examples())
def test_example(policy: str, command: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "example.toml").write_text(policy)
    code = 0 if expected[-1].startswith("ACCEPTED") else 3
    done = ffpf(*shlex.split(command)[1:], "--policies", str(tmp_path), code=code)
    at = 0
    for words in expected:
        assert words in done.stdout[at:], f"{words!r} is not in\n{done.stdout}{done.stderr}"
        at = done.stdout.index(words, at)


def test_the_table_has_all_carriers() -> None:
    assert [name for row in table(PAGE, "| carrier |") for name in quoted(row[0])] == list(CARRIERS)
