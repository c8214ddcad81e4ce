"""What a compiled program may not do is refused before it is loaded, whoever made it; what exists passes."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, seed, settings

from ffpf_bpf import compiler
from ffpf_bpf.compiler import DELIVER_PROGRAM, SEGMENT_PROGRAM, Object, SegmentFlow, emit
from ffpf_bpf.compiler.audit import MOST_INSTRUCTIONS, NAMES, audit
from ffpf_bpf.compiler.bytecode import KINDS, Kind, Malformed, decode
from ffpf_bpf.compiler.frame import DELIVER, NEXT
from ffpf_bpf.compiler.grant import (
    ALL,
    CALLABLE,
    DELIVERS,
    HELPERS,
    ITERATOR,
    Grant,
    deliver_grant,
    entry_grant,
    segment_grant,
)
from ffpf_bpf.compiler.hook import TC
from ffpf_bpf.compiler.object import ObjectProgram, Relocation, read
from ffpf_bpf.errors import AuditError, FfpfError
from ffpf_bpf.flow import Flow
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import Grab
from ffpf_bpf.graph.classes.packetcount import Packetcount
from ffpf_bpf.graph.classes.tcpflags import Tcpflags
from ffpf_bpf.graph.effect import Primitive, Transform
from ffpf_bpf.graph.expression import Expression, Node, Role, then
from ffpf_bpf.graph.memory import RingHome, homes, lay_out, size_ring
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.sharing import keys
from ffpf_bpf.kernel import calls
from tests.network import Network
from tests.test_compiler import MIDDLE, SEED, TAILS, checked
from tests.test_layout import find_clang

ROOT = Path(__file__).parents[1]
HEADERS = Path("/usr/include/linux/bpf.h")
GRANT = Grant(frozenset({"ffpf_tap", "ffpf_flow_0"}), frozenset(), ALL, frozenset(), frozenset({NEXT}))
DELIVERING = replace(
    GRANT, rings=frozenset({"ffpf_ring_0"}), bells=frozenset({"ffpf_bell_0"}), helpers=ALL | DELIVERS | {189}
)
AT_TC = replace(GRANT, hook=TC)


def parts_of(*expressions: str | Expression, cpus: int = 2) -> tuple[SegmentFlow, ...]:
    """Flows as a segment has them."""
    parts = []
    for number, expression in enumerate(expressions):
        graph = build(parse(expression) if isinstance(expression, str) else expression)
        ring = size_ring(graph.snaplen or 96, 1 << 16)
        memory = lay_out(graph, cpus, slots=ring.slots)
        predicates = compiler.compile_predicates(graph)
        at_home = homes(graph, memory, number)
        parts.append(SegmentFlow(graph, predicates, memory, ring, number, at_home, RingHome(number, memory)))
    return tuple(parts)


def compiled(*expressions: str | Expression, tap: str = "tap0") -> dict[str, Object]:
    return compiler.compile_segment(parts_of(*expressions), tap, 2)


# Instructions by hand.


def op(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | target, offset, immediate)


def number(register: int, value: int) -> bytes:
    return op(0xB7, register, immediate=value)


def copy(to: int, source: int) -> bytes:
    return op(0xBF, to, source)


def load(to: int, source: int, offset: int = 0, code: int = 0x79) -> bytes:
    return op(code, to, source, offset)


def store(target: int, offset: int, source: int, code: int = 0x7B) -> bytes:
    return op(code, target, source, offset)


def add(register: int, value: int) -> bytes:
    return op(0x07, register, immediate=value)


def call(helper: int) -> bytes:
    return op(0x85, immediate=helper)


ADDRESS = op(0x18, 1) + op(0)  # r1 = a map's
END = number(0, 2) + op(0x95)
DATA = load(6, 1, 0, 0x61)  # r6 = ctx->data


def program(
    *parts: bytes, maps: dict[int, str] | None = None, functions: dict[int, str] | None = None
) -> ObjectProgram:
    """A program by hand: which map's address stands where, and where functions of the kernel are called."""
    places = [tuple(Relocation(at, name) for at, name in (given or {}).items()) for given in (maps, functions)]
    return ObjectProgram("by_hand", b"".join(parts), *places)


def refusal(found: ObjectProgram, grant: Grant = GRANT) -> str:
    with pytest.raises(AuditError) as error:
        audit(found, grant)
    assert error.value.exit_code == 3
    assert error.value.where.startswith("program `by_hand`, instruction ")
    assert "; granted: " in error.value.message
    return f"{error.value.where.removeprefix('program `by_hand`, instruction ')}: {error.value.message}"


FLOW, OTHER, LINKS, RING, BELL = "ffpf_flow_0", "ffpf_flow_1", "ffpf_links", "ffpf_ring_0", "ffpf_bell_0"


