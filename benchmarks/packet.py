"""What a packet costs: generated filters and chains against the same written in C by hand.

    python -m benchmarks.packet [--quick]

All figures are nanoseconds per packet by BPF_PROG_TEST_RUN, one packet over and over: caches and branch predictors are
warm for both. "Filter" is the predicate in a bare program that returns its verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from llvmlite import ir

from benchmarks import meter, rivals
from benchmarks.frames import ASSORTED, ICMP, SYN, TCP, UDP, arp, ipv4, ipv6, tcp, udp
from benchmarks.meter import Case, Rig
from benchmarks.table import Row, Table, main
from ffpf_bpf.compiler import emit
from ffpf_bpf.compiler.frame import Generated, new_module
from ffpf_bpf.compiler.hook import XDP
from ffpf_bpf.compiler.object import Object, read
from ffpf_bpf.compiler.pcap import compile_filter
from ffpf_bpf.compiler.predicate import I8, I32, I64, POINTER, lower_predicate, opaque
from ffpf_bpf.flow import Flow
from ffpf_bpf.kernel import calls, interfaces
from ffpf_bpf.kernel.maps import Descriptor, MappedArray
from ffpf_bpf.kernel.programs import Binding, load
from tests.network import two_namespaces

XDP_DROP, XDP_PASS = 1, 2
STATE_BYTES = 64 + 128 * 64  # struct state in handwritten/wire.h
FILTER_GOAL, TEN_FLOWS_GOAL, IDLE_GOAL_NS = 1.1, 2.5, 3.0
TIMES = 16
COUNTED = "(device,tap0) -> (packetcount)"


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter, the C program that does the same, and a packet that passes and one that does not."""

    text: str
    rival: str
    matching: bytes
    other: bytes


WEB = ipv4(TCP, tcp(1234, 80))
DNS = ipv4(UDP, udp(1234, 53))
FILTERS = (
    Filter("tcp port 80", "tcp_port_80", WEB, ipv4(TCP, tcp(1234, 22))),
    Filter("udp port 53", "udp_port_53", DNS, ipv4(UDP, udp(1234, 54))),
    Filter("host 10.0.0.1", "host", ipv4(TCP, tcp(9, 9), to="10.0.0.1"), WEB),
    Filter("net 10.1.0.0/16", "net", ipv4(TCP, tcp(9, 9), to="10.1.2.3"), WEB),
    Filter("tcp[13] & 2 != 0", "syn", ipv4(TCP, tcp(1234, 80, SYN)), WEB),
    Filter("ip6 and tcp", "ip6_tcp", ipv6(TCP, tcp(1234, 80)), ipv6(UDP, udp(1234, 80))),
    Filter("vlan and ip", "vlan_ip", ipv4(TCP, tcp(80, 80), vlan=0x8100), WEB),
    Filter("icmp", "icmp", ipv4(ICMP, b"\x08\0" + bytes(30)), WEB),
    Filter("port 443 or port 80", "web", ipv4(TCP, tcp(1234, 443)), DNS),
)
IPV6_WEB, FRAGMENT, ARP = ipv6(TCP, tcp(1234, 80)), ipv4(TCP, tcp(80, 80), fragment=0xB9), arp("10.0.0.9", "10.0.0.8")


@dataclass(frozen=True, slots=True)
class Effort:
    """How often to load, to go round, and to repeat: where programs happen to lie in memory is worth a nanosecond."""

    loads: int
    rounds: int
    repeat: int


def run(quick: bool = False) -> Table:
    """All rows. Raises ValueError if a filter and its rival disagree on a packet."""
    effort = Effort(1, 2, 2_000) if quick else Effort(7, 6, meter.REPEAT)
    with meter.Rig() as rig:
        rows = [*_filters(rig, effort), *_chains(rig, effort)]
    return Table(
        "A packet (ns)",
        tuple(rows),
        (
            "The loop of BPF_PROG_TEST_RUN, as an empty program shows it, is taken off, but not `with the loop`.",
            f"A filter runs {TIMES} times over in one program, the pointers opaque each time; shown is one time, for a "
            "packet that passes and one that does not, and the ratio of both together.",
            "Whole chain: entry program, tail call, segment, counters; the rival: one program, toggles and counters.",
        ),
    )


