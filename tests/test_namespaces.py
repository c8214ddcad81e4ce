"""Taps of other network namespaces: the caller stays where it is, and a name is one tap only."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffpf_bpf.capture.files import CaptureFile
from ffpf_bpf.errors import ExpressionError, KernelError
from ffpf_bpf.flow import Flow
from ffpf_bpf.flow.chains import CHAINS
from ffpf_bpf.kernel import attachment, filters, namespaces
from tests.network import Network, ip, two_namespaces, udp

FFPF = str(Path(sys.executable).with_name("ffpf"))
root = pytest.mark.root


@pytest.fixture(autouse=True)
def the_caller_stays() -> Iterator[None]:
    """No test leaves this thread elsewhere."""
    before = namespaces.own()
    yield
    assert namespaces.own() == before


def ffpf(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FFPF, *words], capture_output=True, text=True, timeout=60, check=False)


def test_a_file_has_no_namespace() -> None:
    with pytest.raises(ExpressionError) as error:
        Flow.create(file="x.pcap", netns="blue")
    assert str(error.value) == (
        "file: a file has no network namespaces, and nothing to follow\nhelp: leave out the other"
    )


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "x" * 256])
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(ExpressionError, match="cannot be the name of a network namespace"):
        Flow.create(netns=name)


def test_netns_is_for_devices_that_name_none() -> None:
    flow = Flow.create(netns="blue").populate("(device,eth0) | ((device,red/veth*@tc-egress) -> !(bpf,udp)) -> (grab)")
    assert flow.definition.text == '(device,blue/eth0) | ((device,"red/veth*@tc-egress") -> !(bpf,udp)) -> (grab)'
    assert flow.interfaces == ("blue/eth0", "red/veth*@tc-egress")
    there = Flow.create().populate("(device,blue/eth0) | ((device,red/veth*@tc-egress) -> !(bpf,udp)) -> (grab)")
    assert flow.definition.digest == there.definition.digest


@root
@pytest.mark.parametrize("forced", ["", "cls_bpf"])
def test_a_flow_grabs_elsewhere(network: Network, forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attachment.FORCED, forced)
    with Flow.create(netns=network.inside) as flow:
        flow.populate("(device,tap0) | (device,tap0@tc-ingress) | (device,tap0@tc-egress) -> (grab,snaplen=60)")
        flow.instantiate().activate()
        network.send([udp(80)] * 4)
        got = Counter(packet.interface for packet in flow.packets(duration_s=0.3))
        assert got == {f"{network.inside}/tap0": 4, f"{network.inside}/tap0@tc-ingress": 4}
    assert flow.stats().ledger.delivered == 8
    with network.enter():
        assert filters.stale() == []
        assert (
            "bpf"
            not in subprocess.run(
                ["tc", "filter", "show", "dev", "tap0", "ingress"], capture_output=True, text=True, check=True
            ).stdout
        )


@root
def test_one_name_in_two_namespaces_is_two_taps(network: Network) -> None:
    """Here `lo` of both, and of this process's own, in one flow and in two."""
    text = (
        f"((device,{network.inside}/lo) -> (packetcount as a)) | ((device,{network.outside}/lo) -> (packetcount as b))"
    )
    with Flow.create().populate(text).instantiate() as both, Flow.create(netns=network.inside) as one:
        one.populate("(device,lo) -> (packetcount)").instantiate()
        assert len(CHAINS._chains) == 2
        both.activate(), one.activate()
        with network.enter(network.outside), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(5):
                sender.sendto(b"x", ("127.0.0.1", 9))
        time.sleep(0.1)
        counts = both.stats()
        assert counts.node("a").counts["packets"] == 0 == one.stats().ledger.seen
        assert counts.node("b").counts["packets"] >= 5


