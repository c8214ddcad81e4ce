"""At tc without tcx links: filters by netlink, which outlive their maker, each with a guardian that removes it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffpf_bpf.errors import KernelError
from ffpf_bpf.flow import Flow
from ffpf_bpf.kernel import attachment, calls, filters, guards, netlink
from ffpf_bpf.kernel.interfaces import find
from ffpf_bpf.kernel.maps import Descriptor
from tests.conftest import assert_kernel_objects
from tests.corpus.packets import ether, ipv4, udp
from tests.foreign import TCX_NEXT, foreign
from tests.network import Network

pytestmark = [pytest.mark.root, pytest.mark.feature("cls_bpf")]

FFPF = str(Path(sys.executable).with_name("ffpf"))
BOTH = "(device,tap0@tc-ingress) | (device,tap0@tc-egress) -> (packetcount)"
FRAMES = [ether(0x0800, ipv4(17, udp(1, 80)))] * 5


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch, network: Network) -> Iterator[None]:
    monkeypatch.setenv(attachment.FORCED, "cls_bpf")
    with network.enter():
        yield
        assert there() == [], "left at the interface"


def there(interface: str = "tap0") -> list[str]:
    """The qdisc for filters and the names of the filters that an interface has."""
    index = find(interface).index
    with contextlib.closing(netlink.Netlink()) as asked:
        qdisc = asked.ingress_qdisc(index)
        names = [found.name for parent in netlink.PARENTS.values() for found in asked.filters(index, parent)]
    return ([qdisc] if qdisc else []) + names


def test_it_is_said_what_could_not_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "")

    program = Descriptor(calls.load_program("ffpf_probe", attachment.NEXT_PROGRAM, calls.PROG_SCHED_CLS))
    with program, contextlib.closing(filters.attach(program, find("tap0"), "tc-ingress", "")) as attached:
        with monkeypatch.context() as patch:
            patch.setattr(netlink.Netlink, "filters", refuse)
            with pytest.raises(KernelError, match="cannot ask for a filter: no buffer space available"):
                attached.is_there()
        assert attached.is_there()
    with monkeypatch.context() as patch:
        patch.setattr(netlink.Netlink, "add_filter", refuse)
        with pytest.raises(KernelError, match="cannot attach a filter: no buffer space available"):
            Flow.create().populate("(device,tap0@tc-ingress)").instantiate()


def guardians() -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and b"guardian.py" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def wait_until(holds: Callable[[], bool], what: str, within_s: float = 5.0) -> None:
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s, what
        time.sleep(0.01)


@contextlib.contextmanager
def owner(expression: str = BOTH) -> Iterator[int]:
    """Another process that grabs."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        held = Flow.create().populate(expression).instantiate().activate()
        os.write(tell, b"!" if held.taps else b"?")
        while True:
            signal.pause()
    try:
        assert os.read(ready, 1) == b"!"
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


def test_what_it_is_and_why_is_shown() -> None:
    with Flow.create().populate(BOTH).instantiate() as flow:
        assert flow.taps == tuple(
            {"tap": f"tap0@{hook}", "mode": "cls_bpf", "refusal": "FFPF_TC=cls_bpf"} for hook in netlink.PARENTS
        )
        qdisc, *names = there()
        assert qdisc == "clsact"
        assert len(names) == 2 and all(filters.NAME.fullmatch(name) for name in names)
        assert len(guardians()) == 2
    assert guardians() == []


def test_unknown_words_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attachment.FORCED, "netlink")
    with pytest.raises(KernelError, match="FFPF_TC is `netlink`") as error:
        Flow.create().populate(BOTH).instantiate()
    assert error.value.where == "tap0@tc-ingress"


def test_sigkill_leaves_nothing(kernel_before: Counter[str]) -> None:
    with owner() as child:
        assert len(there()) == 3
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        wait_until(lambda: there() == [], "the filters are still there")
        wait_until(lambda: guardians() == [], "the guardians are still there")
        assert_kernel_objects(kernel_before)


def test_a_child_that_has_the_socket_does_not_keep_the_filters() -> None:
    """The guardian watches the process as well."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        held = Flow.create().populate(BOTH).instantiate().activate()
        kept = [os.dup(chain.tap._attachment._guardian._socket.fileno) for chain in held._running._chains]  # type: ignore[attr-defined]
        grandchild = os.fork()
        if grandchild == 0:
            os.write(tell, os.getpid().to_bytes(4, "little"))
        while kept:
            signal.pause()
    grandchild = int.from_bytes(os.read(ready, 4), "little")
    try:
        assert len(there()) == 3
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        wait_until(lambda: there() == [], "the filters are still there")
    finally:
        os.kill(grandchild, signal.SIGKILL)
        os.close(ready)
        os.close(tell)


def test_sigkill_at_every_word_to_netlink_leaves_nothing(kernel_before: Counter[str]) -> None:
    def life(at: int) -> int:
        """A flow's life, killed at the message of that number; how many there were."""
        made = 0
        real = netlink.Netlink._ask

        def asked(self: netlink.Netlink, *words: object) -> Iterator[bytes]:
            nonlocal made
            made += 1
            if made == at:
                os.kill(os.getpid(), signal.SIGKILL)
            answers = list(real(self, *words))  # type: ignore[arg-type]
            if -made == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return iter(answers)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(netlink.Netlink, "_ask", asked)
            with Flow.create().populate(BOTH).instantiate().activate():
                pass
        return made

    messages = life(0)
    assert messages > 15
    for at in [number * sign for number in range(1, messages + 1) for sign in (1, -1)]:
        child = os.fork()
        if child == 0:
            life(at)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, at
        wait_until(lambda: there() == [], f"left after {at}")
        wait_until(lambda: guardians() == [], "the guardians are still there")
        assert_kernel_objects(kernel_before)
    print(f"{2 * messages} kills")


