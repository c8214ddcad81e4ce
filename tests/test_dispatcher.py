"""Beside xdp-tools at XDP: its programs are never evicted, and where libxdp's dispatcher runs them, ours joins them.

What is expected of a kernel is written down (`CHAINS_FROM_EXTENSIONS`), so that none of these tests is content with any
outcome: a kernel without extensions gets no dispatcher, some restrict tail calls from one.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ffpf_bpf.errors import TapBusy
from ffpf_bpf.flow import Flow
from ffpf_bpf.kernel import calls, dispatcher, interfaces
from ffpf_bpf.kernel.holders import ENTRY_NAME
from tests.network import Network, udp
from tests.vm import features

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("inside"),
    pytest.mark.skipif(shutil.which("xdp-filter") is None, reason="xdp-tools is not installed"),
]

COUNTS = "(device,tap0) -> (packetcount)"
COUNTS_AT_TC = "(device,tap0@tc-ingress) -> (packetcount)"
FILTER = "xdpfilt_alw_all"  # the program that `xdp-filter load` takes
DROPPED, PASSED = 7, 8  # ports
# Whether tail calls lead from an extension to XDP programs; since 6.12 with the dispatcher of libxdp 1.5.5 and newer only.
CHAINS_FROM_EXTENSIONS = {(5, 10): False, (5, 15): True, (6, 12): False}
REFUSALS = {(5, 10): "this kernel lets no tail call lead from an extension", (6, 12): "libxdp 1.5.5 or newer"}


class Tools:
    """xdp-tools in the namespace of the tap, where they find a bpffs."""

    def __init__(self, prefix: list[str]) -> None:
        self._prefix = prefix

    def run(self, *words: str, fails: bool | None = False) -> str:
        done = subprocess.run([*self._prefix, *words], capture_output=True, text=True, check=False)
        assert fails is None or (done.returncode != 0) == fails, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def components(self) -> list[str]:
        """What `xdp-loader status` shows at the tap, in the order in which they run."""
        lines = self.run("xdp-loader", "status", "tap0").splitlines()
        return [line.split()[2] for line in lines if line.startswith(" =>")]

    @contextmanager
    def filter(self) -> Iterator[None]:
        """xdp-filter at the tap, which drops what comes from or goes to a port."""
        self.run("xdp-filter", "load", "tap0")
        try:
            self.run("xdp-filter", "port", str(DROPPED), "-m", "dst", "-p", "udp")
            yield
        finally:
            self.run("xdp-filter", "unload", "tap0")


@pytest.fixture
def inside(network: Network) -> Iterator[None]:
    with network.enter():
        yield


@pytest.fixture
def tools(network: Network) -> Iterator[Tools]:
    network_namespace = f"--net=/run/netns/{network.inside}"
    if subprocess.run(["findmnt", "-t", "bpf", "/sys/fs/bpf"], capture_output=True, check=False).returncode == 0:
        yield Tools(["nsenter", network_namespace])
        return
    mounted = "mount -t bpf bpf /sys/fs/bpf && echo && exec sleep 600"
    command = ["unshare", "--mount", "sh", "-c", mounted]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"\n"
            yield Tools(["nsenter", network_namespace, f"--mount=/proc/{holder.pid}/ns/mnt"])
        finally:
            holder.kill()


def carried() -> calls.ProgramInfo:
    """The program that the tap carries."""
    return calls.program_info(calls.attached_xdp(interfaces.find("tap0").index)[0])


def kernel() -> tuple[int, int]:
    """The newest of the kernels above that is not newer than this one."""
    return max(
        (known for known in CHAINS_FROM_EXTENSIONS if known <= features.version(platform.release())), default=(0, 0)
    )


def grabbing() -> int:
    """A child that holds the tap until it is killed."""
    child = os.fork()
    if child:
        return child
    try:
        with Flow.create().populate(COUNTS).instantiate():
            time.sleep(60)
    finally:
        os._exit(1)


def needs_dispatcher() -> None:
    if carried().name != "xdp_dispatcher":
        pytest.skip("this kernel has no extension programs, so libxdp sets up no dispatcher")


def leads_to_chains(dispatcher: calls.ProgramInfo) -> bool:
    """Whether an extension of this dispatcher can be the way into a chain."""
    shown = ["bpftool", "prog", "dump", "xlated", "id", str(dispatcher.id)]
    # libxdp 1.5.5: its functions say that they change packets.
    is_new = "bpf_xdp_adjust_tail" in subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    return CHAINS_FROM_EXTENSIONS[kernel()] or (kernel() >= (6, 12) and is_new)


def needs_chain() -> None:
    needs_dispatcher()
    if not leads_to_chains(carried()):
        pytest.skip(REFUSALS[kernel()])


def send(network: Network, number: int) -> None:
    network.send([udp(DROPPED), udp(PASSED)] * number)


@pytest.mark.feature("dispatcher")
def test_xdp_filter_was_there_first(network: Network, tools: Tools) -> None:
    """It is joined, or stays alone and is named; either way it does what it did."""
    with tools.filter():
        before = carried()
        flow = Flow.create().populate(COUNTS)
        if before.name == "xdp_dispatcher" and leads_to_chains(before):
            with flow.instantiate() as joined:
                assert [tap["mode"] for tap in joined.taps] == ["dispatcher"]
                assert tools.components() == [FILTER, ENTRY_NAME]
                joined.activate()
                send(network, 5)
                assert joined.stats().ledger.counted == 5, "what xdp-filter drops does not come to us"
        else:
            with pytest.raises(TapBusy) as error:
                flow.instantiate()
            name = before.name if before.name == FILTER else "libxdp's dispatcher `xdp_dispatcher`"
            assert f"(id {before.id}, native, since {time.strftime('%H:')}" in str(error.value)
            assert name in str(error.value)
            assert name == FILTER or REFUSALS[kernel()] in str(error.value)
            assert "tap0@tc-ingress" in error.value.help
            assert carried() == before
        with Flow.create().populate(COUNTS_AT_TC).instantiate() as at_tc:
            at_tc.activate()
            send(network, 5)
            assert at_tc.stats().ledger.counted == 5
    assert calls.attached_xdp(interfaces.find("tap0").index)[0] == 0


def test_others_come_and_go_while_we_are_a_component(network: Network, tools: Tools) -> None:
    with tools.filter():
        needs_chain()
        with Flow.create().populate(COUNTS).instantiate() as flow:
            flow.activate()
            tools.run("xdp-filter", "unload", "tap0")
            assert tools.components() == [ENTRY_NAME]
            send(network, 5)
            assert flow.stats().ledger.counted == 10
            tools.run("xdp-filter", "load", "tap0")
            assert tools.components() == [FILTER, ENTRY_NAME]
            send(network, 5)
            assert flow.stats().ledger.counted == 20
            with Flow.create().populate("(device,tap0) -> (grab)").instantiate() as second:
                second.activate()
                send(network, 5)
                assert second.stats().ledger.delivered == 10
            assert flow.stats().ledger.counted == 30
        assert tools.components() == [FILTER]


@pytest.mark.feature("dispatcher, joined")
def test_a_killed_process_leaves_the_dispatcher(tools: Tools) -> None:
    with tools.filter():
        needs_chain()
        child = grabbing()
        wait_until(tools, [FILTER, ENTRY_NAME])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        wait_until(tools, [FILTER])


def test_what_a_crash_left_is_recognised_and_removed(tools: Tools) -> None:
    """The guardian is killed as well."""
    with tools.filter():
        needs_chain()
        child = grabbing()
        wait_until(tools, [FILTER, ENTRY_NAME])
        assert dispatcher.stale() == []
        guardian = next(
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdecimal() and f"\0{child}\0component\0" in (process / "cmdline").read_text()
        )
        for process in (guardian, child):
            os.kill(process, signal.SIGKILL)
        os.waitpid(child, 0)
        (left,) = dispatcher.stale()
        assert (left.tap, left.pid) == ("tap0@xdp", child)
        assert tools.components() == [FILTER, ENTRY_NAME]
        left.remove()
        assert tools.components() == [FILTER]
        assert dispatcher.stale() == []


def test_somebody_unloads_everything(network: Network, tools: Tools) -> None:
    with tools.filter():
        needs_chain()
        with Flow.create().populate("(device,tap0) -> (grab)").instantiate() as flow:
            flow.activate()
            tools.run("xdp-loader", "unload", "tap0", "--all")
            with pytest.raises(Exception, match="the interface is gone|our"):
                list(flow.batches(duration_s=2))
        tools.run("xdp-filter", "load", "tap0")


def test_two_processes_at_one_dispatcher(network: Network, tools: Tools) -> None:
    with tools.filter():
        needs_chain()
        with Flow.create().populate(COUNTS).instantiate() as flow:
            flow.activate()
            child = grabbing()
            try:
                wait_until(tools, [FILTER, ENTRY_NAME, ENTRY_NAME])
                send(network, 5)
                assert flow.stats().ledger.counted == 5
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            wait_until(tools, [FILTER, ENTRY_NAME])


@pytest.mark.feature("dispatcher")
def test_we_were_there_first(network: Network, tools: Tools) -> None:
    """xdp-tools say that the interface is taken, and our flow goes on."""
    with Flow.create().populate(COUNTS).instantiate() as flow:
        flow.activate()
        before = carried()
        tools.run("xdp-filter", "load", "tap0", fails=True)
        program = next(Path("/usr/lib").glob(f"*/bpf/{FILTER}.o"))
        for mode in ("native", "skb"):
            tools.run("xdp-loader", "load", "--mode", mode, "tap0", str(program), fails=True)
        tools.run("xdp-loader", "unload", "tap0", "--all", fails=None)  # some say that they could
        assert carried() == before
        send(network, 5)
        assert flow.stats().ledger.counted == 10


def wait_until(tools: Tools, components: list[str], within_s: float = 30.0) -> None:
    end_s = time.monotonic() + within_s
    while tools.components() != components:
        assert time.monotonic() < end_s, tools.components()
        time.sleep(0.1)
