"""A reader that finds nothing sleeps until the kernel side rings; one that finds much takes naps and is not rung."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ffpf_bpf.capture import waiting
from ffpf_bpf.capture.waiting import FIRST_SLEEP_S, LONGEST_NAP_S, LONGEST_SLEEP_S, Pace
from ffpf_bpf.flow import Flow
from tests.network import Network, send, two_namespaces, udp
from tests.segment import loaded

GRAB = "(grab,snaplen=96)"
FOR_EVER_S, SOON_S = 60.0, 10.0  # nobody wakes by the time but who was rung


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.naps: list[float] = []
        self.sleeps: list[float] = []
        monkeypatch.setattr(waiting.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(waiting.time, "sleep", self._nap)
        monkeypatch.setattr(waiting.select, "poll", lambda: self)

    def register(self, descriptor: int, events: int) -> None:
        assert (descriptor, events) == (7, select.POLLIN)

    def poll(self, most_ms: float) -> None:
        self.sleeps.append(most_ms / 1000)
        self.now_s += most_ms / 1000

    def _nap(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def listen() -> list[int]:
    return [7]


def test_who_finds_nothing_looks_again_soon_and_then_sleeps(clock: Clock) -> None:
    pace = Pace()
    for _ in range(4):
        pace.rest(listen, 0.0, 0.0)
    assert clock.sleeps == [FIRST_SLEEP_S, *[LONGEST_SLEEP_S] * 3] and not clock.naps


def test_while_packets_come_naps_last_until_an_eighth_is_there(clock: Clock) -> None:
    pace = Pace()
    clock.now_s += 0.001
    pace.rest(listen, 1 / 16, 0.0)
    assert clock.naps == [pytest.approx(0.002)]
    pace.rest(listen, 1 / 2, 1 / 8)
    assert len(clock.naps) == 1, "there is enough again"
    pace.rest(listen, 1e-6, 0.0)
    assert clock.naps[1:] == [pytest.approx(0.002 / 8 / (0.5 + 1e-6))], "by what was taken since the last nap"
    clock.now_s += 1.0
    pace.rest(listen, 1e-6, 0.0)
    assert clock.naps[2:] == [LONGEST_NAP_S] and not clock.sleeps


def test_packets_far_apart_are_slept_for(clock: Clock) -> None:
    pace = Pace()
    for _ in range(3):
        pace.rest(listen, 0.0, 0.0)
        pace.rest(listen, 0.0, 0.0)
        pace.rest(listen, 1e-4, 0.0)
    assert not clock.naps
    # The sleep behind a packet is the first, and what follows finds nothing.
    assert clock.sleeps == [
        FIRST_SLEEP_S,
        *[LONGEST_SLEEP_S, FIRST_SLEEP_S, LONGEST_SLEEP_S] * 2,
        LONGEST_SLEEP_S,
        FIRST_SLEEP_S,
    ]


def test_a_packet_that_is_there_already_is_not_slept_through(clock: Clock) -> None:
    Pace().rest(lambda: None, 0.0, 0.0)
    assert not clock.naps and not clock.sleeps


def test_a_time_limit_holds(clock: Clock) -> None:
    pace = Pace()
    pace.rest(listen, 0.0, 0.0, 0.0005)
    pace.rest(listen, 0.0, 0.0, -1.0)
    assert clock.sleeps == [0.0005, 0.0]
    pace = Pace()
    clock.now_s += 1.0
    pace.rest(listen, 1e-6, 0.0, 0.0002)
    assert clock.naps == [0.0002]


# By the kernel side.


def is_rung(descriptors: list[int] | None) -> bool:
    assert descriptors is not None and len(descriptors) == 1
    poll = select.poll()
    poll.register(descriptors[0], select.POLLIN)
    return bool(poll.poll(0))


@pytest.mark.root
@pytest.mark.parametrize("tap", ["tap0", "tap0@tc-ingress"])
@pytest.mark.parametrize("flow", [GRAB, "(grab as a,snaplen=96) | (grab as b,snaplen=60)"])
def test_the_bell_is_rung_once_by_the_packet_that_is_waited_for(tap: str, flow: str) -> None:
    with loaded(f'(device,{tap}) -> (bpf,"udp dst port 9") -> {flow}', tap=tap) as (found,):
        descriptors = found.reader.listen()
        found.run(udp(10))
        assert not is_rung(descriptors), "the packet is not for this flow"
        found.run(udp(9))
        assert is_rung(descriptors)
        assert found.reader.listen() is None, "a packet is there"
        assert not is_rung(descriptors)
        found.run(udp(9))
        assert not is_rung(descriptors), "nobody sleeps"
        assert sum(len(batch) for batch in found.batches()) == 2
        found.run(udp(9))
        assert not is_rung(descriptors), "nobody sleeps"
        found.batches()
        for _ in range(2_000):  # more than a ring buffer has room for, if it were not emptied
            descriptors = found.reader.listen()
            found.run(udp(9))
            assert is_rung(descriptors)
            found.batches()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with two_namespaces("ffwait") as made:
        yield made


@pytest.fixture
def flows(network: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Flow]]:
    """Flows whose readers sleep as long as nobody rings."""
    monkeypatch.setattr(waiting, "LONGEST_SLEEP_S", FOR_EVER_S)
    with ExitStack() as stack:
        stack.enter_context(network.enter())

        def make(what: str = GRAB, **options: object) -> Flow:
            flow = stack.enter_context(Flow.create(**options))  # type: ignore[arg-type]
            return flow.populate(f"(device,{network.tap}) -> {what}").instantiate().activate()

        yield make


class Reader(threading.Thread):
    """Reads until it has so many packets, and says when each came."""

    def __init__(self, flow: Flow, wanted: int = 1) -> None:
        super().__init__(daemon=True)
        self.flow, self.wanted = flow, wanted
        self.got = 0
        self.cpu_s = 0.0
        self.has_more = threading.Semaphore(0)
        self.start()

    def run(self) -> None:
        for batch in self.flow.batches(duration_s=FOR_EVER_S):
            self.got += len(batch)
            self.has_more.release(len(batch))
            if self.got >= self.wanted:
                break
        self.cpu_s = time.thread_time()


@pytest.mark.root
def test_a_packet_wakes_who_sleeps(flows: Callable[..., Flow], network: Network) -> None:
    for options in ({}, {"pace": "fast"}):
        flow = flows(**options)
        reader = Reader(flow)
        time.sleep(0.1)
        before_s = time.monotonic()
        network.send([udp(9)])
        reader.join(SOON_S)
        assert reader.got == 1
        assert time.monotonic() - before_s < SOON_S


@pytest.mark.root
def test_readers_of_one_ring_wake_for_their_own_packets(flows: Callable[..., Flow], network: Network) -> None:
    nine, ten = (flows(f'(bpf,"udp dst port {port}") -> {GRAB}') for port in (9, 10))
    readers = [Reader(flow) for flow in (nine, ten)]
    time.sleep(0.1)
    network.send([udp(9)])
    readers[0].join(SOON_S)
    assert [reader.got for reader in readers] == [1, 0]
    network.send([udp(10)])
    readers[1].join(SOON_S)
    assert [reader.got for reader in readers] == [1, 1]


@pytest.mark.root
def test_no_packet_is_slept_through(flows: Callable[..., Flow], network: Network) -> None:
    """Packets that come at any moment of falling asleep; with as long a sleep as this, one that is missed is a hang."""
    times, chance = 1_500, random.Random(6)
    flow = flows()
    reader = Reader(flow, times)
    with network.sender() as raw:
        for number in range(times):
            time.sleep(chance.choice((0.0, 0.00005, 0.0005, 0.0011, chance.random() * 0.004)))
            send(raw, [udp(9)])
            assert reader.has_more.acquire(timeout=SOON_S), f"packet {number} was slept through"
    reader.join(SOON_S)
    assert flow.stats().ledger.delivered == times


@pytest.mark.root
def test_an_event_loop_is_woken_and_goes_on_meanwhile(flows: Callable[..., Flow], network: Network) -> None:
    flow = flows()
    turns = 0

    async def read() -> int:
        async for batch in flow:
            return len(batch)
        return 0

    async def both() -> int:
        nonlocal turns
        task = asyncio.create_task(read())
        while not task.done() and turns < 100 * SOON_S:
            turns += 1
            await asyncio.sleep(0.01)
            if turns == 10:
                network.send([udp(9)])
        return await task

    assert asyncio.run(asyncio.wait_for(both(), SOON_S)) == 1
    assert turns < 50 * SOON_S


@pytest.mark.root
def test_an_event_loop_stops_waiting(flows: Callable[..., Flow]) -> None:
    flow = flows()

    async def read() -> None:
        async for _ in flow:
            raise AssertionError("nothing was sent")

    async def limited() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await read()

    before_s = time.monotonic()
    asyncio.run(limited())
    assert time.monotonic() - before_s < SOON_S


@pytest.mark.root
def test_a_thread_of_callbacks_is_woken(flows: Callable[..., Flow], network: Network) -> None:
    flow = flows()
    called = threading.Event()
    background = flow.start(lambda batch: called.set())
    time.sleep(0.1)
    network.send([udp(9)])
    assert called.wait(SOON_S)
    background._stopping.set()
    network.send([udp(9)])
    background.stop()


@pytest.mark.root
def test_a_flow_that_is_closed_ends_who_waits(network: Network) -> None:
    with network.enter(), Flow.create() as flow:
        flow.populate(f"(device,{network.tap}) -> {GRAB}").instantiate().activate()
        reader = Reader(flow)
        time.sleep(0.1)
        flow.close()
        reader.join(SOON_S)
        assert not reader.is_alive() and reader.got == 0


def _printed(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=False).stdout


def spent_ns(pid: int) -> int:
    """CPU time of a process and its threads so far."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks)


