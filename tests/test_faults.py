"""Faults at every call to the kernel, from instantiating to closing: nothing is left, the flows beside lose no packet,
and the next flow works. At XDP, by tcx links and by filters of tc."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffpf_bpf.errors import FfpfError, KernelError, TapBusy
from ffpf_bpf.flow import Flow, State, chains
from ffpf_bpf.kernel import guards, tap
from tests import faults
from tests.faults import POINTS, REFUSALS, Interceptor, Stage, calls_of, life
from tests.network import Network

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("short_grace_periods")]

WAYS = [
    pytest.param("xdp", id="xdp"),
    *(pytest.param(way, id=way, marks=pytest.mark.feature(way)) for way in ("tcx", "cls_bpf")),
]
# Closing a descriptor cannot be refused, and an interrupt between its end and its closing is Python's to lose. So is
# one between a new descriptor and the line that takes it.
NEVER = ("close",)
TAKEN = ("close", "create_map", "load_program", "attach_xdp", "attach_tcx", "map_memory")


@pytest.fixture(params=WAYS)
def stage(request: pytest.FixtureRequest, network: Network) -> Iterator[Stage]:
    with faults.stage(network, request.param) as made:
        yield made


def each_point(stage: Stage, fault: str, act: Callable[[str], object], *, after: bool, spared: tuple[str, ...]) -> None:
    """A life for each call that is not spared, with `act` at it, and packets on their way there."""
    names = calls_of(stage.way)
    wrong = []

    def acted(name: str) -> None:
        stage.send()
        act(name)

    for at, name in enumerate(names, start=1):
        if name in spared:
            continue
        with pytest.MonkeyPatch.context() as patch:
            interceptor = Interceptor(patch, at, acted, after=after, spared=spared)
            with contextlib.suppress(FfpfError, KeyboardInterrupt):
                life(stage.way)
        POINTS[stage.way, fault] += 1
        assert interceptor.names[:at] == names[:at], f"{at} {name}: the calls of a life are not the same each time"
        problems = [problem for problem in (stage.wrong(), stage.next_flow(), stage.wrong()) if problem]
        if problems:
            wrong.append(f"{fault} at call {at}, {name}: {'; '.join(problems)}")
    assert not wrong, "\n".join(wrong)


def test_a_refusal_at_every_call(stage: Stage) -> None:
    """The kernel says no, for one reason after the other: the error comes out and the rest is undone, or what could not
    be made better (a chain shorter, a segment smaller) stays as it was."""
    turns = iter(range(1_000_000))
    spared = tuple(name for name in set(calls_of(stage.way)) if name not in REFUSALS)
    each_point(stage, "refusals", lambda name: faults.refuse(name, next(turns)), after=False, spared=spared)
    assert POINTS[stage.way, "refusals"] > 20


def interrupt(name: str) -> None:
    raise KeyboardInterrupt


def test_an_exception_before_every_call(stage: Stage) -> None:
    each_point(stage, "exceptions", interrupt, after=False, spared=NEVER)
    assert POINTS[stage.way, "exceptions"] > 25


def test_an_exception_after_every_call(stage: Stage) -> None:
    each_point(stage, "exceptions", interrupt, after=True, spared=TAKEN)


def in_child(run: Callable[[], object]) -> int:
    """A child that runs a function and ends; its process id."""
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


@pytest.mark.parametrize("way", WAYS)
def test_sigkill_at_every_call(network: Network, way: str) -> None:
    """At XDP the other flows of the chain are of the process that dies: packets go on to a flow behind it, at tc."""

    def die(at: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            Interceptor(patch, at, lambda name: os.kill(os.getpid(), signal.SIGKILL))
            life(way)

    beside = way if way != "xdp" else "tc"
    with faults.stage(network, way, beside) as stage:
        wrong, at, status = [], 0, signal.SIGKILL
        while status == signal.SIGKILL:
            at += 1
            child = in_child(lambda: die(at))  # noqa: B023 - it runs now
            stage.send(5)
            _, status = os.waitpid(child, 0)
            stage.send()
            POINTS[way, "kills"] += status == signal.SIGKILL
            if problem := stage.wrong():
                wrong.append(f"SIGKILL at call {at}: {problem}")
        assert status == 0
        assert not wrong, "\n".join(wrong)
        assert not stage.next_flow()
    assert POINTS[way, "kills"] > 40


@pytest.mark.parametrize("way", WAYS)
def test_sigstop_at_every_call(network: Network, way: str) -> None:
    """A process stands still for a while, and closes: its chain works on meanwhile."""
    counted, tell = os.pipe()

    def stand_still() -> None:
        with faults.stage(network, way) as inner, pytest.MonkeyPatch.context() as patch:
            Interceptor(patch, -1, lambda name: os.kill(os.getpid(), signal.SIGSTOP))
            life(way)
            os.write(tell, inner.counts()[0].to_bytes(4, "little"))
            patch.undo()
            assert not inner.next_flow()

    beside = way if way != "xdp" else "tc"
    with faults.stage(network, way, beside) as stage:
        before = stage.sent
        child = in_child(stand_still)
        while os.WIFSTOPPED(status := os.waitpid(child, os.WUNTRACED)[1]):
            stage.send(3)
            os.kill(child, signal.SIGCONT)
            POINTS[way, "stops"] += 1
        assert status == 0
        seen = int.from_bytes(os.read(counted, 4), "little")
        assert seen == stage.sent - before == 3 * POINTS[way, "stops"], "packets were lost"
        stage.sent += 2  # the child's own, for its next flow
        assert not stage.wrong()
        assert not stage.next_flow()
    os.close(counted)
    os.close(tell)
    assert POINTS[way, "stops"] > 40


def test_no_descriptor_is_left_to_take(stage: Stage) -> None:
    """The kernel gives as many descriptors as there may be, one more each time."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")))]
    wrong, refused, more = [], True, 0
    stage.descriptors = len(os.listdir("/proc/self/fd"))
    try:
        while refused:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, usual[1]))
            refused = False
            try:
                life(stage.way)
            except FfpfError as error:
                assert isinstance(error, KernelError) and error.errno == errno.EMFILE, error
                refused = True
                POINTS[stage.way, "EMFILE"] += 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, usual)
            problems = [problem for problem in (stage.wrong(), stage.next_flow()) if problem]
            if problems:
                wrong.append(f"{more} descriptors: {'; '.join(problems)}")
            more += 1
    finally:
        for each in fillers:
            os.close(each)
    assert not wrong, "\n".join(wrong)
    assert POINTS[stage.way, "EMFILE"] > 8


