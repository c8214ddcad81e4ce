"""What a compiled program may do: no more than the effects of the graphs that it was compiled from.

The lists here are closed. An effect names what it calls, and only what is in `CALLABLE` can be named at all: nothing
there writes to a packet, sends one elsewhere, reads memory of the kernel, or tells anything to anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ffpf_bpf.compiler.frame import BELL, DELIVER, NEXT, SegmentFlow, segment_rings, segment_stores
from ffpf_bpf.compiler.hook import XDP, Hook
from ffpf_bpf.errors import FfpfError
from ffpf_bpf.graph.effect import Arrival, Delivery, Effect, Predicate, Primitive, Transform

TAIL_CALL, THIS_CPU = 12, 8
LOOK_UP, NOW = 1, 5
WAKE, FORCE_WAKEUP = 130, 2  # bpf_ringbuf_output, BPF_RB_FORCE_WAKEUP
# include/uapi/linux/bpf.h, ___BPF_FUNC_MAPPER
HELPERS = {
    "map_lookup_elem": LOOK_UP,
    "ktime_get_ns": NOW,
    "get_prandom_u32": 7,
    "get_smp_processor_id": THIS_CPU,
    "tail_call": TAIL_CALL,
    "jiffies64": 118,
    "xdp_get_buff_len": 188,
    "xdp_load_bytes": 189,
    "skb_load_bytes": 26,
    "ringbuf_output": WAKE,
}
ALL = frozenset({TAIL_CALL, THIS_CPU})  # what every program calls
DELIVERS = frozenset({LOOK_UP, NOW, WAKE})
ITERATOR = frozenset({"bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy"})
# What an effect may call by that name: helpers, and functions of the kernel.
CALLABLE: dict[str, tuple[frozenset[int], frozenset[str]]] = {
    "ktime_get_ns": (frozenset({NOW}), frozenset()),
    "get_prandom_u32": (frozenset({7}), frozenset()),
    "jiffies64": (frozenset({118}), frozenset()),
    "bpf_iter_num": (frozenset(), ITERATOR),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """What one program may do, besides what harms nobody: calculate, read packets and its maps, use its stack.

    It may write to the values of `values`, look up and write to those of `rings`, ring `bells`, call `helpers` (by
    number) and `functions` of the kernel (by name), and go on through the slots `links` of the map `ffpf_links`. It is
    a program of `hook`, which says how it ends. `frames` are the hook's maps that hold copies of frames: read as frames
    are, or written to as well if it `copies`.
    """

    values: frozenset[str]
    rings: frozenset[str]
    helpers: frozenset[int]
    functions: frozenset[str]
    links: frozenset[int]
    hook: Hook = XDP
    copies: bool = False
    bells: frozenset[str] = frozenset()

    @property
    def maps(self) -> frozenset[str]:
        return self.values | self.rings | self.bells | self.frames | {"ffpf_links"}

    @property
    def frames(self) -> frozenset[str]:
        return self.hook.maps


def entry_grant(hook: Hook = XDP) -> Grant:
    """What the program at a tap may do: where it copies frames, that as well."""
    granted = ALL | (_copying(hook) if hook.maps else frozenset())
    if hook.measures is not None:
        granted |= {hook.measures}
    return Grant(frozenset({"ffpf_tap"}), frozenset(), granted, frozenset(), frozenset({NEXT}), hook, copies=True)


def segment_grant(flows: Sequence[SegmentFlow], hook: Hook = XDP) -> Grant:
    """What the program that evaluates these flows may do. Raises FfpfError for an effect that asks for too much."""
    effects = _effects(flows)
    helpers, functions = _calls(effect for effect in effects if isinstance(effect, Primitive))
    links = {NEXT, DELIVER} if any(isinstance(effect, Delivery) for effect in effects) else {NEXT}
    return Grant(_values(flows), frozenset(), ALL | helpers, functions, frozenset(links), hook)


def deliver_grant(flows: Sequence[SegmentFlow], hook: Hook = XDP) -> Grant:
    """What the program that stores their packets may do: into the rings of those that have a sink, whose bells it may
    ring. A segment that does so itself evaluates nothing that takes more."""
    rings = frozenset(f"ffpf_ring_{number}" for number in segment_rings(flows).values())
    helpers, functions = _calls(effect for effect in _effects(flows) if isinstance(effect, Transform))
    granted = ALL | DELIVERS | _copying(hook) | helpers
    bells = frozenset(f"{BELL}{number}" for number, flow in enumerate(flows) if flow.graph.sinks)
    return Grant(_values(flows), rings, granted, functions, frozenset({NEXT}), hook, bells=bells)


def _copying(hook: Hook) -> frozenset[int]:
    return frozenset() if hook.load_bytes is None else frozenset({hook.load_bytes})


def _values(flows: Sequence[SegmentFlow]) -> frozenset[str]:
    return frozenset({"ffpf_tap", *(f"ffpf_flow_{number}" for number in range(len(segment_stores(flows))))})


def _effects(flows: Sequence[SegmentFlow]) -> list[Effect]:
    return [leaf.node.effect for flow in flows for _, leaf in flow.graph.leaves()]


def _calls(effects: Iterable[Effect]) -> tuple[frozenset[int], frozenset[str]]:
    """Helpers and functions of the kernel that effects name."""
    helpers: set[int] = set()
    functions: set[str] = set()
    for effect in effects:
        match effect:
            case Primitive(calls=names) | Transform(calls=names):
                for name in names:
                    if name not in CALLABLE:
                        raise FfpfError(
                            f"`{name}` is nothing that a node may call",
                            where=f"the effect of `{effect.module}`",
                            help=f"one of {', '.join(CALLABLE)}",
                        )
                    helpers |= CALLABLE[name][0]
                    functions |= CALLABLE[name][1]
            case Arrival() | Predicate() | Delivery():
                pass
            case _:
                raise TypeError(f"an effect nobody knows: {effect!r}")
    return frozenset(helpers), frozenset(functions)