def ringing(map_name: str, *, size: int = 0, flags: int = 2) -> ObjectProgram:
    return program(ADDRESS, copy(2, 10), number(3, size), number(4, flags), call(130), END, maps={0: map_name})


def test_a_bell_is_rung() -> None:
    assert audit(ringing(BELL), DELIVERING).maps == {BELL}


PASSING = {
    "nothing": program(END),
    "the stack": program(number(1, 5), store(10, -8, 1), op(0xDB, 10, 1, -8, 0x00), END),
    "a map": program(ADDRESS, number(2, 5), store(1, 64, 2), END, maps={0: FLOW}),
    "a map, from the stack": program(
        ADDRESS, store(10, -8, 1), load(3, 10, -8), number(2, 5), store(3, 64, 2), END, maps={0: FLOW}
    ),
    "the packet is read": program(DATA, load(0, 6, 12, 0x69), END),
    "either map": program(
        ADDRESS, copy(2, 1), op(0x15, 0, 0, 2), ADDRESS, add(2, 64), number(3, 1), store(2, 64, 3), END,
        maps={0: FLOW, 4: "ffpf_tap"},
    ),
    "the next program": program(copy(6, 1), op(0x18, 2) + op(0), number(3, 0), call(12), END, maps={1: LINKS}),
    "a function of its own": program(op(0x85, source=1, immediate=2), END, number(0, 7), op(0x95)),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSING)
def test_what_harms_nobody_passes(name: str) -> None:
    found = audit(PASSING[name], GRANT)
    assert found.digest == PASSING[name].digest
    assert found.instructions == PASSING[name].count


