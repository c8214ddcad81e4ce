"""The kernel's dissector and its hash of flows against plain Python, over ordinary, rare, broken and cut frames."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import NoPayload

from ffpf_bpf.capture.layout import HEADERS_DTYPE
from tests.corpus import packets as corpus
from tests.corpus.packets import ALICE, BOB, authentication, ether, extension, icmp, ipv4, ipv6, sctp, tcp, udp, vlan
from tests.dissection import Headers, dissect, flow_hash, mix
from tests.segment import SEED, LoadedFlow, loaded

LONGEST = 3_520  # what a test run of this kernel shows a program: a page, without headroom and tail
# For the hash, then for the headers, which `anonymise` keeps in memory where it cannot go its shorter way.
ASKS = "(device,tap0) -> (classify,flow=2) -0..1-> (snap,4000) -> (anonymise) -> (grab)"
ASKING_TOO = ("(device,tap0) -> (tcpflags,syn) -> (packetcount)",) * 3  # so many that all of them call the dissector
CORPUS_SEED = 4004


def fragment(following: int, offset: int = 0, more: int = 0) -> bytes:
    """An IPv6 fragment header; `offset` in units of 8 bytes."""
    return bytes((following, 0)) + (offset << 3 | more).to_bytes(2, "big") + b"\x00\x00\x12\x34"


def chain(*kinds: int, last: int, body: bytes, eighths: int = 0) -> bytes:
    """An IPv6 packet of these extension headers before `body`."""
    out = body
    for kind, following in reversed(list(zip(kinds, (*kinds[1:], last), strict=True))):
        header = {44: lambda f: fragment(f, more=1), 51: authentication}.get(kind, lambda f: extension(f, eighths))
        out = header(following) + out
    return ipv6(kinds[0] if kinds else last, out)


def crafted() -> Iterator[bytes]:
    """What the corpus has not: each kind of chain, up to and beyond what is followed, and what the C code is wary of."""
    segment, datagram = tcp(1234, 80, b"GET ", flags=0x12), udp(53, 1234, bytes(9))
    for last, body in ((6, segment), (17, datagram), (58, icmp(128)), (132, sctp(2905, 2906)), (59, b""), (99, b"abc")):
        for kind in (0, 43, 44, 51, 60, 135):
            yield ether(0x86DD, chain(kind, last=last, body=body))
        for count in range(7, 11):
            yield ether(0x86DD, chain(*[60] * count, last=last, body=body))
            yield ether(0x86DD, chain(0, 43, 44, 51, *[60] * (count - 4), last=last, body=body))
        yield ether(0x86DD, chain(0, 60, 43, 51, 60, 135, last=last, body=body, eighths=3))
        for outer in (
            fragment(last),
            fragment(last, more=1),
            fragment(last, 5, 1),
            fragment(last, 0x1FFF),
            fragment(60, 1),
        ):
            yield ether(0x86DD, ipv6(44, outer + body))
            yield ether(0x86DD, ipv6(0, extension(44) + outer + body))
        yield ether(0x86DD, ipv6(44, fragment(60, more=1) + extension(last) + body))
        yield ether(0x86DD, ipv6(44, fragment(44, more=1) + fragment(last) + body))
        yield ether(0x86DD, ipv6(44, fragment(44, 7) + fragment(last) + body))
        yield ether(0x86DD, ipv6(60, bytes((last, 255)) + bytes(6) + body))
        yield ether(0x86DD, ipv6(60, bytes((last, 255)) + bytes(2046) + body))
        yield ether(0x86DD, ipv6(51, bytes((last, 255)) + bytes(1026) + body))
        yield ether(0x86DD, ipv6(51, bytes((last, 0)) + bytes(6) + body))
        for words in (4, 5, 6, 15):
            yield ether(0x0800, ipv4(last, body, words=words))
        for tags in ((0x8100,), (0x88A8, 0x8100), (0x9100, 0x9100), (0x8100, 0x88A8, 0x8100), (0x8100,) * 5):
            for kind, packet in ((0x0800, ipv4(last, body)), (0x86DD, ipv6(last, body))):
                yield tagged(tags, kind, packet)
    for flags in range(0, 256, 17):
        for words in range(16):
            yield ether(0x0800, ipv4(6, tcp(1, 2, b"payload", flags=flags, words=words)))
    for version in range(16):
        yield ether(0x0800, bytes((version << 4 | 5,)) + ipv4(6, segment)[1:])
        yield ether(0x86DD, bytes((version << 4 | 15, 0xF0)) + ipv6(6, segment)[2:])


def tagged(tags: tuple[int, ...], kind: int, packet: bytes) -> bytes:
    """A frame with these tags, the first one outermost; the n-th has id 100 + n, and priority bits."""
    for place, following in reversed(list(enumerate((*tags[1:], kind)))):
        packet = vlan(0xE000 | 100 + place, following, packet)
    return ether(tags[0], packet)


@cache
def frames() -> list[bytes]:
    """All of them, cut wherever a header may end, and long ones."""
    made = list(crafted())
    chance = random.Random(CORPUS_SEED)
    cut = [frame[:length] for frame in made for length in range(14, min(len(frame), 130), 1 + chance.randrange(4))]
    long = [frame.ljust(LONGEST, b"\xa5") for frame in made[::7]]
    return [*corpus.packets(CORPUS_SEED), *made, *cut, *long]


def compare(flow: LoadedFlow, frame: bytes) -> None:
    """The kernel's view of a frame is ours."""
    assert flow.run(frame) == frame, "the packet was changed"
    flow.batches()  # makes room
    noted = flow.scratch[0]
    assert Headers.noted(noted["headers"]) == dissect(frame), frame.hex()
    assert int(noted["flow_hash"]) == flow_hash(frame, SEED), frame.hex()


