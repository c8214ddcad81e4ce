"""What flows and files have in common: order by time, async, threads; and the clock of live packets."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ffpf_bpf
from ffpf_bpf import Batch, Flow
from ffpf_bpf.capture.layout import slot_dtype
from ffpf_bpf.capture.ordering import in_order
from tests.network import Network, udp
from tests.nodes import CPUS, needs_two_cpus, send_at_once
from tests.test_files import written


def batch(times: list[int], cpu: int = 0, lost: int = 0) -> Batch:
    records = np.zeros(len(times), slot_dtype(64))
    records["time_low"] = times
    return Batch(records, cpu, lost)


def times(batches: Iterator[Batch]) -> list[list[int]]:
    return [each.time_ns.tolist() for each in batches]


def test_a_file_in_order() -> None:
    given = [batch([100, 300, 500]), batch([200, 400], 1), batch([600, 900]), batch([450, 700], 1)]
    flat = [at for each in times(in_order(given, 450e-9, live=False)) for at in each]
    assert flat == [100, 200, 300, 400, 450, 500, 600, 700, 900]
    late = [batch([1000, 5000]), batch([2]), batch([6000])]
    assert [at for each in times(in_order(late, 1e-6, live=False)) for at in each] == [1000, 2, 5000, 6000]


def test_live_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held back until the other CPUs have been read for so long; by arrival, so that a clock that is set holds nothing."""
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)

    def arriving() -> Iterator[Batch | None]:
        nonlocal now_s
        for after_s, each in (
            (0.0, batch([10, 40], lost=2)), (0.001, batch([5, 30, 70], 1, 3)), (0.0195, None), (0.0, batch([50], 0)),
            (0.03, None), (0.1, batch([20])), (0.1, None),
        ):  # fmt: skip
            now_s += after_s
            yield each

    found = list(in_order(arriving(), 0.02))
    assert times(iter(found)) == [[5, 10, 30, 40], [50, 70], [20]]
    assert [each.lost for each in found] == [5, 0, 0]
    assert {each.cpu for each in found} == {-1}


@pytest.mark.root
@needs_two_cpus
def test_two_cpus_in_order(network: Network) -> None:
    with network.enter(), Flow.create().populate("(device,tap0) -> (grab,snaplen=60)").instantiate().activate() as flow:
        send_at_once(network, {cpu: [udp(1000 + cpu)] * 3000 for cpu in CPUS})
        flow.pause(wait=True)
        cpus = {each.cpu for each in (each.copy() for each in flow.poll())}
        assert len(cpus) > 1
    with network.enter(), Flow.create().populate("(device,tap0) -> (grab,snaplen=60)").instantiate().activate() as flow:
        thread = threading.Thread(
            target=send_at_once, args=(network, {cpu: [udp(1000 + cpu)] * 20_000 for cpu in CPUS})
        )
        thread.start()
        found = np.concatenate([each.time_ns for each in flow.ordered(duration_s=3)])
        thread.join()
    assert len(found) == flow.stats().ledger.delivered
    assert (np.diff(found.astype(np.int64)) >= 0).all()


@pytest.mark.root
def test_async(network: Network) -> None:
    """Other tasks run while it waits, and it ends when the flow is closed."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    async def main() -> int:
        count = 0
        ticking = asyncio.create_task(tick())
        async with asyncio.timeout(10):
            async for each in flow:
                count += len(each)
                if count == 10:
                    await asyncio.sleep(0.2)
                    flow.close()
        ticking.cancel()
        return count

    with network.enter(), Flow.create().populate("(device,tap0) -> (grab)").instantiate().activate() as flow:
        network.send([udp(80)] * 10)
        assert asyncio.run(main()) == 10
    assert ticks > 10


def test_async_over_a_file(tmp_path: Path) -> None:
    async def count(source: ffpf_bpf.CaptureFile | Flow) -> int:
        return sum([len(each) async for each in source])

    file = written(tmp_path / "x.pcapng", [udp(80)] * 3000)
    assert asyncio.run(count(ffpf_bpf.open(file))) == 3000
    with Flow.create(file=file) as flow:
        flow.populate("(device,eth0) -> (sampler,3)").instantiate().activate()
        assert asyncio.run(count(flow)) == 1000


@pytest.mark.root
def test_callbacks_on_a_thread(network: Network) -> None:
    got: list[int] = []
    lengths: list[int] = []
    with network.enter(), Flow.create() as flow:
        flow.populate(
            '(device,tap0) -> ((bpf,"udp port 80") -> (callback,f)) | ((bpf,"udp port 81") -> (grab))',
            callbacks={"f": lambda each: got.append(len(each))},
        )
        flow.instantiate().activate()
        with flow.start(lambda each: lengths.append(len(each))) as background:
            network.send([udp(80), udp(81)] * 50)
            end_s = time.monotonic() + 5
            while sum(got) + sum(lengths) < 100 and time.monotonic() < end_s:
                time.sleep(0.01)
            assert background.is_running
        assert not background.is_running
        assert (sum(got), sum(lengths)) == (50, 50)

        def fails(each: Batch) -> None:
            raise ValueError("no good")

        background = flow.start(fails)
        network.send([udp(81)])
        end_s = time.monotonic() + 5
        while background.is_running and time.monotonic() < end_s:
            time.sleep(0.01)
        with pytest.raises(ValueError, match="no good"):
            background.stop()
        background.stop()


@pytest.mark.root
def test_the_clock_is_set_while_packets_come(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets have the time of day that it is when they come, within the time that a batch takes."""
    real = time.time_ns
    shift_ns = 0
    monkeypatch.setattr(time, "time_ns", lambda: real() + shift_ns)
    with network.enter(), Flow.create().populate("(device,tap0) -> (grab)").instantiate().activate() as flow:
        for step_ns in (0, 3_600 * 10**9, -7_200 * 10**9):
            shift_ns += step_ns
            sum(len(each) for each in flow.poll())  # reads the clock again
            before_ns = time.time_ns()
            network.send([udp(80)] * 5)
            after_ns = time.time_ns()
            found = [at for each in flow.poll() for at in each.time_ns.tolist()]
            assert len(found) == 5
            assert all(before_ns - 100_000 <= at <= after_ns + 100_000 for at in found)
        # Under load too, when no batch is missing that would be an idle moment.
        shift_ns += 10**12
        for number, each in enumerate(flow.batches(duration_s=5)):
            shift_ns += 10**12
            if number:
                assert abs(int(each.time_ns[-1]) - time.time_ns()) < 2 * 10**12 + 10**9
            if number == 5:
                break
            network.send([udp(80)] * 5)


@pytest.mark.root
def test_times_do_not_jitter(network: Network) -> None:
    """Reading the clock again changes nothing as long as it is not set."""
    with network.enter(), Flow.create().populate("(device,tap0) -> (grab)").instantiate().activate() as flow:
        words = flow._running._words
        first = words[1]
        for _ in range(2000):
            flow._running.set_clock()
        assert abs(words[1] - first) < 200_000


@pytest.mark.root
def test_waiting_costs_little(network: Network) -> None:
    """Below 1 % of a core where nothing comes."""
    with network.enter(), Flow.create().populate("(device,tap0) -> (grab)").instantiate().activate() as flow:
        before = resource.getrusage(resource.RUSAGE_SELF)
        assert list(flow.batches(duration_s=3)) == []
        after = resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used_s / 3 < 0.05, f"{used_s / 3:.1%} of a core"
