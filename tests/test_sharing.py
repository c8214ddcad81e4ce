"""What flows of one group have in common runs once, state included, and outlives whichever of them goes first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from ffpf_bpf.authorise import Subject
from ffpf_bpf.errors import ExpressionError, VerifierError
from ffpf_bpf.flow import Flow
from ffpf_bpf.flow.chains import CHAINS, MOST_FLOWS_IN_SEGMENT
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.memory import lay_out
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.sharing import keys, merge
from ffpf_bpf.kernel import tap
from tests.network import Network, two_namespaces, udp

PREFIX = "(device,tap0) | (device,lo) -> (sampler,2,4)"


def graph_of(text: str):
    return build(parse(text))


def common(first: str, second: str) -> set[tuple[str, str]]:
    """The steps that two flows have in common, by their ids in each."""
    one, two = graph_of(first), graph_of(second)
    by_key = {key: one.ids[step] for step, key in keys(one).items()}
    return {(by_key[key], two.ids[step]) for step, key in keys(two).items() if key in by_key}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # FFPF's own example: the same devices, the same sampler, different branches behind.
        (
            f'{PREFIX} -> (bpf,"tcp port 80") | (bpf,udp) -> (bytecount,,8)',
            f'{PREFIX} -> (bpf,"tcp port 25") -> (packetcount)',
            {("sampler1", "sampler1")},
        ),
        (
            "(device,a) -> (bpf,udp) -> (sampler,3) -> (packetcount)",
            "(device,a) -> (bpf,udp) -> (sampler,3) -> (grab)",
            {("bpf1", "bpf1"), ("sampler1", "sampler1")},
        ),
        ("(device,a) -> (sampler,2) -> (grab)", "(device,b) -> (sampler,2) -> (grab)", set()),
        ("(device,a) -> (sampler,2) -> (grab)", "(device,a) -> (sampler,3) -> (grab)", set()),
        ("(device,a) -> (sampler,2,4) -> (grab)", "(device,a) -> (sampler,2,8) -> (grab)", set()),
        ("(device,a) -> (sampler as s,2) -> (grab)", "(device,a) -> (sampler,2) -> (grab)", set()),
        ("(device,a) -> (sampler,2) -> (grab)", "(device,a) | (device,b) -> (sampler,2) -> (grab)", set()),
        # Only what stands behind the same: here the second sampler sees other packets.
        (
            "(device,a) -> (bpf,tcp) -> (sampler,2) -> (grab)",
            "(device,a) -> (bpf,udp) -> (sampler,2) -> (grab)",
            set(),
        ),
        # The end of a path is the flow's own; a function in the middle is not its end.
        ("(device,a) -> (packetcount)", "(device,a) -> (packetcount)", set()),
        (
            "(device,a) -> (packetcount) -> (grab)",
            "(device,a) -> (packetcount) -> (bpf,udp) -> (grab)",
            {("packetcount1", "packetcount1")},
        ),
        # The order of the branches of a union does not matter.
        (
            "(device,a) -> (bpf,tcp) | (bpf,udp) -> (sampler,2) -> (grab)",
            "(device,a) -> (bpf,udp) | (bpf,tcp) -> (sampler,2) -> (packetcount)",
            {("bpf1", "bpf2"), ("bpf2", "bpf1"), ("any1", "any1"), ("sampler1", "sampler1")},
        ),
        (
            "(device,a) -> !(sampler,2) -> (grab)",
            "(device,a) -> !(sampler,2) -> (packetcount)",
            {("sampler1", "sampler1"), ("not1", "not1")},
        ),
        (
            "(device,a) -> (classify,dport) -80-> (grab) | -443-> (packetcount)",
            "(device,a) -> (classify,dport) -80-> (packetcount) | -53-> (grab)",
            {("classify1", "classify1"), ("case1", "case1")},
        ),
        # Equal nodes of one flow are two nodes: the first is the other flow's first.
        (
            "(device,a) -> ((sampler,2) -> (bpf,tcp) -> (grab)) | ((sampler,2) -> (bpf,udp) -> (grab))",
            "(device,a) -> (sampler,2) -> (bpf,udp) -> (packetcount)",
            {("sampler1", "sampler1")},
        ),
    ],
)
def test_what_two_flows_have_in_common(first: str, second: str, expected: set[tuple[str, str]]) -> None:
    assert common(first, second) == expected


def test_merged_graph_has_common_steps_once() -> None:
    merged = merge([graph_of(f"{PREFIX} -> (bpf,udp) -> (grab)"), graph_of(f"{PREFIX} -> (bpf,tcp) -> (packetcount)")])
    users = dict(zip(merged.graph.ids, merged.users, strict=True))
    assert users["device1"] == users["any1"] == users["sampler1"] == (1, 2)
    assert (users["bpf1"], users["2:bpf1"], users["grab1"], users["packetcount1"]) == ((1,), (2,), (1,), (2,))


@pytest.fixture
def inside(network: Network) -> Iterator[Network]:
    with network.enter():
        yield network


def flow(text: str, **options: object) -> Flow:
    return Flow.create(**options).populate(text).instantiate()


def lengths(made: Flow) -> list[int]:
    return [packet.length for batch in made.poll() for packet in batch.packets(made.interfaces)]


FRAMES = [udp(80, bytes(size)) for size in range(20, 120)]
GRABBING = "(device,tap0) -> (sampler,2) -> (bpf,udp) -> (grab,snaplen=96)"
COUNTING = "(device,tap0) -> (sampler,2) -> (packetcount)"


@pytest.mark.root
def test_one_sampler_for_both(inside: Network) -> None:
    """Two samplers would each take the first packet they see: one that runs once goes on where it was."""
    with flow(GRABBING) as first:
        first.activate()
        inside.send(FRAMES[:1])
        with flow(GRABBING) as second:
            second.activate()
            inside.send(FRAMES[1:10])
            first.pause(wait=True)
            second.pause(wait=True)
            assert lengths(first) == [len(frame) for frame in FRAMES[:10:2]]
            assert lengths(second) == [len(frame) for frame in FRAMES[2:10:2]]
            assert first.node("sampler1").mbuf.base is not None
            assert (first.node("sampler1").mbuf == second.node("sampler1").mbuf).all()
            first.node("sampler1").mbuf.view("<u4")[:] = 7
            assert (second.node("sampler1").mbuf.view("<u4") == 7).all()
            shared = {node.id: node.shared for node in second.stats().nodes}
            assert shared == {"device1": False, "sampler1": True, "bpf1": True, "grab1": False}
            ledger = second.stats().ledger
            assert (ledger.seen, ledger.sampled, ledger.delivered) == (9, 5, 4)
            assert second.stats().node("sampler1").packets_in == 9


@pytest.mark.root
@pytest.mark.parametrize("first_goes", [True, False])
def test_closing_one_leaves_the_others_state_untouched(inside: Network, first_goes: bool) -> None:
    first, second = flow(GRABBING), flow(COUNTING)
    staying, going = (second, first) if first_goes else (first, second)
    with staying:
        with going:
            first.activate()
            second.activate()
            inside.send(FRAMES[:3])
        inside.send(FRAMES[3:10])
        staying.pause(wait=True)
        node = staying.stats().node("sampler1")
        assert (node.packets_in, node.packets_out, node.shared) == (10, 5, False)
        if staying is first:
            assert lengths(first) == [len(frame) for frame in FRAMES[:10:2]]


@pytest.mark.root
def test_a_shared_node_runs_if_one_of_its_flows_is_on(inside: Network) -> None:
    with flow(GRABBING) as first, flow(COUNTING) as second:
        second.activate()
        inside.send(FRAMES[:3])
        first.activate()
        inside.send(FRAMES[3:6])
        second.pause(wait=True)
        inside.send(FRAMES[6:9])
        first.pause(wait=True)
        inside.send(FRAMES[9:20])
        assert lengths(first) == [len(FRAMES[index]) for index in (4, 6, 8)]
        one, two = first.stats(), second.stats()
        assert (one.ledger.seen, one.ledger.sampled, one.ledger.delivered) == (6, 3, 3)
        assert (two.ledger.seen, two.ledger.sampled, two.ledger.counted) == (6, 3, 3)


@pytest.mark.root
def test_other_users_share_nothing(inside: Network, tmp_path) -> None:
    (tmp_path / "all.toml").write_text(
        '[[rule]]\nname = "all"\nsubjects = ["*"]\ntaps = ["*"]\nclasses = ["sampler", "bpf", "grab", "packetcount"]\nallow = "everything"\n'
    )
    users = [Subject(name, frozenset(), 1000) for name in ("alice", "bob", "alice")]
    flows = [flow(COUNTING, subject=user, policies=tmp_path) for user in users]
    try:
        assert [made.stats().node("sampler1").shared for made in flows] == [True, False, True]
    finally:
        Flow.close_all(flows)


def test_more_memory_than_a_map_takes_is_refused_with_the_nodes_name() -> None:
    text = "(device,tap0) -> " + " -> ".join(f"(head as h{n},1,268435456)" for n in range(5)) + " -> (packetcount)"
    with pytest.raises(ExpressionError, match=r"the flow's nodes take 1,342,[\d,]+ bytes of memory") as error:
        lay_out(graph_of(text), 2)
    assert error.value.where == "h0"


@pytest.mark.root
def test_what_a_rule_asks_for_cannot_be_written_away(inside: Network, tmp_path) -> None:
    (tmp_path / "all.toml").write_text(
        '[[rule]]\nname = "all"\nsubjects = ["*"]\ntaps = ["*"]\nclasses = ["*"]\nallow = "everything"\n'
    )
    with flow("(device,tap0) -> (sampler,2) -> (limit,5/h) -> (packetcount as hits)", policies=tmp_path) as made:
        for node in ("sampler1", "limit1"):
            memory = made.node(node).mbuf
            with pytest.raises(ValueError, match="read-only"):
                memory[:] = 0
            with pytest.raises(ValueError, match="WRITEABLE"):
                memory.flags.writeable = True
        made.node("hits").mbuf[:] = 0
    with flow("(device,tap0) -> (sampler,2) -> (packetcount)") as made:
        made.node("sampler1").mbuf[:] = 0


@pytest.mark.root
def test_more_than_fit_in_a_segment_share_among_themselves(inside: Network) -> None:
    flows = [
        flow(f'(device,tap0) -> (sampler,2) -> (bpf,"udp portrange 0-{200 + number}") -> (packetcount)')
        for number in range(MOST_FLOWS_IN_SEGMENT + 3)
    ]
    try:
        for made in flows:
            made.activate()
        inside.send(FRAMES)
        flows[-1].pause(wait=True)
        assert all(made.stats().node("sampler1").shared for made in flows)
        assert {made.stats().ledger.counted for made in flows} == {50}
    finally:
        Flow.close_all(flows)


@pytest.mark.root
def test_a_flow_that_joins_two_clusters(inside: Network) -> None:
    """What it has in common with each is run once: their segments become one, with what lies between."""
    texts = [
        "(device,tap0) -> (sampler,2) -> (packetcount)",
        '(device,tap0) -> (bpf,"len > 70") -> (packetcount)',
        "(device,tap0) -> (sampler,3) -> (packetcount)",
        "(device,tap0) -> ((sampler,2) -> (bytecount)) | ((sampler,3) -> (packetcount))",
    ]
    flows = [flow(text) for text in texts]
    try:
        chain = next(iter(CHAINS._chains.values()))
        assert [len(shared.members) for shared in chain._shared] == [4]
        for made in flows:
            made.activate()
        inside.send(FRAMES[:12])
        flows[-1].pause(wait=True)
        assert [made.stats().ledger.counted for made in flows] == [6, sum(len(f) > 70 for f in FRAMES[:12]), 4, 8]
        flows[2].close()
        inside.send(FRAMES[12:13])
        assert flows[0].stats().node("sampler1").packets_out == 7
    finally:
        Flow.close_all(flows)


@pytest.mark.root
def test_a_long_common_prefix(inside: Network) -> None:
    """Hundreds of shared steps are alive at once: a bit each."""
    prefix = "(device,tap0) -> " + " | ".join(f'(bpf,"udp port {port}")' for port in range(60, 200))
    with flow(f"{prefix} -> (grab,snaplen=96)") as first, flow(f"{prefix} -> (packetcount)") as second:
        for made in (first, second):
            made.activate()
        inside.send([*FRAMES[:10], udp(1000)])
        first.pause(wait=True)
        assert first.stats().node("bpf1").shared
        assert second.stats().node("bpf140").shared
        assert (first.stats().ledger.delivered, second.stats().ledger.counted) == (10, 10)
        assert second.stats().node("bpf21").packets_out == 10  # port 80
        assert first.stats().node("bpf20").packets_out == 0


@pytest.mark.root
def test_what_the_verifier_refuses_together_is_not_shared(inside: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    load = tap.Tap.load_segment

    def refuse(
        self: tap.Tap, segment: object, deliver: object, bindings: dict[str, object], reach: tuple[int, int]
    ) -> tap.Segment:
        if "ffpf_flow_1" in bindings:
            raise VerifierError("the verifier refused program `ffpf_segment`", log="too large")
        return load(self, segment, deliver, bindings, reach)  # type: ignore[arg-type]

    with flow(COUNTING) as first:
        monkeypatch.setattr(tap.Tap, "load_segment", refuse)
        with flow(GRABBING) as second:
            monkeypatch.undo()
            first.activate()
            second.activate()
            inside.send(FRAMES[:10])
            second.pause(wait=True)
            assert not second.stats().node("sampler1").shared
            assert (first.stats().ledger.counted, second.stats().ledger.delivered) == (5, 5)


@pytest.mark.root
def test_no_packet_is_lost_or_sampled_twice_while_sharers_come_and_go(inside: Network) -> None:
    with flow(GRABBING) as first:
        first.activate()
        sent = 0
        for _ in range(6):
            with flow(COUNTING) as second:
                second.activate()
                inside.send(FRAMES[sent : sent + 8])
                sent += 8
            inside.send(FRAMES[sent : sent + 4])
            sent += 4
        first.pause(wait=True)
        assert lengths(first) == [len(frame) for frame in FRAMES[:sent:2]]


@pytest.mark.root
def test_shared_at_every_tap() -> None:
    with two_namespaces("sharing2") as network, network.enter():
        text = "(device,tap0) | (device,lo) -> (sampler,2) -> (packetcount) -> (grab)"
        with flow(text) as first, flow(text) as second:
            first.activate()
            second.activate()
            network.send(FRAMES[:10])
            first.pause(wait=True)
            for made in (first, second):
                node = made.stats().node("packetcount1")
                assert (node.shared, node.packets_in, node.counts) == (True, 5, {"packets": 5})
            assert all(one <= two for one, two in pairwise(lengths(first)))
