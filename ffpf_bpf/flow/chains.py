"""The chains of this process, one per tap: which flows share a segment, and how a chain changes without a loss.

A flow joins with a segment of its own, which is quick. When a chain grows long, its segments are folded into one: a
segment evaluates several flows in one program, sharing their packet loads, and saves a tail call for each. A flow that
leaves a shared segment leaves it rebuilt without it. Counters, samplers and rings live in the flows' maps, so a rebuilt
segment goes on where the old one was.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from ffpf_bpf import compiler
from ffpf_bpf.compiler import DELIVER_PROGRAM, SEGMENT_PROGRAM, Object, SegmentFlow
from ffpf_bpf.compiler.lines import node_at
from ffpf_bpf.errors import FfpfError, KernelError, VerifierError
from ffpf_bpf.graph.memory import SCRATCH_BYTES, TAP_BYTES
from ffpf_bpf.kernel import calls, interfaces, tap
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Descriptor
from ffpf_bpf.kernel.programs import Binding

LONGEST_CHAIN = 4
MOST_FLOWS_IN_SEGMENT = 24  # a program takes 64 maps: two for each flow, the tap's and the links
LOG_LINES_SHOWN = 6
TOO_LARGE = "the verifier gave up on its size: split the filter or the flow, as in several nodes joined by `|`"
DEFECT = "this is a defect of the compiler or a limit of this kernel: report it with the flow expression"


@dataclass(frozen=True, eq=False, slots=True)
class Member:
    """A flow as a chain sees it: what to compile, and the maps to bind."""

    part: SegmentFlow
    flow_map: Descriptor
    ring_map: Descriptor | None


@dataclass(frozen=True, eq=False, slots=True)
class _Shared:
    """A loaded segment and the flows in it."""

    members: tuple[Member, ...]
    segment: tap.Segment


class Chain:
    """The chain of one tap."""

    def __init__(self, name: str, attached: tap.Tap) -> None:
        self.name = name
        self.tap = attached
        self.active = 0
        self._shared: list[_Shared] = []

    @property
    def members(self) -> int:
        return sum(len(shared.members) for shared in self._shared)

    def join(self, member: Member) -> None:
        """Add a flow at the end, as a segment of its own; fold the chain if it has become long."""
        self._replace([], (member,))
        if len(self._shared) > LONGEST_CHAIN:
            try:
                self._fold()
            except FfpfError:
                # The flow has joined. A chain that could not be made shorter is as right as before.
                return
            except BaseException:
                self.leave([member])
                raise

    def leave(self, members: list[Member]) -> None:
        """Take flows out: each segment they are in is rebuilt once, or goes."""
        with ExitStack() as every:
            for shared in self._shared:
                others = tuple(member for member in shared.members if member not in members)
                if len(others) < len(shared.members):
                    every.callback(self._rebuild, shared, others)

    def count_active(self, change: int) -> None:
        """Flows switched on or off: one store, seen by the next packet."""
        self.active += change
        self.tap.set_active(self.active)

    def _rebuild(self, shared: _Shared, others: tuple[Member, ...]) -> None:
        """`shared` with only `others` in it."""
        try:
            self._replace([shared], others)
        except BaseException as error:
            # The old segment stays. Who left is switched off in it, and its maps go with it.
            if shared in self._shared:
                self._shared[self._shared.index(shared)] = _Shared(others, shared.segment)
            if not isinstance(error, FfpfError) or not others:
                raise

    def _fold(self) -> None:
        """Merge the trailing segments that are not full yet into one."""
        tail: list[_Shared] = []
        for shared in reversed(self._shared):
            members = [member for other in (shared, *tail) for member in other.members]
            if len(members) > MOST_FLOWS_IN_SEGMENT or not compiler.fit_together([one.part for one in members]):
                break
            tail.insert(0, shared)
        if len(tail) > 1:
            self._replace(tail, tuple(member for shared in tail for member in shared.members))

    def _replace(self, old: list[_Shared], members: tuple[Member, ...]) -> None:
        """One segment with `members` in place of the neighbours `old`."""
        at = self._shared.index(old[0]) if old else len(self._shared)
        with ExitStack() as undo:
            new = self._load(members) if members else None
            if new is not None:
                undo.callback(new.close)
            self.tap.link([shared.segment for shared in old], new)
            undo.pop_all()
        self._shared[at : at + len(old)] = [_Shared(members, new)] if new is not None else []
        self.tap.retire([shared.segment for shared in old])

    def _load(self, members: tuple[Member, ...]) -> tap.Segment:
        parts = tuple(member.part for member in members)
        compiled = compiler.compile_segment(parts, self.name, calls.possible_cpus())
        bindings = {}
        for number, member in enumerate(members):
            bindings[f"ffpf_flow_{number}"] = Binding(member.flow_map, True)
            if member.ring_map is not None:
                bindings[f"ffpf_ring_{number}"] = Binding(member.ring_map, False)
        programs = {name: found.programs[name] for name, found in compiled.items()}
        try:
            return self.tap.load_segment(programs[SEGMENT_PROGRAM], programs.get(DELIVER_PROGRAM), bindings)
        except VerifierError as error:
            raise _explained(error, parts, self.name) from None


class Chains:
    """The chains of this process by tap. Changes are made one at a time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._chains: dict[tuple[int, int, str], Chain] = {}

    def enter(self, interface: Interface, hook: str, member: Member) -> Chain:
        """Join the chain of a tap, attached now if this process does not hold it yet."""
        key = (interface.namespace, interface.index, hook)
        with self.lock:
            chain = self._chains.get(key)
            if chain is not None:
                if not chain.tap.holds(interface):
                    raise KernelError(
                        "the interface is not the one that this process attached to: renamed, or made anew",
                        where=interface.name,
                        help="close the flows on the old one first",
                    )
                chain.join(member)
                return chain
            with ExitStack() as undo:
                chain = _attach(interface)
                undo.callback(chain.tap.close)
                chain.join(member)
                undo.pop_all()
            self._chains[key] = chain
            return chain

    def exit(self, places: Iterable[tuple[Chain, Member]]) -> None:
        """Leave chains; the last one out detaches. Goes on with the others if one fails, and raises then."""
        leaving: dict[Chain, list[Member]] = {}
        for chain, member in places:
            leaving.setdefault(chain, []).append(member)
        with self.lock, ExitStack() as every:
            for chain, members in leaving.items():
                if chain.members > len(members):
                    every.callback(chain.leave, members)
                else:
                    every.callback(chain.tap.close)
                    self._chains = {key: other for key, other in self._chains.items() if other is not chain}

    def forget(self) -> None:
        """In a child that inherited them: the chains are the parent's."""
        self.lock = threading.RLock()
        self._chains = {}

    def toggle(self, chains: Iterable[Chain], change: int, store: Callable[[], None]) -> None:
        """Switch a flow on or off in its chains: its own toggle first when it goes on."""
        with self.lock:
            if change > 0:
                store()
            for chain in chains:
                chain.count_active(change)
            if change < 0:
                store()


