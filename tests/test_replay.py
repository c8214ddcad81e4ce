"""Flows on files: the same as live, of every node class, to the last packet; without root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, note, seed, settings
from hypothesis import strategies as st

import ffpf_bpf
from ffpf_bpf import Flow, compiler
from ffpf_bpf.capture.pcapng import InterfaceDescription
from ffpf_bpf.compiler.native import NativeFilter, PacketMemory
from ffpf_bpf.compiler.pcap import compile_filter
from ffpf_bpf.errors import CaptureError, ExpressionError, FfpfError
from ffpf_bpf.flow import replay
from ffpf_bpf.flow.replay import Replay
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.anonymise import Anonymise
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression, nodes, then
from ffpf_bpf.graph.predicate import run
from ffpf_bpf.graph.printer import text
from tests import model as model_module
from tests.corpus.filters import FILTERS
from tests.corpus.packets import packets
from tests.model import Model
from tests.network import Network, udp
from tests.segment import SEED
from tests.test_arrow import slots_of
from tests.test_compiler import MIDDLE, TAILS, checked, counts_of, recorded
from tests.test_files import pcap, written

TIME_NS = 1_732_351_533_123_456_789


@contextmanager
def replayed(expression: Expression | str, path: Path, buffer_bytes: int = 1 << 16) -> Iterator[Replay]:
    graph = build(ffpf_bpf.parse(expression) if isinstance(expression, str) else expression)
    memory = PacketMemory(SEED)
    with patch.object(replay, "_packet_memory", lambda: memory):
        runs = Replay(Definition(graph, compiler.compile_predicates(graph), buffer_bytes), 0, str(path))
        runs.activate()
        try:
            yield runs
        finally:
            runs.close()


@seed(SEED)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.lists(MIDDLE, max_size=2),
    TAILS,
    st.lists(st.sampled_from(packets(SEED)), min_size=5, max_size=30),
    st.sampled_from(["<I", ">I"]),
)
def test_random_graphs_agree_with_the_model(
    tmp_path: Path, middle: list[Expression], tail: Expression, sample: list[bytes], order: str
) -> None:
    graph = checked(then(Device("tap0"), *middle, tail))
    # A pseudonym of a pseudonym has no model.
    assume(sum(isinstance(node, Anonymise) for node in nodes(graph.expression)) <= 1)
    note(text(graph.expression))
    file = pcap(tmp_path / "sample.pcap", sample, order=order[0])
    with patch.object(model_module, "SNAPLEN", 65_280), replayed(graph.expression, file) as runs:
        model = Model(graph.expression)
        for packet in sample:
            model.packet(packet)
        delivered = [record for batch in iterate(runs) for record in recorded(batch)]
        statistics = runs.stats()
    ledger = {name: count for name, count in statistics.ledger.as_json().items() if count and name != "seen"}
    assert ledger == model.ledger
    assert statistics.ledger.seen == len(sample)
    for place, (node, behaviour) in enumerate(zip(statistics.nodes, model.behaviours, strict=True)):
        assert (node.id, node.packets_in, node.packets_out) == (node.id, len(behaviour.packets), behaviour.passed)
        assert counts_of(behaviour.node, node) == model.counts_of(place), node.id
    assert delivered == model.delivered, "in the file's order"


def iterate(runs: Replay) -> Iterator[ffpf_bpf.Batch]:
    while not runs.is_over:
        yield from runs.poll()


def test_time_is_that_of_the_packets(tmp_path: Path) -> None:
    """100 a second let one in ten of 1,000 a second pass, however quickly the file is read."""
    file = written(tmp_path / "x.pcapng", [udp(80)] * 2000, gap_ns=1_000_000)
    with Flow.create(file=file) as flow:
        flow.populate('(device,eth0) -> (limit,"100/s burst=1") -> (histogram as h,"iat linear=10000000x10") -> (grab)')
        flow.instantiate().activate()
        times = np.concatenate([batch.time_ns for batch in flow.batches()])
        assert flow.node("h").statistics.counts["bins"] == [[10_000_000, 19_999_999, 199]]
    assert set(np.diff(times).tolist()) == {10_000_000}
    assert times[0] == TIME_NS


@pytest.mark.parametrize("buffer_bytes", [4096, 1 << 20])
def test_nothing_is_lost_however_small_the_ring(tmp_path: Path, buffer_bytes: int) -> None:
    file = written(tmp_path / "x.pcapng", [udp(80 + n % 2, bytes([n % 256] * (n % 900))) for n in range(5000)])
    with Flow.create(file=file) as flow:
        flow.populate(
            '(device,eth0) -> ((bpf,"udp port 80") -> (grab)) | ((snap,20) -> (grab,snaplen=60))',
            buffer_bytes=buffer_bytes,
        )
        flow.instantiate().activate()
        found = [batch.records["original"].tolist() for batch in flow.batches()]
    assert sum(map(len, found)) == 7500
    assert flow.stats().ledger.as_json() | {"seen": 0, "delivered": 0} == dict.fromkeys(
        flow.stats().ledger.as_json(), 0
    )
    assert flow.stats().ledger.delivered == 5000


def test_packets_longer_than_expected_are_whole(tmp_path: Path) -> None:
    frames = [udp(80), udp(80, bytes(4000)), udp(80), udp(80, bytes(60_000)), udp(80)]
    with Flow.create(file=pcap(tmp_path / "x.pcap", frames)) as flow:
        flow.populate("(device,eth0) -> (bytecount as all)").instantiate().activate()
        assert list(flow.packets()) == []
        assert flow.node("all").statistics.counts == {"bytes": sum(map(len, frames))}
    with Flow.create(file=pcap(tmp_path / "x.pcap", frames)) as flow:
        flow.populate("(device,eth0)").instantiate().activate()
        assert [packet.data for packet in flow.packets()] == frames


def test_cut_packets_count_with_the_length_they_had(tmp_path: Path) -> None:
    """As libpcap has it: lengths are those of the wire, loads end where the file's bytes do."""
    frames = [udp(80, bytes(n)) for n in (10, 500, 1400)]
    file = pcap(tmp_path / "x.pcap", frames, snaplen=60)
    for words, expected in (("greater 500", 2), ("ether[58] = 0", 2), ("ether[60] = 0", 0), ("udp port 80", 3)):
        theirs = subprocess.run(["tcpdump", "-nr", file, words], capture_output=True, text=True, check=True).stdout
        with Flow.create(file=file) as flow:
            flow.populate(f'(device,eth0) -> (bpf,"{words}") -> (bytecount) -> (grab)').instantiate().activate()
            found = list(flow.packets())
            assert len(found) == expected == len(theirs.splitlines()), words
            assert flow.node("bytecount1").statistics.counts == {"bytes": sum(packet.length for packet in found)}
    assert [(len(packet.data), packet.length) for packet in ffpf_bpf.open(file).packets()] == [
        (min(60, len(frame)), len(frame)) for frame in frames
    ]


