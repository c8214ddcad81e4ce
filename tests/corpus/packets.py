"""Ethernet frames for differential tests: ordinary, rare, broken and random ones.

`packets(seed)` is the same for the same seed. Its first frames do not depend on the seed: each protocol that
`filters.py` names, with the addresses and ports that it names. No frame is shorter than an Ethernet header.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from ipaddress import ip_address

HEADER_BYTES = 14
LONGEST = 3_400  # what a test run of the kernel takes
JUMBO_BYTES = 9_014

ALICE, BOB = bytes.fromhex("001122334455"), bytes.fromhex("66778899aabb")
EVERYBODY = b"\xff" * 6
STP_GROUP = bytes.fromhex("0180c2000000")
ALL_IS = bytes.fromhex("0180c2000014")

TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "push": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}
PORTS = (0, 20, 22, 25, 53, 80, 100, 123, 150, 179, 200, 443, 500, 1812, 2905, 4789, 6081, 8080, 33440, 65535)


def packets(seed: int) -> list[bytes]:
    """At least 400 frames of 14 to 3,400 bytes."""
    chance = random.Random(seed)
    ordinary = list(_ordinary())
    return [
        *ordinary,
        *_truncated(ordinary),
        *(_mutated(chance, chance.choice(ordinary)) for _ in range(300)),
        *_noise(chance),
        *_long(chance, (1_514, 1_518, 2_000, 3_072, LONGEST)),
    ]


def jumbo_packets(seed: int) -> list[bytes]:
    """A few frames of 9,014 bytes, the MTU of 9,000."""
    return _long(random.Random(seed), (JUMBO_BYTES,))


# Headers. A payload comes last; lengths and version fields are right unless given.


def ether(kind: int, payload: bytes, source: bytes = ALICE, target: bytes = BOB) -> bytes:
    return target + source + struct.pack("!H", kind) + payload


def ipv4(
    protocol: int,
    payload: bytes,
    source: str = "10.0.0.1",
    target: str = "10.0.0.2",
    *,
    words: int = 5,
    tos: int = 0,
    number: int = 1,
    fragment: int = 0,
    ttl: int = 64,
    length: int | None = None,
) -> bytes:
    """`words` is the IHL; `fragment` the flags and the offset in units of 8 bytes. Options are NOPs with an end."""
    options = (b"\x01" * max(0, words * 4 - 21) + b"\x00") if words > 5 else b""
    length = 20 + len(options) + len(payload) if length is None else length
    head = struct.pack("!BBHHHBBH", 0x40 | words, tos, length & 0xFFFF, number, fragment, ttl, protocol, 0)
    return head + ip_address(source).packed + ip_address(target).packed + options + payload


def ipv6(
    protocol: int,
    payload: bytes,
    source: str = "2001:db8::1",
    target: str = "2001:db8::2",
    *,
    flow: int = 0,
    hops: int = 64,
) -> bytes:
    head = struct.pack("!IHBB", 0x6000_0000 | flow, len(payload) & 0xFFFF, protocol, hops)
    return head + ip_address(source).packed + ip_address(target).packed + payload


def tcp(
    source: int, target: int, payload: bytes = b"", *, flags: int = 0x10, words: int = 5, sequence: int = 0
) -> bytes:
    head = struct.pack("!HHIIBBHHH", source, target, sequence, 0, words << 4, flags, 1024, 0, 0)
    return head + b"\x01" * (max(0, words - 5) * 4) + payload


def udp(source: int, target: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def sctp(source: int, target: int) -> bytes:
    return struct.pack("!HHII", source, target, 1, 2) + bytes(16)


def icmp(kind: int, code: int = 0, number: int = 0x1234) -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, number, 1) + b"abcdefghijklmnopqrstuvw"


def arp(operation: int, sender: str = "10.0.0.1", wanted: str = "10.0.0.2") -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + ALICE + ip_address(sender).packed + bytes(6) + ip_address(wanted).packed


def vlan(number: int, kind: int, payload: bytes) -> bytes:
    """The tag's control field, and the type of what it carries."""
    return struct.pack("!HH", number, kind) + payload


def mpls(*labels: int, payload: bytes) -> bytes:
    """A label stack; the last entry has the bottom bit."""
    entries = ((label << 12 | (index == len(labels) - 1) << 8 | 64) for index, label in enumerate(labels))
    return b"".join(struct.pack("!I", entry) for entry in entries) + payload


