"""Graphs -> code of this machine: the programs of a tap, run in this process on packets from a file.

The same IR as for the kernel, linked with the same primitives and optimised by the same passes, by another back end of
LLVM. What programs ask of the kernel is answered here: the clock is the packet's own time, so what depends on time does
as it did when the packet came. Needs no kernel and no privileges.

What runs here has not been through the verifier; it is made of IR that the verifier would take: bounds are checked in
the program. Packets are copied to where 32 bits reach them, as the fields of `struct xdp_md` want it.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import secrets
from collections.abc import Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from ffpf_bpf.compiler import emit
from ffpf_bpf.compiler.deliver import DELIVER_PROGRAM
from ffpf_bpf.compiler.frame import SegmentFlow, new_module
from ffpf_bpf.compiler.predicate import lower_predicate
from ffpf_bpf.compiler.segment import SEGMENT_PROGRAM
from ffpf_bpf.errors import FfpfError
from ffpf_bpf.graph.memory import SCRATCH_BYTES, TAP_BYTES
from ffpf_bpf.graph.predicate import Program

LONGEST_PACKET = 1 << 18  # libpcap's MAXIMUM_SNAPLEN
SEED_OFFSET = 8  # in struct ffpf_tap
MAP_32BIT, MAP_FIXED_NOREPLACE = 0x40, 0x100000  # <asm/mman.h> of x86, <asm-generic/mman.h>
HERTZ = 250  # of the jiffies that tables of flows tell old flows by
# What clang puts between a value and itself, to keep the optimiser from what the verifier would refuse.
PASSTHROUGH = re.compile(
    r"(?:tail )?call (?:\w+ )*?(\w+) @llvm\.bpf\.passthrough[\w.]*\(i32 \d+, \w+ ([^)]+)\)(?: #\d+)?"
)
LOWEST, HIGHEST, STEP = 0x1000_0000, 0xF000_0000, 0x0100_0000

# What programs call of the kernel by number (<linux/bpf.h>), and where a slot's fields are: struct ffpf_slot.
HELPERS = """
declare ptr @ffpf_helper_1(ptr, ptr)
declare i64 @ffpf_helper_5()
declare i32 @ffpf_helper_7()
declare i32 @ffpf_helper_8()
declare i64 @ffpf_helper_12(ptr, ptr, i32)
declare i64 @ffpf_helper_118()
declare i64 @ffpf_helper_130(ptr, ptr, i64, i64)
declare i64 @ffpf_helper_189(ptr, i32, ptr, i32)
"""
# One more packet, of records of a `stride`: how much is there of it, and where; all are through at %done.
RECORD = """  %more = icmp ult i64 %number, %count
  br i1 %more, label %packet, label %done
packet:
  %offset = mul i64 %number, %stride
  %record = getelementptr i8, ptr %records, i64 %offset
  %captured.at = getelementptr i8, ptr %record, i64 20
  %captured = load i32, ptr %captured.at, align 1
  %original.at = getelementptr i8, ptr %record, i64 24
  %original = load i32, ptr %original.at, align 1
  %data = getelementptr i8, ptr %record, i64 28
  %bytes = zext i32 %captured to i64
"""
RUNTIME = """
@clock = internal global i64 0
@asked = internal global i32 0
@random = internal global i64 {random}
@ffpf_wire_length = global i64 0

