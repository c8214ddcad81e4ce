"""The command line on graphs: node classes explained, graphs drawn together, counters while a flow runs."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from ffpf_bpf.cli import app
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.expression import nodes
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.printer import python, text
from tests.network import Network
from tests.test_cli import FFPF, ffpf, traffic

SHARED = [
    "(device,tap0) -> (sampler,2) -> (bpf,udp) -> (grab,snaplen=64)",
    "(device,tap0) -> (sampler,2) -> (packetcount)",
]


def inside(*words: str) -> str:
    """A command in this process, which is quicker."""
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_nodes_lists_every_class() -> None:
    lines = ffpf("nodes").stdout.splitlines()
    assert lines[0].split() == ["class", "role", "memory"]
    shown = {line.split()[0]: line for line in lines[1:] if line and not line.startswith("`")}
    assert list(shown) == list(CLASSES)
    assert re.search(r"decides +some of the packets, or of the flows +4 bytes per CPU", shown["sampler"])
    assert re.search(r"decides +the beginning of each flow +1,048,576 bytes$", shown["head"])


@pytest.mark.parametrize("name", CLASSES)
def test_nodes_explains_each_with_an_example(name: str) -> None:
    known = CLASSES[name]
    shown = inside("nodes", name)
    assert shown.startswith(f"{name}: {known.role}")
    expression = parse(known.example)
    assert any(isinstance(node, known) for node in nodes(expression)), "the example has no such node"
    assert shown.splitlines()[-3:] == ["example:", f"    {known.example}", f"    {python(expression)}"]
    assert parse(text(expression)) == expression
    assert "Raises" in shown or name in ("bytecount", "packetcount", "newflow")
    facts = json.loads(inside("nodes", name.upper(), "--json"))
    assert facts["class"] == name
    assert facts["mbuf_per_cpu"] is known.mbuf_per_cpu
    drawn = inside("draw", known.example)
    assert known.class_name in drawn


def test_nodes_of_no_such_class() -> None:
    done = ffpf("nodes", "smapler", code=2)
    assert done.stderr == "ffpf: unknown node class `smapler`\nhelp: did you mean `sampler`?\n"


def test_a_long_expression_is_shortened_for_people_only() -> None:
    flow = f"(device,eth0) -> (scan,{'|'.join(f'pattern{number}' for number in range(900))}) -> (packetcount)"
    first, *rest = inside("run", "-r", "examples/mixed.pcapng", flow).splitlines()
    assert re.match(r"flow\d+ on eth0 \(file\): \(device,eth0\) -> \(scan,", first)
    assert len(first) < 600
    assert first.endswith("...")
    assert max(map(len, rest)) < 120
    whole = json.loads(inside("run", "-r", "examples/mixed.pcapng", "--json", flow))
    assert whole["flows"][0]["expression"] == text(parse(flow))


def test_draw_marks_what_flows_share(tmp_path: Path) -> None:
    assert ffpf("draw", *SHARED).stdout == (
        "shared by 2 flows: 1, 2\n"
        "  device1       (device,tap0)\n"
        "  sampler1      (sampler,2)  <- device1\n"
        "flow 1\n"
        "  bpf1          (bpf,udp)  <- sampler1\n"
        "  grab1         (grab,snaplen=64)  <- bpf1\n"
        "flow 2\n"
        "  packetcount1  (packetcount)  <- sampler1\n"
    )
    picture = tmp_path / "flows.svg"
    ffpf("draw", *SHARED, "-o", str(picture))
    frames = ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}rect[@rx]")
    assert [frame.get("stroke-width") for frame in frames] == ["3", "3", "1", "1", "1"]
    assert "sampler1  [shared by 2 flows: 1, 2]" in picture.read_text()


def test_draw_hides_keys() -> None:
    key = "00112233445566778899aabbccddeeff"
    shown = ffpf("draw", f'(device,eth0) -> (anonymise,"key={key}") -> (grab)').stdout
    assert key not in shown
    assert "(anonymise,key=hidden)" in shown


@pytest.mark.root
def test_run_shows_what_is_shared_and_counted(network: Network) -> None:
    expressions = [
        "(device,tap0) -> (sampler,2) -> (histogram as sizes,size)",
        "(device,tap0) -> (sampler,2) -> (classify,dport) -80-> (packetcount as web) | -*-> (packetcount as rest)",
    ]
    with traffic(network):
        done = ffpf("run", *expressions, "--duration", "0.5", "--json", network=network)
        shown = ffpf("run", *expressions, "--duration", "0.5", network=network).stderr
    first, second = json.loads(done.stdout)["flows"]
    for flow in (first, second):
        by_id = {node["id"]: node for node in flow["nodes"]}
        assert by_id["sampler1"]["shared"] is True
        assert flow["ledger"]["seen"] == sum(count for fate, count in flow["ledger"].items() if fate != "seen")
    (bin_,) = first["nodes"][-1]["bins"]
    assert bin_[:2] == [64, 127]
    assert bin_[2] == first["ledger"]["counted"] > 50
    assert second["ledger"]["counted"] > 50
    assert re.search(r"sampler1 +sampler 2 +\d[\d,]* +[\d,]+ +shared\n", shown)
    assert re.search(r"\n +64\.\.127  [\d,]+  #{30}\n", shown)


@pytest.mark.root
def test_stats_every_second_as_json_lines(network: Network) -> None:
    with traffic(network):
        done = ffpf("run", *SHARED, "--duration", "2.5", "--stats", "--json", network=network)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 3
    seen = [[flow["ledger"]["seen"] for flow in line["flows"]] for line in lines]
    assert seen == sorted(seen)
    assert [flow["state"] for line in lines for flow in line["flows"]] == ["active"] * 4 + ["closed"] * 2
    assert all(
        node["shared"]
        for line in lines
        for flow in line["flows"]
        for node in flow["nodes"]
        if node["class"] == "sampler"
    )


@pytest.mark.root
def test_stats_on_a_terminal_and_in_a_file(network: Network) -> None:
    with traffic(network):
        plain = ffpf("run", SHARED[1], "--duration", "1.5", "--stats", network=network).stderr
        ours, theirs = pty.openpty()
        command = network.command(FFPF, "run", SHARED[1], "--duration", "2.5", "--stats")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
            os.close(theirs)
            drawn, until_s = b"", time.monotonic() + 20
            while time.monotonic() < until_s:
                if select.select([ours], [], [], 0.1)[0]:
                    try:
                        drawn += os.read(ours, 65_536)
                    except OSError:  # the other end is gone
                        break
            assert process.wait() == 0
        os.close(ours)
    assert plain.count("\n  node ") == 2
    assert "\x1b" not in plain
    # Each table takes the place of the one before, and the last one stays.
    assert drawn.count(b"\x1b[6A") >= 1
    assert drawn.rstrip().endswith(b"counted")


@pytest.mark.root
def test_a_callback_is_pythons(network: Network) -> None:
    done = ffpf("run", "(device,tap0) -> (callback,web)", code=2, network=network)
    assert "ffpf: (callback): nobody gave the function `web`" in done.stderr
