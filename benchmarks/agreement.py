"""Whether a flow and its rival do the same: packet by packet, before they are measured."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.frames import ASSORTED
from benchmarks.node_chains import Chain, Vary
from benchmarks.node_rivals import LoadedRival
from benchmarks.node_works import Work
from ffpf_bpf.graph.classes.scan import FIXED_BYTES
from ffpf_bpf.kernel import calls

AGAIN = 3  # rounds: nodes that remember see each packet again
VARIED = 64
AT_RANDOM = 100_000
SIGMAS = 6


def check(work: Work, ours: Chain, rival: LoadedRival) -> None:
    """Raise ValueError, and name the packet, if they let different packets pass or count or record something else."""
    packets = [*ASSORTED, work.packet, *work.examples]
    if work.vary is not None:
        packets += [_another(work.packet, work.vary, number) for number in range(VARIED)]
    if work.chance:
        _check_at_random(work, ours, rival)
        return
    for packet in packets * AGAIN:
        before = ours.totals(), rival.totals()
        for program in (ours.program, rival.program):
            calls.test_run(program, packet)
        after = ours.totals(), rival.totals()
        names = [name for name in after[1] if name in after[0]]
        changes = [[now[name] - was[name] for name in names] for was, now in zip(before, after, strict=True)]
        if changes[0] != changes[1]:
            raise ValueError(f"{work.name}: {rival.rival.name}.c disagrees on {packet.hex()}: {names} {changes}")
        if rival.rival.records is not None:
            _check_records(work, packet, ours, rival)
    found, expected = _tallies(ours), _rival_tallies(rival)
    if "last" in rival.rival.maps:  # no two packets come after the same time: only how many came is the same
        found, expected = [sum(found)], [sum(expected)]
    if found != expected:
        raise ValueError(f"{work.name}: {rival.rival.name}.c counts {expected}, not {found}")


def _another(packet: bytes, vary: Vary, number: int) -> bytes:
    word = (vary.base + number % vary.flows).to_bytes(4, "big")
    return packet[: vary.offset] + word + packet[vary.offset + 4 :]


def _check_records(work: Work, packet: bytes, ours: Chain, rival: LoadedRival) -> None:
    records, expected = ours.records(), rival.records()
    if expected is not None and records != expected:
        raise ValueError(f"{work.name}: {rival.rival.name}.c records {packet.hex()} as {expected}, not {records}")
    rival.drain()


def _tallies(ours: Chain) -> list[int]:
    """What a node counts one by one, and in order: packets in each bin of a histogram, of each pattern of a scan."""
    for node in ours.flows[0].stats().nodes:
        if node.class_name in ("histogram", "scan"):
            words = ours.flows[0].node(node.id).mbuf.view(np.uint64).sum(axis=0)
            return [int(total) for total in words[FIXED_BYTES // 8 if node.class_name == "scan" else 0 :]]
    return []


def _rival_tallies(rival: LoadedRival) -> list[int]:
    names = [name for name in ("bins", "hits") if name in rival.rival.maps]
    return rival.values(names[0]) if names else []


def _check_at_random(work: Work, ours: Chain, rival: LoadedRival) -> None:
    slack = SIGMAS * math.sqrt(AT_RANDOM * work.chance * (1 - work.chance))
    for name, one in (("the flow", ours), (f"{rival.rival.name}.c", rival)):
        calls.test_run(one.program, work.packet, AT_RANDOM)
        passed = one.totals()["passed"]
        if abs(passed - AT_RANDOM * work.chance) > slack:
            raise ValueError(f"{work.name}: {name} lets {passed} of {AT_RANDOM} pass")
