"""The pcapng writer: other programs read back what it wrote, to the last packet, whatever went wrong on the way."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dpkt
import dpkt.pcapng
import numpy as np
import pytest
from scapy.utils import RawPcapNgReader

from ffpf_bpf.capture import pcapng
from ffpf_bpf.capture.layout import BLOCK_TYPE, FILL_OPTION, HEADER_BYTES, TRAILER_BYTES, slot_dtype
from ffpf_bpf.capture.pcapng import InterfaceDescription, InterfaceStatistics, PcapngWriter
from ffpf_bpf.errors import CaptureError
from ffpf_bpf.graph.memory import size_ring

SNAPLEN, SLOT_BYTES = 96, 128
TIME_NS = 1_732_351_533_123_456_789
FILTER = '(device,eth0) -> (BPF,"tcp port 80") -> (grab) → späť'
ETH0 = InterfaceDescription("eth0", SNAPLEN, FILTER)
ETH1 = InterfaceDescription("eth1", SNAPLEN, "(device,eth1) -> (grab)")


def make_slot(slot_bytes: int, data: bytes, *, interface: int = 0, time_ns: int = TIME_NS, original: int = 0) -> bytes:
    """A ring slot as bpf_src/deliver.c leaves it: what it does not write is what was there before."""
    slot = bytearray(b"\xee" * slot_bytes)
    struct.pack_into("<II", slot, 0, BLOCK_TYPE, slot_bytes)
    struct.pack_into(
        "<IIIII", slot, 8, interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), original or len(data)
    )
    slot[HEADER_BYTES : HEADER_BYTES + len(data)] = data
    padded = (len(data) + 3) & ~3
    room = slot_bytes - HEADER_BYTES - TRAILER_BYTES - padded
    if room > 0:
        struct.pack_into("<HH", slot, HEADER_BYTES + padded, FILL_OPTION, room - 4)
    struct.pack_into("<I", slot, slot_bytes - TRAILER_BYTES, slot_bytes)
    return bytes(slot)


def payload(length: int) -> bytes:
    return bytes((7 * length + at) % 251 for at in range(length))


def slots(count: int, slot_bytes: int = SLOT_BYTES) -> memoryview:
    """Packets numbered from 0 in their first four data bytes."""
    return memoryview(
        b"".join(
            make_slot(slot_bytes, at.to_bytes(4, "big") + payload(60), time_ns=TIME_NS + at) for at in range(count)
        )
    )


def tshark(path: Path, *fields: str) -> list[list[str]]:
    """The fields of each packet. tshark complains of a file that ends within a block, but reads it up to there."""
    options = [option for field in fields for option in ("-e", field)]
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "cut short" in done.stderr, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def numbers(path: Path) -> list[int]:
    """The packets' numbers as tshark reads them."""
    return [int(line[0].replace(":", "")[:8], 16) for line in tshark(path, "eth.dst")]


def blocks(path: Path) -> list[tuple[int, int]]:
    """Type and length of each block, whose two lengths must agree and which must end where the file ends."""
    content, offset, found = path.read_bytes(), 0, []
    while offset < len(content):
        kind, length = struct.unpack_from("<II", content, offset)
        assert struct.unpack_from("<I", content, offset + length - 4) == (length,)
        found.append((kind, length))
        offset += length
    assert offset == len(content)
    return found


def options(block: bytes, offset: int) -> dict[int, bytes]:
    """The options of the block that `block` begins with, which must end with opt_endofopt."""
    length = struct.unpack_from("<I", block, 4)[0]
    found = {}
    while offset < length - 4:
        code, size = struct.unpack_from("<HH", block, offset)
        found[code] = block[offset + 4 : offset + 4 + size]
        offset += 4 + (size + 3 & ~3)
    assert offset == length - 4
    assert found.pop(0) == b""
    return found


def child(source: str, *, stdout: int = subprocess.PIPE, **pipes: int) -> subprocess.Popen[bytes]:
    """A Python process that runs `source` with the names of this module."""
    preamble = "import os, resource, signal, sys\nfrom test_pcapng import *\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", preamble + textwrap.dedent(source)]
    return subprocess.Popen(command, stdout=stdout, env=environment, **pipes)


