"""The TOML form of policies: each key, each error with its place and help, and the sentences that say what was read."""

from __future__ import annotations

import re
import shutil
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.authorise import Limits, Order, PolicyError, Rule, read_policies
from ffpf_bpf.authorise.directory import LARGEST_FILE
from ffpf_bpf.authorise.packets import PacketTable
from ffpf_bpf.authorise.policy import CARRIERS, IGNORED_BY_DEFAULT, Allow, Never, PacketClass, Part
from ffpf_bpf.authorise.protocols import ETHERTYPES, PROTOCOLS
from ffpf_bpf.authorise.schema import TABLES, parse_policy
from ffpf_bpf.authorise.sentences import allowed, explained, forbidden, limited, ordered, packets
from ffpf_bpf.graph.effect import Depth
from tests.policies import rule

SHIPPED = Path(__file__).parent.parent / "policies"
BAD = sorted((SHIPPED / "bad").glob("*.toml"))


def only(text: str) -> Rule:
    (one,) = parse_policy(text, "x.toml")
    return one


def packet_class(keys: str) -> PacketClass:
    (allow,) = only(rule(allow=f"{{ {keys} }}")).allow
    return allow.packets


def nets(*texts: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, texts))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad(path: Path, tmp_path: Path) -> None:
    lines = path.read_text().splitlines()
    expected = [line.removeprefix("# expect: ") for line in lines if line.startswith("# expect: ")]
    shutil.copyfile(SHIPPED / "permissive.toml", tmp_path / "permissive.toml")
    shutil.copyfile(path, tmp_path / path.name)
    with pytest.raises(PolicyError) as raised:
        read_policies(tmp_path)
    assert expected
    assert all(line in str(raised.value) for line in expected)
    assert re.fullmatch(rf"{path.name}:\d+:\d+", raised.value.where)
    assert raised.value.help
    assert raised.value.message[0] in "`0123456789abcdefghijklmnopqrstuvwxyz" and not raised.value.message.endswith(".")