def attacks() -> Iterator[tuple[str, ObjectProgram, Grant, str]]:  # noqa: PLR0915
    """Name, program, grant, and how the refusal begins."""
    yield (
        "packet",
        program(DATA, number(2, 1), store(6, 3, 2, 0x73), END),
        GRANT,
        "2: writes to the packet (`*(u8 *)(r6 +3) = r2`)",
    )
    yield (
        "packet, a constant",
        program(DATA, op(0x7A, 6, offset=8, immediate=1), END),
        GRANT,
        "1: writes to the packet (`*(u64 *)(r6 +8) = 1`)",
    )
    yield (
        "packet, its end",
        program(load(6, 1, 4, 0x61), number(2, 1), store(6, -1, 2, 0x73), END),
        GRANT,
        "2: writes to the packet",
    )
    yield (
        "packet, what is before it",
        program(load(6, 1, 8, 0x61), number(2, 1), store(6, 0, 2, 0x73), END),
        GRANT,
        "2: writes to the packet",
    )
    yield (
        "packet, at an offset",
        program(DATA, op(0x0F, 6, 2), number(2, 1), store(6, 0, 2), END),
        GRANT,
        "3: writes to an address",
    )
    yield (
        "packet, at a number",
        program(DATA, load(2, 6, 0), op(0x0F, 2, 6), store(2, 0, 7), END),
        GRANT,
        "3: writes to the packet",
    )
    yield (
        "packet, from the stack",
        program(DATA, store(10, -8, 6), load(3, 10, -8), store(3, 0, 6), END),
        GRANT,
        "3: writes to the packet",
    )
    yield (
        "packet, atomically",
        program(DATA, number(2, 1), op(0xDB, 6, 2, 0, 0x01), END),
        GRANT,
        "2: writes to the packet (`atomic",
    )
    yield (
        "packet, by exchange",
        program(DATA, number(2, 1), op(0xDB, 6, 2, 0, 0xF1), END),
        GRANT,
        "2: writes to the packet (`atomic",
    )
    yield (
        "packet, by a helper",
        program(call(190), END),
        GRANT,
        "0: calls `bpf_xdp_store_bytes` (helper 190); granted: `bpf_get_smp",
    )
    yield "packet, on one of two ways", program(
        DATA, ADDRESS, copy(2, 1), op(0x15, 0, 0, 1), copy(2, 6), number(3, 1), store(2, 64, 3), END, maps={1: FLOW}
    ), GRANT, "7: writes to an address that nobody knows"  # fmt: skip
    yield "packet, the second time round", program(
        DATA, ADDRESS, number(3, 1), store(1, 64, 3), copy(1, 6), op(0x05, offset=-3), END, maps={1: FLOW}
    ), GRANT, "4: writes to"  # fmt: skip
    yield "packet, in a function", program(
        DATA, copy(1, 6), op(0x85, source=1, immediate=2), END, number(2, 1), store(1, 0, 2), op(0x95)
    ), GRANT, "6: writes to the packet"  # fmt: skip
    yield "packet, by a function's result", program(
        DATA, copy(1, 6), op(0x85, source=1, immediate=3), store(0, 0, 1), END, copy(0, 1), op(0x95)
    ), GRANT, "3: writes to an address that nobody knows"  # fmt: skip
    yield "packet, by what a function left", program(
        DATA, ADDRESS, store(10, -8, 1), copy(2, 10), add(2, -8), copy(1, 6), op(0x85, source=1, immediate=4),
        load(3, 10, -8), store(3, 64, 0), END, store(2, 0, 1), op(0x95), maps={1: FLOW},
    ), GRANT, "9: writes to an address that nobody knows"  # fmt: skip
    yield "packet, copied into", program(
        DATA, copy(3, 6), number(2, 0), number(4, 4), call(189), END
    ), DELIVERING, "4: writes to the packet (`bpf_xdp_load_bytes`)"  # fmt: skip
    yield "context", program(number(2, 1), store(1, 16, 2, 0x63), END), GRANT, "1: writes to the packet's context"
    yield "number", program(number(2, 1), store(2, 16, 2), END), GRANT, "1: writes to a number taken for an address"
    for helper, name in ((23, "redirect"), (6, "trace_printk"), (113, "probe_read_kernel"), (4, "probe_read"), (44, "xdp_adjust_head"),
                         (65, "xdp_adjust_tail"), (54, "xdp_adjust_meta"), (9, "skb_store_bytes"), (51, "redirect_map"),
                         (58, "override_return"), (2, "map_update_elem"), (5, "ktime_get_ns"), (1, "map_lookup_elem")):  # fmt: skip
        yield (
            name,
            program(call(helper), END),
            GRANT,
            f"0: calls `bpf_{name}` (helper {helper}); granted: `bpf_get_smp_processor_id`, `bpf_tail_call`",
        )
    yield "bell of nobody", ringing(RING), DELIVERING, "5: rings what is no bell; granted: `ffpf_bell_0`"
    yield "bell with something in it", ringing(BELL, size=8), DELIVERING, "5: writes into a bell"
    yield "bell that is quiet", ringing(BELL, flags=1), DELIVERING, "5: writes into a bell"
    yield "bell without a sink", ringing(BELL), GRANT, "0: uses the map `ffpf_bell_0`"
    yield (
        "bell as a ring",
        program(ADDRESS, call(1), END, maps={0: BELL}),
        DELIVERING,
        "2: looks up a map that is no ring",
    )
    yield "helper nobody knows", program(call(9999), END), GRANT, "0: calls helper 9999; granted:"
    yield "helper where nothing leads", program(END, call(6), END), GRANT, "2: calls `bpf_trace_printk`"
    yield (
        "function by number",
        program(op(0x85, source=2, immediate=77), END),
        GRANT,
        "0: calls function 77 of the kernel by its number",
    )
    yield (
        "function",
        program(op(0x85, source=1, immediate=-1), END, functions={0: "bpf_iter_num_new"}),
        GRANT,
        "0: calls `bpf_iter_num_new` of the kernel; granted: none",
    )
    yield "another function", program(op(0x85, source=1, immediate=-1), END, functions={0: "bpf_xdp_flow_lookup"}), replace(
        GRANT, functions=ITERATOR
    ), "0: calls `bpf_xdp_flow_lookup` of the kernel; granted: `bpf_iter_num_destroy`, "  # fmt: skip
    yield "function, on what", program(op(0x85, source=1, immediate=-1), END, functions={0: "bpf_iter_num_new"}), replace(
        GRANT, functions=ITERATOR
    ), "0: gives an iterator that is not"  # fmt: skip
    yield (
        "function that is not there",
        program(op(0x85, source=1, immediate=-1), END),
        GRANT,
        "0: calls what is not there",
    )
    yield (
        "another flow's map",
        program(ADDRESS, number(2, 5), store(1, 64, 2), END, maps={0: OTHER}),
        GRANT,
        "0: uses the map `ffpf_flow_1`; granted: `ffpf_flow_0`, `ffpf_links`, `ffpf_tap`",
    )
    yield "ring without a sink", program(ADDRESS, END, maps={0: RING}), GRANT, "0: uses the map `ffpf_ring_0`"
    yield (
        "map by number",
        program(op(0x18, 1, 1, immediate=3) + op(0), END),
        GRANT,
        "0: names a map or a function by its number",
    )
    yield (
        "map's structure",
        program(ADDRESS, number(2, 5), store(1, 64, 2), END, maps={0: LINKS}),
        GRANT,
        "3: writes to a map's own structure",
    )
    yield (
        "toggle",
        program(ADDRESS, number(2, 1), store(1, 0, 2, 0x63), END, maps={0: FLOW}),
        GRANT,
        "3: writes to the head of `ffpf_flow_0` (`*(u32 *)(r1 +0) = r2`)",
    )
    yield (
        "look-up of its own map",
        program(ADDRESS, copy(2, 10), call(1), END, maps={0: FLOW}),
        DELIVERING,
        "3: looks up a map that is no ring",
    )
    yield (
        "address of the packet",
        program(DATA, ADDRESS, store(1, 64, 6), END, maps={1: FLOW}),
        GRANT,
        "3: stores an address of the kernel",
    )
    yield (
        "map where none goes in",
        program(number(1, 0), END, maps={0: FLOW}),
        GRANT,
        "0: has no 64-bit immediate where",
    )
    yield (
        "function where none goes in",
        program(number(1, 0), END, functions={0: "bpf_iter_num_new"}),
        GRANT,
        "0: has no call where",
    )
    yield (
        "drop",
        program(number(0, 1), op(0x95)),
        GRANT,
        "1: ends with 1; granted: XDP_PASS (2), for every packet",
    )
    yield "aborted", program(number(0, 0), op(0x95)), GRANT, "1: ends with 0;"
    yield "send back", program(number(0, 3), op(0x95)), GRANT, "1: ends with 3;"
    yield "redirect by return", program(number(0, 4), op(0x95)), GRANT, "1: ends with 4;"
    yield (
        "drop some",
        program(number(0, 2), op(0x15, 1, 0, 1), number(0, 1), op(0x95)),
        GRANT,
        "3: ends with what is not constant;",
    )
    yield "drop by a number", program(DATA, load(0, 6, 0, 0x71), op(0x95)), GRANT, "2: ends with what is not constant;"
    yield "no end", program(number(0, 2)), GRANT, "0: ends with what is not constant;"
    yield (
        "deliver without a sink",
        program(op(0x18, 2) + op(0), number(3, 1), call(12), END, maps={0: LINKS}),
        GRANT,
        "3: goes on through slot 1 of `ffpf_links`; granted: slot 0",
    )
    yield (
        "slot by a number",
        program(load(3, 10, -8), op(0x18, 2) + op(0), call(12), END, maps={1: LINKS}),
        GRANT,
        "3: goes on through a slot that is not constant",
    )
    yield "another program", program(copy(2, 1), number(3, 0), call(12), END), GRANT, "2: goes on through another map"
    yield (
        "without the packet",
        program(op(0x18, 2) + op(0), number(1, 0), number(3, 0), call(12), END, maps={0: LINKS}),
        GRANT,
        "4: goes on with what is not the packet",
    )
    yield "jump beyond", program(op(0x05, offset=99), END), GRANT, "0: it goes on at 100, where no instruction begins"
    yield (
        "jump into an immediate",
        program(op(0x05, offset=1), ADDRESS, END),
        GRANT,
        "0: it goes on at 2, where no instruction",
    )
    yield "half an immediate", program(END, op(0x18, 1)), GRANT, "2: half of a 64-bit immediate is missing"
    yield "packet access of old", program(op(0x30, immediate=12), END), GRANT, "0: opcode 0x30 is not known"
    yield "stack pointer", program(copy(10, 1), END), GRANT, "0: the address of the stack is changed"
    yield "atomic nobody knows", program(op(0xDB, 10, 1, -8, 0x33), END), GRANT, "0: atomic operation 0x33 is not known"
    yield (
        "too large",
        program(number(1, 0) * MOST_INSTRUCTIONS, END),
        GRANT,
        "32767: has 32,769 instructions; granted: 32,767",
    )
    yield "cut", ObjectProgram("by_hand", END[:-1], ()), GRANT, "0: 15 bytes are no instructions"


