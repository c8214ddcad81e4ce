"""Flows at a tap as the product runs them, to be measured: entry program, segment, deliver program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.node_rivals import compile_c
from ffpf_bpf.flow import Flow
from ffpf_bpf.kernel import calls, interfaces
from ffpf_bpf.kernel.maps import Descriptor, MappedArray, ProgArray
from ffpf_bpf.kernel.programs import Binding, load
from tests.network import Network

LEFT_OUT = ("filtered", "sampled", "limited", "ring_full")


@dataclass(frozen=True, slots=True)
class Chain:
    """A tap's chain: the descriptor of its entry program, and its flows, switched on."""

    program: int
    flows: tuple[Flow, ...]

    def totals(self) -> dict[str, int]:
        """What its first flow counted: seen, passed, left out, and what its nodes count, of two of a name the first."""
        found = self.flows[0].stats()
        ledger = found.ledger.as_json()
        left_out = sum(ledger[fate] for fate in LEFT_OUT)
        totals = {"seen": ledger["seen"], "passed": ledger["counted"] + ledger["delivered"], "left out": left_out}
        for node in found.nodes:
            for name, value in node.counts.items():
                totals.setdefault(name, value)
        return totals

    def drain(self) -> None:
        """Give all records back."""
        for flow in self.flows:
            while flow.ring_slots and flow.waiting():
                for _ in flow.poll():
                    pass

    def records(self) -> list[tuple[int, bytes]]:
        """Length on the wire and bytes of each record, which it gives back."""
        flow = self.flows[0]
        packets = [packet for batch in flow.poll() for packet in batch.packets(flow.interfaces)]
        return [(packet.length, packet.data) for packet in packets]


@contextmanager
def chain(network: Network, *expressions: str) -> Iterator[Chain]:
    """The flows at the network's tap."""
    with ExitStack() as stack:
        with network.enter():
            flows = [stack.enter_context(Flow.create()) for _ in expressions]
            for flow, expression in zip(flows, expressions, strict=True):
                flow.populate(expression).instantiate().activate()
            program_id, _ = calls.attached_xdp(interfaces.find(network.tap).index)
        entry = stack.enter_context(Descriptor(calls.library().bpf_prog_get_fd_by_id(program_id)))
        yield Chain(entry.fileno, tuple(flows))


@dataclass(frozen=True, slots=True)
class Vary:
    """The 32 bits at `offset` of the packet count up from `base`, through `flows` (a power of two) values."""

    offset: int
    base: int
    flows: int


@contextmanager
def varied(vary: Vary | None, program: int) -> Iterator[int]:
    """A program that makes the packet another one each time before it enters `program`; without `vary`, that itself."""
    if vary is None:
        yield program
        return
    options = (f"-DOFFSET={vary.offset}", f"-DBASE={vary.base:#x}u", f"-DFLOWS={vary.flows}u")
    with MappedArray("counter", 8) as counter, ProgArray("target", 1) as target:
        calls.set_program(target.fileno, 0, program)
        bindings = {"counter": Binding(counter, True), "target": Binding(target, False)}
        with load(compile_c("vary", *options).programs["vary"], bindings) as loaded:
            yield loaded.fileno