define ptr @ffpf_helper_1(ptr %map, ptr %key) {{
  %index = load i32, ptr %key
  %wide = zext i32 %index to i64
  %offset = mul i64 %wide, {slot_bytes}
  %slot = getelementptr i8, ptr inttoptr (i64 {ring} to ptr), i64 %offset
  %inside = icmp ult i64 %wide, {slots}
  %result = select i1 %inside, ptr %slot, ptr null
  ret ptr %result
}}
define i64 @ffpf_helper_5() {{
  %now = load i64, ptr @clock
  ret i64 %now
}}
define i32 @ffpf_helper_7() {{
  %old = load i64, ptr @random
  %a = add i64 %old, -7046029254386353131
  store i64 %a, ptr @random
  %b = lshr i64 %a, 30
  %c = xor i64 %a, %b
  %d = mul i64 %c, -4658895280553007687
  %e = lshr i64 %d, 27
  %f = xor i64 %d, %e
  %g = mul i64 %f, -7723592293110705685
  %h = lshr i64 %g, 32
  %i = trunc i64 %h to i32
  ret i32 %i
}}
define i32 @ffpf_helper_8() {{
  ret i32 0
}}
define i64 @ffpf_helper_12(ptr %context, ptr %links, i32 %link) {{
  %old = load i32, ptr @asked
  %new = or i32 %old, %link
  store i32 %new, ptr @asked
  ret i64 -2
}}
define i64 @ffpf_helper_118() {{
  %now = load i64, ptr @clock
  %jiffies = udiv i64 %now, {jiffy_ns}
  ret i64 %jiffies
}}
define i64 @ffpf_helper_130(ptr %bell, ptr %data, i64 %bytes, i64 %flags) {{
  ret i64 0
}}
define i64 @ffpf_helper_189(ptr %context, i32 %offset, ptr %to, i32 %length) {{
  %start = load i32, ptr %context
  %end.at = getelementptr i8, ptr %context, i64 4
  %end = load i32, ptr %end.at
  %first = add i32 %start, %offset
  %last = add i32 %first, %length
  %outside = icmp ugt i32 %last, %end
  br i1 %outside, label %refused, label %copied
refused:
  ret i64 -22
copied:
  %wide = zext i32 %first to i64
  %from = inttoptr i64 %wide to ptr
  %bytes = zext i32 %length to i64
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 %bytes, i1 false)
  ret i64 0
}}
define i32 @bpf_iter_num_new(ptr %iterator, i32 %start, i32 %end) {{
  %before = sub i32 %start, 1
  store i32 %before, ptr %iterator
  %end.at = getelementptr i8, ptr %iterator, i64 4
  store i32 %end, ptr %end.at
  ret i32 0
}}
define ptr @bpf_iter_num_next(ptr %iterator) {{
  %before = load i32, ptr %iterator
  %now = add i32 %before, 1
  store i32 %now, ptr %iterator
  %end.at = getelementptr i8, ptr %iterator, i64 4
  %end = load i32, ptr %end.at
  %more = icmp slt i32 %now, %end
  %result = select i1 %more, ptr %iterator, ptr null
  ret ptr %result
}}
define void @bpf_iter_num_destroy(ptr %iterator) {{
  ret void
}}
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare i32 @{segment}(ptr)
{declare_deliver}

define void @ffpf_run(ptr %records, i64 %stride, i64 %count) {{
entry:
  %context = alloca [6 x i32], align 8
  %end.at = getelementptr i8, ptr %context, i64 4
  store i32 {packet}, ptr %context
  br label %test
test:
  %number = phi i64 [0, %entry], [%following, %next]
{record}
  %high.at = getelementptr i8, ptr %record, i64 12
  %high = load i32, ptr %high.at, align 1
  %low.at = getelementptr i8, ptr %record, i64 16
  %low = load i32, ptr %low.at, align 1
  %high.wide = zext i32 %high to i64
  %high.part = shl i64 %high.wide, 32
  %low.part = zext i32 %low to i64
  %now = or i64 %high.part, %low.part
  store i64 %now, ptr @clock
  call void @llvm.memcpy.p0.p0.i64(ptr inttoptr (i64 {packet} to ptr), ptr %data, i64 %bytes, i1 false)
  %end = add i32 %captured, {packet}
  store i32 %end, ptr %end.at
  %wire = zext i32 %original to i64
  store i64 %wire, ptr @ffpf_wire_length
  store i64 0, ptr inttoptr (i64 {now_ns} to ptr)
  store i32 0, ptr inttoptr (i64 {known} to ptr)
  store i64 0, ptr inttoptr (i64 {flow_hash} to ptr)
  store i32 0, ptr @asked
  %verdict = call i32 @{segment}(ptr %context)
  {call_deliver}
next:
  %following = add i64 %number, 1
  br label %test
done:
  ret void
}}
"""
CALL_DELIVER = """%asked = load i32, ptr @asked
  %grabbed = and i32 %asked, 1
  %wanted = icmp ne i32 %grabbed, 0
  br i1 %wanted, label %deliver, label %next
