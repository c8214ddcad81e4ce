"""`packetcount`: every packet once, whatever it holds, on every CPU."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.graph.classes.packetcount import Packetcount
from tests.corpus.packets import ether, ipv4, packets, udp
from tests.network import Network
from tests.nodes import CPUS, assert_forms, everywhere, live, needs_two_cpus, nowhere, refusal, send_at_once
from tests.segment import loaded

FRAME = ether(0x0800, ipv4(17, udp(1, 53)))


def test_text_and_python() -> None:
    assert_forms("(packetcount)", Packetcount(), "(packetcount)", "packetcount()")
    assert_forms(
        "(PacketCount as hits,,8)", Packetcount(name="hits"), "(packetcount as hits)", "packetcount(name='hits')"
    )
    assert_forms(
        "(packetcount,,64)", Packetcount(mbuf_bytes=64), "(packetcount,,64)", "packetcount(mbuf_bytes=64)"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(packetcount,1)", "`packetcount` takes no expression, got `1`"),
        ("(packetcount,,7)", "7 bytes of memory do not suit a `packetcount`"),
        ("(packetcount,,1048577)", "1048577 bytes of memory do not suit a `packetcount`"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.root
def test_every_packet_counts_and_goes_on() -> None:
    frames = [*everywhere(17, udp(1, 2)).values(), *nowhere(17, udp(1, 2)).values(), bytes(14), bytes(3_400)]
    with loaded("(device,tap0) -> (packetcount as all) -> (bpf,udp) -> (packetcount as some) -> (grab)") as (flow,):

        @settings(max_examples=50)
        @given(st.lists(st.sampled_from([*frames, *packets(1)])))
        def count(sample: list[bytes]) -> None:
            before = flow.statistics()
            for frame in sample:
                assert flow.run(frame) == frame
            after = flow.statistics()
            counted = after.node("all").counts["packets"] - before.node("all").counts["packets"]
            assert counted == len(sample) == after.ledger.seen - before.ledger.seen
            assert after.node("some").counts["packets"] == after.node("bpf1").packets_out

        count()


@pytest.mark.root
def test_the_application_may_set_the_count() -> None:
    with loaded("(device,tap0) -> (packetcount as hits,,24)") as (flow,):
        memory = flow.mbuf("hits")
        assert memory.shape[1] == 24
        words = memory.view("u8")
        words[0] = (1 << 40, 7, 8)
        for _ in range(3):
            flow.run(FRAME)
        assert words[0].tolist() == [(1 << 40) + 3, 7, 8], "it writes into its first 8 bytes only"
        words[0, 0] = (1 << 64) - 1
        flow.run(FRAME)
        assert words[0, 0] == 0
        del memory, words


@needs_two_cpus
@pytest.mark.root
def test_exact_when_two_cpus_count_at_once() -> None:
    times = 200_000
    with loaded("(device,tap0) -> (packetcount as hits)") as (flow,):
        flow.run_at_once(dict.fromkeys(CPUS, FRAME), times)
        assert flow.mbuf("hits").view("u8")[list(CPUS), 0].tolist() == [times, times]
        assert flow.statistics().node("hits").counts == {"packets": 2 * times}
        assert flow.counted() == 2 * times


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    with live(network, '(device,tap0) -> ((bpf,"udp port 53") -> (packetcount as dns)) | (packetcount as all)') as flow:
        network.send([FRAME] * 5 + [ether(0x0800, ipv4(17, udp(1, 54)))] * 4)
        send_at_once(network, dict.fromkeys(CPUS, [FRAME] * 500))
        flow.pause(wait=True)
        statistics = flow.stats()
        assert statistics.node("dns").counts == {"packets": 5 + 500 * len(CPUS)}
        assert statistics.node("all").counts == {"packets": 9 + 500 * len(CPUS)}
        flow.node("dns").mbuf.view("u8")[:, 0] = 0
        assert flow.stats().node("dns").counts == {"packets": 0}
