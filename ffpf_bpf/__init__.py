"""Flow grabber framework on eBPF: filter graphs, authorised, compiled, chained by tail calls.

    from ffpf_bpf import Flow, bpf, device, grab

    with Flow.create() as flow:
        flow.populate(device("eth0") >> bpf("tcp port 80") >> grab(snaplen=96))
        flow.instantiate().activate()
        for batch in flow.batches(duration_s=10):
            ...

What is here is the public surface; modules below it may change. Each node class has its lower-case name here, as in
text: they come from `graph.classes`, so that a new class is here by being there. The names of `python(expression)` are
the names of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ffpf_bpf.authorise import Decision, PolicyError, Subject, subject_of
from ffpf_bpf.capture.files import CaptureFile
from ffpf_bpf.capture.packet import Packet
from ffpf_bpf.capture.pcapng import InterfaceDescription, PcapngWriter
from ffpf_bpf.capture.ring import Batch
from ffpf_bpf.errors import (
    AuditError,
    CaptureError,
    ExpressionError,
    FfpfError,
    IllegalState,
    KernelError,
    Rejected,
    TapBusy,
    VerifierError,
)
from ffpf_bpf.flow import Flow, Ledger, NodeStatistics, State, Statistics
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.expression import Expression, Node
from ffpf_bpf.graph.fields import pkt
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.printer import python, text

open = CaptureFile
globals().update(CLASSES)
if TYPE_CHECKING:
    # For type checkers, which do not see the line above. There is no such function when the program runs.
    def __getattr__(name: str) -> Callable[..., Node]: ...


__all__ = [
    "AuditError",
    "Batch",
    "CaptureError",
    "CaptureFile",
    "Decision",
    "Expression",
    "ExpressionError",
    "FfpfError",
    "Flow",
    "IllegalState",
    "InterfaceDescription",
    "KernelError",
    "Ledger",
    "Node",
    "NodeStatistics",
    "Packet",
    "PcapngWriter",
    "PolicyError",
    "Rejected",
    "State",
    "Statistics",
    "Subject",
    "TapBusy",
    "VerifierError",
    "open",
    "parse",
    "pkt",
    "python",
    "subject_of",
    "text",
]
__all__ += list(CLASSES)
