"""The demo's network: two namespaces joined by a veth pair, and the traffic between them. Needs root."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import dpkt
from pyroute2 import netns

TAP, PEER = "demo0", "demo1"
TAP_ADDRESS, PEER_ADDRESS = "10.78.0.1", "10.78.0.2"
TAP_MAC, PEER_MAC = "02:00:00:00:78:01", "02:00:00:00:78:02"
NAMES = "ffpf-demo-"
SPACES = Path("/run/netns")
TERMINATING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def network() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a veth pair; this thread is inside the first, which is where the flow grabs."""
    inside, outside = (f"{NAMES}{os.getpid()}-{side}" for side in ("in", "out"))
    entered = False
    try:
        ip("netns", "add", inside)
        ip("netns", "add", outside)
        ip("link", "add", TAP, "address", TAP_MAC, "netns", inside, "type", "veth",
           "peer", "name", PEER, "address", PEER_MAC, "netns", outside)  # fmt: skip
        for name, link, address in ((inside, TAP, TAP_ADDRESS), (outside, PEER, PEER_ADDRESS)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
        netns.pushns(inside)
        entered = True
        yield inside, outside
    finally:
        for number in (signal.SIGINT, *TERMINATING):  # a second Ctrl-C must not stop the cleaning
            signal.signal(number, signal.SIG_IGN)
        if entered:
            netns.popns()
        for name in (inside, outside):
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        catch_signals()


def remove_leftovers() -> None:
    """Namespaces of a demo that was killed: their names have the id of a process that is no demo any more."""
    for space in SPACES.glob(f"{NAMES}*"):
        process = space.name.removeprefix(NAMES).partition("-")[0]
        try:
            alive = b"demo.py" in Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            alive = False
        if not alive:
            print(f"removing {space.name}, left by a demo that was killed")
            subprocess.run(["ip", "netns", "delete", space.name], check=False)


def packets_received(inside: str) -> int:
    shown = subprocess.run(["ip", "-n", inside, "-j", "-s", "link", "show", TAP], check=True, capture_output=True)
    return int(json.loads(shown.stdout)[0]["stats64"]["rx"]["packets"])


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def namespaces() -> int:
    """How many namespaces have a name."""
    return len(list(SPACES.glob("*")))


def catch_signals() -> None:
    """A terminated demo ends as an interrupted one does: every `finally` runs."""
    for number in TERMINATING:
        signal.signal(number, end)


def end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def traffic(inside: str, outside: str) -> Iterator[None]:
    """Conversations from `outside` to `inside`, by a thread, until the end of the block."""
    stop = threading.Event()
    thread = threading.Thread(target=converse, args=(inside, outside, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def converse(inside: str, outside: str, stop: threading.Event) -> None:
    """Sockets belong to the namespace that they were made in, so one thread can be both sides."""
    netns.setns(inside)
    with socket.create_server((TAP_ADDRESS, 80)) as web, socket.socket(type=socket.SOCK_DGRAM) as names:
        names.bind((TAP_ADDRESS, 53))
        web.settimeout(5)
        names.settimeout(5)
        netns.setns(outside)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((PEER, 0))
            number = 0
            while not stop.wait(0.02):
                number += 1
                ask_web(web)
                for _ in range(3):
                    ask_name(names, number)
                raw.send(echo(number))
                raw.send(in_vlan(7, echo(number)))


def ask_web(web: socket.socket) -> None:
    """A short HTTP conversation."""
    with socket.create_connection((TAP_ADDRESS, 80), timeout=5) as client:
        server, _ = web.accept()
        with server:
            client.sendall(b"GET /index.html HTTP/1.1\r\nHost: demo.example\r\nConnection: close\r\n\r\n")
            server.recv(4096)
            server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello, flow\n")
        client.recv(4096)


def ask_name(names: socket.socket, number: int) -> None:
    """A DNS query, and an answer without any record."""
    query = dpkt.dns.DNS(id=number & 0xFFFF, qd=[dpkt.dns.DNS.Q(name="demo.example")])
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(bytes(query), (TAP_ADDRESS, 53))
        asked, address = names.recvfrom(512)
        names.sendto(asked[:2] + b"\x81\x80" + asked[4:], address)
        client.recv(512)


def echo(number: int) -> bytes:
    """A frame with an ICMP echo request."""
    request = dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=7, seq=number & 0xFFFF, data=b"are you there?"))
    addresses = {"src": socket.inet_aton(PEER_ADDRESS), "dst": socket.inet_aton(TAP_ADDRESS)}
    packet = dpkt.ip.IP(p=dpkt.ip.IP_PROTO_ICMP, data=request, **addresses)
    return mac(TAP_MAC) + mac(PEER_MAC) + b"\x08\x00" + bytes(packet)


def in_vlan(tag: int, frame: bytes) -> bytes:
    return frame[:12] + b"\x81\x00" + tag.to_bytes(2, "big") + frame[12:]


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
