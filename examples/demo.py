"""A flow from its definition to its last packet, on live traffic: what `make demo` shows. Needs root.

Two network namespaces are joined by a veth pair; one sends to the other, and a flow grabs where it arrives
(demo_network.py). Whatever happens, Ctrl-C included, the namespaces are removed; those of a demo that was killed are
removed by the next.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo_network import TAP, catch_signals, namespaces, network, packets_received, remove_leftovers, traffic
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ffpf_bpf.authorise import PolicyError, Subject, read_policies
from ffpf_bpf.capture.packet import Packet
from ffpf_bpf.capture.pcapng import InterfaceDescription, PcapngWriter
from ffpf_bpf.capture.waiting import Pace
from ffpf_bpf.capture.words import line
from ffpf_bpf.cli.report import ledger_text
from ffpf_bpf.errors import FfpfError
from ffpf_bpf.flow import Flow, Statistics
from ffpf_bpf.graph import picture
from ffpf_bpf.kernel import calls

EXPRESSION = (
    '(device,demo0) -> ((bpf as web,"tcp port 80") -> (bytecount as webbytes) -> (grab,snaplen=96))'
    ' | ((bpf as dns,"udp port 53") -> (sampler,2) -> (packetcount as asked) -> (grab,snaplen=96))'
    ' | ((bpf as arp,"arp") -> (grab,snaplen=96))'
    ' | ((bpf as tagged,"vlan 7") -> (packetcount as frames))'
)
POLICIES = Path(__file__).resolve().parents[1] / "policies"
ALICE = Subject("alice", frozenset({"students"}), 4711)
PAUSE_S = 1.0
SHOWN_PACKETS = 10

console = Console(highlight=False)


def main() -> int:
    """The demo from beginning to end; the exit code."""
    seconds = arguments().seconds
    if os.geteuid() != 0:
        print("demo: needs root\nhelp: `make demo`, which uses sudo", file=sys.stderr)
        return 4
    catch_signals()
    remove_leftovers()
    with fresh_file() as path:
        left = show(path, seconds)
        hand_over(path)
        title("8. The packets are in a file", "For Wireshark, tshark and tcpdump:")
        print(path)
    return 1 if left else 0


def show(path: str, seconds: float) -> bool:
    """Everything but the last line; True if something is left in the kernel."""
    before = kernel_ids()
    spaces_before = namespaces()
    title("1. A flow is defined", "Four branches on one interface: a graph, nothing in the kernel yet.")
    say(picture.text(Flow.create().populate(EXPRESSION).definition.graph))
    with policy_directory() as policies, network() as (inside, outside):
        decide(policies)
        with Flow.create(policies=policies).populate(EXPRESSION) as flow:
            recording = Recording(flow, path)
            instantiate(flow)
            mine = own_ids()
            with traffic(inside, outside):
                watch(flow, recording, seconds)
                pause_and_resume(flow, recording, inside)
                flow.pause(wait=True)
            recording.drain()
            recording.close()
            account(flow.stats(), recording)
    show_file(path)
    return kernel_is_as_before(before, mine, spaces_before)


# The steps


def decide(policies: Path) -> None:
    title("2. A policy decides on the complete graph", "root, of whom the policy says: everything, everywhere.")
    say(Flow.create(policies=policies).populate(EXPRESSION).authorise().text())
    title("", "alice, a student: other interfaces, and only behind a sampler of 1 in 10 or more.")
    say(Flow.create(policies=policies, subject=ALICE).populate(EXPRESSION).authorise().text())


def instantiate(flow: Flow) -> None:
    start_s = time.perf_counter()
    flow.instantiate()
    took_ms = (time.perf_counter() - start_s) * 1000
    taps = ", ".join(f"{tap['tap']} in {tap['mode']} mode" for tap in flow.taps)
    title("3. It is compiled and attached", f"To {taps}, in {took_ms:.0f} ms. It is paused: no packet is captured yet.")


def watch(flow: Flow, recording: Recording, seconds: float) -> None:
    """The counters, live on a terminal, as lines elsewhere."""
    title("4. It is activated", f"Counters of every node, for {seconds:g} seconds:")
    flow.activate()
    start_s = time.monotonic()
    if console.is_terminal:
        with Live(table(flow.stats()), console=console, refresh_per_second=10) as live:
            for _ in recording.run(seconds, every_s=0.1):
                live.update(table(flow.stats()))
            live.update(table(flow.stats()))
        return
    for _ in recording.run(seconds, every_s=0.5):
        statistics = flow.stats()
        say(f"  {time.monotonic() - start_s:3.1f} s: {ledger_text(statistics.ledger)}")
    console.print(table(flow.stats()))


def pause_and_resume(flow: Flow, recording: Recording, inside: str) -> None:
    title("5. It is paused under traffic", "By one store into mapped memory; counters and rings stay.")
    flow.pause(wait=True)
    seen, received = flow.stats().ledger.seen, packets_received(inside)
    time.sleep(PAUSE_S)
    seen, received = flow.stats().ledger.seen - seen, packets_received(inside) - received
    say(f"  in {PAUSE_S:g} s the interface received {received:,} packets, the flow saw {seen:,}")
    start_ns = time.perf_counter_ns()
    flow.activate()
    took_us = (time.perf_counter_ns() - start_ns) / 1000
    seen = flow.stats().ledger.seen
    for _ in recording.run(PAUSE_S):
        pass
    say(f"  resumed in {took_us:.0f} microseconds; in {PAUSE_S:g} s it saw {flow.stats().ledger.seen - seen:,} more")


def account(statistics: Statistics, recording: Recording) -> None:
    title("6. Every packet is accounted for", "Each has one fate, and the fates sum to what was seen:")
    ledger = statistics.ledger
    say(f"  {ledger_text(ledger)}{'' if ledger.balances else '  DOES NOT SUM'}")
    say(f"  {recording.written:,} packets are in the file. The first that were grabbed:")
    for packet in recording.packets:
        say(f"  {line(packet)}")


def show_file(path: str) -> None:
    if shutil.which("tshark") is None:
        return
    title("", "The file as tshark reads it; a batch was written as it lay in the ring:")
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "-c", "5"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    say(done.stdout.rstrip() or done.stderr.rstrip())


def kernel_is_as_before(before: Ids, mine: Ids, spaces_before: int) -> bool:
    """Says what the demo left in the kernel, waiting until it is freed; True if anything is."""
    title("7. It is closed", "The kernel is as it was:")
    end_s = time.monotonic() + 5
    # Others may load programs meanwhile: what counts are the ids that were ours.
    while (left := {kind: mine[kind] & ids for kind, ids in kernel_ids().items()}) != NOTHING:
        if time.monotonic() > end_s:
            break
        time.sleep(0.02)
    after = kernel_ids()
    for kind in KINDS:
        during = f"{len(mine[kind])} of the flow"
        say(f"  {kind + 's':<11} {len(before[kind]):>3} before, {during:<13} {len(after[kind]):>3} after")
    say(f"  {'namespaces':<11} {spaces_before:>3} before, {'2 of the demo':<13} {namespaces():>3} after")
    if any(len(after[kind]) != len(before[kind]) for kind in KINDS):
        say("  (others changed theirs meanwhile)")
    remaining = sum(len(ids) for ids in left.values())
    say(f"  left by the demo: {remaining or 'nothing'}")
    return remaining > 0


class Recording:
    """The packets of a flow into a file, batch by batch as they lie in the ring; the first few also as values."""

    def __init__(self, flow: Flow, path: str) -> None:
        self.packets: list[Packet] = []
        self._flow = flow
        self._writer = PcapngWriter(path, [InterfaceDescription(TAP, 96, flow.definition.text)])

    @property
    def written(self) -> int:
        return self._writer.packets_written

    def run(self, seconds: float, every_s: float = 1.0) -> Iterator[None]:
        """Records for so long; yields every so often."""
        end_s = time.monotonic() + seconds
        next_s = time.monotonic() + every_s
        pace = Pace()
        while (now_s := time.monotonic()) < end_s:
            waiting = self._flow.waiting()
            self.drain()
            pace.rest(self._flow.listen, waiting, self._flow.waiting(), end_s - now_s)
            if now_s >= next_s:
                next_s += every_s
                yield
        self.drain()

    def drain(self) -> None:
        """Records what is there."""
        for batch in self._flow.poll():
            self._writer.write(batch.records)
            if len(self.packets) < SHOWN_PACKETS:
                self.packets += list(batch.packets(self._flow.interfaces))[: SHOWN_PACKETS - len(self.packets)]

    def close(self) -> None:
        self._writer.close()


# Policies and files


@contextmanager
def policy_directory() -> Iterator[Path]:
    """`policies/`, or a copy: only root's files are policies, and a checkout may belong to a user."""
    with tempfile.TemporaryDirectory(prefix="ffpf-demo-") as made:
        for policy in POLICIES.glob("*.toml"):
            shutil.copyfile(policy, Path(made) / policy.name)
            (Path(made) / policy.name).chmod(0o644)
        yield POLICIES if acceptable(POLICIES) else Path(made)


