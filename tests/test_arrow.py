"""Columns: what numpy and Arrow say of packets is what scapy, and the dissector by hand, say of each of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import Dot1Q, Ether

import ffpf_bpf
from ffpf_bpf.capture import arrow
from ffpf_bpf.capture.columns import addresses, dissect
from ffpf_bpf.capture.layout import slot_dtype
from ffpf_bpf.capture.ring import Batch
from ffpf_bpf.errors import CaptureError
from tests import dissection
from tests.corpus.packets import packets
from tests.network import udp
from tests.test_files import written
from tests.test_pcapng import TIME_NS, make_slot

SEED = 20041206
CORPUS = packets(SEED)


def slots_of(frames: Sequence[bytes], *, snaplen: int = 1 << 16) -> np.ndarray[Any, Any]:
    slot_bytes = max(64, *((32 + min(len(frame), snaplen) + 3) // 4 * 4 for frame in frames))
    made = [
        make_slot(slot_bytes, frame[:snaplen], original=len(frame), time_ns=TIME_NS + n)
        for n, frame in enumerate(frames)
    ]
    return np.frombuffer(b"".join(made), slot_dtype(slot_bytes))


def assert_as_by_hand(records: np.ndarray[Any, Any], frames: Sequence[bytes]) -> None:
    headers = dissect(records)
    names, source, destination = addresses(records, headers)
    for number, frame in enumerate(frames):
        expected = dissection.dissect(frame)
        if len(frame) < 14:
            expected = dissection.Headers(l4=14, payload=len(frame))
        found = {each.name: int(getattr(headers, each.name)[number]) for each in fields(headers)}
        assert found == {each.name: getattr(expected, each.name) for each in fields(expected)}, frame.hex()
        ip = frame[expected.l3 :]
        start, size = {4: (12, 4), 6: (8, 16)}.get(expected.version, (0, 0))
        pair = [ip[start : start + size], ip[start + size : start + 2 * size]] if size else [b"", b""]
        told = [names[at] if at >= 0 else "" for at in (int(source[number]), int(destination[number]))]
        assert told == [address_text(each) for each in pair]


def address_text(raw: bytes) -> str:
    import ipaddress
    import socket

    assert len(raw) in (0, 4, 16)
    if not raw:
        return ""
    assert ipaddress.ip_address(raw)
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def test_the_corpus_as_by_hand() -> None:
    assert_as_by_hand(slots_of(CORPUS), CORPUS)


@pytest.mark.parametrize("snaplen", [1, 13, 14, 17, 18, 33, 34, 37, 38, 53, 54, 60, 61])
def test_cut_packets_as_by_hand(snaplen: int) -> None:
    assert_as_by_hand(slots_of(CORPUS, snaplen=snaplen), [frame[:snaplen] for frame in CORPUS])


@settings(max_examples=300)
@given(st.lists(st.sampled_from(CORPUS), min_size=1, max_size=20), st.data())
def test_damaged_packets_as_by_hand(frames: list[bytes], data: st.DataObject) -> None:
    damaged = []
    for frame in frames:
        changed = bytearray(frame[: data.draw(st.integers(1, len(frame)))])
        for _ in range(data.draw(st.integers(0, 3))):
            changed[data.draw(st.integers(0, min(len(changed), 80) - 1))] = data.draw(st.integers(0, 255))
        damaged.append(bytes(changed))
    assert_as_by_hand(slots_of(damaged), damaged)


# What scapy makes and says.

PORT = st.integers(0, 65535)
TRANSPORT = st.one_of(
    st.builds(lambda s, d, f: TCP(sport=s, dport=d, flags=f), PORT, PORT, st.integers(0, 255)),
    st.builds(lambda s, d: UDP(sport=s, dport=d), PORT, PORT),
)
ADDRESS4 = st.integers(1, 2**32 - 2).map(lambda n: ".".join(str(n >> shift & 255) for shift in (24, 16, 8, 0)))
ADDRESS6 = st.binary(min_size=16, max_size=16).map(address_text)
EXTENSION = st.sampled_from(
    [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(addresses=["2001:db8::1"]), IPv6ExtHdrFragment(m=1)]
)


@st.composite
def nasty(draw: st.DrawFn) -> bytes:
    frame = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    for tag in draw(st.lists(st.integers(0, 4095), max_size=2)):
        frame = frame / Dot1Q(vlan=tag)
    if draw(st.booleans()):
        fragment = draw(st.sampled_from([(0, 0), (0, 0), (0, 1), (5, 1), (8000, 0)]))
        options = b"\1" * 4 * draw(st.integers(0, 10))
        frame = frame / IP(src=draw(ADDRESS4), dst=draw(ADDRESS4), frag=fragment[0], flags=fragment[1], options=options)
    else:
        frame = frame / IPv6(src=draw(ADDRESS6), dst=draw(ADDRESS6))
        for each in draw(st.lists(EXTENSION, max_size=4)):
            frame = frame / each.copy()
    return bytes(frame / draw(TRANSPORT) / draw(st.binary(max_size=30)))


@settings(max_examples=300)
@given(st.lists(nasty(), min_size=1, max_size=8))
def test_as_scapy_says(frames: list[bytes]) -> None:
    pytest.importorskip("pyarrow")
    rows = arrow.record_batch(Batch(slots_of(frames), 0, 0), ("eth0",), 0, True).to_pylist()
    for row, frame in zip(rows, frames, strict=True):
        packet = Ether(frame)
        ip = packet.getlayer(IP) or packet.getlayer(IPv6)
        tag = packet.getlayer(Dot1Q)
        assert row["vlan"] == (tag.vlan if tag else None)
        assert (row["ip_version"], row["src"], row["dst"]) == (ip.version, ip.src, ip.dst)
        assert row["data"] == frame
        assert (row["length"], row["captured"]) == (len(frame), len(frame))
        later = ip.frag if ip.version == 4 else 0
        first = ip.version == 4 and int(ip.flags) & 1
        if IPv6ExtHdrFragment in packet:
            first = True
        assert row["fragment"] == (2 if later else 1 if first else 0)
        transport = None if later else TCP(bytes(find(frame, TCP))) if find(frame, TCP) else find(frame, UDP)
        if transport is not None:
            assert (row["src_port"], row["dst_port"]) == (transport.sport, transport.dport)
            assert row["tcp_flags"] == (int(transport.flags) & 255 if isinstance(transport, TCP) else None)
            assert row["protocol"] == (6 if isinstance(transport, TCP) else 17)
        elif later:
            assert row["src_port"] is row["dst_port"] is row["tcp_flags"] is None


def find(frame: bytes, kind: type) -> Any:
    """scapy's layer, also behind a fragment header, which it does not look beyond."""
    packet = Ether(frame)
    if kind in packet:
        return packet[kind]
    cut = packet.getlayer(IPv6ExtHdrFragment)
    if cut is None:
        return None
    rest, following = bytes(cut.payload), cut.nh
    for number, layer in (
        (0, IPv6ExtHdrHopByHop),
        (43, IPv6ExtHdrRouting),
        (60, IPv6ExtHdrDestOpt),
        (44, IPv6ExtHdrFragment),
    ):
        if following == number:
            inner = layer(rest)
            return find(bytes(Ether() / IPv6(nh=number) / inner), kind)
    return kind(rest) if following == {TCP: 6, UDP: 17}[kind] else None