ATTACKS = {name: attack for name, *attack in attacks()}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_granted_is_refused(name: str) -> None:
    found, grant, begins = ATTACKS[name]
    assert refusal(found, grant)[: len(begins)] == begins


def test_unknown_opcodes_are_no_instructions() -> None:
    """v4 and what only other program types have, beside what was never one."""
    known = {code for code, (kind, _) in enumerate(KINDS) if kind is not Kind.UNKNOWN}
    assert (
        len(known) == 4 * 12 + 2 + 2 + 4 * 11 + 4 + 12 + 2
    )  # calculations, negation, byte order, branches, others, memory, atomic
    for code in set(range(256)) - known:
        with pytest.raises(Malformed, match="is not known"):
            decode(op(code))


def test_helpers_have_the_numbers_of_the_kernels_header() -> None:
    text = HEADERS.read_text()
    listed = {name: int(at) for name, at in re.findall(r"^\s*FN\((\w+), (\d+), ##ctx\)", text, re.MULTILINE)}
    if not listed:  # before Linux 6.1 the header has no numbers
        listed = {name: at for at, name in enumerate(re.findall(r"^\s*FN\((\w+)\),", text, re.MULTILINE))}
    assert {name: listed[name] for name in HELPERS} == HELPERS
    assert {at: name for at, name in NAMES.items() if listed.get(name) != at} == {}


