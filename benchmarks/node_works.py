"""What is measured of each node class, and the rivals: C programs of `handwritten/`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks import meter
from benchmarks.frames import ACK, SYN, TCP, UDP, ipv4, ipv6, tcp, udp
from benchmarks.node_chains import Vary
from benchmarks.node_rivals import LRU_HASH, PERCPU_ARRAY, Global, Map, Records, Rival
from ffpf_bpf.kernel import calls

RST = 0x04
ONE_HALF, ONE_TENTH = 1 << 31, round(0.1 * (1 << 32))
FLOWS_KEPT = 65_536  # by head and newflow, in 1 MiB
BUCKET_BYTES, WAYS = 128, 8
LOG2_BINS = 65
KEY = bytes(range(16))
CPUS_TOLD_APART = 1 << (calls.possible_cpus() - 1).bit_length()
PSEUDONYM_BYTES = 1_024 * (16 + 32)  # struct memory in handwritten/pseudonyms.h
HOUR_NS = 3_600 * 10**9
SOURCE_IP4, SOURCE_IP6 = 26, 34  # offsets: of an IPv4 source, of the last 32 bits of an IPv6 source
NEW_FLOWS = Vary(SOURCE_IP4, 0x0B000000, 1 << 20)
SEVERAL_FLOWS = Vary(SOURCE_IP4, 0x0B000000, 1 << 13)
NEW_IP6 = Vary(SOURCE_IP6, 0, 1 << 20)

WEB = ipv4(TCP, tcp(1234, 80))
WEB_SYN = ipv4(TCP, tcp(1234, 80, SYN))
TLS = ipv4(TCP, tcp(1234, 443))
WEB_IPV6 = ipv6(TCP, tcp(1234, 80, SYN))
LONG = ipv4(UDP, udp(1234, 53, bytes(1_472)))
FRAGMENTS = tuple(ipv6(44, bytes([UDP, 0, *place, 0, 0, 0, 1]) + udp(80, 9)) for place in ((0, 1), (0, 9), (0, 8)))
EXAMPLES = (
    LONG, TLS, ipv4(TCP, tcp(80, 9, SYN | ACK)), ipv4(TCP, tcp(80, 9, RST)), ipv6(UDP, udp(5, 443)), *FRAGMENTS,
    ipv6(0, bytes([60, 0]) + bytes(6) + bytes([TCP, 0]) + bytes(6) + tcp(9, 80, SYN)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Work:
    """A flow behind its device, the rivals that do the same, and the packet it is measured with, which `vary` makes
    another one each time. `most_packets` fit into the ring at once; `chance` says how many pass if that is random."""

    name: str
    flow: str
    rivals: tuple[Rival, ...]
    packet: bytes = WEB
    vary: Vary | None = None
    most_packets: int = meter.REPEAT
    chance: float = 0.0
    examples: tuple[bytes, ...] = EXAMPLES

    @property
    def expression(self) -> str:
        return f"(device,tap0) -> {self.flow}"


def _head(name: str, most: int) -> tuple[Rival, ...]:
    option = (f"-DMOST={most}",) if name == "head" else ()
    table = (f"-DOWN_TABLE={FLOWS_KEPT // WAYS}",)
    return (
        Rival(name, option, {"flows": Map(LRU_HASH, 8, 8, FLOWS_KEPT)}, "LRU hash", ("flows",)),
        Rival(
            name, option + table, {"buckets": Global(BUCKET_BYTES * FLOWS_KEPT // WAYS)}, "own table",
            ("flows", "evicted"),
        ),
    )  # fmt: skip


def _limit(cost_ns: int, burst_ns: int) -> tuple[Rival, ...]:
    return (Rival("limit", (f"-DCOST_NS={cost_ns}ull", f"-DBURST_NS={burst_ns}ull"), {"bucket": Global(8)}),)


def _histogram(*options: str, bins: int = LOG2_BINS, width: int = 0, **maps: Global) -> tuple[Rival, ...]:
    counters = Map(PERCPU_ARRAY, 4, 8, bins)
    linear = (f"-DWIDTH={width}",) if width else ()
    return (Rival("histogram", (*options, *linear, f"-DBINS={bins}"), {"bins": counters, **maps}),)


def _grabbing(name: str, snaplen: int, slots: int, *options: str, **maps: Global) -> tuple[Rival, ...]:
    return (
        Rival(name, options, maps, "BPF ring buffer", records=Records(snaplen)),
        Rival(name, options, maps, "own ring", records=Records(snaplen, slots)),
    )


def _anonymise(work: str, packet: bytes, vary: Vary | None = None) -> Work:
    options = (f"-DPOSSIBLE_CPUS={CPUS_TOLD_APART}",)
    maps = {"key": Global(len(KEY), KEY), "memory": Global(CPUS_TOLD_APART * PSEUDONYM_BYTES)}
    *in_place, own = _grabbing("anonymise", 256, 8_192, *options, **maps)
    assert own.records is not None
    apart = replace(
        own, options=(*options, f"-DAPART={CPUS_TOLD_APART}"), how="own ring, rewritten apart",
        maps={**maps, "apart": Global(CPUS_TOLD_APART * own.records.record_bytes)},
    )  # fmt: skip
    rivals = (*in_place, own, apart)
    flow = f"(anonymise,key={KEY.hex()}) -> (grab,snaplen=256)"
    return Work(f"anonymise, {work}", flow, rivals, packet, vary, most_packets=8_000)


COUNTERS = (
    Work("bpf: tcp port 80", '(bpf,"tcp port 80") -> (packetcount)', (Rival("tcp_port_80"),)),
    Work("packetcount", "(packetcount) -> (packetcount)", (Rival("packetcount", own=("packets",)),)),
    Work("bytecount", "(bytecount) -> (packetcount)", (Rival("bytecount", own=("bytes",)),)),
    Work("histogram of sizes, log2", "(histogram,size) -> (packetcount)", _histogram()),
    Work(
        "histogram of sizes, linear", '(histogram,"size linear=64x24") -> (packetcount)',
        _histogram(bins=24, width=64),
    ),
    Work("histogram of inter-arrival times", "(histogram,iat) -> (packetcount)", _histogram("-DIAT", last=Global(8))),
)  # fmt: skip
DECIDERS = (
    Work("sampler 1 in 10", "(sampler,10) -> (packetcount)", (Rival("sampler", ("-DONE_IN=10",)),)),
    Work(
        "sampler p=0.1", "(sampler,p=0.1) -> (packetcount)", (Rival("sampler", (f"-DTHRESHOLD={ONE_TENTH}u",)),),
        chance=0.1,
    ),
    *(
        Work(
            f"sampler 1 flow in 2, {kind}", "(sampler,flow=1/2) -> (packetcount)",
            (Rival("sampler", (f"-DFLOWS={ONE_HALF}u",)),), packet,
        )
        for kind, packet in (("IPv4", WEB), ("IPv6", WEB_IPV6))
    ),
    Work("limit, passes", "(limit,1000000000/s) -> (packetcount)", _limit(1, 10**8)),
    Work("limit, stops", "(limit,1/h) -> (packetcount)", _limit(HOUR_NS, HOUR_NS)),
    *(
        Work(f"tcpflags, {kind}", '(tcpflags,"syn !ack | rst") -> (packetcount)', (Rival("tcpflags"),), packet)
        for kind, packet in (("passes", WEB_SYN), ("stops", WEB), ("IPv6", WEB_IPV6))
    ),
    Work(
        "classify by port, two edges", "(classify,dport) -80-> (packetcount) | -443-> (bytecount)",
        (Rival("classify", own=("packets", "", "bytes")),), TLS,
    ),
    Work(
        "classify by flow, two edges", "(classify,flow=16) -0..7-> (packetcount) | -8..15-> (bytecount)",
        (Rival("classify", ("-DPARTS=16ull",), own=("packets", "", "bytes")),),
    ),
)  # fmt: skip
TABLES = (
    Work("head 10, one flow", "(head,10) -> (packetcount)", _head("head", 10)),
    Work("head 10, 8,192 flows in turn", "(head,10) -> (packetcount)", _head("head", 10), vary=SEVERAL_FLOWS),
    Work("newflow, one flow", "(newflow) -> (packetcount)", _head("newflow", 1)),
    Work("newflow, each packet a new flow", "(newflow) -> (packetcount)", _head("newflow", 1), vary=NEW_FLOWS),
)
SINKS = (
    Work("grab 96 of 60 bytes", "(grab,snaplen=96)", _grabbing("grab", 96, 32_768), most_packets=16_000),
    Work("grab all of 1,514 bytes", "(grab)", _grabbing("grab", 1_522, 2_048), LONG, most_packets=1_900),
    Work(
        "snap of 1,514 bytes", "(snap,payload=16) -> (grab,snaplen=96)", _grabbing("snap", 96, 32_768, "-DPAYLOAD=16"),
        LONG, most_packets=16_000,
    ),
    _anonymise("IPv4 addresses known", WEB),
    _anonymise("IPv4 source new", WEB, NEW_FLOWS),
    _anonymise("IPv6 addresses known", WEB_IPV6),
    _anonymise("IPv6 source new", WEB_IPV6, NEW_IP6),
)  # fmt: skip
WORKS = (*COUNTERS, *DECIDERS, *TABLES, *SINKS)
