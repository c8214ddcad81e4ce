"""The compiled programs against the interpreter and libpcap, in the kernel: equal verdicts, counts and deliveries."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, given, note, reject, seed, settings
from hypothesis import strategies as st

from ffpf_bpf.capture.ring import Batch
from ffpf_bpf.compiler.pcap import compile_filter, offline_filter
from ffpf_bpf.errors import ExpressionError, FfpfError, VerifierError
from ffpf_bpf.flow import NodeStatistics
from ffpf_bpf.flow.chains import MOST_FLOWS_IN_SEGMENT
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.anonymise import Anonymise
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.classes.bytecount import Bytecount
from ffpf_bpf.graph.classes.callback import Callback
from ffpf_bpf.graph.classes.classify import Classify
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import Grab
from ffpf_bpf.graph.classes.head import Head
from ffpf_bpf.graph.classes.histogram import Histogram
from ffpf_bpf.graph.classes.limit import Limit
from ffpf_bpf.graph.classes.newflow import Newflow
from ffpf_bpf.graph.classes.packetcount import Packetcount
from ffpf_bpf.graph.classes.sampler import Sampler
from ffpf_bpf.graph.classes.scan import Scan
from ffpf_bpf.graph.classes.snap import Snap
from ffpf_bpf.graph.classes.tcpflags import Tcpflags
from ffpf_bpf.graph.expression import Expression, Label, Node, Not, all_of, any_of, nodes, then
from ffpf_bpf.graph.graph import Graph
from ffpf_bpf.graph.predicate import run
from ffpf_bpf.graph.printer import text
from tests.corpus.filters import FILTERS, WRAPPING
from tests.corpus.packets import packets
from tests.model import Model
from tests.segment import has_tag, loaded
from tests.vm import features

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("short_grace_periods")]

SEED = 4004
PACKETS_PER_FILTER = 230


def test_every_filter_in_the_kernel_agrees_with_interpreter_and_libpcap() -> None:
    """The product's own path: device -> filter -> packetcount, one packet at a time."""
    frames = packets(SEED)
    chosen = random.Random(SEED)
    pairs = passed = 0
    filters = (*FILTERS, *WRAPPING)
    for start in range(0, len(filters), 8):
        group = filters[start : start + 8]
        programs = [compile_filter(text) for text in group]
        sample = chosen.sample(frames, PACKETS_PER_FILTER)
        with loaded(*(Device("tap0") >> Bpf(text) >> Packetcount() for text in group)) as flows:
            counted = [0] * len(group)
            for packet in sample:
                assert flows[0].run(packet) == packet, "the packet was changed"
                for number, (text, program, flow) in enumerate(zip(group, programs, flows, strict=True)):
                    verdicts = (
                        run(program, packet) != 0,
                        offline_filter(program, packet) != 0,
                        flow.counted() - counted[number] == 1,
                    )
                    assert len(set(verdicts)) == 1, f"{text}: interpreter, libpcap, kernel: {verdicts}: {packet.hex()}"
                    counted[number] += verdicts[0]
                    pairs += 1
                    passed += verdicts[0]
    print(f"seed {SEED}: {len(filters)} filters, {pairs} pairs, {passed} passed")
    assert len(filters) >= 300
    assert pairs >= 100_000
    assert pairs > passed > pairs / 50


