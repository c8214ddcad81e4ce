"""The chains of this process, one per tap: which flows share a segment, and how a chain changes without a loss.

A flow joins with a segment of its own, which is quick, unless it has steps in common with flows of its group: these run
once, so the flows share a segment, and the nodes' memory (`Chains.common`). When a chain grows long, its segments are
folded into one: a segment evaluates several flows in one program, sharing their packet loads, and saves a tail call for
each. A flow that leaves a shared segment leaves it rebuilt without it. Counters, samplers and rings live in the flows'
maps, so a rebuilt segment goes on where the old one was.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from ffpf_bpf import compiler
from ffpf_bpf.compiler import DELIVER_PROGRAM, SEGMENT_PROGRAM, Object, SegmentFlow
from ffpf_bpf.compiler.lines import node_before
from ffpf_bpf.errors import FfpfError, KernelError, VerifierError
from ffpf_bpf.flow.store import PacketRing, Store
from ffpf_bpf.graph.effect import tap_name
from ffpf_bpf.graph.expression import Role
from ffpf_bpf.graph.graph import sources
from ffpf_bpf.graph.memory import SCRATCH_BYTES, TAP_BYTES, Home
from ffpf_bpf.graph.sharing import Key
from ffpf_bpf.kernel import calls, probes, tap
from ffpf_bpf.kernel.attachment import NotNative
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Bell
from ffpf_bpf.kernel.namespaces import Namespace
from ffpf_bpf.kernel.programs import Binding

LONGEST_CHAIN = 4
MOST_FLOWS_IN_SEGMENT = 20
ORDINARY_MTU = 1500  # up to here every driver has a buffer for a whole frame
MOST_MAPS = 64  # of a program: each flow's, its ring and its bell, the links, and the tap's, two at tc
LOG_LINES_SHOWN = 6
TOO_LARGE = "the verifier gave up on its size: split the filter into several nodes, or the flow into several flows"
DEFECT = "this is a defect of the compiler or a limit of this kernel: report it with the flow expression"

BeforeLoad = Callable[[str, Mapping[str, bytes]], None]  # a tap, and instructions by the name of the program


@dataclass(frozen=True, eq=False, slots=True)
class Member:
    """A flow as a chain sees it: what to compile, and the maps to bind. Flows of one `group` may share steps, those of
    equal `keys`. `before_load` is told of the programs that the flow joins with, and may refuse by raising."""

    part: SegmentFlow
    stores: Mapping[int, Store]
    ring: PacketRing | None
    bell: Bell | None
    group: object = None
    keys: Mapping[int, Key] = field(default_factory=dict)
    before_load: BeforeLoad | None = None

    @property
    def homes_by_key(self) -> dict[Key, Home]:
        return {key: self.part.homes[step] for step, key in self.keys.items()}


@dataclass(frozen=True, eq=False, slots=True)
class _Shared:
    """A loaded segment and the flows in it."""

    members: tuple[Member, ...]
    segment: tap.Segment


class Chain:
    """The chain of one tap."""

    def __init__(self, name: str, hook: compiler.Hook, attached: tap.Tap) -> None:
        self.name = name
        self.hook = hook
        self.tap = attached
        self.active = 0
        self.monitor = False  # whether frames end behind it, as all flows in it say
        self.is_closed = False
        self._shared: list[_Shared] = []

    @property
    def members(self) -> int:
        return sum(len(shared.members) for shared in self._shared)

    def join(self, member: Member) -> None:
        """Add a flow: to the segments of the flows it has steps in common with, which become one, or at the end, as a
        segment of its own. Fold the chain if it has become long."""
        joined = self.segments_of(member.part.used)
        try:
            others = tuple(other for shared in joined for other in shared.members)
            self._replace(joined, (*others, member), member.before_load)
        except BaseException:
            # Refused, or interrupted when it was in already, while the old segments were waited for.
            self.leave([member])
            raise
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

    def segments_of(self, homes: frozenset[tuple[int, int]]) -> list[_Shared]:
        """The segments in which nodes have one of the homes, and those between them."""
        at = [
            number
            for number, shared in enumerate(self._shared)
            if any(homes & member.part.used for member in shared.members)
        ]
        return self._shared[at[0] : at[-1] + 1] if at else []

    def has_room_beside(self, part: SegmentFlow) -> bool:
        """Whether a flow can join the segments of those that it has steps in common with."""
        return _fit([member.part for shared in self.segments_of(part.used) for member in shared.members] + [part])

    def all_members(self) -> Iterator[Member]:
        return (member for shared in self._shared for member in shared.members)

    def count_active(self, change: int) -> None:
        """Flows switched on or off: one store, seen by the next packet."""
        self.active += change
        if not self.is_closed:
            self.tap.set_active(self.active)

    def is_attached(self) -> bool:
        """Whether the kernel still has it at its interface."""
        return not self.is_closed and self.tap.is_attached()

    def close(self) -> None:
        """Detach; all that is in it goes."""
        self.is_closed = True
        self.tap.close()

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
            if not _fit([member.part for other in (shared, *tail) for member in other.members]):
                break
            tail.insert(0, shared)
        if len(tail) > 1:
            self._replace(tail, tuple(member for shared in tail for member in shared.members))

    def _replace(self, old: list[_Shared], members: tuple[Member, ...], before_load: BeforeLoad | None = None) -> None:
        """One segment with `members` in place of the neighbours `old`."""
        at = self._shared.index(old[0]) if old else len(self._shared)
        with ExitStack() as undo:
            new = self._load(members, before_load) if members else None
            if new is not None:
                undo.callback(new.close)
            self.tap.link([shared.segment for shared in old], new)
            undo.pop_all()
        self._shared[at : at + len(old)] = [_Shared(members, new)] if new is not None else []
        self.tap.retire([shared.segment for shared in old])

    def _load(self, members: tuple[Member, ...], before_load: BeforeLoad | None) -> tap.Segment:
        parts = tuple(member.part for member in members)
        compiled = compiler.compile_segment(parts, self.name, calls.possible_cpus(), hook=self.hook)
        stores = {number: store.map for member in members for number, store in member.stores.items()}
        bindings = {
            f"ffpf_flow_{place}": Binding(stores[number], True)
            for place, number in enumerate(compiler.segment_stores(parts))
        }
        for number in compiler.segment_rings(parts).values():
            if (ring := members[number].ring) is not None:
                bindings[f"ffpf_ring_{number}"] = Binding(ring.slots, False)
        for number, member in enumerate(members):
            if member.bell is not None:
                bindings[f"ffpf_bell_{number}"] = Binding(member.bell, False)
        programs = {name: found.audited(name) for name, found in compiled.items()}
        if before_load is not None:
            before_load(self.name, {name: program.instructions for name, program in programs.items()})
        try:
            reach = compiler.segment_reach(parts)
            return self.tap.load_segment(programs[SEGMENT_PROGRAM], programs.get(DELIVER_PROGRAM), bindings, reach)
        except VerifierError as error:
            raise _explained(error, parts, self.name, self.hook) from None


class Chains:
    """The chains of this process by tap. Changes are made one at a time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        # Flows are switched while others are compiled: that has a lock of its own.
        self.toggling = threading.Lock()
        self._chains: dict[tuple[int, int, str], Chain] = {}
        self._users: Counter[tuple[int, int]] = Counter()

    def enter(self, space: Namespace, interface: Interface, hook: str, member: Member) -> Chain:
        """Join the chain of a tap in a namespace, attached now if this process does not hold it yet."""
        key = (interface.namespace, interface.index, hook)
        monitor = member.part.graph.ends_frames(tap_name(interface.name, hook))
        with self.lock:
            self._refuse_if_at_odds(key, monitor)
            chain = self._chains.get(key)
            if chain is not None:
                if interface.name != chain.tap.interface.name and _is_place(chain.tap.interface.name, interface.name):
                    raise KernelError(
                        f"this process grabs from it as `{chain.tap.interface.name}`",
                        where=interface.name,
                        help="a tap has one name in a process: use that one",
                    )
                held = chain.tap
                if space.visit(lambda: held.holds(interface)):
                    chain.join(member)
                    return chain
                # Renamed, or made anew: a tap is what has its name, so whoever is in the old one has lost it.
                self.abandon(chain)
            with ExitStack() as undo:
                chain = space.visit(lambda: _attach(interface, hook), Chain.close)
                undo.callback(chain.close)
                if monitor:
                    chain.monitor = True
                    chain.tap.set_monitor()
                chain.join(member)
                undo.pop_all()
            self._chains[key] = chain
            return chain

    def _refuse_if_at_odds(self, key: tuple[int, int, str], monitor: bool) -> None:
        """No flow may make packets vanish that another, which does not say so, would get: all that see what arrives at
        an interface have it as a monitor port, or none has."""
        *interface, hook = key
        for (*other, at), chain in self._chains.items():
            if other == interface and "tc-egress" not in (hook, at) and chain.monitor != monitor:
                said = (
                    "flows there have it as a monitor port, which ends the frames that this one wants"
                    if chain.monitor
                    else "flows there want the frames that a monitor port ends"
                )
                raise KernelError(
                    said, where=chain.name, help="close them first; all flows there say `monitor`, or none"
                )

    def common(
        self, taps: Sequence[tuple[Interface, str]], member_of: Callable[[Mapping[int, Home]], Member]
    ) -> dict[int, Home]:
        """The homes of the steps that a new flow shares with flows of its group: all that it can, at each of its taps.

        `member_of` makes the flow with these homes, to see whether it fits. To be called, and acted upon, under `lock`.
        """
        alone = member_of({})
        keys = [(interface.namespace, interface.index, hook) for interface, hook in taps]
        chains = [self._chains[key] for key in keys if key in self._chains]
        candidates = [
            member
            for member in dict.fromkeys(member for chain in chains for member in chain.all_members())
            if member.group == alone.group and alone.group is not None
        ]
        while candidates:
            found = _common_homes(alone, candidates)
            if not found:
                return {}
            part = member_of(found).part
            if all(chain.has_room_beside(part) for chain in chains):
                return found
            # No segment takes them all: without the flow that has most in common, others may still have room.
            homes = frozenset((home.store, home.step) for home in found.values())
            candidates.remove(max(candidates, key=lambda member: len(member.part.used & homes)))
        return {}

    def stores(self, shared: Mapping[int, Home]) -> dict[int, Store]:
        """The stores that hold the memory of shared steps, by number."""
        wanted = {home.store for home in shared.values()}
        held = {number: store for member in self._members() for number, store in member.stores.items()}
        return {number: held[number] for number in sorted(wanted)}

    def ring(self, key: object) -> PacketRing | None:
        """The packet ring of that key, if one is there and one more flow may read it."""
        rings = (member.ring for member in self._members())
        return next((ring for ring in rings if ring is not None and ring.key == key and ring.has_room), None)

    def shares(self, member: Member) -> frozenset[int]:
        """The steps of a flow that other flows use as well."""
        part = member.part
        return frozenset(step for step in range(len(part.homes)) if self._users[part.home(step)] > 1)

    def count_users(self, member: Member, change: int) -> None:
        """A flow uses its nodes, or does not any more."""
        with self.lock:
            for home in member.part.used:
                self._users[home] += change
                if not self._users[home]:
                    del self._users[home]

    def _members(self) -> list[Member]:
        return list(dict.fromkeys(member for chain in self._chains.values() for member in chain.all_members()))

    def exit(self, places: Iterable[tuple[Chain, Member]]) -> None:
        """Leave chains; the last one out detaches. Goes on with the others if one fails, and raises then."""
        leaving: dict[Chain, list[Member]] = {}
        for chain, member in places:
            leaving.setdefault(chain, []).append(member)
        with self.lock, ExitStack() as every:
            for chain, members in leaving.items():
                if chain.is_closed:
                    continue
                if chain.members > len(members):
                    every.callback(chain.leave, members)
                else:
                    every.callback(self.abandon, chain)

    def abandon(self, chain: Chain) -> None:
        """Detach a chain, whoever is in it: its tap is not there any more."""
        with self.lock, self.toggling:
            self._chains = {key: other for key, other in self._chains.items() if other is not chain}
            if not chain.is_closed:
                chain.close()

    def forget(self) -> None:
        """In a child that inherited them: the chains are the parent's."""
        self.lock, self.toggling = threading.RLock(), threading.Lock()
        self._chains = {}
        self._users.clear()

    def toggle(self, chains: Iterable[Chain], change: int, store: Callable[[], None]) -> None:
        """Switch a flow on or off in its chains: its own toggle first when it goes on."""
        with self.toggling:
            if change > 0:
                store()
            for chain in chains:
                chain.count_active(change)
            if change < 0:
                store()


