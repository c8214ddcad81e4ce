"""One virtual frame at all hooks: the same flow sees, counts and records the same packets at XDP and at tc."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from ffpf_bpf import compiler
from ffpf_bpf.capture.pcapng import InterfaceDescription, PcapngWriter
from ffpf_bpf.compiler.pcap import compile_filter, offline_filter
from ffpf_bpf.errors import KernelError
from ffpf_bpf.flow import Flow, chains
from ffpf_bpf.graph.predicate import run
from ffpf_bpf.kernel import attachment, calls, netlink, probes
from ffpf_bpf.kernel.interfaces import find
from ffpf_bpf.kernel.maps import Descriptor
from tests.conftest import assert_kernel_objects
from tests.corpus.packets import ether, ipv4, packets, udp, vlan
from tests.foreign import TCX_DROP, TCX_NEXT, TCX_PASS, foreign
from tests.network import Network, one_cpu, two_namespaces, until_ended
from tests.segment import has_tag
from tests.vm import guest, matrix

pytestmark = pytest.mark.root

SEED = 5005
ENHANCED_PACKET = 6
TC = ("tc-ingress", "tc-egress")
tcx, cls_bpf = pytest.mark.feature("tcx"), pytest.mark.feature("cls_bpf")
MODES = [pytest.param("", id="tcx", marks=tcx), pytest.param("cls_bpf", id="cls_bpf", marks=cls_bpf)]
WAYS = [
    pytest.param((hook, *mode.values), id=f"{hook} by {mode.id}", marks=mode.marks) for hook in TC for mode in MODES
]
FRAGS = "frags"  # by programs that know frames of several buffers, also where none needs them
frags = pytest.mark.feature("multi-buffer frames")
IN_PIECES = [*WAYS, *(pytest.param(("xdp", way), id=f"xdp {way}".strip(), marks=frags) for way in ("", FRAGS))]
loops, atomic = pytest.mark.feature("loops of (scan)"), pytest.mark.feature("atomic operations")

GRAPHS = [
    pytest.param('(device,{tap}) -> (bpf,"udp or vlan and udp or arp") -> (grab,snaplen=61)', id="filter"),
    pytest.param(
        '(device,{tap}) -> (sampler,2) -> (tcpflags,"!rst") -> (classify,dport) -443,1..90-> (grab,snaplen=200)'
        " | -*-> (packetcount)",
        id="edges",
    ),
    pytest.param(
        '((device,{tap}) -> (bpf,"tcp") -> (anonymise,"key=000102030405060708090a0b0c0d0e0f") -> (grab,snaplen=90))'
        " | ((device,{tap}) -> (snap,8) -> (grab))",
        id="views",
    ),
    pytest.param("(device,{tap}) -> (scan,GET) -> (grab,snaplen=15)", id="scan", marks=loops),
    pytest.param(
        "(device,{tap}) -> (histogram,size) -> (bytecount) -> (head,2) -> (newflow) -> (grab)",
        id="tables",
        marks=atomic,
    ),
]


@cache
def frames_that_arrive() -> list[bytes]:
    """All kinds of packets, but those with a cut tag, which the kernel drops before tc."""
    found = [frame for frame in packets(SEED) if 14 <= len(frame) <= 1500]
    kept = [frame for frame in found if frame[12:14] not in (b"\x81\x00", b"\x88\xa8") or len(frame) >= 20]
    assert sum(has_tag(frame) for frame in kept) > 100
    return random.Random(SEED).sample(kept, 600)


def ways_here() -> list[tuple[str, str]]:
    """Every way to attach that this kernel has, by hook and what is forced; in a virtual machine, where verifying takes
    long, one for each hook: the programs are the same."""
    forced = ("", "cls_bpf") if attachment.has_tcx() else ("cls_bpf",)
    forced = forced[:1] if guest.MARK in os.environ else forced
    return [("xdp", ""), *((hook, way) for hook in TC for way in forced)]


@contextmanager
def flow_at(network: Network, way: tuple[str, str], expression: str) -> Iterator[Flow]:
    """A flow, switched on, attached in that way."""
    hook, forced = way
    with pytest.MonkeyPatch.context() as patch, network.enter():
        if forced == FRAGS:
            patch.setattr(chains, "hook_here", lambda name: compiler.XDP_FRAGS)
        else:
            patch.setenv(attachment.FORCED, forced)
        tap = network.tap if hook == "xdp" else f"{network.tap}@{hook}"
        with Flow.create().populate(expression.format(tap=tap)).instantiate().activate() as flow:
            yield flow


def send(network: Network, hook: str, frames: Sequence[bytes]) -> None:
    """Frames to the tap, or from it where it is about egress."""
    if hook != "tc-egress":
        network.send(frames)
        return
    with network.enter(), one_cpu(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((network.tap, 0))
        for frame in frames:
            raw.send(frame)


@contextmanager
def tagging(network: Network, way: tuple[str, str]) -> Iterator[None]:
    """Somebody in front of us, attached as we are, puts tag 77 beside each packet."""
    hook, forced = way
    with foreign(TCX_NEXT, (0x8100, 77)) as other, network.enter():
        index = find(network.tap).index
        if not forced:
            with Descriptor(calls.attach_tcx(other.program.fileno, index, attachment.TCX_TYPES[hook])):
                yield
            return
        place = netlink.Filter(index, netlink.PARENTS[hook], 1, 1, "tagging", 0)
        with contextlib.closing(netlink.Netlink()) as kernel:
            kernel.add_filter(place, other.program.fileno)  # filters of one priority: the newest first
            try:
                yield
            finally:
                kernel.delete_filter(place)


def recorded(flow: Flow, file: Path) -> tuple[bytes, dict[str, Any]]:
    """What a flow wrote to a file, without times and interfaces, and what it counted."""
    flow.pause(wait=True)
    writer = PcapngWriter(str(file), [InterfaceDescription("any", flow.snaplen, "")])
    for batch in flow.poll():
        batch.records["time_high"] = batch.records["time_low"] = batch.records["interface"] = 0
        writer.write(batch.records)
    writer.close([])
    statistics = flow.stats()
    counts = {node.id: (node.packets_in, node.packets_out, node.counts) for node in statistics.nodes}
    return file.read_bytes(), {"ledger": statistics.ledger, "nodes": counts}


@cls_bpf
@pytest.mark.parametrize("expression", GRAPHS)
def test_all_hooks_record_and_count_the_same(
    network: Network, tmp_path: Path, expression: str, request: pytest.FixtureRequest
) -> None:
    frames = frames_that_arrive()
    results = {}
    for way in [*ways_here(), *([("xdp", FRAGS)] if probes.has_frags() else [])]:
        with flow_at(network, way, expression) as flow:
            send(network, way[0], frames)
            results[way] = recorded(flow, tmp_path / "-".join(way))
    content, counts = results["xdp", ""]
    assert counts["ledger"].seen == len(frames)
    assert counts["ledger"].delivered > 5
    for way, (other_content, other_counts) in results.items():
        assert other_counts == counts, way
        assert other_content == content, way
    # All kernels of the matrix must say the same of it.
    digest = sha256(packet_blocks(content) + repr(counts).encode()).hexdigest()
    request.node.user_properties.append((matrix.DIGEST, digest))


def packet_blocks(file: bytes) -> bytes:
    """What follows a pcapng file's headers, which say what kernel it is of."""
    at = 0
    while int.from_bytes(file[at : at + 4], "little") != ENHANCED_PACKET:
        at += int.from_bytes(file[at + 4 : at + 8], "little")
    return file[at:]


