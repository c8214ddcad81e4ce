"""Random pairs of a flow and a policy that have to do with each other: the same nets and ports, or nearly.

Filters are written in tcpdump's language as people write them, and as they should not: prefixes off by one, `or` where
`and` was meant, a `not` too many, `vlan` in the wrong place, bytes instead of names, payload.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_network

from ffpf_bpf.authorise.policy import CARRIERS, HIDDEN_BY, Allow, Network, Never, PacketClass, Part, Rule, Span
from ffpf_bpf.graph.effect import Depth

NETS4 = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.0.0.1/32", "192.168.7.0/25", "172.16.0.0/12")
NETS6 = ("2001:db8::/32", "2001:db8:1::/48", "2001:db8::1/128", "fe80::/10", "2001:db8:0:1::/64")
PORTS = (22, 25, 53, 80, 443, 8080, 4789)
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmp6": 58}
ETHERTYPES = {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806, "rarp": 0x8035}
PLAIN_UDP = "not (port 1701 or 2152 or 3544 or 4341 or 4500 or 4789 or 4790 or 5247 or 6080 or 6081 or 6635 or 6636 or 8472 or 51820)"


@dataclass(frozen=True, slots=True)
class Pair:
    """What is behind `(device,tap0) ->`, and a rule."""

    flow: str
    rule: Rule

    @property
    def text(self) -> str:
        """For a report: enough to make it again."""
        allows = ", ".join(
            f"{_class_text(each.packets)} show={each.show.word} hide={sorted(each.hide)}" for each in self.rule.allow
        )
        nevers = ", ".join(
            f"{_class_text(each.packets)} show={each.show.word} ignore={sorted(each.ignore)}"
            for each in self.rule.never
        )
        return f"{self.flow}\n    allow {allows or 'nothing'}\n    never {nevers or 'nothing'}"


def _class_text(packets: PacketClass) -> str:
    keys = []
    for name in packets.keys:
        value = getattr(packets, name)
        keys.append(f"{name}={[str(each) for each in value] if isinstance(value, tuple) else value}")
    return "{" + " ".join(keys) + "}"


def pair(seed: int) -> Pair:
    """The same for the same seed."""
    return _Chance(seed).pair()


class _Chance:
    """Draws. `self.allows` and `self.nevers` are drawn first; filters are then drawn near them."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.nets4 = self.chance.sample(NETS4, 2)
        self.nets6 = self.chance.sample(NETS6, 2)
        self.ports = self.chance.sample(PORTS, 3)
        self.vlans = self.chance.sample((1, 7, 8, 100, 4095), 2)

    def often(self, share: float) -> bool:
        return self.chance.random() < share

    def pair(self) -> Pair:
        self.allows = [self.allow() for _ in range(self.chance.choice((1, 1, 1, 2, 2, 3)))]
        self.nevers = [self.never() for _ in range(self.chance.choice((0, 0, 1, 1, 2)))]
        flow = self.flow()
        allows = [replace(allow, hide=self.hidden()) if self.often(0.1) else allow for allow in self.allows]
        return Pair(flow, Rule("r", ("*",), ("*@*",), ("*",), tuple(allows), tuple(self.nevers)))

    # Policies.

    def allow(self) -> Allow:
        packets = PacketClass() if self.often(0.15) else self.packets()
        show = self.chance.choice((Depth.ALL,) * 5 + (Depth.HEADERS, Depth.HEADERS, Depth.ANONYMISED, Depth.COUNTS))
        return Allow(packets, show, HIDDEN_BY[show])

    def hidden(self) -> frozenset[Part]:
        return self.chance.choice([frozenset(), *map(frozenset, ([Part.PAYLOAD], [Part.ADDRESSES], Part))])

    def never(self) -> Never:
        show = self.chance.choice((Depth.ANONYMISED,) * 4 + (Depth.HEADERS, Depth.ALL))
        if self.often(0.5):
            ignore = frozenset[str]()
        else:
            ignore = frozenset(
                CARRIERS if self.often(0.3) else self.chance.sample(CARRIERS, self.chance.randint(1, 20))
            )
        return Never(self.packets(), show, ignore)

    def packets(self) -> PacketClass:
        made = PacketClass()
        for _ in range(self.chance.choice((1, 1, 2, 2, 3))):
            match self.chance.choice(("net", "net", "port", "port", "port", "proto", "vlan")):
                case "net":
                    made = replace(made, **{self.chance.choice(("src", "dst", "net", "net")): self.some_nets()})
                case "port":
                    key = self.chance.choice(
                        ("port", "src_port", "dst_port", "tcp_port", "tcp_port", "udp_port", "sctp_port")
                    )
                    made = replace(made, **{key: self.some_ports()})
                case "proto":
                    if self.often(0.3):
                        made = replace(made, ethertypes=(self.chance.choice(tuple(ETHERTYPES.values())),))
                    if self.often(0.75) or not made.ethertypes:
                        numbers = (*PROTOCOLS.values(), 6, 17, 47, 0, 50, 4)
                        made = replace(made, protocols=(self.chance.choice(numbers),))
                case _:
                    made = replace(made, vlan=((self.chance.choice(self.vlans),) * 2,), untagged=self.often(0.2))
                    if self.often(0.25):
                        made = replace(made, vlan=(), untagged=True)
        return made

    def some_nets(self) -> tuple[Network, ...]:
        several = self.chance.sample([*self.nets4, *self.nets6], self.chance.choice((1, 1, 2)))
        return tuple(ip_network(each) for each in several)

    def some_ports(self) -> tuple[Span, ...]:
        low = self.chance.choice(self.ports)
        return ((low, low + self.chance.choice((0, 0, 0, 100))),)

    # Filters.

    def filter(self, depth: int = 2) -> str:
        """A filter near the policy."""
        if depth == 0 or self.often(0.2):
            return self.primitive()
        match self.chance.choice(("fit", "fit", "fit", "fit", "and", "or", "not", "vlan", "mix")):
            case "fit":
                return self.fitting()
            case "and":
                return f"({self.filter(depth - 1)}) and ({self.filter(depth - 1)})"
            case "or":
                return f"({self.filter(depth - 1)}) or ({self.filter(depth - 1)})"
            case "not":
                return f"not ({self.filter(depth - 1)})"
            case "vlan":
                return f"{self.vlan()} {self.chance.choice(('and', 'and', 'and', 'or'))} ({self.filter(depth - 1)})"
            case _:
                words = [self.filter(depth - 1), self.primitive(), self.primitive()]
                return f"{words[0]} {self.chance.choice(('and', 'or'))} {words[1]} {self.chance.choice(('and', 'or', 'and not'))} {words[2]}"

    def fitting(self) -> str:
        """What is allowed and not forbidden, as far as a filter can say it, sometimes a little wrong."""
        allowed = [each for each in self.allows if self.often(0.8)] or self.allows[:1]
        parts = [self.exactly(each.packets) for each in allowed]
        text = parts[0] if len(parts) == 1 else " or ".join(f"({part})" for part in parts)
        for never in self.nevers:
            if self.often(0.85):
                text = f"({text}) and not ({self.exactly(never.packets)})"
        if self.nevers and self.often(0.7):
            safe = self.chance.choice(
                (
                    "tcp",
                    f"tcp port {self.chance.choice(self.ports)}",
                    "tcp and ip[6:2] & 0x1fff = 0",
                    "udp",
                    f"udp and {PLAIN_UDP}",
                    "arp",
                    "ip6[6] = 6",
                    "ip and ip[6:2] & 0x1fff = 0 and (tcp or sctp)",
                )
            )
            text = f"({text}) and {safe}"
        if self.often(0.2):
            text = f"({text}) and {self.primitive()}"
        return text

    def exactly(self, packets: PacketClass) -> str:
        """The class as a filter: what `must` means, but for the mistakes that are drawn."""
        parts: list[str] = []
        for key, word in (("src", "src "), ("dst", "dst "), ("net", "")):
            if nets := getattr(packets, key):
                wrong = self.chance.choice(("src ", "dst ", "")) if self.often(0.06) else word
                parts.append(" or ".join(f"{wrong}net {self.nearly(net)}" for net in nets))
        for key, word in (
            ("port", ""), ("src_port", "src "), ("dst_port", "dst "), ("tcp_port", "tcp "), ("udp_port", "udp "), ("sctp_port", "sctp "),
        ):  # fmt: skip
            if spans := getattr(packets, key):
                wrong = self.chance.choice(("", "tcp ", "udp ")) if self.often(0.06) else word
                parts.append(" or ".join(f"{wrong}{self.ports_text(span)}" for span in spans))
        names = [name for name, number in ETHERTYPES.items() if number in packets.ethertypes]
        names += [self.protocol_text(number) for number in packets.protocols]
        if names:
            parts.append(" or ".join(names))
        text = " and ".join(f"({part})" for part in parts)
        if packets.vlan:
            tag = f"vlan {packets.vlan[0][0]}" if self.often(0.9) else self.vlan()
            text = f"{tag} and {text}" if text else tag
        return text or self.chance.choice(("ip", "len >= 0", "tcp"))

    def nearly(self, net: Network) -> str:
        if self.often(0.08):
            longer = min(net.max_prefixlen, net.prefixlen + 1)
            net = next(net.subnets(new_prefix=longer)) if self.often(0.5) else net.supernet()
        return str(net)

    def ports_text(self, span: Span) -> str:
        low, high = span[0] - self.often(0.03), span[1] + self.often(0.03)
        return f"port {low}" if low == high else f"portrange {low}-{high}"

    def protocol_text(self, number: int) -> str:
        name = next((name for name, value in PROTOCOLS.items() if value == number), "")
        return name or f"{self.chance.choice(('ip', 'ip6'))} proto {number}"

    def vlan(self) -> str:
        return self.chance.choice(("vlan", *(f"vlan {each}" for each in self.vlans), f"vlan and vlan {self.vlans[0]}"))

    def primitive(self) -> str:
        way, port = self.chance.choice(("", "src ", "dst ")), self.chance.choice(self.ports)
        kinds: dict[str, Callable[[], str]] = {
            "net": lambda: f"{way}net {self.nearly(ip_network(self.chance.choice([*self.nets4, *self.nets6])))}",
            "family net": lambda: f"ip {way}net {self.chance.choice(self.nets4)}",
            "port": lambda: f"{self.chance.choice(('', 'tcp ', 'udp ', 'sctp '))}{way}port {port}",
            "range": lambda: f"{self.chance.choice(('', 'tcp '))}portrange {port}-{port + 100}",
            "protocol": lambda: self.chance.choice((*PROTOCOLS, *ETHERTYPES)),
            "number": lambda: f"{self.chance.choice(('ip', 'ip6'))} proto {self.chance.choice((4, 6, 17, 41, 44, 47, 50, 58))}",
            "type": lambda: f"ether proto {self.chance.choice(('0x0800', '0x8100', '0x8847', '0x88cc'))}",
            "bytes": lambda: self.chance.choice(
                (
                    f"tcp[2:2] = {port}", f"udp[0:2] = {port}", "udp[8] & 0x80 != 0", "tcp[20:4] = 0x47455420",
                    "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420", "ip[9] = 6", "ip[0] & 0xf = 5", "ip[6:2] & 0x1fff = 0",
                    "ip[6:2] & 0x3fff = 0", "ip[20:2] = 80", f"ip6[40:2] = {port}", "ip6[6] = 6", "ip6[6] = 44", "ip6[40] = 6",
                    "ip[12:4] & 0xff000000 = 0x0a000000", "ip[12:4] > ip[16:4]", "icmp[0] = 8", "icmp[0] != 3", "icmp6[0] >= 128",
                    "tcp[tcpflags] & tcp-syn != 0", "ether[12:2] = 0x0800", "ether[14:2] & 0xfff = 7", "ether[0] & 1 = 0", "ether[60] = 0",
                    "ip[2:2] - 20 > 40", "ip[2:2] / 4 = 10", "ip[8] % 2 = 0", "udp[4:2] > 8", "ip[8] + ip[9] > 70", "arp[6:2] = 1",
                )
            ),
            "length": lambda: self.chance.choice(("greater 60", "less 100", "len > 54", "len & 1 = 0", "greater 34")),
        }  # fmt: skip
        names = tuple(kinds)
        return kinds[self.chance.choices(names, (5, 1, 6, 1, 4, 2, 1, 6, 2))[0]]()

    # Flows.

    def flow(self) -> str:
        body = self.body()
        tail = self.tail()
        match self.chance.choice(("chain",) * 5 + ("sinks", "count", "edges")):
            case "chain":
                return f"{body} -> {tail}"
            case "sinks":
                return f"({body} -> {tail}) | ({self.body()} -> {self.tail()})"
            case "count":
                return f"({body} -> {tail}) | ({self.body()} -> (packetcount))"
            case _:
                field, label = self.chance.choice(
                    (
                        ("dport", self.chance.choice(self.ports)),
                        ("proto", 6),
                        ("ethertype", 2048),
                        ("version", 4),
                        ("vlan", self.vlans[0]),
                    )
                )
                rest = self.chance.choice(("(packetcount)", "(grab)"))
                return f"{body} -> (classify,{field}) -{label}-> ({tail}) | -*-> {rest}"

    def body(self) -> str:
        one = self.node
        match self.chance.choice(
            ("one",) * 6 + ("then", "then", "or", "and", "not", "not", "sampled", "either", "scan", "head")
        ):
            case "one":
                return one()
            case "then":
                return f"{one()} -> {one(1)}"
            case "or":
                return f"({one()} | {one()})"
            case "and":
                return f"({one()} & {one(1)})"
            case "not":
                return f"{one()} -> !{one(1)}"
            case "sampled":
                return f"(sampler,10) -> {one()}"
            case "either":
                return f"({one()} {self.chance.choice('|&')} (sampler,10))"
            case "scan":
                return f"{one()} -> (scan,GET)"
            case _:
                return f"{one()} -> (head,10)"

    def node(self, depth: int = 2) -> str:
        if self.often(0.06):
            return self.chance.choice(('(tcpflags,"syn !ack")', "(tcpflags,rst)"))
        text = self.filter(depth)
        return f'(bpf,"{text}")'

    def tail(self) -> str:
        return self.chance.choice(
            ("(grab)",) * 6
            + (
                "(snap) -> (grab)",
                "(snap) -> (grab)",
                "(anonymise) -> (grab)",
                "(snap,16) -> (grab)",
                "(packetcount)",
                "(bytecount)",
            )
        )
