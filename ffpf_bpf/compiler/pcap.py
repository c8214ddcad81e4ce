"""Filter text -> classic BPF, by libpcap itself, and libpcap's own verdict on a packet.

Filters are literals: a word that is no keyword of pcap-filter(7) would be looked up in DNS, /etc/services and the like,
so it is refused before libpcap sees it.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from ctypes.util import find_library
from functools import cache
from ipaddress import IPv6Address

from ffpf_bpf.errors import ExpressionError, FfpfError
from ffpf_bpf.graph.predicate import Instruction, Program, checked

ETHERNET = 1  # DLT_EN10MB
LONGEST_PACKET = 262_144
PCAP_ERROR_BYTES = 256

# What libpcap's scanner knows by itself (scanner.l of 1.10.3). Every other word is a name to it.
KEYWORDS = frozenset(
    """
    aarp action addr1 addr2 addr3 addr4 address1 address2 address3 address4 ah and arp atalk bcc broadcast byte carp
    clnp connectmsg csnp decnet dir direction dpc dst es-is esis esp ether fddi fisu gateway geneve greater hdpc hfisu
    hlssu hmsu hopc host hsio hsls icmp icmp6 ifindex ifname igmp igrp iih ilmic inbound ip ip6 ipx is-is isis iso l1
    l2 lane lat len length less link llc lsp lssu lsu mask metac metaconnect mopdl moprc mpls msu multicast net netbeui
    not oam oamf4 oamf4ec oamf4sc on opc or outbound pim port portrange ppp pppoed pppoes proto protochain psnp ra
    radio rarp reason rnr rset rulenum ruleset sc sca sctp sio slip sls snp src srnr stp subrulenum subtype ta tcp tr
    type udp vci vlan vpi vrrp wlan
    icmptype icmpcode icmp6type icmp6code tcpflags
    icmp-echoreply icmp-unreach icmp-sourcequench icmp-redirect icmp-echo icmp-routeradvert icmp-routersolicit
    icmp-timxceed icmp-paramprob icmp-tstamp icmp-tstampreply icmp-ireq icmp-ireqreply icmp-maskreq icmp-maskreply
    icmp6-destinationunreach icmp6-packettoobig icmp6-timeexceeded icmp6-parameterproblem icmp6-echo icmp6-echoreply
    icmp6-multicastlistenerquery icmp6-multicastlistenerreportv1 icmp6-multicastlistenerdone icmp6-routersolicit
    icmp6-routeradvert icmp6-neighborsolicit icmp6-neighboradvert icmp6-redirect icmp6-routerrenum
    icmp6-nodeinformationquery icmp6-nodeinformationresponse icmp6-ineighbordiscoverysolicit
    icmp6-ineighbordiscoveryadvert icmp6-multicastlistenerreportv2 icmp6-homeagentdiscoveryrequest
    icmp6-homeagentdiscoveryreply icmp6-mobileprefixsolicit icmp6-mobileprefixadvert icmp6-certpathsolicit
    icmp6-certpathadvert icmp6-multicastrouteradvert icmp6-multicastroutersolicit icmp6-multicastrouterterm
    tcp-fin tcp-syn tcp-rst tcp-push tcp-ack tcp-urg tcp-ece tcp-cwr
    """.split()  # noqa: SIM905
)
# The names that `llc` takes; `rnr` is a keyword.
LLC_TYPES = frozenset(("i", "s", "u", "rr", "rej", "ui", "ua", "disc", "sabme", "test", "xid", "frmr"))

# `proto \tcp` reads /etc/protocols, so libpcap gets the numbers.
IP_PROTOCOLS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "igrp": 9, "udp": 17, "esp": 50, "ah": 51, "icmp6": 58, "pim": 103, "vrrp": 112,
    "carp": 112, "sctp": 132,
}  # fmt: skip
ETHER_PROTOCOLS = {
    "ip": 0x0800, "arp": 0x0806, "rarp": 0x8035, "ip6": 0x86DD, "atalk": 0x809B, "aarp": 0x80F3, "decnet": 0x6003,
    "lat": 0x6004, "sca": 0x6007, "mopdl": 0x6001, "moprc": 0x6002, "loopback": 0x9000,
    "iso": 0xFE, "stp": 0x42, "ipx": 0xE0, "netbeui": 0xF0,
}  # fmt: skip
OSI_PROTOCOLS = {"clnp": 0x81, "esis": 0x82, "isis": 0x83}
PROTOCOLS = {
    "ether": ETHER_PROTOCOLS, "link": ETHER_PROTOCOLS, "iso": OSI_PROTOCOLS, "ip": IP_PROTOCOLS, "ip6": IP_PROTOCOLS,
    **dict.fromkeys(("", "and", "or", "not", "&&", "||", "!", "("), IP_PROTOCOLS),
}  # fmt: skip

TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+)
  | (?P<address>[0-9A-Fa-f]*(?::[0-9A-Fa-f]*){2,}(?:\.[0-9]+)*)  # MAC or IPv6; `[0:2]` has only one colon
  | (?P<word>\\?[A-Za-z0-9](?:[-_.A-Za-z0-9]*[.A-Za-z0-9])?)
  | (?P<operator><<|>>|<=|>=|!=|==|&&|\|\||[-+*/%&|^!=<>()\[\]:])
    """,
    re.VERBOSE,
)
LITERAL = re.compile(
    r"""
    [0-9]+ | 0[xX][0-9A-Fa-f]+ | [0-9]+(?:\.[0-9]+){1,3}
  | (?:[0-9A-Fa-f]{1,2}-){5}[0-9A-Fa-f]{1,2} | (?:[0-9A-Fa-f]{1,2}\.){5}[0-9A-Fa-f]{1,2}
  | (?:[0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4} | [0-9A-Fa-f]{12}
    """,
    re.VERBOSE,
)
MAC_ADDRESS = re.compile(r"(?:[0-9A-Fa-f]{1,2}:){5}[0-9A-Fa-f]{1,2}")
PORT_RANGE = re.compile(r"[0-9]{1,5}-[0-9]{1,5}")
# A list of values keeps its qualifier, as in `portrange 1-2 or 3-4`, up to the next keyword or `)`.
LISTING = frozenset(("and", "or", "not", "&&", "||", "!", "("))


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


