"""How large a packet ring may be, and how large one is that holds so many packets."""

from __future__ import annotations

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.memory import size_ring

DEFAULT_BUFFER_BYTES = 4 << 20
LEAST_BUFFER_BYTES, LARGEST_BUFFER_BYTES = 4096, 1 << 30


def check_buffer(buffer_bytes: int) -> None:
    """Raise ExpressionError unless it is a size that a flow may ask for, for each CPU."""
    if not isinstance(buffer_bytes, int) or not LEAST_BUFFER_BYTES <= buffer_bytes <= LARGEST_BUFFER_BYTES:
        raise ExpressionError(f"a buffer of {buffer_bytes} bytes", help="between 4 KiB and 1 GiB for each CPU")


def buffer_for(packets: int, snaplen: int) -> int:
    """The bytes of the smallest ring that holds so many packets of up to `snaplen` bytes, which is 0 where it is not
    known. Raises ExpressionError."""
    if not isinstance(packets, int) or packets < 1:
        raise ExpressionError(f"a buffer of {packets} packets", help="one or more, for each CPU")
    if not snaplen:
        raise ExpressionError(
            f"a buffer of {packets} packets, of whatever length", help="state a snaplen, or the buffer in bytes"
        )
    buffer_bytes = max(LEAST_BUFFER_BYTES, size_ring(snaplen, 0).slot_bytes << (packets - 1).bit_length())
    check_buffer(buffer_bytes)
    return buffer_bytes
