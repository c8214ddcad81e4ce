"""Flows and policies as people write them: those that must be proved, and those that look right and must be refuted.

Each refuted one says why, and what to write instead so that the same policy proves it. `POLICY` is the rule around the
keys of each case.
"""

from __future__ import annotations

from dataclasses import dataclass

POLICY = '[[rule]]\nname = "r"\nsubjects = ["*"]\ntaps = ["*@*"]\nclasses = ["*"]\n'
GRAB = "(grab)"


@dataclass(frozen=True, slots=True)
class Proved:
    """What is behind `(device,eth0) ->`, and the keys of a rule."""

    name: str
    flow: str
    policy: str


@dataclass(frozen=True, slots=True)
class Refuted:
    """A flow that the rule must refuse, the reason in words, and the flow to write instead."""

    name: str
    flow: str
    policy: str
    why: str
    repaired: str


def grabbing(filter_text: str) -> str:
    return f'(bpf,"{filter_text}") -> (grab)'


def counting(filter_text: str) -> str:
    return f'(bpf,"{filter_text}") -> (packetcount)'


def headers(filter_text: str) -> str:
    return f'(bpf,"{filter_text}") -> (snap) -> (grab)'


def pseudonyms(filter_text: str) -> str:
    return f'(bpf,"{filter_text}") -> (anonymise) -> (grab)'


WEB = "allow = [{ tcp_port = [80, 443] }]"
PORT80 = "allow = [{ tcp_port = 80 }]"
DNS = "allow = [{ udp_port = 53 }]"
COUNT = 'allow = [{ show = "counts" }]'
NO_MAIL = "allow = [{}]\nnever = [{ tcp_port = 25 }]"
NO_TEN = 'allow = [{}]\nnever = [{ net = "10.0.0.0/8" }]'
PLAIN_UDP = (
    "not (port 434 or 1194 or 1701 or 2152 or 2268 or 3386 or 3544 or 3653 or 4191 or 4341 or 4342 or 4500 or 4754 or 4755 or 4789 or 4790 or 5072 or 5247 "
    "or 5437 or 5555 or 6080 or 6081 or 6343 or 6635 or 6636 or 7932 or 8472 or 9899 or 9993 or 10000 or 10500 or 12222 or 37008 or 41641 or 51820)"
)
NO_FRAGMENT = "ip[6:2] & 0x1fff = 0"