def test_the_model_knows_every_field() -> None:
    """A field that is added to the struct is added here."""
    assert {*vars(Headers()), "known"} == {*(HEADERS_DTYPE.names or ())} - {"padding"}


@pytest.mark.root
@pytest.mark.parametrize("others", [(), ASKING_TOO], ids=["in place", "called"])
def test_every_frame_is_dissected_as_described(others: tuple[str, ...]) -> None:
    counted = {0: 0, 4: 0, 6: 0}
    with loaded(ASKS, *others) as (flow, *_):
        for frame in frames():
            compare(flow, frame)
            counted[dissect(frame).version] += 1
    print(f"seed {CORPUS_SEED}: frames by IP version: {counted}")
    assert min(counted.values()) > 1_000
    seen = [dissect(frame) for frame in frames()]
    assert {each.fragment for each in seen} == {0, 1, 2}
    assert {each.l3 for each in seen} == {14, 18, 22}
    assert any(each.l4 > len(frame) for each, frame in zip(seen, frames(), strict=True)), "cut before its end"


@pytest.mark.root
def test_mutated_frames_are_dissected_as_described() -> None:
    places = st.one_of(st.integers(12, 60), st.integers(0, 400))
    changes = st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)
    kinds = st.sampled_from([None, 0x0800, 0x86DD, 0x8100, 0x88A8, 0x9100])

    with loaded(ASKS) as (flow,):

        @settings(max_examples=1_500)
        @given(st.sampled_from(frames()), changes, kinds, st.integers(14, 4_000))
        def mutate(frame: bytes, changes: list[tuple[int, int]], kind: int | None, length: int) -> None:
            changed = bytearray(frame)
            if kind is not None:
                changed[12:14] = kind.to_bytes(2, "big")
            for place, value in changes:
                changed[place % len(changed)] = value
            compare(flow, bytes(changed[:length]))

        mutate()


@pytest.mark.root
def test_random_extension_chains_are_dissected_as_described() -> None:
    """Each header's kind, length and what follows it are drawn apart, so that most chains lie somewhere."""
    kinds = st.sampled_from([0, 6, 17, 43, 44, 50, 51, 58, 59, 60, 132, 135, 139])
    links = st.lists(st.tuples(kinds, st.integers(0, 4), st.binary(min_size=6, max_size=6)), max_size=11)

    with loaded(ASKS) as (flow,):

        @settings(max_examples=1_500)
        @given(kinds, links, st.integers(0, 40))
        def follow(first: int, links: list[tuple[int, int, bytes]], cut: int) -> None:
            body, kind = b"", first
            for following, eighths, some in links:
                size = {51: 4 * (eighths + 2), 44: 8}.get(kind, 8 * (eighths + 1))
                body += (bytes((following, eighths)) + some).ljust(size, b"\x05")
                kind = following
            frame = ether(0x86DD, ipv6(first, body + tcp(80, 443, flags=2)))
            compare(flow, frame[: max(14, len(frame) - cut)])

        follow()