def test_devices_are_the_files_interfaces(tmp_path: Path) -> None:
    names = [InterfaceDescription(name, 0, "") for name in ("eth0", "eth1", "eth2")]
    file = written(tmp_path / "x.pcapng", [udp(80)] * 9, names=names)
    for devices, seen in (
        ("(device,eth1)", 3),
        ("(device,eth1) | (device,eth2)", 6),
        ("(device,other)", 9),
        ("(device,eth2@tc-ingress)", 3),
    ):
        with Flow.create(file=file, first_interface=5) as flow:
            flow.populate(f"{devices} -> (grab)").instantiate().activate()
            found = {packet.interface for packet in flow.packets()}
        assert flow.stats().ledger.seen == seen
        assert found == set(flow.interfaces)
    with pytest.raises(ExpressionError) as raised, Flow.create(file=file) as flow:
        flow.populate("(device,a) | (device,b)").instantiate()
    assert str(raised.value) == (
        f"{file}: the file has no packets of `a`, `b`\nhelp: it has `eth0`, `eth1`, `eth2`; name these in the flow"
    )


def test_life_cycle(tmp_path: Path) -> None:
    file = written(tmp_path / "x.pcapng", [udp(80)] * 20_000)
    flow = Flow.create(file=file).populate("(device,eth0) -> (grab)").instantiate()
    assert list(flow.poll()) == []
    flow.activate()
    first = sum(len(batch) for batch in flow.poll())
    flow.pause(wait=True)
    assert list(flow.poll()) == [] and not flow.is_over
    flow.activate()
    rest = sum(len(batch) for batch in flow.batches())
    assert first + rest == 20_000 and flow.is_over
    flow.close()
    assert flow.stats().ledger.delivered == 20_000
    with pytest.raises(CaptureError, match="cannot open: no such file or directory"):
        Flow.create(file=tmp_path / "none").populate("(device,eth0)").instantiate()
    with pytest.raises(FfpfError, match="needs no decision"), Flow.create(file=file) as flow:
        flow.populate("(device,eth0)").instantiate().reauthorise()