CHAINS = Chains()
FLOW_SEED = secrets.randbits(64)  # of the hashes of 5-tuples at all taps of this process


def _common_homes(flow: Member, candidates: list[Member]) -> dict[int, Home]:
    """Which steps `flow` can share with the candidates. A step is shared only if what it reads is, with the same flows:
    so its home is one that a flow has whose steps in front of it are at home where this flow's are."""
    known = [member.homes_by_key for member in candidates]
    found: dict[int, Home] = {}
    graph = flow.part.graph
    for step, key in flow.keys.items():
        behind = [source for source in sources(graph.steps[step]) if source not in graph.arrivals]
        if not all(source in found for source in behind):
            continue
        homes = [
            by_key[key]
            for by_key in known
            if key in by_key and all(by_key[flow.keys[source]] is found[source] for source in behind)
        ]
        if homes:
            found[step] = max(homes, key=lambda home: sum(other is home for other in homes))
    return found


def _fit(parts: list[SegmentFlow]) -> bool:
    """Whether flows can share a segment: number, maps, sinks and size of the program."""
    bells = sum(bool(part.graph.sinks) for part in parts)
    maps = len(compiler.segment_stores(parts)) + len(compiler.segment_rings(parts)) + bells + 3
    return len(parts) <= MOST_FLOWS_IN_SEGMENT and maps <= MOST_MAPS and compiler.fit_together(parts)


