"""Captures in several files, and compressed ones: as tcpdump names and cuts them, and whole whatever went wrong."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard

from ffpf_bpf.capture import compression
from ffpf_bpf.capture.layout import slot_dtype
from ffpf_bpf.capture.pcapng import InterfaceDescription, InterfaceStatistics, PcapngWriter
from ffpf_bpf.capture.rotation import RotatingWriter, Rotation
from ffpf_bpf.errors import CaptureError, ExpressionError
from tests.test_pcapng import ETH0, FILTER, SLOT_BYTES, TIME_NS, child, make_slot, numbers, slots, small_disk

__all__ = ["small_disk"]


def records(count: int, first: int = 0) -> np.ndarray:
    """As `slots`, those from `first` on."""
    made = np.frombuffer(slots(1), slot_dtype(SLOT_BYTES)).repeat(count)
    numbers = np.arange(first, first + count)
    made["data"][:, :4] = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)
    made["time_low"] += numbers.astype(np.uint32)
    return made


def unpacked(path: Path) -> bytes:
    with path.open("rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()


def test_one_file_without_a_rotation(tmp_path: Path) -> None:
    with RotatingWriter(str(tmp_path / "a.pcapng"), [ETH0]) as writer:
        writer.write(records(10))
    assert os.listdir(tmp_path) == ["a.pcapng"]
    assert numbers(tmp_path / "a.pcapng") == list(range(10))
    assert (writer.packets_written, writer.files, writer.is_over) == (10, 1, False)


def test_names_are_tcpdumps(tmp_path: Path) -> None:
    """tcpdump itself, on the same packets, names its files so and ends each with the packet that makes it too large."""
    source, theirs, ours = tmp_path / "all.pcapng", tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    data = [at.to_bytes(4, "big") + bytes(1010) for at in range(12_000)]
    made = np.frombuffer(b"".join(make_slot(1088, each, time_ns=TIME_NS) for each in data), slot_dtype(1088))
    with PcapngWriter(str(source), [InterfaceDescription("eth0", 0, "")]) as writer:
        writer.write(made)
    for words, rotation in (
        (["-C", "4"], Rotation(4_000_000)),
        (["-C", "2", "-W", "3"], Rotation(2_000_000, files=3)),
        (["-C", "1", "-W", "12"], Rotation(1_000_000, files=12)),
    ):
        for place in (theirs, ours):
            for old in place.iterdir():
                old.unlink()
        command = [
            "tcpdump",
            "-n",
            "-r",
            source,
            "-w",
            theirs / "x.pcap",
            *words,
            *(["-Z", "root"] if os.geteuid() == 0 else []),
        ]
        subprocess.run(command, check=True, capture_output=True)
        with RotatingWriter(str(ours / "x.pcap"), [ETH0], rotation=rotation) as files:
            for at in range(0, len(made), 700):
                files.write(made[at : at + 700])
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        for path in ours.iterdir():
            limit = (rotation.size_bytes or 0) + 1088 + 200  # the packet that made it so, and its statistics
            assert path.stat().st_size <= limit
        if rotation.files is None:
            assert [n for path in sorted(ours.iterdir()) for n in numbers(path)] == list(range(12_000))


@pytest.mark.parametrize(
    ("rotation", "path", "numbers", "names"),
    [
        (Rotation(1), "x", [0, 1, 2, 10], ["x", "x1", "x2", "x10"]),
        (Rotation(1, files=1), "x", [0, 0], ["x", "x"]),
        (Rotation(1, files=2), "x", [0, 1], ["x0", "x1"]),
        (Rotation(1, files=10), "x", [0, 9], ["x0", "x9"]),
        (Rotation(1, files=11), "x", [0, 10], ["x00", "x10"]),
        (Rotation(1), "x.pcapng.zst", [0, 3], ["x.pcapng.zst", "x.pcapng3.zst"]),
        (Rotation(period_s=60), "x-%Y-%m-%d_%H%M%S", [0], ["x-2024-11-23_084533"]),
        (Rotation(1, 60), "x-%H", [0, 1], ["x-08", "x-081"]),
    ],
)
def test_names(
    rotation: Rotation, path: str, numbers: list[int], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert [rotation.name(path, TIME_NS / 1e9, number) for number in numbers] == names
    monkeypatch.undo()
    time.tzset()


def test_by_time_until_so_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_000_000_000.0
    monkeypatch.setattr(time, "time", lambda: now_s)
    with RotatingWriter(str(tmp_path / "%s.pcapng"), [ETH0], rotation=Rotation(period_s=2, files=3)) as writer:
        at = 0
        while not writer.is_over:
            writer.write(records(5, at))
            at += 5
            now_s += 0.5
        writer.write(records(5))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["1000000000.pcapng", "1000000002.pcapng", "1000000004.pcapng"]
    assert [numbers(tmp_path / name) for name in names] == [list(range(at, at + 20)) for at in (0, 20, 40)]
    assert writer.packets_written == 60


def test_each_file_has_the_statistics_of_its_time(tmp_path: Path) -> None:
    seen = 0

    def counted() -> list[InterfaceStatistics]:
        return [InterfaceStatistics(0, 100, 1000 + seen, received=seen, dropped=0, accepted=seen, os_dropped=7)]

    rotation = Rotation(20 * SLOT_BYTES)
    with RotatingWriter(str(tmp_path / "x"), [ETH0], rotation=rotation, statistics=counted) as writer:
        for at in range(0, 60, 10):
            seen += 11
            writer.write(records(10, at))
    shown = []
    for path in sorted(tmp_path.iterdir()):
        read = subprocess.run(["tshark", "-r", path, "-V"], capture_output=True, text=True, check=True)
        assert read.returncode == 0
        shown.append(len(numbers(path)))
        content = path.read_bytes()
        assert content.count(b"\x05\x00\x00\x00") >= 1
    assert sum(shown) == 60
    from ffpf_bpf.capture.pcapng import _interface_statistics  # what each of them must end with

    first = sorted(tmp_path.iterdir())[0].read_bytes()
    delivered = shown[0]
    at = first.rindex(b"\x05\x00\x00\x00")
    found = first[at:]
    expected = [
        _interface_statistics(
            InterfaceStatistics(0, 100, 1000 + n, received=n, dropped=0, accepted=n, os_dropped=7, delivered=delivered)
        )
        for n in range(0, 67, 11)
    ]
    assert found in expected


def test_what_a_rotation_refuses() -> None:
    with pytest.raises(ExpressionError, match="a number of files of what size"):
        Rotation(files=3)
    with pytest.raises(ExpressionError, match="standard output is one file"):
        RotatingWriter("-", [ETH0], rotation=Rotation(1))


# Compression


@pytest.mark.parametrize(
    ("path", "wanted", "kind"), [("a.pcapng", "", ""), ("a.pcapng.zst", "", "zstd"), ("a", "zstd", "zstd")]
)
def test_what_is_compressed(path: str, wanted: str, kind: str) -> None:
    assert compression.compression_of(path, wanted) == kind


def test_what_is_not_known() -> None:
    with pytest.raises(ExpressionError, match="`lzma` is no compression"):
        compression.compression_of("a", "lzma")
    with pytest.raises(ExpressionError, match="files are compressed by zstd only"):
        compression.compression_of("a.pcapng.gz")


def test_compressed_is_the_same_file(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.pcapng", tmp_path / "a.pcapng.zst"
    for path, kind in ((plain, ""), (packed, "zstd")):
        with PcapngWriter(str(path), [ETH0], compress=kind) as writer:
            for at in range(0, 30_000, 1000):
                writer.write(records(1000, at))
        assert writer.packets_written == 30_000
        assert writer.bytes_written == path.stat().st_size
    assert unpacked(packed) == plain.read_bytes()
    assert packed.stat().st_size < plain.stat().st_size / 5
    assert len(numbers(packed)) == 30_000, "tshark reads it too"
    assert subprocess.run(["zstd", "-tq", packed], check=False).returncode == 0


def test_slow_traffic_is_in_the_file_soon(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    with PcapngWriter(str(path), [ETH0], compress="zstd") as writer:
        writer.write(records(3))
        end_s = time.monotonic() + 10
        while not writer.packets_written:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        (tmp_path / "now.pcapng").write_bytes(unpacked(path))
        assert numbers(tmp_path / "now.pcapng") == [0, 1, 2]


def test_killed_while_compressing(tmp_path: Path) -> None:
    path, batch = tmp_path / "a.zst", 20_000
    source = f"""
        writer = PcapngWriter({str(path)!r}, [ETH0], compress="zstd")
        batch = slots({batch})
        while True:
            writer.write(batch)
    """
    process = child(source)
    while not path.exists() or path.stat().st_size < 100_000:
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with path.open("rb") as file:
        stream, found = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True), b""
        while piece := stream.read(1 << 20):
            found += piece
    plain = tmp_path / "a.pcapng"
    plain.write_bytes(found)
    whole = len(numbers(plain))
    assert whole >= batch


@pytest.mark.root
def test_full_disk_ends_with_a_whole_frame(small_disk: Path) -> None:
    path = small_disk / "a.zst"
    writer = PcapngWriter(str(path), [ETH0], compress="zstd")
    rng = np.random.default_rng(1)
    with pytest.raises(CaptureError) as raised:
        for at in range(100):
            batch = records(1000, at).copy()
            batch["data"][:, 4:64] = rng.integers(0, 256, (len(batch), 60))
            writer.write(batch[:1000])
        writer.close()
    assert "cannot write: no space left on device" in str(raised.value)
    written = writer.packets_written
    assert f"what was written is whole: {written} packets" in str(raised.value)
    assert writer.broken
    with pytest.raises(CaptureError):
        writer.write(records(1))
    writer.close()
    assert path.stat().st_size == writer.bytes_written
    assert unpacked(path).count(FILTER.encode()) == (1 if writer.bytes_written else 0)


def test_slow_disk_makes_the_writer_wait(tmp_path: Path) -> None:
    """What is queued is bounded."""
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    source = f"""
        from ffpf_bpf.capture import compression
        compression.FRAME_BYTES, compression.MOST_QUEUED_BYTES = 50_000, 100_000
        writer = PcapngWriter({str(fifo)!r}, [ETH0], compress="zstd")
        random = os.urandom
        batch = bytearray(slots(1000))
        for n in range(200):
            for at in range(0, len(batch), SLOT_BYTES):
                batch[at + 32 : at + 92] = random(60)
            writer.write(memoryview(batch))
            print(n, file=sys.stderr, flush=True)
        writer.close()
    """
    process = child(source, stderr=subprocess.PIPE)
    assert select.select([reader], [], [], 60)[0]  # it writes
    time.sleep(1)
    os.set_blocking(reader, True)
    collected = bytearray()
    while piece := os.read(reader, 1 << 16):
        collected.extend(piece)
    os.close(reader)
    assert process.stderr is not None
    said = process.stderr.read().split()
    process.wait()
    assert len(said) == 200
    (tmp_path / "a.zst").write_bytes(collected)
    (tmp_path / "a.pcapng").write_bytes(unpacked(tmp_path / "a.zst"))
    assert len(numbers(tmp_path / "a.pcapng")) == 200_000
