"""The tooling of the tests in virtual machines, as far as it needs none: names, archives, results, table, processes."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.vm import guest, initramfs, kernels, machine, matrix, objects
from tests.vm.features import FEATURES, version
from tests.vm.kernels import Kernel, KernelMissing, Wanted
from tests.vm.matrix import Outcome, Report, Result

ROOT = Path(__file__).resolve().parents[1]
KERNEL = Kernel("6.1", "6.1.0-9-cloud-amd64", Path("/cache/6.1/boot/vmlinuz"), Path("/cache/6.1"))
# As `apt-cache show` prints them; the newest is neither first nor last.
ARCHIVE = """
Package: linux-image-cloud-amd64
Version: 7.9.1-1
Depends: linux-base-cloud-amd64 (= 7.9.1-1), linux-image-7.9.1-cloud-amd64 (= 7.9.1-1)
Description: meta
 Depends: not this

Package: linux-image-cloud-amd64
Version: 7.10.2-1~bpo13+1
Depends: linux-base-cloud-amd64 (= 7.10.2-1), linux-image-7.10.2+deb13-cloud-amd64 (= 7.10.2-1)

Package: linux-image-7.10.2+deb13-cloud-amd64
Version: 7.10.2-1
Depends: dracut | linux-initramfs-tool, linux-binary-7.10.2+deb13-cloud-amd64:any (= 1), linux-modules-7.10.2+deb13-cloud-amd64

Package: linux-binary-7.10.2+deb13-cloud-amd64
Version: 7.10.2-1

Package: linux-modules-7.10.2+deb13-cloud-amd64
Version: 7.10.2-1

