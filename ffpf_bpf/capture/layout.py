"""The layouts of bpf_src/ffpf.h as numpy dtypes, so that Python views the kernel's memory where it lies.

`ffpf.h` is the truth: tests/test_layout.py compares each dtype with the BTF that clang makes of it. Fields have the
names of the C members. A ring is viewed as `np.frombuffer(memory, slot_dtype(ring.slot_bytes))`.
"""

from __future__ import annotations

import numpy as np

HEADER_BYTES = 28  # of a slot before its data: struct ffpf_slot
TRAILER_BYTES = 4  # of a slot after its data: the block's length again
BLOCK_TYPE = 6  # a slot is an Enhanced Packet Block (draft-ietf-opsawg-pcapng, section 4.3)
FILL_OPTION = 0xFFFE  # the option, with a local-use code, that fills what the data leaves of a slot

FLOW_DTYPE = np.dtype([("toggle", "<u4"), ("reserved0", "<u4"), ("clock_offset_ns", "<u8"), ("reserved", "u1", (48,))])
"""struct ffpf_flow, 64 bytes: the head of a flow's map."""

CPU_DTYPE = np.dtype([("seen", "<u8"), ("fates", "<u8", (6,)), ("reserved", "u1", (8,))])
"""struct ffpf_cpu, 64 bytes: one CPU's ledger; `fates` is indexed by graph.effect.Fate."""

RING_DTYPE = np.dtype(
    [
        *[("head", "<u8"), ("limit", "<u8"), ("stored", "<u8"), ("reserved0", "u1", (40,))],
        *[("readers", "<u4"), ("reserved1", "u1", (60,))],
    ]
)
"""struct ffpf_ring, 128 bytes: one CPU's state of a packet ring."""

READER_DTYPE = np.dtype(
    [
        *[("indexed", "<u8"), ("first", "<u8"), ("reserved0", "u1", (48,)), ("pace", "<u4"), ("reserved1", "<u4")],
        *[("tail", "<u8"), ("wait", "<u8"), ("overrun", "<u8"), ("bell", "<u8"), ("reserved2", "u1", (24,))],
    ]
)
"""struct ffpf_reader, 128 bytes: where one flow is in one CPU's packet ring."""

TAP_DTYPE = np.dtype(
    [
        *[("active", "<u4"), ("owner_pid", "<u4"), ("seed", "<u8"), ("reach", "<u4"), ("far_reach", "<u4")],
        *[("owner_began", "<u8"), ("owner_pids", "<u4"), ("monitor", "<u4"), ("reserved", "u1", (24,))],
    ]
)
"""struct ffpf_tap, 64 bytes: the head of a tap's map."""

HEADERS_DTYPE = np.dtype(
    [
        ("known", "<u4"),
        *[(name, "<u2") for name in ("ethertype", "vlan", "l3", "l4", "payload", "sport", "dport")],
        *[(name, "u1") for name in ("version", "protocol", "fragment", "ports", "tcp_flags", "traffic", "ttl", "tcp")],
    ],
    align=True,
)
"""struct ffpf_headers, 28 bytes: what is known of a packet's headers."""

SCRATCH_DTYPE = np.dtype(
    {
        "names": ["now_ns", "grabbed", "headers", "flow_hash", "packet", "length", "copied", "reserved"],
        "formats": ["<u8", "<u8", HEADERS_DTYPE, "<u8", "<u8", "<u4", "<u4", ("u1", (56,))],
        "offsets": [0, 8, 16, 48, 56, 64, 68, 72],
        "itemsize": 128,
    }
)
"""struct ffpf_scratch, 128 bytes: one CPU's notes on the packet that is in the chain."""

ENTRY_DTYPE = np.dtype([("position", "<u8"), ("sinks", "<u4"), ("result", "<u4")])
"""struct ffpf_entry, 16 bytes: what a record is to a flow that tells sinks or results apart."""


def slot_dtype(slot_bytes: int) -> np.dtype[np.void]:
    """A ring slot of `slot_bytes`: struct ffpf_slot, the data with its padding and filler, and the trailing length.

    Raises ValueError if no pcapng block has that size.
    """
    data_bytes = slot_bytes - HEADER_BYTES - TRAILER_BYTES
    if data_bytes <= 0 or slot_bytes % 4:
        raise ValueError(f"a slot is a multiple of 4 bytes and more than 32, not {slot_bytes}")
    return np.dtype(
        [
            ("block_type", "<u4"),
            ("block_length", "<u4"),
            ("interface", "<u4"),
            ("time_high", "<u4"),
            ("time_low", "<u4"),
            ("captured", "<u4"),
            ("original", "<u4"),
            ("data", "u1", (data_bytes,)),
            ("trailer", "<u4"),
        ]
    )
