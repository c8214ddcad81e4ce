"""Interfaces come and go while flows run: what is told, what is counted, and what is joined only if a policy says so."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffpf_bpf.capture.files import CaptureFile
from ffpf_bpf.errors import KernelError
from ffpf_bpf.flow import Flow, State
from ffpf_bpf.flow.chains import CHAINS
from ffpf_bpf.kernel import attachment, calls, watch
from ffpf_bpf.kernel.netlink import Link
from tests.foreign import TCX_NEXT, foreign
from tests.network import Network, ip, two_namespaces, udp, until

FFPF = str(Path(sys.executable).with_name("ffpf"))
pytestmark = pytest.mark.root
RULE = '[[rule]]\nname = "r"\nsubjects = ["*"]\ntaps = {taps}\nclasses = ["grab", "packetcount"]\n[[rule.allow]]\n'


@pytest.fixture(autouse=True)
def inside(network: Network) -> Iterator[None]:
    with network.enter():
        yield
        for _, name in socket.if_nameindex():
            if name not in ("lo", network.tap):
                subprocess.run(["ip", "link", "del", name], check=False, stderr=subprocess.DEVNULL)
    assert not CHAINS._chains
    until(lambda: not any(thread.name == "ffpf-watch" for thread in threading.enumerate()))


def following(expression: str, **options: object) -> Flow:
    return Flow.create(follow=True, **options).populate(expression).instantiate().activate()  # type: ignore[arg-type]


def told(flow: Flow) -> list[tuple[str, str]]:
    return [(event.tap, event.what) for event in flow.events]


def link(*words: str) -> None:
    ip("link", *words)


def rename(old: str, new: str) -> None:
    link("set", old, "down")
    link("set", old, "name", new)
    link("set", new, "up")


def veth(name: str) -> None:
    link("add", name, "type", "veth", "peer", "name", f"{name}p")
    link("set", name, "up")
    link("set", f"{name}p", "up")


def modes(flow: Flow) -> dict[str, str]:
    return {tap["tap"]: tap["mode"] for tap in flow.taps}


def test_down_up_and_mtu_are_told_and_nothing_is_lost(network: Network) -> None:
    with Flow.create().populate("(device,tap0) -> (grab)").instantiate().activate() as flow:
        network.send([udp(80)] * 3)
        link("set", "tap0", "down")
        link("set", "tap0", "up")
        link("set", "tap0", "mtu", "1400")
        until(lambda: len(flow.events) == 3)
        link("set", "tap0", "mtu", "1500")
        network.send([udp(80)] * 4)
        assert len(list(flow.packets(duration_s=0.3))) == 7
        assert [str(event) for event in flow.events] == [
            "tap0: the interface is down",
            "tap0: the interface is up",
            "tap0: the MTU is 1400 now, it was 1500",
            "tap0: the MTU is 1500 now, it was 1400",
        ]
        assert [event.number for event in flow.events] == [1, 2, 3, 4]
        assert abs(flow.events[-1].time_ns - time.time_ns()) < 60e9
    assert flow.stats().ledger.seen == 7


@pytest.mark.parametrize("hook", ["", "@tc-ingress", "cls_bpf"])
def test_a_renamed_interface_is_no_tap_of_that_name(
    network: Network, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow leaves it: a policy that allows `tap0` says nothing of `other0`."""
    if hook == "cls_bpf":
        monkeypatch.setenv(attachment.FORCED, hook)
        hook = "@tc-ingress"
    tap = f"tap0{hook}"
    with Flow.create().populate(f"(device,{tap}) -> (packetcount)").instantiate().activate() as flow:
        network.send([udp(80)] * 3)
        rename("tap0", "other0")
        try:
            until(lambda: modes(flow) == {tap: "absent"})
            network.send([udp(80)] * 3)
            with pytest.raises(KernelError) as error:
                list(flow.batches(duration_s=5))
            assert error.value.message == "the interface was renamed to `other0`"
            assert flow.stats().ledger.counted == 3
            assert flow.state is State.ACTIVE
            flow.pause(wait=True)
            flow.activate()
        finally:
            rename("other0", "tap0")
    assert modes(flow) == {tap: "absent"}