Package: linux-image-7.9.1-cloud-amd64
Version: 7.9.1-1
"""


def show(pattern: str) -> list[dict[str, str]]:
    import re

    found = [dict(each) for each in kernels.stanzas(ARCHIVE) if re.fullmatch(pattern, each["Package"])]
    return sorted(found, key=lambda stanza: kernels.order(stanza["Version"]), reverse=True)


def test_a_metapackage_leads_to_the_packages_of_the_newest_kernel() -> None:
    assert kernels.resolve("linux-image-cloud-amd64", show) == [
        "linux-binary-7.10.2+deb13-cloud-amd64=7.10.2-1",
        "linux-image-7.10.2+deb13-cloud-amd64=7.10.2-1",
        "linux-modules-7.10.2+deb13-cloud-amd64=7.10.2-1",
    ]


def test_a_series_is_its_newest_kernel() -> None:
    assert kernels.resolve(r"linux-image-7\.9\.[^-]*-cloud-amd64", show) == ["linux-image-7.9.1-cloud-amd64=7.9.1-1"]


def test_what_the_archive_does_not_have_is_said() -> None:
    with pytest.raises(KernelMissing, match="the archive has no package `linux-image-virtual`"):
        kernels.resolve("linux-image-virtual", show)
    with pytest.raises(KernelMissing, match=r"no kernel `4\.19` in the matrix; there are 5\.10, "):
        kernels.find(["6.1", "4.19"])


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.9.1-1", "6.10.0-1"),
        ("6.12.9-1", "6.12.10-1"),
        ("7.3.4-1~bpo13+1", "7.3.4-1"),
        ("5.15.0-9.9", "5.15.0-204.214"),
    ],
)
def test_versions_in_order(older: str, newer: str) -> None:
    assert kernels.order(older) < kernels.order(newer)


def test_no_kernel_is_pinned_and_all_have_names_of_their_own() -> None:
    assert len({wanted.name for wanted in kernels.MATRIX}) == len(kernels.MATRIX)
    for wanted in kernels.MATRIX:
        assert not wanted.package.replace("\\", "").startswith("linux-image-5") and "cloud-amd64" in wanted.package + (
            "cloud-amd64" if wanted.package == "linux-image-virtual" else ""
        )


def test_modules_are_loaded_after_what_they_need(tmp_path: Path) -> None:
    modules = tmp_path / "lib/modules" / KERNEL.release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(
        "drivers/virtio_pci.ko: drivers/virtio_ring.ko drivers/virtio.ko\n"
        "fs/virtiofs.ko: drivers/virtio.ko fs/fuse.ko\nfs/fuse.ko:\nfs/other.ko:\ndrivers/virtio.ko:\n"
        "fs/overlay.ko.xz:\n"
    )
    found = initramfs.modules(Kernel("6.1", KERNEL.release, KERNEL.image, tmp_path))
    names = [path.name for path in found]
    assert names == ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko", "fuse.ko", "virtiofs.ko", "overlay.ko.xz"]


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is missing")
def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    made = initramfs.archive([("bin", 0o040755, b""), ("bin/x", 0o100755, b"12345"), ("bin/y", 0o120777, b"x")])
    subprocess.run(["cpio", "-id", "--quiet"], cwd=tmp_path, input=made, check=True)
    assert (tmp_path / "bin/y").read_bytes() == b"12345"
    assert os.readlink(tmp_path / "bin/y") == "x"


def test_the_archive_is_aligned_and_ends() -> None:
    made = initramfs.archive([("a", 0o100644, b"12345")])
    assert len(made) % 4 == 0
    assert made.startswith(b"070701") and made.count(b"070701") == 2
    assert b"TRAILER!!!\0" in made


def test_the_guest_runs_commands_as_they_are_given(tmp_path: Path) -> None:
    script = guest.script(
        KERNEL, Path("/a b"), [["true"], ["pytest", "-k", "a or b; reboot"]], Path("/bin/busybox"), Path("/a cache")
    )
    assert "cd '/a b'\ntrue\npytest -k 'a or b; reboot'\necho $? > /run/results/exit-code" in script
    assert "/cache/6.1/lib/modules" in script
    assert script.split("\n")[1] == f"echo '{guest.BEGUN}'"
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)


def test_what_a_guest_compiled_the_next_one_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffpf_bpf import compiler

    entry = compiler._compile_entry.__wrapped__
    expected = entry(2, compiler.XDP)
    known, new = tmp_path / "known", tmp_path / "new"
    monkeypatch.setattr(compiler, "_compile_text", compiler._compile_text)
    objects.reuse(known, new)
    assert entry(2, compiler.XDP) == expected
    (made,) = new.iterdir()
    objects.keep({f"objects/{made.name}": made.read_bytes(), "junit.xml": b"", "objects/../x": b""}, known)
    assert [path.name for path in known.iterdir()] == [made.name]

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "_compile_text", refuse)
    objects.reuse(known, new)
    assert entry(2, compiler.XDP) == expected
    with pytest.raises(AssertionError, match="compiled again"):
        entry(3, compiler.XDP)
    objects.forget(known)
    assert len(list(known.iterdir())) == 1
    os.utime(known / made.name, (0, 0))
    objects.forget(known)
    assert list(known.iterdir()) == []


def test_results_come_whole_or_not_at_all() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, contents in (("./exit-code", b"1\n"), ("./junit.xml", b"<x/>")):
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            file.addfile(member, io.BytesIO(contents))
    assert guest.results(stream.getvalue()) == {"exit-code": b"1\n", "junit.xml": b"<x/>"}
    assert guest.results(b"") == {}
    assert machine.Ended(guest.results(stream.getvalue()), "", False).exit_code == 1
    assert machine.Ended({}, "", True).exit_code is None
    assert not machine.Ended({}, "Kernel panic - not syncing", False).booted


JUNIT = """<testsuites><testsuite>
<properties><property name="doctor" value='[{"name": "tcx", "works": false}]'/></properties>
<testcase classname="tests.test_tc" name="test_a"><properties><property name="feature" value="tcx"/></properties>
  <skipped message="tcx: none here"/></testcase>
