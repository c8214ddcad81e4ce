"""A tap: the entry program attached at an interface, and the chain of segments behind it.

The chain is a linked list of programs: each segment has a prog array of its own with two slots, NEXT (the segment that
follows) and DELIVER (its own deliver program). Every change is one replacement of one slot, which the kernel makes
atomically: a packet on its way goes on through what it has entered, a new packet takes the new way, and none is lost or
seen twice. (`bpf_tail_call` with a constant index is a direct jump; kernel/bpf/arraymap.c, prog_array_map_poke_run.)

Everything is held by descriptors and nothing is pinned: the death of the process takes it all down.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ffpf_bpf.errors import KernelError, TapBusy
from ffpf_bpf.kernel import calls
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Descriptor, MappedArray, ProgArray
from ffpf_bpf.kernel.programs import Binding, ProgramLike, load

NEXT, DELIVER, LINKS = 0, 1, 2  # enum ffpf_link
TAP_MAP, OWNER_OFFSET, SEED_OFFSET, REACH_OFFSET = "ffpf_tap", 4, 8, 16  # struct ffpf_tap
FRAME_MAP, FRAME_BYTES = "ffpf_frame", 0x10000  # FFPF_FRAME_BYTES, for each CPU
ENTRY_NAME = "ffpf_entry"
LONGEST_FAREWELL_S = 2.0
MOST_SEGMENTS = 15  # entry -> 15 x (segment -> deliver) stays within the kernel's 33 tail calls


@dataclass(frozen=True, slots=True)
class Segment:
    """A loaded segment of a chain: closing it before it is unlinked breaks the chain."""

    links: ProgArray
    program: Descriptor
    resources: ExitStack

    def close(self) -> None:
        self.resources.close()


class Tap:
    """An attached entry program and its chain; `refusal` is the driver's reason if `mode` is not `native`."""

    def __init__(
        self,
        interface: Interface,
        mode: str,
        refusal: str,
        link: Descriptor,
        control: MappedArray,
        links: ProgArray,
        stack: ExitStack,
    ) -> None:
        self.interface = interface
        self.mode = mode
        self.refusal = refusal
        self.segments: list[Segment] = []
        self._link = link
        self._control = control
        self._links = links
        self._stack = stack
        self._program_id = calls.attached_xdp(interface.index)[0]
        self._words = memoryview(control.memory).cast("I")

    def holds(self, interface: Interface) -> bool:
        """Whether this is still what is attached there, under the same name."""
        same = (interface.name, interface.index) == (self.interface.name, self.interface.index)
        return same and calls.attached_xdp(interface.index)[0] == self._program_id

    def is_attached(self) -> bool:
        """Whether the interface is still there."""
        return calls.linked_interface(self._link.fileno) != 0

    def set_active(self, flows: int) -> None:
        """How many flows are switched on; with 0 the entry program passes every packet on at once. No system call."""
        self._words[0] = flows

    def load_segment(
        self, segment: ProgramLike, deliver: ProgramLike | None, bindings: Mapping[str, Binding]
    ) -> Segment:
        """Load a segment's programs, not yet part of the chain."""
        with ExitStack() as stack:
            links = stack.enter_context(ProgArray("ffpf_links", LINKS))
            own = {"ffpf_links": Binding(links, False), TAP_MAP: Binding(self._control, True)}
            program = stack.enter_context(load(segment, {**bindings, **own}))
            if deliver is not None:
                with load(deliver, {**bindings, **own}) as deliver_program:
                    links.set(DELIVER, deliver_program)
            return Segment(links, program, stack.pop_all())

    def link(self, old: list[Segment], new: Segment | None) -> None:
        """Put `new` where the neighbouring segments `old` are, at the end if there are none. `retire` those then.

        Packets pass through the old way or the new one, never both and never neither. All as it was if it fails.
        """
        at = self.segments.index(old[0]) if old else len(self.segments)
        assert self.segments[at : at + len(old)] == old, "only neighbours are replaced together"
        if len(self.segments) - len(old) + (new is not None) > MOST_SEGMENTS:
            raise KernelError(
                "no room for another flow on this tap",
                where=self.interface.name,
                help="close some; the kernel follows at most 33 tail calls, which hold several hundred flows",
            )
        before = self.segments[at - 1].links if at else self._links
        after = self.segments[at + len(old)] if at + len(old) < len(self.segments) else None
        if new is not None and after is not None:
            new.links.set(NEXT, after.program)
        try:
            self._point(before, new or after)
        except BaseException:
            # Refused, or interrupted after it was done.
            self._point(before, old[0] if old else after)
            raise
        self.segments[at : at + len(old)] = [new] if new is not None else []

    def retire(self, old: list[Segment]) -> None:
        """Close segments that are linked no more."""
        try:
            if old:
                # A packet inside an old segment still follows its links: they stay until it is through.
                calls.wait_for_programs()
        finally:
            for segment in old:
                segment.close()

    def _point(self, links: ProgArray, follower: Segment | None) -> None:
        if follower is not None:
            links.set(NEXT, follower.program)
        else:
            links.clear(NEXT)

    def close(self) -> None:
        """Detach; the chain goes with it."""
        with self._stack, ExitStack() as segments:
            for segment in self.segments:
                segments.callback(segment.close)
            self.segments.clear()
            self._words.release()
            with contextlib.suppress(KernelError):
                # Closing the link detaches too, but not while a child of this process has inherited it.
                calls.detach(self._link.fileno)