@pytest.mark.parametrize("hook", ["", "@tc-ingress", "cls_bpf"])
def test_what_returns_is_grabbed_from_again(network: Network, hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if hook == "cls_bpf":
        monkeypatch.setenv(attachment.FORCED, hook)
        hook = "@tc-ingress"
    tap = f"tap0{hook}"
    with following(f"(device,{tap}) -> (grab)") as flow:
        network.send([udp(1)] * 2)
        rename("tap0", "other0")
        until(lambda: ("tap0" + hook, "renamed") in told(flow))
        network.send([udp(2)] * 3)
        rename("other0", "tap0")
        until(lambda: (tap, "attached") in told(flow))
        network.send([udp(3)] * 4)
        time.sleep(0.1)
        ports = [int.from_bytes(packet.data[36:38], "big") for packet in flow.packets(duration_s=0.3)]
        assert ports == [1, 1, 3, 3, 3, 3]
        ledger = flow.stats().ledger
        assert (ledger.seen, ledger.delivered, ledger.balances) == (6, 6, True)
        assert flow.interfaces == (tap,)


def test_one_that_is_deleted_and_made_anew() -> None:
    veth("tap5")
    with following("(device,tap5) -> (packetcount)") as flow:
        link("del", "tap5")
        until(lambda: ("tap5", "gone") in told(flow))
        list(flow.batches(duration_s=0.1))  # a flow that follows does not end
        veth("tap5")
        until(lambda: ("tap5", "attached") in told(flow))
        assert modes(flow) == {"tap5": "native"}


def test_what_is_not_there_yet_is_waited_for() -> None:
    with following("(device,tap5) | (device,tap6@tc-egress) -> (packetcount)") as flow:
        assert modes(flow) == {"tap5": "absent", "tap6@tc-egress": "absent"}
        veth("tap6")
        until(lambda: modes(flow)["tap6@tc-egress"] in ("tcx", "cls_bpf"))
        assert modes(flow)["tap5"] == "absent"
    with pytest.raises(KernelError, match="no interface `tap5`"):
        Flow.create().populate("(device,tap5)").instantiate()
    with pytest.raises(KernelError, match=r"no interface matches `veth\*`"):
        Flow.create().populate("(device,veth*)").instantiate()


@pytest.mark.parametrize("hook", ["", "@tc-ingress"])
def test_one_that_is_moved_to_another_namespace_is_left(network: Network, hook: str) -> None:
    """An XDP program goes with it: without this, the flow would see the packets of a namespace that it did not name."""
    with two_namespaces("moved") as other, following(f"(device,tap0{hook}) -> (packetcount)") as flow:
        network.send([udp(80)] * 3)
        link("set", "tap0", "netns", other.inside, "name", "tap9")
        moved, attached = (f"tap0{hook}", "moved"), (f"tap0{hook}", "attached")
        until(lambda: moved in told(flow))
        ip("-n", other.inside, "link", "set", "tap9", "up")
        network.send([udp(80)] * 5)
        assert flow.stats().ledger.seen == 3
        ip("-n", other.inside, "link", "set", "tap9", "netns", network.inside, "name", "tap0")
        link("set", "tap0", "up")
        until(lambda: attached in told(flow)[told(flow).index(moved) :])

        def is_seen() -> bool:
            network.send([udp(80)])  # lost as long as the peer has not noticed that there is a carrier
            return flow.stats().ledger.seen > 3

        until(is_seen)
        seen = flow.stats().ledger.seen
        network.send([udp(80)] * 2)
        until(lambda: flow.stats().ledger.seen == seen + 2)


def test_a_namespace_that_is_deleted_is_let_go_of() -> None:
    """A flow that held on to it would keep its interfaces, and those at their other ends."""
    with two_namespaces("deleted") as other, following("(device,tap0@tc-ingress)", netns=other.inside) as flow:
        ip("netns", "delete", other.inside)
        until(lambda: [event.said for event in flow.events] == ["its network namespace is gone"])

        def peers() -> str:
            words = ["ip", "-n", other.outside, "-o", "link"]
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout

        until(lambda: "peer0" not in peers())
        ip("netns", "add", other.inside)
        ip("-n", other.inside, "link", "add", "tap0", "type", "veth", "peer", "name", "peer0")
        until(lambda: told(flow)[1:2] == [(f"{other.inside}/tap0@tc-ingress", "attached")])


def test_a_glob_is_every_interface_that_it_matches(network: Network) -> None:
    with following("(device,t[a-m]p*) -> (grab,snaplen=60)") as flow:
        assert flow.interfaces == ("tap0",)
        veth("tap5")
        until(lambda: modes(flow) == {"tap0": "native", "tap5": "native"} or modes(flow).get("tap5p"))
        until(lambda: len(modes(flow)) == 3)
        assert set(flow.interfaces) == {"tap0", "tap5", "tap5p"}
        network.send([udp(1)] * 2)
        with_socket("tap5", [udp(2)] * 3)
        time.sleep(0.2)
        got = sorted(
            (packet.interface, int.from_bytes(packet.data[36:38], "big"))
            for packet in flow.packets(duration_s=0.3)
            if packet.data[12:14] == b"\x08\x00"
        )
        assert got == [("tap0", 1)] * 2 + [("tap5p", 2)] * 3
        link("del", "tap5")
        until(lambda: modes(flow) == {"tap0": "native", "tap5": "absent", "tap5p": "absent"})
    ledger = flow.stats().ledger
    assert ledger.seen >= 5 and ledger.balances


def with_socket(interface: str, frames: list[bytes]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for frame in frames:
            raw.send(frame)


def test_a_glob_without_follow_takes_what_is_there(network: Network) -> None:
    with Flow.create().populate("(device,*) -> (packetcount)").instantiate().activate() as flow:
        assert set(modes(flow)) == {"lo", "tap0"}
        veth("tap5")
        time.sleep(0.3)
        assert set(modes(flow)) == {"lo", "tap0"}
        network.send([udp(1)] * 2)
        time.sleep(0.1)
        assert flow.stats().ledger.seen == 2


def test_flows_that_follow_share_nothing(network: Network) -> None:
    """Their taps differ, though they have the same names."""
    with (
        following("(device,tap*) -> (sampler,2) -> (packetcount)") as one,
        following("(device,tap*) -> (sampler,2) -> (packetcount)") as two,
        Flow.create().populate("(device,tap0) -> (sampler,2) -> (packetcount)").instantiate() as three,
    ):
        for flow in (one, two, three):
            assert not flow.stats().node("sampler1").shared
        network.send([udp(1)] * 4)
        assert [flow.stats().ledger.seen for flow in (one, two, three)] == [4, 4, 0]


def test_others_on_the_tap_go_on_or_end_each_by_itself(network: Network) -> None:
    with following("(device,tap0) -> (packetcount)") as one:
        with Flow.create().populate("(device,tap0) | (device,lo)").instantiate().activate() as two:
            rename("tap0", "other0")
            until(lambda: modes(two) == {"tap0": "absent", "lo": "generic"})
            two.pause()
            rename("other0", "tap0")
            until(lambda: modes(one) == {"tap0": "native"})
            assert modes(two)["tap0"] == "absent"
            two.activate()
        network.send([udp(1)] * 3)
        time.sleep(0.1)
        assert one.stats().ledger.seen == 3


def test_what_others_detach_is_told_and_not_fought(network: Network) -> None:
    with following("(device,tap0) -> (packetcount)") as flow:
        grabber = flow.grabber
        assert grabber is not None
        calls.detach(grabber._chains[0].tap._attachment._link.fileno)  # type: ignore[attr-defined]
        list(flow.batches(duration_s=4))
        assert told(flow) == [("tap0", "detached")]
        assert modes(flow) == {"tap0": "absent"}


def test_what_cannot_be_attached_is_told_once_and_tried_when_it_changes(network: Network) -> None:
    with (
        following("(device,tap5) -> (packetcount)") as flow,
        foreign(TCX_NEXT),
    ):
        link("add", "tap5", "type", "veth", "peer", "name", "tap5p")
        until(lambda: ("tap5", "attached") in told(flow))
    with following("(device,veth*) -> (packetcount)") as flow:
        with pytest.MonkeyPatch.context() as patch:

            def no(*_: object) -> int:
                raise KernelError("no memory", errno=12)

            patch.setattr(calls, "attach_xdp", no)
            veth("veth5")
            until(lambda: ("veth5", "refused") in told(flow))
            said = "not attached: cannot attach at XDP: cannot allocate memory"
            assert said in [event.said for event in flow.events]
            time.sleep(0.3)
            before = len(flow.events)
        link("set", "veth5", "mtu", "1400")
        until(lambda: ("veth5", "attached") in told(flow))
        assert before <= 4


def test_each_tap_that_comes_is_decided_on(network: Network, tmp_path: Path) -> None:
    """What the policies forbid by then is not attached; the flow goes on where it is."""
    rule, journal = tmp_path / "rule.toml", tmp_path / "journal"
    rule.write_text(RULE.format(taps='["tap*"]'))
    veth("tap5")
    with following("(device,tap?) -> (packetcount)", policies=tmp_path, audit=journal) as flow:
        assert set(modes(flow)) == {"tap0", "tap5"}
        veth("tap6")
        until(lambda: ("tap6", "attached") in told(flow))
        rule.write_text(RULE.format(taps='["tap0", "tap5"]'))
        rename("tap5", "tap7")
        until(lambda: ("tap7", "refused") in told(flow))
        assert modes(flow) == {"tap0": "native", "tap5": "absent", "tap6": "native"}
        link("del", "tap7")
        rule.write_text("no policy")
        link("set", "tap6", "down")
        link("set", "tap6", "name", "tap7")
        until(lambda: told(flow).count(("tap7", "refused")) == 2)
        link("del", "tap7")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    decided = [line["accepted"] for line in lines if "accepted" in line]
    assert decided[:2] == [True, True] and len(decided) >= 4 and not any(decided[2:])
    assert [line["tap"] for line in lines if "tap" in line] == ["tap0", "tap5", "tap6"]


def test_a_rule_must_allow_whatever_a_glob_may_match(tmp_path: Path) -> None:
    from ffpf_bpf.errors import Rejected

    (tmp_path / "rule.toml").write_text(RULE.format(taps='["tap0", "tap5"]'))
    with pytest.raises(Rejected) as error:
        Flow.create(policies=tmp_path).populate("(device,tap?) -> (packetcount)").instantiate()
    assert "device1: `tap?@xdp` may be a tap that is not allowed" in str(error.value)


def test_an_interface_that_is_renamed_while_it_is_joined_is_left(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policies were asked about another name."""
    original = calls.attach_xdp

    def slow(program: int, index: int, flags: int) -> int:
        rename("tap5", "other0")
        return original(program, index, flags)

    with following("(device,tap5) -> (packetcount)") as flow:
        monkeypatch.setattr(calls, "attach_xdp", slow)
        link("add", "tap5", "type", "veth", "peer", "name", "tap5p")
        until(lambda: ("tap5", "renamed") in told(flow))
        assert modes(flow) == {"tap5": "absent"}
        assert calls.attached_xdp(index_of("other0"))[0] == 0


def index_of(name: str) -> int:
    return socket.if_nametoindex(name)


def test_closing_while_interfaces_come_and_go_leaves_nothing() -> None:
    for number in range(12):
        veth("tap5")
        flow = following("(device,tap*) -> (packetcount)")
        link("del", "tap5")
        if number % 2:
            veth("tap6")
        time.sleep(0.01 * (number % 5))
        flow.close()
        if number % 2:
            link("del", "tap6")


def test_a_forgotten_flow_is_closed() -> None:
    import gc

    flow = following("(device,tap0)")
    with pytest.warns(ResourceWarning, match="was not closed"):
        del flow
        gc.collect()
    assert not CHAINS._chains


def test_a_child_of_a_fork_watches_nothing(network: Network) -> None:
    with following("(device,tap0) -> (packetcount)") as flow:
        child = os.fork()
        if child == 0:
            os._exit(0 if not watch.WATCHER._listeners and flow.state is State.CLOSED else 1)
        assert os.waitpid(child, 0)[1] == 0
        link("set", "tap0", "mtu", "1400")
        until(lambda: told(flow) == [("tap0", "mtu")])
        link("set", "tap0", "mtu", "1500")


def test_nothing_is_polled_by_the_clock(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[object] = []

    class Poll:
        def __init__(self) -> None:
            self._poll = real()

        def register(self, *arguments: int) -> None:
            self._poll.register(*arguments)

        def poll(self, *timeout: object) -> list[tuple[int, int]]:
            waits.append(timeout)
            return self._poll.poll(*timeout)  # type: ignore[arg-type]

    real = select.poll
    monkeypatch.setattr(watch.select, "poll", Poll)
    with following("(device,tap0) -> (packetcount)"):
        time.sleep(1.2)
    assert 1 <= len(waits) <= 3
    assert set(waits) == {()}


def test_changes_that_are_lost_are_looked_up(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel drops events when too many wait: then what there is counts."""

    def lost(_: object) -> Iterator[Link]:
        raise OSError(105, "no buffer space")
        yield

    with following("(device,tap5) -> (packetcount)") as flow:
        monkeypatch.setattr(watch.LinkMonitor, "changes", lost)
        real, stopped = watch.LinkMonitor.changes, time.monotonic()
        assert real is lost and stopped
        veth("tap5")
        until(lambda: ("tap5", "attached") in told(flow))
        monkeypatch.undo()


def test_want_of_descriptors_is_told_and_undone(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "too many open files")

    flow = Flow.create().populate("(device,tap0) -> (packetcount)")
    monkeypatch.setattr(watch, "open", refuse, raising=False)
    with pytest.raises(KernelError, match="cannot watch interfaces: too many open files\nhelp: raise the limit"):
        flow.instantiate()
    assert flow.state is State.POPULATED and not CHAINS._chains
    monkeypatch.undo()
    with flow.instantiate().activate():
        network.send([udp(1)] * 2)
        time.sleep(0.1)
        assert flow.stats().ledger.seen == 2


# The command line.


def test_run_tells_and_writes_what_comes(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "all.pcapng"
    words = ["run", "(device,tap*) -> (grab,snaplen=80)", "(device,lo) -> (grab,snaplen=80)", "--follow", "--json"]
    run = subprocess.Popen([FFPF, *words, "-w", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert run.stderr is not None and run.stdout is not None
        run.stderr.readline()
        time.sleep(0.5)
        network.send([udp(1)] * 2)
        veth("tap5")
        while "flow1: tap5: attached (native)" not in (line := run.stderr.readline()):
            assert line, "it ended"
        until(lambda: calls.attached_xdp(index_of("tap5p"))[0])
        with_socket("tap5", [udp(2)] * 3)
        time.sleep(0.3)
        link("del", "tap5")
        time.sleep(0.3)
        run.terminate()
        out, err = run.communicate(timeout=20)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 143
    assert "ffpf: flow1: tap5: the interface is gone\n" in err
    flows = json.loads(out)["flows"]
    events = [(event["tap"], event["event"]) for event in flows[0]["events"]]
    assert ("tap5p", "attached") in events and ("tap5", "gone") in events
    assert "events" not in flows[1]
    with CaptureFile(str(path)) as file:
        packets = [
            (file.interfaces[record["interface"]], int.from_bytes(bytes(record["data"][36:38]), "big"))
            for batch in file.batches()
            for record in batch.records
            if bytes(record["data"][12:14]) == b"\x08\x00"
        ]
        assert file.interfaces[:2] == ("lo", "tap0")
    assert sorted(packets) == [("tap0", 1)] * 2 + [("tap5p", 2)] * 3
    shown = subprocess.run(["capinfos", "-M", str(path)], capture_output=True, text=True, check=True)
    assert "Number of packets:   5" in shown.stdout or len(packets) == 5
    # What is in the file is found by the same glob.
    again = subprocess.run(
        [FFPF, "run", "(device,tap*) -> (packetcount)", "-r", str(path), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(again.stdout)["flows"][0]["ledger"]["counted"] >= 5
