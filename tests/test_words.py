"""Packets in words: golden lines, tcpdump as the second opinion, and bytes that mean nothing."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.mpls import MPLS
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRROPT, DNSRRSRV
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, GRE, LLC, SNAP, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.layers.ppp import PPP, PPPoE, PPPoED
from scapy.layers.sctp import SCTP, SCTPChunkData, SCTPChunkInit, SCTPChunkSACK
from scapy.packet import Packet as Layers
from scapy.packet import Raw

from ffpf_bpf.capture.packet import Packet
from ffpf_bpf.capture.words import line

TIME_NS = 1_732_351_533_123_456_789
MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}
E = Ether(**MACS)
I4 = IP(src="10.0.0.1", dst="10.0.0.2")
I6 = IPv6(src="fe80::1", dst="fe80::2")
QUOTED = IP(src="10.0.0.2", dst="10.0.0.1") / UDP(sport=9, dport=10)
QUOTED6 = IPv6(src="fe80::2", dst="fe80::1") / UDP(sport=9, dport=10)
QUESTION = DNSQR(qname="example.com")
SYN_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]

# Lines that tcpdump 4.99 prints, too, word for word.
AS_TCPDUMP: list[tuple[Layers, str]] = [
    (
        E / I4 / TCP(sport=1234, dport=80, flags="S", seq=1, window=64240, options=SYN_OPTIONS),
        "IP 10.0.0.1.1234 > 10.0.0.2.80: Flags [S], seq 1, win 64240, "
        "options [mss 1460,sackOK,TS val 1 ecr 0,nop,wscale 7], length 0",
    ),
    (
        E / I4 / TCP(sport=80, dport=1234, flags="SA", seq=4294967295, ack=2, window=100),
        "IP 10.0.0.1.80 > 10.0.0.2.1234: Flags [S.], seq 4294967295, ack 2, win 100, length 0",
    ),
    (
        E / I4 / TCP(sport=1234, dport=9999, flags="PA", seq=4294967294, ack=5) / b"hello",
        "IP 10.0.0.1.1234 > 10.0.0.2.9999: Flags [P.], seq 4294967294:3, ack 5, win 8192, length 5",
    ),
    (
        E / I4 / TCP(sport=1234, dport=9999, flags="A", seq=1, ack=5),
        "IP 10.0.0.1.1234 > 10.0.0.2.9999: Flags [.], ack 5, win 8192, length 0",
    ),
    (
        E / I4 / TCP(sport=1234, dport=9999, flags="RAU", seq=1, ack=5, urgptr=3),
        "IP 10.0.0.1.1234 > 10.0.0.2.9999: Flags [R.U], seq 1, ack 5, win 8192, urg 3, length 0",
    ),
    (
        E / I4 / TCP(sport=1234, dport=9999, flags="SEC", seq=1),
        "IP 10.0.0.1.1234 > 10.0.0.2.9999: Flags [SEW], seq 1, win 8192, length 0",
    ),
    (
        E / I4 / TCP(sport=1234, dport=9999, flags=0),
        "IP 10.0.0.1.1234 > 10.0.0.2.9999: Flags [none], win 8192, length 0",
    ),
    (
        E / I4 / TCP(sport=1, dport=2, flags="FA", ack=5, seq=9, options=[("SAck", (5, 10, 15, 20)), ("EOL", None)]),
        "IP 10.0.0.1.1 > 10.0.0.2.2: Flags [F.], seq 9, ack 5, win 8192, options [sack 2 {5:10}{15:20},eol], length 0",
    ),
    (E / I4 / UDP(sport=1, dport=2) / b"abc", "IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 3"),
    (E / I4 / UDP(sport=1, dport=2) / b"abc" / Raw(bytes(15)), "IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 18"),
    (
        E / I4 / UDP(sport=4000, dport=53) / DNS(id=7, rd=1, qd=[QUESTION]),
        "IP 10.0.0.1.4000 > 10.0.0.2.53: 7+ A? example.com. (29)",
    ),
    (
        E / I4 / UDP(sport=4000, dport=53) / DNS(id=7, rd=1, qd=[DNSQR(qname=".", qtype="NS")], ar=[DNSRROPT()]),
        "IP 10.0.0.1.4000 > 10.0.0.2.53: 7+ [1au] NS? . (28)",
    ),
    (
        E
        / I4
        / UDP(sport=53, dport=4000)
        / DNS(
            id=7,
            qr=1,
            ra=1,
            qd=[QUESTION],
            an=[
                DNSRR(rrname="example.com", type="CNAME", rdata="www.example.com"),
                DNSRR(rrname="www.example.com", rdata="192.0.2.1"),
                DNSRR(rrname="www.example.com", type="AAAA", rdata="2001:db8::1"),
                DNSRR(rrname="example.com", type="TXT", rdata="hi there"),
                DNSRRMX(rrname="example.com", exchange="mx.example.com", preference=10),
                DNSRRSRV(rrname="example.com", target="sip.example.com", port=5060, priority=1, weight=2),
            ],
        ),
        "IP 10.0.0.1.53 > 10.0.0.2.4000: 7 6/0/0 CNAME www.example.com., A 192.0.2.1, AAAA 2001:db8::1, "
        'TXT "hi there", MX mx.example.com. 10, SRV sip.example.com.:5060 1 2 (262)',
    ),
    (
        E / I4 / UDP(sport=53, dport=4000) / DNS(id=7, qr=1, aa=1, ra=0, rcode=3, qd=[QUESTION]),
        "IP 10.0.0.1.53 > 10.0.0.2.4000: 7 NXDomain*- 0/0/0 (29)",
    ),
    (
        E / I4 / ICMP(type=8, id=3, seq=4) / bytes(56),
        "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 3, seq 4, length 64",
    ),
    (
        E / I4 / ICMP(type=0, id=3, seq=4) / bytes(56),
        "IP 10.0.0.1 > 10.0.0.2: ICMP echo reply, id 3, seq 4, length 64",
    ),
    *(
        (E / I4 / ICMP(type=kind, code=code, **more) / QUOTED, f"IP 10.0.0.1 > 10.0.0.2: ICMP {words}, length 36")
        for kind, code, more, words in (
            (3, 0, {}, "net 10.0.0.1 unreachable"),
            (3, 1, {}, "host 10.0.0.1 unreachable"),
            (3, 2, {}, "10.0.0.1 protocol 17 unreachable"),
            (3, 3, {}, "10.0.0.1 udp port 10 unreachable"),
            (3, 4, {"nexthopmtu": 1400}, "10.0.0.1 unreachable - need to frag (mtu 1400)"),
            (3, 9, {}, "net 10.0.0.1 unreachable - admin prohibited"),
            (3, 10, {}, "host 10.0.0.1 unreachable - admin prohibited"),
            (3, 13, {}, "host 10.0.0.1 unreachable - admin prohibited filter"),
            (5, 1, {"gw": "10.0.0.9"}, "redirect 10.0.0.1 to host 10.0.0.9"),
            (11, 0, {}, "time exceeded in-transit"),
            (11, 1, {}, "ip reassembly time exceeded"),
        )
    ),
    (E / I4 / ICMP(type=13), "IP 10.0.0.1 > 10.0.0.2: ICMP time stamp query id 0 seq 0, length 20"),
    (E / I4 / ICMP(type=77), "IP 10.0.0.1 > 10.0.0.2: ICMP type-#77, length 8"),
    (
        E / I6 / TCP(sport=1234, dport=80, flags="S", seq=1),
        "IP6 fe80::1.1234 > fe80::2.80: Flags [S], seq 1, win 8192, length 0",
    ),
    (E / I6 / UDP(sport=1, dport=2) / b"abc", "IP6 fe80::1.1 > fe80::2.2: UDP, length 3"),
    *(
        (E / I6 / message, f"IP6 fe80::1 > fe80::2: ICMP6, {words}")
        for message, words in (
            (ICMPv6EchoRequest(id=1, seq=2) / b"abc", "echo request, id 1, seq 2, length 11"),
            (ICMPv6EchoReply(id=1, seq=2) / b"abc", "echo reply, id 1, seq 2, length 11"),
            (ICMPv6ND_NS(tgt="fe80::9"), "neighbor solicitation, who has fe80::9, length 24"),
            (ICMPv6ND_NA(tgt="fe80::9"), "neighbor advertisement, tgt is fe80::9, length 24"),
            (ICMPv6ND_RS(), "router solicitation, length 8"),
            (ICMPv6ND_RA(), "router advertisement, length 16"),
            (ICMPv6PacketTooBig(mtu=1280) / QUOTED6, "packet too big, mtu 1280, length 56"),
            (ICMPv6TimeExceeded() / QUOTED6, "time exceeded in-transit for fe80::1, length 56"),
            (
                ICMPv6DestUnreach(code=4) / QUOTED6,
                "destination unreachable, unreachable port, fe80::1 udp port 10, length 56",
            ),
            (
                ICMPv6DestUnreach(code=3) / QUOTED6,
                "destination unreachable, unreachable address fe80::1, length 56",
            ),
        )
    ),
    (
        E / I6 / IPv6ExtHdrHopByHop() / ICMPv6EchoRequest(id=1, seq=2),
        "IP6 fe80::1 > fe80::2: HBH ICMP6, echo request, id 1, seq 2, length 8",
    ),
    (
        E / I6 / IPv6ExtHdrFragment(offset=100, m=1, id=5, nh=17) / Raw(bytes(100)),
        "IP6 fe80::1 > fe80::2: frag (800|100)",
    ),
    (E / ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2"), "ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 28"),
    (
        E / ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2", hwdst="02:00:00:00:00:09") / Raw(bytes(18)),
        "ARP, Request who-has 10.0.0.2 (02:00:00:00:00:09) tell 10.0.0.1, length 46",
    ),
    (
        E / ARP(op=2, psrc="10.0.0.1", hwsrc="02:00:00:00:00:01"),
        "ARP, Reply 10.0.0.1 is-at 02:00:00:00:00:01, length 28",
    ),
    (
        E / IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP(sport=1, dport=2, len=3000) / Raw(bytes(1472)),
        "IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 2992",
    ),
    (
        Ether(type=0x8847, **MACS)
        / MPLS(label=100, s=0, ttl=63)
        / MPLS(label=200, s=1, ttl=64)
        / I4
        / UDP(sport=1, dport=2),
        "MPLS (label 100, tc 0, ttl 63) (label 200, tc 0, [S], ttl 64) IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 0",
    ),
    (
        Dot3(**MACS) / LLC() / STP(bridgeid=0x8000, bridgemac="02:00:00:00:00:07", portid=0x8001),
        "STP 802.1d, Config, Flags [none], bridge-id 8000.02:00:00:00:00:07.8001, length 35",
    ),
    (
        Dot3(**MACS) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x800) / I4 / UDP(sport=1, dport=2),
        "IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 0",
    ),
    (Ether(type=0x88CC, **MACS) / Raw(bytes(11)), "LLDP, length 11"),
    (
        E / I4 / GRE() / I4 / UDP(sport=1, dport=2),
        "IP 10.0.0.1 > 10.0.0.2: GREv0, length 32: IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 0",
    ),
    (
        E / I4 / IP(src="10.0.0.3", dst="10.0.0.4") / UDP(sport=1, dport=2),
        "IP 10.0.0.1 > 10.0.0.2: IP 10.0.0.3.1 > 10.0.0.4.2: UDP, length 0",
    ),
    (
        E / I4 / I6 / UDP(sport=1, dport=2),
        "IP 10.0.0.1 > 10.0.0.2: IP6 fe80::1.1 > fe80::2.2: UDP, length 0",
    ),
    (
        E / IP(src="10.0.0.1", dst="10.0.0.2", proto=50) / Raw(bytes.fromhex("0000000100000002") + bytes(8)),
        "IP 10.0.0.1 > 10.0.0.2: ESP(spi=0x00000001,seq=0x2), length 16",
    ),
]

# Lines of our own, where tcpdump says less, or says it in two lines.
OUR_OWN: list[tuple[Layers, str]] = [
    (E / Dot1Q(vlan=5) / I4 / UDP(sport=1, dport=2), "vlan 5, p 0, IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 0"),
    (
        E / Dot1AD(vlan=7, prio=3, dei=1) / Dot1Q(vlan=5) / I6 / UDP(sport=1, dport=2),
        "vlan 7, p 3, DEI, vlan 5, p 0, IP6 fe80::1.1 > fe80::2.2: UDP, length 0",
    ),
    (E / Dot1Q(vlan=5, type=0x88B5) / Raw(bytes(46)), "vlan 5, p 0, ethertype Unknown (0x88b5), length 46"),
    (
        E / IP(src="10.0.0.1", dst="10.0.0.2", frag=185, proto=17) / Raw(bytes(100)),
        "IP 10.0.0.1 > 10.0.0.2: ip-proto-17, fragment at 1480, length 100",
    ),
    (
        E / I6 / IPv6ExtHdrFragment(offset=0, m=1) / UDP(sport=9, dport=10, len=3000) / Raw(bytes(92)),
        "IP6 fe80::1.9 > fe80::2.10: frag (0|100) UDP, length 2992",
    ),
    (E / I6 / IPv6ExtHdrDestOpt() / UDP(sport=9, dport=10), "IP6 fe80::1.9 > fe80::2.10: DSTOPT UDP, length 0"),
    (
        E / I4 / UDP(sport=4000, dport=53) / DNS(id=7, rd=1, qd=[DNSQR(qname="example.com", qtype=65)]),
        "IP 10.0.0.1.4000 > 10.0.0.2.53: 7+ HTTPS? example.com. (29)",
    ),
    (
        E / I4 / UDP(sport=4000, dport=53) / DNS(id=7, rd=0, qd=[DNSQR(qname=b"\x1b[2J\xc3\xbc.org")]),
        r"IP 10.0.0.1.4000 > 10.0.0.2.53: 7 A? \x1b[2J\xfc.org. (28)",
    ),
    (E / I4 / SCTP(sport=1, dport=2) / SCTPChunkInit(), "IP 10.0.0.1.1 > 10.0.0.2.2: sctp (1) [INIT] length 20"),
    (
        E / I4 / SCTP(sport=1, dport=2) / SCTPChunkSACK() / SCTPChunkData(data=b"abcd"),
        "IP 10.0.0.1.1 > 10.0.0.2.2: sctp (1) [SACK] (2) [DATA] length 36",
    ),
    (
        E / IP(src="10.0.0.1", dst="10.0.0.2", proto=132) / Raw(bytes(12) + bytes.fromhex("0100000003000004")),
        "IP 10.0.0.1.0 > 10.0.0.2.0: sctp (1) [INIT] (2) [SACK] length 8",
    ),
    (
        E
        / IP(src="10.0.0.1", dst="10.0.0.2", proto=132, len=36)
        / Raw(bytes(12) + bytes.fromhex("0e000004") + bytes(10)),
        "IP 10.0.0.1.0 > 10.0.0.2.0: sctp (1) [SHUTDOWN COMPLETE] length 4",
    ),
    (
        E / IPv6(src="fe80::1", dst="fe80::2", nh=51) / Raw(bytes.fromhex("1104") + bytes(22)) / UDP(sport=9, dport=10),
        "IP6 fe80::1.9 > fe80::2.10: AH UDP, length 0",
    ),
    (
        E / I4 / UDP(sport=4000, dport=53) / DNS(id=7, rd=0, qd=[DNSQR(qname=b"\xff\xfe.org")]),
        "IP 10.0.0.1.4000 > 10.0.0.2.53: 7 [|domain] (24)",
    ),
    (
        E
        / I4
        / UDP(sport=53, dport=1)
        / Raw(bytes.fromhex("0007818000000001000000000161000001000100000000") + b"\0\3abc"),
        "IP 10.0.0.1.53 > 10.0.0.2.1: 7 1/0/0 [|domain] (28)",
    ),
    (
        E / PPPoE(sessionid=1) / PPP(proto=0x21) / I4 / UDP(sport=1, dport=2),
        "PPPoE [ses 0x1] IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 0",
    ),
    (E / PPPoE(sessionid=1) / PPP(proto=0xC021) / Raw(b"\1\1\0\4"), "PPPoE [ses 0x1] LCP, length 4"),
    (E / PPPoED(code=9), "PPPoE PADI, length 0"),
    (
        Dot3(**MACS) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0xC, code=0x2000) / Raw(bytes(8)),
        "SNAP, oui 0x00000c, pid 0x2000, length 8",
    ),
    (
        Dot3(**MACS) / LLC(dsap=0xF0, ssap=0xF0, ctrl=3) / Raw(bytes(6)),
        "LLC, dsap 0xf0, ssap 0xf0, cmd 0x03, length 9",
    ),
    (
        Dot3(**MACS) / LLC(dsap=0x42, ssap=0x42, ctrl=3) / Raw(bytes.fromhex("00000080")),
        "STP 802.1d, Topology Change, length 4",
    ),
    (
        Ether(type=0x88B5, **MACS) / Raw(bytes(46)),
        "02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype Unknown (0x88b5), length 60",
    ),
    (E / IP(src="10.0.0.1", dst="10.0.0.2", proto=99) / Raw(b"12345"), "IP 10.0.0.1 > 10.0.0.2: ip-proto-99 5"),
    (
        E / I4 / TCP(sport=1, dport=2, dataofs=3),
        "IP 10.0.0.1.1 > 10.0.0.2.2: tcp 20 [bad hdr length 12 - too short, < 20]",
    ),
    (
        E / I4 / TCP(sport=1, dport=2, dataofs=15),
        "IP 10.0.0.1.1 > 10.0.0.2.2: tcp 20 [bad hdr length 60 - too long, > 20]",
    ),
    *(
        (
            E / IP(src="10.0.0.1", dst="10.0.0.2", proto=6) / Raw(bytes(12) + b"\x60\x00" + bytes(6) + options),
            f"IP 10.0.0.1.0 > 10.0.0.2.0: Flags [none], win 0, options [{words}], length 0",
        )
        for options, words in (
            (b"\x01\x02\x05\x00", "nop,[bad opt]"),
            (b"\x01\x01\x01\x08", "nop,nop,nop,[bad opt]"),
            (b"\x02\x00\x01\x01", "[bad opt]"),
            (b"\x02\x01\x01\x01", "[bad opt]"),
            (b"\xfe\x04\xab\xcd", "unknown-254 0xabcd"),
            (b"\x02\x03\x05\x01", "unknown-2 0x05,nop"),
        )
    ),
    (E / I4 / UDP(sport=1, dport=2, len=7), "IP 10.0.0.1.1 > 10.0.0.2.2: truncated-udplength 7"),
    (E / IP(ihl=4) / UDP(), "IP bad-hlen 16"),
    (E / IP(len=19) / UDP(), "IP bad-len 19"),
    (E / IP(version=5) / UDP(), "IP wrong version 5, length 28"),
    (
        E / IP(src="10.0.0.1", dst="10.0.0.2", len=0) / TCP(sport=1, dport=2, flags="A") / Raw(bytes(9)),
        "IP 10.0.0.1.1 > 10.0.0.2.2: Flags [.], seq 0:9, ack 0, win 8192, length 9",
    ),
    (
        E / IP(src="10.0.0.1", dst="10.0.0.2", len=40) / UDP(sport=1, dport=2),
        "IP truncated-ip - 12 bytes missing! 10.0.0.1.1 > 10.0.0.2.2: UDP, length 0",
    ),
]
FRAMES = [bytes(layers) for layers, _ in AS_TCPDUMP + OUR_OWN]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """The time zone, which a test may change."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    move("UTC")
    yield move
    monkeypatch.undo()
    time.tzset()