# Node classes that do more than they say.

ROGUE = r"""
#include "ffpf.h"

#define NODE(name) FFPF_PRIMITIVE int name(const struct ffpf_packet *packet, void *mbuf)

NODE(rogue_store)
{
	__u8 *at = ffpf_at(packet, 6, 1);

	if (at)
		*at = 1;
	return 1;
}

NODE(rogue_atomic)
{
	__u64 *at = ffpf_at(packet, 0, 8);

	if (at)
		__sync_fetch_and_add(at, 1);
	return 1;
}

NODE(rogue_redirect) { return bpf_redirect(1, 0); }
NODE(rogue_printk) { bpf_trace_printk("x", 2); return 1; }
NODE(rogue_probe) { bpf_probe_read_kernel(mbuf, 8, packet->tap); return 1; }
NODE(rogue_override) { bpf_override_return(mbuf, 0); return 1; }
NODE(rogue_clock) { return bpf_ktime_get_ns() & 1; }
NODE(rogue_adjust) { return bpf_xdp_adjust_head(packet->data, 4); }

extern struct ffpf_flow ffpf_flow_1, ffpf_flow_0;
extern void ffpf_ring_0;
extern int bpf_xdp_metadata_rx_hash(void *ctx, void *hash, void *kind);

NODE(rogue_flow) { ffpf_flow_1.reserved0 = 1; return 1; }
NODE(rogue_toggle) { ffpf_flow_0.toggle = 0; return 1; }
NODE(rogue_active) { *(__u32 *)packet->tap = 0; return 1; }
NODE(rogue_ring) { __u32 key = 0; return bpf_map_lookup_elem(&ffpf_ring_0, &key) != 0; }
NODE(rogue_kfunc) { return bpf_xdp_metadata_rx_hash(packet->data, mbuf, mbuf); }
NODE(rogue_address) { *(void *volatile *)mbuf = packet->data; return 1; }

FFPF_PRIMITIVE void rogue_rewrite(const struct ffpf_packet *packet, struct ffpf_copy *copy, void *mbuf)
{
	rogue_store(packet, mbuf);
}
"""


@dataclass(frozen=True, slots=True)
class Rogue(Node):
    """A node class whose primitive does something."""

    class_name: ClassVar[str] = "rogue"
    role: ClassVar[Role] = Role.DECIDES
    least_mbuf_bytes: ClassVar[int] = 64
    function: str = ""
    calls: tuple[str, ...] = ()

    @property
    def effect(self) -> Primitive:
        return Primitive("rogue", self.function, calls=self.calls)


@dataclass(frozen=True, slots=True)
class RogueTransform(Node):
    class_name: ClassVar[str] = "roguetransform"
    role: ClassVar[Role] = Role.TRANSFORMS
    least_mbuf_bytes: ClassVar[int] = 16 + 256

    @property
    def effect(self) -> Transform:
        return Transform("rogue", rewrite="rogue_rewrite", copy_bytes=256)


WHOLE = """
#include "ffpf.h"
extern void ffpf_links;

SEC("xdp/by_hand") int by_hand(struct xdp_md *ctx)
{
	%s
	bpf_tail_call(ctx, &ffpf_links, FFPF_NEXT);
	return XDP_PASS;
}
"""


@pytest.mark.parametrize(
    ("body", "does"),
    [
        ("if (ctx->data_end - ctx->data > 64) return XDP_DROP;", "ends with what is not constant"),
        ("return XDP_DROP;", "ends with 1;"),
        ("return XDP_TX;", "ends with 3;"),
        ("return bpf_redirect(2, 0);", "calls `bpf_redirect`"),
        ("*(volatile __u32 *)&ctx->rx_queue_index = 7;", "writes to the packet's context (`*(u32 *)(r"),
        ("*(volatile __u8 *)(long)ctx->data = 7;", "writes to the packet (`*(u8 *)(r"),
        ("bpf_tail_call(ctx, &ffpf_links, ctx->rx_queue_index);", "goes on through a slot that is not constant"),
        ("bpf_tail_call(ctx, &ffpf_links, FFPF_DELIVER);", "goes on through slot 1"),
        ("", ""),
    ],
)
def test_programs_by_clang(body: str, does: str, tmp_path: Path) -> None:
    """Whoever compiled them."""
    compile_c(tmp_path / "whole.c", WHOLE % body, tmp_path / "whole.o")
    found = read((tmp_path / "whole.o").read_bytes()).programs["by_hand"]
    if does:
        assert does in refusal(found)
    else:
        assert audit(found, GRANT).maps == {LINKS}