class _PacketHeader(ctypes.Structure):
    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


def compile_filter(filter_text: str) -> Program:
    """The classic BPF of a pcap filter on Ethernet frames. Raises ExpressionError in libpcap's words, or for a name."""
    literal = _without_names(filter_text)
    library = _library()
    handle = library.pcap_open_dead(ETHERNET, LONGEST_PACKET)
    if not handle:
        raise FfpfError("libpcap has no memory")
    program = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), literal.encode(), 1, 0xFFFFFFFF) != 0:
            message = library.pcap_geterr(handle).decode(errors="replace")
            raise ExpressionError(_in_words(message, filter_text), where="(bpf)", help=_help(message))
        instructions = [Instruction(i.code, i.jt, i.jf, i.k) for i in program.instructions[: program.length]]
        library.pcap_freecode(ctypes.byref(program))
    finally:
        library.pcap_close(handle)
    return checked(filter_text, instructions)


def offline_filter(program: Program, packet: bytes, wire_length: int | None = None) -> int:
    """libpcap's verdict (`pcap_offline_filter`) of the same instructions: what they return, 0 stops the packet."""
    count = len(program.instructions)
    instructions = (_Instruction * count)(
        *(_Instruction(i.code, i.jump_true, i.jump_false, i.k) for i in program.instructions)
    )
    native = _Program(count, ctypes.cast(instructions, ctypes.POINTER(_Instruction)))
    header = _PacketHeader(0, 0, len(packet), len(packet) if wire_length is None else wire_length)
    return int(_library().pcap_offline_filter(ctypes.byref(native), ctypes.byref(header), packet)) & 0xFFFFFFFF


