"""Packets into files and back: a flow's -w against tcpdump, dumpcap and xdpdump; reading against scapy and dpkt.

    python -m benchmarks.files [--quick]

Writing: frames come over a veth pair as fast as CPU 0 can send them; the writer runs on CPU 1, into a file in memory.
Packets go on into the stack, but at a monitor port. What counts is what is in the file at the end, by seconds of
sending, and the CPU time that the writer took for each packet of it. Two things bound what anybody can write, and are
rows as well: what CPU 0 sends when nobody grabs, and what it takes CPU 1 to put as many bytes into such a file.
Reading: one process, the file in memory.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import ffpf_bpf
from benchmarks.delivery import FLOOD_BURST, entry, pinned
from benchmarks.frames import UDP, ipv4, udp
from benchmarks.generator import Generator
from benchmarks.table import Row, Table, main
from ffpf_bpf.capture import arrow
from ffpf_bpf.capture.files import CaptureFile
from ffpf_bpf.capture.layout import slot_dtype
from ffpf_bpf.capture.pcapng import InterfaceDescription, PcapngWriter
from ffpf_bpf.graph.memory import size_ring
from ffpf_bpf.kernel import calls
from tests.network import Network, two_namespaces

CPU = 1
BUFFER_KIB = 4096
GOALS = {96: 3.0, 1514: 2.0}
SIZES = ((96, 60, "64-byte frames, snaplen 96"), (1514, 1472, "1,514-byte frames, whole"))
MEMORY = "/dev/shm"
BARE, BARE_SHARE = "flow, without the stack", 0.3
MONITOR, NOBODY = "flow, at a monitor port", "nobody"
MONITOR_SHARE = {96: 0.5, 1514: 1.0}  # of the time: memory is finite
WRITE_BYTES = 1 << 20
READY_S, DRAIN_S = 1.0, 0.5


@dataclass(frozen=True, slots=True)
class Written:
    """What was sent, what the file has, how long sending took, the writer's CPU time for each packet in the file."""

    offered: int
    packets: int
    took_s: float
    consumer_ns: float

    @property
    def rate(self) -> float:
        return self.packets / self.took_s

    @property
    def shown(self) -> str:
        share = 100 * (1 - self.packets / self.offered)
        return f"{self.rate / 1e6:.2f} M/s ({self.packets:,} of {self.offered:,}, {share:.0f} % lost)"


def commands(snaplen: int, path: Path) -> dict[str, tuple[str, ...]]:
    """The writers that are here."""
    ffpf = str(Path(sys.executable).parent / "ffpf")
    flow = (ffpf, "grab", "-s", str(snaplen), "--buffer", f"{BUFFER_KIB}KiB", "-i", "tap0")
    buffer = ("-B", str(BUFFER_KIB))
    found = {
        "flow": (*flow, "-w", str(path)),
        MONITOR: (*flow[:-1], "tap0,monitor", "-w", str(path)),
        "flow, zstd": (*flow, "--compress", "zstd", "-w", str(path)),
        "tcpdump": ("tcpdump", "-n", "-i", "tap0", *buffer, "-s", str(snaplen), "-Z", "root", "-w", str(path)),
        "dumpcap": (
            "dumpcap",
            "-q",
            "-i",
            "tap0",
            "-B",
            str(BUFFER_KIB // 1024),
            "-s",
            str(snaplen),
            "-w",
            str(path),
        ),
        "xdpdump": ("xdpdump", "-i", "tap0", "-s", str(snaplen), "-w", str(path)),
    }
    return {name: command for name, command in found.items() if shutil.which(command[0])}


def run(quick: bool = False) -> Table:
    """All rows."""
    rounds, flood_s = (1, 0.1) if quick else (3, 1.0)
    rows: list[Row] = []
    with pinned(), tempfile.TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None) as directory:
        path = Path(directory) / "capture"
        for snaplen, payload, title in SIZES:
            frame = ipv4(UDP, udp(1, 9, b"x" * (payload - 42 if payload < 1000 else payload)))
            with two_namespaces("files") as network, Generator(network, frame) as generator:
                subprocess.run(network.command("ethtool", "-K", network.tap, "gro", "on"), check=True)
                with network.enter(network.outside):
                    names = [*commands(snaplen, path), BARE, NOBODY]
                    found: dict[str, list[Written]] = {name: [] for name in names}
                    for _ in range(rounds):
                        for name in names:
                            found[name].append(_written(network, generator, name, snaplen, path, flood_s))
            best = {name: max(each, key=lambda written: written.rate) for name, each in found.items()}
            rows += _rows(title, GOALS[snaplen], best)
            rows.append(_bound(title, best["flow"], snaplen, path))
        rows += _reading(path, 20_000 if quick else 1_000_000)
    missing = " xdpdump is not installed here." if not shutil.which("xdpdump") else ""
    return Table("Files in memory", tuple(rows), (
        "Writing: all packets go on into the stack, which takes most of CPU 0's time and bounds the flow's packets per "
        "second to what is sent when nobody grabs: hence the rows at a monitor port, where they end behind the flow, "
        "and those without the stack, where the tap's program runs on one packet over and over. The other bound is "
        "the writer's CPU, beside which the last row of each kind has what the kernel takes to put as many bytes into "
        f"such a file, {WRITE_BYTES >> 20} MiB at a time. Best of {rounds} rounds; {BUFFER_KIB} KiB of buffer "
        f"each.{missing}",
        "Reading: 64-byte frames; packets, and nanoseconds of CPU for each.",
    ))  # fmt: skip


