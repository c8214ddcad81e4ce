"""Grabbing without root: three capabilities do, and each that is missing is named; what `ffpf doctor` says of a host."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ffpf_bpf.errors import KernelError
from ffpf_bpf.flow import Flow
from ffpf_bpf.kernel import attachment, calls, host, namespaces, privileges
from ffpf_bpf.kernel.finding import Finding
from ffpf_bpf.kernel.maps import Descriptor
from tests.network import Network, udp, until

FFPF = str(Path(sys.executable).with_name("ffpf"))
NOBODY = 65_534
ALL = ("bpf", "net_admin", "perfmon")
RULE = '[[rule]]\nname = "all"\nsubjects = ["*"]\ntaps = ["*@*", "*/*@*"]\nclasses = ["*"]\n[[rule.allow]]\n'
NODES = '(sampler,1) -> (bpf,"udp or ip6") -> (head,99) -> (histogram,size) -> (anonymise) -> (grab,snaplen=96)'
root = pytest.mark.root
tcx, cls_bpf = pytest.mark.feature("tcx"), pytest.mark.feature("cls_bpf")
PR_CAPBSET_DROP, CAPABILITY_VERSION_3 = 24, 0x20080522


@pytest.fixture(scope="module")
def policies() -> Iterator[Path]:
    """Where nobody may read them."""
    path = Path(tempfile.mkdtemp(prefix="ffpf-policies-"))
    path.chmod(0o755)
    (path / "all.toml").write_text(RULE)
    (path / "all.toml").chmod(0o644)
    yield path
    shutil.rmtree(path)


def as_nobody(*words: str, capabilities: tuple[str, ...] = ALL) -> list[str]:
    """A command, with these capabilities and no others."""
    given = ",".join(f"+{name}" for name in capabilities)
    limits = [f"--inh-caps=-all,{given}", f"--ambient-caps={given}"] if given else ["--inh-caps=-all"]
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *limits, *words]


def ran(network: Network, *words: str, capabilities: tuple[str, ...] = ALL, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        network.command(*as_nobody(*words, capabilities=capabilities)),
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@root
@pytest.mark.parametrize(
    ("tap", "way"),
    [("tap0", ""), pytest.param("tap0@tc-ingress", "", marks=tcx), ("tap0@tc-ingress", "cls_bpf")],
)
def test_three_capabilities_do(network: Network, policies: Path, tap: str, way: str) -> None:
    """Nodes of every kind; with a filter of tc its guardian has the same ones."""
    words = as_nobody(FFPF, "run", f"(device,{tap}) -> {NODES}", "--policies", str(policies), "-c", "5")
    run = subprocess.Popen(
        network.command(*words), stderr=subprocess.PIPE, text=True, env={**os.environ, attachment.FORCED: way}
    )
    try:
        assert run.stderr is not None
        line = run.stderr.readline()
        while "rule all allows it" not in line:
            assert line, "it ended"
            line = run.stderr.readline()
        time.sleep(0.3)
        network.send([udp(80)] * 5)
        said = run.communicate(timeout=20)[1]
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0, said
    assert "5 seen = 5 delivered" in said
    with network.enter():
        shown = ["tc", "filter", "show", "dev", "tap0", "ingress"]
        assert subprocess.run(shown, capture_output=True, text=True, check=True).stdout == ""


def keep_three_capabilities() -> None:
    """This process, and what it starts, has no others from here on (capabilities(7))."""
    library = ctypes.CDLL(None, use_errno=True)
    kept = sum(1 << bit for bit, _ in privileges.NEEDED.values())
    for bit in range(64):
        if not kept >> bit & 1:
            library.prctl(PR_CAPBSET_DROP, bit, 0, 0, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header, sets = struct.pack("Ii", CAPABILITY_VERSION_3, 0), struct.pack("6I", low, low, 0, high, high, 0)
    assert library.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
    assert privileges.effective() == kept


@root
@pytest.mark.parametrize("way", [pytest.param("", marks=tcx), pytest.param("cls_bpf", marks=cls_bpf)])
def test_three_capabilities_do_for_a_flow(network: Network, way: str) -> None:
    """In a child, which is quick where the processor is emulated."""
    child = os.fork()
    if child == 0:
        try:
            grab_with_three_capabilities(network, way)
        except BaseException:
            traceback.print_exc()
        os._exit(255)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10


def grab_with_three_capabilities(network: Network, way: str) -> None:
    """Ends this process; its exit code is how many of five packets, at two hooks each, were delivered."""
    os.environ[attachment.FORCED] = way
    taps = "(device,tap0) | (device,tap0@tc-ingress) | (device,tap0@tc-egress)"
    nodes = '(sampler,1) -> (bpf,"udp or ip6") -> (classify,dport) -80-> (grab,snaplen=96)'
    with suppress(ValueError):  # where it may not be raised, it is large enough, or of no account
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with network.enter(), network.sender() as raw:
        keep_three_capabilities()
        with Flow.create().populate(f"{taps} -> {nodes}").instantiate().activate() as flow:
            for _ in range(5):
                raw.send(udp(80))
            until(lambda: flow.stats().ledger.delivered == 10)
        os._exit(flow.stats().ledger.delivered)  # there is no way back to the other namespace


@root
def test_a_guardian_without_root_removes_the_filter(network: Network, policies: Path) -> None:
    words = as_nobody(FFPF, "run", "(device,tap0@tc-ingress) -> (packetcount)", "--policies", str(policies))
    run = subprocess.Popen(
        network.command(*words), stderr=subprocess.PIPE, text=True, env={**os.environ, attachment.FORCED: "cls_bpf"}
    )
    assert run.stderr is not None
    run.stderr.readline()
    time.sleep(0.3)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stderr.close()
    with network.enter():
        end_s = time.monotonic() + 10
        shown = ["tc", "qdisc", "show", "dev", "tap0", "clsact"]
        while subprocess.run(shown, capture_output=True, text=True, check=True).stdout:
            assert time.monotonic() < end_s
            time.sleep(0.05)


@root
@pytest.mark.parametrize("missing", ALL)
@pytest.mark.parametrize("tap", ["tap0", "tap0@tc-egress"])
def test_each_missing_capability_is_named(network: Network, policies: Path, missing: str, tap: str) -> None:
    given = tuple(name for name in ALL if name != missing)
    words = (FFPF, "run", f"(device,{tap}) -> {NODES}", "--policies", str(policies), "--duration", "0.1")
    code, said = ran(network, *words, capabilities=given)
    assert code == 4, said
    name = f"CAP_{missing.upper()}"
    assert f"help: this process lacks {name}; run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: " in said
    assert "`AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON` (systemd)" in said
    assert "`setpriv --inh-caps +bpf,+net_admin,+perfmon --ambient-caps +bpf,+net_admin,+perfmon`" in said
    code, said = ran(network, FFPF, "doctor", capabilities=given)
    assert code == 4
    assert f"lacks {name}, which {privileges.NEEDED[name][1]}\n" in said


@root
def test_doctor_without_root_finds_all_that_is_needed(network: Network) -> None:
    code, said = ran(network, FFPF, "doctor")
    assert code == 0, said
    assert f"CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, as uid {NOBODY}; `--netns` takes CAP_SYS_ADMIN too" in said
    code, said = ran(network, FFPF, "doctor", capabilities=())
    assert code == 4
    assert "lacks CAP_BPF, which makes maps and loads programs; CAP_NET_ADMIN, which " in said


@root
def test_an_interface_that_is_taken_is_told_without_the_name_of_the_program(network: Network, policies: Path) -> None:
    with network.enter(), Descriptor(calls.load_program("foreign", calls.PASS_PROGRAM)) as program:
        link = Descriptor(calls.attach_xdp(program.fileno, namespaces_index("tap0"), calls.XDP_FLAGS_DRV_MODE))
        with link:
            code, said = ran(network, FFPF, "run", "(device,tap0)", "--policies", str(policies))
    assert code == 4
    said = " ".join(said.split())
    assert "tap0@xdp: the interface carries an XDP program (id " in said
    assert ", native); to see whose it is takes CAP_SYS_ADMIN help: it is not evicted" in said


def namespaces_index(name: str) -> int:
    import socket

    return socket.if_nametoindex(name)


@root
def test_another_namespace_takes_more(network: Network, policies: Path) -> None:
    words = [FFPF, "run", f"(device,{network.outside}/lo)", "--policies", str(policies)]
    done = subprocess.run(as_nobody(*words), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert done.stderr == (
        f"ffpf: {network.outside}: cannot enter the network namespace: operation not permitted\n"
        "help: that takes CAP_SYS_ADMIN: run as root, or start the program inside (`ip netns exec`)\n"
    )
    assert namespaces.DIRECTORY.is_dir()


@root
def test_a_user_namespace_does_not_do() -> None:
    words = ["unshare", "-Urn", FFPF, "run", "(device,lo) -> (packetcount)"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert "this process is in a user namespace, whose capabilities do not count for BPF" in done.stderr
    shown = subprocess.run(["unshare", "-Urn", FFPF, "doctor"], capture_output=True, text=True, check=False).stdout
    assert "FAIL  privileges " in shown and "those of a user namespace" in shown


# Of other hosts, by files like theirs.


@pytest.mark.parametrize(
    ("bits", "missing"),
    [
        (0, ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]),
        (1 << 21, ["CAP_NET_ADMIN"]),
        (1 << 21 | 1 << 12, []),
        (1 << 39 | 1 << 12 | 1 << 38, []),
        (1 << 39 | 1 << 12, ["CAP_PERFMON"]),
    ],
)
def test_what_is_missing(tmp_path: Path, bits: int, missing: list[str]) -> None:
    """CAP_SYS_ADMIN stands for what was parted from it, not for CAP_NET_ADMIN."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(f"Name:\tx\nCapInh:\t0\nCapEff:\t{bits:016x}\n")
    (tmp_path / "proc/self/uid_map").write_text("         0          0 4294967295\n")
    assert privileges.missing(tmp_path) == missing
    assert privileges.examine(tmp_path).works == (not missing)