def test_what_a_crash_left_is_recognised_and_removed() -> None:
    """The guardians are killed as well: nobody is left to remove the filters."""
    with owner() as child, Flow.create().populate("(device,tap0@tc-ingress)").instantiate() as alive:
        mine = [name for name in there() if f":{os.getpid()}:" in name]
        for guardian in guardians():
            if f":{child}:" in Path(f"/proc/{guardian}/cmdline").read_text(encoding="ascii"):
                os.kill(guardian, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(there()) == 4
        said = subprocess.run([FFPF, "doctor"], capture_output=True, text=True, check=False)
        for hook in netlink.PARENTS:
            line = next(line for line in said.stdout.splitlines() if f" tap0@{hook} " in line)
            assert line.startswith("FAIL") and f"a filter of process {child}, which has died, still runs" in line
        assert "ffpf doctor --clean" in said.stdout and said.returncode == 4
        cleaned = subprocess.run([FFPF, "doctor", "--clean"], capture_output=True, text=True, check=False)
        assert cleaned.stdout.count(f"the filter of process {child}, which has died, was removed") == 2
        assert there() == ["clsact", *mine], "the living one's stays"
        assert alive.taps
    assert filters.stale() == []


def test_what_others_hang_there_stays_and_runs() -> None:
    """Their qdisc, their filters of both kinds, before and behind ours."""
    index = find("tap0").index
    with foreign(TCX_NEXT) as first, foreign(TCX_NEXT) as second, contextlib.closing(netlink.Netlink()) as kernel:
        assert kernel.add_clsact(index)
        try:
            parent = netlink.PARENTS["tc-ingress"]
            other = [netlink.Filter(index, parent, priority, 1, f"other{priority}", 0) for priority in (1, 5)]
            kernel.add_filter(other[0], first.program.fileno)
            kernel.add_filter(other[1], second.program.fileno)
            classic = ["tc", "filter", "add", "dev", "tap0", "egress", "prio", "1", "protocol", "ip", "bpf"]
            subprocess.run([*classic, "bytecode", "1,6 0 0 0"], check=True)
            for killed in (False, True):
                with owner() as child:
                    assert len([name for name in there() if name.startswith("ffpf:")]) == 2
                    if not killed:
                        with Flow.create().populate("(device,tap0@tc-ingress) -> (packetcount)") as flow:
                            flow.instantiate().activate()
                            Network.send(_network(), FRAMES)
                            assert flow.stats().ledger.counted == first.runs == second.runs == 5
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    wait_until(lambda: not any(name.startswith("ffpf") for name in there()), "still there")
            assert there()[:3] == ["clsact", "other1", "other5"] and len(there()) == 4
        finally:
            kernel.delete_clsact(index)


def _network() -> Network:
    names = subprocess.check_output(["ip", "netns", "list"], text=True).split()
    return Network(
        *(next(n for n in names if n.startswith(f"ffpf-filters-{os.getpid()}-{end}")) for end in ("in", "out"))
    )


def test_an_ingress_qdisc_has_no_egress_side() -> None:
    subprocess.run(["tc", "qdisc", "add", "dev", "tap0", "ingress"], check=True)
    try:
        with Flow.create().populate("(device,tap0@tc-ingress)").instantiate():
            assert there()[0] == "ingress" and there()[1].startswith("ffpf:")
        with pytest.raises(
            KernelError, match="the interface has an `ingress` qdisc, which has no egress side"
        ) as error:
            Flow.create().populate("(device,tap0@tc-egress)").instantiate()
        assert error.value.errno == errno.EBUSY
        assert there() == ["ingress"]
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", "tap0", "ingress"], check=True)


def test_a_guardian_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guards, "GUARDIAN", tmp_path / "guardian.py")
    with pytest.raises(KernelError, match="the process that would remove the filter did not start"):
        Flow.create().populate(BOTH).instantiate()


def test_signals_to_the_terminal_do_not_reach_the_guardian(network: Network) -> None:
    with Flow.create().populate("(device,tap0@tc-ingress) -> (packetcount)").instantiate() as flow:
        (guardian,) = guardians()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guardian, number)
        flow.activate()
        network.send(FRAMES)
        assert flow.stats().ledger.counted == 5
        assert guardians() == [guardian]


def test_somebody_else_removes_our_filter() -> None:
    with Flow.create().populate("(device,tap0@tc-ingress)").instantiate() as flow:
        subprocess.run(["tc", "qdisc", "del", "dev", "tap0", "clsact"], check=True)
        with pytest.raises(KernelError, match="tap0@tc-ingress: our filter or link was detached by somebody"):
            list(flow.batches(duration_s=5))


def test_the_socket_of_another_family_is_no_trouble() -> None:
    """Netlink answers of another question are passed over."""
    with contextlib.closing(netlink.Netlink()) as kernel:
        with pytest.raises(OSError) as error:
            kernel.add_clsact(999_999)
        assert error.value.errno == errno.ENODEV
        assert kernel.ingress_qdisc(socket.if_nametoindex("lo")) == ""
