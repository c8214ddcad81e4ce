"""Filter text -> classic BPF, by libpcap itself, and libpcap's own verdict on a packet.

Filters are literals: a word that is no keyword of pcap-filter(7) would be looked up in DNS, /etc/services and the like,
so it is refused before libpcap sees it.
"""

from __future__ import annotations

import ctypes
import re
from ctypes.util import find_library
from functools import cache

from ffpf_bpf.errors import ExpressionError, FfpfError
from ffpf_bpf.graph.predicate import Instruction, Program, checked

ETHERNET = 1  # DLT_EN10MB
LONGEST_PACKET = 262_144
PCAP_ERROR_BYTES = 256

KEYWORDS = frozenset(
    """
    action addr1 addr2 addr3 addr4 address1 address2 address3 address4 aarp ah and arp atalk broadcast byte bcast
    carp clnp csnp decnet dir direction dst es-is esis ether ethertype esp es fddi fisu gateway geneve greater host
    icmp icmp6 igmp igrp iih inbound ip ip6 ipx is-is isis iso l1 l2 lane lat len less link llc lsp lssu lsu metac moprc
    mopdl mpls msu multicast mcast net mask netbeui not or oam oamf4 oamf4ec oamf4sc of on opc outbound pim port
    portrange ppp pppoed pppoes proto protochain psnp radio ra ta rarp reason rnr rset rulenum ruleset rulesetname
    sca sctp slip snp src srnr stp subrulenum subtype tcp tr type udp vci vlan vpi vrrp vxlan wlan
    rr rej ui ua disc sabme test xid frmr sc bcc ilmic connectmsg
    icmptype icmpcode icmp6type icmp6code tcpflags
    icmp-echoreply icmp-unreach icmp-sourcequench icmp-redirect icmp-echo icmp-routeradvert icmp-routersolicit
    icmp-timxceed icmp-paramprob icmp-tstamp icmp-tstampreply icmp-ireq icmp-ireqreply icmp-maskreq icmp-maskreply
    icmp6-destinationunreach icmp6-packettoobig icmp6-timeexceeded icmp6-parameterproblem icmp6-echo icmp6-echoreply
    icmp6-multicastlistenerquery icmp6-multicastlistenerreportv1 icmp6-multicastlistenerdone icmp6-routersolicit
    icmp6-routeradvert icmp6-neighborsolicit icmp6-neighboradvert icmp6-redirect icmp6-routerrenum
    icmp6-nodeinformationquery icmp6-nodeinformationresponse icmp6-ineighbordiscoverysolicit
    icmp6-ineighbordiscoveryadvert icmp6-multicastlistenerreportv2 icmp6-homeagentdiscoveryrequest
    icmp6-homeagentdiscoveryreply icmp6-mobileprefixsolicit icmp6-mobileprefixadvert icmp6-certpathsolicit
    icmp6-certpathadvert icmp6-multicastrouteradvert icmp6-multicastroutersolicit icmp6-multicastroutertermination
    tcp-fin tcp-syn tcp-rst tcp-push tcp-ack tcp-urg tcp-ece tcp-cwr
    """.split()
)

# What libpcap's scanner takes for one word; literals first.
TOKEN = re.compile(
    r"""
    (?P<space>[\s]+)
  | (?P<literal>
        [0-9a-fA-F]{1,2}(?:[:.-][0-9a-fA-F]{1,2}){5}          # MAC
      | [0-9a-fA-F]*:[0-9a-fA-F:]*(?:\d+\.\d+\.\d+\.\d+)?     # IPv6
      | \d+(?:\.\d+){1,3} | 0[xX][0-9a-fA-F]+ | \d+(?![\w]) | \d+-\d+
      | \$[0-9a-fA-F]{1,2} )
  | (?P<word>\\?[A-Za-z0-9_](?:[\w.-]*\w)?)
  | (?P<operator><<|>>|<=|>=|!=|==|&&|\|\||[-+*/%&|^!=<>()\[\]:,])
    """,
    re.VERBOSE,
)


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
    _refuse_names(filter_text)
    library = _library()
    handle = library.pcap_open_dead(ETHERNET, LONGEST_PACKET)
    if not handle:
        raise FfpfError("libpcap has no memory")
    program = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), filter_text.encode(), 1, 0xFFFFFFFF) != 0:
            message = library.pcap_geterr(handle).decode(errors="replace")
            raise ExpressionError(_in_words(message, filter_text), where="(bpf)", help=_help(message))
        instructions = [
            Instruction(i.code, i.jt, i.jf, i.k) for i in program.instructions[: program.length]
        ]
        library.pcap_freecode(ctypes.byref(program))
    finally:
        library.pcap_close(handle)
    return checked(filter_text, instructions)


def offline_filter(program: Program, packet: bytes, wire_length: int | None = None) -> int:
    """libpcap's verdict (`pcap_offline_filter`) of the same instructions: what they return, 0 stops the packet."""
    count = len(program.instructions)
    instructions = (_Instruction * count)(*((i.code, i.jump_true, i.jump_false, i.k) for i in program.instructions))
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


def _refuse_names(filter_text: str) -> None:
    at = 0
    previous = ""
    while at < len(filter_text):
        token = TOKEN.match(filter_text, at)
        if token is None:
            raise ExpressionError(
                f"unexpected `{filter_text[at]}` in `{filter_text}`", where="(bpf)", help="see pcap-filter(7)"
            )
        word = token["word"]
        if word and not word.isdecimal() and word.removeprefix("\\") not in KEYWORDS:
            kind = {"port": "port", "portrange": "port", "proto": "protocol", "net": "network"}.get(previous, "host")
            plural = {"port": "port numbers", "protocol": "protocol numbers", "network": "networks"}
            raise ExpressionError(
                f"unknown {kind} `{word}`",
                where="(bpf)",
                help=f"filters take {plural.get(kind, 'addresses')}, not names; keywords are those of pcap-filter(7)",
            )
        previous = word or previous
        at = token.end()


def _in_words(message: str, filter_text: str) -> str:
    message = message.removeprefix("can't parse filter expression: ")
    return f"{message} in `{filter_text}`"


def _help(message: str) -> str:
    if "not supported" in message or "not implemented" in message:
        return "this primitive does not apply to Ethernet frames in flight; see pcap-filter(7)"
    return "the language is tcpdump's; see pcap-filter(7)"
