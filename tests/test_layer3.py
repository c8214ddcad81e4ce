"""Layer 3 devices: what has no header of the link layer is seen, counted and recorded as an Ethernet frame from `lo` is."""

from __future__ import annotations

import os
import random
import re
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from ffpf_bpf.compiler import pcap
from ffpf_bpf.compiler.pcap import compile_filter, offline_filter
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.predicate import Program, run
from tests.corpus.filters import FILTERS
from tests.corpus.packets import ether, ipv4, ipv6, packets, tcp, udp, vlan
from tests.network import WITHIN_S, Network, ip, two_namespaces
from tests.test_hooks import (
    GRAPHS,
    WAYS,
    cls_bpf,
    flow_at,
    frames_that_arrive,
    loops,
    received_from,
    recorded,
    tagging,
)
from tests.test_hooks import send as send_ethernet
from tests.tun import Tun, bare, tun

pytestmark = pytest.mark.root

SEED = 768
DLT_RAW = 12
# Words of filters that are about the link layer or the frame's length, which packets without a header have otherwise.
LINK_LAYER = re.compile(
    r"\b(ether|link|vlan|len|less|greater|mpls|pppoe[ds]|arp|rarp|llc|iso|stp|broadcast|multicast|atalk|aarp|decnet|lat"
    r"|ipx|netbeui|isis|clnp|es-is|esis|is-is|[lc]s[np]+p?|psnp|iih|l1|l2|geneve|sca|mopdl|moprc|snp|csnp)\b|:\w\w:"
)


@pytest.fixture(scope="module")
def device(network: Network) -> Iterator[Tun]:
    with tun(network) as made:
        yield made


@cache
def frames() -> list[bytes]:
    """All kinds of packets, without addresses of the link layer; of one byte and more, and no type that the kernel
    replaces."""
    return [
        bare(frame) for frame in frames_that_arrive() if len(frame) > 14 and frame[12:14] not in (bytes(2), b"\0\3")
    ]


@cls_bpf
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("expression", GRAPHS)
def test_frames_are_those_of_ethernet(
    network: Network, device: Tun, tmp_path: Path, way: tuple[str, str], expression: str
) -> None:
    with flow_at(network, ("xdp", ""), expression) as flow:
        send_ethernet(network, "xdp", frames())
        expected = recorded(flow, tmp_path / "ethernet")
    assert expected[1]["ledger"].delivered > 5
    with flow_at(device.network, way, expression) as flow:
        device.send(way[0], frames())
        content, counts = recorded(flow, tmp_path / "layer 3")
    assert counts == expected[1]
    assert content == expected[0]


@cls_bpf
@pytest.mark.parametrize("way", WAYS)
def test_every_byte_is_there_and_nothing_else(device: Tun, way: tuple[str, str]) -> None:
    with flow_at(device.network, way, "(device,{tap}) -> (grab)") as flow:
        device.send(way[0], frames())
        assert received_from(flow) == [(frame, len(frame)) for frame in frames()]


def test_what_is_sent_goes_on_as_it_was(device: Tun) -> None:
    with flow_at(device.network, ("tc-egress", ""), "(device,{tap}) -> (grab)"):
        assert device.leave(frames()) == [frame[12:] for frame in frames()]


@pytest.mark.parametrize("way", WAYS)
def test_filters_say_what_libpcap_says_of_the_frame(device: Tun, way: tuple[str, str]) -> None:
    texts = random.Random(SEED + WAYS_SEEDS[way]).sample(FILTERS, 16)
    passed = 0
    with ExitStack() as stack:
        flows = [
            stack.enter_context(
                flow_at(device.network, way, f'(device,{{tap}}) -> (bpf,"{text}") -> (grab,snaplen=80)')
            )
            for text in texts
        ]
        device.send(way[0], frames())
        for text, flow in zip(texts, flows, strict=True):
            program = compile_filter(text)
            expected = [(frame[:80], len(frame)) for frame in frames() if offline_filter(program, frame)]
            assert received_from(flow) == expected, text
            passed += len(expected)
    assert passed > 500


WAYS_SEEDS = {parameter.values[0]: number for number, parameter in enumerate(WAYS)}


def without_link_layer(text: str) -> Program | None:
    """The filter for packets that begin with the IP header, if it can be about such."""
    if LINK_LAYER.search(text):
        return None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pcap, "ETHERNET", DLT_RAW)
        try:
            return compile_filter(text)
        except ExpressionError:
            return None


