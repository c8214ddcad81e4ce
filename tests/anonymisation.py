"""`anonymise` in plain Python, byte for byte, and random frames to try it on.

Written from the docstring of the class and the comments of bpf_src/anonymise.c, not from the C code, so that a mistake
in either shows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache

from tests.corpus.packets import ether, icmp, ipv4, ipv6, sctp, tcp, udp, vlan

WORD = (1 << 64) - 1
TAGS = (0x8100, 0x88A8, 0x9100)
EXTENSIONS = (0, 43, 44, 51, 60, 135)
MOST_HEADER_BYTES = 236
SHOWN_BYTES = {(4, 1): 8, (6, 58): 8, (4, 6): 20, (6, 6): 20, (4, 17): 8, (6, 17): 8, (4, 132): 12, (6, 132): 12}


@lru_cache(1 << 16)
def siphash(key: bytes, message: bytes) -> int:
    """SipHash-2-4, as the paper has it."""
    k0, k1 = number(key[:8], "little"), number(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rounds(count: int) -> None:
        for _ in range(count):
            for a, b, turn, after in ((0, 1, 13, 32), (2, 3, 16, 0), (0, 3, 21, 0), (2, 1, 17, 32)):
                v[a] = v[a] + v[b] & WORD
                v[b] = (v[b] << turn | v[b] >> 64 - turn) & WORD ^ v[a]
                v[a] = (v[a] << after | v[a] >> 64 - after) & WORD

    padded = message + bytes(7 - len(message) % 8) + bytes((len(message) & 0xFF,))
    for at in range(0, len(padded), 8):
        m = number(padded[at : at + 8], "little")
        v[3] ^= m
        rounds(2)
        v[0] ^= m
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def mac_pseudonym(key: bytes, mac: bytes) -> bytes:
    if mac == b"\xff" * 6:
        return mac
    random_bits = siphash(key, mac + b"\x01").to_bytes(8, "little")[:6]
    return bytes((random_bits[0] & 0xFC | 2 | mac[0] & 1,)) + random_bits[1:]


@lru_cache(1 << 16)
def address_pseudonym(key: bytes, address: bytes) -> bytes:
    """Bit after bit, as Crypto-PAn is defined."""
    bits = [byte >> 7 - place & 1 for byte in address for place in range(8)]
    shown = []
    for place, bit in enumerate(bits):
        block = place - place % 6
        before, path = join(bits[:block]), join(bits[block:place])
        if len(address) == 4:
            message = before.to_bytes(4, "little") + bytes((block, 4))
        else:
            message = b"".join(half.to_bytes(8, "little") for half in (before >> 64, before & WORD)) + bytes((block, 6))
        shown.append(bit ^ siphash(key, message) >> (1 << place - block) - 1 + path & 1)
    return join(shown).to_bytes(len(address), "big")


def port_pseudonym(key: bytes, port: int) -> int:
    left, right = port >> 8, port & 0xFF
    for turn in range(4):
        left, right = right, left ^ siphash(key, bytes((right, turn, 2))) & 0xFF
    return left << 8 | right


def join(bits: list[int]) -> int:
    return sum(bit << place for place, bit in enumerate(reversed(bits)))


def number(data: bytes, order: str = "big") -> int:
    return int.from_bytes(data, "little" if order == "little" else "big")


def anonymised(frame: bytes, key: bytes, ports: bool = False) -> bytes:
    """What is shown of a frame of at least 14 bytes."""
    shown = mac_pseudonym(key, frame[:6]) + mac_pseudonym(key, frame[6:12])
    at = 12
    while at < 20 and number(frame[at : at + 2]) in TAGS and len(frame) >= at + 6:
        at += 4
    shown += frame[12 : at + 2]
    body, kind = frame[at + 2 :], number(frame[at : at + 2])
    network = ip4(body, key) if kind == 0x0800 else ip6(body, key) if kind == 0x86DD else None
    if network is None:
        return shown
    header, version, protocol, later, length = network
    if len(shown + header) > MOST_HEADER_BYTES:
        return shown
    room = b"" if later else body[len(header) : length]
    return shown + header + transport(version, protocol, room, key, ports)


def ip4(ip: bytes, key: bytes) -> tuple[bytes, int, int, bool, int] | None:
    """Its header as shown, 4, the protocol, whether it is a later fragment, and how long the packet says it is."""
    header_bytes, length = 4 * (ip[0] & 15) if ip else 0, number(ip[2:4])
    if len(ip) < 20 or ip[0] >> 4 != 4 or not 20 <= header_bytes <= min(len(ip), length):
        return None
    addresses = address_pseudonym(key, ip[12:16]) + address_pseudonym(key, ip[16:20])
    header = ip[:10] + bytes(2) + addresses + b"\x01" * (header_bytes - 20)
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return header, 4, ip[9], number(ip[6:8]) & 0x1FFF != 0, length


def ip6(ip: bytes, key: bytes) -> tuple[bytes, int, int, bool, int] | None:
    if len(ip) < 40 or ip[0] >> 4 != 6:
        return None
    header = ip[:8] + address_pseudonym(key, ip[8:24]) + address_pseudonym(key, ip[24:40])
    length, protocol, later = 40 + number(ip[4:6]), ip[6], False
    for _ in range(8):
        if protocol not in EXTENSIONS or later:
            break
        found = ip[len(header) :]
        if len(found) < 8:
            return None
        size = {44: 8, 51: 4 * (found[1] + 2)}.get(protocol, 8 * (found[1] + 1))
        later = protocol == 44 and number(found[2:4]) >> 3 != 0
        header += found[:8] if protocol == 44 else found[:2] + bytes(size - 2)
        protocol = found[0]
    if (protocol in EXTENSIONS and not later) or len(header) > min(len(ip), length):
        return None
    return header, 6, protocol, later, length


def transport(version: int, protocol: int, data: bytes, key: bytes, ports: bool) -> bytes:
    size = SHOWN_BYTES.get((version, protocol), 0)
    if not size or len(data) < size or (protocol == 6 and data[12] >> 4 < 5):
        return b""
    if protocol in (1, 58):
        return data[:2] + bytes(6)
    two = [number(data[:2]), number(data[2:4])]
    head = b"".join((port_pseudonym(key, port) if ports else port).to_bytes(2, "big") for port in two)
    clear = {6: slice(16, 18), 17: slice(6, 8), 132: slice(8, 12)}[protocol]
    shown = bytearray(head + data[4:size])
    shown[clear] = bytes(clear.stop - clear.start)
    return bytes(shown)


def checksum(header: bytes) -> int:
    total = sum(number(header[at : at + 2]) for at in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def tagged(rng: random.Random, kind: int, payload: bytes) -> bytes:
    """An Ethernet frame with 0 to 3 tags."""
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        payload, kind = vlan(rng.getrandbits(16), kind, payload), rng.choice(TAGS)
    return ether(kind, payload, rng.randbytes(6), rng.choice((b"\xff" * 6, rng.randbytes(6))))


def segment(rng: random.Random) -> tuple[int, bytes]:
    port = rng.getrandbits(16)
    return rng.choice(
        (
            (6, tcp(port, 80, rng.randbytes(50), words=rng.randrange(16), sequence=rng.getrandbits(32))),
            (17, udp(port, 53, rng.randbytes(50))),
            (132, sctp(port, 2905)),
            (1, icmp(rng.randrange(20))),
            (58, icmp(rng.randrange(128, 140))),
            (rng.getrandbits(8), rng.randbytes(rng.randrange(60))),
        )
    )


def frame4(rng: random.Random) -> bytes:
    protocol, body = segment(rng)
    words = rng.choice((5, 5, rng.randrange(16)))
    packet = bytearray(ipv4(protocol, body, words=words, fragment=rng.choice((0, 0, 0x4000, 0x2000, 0x2005, 7))))
    packet[12:20] = rng.randbytes(8)
    packet[20 : 4 * words] = rng.randbytes(max(0, 4 * words - 20))
    if rng.random() < 0.3:
        packet[2:4] = rng.randrange(len(packet) + 20).to_bytes(2, "big")
    return tagged(rng, 0x0800, bytes(packet))


def frame6(rng: random.Random) -> bytes:
    protocol, body = segment(rng)
    for _ in range(rng.choice((0, 0, 1, 2, 3, 9))):
        kind, size = rng.choice(EXTENSIONS), rng.choice((0, 0, 1, 2, 20))
        rest = {44: 6, 51: 4 * size + 6}.get(kind, 8 * size + 6)
        reserved = size if kind != 44 else 0
        body = bytes((protocol, reserved)) + (bytes(2) if rng.random() < 0.5 else b"") + rng.randbytes(rest) + body
        protocol = kind
    packet = bytearray(ipv6(protocol, body, flow=rng.getrandbits(20)))
    packet[8:40] = rng.randbytes(32)
    if rng.random() < 0.2:
        packet[4:6] = rng.randrange(len(packet)).to_bytes(2, "big")
    return tagged(rng, 0x86DD, bytes(packet))


def random_frames(seed: int, count: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        frame = rng.choice((frame4, frame6))(rng)
        yield frame[: rng.randrange(14, len(frame))] if rng.random() < 0.2 else frame
