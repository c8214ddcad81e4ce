"""Two network namespaces joined by a veth pair, made and removed by whoever uses them."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pyroute2 import netns

WITHIN_S = 10.0


@dataclass(frozen=True)
class Network:
    """`inside` holds interface `tap0`, where flows grab; `outside` holds `peer0`, which sends to it."""

    inside: str
    outside: str
    tap: str = "tap0"
    peer: str = "peer0"
    tap_address: str = "10.77.0.1"
    peer_address: str = "10.77.0.2"

    @contextmanager
    def enter(self, namespace: str = "") -> Iterator[None]:
        """This thread inside a namespace."""
        netns.pushns(namespace or self.inside)
        try:
            yield
        finally:
            netns.popns()

    def command(self, *words: str, namespace: str = "") -> list[str]:
        return ["ip", "netns", "exec", namespace or self.inside, *words]

    def sender(self) -> socket.socket:
        """A raw socket on the peer: what is sent arrives at the tap."""
        with self.enter(self.outside):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
            raw.bind((self.peer, 0))
        return raw

    def send(self, frames: Sequence[bytes]) -> None:
        """All on one CPU: what counts per CPU, such as a sampler, counts exactly."""
        with one_cpu(), self.sender() as raw:
            send(raw, frames)


def send(raw: socket.socket, frames: Sequence[bytes]) -> None:
    """Each once: what found the receiver's queue full, as on a slow machine, was dropped before it came to the tap."""
    for frame in frames:
        while True:
            try:
                raw.send(frame)
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                time.sleep(0.001)


@contextmanager
def one_cpu() -> Iterator[None]:
    """This thread on one CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def two_namespaces(tag: str, mtu: int = 1500) -> Iterator[Network]:
    """A network whose names carry `tag` and the process id; quiet: no IPv6 chatter."""
    network = Network(f"ffpf-{tag}-{os.getpid()}-in", f"ffpf-{tag}-{os.getpid()}-out")
    try:
        for name in (network.inside, network.outside):
            ip("netns", "add", name)
            subprocess.run(
                ["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"], check=True
            )
        ip("link", "add", network.tap, "netns", network.inside, "type", "veth",
           "peer", "name", network.peer, "netns", network.outside)  # fmt: skip
        for name, link, address in (
            (network.inside, network.tap, network.tap_address),
            (network.outside, network.peer, network.peer_address),
        ):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "mtu", str(mtu), "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield network
    finally:
        for name in (network.inside, network.outside):
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def until(holds: Callable[[], object]) -> None:
    """Wait for it, not longer than 10 s."""
    end_s = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < end_s, "it did not come to that"
        time.sleep(0.01)


def until_ended(process: subprocess.Popen[str], send: Callable[[], object]) -> None:
    """Send, over and over, until the process has ended by itself, not longer than a minute."""
    try:
        for _ in range(600):
            send()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                return
    finally:
        process.kill()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def udp(port: int, payload: bytes = b"x" * 32) -> bytes:
    """An Ethernet frame: IPv4, UDP to `port`."""
    length = 8 + len(payload)
    ip = (
        bytes([0x45, 0])
        + (20 + length).to_bytes(2, "big")
        + bytes([0, 1, 0, 0, 64, 17, 0, 0, 10, 77, 0, 2, 10, 77, 0, 9])
    )
    return (
        bytes(12)
        + b"\x08\x00"
        + ip
        + (1234).to_bytes(2, "big")
        + port.to_bytes(2, "big")
        + length.to_bytes(2, "big")
        + b"\0\0"
        + payload
    )
