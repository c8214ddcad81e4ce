"""Tunnels, whose ends are layer 3 devices: what is in them is seen, without what carries it."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import time
from contextlib import ExitStack

import pytest
from pyroute2 import WireGuard

from ffpf_bpf.kernel import interfaces
from tests.network import WITHIN_S, Network, two_namespaces
from tests.test_hooks import flow_at, received_from

pytestmark = pytest.mark.root

TUNNELS = {
    "ipip": ("type", "ipip", "local", "10.77.0.{own}", "remote", "10.77.0.{other}"),
    "sit": ("type", "sit", "local", "10.77.0.{own}", "remote", "10.77.0.{other}"),
    "ip6tnl": ("type", "ip6tnl", "mode", "any", "local", "fd77::{own}", "remote", "fd77::{other}"),
    "wireguard": ("type", "wireguard"),
}


@pytest.mark.feature("layer 3 tunnels")
@pytest.mark.parametrize("kind", TUNNELS)
def test_tunnels(kind: str) -> None:
    """What is in them, without what carries it, at both ends."""
    with two_namespaces("tunnels") as made:
        ends = [(made.inside, 1, 2), (made.outside, 2, 1)]
        for namespace, own, other in ends:
            words = [word.format(own=own, other=other) for word in TUNNELS[kind]]
            done = subprocess.run(
                ["ip", "-n", namespace, "link", "add", "tnl7", *words], capture_output=True, text=True, check=False
            )
            if done.returncode:
                pytest.skip(f"no {kind} here: {done.stderr.strip()}")
            version6 = kind in ("sit", "ip6tnl")
            carrier = made.tap if namespace == made.inside else made.peer
            for device in ("tnl7", carrier):
                setting = f"net.ipv6.conf.{device}.disable_ipv6=0"
                subprocess.run(made.command("sysctl", "-qw", setting, namespace=namespace), check=True)
            for device, address in (
                (carrier, f"fd77::{own}/64"),
                ("tnl7", f"fd78::{own}/64" if version6 else f"10.78.0.{own}/24"),
            ):
                subprocess.run(["ip", "-n", namespace, "address", "add", address, "dev", device], check=True)
            subprocess.run(["ip", "-n", namespace, "link", "set", "tnl7", "up"], check=True)
        if kind == "wireguard":
            _join_wireguard(made)
        time.sleep(2)  # duplicate addresses are looked for
        address = "fd78::2" if version6 else "10.78.0.2"
        expression = f"(device,{{tap}}) -> (bpf,{'ip6 and udp' if version6 else 'ip and udp'} dst port 7777) -> (grab)"
        with ExitStack() as stack:
            flows = {}
            for namespace, hook in ((made.inside, "tc-egress"), (made.outside, "tc-ingress")):
                end = Network(namespace, namespace, "tnl7")
                flows[hook] = stack.enter_context(flow_at(end, (hook, ""), expression))
            with made.enter(made.outside):
                assert interfaces.find("tnl7").is_layer_3
                family = socket.AF_INET6 if version6 else socket.AF_INET
                receiver = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                receiver.bind(("::" if version6 else "0.0.0.0", 7777))
                receiver.settimeout(WITHIN_S)
            with made.enter(), socket.socket(family, socket.SOCK_DGRAM) as sender:
                for length in (0, 1, 100, 1200):
                    sender.sendto(b"x" * length, (address, 7777))
                    assert receiver.recv(2000) == b"x" * length
            head = 14 + (40 if version6 else 20) + 8
            # Without the last two bytes of the UDP header: who sends leaves the checksum to the device. By length: each
            # may have been seen on another CPU.
            sent, arrived = (
                sorted((length, data[: head - 2] + data[head:]) for data, length in received_from(flows[hook]))
                for hook in ("tc-egress", "tc-ingress")
            )
        assert [length - head for length, _ in sent] == [0, 1, 100, 1200]
        assert arrived == sent
        assert {data[:14] for _, data in sent} == {bytes(12) + (b"\x86\xdd" if version6 else b"\x08\x00")}


def _join_wireguard(made: Network) -> None:
    """Each end knows the other's key, which the kernel works out."""
    ends = ((made.inside, 7001, made.peer_address), (made.outside, 7002, made.tap_address))
    public = []
    for namespace, port, _ in ends:
        private = base64.b64encode(os.urandom(32)).decode()
        with made.enter(namespace), WireGuard() as kernel:
            kernel.set("tnl7", private_key=private, listen_port=port)
            public.append(kernel.info("tnl7")[0].get_attr("WGDEVICE_A_PUBLIC_KEY").decode())
    for (namespace, port, address), key in zip(ends, reversed(public), strict=True):
        peer = {"public_key": key, "endpoint_addr": address, "endpoint_port": 14_003 - port}
        with made.enter(namespace), WireGuard() as kernel:
            kernel.set("tnl7", peer={**peer, "allowed_ips": ["10.78.0.0/24"]})