def ip_packets() -> list[bytes]:
    """IP as its header says, whole."""
    found = []
    for frame in packets(SEED):
        packet = frame[14:]
        if len(frame) > 1500 + 14:
            continue
        if frame[12:14] == b"\x08\x00" and len(packet) >= 60 and packet[0] >> 4 == 4:
            found.append(packet)
        if frame[12:14] == b"\x86\xdd" and len(packet) >= 80 and packet[0] >> 4 == 6:
            found.append(packet)
    return found


def test_filters_say_what_libpcap_says_of_the_packet_alone(device: Tun) -> None:
    """libpcap's own code for raw IP (DLT_RAW), on what was written to the device: nothing of ours is in between."""
    raw = {text: program for text in FILTERS if (program := without_link_layer(text)) is not None}
    texts = random.Random(SEED).sample(sorted(raw), 32)
    sent = ip_packets()
    types = {4: b"\x08\x00", 6: b"\x86\xdd"}
    differing = 0
    with ExitStack() as stack:
        flows = [
            stack.enter_context(
                flow_at(device.network, ("tc-ingress", ""), f'(device,{{tap}}) -> (bpf,"{text}") -> (grab)')
            )
            for text in texts
        ]
        device.arrive([bytes(12) + types[packet[0] >> 4] + packet for packet in sent])
        for text, flow in zip(texts, flows, strict=True):
            expected = [packet for packet in sent if offline_filter(raw[text], packet)]
            assert [data[14:] for data, _ in received_from(flow)] == expected, text
            differing += 0 < len(expected) < len(sent)
    assert len(sent) > 150 and differing > 16