def words(data: bytes, captured: int | None = None) -> str:
    """What `line` says after time and interface."""
    text = line(Packet(TIME_NS, data[:captured], len(data), "eth0"))
    head, rest = text[:24], text[24:]
    assert head == "08:45:33.123456789 eth0 "
    return rest


def tcpdump(path: Path, frames: list[bytes], captured: int = 65535) -> list[str]:
    """The lines tcpdump prints of the frames, after the time; hex dumps and what belongs to them left out."""
    records = (struct.pack("<IIII", 0, 0, len(frame[:captured]), len(frame)) + frame[:captured] for frame in frames)
    path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + b"".join(records))
    done = subprocess.run(["tcpdump", "-n", "-S", "-r", str(path)], capture_output=True, text=True, check=True)
    return [text.split(" ", 1)[1] for text in done.stdout.splitlines() if text.startswith("00:00:00.")]


@pytest.mark.parametrize(("layers", "expected"), AS_TCPDUMP + OUR_OWN, ids=[text for _, text in AS_TCPDUMP + OUR_OWN])
def test_golden_line(layers: Layers, expected: str) -> None:
    assert words(bytes(layers)) == expected


def test_tcpdump_says_the_same(tmp_path: Path) -> None:
    said = tcpdump(tmp_path / "frames.pcap", [bytes(layers) for layers, _ in AS_TCPDUMP])
    assert said == [words(bytes(layers)) for layers, _ in AS_TCPDUMP]