# Arrow, and what reads it.


def test_columns_and_types(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    with ffpf_bpf.open(written(tmp_path / "x.pcapng", CORPUS)) as file:
        table = file.table()
    table.validate(full=True)
    assert table.schema == arrow.schema()
    assert table.column("data").to_pylist() == CORPUS
    assert table.column("length").to_pylist() == list(map(len, CORPUS))
    assert set(table.column("interface").to_pylist()) == {"eth0"}
    times = table.column("time").cast(pa.int64()).to_pylist()
    assert times == [TIME_NS + n * 1000 for n in range(len(CORPUS))]


@pytest.mark.parametrize("lengths", [range(60), [60] * 50, [1, 2000, 3, 4], [14], [12, 13]])
def test_bytes_of_every_length(lengths: Sequence[int]) -> None:
    """In the view, behind it, with gaps and without."""
    pytest.importorskip("pyarrow")
    frames = [bytes((n + at) % 256 for at in range(length)) or b"\0" for n, length in enumerate(lengths)]
    batch = arrow.record_batch(Batch(slots_of(frames), 0, 0), ("eth0",), 0, True)
    batch.validate(full=True)
    assert batch.column("data").to_pylist() == frames


def test_record_batches_outlive_the_ring() -> None:
    pytest.importorskip("pyarrow")
    records = slots_of([udp(80)] * 5).copy()
    batch = arrow.record_batch(Batch(records, 0, 0), ("eth0",), 0, True)
    records.view(np.uint8)[:] = 0xEE
    assert batch.column("data").to_pylist() == [udp(80)] * 5


def test_one_line_to_each_library(tmp_path: Path) -> None:
    frames = [udp(80 + n % 3, bytes(n % 50)) for n in range(3000)]
    file = written(tmp_path / "x.pcapng", frames)
    expected = {port: sum(len(frame) for frame in frames[port - 80 :: 3]) for port in (80, 81, 82)}
    pandas = pytest.importorskip("pandas")
    frame = ffpf_bpf.open(file).dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.groupby("dst_port")["length"].sum().to_dict() == expected
    assert "data" not in frame
    polars = pytest.importorskip("polars")
    packets = polars.from_arrow(ffpf_bpf.open(file).table())
    assert dict(packets.group_by("dst_port").agg(polars.col("length").sum()).iter_rows()) == expected
    assert packets["data"].to_list() == frames
    duckdb = pytest.importorskip("duckdb")
    reader = ffpf_bpf.open(file).reader()
    assert reader is not None
    rows = duckdb.sql("select dst_port, sum(length) from reader group by dst_port").fetchall()
    assert {port: int(total) for port, total in rows} == expected


def test_without_pyarrow(tmp_path: Path) -> None:
    """Everything else works."""
    file = written(tmp_path / "x.pcapng", [udp(80)] * 5)
    program = f"""
import sys
sys.modules["pyarrow"] = None
import ffpf_bpf
file = ffpf_bpf.open({str(file)!r})
try:
    file.arrow()
except ffpf_bpf.CaptureError as error:
    print(error)
print(len(list(file.packets())))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "arrow: pyarrow is not installed\nhelp: `pip install 'ffpf_bpf[arrow]'`, or `pip install pyarrow`\n5\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(CaptureError):
            ffpf_bpf.open(file).table()
