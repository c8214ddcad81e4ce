"""What rules say, as English sentences: for `ffpf policy explain`, and for the claims of decisions."""

from __future__ import annotations

from ffpf_bpf.authorise.policy import Order, PacketClass


def ordered(order: Order) -> str:
    """The claim of one order."""
    match order.required:
        case str(name):
            required = f"`{name}`"
        case int(one_in):
            required = f"a sampler of 1 in {one_in:,} or more"
        case PacketClass():
            required = "a packet class"
    return f"`{order.function}` comes {'after' if order.after else 'before'} {required} on every path"


def packets_in_words(packets: PacketClass) -> str:
    """Which packets those of a class are."""
    return "packets" + "".join(f" {key}={getattr(packets, key)}" for key in packets.keys)
