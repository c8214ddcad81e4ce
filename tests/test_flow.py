"""The life cycle on the real kernel: states, counts, chains, and traffic that must not be lost."""

from __future__ import annotations

import errno
import mmap
import threading
import time
from collections.abc import Iterator

import pytest

from ffpf_bpf.errors import IllegalState, KernelError, TapBusy
from ffpf_bpf.flow import Flow, State
from ffpf_bpf.flow.chains import CHAINS
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import Grab
from ffpf_bpf.graph.memory import CACHE_LINE
from ffpf_bpf.kernel import calls
from tests.network import Network, udp

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def inside(network: Network) -> Iterator[None]:
    with network.enter():
        yield


def flow(text: str, **options: int) -> Flow:
    return Flow.create().populate(text, **options).instantiate()


def test_states_and_what_they_allow() -> None:
    made = Flow.create()
    assert made.state is State.CREATED
    with pytest.raises(IllegalState, match=r"`activate` is not allowed: the flow is created") as error:
        made.activate()
    assert "`populate`, `close`" in error.value.help
    made.populate("(device,tap0)").populate(Device("tap0") >> Bpf("udp"))
    with pytest.raises(IllegalState, match="the flow is populated"):
        made.pause()
    made.instantiate()
    assert made.state is State.INSTANTIATED
    with pytest.raises(IllegalState, match="`populate` is not allowed"):
        made.populate("(device,tap0)")
    with pytest.raises(IllegalState, match="`instantiate` is not allowed"):
        made.instantiate()
    made.activate()
    with pytest.raises(IllegalState, match="`activate` is not allowed: the flow is active"):
        made.activate()
    made.pause()
    made.activate()
    made.close()
    made.close()
    assert made.state is State.CLOSED
    with pytest.raises(IllegalState, match="the flow is closed"):
        made.activate()


def test_counts_only_while_active(network: Network) -> None:
    with flow('(device,tap0) -> (bpf,"udp port 80") -> (packetcount)') as made:
        network.send([udp(80)] * 10)
        assert made.stats().ledger.seen == 0
        made.activate()
        network.send([udp(80)] * 10 + [udp(81)] * 5)
        made.pause(wait=True)
        network.send([udp(80)] * 10)
        made.activate()
        network.send([udp(80)] * 3)
        made.pause(wait=True)
        ledger = made.stats().ledger
    assert (ledger.seen, ledger.counted, ledger.filtered) == (18, 13, 5)


def test_every_packet_has_one_fate(network: Network) -> None:
    expression = (
        '(device,tap0) -> ((bpf,"udp port 80") -> (bytecount as web))'
        ' | ((sampler,4) -> (bpf,"udp port 53") -> (grab,snaplen=64))'
        ' | (!(bpf,"udp portrange 50-90") & (bpf,ip) -> (packetcount) -> (grab,snaplen=96))'
    )
    with flow(expression) as made:
        made.activate()
        network.send([udp(80)] * 8 + [udp(53)] * 8 + [udp(200)] * 8 + [udp(60)] * 8)
        made.pause(wait=True)
        packets = [packet for batch in made.poll() for packet in batch.packets(made.interfaces)]
        statistics = made.stats()
    ledger = statistics.ledger
    assert ledger.balances
    # 1 in 4 of all 32 reaches the DNS filter; of the 8 to port 53, 2 get through. Port 60: sampled out, or filtered.
    assert (ledger.seen, ledger.counted, ledger.delivered, ledger.sampled, ledger.filtered) == (32, 8, 10, 12, 2)
    assert sorted(len(packet.data) for packet in packets) == [64] * 2 + [74] * 8
    nodes = {node.id: node for node in statistics.nodes}
    assert nodes["web"].counts == {"bytes": 8 * len(udp(80))}
    assert (nodes["sampler1"].packets_in, nodes["sampler1"].packets_out) == (32, 8)
    assert (nodes["packetcount1"].packets_in, nodes["packetcount1"].counts) == (8, {"packets": 8})