@pytest.mark.parametrize("way", WAYS[2:])
def test_tags_that_somebody_puts_beside_the_packet_are_in_its_bytes(network: Network, way: tuple[str, str]) -> None:
    """Also where the packet has tags of its own, in its bytes."""
    frames = frames_that_arrive()
    tagged = [frame[:12] + b"\x81\x00\x00\x4d" + frame[12:] for frame in frames]
    with flow_at(network, way, "(device,{tap}) -> (bpf,vlan 77) -> (grab)") as flow, tagging(network, way):
        send(network, way[0], frames)
        flow.pause(wait=True)
        got = [packet for batch in flow.poll() for packet in batch.packets(flow.interfaces)]
    assert [packet.data for packet in got] == tagged
    assert [packet.length for packet in got] == [len(frame) for frame in tagged]


VNET_HEADER_BYTES, PACKET_VNET_HDR, SOL_PACKET = 10, 15, 263
PIECES_MTU = 9000


@pytest.fixture(scope="module")
def jumbo() -> Iterator[Network]:
    with two_namespaces("pieces", mtu=PIECES_MTU) as made:
        yield made


def send_in_pieces(network: Network, hook: str, frames: Sequence[bytes], here: int = 20) -> None:
    """Frames of more than a page, of which only the first bytes are in one piece (packet_snd)."""
    with network.enter(network.inside if hook == "tc-egress" else network.outside), one_cpu():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with raw:
            raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            raw.bind((network.tap if hook == "tc-egress" else network.peer, 0))
            for frame in frames:
                raw.send(struct.pack("<BBHHHH", 0, 0, here, 0, 0, 0) + frame)