def bare_object(filter_text: str, times: int = 1) -> Object:
    """A filter as a program of its own that returns XDP_PASS or XDP_DROP: no flow, no maps. It runs `times` times."""
    module = new_module("bare")
    predicate = lower_predicate(module, compile_filter(filter_text), "predicate")
    function = ir.Function(module, ir.FunctionType(I32, [POINTER]), "filter")
    function.section = "xdp/filter"
    b = ir.IRBuilder(function.append_basic_block("entry"))
    start, stop = (_context_word(b, function.args[0], offset) for offset in (0, 4))
    passed: ir.Value = I64(0)
    for _ in range(times):
        start, stop = (_anew(b, word) for word in (start, stop))
        length = b.trunc(opaque(b, b.sub(stop, start)), I32)
        verdict = b.call(predicate, [b.inttoptr(start, POINTER), b.inttoptr(stop, POINTER), length])
        passed = _anew(b, b.zext(verdict, I64))
    b.ret(b.select(b.icmp_unsigned("!=", passed, I64(0)), I32(XDP_PASS), I32(XDP_DROP)))
    generated = Generated(module, ("filter",), XDP, set())
    linked = emit.link(str(generated.module), generated.primitives, generated.programs)
    emit.optimise(linked)
    return read(emit.emit_object(linked))


def _context_word(b: ir.IRBuilder, context: ir.Value, offset: int) -> ir.Value:
    return b.zext(b.load(b.gep(context, [I64(offset)], source_etype=I8), typ=I32), I64)


def _anew(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], side_effect=True)


def _filters(rig: Rig, effort: Effort) -> Iterator[Row]:
    ratios = []
    for filter in FILTERS:
        single = bare_object(filter.text), rivals.compile_c(filter.rival)
        with ExitStack() as stack:
            ours, rival = (stack.enter_context(load(found.programs["filter"], {})).fileno for found in single)
            _compare(filter, ours, rival)
        objects = bare_object(filter.text, TIMES), rivals.compile_c(filter.rival, f"-DTIMES={TIMES}")
        net = _filter_ns(rig, effort, filter, objects)
        sums = {who: net[f"{who} passes"] + net[f"{who} stops"] for who in ("ours", "rival")}
        ratio = sums["ours"] / sums["rival"]
        ratios.append(ratio)
        ours_shown, rival_shown = (
            f"{net[f'{who} passes']:.2f} / {net[f'{who} stops']:.2f} ({found.programs['filter'].count} instr.)"
            for who, found in zip(sums, single, strict=True)
        )
        goal, met = f"<= {FILTER_GOAL}", ratio <= FILTER_GOAL
        yield Row(f"filter: {filter.text}", ours_shown, rival_shown, f"{ratio:.2f}", goal, met)
    median = statistics.median(ratios)
    yield Row("filter: median ratio", "", "", f"{median:.2f}", f"<= {FILTER_GOAL}", median <= FILTER_GOAL)


def _filter_ns(rig: Rig, effort: Effort, filter: Filter, objects: tuple[Object, Object]) -> dict[str, float]:
    """For `ours passes`, `ours stops` and so on: the median over several loads, for one time that the filter runs."""
    found: dict[str, list[float]] = {}
    for _ in range(effort.loads):
        with ExitStack() as stack:
            ours, rival = (stack.enter_context(load(compiled.programs["filter"], {})).fileno for compiled in objects)
            empty = stack.enter_context(meter.empty_program())
            stack.enter_context(rig.attached(ours, rival, empty))
            cases = {"empty": Case(empty, filter.matching)}
            for who, program in (("ours", ours), ("rival", rival)):
                cases[f"{who} passes"] = Case(program, filter.matching)
                cases[f"{who} stops"] = Case(program, filter.other)
            times = meter.measure(cases, rounds=effort.rounds, repeat=effort.repeat)
        for name in cases:
            found.setdefault(name, []).append((times[name] - times["empty"]) / TIMES)
    return {name: statistics.median(values) for name, values in found.items()}


def _compare(filter: Filter, ours: int, rival: int) -> None:
    for packet in (*ASSORTED, filter.matching, filter.other):
        verdicts = [calls.test_run(program, packet).verdict for program in (ours, rival)]
        if verdicts[0] != verdicts[1]:
            raise ValueError(f"`{filter.text}` and {filter.rival}.c disagree on {packet.hex()}: {verdicts}")
    for packet, verdict in ((filter.matching, XDP_PASS), (filter.other, XDP_DROP)):
        if calls.test_run(ours, packet).verdict != verdict:
            raise ValueError(f"`{filter.text}`: {packet.hex()} is no example")


