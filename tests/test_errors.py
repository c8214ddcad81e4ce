"""Errors of the kernel side in words: the verifier's, an old kernel's, a missing library's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import llvmlite.binding as llvm
import pytest

from ffpf_bpf import compiler
from ffpf_bpf.compiler import emit
from ffpf_bpf.errors import ExpressionError, FfpfError, KernelError, VerifierError
from ffpf_bpf.flow import Flow, chains
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.effect import Primitive
from ffpf_bpf.graph.expression import Node, Role, nodes
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.kernel import calls, privileges
from tests.network import Network
from tests.segment import loaded

CARELESS = r"""
#include "ffpf.h"
FFPF_PRIMITIVE int ffpf_careless(const struct ffpf_packet *packet, void *mbuf)
{
	return *(__u8 *)(packet->data + 30) == 7; /* no look at packet->end */
}
"""


@dataclass(frozen=True, slots=True)
class Careless(Node):
    """A node class whose primitive the verifier must refuse."""

    class_name: ClassVar[str] = "careless"
    role: ClassVar[Role] = Role.DECIDES
    function: str = "ffpf_careless"

    @property
    def effect(self) -> Primitive:
        return Primitive("careless", self.function)


@pytest.fixture
def careless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    clang = next(filter(None, (shutil.which(f"clang-{version}") for version in (19, 18, 17, 16))))
    for file in emit.BITCODE.glob("*.bc"):
        shutil.copy(file, tmp_path)
    (tmp_path / "careless.c").write_text(CARELESS)
    includes = [
        "-I",
        "bpf_src",
        "-I",
        f"/usr/include/{subprocess.check_output(['uname', '-m'], text=True).strip()}-linux-gnu",
    ]
    subprocess.run(
        [clang, "-O2", "-target", "bpf", "-mcpu=v3", *includes, "-emit-llvm", "-c", tmp_path / "careless.c", "-o",
         tmp_path / "careless.bc"],
        check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    monkeypatch.setattr(emit, "BITCODE", tmp_path)
    emit._bitcode.cache_clear()
    yield
    emit._bitcode.cache_clear()


@pytest.mark.root
@pytest.mark.usefixtures("careless")
def test_the_verifiers_refusal_names_the_node_and_shows_its_last_lines(network: Network) -> None:
    expression = Device("tap0") >> (Bpf("udp") | Careless(name="guess")) >> Bpf("port 53")
    with network.enter(), Flow.create() as flow:
        flow.populate(expression)
        with pytest.raises(VerifierError) as error:
            flow.instantiate()
    text = str(error.value)
    assert text.startswith("node `guess`: the verifier refused the program\n")
    assert "lines omitted)" in text
    assert "invalid access to packet, off=30 size=1" in text
    assert "help: this is a defect of the compiler" in text
    assert len(text.splitlines()) < 14
    assert len(error.value.log) > len(text)


@pytest.mark.parametrize(
    ("log", "missing"),
    [
        ("41: (85) call unknown#189\ninvalid func unknown#189", "helper `unknown`"),
        ("7: (db) r1 = atomic64_fetch_add\nBPF_STX uses reserved fields", "atomic operations that give a result"),
    ],
)
def test_an_old_kernel_is_named_by_what_it_lacks(log: str, missing: str) -> None:
    refusal = VerifierError("the verifier refused it", log=log, errno=22)
    error = chains._explained(refusal, (), "tap0")
    assert str(error).startswith(f"tap0@xdp: this kernel has no {missing}\nhelp: `ffpf doctor` tells")


def test_bcc_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.library.cache_clear()
    monkeypatch.setitem(sys.modules, "bcc.libbcc", None)
    with pytest.raises(FfpfError, match="bcc's Python library is missing") as error:
        calls.library()
    assert "apt-get install python3-bpfcc" in error.value.help
    calls.library.cache_clear()


def test_libpcap_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ffpf_bpf.compiler import pcap

    pcap._library.cache_clear()
    monkeypatch.setattr(pcap, "find_library", lambda _: "libpcap-that-is-not-there.so")
    with pytest.raises(FfpfError, match="libpcap is missing\nhelp: run `apt-get install libpcap0.8`"):
        compiler.compile_predicates(Flow.create().populate("(device,lo)").definition.graph) or pcap.compile_filter(
            "udp"
        )
    pcap._library.cache_clear()


def test_primitives_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emit._bitcode.cache_clear()
    monkeypatch.setattr(emit, "BITCODE", tmp_path)
    with pytest.raises(FfpfError, match="the kernel part `entry` is not built\nhelp: run `make build`"):
        compiler._compile_entry.__wrapped__(7, compiler.XDP)
    emit._bitcode.cache_clear()


@pytest.mark.parametrize(
    "assembly", ['call void asm sideeffect "r1 = 0", ""()', 'call void asm "r1 = 0", "~{memory}"()']
)
def test_inline_assembly_in_a_primitive(assembly: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function = f'define void @ffpf_slow() {{ call void asm sideeffect "", ""()\n{assembly}\nret void }}'
    (tmp_path / "slow.bc").write_bytes(llvm.parse_assembly(function).as_bitcode())
    monkeypatch.setattr(emit, "BITCODE", tmp_path)
    with pytest.raises(
        FfpfError, match="^bpf_src/slow.c: inline assembly `r1 = 0`\nhelp: write it in C; an empty `asm`"
    ):
        emit.link("", {"slow"}, ())


@pytest.mark.parametrize("number", [1, 13])
@pytest.mark.parametrize(
    ("lacking", "inside", "help"),
    [
        (
            ["CAP_BPF", "CAP_PERFMON"],
            False,
            "this process lacks CAP_BPF, CAP_PERFMON; run as root, or with CAP_BPF, CAP",
        ),
        ([], True, "this process is in a user namespace, whose capabilities do not count for BPF"),
        ([], False, "it has the capabilities: a security module or a seccomp filter forbids it"),
    ],
)
def test_no_privilege(
    monkeypatch: pytest.MonkeyPatch, number: int, lacking: list[str], inside: bool, help: str
) -> None:
    monkeypatch.setattr(privileges, "missing", lambda *_: lacking)
    monkeypatch.setattr(privileges, "in_user_namespace", lambda *_: inside)
    monkeypatch.setattr(privileges, "has_memlock", lambda: False)
    with pytest.raises(KernelError) as error:
        calls._checked(-number, "cannot load")
    assert error.value.help.startswith(help)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(bpf,udp)", "(bpf): a path begins without a device\nhelp: put `(device,NAME) ->` before `(bpf)`"),
        ("(device,a) | (bpf,udp)", "(bpf): a path begins without a device\nhelp: put `(device,NAME) ->` before `(bpf)`"),
        ("!(bpf,udp)", "a path begins without a device\nhelp: put `(device,NAME) ->` before `!`"),
        ("(device,a) -> (device,b)", "(device): `b` stands behind another node\nhelp: devices come first: `(device,eth0) | (device,eth1) -> ...`"),
        ("(device,a) -> !(bytecount)", "(bytecount): `!` stands before `(bytecount)`, which does not decide\nhelp: `!` takes filters only, as in `!(bpf,udp)`"),
        ("(device,a) -> !((bpf,udp) -> (grab))", "(grab): `!` stands before `(grab)`, which does not decide\nhelp: `!` takes filters only, as in `!(bpf,udp)`"),
        ("(device,a) -> (grab) -> (bpf,udp)", "(bpf): something follows a sink\nhelp: a sink such as `(grab)` ends its path; branch before it with `|`"),
        ("(device,a) -> (bpf,udp) & (grab)", "`&` holds a sink, which passes nothing on\nhelp: put the sink behind: `a & b -> (grab)`"),
        ("(device,a) -> (bpf as x,udp) -> (bytecount as x)", "(bytecount as x): two nodes are called `x`\nhelp: give each node its own name"),
        ("(device,a) -> (sampler,0)", None),
        ("(device,a) -> (grab,snaplen=65536)", None),
    ],
)  # fmt: skip
def test_graphs_that_cannot_be(expression: str, message: str | None) -> None:
    with pytest.raises(ExpressionError) as error:
        Flow.create().populate(expression)
    if message is not None:
        assert str(error.value) == message
    assert error.value.help


def test_a_cycle_made_by_hand_is_refused() -> None:
    from dataclasses import replace

    from ffpf_bpf.graph.builder import build
    from ffpf_bpf.graph.graph import Leaf, check

    graph = build(Device("lo") >> Bpf("udp") >> Bpf("port 53"))
    first, second, *rest = graph.steps
    assert isinstance(second, Leaf)
    with pytest.raises(ExpressionError, match="bpf1: the graph has a cycle"):
        check(replace(graph, steps=(first, Leaf(second.node, 2), *rest)))


def test_deep_nesting_is_quick_and_refused_beyond_the_limit() -> None:
    deep = "(bpf,udp)"
    for _ in range(45):
        deep = f"((bpf,tcp) -> ({deep} | ((bpf,ip) -> (bytecount))) | (bpf,ip6))"
    flow = Flow.create().populate(f"(device,lo) -> {deep}")
    assert len(flow.definition.graph.steps) > 150
    with pytest.raises(ExpressionError, match="nested too deeply"):
        Flow.create().populate("(device,lo) -> " + "(" * 101 + "(bpf,udp)" + ")" * 101)
    value = Bpf("udp") | Bpf("tcp")
    for _ in range(5000):
        value = ~value & Bpf("ip") | Bpf("tcp")
    with pytest.raises(ExpressionError, match="nested too deeply|nodes in one flow"):
        Flow.create().populate(Device("lo") >> value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(device,lo))", "unexpected `)`"),
        ("(bpf asweb)", "unexpected `a`"),
        ("(sampler," + "9" * 5000 + ")", "is not a number of packets"),
        ("(grab," + "9" * 5000 + ")", "is not a snaplen"),
        ("(bytecount,," + "9" * 5000 + ")", "is not a number of bytes"),
        ("(sampler)", "no number of packets"),
        ("(bpf,\udcff)", "not valid UTF-8 text"),
        ('(bpf,"a\x1b[31m" z)', "unexpected `z`"),
        ("(device,a) & (device,b)", "`&` joins two devices, and no packet arrives at both"),
    ],
)
def test_odd_texts_end_in_a_message(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        Flow.create().populate(text)
    shown = str(error.value)
    assert message in shown
    assert error.value.help
    assert "expected \n" not in shown
    assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("text", "help"),
    [
        ("(bpf,a) || (bpf,b)", "write `|` instead of `||`"),
        ("(bpf,a) && (bpf,b)", "write `&` instead of `&&`"),
        ("(bpf,a) or (bpf,b)", "write `|` instead of `or`"),
        ("(bpf,a)AND(bpf,b)", "write `&` instead of `AND`"),
        ("(bpf,a) -> not (bpf,b)", "write `!` instead of `not`"),
        ("(bpf,a) -> notes", "expected `!` or `(`"),
        ("(bpf,a) -> | (bpf,b)", "expected `!` or `(`"),
        ("(bpf,a) &", "expected `!` or `(`"),
    ],
)
def test_signs_of_other_languages(text: str, help: str) -> None:
    with pytest.raises(ExpressionError) as error:
        parse(text)
    assert error.value.help == help


def test_the_sink_that_is_too_many_is_named() -> None:
    sinks = " | ".join(f"(grab as g{number},snaplen={60 + number})" for number in range(65))
    with pytest.raises(FfpfError, match="over 64 sinks") as error, loaded(f"(device,tap0) -> {sinks}"):
        pass
    assert error.value.where == "node `g64`"


def test_names_are_those_of_the_grammar() -> None:
    for name in ("1a", "-", "a b", "é"):
        with pytest.raises(ExpressionError, match="is not a name"):
            Bpf("udp", name=name)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Device(3),
        lambda: Device("a\0b"),
        lambda: Bpf(None),
        lambda: Bpf("udp", name=3),
        lambda: Flow.create().populate(None),
        lambda: Flow.create().populate("(device,lo)", buffer_bytes="4MiB"),
        lambda: Bpf("udp", mbuf_bytes=1.5),
    ],
)
def test_wrong_values_in_python_end_in_a_message(make) -> None:
    with pytest.raises(ExpressionError) as error:
        make()
    assert error.value.help


@pytest.mark.parametrize("node", [node for known in CLASSES.values() for node in nodes(parse(known.example)) if isinstance(node, known)], ids=lambda node: node.class_name)  # fmt: skip
def test_a_number_that_is_none_is_shown_as_the_class_takes_it(node: Node) -> None:
    for field in fields(node):
        if field.type == "int":
            with pytest.raises(ExpressionError, match="1.5 is no whole number") as error:
                replace(node, **{field.name: 1.5})
            assert error.value.help.startswith(f"write it as in `{node.class_name}(")