def test_there_are_bad_ones() -> None:
    assert len(BAD) >= 60


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = " + "[" * 5_000, "r.toml:1:37: nested too deeply"),
        ("\nx = [\n" + "{ a = " * 5_000, "r.toml:3:187: nested too deeply"),
        ("a.\"b\" . " * 10_000 + "c = 1", "r.toml:1:65: a key of more than 16 parts"),
        ("[" + "a." * 20_000 + "a]", "r.toml:1:34: a key of more than 16 parts"),
        ("x = 1\ny = " + "9" * 5_000, "r.toml:2:5: a number of 5,000 characters"),
        ("x = 1" + "0" * 5_000, "r.toml:1:5: a number of 5,001 characters"),
        (rule("limits.flows = 0"), "r.toml:7:1: `flows`"),
        (rule("limits.snaplen = 65536"), "r.toml:7:1: `snaplen`"),
        (rule("limits.buffer = true"), "r.toml:7:1: `buffer`"),
        (rule("limits.buffer = 0"), "r.toml:7:1: 0 bytes"),
        (rule("limits.sample_at_least = 1.5"), "r.toml:7:1: `sample_at_least`"),
        (rule("limits.packets_per_second = 0"), "r.toml:7:1: `packets_per_second`"),
        (rule('limits.expires = "3651d"'), "r.toml:7:1: `3651d` is not a time that a flow lives\nhelp: 1s to 3650d"),
        (rule('limits.expirs = "1d"'), "r.toml:7:1: unknown key `expirs`\nhelp: did you mean `expires`?"),
        (rule('order = [{ function = "grab" }]'), "r.toml:7:10: an order has one of"),
        (rule('order = [{ function = "bpf", after = "grab" }]'), "r.toml:7:10: nothing comes after `grab`"),
        (rule('order = [{ function = "bpf", before = "device" }]'), "r.toml:7:10: nothing comes before `device`"),
        (rule('order = [{ function = "device", after = { vlan = 1 } }]'), "r.toml:7:10: nothing comes before `device`"),
        (rule('order = [{ function = "bpf", after = "bpf" }]'), "r.toml:7:10: `bpf` cannot come before itself"),
        (rule('order = [\n  { function = "bpf", after = "smpler" }]'), "r.toml:8:23: unknown node class `smpler`"),
        (rule('order = [\n  { function = "bpf", after = 3 }]'), "r.toml:8:23: `after`: input should be a valid string"),
        (rule('order = [{ function = "bpf", after = { port = "x" } }]'), "r.toml:7:40: `x` is no port"),
        (rule('order = [{ function = "bpf", after = { sample_at_least = 2, port = 1 } }]'), "r.toml:7:61: unknown key `port`"),
        (rule('[rule.limits]\n"flws" = 2'), "r.toml:8:1: unknown key `flws`"),
        (rule() + rule("x = 1", name='"s"'), "r.toml:14:1: unknown key `x`"),
        (rule(name='"a b"'), "r.toml:2:1: `a b` is not a name"),
        (rule(subjects='["user:"]'), "r.toml:3:13: `user:` is no subject"),
        (rule(taps='["*@*", ""]'), "r.toml:4:16: `` is no tap"),
        (rule(classes='["Grab"]'), "did you mean `grab`?"),
        (rule(classes='["*", 3]'), "r.toml:5:17: `classes`: input should be a valid string"),
        (rule(allow="[{}, { net = 5 }]"), "r.toml:6:16: `5` is no net"),
        (rule(allow='[{ net = ["10.0.0.1", "10.0.0.0/8", "10.0.0.1/8"] }]'), "r.toml:6:45: `10.0.0.1/8` has bits"),
        (rule(allow='{ net = "10.0.0.0/-1" }'), "`-1` is no prefix length"),
        (rule(allow='{ net = "10.0.0.0/" }'), "`` is no prefix length"),
        (rule(allow='{ net = "10.0.0.0/²" }'), "`²` is no prefix length"),
        (rule(allow='{ net = "010.0.0.0/8" }'), "`010.0.0.0/8` is no net"),
        (rule(allow='{ net = "10.0.0/24" }'), "`10.0.0/24` is no net"),
        (rule(allow='{ net = "fe80::1%eth0" }'), "`fe80::1%eth0` is no net"),
        (rule(allow='{ net = "10.0.0.1\\u0000" }'), "is no net"),
        (rule(allow='{ net = "\\u001b[2J" }'), r"`\x1b[2J` is no net"),
        (rule(allow='{ net = "::ffff:10.0.0.1" }'), "help: write `10.0.0.1/32`"),
        (rule(allow=f'{{ net = "{"a" * 1_000}" }}'), "a..."),
        (rule(allow='{ proto = "TCP" }'), "unknown protocol `TCP`\nhelp: did you mean `tcp`?"),
        (rule(allow="{ proto = -1 }"), "-1 is no protocol of IP"),
        (rule(allow="{ proto = true }"), "unknown protocol `True`"),
        (rule(allow="{ port = -1 }"), "`-1` is no port"),
        (rule(allow="{ port = 1.0 }"), "`1.0` is no port"),
        (rule(allow='{ port = ["1-2-3"] }'), "r.toml:6:19: `1-2-3` is no port"),
        (rule(allow='{ vlan = ["none", "1-4096"] }'), "r.toml:6:27: `1-4096` is no VLAN"),
        (rule(allow="{ vlan = [[7]] }"), "`[7]` is no VLAN"),
        (rule(allow="{ show = 3 }"), "unknown depth `3`"),
        (rule(allow="3"), "r.toml:6:1: `allow`: input should be a valid list"),
        (rule('never = "everything"'), "r.toml:7:1: `never`: input should be a valid list"),
        (rule("never = []"), "r.toml:7:1: `never` is empty"),
        (rule('never = { show = "shown" }'), "unknown depth `shown`"),
        (rule('[[rule.never]]\nport = 80\n[[rule.never]]\nprt = 80'), "r.toml:10:1: unknown key `prt`\nhelp: did you mean"),
    ],
)  # fmt: skip
def test_more_errors(text: str, expected: str) -> None:
    with pytest.raises(PolicyError) as raised:
        parse_policy(text, "r.toml")
    assert expected in str(raised.value)