# What other programs read


LENGTHS = range(SNAPLEN + 1)


def time_of(n: int) -> int:
    return TIME_NS + n * 1_000_000_007


@pytest.fixture(scope="module")
def every_length(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packet of every captured length there is, from two interfaces in turn, each 1,000 bytes longer on the wire."""
    path = tmp_path_factory.mktemp("pcapng") / "lengths.pcapng"
    made = [make_slot(SLOT_BYTES, payload(n), interface=n % 2, time_ns=time_of(n), original=n + 1000) for n in LENGTHS]
    with PcapngWriter(str(path), [ETH0, ETH1], comment="two interfaces", hardware="a test bench") as writer:
        writer.write(np.frombuffer(b"".join(made), slot_dtype(SLOT_BYTES)))
        assert writer.packets_written == len(LENGTHS)
    assert writer.bytes_written == path.stat().st_size
    return path


def test_tshark_reads_every_length(every_length: Path) -> None:
    read = tshark(every_length, "frame.cap_len", "frame.len", "frame.time_epoch", "frame.interface_name")
    times = [f"{time_of(n) // 10**9}.{time_of(n) % 10**9:09}" for n in LENGTHS]
    assert read == [[str(n), str(n + 1000), times[n], f"eth{n % 2}"] for n in LENGTHS]


@pytest.mark.xfail(FILL_OPTION == 0x8001, reason="scapy reads 0x8001 as Darwin's process option and stops", strict=True)
def test_scapy_reads_every_byte(every_length: Path) -> None:
    with RawPcapNgReader(str(every_length)) as reader:
        read = [(data, meta.wirelen, (meta.tshigh << 32) + meta.tslow, meta.ifname) for data, meta in reader]
    names = [b"eth0", b"eth1"]
    assert read == [(payload(n), n + 1000, time_of(n), names[n % 2]) for n in LENGTHS]


def test_dpkt_reads_every_byte(every_length: Path) -> None:
    with every_length.open("rb") as file:
        assert [data for _, data in dpkt.pcapng.Reader(file)] == [payload(n) for n in LENGTHS]


def test_tcpdump_reads_every_byte(every_length: Path, tmp_path: Path) -> None:
    """tcpdump rewrites what it has read as a classic pcap file, whose records are four words and the data."""
    copy = tmp_path / "copy.pcap"
    subprocess.run(["tcpdump", "--nano", "-r", str(every_length), "-w", str(copy)], check=True, capture_output=True)
    content, offset, read = copy.read_bytes(), 24, []
    while offset < len(content):
        seconds, nanoseconds, captured, length = struct.unpack_from("<IIII", content, offset)
        read.append((content[offset + 16 : offset + 16 + captured], length, seconds * 10**9 + nanoseconds))
        offset += 16 + captured
    assert read == [(payload(n), n + 1000, time_of(n)) for n in LENGTHS]


def test_capinfos_reads_the_section(every_length: Path) -> None:
    text = subprocess.run(["capinfos", "-M", str(every_length)], capture_output=True, text=True, check=True).stdout
    fields = dict(line.strip().split(" = ", 1) for line in text.splitlines() if " = " in line)
    assert fields["Time precision"] == "nanoseconds (9)"
    described = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    assert described["Number of packets"] == str(len(LENGTHS))
    assert described["Capture hardware"] == "a test bench"
    assert described["Capture application"] == "ffpf_bpf"
    assert described["Capture comment"] == "two interfaces"
    assert described["Capture oper-sys"].startswith("Linux ")
    assert [line.split(" = ")[1] for line in text.splitlines() if line.strip().startswith("Name =")] == ["eth0", "eth1"]
    assert [line.split(" = ")[1] for line in text.splitlines() if "Filter string =" in line] == [FILTER, ETH1.filter]


@pytest.mark.parametrize("snaplen", [1, 4, 29, 60, 61, 96, 97, 1500, 65504])
def test_slots_of_any_ring(tmp_path: Path, snaplen: int) -> None:
    slot_bytes = size_ring(snaplen, 0).slot_bytes
    path = tmp_path / "capture.pcapng"
    with PcapngWriter(str(path), [InterfaceDescription("eth0", snaplen, "")]) as writer:
        for length in (0, 1, snaplen):
            writer.write(memoryview(make_slot(slot_bytes, payload(length))))
    assert [size for kind, size in blocks(path) if kind == BLOCK_TYPE] == [slot_bytes] * 3
    assert tshark(path, "frame.cap_len") == [["0"], ["1"], [str(snaplen)]]


def test_statistics(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    writer = PcapngWriter(str(path), [ETH0, ETH1])
    writer.write(slots(2))
    first = InterfaceStatistics(0, TIME_NS, TIME_NS + 5 * 10**9, 100, 1, 50, 8, 42)
    writer.close([first, InterfaceStatistics(1, TIME_NS, TIME_NS + 1, delivered=0)])
    writer.close([first])
    assert [kind for kind, _ in blocks(path)] == [pcapng.SECTION_HEADER, 1, 1, BLOCK_TYPE, BLOCK_TYPE, 5, 5]
    assert options(path.read_bytes()[-sum(size for _, size in blocks(path)[-2:]) :], 20) == {
        2: struct.pack("<II", TIME_NS >> 32, TIME_NS & 0xFFFFFFFF),
        3: struct.pack("<II", (TIME_NS + 5 * 10**9) >> 32, (TIME_NS + 5 * 10**9) & 0xFFFFFFFF),
        4: struct.pack("<Q", 100),
        5: struct.pack("<Q", 1),
        6: struct.pack("<Q", 50),
        7: struct.pack("<Q", 8),
        8: struct.pack("<Q", 42),
    }
    last = blocks(path)[-1][1]
    assert set(options(path.read_bytes()[-last:], 20)) == {2, 3, 8}
    assert numbers(path) == [0, 1]


def test_interface_options(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    PcapngWriter(str(path), [ETH0]).close()
    (_, section), (_, interface) = blocks(path)
    written = options(path.read_bytes()[section : section + interface], 16)
    assert written.pop(12).startswith(b"Linux ")
    assert written == {2: b"eth0", 9: b"\x09", 11: b"\0" + FILTER.encode()}


def test_no_interface_option_without_a_value(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    PcapngWriter(str(path), [InterfaceDescription("eth0", 0, "")]).close()
    (_, section), (_, interface) = blocks(path)
    assert set(options(path.read_bytes()[section : section + interface], 16)) == {2, 9, 12}


def test_filter_longer_than_an_option_is_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    with PcapngWriter(str(path), [InterfaceDescription("eth0", 96, "€" * 40000)]) as writer:
        writer.write(slots(1))
    (_, section), (_, interface), _ = blocks(path)
    written = options(path.read_bytes()[section : section + interface], 16)[11]
    assert written == b"\0" + "€".encode() * 21844
    assert numbers(path) == [0]


# What may be written


def test_arrays_and_memory_are_written_alike(tmp_path: Path) -> None:
    memory = slots(3)
    records = np.frombuffer(memory, slot_dtype(SLOT_BYTES))
    octets = np.frombuffer(memory, np.uint8)
    words = memoryview(octets).cast("I")
    for number, batch in enumerate((memory, records, octets, octets.reshape(3, SLOT_BYTES), words)):
        path = tmp_path / f"{number}.pcapng"
        with PcapngWriter(str(path), [ETH0]) as writer:
            writer.write(batch)
            assert writer.packets_written == 3
        assert path.read_bytes()[-memory.nbytes :] == bytes(memory)


def test_empty_batch_writes_nothing(tmp_path: Path) -> None:
    with PcapngWriter(str(tmp_path / "capture.pcapng"), [ETH0]) as writer:
        before = writer.bytes_written
        writer.write(memoryview(b""))
        writer.write(np.empty(0, slot_dtype(SLOT_BYTES)))
        assert (writer.packets_written, writer.bytes_written) == (0, before)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (slots(2)[: SLOT_BYTES + 4], "132 bytes are not whole slots of 128"),
        (slots(1)[:16], "16 bytes are no slot"),
        (memoryview(bytes(SLOT_BYTES)), "no slot begins with type 0 and length 0"),
        (memoryview(struct.pack("<II", 1, SLOT_BYTES) + bytes(120)), "no slot begins with type 1 and length 128"),
        (memoryview(struct.pack("<II", BLOCK_TYPE, 0) + bytes(120)), "no slot begins with type 6 and length 0"),
        (np.frombuffer(slots(4), slot_dtype(SLOT_BYTES))[::2], "contiguous"),
    ],
    ids=["part of a slot", "less than a slot", "never written", "another block", "no length", "every other slot"],
)
def test_what_is_not_whole_slots_is_refused(tmp_path: Path, batch: memoryview, message: str) -> None:
    path = tmp_path / "capture.pcapng"
    with PcapngWriter(str(path), [ETH0]) as writer:
        with pytest.raises(ValueError, match=message):
            writer.write(batch)
        writer.write(slots(1))
    assert numbers(path) == [0]


# Where it is written


def test_file_that_exists_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    path.write_bytes(b"x" * 100_000)
    with PcapngWriter(str(path), [ETH0]) as writer:
        writer.write(slots(1))
    assert numbers(path) == [0]


def test_new_file_is_the_owners_to_write(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    before = os.umask(0o027)
    try:
        PcapngWriter(str(path), [ETH0]).close()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "{where}: cannot open: is a directory\nhelp: name a file in it: `{where}/capture.pcapng`"),
        (
            "a/b/c",
            "{where}: cannot open: no such file or directory\nhelp: make the directory first: `mkdir -p {parent}`",
        ),
        ("n" * 300, "{where}: cannot open: file name too long\nhelp: name another file"),
    ],
)
def test_file_that_cannot_be_opened(tmp_path: Path, name: str, message: str) -> None:
    where = os.path.normpath(tmp_path / name)
    with pytest.raises(CaptureError) as raised:
        PcapngWriter(where, [ETH0])
    assert str(raised.value) == message.format(where=where, parent=os.path.dirname(where))


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_name_that_no_file_has(name: str) -> None:
    with pytest.raises(CaptureError, match="help: name another file"):
        PcapngWriter(name, [ETH0])


def test_directory_of_somebody_else(tmp_path: Path) -> None:
    """In a child, since root may write anywhere."""
    tmp_path.chmod(0o755)
    path = tmp_path / "capture.pcapng"
    source = f"""
        if os.geteuid() == 0:
            os.setuid(65534)
        else:
            os.chmod({str(tmp_path)!r}, 0o555)
        try:
            PcapngWriter({str(path)!r}, [ETH0])
        except CaptureError as error:
            print(error)
    """
    assert child(source).communicate()[0].decode() == (
        f"{path}: cannot open: permission denied\n"
        "help: write to a directory of your own, or to standard output with `-`\n"
    )


def test_terminal_is_refused() -> None:
    master, slave = pty.openpty()
    source = """
        try:
            PcapngWriter("-", [ETH0])
        except CaptureError as error:
            print(error, file=sys.stderr)
    """
    process = child(source, stdout=slave, stderr=subprocess.PIPE)
    assert process.communicate()[1].decode() == (
        "standard output: packets are not written to a terminal\n"
        "help: redirect: `> capture.pcapng` or `| tshark -r -`\n"
    )
    os.close(slave)
    os.set_blocking(master, False)
    with pytest.raises(OSError):  # nothing came
        os.read(master, 1)
    os.close(master)


def test_closed_standard_output_is_refused() -> None:
    source = """
        os.close(1)
        try:
            PcapngWriter("-", [ETH0])
        except CaptureError as error:
            print(error, file=sys.stderr)
    """
    said = child(source, stderr=subprocess.PIPE).communicate()[1].decode()
    assert said == "standard output: cannot write: bad file descriptor\nhelp: redirect it to a file or a pipe\n"


def test_standard_output_into_a_pipe(tmp_path: Path) -> None:
    written, _ = child('with PcapngWriter("-", [ETH0]) as writer: writer.write(slots(1000))').communicate()
    path = tmp_path / "capture.pcapng"
    path.write_bytes(written)
    assert numbers(path) == list(range(1000))


def test_standard_output_appended_to_a_file(tmp_path: Path) -> None:
    """pcapng files may be strung together: `ffpf grab -w - >> file` is a second section."""
    path = tmp_path / "capture.pcapng"
    PcapngWriter(str(path), [ETH0]).close()
    appending = os.open(path, os.O_WRONLY | os.O_APPEND)  # at position 0 until the first write
    try:
        source = """
            resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(1).st_size + 2000, -1))
            with PcapngWriter("-", [ETH0]) as writer:
                writer.write(slots(2))
                try: writer.write(slots(1000))
                except CaptureError: pass
        """
        child(source, stdout=appending).wait()
    finally:
        os.close(appending)
    kinds = [kind for kind, _ in blocks(path)]
    assert kinds[:4] == [pcapng.SECTION_HEADER, 1, pcapng.SECTION_HEADER, 1]
    assert set(kinds[4:]) == {BLOCK_TYPE}
    assert numbers(path)[:3] == [0, 1, 0]


# What goes wrong


def test_full_device() -> None:
    with pytest.raises(CaptureError) as raised:
        PcapngWriter("/dev/full", [ETH0])
    assert str(raised.value) == (
        "/dev/full: cannot write: no space left on device\n"
        "help: free some space or write elsewhere; what was written is whole: 0 packets"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.root
def test_full_disk(small_disk: Path) -> None:
    path = small_disk / "capture.pcapng"
    writer = PcapngWriter(str(path), [ETH0])
    writer.write(slots(100))
    with pytest.raises(CaptureError) as raised:
        writer.write(slots(10_000))
    written = writer.packets_written
    assert 500 <= written < 65536 // SLOT_BYTES
    assert str(raised.value) == (
        f"{path}: cannot write: no space left on device\n"
        f"help: free some space or write elsewhere; what was written is whole: {written} packets"
    )
    assert writer.broken
    assert writer.bytes_written == path.stat().st_size
    with pytest.raises(CaptureError, match="nothing more can be written"):
        writer.write(slots(1))
    writer.close([InterfaceStatistics(0, 0, 1, delivered=1)])
    assert [kind for kind, _ in blocks(path)] == [pcapng.SECTION_HEADER, 1] + [BLOCK_TYPE] * written
    assert numbers(path) == [*range(100), *range(written - 100)]


def test_file_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    source = f"""
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))
        writer = PcapngWriter({str(path)!r}, [ETH0])
        try:
            writer.write(slots(1000))
        except CaptureError as error:
            print(error)
        writer.close()
    """
    said = child(source).communicate()[0].decode()
    written = [kind for kind, _ in blocks(path)].count(BLOCK_TYPE)
    assert 70 <= written < 10_000 // SLOT_BYTES
    assert said == (
        f"{path}: cannot write: file too large\n"
        f"help: raise the limit (`ulimit -f`) or write elsewhere; what was written is whole: {written} packets\n"
    )
    assert numbers(path) == list(range(written))


def test_reader_of_standard_output_is_gone() -> None:
    source = """
        writer = PcapngWriter("-", [ETH0])
        sys.stdin.read(1)
        try:
            writer.write(slots(10_000))
        except CaptureError as error:
            print(writer.broken, error, file=sys.stderr)
        writer.close([InterfaceStatistics(0, 0, 1)])
    """
    process = child(source, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    process.stdout.read(100)
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read().decode() == (
        "True the reader of standard output is gone\n"
        "help: keep it running until the capture ends; 0 packets were written\n"
    )
    process.stderr.close()
    assert process.wait() == 0


def test_reader_of_a_named_pipe_goes_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = PcapngWriter(str(path), [ETH0])
    writer.write(slots(2))
    os.close(reader)
    with pytest.raises(CaptureError) as raised:
        writer.write(slots(1))
    writer.close()
    assert str(raised.value) == (
        f"{path}: the reader of the pipe is gone\nhelp: keep it running until the capture ends; 2 packets were written"
    )


def test_slow_reader_of_a_nonblocking_pipe(tmp_path: Path) -> None:
    """Short writes and EAGAIN: the smallest pipe there is takes a page at a time."""
    fifo, path = tmp_path / "pipe", tmp_path / "capture.pcapng"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = PcapngWriter(str(fifo), [ETH0])
    assert fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096) == 4096
    os.set_blocking(writer._output.descriptor, False)
    os.set_blocking(reader, True)
    collected = bytearray()

    def drain() -> None:
        while piece := os.read(reader, 3000):
            collected.extend(piece)
            time.sleep(0.001)

    draining = threading.Thread(target=drain, daemon=True)
    draining.start()
    writer.write(slots(2000))
    writer.close([InterfaceStatistics(0, 0, 1)])
    draining.join()
    os.close(reader)
    assert writer.packets_written == 2000
    assert writer.bytes_written == len(collected)
    path.write_bytes(collected)
    assert numbers(path) == list(range(2000))


def test_interrupt_in_the_middle_of_a_pipe() -> None:
    """After a signal's exception nobody knows how much the reader has: nothing may follow."""
    source = """
        signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
        writer, batch = PcapngWriter("-", [ETH0]), slots(10_000)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            writer.write(batch)
        except ZeroDivisionError:
            print(writer.broken, file=sys.stderr)
        writer.close([InterfaceStatistics(0, 0, 1)])
    """
    process = child(source, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    assert process.stderr.read() == b"True\n"
    assert struct.pack("<II", pcapng.INTERFACE_STATISTICS, 36) not in process.stdout.read()
    process.stdout.close()
    process.stderr.close()
    process.wait()


def test_signal_that_is_handled_interrupts_nothing(tmp_path: Path) -> None:
    """EINTR on a pipe that is full."""
    source = """
        signal.signal(signal.SIGALRM, lambda *_: None)
        writer = PcapngWriter("-", [ETH0])
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        writer.write(slots(3000))
        print(writer.packets_written, file=sys.stderr)
    """
    process = child(source, stderr=subprocess.PIPE)
    time.sleep(0.3)
    written, said = process.communicate()
    assert said == b"3000\n"
    path = tmp_path / "capture.pcapng"
    path.write_bytes(written)
    assert numbers(path) == list(range(3000))


def test_interrupted_file_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception of a signal comes after the system call and before its result is seen."""
    path, write = tmp_path / "capture.pcapng", os.write
    writer = PcapngWriter(str(path), [ETH0])

    def interrupted(descriptor: int, memory: memoryview) -> int:
        write(descriptor, memory[: 3 * SLOT_BYTES + 17])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.write(slots(10))
    monkeypatch.undo()
    assert (writer.packets_written, writer.broken) == (3, False)
    writer.write(slots(2))
    writer.close([InterfaceStatistics(0, 0, 1)])
    assert [kind for kind, _ in blocks(path)][2:] == [BLOCK_TYPE] * 5 + [pcapng.INTERFACE_STATISTICS]
    assert numbers(path) == [0, 1, 2, 0, 1]


def test_killed_while_writing(tmp_path: Path) -> None:
    path, batch = tmp_path / "capture.pcapng", 20_000
    source = f"""
        writer = PcapngWriter({str(path)!r}, [ETH0])
        batch = slots({batch})
        while True:
            writer.write(batch)
    """
    process = child(source)
    while not path.exists() or path.stat().st_size < 1_000_000:
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    header = path.read_bytes().index(struct.pack("<II", BLOCK_TYPE, SLOT_BYTES))
    whole = (path.stat().st_size - header) // SLOT_BYTES
    assert numbers(path) == [n % batch for n in range(whole)]
    os.truncate(path, header + 100 * SLOT_BYTES - 1)  # killed within a block, which does not happen every time
    assert numbers(path) == list(range(99))


def test_closed_writer_holds_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    PcapngWriter(str(tmp_path / "capture.pcapng"), [ETH0]).close()
    with pytest.raises(CaptureError):
        PcapngWriter("/dev/full", [ETH0])
    assert os.listdir("/proc/self/fd") == before