def attach(interface: Interface, entry: ProgramLike, control_bytes: int, seed: int) -> Tap:
    """Attach the entry program at XDP: native, or generic where the driver has no native mode. `seed`, 64 bits, keys
    the hashes of flows.

    Raises TapBusy, naming the holder, if the interface carries an XDP program already; it is never evicted.
    """
    _refuse_if_held(interface)
    with ExitStack() as stack:
        control = stack.enter_context(MappedArray(TAP_MAP, control_bytes))
        control.memory[OWNER_OFFSET : OWNER_OFFSET + 4] = os.getpid().to_bytes(4, "little")
        control.memory[SEED_OFFSET : SEED_OFFSET + 8] = seed.to_bytes(8, "little")
        links = stack.enter_context(ProgArray("ffpf_links", LINKS))
        bindings = {TAP_MAP: Binding(control, True), "ffpf_links": Binding(links, False)}
        program = stack.enter_context(load(entry, bindings))
        link, mode, refusal = _link(program, interface)
        stack.enter_context(link)
        return Tap(interface, mode, refusal, link, control, links, stack.pop_all())


def _link(program: Descriptor, interface: Interface) -> tuple[Descriptor, str, str]:
    """The link, its mode, and why it is not native."""
    refusal = ""
    for flags, mode in ((calls.XDP_FLAGS_DRV_MODE, "native"), (calls.XDP_FLAGS_SKB_MODE, "generic")):
        try:
            link = Descriptor(calls.attach_xdp(program.fileno, interface.index, flags))
            return link, mode, refusal
        except KernelError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):
                _refuse_if_held(interface)
            if error.errno in (errno.EPERM, errno.EACCES) or mode == "generic":
                raise KernelError(
                    error.message, errno=error.errno, where=f"{interface.name}@xdp", help=error.help
                ) from None
            refusal = os.strerror(error.errno).lower()
    raise AssertionError("unreachable")


def _refuse_if_held(interface: Interface) -> None:
    """Raise TapBusy if the interface carries an XDP program; what a process just dead left gets a moment to go."""
    where = f"{interface.name}@xdp"
    patient_until_s = time.monotonic() + LONGEST_FAREWELL_S
    while True:
        program_id, mode = calls.attached_xdp(interface.index)
        if not program_id:
            return
        info = _info_if_there(program_id)
        if info is None:
            continue
        if info.name != ENTRY_NAME:
            raise TapBusy(
                f"the interface carries the XDP program `{info.name}` (id {info.id}, {mode}) of somebody else",
                errno=errno.EBUSY,
                where=where,
                help=f"it is not evicted: see `bpftool prog show id {info.id}`, detach it, or use another interface",
            )
        owner = _owner(info.map_ids)
        if Path(f"/proc/{owner}").exists() or time.monotonic() > patient_until_s:
            raise TapBusy(
                f"process {owner} grabs from this interface already",
                errno=errno.EBUSY,
                where=where,
                help="give that process all your flows (`ffpf run` takes several expressions), or stop it",
            )
        time.sleep(0.01)


def _info_if_there(program_id: int) -> calls.ProgramInfo | None:
    """What the kernel says of a program, None if it went meanwhile."""
    try:
        return calls.program_info(program_id)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def _owner(map_ids: tuple[int, ...]) -> int:
    """The process that holds the tap whose entry program uses these maps; 0 if it cannot be found.

    The tap's map is the first that the program uses. The others stay closed: opening a prog array whose owner is dying
    makes the kernel keep it for ever (prog_array_map_clear).
    """
    try:
        return calls.map_word(map_ids[0], TAP_MAP, OWNER_OFFSET) or 0 if map_ids else 0
    except KernelError:
        return 0