<testcase classname="tests.test_flow" name="test_b"><properties><property name="digest" value="abc"/></properties></testcase>
<testcase classname="tests.test_flow" name="test_c"><failure message="assert 1&#10;more">...</failure></testcase>
<testcase classname="tests.test_flow" name="test_d"><error message="at setup"/></testcase>
</testsuite></testsuites>"""


def test_junit_is_read() -> None:
    outcomes, findings = matrix.read(JUNIT.encode())
    assert outcomes == (
        Outcome("test_tc::test_a", ("tcx",), Result.SKIPPED, "tcx: none here"),
        Outcome("test_flow::test_b", (), Result.PASSED, digest="abc"),
        Outcome("test_flow::test_c", (), Result.FAILED, "assert 1"),
        Outcome("test_flow::test_d", (), Result.FAILED, "at setup"),
    )
    assert findings == {"tcx": False}


def report(release: str, *outcomes: Outcome, **findings: bool) -> Report:
    """A report whose doctor says the truth, but for `findings`."""
    said = {feature.finding: version(release) >= feature.since for feature in FEATURES}
    return Report("some", release, outcomes, {**said, **findings})


def tcx(result: Result) -> Outcome:
    return Outcome("test_tc::test_links", ("tcx",), result, "why")


def failures(found: Report) -> list[str]:
    return [line.split(", ", 1)[1] for line in matrix.failures([found])]


def test_a_skip_is_a_failure_where_the_kernel_has_the_feature() -> None:
    assert failures(report("6.6.1-cloud", tcx(Result.SKIPPED))) == [
        "tcx: test_tc::test_links was skipped, and Linux has it since 6.6: why"
    ]
    assert failures(report("6.1.0-56-cloud", tcx(Result.SKIPPED))) == []
    assert failures(report("6.6.1-cloud", tcx(Result.PASSED))) == []
    assert failures(report("6.6.1-cloud", tcx(Result.PASSED), tcx(Result.FAILED))) == ["tcx: test_tc::test_links: why"]


def test_what_a_kernel_has_no_more_may_be_skipped_and_it_is_said_what_is_wanted() -> None:
    def joins(result: Result) -> Outcome:
        return Outcome("test_dispatcher::test_join", ("dispatcher, joined",), result, "why")

    for release, lacks in (("5.10.0", "Linux 5.15 or newer"), ("6.12.1", "libxdp 1.5.5 or newer")):
        found = report(release, joins(Result.SKIPPED))
        assert failures(found) == []
        assert f"skip  dispatcher, joined: {lacks}" in matrix.table([found]).splitlines()
        assert failures(report(release, joins(Result.PASSED))) == []
    assert failures(report("6.1.0", joins(Result.SKIPPED))) == [
        "dispatcher, joined: test_dispatcher::test_join was skipped, and Linux has it since 5.15: why"
    ]


def test_a_skip_for_another_feature_is_that_ones() -> None:
    both = Outcome("test_tc::test_all", ("cls_bpf", "tcx"), Result.SKIPPED, "tcx: none")
    passed = Outcome("test_tc::test_filter", ("cls_bpf",), Result.PASSED)
    assert failures(report("6.1.0", both, passed)) == []
    assert len(failures(report("6.6.0", both, passed))) == 2


def test_a_skip_for_no_feature_is_a_failure() -> None:
    assert failures(report("6.1.0", Outcome("test_x::test_y", (), Result.SKIPPED, "lazy"))) == [
        "all other tests: test_x::test_y was skipped, and Linux gives no reason to: lazy"
    ]


def test_doctor_is_held_against_what_tests_found() -> None:
    assert failures(report("6.6.1", tcx(Result.PASSED), tcx=False)) == [
        "tcx: `ffpf doctor` says that it does not work, against what was found"
    ]
    assert failures(report("6.1.0", tcx(Result.SKIPPED), tcx=True)) == [
        "tcx: `ffpf doctor` says that it works, against what was found"
    ]
    # Where no test tried it, against the kernel's version.
    assert failures(report("6.1.0", tcx=True)) == ["tcx: `ffpf doctor` says that it works, against what was found"]
    silent = Report("some", "6.6.1", (tcx(Result.PASSED),), {})
    assert "tcx: `ffpf doctor` says nothing of `tcx`" in failures(silent)


def test_a_feature_without_a_test_is_no_pass_and_a_machine_without_result_a_failure() -> None:
    reports = [report("6.6.1-cloud", tcx(Result.PASSED)), Report("6.1", "6.1.0-56", trouble="killed after 300 s")]
    lines = matrix.table(reports).splitlines()
    assert [line for line in lines if line.startswith("tcx")] == ["tcx                  pass 1   FAIL"]
    assert [line for line in lines if line.startswith("dispatcher ")] == ["dispatcher           no test  FAIL"]
    assert lines[-1] == "FAIL  6.1 (6.1.0-56), all other tests: killed after 300 s"


def test_what_was_recorded_and_counted_is_the_same_on_all_kernels() -> None:
    def of(kernel: str, **digests: str) -> Report:
        outcomes = tuple(Outcome(test, (), Result.PASSED, digest=digest) for test, digest in digests.items())
        return Report(kernel, "6.6.1", outcomes, {feature.finding: True for feature in FEATURES})

    same = [of("old", a="1" * 64), of("new", a="1" * 64, b="2" * 64)]
    assert matrix.failures(same) == []
    lines = matrix.table(same).splitlines()
    assert lines[-1] == "same  2222222222222222 on new: b"
    assert [line.split()[-4:] for line in lines if line.startswith(matrix.SAME)] == [["pass", "1", "pass", "2"]]
    other = [*same, of("odd", a="3" * 64)]
    assert matrix.failures(other) == [
        "odd (6.6.1), same on all kernels: a: recorded or counted otherwise than on old, new"
    ]
    assert matrix.sameness(of("none"), other).result is Result.NONE


def test_every_feature_has_a_name_of_its_own_and_doctor_knows_it() -> None:
    from ffpf_bpf.kernel import probes

    assert len({feature.name for feature in FEATURES}) == len(FEATURES)
    source = Path(probes.__file__).read_text(encoding="utf-8")
    source += Path(probes.__file__).with_name("hooks.py").read_text(encoding="utf-8")
    for feature in FEATURES:
        assert f'"{feature.finding}"' in source or not feature.finding


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_machines_die_with_whoever_started_them(number: signal.Signals) -> None:
    """Whatever ends the runner, the kernel ends what it started."""
    program = (
        "import asyncio\nfrom tests.vm import machine\n"
        "async def main():\n"
        "    async with machine._child(['sleep', '60'], ()) as child:\n"
        "        print(child.pid, flush=True)\n        await child.wait()\n"
        "asyncio.run(main())\n"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert runner.stdout is not None
    child = int(runner.stdout.readline())
    time.sleep(0.2)  # setpriv becomes what it starts
    runner.send_signal(number)
    runner.wait(20)
    end_s = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < end_s, f"{child} lives on"
        time.sleep(0.05)
    runner.stdout.close()


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_stock_kernels_run_in_kvm_only_if_it_is_real() -> None:
    assert machine.has_kvm() == (os.access("/dev/kvm", os.W_OK) and not Path("/sys/module/kvm_pvm").exists())


def test_both_virtiofsd_get_what_they_understand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of_qemu = tmp_path / "virtiofsd"
    monkeypatch.setattr(machine, "VIRTIOFSD", (of_qemu, Path("/usr/libexec/virtiofsd")))
    assert machine.virtiofsd(7)[:3] == ["/usr/libexec/virtiofsd", "--fd=7", "--shared-dir=/"]
    of_qemu.touch()
    assert machine.virtiofsd(7)[:4] == [str(of_qemu), "--fd=7", "-o", "source=/"]


def test_what_cannot_be_had_is_said_and_what_is_cached_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = Wanted("6.1", kernels.BOOKWORM, kernels.CLOUD)

    def refuse(self: kernels.Apt) -> None:
        raise subprocess.CalledProcessError(100, "apt-get", stderr="E: no route\nmore")

    monkeypatch.setattr(kernels.Apt, "update", refuse)
    said: list[str] = []
    with pytest.raises(KernelMissing, match=r"^6\.1: E: no route$"):
        kernels.obtain(wanted, tmp_path, said.append)
    (tmp_path / "6.1/lib/modules" / KERNEL.release).mkdir(parents=True)
    (tmp_path / "6.1/boot").mkdir()
    (tmp_path / "6.1/boot" / f"vmlinuz-{KERNEL.release}").touch()
    assert kernels.obtain(wanted, tmp_path, said.append).release == KERNEL.release
    assert said == []
    os.utime(tmp_path / "6.1", (0, 0))
    assert kernels.obtain(wanted, tmp_path, said.append).release == KERNEL.release
    assert said == [f"6.1: E: no route; the cached {KERNEL.release} is used"]


def test_command_line_says_what_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for wanted in kernels.MATRIX:
        assert wanted.name in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm", "2.4"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no kernel `2.4` in the matrix" in done.stderr