def found(root: Path, name: str) -> Finding:
    (one,) = [finding for finding in host.examine(root) if finding.name == name]
    return one


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text("proc /proc proc rw 0 0\nsysfs /sys sysfs rw 0 0\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_jit(fake: Path) -> None:
    assert found(fake, "JIT").seen == "not visible in this network namespace, or always on"
    for text, works in (("1\n", True), ("2\n", True), ("0\n", False)):
        write(fake, host.JIT, text)
        assert found(fake, "JIT").works is works
    assert found(fake, "JIT").seen.startswith("off: programs run several times slower")
    assert found(fake, "JIT").mend == "echo 1 > /proc/sys/net/core/bpf_jit_enable"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("[none] integrity confidentiality\n", "off"),
        ("none [integrity] confidentiality\n", "integrity: it forbids reads of kernel memory, which flows do not make"),
        (
            "none integrity [confidentiality]\n",
            "confidentiality: it forbids reads of kernel memory, which flows do not make",
        ),
    ],
)
def test_lockdown(fake: Path, text: str, seen: str) -> None:
    write(fake, host.LOCKDOWN, text)
    assert found(fake, "kernel lockdown") == Finding("kernel lockdown", True, seen, needed=False)


def test_lockdown_that_is_not_there_or_hidden(fake: Path) -> None:
    assert found(fake, "kernel lockdown").seen == "not visible: `ip netns exec` mounts another /sys"
    write(fake, "sys/kernel/security/lsm", "capability,yama")
    assert found(fake, "kernel lockdown").seen == "this kernel has none"