def test_no_memory_is_left_to_take(stage: Stage) -> None:
    """A memory cgroup that has room for less than the rings of a flow: the kernel refuses the map, and nobody is
    killed."""
    with memory_cgroup() as cgroup:

        def want_too_much() -> None:
            flow = Flow.create().populate(f"(device,{faults.tap('lo', stage.way)}) -> (grab)", buffer_bytes=64 << 20)
            cgroup.enter(room_bytes=24 << 20)
            with pytest.raises(KernelError) as error:
                flow.instantiate()
            assert error.value.errno == errno.ENOMEM
            cgroup.widen()
            flow.instantiate().close()

        assert os.waitpid(in_child(want_too_much), 0)[1] == 0
    POINTS[stage.way, "ENOMEM"] += 1
    assert not stage.wrong()


class Cgroup:
    """A memory cgroup of version 1 or 2."""

    def __init__(self, path: Path) -> None:
        self.path = path
        version_2 = (path / "memory.max").exists()
        self._limit, self._used = (
            (path / "memory.max", path / "memory.current")
            if version_2
            else (path / "memory.limit_in_bytes", path / "memory.usage_in_bytes")
        )

    def enter(self, room_bytes: int) -> None:
        """This process, which may take so much more."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))
        self._limit.write_text(str(int(self._used.read_text()) + room_bytes))

    def widen(self) -> None:
        self._limit.write_text("-1" if self._limit.name == "memory.limit_in_bytes" else "max")


@contextlib.contextmanager
def memory_cgroup() -> Iterator[Cgroup]:
    root = next((path for path in map(Path, ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")) if path.is_dir()), None)
    control = root / "cgroup.subtree_control" if root else None
    if root and control and control.exists():
        control.write_text("+memory")
    path = (root or Path("/")) / f"ffpf-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup: {error}")
    try:
        yield Cgroup(path)
    finally:
        path.rmdir()


def test_the_chain_is_full(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many segments as the kernel follows tail calls: one more is refused, and takes nothing from the others."""
    with faults.stage(network, "xdp") as stage, contextlib.ExitStack() as stack:
        monkeypatch.setattr(chains, "LONGEST_CHAIN", tap.MOST_SEGMENTS)  # none is folded
        text = "(device,tap0) -> (packetcount)"
        others = [
            stack.enter_context(Flow.create().populate(text).instantiate().activate())
            for _ in range(tap.MOST_SEGMENTS - 1)
        ]
        stage.remember()
        for _ in range(3):
            with pytest.raises(KernelError, match="no room for another flow on this tap"):
                Flow.create().populate(text).instantiate()
            stage.send()
            POINTS["xdp", "full chain"] += 1
            assert not stage.wrong()
        assert [flow.stats().ledger.counted for flow in others] == [6] * len(others)
        others.pop().close()
        assert not stage.next_flow()


