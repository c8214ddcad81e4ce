"""The dissector that proofs are checked with: what carries TCP port 25, what does not, and each key of a class."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from ffpf_bpf.authorise.policy import CARRIERS as NAMES
from ffpf_bpf.authorise.policy import HIDDEN_BY, Allow, Network, Never, PacketClass, Part
from ffpf_bpf.graph.effect import Depth
from tests import wire
from tests.carriers import (
    BEYOND,
    CARRIERS,
    MAIL,
    ORDINARY,
    WEB,
    Carrier,
    fragment6,
    over_ip,
    over_ip6,
    over_udp,
    source_routed,
)
from tests.corpus.packets import arp, authentication, ether, extension, icmp, ipv4, ipv6, sctp, tcp, udp, vlan

MAIL_CLASS = PacketClass(tcp_port=((25, 25),))
EVERYTHING = PacketClass()


def nets(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


def named(case: Carrier) -> str:
    return case.name


class TestCarriers:
    def test_the_names_are_those_of_policies(self) -> None:
        assert set(NAMES) == wire.CARRIERS

    def test_every_carrier_has_a_case(self) -> None:
        assert {name for case in CARRIERS for name in case.found_by} == wire.CARRIERS

    def test_no_two_cases_are_one(self) -> None:
        cases = (*CARRIERS, *BEYOND, *ORDINARY)
        assert len({case.name for case in cases}) == len({case.frame for case in cases}) == len(cases)

    @pytest.mark.parametrize("case", CARRIERS, ids=named)
    def test_mail_cannot_be_excluded(self, case: Carrier) -> None:
        assert wire.may(Never(MAIL_CLASS), case.frame)
        if case.found_by:
            assert set(case.found_by) <= wire.carriers(case.frame)
            assert wire.may(Never(PacketClass(vlan=((77, 77),))), case.frame), "a carrier is in every class"

    @pytest.mark.parametrize("case", [case for case in CARRIERS if "cut" not in case.name], ids=named)
    def test_it_is_found_by_nothing_else(self, case: Carrier) -> None:
        assert wire.carriers(case.frame) == set(case.found_by)

    @pytest.mark.parametrize("case", [case for case in CARRIERS if case.found_by and "cut" not in case.name], ids=named)
    def test_it_is_not_looked_for_if_all_its_carriers_are_ignored(self, case: Carrier) -> None:
        assert not wire.may(Never(MAIL_CLASS, ignore=frozenset(case.found_by)), case.frame)
        assert not wire.may(Never(MAIL_CLASS, ignore=frozenset("*")), case.frame)
        for name in case.found_by:
            assert wire.may(Never(MAIL_CLASS, ignore=wire.CARRIERS - {name}), case.frame)

    @pytest.mark.parametrize("case", ORDINARY, ids=named)
    def test_ordinary_packets_carry_nothing(self, case: Carrier) -> None:
        assert wire.carriers(case.frame) == set()
        assert not wire.may(Never(MAIL_CLASS), case.frame)
        assert wire.must(EVERYTHING, case.frame)

    @pytest.mark.parametrize("case", BEYOND, ids=named)
    def test_what_is_not_looked_for(self, case: Carrier) -> None:
        """If one of these fails, more is looked for: then it belongs to CARRIERS."""
        assert not wire.may(Never(MAIL_CLASS), case.frame)

    def test_the_end_of_a_source_route_is_not_looked_for(self) -> None:
        never = Never(PacketClass(dst=nets("198.51.100.0/24")))
        assert not wire.may(never, ether(0x0800, source_routed("198.51.100.7")))


class TestAddresses:
    FRAME = ether(0x0800, ipv4(6, WEB, "10.1.2.3", "192.0.2.9"))

    @pytest.mark.parametrize(
        ("key", "net", "holds"),
        [
            ("src", "10.0.0.0/8", True),
            ("src", "192.0.2.0/24", False),
            ("dst", "192.0.2.9/32", True),
            ("dst", "10.0.0.0/8", False),
            ("net", "10.1.2.3/32", True),
            ("net", "192.0.2.0/24", True),
            ("net", "11.0.0.0/8", False),
            ("net", "::/0", False),
        ],
    )
    def test_whole(self, key: str, net: str, holds: bool) -> None:
        wanted = PacketClass(**{key: nets(net)})
        assert wire.must(wanted, self.FRAME) is holds
        assert wire.may(Never(wanted), self.FRAME) is holds

    @pytest.mark.parametrize("prefix", [8, 16, 24, 32])
    @pytest.mark.parametrize("whole", [False, True])
    def test_cut_addresses_are_not_there(self, prefix: int, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire, "WHOLE_ADDRESSES", whole)
        wanted = PacketClass(src=(ip_network("10.1.2.3/32").supernet(new_prefix=prefix),))
        other = Never(PacketClass(src=nets("11.0.0.0/8")), ignore=wire.CARRIERS)
        there = 30 if whole else 26 + prefix // 8
        for length in range(14, 36):
            assert wire.must(wanted, self.FRAME[:length]) is (length >= there)
            assert wire.may(Never(wanted), self.FRAME[:length])
            assert wire.may(other, self.FRAME[:length]) is (length < (30 if whole else 27))

    def test_one_end_is_enough_for_net(self) -> None:
        assert wire.must(PacketClass(net=nets("10.0.0.0/8")), self.FRAME[:30])

    def test_arp(self) -> None:
        frame = ether(0x0806, arp(1, "10.0.0.1", "10.0.0.2"))
        assert wire.must(PacketClass(src=nets("10.0.0.1/32"), dst=nets("10.0.0.2/32")), frame)
        assert not wire.must(PacketClass(src=nets("10.0.0.2/32")), frame)
        assert wire.may(Never(PacketClass(net=nets("10.0.0.2/32"))), frame)

    def test_ipv6(self) -> None:
        frame = over_ip6(6, WEB)
        assert wire.must(PacketClass(src=nets("2001:db8::/64"), dst=nets("2001:db8::2/128")), frame)
        assert not wire.may(Never(PacketClass(net=nets("2001:db8:1::/64", "0.0.0.0/0"))), frame)


class TestProtocols:
    def test_by_type_or_by_protocol(self) -> None:
        either = PacketClass(ethertypes=(wire.IPV6, wire.ARP), protocols=(6,))
        for frame, holds in ((over_ip(6, WEB), True), (over_ip6(17, udp(1, 2)), True), (over_udp(53, b""), False)):
            assert wire.must(either, frame) is holds
            assert wire.may(Never(either), frame) is holds

    def test_an_extension_header_is_a_protocol_of_its_own(self) -> None:
        frame = over_ip6(0, extension(6) + WEB)
        assert not wire.must(PacketClass(protocols=(6,)), frame)
        assert wire.must(PacketClass(protocols=(0,)), frame)
        assert not wire.must(PacketClass(port=((80, 80),)), frame)

    def test_a_fragment_header_is_looked_through(self) -> None:
        assert wire.must(PacketClass(protocols=(6,)), over_ip6(44, fragment6(6, WEB, eighths=9)))
        assert wire.must(PacketClass(port=((80, 80),)), over_ip6(44, fragment6(6, WEB)))

    def test_an_ignored_extension_is_not_tcp(self) -> None:
        frame = over_ip6(0, extension(6) + MAIL)
        assert not wire.may(Never(MAIL_CLASS, ignore=frozenset({"extension"})), frame)


class TestPorts:
    @pytest.mark.parametrize("protocol", [6, 17, 132])
    @pytest.mark.parametrize("wrap", [over_ip, over_ip6])
    def test_of_each_protocol(self, protocol: int, wrap: object) -> None:
        segment = {6: tcp, 17: udp, 132: sctp}[protocol](1000, 2000)
        frame = wrap(protocol, segment)  # type: ignore[operator]
        own = {6: "tcp_port", 17: "udp_port", 132: "sctp_port"}[protocol]
        for key in ("port", "src_port", "dst_port", "tcp_port", "udp_port", "sctp_port"):
            for low, high in ((999, 1000), (2000, 2001)):
                wanted = PacketClass(**{key: ((low, high),)})
                side = {"src_port": low == 999, "dst_port": low == 2000}.get(key, key in ("port", own))
                assert wire.must(wanted, frame) is side
                assert wire.may(Never(wanted), frame) is side

    def test_of_later_fragments(self) -> None:
        for frame in (ether(0x0800, ipv4(6, WEB, fragment=5)), over_ip6(44, fragment6(6, WEB, eighths=5))):
            assert not wire.must(PacketClass(port=((0, 65_535),)), frame)
            assert wire.may(Never(PacketClass(port=((1, 1),))), frame)
            assert not wire.may(Never(PacketClass(port=((1, 1),)), ignore=frozenset({"fragment"})), frame)
            assert not wire.may(Never(PacketClass(udp_port=((1, 1),))), frame), "the protocol does not hold"

    def test_inside_a_header_that_is_too_short(self) -> None:
        """An IHL of 4 puts the ports onto the destination address."""
        frame = ether(0x0800, ipv4(6, WEB, target="0.80.0.25", words=4))
        assert wire.must(PacketClass(src_port=((80, 80),), dst_port=((25, 25),)), frame)

    def test_no_port_where_there_is_none(self) -> None:
        for frame in (over_ip(1, icmp(8)), ether(0x0806, arp(1))):
            assert not wire.may(Never(PacketClass(port=((0, 65_535),))), frame)


class TestVlan:
    ONE, TWO = (
        ether(0x8100, vlan(7, 0x0800, ipv4(6, WEB))),
        ether(0x88A8, vlan(7, 0x8100, vlan(8, 0x0800, ipv4(6, WEB)))),
    )
    THREE = ether(0x8100, vlan(7, 0x8100, vlan(8, 0x8100, vlan(9, 0x0800, ipv4(6, WEB)))))
    PLAIN = over_ip(6, WEB)

    def test_allow_is_about_the_outermost(self) -> None:
        seven, eight = PacketClass(vlan=((7, 7),)), PacketClass(vlan=((8, 8),))
        assert [wire.must(seven, frame) for frame in (self.PLAIN, self.ONE, self.TWO, self.THREE)] == [
            False,
            True,
            True,
            True,
        ]
        assert not wire.must(eight, self.TWO)

    def test_never_is_about_any(self) -> None:
        eight = Never(PacketClass(vlan=((8, 8),)))
        assert [wire.may(eight, frame) for frame in (self.PLAIN, self.ONE, self.TWO)] == [False, False, True]
        nine = PacketClass(vlan=((9, 9),))
        assert wire.may(Never(nine), self.THREE)
        assert wire.may(Never(nine, ignore=frozenset({"tags"})), self.THREE)

    def test_none(self) -> None:
        untagged = PacketClass(untagged=True)
        assert [wire.must(untagged, frame) for frame in (self.PLAIN, self.ONE, self.TWO)] == [True, False, False]
        assert [wire.may(Never(untagged), frame) for frame in (self.PLAIN, self.ONE, self.TWO)] == [True, False, False]

    def test_other_keys_look_through_two(self) -> None:
        web = PacketClass(tcp_port=((80, 80),))
        assert [wire.must(web, frame) for frame in (self.PLAIN, self.ONE, self.TWO, self.THREE)] == [
            True,
            True,
            True,
            False,
        ]


class TestShown:
    ALLOWS = (Allow(PacketClass(tcp_port=((80, 80),)), Depth.HEADERS), Allow(EVERYTHING, Depth.COUNTS))

    def test_allows_add_up(self) -> None:
        web, dns = over_ip(6, WEB), over_udp(53, b"")
        assert [wire.shown_allowed(self.ALLOWS, (), depth, web) for depth in Depth] == [True, True, True, False]
        assert [wire.shown_allowed(self.ALLOWS, (), depth, dns) for depth in Depth] == [True, False, False, False]

    def test_a_never_wins_from_its_depth_on(self) -> None:
        never = Never(PacketClass(tcp_port=((80, 80),)), Depth.HEADERS)
        web = over_ip(6, WEB)
        assert [wire.shown_allowed(self.ALLOWS, (never,), depth, web) for depth in Depth] == [True, True, False, False]


class TestHidden:
    @pytest.mark.parametrize(
        ("frame", "start"),
        [
            (over_ip(6, tcp(1, 2, b"data", words=8)), 14 + 20 + 32),
            (ether(0x0800, ipv4(17, udp(1, 2, b"data"), words=7)), 14 + 28 + 8),
            (over_ip(132, sctp(1, 2)), 14 + 20 + 12),
            (over_ip6(58, icmp(128)), 14 + 40 + 8),
            (over_ip(47, bytes(20)), 14 + 20),
            (over_ip6(44, fragment6(17, udp(1, 2, b"data"))), 14 + 48 + 8),
            (over_ip6(44, fragment6(17, b"data", eighths=1)), 14 + 48),
            (ether(0x0800, ipv4(17, b"data" * 4, fragment=1)), 14 + 20),
            (over_ip6(51, authentication(6) + WEB), 14 + 40 + 24 + 20),
            (over_ip6(0, extension(60, 1) + extension(17) + udp(1, 2, b"data")), 14 + 40 + 16 + 8 + 8),
            (over_ip6(44, fragment6(60, extension(17) + udp(1, 2, b"data"))), 14 + 48 + 8 + 8),
            (over_ip6(0, extension(44) + fragment6(17, b"data", eighths=1)), 14 + 40 + 8 + 8),
            (over_ip6(0, extension(6) + WEB)[:60], 60),
            (ether(0x0806, arp(1)), 42),
            (ether(0x8100, vlan(7, 0x88CC, bytes(20))), 18),
            (over_ip(6, tcp(1, 2))[:40], 40),
        ],
    )
    def test_where_payload_begins(self, frame: bytes, start: int) -> None:
        assert wire.payload_start(frame) == start

    def test_where_addresses_are(self) -> None:
        assert wire.address_bytes(over_ip(6, WEB)) == {*range(12), *range(24, 34), 50, 51}
        assert wire.address_bytes(ether(0x8100, vlan(7, 0x86DD, ipv6(6, WEB)))) == {*range(12), *range(26, 58), 74, 75}
        assert wire.address_bytes(ether(0x0800, ipv4(17, udp(1, 2), words=7))) == {*range(12), *range(24, 42), 48, 49}
        assert wire.address_bytes(over_ip(1, icmp(8))) == {*range(12), *range(24, 34), *range(36, 42)}
        assert wire.address_bytes(ether(0x0800, ipv4(6, WEB, fragment=1))) == {*range(12), *range(24, 34)}
        assert wire.address_bytes(ether(0x0806, arp(1))) == {*range(12), *range(22, 42)}
        routed = over_ip6(43, extension(44) + fragment6(6, WEB))
        assert wire.address_bytes(routed) == {*range(12), *range(22, 54), *range(56, 62), 86, 87}
        assert wire.address_bytes(ether(0x88CC, bytes(46))) == set(range(12))

    def test_what_allows_hide(self) -> None:
        frame = over_udp(53, b"data")
        payload, addresses = set(range(42, 46)), {*range(12), *range(24, 34), 40, 41}

        def hidden(*depths: Depth) -> set[int]:
            return wire.hidden([Allow(EVERYTHING, depth, HIDDEN_BY[depth]) for depth in depths], (), frame)

        assert hidden() == payload, "of packets that no allow is about"
        assert hidden(Depth.ALL) == set()
        assert hidden(Depth.HEADERS) == hidden(Depth.COUNTS) == payload
        assert hidden(Depth.ANONYMISED) == payload | addresses
        assert hidden(Depth.ANONYMISED, Depth.HEADERS) == payload
        assert hidden(Depth.ANONYMISED, Depth.COUNTS) == payload | addresses, "who shows the most says it"
        assert wire.hidden([Allow(EVERYTHING, Depth.COUNTS, frozenset({Part.ADDRESSES}))], (), frame) == addresses
        one, other, both = (
            Allow(EVERYTHING, Depth.HEADERS, frozenset(parts))
            for parts in ({Part.ADDRESSES}, {Part.PAYLOAD}, {Part.ADDRESSES, Part.PAYLOAD})
        )
        assert wire.hidden([one, other], (), frame) == payload | addresses
        assert wire.hidden([one, both], (), frame) == addresses
        never = Never(PacketClass(udp_port=((53, 53),)), Depth.ALL)
        assert wire.hidden([Allow(EVERYTHING)], (never,), frame) == payload
        never = replace(never, show=Depth.HEADERS)
        assert wire.hidden([Allow(EVERYTHING)], (never,), frame) == payload
        assert wire.hidden([Allow(EVERYTHING)], (never,), frame, pseudonyms=True) == payload | addresses