def test_unprivileged(fake: Path) -> None:
    assert found(fake, "unprivileged BPF").seen == "not known; flows take CAP_BPF anyway"
    for text, word in (("0", "allowed"), ("1", "disabled for good"), ("2", "disabled")):
        write(fake, host.UNPRIVILEGED, text)
        assert found(fake, "unprivileged BPF").seen == f"{word} ({text}); flows take CAP_BPF anyway"


def test_bpf_files(fake: Path) -> None:
    assert found(fake, "bpffs").seen == "not mounted; of flows only components of libxdp's dispatcher are pinned there"
    write(fake, "proc/self/mounts", "sysfs /sys sysfs rw 0 0\nblue /sys sysfs rw 0 0\n")
    assert found(fake, "bpffs").seen == (
        "not mounted: `ip netns exec`, which names /sys after it, hides it; of flows only components of libxdp's dispatcher are pinned there"
    )
    write(fake, "proc/self/mounts", "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n")
    assert (
        found(fake, "bpffs").seen
        == "mounted at /sys/fs/bpf; of flows only components of libxdp's dispatcher are pinned there"
    )


@root
def test_doctor_in_a_namespace_says_what_is_hidden(network: Network) -> None:
    done = subprocess.run(network.command(FFPF, "doctor"), capture_output=True, text=True, check=False)
    assert "not mounted: `ip netns exec`, which names /sys after it, hides it" in done.stdout
    assert "not visible: `ip netns exec` mounts another /sys" in done.stdout