class TestPackets:
    """What stands in a packet class, as a value."""

    def test_everything(self) -> None:
        assert only(rule()).allow == (Allow(PacketClass()),)

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ("", PacketClass()),
            ('net = "10.1.0.0/16"', PacketClass(net=nets("10.1.0.0/16"))),
            ('src = "10.1.2.3"', PacketClass(src=nets("10.1.2.3/32"))),
            ('dst = ["2001:db8::/32", "10.0.0.0/8"]', PacketClass(dst=nets("10.0.0.0/8", "2001:db8::/32"))),
            ('net = ["0.0.0.0/0", "::/0"]', PacketClass(net=nets("0.0.0.0/0", "::/0"))),
            ('net = "::1"', PacketClass(net=nets("::1/128"))),
            ('proto = "tcp"', PacketClass(protocols=(6,))),
            ('proto = ["arp", "udp", "ip6", 17, 253]', PacketClass(ethertypes=(0x0806, 0x86DD), protocols=(17, 253))),
            ('proto = ["lldp", "eapol"]', PacketClass(ethertypes=(0x888E, 0x88CC))),
            ("port = 80", PacketClass(port=((80, 80),))),
            ('src_port = "8000-8100"', PacketClass(src_port=((8000, 8100),))),
            ('dst_port = [443, "80", "81 - 90", 85]', PacketClass(dst_port=((80, 90), (443, 443)))),
            ('tcp_port = "0-65535"', PacketClass(tcp_port=((0, 65_535),))),
            ("udp_port = 53", PacketClass(udp_port=((53, 53),))),
            ("sctp_port = 9", PacketClass(sctp_port=((9, 9),))),
            ("vlan = 0", PacketClass(vlan=((0, 0),))),
            ('vlan = "none"', PacketClass(untagged=True)),
            ('vlan = ["10-20", "none", 21, 4095]', PacketClass(vlan=((10, 21), (4095, 4095)), untagged=True)),
            # Each key alone, or all of them: nothing here excludes anything.
            ('proto = "ip", net = "10.0.0.0/8", tcp_port = 80', PacketClass(net=nets("10.0.0.0/8"), ethertypes=(0x0800,), tcp_port=((80, 80),))),
            ('proto = "arp", src = "10.0.0.1"', PacketClass(src=nets("10.0.0.1"), ethertypes=(0x0806,))),
            ("port = 80, src_port = 80, dst_port = 443", PacketClass(port=((80, 80),), src_port=((80, 80),), dst_port=((443, 443),))),
            ('proto = ["tcp", "udp"], port = 53', PacketClass(protocols=(6, 17), port=((53, 53),))),
        ],
    )  # fmt: skip
    def test_values(self, keys: str, expected: PacketClass) -> None:
        assert packet_class(keys) == expected

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.builds(lambda a, n: IPv4Network((a >> 32 - n << 32 - n, n)), st.integers(0, 2**32 - 1), st.integers(0, 32)) | st.builds(lambda a, n: IPv4Network((0x0A000000 | a >> 32 - n << 32 - n, n)), st.integers(0, 255), st.integers(24, 32)), min_size=1, max_size=30))  # fmt: skip
    def test_nets_are_joined(self, some: list[IPv4Network]) -> None:
        listed = ", ".join(f'"{net}"' for net in some)
        assert packet_class(f"net = [{listed}]").net == tuple(collapse_addresses(some))

    @pytest.mark.parametrize("separator", [", ", ",\n", ", # one of many\n"])
    def test_long_lists(self, separator: str) -> None:
        listed = [f'"{IPv4Address(0x0B000000 + 512 * i)}/24"' for i in range(10_000)]
        listed += [f'"2001:db8:{i:x}::/64"' for i in range(10_000)]
        text = rule(allow=f"[{{ net = [{separator.join(listed)}] }}]")
        start_s = time.process_time()
        assert len(only(text).allow[0].packets.net) == 20_000
        assert time.process_time() - start_s < 3, "this takes 0.4 s"
        broken = text.replace('"2001:db8:270f::/64"', '"2001:db8:270f::1/64"')
        with pytest.raises(PolicyError, match=r"x.toml:\d+:\d+: `2001:db8:270f::1/64` has bits behind its prefix"):
            parse_policy(broken, "x.toml")

    def test_places_take_linear_time(self) -> None:
        def seconds(count: int) -> float:
            text = "".join(rule(name=f'"r{i}"') for i in range(count))
            start_s = time.process_time()
            assert len(parse_policy(text, "x.toml")) == count
            return time.process_time() - start_s

        seconds(10)
        assert seconds(4_000) < 40 * max(seconds(400), 0.01)