def test_the_disk_is_full(stage: Stage, tmp_path: Path) -> None:
    """The journal cannot take a line, the decision's or that of a tap: the flow is refused."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path], check=True)
    try:
        text = f"(device,{faults.tap('tap0', stage.way)}) | (device,{faults.tap('lo', stage.way)}) -> (bytecount)"
        journal = tmp_path / "journal"
        Flow.create(audit=journal).populate(text).instantiate().close()
        lengths = [len(line) for line in journal.read_bytes().splitlines(keepends=True)]
        assert len(lengths) == 3
        for written in range(3):
            room = sum(lengths[:written]) + lengths[written] // 2
            journal.write_bytes(b" " * (16384 - 4096 - room % 4096 + 4096 - 1) + b"\n")
            fill(tmp_path / "filler")
            with pytest.raises(FfpfError, match="no space left on device"):
                Flow.create(audit=journal).populate(text).instantiate()
            POINTS[stage.way, "full disk"] += 1
            assert journal.read_bytes().count(b"\n") == written + 1
            (tmp_path / "filler").unlink()
            journal.unlink()
            assert not stage.wrong()
            Flow.create(audit=journal).populate(text).instantiate().close()
            journal.unlink()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def fill(path: Path) -> None:
    """A file that takes what is left of a file system."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.feature("cls_bpf")
def test_a_guardian_that_stands_still_is_not_waited_for_long(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "LONGEST_END_S", 0.2)
    with faults.stage(network, "cls_bpf") as stage:
        flow = Flow.create().populate("(device,lo@tc-ingress) -> (packetcount)").instantiate()
        (chain,) = flow._running._chains  # type: ignore[union-attr]
        os.kill(chain.tap._attachment._guardian._process.pid, signal.SIGSTOP)  # type: ignore[attr-defined]
        flow.close()
        POINTS["cls_bpf", "stops"] += 1
        assert not stage.wrong()


def test_a_tap_is_free_again_right_after_its_owner_was_killed(network: Network) -> None:
    with network.enter():
        for _ in range(5):
            ready, tell = os.pipe()
            child = os.fork()
            if child == 0:
                held = Flow.create().populate("(device,tap0)").instantiate().activate()
                os.write(tell, b"!" if held.state is State.ACTIVE else b"?")
                signal.pause()
            try:
                assert os.read(ready, 1) == b"!"
                with pytest.raises(TapBusy, match=f"process {child} grabs from this interface already"):
                    Flow.create().populate("(device,tap0)").instantiate()
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                os.close(ready)
                os.close(tell)
            with Flow.create() as flow:
                flow.populate("(device,tap0)").instantiate()
