"""The compiled programs against the interpreter and libpcap, in the kernel: equal verdicts, counts and deliveries."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from ffpf_bpf.compiler.pcap import compile_filter, offline_filter
from ffpf_bpf.errors import FfpfError, VerifierError
from ffpf_bpf.flow.chains import MOST_FLOWS_IN_SEGMENT
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.classes.bytecount import Bytecount
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import Grab
from ffpf_bpf.graph.classes.packetcount import Packetcount
from ffpf_bpf.graph.classes.sampler import Sampler
from ffpf_bpf.graph.expression import AllOf, AnyOf, Expression, Node, Not, Then, all_of, any_of, nodes, then
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.predicate import run
from tests.corpus.filters import FILTERS, WRAPPING
from tests.corpus.packets import packets
from tests.segment import loaded

pytestmark = pytest.mark.root

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


def tcp(port: int, source: str) -> bytes:
    address = bytes(int(part) for part in source.split("."))
    ip = bytes([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]) + address + bytes([192, 168, 0, 1])
    return bytes(12) + b"\x08\x00" + ip + (40000).to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(16)


@dataclass
class Model:
    """A graph in plain Python, from the definitions of the design, on the expression (not on the steps)."""

    expression: Expression
    state: dict[int, int] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    delivered: list[tuple[bytes, int]] = field(default_factory=list)

    def packet(self, data: bytes) -> None:
        self.data = data
        self.snaplen = -1
        self.position = 0
        self.ended = False
        _, reason = self.walk(self.expression, True, True)
        if self.snaplen >= 0:
            fate = "delivered"
            self.delivered.append((data[: self.snaplen or 96], len(data)))
        else:
            fate = "counted" if self.ended else "sampled" if reason else "filtered"
        self.ledger[fate] = self.ledger.get(fate, 0) + 1

    def walk(self, expression: Expression, arrives: bool, last: bool) -> tuple[bool, bool]:
        """Whether it goes on, and whether sampling is why it does not."""
        match expression:
            case Node():
                self.position += 1
                return self.node(expression, self.position, arrives, last)
            case Then(stages=stages):
                sampled = False
                for number, stage in enumerate(stages):
                    arrives, why = self.walk(stage, arrives, last and number == len(stages) - 1)
                    sampled = sampled or why
                return arrives, sampled
            case AnyOf(branches=branches):
                results = [self.walk(branch, arrives, last) for branch in branches]
                passed = any(go for go, _ in results)
                return passed, not passed and any(why for _, why in results)
            case AllOf(branches=branches):
                results = [self.walk(branch, arrives, False) for branch in branches]
                return all(go for go, _ in results), any(why for _, why in results)
            case Not(inner=inner):
                go, _ = self.walk(inner, arrives, False)
                stopped = arrives and go
                return arrives and not go, stopped and any(isinstance(node, Sampler) for node in nodes(inner))
            case _:
                raise TypeError(expression)

    def node(self, node: Node, position: int, arrives: bool, last: bool) -> tuple[bool, bool]:
        if not arrives:
            return False, False
        self.counts[position] = self.counts.get(position, 0) + 1
        match node:
            case Device():
                return True, False
            case Bpf():
                return run(compile_filter(node.filter), self.data) != 0, False
            case Sampler():
                before = self.state.get(position, 0)
                self.state[position] = before + 1
                return before % node.one_in == 0, before % node.one_in != 0
            case Grab():
                self.snaplen = max(self.snaplen, node.snaplen or 96)
                return False, False
            case _:
                self.ended = self.ended or last
                return True, False


DECIDERS = st.one_of(
    st.sampled_from(["tcp", "udp", "ip", "port 53", "len > 100", "vlan", "ip6", "tcp[13] & 2 != 0"]).map(Bpf),
    st.integers(1, 4).map(Sampler),
)
PASSING = st.one_of(DECIDERS, st.sampled_from([Packetcount(), Bytecount()]))
ENDS = st.one_of(PASSING, st.integers(14, 96).map(Grab))


def _joined(inner: st.SearchStrategy[Expression], *, logic_only: bool) -> st.SearchStrategy[Expression]:
    several = st.lists(inner, min_size=2, max_size=3)
    forms = [
        several.map(lambda parts: any_of(*parts)),
        several.map(lambda parts: then(*parts)),
        several.map(lambda parts: all_of(*parts)),
    ]
    return st.one_of(*forms, inner.map(Not)) if logic_only else st.one_of(*forms)


LOGIC = st.recursive(DECIDERS, lambda inner: _joined(inner, logic_only=True), max_leaves=5)
MIDDLE = st.recursive(st.one_of(PASSING, LOGIC), lambda inner: _joined(inner, logic_only=False), max_leaves=6)
TAILS = st.one_of(
    MIDDLE, ENDS, st.lists(st.one_of(MIDDLE, ENDS), min_size=2, max_size=3).map(lambda parts: any_of(*parts))
)


@seed(SEED)
@settings(max_examples=150)
@given(st.lists(MIDDLE, max_size=2), TAILS, st.lists(st.sampled_from(packets(SEED)), min_size=1, max_size=25))
def test_random_graphs_agree_with_the_model(middle: list[Expression], tail: Expression, sample: list[bytes]) -> None:
    graph = build(then(Device("tap0"), *middle, tail))
    model = Model(graph.expression)
    with loaded(graph.expression) as (flow,):
        for packet in sample:
            flow.run(packet)
            model.packet(packet)
        statistics = flow.statistics()
        delivered = [(packet.data, packet.length) for batch in flow.batches() for packet in batch.packets(("tap0",))]
    ledger = {name: count for name, count in statistics.ledger.as_json().items() if count and name != "seen"}
    assert ledger == model.ledger
    assert statistics.ledger.seen == len(sample)
    assert [node.packets_in for node in statistics.nodes] == [
        model.counts.get(position, 0) for position in range(1, len(statistics.nodes) + 1)
    ]
    # One CPU after the other: within a CPU the order is that of arrival.
    assert sorted(delivered) == sorted(model.delivered)


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


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE.keys())
def test_large_graphs_load(text: str) -> None:
    """Few truths are alive at once, looks at the end have their own registers, and nothing grows with 2^n."""
    with loaded(f"(device,tap0) -> {text}") as (flow,):
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
