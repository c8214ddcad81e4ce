"""A tap: the entry program attached at an interface, and the chain of segments behind it.

The chain is a linked list of programs: each segment has a prog array of its own with two slots, NEXT (the segment that
follows) and DELIVER (its own deliver program). Every change is one replacement of one slot, which the kernel makes
atomically: a packet on its way goes on through what it has entered, a new packet takes the new way, and none is lost or
seen twice. (`bpf_tail_call` with a constant index is a direct jump; kernel/bpf/arraymap.c, prog_array_map_poke_run.)

Everything is held by descriptors and nothing is pinned: the death of the process takes it all down.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from ffpf_bpf.errors import KernelError
from ffpf_bpf.kernel import calls
from ffpf_bpf.kernel.attachment import Attachment, refuse_if_held
from ffpf_bpf.kernel.attachment import attach as attach_program
from ffpf_bpf.kernel.dispatcher import join
from ffpf_bpf.kernel.holders import MONITOR_OFFSET, TAP_MAP, own_tap
from ffpf_bpf.kernel.interfaces import Interface
from ffpf_bpf.kernel.maps import Array, Descriptor, MappedArray, ProgArray
from ffpf_bpf.kernel.programs import Binding, ProgramLike, load

NEXT, DELIVER, LINKS = 0, 1, 2  # enum ffpf_link
SEED_OFFSET, REACH_OFFSET = 8, 16  # struct ffpf_tap
FRAME_MAP, FRAME_BYTES = "ffpf_frame", 0x10000  # FFPF_FRAME_BYTES, for each CPU
MOST_SEGMENTS = 15  # entry -> 15 x (segment -> deliver) stays within the kernel's 33 tail calls


@dataclass(frozen=True, slots=True)
class Segment:
    """A loaded segment of a chain: closing it before it is unlinked breaks the chain. `reach` is how many bytes of a
    frame it looks at, of most and of those with IPv6 extension headers."""

    links: ProgArray
    program: Descriptor
    reach: tuple[int, int]
    resources: ExitStack

    def close(self) -> None:
        self.resources.close()


class Tap:
    """An attached entry program and its chain. The maps `shared` are those of all of its programs."""

    def __init__(
        self,
        interface: Interface,
        attachment: Attachment,
        control: MappedArray,
        shared: Mapping[str, Binding],
        links: ProgArray,
        stack: ExitStack,
    ) -> None:
        self.interface = interface
        self.segments: list[Segment] = []
        self._attachment = attachment
        self._shared = shared
        self._links = links
        self._stack = stack
        self._words = memoryview(control.memory).cast("I")

    @property
    def mode(self) -> str:
        """How it is attached: `native`, `generic` or `dispatcher` at XDP, `tcx` or `cls_bpf` at tc."""
        return self._attachment.mode

    @property
    def refusal(self) -> str:
        """Why it is not native, or tcx."""
        return self._attachment.refusal

    def holds(self, interface: Interface) -> bool:
        """Whether this is still what is attached there, under the same name, and for frames of the same kind."""
        mine = self.interface
        same = (interface.name, interface.index, interface.is_layer_3) == (mine.name, mine.index, mine.is_layer_3)
        return same and self._attachment.holds(interface)

    def is_attached(self) -> bool:
        """Whether the interface is still there."""
        return self._attachment.is_there()

    def set_active(self, flows: int) -> None:
        """How many flows are switched on; with 0 the entry program passes every packet on at once. No system call."""
        self._words[0] = flows

    def set_monitor(self) -> None:
        """Note that frames end behind the chain."""
        self._words[MONITOR_OFFSET // 4] = 1

    def load_segment(
        self,
        segment: ProgramLike,
        deliver: ProgramLike | None,
        bindings: Mapping[str, Binding],
        reach: tuple[int, int] = (0, 0),
    ) -> Segment:
        """Load a segment's programs, not yet part of the chain."""
        with ExitStack() as stack:
            links = stack.enter_context(ProgArray("ffpf_links", LINKS))
            own = {"ffpf_links": Binding(links, False), **self._shared}
            program = stack.enter_context(load(segment, {**bindings, **own}))
            if deliver is not None:
                with load(deliver, {**bindings, **own}) as deliver_program:
                    links.set(DELIVER, deliver_program)
            return Segment(links, program, reach, stack.pop_all())

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
        if new is not None:
            self._set_reach([*self.segments, new])
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
            self._set_reach(self.segments)

    def _set_reach(self, segments: list[Segment]) -> None:
        """Tell the entry program how much of a frame these look at, at most."""
        for number in (0, 1):
            most = max((segment.reach[number] for segment in segments), default=0)
            self._words[REACH_OFFSET // 4 + number] = most

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


def attach(
    interface: Interface, hook: str, entry: ProgramLike, control_bytes: int, seed: int, *, native_only: bool = False
) -> Tap:
    """Attach the entry program at a hook (`attachment.attach`). `seed`, 64 bits, keys the hashes of flows.

    Where libxdp's dispatcher runs the interface at XDP, it is joined. Raises TapBusy, naming the holder, if the
    interface carries another XDP program already; it is never evicted. Raises NotNative if it was to be `native_only`.
    """
    dispatcher = refuse_if_held(interface) if hook == "xdp" else None
    with ExitStack() as stack:
        control = stack.enter_context(MappedArray(TAP_MAP, control_bytes))
        own_tap(control)
        control.memory[SEED_OFFSET : SEED_OFFSET + 8] = seed.to_bytes(8, "little")
        links = stack.enter_context(ProgArray("ffpf_links", LINKS))
        shared = {TAP_MAP: Binding(control, True)}
        if entry.hook != "xdp":
            frame = stack.enter_context(Array(FRAME_MAP, calls.possible_cpus() * FRAME_BYTES))
            shared[FRAME_MAP] = Binding(frame, True)
        bindings = {**shared, "ffpf_links": Binding(links, False)}
        attachment: Attachment
        if dispatcher is not None:
            program, attachment = join(entry, bindings, links, interface, dispatcher)
            stack.enter_context(program)
        else:
            program = stack.enter_context(load(entry, bindings))
            attachment = attach_program(program, interface, hook, native_only=native_only)
        stack.callback(attachment.close)
        return Tap(interface, attachment, control, shared, links, stack.pop_all())