def _is_place(one: str, other: str) -> bool:
    """Whether two names of one interface are the same but for the namespace."""
    return one.rpartition("/")[2] == other.rpartition("/")[2]


def hook_here(name: str) -> compiler.Hook:
    """The hook of a tap, as this kernel has it."""
    hook = compiler.hook_of(name)
    return compiler.XDP_BY_WORDS if hook is compiler.XDP and probes.lacks_load_bytes() else hook


def hook_at(interface: Interface, name: str) -> compiler.Hook:
    """The hook of a tap at an interface: what layer 3 devices have is shown otherwise."""
    return compiler.TC_L3 if interface.is_layer_3 else hook_here(name)


def _attach(interface: Interface, hook: str) -> Chain:
    """The chain of a tap, attached. Drivers that use several buffers for a large frame may want programs that know."""
    compiled_for = hook_at(interface, tap_name(interface.name, hook))
    if compiled_for is compiler.XDP and interface.mtu > ORDINARY_MTU and probes.has_frags():
        for native in (compiler.XDP, compiler.XDP_FRAGS):
            with suppress(NotNative):
                return _attached(interface, hook, native, native_only=True)
    return _attached(interface, hook, compiled_for)


def _attached(interface: Interface, hook: str, compiled_for: compiler.Hook, *, native_only: bool = False) -> Chain:
    cpus = calls.possible_cpus()
    control_bytes = TAP_BYTES + cpus * SCRATCH_BYTES
    entry = compiler.compile_entry(cpus, compiled_for).audited(compiler.ENTRY_PROGRAM)
    attached = tap.attach(interface, hook, entry, control_bytes, FLOW_SEED, native_only=native_only)
    return Chain(tap_name(interface.name, hook), compiled_for, attached)