@cls_bpf
@pytest.mark.parametrize("way", WAYS)
def test_packets_of_any_length_and_type(device: Tun, way: tuple[str, str]) -> None:
    """1 to 19 bytes, whatever the first one says, and types that say something else."""
    sent = [
        bytes(12) + kind + bytes([first]) + bytes(range(1, length))
        for kind in (b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x12\x34", b"\xff\xff")
        for first in (0x45, 0x60, 0x00)
        for length in range(1, 20)
    ]
    with (
        flow_at(device.network, way, "(device,{tap}) -> (grab)") as flow,
        flow_at(
            device.network, way, '(device,{tap}) -> (bpf,"ip[0] = 0x60 and len < 30") -> (packetcount)'
        ) as counting,
        flow_at(device.network, way, "(device,{tap}) -> !(tcpflags,syn) -> (bytecount)") as asking,
    ):
        device.send(way[0], sent)
        assert received_from(flow) == [(frame, len(frame)) for frame in sent]
        assert counting.stats().ledger.counted == 15
        assert asking.stats().node("bytecount1").counts == {"bytes": sum(len(frame) for frame in sent)}


@pytest.mark.parametrize("way", WAYS[::2])
@pytest.mark.parametrize("is_tagged", [False, True])
def test_records_of_any_length(device: Tun, way: tuple[str, str], is_tagged: bool) -> None:
    """Snap lengths within the header that the packet is shown with, at its end, and behind."""
    frame = bare(ether(0x8100, vlan(5, 0x0800, ipv4(17, udp(1, 80)))))
    shown = frame if is_tagged else frame[:12] + frame[16:]
    for snaplen in (1, 2, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, len(shown) - 1, len(shown), len(shown) + 1):
        with flow_at(device.network, way, f"(device,{{tap}}) -> (grab,snaplen={snaplen})") as flow:
            device.send(way[0], [shown])
            assert received_from(flow) == [(shown[:snaplen], len(shown))]


@pytest.mark.parametrize("way", WAYS[2:])
def test_a_tag_beside_the_packet_is_behind_the_addresses(device: Tun, way: tuple[str, str]) -> None:
    tagged = [frame[:12] + b"\x81\x00\x00\x4d" + frame[12:] for frame in frames()]
    with (
        flow_at(device.network, way, "(device,{tap}) -> (bpf,vlan 77) -> (grab)") as flow,
        tagging(device.network, way),
    ):
        device.send(way[0], frames())
        assert received_from(flow) == [(frame, len(frame)) for frame in tagged]


@pytest.fixture(scope="module")
def in_pieces(network: Network) -> Iterator[Tun]:
    with tun(network, "tun8", pieces=True, mtu=9000) as made:
        yield made


LARGE = [
    bare(ether(0x0800, ipv4(17, udp(1, 80, bytes(range(256)) * 20 + b"needle" + bytes(2500))))),
    bare(ether(0x0800, ipv4(17, udp(1, 80, b"x" * 7000), words=15))),
    bare(ether(0x86DD, ipv6(17, udp(1, 81, b"x" * 8000 + b"needle")))),
    bare(ether(0x0800, ipv4(6, tcp(1, 80, b"GET " * 2000)))),
]


@loops
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("here", [1, 20, 37])
def test_packets_in_several_pieces(in_pieces: Tun, way: tuple[str, str], here: int) -> None:
    texts = ["udp dst port 80", "ether[8000] = 0x78", "ip6", "udp[8:4] = 0x00010203", "len > 7700"]
    for text in texts:
        program = compile_filter(text)
        expected = [(frame, len(frame)) for frame in LARGE if run(program, frame)]
        assert 0 < len(expected) < len(LARGE), text
        with flow_at(in_pieces.network, way, f'(device,{{tap}}) -> (bpf,"{text}") -> (grab)') as flow:
            in_pieces.send(way[0], LARGE, here)
            assert received_from(flow) == expected, text
    expression = "(device,{tap}) -> (scan,needle) -> (classify,dport) -80-> (grab,snaplen=42)"
    with flow_at(in_pieces.network, way, expression) as flow:
        in_pieces.send(way[0], LARGE, here)
        assert received_from(flow) == [(LARGE[0][:42], len(LARGE[0]))]


@contextmanager
def joined(one: Tun, other: Tun) -> Iterator[None]:
    """What is sent by one arrives at the other."""
    end = threading.Event()

    def pump() -> None:
        ways = {one.descriptor: other.descriptor, other.descriptor: one.descriptor}
        while not end.is_set():
            for ready in select.select(list(ways), [], [], 0.1)[0]:
                os.write(ways[ready], os.read(ready, 1 << 17))

    thread = threading.Thread(target=pump)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_a_transfer_with_large_sends() -> None:
    """TCP hands down packets that are longer than the device takes; all of the payload is counted, and arrives."""
    size = 2_000_000
    with two_namespaces("l3send") as made, ExitStack() as stack:
        inside, outside = stack.enter_context(tun(made)), stack.enter_context(tun(replace(made, inside=made.outside)))
        for device, address in ((inside, "10.79.0.1/24"), (outside, "10.79.0.2/24")):
            ip("-n", device.network.inside, "address", "add", address, "dev", "tun7")
        stack.enter_context(joined(inside, outside))
        expression = "(device,{tap}) -> (bpf,tcp dst port 7777) -> (bytecount)"
        sent = stack.enter_context(flow_at(inside.network, ("tc-egress", ""), expression))
        arrived = stack.enter_context(flow_at(outside.network, ("tc-ingress", ""), expression))
        content = random.Random(SEED).randbytes(size)
        with made.enter(made.outside):
            server = stack.enter_context(socket.create_server(("10.79.0.2", 7777)))
        with made.enter():
            client = stack.enter_context(socket.create_connection(("10.79.0.2", 7777), WITHIN_S))
        connection = stack.enter_context(server.accept()[0])
        sender = threading.Thread(target=client.sendall, args=(content,))
        sender.start()
        got = bytearray()
        while len(got) < size:
            got += connection.recv(1 << 16)
        sender.join()
        assert bytes(got) == content
        larger, smaller = (flow.stats().nodes[-1] for flow in (sent, arrived))
    for node in (larger, smaller):
        assert size < node.counts["bytes"] < 1.2 * size
    assert larger.counts["bytes"] / larger.packets_in > 1514, "no packet was longer than the device takes"
    assert smaller.counts["bytes"] / smaller.packets_in <= 1514


@pytest.mark.parametrize("is_tagged", [False, True])
def test_packets_of_more_than_64_kib(device: Tun, is_tagged: bool) -> None:
    kind = b"\x81\x00\x00\x05\x08\x00" if is_tagged else b"\x08\x00"
    sent = [bytes(12) + kind + bytes(length - 12 - len(kind)) for length in (65_535, 65_536, 65_601, 65_700)]
    with flow_at(device.network, ("tc-ingress", ""), "(device,{tap}) -> (grab,snaplen=20)") as flow:
        device.arrive(sent)
        assert received_from(flow) == [(frame[:20], len(frame)) for frame in sent]