@pytest.mark.root
def test_every_packet_is_dissected_anew_and_only_when_asked() -> None:
    with loaded("(device,tap0) -> (bpf,udp) -> (newflow) -> (anonymise) -> (grab)") as (flow,):
        flow.run(ether(0x0800, ipv4(17, udp(1, 2))))
        assert flow.scratch[0]["headers"]["dport"] == 2
        flow.run(ether(0x0800, ipv4(6, tcp(3, 4))))
        assert (flow.scratch[0]["headers"]["known"], flow.scratch[0]["flow_hash"]) == (0, 0)
        flow.run(ether(0x86DD, ipv6(17, udp(5, 6))))
        assert (flow.scratch[0]["headers"]["dport"], flow.scratch[0]["headers"]["known"]) == (6, 1)


def test_scapy_dissects_the_same() -> None:
    """A second opinion on what scapy makes sense of: one IP header behind known tags, and a transport header in it."""
    agreed = {"TCP": 0, "UDP": 0, "SCTP": 0, "ICMP": 0, "vlan": 0, "options": 0, "extensions": 0}
    for frame in frames():
        layers = scapy_layers(frame)
        tags = [layer for layer in layers if isinstance(layer, Dot1Q | Dot1AD)]
        networks = [layer for layer in layers if isinstance(layer, IP | IPv6)]
        if len(networks) != 1 or len(tags) > 2 or layers.index(networks[0]) != 1 + len(tags):
            continue
        network, ours = networks[0], dissect(frame)
        kind = 4 if isinstance(network, IP) else 6
        if network.version != kind or (kind == 4 and network.ihl < 5) or ours.version == 0:
            continue
        assert (ours.version, ours.l3, ours.ttl) == (
            kind,
            14 + 4 * len(tags),
            network.ttl if kind == 4 else network.hlim,
        )
        assert ours.traffic == (network.tos if kind == 4 else network.tc)
        if tags:
            assert ours.vlan == tags[0].vlan
            agreed["vlan"] += 1
        transport = next((layer for layer in layers if isinstance(layer, TCP | UDP | SCTP | ICMP)), None)
        behind = layers.index(network) + 1
        if transport is None or (kind == 4 and layers[behind] is not transport) or ours.fragment == 2:
            continue
        between = layers[behind : layers.index(transport)]
        # Mobility, SRH and the like are classes of their own; scapy follows more of them than 8, and ICMP in IPv6.
        if any(not type(layer).__name__.startswith("IPv6ExtHdr") and type(layer).__name__ != "AH" for layer in between):
            continue
        if len(between) > 8 or (kind == 6 and isinstance(transport, ICMP)):
            continue
        name = type(transport).__name__
        assert ours.protocol == {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}[name], frame.hex()
        agreed[name] += 1
        agreed["options"] += bool(kind == 4 and network.ihl > 5)
        agreed["extensions"] += bool(between)
        if name != "ICMP":
            assert (ours.ports, ours.sport, ours.dport) == (1, transport.sport, transport.dport), frame.hex()
        if name == "TCP" and ours.tcp:
            assert ours.tcp_flags == int(transport.flags) & 0xFF
    print(agreed)
    assert min(agreed.values()) > 20, agreed


def scapy_layers(frame: bytes) -> list[object]:
    try:
        layer = Ether(frame)
    except Exception:  # scapy raises whatever a malformed option makes it raise
        return []
    layers = []
    while not isinstance(layer, NoPayload):
        layers.append(layer)
        layer = layer.payload
    return layers


ADDRESSES4 = st.ip_addresses(v=4).map(str)
ADDRESSES6 = st.ip_addresses(v=6).map(str)
PORTS = st.integers(0, 65_535)
TRANSPORTS: dict[int, Callable[[int, int], bytes]] = {6: tcp, 17: udp, 132: sctp}


@given(st.sampled_from([4, 6]), st.sampled_from([6, 17, 132]), st.data())
def test_the_hash_is_the_same_in_both_directions(version: int, protocol: int, data: st.DataObject) -> None:
    addresses = ADDRESSES4 if version == 4 else ADDRESSES6
    a, b, here, there = data.draw(addresses), data.draw(addresses), data.draw(PORTS), data.draw(PORTS)
    wrap, kind = (ipv4, 0x0800) if version == 4 else (ipv6, 0x86DD)
    forth = ether(kind, wrap(protocol, TRANSPORTS[protocol](here, there), a, b), ALICE, BOB)
    back = ether(kind, wrap(protocol, TRANSPORTS[protocol](there, here), b, a), BOB, ALICE)
    assert flow_hash(forth, SEED) == flow_hash(back, SEED) != 0
    crossed = ether(kind, wrap(protocol, TRANSPORTS[protocol](there, here), a, b))
    assert (flow_hash(crossed, SEED) == flow_hash(forth, SEED)) == (a == b or here == there)