def _rows(title: str, goal: float, best: dict[str, Written]) -> Iterator[Row]:
    ours, alone = best["flow"], best[BARE]
    for name, rival in best.items():
        if name in ("flow", MONITOR, BARE, NOBODY):
            continue
        against = "itself, compressed" if name == "flow, zstd" else f"{name} -w"
        goal_text, met = "", None
        ratio = ours.rate / rival.rate
        if name == "tcpdump":
            goal_text, met = f">= {goal:g}", ratio >= goal
        yield Row(f"{title}: -w / {against}", ours.shown, rival.shown, f"{ratio:.2f}", goal_text, met)
        cpu = f"{ours.consumer_ns / rival.consumer_ns:.2f}"
        yield Row("  the writer's CPU, ns each", f"{ours.consumer_ns:.0f}", f"{rival.consumer_ns:.0f}", cpu)
        if name == "tcpdump":
            ratio = alone.rate / rival.rate
            yield Row("  the same without the stack's share", alone.shown, rival.shown, f"{ratio:.2f}")
            monitor, most = best[MONITOR], best[NOBODY]
            ratio = monitor.rate / rival.rate
            work = f"{title}: -w at a monitor port / tcpdump -w"
            yield Row(work, monitor.shown, rival.shown, f"{ratio:.2f}", goal_text, ratio >= goal)
            sent = f"{most.offered / most.took_s / 1e6:.2f} M/s"
            ratio = ours.rate / (most.offered / most.took_s)
            yield Row(f"{title}: -w / what is sent when nobody grabs", ours.shown, sent, f"{ratio:.2f}")


def _bound(title: str, ours: Written, snaplen: int, path: Path) -> Row:
    """The writer's CPU, beside what the kernel takes to put as many bytes into such a file."""
    slot_bytes = size_ring(snaplen, 0).slot_bytes
    few = WRITE_BYTES // slot_bytes
    some = memoryview(bytes(few * slot_bytes))
    took_ns = []
    for _ in range(3):
        path.unlink(missing_ok=True)
        with path.open("wb", buffering=0) as file:
            before_ns = time.thread_time_ns()
            for _ in range(200):
                file.write(some)
            took_ns.append((time.thread_time_ns() - before_ns) / (200 * few))
    path.unlink()
    ratio = f"{ours.consumer_ns / min(took_ns):.2f}"
    work = f"{title}: the writer's CPU / writing as many bytes, ns each"
    return Row(work, f"{ours.consumer_ns:.0f}", f"{min(took_ns):.0f}", ratio)


def _written(network: Network, generator: Generator, name: str, snaplen: int, path: Path, duration_s: float) -> Written:
    """What a writer made of a second; of `BARE`, the flow with its program run by itself, of less: memory is finite."""
    path.unlink(missing_ok=True)
    if name == NOBODY:
        offered, took_s = _send(generator.send, duration_s)
        return Written(offered, offered, took_s, 0.0)
    with network.enter():
        command = ["taskset", "-c", str(CPU), *commands(snaplen, path)["flow" if name == BARE else name]]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        end_s = time.monotonic() + 20
        while not path.exists():  # which all make when they are about to begin
            if process.poll() is not None or time.monotonic() > end_s:
                process.kill()
                raise ValueError(f"{name} does not start: {process.communicate()[1]}")
            time.sleep(0.01)
        time.sleep(READY_S)
        with ExitStack() as stack:
            send: Callable[[int], object] = generator.send
            if name == BARE:
                program = stack.enter_context(entry(network)).fileno
                duration_s *= BARE_SHARE
                send = partial(calls.test_run, program, generator.frame)
            elif name == MONITOR:
                duration_s *= MONITOR_SHARE[snaplen]
            begin_ns = _cpu_ns(process.pid)
            offered, took_s = _send(send, duration_s)
        time.sleep(DRAIN_S)
        spent_ns = _cpu_ns(process.pid) - begin_ns
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    packets = sum(len(batch) for batch in CaptureFile(path).batches())
    return Written(offered, packets, took_s, spent_ns / max(1, packets))