def pppoe(session: int, protocol: int, payload: bytes) -> bytes:
    return struct.pack("!BBHHH", 0x11, 0, session, len(payload) + 2, protocol) + payload


def llc(target: int, source: int, control: bytes, payload: bytes = b"", group: bytes = BOB) -> bytes:
    """An 802.3 frame: the type field is the length."""
    body = bytes((target, source)) + control + payload
    return ether(len(body), body, target=group).ljust(60, b"\x00")


def snap(organisation: int, kind: int, payload: bytes) -> bytes:
    return llc(0xAA, 0xAA, b"\x03", organisation.to_bytes(3, "big") + struct.pack("!H", kind) + payload)


def geneve(network: int, kind: int, payload: bytes, options: bytes = b"") -> bytes:
    return struct.pack("!BBHI", len(options) // 4, 0, kind, network << 8) + options + payload


def vxlan(network: int, payload: bytes) -> bytes:
    return struct.pack("!II", 0x0800_0000, network << 8) + payload


def isis(kind: int) -> bytes:
    return bytes((0x83, 27, 1, 0, kind, 1, 0, 0)) + bytes(range(30))


def extension(following: int, eighths: int = 0) -> bytes:
    """An IPv6 extension header of 8 * (eighths + 1) bytes."""
    return bytes((following, eighths)) + bytes(6 + 8 * eighths)


def authentication(following: int) -> bytes:
    return bytes((following, 4, 0, 0)) + bytes(20)


def _ordinary() -> Iterator[bytes]:
    yield from _over_ip()
    yield from _ip_itself()
    yield from _control()
    yield from _tunnels()
    yield from _link_layer()


def _over_ip() -> Iterator[bytes]:
    """TCP, UDP and SCTP over both IPs: ports, flags, header lengths, payloads."""
    get = b"GET / HTTP/1.1\r\n\r\n"
    for port in PORTS:
        for segment, protocol in ((tcp(1234, port), 6), (udp(port, 150, b"\x80\x01\x00\x05data"), 17)):
            yield ether(0x0800, ipv4(protocol, segment))
            yield ether(0x86DD, ipv6(protocol, segment))
    for flags in (0, 1, 2, 0x12, 0x14, 0x18, 0x20, 0x42, 0xC2, 0xFF):
        yield ether(0x0800, ipv4(6, tcp(80, 50_000, flags=flags, sequence=7), "192.168.1.10", "10.0.0.1"), BOB, ALICE)
    for words in (0, 4, 5, 6, 8, 15):
        yield ether(0x0800, ipv4(6, tcp(80, 443, get, words=words, flags=0x18)))
        yield ether(0x0800, ipv4(6, tcp(443, 443, b"\x16\x03\x01\x00\x05", words=words)))
    yield ether(0x0800, ipv4(6, tcp(179, 179)))
    yield ether(0x0800, ipv4(6, tcp(80, 1234, flags=0x12), "10.0.0.2", "10.0.0.1", tos=40, length=60), BOB, ALICE)
    yield ether(0x0800, ipv4(17, udp(53, 1234, bytes(1000)), "10.0.0.2", "10.0.0.1", tos=46), BOB, ALICE)
    yield ether(0x0800, ipv4(17, udp(123, 123, bytes(48)), tos=0xB8))
    yield ether(0x0800, ipv4(17, udp(150, 150)))
    yield ether(0x86DD, ipv6(17, udp(150, 150), flow=0x12345))
    yield ether(0x0800, ipv4(17, udp(68, 67, bytes(240)), "0.0.0.0", "255.255.255.255"), target=EVERYBODY)
    yield ether(0x0800, ipv4(17, udp(5000, 5001, bytes(range(200)) + b"\x01"), "172.16.5.4", "128.1.2.3"))
    for source, target in ((2905, 2905), (2905, 40_000), (40_000, 2905)):
        yield ether(0x0800, ipv4(132, sctp(source, target)))
        yield ether(0x86DD, ipv6(132, sctp(source, target)))
    for source, target in (
        ("10.0.0.9", "10.0.0.9"),
        ("10.0.0.15", "192.168.7.1"),
        ("192.168.29.1", "172.16.5.4"),
        ("10.1.0.0", "1.2.3.0"),
        ("10.0.0.0", "0.0.0.10"),
        ("172.45.1.1", "10.29.0.1"),
        ("0.0.0.0", "10.0.0.1"),
    ):
        yield ether(0x0800, ipv4(6, tcp(94, 94, flags=2), source, target))
        yield ether(0x0800, ipv4(17, udp(30, 79), target, source))
    for source, target in (
        ("2001:db8::9", "2001:db8::9"),
        ("2001:db8:8000::1", "fe80::1"),
        ("fe80::1", "ff02::1"),
        ("::1", "::"),
        ("::ffff:10.0.0.1", "2001:db8:0:1::3"),
        ("2001:db8::2", "2001:db8::1"),
        ("2001:4860::8888", "2001:4860::8844"),
    ):
        yield ether(0x86DD, ipv6(17, udp(53, 53, b"\x12\x34" + bytes(120)), source, target))
        yield ether(0x86DD, ipv6(6, tcp(80, 443, flags=2), source, target, hops=255), BOB, ALICE)


def _ip_itself() -> Iterator[bytes]:
    """Every IHL, fragments, hop limits, lengths that lie, protocols without ports, extension headers."""
    segment = tcp(1234, 80, b"GET ")
    for words in range(16):
        yield ether(0x0800, ipv4(6, segment, words=words))
        yield ether(0x0800, ipv4(17, udp(53, 80, b"\x00" * 20), words=words, tos=2))
    for fragment in (0x2000, 0x4000, 0x8000, 0x0001, 0x00B9, 0x2001, 0x1FFF, 0x3FFF):
        yield ether(0x0800, ipv4(6, segment, fragment=fragment))
        yield ether(0x0800, ipv4(17, udp(53, 53), fragment=fragment))
        yield ether(0x0800, ipv4(1, icmp(8), fragment=fragment, number=0x1000))
    for ttl in (0, 1, 3, 4, 59, 128, 192, 255):
        yield ether(0x0800, ipv4(6, segment, ttl=ttl))
        yield ether(0x86DD, ipv6(6, segment, hops=ttl))
    for length in (0, 1, 19, 20, 40, 577, 65_535):
        yield ether(0x0800, ipv4(6, segment, length=length))
    for version in (0x05, 0x55, 0x65):
        yield ether(0x0800, bytes((version,)) + ipv4(6, segment)[1:])
    for protocol, body in (
        (0, bytes(20)),
        (2, b"\x16\x00\x00\x00\xe0\x00\x00\x05"),
        (9, bytes(20)),
        (47, b"\x00\x00\x08\x00" + ipv4(6, segment)),
        (50, b"\x00\x00\x10\x00" + bytes(36)),
        (51, authentication(6) + segment),
        (51, authentication(17) + udp(53, 53)),
        (103, b"\x20\x00\x00\x00" + bytes(20)),
        (112, b"\x21\x01\x64\x01" + bytes(16)),
        (255, b"\xff" * 20),
    ):
        yield ether(0x0800, ipv4(protocol, body, target="224.0.0.5"), target=bytes.fromhex("01005e000005"))
        yield ether(0x86DD, ipv6(protocol, body, target="ff02::5"), target=bytes.fromhex("333300000005"))
    for protocol, body in ((6, segment), (17, udp(53, 53, bytes(32))), (58, icmp(128)), (132, sctp(2905, 2905))):
        for kind in (0, 43, 44, 60):
            yield ether(0x86DD, ipv6(kind, extension(protocol) + body, hops=1))
        yield ether(0x86DD, ipv6(0, extension(60) + extension(43, 2) + extension(44) + extension(protocol) + body))
        yield ether(0x86DD, ipv6(44, bytes((protocol, 0, 0x05, 0xA9)) + bytes(4) + body))
        yield ether(0x86DD, ipv6(51, authentication(protocol) + body))
    yield ether(0x86DD, ipv6(59, b""))


def _control() -> Iterator[bytes]:
    """ICMP of every type named in a filter, ARP, RARP."""
    for kind in (0, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 200):
        yield ether(0x0800, ipv4(1, icmp(kind, 3 if kind == 3 else 0)))
    yield ether(0x0800, ipv4(1, icmp(11, 1), words=6))
    for kind in (1, 2, 3, 4, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 143, 153, 200):
        yield ether(0x86DD, ipv6(58, icmp(kind, 4 if kind == 1 else 0), "fe80::1", "ff02::1", hops=255))
    for operation in (1, 2):
        yield ether(0x0806, arp(operation).ljust(46, b"\x00"), target=EVERYBODY)
        yield ether(0x0806, arp(operation, "192.168.1.10", "10.0.0.1"), BOB, ALICE)
    for operation in (3, 4):
        yield ether(0x8035, arp(operation).ljust(46, b"\x00"), target=EVERYBODY)


def _tunnels() -> Iterator[bytes]:
    """VLAN, QinQ, MPLS, PPPoE, GENEVE, VXLAN, IP in IP: each around TCP, UDP, IPv6 and ARP."""
    web = ipv4(6, tcp(1234, 80, flags=2))
    inner = (
        (0x0800, web),
        (0x0800, ipv4(17, udp(53, 53))),
        (0x86DD, ipv6(6, tcp(1234, 80))),
        (0x0806, arp(1)),
    )
    for kind, payload in inner:
        for number in (0, 1, 5, 100, 0xE005, 4095):
            yield ether(0x8100, vlan(number, kind, payload))
        for outer in (0x8100, 0x88A8, 0x9100):
            yield ether(outer, vlan(100, 0x8100, vlan(5, kind, payload)))
        yield ether(0x8100, vlan(1, 0x8100, vlan(2, 0x8100, vlan(3, kind, payload))))
        for encapsulated in (0x6558, kind):
            body = ether(kind, payload) if encapsulated == 0x6558 else payload
            for options in (b"", bytes(8)):
                for outside in (ipv4, ipv6):
                    carried = outside(17, udp(40_000, 6081, geneve(0xB, encapsulated, body, options)))
                    yield ether(0x0800 if outside is ipv4 else 0x86DD, carried)
        yield ether(0x0800, ipv4(17, udp(40_000, 6081, geneve(0, 0x6558, ether(kind, payload, BOB, EVERYBODY)))))
        yield ether(0x0800, ipv4(17, udp(40_000, 4789, vxlan(5, ether(kind, payload)))))
    for bottom in (web, ipv4(17, udp(53, 53)), ipv6(6, tcp(1234, 80))):
        for labels in ((16,), (100, 16), (1_048_575,), (0,), (3, 2, 1)):
            yield ether(0x8847, mpls(*labels, payload=bottom))
        yield ether(0x8848, mpls(16, payload=bottom))
        yield ether(0x8100, vlan(5, 0x8847, mpls(16, payload=bottom)))
        protocol = 0x21 if bottom[0] >> 4 == 4 else 0x57
        for session in (1, 39):
            yield ether(0x8864, pppoe(session, protocol, bottom))
        yield ether(0x8100, vlan(5, 0x8864, pppoe(39, protocol, bottom)))
        yield ether(0x0800, ipv4(4 if protocol == 0x21 else 41, bottom))
        yield ether(0x86DD, ipv6(4 if protocol == 0x21 else 41, bottom))
    yield ether(0x8863, b"\x11\x09\x00\x00\x00\x04\x01\x01\x00\x00".ljust(46, b"\x00"), target=EVERYBODY)


def _link_layer() -> Iterator[bytes]:
    """802.3 with LLC and SNAP, STP, IS-IS, IPX, AppleTalk, DECnet and other types; sources that are groups."""
    yield llc(0x42, 0x42, b"\x03", bytes(35), STP_GROUP)
    yield llc(0xE0, 0xE0, b"\x03", b"\xff\xff" + bytes(28))
    yield ether(0x8137, b"\xff\xff" + bytes(44))
    yield ether(40, b"\xff\xff" + bytes(44))
    yield llc(0xF0, 0xF0, b"\x03", bytes(40))
    for kind in (15, 16, 17, 18, 20, 24, 25, 26, 27):
        yield llc(0xFE, 0xFE, b"\x03", isis(kind), ALL_IS)
    yield llc(0xFE, 0xFE, b"\x03", b"\x82" + bytes(30), ALL_IS)
    yield llc(0xFE, 0xFE, b"\x03", b"\x81" + bytes(30))
    for control in (b"\x00\x00", b"\x02\x04", b"\x01\x00", b"\x05\x00", b"\x09\x00"):
        yield llc(0x04, 0x04, control, b"frame")
    for unnumbered in (0x03, 0x63, 0x73, 0x43, 0x53, 0x6F, 0x7F, 0xE3, 0xF3, 0xAF, 0xBF, 0x87, 0x97):
        yield llc(0x04, 0x05, bytes((unnumbered,)), b"frame")
    yield snap(0, 0x0800, ipv4(6, tcp(1234, 80)))
    yield snap(0x080007, 0x809B, bytes(20))
    yield snap(0, 0x80F3, arp(1))
    yield snap(0x00000C, 0x2000, bytes(20))
    for kind in (0x809B, 0x80F3, 0x6001, 0x6002, 0x6004, 0x6007, 0x88CC, 0x9000, 0x0600, 0x05DC, 0x05DD, 0xFFFF):
        yield ether(kind, bytes(46))
    decnet_hello = (b"\x0b\x00\x01", b"\x06\x00\x81\x06")
    for start in decnet_hello:
        yield ether(0x6003, b"\x1e\x00" + start + struct.pack("<HH", 1 << 10 | 2, 1 << 10 | 3) + bytes(30))
        yield ether(0x6003, b"\x1e\x00\x06" + struct.pack("<HHB", 1 << 10 | 3, 1 << 10 | 2, 0) + bytes(30))
    yield ether(0x6003, b"\x06" + bytes(45))
    long_ids = b"\xaa\x00\x04\x00" + struct.pack("<H", 1 << 10 | 3) + bytes(2)
    yield ether(0x6003, b"\x1e\x00\x06\x00\x00" + long_ids + long_ids.replace(b"\x03", b"\x02") + bytes(20))
    yield ether(0x6003, b"\x1e\x00\x81\x06\x00\x00" + long_ids + long_ids.replace(b"\x03", b"\x02") + bytes(20))
    yield ether(
        0x0800, ipv4(17, udp(1, 2), "10.0.0.9", "10.0.0.9"), b"\x02" + bytes(4) + b"\x09", b"\x02" + bytes(4) + b"\x09"
    )
    yield ether(0x0800, ipv4(17, udp(1, 2), "224.0.0.1", "255.255.255.255"), EVERYBODY, EVERYBODY)


def _truncated(ordinary: list[bytes]) -> Iterator[bytes]:
    """A few frames cut at every byte, and all of them within the headers' ends."""
    options_and_tcp = ether(0x0800, ipv4(6, tcp(80, 443, b"GET ", words=6), words=6))
    in_geneve = ether(0x0800, ipv4(17, udp(9, 6081, geneve(0xB, 0x6558, ether(0x0800, ipv4(17, udp(53, 53)))))))
    in_qinq = ether(0x88A8, vlan(100, 0x8100, vlan(5, 0x0800, ipv4(6, tcp(1, 80)))))
    with_extensions = ether(0x86DD, ipv6(0, extension(44) + extension(17) + udp(53, 53)))
    for frame in (
        options_and_tcp,
        in_geneve,
        in_qinq,
        with_extensions,
        ether(0x0806, arp(1)),
        ether(0x86DD, ipv6(6, tcp(1, 80))),
    ):
        for length in range(HEADER_BYTES, len(frame)):
            yield frame[:length]
    for index, frame in enumerate(ordinary):
        yield frame[: HEADER_BYTES + index % 46]


def _mutated(chance: random.Random, frame: bytes) -> bytes:
    """One to four changed bytes, mostly in the headers, and now and then a cut or a longer tail."""
    changed = bytearray(frame)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(min(len(changed), 80 if chance.random() < 0.8 else len(changed)))
        changed[place] = chance.choice((0, 0xFF, changed[place] ^ 1 << chance.randrange(8), chance.randrange(256)))
    match chance.randrange(6):
        case 0:
            del changed[chance.randint(HEADER_BYTES, len(changed)) :]
        case 1:
            changed += chance.randbytes(chance.randrange(200))
    return bytes(changed)


def _noise(chance: random.Random) -> Iterator[bytes]:
    for length in (*range(HEADER_BYTES, 60), 60, 64, 100, 256, 1_000):
        yield chance.randbytes(length)
        yield ether(chance.choice((0x0800, 0x86DD, 0x8100, 0x8847, 0x0806)), chance.randbytes(length - HEADER_BYTES))
    for filler in (b"\x00", b"\xff"):
        for length in (HEADER_BYTES, 60, 128):
            yield filler * length


def _long(chance: random.Random, lengths: tuple[int, ...]) -> list[bytes]:
    """Frames of these lengths, of each IP and transport protocol, and one that is all noise."""
    frames = []
    for length in lengths:
        for wrap, kind, head in ((ipv4, 0x0800, 20), (ipv6, 0x86DD, 40)):
            room = length - HEADER_BYTES - head
            frames.append(ether(kind, wrap(6, tcp(80, 50_000, chance.randbytes(room - 20)))))
            frames.append(ether(kind, wrap(17, udp(2049, 1812, chance.randbytes(room - 8)))))
        frames.append(chance.randbytes(length))
    return frames