def test_a_packet_that_reaches_two_sinks_is_delivered_once_at_the_larger_snaplen(network: Network) -> None:
    with flow("(device,tap0) -> ((bpf,udp) -> (grab,snaplen=64)) | ((bpf,port 53) -> (grab,snaplen=200))") as made:
        made.activate()
        network.send([udp(53, b"y" * 300), udp(80, b"z" * 300)])
        made.pause(wait=True)
        lengths = [(len(p.data), p.length) for batch in made.poll() for p in batch.packets(made.interfaces)]
    assert lengths == [(200, 342), (64, 342)]


def test_full_ring_is_counted_to_the_last_packet(network: Network) -> None:
    with flow("(device,tap0) -> (grab,snaplen=96)", buffer_bytes=4096) as made:
        made.activate()
        network.send([udp(80)] * 100)
        made.pause(wait=True)
        held = made.stats().ledger.delivered
        batches = [batch.copy() for batch in made.poll()]
        ledger = made.stats().ledger
    assert sum(map(len, batches)) == held == ledger.delivered
    assert ledger.ring_full == 100 - held > 0
    assert sum(batch.lost for batch in batches) == ledger.ring_full


def test_packets_keep_bytes_order_and_time(network: Network) -> None:
    frames = [udp(number + 1, bytes([number % 256]) * (number % 500)) for number in range(3000)]
    with flow("(device,tap0)", buffer_bytes=16 << 20) as made:
        made.activate()
        before = time.time_ns()
        network.send(frames)
        made.pause(wait=True)
        after = time.time_ns()
        packets = [packet for _ in range(10) for batch in made.poll() for packet in batch.packets(made.interfaces)]
    packets.sort(key=lambda packet: packet.time_ns)
    assert [packet.data for packet in packets] == frames
    assert all(before - 1_000_000 < packet.time_ns < after + 1_000_000 for packet in packets)
    assert {packet.interface for packet in packets} == {"tap0"}


def test_joining_and_leaving_loses_no_packet_of_the_others(network: Network) -> None:
    """Traffic runs while 25 flows come and 18 go; the others count every packet exactly once."""
    sent: list[int] = []
    changed = threading.Event()
    with flow("(device,tap0) -> (packetcount)") as steady, flow("(device,tap0) -> (grab,snaplen=64)") as grabbing:
        steady.activate()
        grabbing.activate()
        read: list[int] = []
        done = threading.Event()

        def consume() -> None:
            for batch in grabbing.batches(idle=done.is_set):
                read.append(len(batch))

        def send() -> None:
            with network.sender() as raw:
                frame = udp(80)
                while not changed.is_set():
                    raw.send(frame)
                    sent.append(1)

        consumer, sender = threading.Thread(target=consume), threading.Thread(target=send)
        consumer.start()
        sender.start()
        others: list[Flow] = []
        for change in range(25):
            others.append(flow(f'(device,tap0) -> (bpf,"udp port {70 + change}") -> (packetcount)'))
            others[-1].activate()
            if len(others) > 7:
                others.pop(change % 5).close()
        changed.set()
        sender.join()
        for other in others:
            other.close()
        steady.pause(wait=True)
        grabbing.pause(wait=True)
        done.set()
        consumer.join()
        ledgers = steady.stats().ledger, grabbing.stats().ledger
    frames = len(sent)
    print(f"43 changes of the chain under {frames} packets")
    assert frames > 1000
    assert ledgers[0].seen == ledgers[0].counted == frames
    assert ledgers[1].delivered + ledgers[1].ring_full == frames
    assert sum(read) == ledgers[1].delivered


def test_many_flows_share_segments_and_each_counts_its_own(network: Network) -> None:
    flows = [flow(f'(device,tap0) -> (bpf,"udp port {100 + number}") -> (packetcount)') for number in range(20)]
    try:
        chain = next(iter(CHAINS._chains.values()))
        assert len(chain.tap.segments) <= 5
        for made in flows:
            made.activate()
        flows[3].pause()
        flows.pop(7).close()
        network.send([udp(100 + number % 20) for number in range(200)])
        counted = [made.stats().ledger.counted for made in flows]
    finally:
        for made in flows:
            made.close()
    assert counted == [0 if index == 3 else 10 for index in range(19)]