def _send(send: Callable[[int], object], duration_s: float) -> tuple[int, float]:
    """As many packets as it can; in how many seconds."""
    begin_s, offered = time.monotonic(), 0
    while time.monotonic() < begin_s + duration_s:
        send(FLOOD_BURST)
        offered += FLOOD_BURST
    return offered, time.monotonic() - begin_s


def _cpu_ns(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks)


# Reading


def _reading(path: Path, count: int) -> Iterator[Row]:
    records = np.zeros(count, slot_dtype(128))
    frame = ipv4(UDP, udp(1, 9, b"x" * 22))
    records["block_type"], records["captured"], records["original"] = 6, len(frame), len(frame)
    records["block_length"] = records["trailer"] = 128
    records["data"][:, : len(frame)] = np.frombuffer(frame, np.uint8)
    records["data"][:, 60:64] = np.frombuffer(b"\xfe\xff\x20\0", np.uint8)
    ours, theirs = path.with_suffix(".pcapng"), path.with_suffix(".pcap")
    with PcapngWriter(str(ours), [InterfaceDescription("eth0", 0, "")]) as writer:
        writer.write(records)
    subprocess.run(["editcap", "-F", "nsecpcap", ours, theirs], check=True, stdout=subprocess.DEVNULL)
    few = count // 50
    ways: dict[str, tuple[Callable[[], int], int]] = {
        "batches, our file": (lambda: sum(len(each) for each in ffpf_bpf.open(ours).batches()), count),
        "batches, a pcap file": (lambda: sum(len(each) for each in ffpf_bpf.open(theirs).batches()), count),
        "Arrow columns, our file": (lambda: sum(each.num_rows for each in ffpf_bpf.open(ours).arrow()), count),
        "a flow with a filter, our file": (lambda: _replayed(ours), count),
        "packets, one at a time": (lambda: sum(1 for _ in ffpf_bpf.open(ours).packets()), count),
    }
    arrow.pyarrow()  # imported once
    rival_ns = _ns(lambda: _scapy(theirs, few), few)
    dpkt_ns = _ns(lambda: _dpkt(theirs), count)
    for name, (way, number) in ways.items():
        ns = _ns(way, number)
        shown = f"{1e3 / ns:.2f} M/s ({ns:,.0f} ns each)"
        for rival, other_ns in (("scapy's RawPcapReader", rival_ns), ("dpkt's Reader", dpkt_ns)):
            yield Row(
                f"{name} / {rival}",
                shown,
                f"{1e3 / other_ns:.2f} M/s ({other_ns:,.0f} ns each)",
                f"{other_ns / ns:.1f}",
            )


def _ns(way: Callable[[], int], expected: int) -> float:
    before = time.process_time_ns()
    got = way()
    spent = time.process_time_ns() - before
    if got != expected:
        raise ValueError(f"{got:,} of {expected:,} packets were read")
    return spent / expected


def _replayed(path: Path) -> int:
    with ffpf_bpf.Flow.create(file=path) as flow:
        flow.populate('(device,eth0) -> (bpf,"udp port 9") -> (grab,snaplen=96)').instantiate().activate()
        return sum(len(batch) for batch in flow.batches())


def _scapy(path: Path, most: int) -> int:
    from scapy.utils import RawPcapReader  # noqa: PLC0415 - slow to import

    return sum(1 for _, _ in zip(RawPcapReader(str(path)), range(most), strict=False))


def _dpkt(path: Path) -> int:
    import dpkt  # noqa: PLC0415 - a rival

    with path.open("rb") as file:
        return sum(1 for _ in dpkt.pcap.Reader(file))


if __name__ == "__main__":
    main(run, "packets into files and back")