def acceptable(directory: Path) -> bool:
    try:
        read_policies(directory)
    except PolicyError:
        return False
    return True


@contextmanager
def fresh_file() -> Iterator[str]:
    """A new pcapng file among the temporary ones; removed if the demo does not come to its end."""
    handle, path = tempfile.mkstemp(prefix="ffpf-demo-", suffix=".pcapng")
    os.close(handle)
    try:
        yield path
    except BaseException:
        os.unlink(path)
        raise


def hand_over(path: str) -> None:
    """The file belongs to the user who called sudo."""
    if "SUDO_UID" in os.environ and "SUDO_GID" in os.environ:
        os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


# The kernel's objects

Ids = dict[str, set[int]]
KINDS = {"program": "prog", "map": "map", "link": "link"}
NOTHING: Ids = {kind: set() for kind in KINDS}


def kernel_ids() -> Ids:
    """The ids of all programs, maps and links. Only ids: opening a prog array that dies makes the kernel keep it."""
    return {kind: set(_ids(short)) for kind, short in KINDS.items()}


def _ids(short: str) -> Iterator[int]:
    following = getattr(calls.library(), f"bpf_{short}_get_next_id")
    found = ctypes.c_uint32(0)
    while following(found.value, ctypes.byref(found)) == 0:
        yield found.value


