"""`histogram`: packets by size or by the time since the one before, exactly, in bins whose bounds are told."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.histogram import Histogram
from tests.corpus.packets import ether, ipv4, packets, udp
from tests.network import Network
from tests.nodes import CPUS, assert_forms, assert_round_trip, live, needs_two_cpus, refusal, send_at_once
from tests.segment import LoadedFlow, loaded

FRAME = ether(0x0800, ipv4(17, udp(1, 53)))
Bins = list[list[Any]]


@pytest.mark.parametrize(
    ("written", "node", "shown_text", "shown_python"),
    [
        ("(histogram,size)", Histogram("size"), "(histogram,size)", "histogram('size')"),
        ("(HISTOGRAM,iat)", Histogram("iat"), "(histogram,iat)", "histogram('iat')"),
        (
            '(histogram,"size linear=64x24")',
            Histogram("size", 64, 24),
            '(histogram,"size linear=64x24")',
            "histogram('size', width=64, bins=24)",
        ),
        (
            '(histogram,"linear=1000x100 iat")',
            Histogram("iat", width=1000, bins=100),
            '(histogram,"iat linear=1000x100")',
            "histogram('iat', width=1000, bins=100)",
        ),
        ("(histogram,size,520)", Histogram("size"), "(histogram,size)", "histogram('size')"),
        ('(histogram,"size linear=1x1",8)', Histogram("size", 1, 1), '(histogram,"size linear=1x1")', "histogram('size', width=1, bins=1)"),
    ],
)  # fmt: skip
def test_text_and_python(written: str, node: Histogram, shown_text: str, shown_python: str) -> None:
    assert_forms(written, node, shown_text, shown_python)


@given(st.sampled_from(["size", "iat"]), st.integers(1, (1 << 63) - 1), st.integers(1, 4_096))
def test_every_node_is_read_as_it_is_printed(value: str, width: int, bins: int) -> None:
    assert_round_trip(Histogram(value, width, bins))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(histogram)", "`` is no value of a packet"),
        ("(histogram,length)", "`length` is no value of a packet"),
        ("(histogram,SIZE)", "`SIZE` is no value of a packet"),
        ("(histogram,size iat)", "`size iat` is no value of a packet"),
        ("(histogram,linear=1x1)", "`linear=1x1` is no value of a packet"),
        ('(histogram,"size linear=64")', "`64` is no width and number of bins"),
        ('(histogram,"size linear=1x2x3")', "`1x2x3` is no width and number of bins"),
        ('(histogram,"size linear=x24")', "no number"),
        ('(histogram,"size linear=-1x24")', "`-1` is not a number"),
        ('(histogram,"size linear=0x24")', "24 bins of width 0"),
        ('(histogram,"size linear=64x0")', "0 bins of width 64"),
        ('(histogram,"size linear=0x0")', "0 bins of width 0"),
        ('(histogram,"size linear=1x4097")', "4097 bins of width 1"),
        ('(histogram,"size linear=9223372036854775808x1")', "1 bins of width 9223372036854775808"),
        ('(histogram,"size log=2")', "`log=` is unknown"),
        ("(histogram,size,519)", "519 bytes of memory do not suit these bins"),
        ('(histogram,"size linear=1x100",799)', "799 bytes of memory do not suit these bins"),
        ("(histogram,size,1048577)", "1048577 bytes of memory do not suit a `histogram`"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "1 is no text"),
        (("size", 1.0, 1), "1.0 is no whole number"),
        (("size", 1, "1"), "'1' is no whole number"),
        (("size", -1, 1), "1 bins of width -1"),
        (("size", 1, -1), "-1 bins of width 1"),
        (("size", 1), "0 bins of width 1"),
        (("size", 0, 24), "24 bins of width 0"),
    ],
)
def test_refused_in_python(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Histogram(*arguments)  # type: ignore[arg-type]
    assert error.value.message == message
    if "bins of width" in message:
        assert error.value.help.endswith("`linear=64x24`, in Python `width=64, bins=24`")


def log2_bounds(value: int) -> tuple[int, int]:
    """The bin k that holds `value`: from 2^(k-1) to 2^k - 1, and bin 0 the value 0."""
    k = value.bit_length()
    return ((1 << k - 1) if k else 0, (1 << k) - 1)


def linear_bounds(value: int, width: int, bins: int) -> tuple[int, int | None]:
    number = min(value // width, bins - 1)
    return number * width, None if number == bins - 1 else number * width + width - 1


def expected(bounds: list[tuple[int, int | None]]) -> Bins:
    return [[*each, bounds.count(each)] for each in sorted(set(bounds), key=lambda each: each[0])]


def told(flow: LoadedFlow, node: str = "h") -> Bins:
    return flow.statistics().node(node).counts["bins"]


@pytest.mark.root
def test_sizes_in_powers_of_two() -> None:
    lengths = [*range(14, 140), 255, 256, 511, 512, 1_023, 1_024, 1_514, 2_047, 2_048, 3_400]
    with loaded("(device,tap0) -> (histogram as h,size) -> (packetcount)") as (flow,):
        for length in lengths:
            flow.run(bytes(length))
        assert told(flow) == expected([log2_bounds(length) for length in lengths])
        assert flow.counted() == len(lengths), "it passes every packet on"
        assert flow.mbuf("h").shape[1] == 65 * 8


@pytest.mark.root
@settings(max_examples=60)
@given(
    st.one_of(st.integers(1, 700), st.sampled_from([1 << 62, (1 << 63) - 1])),
    st.integers(1, 40),
    st.lists(st.integers(14, 3_400), max_size=40),
)
def test_sizes_in_linear_bins(width: int, bins: int, lengths: list[int]) -> None:
    with loaded(f'(device,tap0) -> (histogram as h,"size linear={width}x{bins}")') as (flow,):
        for length in lengths:
            flow.run(bytes(length))
        assert told(flow) == expected([linear_bounds(length, width, bins) for length in lengths])


@pytest.mark.root
def test_the_most_bins_and_memory_behind_them() -> None:
    with loaded('(device,tap0) -> (histogram as h,"size linear=1x4096",32776)') as (flow,):
        flow.mbuf("h").view("u8")[:, 4_096] = 7
        for length in (14, 3_400, 3_400):
            flow.run(bytes(length))
        assert told(flow) == [[14, 14, 1], [3_400, 3_400, 2]]
        assert flow.mbuf("h").view("u8")[0, 4_096] == 7
    with loaded('(device,tap0) -> (histogram as h,"size linear=1x15")') as (flow,):
        for length in (14, 15):
            flow.run(bytes(length))
        assert told(flow) == [[14, None, 2]], "the last bin takes whatever is larger"


def test_bounds_cover_all_values_once() -> None:
    for node in (Histogram("iat"), Histogram("size", 64, 24), Histogram("size", 1, 1)):
        bins = node.default_mbuf_bytes // 8
        memory = memoryview(b"".join((number + 1).to_bytes(8, "little") for number in range(bins)))
        told = node.report([memory, memory])["bins"]
        assert [count for *_, count in told] == [2 * (number + 1) for number in range(bins)]
        assert told[0][0] == 0
        for (_, high, _), (low, *_) in itertools.pairwise(told):
            assert low == high + 1
        assert told[-1][1] in (None, (1 << 64) - 1)


@pytest.mark.root
def test_every_kind_of_packet_counts_with_its_length_on_the_wire() -> None:
    frames = [*packets(16), ether(0x0800, ipv4(17, udp(1, 2), length=1_500))]
    with loaded("(device,tap0) -> (histogram as h,size) -> (grab,snaplen=14)") as (flow,):
        for frame in frames:
            assert flow.run(frame) == frame
        assert told(flow) == expected([log2_bounds(len(frame)) for frame in frames])


@pytest.mark.root
def test_times_between_packets() -> None:
    """A pause is never measured too short; too long, if the machine does something else."""
    pauses_s = [0.002, 0.004, 0.008, 0.016]
    with loaded(
        "(device,tap0) -> (histogram as h,iat)", '(device,tap0) -> (histogram as h,"iat linear=1000000x20")'
    ) as flows:
        flows[0].run(FRAME)
        assert [told(flow) for flow in flows] == [[], []], "the first has none"
        before = 0
        for number, pause_s in enumerate(pauses_s, 1):
            begun_ns = time.monotonic_ns()
            time.sleep(pause_s)
            flows[0].run(FRAME)
            lasted_ns = time.monotonic_ns() - begun_ns
            for flow in flows:
                assert sum(count for *_, count in told(flow)) == number
            low, high, _ = max(told(flows[0]), key=lambda each: each[0])
            assert low <= lasted_ns + 1_000_000
            assert high >= pause_s * 1e9
            assert before <= low
            before = low
        for low, high, _ in told(flows[1]):
            assert low % 1_000_000 == 0
            assert high is None or high == low + 999_999


@pytest.mark.root
def test_packets_of_one_moment() -> None:
    """Flat out, packets are some 100 ns apart: none counts as years."""
    with loaded("(device,tap0) -> (histogram as h,iat)") as (flow,):
        flow.run_at_once({CPUS[0]: FRAME}, 100_000)
        bins = told(flow)
    assert sum(count for *_, count in bins) == 99_999
    assert bins[-1][1] < 1 << 32
    assert max(bins, key=lambda each: each[2])[1] < 1 << 14


@needs_two_cpus
@pytest.mark.root
def test_exact_when_two_cpus_count_at_once() -> None:
    with loaded("(device,tap0) -> (histogram as s,size) -> (histogram as t,iat)") as (flow,):
        flow.run_at_once({CPUS[0]: bytes(60), CPUS[1]: bytes(1_514)}, 200_000)
        assert told(flow, "s") == [[32, 63, 200_000], [1_024, 2_047, 200_000]]
        times = told(flow, "t")
        assert sum(count for *_, count in times) == 399_999, "one packet in all was the first"
        assert times[-1][1] < 1 << 34, "one that overtook counts as 0"


@pytest.mark.root
def test_the_application_may_set_the_bins() -> None:
    with loaded("(device,tap0) -> (histogram as h,size)") as (flow,):
        flow.run(bytes(60))
        words = flow.mbuf("h").view("u8")
        assert words[0, 6] == 1
        words[0] = 0
        words[0, 64] = 5
        flow.run(bytes(64))
        assert told(flow) == [[64, 127, 1], [1 << 63, (1 << 64) - 1, 5]]
        del words


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    frames = [bytes(12) + b"\x88\xcc" + bytes(length - 14) for length in (60, 64, 100, 1_500)]
    with live(network, '(device,tap0) -> (histogram as s,"size linear=100x8") -> (histogram as t,iat)') as flow:
        network.send(frames)
        send_at_once(network, dict.fromkeys(CPUS, frames * 50))
        flow.pause(wait=True)
        statistics = flow.stats()
        times = 1 + 50 * len(CPUS)
        assert statistics.node("s").counts["bins"] == [[0, 99, 2 * times], [100, 199, times], [700, None, times]]
        assert sum(count for *_, count in statistics.node("t").counts["bins"]) == 4 * times - 1
        flow.node("s").mbuf[:] = 0
        flow.activate()
        network.send(frames)
        flow.pause(wait=True)
        assert sum(count for *_, count in flow.stats().node("s").counts["bins"]) == 4
    assert statistics.ledger.counted == 4 * times