@pytest.mark.parametrize("captured", [14, 20, 34, 36, 38, 42, 54, 58, 66])
def test_tcpdump_cuts_off_at_the_same_layer(tmp_path: Path, captured: int) -> None:
    """Addresses and ports as far as they were captured, and then the layer's mark."""
    frames = [bytes(E / ip / layer) for ip in (I4, I6) for layer in (UDP(sport=1, dport=2), TCP(sport=1, dport=2))]
    frames += [bytes(E / I4 / ICMP() / bytes(56)), bytes(E / I6 / ICMPv6EchoRequest()), bytes(E / ARP())]
    said = tcpdump(tmp_path / "frames.pcap", frames, captured)
    for frame, theirs in zip(frames, said, strict=True):
        ours = words(frame, captured)
        assert ("[|" in ours) == ("[|" in theirs), (ours, theirs)
        assert ours.split(": ")[0] == theirs.replace("  ", " ").split(": ")[0] or "[|" in ours.split(": ")[0]
        if "[|" in theirs and captured > 34:
            assert ours.split("[|")[1].split("]")[0] == theirs.split("[|")[1].split("]")[0]


@pytest.mark.parametrize(
    ("frame", "captured", "expected"),
    [
        (E / I4 / UDP(), 13, "[|ether]"),
        (E / I4 / UDP(), 33, "IP [|ip]"),
        (E / I6 / UDP(), 53, "IP6 [|ip6]"),
        (E / I4 / TCP(sport=1, dport=2), 37, "IP 10.0.0.1 > 10.0.0.2: [|tcp]"),
        (E / I4 / TCP(sport=1, dport=2), 38, "IP 10.0.0.1.1 > 10.0.0.2.2: [|tcp]"),
        (
            E / I4 / TCP(sport=1, dport=2, flags="S", options=SYN_OPTIONS),
            62,
            "IP 10.0.0.1.1 > 10.0.0.2.2: Flags [S], seq 0, win 8192, options [mss 1460,sackOK,[|tcp]], length 0",
        ),
        (
            E / I4 / TCP(sport=1, dport=2, flags="S", options=SYN_OPTIONS),
            60,
            "IP 10.0.0.1.1 > 10.0.0.2.2: Flags [S], seq 0, win 8192, options [mss 1460,sackOK,[|tcp]], length 0",
        ),
        (E / I4 / UDP(sport=1, dport=2), 41, "IP 10.0.0.1.1 > 10.0.0.2.2: [|udp]"),
        (E / I4 / UDP(sport=1, dport=53) / DNS(id=7), 53, "IP 10.0.0.1.1 > 10.0.0.2.53: [|domain]"),
        (
            E / I4 / UDP(sport=1, dport=53) / DNS(id=7, rd=1, qd=[QUESTION]),
            60,
            "IP 10.0.0.1.1 > 10.0.0.2.53: 7+ [|domain] (29)",
        ),
        (
            E
            / I4
            / UDP(sport=53, dport=1)
            / DNS(id=7, qr=1, ra=1, qd=[], an=[DNSRR(rrname="a", type="TXT", rdata="abc")]),
            70,
            "IP 10.0.0.1.53 > 10.0.0.2.1: 7 1/0/0 [|domain] (29)",
        ),
        (E / I4 / ICMP(type=3, code=3) / QUOTED, 50, "IP 10.0.0.1 > 10.0.0.2: ICMP unreachable [|icmp], length 36"),
        (
            E / I4 / ICMP(type=3, code=3) / QUOTED,
            64,
            "IP 10.0.0.1 > 10.0.0.2: ICMP 10.0.0.1 udp port ? unreachable, length 36",
        ),
        (E / I6 / ICMPv6ND_NS(), 70, "IP6 fe80::1 > fe80::2: ICMP6, neighbor [|icmp6], length 24"),
        (E / ARP(), 41, "ARP, [|arp], length 28"),
        (E / Dot1Q(vlan=5) / I4, 17, "[|vlan]"),
        (E / Dot1Q(vlan=5) / I4, 18, "vlan 5, p 0, IP [|ip]"),
        (Ether(type=0x8847, **MACS) / MPLS(label=1, s=1) / I4, 17, "MPLS [|mpls]"),
        (E / PPPoE() / PPP(proto=0x21), 21, "PPPoE [|ppp]"),
        (Dot3(**MACS) / LLC() / STP(), 40, "STP 802.1d, Config [|stp], length 35"),
        (E / I4 / SCTP(sport=1, dport=2) / SCTPChunkInit(), 45, "IP 10.0.0.1.1 > 10.0.0.2.2: [|sctp]"),
        (
            E / I4 / SCTP(sport=1, dport=2) / SCTPChunkSACK() / SCTPChunkInit(),
            64,
            "IP 10.0.0.1.1 > 10.0.0.2.2: sctp (1) [SACK] length 36 [|sctp]",
        ),
    ],
)
def test_what_was_not_captured(frame: Layers, captured: int, expected: str) -> None:
    assert words(bytes(frame), captured) == expected


