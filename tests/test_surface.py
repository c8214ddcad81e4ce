"""The public surface: `ffpf_bpf.__all__` is exactly what is there, and works without knowing a module below it."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import ffpf_bpf
from ffpf_bpf import Flow, State, bpf, device, errors, grab, parse, python, text
from ffpf_bpf.graph.classes import CLASSES

NOUNS = {
    "Batch", "CaptureFile", "Decision", "Expression", "Flow", "InterfaceDescription", "Ledger", "Node", "NodeStatistics",
    "Packet", "PcapngWriter", "State", "Statistics", "Subject", "pkt",
}  # fmt: skip
VERBS = {"open", "parse", "python", "subject_of", "text"}
ERRORS = {
    "AuditError", "CaptureError", "ExpressionError", "FfpfError", "IllegalState", "KernelError", "PolicyError", "Rejected",
    "TapBusy", "VerifierError",
}  # fmt: skip


def test_all_is_exact() -> None:
    public = {name for name, value in vars(ffpf_bpf).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    public -= {"CLASSES", "Callable", "TYPE_CHECKING", "annotations"}
    assert set(ffpf_bpf.__all__) == public
    assert len(ffpf_bpf.__all__) == len(set(ffpf_bpf.__all__))
    assert set(ffpf_bpf.__all__) == NOUNS | VERBS | ERRORS | set(CLASSES)


def test_node_classes_have_their_lower_case_names() -> None:
    for name, node_class in CLASSES.items():
        assert getattr(ffpf_bpf, name) is node_class, f"{name} means something else in `ffpf_bpf` already"


def test_every_error_is_there() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert ERRORS - {"PolicyError"} == defined
    assert all(issubclass(getattr(ffpf_bpf, name), ffpf_bpf.FfpfError) for name in ERRORS)


def test_it_is_enough_to_define_a_flow() -> None:
    expression = device("eth0") >> bpf("udp") >> grab(snaplen=96)
    assert text(expression) == "(device,eth0) -> (bpf,udp) -> (grab,snaplen=96)"
    assert python(expression) == "device('eth0') >> bpf('udp') >> grab(snaplen=96)"
    assert parse(text(expression)) == expression
    flow = Flow.create()
    assert repr(flow) == f"<Flow {flow.id}, created>"
    flow.populate(expression)
    assert flow.state is State.POPULATED
    assert repr(flow) == f"<Flow {flow.id}, populated: {text(expression)}>"


def test_importing_asks_nothing_of_the_kernel() -> None:
    """bcc is loaded, and the first system call made, by the first flow that is instantiated."""
    program = "import ffpf_bpf, sys; print([name for name in ('bcc', 'pyroute2', 'typer') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
