"""Frames of more than 64 KiB, which large sends and large MTUs make: seen, counted and decided on as proofs take it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ffpf_bpf.compiler import compile_predicates
from ffpf_bpf.flow import Flow
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.predicate import FARTHEST_BYTE, LONGEST_FRAME, run
from tests.network import Network, ip, two_namespaces
from tests.test_hooks import WAYS, flow_at, received_from, tcx

pytestmark = pytest.mark.root

LOOPBACK_MTU = 2_000_000
# At XDP loopback has generic mode alone, in which frames are in one piece, however long.
HERE = [pytest.param(("xdp", ""), id="xdp"), *WAYS]


@pytest.fixture(scope="module")
def loopback() -> Iterator[Network]:
    with two_namespaces("long") as made:
        ip("-n", made.inside, "link", "set", "lo", "mtu", str(LOOPBACK_MTU))
        yield Network(made.inside, made.inside, "lo", "lo")


def of_length(length: int) -> bytes:
    return bytes(12) + b"\x12\x34" + bytes(length - 14)


@pytest.mark.parametrize("way", HERE)
def test_frames_longer_than_proofs_know_are_passed_over(loopback: Network, way: tuple[str, str]) -> None:
    most = LONGEST_FRAME if way[0] == "xdp" else LONGEST_FRAME - 4  # a tag may be beside it
    lengths = (1514, 65_535, 65_536, 65_601, 400_000, most, most + 1, most + 100_000)
    with flow_at(loopback, way, "(device,{tap}) -> (bpf,len > 60) -> (bytecount) -> (grab,snaplen=20)") as flow:
        loopback.send([of_length(length) for length in lengths])
        assert [length for _, length in received_from(flow)] == list(lengths[:6])
        statistics = flow.stats()
    assert (statistics.ledger.seen, statistics.ledger.delivered) == (6, 6)
    assert statistics.node("bytecount1").counts == {"bytes": sum(lengths[:6])}


@pytest.mark.parametrize("way", HERE)
def test_what_is_too_far_to_be_loaded_is_not_there(loopback: Network, way: tuple[str, str]) -> None:
    """By an index out of the packet; also behind a `!`, which makes a packet of a load that fails."""
    texts = [f"ether[(ether[20] & 1) * {at}] < 256" for at in (65_000, FARTHEST_BYTE, FARTHEST_BYTE + 1, 65_500)]
    texts += [
        f"ether[(ether[20] & 1) * {FARTHEST_BYTE}:4] >= 0",
        f"ether[(ether[20] & 1) * {FARTHEST_BYTE - 1}:2] >= 0",
    ]
    frames = [of_length(length) for length in (65_001, FARTHEST_BYTE + 1, FARTHEST_BYTE + 3, FARTHEST_BYTE + 4, 65_550)]
    frames += [frame[:20] + b"\1" + frame[21:] for frame in frames]
    for text in texts:
        expression = f'(device,{{tap}}) -> !(bpf,"{text}") -> (grab,snaplen=21)'
        (program,) = compile_predicates(build(parse(expression.format(tap="lo")))).values()
        with flow_at(loopback, way, expression) as flow:
            loopback.send(frames)
            expected = [(frame[:21], len(frame)) for frame in frames if not run(program, frame)]
            assert received_from(flow) == expected, text
        assert len(expected) >= (0 if "65000" in text else 1)


@tcx
def test_large_sends_of_big_tcp_are_counted_to_the_last_byte() -> None:
    size = 20_000_000
    with two_namespaces("bigtcp") as made, made.enter(), ExitStack() as stack:
        for namespace, link, address in (
            (made.inside, made.tap, "fd00::1/64"),
            (made.outside, made.peer, "fd00::2/64"),
        ):
            longer = ["ip", "-n", namespace, "link", "set", link, "gso_max_size", "200000", "gro_max_size", "200000"]
            if subprocess.run(longer, check=False, capture_output=True).returncode:
                pytest.skip("no BIG TCP here")
            setting = f"net.ipv6.conf.{link}.disable_ipv6=0"
            subprocess.run(made.command("sysctl", "-qw", setting, namespace=namespace), check=True)
            subprocess.run(["ip", "-n", namespace, "address", "add", address, "dev", link, "nodad"], check=True)
        flow = Flow.create().populate(
            "(device,tap0@tc-egress) -> ((bpf,len > 65600) -> (packetcount)) | (bytecount as all)"
        )
        stack.enter_context(flow).instantiate().activate()
        with made.enter(made.outside):
            server = stack.enter_context(socket.create_server(("::", 7777), family=socket.AF_INET6))
        with socket.create_connection(("fd00::2", 7777)) as client:
            connection, _ = server.accept()
            pid = os.fork()
            if pid == 0:
                client.sendall(bytes(size))
                os._exit(0)
            left = size
            while left:
                left -= len(connection.recv(1 << 20))
            os.waitpid(pid, 0)
            connection.close()
        statistics = flow.stats()
        assert statistics.node("packetcount1").counts["packets"] > 0
        assert size < statistics.node("all").counts["bytes"] < 1.1 * size