def large(payload: bytes, port: int = 80, tags: int = 0, words: int = 5) -> bytes:
    inner = ipv4(17, udp(1234, port, payload), words=words)
    kind = 0x0800
    for number in range(tags):
        inner, kind = vlan(5 + number, kind, inner), 0x8100
    return ether(kind, inner)


LARGE = [
    large(bytes(range(256)) * 20 + b"needle" + bytes(2500)),
    large(bytes(8000), tags=1),
    large(bytes(8000), tags=2, port=81),
    large(b"x" * 7000, words=15),
    large(b"x" * 8900 + b"needle", port=81),
]


@pytest.mark.parametrize("way", IN_PIECES)
@pytest.mark.parametrize("here", [14, 20, 37, 60])
def test_frames_in_several_pieces(jumbo: Network, way: tuple[str, str], here: int) -> None:
    """Filters and the dissector look across the pieces, and the record is whole."""
    texts = ["udp dst port 80", "ether[8000] = 0x78", "vlan and udp port 80", "udp[8:4] = 0x00010203", "len > 8048"]
    for text in texts:
        program = compile_filter(text)
        expected = [frame for frame in LARGE if run(program, frame)]
        assert expected == [frame for frame in LARGE if offline_filter(program, frame)]
        assert 0 < len(expected) < len(LARGE), text
        with flow_at(jumbo, way, f'(device,{{tap}}) -> (bpf,"{text}") -> (grab)') as flow:
            send_in_pieces(jumbo, way[0], LARGE, here)
            flow.pause(wait=True)
            assert [packet.data for batch in flow.poll() for packet in batch.packets(flow.interfaces)] == expected, text
    with flow_at(jumbo, way, "(device,{tap}) -> (classify,dport) -80-> (grab,snaplen=42)") as flow:
        send_in_pieces(jumbo, way[0], LARGE, here)
        assert received_from(flow) == [(frame[:42], len(frame)) for frame in (LARGE[0], LARGE[1], LARGE[3])]


@loops
@pytest.mark.parametrize("way", IN_PIECES)
def test_scan_looks_across_the_pieces(jumbo: Network, way: tuple[str, str]) -> None:
    with flow_at(jumbo, way, "(device,{tap}) -> (scan,needle) -> (classify,dport) -80-> (grab,snaplen=42)") as flow:
        send_in_pieces(jumbo, way[0], LARGE)
        assert received_from(flow) == [(LARGE[0][:42], len(LARGE[0]))]


def received_from(flow: Flow) -> list[tuple[bytes, int]]:
    flow.pause(wait=True)
    return [(packet.data, packet.length) for batch in flow.poll() for packet in batch.packets(flow.interfaces)]


@pytest.mark.parametrize("forced", MODES)
def test_a_transfer_with_large_sends(network: Network, forced: str) -> None:
    """TCP hands down frames that are longer than the wire takes: all of the payload is counted, and arrives."""
    size = 3_000_000
    content = random.Random(SEED).randbytes(size)
    with ExitStack() as stack:
        counting = "(bpf,tcp dst port 7777) -> (bytecount)"
        flows = [
            stack.enter_context(flow_at(network, (hook, forced), f"(device,{{tap}}) -> {counting}")) for hook in TC
        ]
        with network.enter(network.outside):
            server = stack.enter_context(socket.create_server((network.peer_address, 7777)))
        with network.enter():
            client = socket.create_connection((network.peer_address, 7777))
        connection, _ = server.accept()
        with client, connection:
            pid = os.fork()
            if pid == 0:
                client.sendall(content)
                os._exit(0)
            got = bytearray()
            while len(got) < size:
                got += connection.recv(1 << 16)
            os.waitpid(pid, 0)
        assert bytes(got) == content
        ingress, egress = (flow.stats() for flow in flows)
    counted = egress.nodes[-1]
    assert counted.counts["bytes"] >= size
    assert counted.counts["bytes"] / counted.packets_in > 1514, "no frame was longer than the wire takes"
    assert ingress.ledger.counted == 0


