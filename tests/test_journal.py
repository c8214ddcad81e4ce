"""The audit journal: whole lines, on the disk before anything is loaded, or the flow is refused."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffpf_bpf.authorise import PolicyError, Subject
from ffpf_bpf.authorise import journal as journal_module
from ffpf_bpf.authorise.journal import append
from ffpf_bpf.compiler import DELIVER_PROGRAM, SEGMENT_PROGRAM
from ffpf_bpf.errors import IllegalState, Rejected
from ffpf_bpf.flow import Flow, State, questions
from ffpf_bpf.kernel import calls
from tests.network import Network, udp
from tests.test_sandbox import RULE

ALICE = Subject("alice", frozenset({"users", "students"}), 1000)
FLOW = '(device,tap0) -> (bpf,"udp port 80") -> (anonymise,key=00112233445566778899aabbccddeeff) -> (grab,snaplen=64)'


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    directory = tmp_path / "policies"
    directory.mkdir()
    (directory / "all.toml").write_text(RULE)
    return directory


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def lines(file: Path) -> list[dict[str, Any]]:
    text = file.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


class TestAppend:
    """One line: whole, or not at all."""

    def test_lines_follow_one_another(self, file: Path) -> None:
        for text in ("one", "two"):
            append(file, text)
        assert file.read_text() == "one\ntwo\n"
        assert file.stat().st_mode & 0o777 == 0o600

    def test_a_broken_line_is_ended_first(self, file: Path) -> None:
        file.write_text("one\nbro")
        append(file, "two")
        assert file.read_text() == "one\nbro\ntwo\n"

    def test_a_part_of_a_line_is_taken_back(self, file: Path) -> None:
        append(file, "one")
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))
            try:
                append(file, "a line that does not fit")
            except OSError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert file.read_text() == "one\n"

    def test_a_part_that_cannot_be_taken_back_is_ended(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        append(file, "one")
        write = os.write
        monkeypatch.setattr(os, "ftruncate", refuse)
        monkeypatch.setattr(os, "write", lambda fd, content: write(fd, content[:3]))
        with pytest.raises(OSError, match="No space"):
            append(file, "two and more")
        monkeypatch.undo()
        append(file, "three")
        assert file.read_text() == "one\ntwo\nthree\n"

    def test_what_is_not_synced_is_not_written(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        append(file, "one")
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError):
            append(file, "two")
        assert file.read_text() == "one\n"

    def test_only_regular_files_of_ours(self, tmp_path: Path, file: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "link").symlink_to(file)
        (tmp_path / "open").touch()
        (tmp_path / "open").chmod(0o666)
        for path in (
            Path("/dev/full"),
            Path("/dev/null"),
            tmp_path,
            *(tmp_path / name for name in ("fifo", "link", "open", "no/where")),
        ):
            with pytest.raises(OSError):
                append(path, "one")
        assert not file.exists()

    def test_processes_write_together(self, file: Path) -> None:
        program = (
            "import sys; from pathlib import Path; from ffpf_bpf.authorise.journal import append\n"
            "for n in range(50): append(Path(sys.argv[1]), sys.argv[2] * 3000)"
        )
        writers = [subprocess.Popen([sys.executable, "-c", program, str(file), letter]) for letter in "abc"]
        assert [writer.wait() for writer in writers] == [0] * 3
        found = file.read_text().split("\n")
        assert sorted(found) == ["", *(letter * 3000 for letter in "abc" for _ in range(50))]

    def test_it_does_not_wait_for_ever(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal_module, "LOCK_WAIT_S", 0.05)
        append(file, "one")
        with file.open() as held:
            journal_module.fcntl.flock(held, journal_module.fcntl.LOCK_EX)
            with pytest.raises(OSError, match="lock"):
                append(file, "two")
        append(file, "two")


class TestDecisions:
    """Every decision of a flow with a journal is in it, refused ones too."""

    def test_what_a_line_says(self, policies: Path, file: Path) -> None:
        flow = Flow.create(policies=policies, subject=ALICE, audit=file).populate(FLOW)
        decision = flow.authorise()
        assert decision.accepted
        (line,) = lines(file)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", line.pop("time"))
        assert re.fullmatch(r"[0-9a-f]{16}", line.pop("id"))
        assert re.fullmatch(r"[0-9a-f]{64}", line.pop("policy_digest"))
        assert next((each["rule"], each["result"]) for each in line.pop("obligations")) == ("all", "proved")
        assert line == {
            "event": "decision",
            "flow": flow.id,
            "pid": os.getpid(),
            "subject": {"user": "alice", "uid": 1000, "groups": ["students", "users"]},
            "definition": FLOW.replace("00112233445566778899aabbccddeeff", "hidden"),
            "definition_digest": flow.definition.digest,
            "accepted": True,
            "rule": decision.rule,
            "reasons": list(decision.reasons),
            "expires_s": None,
        }
        assert "0011223344" not in file.read_text()

    def test_the_digest_of_the_policies(self, policies: Path, file: Path) -> None:
        flow = Flow.create(policies=policies, subject=ALICE, audit=file).populate(FLOW)
        flow.authorise()
        flow.authorise()
        (policies / "more.toml").write_text("")
        flow.authorise()
        (policies / "more.toml").write_text("# changed\n")
        flow.authorise()
        (policies / "more.toml").rename(policies / "less.toml")
        flow.authorise()
        digests = [line["policy_digest"] for line in lines(file)]
        assert digests[0] == digests[1]
        assert len(set(digests)) == 4

    def test_refused_ones(self, policies: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (policies / "all.toml").write_text(RULE.replace('"*"]\nclasses', '"lo"]\nclasses').replace('"*@*"', '"lo"'))
        flow = Flow.create(policies=policies, subject=ALICE, audit=file).populate(FLOW)
        with pytest.raises(Rejected):
            flow.instantiate()
        (policies / "all.toml").write_text("nonsense")
        with pytest.raises(PolicyError):
            flow.instantiate()
        monkeypatch.setattr(questions, "define", lambda *_: no_answer())
        with pytest.raises(Rejected):
            flow.populate(FLOW)
        found = lines(file)
        assert [line["accepted"] for line in found] == [False] * 3
        assert all(line["reasons"] for line in found)
        assert [line["definition"][:7] for line in found] == ["(device", "(device", "(not re"]

    def test_without_policies(self, file: Path) -> None:
        nobody = Flow.create(subject=ALICE, audit=file).populate(FLOW)
        with pytest.raises(Rejected):
            nobody.instantiate()
        (line,) = lines(file)
        assert (line["accepted"], line["policy_digest"]) == (False, "")

    def test_what_cannot_be_written_is_refused(self, policies: Path) -> None:
        flow = Flow.create(policies=policies, subject=ALICE, audit="/proc/no/file").populate(FLOW)
        with pytest.raises(Rejected, match="refused, because it cannot be audited: no such file") as error:
            flow.instantiate()
        assert error.value.where == "/proc/no/file"
        assert flow.state is State.POPULATED


def refuse(*_: object) -> None:
    raise OSError(5, "Input/output error")


def no_answer() -> None:
    from ffpf_bpf.authorise import Decision

    raise Rejected("no", decision=Decision(False, ("undecided after 5 s",), (), ""))


@pytest.mark.root
class TestFlows:
    """Flows on the kernel: the line before the load, expiry, reauthorisation."""

    @pytest.fixture(autouse=True)
    def inside(self, network: Network) -> Iterator[None]:
        with network.enter():
            yield

    def made(self, policies: Path | None, file: Path | None, text: str = FLOW) -> Flow:
        return Flow.create(policies=policies, subject=ALICE if policies else None, audit=file).populate(text)

    def test_lines_stand_before_programs_are_loaded(
        self, policies: Path, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[str]] = []
        load = calls.load_program

        def watched(name: str, *of: Any, **options: Any) -> int:
            if name != "ffpf_probe":
                seen.append([line["event"] for line in lines(file)])
            return load(name, *of, **options)

        monkeypatch.setattr(calls, "load_program", watched)
        with self.made(policies, file, FLOW.replace("tap0)", "tap0) | (device,lo)")) as flow:
            flow.instantiate()
            found = lines(file)
        assert [line["event"] for line in found] == ["decision", "load", "load"]
        assert len({line["id"] for line in found}) == 1
        assert [line.get("tap") for line in found] == [None, "tap0", "lo"]
        for line in found[1:]:
            assert {name: len(digest) for name, digest in line["objects"].items()} == {
                SEGMENT_PROGRAM: 64,
                DELIVER_PROGRAM: 64,
            }
        assert seen[0] == ["decision"]  # the entry program, which is everybody's
        assert seen[1][-1] == "load"
        assert seen[-1] == ["decision", "load", "load"]

    def test_equal_programs_have_equal_digests(self, file: Path) -> None:
        for _ in range(2):
            with self.made(None, file) as flow:
                flow.instantiate()
        first, second = (line["objects"] for line in lines(file) if line["event"] == "load")
        assert first == second

    def test_a_full_disk_refuses(self, policies: Path, tmp_path: Path) -> None:
        """In a mount namespace of its own, on a file system with room for one line, and then for none."""
        program = """
