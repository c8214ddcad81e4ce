"""`limit`: never above the rate and its burst, on however many CPUs; the rest has the fate `limited`."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.limit import HELP, Limit
from ffpf_bpf.graph.parser import parse
from tests.corpus.packets import ether, ipv4, packets, tcp, udp
from tests.network import Network
from tests.nodes import (
    CPUS,
    assert_forms,
    assert_round_trip,
    everywhere,
    grabbed,
    live,
    needs_two_cpus,
    nowhere,
    received,
    refusal,
    send_at_once,
)
from tests.segment import loaded

FRAME = ether(0x0800, ipv4(17, udp(1, 53)))
TICKS = 256  # of the bucket's clock in a nanosecond of the monotonic clock
HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize(
    ("written", "node", "shown_text", "shown_python"),
    [
        ("(limit,1000/s)", Limit("1000/s"), "(limit,1000/s)", "limit('1000/s')"),
        ('(limit," 1000 / s ")', Limit("1000/s"), "(limit,1000/s)", "limit('1000/s')"),
        ('(LIMIT,"1000/s burst=100")', Limit("1000/s", burst=100), "(limit,1000/s)", "limit('1000/s')"),
        ('(limit,"1000/s burst=50")', Limit("1000/s", 50), '(limit,"1000/s burst=50")', "limit('1000/s', burst=50)"),
        ('(limit,"burst=50 1000/s")', Limit("1000/s", 50), '(limit,"1000/s burst=50")', "limit('1000/s', burst=50)"),
        ("(limit,7/h)", Limit("7/h"), "(limit,7/h)", "limit('7/h')"),
        (
            '(limit,"5MB/s burst=64KiB")',
            Limit("5MB/s", 65_536),
            '(limit,"5MB/s burst=64KiB")',
            "limit('5MB/s', burst=65536)",
        ),
        ("(limit,1001B/s)", Limit("1001B/s"), "(limit,1001B/s)", "limit('1001B/s')"),
        ("(limit,1024000B/s)", Limit("1024kB/s"), "(limit,1000KiB/s)", "limit('1000KiB/s')"),
        ("(limit,10Mbit/s)", Limit("1250kB/s"), "(limit,1250kB/s)", "limit('1250kB/s')"),
        ("(limit,1MiB/m)", Limit("1024KiB/m"), "(limit,1MiB/m)", "limit('1MiB/m')"),
        ("(limit,1000GB/s)", Limit("1000GB/s"), "(limit,1000GB/s)", "limit('1000GB/s')"),
        (
            '(limit,"100GB/s burst=1000GB")',
            Limit("100GB/s", 10**12),
            '(limit,"100GB/s burst=1000GB")',
            "limit('100GB/s', burst=1000000000000)",
        ),
    ],
)
def test_text_and_python(written: str, node: Limit, shown_text: str, shown_python: str) -> None:
    assert_forms(written, node, shown_text, shown_python)


@settings(max_examples=300)
@given(
    st.integers(1, 10**12),
    st.sampled_from(["", "B", "kB", "KiB", "MB", "MiB", "GB", "GiB", "bit", "Mbit", "Gbit"]),
    st.sampled_from("smh"),
    st.one_of(st.just(0), st.integers(1, 10**15)),
)
def test_every_limit_is_read_as_it_is_printed(number: int, unit: str, period: str, burst: int) -> None:
    try:
        node = Limit(f"{number}{unit}/{period}", burst)
    except ExpressionError:
        return
    assert_round_trip(node)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(limit)", "`` is not a rate"),
        ("(limit,1000)", "`1000` is not a rate"),
        ("(limit,1000/d)", "`1000/d` is not a rate"),
        ("(limit,/s)", "`/s` is not a rate"),
        ("(limit,0/s)", "`0/s` is not a rate"),
        ("(limit,-1/s)", "`-1/s` is not a rate"),
        ("(limit,1.5/s)", "`1.5/s` is not a rate"),
        ("(limit,7bit/s)", "`7bit/s` is not a rate"),
        ("(limit,1000000000001/s)", "`1000000000001/s` is not a rate"),
        ("(limit,1001GB/s)", "`1001GB/s` is not a rate"),
        ("(limit,5mb/s)", "`5mb/s` is not a rate"),
        ("(limit,5KB/s)", "`5KB/s` is not a rate"),
        ("(limit,1000/s/s)", "`1000/s/s` is not a rate"),
        ("(limit,1000/s 50)", "`1000/s 50` is not a rate"),
        ("(limit,burst=5)", "`` is not a rate"),
        ('(limit,"1000/s burst=")', "`` is not a burst"),
        ('(limit,"1000/s burst=0")', "`0` is not a burst"),
        ('(limit,"1000/s burst=many")', "`many` is not a burst"),
        ('(limit,"1000/s burst=64KiB")', "`64KiB` is not a burst"),
        ('(limit,"5MB/s burst=100")', "`100` is not a burst"),
        ('(limit,"5MB/s burst=1521B")', "a burst of 1521 bytes"),
        ('(limit,"1/h burst=1300")', "a burst of 1300 packets takes too long to fill at 1/h"),
        ("(limit,1B/h)", "a burst of 65535 bytes takes too long to fill at 1B/h"),
        ('(limit,"1/s burst=1 burst=1")', "`burst=` is twice"),
        ('(limit,"1/s size=1")', "`size=` is unknown"),
        ("(limit,1/s,7)", "7 bytes of memory do not suit a `limit`"),
    ],
)
def test_refused(expression: str, message: str) -> None:
    assert refusal(expression) == message


IN_PACKETS = "as the rate is of packets, so is the burst: `burst=50`"


@pytest.mark.parametrize(
    ("expression", "help"),
    [
        ("(limit,1000)", "per second, minute or hour: `1000/s`, `1000/m` or `1000/h`"),
        ("(limit,5MB)", "per second, minute or hour: `5MB/s`, `5MB/m` or `5MB/h`"),
        ("(limit,1.5MB/s)", "whole numbers only: write `1500kB/s`"),
        ("(limit,1.5MB)", "whole numbers only: write `1500kB/s`"),
        ("(limit,0.5KiB/m)", "whole numbers only: write `512B/m`"),
        ("(limit,2.5Mbit/s)", "whole numbers only: write `312500B/s`"),
        ("(limit,.5/s)", "whole numbers only: write `30/m`"),
        ("(limit,0.01/s)", "whole numbers only: write `36/h`"),
        ("(limit,100.0/s)", "whole numbers only: write `100/s`"),
        ("(limit,0.0001/h)", HELP),
        ("(limit,0.0/s)", HELP),
        ("(limit,1.5/d)", HELP),
        ("(limit,many)", HELP),
        ('(limit,"5MB/s burst=1.5MiB")', "whole numbers only: write `1536KiB`"),
        ('(limit,"1000/s burst=1.5")', IN_PACKETS),
        ('(limit,"1000/s burst=64KiB")', IN_PACKETS),
        ('(limit,"1000/s burst=0")', IN_PACKETS),
        ('(limit,"5MB/s burst=100")', "as the rate is of bytes, so is the burst: `burst=64KiB`"),
        ('(limit,"many burst=100KB")', HELP),
    ],
)
def test_what_to_write_instead(expression: str, help: str) -> None:
    with pytest.raises(ExpressionError) as error:
        parse(expression)
    assert error.value.help == help
    if help != HELP and "burst" not in expression:
        for rate in re.findall("`([^`]+)`", help):
            parse(f"(limit,{rate})")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000,), "1000 is not a rate"),
        ((b"1/s",), "b'1/s' is not a rate"),
        (("1000/s", "50"), "'50' is no whole number"),
        (("1000/s", 0.5), "0.5 is no whole number"),
        (("1000/s", -1), "a burst of -1 packets"),
        (("1MB/s", 1_000), "a burst of 1000 bytes"),
    ],
)
def test_refused_in_python(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Limit(*arguments)  # type: ignore[arg-type]
    assert error.value.message == message


@pytest.mark.parametrize(
    ("rate", "burst"),
    [
        ("1000/s", 100), ("1/s", 1), ("9/s", 1), ("25/s", 2), ("6000/m", 10), ("1/h", 1), ("1000000/s", 100_000),
        ("5MB/s", 500_000), ("1MB/h", 65_535), ("1Mbit/s", 65_535), ("655360B/s", 65_536),
    ],
)  # fmt: skip
def test_the_default_burst_is_a_tenth_of_a_second(rate: str, burst: int) -> None:
    assert Limit(rate).burst == burst


def test_the_longest_burst_takes_52_days() -> None:
    assert Limit("1/h", 1_250).burst == 1_250
    with pytest.raises(ExpressionError) as error:
        Limit("1/h", 1_252)
    assert error.value.help == "at most 52 days: a smaller burst, or a higher rate"


@pytest.mark.root
@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(0, 60))
def test_a_burst_passes_at_once_and_not_one_more(burst: int, sent: int) -> None:
    """Per hour: nothing comes in again while the test runs."""
    with loaded(f'(device,tap0) -> (limit,"1/h burst={burst}") -> (packetcount)') as (flow,):
        for _ in range(sent):
            flow.run(FRAME)
        ledger = flow.statistics().ledger
    assert (ledger.counted, ledger.limited) == (min(burst, sent), max(0, sent - burst))
    assert ledger.filtered == ledger.sampled == 0


@pytest.mark.root
def test_the_default_burst_passes() -> None:
    rates = {"1/h": 1, "36000/h": 1, "360000/h": 10, "600000/h": 16}
    with loaded(*(f"(device,tap0) -> (limit,{rate}) -> (packetcount)" for rate in rates)) as flows:
        begun_s = time.monotonic()
        for _ in range(40):
            flows[0].run(FRAME)
        lasted_s = time.monotonic() - begun_s
        for (rate, burst), flow in zip(rates.items(), flows, strict=True):
            assert burst <= flow.counted() <= burst + int(rate[:-2]) / 3600 * lasted_s + 1


@pytest.mark.root
@settings(max_examples=60)
@given(st.integers(1_522, 6_000), st.lists(st.integers(14, 3_400), max_size=25))
def test_bytes_fill_the_burst(burst: int, lengths: list[int]) -> None:
    """A packet that does not fit is left out, and a smaller one behind it may still pass."""
    left = burst
    fits = []
    for length in lengths:
        fits.append(length <= left)
        left -= length if fits[-1] else 0
    with loaded(f'(device,tap0) -> (limit,"1kB/h burst={burst}B") -> (grab,snaplen=14)') as (flow,):
        for length in lengths:
            flow.run(bytes(length))
        passed = [packet.length for batch in flow.batches() for packet in batch.packets(("tap0",))]
        ledger = flow.statistics().ledger
    assert passed == [length for length, fit in zip(lengths, fits, strict=True) if fit]
    assert ledger.limited == len(lengths) - len(passed)


@pytest.mark.root
def test_a_packet_longer_than_the_burst_never_passes() -> None:
    slow, fast = "2kB/h", "1000GB/s"
    for rate in (slow, fast):
        with loaded(f'(device,tap0) -> (limit,"{rate} burst=1600B") -> (grab,snaplen=14)') as (flow,):
            for length in (1_601, 3_000, 1_600):
                flow.run(bytes(length))
            passed = [packet.length for batch in flow.batches() for packet in batch.packets(("tap0",))]
        assert passed == [1_600]


def test_what_a_long_packet_takes_fits_into_64_bits() -> None:
    """Of longer packets than the burst the kernel does not even work it out."""
    for rate in ("1B/h", "2B/h", "3B/h", "1kB/h", "1B/s", "1000GB/s", "1/h", "1000000000000/s"):
        for burst in (1, 1_250, 1_522, 2_500, 65_535, 10**9):
            try:
                _, multiplier, shift, filling, longest = Limit(rate, burst).effect.arguments
            except ExpressionError:
                continue
            assert min(longest, 65_535) * multiplier < 1 << 64
            assert filling + (1 << 40) + (min(longest, 65_535) * multiplier >> shift) < 1 << 64


@pytest.mark.root
def test_every_kind_of_packet_uses_the_rate() -> None:
    frames = [*everywhere(6, tcp(1, 2)).values(), *nowhere(6, tcp(1, 2)).values(), *packets(3)[:50]]
    with loaded(f'(device,tap0) -> (limit,"1/h burst={len(frames)}")') as (flow,):
        for frame in [*frames, *frames]:
            assert flow.run(frame) == frame
        assert grabbed(flow) == [frame[:96] for frame in frames]


@pytest.mark.root
def test_inverted_it_passes_what_is_above_the_rate() -> None:
    with loaded('(device,tap0) -> !(limit,"1/h burst=3") -> (packetcount)') as (flow,):
        for _ in range(10):
            flow.run(FRAME)
        ledger = flow.statistics().ledger
    assert (ledger.counted, ledger.limited) == (7, 3)


@pytest.mark.root
@pytest.mark.parametrize(
    ("rate", "per_second", "burst"),
    [("20000/s", 20_000, 2_000), ("600000/m", 10_000, 1_000), ("1MB/s", 1_000_000, 100_000)],
)
def test_the_rate_over_time(rate: str, per_second: int, burst: int) -> None:
    """Never more than the burst and what came in since; at least half of that, on a machine that does other things."""
    unit = len(FRAME) if "B" in rate else 1
    with loaded(f"(device,tap0) -> (limit,{rate}) -> (packetcount)") as (flow,):
        begun_s = time.monotonic()
        flow.run_at_once({CPUS[0]: FRAME}, 5_000_000)
        lasted_s = time.monotonic() - begun_s
        passed = flow.counted() * unit
    assert burst <= passed <= burst + per_second * lasted_s + unit
    assert passed >= burst + 0.5 * per_second * lasted_s


@pytest.mark.root
def test_it_fills_again_up_to_the_burst() -> None:
    with loaded('(device,tap0) -> (limit,"1000/s burst=20") -> (packetcount)') as (flow,):
        flow.run_at_once({CPUS[0]: FRAME}, 1_000)
        time.sleep(0.2)  # time for 200
        before = flow.counted()
        begun_s = time.monotonic()
        flow.run_at_once({CPUS[0]: FRAME}, 1_000)
        assert 20 <= flow.counted() - before <= 21 + 1000 * (time.monotonic() - begun_s)


@needs_two_cpus
@pytest.mark.root
@pytest.mark.parametrize("limit", ["1/h burst=1000", "2kB/h burst=60000B"])
def test_two_cpus_have_one_bucket(limit: str) -> None:
    most = 1_000 if "B" not in limit else 60_000 // len(FRAME)
    with loaded(f'(device,tap0) -> (limit,"{limit}") -> (packetcount as passed)') as (flow,):
        flow.run_at_once(dict.fromkeys(CPUS, FRAME), 100_000)
        statistics = flow.statistics()
    assert statistics.ledger.seen == 200_000
    assert statistics.ledger.counted == most, "neither more nor, though some lost a race, fewer"


@needs_two_cpus
@pytest.mark.root
def test_two_cpus_never_pass_more_than_the_rate() -> None:
    with loaded('(device,tap0) -> (limit,"50000/s burst=100") -> (packetcount)') as (flow,):
        begun_s = time.monotonic()
        flow.run_at_once(dict.fromkeys(CPUS, FRAME), 1_000_000)
        lasted_s = time.monotonic() - begun_s
        assert 0.3 * 50_000 * lasted_s < flow.counted() <= 101 + 50_000 * lasted_s


@pytest.mark.root
def test_the_application_may_empty_and_fill_the_bucket() -> None:
    """Its word is the time up to which the rate is used, on the monotonic clock."""
    with loaded('(device,tap0) -> (limit as l,"1/h burst=5") -> (packetcount)') as (flow,):
        words = flow.mbuf("l").view("u8")
        assert words.shape == (1,), "one for all CPUs"
        now = time.monotonic_ns() * TICKS
        for value, passes in (
            (0, 5),  # nothing yet
            (0, 5),
            (now + 5 * HOUR_NS * TICKS, 0),  # all is used
            (now + (3 * HOUR_NS + HOUR_NS // 2) * TICKS, 1),  # of 5 it has room for 1.5
            (now - HOUR_NS * TICKS, 5),  # old
            (1, 5),  # very old
            (now + 50 * HOUR_NS * TICKS, 5),  # what cannot be: as if it were old
            ((1 << 64) - 1, 5),
        ):
            words[0] = value % (1 << 64)
            before = flow.counted()
            for _ in range(8):
                flow.run(FRAME)
            assert flow.counted() - before == passes, value
        del words


@pytest.mark.root
def test_packets_on_an_interface(network: Network) -> None:
    frames = [ether(0x0800, ipv4(17, udp(1, 2), number=number)) for number in range(20)]
    with live(network, '(device,tap0) -> (limit as l,"1/h burst=7")') as flow:
        network.send(frames)
        assert received(flow) == frames[:7]
        flow.node("l").mbuf.view("u8")[0] = 0
        flow.activate()
        send_at_once(network, dict.fromkeys(CPUS, frames))
        assert len(received(flow)) == 7
        ledger = flow.stats().ledger
    assert (ledger.seen, ledger.delivered) == (20 * (1 + len(CPUS)), 14)
    assert ledger.limited == ledger.seen - 14
