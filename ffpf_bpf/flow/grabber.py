"""The flow grabber: an instantiated flow. Its maps, its place in the chains, and the memory it shares with them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack

from ffpf_bpf.capture.ring import RingReader
from ffpf_bpf.compiler import SegmentFlow
from ffpf_bpf.errors import VerifierError
from ffpf_bpf.flow.chains import CHAINS, BeforeLoad, Chain, Member
from ffpf_bpf.flow.statistics import Statistics, read
from ffpf_bpf.flow.store import NodeMemory, PacketRing, Store, node_memories, reports
from ffpf_bpf.graph.classes.grab import LONGEST_SNAPLEN
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.memory import ETHERNET_FRAME_BYTES, Home, Memory, RingHome, homes, lay_out, size_ring
from ffpf_bpf.graph.sharing import common_view, keys
from ffpf_bpf.kernel import calls, interfaces
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Bell

LEAST_STEP_NS = 1_000
CLOCK_WORD = 1  # struct ffpf_flow in 64-bit words: clock_offset_ns


def planned_parts(definition: Definition) -> list[tuple[str, SegmentFlow, int]]:
    """What would be compiled, for each tap, without asking the kernel about it: an interface that does not exist here
    counts as Ethernet with frames of 1,522 bytes. Tap, part, possible CPUs."""
    cpus = calls.possible_cpus()
    graph = definition.graph
    ring = size_ring(graph.snaplen or ETHERNET_FRAME_BYTES, definition.buffer_bytes, tagged=graph.tagged)
    memory = lay_out(graph, cpus, index_slots=ring.slots if common_view(graph) is not None else 0)
    part = SegmentFlow(graph, definition.predicates, memory, ring, 0, homes(graph, memory, 0), RingHome(0, memory))
    return [(device.tap, part, cpus) for device in graph.taps]


class Grabber:
    """Builds everything or nothing; `close_all` takes it down, in reverse.

    Flows of one `group` run once what they have in common; None shares nothing. `before_load` is told of the programs
    of each tap when they are compiled and not loaded yet; what it raises undoes everything.
    """

    def __init__(
        self,
        definition: Definition,
        first_interface: int,
        group: object = None,
        before_load: BeforeLoad | None = None,
    ) -> None:
        graph = definition.graph
        found = [interfaces.find(device.interface) for device in graph.taps]
        longest = min(max(interface.longest_frame for interface in found), LONGEST_SNAPLEN)
        self.ring = size_ring(graph.snaplen or longest, definition.buffer_bytes, tagged=graph.tagged)
        self._definition = definition
        self._first_interface = first_interface
        self._group = group
        self._before_load = before_load
        self._graph = graph
        self._keys = keys(graph)
        self._view = common_view(graph) if group is not None else None
        self._chains: list[Chain] = []
        self._active = False
        places = [(interface, device.hook) for device, interface in zip(graph.taps, found, strict=True)]
        with CHAINS.lock:
            elsewhere = CHAINS.common(places, self._planned)
            try:
                self._build(places, elsewhere)
            except VerifierError:
                if not elsewhere:
                    raise
                # Together with what it would share the kernel finds it too large.
                self._build(places, {})

    def _build(self, places: list[tuple[Interface, str]], elsewhere: Mapping[int, Home]) -> None:
        """Make the maps and enter the chains, with the memory of shared steps `elsewhere`."""
        graph = self._graph
        with ExitStack() as undo:
            self.memory = self._laid_out(elsewhere)
            stores = {number: store.hold() for number, store in CHAINS.stores(elsewhere).items()}
            for store in stores.values():
                undo.callback(store.close)
            own = Store(self.memory)
            undo.callback(own.close)
            own.fill_tables(graph)
            self._flow_map = own.map
            self._words = undo.enter_context(memoryview(self._flow_map.memory).cast("Q"))
            self._ring, home = None, RingHome(own.number, self.memory)
            if graph.sinks:
                self._ring = self._found_ring(own, places, elsewhere)
                home = self._ring.enter()
                undo.callback(self._ring.leave, home)
                stores[home.store] = self._ring.store
            first_interface = self._first_interface
            mapped = self._ring.mapped if self._ring is not None else None
            self._bell = undo.enter_context(Bell("ffpf_bell")) if graph.sinks else None
            about = (self.memory, self.ring, home, mapped, first_interface, self._bell)
            self.reader = RingReader(self._flow_map.memory, *about)
            undo.callback(self.reader.close)
            self.set_clock()
            self._member = self._member_with({**stores, own.number: own}, own.number, elsewhere, home)
            self._nodes = node_memories(graph, self._member.part.homes, self._member.stores)
            undo.callback(self._leave)
            for interface, hook in places:
                self._chains.append(CHAINS.enter(interface, hook, self._member))
            CHAINS.count_users(self._member, 1)
            undo.callback(CHAINS.count_users, self._member, -1)
            self._undo = undo.pop_all()

    def _found_ring(self, own: Store, places: list[tuple[Interface, str]], elsewhere: Mapping[int, Home]) -> PacketRing:
        """The packet ring of flows of the group that see the same at the same taps, or a new one."""
        key = None
        if self._view is not None:
            homes = [elsewhere.get(step, Home(own.number, step, self.memory)) for step in self._view]
            taps = tuple((interface.namespace, interface.index, hook) for interface, hook in places)
            key = (self._group, self.ring, taps, tuple((home.store, home.step) for home in homes))
        ring = CHAINS.ring(key) if key is not None else None
        return ring or PacketRing(own, self.ring, self._first_interface, key)

    def _planned(self, elsewhere: Mapping[int, Home]) -> Member:
        """The flow with these steps shared, before it has memory of its own."""
        return self._member_with({}, -1, elsewhere, RingHome(-1, self._laid_out(elsewhere)))

    def _laid_out(self, elsewhere: Mapping[int, Home]) -> Memory:
        slots = self.ring.slots if self._view is not None else 0
        return lay_out(self._graph, calls.possible_cpus(), elsewhere, slots)

    def _member_with(
        self, stores: Mapping[int, Store], own: int, elsewhere: Mapping[int, Home], home: RingHome
    ) -> Member:
        graph = self._graph
        memory = self._laid_out(elsewhere)
        at_home = homes(graph, memory, own, elsewhere)
        part = SegmentFlow(graph, self._definition.predicates, memory, self.ring, own, at_home, home)
        ring, bell = (self._ring, self._bell) if stores else (None, None)
        return Member(part, stores, ring, bell, self._group, self._keys, self._before_load)

    @property
    def taps(self) -> tuple[dict[str, str], ...]:
        names = (device.tap for device in self._graph.taps)
        return tuple(
            {"tap": name, "mode": chain.tap.mode}
            | ({"refusal": chain.tap.refusal} if chain.tap.refusal else {})
            | ({"monitor": "yes"} if chain.monitor else {})
            for name, chain in zip(names, self._chains, strict=True)
        )

    def activate(self) -> None:
        """Switch on: stores into mapped words, no system call."""
        CHAINS.toggle(self._chains, 1, lambda: self._store(1))
        self._active = True

    def pause(self) -> None:
        """Switch off, the same way."""
        CHAINS.toggle(self._chains, -1, lambda: self._store(0))
        self._active = False

    def wait(self) -> None:
        """Return when no packet that entered before the pause can be recorded any more."""
        calls.wait_for_programs()

    def set_clock(self) -> None:
        """Tell the kernel side what to add to its monotonic clock to get the time of day. Often: the clock may be set.

        The two clocks are read one after the other, so smaller differences mean nothing, and times shall not jitter."""
        before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        now_ns = time.time_ns()
        after_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        offset_ns = now_ns - (before_ns + after_ns) // 2
        if abs(offset_ns - self._words[CLOCK_WORD]) > LEAST_STEP_NS + after_ns - before_ns:
            self._words[CLOCK_WORD] = offset_ns

    def stats(self) -> Statistics:
        """The counts now."""
        shared = CHAINS.shares(self._member)
        return read(self._flow_map.memory, self._graph, self.memory, reports(self._nodes), shared, self.reader.overrun)

    def node_memory(self, step: int) -> NodeMemory | None:
        """Where the memory of the node at a step is, if it has any."""
        return self._nodes.get(step)

    def gone(self) -> list[str]:
        """The taps whose interfaces do not exist any more."""
        names = (device.tap for device in self._graph.taps)
        return [name for name, chain in zip(names, self._chains, strict=True) if not chain.tap.is_attached()]

    def _leave(self) -> None:
        chains, self._chains = self._chains, []
        CHAINS.exit((chain, self._member) for chain in chains)

    def _store(self, toggle: int) -> None:
        self._words[0] = toggle


def close_all(grabbers: list[Grabber]) -> list[Statistics]:
    """Switch off, read the final counts once nothing can change them, leave the chains, let go of the maps.

    Together, because each chain is then rebuilt once and waited for once.
    """
    with ExitStack() as undo:
        for grabber in grabbers:
            undo.callback(grabber._undo.close)
        for grabber in grabbers:
            if grabber._active:
                grabber.pause()
        calls.wait_for_programs()
        final = [grabber.stats() for grabber in grabbers]
        places = [(chain, grabber._member) for grabber in grabbers for chain in grabber._chains]
        for grabber in grabbers:
            grabber._chains = []
        CHAINS.exit(places)
        return final