@pytest.mark.parametrize("hook", ["tc-ingress", "tc-egress"])
def test_every_filter_at_tc_agrees_with_interpreter_and_libpcap(hook: str) -> None:
    """As at XDP; and packets with a tag once more with the tag beside their bytes, where the kernel keeps it."""
    frames = packets(SEED)
    chosen = random.Random(SEED + len(hook))
    pairs = beside = passed_beside = 0
    filters = [*FILTERS, *WRAPPING]
    tap = f"tap0@{hook}"
    for start in range(0, len(filters), 8):
        group = filters[start : start + 8]
        programs = [compile_filter(text) for text in group]
        sample = chosen.sample(frames, 40) + [frame for frame in chosen.sample(frames, 400) if has_tag(frame)]
        with loaded(*(Device(tap) >> Bpf(text) >> Packetcount() for text in group), tap=tap) as flows:
            counted = [0] * len(group)
            for packet in sample:
                for run_it in (flows[0].run, flows[0].run_tagged) if has_tag(packet) else (flows[0].run,):
                    assert run_it(packet) == packet, "the packet was changed"
                    for number, (text, program, flow) in enumerate(zip(group, programs, flows, strict=True)):
                        verdicts = (
                            run(program, packet) != 0,
                            offline_filter(program, packet) != 0,
                            flow.counted() - counted[number] == 1,
                        )
                        assert len(set(verdicts)) == 1, f"{text}: {verdicts}: {run_it.__name__} {packet.hex()}"
                        counted[number] += verdicts[0]
                        pairs += 1
                        if run_it == flows[0].run_tagged:
                            beside += 1
                            passed_beside += verdicts[0]
    print(f"seed {SEED}: {pairs} pairs, {beside} of them with a tag beside the packet, of which {passed_beside} passed")
    assert pairs >= 20_000
    assert beside >= 4_000
    assert passed_beside >= 100


def tcp(port: int, source: str) -> bytes:
    address = bytes(int(part) for part in source.split("."))
    ip = bytes([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]) + address + bytes([192, 168, 0, 1])
    return bytes(12) + b"\x08\x00" + ip + (40000).to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(16)


FIELDS = {
    "dport": [53, 80, 443, 1234], "sport": [80, 1234, 2905], "proto": [1, 6, 17, 58], "ethertype": [0x0800, 0x86DD],
    "vlan": [1, 5, 100], "version": [4, 6], "dscp": [0, 46], "ttl": [1, 59, 64, 255], "tcpflags": [2, 16, 18],
    "length": [60, 100, 200], "flow": [0, 1, 2],
}  # fmt: skip
CLASSIFIERS = st.sampled_from([Classify(field, 4 if field == "flow" else 0) for field in FIELDS])
SCANS = st.sampled_from([Scan(["GET", "\0\0", "data"]), Scan([b"abc", b"\x80", b"t"])])
SELECTING = st.sampled_from([CLASSIFIERS, CLASSIFIERS, CLASSIFIERS, SCANS]).flatmap(lambda strategy: strategy)
KEY = bytes(range(16))
SMALL_TABLE = 1 << 16  # for 4,096 flows: a million bytes would be slower to make

DECIDERS = st.one_of(
    st.sampled_from(["tcp", "udp", "ip", "port 53", "len > 100", "vlan", "ip6", "tcp[13] & 2 != 0"]).map(Bpf),
    st.integers(1, 4).map(Sampler),
    st.one_of(st.just(Sampler(p=1.0)), st.integers(1, 4).map(lambda number: Sampler(flow=number))),
    st.integers(1, 9).map(lambda burst: Limit("1/h", burst)),
    st.integers(1_522, 4_000).map(lambda burst: Limit("1kB/h", burst)),
    st.integers(1, 3).map(lambda most: Head(most, mbuf_bytes=SMALL_TABLE)),
    st.integers(1, 300).map(lambda most: Head(bytes=most, mbuf_bytes=SMALL_TABLE)),
    st.just(Newflow(mbuf_bytes=SMALL_TABLE)),
    st.sampled_from(["syn", "ack !syn", "syn | fin !ack | psh", "!rst"]).map(Tcpflags),
    SELECTING,
)
FUNCTIONS = st.sampled_from(
    [
        Packetcount(),
        Bytecount(),
        Histogram("size"),
        Histogram("size", 50, 4),
        Histogram("iat"),
        Histogram("iat", 10**12, 2),
    ]
)
TRANSFORMS = st.sampled_from([Snap(), Snap(3), Snap(40), Anonymise(key=KEY), Anonymise(True, KEY)])
SINKS = st.one_of(
    st.integers(14, 96).map(Grab), st.just(Grab()), st.integers(14, 96).map(lambda n: Callback("f", snaplen=n))
)