def test_padding_of_a_short_frame_is_not_counted() -> None:
    frame = bytes(E / I4 / TCP(sport=1, dport=2, flags="A")) + bytes(6)
    assert words(frame) == "IP 10.0.0.1.1 > 10.0.0.2.2: Flags [.], ack 0, win 8192, length 0"


def test_time_is_local_and_in_nanoseconds(utc: Callable[[str], None]) -> None:
    frame = bytes(E / I4 / UDP())
    assert line(Packet(1, frame, 42, "lo")).startswith("00:00:00.000000001 lo IP ")
    utc("EST5")
    assert line(Packet(TIME_NS, frame, 42, "lo")).startswith("03:45:33.123456789 lo IP ")
    assert line(Packet(2**64 - 1, frame, 42, "lo")).split()[0].endswith(".709551615")


def test_nesting_ends() -> None:
    tags = bytes.fromhex("020000000002020000000001") + bytes.fromhex("81000005") * 16_000
    assert words(tags) == "vlan 5, p 0, " * 9 + f"..., length {len(tags) - 14 - 36}"
    tunnels = E
    for _ in range(30):
        tunnels = tunnels / I4
    assert words(bytes(tunnels)).count("IP") == 9
    labels = bytes(Ether(type=0x8847, **MACS)) + bytes(4 * 1000)
    assert words(labels) == "MPLS" + " (label 0, tc 0, ttl 0)" * 8 + " ..."
    extensions = bytes(E / I6)[:20] + b"\0" + bytes(E / I6)[21:] + bytes(8 * 100)
    assert words(extensions).endswith(" HBH" * 8 + " ...")
    answers = DNS(id=1, qr=1, ra=1, qd=[], an=[DNSRR(rrname="a", rdata="192.0.2.1")] * 50)
    assert words(bytes(E / I4 / UDP(sport=53, dport=1) / answers)).count("A 192.0.2.1") == 8