class TestRest:
    """The other keys, as values."""

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ('show = "headers"', Allow(PacketClass(), Depth.HEADERS, frozenset({Part.PAYLOAD}))),
            ('show = "anonymised"', Allow(PacketClass(), Depth.ANONYMISED, frozenset(Part))),
            ('show = "counts"', Allow(PacketClass(), Depth.COUNTS, frozenset({Part.PAYLOAD}))),
            ('show = "all"', Allow(PacketClass())),
            ('show = "headers", hide = []', Allow(PacketClass(), Depth.HEADERS)),
            ('hide = ["addresses", "payload"]', Allow(PacketClass(), Depth.ALL, frozenset(Part))),
        ],
    )
    def test_allow(self, keys: str, expected: Allow) -> None:
        assert only(rule(allow=f"{{ {keys} }}")).allow == (expected,)
        assert only(rule(allow=f"[{{ {keys} }}, {{ vlan = 1 }}]")).allow[0] == expected

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ("", Never(PacketClass(), ignore=IGNORED_BY_DEFAULT)),
            ("ignore = []", Never(PacketClass())),
            ('vlan = 7, show = "all"', Never(PacketClass(vlan=((7, 7),)), Depth.ALL, IGNORED_BY_DEFAULT)),
            ('ignore = ["gre", "vxlan"]', Never(PacketClass(), ignore=frozenset({"gre", "vxlan"}))),
            ('ignore = ["*"]', Never(PacketClass(), ignore=frozenset(CARRIERS))),
        ],
    )
    def test_never(self, keys: str, expected: Never) -> None:
        assert only(rule(f"never = {{ {keys} }}")).never == (expected,)
        alone = '[[rule]]\nname = "n"\nsubjects = ["*"]\ntaps = ["*"]\n'
        found = only(f"{alone}never = [{{ {keys} }}]")
        assert (found.classes, found.allow, found.never) == ((), (), (expected,))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('function = "grab", after = "sampler"', Order("grab", "sampler")),
            ('function = "bytecount", before = "grab"', Order("bytecount", "grab", after=False)),
            ('function = "scan", after = { tcp_port = 80 }', Order("scan", PacketClass(tcp_port=((80, 80),)))),
            ('function = "grab", after = { sample_at_least = 10 }', Order("grab", 10)),
        ],
    )
    def test_order(self, text: str, expected: Order) -> None:
        assert only(rule(f"order = [{{ {text} }}]")).order == (expected,)

    def test_limits(self) -> None:
        text = 'limits = { flows = 1, nodes = 2, snaplen = 3, buffer = "4KiB", memory = 5, sample_at_least = 6, packets_per_second = 7, expires = "8h" }'
        assert only(rule(text)).limits == Limits(1, 2, 3, 4_096, 5, 6, 7, 28_800.0)

    @pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("10m", 600), ("8h", 28_800), ("7d", 604_800)])
    def test_expires(self, text: str, seconds: int) -> None:
        found = only(rule(f'limits.expires = "{text}"')).limits.expires_s
        assert (found, type(found)) == (seconds, float)