def own_ids() -> Ids:
    """The ids of what this process holds descriptors of."""
    own: Ids = {kind: set() for kind in KINDS}
    for entry in Path("/proc/self/fdinfo").iterdir():
        try:
            fields = dict(text.split(":", 1) for text in entry.read_text().splitlines() if ":" in text)
        except OSError:  # the descriptor of the directory itself
            continue
        for kind, short in KINDS.items():
            if f"{short}_id" in fields:
                own[kind].add(int(fields[f"{short}_id"]))
    return own


# Words


def table(statistics: Statistics) -> Table:
    """A row for each node."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    made.add_column("  node")
    made.add_column("")
    for name in ("in", "out", "counted"):
        made.add_column(name, justify="right")
    for node in statistics.nodes:
        counted = ", ".join(f"{count:,} {unit}" for unit, count in node.counts.items())
        words = f"{node.class_name} {node.expression}".strip()
        made.add_row(f"  {node.id}", words, f"{node.packets_in:,}", f"{node.packets_out:,}", counted)
    return made


def title(head: str, sentence: str) -> None:
    if head:
        console.print(f"\n[bold]{head}[/bold]")
    console.print(sentence, style="italic", markup=False, soft_wrap=True)


def say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long the counters are shown (default: 3)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except FfpfError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except subprocess.CalledProcessError as error:
        print(f"demo: failed: {' '.join(error.cmd)}", file=sys.stderr)
        sys.exit(1)
