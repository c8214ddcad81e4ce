"""The programs and flow expressions of examples/, run as a user runs them, under traffic."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.corpus.packets import packets
from tests.network import Network
from tests.test_files import written

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FFPF = (sys.executable, "-c", "from ffpf_bpf.cli import main; main()")
# Ethernet, IPv4, UDP from port 1234 to port 53, 8 bytes of payload.
QUESTION = bytes.fromhex(
    "ffffffffffff 020000000001 0800 4500002400010000401100000a4d00020a4d00ff 04d2003500100000 7175657374696f6e"
)
TESTED_ELSEWHERE = {"demo.py", "demo_network.py"}


@contextmanager
def traffic(send: Callable[[], object]) -> Iterator[None]:
    """About 500 packets a second until the end of the block."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(0.002):
            send()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def under_traffic(network: Network, name: str, *arguments: str) -> str:
    with network.sender() as raw, traffic(lambda: raw.send(QUESTION)):
        return run(*network.command(sys.executable, str(EXAMPLES / name), network.tap, *arguments))


def number(pattern: str, output: str) -> int:
    found = re.search(pattern.replace("N", "([0-9,]+)"), output)
    assert found, f"{pattern} is not in: {output}"
    return int(found[1].replace(",", ""))


@pytest.mark.root
def test_count_ports(network: Network) -> None:
    output = under_traffic(network, "count_ports.py", "--ports", "53", "80", "--seconds", "0.5")
    assert number("port53: N packets", output) > 50
    assert number("port80: N packets", output) == 0
    assert number("N seen, 0 to no port of these", output) == number("port53: N packets", output)


@pytest.mark.root
def test_grab_to_numpy(network: Network) -> None:
    output = under_traffic(network, "grab_to_numpy.py", "--filter", "udp port 53", "--seconds", "0.5")
    packets = number("N packets, ", output)
    assert packets > 50
    assert number("N bytes on the wire", output) == number("N captured, 0 lost", output) == packets * len(QUESTION)
    assert number("EtherType 0x0800: N", output) == packets


@pytest.mark.root
def test_pause_resume(network: Network) -> None:
    output = under_traffic(network, "pause_resume.py", "--seconds", "0.9")
    assert number("active:  N seen", output) > 20
    assert number("paused:  N more", output) == 0
    assert number("resumed: N more", output) > 20


@pytest.mark.root
def test_several_flows(network: Network) -> None:
    output = under_traffic(network, "several_flows.py", "--seconds", "0.9")
    assert f"first packet of the visitor: {len(QUESTION)} bytes on {network.tap}" in output
    steady = number("steady: N seen", output)
    assert steady == number("seen, N counted; the ledger balances", output)
    assert steady > number("visitor: N seen", output) > 0
    assert "DOES NOT" not in output


@pytest.mark.root
def test_watch_services(network: Network) -> None:
    output = under_traffic(network, "watch_services.py", "--seconds", "0.5")
    assert number("N questions, the last of", output) > 50
    assert number("the last of N bytes", output) == len(QUESTION)
    assert number("N bytes in the first packets of web conversations, 0 other packets", output) == 0
    assert "the ledger balances" in output


PLOTS = ("rate.png", "lengths.png", "sources.png")


def test_plot_traffic_of_a_file(tmp_path: Path) -> None:
    for needed in ("matplotlib", "pandas", "pyarrow"):
        pytest.importorskip(needed)
    frames = [each for each in packets(1) if len(each) >= 14]
    file = written(tmp_path / "x.pcapng", frames, gap_ns=1_000_000)
    output = run(sys.executable, str(EXAMPLES / "plot_traffic.py"), str(file), "--into", str(tmp_path))
    assert number("N packets, ", output) == len(frames)
    assert number("N bytes\n", output) == sum(map(len, frames))
    for name in PLOTS:
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5000


@pytest.mark.root
def test_plot_traffic_of_an_interface(network: Network, tmp_path: Path) -> None:
    for needed in ("matplotlib", "pandas", "pyarrow"):
        pytest.importorskip(needed)
    output = under_traffic(network, "plot_traffic.py", "--seconds", "0.5", "--into", str(tmp_path))
    assert number("N packets, ", output) > 20
    assert all((tmp_path / name).exists() for name in PLOTS)


def test_policy_check() -> None:
    output = run(sys.executable, str(EXAMPLES / "policy_check.py"), "eth0")
    refused, accepted = output.split("\n\n")[:2]
    assert "rule students: put a `sampler` in front of each `grab`, on every path" in refused
    assert "\nACCEPTED by rule students (" in accepted


@pytest.mark.root
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ffpf")), ids=lambda path: path.name)
def test_expressions(network: Network, path: Path) -> None:
    with (
        network.enter(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as local,
        traffic(lambda: local.sendto(b"question", ("127.0.0.1", 53))),
    ):
        output = run(*network.command(*FFPF, "run", f"@{path}", "--duration", "0.5", "--json"))
    (flow,) = json.loads(output)["flows"]
    ledger = flow["ledger"]
    assert ledger["seen"] == sum(count for fate, count in ledger.items() if fate != "seen")
    assert ledger["delivered"] > 10


def test_every_example_is_run() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    programs = {path.name for path in EXAMPLES.glob("*.py")} - TESTED_ELSEWHERE
    assert {name for name in programs if f'"{name}"' not in source} == set()
