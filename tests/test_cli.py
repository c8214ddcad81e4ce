"""The command line as a user meets it: outputs, exit codes, and every error's text."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.network import Network, udp
from tests.test_files import written

FFPF = str(Path(sys.executable).parent / "ffpf")
GRAPH = '(device,tap0) -> (bpf,"udp port 80") -> (bytecount as web) -> (grab,snaplen=64)'


def ffpf(
    *words: str, network: Network | None = None, code: int = 0, **options: object
) -> subprocess.CompletedProcess[str]:
    command = [FFPF, *words] if network is None else network.command(FFPF, *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done  # type: ignore[no-any-return]


@contextmanager
def traffic(network: Network) -> Iterator[None]:
    """To ports 80 and 81 in turn, all the time."""
    done = threading.Event()

    def send() -> None:
        with network.sender() as raw:
            while not done.is_set():
                raw.send(udp(80))
                raw.send(udp(81))
                time.sleep(0.0005)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# Without root.


def test_help_lists_the_commands() -> None:
    shown = ffpf("--help").stdout
    for command in ("grab", "run", "read", "check", "compile", "draw", "doctor"):
        assert f"\n  {command} " in shown
        assert ffpf(command, "--help").stdout.startswith(f"Usage: ffpf {command}")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["check", "(device,lo) -> (bfp,x)"], 2, "ffpf: line 1, column 17: unknown node class `bfp`\n    (device,lo) -> (bfp,x)\n                    ^\nhelp: did you mean `bpf`?\n"),
        (["check", "(device,lo) -> (bpf,host exmaple)"], 2, "ffpf: (bpf): unknown host `exmaple`\nhelp: filters take addresses, not names; keywords are those of pcap-filter(7)\n"),
        (["check", "(device,lo) -> (bpf,tcp port)"], 2, "ffpf: (bpf): syntax error in `tcp port`\nhelp: the language is tcpdump's; see pcap-filter(7)\n"),
        (["check", "@/nonexistent"], 2, "ffpf: /nonexistent: cannot read: no such file or directory\nhelp: `@FILE` names a file with a flow expression\n"),
        (["check", "(device,lo)", "--buffer", "4XB"], 2, "ffpf: --buffer: `4XB` is not a size\nhelp: write 4MiB, 512KiB or a number of bytes\n"),
        (["check", "(device,lo)", "--buffer", "1"], 2, "ffpf: a buffer of 1 bytes\nhelp: between 4 KiB and 1 GiB for each CPU\n"),
        (["check", "(device,lo)", "--buffer", "500p"], 2, "ffpf: a buffer of 500 packets, of whatever length\nhelp: state a snaplen, or the buffer in bytes\n"),
        (["check", "(device,lo) -> (grab,snaplen=96)", "--buffer", "0 packets"], 2, "ffpf: a buffer of 0 packets\nhelp: one or more, for each CPU\n"),
        (["check", "(device,lo) -> (grab,snaplen=96)", "--buffer", "99999999p"], 2, "ffpf: a buffer of 17179869184 bytes\nhelp: between 4 KiB and 1 GiB for each CPU\n"),
        (["check", "(device,lo)", "--as", "nobody-at-all"], 2, "ffpf: unknown user `nobody-at-all`"),
        (["check", "(device,lo)", "--policies", "/nonexistent"], 3, "ffpf: /nonexistent: cannot be read: no such file or directory"),
        (["compile", "(device,lo)", "--emit", "object"], 2, "ffpf: an object is not text\nhelp: name a file: `-o flow.o`\n"),
        (["compile", "(device,lo)", "--emit", "object", "-o", "/nonexistent/x"], 1, "ffpf: /nonexistent/x: cannot write: no such file or directory\nhelp: name another file\n"),
        (["draw", "(device,lo)", "-o", "/nonexistent/x.svg"], 1, "ffpf: /nonexistent/x.svg: cannot write"),
        (["grab", "-i", "lo", "-C", "10"], 2, "ffpf: -C, -G, -W: no file to follow with another\nhelp: name it with `-w FILE`\n"),
        (["grab", "-i", "lo", "-w", "x", "-C", "ten"], 2, "ffpf: -C: `ten` is not a size\n"),
        (["grab", "-i", "lo", "-w", "x", "-W", "3"], 2, "ffpf: -W: a number of files of what size?\nhelp: add `-C SIZE` or `-G SECONDS`\n"),
        (["read", "/nonexistent"], 1, "ffpf: /nonexistent: cannot open: no such file or directory\nhelp: name a pcap or pcapng file\n"),
        (["read", sys.executable], 1, f"ffpf: {sys.executable}: no pcap or pcapng file\n"),
        (["run", "(device,lo)", "-r", "/nonexistent"], 1, "ffpf: /nonexistent: cannot open: no such file or directory\n"),
        (["draw", ""], 2, "ffpf: line 1, column 1: the expression is empty"),
    ],
)  # fmt: skip
def test_errors_without_root(words: list[str], code: int, message: str) -> None:
    assert ffpf(*words, code=code).stderr.startswith(message)


def test_read_prints_what_tcpdump_prints(tmp_path: Path) -> None:
    file = written(tmp_path / "x.pcapng", [udp(80 + n % 3) for n in range(100)])
    done = ffpf("read", str(file), "udp port 80 or udp port 81")
    theirs = subprocess.run(
        ["tcpdump", "-nr", file, "udp port 80 or udp port 81"], capture_output=True, text=True, check=True
    )
    ours = [line.split(" IP ")[1] for line in done.stdout.splitlines()]
    assert ours == [line.split(" IP ")[1] for line in theirs.stdout.splitlines()]
    assert done.stderr == "67 of 100 packets printed\n"
    assert len(ffpf("read", str(file), "-c", "7").stdout.splitlines()) == 7
    file.write_bytes(file.read_bytes()[:-200])
    assert "ends within a packet: it was cut short" in ffpf("read", str(file)).stderr
    shown = subprocess.run(f"{FFPF} read {file} | head -1", shell=True, capture_output=True, text=True, check=True)
    assert len(shown.stdout.splitlines()) == 1 and "Traceback" not in shown.stderr


def test_run_on_a_file(tmp_path: Path) -> None:
    file, out = written(tmp_path / "x.pcapng", [udp(80 + n % 2) for n in range(1000)]), tmp_path / "out.pcapng.zst"
    expressions = [
        '(device,eth0) -> (bpf,"udp port 80") -> (grab,snaplen=60)',
        "(device,eth0) -> (sampler,10) -> (packetcount)",
    ]
    done = ffpf("run", *expressions, "-r", str(file), "-w", str(out), "--json", "--policies", "/nonexistent")
    flows = json.loads(done.stdout)["flows"]
    assert [flow["ledger"]["seen"] for flow in flows] == [1000, 1000]
    assert flows[0]["ledger"]["delivered"] == 500 and flows[1]["nodes"][2]["packets"] == 100
    assert flows[0]["taps"] == [{"tap": "eth0", "mode": "file"}]
    assert len(ffpf("read", str(out)).stdout.splitlines()) == 500
    shown = ffpf("run", expressions[0], "-r", str(file), "-p", "-c", "3")
    assert len(shown.stdout.splitlines()) == 3
    assert "flow1 on eth0 (file)" in shown.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["grab"],
        ["run"],
        ["grabb"],
        ["compile", "(device,lo)", "--emit", "wish"],
        ["grab", "-i", "lo", "-s", "70000"],
        ["grab", "-i", "lo", "-c", "0"],
    ],
)
def test_usage_errors(words: list[str]) -> None:
    done = ffpf(*words, code=2)
    assert "Usage: ffpf" in done.stderr + done.stdout


def test_compile_shows_every_form(tmp_path: Path) -> None:
    assert "web  (bytecount as web)" in ffpf("compile", GRAPH, "--emit", "graph").stdout
    assert "(000) 0x0028" in ffpf("compile", GRAPH, "--emit", "bpf").stdout
    assert "define" in ffpf("compile", GRAPH, "--emit", "ir").stdout
    assembly = ffpf("compile", GRAPH, "--emit", "asm").stdout
    assert "call 12" in assembly
    assert "ffpf_flow_0 ll" in assembly
    assert ffpf("compile", GRAPH, "--emit", "asm", "-o", str(tmp_path / "flow.s")).stdout == ""
    assert (tmp_path / "flow.s").read_text() == assembly
    shown = ffpf("compile", GRAPH, "--emit", "object", "-o", str(tmp_path / "flow.o")).stderr
    assert "ffpf_segment" in shown
    assert (tmp_path / "flow.o").read_bytes()[:4] == b"\x7fELF"
    assert (tmp_path / "flow.o.deliver").read_bytes()[:4] == b"\x7fELF"


def test_draw_as_text_and_as_a_picture(tmp_path: Path) -> None:
    text = ffpf("draw", "(device,a) | (device,b) -> !(bpf,udp) & (sampler,2)").stdout
    assert text == (
        "any of\n  | device1  (device,a)\n  |\n  | device2  (device,b)\n  v\nall of\n  | not\n  |   ! bpf1  (bpf,udp)\n"
        "  |\n  | sampler1  (sampler,2)\n  v\ngrab1  (grab)\n"
    )
    ffpf("draw", GRAPH, "-o", str(tmp_path / "graph.svg"))
    picture = (tmp_path / "graph.svg").read_text()
    assert picture.startswith("<svg")
    assert "(bpf,&quot;udp port 80&quot;)" in picture


def test_check_says_yes_no_and_json(tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir(mode=0o755)
    (policies / "one.toml").write_text(
        '[[rule]]\nname = "counting"\nsubjects = ["*"]\ntaps = ["lo@xdp"]\nclasses = ["bpf", "packetcount"]\nallow = "everything"\n'
    )
    accepted = ffpf("check", "(device,lo) -> (packetcount)", "--policies", str(policies)).stdout
    assert "ACCEPTED by rule counting" in accepted
    rejected = ffpf("check", "(device,lo)", "--policies", str(policies), code=3).stdout
    assert "REJECTED" in rejected
    document = json.loads(ffpf("check", "(device,lo)", "--policies", str(policies), "--json", code=3).stdout)
    assert document["decision"] == "rejected"
    assert {"rule", "kind", "path", "result", "ms", "evidence"} <= set(document["obligations"][0])
    both = json.loads(
        ffpf(
            "check", "(device,lo)", "(device,lo) -> (packetcount)", "--policies", str(policies), "--json", code=3
        ).stdout
    )
    assert [one["decision"] for one in both] == ["rejected", "accepted"]


# With root.

root = pytest.mark.root


@root
def test_grab_prints_packets_like_tcpdump(network: Network) -> None:
    with traffic(network):
        done = ffpf("grab", "-i", "tap0", "-c", "3", "udp", "port", "80", network=network)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.endswith("tap0 IP 10.77.0.2.1234 > 10.77.0.9.80: UDP, length 32") for line in lines)
    assert "flow1 on tap0 (native)" in done.stderr
    assert " seen = " in done.stderr


@root
def test_grab_writes_what_tshark_reads(network: Network, tmp_path: Path) -> None:
    file = tmp_path / "grab.pcapng"
    with traffic(network):
        done = ffpf(
            "grab",
            "-i",
            "tap0",
            "-w",
            str(file),
            "-s",
            "60",
            "--duration",
            "0.7",
            "--json",
            "udp port 80",
            network=network,
        )
    flow = json.loads(done.stdout)["flows"][0]
    ledger = flow["ledger"]
    assert ledger["seen"] == sum(ledger.values()) - ledger["seen"] > 100
    assert ledger["delivered"] == ledger["filtered"] or abs(ledger["delivered"] - ledger["filtered"]) == 1
    fields = [
        "-T",
        "fields",
        "-e",
        "frame.len",
        "-e",
        "frame.cap_len",
        "-e",
        "udp.dstport",
        "-e",
        "frame.interface_name",
    ]
    read = subprocess.run(["tshark", "-r", file, *fields], capture_output=True, text=True, check=True).stdout
    assert read.splitlines() == ["74\t60\t80\ttap0"] * ledger["delivered"]
    shown = subprocess.run(["capinfos", file], capture_output=True, text=True, check=True).stdout
    assert '(device,tap0) -> (bpf,"udp port 80") -> (grab,snaplen=60)' in shown


@root
def test_grab_to_a_pipe(network: Network) -> None:
    with traffic(network):
        with subprocess.Popen(
            network.command(FFPF, "grab", "-i", "tap0", "-w", "-", "-c", "50"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as grab:
            read = subprocess.run(["tshark", "-r", "-"], stdin=grab.stdout, capture_output=True, text=True, check=True)
            assert grab.stderr is not None
            assert b" packets written to standard output" in grab.stderr.read()
        assert grab.returncode == 0
    assert len(read.stdout.splitlines()) == 50


@root
def test_grab_to_many_files(network: Network, tmp_path: Path) -> None:
    with traffic(network):
        by_size = ["-w", str(tmp_path / "x.pcapng"), "-C", "16k", "-W", "12", "-c", "1000"]
        shown = ffpf("grab", "-i", "tap0", "-s", "60", *by_size, network=network).stderr
        by_time = ["-w", str(tmp_path / "y%s.pcapng.zst"), "-G", "1", "-W", "2"]
        shown += ffpf("grab", "-i", "tap0", "-s", "60", *by_time, network=network).stderr
    assert f"packets written to 8 files, the last of them {tmp_path}/x.pcapng07" in shown
    assert "packets written to 2 files, the last of them" in shown
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[:8] == [f"x.pcapng{number:02}" for number in range(8)]
    assert len(names) == 10
    read = [subprocess.run(["tshark", "-r", tmp_path / name], capture_output=True, check=True) for name in names]
    counts = [len(each.stdout.splitlines()) for each in read]
    assert sum(counts[:8]) == 1000
    assert f"{sum(counts[8:]):,} packets written" in shown or f"{sum(counts[8:]):,} of " in shown


@root
def test_a_slow_reader_of_a_pipe_costs_packets_that_are_counted(network: Network, tmp_path: Path) -> None:
    file = tmp_path / "x.pcapng"
    words = ["grab", "-i", "tap0", "-w", "-", "-s", "60", "--buffer", "8KiB", "--duration", "3"]
    with (
        traffic(network),
        subprocess.Popen(network.command(FFPF, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as grab,
    ):
        assert grab.stdout is not None and grab.stderr is not None
        time.sleep(4)
        file.write_bytes(grab.stdout.read())
        shown = grab.stderr.read().decode()
        assert grab.wait() == 0
    delivered = int(shown.split(" packets written to standard output")[0].splitlines()[-1].replace(",", ""))
    lost = int(shown.split(" ring full")[0].rpartition(" + ")[2].replace(",", ""))
    assert f"{delivered:,} delivered + {lost:,} ring full" in shown
    assert f"{lost:,} packets lost, because what they were written to was too slow" in shown
    read = subprocess.run(["capinfos", "-c", "-M", file], capture_output=True, text=True, check=True).stdout
    assert f"Number of packets:   {delivered}" in read


@root
def test_a_reader_that_has_seen_enough_ends_the_grab(network: Network) -> None:
    with (
        traffic(network),
        subprocess.Popen(
            network.command(FFPF, "grab", "-i", "tap0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as grab,
    ):
        assert grab.stdout is not None
        grab.stdout.readline()
        grab.stdout.close()
        assert grab.wait(10) == 0
        assert grab.stderr is not None
        assert b" seen = " in grab.stderr.read()


@root
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_cleanly_with_the_ledger(network: Network, tmp_path: Path, number: int, code: int) -> None:
    file = tmp_path / "grab.pcapng"
    with traffic(network):
        grab = subprocess.Popen(
            network.command(FFPF, "grab", "-i", "tap0", "-w", str(file)), stderr=subprocess.PIPE, text=True
        )
        while not file.exists() or file.stat().st_size < 10_000:
            time.sleep(0.02)
        grab.send_signal(number)
        _, shown = grab.communicate(timeout=20)
    assert grab.returncode == code
    assert "Traceback" not in shown
    delivered = int(shown.split(" packets written")[0].splitlines()[-1].replace(",", ""))
    assert f"{delivered:,} delivered" in shown
    read = subprocess.run(["capinfos", "-c", "-M", file], capture_output=True, text=True, check=True).stdout
    assert f"Number of packets:   {delivered}" in read


@root
def test_progress_on_a_terminal(network: Network, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with traffic(network):
        grab = subprocess.Popen(
            network.command(FFPF, "grab", "-i", "tap0", "-w", str(tmp_path / "x.pcapng"), "--duration", "1.5"),
            stderr=theirs,
        )
        assert grab.wait(20) == 0
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 0.2)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert b" grabbed, 0 lost (Ctrl-C ends)" in shown


@root
def test_run_several_expressions(network: Network, tmp_path: Path) -> None:
    file, expression = tmp_path / "run.pcapng", tmp_path / "flow.ffpf"
    expression.write_text('(device,tap0) ->\n  (bpf,"udp port 81")\n  -> (grab,snaplen=48)\n')
    with traffic(network):
        done = ffpf(
            "run",
            GRAPH,
            f"@{expression}",
            "(device,tap0) -> (sampler,3) -> (packetcount)",
            "-w",
            str(file),
            "--duration",
            "0.7",
            "--json",
            network=network,
        )
    flows = json.loads(done.stdout)["flows"]
    assert [flow["flow"] for flow in flows] == ["flow1", "flow2", "flow3"]
    for flow in flows:
        assert flow["ledger"]["seen"] == sum(flow["ledger"].values()) - flow["ledger"]["seen"] > 0
        assert flow["taps"] == [{"tap": "tap0", "mode": "native"}]
    web = next(node for node in flows[0]["nodes"] if node["id"] == "web")
    assert web["bytes"] == web["in"] * 74
    read = subprocess.run(
        ["tshark", "-r", file, "-T", "fields", "-e", "frame.interface_id", "-e", "udp.dstport", "-e", "frame.cap_len"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert set(read.splitlines()) == {"0\t80\t64", "1\t81\t48"}
    assert len(read.splitlines()) == flows[0]["ledger"]["delivered"] + flows[1]["ledger"]["delivered"]


@root
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["grab", "-i", "tap7"], 4, "ffpf: no interface `tap7`\nhelp: did you mean `tap0`?\n"),
        (["grab", "-i", "tap0", "--pace", "rapid"], 2, "ffpf: no pace is `rapid`\nhelp: it is `slow` or `fast`\n"),
        (["grab", "-i", "tap0@xpd"], 2, "ffpf: (device): unknown hook `xpd`\nhelp: one of xdp, tc-ingress, tc-egress, as in `eth0@xdp`\n"),
        (["grab", "-i", "tap0", "-w", "/nonexistent/x"], 1, "ffpf: /nonexistent/x: cannot open: no such file or directory\nhelp: make the directory first: `mkdir -p /nonexistent`\n"),
        (["grab", "-i", "tap0", "-w", "/dev/full"], 1, "ffpf: /dev/full: cannot write: no space left on device\nhelp: free some space or write elsewhere; what was written is whole: 0 packets\n"),
        (["run", "(device,tap0)", "(device,tap0) -> (bpf,x y)"], 2, "ffpf: (bpf): unknown host `x`"),
    ],
)  # fmt: skip
def test_errors_with_root(network: Network, words: list[str], code: int, message: str) -> None:
    shown = ffpf(*words, network=network, code=code).stderr
    assert message in shown


@root
def test_a_full_disk_leaves_whole_packets(network: Network, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "ffpf-test", tmp_path], check=True)
    try:
        with traffic(network):
            shown = ffpf("grab", "-i", "tap0", "-w", str(tmp_path / "x.pcapng"), network=network, code=1).stderr
        assert "cannot write: no space left on device" in shown
        packets = int(shown.split("whole: ")[1].split()[0])
        read = subprocess.run(
            ["capinfos", "-c", "-M", tmp_path / "x.pcapng"], capture_output=True, text=True, check=True
        ).stdout
        assert f"Number of packets:   {packets}" in read
        assert packets > 10
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@root
def test_without_privileges(network: Network) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        network.command(*nobody, FFPF, "grab", "-i", "tap0"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr == (
        "ffpf: rejected by policy\n    no policy allows user `nobody`: no policy directory\n"
        "help: run as root, or name a directory of policies that allow it (`--policies`)\n"
    )
    with tempfile.TemporaryDirectory() as readable:
        Path(readable).chmod(0o755)
        (Path(readable) / "nobody.toml").write_text(
            '[[rule]]\nname = "nobody"\nsubjects = ["user:nobody"]\ntaps = ["tap*"]\nclasses = ["*"]\nallow = "everything"\n'
        )
        command = network.command(*nobody, FFPF, "grab", "-i", "tap0", "--policies", readable)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "operation not permitted" in done.stderr
    assert "help: this process lacks CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON; run as root, or with" in done.stderr
    doctor = subprocess.run(network.command(*nobody, FFPF, "doctor"), capture_output=True, text=True, check=False)
    assert doctor.returncode == 4
    assert "uid 65534 lacks CAP_BPF, which makes maps and loads programs; CAP_NET_ADMIN, which" in doctor.stdout


@root
def test_a_policy_rejects_with_its_reasons(network: Network, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(
        '[[rule]]\nname = "counting"\nsubjects = ["*"]\ntaps = ["tap*"]\nclasses = ["bpf", "packetcount"]\nallow = "everything"\n'
    )
    tmp_path.chmod(0o755)
    shown = ffpf("grab", "-i", "tap0", "--policies", str(tmp_path), network=network, code=3).stderr
    assert shown.startswith("ffpf: rejected by policy\n")
    assert "counting" in shown
    assert "grab" in shown
    accepted = ffpf(
        "run", "(device,tap0) -> (packetcount)", "--policies", str(tmp_path), "--duration", "0.1", network=network
    )
    assert "0 seen" in accepted.stderr


@root
def test_a_second_process_on_the_same_tap_is_told_who_holds_it(network: Network) -> None:
    first = subprocess.Popen(
        network.command(FFPF, "run", "(device,tap0) -> (packetcount)"), stderr=subprocess.PIPE, text=True
    )
    try:
        assert first.stderr is not None
        first.stderr.readline()
        time.sleep(0.3)
        shown = ffpf("grab", "-i", "tap0", network=network, code=4).stderr
        assert (
            f"ffpf: tap0@xdp: process {first.pid} grabs from this interface already\nhelp: give that process" in shown
        )
    finally:
        first.send_signal(signal.SIGINT)
        assert first.wait(10) == 130
        first.stderr.close()


@root
def test_doctor_finds_everything_here(network: Network) -> None:
    shown = ffpf("doctor", network=network).stdout
    assert "FAIL" not in shown
    findings = json.loads(ffpf("doctor", "--json", network=network).stdout)
    assert {"name": "interface tap0", "works": True, "seen": "free at XDP", "mend": "", "needed": True} in findings


@root
def test_generic_mode_is_told(network: Network) -> None:
    run = network.command(FFPF, "run", "(device,lo) -> (packetcount)", "--duration", "0.2")
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "lo: attached in generic mode, which is slower; native: " in done.stderr


def test_frames_of_a_large_mtu() -> None:
    from tests.network import two_namespaces

    frame = udp(80, b"j" * 8000)
    with two_namespaces("jumbo", mtu=9000) as network:
        grab = subprocess.Popen(
            network.command(FFPF, "grab", "-i", "tap0", "-c", "1", "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with network.sender() as raw:
            while grab.poll() is None:
                raw.send(frame)
                time.sleep(0.05)
        stdout, stderr = grab.communicate()
    assert "generic" not in stderr
    flow = json.loads(stdout)["flows"][0]
    assert flow["taps"][0]["mode"] == "native"
    assert flow["ledger"]["delivered"] >= 1


def test_closed_standard_streams() -> None:
    for closing in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"exec {FFPF} draw '(device,lo)' {closing}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0
        assert "Traceback" not in done.stderr


@root
def test_a_deleted_interface_ends_the_grab_with_its_ledger(network: Network) -> None:
    with network.enter():
        subprocess.run(["ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1"], check=True)
    grab = subprocess.Popen(
        network.command(FFPF, "grab", "-i", "gone0"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert grab.stderr is not None
    grab.stderr.readline()
    time.sleep(0.3)
    with network.enter():
        subprocess.run(["ip", "link", "del", "gone0"], check=True)
    shown = grab.communicate(timeout=15)[1]
    assert grab.returncode == 4
    assert " seen = " in shown
    assert "ffpf: gone0: the interface is gone\nhelp: " in shown


def test_version() -> None:
    from importlib import metadata

    assert ffpf("--version").stdout == f"ffpf {metadata.version('ffpf_bpf')}\n"


def test_the_command_line_starts_without_what_few_commands_need() -> None:
    program = (
        "import sys, ffpf_bpf.cli; print([name for name in ('pydantic', 'dpkt', 'z3', 'bcc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
