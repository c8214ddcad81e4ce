"""Flows -> LLVM IR: the deliver program of a segment, which stores the packet for each flow that grabs it."""

from __future__ import annotations

from llvmlite import ir

from ffpf_bpf.compiler.frame import (
    GRABBED,
    Frame,
    Generated,
    SegmentFlow,
    Sink,
    cpu_memory,
    declare,
    external,
    new_module,
)
from ffpf_bpf.compiler.predicate import I8, I32, I64, POINTER
from ffpf_bpf.graph.graph import Graph
from ffpf_bpf.graph.memory import BLOCK_BYTES

DELIVER_PROGRAM = "ffpf_deliver_all"
DELIVER_TYPE = ir.FunctionType(ir.VoidType(), [POINTER, I64, *[POINTER] * 4, *[I32] * 3, I64, I64, I32])


def generate_deliver(flows: tuple[SegmentFlow, ...], tap: str, cpus: int, sinks: tuple[Sink, ...]) -> Generated:
    """The program that stores the packet once for each flow that has a sink it reached."""
    result = Generated(new_module("deliver"), (DELIVER_PROGRAM,), {"chain", "deliver"})
    program = Frame(result.module, DELIVER_PROGRAM, cpus)
    b = program.builder
    scratch = program.scratch()
    grabbed = b.load(b.gep(scratch, [I64(GRABBED)], source_etype=I8), typ=I64)
    store = declare(result.module, "ffpf_deliver", DELIVER_TYPE)
    for number, flow in enumerate(flows):
        own = [sink for sink in sinks if sink.flow == number]
        if not own:
            continue
        mask = sum(1 << sink.bit for sink in own)
        inside, after = b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_unsigned("!=", b.and_(grabbed, I64(mask)), I64(0)), inside, after)
        b.position_at_end(inside)
        flow_value = external(result.module, f"ffpf_flow_{number}")
        b.call(
            store,
            [
                program.context,
                program.length,
                external(result.module, f"ffpf_ring_{number}"),
                flow_value,
                cpu_memory(b, flow_value, program.cpu, flow.memory),
                scratch,
                b.mul(b.trunc(program.cpu, I32), I32(flow.ring.slots)),
                I32(flow.ring.slots),
                I32(flow.ring.slot_bytes),
                _snaplen(b, grabbed, own),
                I64(flow.ring.slot_bytes - BLOCK_BYTES),
                I32(flow.first_interface + _tap_number(flow.graph, tap)),
            ],
        )
        b.branch(after)
        b.position_at_end(after)
    b.branch(program.onward)
    program.finish()
    return result


def _snaplen(b: ir.IRBuilder, grabbed: ir.Value, sinks: list[Sink]) -> ir.Value:
    """The largest snap length of the sinks that the packet reached."""
    shortest, *longer = sorted(sinks, key=lambda sink: sink.snaplen)
    length: ir.Value = I64(shortest.snaplen)
    for sink in longer:
        reached = b.icmp_unsigned("!=", b.and_(grabbed, I64(1 << sink.bit)), I64(0))
        length = b.select(reached, I64(sink.snaplen), length)
    return length


def _tap_number(graph: Graph, tap: str) -> int:
    return [device.tap for device in graph.taps].index(tap)