PROVED: tuple[Proved, ...] = (
    Proved("web", grabbing("tcp port 80"), WEB),
    Proved("web and TLS", grabbing("tcp port 80 or tcp port 443"), WEB),
    Proved("towards TLS servers", grabbing("tcp dst port 443"), WEB),
    Proved("web of one host", grabbing("tcp port 80 and host 192.0.2.1"), WEB),
    Proved("large web packets", grabbing("tcp port 80 and greater 1000"), WEB),
    Proved("SYNs of the web", grabbing("tcp port 80 and tcp[tcpflags] & tcp-syn != 0"), WEB),
    Proved("DNS", grabbing("udp port 53"), DNS),
    Proved("DNS, the other way round", grabbing("port 53 and udp"), DNS),
    Proved("DNS over anything", grabbing("port 53"), "allow = [{ port = 53 }]"),
    Proved("web and DNS by two allows", grabbing("tcp port 80 or udp port 53"), "allow = [{ tcp_port = 80 }, { udp_port = 53 }]"),
    Proved("ssh of one net", grabbing("tcp port 22 and net 10.0.0.0/8"), 'allow = [{ tcp_port = 22, net = "10.0.0.0/8" }]'),
    Proved("ssh of a smaller net", grabbing("tcp port 22 and src net 10.7.0.0/16"), 'allow = [{ tcp_port = 22, net = "10.0.0.0/8" }]'),
    Proved("a host, ARP included", grabbing("host 10.0.0.1"), 'allow = [{ net = "10.0.0.1" }]'),
    Proved("an IPv4 host", grabbing("ip host 10.0.0.1"), 'allow = [{ net = "10.0.0.1", proto = "ip" }]'),
    Proved("from a net to TLS", grabbing("src net 10.1.0.0/16 and tcp dst port 443"), 'allow = [{ src = "10.1.0.0/16", dst_port = 443 }]'),
    Proved("TLS over IPv6", grabbing("ip6 and tcp port 443"), WEB),
    Proved("DNS from an IPv6 net", grabbing("src net 2001:db8::/32 and udp port 53"), 'allow = [{ src = "2001:db8::/32", udp_port = 53 }]'),
    Proved("nets of both families", grabbing("net 10.0.0.0/8 or net 2001:db8::/32"), 'allow = [{ net = ["10.0.0.0/8", "2001:db8::/32"] }]'),
    Proved("web of one VLAN", grabbing("vlan 7 and tcp port 80"), "allow = [{ vlan = 7, tcp_port = 80 }]"),
    Proved("web of any VLAN", grabbing("vlan and tcp port 80"), PORT80),
    Proved("web in QinQ", grabbing("vlan 7 and vlan 8 and tcp port 80"), "allow = [{ vlan = 7, tcp_port = 80 }]"),
    Proved("untagged web", grabbing("tcp port 80"), 'allow = [{ vlan = "none", tcp_port = 80 }]'),
    Proved("a range of ports", grabbing("tcp portrange 8000-8100"), 'allow = [{ tcp_port = "8000-8100" }]'),
    Proved("ARP", grabbing("arp"), 'allow = [{ proto = "arp" }]'),
    Proved("pings of both kinds", grabbing("icmp or icmp6"), 'allow = [{ proto = ["icmp", "icmp6"] }]'),
    Proved("TCP", grabbing("tcp"), 'allow = [{ proto = "tcp" }]'),
    Proved("IPv4", grabbing("ip"), 'allow = [{ proto = "ip" }]'),
    Proved("GRE, whatever is in it", grabbing("ip proto 47"), 'allow = [{ proto = "gre" }]'),
    Proved("DHCP", grabbing("udp port 67 or udp port 68"), "allow = [{ udp_port = [67, 68] }]"),
    Proved("everything", "(grab)", "allow = [{}]"),
    # Nodes.
    Proved("sampled", '(bpf,"tcp port 80") -> (sampler,10) -> (grab)', PORT80),
    Proved("sampled first", '(sampler,p=0.1) -> (bpf,"tcp port 80") -> (grab)', PORT80),
    Proved("two filters in a row", '(bpf,tcp) -> (bpf,"dst port 80") -> (grab)', 'allow = [{ proto = "tcp", dst_port = 80 }]'),
    Proved("either of two filters", '(bpf,"tcp port 80") | (bpf,"tcp port 443") -> (grab)', WEB),
    Proved("both of two filters", '(bpf,tcp) & (bpf,"port 80") -> (grab)', PORT80),
    Proved("all but one net", grabbing("tcp port 80 and not net 10.9.0.0/16"), 'allow = [{ tcp_port = 80 }]\nnever = [{ net = "10.9.0.0/16" }]'),
    Proved("the beginning of flows", '(bpf,"tcp port 80") -> (head,10) -> (limit,1000/s) -> (grab)', PORT80),
    Proved("grab and count", '((bpf,"tcp port 80") -> (grab)) | (packetcount)', 'allow = [{ tcp_port = 80 }, { show = "counts" }]'),
    # Depth.
    Proved("count everything", "(packetcount)", COUNT),
    Proved("count the web", counting("tcp port 80"), COUNT),
    Proved("count what may be seen", counting("tcp port 80"), PORT80),
    Proved("headers of the web", headers("tcp port 80"), 'allow = [{ tcp_port = 80, show = "headers" }]'),
    Proved("headers where all may be seen", headers("tcp port 80"), PORT80),
    Proved("headers of everything", "(snap) -> (grab)", 'allow = [{ show = "headers" }]'),
    Proved("pseudonyms", pseudonyms("tcp port 80"), 'allow = [{ tcp_port = 80, show = "anonymised" }]'),
    Proved("pseudonyms where headers may be seen", pseudonyms("tcp port 80"), 'allow = [{ tcp_port = 80, show = "headers" }]'),
    # Never.
    Proved("web, never mail", grabbing("tcp port 80 and not tcp port 25"), NO_MAIL),
    Proved("ssh, never a net", grabbing("tcp port 22 and not net 10.0.0.0/8"), NO_TEN),
    Proved("DNS, never mail", grabbing("udp port 53"), NO_MAIL),
    Proved("counting is not showing", "(packetcount)", PORT80),
    Proved("DNS, never mail outside", grabbing("udp port 53"), 'allow = [{}]\nnever = [{ tcp_port = 25, ignore = ["*"] }]'),
    Proved("untagged web, never a VLAN", grabbing("tcp port 80"), "allow = [{}]\nnever = [{ vlan = 7 }]"),
    Proved("headers, never payload", headers("tcp port 22"), 'allow = [{}]\nnever = [{ tcp_port = 22, show = "all" }]'),
    Proved("counting is not seeing", "(packetcount)", NO_TEN),
    Proved("ARP, never mail", grabbing("arp"), NO_MAIL),
)  # fmt: skip