@frags
def test_a_transfer_of_several_buffers_a_frame(jumbo: Network) -> None:
    """Native, at an MTU of 9,000: all of the payload is counted, and arrives."""
    size = 3_000_000
    content = random.Random(SEED).randbytes(size)
    expression = (
        "(device,{tap}) -> (bpf,tcp dst port 7777) -> (bytecount) -> (bpf,len > 4096) -> (packetcount as larger)"
    )
    with ExitStack() as stack:
        flow = stack.enter_context(flow_at(jumbo, ("xdp", ""), expression))
        assert [tap["mode"] for tap in flow.taps] == ["native"]
        with jumbo.enter():
            server = stack.enter_context(socket.create_server((jumbo.tap_address, 7777)))
        with jumbo.enter(jumbo.outside):
            client = socket.create_connection((jumbo.tap_address, 7777))
        connection, _ = server.accept()
        with client, connection:
            pid = os.fork()
            if pid == 0:
                client.sendall(content)
                os._exit(0)
            got = bytearray()
            while len(got) < size:
                got += connection.recv(1 << 16)
            os.waitpid(pid, 0)
        assert bytes(got) == content
        statistics = flow.stats()
    assert statistics.node("bytecount1").counts["bytes"] >= size
    assert statistics.node("larger").counts["packets"] > size / 9000 / 2


def each_sees_its_own(flows: list[Flow], frames: list[bytes], send: Callable[[list[bytes]], None]) -> None:
    """Each flow one of the frames, whole; and so again when every other flow has left."""
    send(frames)
    for flow, frame in zip(flows, frames, strict=True):
        assert received_from(flow) == [(frame, len(frame))]
    for flow in flows[::2]:
        flow.close()
    for flow in flows[1::2]:
        flow.activate()
    send(frames)
    for flow, frame in zip(flows[1::2], frames[1::2], strict=True):
        assert received_from(flow) == [(frame, len(frame))]


@frags
def test_all_programs_of_a_chain_take_several_buffers(jumbo: Network) -> None:
    """Flows join, are folded into one segment, and leave; each sees the whole frames."""
    with ExitStack() as stack:
        ports = range(80, 86)
        flows = [
            stack.enter_context(flow_at(jumbo, ("xdp", ""), f"(device,{{tap}}) -> (bpf,udp dst port {port}) -> (grab)"))
            for port in ports
        ]
        frames = [large(bytes([port]) * 8900, port=port) for port in ports]
        each_sees_its_own(flows, frames, jumbo.send)


@frags
def test_where_no_driver_takes_several_buffers_it_is_said_why(jumbo: Network) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "has_frags", lambda: False)
        with flow_at(jumbo, ("xdp", ""), "(device,{tap})") as flow:
            (tap,) = flow.taps
    assert tap["mode"] == "generic"
    assert re.fullmatch("numerical result out of range: (veth: )?Peer MTU is too large to set XDP", tap["refusal"])
    with jumbo.enter():
        assert calls.attached_xdp(find(jumbo.tap).index)[0] == 0


@tcx
def test_others_at_tc_run_before_and_after_us(network: Network) -> None:
    """Also one that lets nobody run behind it, and one that drops."""
    frames = [ether(0x0800, ipv4(17, udp(1, 80)))] * 5
    with network.enter(), ExitStack() as stack:
        index = find(network.tap).index
        behind, last = stack.enter_context(foreign(TCX_NEXT)), stack.enter_context(foreign(TCX_PASS))
        dropping = stack.enter_context(foreign(TCX_DROP))
        for other in (last, behind):  # each in front of the one before
            stack.enter_context(Descriptor(calls.attach_tcx(other.program.fileno, index, calls.ATTACH_TCX_INGRESS)))
        with flow_at(network, ("tc-ingress", ""), "(device,{tap}) -> (packetcount)") as flow:
            before = stack.enter_context(foreign(TCX_NEXT))
            with Descriptor(calls.attach_tcx(before.program.fileno, index, calls.ATTACH_TCX_INGRESS)):
                network.send(frames)
                assert flow.stats().ledger.counted == before.runs == behind.runs == last.runs == 5
            with Descriptor(calls.attach_tcx(dropping.program.fileno, index, calls.ATTACH_TCX_INGRESS)):
                network.send(frames)
                assert (flow.stats().ledger.counted, dropping.runs, behind.runs) == (5, 5, 5)
        network.send(frames)
        assert (behind.runs, last.runs) == (10, 10)


