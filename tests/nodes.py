"""What the tests of the node classes ask of each: both forms, refusals, packets on an interface, and two CPUs at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

import ffpf_bpf
from ffpf_bpf import Flow
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.expression import Node
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.printer import python, text
from tests.corpus.packets import EVERYBODY, arp, authentication, ether, extension, ipv4, ipv6, vlan
from tests.network import Network, send
from tests.segment import LoadedFlow

CPUS = tuple(sorted(os.sched_getaffinity(0))[:2])
needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")


def assert_forms(written: str, node: Node, shown_text: str, shown_python: str) -> None:
    """`written` is `node`, which is shown so, and is read as itself again, with a name and with memory as well."""
    assert parse(written) == node
    assert (text(node), python(node)) == (shown_text, shown_python)
    for each in (node, replace(node, name="x_1"), replace(node, name="as", mbuf_bytes=node.mbuf_bytes + 4096)):
        assert_round_trip(each)


def assert_round_trip(node: Node) -> None:
    """Text and Python are read as the value they were printed from."""
    assert parse(text(node)) == node
    assert eval(python(node), vars(ffpf_bpf).copy()) == node


def refusal(wrong: str) -> str:
    """What is wrong with an expression of one node, and what to do about it."""
    with pytest.raises(ExpressionError) as error:
        parse(wrong)
    class_name = wrong[1:-1].split(",", maxsplit=1)[0].split(maxsplit=1)[0].lower()
    assert f"line 1, column 2: ({class_name}" in error.value.where
    assert error.value.help
    return error.value.message


def everywhere(protocol: int, segment: bytes) -> dict[str, bytes]:
    """A segment behind everything that the dissector looks through."""
    return {
        "IPv4": ether(0x0800, ipv4(protocol, segment)),
        "IPv4 options": ether(0x0800, ipv4(protocol, segment, words=9)),
        "IPv4 first fragment": ether(0x0800, ipv4(protocol, segment, fragment=0x2000)),
        "IPv6": ether(0x86DD, ipv6(protocol, segment)),
        "IPv6 extensions": ether(
            0x86DD, ipv6(0, extension(60) + extension(51, 1) + authentication(protocol) + segment)
        ),
        "IPv6 first fragment": ether(0x86DD, ipv6(44, bytes((protocol, 0, 0, 1)) + bytes(4) + segment)),
        "VLAN": ether(0x8100, vlan(7, 0x0800, ipv4(protocol, segment))),
        "QinQ": ether(0x88A8, vlan(7, 0x8100, vlan(8, 0x86DD, ipv6(protocol, segment)))),
    }


def nowhere(protocol: int, segment: bytes) -> dict[str, bytes]:
    """What looks like the segment, but is not, or not whole: what asks for its header must not find it."""
    return {
        "later fragment": ether(0x0800, ipv4(protocol, segment, fragment=0x00B9)),
        "last fragment": ether(0x0800, ipv4(protocol, segment, fragment=0x1FFF)),
        "later fragment, IPv6": ether(0x86DD, ipv6(44, bytes((protocol, 0, 1, 1)) + bytes(4) + segment)),
        "another protocol": ether(0x0800, ipv4(47, segment)),
        "ESP": ether(0x86DD, ipv6(50, segment)),
        "IP in IP": ether(0x0800, ipv4(4, ipv4(protocol, segment))),
        "IHL too small": ether(0x0800, ipv4(protocol, segment, words=4)),
        "IPv6 said to be IPv4": ether(0x0800, ipv6(protocol, segment)),
        "three tags": ether(0x8100, vlan(1, 0x8100, vlan(2, 0x8100, vlan(3, 0x0800, ipv4(protocol, segment))))),
        "nine extensions": ether(0x86DD, ipv6(60, extension(60) * 8 + extension(protocol) + segment)),
        "extension that is cut": ether(0x86DD, ipv6(60, bytes((protocol, 200)) + bytes(6) + segment)),
        "no IP": ether(0x88CC, ipv4(protocol, segment)),
        "ARP": ether(0x0806, arp(1), target=EVERYBODY),
        "IP header that is cut": ether(0x0800, ipv4(protocol, segment))[:33],
        "IPv6 header that is cut": ether(0x86DD, ipv6(protocol, segment))[:53],
        "ports that are cut": ether(0x0800, ipv4(protocol, segment))[:37],
        "tag that is cut": ether(0x8100, vlan(7, 0x0800, b""))[:17],
        "runt": ether(0x0800, b""),
    }


def grabbed(flow: LoadedFlow) -> list[bytes]:
    """The packets that a flow grabbed since."""
    return [packet.data for batch in flow.batches() for packet in batch.packets(("tap0",))]


@contextmanager
def live(network: Network, expression: str) -> Iterator[Flow]:
    """A flow at the tap of `network`, switched on."""
    with network.enter(), Flow.create().populate(expression).instantiate().activate() as flow:
        yield flow


def received(flow: Flow) -> list[bytes]:
    """Pause a flow, wait, and take what it grabbed."""
    flow.pause(wait=True)
    return [packet.data for batch in flow.poll() for packet in batch.packets(flow.interfaces)]


def send_at_once(network: Network, frames: Mapping[int, Sequence[bytes]]) -> None:
    """Each CPU sends its frames, all CPUs at the same time; a veth pair delivers them where they were sent."""
    sockets = {cpu: network.sender() for cpu in frames}

    def send_from(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        send(sockets[cpu], frames[cpu])

    try:
        with ThreadPoolExecutor(len(frames)) as threads:
            list(threads.map(send_from, frames))
    finally:
        for each in sockets.values():
            each.close()