import os, sys
from pathlib import Path
from tests.test_journal import *
file = Path(sys.argv[1]) / "audit"
policies = Path(sys.argv[2])
filler = Path(sys.argv[1]) / "filler"
def free(): return os.statvfs(sys.argv[1]).f_bavail * 4096
def attempt():
    with Flow.create(policies=policies, subject=ALICE, audit=file).populate(FLOW) as flow:
        try:
            flow.instantiate()
        except Rejected as error:
            return str(error)
        return "instantiated"
print(attempt())
while free() > 0:
    with filler.open("ab") as out:
        out.write(bytes(free()))
for _ in range(12):
    before = file.read_bytes()
    said = attempt()
    if said != "instantiated":
        break
print(said)
found = lines(file)
print(file.read_bytes() == before or found[-1]["event"] == "decision")
filler.unlink()
print(attempt())
lines(file)
"""
        place = tmp_path / "disk"
        place.mkdir()
        command = f'mount -t tmpfs -o size=16k none {place} && exec {sys.executable} -c "$PROGRAM" {place} {policies}'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, env={**os.environ, "PROGRAM": program}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        first, full, whole, again = [line for line in done.stdout.splitlines() if not line.startswith("help")]
        assert (first, whole, again) == ("instantiated", "True", "instantiated")
        assert "cannot be audited: no space left on device" in full

    def test_a_read_only_disk_refuses(self, policies: Path) -> None:
        with self.made(policies, Path("/proc/version")) as flow, pytest.raises(Rejected, match="cannot be audited"):
            flow.instantiate()

    def test_a_load_that_cannot_be_written_is_undone(
        self, policies: Path, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = journal_module.append
        monkeypatch.setattr(
            journal_module, "append", lambda path, line: refuse() if '"lo"' in line else write(path, line)
        )
        with self.made(policies, file, FLOW.replace("tap0)", "tap0) | (device,lo)")) as flow:
            with pytest.raises(Rejected, match="cannot be audited: input/output error"):
                flow.instantiate()
            assert flow.state is State.POPULATED
            monkeypatch.undo()
            flow.instantiate().activate()

    def test_reauthorised(self, policies: Path, file: Path, network: Network) -> None:
        with self.made(policies, file) as flow:
            with pytest.raises(IllegalState):
                flow.reauthorise()
            flow.instantiate().activate()
            decision = flow.reauthorise()
            assert decision.accepted
            assert flow.state is State.ACTIVE
            network.send([udp(80)] * 3)
            (policies / "all.toml").write_text(RULE.replace('"*@*"', '"lo"'))
            with pytest.raises(Rejected) as error:
                flow.reauthorise()
            assert error.value.decision.digest == flow.definition.digest  # type: ignore[attr-defined]
            assert flow.state is State.CLOSED
            assert flow.stats().ledger.delivered == 3
        assert [(line["event"], line.get("accepted")) for line in lines(file)] == [
            ("decision", True), ("load", None), ("decision", True), ("decision", False),
        ]  # fmt: skip

    def test_what_cannot_be_decided_again_is_closed(
        self, policies: Path, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with self.made(policies, None) as flow:
            flow.instantiate().activate()
            (policies / "broken.toml").write_text("[[")
            with pytest.raises(PolicyError):
                flow.reauthorise()
            assert flow.state is State.CLOSED
        (policies / "broken.toml").unlink()
        with self.made(policies, file) as flow:
            flow.instantiate()
            file.unlink()
            file.mkdir()
            with pytest.raises(Rejected, match="cannot be audited"):
                flow.reauthorise()
            assert flow.state is State.CLOSED

    def test_a_flow_does_not_count_itself(self, policies: Path) -> None:
        (policies / "all.toml").write_text(f"{RULE}limits = {{ flows = 1 }}\n")
        with self.made(policies, None) as flow, self.made(policies, None) as other:
            flow.instantiate()
            assert flow.reauthorise().accepted
            with pytest.raises(Rejected):
                other.instantiate()

    def test_a_new_definition_needs_a_new_decision(self, policies: Path) -> None:
        with self.made(policies, None) as flow:
            decision = flow.authorise()
            flow.populate(FLOW.replace("80", "81"))
            assert flow.decision is None
            assert flow.definition.digest != decision.digest
            with pytest.raises(Rejected, match="about another definition"):
                flow._build(decision, "", {})
            (policies / "all.toml").write_text(RULE.replace('"*@*"', '"lo"'))
            with pytest.raises(Rejected):
                flow.instantiate()

    @pytest.fixture
    def expiring(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decide = questions.decide

        def soon(*arguments: Any, **named: Any) -> Any:
            from dataclasses import replace

            return replace(decide(*arguments, **named), expires_s=0.5)

        monkeypatch.setattr(questions, "decide", soon)

    def test_it_expires(self, policies: Path, expiring: None, network: Network) -> None:
        with self.made(policies, None, "(device,tap0) -> (grab)") as flow:
            flow.instantiate().activate()
            began_s = time.monotonic()
            network.send([udp(80)] * 5)
            got = sum(len(batch) for batch in flow.batches(duration_s=20))
            assert 0.2 < time.monotonic() - began_s < 2
            assert got == 5
            assert flow.state is State.CLOSED
            assert flow.stats().ledger.delivered == 5

    def test_closing_cancels_it(self, policies: Path, expiring: None) -> None:
        def running() -> int:
            return sum(thread.name != "ffpf-watch" for thread in threading.enumerate())

        before = running()
        flow = self.made(policies, None).instantiate()
        assert running() == before + 1
        flow.close()
        deadline_s = time.monotonic() + 0.3
        while running() > before and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert running() == before

    def test_whatever_it_does_when_its_time_is_over(self, policies: Path, expiring: None, network: Network) -> None:
        for _ in range(3):
            flow = self.made(policies, None, "(device,tap0) -> (grab)").instantiate()
            with pytest.raises(IllegalState):
                while True:
                    flow.activate()
                    list(flow.poll())
                    flow.waiting()
                    flow.pause()
            assert flow.state is State.CLOSED
            assert flow.stats().ledger.seen == 0

    def test_the_command_line(self, policies: Path, file: Path, network: Network) -> None:
        text = "(device,tap0) -> (packetcount)"
        ffpf = str(Path(sys.executable).parent / "ffpf")
        command = [ffpf, "run", text, "--policies", str(policies), "--audit", str(file), "--duration", "0.1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert [line["event"] for line in lines(file)] == ["decision", "load"]
        done = subprocess.run([*command[:-3], "/dev/full"], capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert "ffpf: /dev/full: refused, because it cannot be audited: not a regular file" in done.stderr
