"""What the hooks differ in: how their programs get at a frame, how they end, and what they may call for it.

At XDP a frame is read where it lies. At tc (`struct __sk_buff`) its outer VLAN tag may be beside its bytes, and its
bytes in several pieces, as they may where drivers use several buffers for a frame (xdp.frags); then the entry program
copies as much of it as the chain looks at (`reach.py`) to the map `ffpf_frame`, with the tag in its place, and what
follows reads it there, by the same instructions. So it is with every packet of a layer 3 device, which has no header of
the link layer: in the copy it has one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ffpf_bpf.errors import FfpfError

FRAME_MAP = "ffpf_frame"


@dataclass(frozen=True, slots=True)
class Hook:
    """A hook's programs: `section` begins the names of their sections in an object, `passes_on` is what they end with,
    `load_bytes` the number of the helper that copies a frame, if there is one. `entry` and `frame` are modules of
    bpf_src/: the entry program, and how the deliver program copies. `data` and `end` are the context's fields of the
    packet's bounds, and `addresses` the parts of it that hold addresses, these and others: from, and up to. `maps` hold
    copies of frames; if it `copies_all`, every frame is read there. `measures` is the number of the helper that tells
    the entry program a frame's length, which it notes for the others, if there is one."""

    section: str
    passes_on: int
    verdict: str
    load_bytes: int | None
    entry: str
    frame: str
    data: int
    end: int
    addresses: tuple[tuple[int, int], ...]
    maps: frozenset[str] = frozenset()
    measures: int | None = None
    copies_all: bool = False


XDP = Hook("xdp", 2, "XDP_PASS", 189, "entry", "xdp", 0, 4, ((0, 12),))
# Where the kernel has no bpf_xdp_load_bytes, before 5.18.
XDP_BY_WORDS = replace(XDP, load_bytes=None, frame="xdp_words")
XDP_DROP = 1
# Where a driver takes no other programs, as with large MTUs. All programs of a chain are of one kind.
XDP_FRAGS = replace(XDP, section="xdp.frags", entry="entry_frags", maps=frozenset({FRAME_MAP}), measures=188)
# data and data_end; data_meta and flow_keys; sk (include/uapi/linux/bpf.h, struct __sk_buff)
TC_ADDRESSES = ((76, 84), (140, 152), (168, 176))
TC = Hook("tc", -1, "TC_ACT_UNSPEC", 26, "entry_tc", "tc", 76, 80, TC_ADDRESSES, frozenset({FRAME_MAP}))
# Where packets have no header of the link layer: layer 3 devices.
TC_L3 = replace(TC, entry="entry_l3", frame="l3", copies_all=True)
HOOKS = {"xdp": XDP, "tc-ingress": TC, "tc-egress": TC}


def monitoring(hook: Hook) -> Hook:
    """The hook at a monitor port, where frames end behind the chain. Raises FfpfError for another than XDP."""
    if hook.section.partition(".")[0] != XDP.section:
        raise FfpfError("a monitor port is at XDP", help="at tc frames go on")
    return replace(hook, passes_on=XDP_DROP, verdict="XDP_DROP")


def hook_of(tap: str) -> Hook:
    """The hook of a tap, as in `eth0` (XDP) or `eth0@tc-ingress`. Raises FfpfError if there is none of that name."""
    _, at, name = tap.rpartition("@")
    found = HOOKS.get(name if at else "xdp")
    if found is None:
        raise FfpfError(f"no hook `{name}`", where=tap, help=f"one of {', '.join(HOOKS)}")
    return found
