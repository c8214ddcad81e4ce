"""bpf_src/ffpf.h is the one truth for every shared layout: what Python holds of it is compared with clang's BTF."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffpf_bpf.capture import layout, ring
from ffpf_bpf.compiler import frame, reach
from ffpf_bpf.flow import statistics
from ffpf_bpf.graph import memory, predicate
from ffpf_bpf.graph.effect import NO_RESULT, Fate
from ffpf_bpf.kernel import holders, tap

BPF_SRC = Path(__file__).parent.parent / "bpf_src"
SLOT_BYTES = 128
STRUCTS = {
    "ffpf_flow": layout.FLOW_DTYPE,
    "ffpf_cpu": layout.CPU_DTYPE,
    "ffpf_ring": layout.RING_DTYPE,
    "ffpf_reader": layout.READER_DTYPE,
    "ffpf_tap": layout.TAP_DTYPE,
    "ffpf_scratch": layout.SCRATCH_DTYPE,
    "ffpf_headers": layout.HEADERS_DTYPE,
    "ffpf_entry": layout.ENTRY_DTYPE,
}
# A macro leaves no trace in BTF, an enumerator with its value does.
SOURCE = """
#include "ffpf.h"
enum macros {
	FILL_OPTION = FFPF_FILL_OPTION, NO_RESULT = FFPF_NO_RESULT, MOST_READERS = FFPF_MOST_READERS,
	LONGEST_FRAME = FFPF_LONGEST_FRAME, FRAME_BYTES = FFPF_FRAME_BYTES, FRAME_START = FFPF_FRAME_START,
	LONGEST_REACH = FFPF_LONGEST_REACH,
};
struct ffpf_flow flow;
struct ffpf_cpu cpu;
struct ffpf_ring ring;
struct ffpf_reader reader;
enum ffpf_pace pace;
struct ffpf_tap tap;
struct ffpf_scratch scratch;
struct ffpf_slot slot;
struct ffpf_headers headers;
struct ffpf_entry entry;
enum ffpf_fate fate;
enum ffpf_link link;
enum macros macros;
"""

Members = dict[str, tuple[int, int]]
"""Offset and size in bytes, by name."""


class Btf:
    """The types of an object file, as bpftool prints them."""

    def __init__(self, types: list[dict[str, Any]]) -> None:
        self.by_id = {each["id"]: each for each in types}
        self.by_name = {each["name"]: each for each in types if each["kind"] in ("STRUCT", "ENUM")}

    def members(self, struct: str) -> Members:
        described = self.by_name[struct]["members"]
        return {each["name"]: (each["bits_offset"] // 8, self.size(each["type_id"])) for each in described}

    def enumerators(self, enum: str) -> dict[str, int]:
        return {each["name"]: each["val"] for each in self.by_name[enum]["values"]}

    def size(self, type_id: int) -> int:
        described = self.by_id[type_id]
        match described["kind"]:
            case "INT" | "STRUCT" | "ENUM":
                return int(described["size"])
            case "ARRAY":
                return int(described["nr_elems"]) * self.size(described["type_id"])
            case "TYPEDEF":
                return self.size(described["type_id"])
            case kind:
                raise AssertionError(f"{kind}: no layout of ffpf.h has had such a member before")


def members(dtype: np.dtype[np.void]) -> Members:
    assert dtype.fields is not None
    return {name: (offset, field.itemsize) for name, (field, offset, *_) in dtype.fields.items()}


def find_clang() -> str:
    """The newest clang from 16 on."""
    path = os.environ["PATH"].split(os.pathsep)
    names = {each.name for folder in path for each in Path(folder).glob("clang-*")}
    versions = sorted(int(found[1]) for name in names if (found := re.fullmatch(r"clang-(\d+)", name)))
    assert versions and versions[-1] >= 16, f"clang-16 or newer is needed, found {versions}"
    return f"clang-{versions[-1]}"


@pytest.fixture(scope="module")
def btf(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    folder = tmp_path_factory.mktemp("layout")
    source, target = folder / "layout.c", folder / "layout.o"
    source.write_text(SOURCE)
    headers = f"/usr/include/{platform.machine()}-linux-gnu"
    options = ["-g", "-O2", "-target", "bpf", "-mcpu=v3", f"-I{BPF_SRC}", f"-I{headers}"]
    subprocess.run([find_clang(), *options, "-c", source, "-o", target], check=True)
    bpftool = shutil.which("bpftool", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert bpftool, "bpftool is needed: apt-get install bpftool"
    dump = [bpftool, "btf", "dump", "file", target, "format", "raw", "-j"]
    return Btf(json.loads(subprocess.run(dump, check=True, capture_output=True).stdout)["types"])


@pytest.mark.parametrize("struct", STRUCTS)
def test_dtype_is_the_struct(btf: Btf, struct: str) -> None:
    assert members(STRUCTS[struct]) == btf.members(struct)
    assert STRUCTS[struct].itemsize == btf.by_name[struct]["size"]


def test_slot_is_the_struct_then_data_and_the_length_again(btf: Btf) -> None:
    header = btf.by_name["ffpf_slot"]["size"]
    assert members(layout.slot_dtype(SLOT_BYTES)) == {
        **btf.members("ffpf_slot"),
        "data": (header, SLOT_BYTES - header - 4),
        "trailer": (SLOT_BYTES - 4, 4),
    }
    assert layout.slot_dtype(SLOT_BYTES).itemsize == SLOT_BYTES
    assert header == layout.HEADER_BYTES
    assert memory.BLOCK_BYTES == layout.HEADER_BYTES + layout.TRAILER_BYTES


@pytest.mark.parametrize("slot_bytes", [0, 28, 32, 127, 130])
def test_slot_that_is_no_block_is_refused(slot_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"not {slot_bytes}"):
        layout.slot_dtype(slot_bytes)


def test_ring_slots_are_blocks() -> None:
    for snaplen in (1, 4, 64, 96, 97, 1500, 65535):
        slot_bytes = memory.size_ring(snaplen, 1 << 20).slot_bytes
        data_bytes = layout.slot_dtype(slot_bytes)["data"].itemsize
        assert data_bytes >= snaplen, snaplen


def test_sizes_of_the_graph_layer(btf: Btf) -> None:
    sizes = {name: btf.by_name[name]["size"] for name in STRUCTS if name != "ffpf_headers"}
    assert sizes == {
        "ffpf_flow": memory.FLOW_BYTES,
        "ffpf_cpu": memory.CPU_BYTES,
        "ffpf_ring": memory.RING_BYTES,
        "ffpf_reader": memory.READER_BYTES,
        "ffpf_tap": memory.TAP_BYTES,
        "ffpf_scratch": memory.SCRATCH_BYTES,
        "ffpf_entry": memory.TAGGED_ENTRY_BYTES,
    }


def test_offsets_of_the_compiler(btf: Btf) -> None:
    cpu, scratch = btf.members("ffpf_cpu"), btf.members("ffpf_scratch")
    assert cpu["seen"] == (frame.SEEN, 8)
    assert cpu["fates"] == (frame.FATES, 8 * btf.enumerators("ffpf_fate")["FFPF_FATES"])
    assert scratch["grabbed"] == (frame.GRABBED, 8)


def test_words_of_those_who_read_the_counters(btf: Btf) -> None:
    cpu, state, reader = (
        {name: offset // 8 for name, (offset, _) in btf.members(struct).items()}
        for struct in ("ffpf_cpu", "ffpf_ring", "ffpf_reader")
    )
    assert cpu["fates"] + Fate.RING_FULL == ring.RING_FULL
    assert (cpu["seen"], cpu["fates"]) == (statistics.SEEN, statistics.FATES)
    assert (state["head"], state["limit"], state["readers"]) == (ring.HEAD, ring.LIMIT, ring.READERS)
    words = (ring.INDEXED, ring.PACE, ring.TAIL, ring.WAIT, ring.OVERRUN, ring.BELL)
    assert tuple(reader[name] for name in ("indexed", "pace", "tail", "wait", "overrun", "bell")) == words
    assert {f"FFPF_{pace.name}": pace.value for pace in ring.ReaderPace} == btf.enumerators("ffpf_pace")


def test_offsets_of_the_kernel_layer(btf: Btf) -> None:
    assert btf.members("ffpf_tap")["owner_pid"] == (holders.PID_OFFSET, 4)
    assert btf.members("ffpf_tap")["owner_began"] == (holders.BEGAN_OFFSET, 8)
    assert btf.members("ffpf_tap")["owner_pids"] == (holders.PIDS_OFFSET, 4)
    assert btf.members("ffpf_tap")["monitor"] == (holders.MONITOR_OFFSET, 4)
    assert btf.members("ffpf_tap")["reach"] == (tap.REACH_OFFSET, 4)
    assert btf.members("ffpf_tap")["far_reach"] == (tap.REACH_OFFSET + 4, 4)
    assert btf.members("ffpf_scratch")["length"] == (frame.LENGTH, 4)
    assert btf.members("ffpf_scratch")["copied"] == (frame.COPIED, 4)
    assert btf.members("ffpf_tap")["seed"] == (tap.SEED_OFFSET, 8)


def test_what_a_cpu_writes_is_a_cache_line_away_from_what_the_application_writes(btf: Btf) -> None:
    of_kernel = {"ffpf_ring": ("head", "limit", "stored"), "ffpf_reader": ("indexed", "first")}
    of_application = {"ffpf_ring": ("readers",), "ffpf_reader": ("pace", "tail", "wait", "overrun", "bell")}
    for struct, names in of_kernel.items():
        found = btf.members(struct)
        assert all(sum(found[name]) <= memory.CACHE_LINE for name in names)
        assert all(found[name][0] >= memory.CACHE_LINE for name in of_application[struct])


def test_fates(btf: Btf) -> None:
    fates = {f"FFPF_{fate.name}": fate.value for fate in Fate}
    assert btf.enumerators("ffpf_fate") == {**fates, "FFPF_FATES": len(Fate)}
    assert layout.CPU_DTYPE["fates"].shape == (len(Fate),)


def test_links(btf: Btf) -> None:
    links = btf.enumerators("ffpf_link")
    assert links == {"FFPF_NEXT": frame.NEXT, "FFPF_DELIVER": frame.DELIVER, "FFPF_LINKS": 2}
    assert links == {"FFPF_NEXT": tap.NEXT, "FFPF_DELIVER": tap.DELIVER, "FFPF_LINKS": tap.LINKS}


def test_macros(btf: Btf) -> None:
    assert btf.enumerators("macros") == {
        "FILL_OPTION": layout.FILL_OPTION,
        "NO_RESULT": NO_RESULT,
        "MOST_READERS": memory.MOST_READERS,
        "LONGEST_FRAME": predicate.LONGEST_FRAME,
        "FRAME_BYTES": frame.FRAME_BYTES,
        "FRAME_START": frame.FRAME_START,
        "LONGEST_REACH": reach.LONGEST,
    }
    assert frame.FRAME_BYTES == tap.FRAME_BYTES
