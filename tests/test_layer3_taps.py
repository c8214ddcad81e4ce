"""Taps of layer 3 devices beside others: where they are refused, joined, lost, and shown."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from ffpf_bpf.capture.files import CaptureFile
from ffpf_bpf.errors import KernelError
from ffpf_bpf.flow import Flow
from tests.corpus.packets import ether, ipv4, ipv6, udp
from tests.network import Network, two_namespaces, until, until_ended
from tests.test_hooks import (
    each_sees_its_own,
    flow_at,
)
from tests.tun import Tun, bare, tun

pytestmark = pytest.mark.root

ETHERNET, NONE, IPGRE = 1, 65534, 778  # ARPHRD_


@pytest.fixture(scope="module")
def device(network: Network) -> Iterator[Tun]:
    with tun(network) as made:
        yield made


@pytest.mark.parametrize("expression", ["(device,{tap})", "(device,{tap},monitor)", "(device,{tap}@xdp)"])
def test_at_xdp_they_are_refused_and_it_is_said_what_to_write(device: Tun, expression: str) -> None:
    with device.network.enter(), pytest.raises(KernelError) as error:
        Flow.create().populate(expression.format(tap="tun7")).instantiate()
    assert error.value.message == "packets of `tun7` have no Ethernet header at XDP"
    assert "`tun7@tc-ingress`" in str(error.value.help) and "`tun7@tc-egress`" in str(error.value.help)
    assert error.value.errno == errno.EPROTONOSUPPORT


def test_what_would_be_loaded_there_is_shown(network: Network, device: Tun, tmp_path: Path) -> None:
    ffpf = str(Path(sys.executable).with_name("ffpf"))
    shown = {}
    for tap in ("tap0@tc-ingress", "tun7@tc-ingress", "tun9@tc-ingress"):
        words = [
            ffpf,
            "compile",
            f"(device,{tap}) -> (bpf,udp) -> (grab)",
            "--emit",
            "object",
            "-o",
            str(tmp_path / tap),
        ]
        subprocess.run(network.command(*words), check=True, capture_output=True)
        shown[tap] = (tmp_path / tap).read_bytes()
    assert shown["tap0@tc-ingress"] == shown["tun9@tc-ingress"] != shown["tun7@tc-ingress"]
    done = subprocess.run(
        network.command(ffpf, "compile", "(device,tun7)"), check=False, capture_output=True, text=True
    )
    assert done.returncode == 4 and "packets of `tun7` have no Ethernet header at XDP" in done.stderr


def test_what_has_a_header_of_another_kind_is_refused(device: Tun) -> None:
    device.become(IPGRE)
    try:
        with device.network.enter(), pytest.raises(KernelError) as error:
            Flow.create().populate("(device,tun7@tc-ingress)").instantiate()
        assert error.value.message == f"packets of `tun7` have another header than Ethernet's (ARPHRD {IPGRE})"
    finally:
        device.become(NONE)


def test_one_flow_at_interfaces_of_both_kinds(network: Network, device: Tun) -> None:
    """By name and by a glob, with one ring; at XDP a glob leaves out what has no frames there, and says so."""
    frame = ether(0x0800, ipv4(17, udp(1, 80, b"both")))
    by_name = "(device,tap0@tc-ingress) | (device,tun7@tc-ingress) | (device,tun7@tc-egress)"
    for taps in (by_name, "(device,t*@tc-ingress) | (device,tu*@tc-egress)"):
        with flow_at(network, ("tc-ingress", ""), f"{taps} -> (bpf,udp port 80) -> (grab)") as flow:
            network.send([frame])
            device.arrive([frame])
            device.leave([frame])
            flow.pause(wait=True)
            got = [packet for batch in flow.poll() for packet in batch.packets(flow.interfaces)]
        assert sorted((packet.interface, packet.data) for packet in got) == [
            ("tap0@tc-ingress", frame),
            ("tun7@tc-egress", bare(frame)),
            ("tun7@tc-ingress", bare(frame)),
        ]
    with network.enter(), Flow.create().populate("(device,t*)").instantiate() as flow:
        assert [tap["tap"] for tap in flow.taps] == ["tap0"]
        (event,) = (event for event in flow.events if event.tap == "tun7")
        assert event.what == "refused"
        assert "have no Ethernet header at XDP" in event.said


def test_flows_at_a_tap_join_share_and_leave(device: Tun) -> None:
    """Segments are rebuilt and folded for packets without a header as for frames."""
    ports = range(80, 92)
    sent = [bare(ether(0x0800, ipv4(17, udp(1, port, bytes([port]) * 40)))) for port in ports]
    with ExitStack() as stack:
        expression = "(device,{{tap}}) -> (sampler,1) -> (bpf,udp dst port {}) -> (grab)"
        flows = [
            stack.enter_context(flow_at(device.network, ("tc-ingress", ""), expression.format(port))) for port in ports
        ]
        each_sees_its_own(flows, sent, device.arrive)


def told(flow: Flow) -> list[str]:
    return [event.what for event in flow.events if event.what not in ("up", "down")]


def test_an_interface_that_becomes_of_another_kind_is_another_tap(network: Network) -> None:
    """Its packets would be taken for frames. A flow that follows joins it as what it is now."""
    packet = ipv4(17, udp(1, 80))
    framed = ether(0x0800, packet)
    with (
        two_namespaces("kinds") as made,
        tun(made) as device,
        made.enter(),
        Flow.create(follow=True).populate("(device,tun7@tc-ingress) -> (grab)").instantiate().activate() as flow,
        Flow.create().populate("(device,tun7@tc-ingress) -> (grab)").instantiate().activate() as other,
    ):
        device.arrive([framed])
        device.become(ETHERNET)
        until(lambda: told(flow) == ["gone", "attached"])
        assert flow.events[1].said.startswith("the interface is of another kind now")
        device.arrive([b"\x02" + bytes(11) + b"\x08\x00" + framed])  # which is how tun writes a whole frame
        device.become(NONE)
        until(lambda: told(flow) == ["gone", "attached"] * 2)
        device.arrive([framed])
        got = [packet.data for packet in islice(flow.packets(duration_s=5), 3)]
        assert got == [bare(framed), framed, bare(framed)]
        with pytest.raises(KernelError, match="of another kind"):
            list(other.batches(duration_s=2))


@pytest.mark.parametrize("kind", ["tun", "veth"])
def test_an_interface_that_comes_back_as_another_kind(kind: str) -> None:
    frame = ether(0x0800, ipv4(17, udp(1, 80)))
    with two_namespaces("again") as made, ExitStack() as stack, made.enter():
        flow = Flow.create(follow=True).populate("(device,some7@tc-ingress) -> (bpf,udp) -> (grab)").instantiate()
        stack.enter_context(flow.activate())
        kinds = ["tun", "veth"] if kind == "tun" else ["veth", "tun"]
        for number, each in enumerate(kinds):
            if each == "tun":
                with tun(made, "some7") as device:
                    until(lambda expected=number: told(flow).count("attached") == expected + 1)
                    device.arrive([frame])
            else:
                words = ["ip", "link", "add", "some7", "type", "veth", "peer", "name", "peer7"]
                subprocess.run(words, check=True)
                for name in ("some7", "peer7"):
                    subprocess.run(["ip", "link", "set", name, "up"], check=True)
                until(lambda expected=number: told(flow).count("attached") == expected + 1)
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                    raw.bind(("peer7", 0))
                    raw.send(frame)
                subprocess.run(["ip", "link", "delete", "some7"], check=True)
            until(lambda expected=number: told(flow).count("gone") == expected + 1)
        got = [packet.data for packet in islice(flow.packets(duration_s=5), 2)]
        assert sorted(got) == [bare(frame), frame]


def test_a_file_of_the_command_line_is_read_by_others(network: Network, device: Tun, tmp_path: Path) -> None:
    """`ffpf run -w` at both hooks, read back by libpcap and by ourselves."""
    file = tmp_path / "tun.pcapng"
    command = [str(Path(sys.executable).with_name("ffpf")), "run", "--count", "6", "-w", str(file)]
    expression = "(device,tun7@tc-ingress) | (device,tun7@tc-egress) -> (bpf,udp or icmp6) -> (grab)"
    sent = [
        bare(ether(0x0800, ipv4(17, udp(1, 80, b"first")))),
        bare(ether(0x86DD, ipv6(17, udp(1, 53, b"second")))),
    ]
    process = subprocess.Popen(network.command(*command, expression), stderr=subprocess.PIPE, text=True)
    until_ended(process, lambda: (device.arrive(sent), device.leave(sent)))
    with CaptureFile(str(file)) as capture:
        got = list(capture.packets())
    assert {packet.data for packet in got} == set(sent)
    assert {packet.interface for packet in got} == {"tun7@tc-ingress", "tun7@tc-egress"}
    read = subprocess.run(
        ["tcpdump", "-nn", "-r", str(file), "udp port 53"], capture_output=True, text=True, check=True
    )
    assert "link-type EN10MB" in read.stderr and read.stdout.count(".53: ") == [p.data for p in got].count(sent[1])