def _explained(
    error: VerifierError, parts: tuple[SegmentFlow, ...], name: str, hook: compiler.Hook | None = None
) -> VerifierError:
    """The verifier's refusal in terms of the graph: compiled once more with lines, to find the node."""
    missing = _missing(error.log)
    if missing is not None:
        return VerifierError(
            f"this kernel has no {missing}",
            log=error.log,
            errno=error.errno,
            where=_spelled(name),
            help="`ffpf doctor` tells what this kernel lacks, and which nodes take it",
        )
    with_lines = compiler.compile_segment(parts, name, calls.possible_cpus(), hook=hook, debug=True)
    lines = [line for line in error.log.splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("processed ", "max_states", "verification time"))]
    node = (
        _node_at(with_lines[SEGMENT_PROGRAM], parts, useful) if SEGMENT_PROGRAM in error.message else _transforms(parts)
    )
    omitted = max(0, len(useful) - LOG_LINES_SHOWN)
    shown = [f"({omitted} lines omitted)"] if omitted else []
    shown += [line.partition("; R")[0].rstrip() for line in useful[-LOG_LINES_SHOWN:]]
    return VerifierError(
        "the verifier refused the program\n" + "\n".join(f"    {line}" for line in shown),
        log=error.log,
        errno=error.errno,
        where=node or _spelled(name),
        help=TOO_LARGE if "too large" in error.log or "too many" in error.log else DEFECT,
    )


def _missing(log: str) -> str | None:
    """What the verifier does not know, as older kernels say it."""
    helper = re.search(r"(?:unknown|invalid) func (\w+)#\d+", log)
    if helper is not None:
        return f"helper `{helper[1]}`"
    # Atomic operations that give a result were added to what was BPF_XADD.
    return "atomic operations that give a result" if re.search("BPF_(XADD|STX) uses reserved", log) else None


def _spelled(tap: str) -> str:
    """A tap with its hook."""
    return tap if "@" in tap else f"{tap}@xdp"


def _transforms(parts: tuple[SegmentFlow, ...]) -> str:
    """The nodes that a deliver program is made of, but for its sinks."""
    names = [
        f"`{part.graph.ids[step]}`"
        for part in parts
        for step, leaf in part.graph.leaves()
        if leaf.node.role is Role.TRANSFORMS
    ]
    return f"node{'s' if len(names) > 1 else ''} {', '.join(names[:8])}" if names else ""


def _node_at(compiled: Object, parts: tuple[SegmentFlow, ...], log: list[str]) -> str:
    """The node whose code the log's last instruction belongs to, as `(bpf) bpf1`, or ""."""
    lines = compiled.lines(SEGMENT_PROGRAM)
    for text in reversed(log):
        number = text.partition(":")[0]
        if number.isdecimal():
            place = node_before(lines, int(number))
            if place is not None:
                graph = parts[place[0]].graph
                return f"node `{graph.ids[place[1]]}`"
    return ""