deliver:
  %delivered = call i32 @{deliver}(ptr %context)
  br label %next"""

FILTER_LOOP = f"""
define void @ffpf_filter(ptr %records, i64 %stride, i64 %count, ptr %passed) {{
entry:
  br label %test
test:
  %number = phi i64 [0, %entry], [%following, %packet]
{RECORD}  %end = getelementptr i8, ptr %data, i64 %bytes
  %passes = call i1 @filter(ptr %data, ptr %end, i32 %original)
  %byte = zext i1 %passes to i8
  %to = getelementptr i8, ptr %passed, i64 %number
  store i8 %byte, ptr %to
  %following = add i64 %number, 1
  br label %test
done:
  ret void
}}
"""


class NativeProgram:
    """The programs of one flow at `tap`, on memory here: `flow_memory`, laid out for one CPU, and the ring."""

    def __init__(self, flow: SegmentFlow, tap: str, flow_memory: Any, ring_memory: Any, packet: PacketMemory) -> None:
        from ffpf_bpf.compiler import generate  # noqa: PLC0415 - it imports what is here

        self._kept = (flow_memory, ring_memory, packet)
        addresses = {"ffpf_flow_0": address(flow_memory), "ffpf_tap": packet.tap, "ffpf_links": packet.tap}
        addresses["ffpf_ring_0"] = address(ring_memory) if ring_memory is not None else 0
        addresses["ffpf_bell_0"] = 0  # nobody sleeps
        modules = generate((flow,), tap, 1, offline=True)
        linked = [emit.link(str(part.module), part.primitives | {"dissect"}, part.programs) for part in modules]
        runtime = _runtime(flow, addresses, packet, delivers=len(modules) > 1)
        whole = llvm.parse_assembly(_for_host(runtime, {}))
        for module in linked:
            whole.link_in(llvm.parse_assembly(_for_host(str(module) + HELPERS, addresses)))
        for function in whole.functions:
            if not function.is_declaration and function.name != "ffpf_run":
                function.linkage = "internal"
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
        self._engine, at = _compiled(whole, "ffpf_run")
        self._run = kind(at)

    def run(self, records: np.ndarray[Any, Any]) -> None:
        """The packets of contiguous ring slots, one after the other. The ring must have room for what they deliver."""
        self._run(records.ctypes.data, records.itemsize, len(records))


class NativeFilter:
    """A pcap filter in this process."""

    def __init__(self, program: Program) -> None:
        module = new_module("filter")
        lower_predicate(module, program, "filter")
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p)
        whole = llvm.parse_assembly(_for_host(str(module) + FILTER_LOOP, {}))
        self._engine, at = _compiled(whole, "ffpf_filter")
        self._run = kind(at)

    def passes(self, records: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of contiguous ring slots it passes."""
        passed = np.empty(len(records), np.bool_)
        self._run(records.ctypes.data, records.itemsize, len(records), passed.ctypes.data)
        return passed


class PacketMemory:
    """Where the packet of the moment lies, and the notes that the programs of a tap make about it."""

    def __init__(self, seed: int) -> None:
        self._memory = _low_memory(LONGEST_PACKET + mmap.PAGESIZE)
        self.packet = address(self._memory) + mmap.PAGESIZE
        self.tap = address(self._memory)
        self._memory[SEED_OFFSET : SEED_OFFSET + 8] = seed.to_bytes(8, "little")


def address(memory: Any) -> int:
    """Where a buffer begins."""
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def _compiled(module: llvm.ModuleRef, function: str) -> tuple[llvm.ExecutionEngine, int]:
    """What keeps the code of a module, and where a function of it is."""
    builder = llvm.create_pass_builder(_host(), llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, _host_for_code())
    engine.finalize_object()
    return engine, engine.get_function_address(function)


def _runtime(flow: SegmentFlow, addresses: Mapping[str, int], packet: PacketMemory, *, delivers: bool) -> str:
    scratch = packet.tap + TAP_BYTES
    assert TAP_BYTES + SCRATCH_BYTES <= mmap.PAGESIZE
    return RUNTIME.format(
        record=RECORD,
        random=secrets.randbits(62),
        slot_bytes=flow.ring.slot_bytes,
        slots=flow.ring.slots,
        ring=addresses["ffpf_ring_0"],
        jiffy_ns=10**9 // HERTZ,
        segment=SEGMENT_PROGRAM,
        declare_deliver=f"declare i32 @{DELIVER_PROGRAM}(ptr)" if delivers else "",
        call_deliver=CALL_DELIVER.format(deliver=DELIVER_PROGRAM) if delivers else "br label %next",
        packet=packet.packet,
        now_ns=scratch,
        known=scratch + 16,
        flow_hash=scratch + 48,
    )


def _for_host(text: str, addresses: Mapping[str, int]) -> str:
    """A module's text for this machine: its triple and layout, helpers by name, maps by address."""
    machine = _host()
    text = re.sub(r"^target (triple|datalayout) = .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r'"(target-cpu|target-features|tune-cpu)"="[^"]*"', "", text)
    text = re.sub(r', section "[^"]*"| section "[^"]*"', "", text)
    text = re.sub(r"inttoptr \(i64 (\d+) to ptr\)\(", r"@ffpf_helper_\1(", text)
    text = PASSTHROUGH.sub(r"select i1 true, \1 \2, \1 \2", text)
    for name, at in addresses.items():
        text = re.sub(rf"^@{name} = external .*$", "", text, flags=re.MULTILINE)
        text = re.sub(rf"@{name}\b", f"inttoptr (i64 {at} to ptr)", text)
    return f'target triple = "{machine.triple}"\ntarget datalayout = "{machine.target_data}"\n{text}'


@cache
def _host() -> llvm.TargetMachine:
    return _host_for_code()


def _host_for_code() -> llvm.TargetMachine:
    emit.llvm_version()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), opt=2, reloc="default", codemodel="large"
    )


def _low_memory(size: int) -> Any:
    """Memory that 32 bits reach."""
    if platform.machine() == "x86_64":
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for hint in range(LOWEST, HIGHEST, STEP):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        found = libc.mmap(hint, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if found == hint:
            return (ctypes.c_uint8 * size).from_address(found)  # for as long as the process lives
    raise FfpfError("no memory below 4 GiB is free", help="read the file in a process of its own")
