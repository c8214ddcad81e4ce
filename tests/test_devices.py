"""At kinds of interfaces: native XDP, or generic with the driver's reason, and the packets are the same at all hooks."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fcntl import ioctl
from pathlib import Path

import pytest

from ffpf_bpf.flow import Flow
from ffpf_bpf.kernel import calls, interfaces
from ffpf_bpf.kernel.maps import Descriptor
from ffpf_bpf.kernel.refusals import explained
from tests.corpus.packets import ether, ipv4, udp
from tests.network import Network, two_namespaces

pytestmark = pytest.mark.root

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
SIZES = (60, 600, 1514)
Send = Callable[[Sequence[bytes]], None]


def ip(network: Network, *words: str) -> None:
    """In the namespace of the tap. Skips the test where the kernel has no such device."""
    done = subprocess.run(["ip", "-n", network.inside, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"`ip {' '.join(words)}` says: {done.stderr.strip()}")


def address_of(network: Network, name: str) -> bytes:
    with network.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return ioctl(any_socket, 0x8927, struct.pack("16s24x", name.encode()))[18:24]


def frames_to(address: bytes) -> list[bytes]:
    """Frames that a device of this address takes for its own."""
    frames = [ether(0x0800, ipv4(17, udp(1, 80, bytes(range(256)) * 5)))[:size] for size in SIZES]
    return [address + frame[6:] for frame in frames]


@contextmanager
def veth(network: Network) -> Iterator[tuple[str, Send]]:
    yield network.tap, network.send


@contextmanager
def bridge_member(network: Network) -> Iterator[tuple[str, Send]]:
    ip(network, "link", "add", "br7", "type", "bridge")
    ip(network, "link", "set", network.tap, "master", "br7")
    yield network.tap, network.send


@contextmanager
def macvlan(network: Network) -> Iterator[tuple[str, Send]]:
    ip(network, "link", "add", "mac7", "link", network.tap, "type", "macvlan")
    ip(network, "link", "set", "mac7", "up")
    yield "mac7", network.send


@contextmanager
def bond_member(network: Network) -> Iterator[tuple[str, Send]]:
    ip(network, "link", "add", "bond7", "type", "bond", "mode", "active-backup")
    ip(network, "link", "set", network.tap, "down")
    ip(network, "link", "set", network.tap, "master", "bond7")
    ip(network, "link", "set", "bond7", "up")
    yield network.tap, network.send


@contextmanager
def tap(network: Network) -> Iterator[tuple[str, Send]]:
    """A device that a process sends through."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("this kernel has no tap devices")
    with network.enter():
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        try:
            ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"tap7", IFF_TAP | IFF_NO_PI))
            ip(network, "link", "set", "tap7", "up")

            def send(frames: Sequence[bytes]) -> None:
                for frame in frames:
                    os.write(descriptor, frame)

            yield "tap7", send
        finally:
            os.close(descriptor)


# The modes in which drivers of each kind have taken programs, on the kernels of the matrix.
DEVICES = [
    (veth, {"native"}),
    (bridge_member, {"native"}),
    (macvlan, {"generic"}),
    # The one kind that not even every host has; each kernel of the matrix does.
    pytest.param(bond_member, {"native"}, marks=pytest.mark.feature("bond")),
    (tap, {"native"}),
]


@pytest.mark.parametrize(("device", "modes"), DEVICES)
def test_whole_frames_at_each_hook(device: Callable[[Network], object], modes: set[str]) -> None:
    """One flow at the interface's three hooks; those that arrive come by two of them."""
    with two_namespaces("devices") as made, ExitStack() as stack:
        name, send = stack.enter_context(device(made))  # type: ignore[arg-type]
        frames = frames_to(address_of(made, name))
        with made.enter():
            expression = f"(device,{name}) | (device,{name}@tc-ingress) | (device,{name}@tc-egress)"
            flow = stack.enter_context(Flow.create().populate(f'{expression} -> (bpf,"udp") -> (grab)').instantiate())
            flow.activate()
            at_xdp = flow.taps[0]
            assert at_xdp["mode"] in modes
            assert (at_xdp["mode"] == "generic") == bool(at_xdp.get("refusal"))
            send(frames)
            flow.pause(wait=True)
            got = [packet for batch in flow.poll() for packet in batch.packets(flow.interfaces)]
        for number, tap_name in enumerate(flow.interfaces):
            arrived = [packet.data for packet in got if packet.interface == tap_name]
            assert arrived == (frames if number < 2 else []), tap_name


def test_asking_why_leaves_nothing_attached() -> None:
    """Not even where the driver would take the program after all."""
    with two_namespaces("asking") as made, made.enter():
        index = interfaces.find(made.tap).index
        with Descriptor(calls.load_program("asks", calls.PASS_PROGRAM)) as program:
            said = explained(errno.EINVAL, program.fileno, index, calls.XDP_FLAGS_DRV_MODE)
            assert said == "invalid argument"
            assert calls.attached_xdp(index)[0] == 0
            said = explained(errno.EOPNOTSUPP, program.fileno, interfaces.find("lo").index, calls.XDP_FLAGS_DRV_MODE)
            assert said.startswith("operation not supported: ") and "native" in said