def test_every_protocol_number() -> None:
    for protocol in range(256):
        for ip in (IP(src="10.0.0.1", dst="10.0.0.2", proto=protocol), IPv6(src="::1", dst="::2", nh=protocol)):
            for payload in (b"", bytes(100), b"\xff" * 100):
                assert " > " in words(bytes(E / ip / Raw(payload)))


def check(data: bytes, length: int, interface: str = "eth0") -> None:
    text = line(Packet(TIME_NS, data, length, interface))
    assert text.isascii() and text.isprintable()
    assert len(text) < 4000


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_any_bytes(data: bytes, more: int) -> None:
    check(data, len(data) + more)


@given(
    st.sampled_from([0x0800, 0x86DD, 0x0806, 0x8100, 0x8847, 0x8864, 0x0026, 0x88A8, 0x0005]), st.binary(max_size=200)
)
def test_any_bytes_behind_an_ethertype(ethertype: int, data: bytes) -> None:
    check(bytes(12) + ethertype.to_bytes(2, "big") + data, 14 + len(data))


@given(st.sampled_from([*range(256)]), st.binary(max_size=100), st.booleans())
def test_any_bytes_behind_a_protocol(protocol: int, data: bytes, six: bool) -> None:
    ip = (
        struct.pack("!IHBB", 6 << 28, len(data), protocol, 64) + bytes(32)
        if six
        else struct.pack("!BBHHHBBH8x", 0x45, 0, 20 + len(data), 0, 0, 64, protocol, 0)
    )
    check(bytes(12) + (b"\x86\xdd" if six else b"\x08\x00") + ip + data, 14 + len(ip) + len(data))


@settings(max_examples=500)
@given(st.sampled_from(FRAMES), st.data())
def test_mutated_frames(frame: bytes, data: st.DataObject) -> None:
    changed = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(12, len(frame) - 1))] = data.draw(st.integers(0, 255))
    captured = data.draw(st.integers(0, len(frame)))
    check(bytes(changed[:captured]), len(frame) + data.draw(st.integers(0, 2000)))


@given(st.text(max_size=16))
def test_any_interface_name(name: str) -> None:
    check(FRAMES[0], len(FRAMES[0]), name)