@pytest.mark.root
def test_the_kernel_hashes_both_directions_the_same() -> None:
    with loaded(ASKS) as (flow,):
        for source, target in (("10.0.0.1", "10.0.0.2"), ("10.0.0.1", "10.0.0.1")):
            for sport, dport in ((1, 2), (7, 7)):
                hashes = []
                for frame in (
                    ether(0x0800, ipv4(6, tcp(sport, dport), source, target)),
                    ether(0x0800, ipv4(6, tcp(dport, sport), target, source)),
                    ether(
                        0x8100, vlan(5, 0x0800, ipv4(6, tcp(dport, sport, flags=2), target, source, ttl=3)), BOB, ALICE
                    ),
                ):
                    flow.run(frame)
                    hashes.append(int(flow.scratch[0]["flow_hash"]))
                assert len(set(hashes)) == 1
        arp = [ether(0x0806, corpus.arp(1), ALICE, BOB), ether(0x0806, corpus.arp(2), BOB, ALICE)]
        for frame in arp:
            flow.run(frame)
            assert int(flow.scratch[0]["flow_hash"]) == flow_hash(arp[0], SEED)


def test_fragments_of_a_datagram_have_one_hash() -> None:
    body = udp(53, 1234, bytes(64))
    whole4, parts4 = ether(0x0800, ipv4(17, body)), [
        ether(0x0800, ipv4(17, body[:40], fragment=0x2000)), ether(0x0800, ipv4(17, body[40:], fragment=5)),
    ]  # fmt: skip
    behind = extension(17) + body  # only the first fragment says that UDP comes behind the destination options
    parts6 = [
        ether(0x86DD, ipv6(44, fragment(60, 0, 1) + behind[:40])), ether(0x86DD, ipv6(44, fragment(60, 5) + behind[40:])),
    ]  # fmt: skip
    whole6 = ether(0x86DD, ipv6(60, behind))
    for whole, parts in ((whole4, parts4), (whole6, parts6)):
        assert len({flow_hash(part, SEED) for part in parts}) == 1
        assert flow_hash(whole, SEED) not in {flow_hash(part, SEED) for part in parts}


@pytest.mark.parametrize("what", ["ports", "addresses4", "addresses6", "macs"])
def test_hashes_spread(what: str) -> None:
    """64 parts of 12,800 flows that differ in one thing: chi-square with 63 degrees of freedom, far beyond 99.9999 %."""
    flows = 64 * 200
    made = {
        "ports": lambda n: ether(0x0800, ipv4(6, tcp(1024 + n, 443))),
        "addresses4": lambda n: ether(
            0x0800, ipv4(6, tcp(1, 2), f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", "10.255.0.1")
        ),
        "addresses6": lambda n: ether(0x86DD, ipv6(17, udp(1, 2), f"2001:db8::{n:x}", "2001:db8:1::1")),
        "macs": lambda n: ether(0x88CC, bytes(46), n.to_bytes(6, "big")),
    }[what]
    hashes = [flow_hash(made(n), SEED) for n in range(flows)]
    assert len(set(hashes)) == flows
    # Tables take the lower bits, samplers and classify the upper ones.
    for part in (lambda h: h & 63, lambda h: h >> 58, lambda h: (h >> 32) * 64 >> 32):
        counted = [0] * 64
        for each in hashes:
            counted[part(each)] += 1
        assert sum((count - 200) ** 2 / 200 for count in counted) < 150, counted


def test_another_seed_is_another_hash() -> None:
    frame = ether(0x0800, ipv4(6, tcp(1, 2)))
    assert len({flow_hash(frame, seed) for seed in range(100)}) == 100
    assert mix(0) == 0


@pytest.mark.root
def test_the_kernel_takes_the_seed_of_the_tap() -> None:
    frame = ether(0x86DD, ipv6(6, tcp(1, 2)))
    with loaded(ASKS) as (flow,):
        for seed in (1, SEED, (1 << 64) - 1):
            flow.control.memory[8:16] = seed.to_bytes(8, "little")  # struct ffpf_tap: seed
            flow.run(frame)
            assert int(flow.scratch[0]["flow_hash"]) == flow_hash(frame, seed)