WHOLE_AT_TC = """
#include "ffpf.h"
extern void ffpf_links;
extern __u8 ffpf_frame[];
extern __u8 ffpf_flow_0[];

SEC("tc/by_hand") int by_hand(struct __sk_buff *ctx)
{
	%s
	bpf_tail_call(ctx, &ffpf_links, FFPF_NEXT);
	return -1;
}
"""


@pytest.mark.parametrize(
    ("body", "does"),
    [
        ("if (ctx->len > 64) return 2;", "ends with what is not constant"),
        ("return 0;", "ends with 0; granted: TC_ACT_UNSPEC (-1)"),
        ("return 2;", "ends with 2;"),
        ("return bpf_redirect(2, 0);", "calls `bpf_redirect`"),
        ("ctx->mark = 7;", "writes to the packet's context (`*(u32 *)(r"),
        ("ctx->cb[0] = 7;", "writes to the packet's context"),
        ("*(volatile __u8 *)(long)ctx->data = 7;", "writes to the packet (`*(u8 *)(r"),
        ("*(volatile __u8 *)(long)ctx->data_meta = 7;", "writes to the packet (`*(u8 *)(r"),
        ("*(volatile __u8 *)&ffpf_frame[8] = 7;", "writes to the packet (`*(u8 *)(r"),
        ("*(volatile __u64 *)&ffpf_flow_0[64] = (long)ctx->sk;", "stores an address of the kernel"),
        ("*(volatile __u64 *)&ffpf_flow_0[64] = (long)ctx->data_end;", "stores an address of the kernel"),
        ("*(volatile __u64 *)&ffpf_flow_0[64] = ctx->vlan_tci;", ""),
        ("bpf_skb_load_bytes(ctx, 0, &ffpf_flow_0[64], 8);", "calls `bpf_skb_load_bytes`"),
        ("bpf_skb_vlan_pop(ctx);", "calls helper 19"),
        ("bpf_skb_pull_data(ctx, 64);", "calls helper 39"),
        ("", ""),
    ],
)
def test_programs_by_clang_at_tc(body: str, does: str, tmp_path: Path) -> None:
    compile_c(tmp_path / "whole.c", WHOLE_AT_TC % body, tmp_path / "whole.o")
    found = read((tmp_path / "whole.o").read_bytes()).programs["by_hand"]
    if does:
        assert does in refusal(found, AT_TC)
    else:
        assert LINKS in audit(found, AT_TC).maps


def test_a_program_is_for_one_hook() -> None:
    at_tc = replace(program(number(0, -1), op(0x95)), hook="tc")
    assert audit(at_tc, AT_TC)
    assert refusal(at_tc) == "0: is a program for tc; granted: one for xdp"
    assert refusal(program(END), AT_TC) == "0: is a program for xdp; granted: one for tc"
    assert replace(at_tc, hook="xdp").digest != at_tc.digest


def test_copies_of_frames_are_written_by_the_entry_program_alone() -> None:
    writes = replace(
        program(ADDRESS, number(2, 7), store(1, 0, 2), number(0, -1), op(0x95), maps={0: "ffpf_frame"}), hook="tc"
    )
    assert audit(writes, entry_grant(TC))
    assert "writes to the packet" in refusal(writes, AT_TC)
    at_xdp = program(ADDRESS, END, maps={0: "ffpf_frame"})
    assert "uses the map `ffpf_frame`" in refusal(at_xdp)


