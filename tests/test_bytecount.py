"""`bytecount`: bytes on the wire, whatever is grabbed of them, on every CPU."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.graph.classes.bytecount import Bytecount
from tests.corpus.packets import ether, ipv4, packets, udp
from tests.network import Network
from tests.nodes import CPUS, assert_forms, live, needs_two_cpus, refusal, send_at_once
from tests.segment import loaded

FRAME = ether(0x0800, ipv4(17, udp(1, 53, bytes(100))))


def test_text_and_python() -> None:
    assert_forms("(bytecount)", Bytecount(), "(bytecount)", "bytecount()")
    assert_forms("(ByteCount as load,,8)", Bytecount(name="load"), "(bytecount as load)", "bytecount(name='load')")
    assert_forms("(bytecount,,16)", Bytecount(mbuf_bytes=16), "(bytecount,,16)", "bytecount(mbuf_bytes=16)")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(bytecount,wire)", "`bytecount` takes no expression, got `wire`"),
        ("(bytecount,,7)", "7 bytes of memory do not suit a `bytecount`"),
        ("(bytecount,,1048577)", "1048577 bytes of memory do not suit a `bytecount`"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.root
def test_bytes_of_every_packet_count_and_it_goes_on() -> None:
    """As long as it is on the wire: not what its IP header says, and not what is grabbed."""
    frames = [*packets(2), *(bytes(length) for length in range(14, 100)), ether(0x0800, ipv4(17, b"", length=65_535))]
    with loaded("(device,tap0) -> (bytecount as load) -> (grab,snaplen=20)") as (flow,):

        @settings(max_examples=50)
        @given(st.lists(st.sampled_from(frames)))
        def count(sample: list[bytes]) -> None:
            before = flow.statistics().node("load").counts["bytes"]
            for frame in sample:
                flow.run(frame)
            assert flow.statistics().node("load").counts["bytes"] - before == sum(map(len, sample))
            assert [p.length for b in flow.batches() for p in b.packets(("tap0",))] == [len(frame) for frame in sample]

        count()


@pytest.mark.root
def test_the_application_may_set_the_count() -> None:
    with loaded("(device,tap0) -> (bytecount as load,,16)") as (flow,):
        words = flow.mbuf("load").view("u8")
        words[0] = (1 << 63, 9)
        flow.run(FRAME)
        assert words[0].tolist() == [(1 << 63) + len(FRAME), 9]
        words[0, 0] = (1 << 64) - 1
        flow.run(FRAME)
        assert words[0, 0] == len(FRAME) - 1
        del words


@needs_two_cpus
@pytest.mark.root
def test_exact_when_two_cpus_count_at_once() -> None:
    times, sizes = 200_000, (60, 1_514)
    with loaded("(device,tap0) -> (bytecount as load)") as (flow,):
        flow.run_at_once({cpu: bytes(size) for cpu, size in zip(CPUS, sizes, strict=True)}, times)
        assert flow.mbuf("load").view("u8")[list(CPUS), 0].tolist() == [times * size for size in sizes]
        assert flow.statistics().node("load").counts == {"bytes": times * sum(sizes)}


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    other = ether(0x0806, bytes(46))
    with live(network, '(device,tap0) -> ((bpf,"udp port 53") -> (bytecount as dns)) | (bytecount as all)') as flow:
        network.send([FRAME] * 3 + [other] * 2)
        send_at_once(network, dict.fromkeys(CPUS, [FRAME] * 500))
        flow.pause(wait=True)
        statistics = flow.stats()
    dns = len(FRAME) * (3 + 500 * len(CPUS))
    assert statistics.node("dns").counts == {"bytes": dns}
    assert statistics.node("all").counts == {"bytes": dns + 2 * len(other)}