REFUTED: tuple[Refuted, ...] = (
    Refuted(
        "a port is either side", grabbing("tcp port 80"), NO_MAIL,
        "a packet from port 80 to port 25 is mail as well",
        grabbing("tcp port 80 and not tcp port 25"),
    ),
    Refuted(
        "everything but mail", grabbing("not tcp port 25"), NO_MAIL,
        "mail in a VLAN, a tunnel or a later fragment is not seen by a filter on ports",
        grabbing(f"tcp and {NO_FRAGMENT} and not tcp port 25"),
    ),
    Refuted(
        "TCP but mail", grabbing("tcp and not port 25"), NO_MAIL,
        "a later fragment has no ports, so it is not port 25",
        grabbing(f"tcp and {NO_FRAGMENT} and not port 25"),
    ),
    Refuted(
        "IPv6 but mail", grabbing("ip6 and not tcp port 25"), NO_MAIL,
        "behind an extension header nobody finds the ports",
        grabbing("ip6[6] = 6 and not tcp port 25"),
    ),
    Refuted(
        "a NOT around a filter", '(bpf,"tcp port 80") -> !(bpf,"tcp port 25") -> (grab)', NO_MAIL,
        "of a packet that is cut behind its source port the filter says no, so the NOT lets it go on",
        grabbing("tcp port 80 and not tcp port 25"),
    ),
    Refuted(
        "a NOT around a net", '(bpf,"tcp port 80") -> !(bpf,"net 10.9.0.0/16") -> (grab)', 'allow = [{ tcp_port = 80 }]\nnever = [{ net = "10.9.0.0/16" }]',
        "with an IHL of 0 the ports come before the addresses, so these may be cut, and the NOT lets the packet go on",
        grabbing("tcp port 80 and not net 10.9.0.0/16"),
    ),
    Refuted(
        "a low port is no service's", grabbing("udp port 80"), NO_MAIL,
        "from port 80 to port 4789 it is VXLAN, in which there may be mail",
        grabbing(f"udp port 80 and {PLAIN_UDP}"),
    ),
    Refuted(
        "multicast DNS is UDP", grabbing("udp port 5353"), NO_MAIL,
        "from port 5353 to port 4789 it is VXLAN, in which there may be mail",
        grabbing(f"udp port 5353 and {PLAIN_UDP}"),
    ),
    Refuted(
        "everything but a net", grabbing("not net 10.0.0.0/8"), NO_TEN,
        "the net may be inside a tunnel or behind a VLAN tag",
        grabbing("tcp and not net 10.0.0.0/8"),
    ),
    Refuted(
        "pings, never a net", grabbing("icmp and not net 10.0.0.0/8"), NO_TEN,
        "an ICMP error quotes a packet, which may be of that net",
        grabbing("(icmp[0] = 0 or icmp[0] = 8) and not net 10.0.0.0/8"),
    ),
    Refuted(
        "UDP, never a net", grabbing("udp and not net 10.0.0.0/8"), NO_TEN,
        "UDP may be a tunnel, and its later fragments may be of one",
        grabbing(f"udp port 53 and not net 10.0.0.0/8 and {PLAIN_UDP}"),
    ),
    Refuted(
        "web, never a net", grabbing("tcp port 80"), NO_TEN,
        "nothing keeps packets of that net out",
        grabbing("tcp port 80 and not net 10.0.0.0/8"),
    ),
    Refuted(
        "any VLAN, never one", grabbing("vlan and tcp port 80"), "allow = [{}]\nnever = [{ vlan = 7 }]",
        "VLAN 7 is one of them",
        grabbing("vlan and tcp port 80 and ether[14:2] & 0xfff != 7"),
    ),
    Refuted(
        "the outer tag is not 7", grabbing("vlan and ip and ether[14:2] & 0xfff != 7 or vlan and tcp"), "allow = [{}]\nnever = [{ vlan = 7 }]",
        "the second `vlan` is the inner tag, and the other may be 7",
        grabbing("vlan and ip and ether[14:2] & 0xfff != 7 and tcp"),
    ),
    Refuted(
        "a net is ARP too", grabbing("src net 10.0.0.0/8"), 'allow = [{ src = "10.0.0.0/8", proto = "ip" }]',
        "`src net` also means the sender of ARP and RARP",
        grabbing("ip src net 10.0.0.0/8"),
    ),
    Refuted(
        "a port is UDP too", grabbing("port 80"), PORT80,
        "`port` means TCP, UDP and SCTP",
        grabbing("tcp port 80"),
    ),
    Refuted(
        "DNS is SCTP too", grabbing("port 53"), "allow = [{ tcp_port = 53 }, { udp_port = 53 }]",
        "`port` means SCTP as well",
        grabbing("tcp port 53 or udp port 53"),
    ),
    Refuted(
        "the net is missing", grabbing("tcp port 80"), 'allow = [{ tcp_port = 80, net = "10.0.0.0/8" }]',
        "web of other nets passes",
        grabbing("tcp port 80 and net 10.0.0.0/8"),
    ),
    Refuted(
        "both directions", grabbing("host 10.0.0.1 and tcp port 80"), 'allow = [{ src = "10.0.0.1", dst_port = 80 }]',
        "answers to the host, and its own from port 80, pass too",
        grabbing("src host 10.0.0.1 and tcp dst port 80"),
    ),
    Refuted(
        "a net too wide", grabbing("ip net 10.0.0.0/15"), 'allow = [{ net = "10.0.0.0/16" }]',
        "10.1.0.0/16 is in it as well",
        grabbing("ip net 10.0.0.0/16"),
    ),
    Refuted(
        "an IPv6 net too wide", grabbing("src net 2001:db8::/31"), 'allow = [{ src = "2001:db8::/32" }]',
        "2001:db9::/32 is in it as well",
        grabbing("src net 2001:db8::/32"),
    ),
    Refuted(
        "a range too wide", grabbing("tcp portrange 8000-8101"), 'allow = [{ tcp_port = "8000-8100" }]',
        "8101 is not allowed",
        grabbing("tcp portrange 8000-8100"),
    ),
    Refuted(
        "all of TCP", grabbing("tcp"), PORT80,
        "other ports, and later fragments, which have none",
        grabbing("tcp port 80"),
    ),
    Refuted(
        "another port as well", grabbing("tcp port 80 or tcp port 8080"), WEB,
        "8080 is not allowed",
        grabbing("tcp port 80 or tcp port 443"),
    ),
    Refuted(
        "from left to right", grabbing("port 53 and tcp or udp"), "allow = [{ port = 53 }]",
        "`and` binds no tighter than `or`: all of UDP passes",
        grabbing("port 53 and (tcp or udp)"),
    ),
    Refuted(
        "from left to right, nets", grabbing("tcp port 80 and src net 10.0.0.0/8 or dst net 10.0.0.0/8"), 'allow = [{ net = "10.0.0.0/8", tcp_port = 80 }]',
        "whatever goes to the net passes, of any port",
        grabbing("tcp port 80 and (src net 10.0.0.0/8 or dst net 10.0.0.0/8)"),
    ),
    Refuted(
        "vlan shifts the rest", grabbing("vlan 7 or tcp port 80"), "allow = [{ vlan = 7 }, { tcp_port = 80 }]",
        "behind `vlan` all offsets are 4 bytes on, in untagged packets too",
        grabbing("tcp port 80 or vlan 7"),
    ),
    Refuted(
        "a VLAN is not IP", grabbing("vlan 7"), 'allow = [{ vlan = 7, proto = "ip" }]',
        "all protocols of the VLAN pass",
        grabbing("vlan 7 and ip"),
    ),
    Refuted(
        "any VLAN", grabbing("vlan and tcp port 80"), "allow = [{ vlan = 7, tcp_port = 80 }]",
        "other VLANs pass",
        grabbing("vlan 7 and tcp port 80"),
    ),
    Refuted(
        "no VLAN", grabbing("tcp port 80"), "allow = [{ vlan = 7, tcp_port = 80 }]",
        "`tcp port` only finds untagged packets",
        grabbing("vlan 7 and tcp port 80"),
    ),
    Refuted(
        "the inner tag", grabbing("vlan and vlan 7 and tcp port 80"), "allow = [{ vlan = 7, tcp_port = 80 }]",
        "the rule is about the outermost tag",
        grabbing("vlan 7 and vlan and tcp port 80"),
    ),
    Refuted(
        "bytes of an IP header without options", grabbing("ip[9] = 6 and ip[20:2] = 80"), PORT80,
        "with options the port is elsewhere, and later fragments have none",
        grabbing("ip and tcp src port 80"),
    ),
    Refuted(
        "IPv6 as well", grabbing("tcp port 443"), 'allow = [{ proto = "ip", tcp_port = 443 }]',
        "`tcp port` means IPv6 too",
        grabbing("ip and tcp port 443"),
    ),
    Refuted(
        "ICMP of IPv6", grabbing("icmp or icmp6"), 'allow = [{ proto = "icmp" }]',
        "ICMPv6 is another protocol",
        grabbing("icmp"),
    ),
    Refuted(
        "a sampler is no filter", "(sampler,1000) -> (grab)", PORT80,
        "one in a thousand of everything is not the web",
        '(sampler,1000) -> (bpf,"tcp port 80") -> (grab)',
    ),
    Refuted(
        "either branch", '(bpf,"tcp port 80") | (sampler,1000) -> (grab)', PORT80,
        "what the sampler passes need not be web",
        '(bpf,"tcp port 80") & (sampler,1000) -> (grab)',
    ),
    Refuted(
        "the other sink", '((bpf,"tcp port 80") -> (grab)) | ((bpf,"tcp port 22") -> (grab))', PORT80,
        "the second sink takes ssh",
        '((bpf,"tcp port 80") -> (grab)) | ((bpf,"tcp dst port 80") -> (grab))',
    ),
    # Depth.
    Refuted(
        "whole packets", grabbing("tcp port 22"), 'allow = [{ tcp_port = 22, show = "headers" }]',
        "the sink shows payload",
        headers("tcp port 22"),
    ),
    Refuted(
        "a snap length is no header", '(bpf,"tcp port 22") -> (grab,snaplen=54)', 'allow = [{ tcp_port = 22, show = "headers" }]',
        "54 bytes of a packet may be payload",
        headers("tcp port 22"),
    ),
    Refuted(
        "a bit of payload", '(bpf,"tcp port 22") -> (snap,8) -> (grab)', 'allow = [{ tcp_port = 22, show = "headers" }]',
        "8 bytes of payload are payload",
        headers("tcp port 22"),
    ),
    Refuted(
        "headers have addresses", headers("tcp port 22"), 'allow = [{ tcp_port = 22, show = "anonymised" }]',
        "`snap` leaves addresses as they are",
        pseudonyms("tcp port 22"),
    ),
    Refuted(
        "one branch without snap", '((bpf,"tcp port 22") -> (snap) -> (grab)) | ((bpf,"tcp port 22") -> (sampler,10) -> (grab))', 'allow = [{ tcp_port = 22, show = "headers" }]',
        "the second sink shows payload",
        '((bpf,"tcp port 22") -> (snap) -> (grab)) | ((bpf,"tcp port 22") -> (sampler,10) -> (snap) -> (grab))',
    ),
    Refuted(
        "counts only", grabbing("tcp port 80"), COUNT,
        "the sink shows packets",
        counting("tcp port 80"),
    ),
    # Inference.
    Refuted(
        "payload bit by bit", counting("udp[8] & 0x80 != 0"), COUNT,
        "the count tells a bit of payload",
        counting("udp"),
    ),
    Refuted(
        "GET requests, headers only", headers("tcp port 80 and tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420"), 'allow = [{ tcp_port = 80, show = "headers" }]',
        "the filter reads payload, which the rule hides",
        headers("tcp port 80"),
    ),
    Refuted(
        "scanning shows payload", '(bpf,"tcp port 80") -> (scan,attack) -> (packetcount)', COUNT,
        "`scan` tells what payload contains",
        counting("tcp port 80"),
    ),
    Refuted(
        "one host under pseudonyms", pseudonyms("tcp port 80 and host 10.0.0.1"), 'allow = [{ tcp_port = 80, show = "anonymised" }]',
        "that packets come at all tells an address which the rule hides",
        pseudonyms("tcp port 80"),
    ),
    Refuted(
        "a byte far in", counting("ether[60] = 0"), COUNT,
        "what is there may be payload",
        counting("ip"),
    ),
    Refuted(
        "DNS answers with errors", headers("udp src port 53 and udp[11] & 0xf != 0"), 'allow = [{ udp_port = 53, show = "headers" }]',
        "what is behind the header of UDP is payload",
        headers("udp src port 53"),
    ),
)  # fmt: skip
