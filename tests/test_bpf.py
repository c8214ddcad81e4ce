"""`bpf`: a pcap filter as a node; what filters mean is tested in test_predicate.py and test_compiler.py."""

from __future__ import annotations

import pytest

from ffpf_bpf import pkt
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.bpf import Bpf
from tests.corpus.packets import ether, ipv4, tcp, udp
from tests.network import Network
from tests.nodes import CPUS, assert_forms, everywhere, grabbed, live, nowhere, received, refusal, send_at_once
from tests.segment import loaded


@pytest.mark.parametrize(
    ("written", "node", "shown_text", "shown_python"),
    [
        ("(bpf,udp)", Bpf("udp"), "(bpf,udp)", "bpf('udp')"),
        ("(bpf)", Bpf(""), "(bpf)", "bpf('')"),
        ('(BPF," tcp\n\tport   80 ")', Bpf("tcp port 80"), '(bpf,"tcp port 80")', "bpf('tcp port 80')"),
        ('(bpf,"ip proto \\tcp")', Bpf("ip proto \\tcp"), '(bpf,"ip proto \\\\tcp")', "bpf('ip proto \\\\tcp')"),
        (
            "(bpf,port 53 or port 80)",
            Bpf("port 53 or port 80"),
            '(bpf,"port 53 or port 80")',
            "bpf('port 53 or port 80')",
        ),
    ],
)
def test_text_and_python(written: str, node: Bpf, shown_text: str, shown_python: str) -> None:
    assert_forms(written, node, shown_text, shown_python)


def test_a_condition_may_stand_for_the_text() -> None:
    assert Bpf(pkt.tcp.dport == 443, name="web") == Bpf((pkt.tcp.dport == 443).as_node().filter, name="web")


def test_refused() -> None:
    assert refusal(f'(bpf,"{"x" * 16_385}")') == "a filter of 16,385 bytes"
    assert refusal(f'(bpf,"{"é" * 8_193}")') == "a filter of 16,386 bytes"
    assert refusal('(bpf,"udp\0")') == "a filter with a NUL byte"
    assert refusal("(bpf,udp,1048577)") == "1048577 bytes of memory do not suit a `bpf`"
    with pytest.raises(ExpressionError, match="80 is no text"):
        Bpf(80)  # type: ignore[arg-type]


@pytest.mark.root
def test_it_means_what_tcpdump_means() -> None:
    """Which is not what the nodes that dissect mean: no look behind tags and extension headers."""
    expressions = ("udp port 53", "vlan and udp port 53", "ip6 proto 17", "")
    udp_frames = everywhere(17, udp(1, 53))
    with loaded(*(f'(device,tap0) -> (bpf,"{expression}") -> (packetcount)' for expression in expressions)) as flows:
        names: list[list[str]] = [[] for _ in expressions]
        for name, frame in {**udp_frames, **nowhere(17, udp(1, 53))}.items():
            before = [flow.counted() for flow in flows]
            assert flows[0].run(frame) == frame
            for found, flow, count in zip(names, flows, before, strict=True):
                found.extend([name] * (flow.counted() - count))
    assert names[0] == ["IPv4", "IPv4 options", "IPv4 first fragment", "IPv6"]
    assert names[1] == ["VLAN"]
    assert names[2] == ["IPv6", "IPv6 first fragment", "later fragment, IPv6", "IPv6 header that is cut"]
    assert len(names[3]) == len(udp_frames) + len(nowhere(17, b""))


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    wanted, other = ether(0x0800, ipv4(17, udp(1, 53))), ether(0x0800, ipv4(6, tcp(1, 53)))
    with live(network, '(device,tap0) -> (bpf,"udp port 53") -> (grab)') as flow:
        network.send([wanted, other, wanted])
        send_at_once(network, {cpu: [wanted, other] for cpu in CPUS})
        assert received(flow) == [wanted] * (2 + len(CPUS))
        assert flow.stats().ledger.filtered == 1 + len(CPUS)


@pytest.mark.root
def test_inverted() -> None:
    frames = [ether(0x0800, ipv4(17, udp(1, 53))), ether(0x0800, ipv4(6, tcp(1, 53))), bytes(14)]
    with loaded("(device,tap0) -> !(bpf,udp)") as (flow,):
        for frame in frames:
            flow.run(frame)
        assert grabbed(flow) == frames[1:]