def test_flows_lie_at_different_places_of_their_pages() -> None:
    """Or what a packet touches of each would compete for a few lines of the CPU's cache."""
    flows = [flow("(device,tap0) -> (packetcount as hits)") for _ in range(16)]
    try:
        places = [made.node("hits").mbuf.__array_interface__["data"][0] % mmap.PAGESIZE for made in flows]
    finally:
        Flow.close_all(flows)
    assert len({place // CACHE_LINE for place in places}) == len(flows)


def test_one_flow_on_two_interfaces(network: Network) -> None:
    with flow("(device,tap0) | (device,lo) -> (bpf,udp) -> (packetcount) -> (grab,snaplen=64)") as made:
        assert [tap["tap"] for tap in made.taps] == ["tap0", "lo"]
        assert made.taps[1]["mode"] == "generic"
        made.activate()
        network.send([udp(80)] * 4)
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as local:
            for _ in range(3):
                local.sendto(b"hello", ("127.0.0.1", 9))
        made.pause(wait=True)
        names = sorted(p.interface for _ in range(2) for batch in made.poll() for p in batch.packets(made.interfaces))
        nodes = {node.id: node.packets_out for node in made.stats().nodes}
    assert names == ["lo"] * 3 + ["tap0"] * 4
    assert nodes["device1"] == 4
    assert nodes["device2"] >= 3


def test_instantiate_is_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second tap does not exist: the first one is left free again (and the fixture counts the kernel's objects)."""
    with pytest.raises(KernelError, match="no interface `tap7`"):
        flow("(device,tap0) | (device,tap7) -> (packetcount)")

    def refused(*_: int) -> int:
        raise KernelError("no room", errno=errno.ERANGE)

    monkeypatch.setattr(calls, "attach_tcx", refused)
    with pytest.raises(KernelError, match="no room") as error:
        flow("(device,tap0) | (device,tap0@tc-egress) -> (packetcount)")
    assert error.value.where == "tap0@tc-egress"
    assert not CHAINS._chains


def test_exceptions_inside_with_leave_nothing() -> None:
    with pytest.raises(ZeroDivisionError), flow("(device,tap0)") as made:
        made.activate()
        raise ZeroDivisionError
    assert made.state is State.CLOSED
    assert made.stats().ledger.balances


def test_the_final_counts_outlive_the_flow(network: Network) -> None:
    with flow("(device,tap0) -> (packetcount)") as made:
        made.activate()
        network.send([udp(80)] * 7)
    assert made.stats().ledger.counted == 7


def test_a_foreign_program_is_refused_by_name_and_never_evicted(network: Network) -> None:
    from ffpf_bpf.kernel import calls, interfaces
    from ffpf_bpf.kernel.maps import Descriptor

    with Descriptor(calls.load_program("somebody", calls.PASS_PROGRAM)) as program:
        index = interfaces.find("tap0").index
        with Descriptor(calls.attach_xdp(program.fileno, index, calls.XDP_FLAGS_DRV_MODE)):
            held = calls.attached_xdp(index)
            with pytest.raises(
                TapBusy, match=rf"tap0@xdp: .*`somebody` \(id {held[0]}, native, since \d\d:\d\d\)"
            ) as error:
                flow("(device,tap0)")
            assert "not evicted" in error.value.help
            assert calls.attached_xdp(index) == held


def test_python_and_text_make_the_same_flow() -> None:
    text = Flow.create().populate('(device,tap0) -> (bpf,"udp") -> (grab,snaplen=96)')
    python = Flow.create().populate(Device("tap0") >> Bpf("udp") >> Grab(snaplen=96))
    assert text.definition == python.definition
    assert text.definition.digest == python.definition.digest


def test_waiting_works_without_membarrier(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    from ffpf_bpf.kernel import calls

    monkeypatch.setattr(calls, "MEMBARRIER_NUMBER", {})
    with flow("(device,tap0) -> (packetcount)") as made:
        made.activate()
        network.send([udp(80)] * 7)
        made.pause(wait=True)
        network.send([udp(80)] * 7)
        assert made.stats().ledger.seen == 7


def test_an_interface_made_anew_or_renamed_is_not_taken_for_the_old_one(network: Network) -> None:
    import subprocess

    with flow("(device,tap0) -> (packetcount)") as old:
        subprocess.run(["ip", "link", "set", "tap0", "down"], check=True)
        subprocess.run(["ip", "link", "set", "tap0", "name", "tap1"], check=True)
        try:
            with flow("(device,tap1) -> (packetcount)") as new:
                new.activate()
                with pytest.raises(KernelError, match="tap0: the interface was renamed to `tap1`"):
                    list(old.batches(duration_s=5))
                assert [tap["mode"] for tap in (*old.taps, *new.taps)] == ["absent", "native"]
        finally:
            subprocess.run(["ip", "link", "set", "tap1", "name", "tap0"], check=True)
            subprocess.run(["ip", "link", "set", "tap0", "up"], check=True)


def test_a_forgotten_flow_warns_and_is_closed() -> None:
    import gc

    made = flow("(device,tap0) -> (packetcount)")
    with pytest.warns(ResourceWarning, match="was not closed"):
        del made
        gc.collect()
    assert not CHAINS._chains


def test_what_was_not_read_before_a_break_comes_next(network: Network) -> None:
    with flow("(device,tap0)") as made:
        made.activate()
        network.send([udp(port) for port in range(1, 11)])
        seen = []
        for packet in made.packets(idle=lambda: True):
            seen.append(packet.data)
            if len(seen) == 3:
                break
        seen += [packet.data for packet in made.packets(idle=lambda: True)]
        assert seen == [udp(port) for port in range(1, 11)]
        network.send([udp(80)] * 4)
        assert [len(batch) for batch in made.poll()] == [4]
        first, second = made.poll(), made.poll()
        assert [next(first, None), next(second, None)] == [None, None]


def test_a_child_of_a_fork_takes_nothing_from_its_parent(network: Network) -> None:
    import os

    with flow("(device,tap0) -> (packetcount)") as made:
        made.activate()
        child = os.fork()
        if child == 0:
            try:
                closed = made.state is State.CLOSED and not CHAINS._chains
                made.close()
                os._exit(0 if closed else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        network.send([udp(80)] * 8)
        made.pause(wait=True)
        assert made.stats().ledger.counted == 8


def test_a_tap_is_free_after_close_though_a_child_lives(network: Network) -> None:
    import os
    import signal

    made = flow("(device,tap0) -> (packetcount)")
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        made.close()
        with flow("(device,tap0) -> (packetcount)"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_an_interface_that_goes_is_told(network: Network) -> None:
    import subprocess

    subprocess.run(["ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1"], check=True)
    with flow("(device,gone0)") as made:
        made.activate()
        subprocess.run(["ip", "link", "del", "gone0"], check=True)
        with pytest.raises(KernelError, match="gone0: the interface is gone"):
            for _ in made.batches(duration_s=5):
                pass


def test_another_name_of_an_interface_is_refused(network: Network) -> None:
    import subprocess

    subprocess.run(["ip", "link", "property", "add", "dev", "tap0", "altname", "alias0"], check=True)
    try:
        with pytest.raises(KernelError, match="`alias0` is another name of `tap0`"):
            flow("(device,alias0)")
    finally:
        subprocess.run(["ip", "link", "property", "del", "dev", "tap0", "altname", "alias0"], check=True)


def test_closing_many_at_once_is_one_change(network: Network) -> None:
    made = [flow(f"(device,tap0) -> (sampler,{number + 1}) -> (packetcount)") for number in range(30)]
    made[0].activate()
    network.send([udp(80)] * 5)
    Flow.close_all(made)
    assert made[0].stats().ledger.counted == 5
    assert {one.state for one in made} == {State.CLOSED}
