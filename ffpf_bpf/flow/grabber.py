"""The flow grabber: an instantiated flow. Its maps, its place in the chains, and the memory it shares with them."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from ffpf_bpf.capture.ring import ReaderPace, RingReader
from ffpf_bpf.compiler import Hook, SegmentFlow
from ffpf_bpf.errors import KernelError, VerifierError
from ffpf_bpf.flow.chains import CHAINS, BeforeLoad, Chain, Member, hook_at, hook_here
from ffpf_bpf.flow.places import ABSENT, Happening, Place
from ffpf_bpf.flow.statistics import Statistics, read
from ffpf_bpf.flow.store import NodeMemory, PacketRing, Store, node_memories, reports
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import LONGEST_SNAPLEN
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.memory import ETHERNET_FRAME_BYTES, Home, Memory, RingHome, homes, lay_out, size_ring
from ffpf_bpf.graph.sharing import common_view, keys
from ffpf_bpf.kernel import calls, interfaces, namespaces
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Bell
from ffpf_bpf.kernel.namespaces import Namespace
from ffpf_bpf.kernel.netlink import Link
from ffpf_bpf.kernel.watch import Known

LEAST_STEP_NS = 1_000
Spaces = Mapping[str, Namespace | None]
CLOCK_WORD = 1  # struct ffpf_flow in 64-bit words: clock_offset_ns


class Planned(NamedTuple):
    """What would be compiled for a tap: for how many possible CPUs, and for which form of its hook."""

    tap: str
    part: SegmentFlow
    cpus: int
    hook: Hook


def planned_parts(definition: Definition) -> list[Planned]:
    """What would be compiled, for each tap. An interface that is not here, or is named by a glob or with a namespace,
    counts as Ethernet with frames of 1,522 bytes. Raises KernelError for one that is here and has no such tap."""
    cpus = calls.possible_cpus()
    graph = definition.graph
    found = {device.tap: _found_here(device) for device in graph.taps}
    ring = size_ring(graph.snaplen or _longest(found.values()), definition.buffer_bytes)
    memory = lay_out(graph, cpus, slots=ring.slots, shareable=common_view(graph) is not None)
    part = SegmentFlow(graph, definition.predicates, memory, ring, 0, homes(graph, memory, 0), RingHome(0, memory))
    return [
        Planned(tap, part, cpus, hook_here(tap) if interface is None else hook_at(interface, tap))
        for tap, interface in found.items()
    ]


def _found_here(device: Device) -> Interface | None:
    if device.is_glob or device.namespace:
        return None
    try:
        return _found_for(device, device.interface, None)
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def _longest(found: Iterable[Interface | None]) -> int:
    """How much a record must hold of a frame of these interfaces, in bytes, if nobody says."""
    longest = max((interface.longest_frame for interface in found if interface is not None), default=0)
    return min(longest or ETHERNET_FRAME_BYTES, LONGEST_SNAPLEN)


class Grabber:
    """Builds everything or nothing; `close_all` takes it down, in reverse.

    Flows of one `group` run once what they have in common; None shares nothing. Those whose readers begin with one
    `pace` may share a packet ring. `before_load` is told of the programs of each tap when they are compiled and not
    loaded yet; what it raises undoes everything. `spaces` are the namespaces of its devices by name, None for one that
    is not there; what is not there is left out if it is to `follow`.
    """

    def __init__(
        self,
        definition: Definition,
        first_interface: int,
        spaces: Spaces,
        group: object = None,
        before_load: BeforeLoad | None = None,
        *,
        pace: ReaderPace = ReaderPace.SLOW,
        follow: bool = False,
    ) -> None:
        graph = definition.graph
        self.happened: list[Happening] = []
        self.follow = follow
        # Taps that come and go are not those of another flow, even if they have the same name.
        self._changes = follow or any(device.is_glob for device in graph.taps)
        group = None if self._changes else group
        self._places: list[Place] = []
        found = self._found(graph.taps, spaces)
        longest = _longest(interface for _, interface in found)
        self.ring = size_ring(graph.snaplen or longest, definition.buffer_bytes)
        self._definition = definition
        self._first_interface = first_interface
        self._group = group
        self._pace = pace
        self._before_load = before_load
        self._graph = graph
        self._keys = keys(graph)
        self._view = common_view(graph) if group is not None else None
        self._active = False
        with CHAINS.lock:
            elsewhere = CHAINS.common([(interface, place.device.hook) for place, interface in found], self._planned)
            try:
                self._build(found, spaces, elsewhere)
            except VerifierError:
                if not elsewhere:
                    raise
                # Together with what it would share the kernel finds it too large.
                self._build(found, spaces, {})

    def _found(self, devices: Sequence[Device], spaces: Spaces) -> list[tuple[Place, Interface]]:
        """The taps of the devices, and their interfaces, as far as they are there. Raises KernelError if one is not
        that need be."""
        found = []
        for device in devices:
            space = spaces[device.namespace]
            if device.is_glob:
                names = interfaces.matching(device.interface, space) if space is not None else []
                if not names and not self.follow:
                    raise KernelError(
                        f"no interface matches `{device.place}`", errno=errno.ENODEV, help="`--follow` waits for some"
                    )
            else:
                names = [device.interface]
                self._place(device, device.interface)
            for name in names:
                interface = self._interface(device, name, space)
                if interface is not None:
                    found.append((self._place(device, name), interface))
        return found

    def _interface(self, device: Device, name: str, space: Namespace | None) -> Interface | None:
        """The interface, None if it need not be there and is not."""
        if space is None:
            return None
        try:
            return _found_for(device, name, space)
        except KernelError as error:
            if device.is_glob and error.errno == errno.EPROTONOSUPPORT:
                self.happened.append(Happening(device.at(name), "refused", error.message))
                return None
            if self.follow and error.errno == errno.ENODEV and "another name" not in error.message:
                return None
            raise

    def _place(self, device: Device, name: str) -> Place:
        """The tap of that name, a new one with the next number if it was not there before."""
        tap = device.at(name)
        for place in self._places:
            if place.tap == tap:
                return place
        place = Place(device, tap, len(self._places))
        self._places.append(place)
        return place

    def _build(self, places: list[tuple[Place, Interface]], spaces: Spaces, elsewhere: Mapping[int, Home]) -> None:
        """Make the maps and enter the chains, with the memory of shared steps `elsewhere`."""
        graph = self._graph
        with ExitStack() as undo:
            self.memory = self._laid_out(elsewhere)
            stores = {number: store.hold() for number, store in CHAINS.stores(elsewhere).items()}
            for store in stores.values():
                undo.callback(store.close)
            own = Store(self.memory)
            undo.callback(own.close)
            self._home = undo.enter_context(namespaces.find("", spaces.get("")))
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
            self.reader.pace = self._pace
            undo.callback(self.reader.close)
            self.set_clock()
            self._member = self._member_with({**stores, own.number: own}, own.number, elsewhere, home)
            self._nodes = node_memories(graph, self._member.part.homes, self._member.stores)
            undo.callback(self._leave)
            for place, interface in places:
                self._enter(place, interface, spaces[place.device.namespace], self._before_load)
            CHAINS.count_users(self._member, 1)
            undo.callback(CHAINS.count_users, self._member, -1)
            self._undo = undo.pop_all()

    def _enter(
        self, place: Place, interface: Interface, space: Namespace | None, before_load: BeforeLoad | None
    ) -> None:
        assert space is not None
        member = self._member
        if self._changes:
            member = replace(member, part=replace(member.part, tap=place.number), before_load=before_load)
        place.enter(interface, CHAINS.enter(space, interface, place.device.hook, member), member)

    def look(self, known: Known) -> list[Happening]:
        """Leave taps that are not there any more; what happened to all of them."""
        told, self.happened = self.happened, []
        for place in self._places:
            if place.chain is None or place.interface is None:
                continue
            there = known.get(place.device.namespace)
            lost = place.lost(there)
            if lost is not None:
                CHAINS.abandon(place.chain)
                place.chain, place.mode, place.refusal = None, ABSENT, ""
                told.append(lost)
            elif there is not None:
                told += place.changed(there.links[place.interface.index])
        return told

    def abandon_detached(self) -> bool:
        """Give up the taps that somebody else has detached; whether there were some."""
        detached = [place.chain for place in self._places if place.is_detached()]
        for chain in detached:
            if chain is not None:
                CHAINS.abandon(chain)
        return bool(detached)

    def newcomers(self, known: Known) -> list[tuple[Device, Link]]:
        """The interfaces that its taps are about, and that it does not grab from."""
        attached = {place.tap for place in self._places if place.chain is not None}
        return [
            (device, link)
            for device in self._graph.taps
            if (there := known.get(device.namespace)) is not None
            for link in there.links.values()
            if link.name.isprintable() and device.effect.is_at(device.at(link.name))
            if device.at(link.name) not in attached
        ]

    def join(self, device: Device, name: str, before_load: BeforeLoad | None) -> Happening:
        """Grab from one more interface. Raises what `Chains.enter` does."""
        with namespaces.opened([device.namespace], of=self._home) as spaces, CHAINS.lock:
            space = spaces[device.namespace]
            place = self._place(device, name)
            self._enter(place, _found_for(device, name, space), space, before_load)
            assert place.chain is not None
            if self._active:
                CHAINS.toggle([place.chain], 1, lambda: None)
        return Happening(place.tap, "attached", f"attached ({place.mode})")

    def _found_ring(
        self, own: Store, places: list[tuple[Place, Interface]], elsewhere: Mapping[int, Home]
    ) -> PacketRing:
        """The packet ring of flows of the group that see the same at the same taps at the same pace, or a new one."""
        key = None
        if self._view is not None:
            homes = [elsewhere.get(step, Home(own.number, step, self.memory)) for step in self._view]
            taps = tuple((interface.namespace, interface.index, place.device.hook) for place, interface in places)
            key = (self._group, self.ring, self._pace, taps, tuple((home.store, home.step) for home in homes))
        ring = CHAINS.ring(key) if key is not None else None
        return ring or PacketRing(own, self.ring, self._first_interface, key)

    def _planned(self, elsewhere: Mapping[int, Home]) -> Member:
        """The flow with these steps shared, before it has memory of its own."""
        return self._member_with({}, -1, elsewhere, RingHome(-1, self._laid_out(elsewhere)))

    def _laid_out(self, elsewhere: Mapping[int, Home]) -> Memory:
        shareable = self._view is not None
        return lay_out(self._graph, calls.possible_cpus(), elsewhere, self.ring.slots, shareable=shareable)

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
    def _chains(self) -> list[Chain]:
        return [place.chain for place in self._places if place.chain is not None]

    @property
    def taps(self) -> tuple[dict[str, str], ...]:
        return tuple(place.shown for place in self._places)

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The names of its taps by number, of those that were once there too."""
        return tuple(place.tap for place in self._places)

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

    def _leave(self) -> None:
        CHAINS.exit(self._taken_places())

    def _taken_places(self) -> list[tuple[Chain, Member]]:
        """Where it is in chains, which it is about to leave."""
        taken = []
        for place in self._places:
            if place.chain is not None and place.member is not None:
                taken.append((place.chain, place.member))
                place.chain = None
        return taken

    def _store(self, toggle: int) -> None:
        self._words[0] = toggle


def _found_for(device: Device, name: str, space: Namespace | None) -> Interface:
    """The interface, which has the hook that the device names. Raises KernelError."""
    found = interfaces.find(name, space)
    found.check_hook(device.hook)
    return found


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
        CHAINS.exit([taken for grabber in grabbers for taken in grabber._taken_places()])
        return final