def compile_c(file: Path, text: str, output: Path, *words: str) -> None:
    file.write_text(text)
    machine = subprocess.check_output(["uname", "-m"], text=True).strip()
    options = ["-O2", "-target", "bpf", "-mcpu=v3", "-DFFPF_STORES_IN_ORDER"]
    includes = ["-I", "bpf_src", "-I", f"/usr/include/{machine}-linux-gnu"]
    subprocess.run([find_clang(), *options, *includes, *words, "-c", file, "-o", output], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def rogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """bpf_src/ with a module that does what no node may."""
    folder = tmp_path_factory.mktemp("bitcode")
    for file in emit.BITCODE.glob("*.bc"):
        (folder / file.name).write_bytes(file.read_bytes())
    compile_c(folder / "rogue.c", ROGUE, folder / "rogue.bc", "-emit-llvm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emit, "BITCODE", folder)
        emit._bitcode.cache_clear()
        yield
    emit._bitcode.cache_clear()


ROGUES = [
    ("rogue_store", "writes to the packet (`*(u8 *)(r"),
    ("rogue_atomic", "writes to the packet (`atomic *(u64 *)(r"),
    ("rogue_redirect", "calls `bpf_redirect` (helper 23)"),
    ("rogue_probe", "calls `bpf_probe_read_kernel` (helper 113)"),
    ("rogue_override", "calls `bpf_override_return` (helper 58)"),
    ("rogue_clock", "calls `bpf_ktime_get_ns` (helper 5)"),
    ("rogue_adjust", "calls `bpf_xdp_adjust_head` (helper 44)"),
    ("rogue_flow", "uses the map `ffpf_flow_1`; granted: `ffpf_flow_0`, `ffpf_links`, `ffpf_tap`"),
    ("rogue_toggle", "writes to the head of `ffpf_flow_0`"),
    ("rogue_active", "writes to the head of `ffpf_tap`"),
    ("rogue_ring", "uses the map `ffpf_ring_0`"),
    ("rogue_address", "stores an address of the kernel where the application reads it"),
]


@pytest.mark.usefixtures("rogue")
@pytest.mark.parametrize(("function", "does"), ROGUES)
@pytest.mark.parametrize("behind", [Packetcount(), Grab(64)], ids=["counts", "grabs"])
def test_a_node_class_gets_no_more_than_its_effect_says(function: str, does: str, behind: Node) -> None:
    with pytest.raises(AuditError) as error:
        compiled(Device("tap0") >> Tcpflags("syn") >> Rogue(function, name="guest") >> behind)
    assert does in error.value.message, error.value.message
    assert re.fullmatch(r"node `guest`, program `ffpf_segment`, instruction \d+", error.value.where)


@pytest.mark.usefixtures("rogue")
def test_strings_and_functions_of_the_kernel_are_refused_before_the_audit() -> None:
    with pytest.raises(FfpfError, match="that no map answers"):
        compiled(Device("tap0") >> Rogue("rogue_printk"))
    with pytest.raises(AuditError, match=r"calls `bpf_xdp_metadata_rx_hash` of the kernel; granted: none"):
        compiled(Device("tap0") >> Rogue("rogue_kfunc"))


@pytest.mark.usefixtures("rogue")
def test_transforms_write_to_the_copy_and_not_to_the_packet() -> None:
    with pytest.raises(AuditError, match="program `ffpf_deliver_all`, instruction .*writes to the packet"):
        compiled(Device("tap0") >> RogueTransform() >> Grab(64))


@pytest.mark.usefixtures("rogue")
def test_what_an_effect_names_is_granted_if_it_can_be() -> None:
    found = compiled(Device("tap0") >> Rogue("rogue_clock", ("ktime_get_ns",)))
    assert found[SEGMENT_PROGRAM].audited(SEGMENT_PROGRAM).helpers >= {5}
    with pytest.raises(FfpfError, match="`redirect` is nothing that a node may call"):
        compiled(Device("tap0") >> Rogue("rogue_redirect", ("redirect",)))


@pytest.mark.root
@pytest.mark.usefixtures("rogue")
def test_nothing_is_loaded_if_the_audit_refuses(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    real = calls.load_program
    monkeypatch.setattr(
        calls, "load_program", lambda name, *of, **flags: loaded.append(name) or real(name, *of, **flags)
    )
    with network.enter(), Flow.create() as flow:
        flow.populate(Device("tap0") >> Rogue("rogue_store") >> Grab(64))
        with pytest.raises(AuditError, match="writes to the packet"):
            flow.instantiate()
    assert [name for name in loaded if name != "ffpf_probe"] == ["ffpf_entry"]


def test_only_what_was_audited_is_handed_out() -> None:
    found = compiled("(device,tap0) -> (packetcount)")[SEGMENT_PROGRAM]
    honest = found.audited(SEGMENT_PROGRAM)
    assert re.fullmatch("[0-9a-f]{64}", honest.digest)
    changed = replace(honest, instructions=honest.instructions[:-16] + number(0, 1) + op(0x95))
    bound_otherwise = replace(honest, relocations=tuple(Relocation(place.at, FLOW) for place in honest.relocations))
    for other in (changed, bound_otherwise):
        with pytest.raises(AuditError, match="program `ffpf_segment`: is not what was audited"):
            replace(found, programs={SEGMENT_PROGRAM: other}).audited(SEGMENT_PROGRAM)


def test_flows_load_only_what_was_audited() -> None:
    for file in (ROOT / "ffpf_bpf" / "flow").glob("*.py"):
        assert ".programs[" not in file.read_text(), f"{file.name}: take `.audited(name)`"


def test_each_read_of_the_packet_would_be_refused_as_a_write() -> None:
    """The same program, one of its loads turned round: wherever it is, the audit knows what it leads into."""
    flow = parts_of('(device,tap0) -> (bpf,"tcp port 80 or vlan or ip6 proto 17") -> (packetcount)')
    honest = compiler.compile_segment(flow, "tap0", 2)[SEGMENT_PROGRAM].audited(SEGMENT_PROGRAM)
    turned = 0
    for at, instruction in enumerate(decode(honest.instructions)):
        if instruction.kind is not Kind.LOAD or instruction.size > 2:  # of 4 and 8 bytes are those of maps
            continue
        code = instruction.opcode + 2
        written = op(code, instruction.source, instruction.target, instruction.offset)
        code_before, code_behind = honest.instructions[: 8 * at], honest.instructions[8 * at + 8 :]
        with pytest.raises(AuditError, match=r"writes to the packet \("):
            audit(replace(honest, instructions=code_before + written + code_behind), segment_grant(flow))
        turned += 1
    assert turned > 10


# Grants.


def test_grants_are_what_the_effects_need() -> None:
    counts = segment_grant(parts_of("(device,tap0) -> (bpf,udp) -> (packetcount)"))
    assert counts == GRANT
    grabs = parts_of('(device,tap0) -> (scan,"GET") -> (sampler,p=0.5) -> (limit,"1/s") -> (newflow) -> (grab)')
    assert segment_grant(grabs) == replace(
        GRANT, helpers=ALL | {5, 7, 118}, functions=ITERATOR, links=frozenset({NEXT, DELIVER})
    )
    assert deliver_grant(grabs) == DELIVERING
    several = deliver_grant(parts_of("(device,tap0) -> (packetcount)", "(device,tap0) -> (grab)"))
    assert several.rings == {"ffpf_ring_1"} and several.values == {"ffpf_tap", "ffpf_flow_0", "ffpf_flow_1"}
    assert entry_grant().values == {"ffpf_tap"} and not entry_grant().frames
    assert deliver_grant(grabs, TC) == replace(DELIVERING, helpers=ALL | DELIVERS | {26}, hook=TC)
    assert entry_grant(TC).copies and not segment_grant(grabs, TC).copies


def test_nothing_that_can_be_named_harms() -> None:
    assert set(CALLABLE) == {"ktime_get_ns", "get_prandom_u32", "jiffies64", "bpf_iter_num"}


# What exists passes.


@pytest.mark.parametrize("hook", ["", "@tc-ingress", "@tc-egress"])
@pytest.mark.parametrize("name", [name for name in CLASSES if CLASSES[name].example])
def test_every_node_class_passes(name: str, hook: str) -> None:
    expression = CLASSES[name].example
    tap = build(parse(expression)).taps[0].interface
    expression = expression.replace(f"(device,{tap})", f"(device,{tap}{hook})")
    objects = compiled(expression, tap=tap + hook)
    assert all(found.audited(program) for program, found in objects.items())


def test_folded_and_shared_segments_pass() -> None:
    flows = [f'(device,tap0) -> (bpf,"udp port {at}") -> (sampler,2) -> (grab,snaplen={60 + at})' for at in range(5)]
    compiled(*flows)
    compiled(
        *[
            "(device,tap0) -> (anonymise) -> (grab)",
            '(device,tap0) -> (scan,"GET") -> (grab)',
            "(device,tap0) -> (newflow)",
        ]
        * 3
    )
    first, second = parts_of(
        "(device,tap0) -> (bpf,udp) -> (newflow) -> (classify,dport) -53-> (grab) | -*-> (packetcount)",
        "(device,tap0) -> (bpf,udp) -> (newflow) -> (classify,dport) -53-> (bytecount)",
    )
    ours = {key: first.homes[step] for step, key in keys(first.graph).items()}
    common = {step: ours[key] for step, key in keys(second.graph).items() if key in ours}
    assert len(common) == 4
    shared = replace(second, homes=homes(second.graph, lay_out(second.graph, 2, common), 1, common))
    shared = replace(shared, memory=lay_out(second.graph, 2, common))
    compiler.compile_segment((first, shared), "tap0", 2)
    # A store that outlived its flow.
    compiler.compile_segment((shared,), "tap0", 2)


@seed(SEED)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MIDDLE, TAILS)
def test_random_graphs_pass(middle: Expression, tail: Expression) -> None:
    graph = checked(then(Device("tap0"), middle, tail))
    objects = compiled(graph.expression)
    assert graph.sinks or DELIVER_PROGRAM not in objects
    assert all(found.audited(program) for program, found in objects.items())


def test_dissecting_in_a_call_passes() -> None:
    compiled(then(Device("tap0"), *(Tcpflags("syn") for _ in range(5))) >> Grab(64))
