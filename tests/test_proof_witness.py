"""What packets are made of a solver's values, and how they are described: whatever the values are."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.witness import described, fields_of, packet_of

ETHERTYPES = st.sampled_from([0x0800, 0x86DD, 0x0806, 0x8035, 0x8100, 0x88A8, 0x0042, 0x88B5])


@given(
    st.integers(0, 200),
    st.lists(ETHERTYPES, max_size=4),
    st.dictionaries(st.integers(0, 120), st.integers(0, 255), max_size=12),
)
@example(14, [0x0800], {})
@example(0, [], {})
def test_any_values_make_a_packet_that_has_them(size: int, types: list[int], values: dict[int, int]) -> None:
    told = {
        12 + 4 * number + at: byte
        for number, kind in enumerate(types)
        for at, byte in enumerate(struct.pack("!H", kind))
    }
    told |= values

    frame = packet_of({t.length(): size, **{t.byte(at): value for at, value in told.items()}})

    assert len(frame) == size
    assert all(frame[at] == value for at, value in told.items() if at < size)
    assert described(frame).endswith(f", {size} bytes")
    assert all(each.start >= 0 for each in fields_of(frame))