SAMPLE = """\
[[rule]]
name = "r"
subjects = ["user:ann", "group:staff"]
taps = ["eth*", "lo@tc-egress"]
classes = ["bpf", "scan", "grab", "sampler", "limit", "snap"]
allow = [
    { net = "10.1.0.0/16", tcp_port = [80, 443], show = "headers" },
    { show = "counts" },
]
never = { tcp_port = 25 }
order = [{ function = "scan", after = { net = "10.0.0.0/8" } }, { function = "grab", after = { sample_at_least = 10 } }]
limits = { flows = 2, packets_per_second = 1000, expires = "90m" }
"""

EXPLAINED = """\
Rule r (x.toml:1:1) is about user ann and group staff at `eth*@xdp` and `lo@tc-egress`.
Flows may use `bpf`, `scan`, `grab`, `sampler`, `limit` and `snap`, and show:
  packets from or to 10.1.0.0/16 by TCP port 80 or 443: headers only
  every packet: counts only
Of each flow it wants:
  `scan` sees only packets from or to 10.0.0.0/8 on every path
  `grab` comes after a sampler of 1 in 10 or more on every path
  at most 2 flows at once
  at most 1,000 packets per second
  closed after 90 min
Whatever any rule allows, they are never shown more than this:
  packets by TCP port 25, and what may carry them: no more than counts
  But datagrams between a tunnel's port and a service's (53, 67, 68, 69, 88, 123, 137, 138, 161, 162, 389, 443, 500, 514,\
 520, 521, 546, 547, 853) are taken for the service's, unless `ignore = []`."""


class TestSentences:
    def test_rule(self) -> None:
        assert "\n".join(explained(only(SAMPLE))) == EXPLAINED

    @pytest.mark.parametrize("keys", ["tcp_port = 25, ignore = []", 'tcp_port = 25, ignore = ["*"]', ""])
    def test_services_are_not_told_of_where_nothing_depends_on_them(self, keys: str) -> None:
        rule = only(SAMPLE.replace("tcp_port = 25", keys))
        assert rule.never
        assert "service" not in "\n".join(explained(rule))

    @pytest.mark.parametrize(
        ("keys", "sentence"),
        [
            ("", "every packet"),
            ('src = "10.0.0.0/8", dst = "10.1.0.1"', "packets from 10.0.0.0/8 to 10.1.0.1/32"),
            (
                'net = ["10.0.0.0/8", "11.1.0.0/16", "12.0.0.0/8"]',
                "packets from or to 10.0.0.0/8, 11.1.0.0/16 or 12.0.0.0/8",
            ),
            ("port = 80", "packets by TCP, UDP or SCTP port 80"),
            ('proto = "tcp", port = 80', "packets by TCP port 80"),
            ('proto = "tcp", tcp_port = "8000-8100"', "packets by TCP port 8000-8100"),
            ('proto = ["tcp", "udp"]', "packets by TCP or UDP"),
            ('proto = "ip6", udp_port = 53', "packets by IPv6 and by UDP port 53"),
            ("tcp_port = 80, src_port = 5", "packets by TCP source port 5 and port 80"),
            (
                "src_port = 5, dst_port = [6, 8]",
                "packets by TCP, UDP or SCTP source port 5 and destination port 6 or 8",
            ),
            ('proto = ["arp", "lldp", "icmp6", 253]', "packets by ARP, LLDP, ICMPv6 or protocol 253"),
            ('vlan = ["10-20", 7]', "packets in VLAN 7 or 10-20"),
            ('vlan = "none"', "packets without a VLAN tag"),
            ('vlan = [7, "none"]', "packets in VLAN 7 or without a VLAN tag"),
        ],
    )
    def test_packets(self, keys: str, sentence: str) -> None:
        assert packets(packet_class(keys)) == sentence

    def test_lists_of_ten_are_told_in_full_and_explained_ones_always(self) -> None:
        ports = tuple((port, port) for port in range(25, 45, 2))
        assert packets(PacketClass(tcp_port=ports)).endswith("25, 27, 29, 31, 33, 35, 37, 39, 41 or 43")
        assert packets(PacketClass(tcp_port=(*ports, (99, 99)))).endswith("25 and 10 more")
        many = "tcp_port = [" + ", ".join(str(port) for port in range(25, 65, 2)) + "]"
        rule = only(SAMPLE.replace("tcp_port = 25", many).replace('net = "10.0.0.0/8"', many))
        assert "\n".join(explained(rule)).count(", 57, 59, 61 or 63") == 2

    def test_long_lists_are_cut_short(self) -> None:
        some = tuple(IPv4Network((0x0A000000 + 512 * i, 24)) for i in range(2_000))
        assert packets(PacketClass(net=some)) == "packets from or to 10.0.0.0/24 and 1,999 more"

    def test_allow(self) -> None:
        assert allowed(Allow(PacketClass())) == "every packet: with payload"
        assert (
            allowed(Allow(PacketClass(), Depth.ANONYMISED, frozenset(Part)))
            == "every packet: headers only, with pseudonyms for addresses"
        )
        assert allowed(Allow(PacketClass(), Depth.HEADERS)) == "every packet: headers only; counters may tell all of it"
        assert (
            allowed(Allow(PacketClass(), hide=frozenset(Part)))
            == "every packet: with payload; counters must not tell addresses and payload"
        )

    def test_never(self) -> None:
        mail = PacketClass(tcp_port=((25, 25),))
        assert forbidden(Never(PacketClass())) == "every packet: no more than counts"
        assert (
            forbidden(Never(mail, Depth.ALL)) == "packets by TCP port 25, and what may carry them: no more than headers"
        )
        assert (
            forbidden(Never(mail, ignore=frozenset({"vxlan", "gre"})))
            == "packets by TCP port 25, and what may carry them, but for `gre` and `vxlan`: no more than counts"
        )
        assert (
            forbidden(Never(mail, Depth.HEADERS, frozenset(CARRIERS)))
            == "packets by TCP port 25, but not what may carry them: no more than headers with pseudonyms for addresses"
        )

    def test_limits(self) -> None:
        assert limited(Limits()) == {}
        assert limited(Limits(flows=2, expires_s=28_800.0)) == {
            "flows": "at most 2 flows at once",
            "expires_s": "closed after 8 h",
        }
        assert [limited(Limits(expires_s=float(s)))["expires_s"] for s in (1, 120, 172_800)] == [
            "closed after 1 s",
            "closed after 2 min",
            "closed after 2 d",
        ]

    def test_order(self) -> None:
        assert ordered(Order("bytecount", "grab", after=False)) == "`bytecount` comes before `grab` on every path"

    @pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
    def test_shipped(self, path: Path) -> None:
        for one in parse_policy(path.read_text(), path.name):
            assert explained(one)[0].startswith(f"Rule {one.name} ({path.name}:")