# Locked memory, as before Linux 5.11.


class Library:
    """Makes maps while the limit allows it."""

    def __init__(self) -> None:
        self.made = 0

    def bpf_map_create(self, kind: int, name: bytes, key: int, value: int, entries: int, options: object) -> int:
        soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if soft != resource.RLIM_INFINITY and value * entries > soft:
            return -errno.EPERM
        self.made += 1
        return os.dup(0)


@pytest.mark.parametrize(
    ("release", "has"), [("5.10.0-28-amd64", True), ("5.11.0", False), ("6.1.0", False), ("4.19.1", True)]
)
def test_which_kernels_count_maps_as_locked_memory(monkeypatch: pytest.MonkeyPatch, release: str, has: bool) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    assert privileges.has_memlock() is has


@pytest.mark.parametrize(
    ("soft", "hard", "size", "works"), [(1, 64, 32, True), (1, 64, 128, False), (64, 64, 128, False)]
)
def test_locked_memory_is_raised_as_far_as_may_be(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, size: int, works: bool
) -> None:
    limits = [soft << 10, hard << 10]

    def setrlimit(_: int, wanted: tuple[int, int]) -> None:
        if wanted[1] == resource.RLIM_INFINITY or wanted[1] > limits[1]:
            raise ValueError("not allowed to raise maximum limit")
        limits[:] = wanted

    library = Library()
    monkeypatch.setattr(platform, "release", lambda: "5.10.0-28-amd64")
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    monkeypatch.setattr(calls, "library", lambda: library)
    monkeypatch.setattr(privileges, "missing", lambda *_: [])
    monkeypatch.setattr(privileges, "in_user_namespace", lambda *_: False)
    if works:
        os.close(calls.create_map(calls.MAP_ARRAY, "ffpf", 4, size << 10, 1))
        assert limits == [hard << 10] * 2 and library.made == 1
        return
    with pytest.raises(KernelError) as error:
        calls.create_map(calls.MAP_ARRAY, "ffpf", 4, size << 10, 1)
    assert error.value.message == f"cannot create a map of {size << 10:,} bytes: operation not permitted"
    assert error.value.help.startswith(
        "before Linux 5.11 maps count as locked memory, of which too little is allowed: `ulimit -l unlimited`"
    )
    assert library.made == 0
