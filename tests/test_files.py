"""Capture files of every kind read as batches: what editcap and others make of a file is read as the same packets."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import ffpf_bpf
from ffpf_bpf.capture import files
from ffpf_bpf.capture.layout import slot_dtype
from ffpf_bpf.capture.pcapng import InterfaceDescription, InterfaceStatistics, PcapngWriter
from ffpf_bpf.errors import CaptureError
from tests.corpus.packets import packets
from tests.network import udp
from tests.test_pcapng import TIME_NS, make_slot

SEED = 20041206
ETH0 = InterfaceDescription("eth0", 0, "")


def written(
    path: Path,
    frames: Sequence[bytes],
    *,
    names: Sequence[InterfaceDescription] = (ETH0,),
    gap_ns: int = 1000,
    compress: str = "",
) -> Path:
    """A file as flows write it, interfaces in turn."""
    slot_bytes = max(64, *((32 + len(frame) + 63) // 64 * 64 for frame in frames)) if frames else 64
    made = [
        make_slot(slot_bytes, frame, interface=n % len(names), time_ns=TIME_NS + n * gap_ns)
        for n, frame in enumerate(frames)
    ]
    with PcapngWriter(str(path), list(names), compress=compress) as writer:
        for at in range(0, len(made), 1000):
            writer.write(np.frombuffer(b"".join(made[at : at + 1000]), slot_dtype(slot_bytes)))
        writer.close([InterfaceStatistics(0, TIME_NS, TIME_NS, received=len(frames))])
    return path


def pcap(
    path: Path, frames: Sequence[bytes], *, order: str = "<", nanoseconds: bool = True, snaplen: int = 1 << 18
) -> Path:
    """The old format."""
    magic, unit = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1000)
    content = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, snaplen, 1)
    for n, frame in enumerate(frames):
        seconds, fraction = divmod(TIME_NS + n * 1000, 10**9)
        kept = frame[:snaplen]
        content += struct.pack(f"{order}IIII", seconds, fraction // unit, len(kept), len(frame)) + kept
    path.write_bytes(content)
    return path


def big_endian(path: Path, frames: Sequence[bytes]) -> Path:
    """A big-endian pcapng file with microseconds, an offset of 10 s, a second section in the other byte order."""

    def block(order: str, kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        return struct.pack(f"{order}II", kind, len(body) + 12) + body + struct.pack(f"{order}I", len(body) + 12)

    content = b""
    for order, some in ((">", frames[::2]), ("<", frames[1::2])):
        content += block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))
        options = struct.pack(f"{order}HH4sHHB3xHHqHH", 2, 3, b"far\0", 9, 1, 6, 14, 8, 10, 0, 0)
        content += block(order, 1, struct.pack(f"{order}HHI", 1, 0, 0) + options)
        content += block(order, 4, bytes(4))  # names, which are not for us
        for n, frame in enumerate(some):
            units = TIME_NS // 1000 - 10_000_000 + n
            header = struct.pack(f"{order}IIIII", 0, units >> 32, units & 0xFFFFFFFF, len(frame), len(frame))
            content += block(order, 6, header + frame + bytes(-len(frame) % 4))
        content += block(order, 3, struct.pack(f"{order}I", len(some[0])) + some[0])
    path.write_bytes(content)
    return path


def read(path: Path | str) -> list[tuple[int, bytes, int]]:
    with ffpf_bpf.open(path) as file:
        return [(packet.time_ns, packet.data, packet.length) for packet in file.packets()]


FRAMES = packets(SEED)
EXPECTED = [(TIME_NS + n * 1000, frame, len(frame)) for n, frame in enumerate(FRAMES)]


def test_our_own_files_are_viewed_where_they_lie(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pcapng", FRAMES)
    with ffpf_bpf.open(path) as file:
        batches = list(file.batches())
        assert file.interfaces == ("eth0",)
    assert sum(map(len, batches)) == len(FRAMES)
    assert not any(batch.records.flags.owndata or batch.records.flags.writeable for batch in batches)
    assert read(path) == EXPECTED
    assert file.packets_read == len(FRAMES) and not file.cut_short


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_pcap(tmp_path: Path, order: str, nanoseconds: bool) -> None:
    path = pcap(tmp_path / "x.pcap", FRAMES, order=order, nanoseconds=nanoseconds)
    unit = 1 if nanoseconds else 1000
    assert read(path) == [(at // unit * unit, *rest) for at, *rest in EXPECTED]


@pytest.mark.parametrize("form", ["pcap", "nsecpcap", "pcapng"])
def test_what_editcap_makes_of_it(tmp_path: Path, form: str) -> None:
    theirs = tmp_path / "theirs"
    subprocess.run(["editcap", "-F", form, written(tmp_path / "x.pcapng", FRAMES), theirs], check=True)
    unit = 1000 if form == "pcap" else 1
    assert read(theirs) == [(at // unit * unit, *rest) for at, *rest in EXPECTED]


def test_both_byte_orders_in_one_file(tmp_path: Path) -> None:
    path = big_endian(tmp_path / "x.pcapng", FRAMES)
    theirs = subprocess.run(
        ["tshark", "-nr", path, "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.len", "-e", "frame.interface_name"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    with ffpf_bpf.open(path) as file:
        found = list(file.packets())
        assert file.interfaces == ("far", "far")
    assert [packet.data for packet in found[: len(FRAMES[::2])]] == FRAMES[::2]
    assert found[len(FRAMES[::2])].data == FRAMES[0], "a simple packet block"
    assert [packet.data for packet in found[len(FRAMES[::2]) + 1 : -1]] == FRAMES[1::2]
    assert len(theirs) == len(found)
    for packet, line in zip(found, theirs, strict=True):
        at, length, name = line.split("\t")
        if packet.time_ns:  # a simple packet block has no time
            assert int(float(at)) == packet.time_ns // 10**9
            assert int(at.partition(".")[2][:6]) == packet.time_ns % 10**9 // 1000
        assert (int(length), name) == (packet.length, packet.interface)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "ours"])
def test_compressed(tmp_path: Path, kind: str) -> None:
    plain = written(tmp_path / "x.pcapng", FRAMES)
    packed = tmp_path / "packed"
    match kind:
        case "gzip":
            packed.write_bytes(gzip.compress(plain.read_bytes()))
        case "zstd":
            packed.write_bytes(zstandard.compress(plain.read_bytes()))
        case _:
            written(packed, FRAMES, compress="zstd")
    assert read(packed) == EXPECTED


def test_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that lie across the pieces in which a stream comes."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 1000)
    packed = tmp_path / "packed"
    for path in (written(tmp_path / "x", FRAMES), pcap(tmp_path / "y", FRAMES), big_endian(tmp_path / "z", FRAMES)):
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert read(packed) == read(path)


def test_standard_input(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pcapng", FRAMES)
    program = "import ffpf_bpf; print(sum(map(len, ffpf_bpf.open('-').batches())))"
    with path.open("rb") as file:
        done = subprocess.run([sys.executable, "-c", program], stdin=file, capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(FRAMES)}\n"
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(
            [sys.executable, "-c", program], stdin=cat.stdout, capture_output=True, text=True, check=True
        )
    assert done.stdout == f"{len(FRAMES)}\n"


@pytest.mark.parametrize("make", [written, pcap, big_endian])
def test_cut_short_anywhere(tmp_path: Path, make: object) -> None:
    """What is whole is read, and that the rest is missing is told."""
    frames = [udp(80, bytes(n)) for n in range(30)]
    whole = make(tmp_path / "whole", frames).read_bytes()  # type: ignore[operator]
    everything = read(tmp_path / "whole")
    cut = tmp_path / "cut"
    before = -1
    for length in range(200, len(whole), 37):
        cut.write_bytes(whole[:length])
        with ffpf_bpf.open(cut) as file:
            found = [(packet.time_ns, packet.data, packet.length) for packet in file.packets()]
        assert found == everything[: len(found)]
        assert len(found) >= before
        before = len(found)
    assert file.cut_short


@settings(max_examples=300)
@given(st.data())
def test_damage_never_reads_beyond_or_crashes(data: st.DataObject) -> None:
    place = (
        Path(f"/dev/shm/ffpf-{data.draw(st.just('damaged'))}")
        if Path("/dev/shm").is_dir()
        else Path("/tmp/ffpf-damaged")
    )
    make = data.draw(st.sampled_from([written, pcap, big_endian]))
    content = bytearray(make(place, [udp(80, bytes(n)) for n in range(40)]).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    place.write_bytes(content)
    try:
        with ffpf_bpf.open(place) as file:
            for batch in file.batches():
                assert int(batch.records["captured"].max()) <= batch.records["data"].shape[1]
                list(batch.packets(file.interfaces))
    except CaptureError as error:
        assert error.help
    finally:
        place.unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"hello, world, this is no capture file", "no pcap or pcapng file"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 100, 113), "interface `if0` has link type 113, not Ethernet"),
        (
            struct.pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 100, 1, 1, 1, 1 << 30, 1 << 30),
            "the file is damaged at byte 24: a packet of 1,073,741,824 bytes",
        ),
    ],
)
def test_what_is_no_capture_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(CaptureError) as raised:
        read(path)
    assert raised.value.message == message
    assert raised.value.where == str(path)
    with pytest.raises(CaptureError, match="cannot open: is a directory"):
        ffpf_bpf.open(tmp_path)


def test_what_is_before_the_damage_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pcapng", [udp(80, bytes(n)) for n in range(10)])
    content = path.read_bytes()
    at = content.rindex(struct.pack("<I", 6))
    path.write_bytes(content[: at + 4] + struct.pack("<I", 13) + content[at + 8 :])
    found = []
    with pytest.raises(CaptureError, match=f"damaged at byte {at:,}: a block of 13 bytes"), ffpf_bpf.open(path) as file:
        for packet in file.packets():
            found.append(packet)
    assert len(found) == 9