def _evenly(*strategies: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    """One of them, each as often as the others, however many there are in each."""
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


PASSING = _evenly(DECIDERS, DECIDERS, FUNCTIONS)
ENDS = _evenly(PASSING, SINKS, TRANSFORMS)


@st.composite
def selections(draw: st.DrawFn, inner: st.SearchStrategy[Expression]) -> Expression:
    """Edges that select: numbers that packets have, ranges around them, others, or not; at least one."""
    node = draw(SELECTING)
    likely = FIELDS[node.field] if isinstance(node, Classify) else [1, 2, 3]
    numbers = draw(st.lists(st.sampled_from(likely), max_size=3, unique=True))
    labels: list[tuple[int | range, ...]] = [(number,) for number in numbers]
    if len(labels) == 3 and draw(st.booleans()):
        labels = [labels[0] + labels[2], labels[1]]
    elif labels and draw(st.booleans()):
        labels = [(range(min(numbers), max(numbers) + 2),)]
    cases: dict[Label, Expression] = {label: draw(inner) for label in labels}
    if not cases or draw(st.booleans()):
        cases["*"] = draw(inner)
    return node.on(cases)


def _joined(inner: st.SearchStrategy[Expression], *, logic_only: bool) -> st.SearchStrategy[Expression]:
    several = st.lists(inner, min_size=2, max_size=3)
    forms = [
        several.map(lambda parts: any_of(*parts)),
        several.map(lambda parts: then(*parts)),
        several.map(lambda parts: all_of(*parts)),
        selections(inner),
    ]
    return st.one_of(*forms, inner.map(Not)) if logic_only else st.one_of(*forms)


LOGIC = st.recursive(DECIDERS, lambda inner: _joined(inner, logic_only=True), max_leaves=5)
MIDDLE = st.recursive(
    _evenly(PASSING, LOGIC, PASSING, LOGIC, TRANSFORMS), lambda inner: _joined(inner, logic_only=False), max_leaves=6
)
PATHS = _evenly(ENDS, st.tuples(_evenly(MIDDLE, TRANSFORMS), SINKS).map(lambda parts: then(*parts)))
TAILS = _evenly(
    MIDDLE, ENDS, st.lists(PATHS, min_size=2, max_size=3).map(lambda parts: any_of(*parts)), selections(PATHS)
)


def checked(expression: Expression) -> Graph:
    """The graph of an expression; refused is only one whose sinks would show packets in several ways."""
    try:
        return build(expression)
    except ExpressionError as error:
        assert "differ in what they show" in error.message, text(expression)
        reject()


@seed(SEED)
@settings(max_examples=160, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MIDDLE, max_size=2), TAILS, st.lists(st.sampled_from(packets(SEED)), min_size=5, max_size=30))
def test_random_graphs_agree_with_the_model(middle: list[Expression], tail: Expression, sample: list[bytes]) -> None:
    agree("tap0", middle, tail, sample)


@seed(SEED + 1)
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MIDDLE, max_size=2), TAILS, st.lists(st.sampled_from(packets(SEED)), min_size=5, max_size=30))
def test_random_graphs_at_tc_agree_with_the_model(
    middle: list[Expression], tail: Expression, sample: list[bytes]
) -> None:
    """Every other packet that has a tag has it beside its bytes."""
    agree("tap0@tc-egress", middle, tail, sample)


def agree(tap: str, middle: list[Expression], tail: Expression, sample: list[bytes]) -> None:
    """The flow in the kernel and the model say the same of the packets."""
    graph = checked(then(Device(tap), *middle, tail))
    # A pseudonym of a pseudonym has no model.
    assume(sum(isinstance(node, Anonymise) for node in nodes(graph.expression)) <= 1)
    assume(
        not features.lacking("loops of (scan)") or not any(isinstance(node, Scan) for node in nodes(graph.expression))
    )
    note(text(graph.expression))
    model = Model(graph.expression)
    with loaded(graph.expression, tap=tap) as (flow,):
        for number, packet in enumerate(sample):
            beside = tap != "tap0" and number % 2 and has_tag(packet)
            assert (flow.run_tagged if beside else flow.run)(packet) == packet, "the packet was changed"
            model.packet(packet)
        statistics = flow.statistics()
        delivered = [record for batch in flow.batches() for record in recorded(batch)]
    ledger = {name: count for name, count in statistics.ledger.as_json().items() if count and name != "seen"}
    assert ledger == model.ledger
    assert statistics.ledger.seen == len(sample)
    for place, (node, behaviour) in enumerate(zip(statistics.nodes, model.behaviours, strict=True)):
        assert (node.id, node.packets_in, node.packets_out) == (node.id, len(behaviour.packets), behaviour.passed)
        assert counts_of(behaviour.node, node) == model.counts_of(place), node.id
    # One CPU after the other: within a CPU the order is that of arrival.
    assert sorted(delivered) == sorted(model.delivered)