def test_the_readme_lists_every_key() -> None:
    text = (SHIPPED / "README.md").read_text()
    keys = {key for table in (*TABLES.values(), PacketTable) for key in table.model_fields}
    words = {*keys, *CARRIERS, *Part, *(depth.word for depth in Depth), *ETHERTYPES, *PROTOCOLS}
    assert not {word for word in words if not re.search(rf"`[^`\n]*\b{re.escape(word)}\b[^`\n]*`", text)}


# --- whatever is written ------------------------------------------------------------------------------------------

SPANS = st.lists(st.integers(0, 5_000) | st.tuples(st.integers(0, 5_000), st.integers(0, 5_000)).map(lambda s: f'"{s[0]}-{s[1]}"'), max_size=3).map(lambda s: f"[{', '.join(map(str, s))}]")  # fmt: skip
NETS = st.lists(st.ip_addresses().map(lambda a: f'"{a}"') | st.sampled_from(['"10.0.0.0/8"', '"::/0"', '"10.0.0.1/8"']), max_size=3).map(lambda s: f"[{', '.join(s)}]")  # fmt: skip
VALUES = {
    **dict.fromkeys(("src", "dst", "net"), NETS),
    **dict.fromkeys(("port", "src_port", "dst_port", "tcp_port", "udp_port", "sctp_port"), SPANS),
    "vlan": SPANS | st.just('"none"'),
    "proto": st.sampled_from(['"tcp"', '["udp", "arp"]', "[1, 300]", '"ip6"', '"lldp"']),
    "show": st.sampled_from(['"all"', '"headers"', '"anonymised"', '"counts"']),
    "hide": st.sampled_from(["[]", '["payload"]']),
    "ignore": st.sampled_from(['["*"]', '["gre"]', "[]"]),
}


