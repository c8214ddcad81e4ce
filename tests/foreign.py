"""Programs of somebody else at tc: they count what they see in a map of their own, and end as they like."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from ffpf_bpf.kernel import calls
from ffpf_bpf.kernel.maps import Descriptor, MappedArray

TCX_NEXT, TCX_PASS, TCX_DROP = -1, 0, 2
SKB_VLAN_PUSH = 18


class Foreign:
    """A loaded program and how often it ran."""

    def __init__(self, program: Descriptor, counter: MappedArray) -> None:
        self.program = program
        self._counter = counter

    @property
    def runs(self) -> int:
        return int.from_bytes(self._counter.memory[:8], "little")


@contextmanager
def foreign(verdict: int, tag: tuple[int, int] | None = None) -> Iterator[Foreign]:
    """A program that counts, puts a tag of that type and id beside the packet, and ends with `verdict`."""
    with MappedArray("foreign", 8) as counter:
        steps = [
            (0xBF, 6, 1, 0, 0),  # r6 = r1
            (0x18, 1, 2, 0, counter.fileno),  # *(u64 *)counter += 1
            (0, 0, 0, 0, 0),
            (0x79, 2, 1, 0, 0),
            (0x07, 2, 0, 0, 1),
            (0x7B, 1, 2, 0, 0),
        ]
        if tag is not None:
            steps += [
                (0xBF, 1, 6, 0, 0),
                (0xB7, 2, 0, 0, int.from_bytes(tag[0].to_bytes(2, "big"), "little")),
                (0xB7, 3, 0, 0, tag[1]),
                (0x85, 0, 0, 0, SKB_VLAN_PUSH),
            ]
        steps += [(0xB7, 0, 0, 0, verdict), (0x95, 0, 0, 0, 0)]
        instructions = b"".join(
            struct.pack("<BBhi", code, source << 4 | target, offset, number)
            for code, target, source, offset, number in steps
        )
        with Descriptor(calls.load_program("foreign", instructions, calls.PROG_SCHED_CLS)) as program:
            yield Foreign(program, counter)