def recorded(batch: Batch) -> Iterator[tuple[bytes | int, ...]]:
    """A batch's records as the model has them."""
    tags = [] if batch.tags is None else [batch.tags[name].tolist() for name in ("sinks", "result")]
    for packet, *tag in zip(batch.packets(("tap0",)), *tags, strict=True):
        yield packet.data, packet.length, *tag


def counts_of(node: Node, told: NodeStatistics) -> dict[str, object]:
    if isinstance(node, Histogram) and node.value == "iat":
        return {"packets": sum(count for *_, count in told.counts["bins"])}
    return told.counts


def test_hundreds_of_decisions_stay_linear_for_compiler_and_verifier() -> None:
    """Each decision doubles the ways through a program unless it is forgotten how it came about."""
    filters = [Bpf(f"tcp port {1000 + number} and net 10.{number % 250}.0.0/16") for number in range(150)]
    with loaded(Device("tap0") >> any_of(*filters) >> Packetcount()) as (flow,):
        for number in (0, 77, 149):
            flow.run(tcp(1000 + number, f"10.{number}.1.2"))
        flow.run(tcp(1000, "10.1.1.2"))
        assert flow.counted() == 3
    flows = [
        Device("tap0") >> Bpf(f"udp port {number}") >> Sampler(2) >> Grab(60) for number in range(MOST_FLOWS_IN_SEGMENT)
    ]
    with loaded(*flows) as grabbing:
        assert len(grabbing) == MOST_FLOWS_IN_SEGMENT


LARGE = {
    "branches that count": " | ".join(f'((bpf,"udp port {n}") -> (packetcount))' for n in range(150)),
    "branches that grab": " | ".join(f'((bpf,"udp port {n}") -> (grab,snaplen={20 + n}))' for n in range(60)),
    "samplers side by side": " | ".join(f'((sampler,{n + 1}) -> (bpf,"udp port {n}"))' for n in range(120)),
    "samplers in a row": " -> ".join(f"(sampler,{n % 3 + 1})" for n in range(300)),
    "all of many": " & ".join(f'((sampler,{n % 5 + 2}) | (bpf,"udp port {n}"))' for n in range(120)),
    "none of many": " | ".join(f"(!(sampler,{n % 5 + 2}) -> (bytecount))" for n in range(200)),
    "tcp ports": " | ".join(f'(bpf,"tcp port {n}")' for n in range(60)) + " -> (bytecount) -> (grab)",
    "a register for two": '(bpf,"ether[13]&1=0") -> ((bpf,"udp port 53") -> (bpf,"ip[8]>60")) | ((bpf,"icmp") -> (sampler,4))',
}


@pytest.mark.parametrize("tap", ["tap0", "tap0@tc-ingress"])
@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE.keys())
def test_large_graphs_load(text: str, tap: str) -> None:
    """Few truths are alive at once, looks at the end have their own registers, and nothing grows with 2^n."""
    with loaded(f"(device,{tap}) -> {text}", tap=tap) as (flow,):
        flow.run(tcp(1000, "10.1.1.2"))
        assert flow.statistics().ledger.balances


def test_what_is_too_large_is_refused_and_the_process_lives() -> None:
    with (
        pytest.raises(FfpfError, match="makes a program of about"),
        loaded("(device,tap0) -> " + " | ".join(f'(bpf,"udp port {n}")' for n in range(900))),
    ):
        pass
    operands = "/".join(f"ether[{14 + n}]" for n in range(72))
    with pytest.raises(VerifierError), loaded(f'(device,tap0) -> (bpf,"{operands} = 1")'):
        pass