def test_callbacks(tmp_path: Path) -> None:
    got: list[bytes] = []
    file = written(tmp_path / "x.pcapng", [udp(80), udp(81)] * 10)
    with Flow.create(file=file) as flow:
        flow.populate(
            '(device,eth0) -> (bpf,"udp port 81") -> (callback,"f packets")',
            callbacks={"f": lambda packet: got.append(packet.data)},
        )
        flow.instantiate().activate().dispatch()
    assert got == [udp(81)] * 10


LIVE = [
    '(device,tap0) -> (bpf,"udp port 80") -> (grab,snaplen=60)',
    "(device,tap0) -> (sampler,3) -> (bytecount as b) -> (grab)",
    "(device,tap0) -> (head,7) -> (snap,4) -> (grab)",
    "(device,tap0) -> (newflow) -> (grab) | (histogram as sizes,size)",
    '(device,tap0) -> (limit,"1/h burst=11") -> (grab)',
    '(device,tap0) -> (scan,"needle|other") -1-> (grab) | -*-> (packetcount)',
    "(device,tap0) -> (classify,dport) -80-> (grab,snaplen=50) | -81,82-> ((sampler,2) -> (packetcount)) | -*-> (grab)",
    '(device,tap0) -> !(bpf,"udp port 80") -> (anonymise,key=000102030405060708090a0b0c0d0e0f) -> (grab)',
]


@pytest.mark.root
def test_as_live(network: Network, tmp_path: Path) -> None:
    """What a flow makes of traffic on an interface it makes of the file of that traffic."""
    frames = [udp(79 + n % 7, (b"needle" if n % 5 == 0 else b"hay") * (n % 90 + 1)) for n in range(700)]
    file = tmp_path / "x.pcapng"
    with network.enter():
        flows = [Flow.create().populate(each).instantiate() for each in ["(device,tap0) -> (grab)", *LIVE]]
        for flow in flows:
            flow.activate()
        network.send(frames)
        for flow in flows:
            flow.pause(wait=True)
        live = [[p.data for batch in flow.poll() for p in batch.packets(flow.interfaces)] for flow in flows]
        Flow.close_all(flows)
    assert live[0] == frames
    written(file, frames, names=[InterfaceDescription("tap0", 0, "")])
    for expression, flow, expected in zip(LIVE, flows[1:], live[1:], strict=True):
        with Flow.create(file=file) as offline:
            offline.populate(expression).instantiate().activate()
            assert [packet.data for packet in offline.packets()] == expected, expression
        assert offline.stats().ledger == flow.stats().ledger
        for ours, theirs in zip(offline.stats().nodes, flow.stats().nodes, strict=True):
            assert (ours.packets_in, ours.packets_out) == (theirs.packets_in, theirs.packets_out)
            assert ours.counts == theirs.counts


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")
def test_anybody_may() -> None:
    """No privileges, no policy."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        assert _grabbed_by_nobody(written(Path(place) / "x.pcapng", [udp(80)] * 3)) == 0


def _grabbed_by_nobody(file: Path) -> int:
    """The exit code of a process that runs a flow on three packets as nobody."""
    nobody = os.fork()
    if not nobody:
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            with Flow.create(file=file) as flow:
                flow.populate("(device,eth0) -> (bpf,udp)").instantiate().activate()
                code = 0 if len(list(flow.packets())) == 3 else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(nobody, 0)[1])


@pytest.mark.parametrize("snaplen", [1 << 16, 60, 40])
def test_filters_of_cut_packets_agree_with_the_interpreter(snaplen: int) -> None:
    """Lengths are those of the wire; loads end where the bytes do."""
    sample = packets(SEED)[::3]
    records = slots_of(sample, snaplen=snaplen)
    for filter_text in FILTERS[:: len(FILTERS) // 50]:
        program = compile_filter(filter_text)
        passed = NativeFilter(program).passes(records)
        expected = [run(program, frame[:snaplen], len(frame)) != 0 for frame in sample]
        assert passed.tolist() == expected, filter_text
