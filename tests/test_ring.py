"""The rings: wrapping, whole packets of every length, and slots that are pcapng as the kernel wrote them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ffpf_bpf.capture.pcapng import InterfaceDescription, PcapngWriter
from ffpf_bpf.graph.memory import size_ring
from tests.segment import LoadedFlow, loaded


def frame(number: int, length: int) -> bytes:
    return bytes(12) + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(length - 18)


def read(flow: LoadedFlow) -> list[bytes]:
    return [packet.data for batch in flow.batches() for packet in batch.packets(("tap0",))]


@pytest.mark.root
def test_a_ring_wraps_without_losing_or_repeating(tmp_path: Path) -> None:
    """512 slots for each CPU; 3,000 packets go through, read a few at a time."""
    with loaded("(device,tap0) -> (grab,snaplen=96)") as (flow,):
        got: list[bytes] = []
        sent = [frame(number, 60 + number % 50) for number in range(3000)]
        for start in range(0, len(sent), 250):
            for packet in sent[start : start + 250]:
                flow.run(packet)
            got += read(flow)
            got += read(flow)
        assert sorted(got) == sorted(packet[:96] for packet in sent)
        assert flow.statistics().ledger.delivered == len(sent)
        assert flow.statistics().ledger.ring_full == 0


@pytest.mark.root
@pytest.mark.parametrize("snaplen", [1, 14, 15, 96, 1514, 65_535])
def test_every_length_comes_out_whole_and_as_pcapng(snaplen: int, tmp_path: Path) -> None:
    lengths = [*range(18, 130), 1000, 1514, 3000]
    with loaded(f"(device,tap0) -> (grab,snaplen={snaplen})") as (flow,):
        file = tmp_path / "ring.pcapng"
        got: list[tuple[bytes, int]] = []
        with PcapngWriter(str(file), [InterfaceDescription("tap0", snaplen, "")]) as writer:
            for number, length in enumerate(lengths):
                flow.run(frame(number, length))
                for batch in flow.reader.poll():
                    writer.write(batch.records)
                    got += [(packet.data, packet.length) for packet in batch.packets(("tap0",))]
    expected = [(frame(number, length)[:snaplen], length) for number, length in enumerate(lengths)]
    assert got == expected
    fields = ["-T", "fields", "-e", "frame.cap_len", "-e", "frame.len"]
    shown = subprocess.run(["tshark", "-r", file, *fields], capture_output=True, text=True, check=True)
    assert [tuple(map(int, line.split())) for line in shown.stdout.splitlines()] == [
        (min(length, snaplen), length) for length in lengths
    ]


@pytest.mark.parametrize("snaplen", [1, 96, 97, 1514, 65_504, 65_505, 65_535])
def test_ring_sizes(snaplen: int) -> None:
    ring = size_ring(snaplen, 4 << 20)
    assert ring.slot_bytes >= snaplen + 32
    assert ring.slot_bytes % 32 == 0
    assert ring.slots & (ring.slots - 1) == 0
    assert ring.slots * ring.slot_bytes <= 4 << 20
    assert ring.slot_bytes - 32 - 4 < 1 << 16, "the filling option's length has 16 bits"