@root
def test_several_threads_each_stay_where_they_are(network: Network) -> None:
    errors: list[BaseException] = []

    def grab(space: str, place: int) -> None:
        try:
            with network.enter(place_of[place]):
                here = namespaces.own()
                for _ in range(4):
                    with Flow.create(netns=space).populate("(device,lo@tc-ingress)").instantiate().activate():
                        assert namespaces.own() == here
        except BaseException as error:
            errors.append(error)

    with two_namespaces("threads") as other:
        place_of = [other.inside, other.outside]
        threads = [
            threading.Thread(target=grab, args=(space, number))
            for number, space in enumerate((network.inside, network.outside))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


@root
def test_a_name_that_does_not_exist_lists_those_there_are(network: Network) -> None:
    flow = Flow.create(netns="nowhere").populate("(device,eth0)")
    with pytest.raises(KernelError) as error:
        flow.instantiate()
    assert error.value.message == "no network namespace `nowhere`"
    assert f"`{network.inside}`" in error.value.help
    near = Flow.create(netns=network.inside[:-1]).populate("(device,eth0)")
    with pytest.raises(KernelError, match=f"did you mean `{network.inside}`"):
        near.instantiate()
    missing = Flow.create(netns=network.inside).populate("(device,tap1)")
    with pytest.raises(KernelError) as error:
        missing.instantiate()
    assert error.value.message == f"no interface `{network.inside}/tap1`"
    assert error.value.help == f"did you mean `{network.inside}/tap0`?"


@root
def test_a_file_that_is_no_namespace_is_none(network: Network) -> None:
    """As `ip netns add` has it for a moment, and leaves it behind if it is killed."""
    path = namespaces.DIRECTORY / f"ffpf-file-{os.getpid()}"
    path.touch()
    try:
        with pytest.raises(KernelError, match=f"no network namespace `{path.name}`"):
            Flow.create(netns=path.name).populate("(device,lo)").instantiate()
        assert path.name not in namespaces.names()
    finally:
        path.unlink()


@root
def test_another_name_of_a_namespace_is_refused(network: Network) -> None:
    """A policy may forbid `blue/eth0`: by another name it would be grabbed from all the same."""
    alias = f"{network.inside}-alias"
    ip("netns", "attach", alias, str(os.getpid()))
    try:
        with pytest.raises(KernelError) as error:
            Flow.create(netns=alias).populate("(device,lo)").instantiate()
        assert error.value.message == f"network namespace `{alias}` is the one that this process is in"
    finally:
        ip("netns", "delete", alias)
    with network.enter():
        ip("netns", "attach", alias, str(os.getpid()))
    try:
        for name, other in ((alias, network.inside), (network.inside, alias)):
            with pytest.raises(KernelError) as error:
                Flow.create(netns=name).populate("(device,lo)").instantiate()
            assert error.value.message == f"network namespace `{name}` is also called `{other}`"
    finally:
        ip("netns", "delete", alias)


@root
def test_a_tap_has_one_name_in_a_process(network: Network) -> None:
    there = Flow.create(netns=network.inside).populate("(device,tap0)")
    here = Flow.create().populate("(device,tap0)")
    said = pytest.raises(KernelError, match=f"this process grabs from it as `{network.inside}/tap0`")
    with there.instantiate(), network.enter(), said:
        here.instantiate()


@root
def test_visits_bring_back_results_and_errors(network: Network) -> None:
    with namespaces.find(network.inside) as space:
        assert space.visit(namespaces.own) == space.inode != namespaces.own()
        with pytest.raises(ZeroDivisionError):
            space.visit(lambda: 1 // 0)


@root
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupted_visit_is_undone(network: Network, before: bool) -> None:
    """Ctrl-C while the other thread is at work: its end is awaited, and what it has done is undone."""
    undone: list[int] = []
    entered = threading.Event()

    def act() -> int:
        if before:
            os.kill(os.getpid(), signal.SIGINT)
        entered.set()
        time.sleep(0.2)
        if not before:
            os.kill(os.getpid(), signal.SIGINT)
        return 7

    with namespaces.find(network.inside) as space, pytest.raises(KeyboardInterrupt):
        space.visit(act, undone.append)
        time.sleep(1)
    assert entered.is_set()
    assert undone == [7] or not before  # it may come when all is done: then who called has it


@root
def test_what_cannot_be_entered_says_why(network: Network) -> None:
    words = [FFPF, "grab", "-i", "tap0", "--netns", network.inside, "--policies", "policies"]
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    with namespaces.find(network.inside) as space, pytest.MonkeyPatch.context() as patch:
        patch.setattr(namespaces, "CLONE_NEWNET", 1 << 27)  # of another kind: the kernel refuses
        with pytest.raises(KernelError) as error:
            space.visit(lambda: None)
    assert error.value.errno == errno.EINVAL
    assert "CAP_SYS_ADMIN" in error.value.help


# The command line.


@root
def test_grab_in_a_namespace(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "there.pcapng"
    grab = subprocess.Popen(
        [FFPF, "grab", "-i", "tap0", "--netns", network.inside, "-c", "3", "-w", str(path)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert grab.stderr is not None
    grab.stderr.readline()
    time.sleep(0.3)
    network.send([udp(80)] * 3)
    said = grab.communicate(timeout=20)[1]
    assert grab.returncode == 0, said
    assert f"on {network.inside}/tap0 (native)" in said
    with CaptureFile(str(path)) as file:
        assert file.interfaces == (f"{network.inside}/tap0",)
    # On the file the flow is the same, whatever namespace it is run in.
    for expression in (f"(device,{network.inside}/tap0) -> (packetcount)", "(device,eth0) -> (packetcount)"):
        run = ffpf("run", expression, "-r", str(path), "--json")
        assert json.loads(run.stdout)["flows"][0]["ledger"]["counted"] == 3


@root
def test_doctor_looks_into_a_namespace(network: Network) -> None:
    listed = json.loads(ffpf("doctor", "--json", "--netns", network.inside).stdout)
    names = {finding["name"] for finding in listed}
    assert "interface tap0" in names
    assert ffpf("doctor", "--netns", "nowhere").stderr.startswith("ffpf: no network namespace `nowhere`\nhelp: ")


def check(tmp_path: Path, taps: str, *words: str) -> tuple[int, str]:
    rule = f'[[rule]]\nname = "r"\nsubjects = ["*"]\ntaps = {taps}\nclasses = ["packetcount"]\n[[rule.allow]]\n'
    (tmp_path / "rule.toml").write_text(rule)
    done = ffpf("check", *words, "--policies", str(tmp_path))
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("taps", "device", "netns", "code"),
    [
        ('["eth*"]', "eth0", None, 0),
        ('["eth*"]', "eth0", "blue", 3),
        ('["*@*"]', "blue/eth0", None, 3),
        ('["blue/*"]', "eth0", "blue", 0),
        ('["blue/*"]', "eth0", None, 3),
        ('["b*/eth0"]', "blue/eth0", "red", 0),
        ('["*/eth0"]', "eth0", None, 0),
        ('["blue/eth0"]', "blue/eth*", None, 3),
        ('["blue/e*"]', "eth*", "blue", 0),
    ],
)
def test_a_rule_is_about_another_namespace_only_if_it_says_so(
    tmp_path: Path, taps: str, device: str, netns: str | None, code: int
) -> None:
    words = ["--netns", netns] if netns else []
    found, said = check(tmp_path, taps, f"(device,{device}) -> (packetcount)", *words)
    assert found == code, said