def tables(*keys: str) -> st.SearchStrategy[str]:
    chosen = st.lists(st.sampled_from(keys), max_size=3, unique=True)
    pairs = chosen.flatmap(
        lambda keys: st.tuples(*(VALUES[key].map(lambda v, key=key: f"{key} = {v}") for key in keys))
    )
    return pairs.map(lambda pairs: f"{{ {', '.join(pairs)} }}")


PACKETS = tuple(key for key in VALUES if key not in ("show", "hide", "ignore"))
ALLOWS = tables(*PACKETS, "show", "hide")
NEVERS = tables(*PACKETS, "show", "ignore")
ORDERS = tables(*PACKETS).map(lambda table: f'order = [{{ function = "scan", after = {table} }}]\n')


@settings(max_examples=500, deadline=None)
@given(ALLOWS | st.just('"everything"'), st.lists(NEVERS, max_size=2), ORDERS | st.just(""))
def test_any_rule_can_be_explained(allow: str, nevers: list[str], order: str) -> None:
    never = f"never = [{', '.join(nevers)}]\n" if nevers else ""
    try:
        rules = parse_policy(rule(never + order, allow=allow), "x.toml")
    except PolicyError as error:
        assert re.fullmatch(r"x.toml:\d+:\d+", error.where) and error.help
        return
    for one in rules:
        lines = explained(one)
        assert all(line.isprintable() and line.strip() for line in lines)
        assert not any("  " in line.strip() or "no protocol" in line for line in lines)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="[]{}=,.\"'#\n\\ rulename0-", max_size=60) | st.text(max_size=30).map(lambda t: rule(allow=t)))
def test_any_text_is_rules_or_a_policy_error(text: str) -> None:
    try:
        assert all(isinstance(one, Rule) for one in parse_policy(text, "x.toml"))
    except PolicyError as error:
        assert re.fullmatch(r"x.toml:\d+:\d+", error.where)


def test_hostile_text_is_refused_at_once() -> None:
    start = time.process_time()
    for text in ("a." * 500_000 + "a = 1", "x = " + "[" * 1_000_000, "x = " + "9" * 1_000_000, "'" * 1_000_001):
        with pytest.raises(PolicyError):
            parse_policy(text, "r.toml")
    assert time.process_time() - start < 2


def test_what_looks_deep_is_text() -> None:
    deep = ".".join("a" * 40) + " " + "[" * 100 + "9" * 200
    (one,) = parse_policy(f"# {deep}\n" + rule(name="'r'") + "", "r.toml")
    assert one.name == "r"
    with pytest.raises(PolicyError, match="unknown key"):
        parse_policy(f"x = '{deep}'", "r.toml")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(rule(), encoding="utf-8-sig")
    (one,) = read_policies(tmp_path).rules
    assert one.where == "a.toml:1:1"


def test_the_largest_file_is_as_said_and_has_room_for_long_lists(tmp_path: Path) -> None:
    said = re.search(r"A file has at most (\d+) MiB", (SHIPPED / "README.md").read_text())
    assert said and int(said[1]) << 20 == LARGEST_FILE
    long = (
        f'    "2001:db8:{n:04x}:{n * 7 % 65_521:04x}:ffff:ffff:ffff:{n * 31 % 65_521:04x}/128",\n'
        for n in range(20_000)
    )
    (tmp_path / "a.toml").write_text(rule(allow=f"{{ net = [\n{''.join(long)}] }}"))
    (one,) = read_policies(tmp_path).rules
    assert len(one.allow[0].packets.net) == 20_000
    (tmp_path / "a.toml").write_text("#" * (LARGEST_FILE + 1))
    with pytest.raises(PolicyError, match=r"larger than 4,194,304 bytes"):
        read_policies(tmp_path)