@pytest.mark.parametrize("forced", MODES)
def test_two_processes_grab_at_one_tap(network: Network, monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    """There is no owner at tc: each has an entry program of its own."""
    monkeypatch.setenv(attachment.FORCED, forced)
    expression = "(device,tap0@tc-ingress) -> (packetcount)"
    with network.enter(), Flow.create().populate(expression).instantiate().activate() as flow:
        (ready, tell), (go, start) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            with Flow.create().populate(expression).instantiate().activate() as other:
                os.write(tell, b"!")
                os.read(go, 1)
                os._exit(other.stats().ledger.counted)
        assert os.read(ready, 1) == b"!"
        network.send([ether(0x0800, ipv4(17, udp(1, 80)))] * 7)
        os.write(start, b"!")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert flow.stats().ledger.counted == 7
    for descriptor in (ready, tell, go, start):
        os.close(descriptor)


@pytest.mark.parametrize("forced", MODES)
def test_several_hooks_and_interfaces_in_one_flow(network: Network, forced: str) -> None:
    expression = "(device,{tap}) | (device,tap0@tc-ingress) | (device,tap0@tc-egress) | (device,lo@tc-egress) -> (grab)"
    frames = [ether(0x8100, vlan(3, 0x0800, ipv4(17, udp(1, 80))))] * 2
    with flow_at(network, ("xdp", forced), expression) as flow:
        assert [tap["mode"] for tap in flow.taps] == ["native", *[forced or "tcx"] * 3]
        network.send(frames)
        send(network, "tc-egress", frames[:1])
        flow.pause(wait=True)
        got = [packet for batch in flow.poll() for packet in batch.packets(flow.interfaces)]
    assert Counter(packet.interface for packet in got) == {"tap0": 2, "tap0@tc-ingress": 2, "tap0@tc-egress": 1}
    assert {packet.data for packet in got} == {frames[0]}


@pytest.mark.parametrize("forced", MODES)
def test_an_interface_that_goes_takes_the_flow_with_it(monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    monkeypatch.setenv(attachment.FORCED, forced)
    with two_namespaces("tcgone") as made, made.enter():
        flow = Flow.create().populate("(device,tap0@tc-ingress)").instantiate()
        with flow:
            subprocess.run(["ip", "link", "delete", "tap0"], check=True)
            with pytest.raises(KernelError, match="the interface is gone"):
                list(flow.batches(duration_s=2))


@tcx
def test_sigkill_leaves_nothing(network: Network, kernel_before: Counter[str]) -> None:
    with network.enter():
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            Flow.create().populate("(device,tap0@tc-ingress) | (device,tap0@tc-egress)").instantiate().activate()
            os.write(tell, b"!")
            signal.pause()
        assert os.read(ready, 1) == b"!"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert_kernel_objects(kernel_before)
    os.close(ready)
    os.close(tell)


@cls_bpf
def test_grab_at_tc_from_the_command_line(network: Network, tmp_path: Path) -> None:
    file = tmp_path / "grabbed.pcapng"
    words = [
        str(Path(sys.executable).with_name("ffpf")),
        "grab",
        "-i",
        "tap0@tc-ingress",
        "-c",
        "3",
        "-w",
        str(file),
        "vlan",
        "5",
    ]
    process = subprocess.Popen(network.command(*words), stderr=subprocess.PIPE, text=True)
    frame = ether(0x8100, vlan(5, 0x0800, ipv4(17, udp(1, 80))))
    until_ended(process, lambda: network.send([frame, frame[:12] + frame[16:]]))
    assert file.read_bytes().count(frame) == 3