@pytest.mark.root
def test_the_command_line_sleeps_while_nothing_comes(network: Network) -> None:
    """Less than 1 % of a core, once it waits; the first packet is printed at once.

    A machine that does other things makes two of these seconds dearer, not all of them.
    """
    command = network.command(sys.executable, "-c", "from ffpf_bpf.cli import main; main()")
    ffpf = subprocess.Popen(
        [*command, "grab", "-i", network.tap, "-c", "1", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        end_s = time.monotonic() + 20
        program = network.command("bpftool", "-j", "net", "show", "dev", network.tap)
        while time.monotonic() < end_s and b'"id"' not in _printed(program):
            time.sleep(0.1)
        shares = []
        while time.monotonic() < end_s and min(shares, default=1) >= 0.01:
            before_ns, before_s = spent_ns(ffpf.pid), time.monotonic()
            time.sleep(2)
            shares.append((spent_ns(ffpf.pid) - before_ns) / 1e9 / (time.monotonic() - before_s))
        network.send([udp(9)])
        output, _ = ffpf.communicate(timeout=SOON_S)
    finally:
        ffpf.kill()
        ffpf.wait()
    assert json.loads(output.splitlines()[-1])["flows"][0]["ledger"]["delivered"] >= 1
    assert min(shares) < 0.01, shares