def _chains(rig: Rig, effort: Effort) -> Iterator[Row]:
    with two_namespaces("packet") as network, network.enter():
        one = '(device,tap0) -> (bpf,"tcp port 80") -> (packetcount)'
        yield _whole_chain(rig, effort, one)
        yield _idle(rig, effort, one)
        ports = [f'(device,tap0) -> (bpf,"tcp port {80 + number}") -> (packetcount)' for number in range(10)]
        kinds = [f'(device,tap0) -> (bpf,"{filter.text}") -> (packetcount)' for filter in FILTERS] + [ports[1]]
        yield from _ten_flows(rig, effort, "10 flows (ten ports) / 1", ports)
        yield from _ten_flows(rig, effort, "10 flows (ten kinds of filter) / 1", kinds)
        plain = {expression: _chain_ns(rig, effort, [expression]) for expression in (COUNTED, one)}
    # Where the MTU is so large that the driver takes no programs but those for several buffers.
    with two_namespaces("packetlarge", mtu=9000) as network, network.enter():
        for expression, (chain, empty) in plain.items():
            large, empty_too = _chain_ns(rig, effort, [expression])
            net, plain_net = large - empty_too, chain - empty
            work = f"{expression.partition(' -> ')[2]}, at an MTU of 9000 / 1500"
            yield Row(work, f"{net:.1f}", f"{plain_net:.1f}", f"{net / plain_net:.2f}")


@contextmanager
def entered(expressions: list[str], *, active: bool = True) -> Iterator[int]:
    """The flows at their tap, switched on; the descriptor of the tap's entry program."""
    with ExitStack() as stack:
        for expression in expressions:
            flow = stack.enter_context(Flow.create().populate(expression).instantiate())
            if active:
                flow.activate()
        program_id, _ = calls.attached_xdp(interfaces.find("tap0").index)
        yield stack.enter_context(Descriptor(calls.library().bpf_prog_get_fd_by_id(program_id))).fileno


def _chain_ns(rig: Rig, effort: Effort, expressions: list[str], active: bool = True) -> tuple[float, float]:
    """A chain and, beside it, an empty program: each the median over several loads."""
    found = []
    for _ in range(effort.loads):
        with entered(expressions, active=active) as entry, meter.empty_program() as empty, rig.attached(empty):
            cases = {"chain": Case(entry, WEB), "empty": Case(empty, WEB)}
            times = meter.measure(cases, rounds=effort.rounds, repeat=effort.repeat)
        found.append((times["chain"], times["empty"]))
    chain, empty_ns = (statistics.median(column) for column in zip(*found, strict=True))
    return chain, empty_ns


def _whole_chain(rig: Rig, effort: Effort, expression: str) -> Row:
    ours, empty = _chain_ns(rig, effort, [expression])
    rival_ns = []
    duties = rivals.compile_c("tcp_port_80", "-DWITH_DUTIES").programs["filter"]
    for _ in range(effort.loads):
        with MappedArray("state", STATE_BYTES) as state, load(duties, {"state": Binding(state, True)}) as rival:
            state.memory[0] = state.memory[4] = 1
            with meter.empty_program() as nothing, rig.attached(rival.fileno, nothing):
                cases = {"rival": Case(rival.fileno, WEB), "empty": Case(nothing, WEB)}
                times = meter.measure(cases, rounds=effort.rounds, repeat=effort.repeat)
        rival_ns.append(times["rival"] - times["empty"])
    net, rival_net = ours - empty, statistics.median(rival_ns)
    return Row("whole chain: tcp port 80, counted", f"{net:.1f}", f"{rival_net:.1f}", f"{net / rival_net:.2f}")


def _idle(rig: Rig, effort: Effort, expression: str) -> Row:
    idle, empty = _chain_ns(rig, effort, [expression], active=False)
    goal = f"<= +{IDLE_GOAL_NS:.0f} ns"
    added = idle - empty
    work, met = "idle tap / empty program, with the loop", added <= IDLE_GOAL_NS
    return Row(work, f"{idle:.1f}", f"{empty:.1f}", f"{added:+.1f} ns", goal, met)


def _ten_flows(rig: Rig, effort: Effort, work: str, expressions: list[str]) -> Iterator[Row]:
    (one, empty), (ten, empty_too) = (_chain_ns(rig, effort, expressions[:count]) for count in (1, len(expressions)))
    for kind, first, second in (("", ten - empty_too, one - empty), (", with the loop", ten, one)):
        ratio = first / second
        goal, met = f"<= {TEN_FLOWS_GOAL}", ratio <= TEN_FLOWS_GOAL
        yield Row(f"{work}{kind}", f"{first:.1f}", f"{second:.1f}", f"{ratio:.2f}", goal, met)


if __name__ == "__main__":
    main(run, "a packet through filters and chains")
