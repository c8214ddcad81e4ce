"""A tun device that a test reads and writes: packets without a header of the link layer."""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.network import Network, ip, one_cpu

DEVICE = Path("/dev/net/tun")
TUNSETIFF, TUNSETLINK = 0x400454CA, 0x400454CD
IFF_TUN, IFF_VNET_HDR = 0x0001, 0x4000
VNET_HEADER, PACKET_VNET_HDR, SOL_PACKET = struct.Struct("<BBHHHH"), 15, 263
ANSWER_BYTES = 1 << 17
ETH_P_ALL = 3


@dataclass(frozen=True)
class Tun:
    """A device in the inner namespace of a network, whose `tap` it is. With `pieces`, packets may come in several."""

    network: Network
    descriptor: int
    pieces: bool

    def arrive(self, frames: Sequence[bytes], here: int = 0) -> None:
        """What is behind the addresses of these frames comes in, all on one CPU; of a packet of more than a page, `here`
        bytes are in one piece."""
        vnet = VNET_HEADER.pack(0, 0, here, 0, 0, 0) if self.pieces else b""
        with one_cpu():
            for frame in frames:
                os.write(self.descriptor, struct.pack(">H2s", 0, frame[12:14]) + vnet + frame[14:])

    def leave(self, frames: Sequence[bytes], here: int = 0) -> list[bytes]:
        """The same is sent; what comes out at the other end, type and packet."""
        got = []
        with (
            self.network.enter(),
            one_cpu(),
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw,
        ):
            raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, int(self.pieces))
            vnet = VNET_HEADER.pack(0, 0, here, 0, 0, 0) if self.pieces else b""
            for frame in frames:
                raw.sendto(vnet + frame[14:], (self.network.tap, int.from_bytes(frame[12:14], "big")))
                got += self.sent()
        return got

    def send(self, hook: str, frames: Sequence[bytes], here: int = 0) -> None:
        """To the device, or from it where the hook is about egress."""
        if hook == "tc-egress":
            self.leave(frames, here)
        else:
            self.arrive(frames, here)

    def sent(self) -> list[bytes]:
        """What was sent and not read yet: type and packet."""
        got = []
        while select.select([self.descriptor], [], [], 0)[0]:
            read = os.read(self.descriptor, ANSWER_BYTES)
            got.append(read[2:4] + read[4 + VNET_HEADER.size * self.pieces :])
        return got

    def become(self, kind: int) -> None:
        """An interface of another kind (ARPHRD_): down and up again."""
        self.set("down")
        ioctl(self.descriptor, TUNSETLINK, kind)
        self.set("up")

    def set(self, *words: str) -> None:
        ip("-n", self.network.inside, "link", "set", self.network.tap, *words)


def bare(frame: bytes) -> bytes:
    """The frame as a tap of a layer 3 device shows it: without addresses."""
    return bytes(12) + frame[12:]


@contextmanager
def tun(network: Network, name: str = "tun7", *, pieces: bool = False, mtu: int = 1500) -> Iterator[Tun]:
    """Beside the network's tap. Skips the test where the kernel has no such device."""
    if not DEVICE.exists() and (modprobe := shutil.which("modprobe")):
        subprocess.run([modprobe, "-q", "tun"], check=False)
    if not DEVICE.exists():
        pytest.skip("this kernel has no tun devices")
    with network.enter():
        descriptor = os.open(DEVICE, os.O_RDWR)
    try:
        flags = IFF_TUN | (IFF_VNET_HDR if pieces else 0)
        ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        made = Tun(replace(network, tap=name), descriptor, pieces)
        made.set("mtu", str(mtu), "up")
        yield made
    finally:
        os.close(descriptor)