def version() -> str:
    """libpcap's own words, as in `libpcap version 1.10.3`."""
    return str(_library().pcap_lib_version().decode())


@cache
def _library() -> ctypes.CDLL:
    name = find_library("pcap") or "libpcap.so.0.8"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        raise FfpfError("libpcap is missing", help="run `apt-get install libpcap0.8`") from None
    library.pcap_open_dead.restype = ctypes.c_void_p
    library.pcap_open_dead.argtypes = [ctypes.c_int, ctypes.c_int]
    library.pcap_compile.argtypes = [
        ctypes.c_void_p,
        ctypes.POINTER(_Program),
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint32,
    ]
    library.pcap_geterr.restype = ctypes.c_char_p
    library.pcap_geterr.argtypes = [ctypes.c_void_p]
    library.pcap_close.argtypes = [ctypes.c_void_p]
    library.pcap_freecode.argtypes = [ctypes.POINTER(_Program)]
    library.pcap_offline_filter.argtypes = [
        ctypes.POINTER(_Program),
        ctypes.POINTER(_PacketHeader),
        ctypes.c_char_p,
    ]
    library.pcap_lib_version.restype = ctypes.c_char_p
    return library


def _without_names(filter_text: str) -> str:
    """The filter as libpcap gets it: each word checked and set apart, so that its scanner sees the words seen here."""
    words: list[str] = []
    qualifier = ""  # what a list of values is of: `portrange`, or `proto` with `names` that it knows
    names: dict[str, int] = {}
    for kind, word in _words(filter_text):
        previous = words[-1] if words else ""
        text = word
        if kind == "address":
            _check_address(word)
        elif word.startswith("\\") and qualifier == "proto" and word[1:] in names:
            text = str(names[word[1:]])
        elif word in KEYWORDS or kind == "operator":
            if word not in LISTING:
                qualifier = word
                names = PROTOCOLS.get(previous, {})
        elif not (
            LITERAL.fullmatch(word)
            or (qualifier == "portrange" and PORT_RANGE.fullmatch(word))
            or (previous == "llc" and word.lower() in LLC_TYPES)
        ):
            _refuse_name(word, qualifier)
        words.append(text)
    return " ".join(words)


def _words(filter_text: str) -> Iterator[tuple[str, str]]:
    """The kind (`address`, `word`, `operator`) and text of each word of the filter."""
    at = 0
    while at < len(filter_text):
        token = TOKEN.match(filter_text, at)
        if token is None:
            raise ExpressionError(
                f"unexpected `{filter_text[at]}` in `{filter_text}`", where="(bpf)", help="see pcap-filter(7)"
            )
        at = token.end()
        if token.lastgroup and token.lastgroup != "space":
            yield token.lastgroup, token[0]


def _check_address(word: str) -> None:
    if MAC_ADDRESS.fullmatch(word):
        return
    try:
        IPv6Address(word)
    except ValueError:
        raise ExpressionError(
            f"`{word}` is no address", where="(bpf)", help="write `00:11:22:33:44:55` or `2001:db8::1`"
        ) from None


def _refuse_name(word: str, qualifier: str) -> None:
    kind = {"port": "port", "portrange": "port", "proto": "protocol", "net": "network"}.get(qualifier, "host")
    plural = {"port": "port numbers", "protocol": "protocol numbers", "network": "networks"}
    raise ExpressionError(
        f"unknown {kind} `{word}`",
        where="(bpf)",
        help=f"filters take {plural.get(kind, 'addresses')}, not names; keywords are those of pcap-filter(7)",
    )


def _in_words(message: str, filter_text: str) -> str:
    message = message.removeprefix("can't parse filter expression: ")
    return f"{message} in `{filter_text}`"


def _help(message: str) -> str:
    if "not supported" in message or "not implemented" in message:
        return "this primitive does not apply to Ethernet frames in flight; see pcap-filter(7)"
    return "the language is tcpdump's; see pcap-filter(7)"