CHAINS = Chains()


def _attach(interface: Interface) -> Chain:
    cpus = calls.possible_cpus()
    control_bytes = TAP_BYTES + cpus * SCRATCH_BYTES
    entry = compiler.compile_entry(cpus).programs[compiler.ENTRY_PROGRAM]
    return Chain(interface.name, tap.attach(interface, entry, control_bytes))


def find_interface(name: str, hook: str) -> Interface:
    """The interface of a tap. Raises KernelError for a hook that cannot be attached."""
    if hook != "xdp":
        raise KernelError(
            f"hook `{hook}` is not supported yet",
            where=f"{name}@{hook}",
            help=f"use `{name}`, which means `{name}@xdp`",
        )
    return interfaces.find(name)


def _explained(error: VerifierError, parts: tuple[SegmentFlow, ...], name: str) -> VerifierError:
    """The verifier's refusal in terms of the graph: compiled once more with lines, to find the node."""
    missing = re.search(r"(?:unknown|invalid) func (\w+)#\d+", error.log)
    if missing is not None:
        return VerifierError(
            f"this kernel has no helper `{missing[1]}`",
            log=error.log,
            errno=error.errno,
            where=f"{name}@xdp",
            help="5.18 is the oldest kernel that has all that is needed; `ffpf doctor` tells what is missing",
        )
    with_lines = compiler.compile_segment(parts, name, calls.possible_cpus(), debug=True)
    lines = [line for line in error.log.splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("processed ", "max_states", "verification time"))]
    node = _node_at(with_lines[SEGMENT_PROGRAM], parts, useful) if SEGMENT_PROGRAM in error.message else ""
    omitted = max(0, len(useful) - LOG_LINES_SHOWN)
    shown = [f"({omitted} lines omitted)"] if omitted else []
    shown += useful[-LOG_LINES_SHOWN:]
    return VerifierError(
        "the verifier refused the program\n" + "\n".join(f"    {line}" for line in shown),
        log=error.log,
        errno=error.errno,
        where=node or f"{name}@xdp",
        help=TOO_LARGE if "too large" in error.log or "too many" in error.log else DEFECT,
    )


def _node_at(compiled: Object, parts: tuple[SegmentFlow, ...], log: list[str]) -> str:
    """The node whose code the log's last instruction belongs to, as `(bpf) bpf1`, or ""."""
    lines = compiled.lines(SEGMENT_PROGRAM)
    for text in reversed(log):
        number = text.partition(":")[0]
        if number.isdecimal():
            before = [at for at in lines if at <= int(number)]
            place = node_at(lines[max(before)]) if before else None
            if place is not None:
                graph = parts[place[0]].graph
                return f"node `{graph.ids[place[1]]}`"
    return ""
