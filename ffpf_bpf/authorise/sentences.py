"""What rules say, as English sentences: for `ffpf policy explain`, and for the claims of decisions."""

from __future__ import annotations

from collections.abc import Iterable

from ffpf_bpf.authorise.policy import (
    ANY,
    CARRIERS,
    HIDDEN_BY,
    IGNORED_BY_DEFAULT,
    SERVICE_PORTS,
    Allow,
    Limits,
    Never,
    Order,
    PacketClass,
    Rule,
    Span,
)
from ffpf_bpf.authorise.protocols import SCTP, TCP, UDP, ethertype_word, protocol_word
from ffpf_bpf.graph.effect import Depth, tap_parts

MOST_LISTED = 10
NO_END = 1 << 31  # where all is listed
SHOWN = {
    Depth.ALL: "with payload",
    Depth.HEADERS: "headers only",
    Depth.ANONYMISED: "headers only, with pseudonyms for addresses",
    Depth.COUNTS: "counts only",
}
LEFT_BY = {
    Depth.ALL: "no more than headers",
    Depth.HEADERS: "no more than headers with pseudonyms for addresses",
    Depth.ANONYMISED: "no more than counts",
}
WITH_PORTS = frozenset({TCP, UDP, SCTP})
PORTS = {
    "port": ("port", WITH_PORTS), "src_port": ("source port", WITH_PORTS), "dst_port": ("destination port", WITH_PORTS),
    "tcp_port": ("port", frozenset({TCP})), "udp_port": ("port", frozenset({UDP})),
    "sctp_port": ("port", frozenset({SCTP})),
}  # fmt: skip
LIMITS = {
    "flows": "at most {:,} flows at once",
    "nodes": "at most {:,} nodes",
    "snaplen": "at most {:,} bytes of a packet",
    "buffer_bytes": "at most {:,} bytes of buffer per CPU",
    "memory_bytes": "at most {:,} bytes of memory for nodes",
    "sample_at_least": "a sampler of 1 in {:,} or more on every path to a sink",
    "packets_per_second": "at most {:,} packets per second",
}
OF_SERVICES = (
    f"datagrams between a tunnel's port and a service's ({', '.join(map(str, SERVICE_PORTS))}) are taken for the "
    "service's, unless `ignore = []`"
)
UNITS_S = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def packets(one: PacketClass, most: int = MOST_LISTED) -> str:
    """`packets from or to 10.1.0.0/16 by TCP port 80 or 443`; lists of more than `most` are cut short."""
    parts = [f"from {_any(one.src, most)}"] if one.src else []
    parts += [f"to {_any(one.dst, most)}"] if one.dst else []
    parts += [f"from or to {_any(one.net, most)}"] if one.net else []
    parts += _transport(one, most)
    tags = [f"in VLAN {_spans(one.vlan, most)}"] if one.vlan else []
    tags += ["without a VLAN tag"] if one.untagged else []
    parts += [" or ".join(tags)] if tags else []
    return " ".join(["packets", *parts]) if parts else "every packet"


def allowed(allow: Allow, most: int = MOST_LISTED) -> str:
    """`packets to 10.1.0.0/16: headers only`."""
    hidden = f"; counters must not tell {_all(sorted(allow.hide))}" if allow.hide else "; counters may tell all of it"
    hidden = "" if allow.hide == HIDDEN_BY[allow.show] else hidden
    return f"{packets(allow.packets, most)}: {SHOWN[allow.show]}{hidden}"


def forbidden(never: Never, most: int = MOST_LISTED) -> str:
    """`packets by TCP port 25, and what may carry them: no more than counts`."""
    if never.packets == PacketClass():
        return f"every packet: {LEFT_BY[never.show]}"
    ignored = sorted(never.ignore - IGNORED_BY_DEFAULT, key=CARRIERS.index)
    if len(never.ignore) == len(CARRIERS):
        carriers = "but not what may carry them"
    else:
        carriers = "and what may carry them" + (
            f", but for {_all((f'`{name}`' for name in ignored), most)}" if ignored else ""
        )
    return f"{packets(never.packets, most)}, {carriers}: {LEFT_BY[never.show]}"


def trusts_services(never: Never) -> bool:
    """Whether tunnels whose other end has a service's port are not looked for, though others are."""
    return never.packets != PacketClass() and "service" in never.ignore and len(never.ignore) < len(CARRIERS)


def ordered(order: Order, most: int = MOST_LISTED) -> str:
    """The claim of one order."""
    match order.required:
        case str(name):
            required = f"`{name}`"
        case int(one_in):
            required = f"a sampler of 1 in {one_in:,} or more"
        case PacketClass() as one:
            return f"`{order.function}` sees only {packets(one, most)} on every path"
    return f"`{order.function}` comes {'after' if order.after else 'before'} {required} on every path"


def limited(limits: Limits) -> dict[str, str]:
    """The claim of each limit that is set, by its field."""
    values = {name: getattr(limits, name) for name in LIMITS}
    texts = {name: LIMITS[name].format(value) for name, value in values.items() if value is not None}
    return texts if limits.expires_s is None else {**texts, "expires_s": f"closed after {_duration(limits.expires_s)}"}


def explained(rule: Rule, most: int = NO_END) -> tuple[str, ...]:
    """The rule as lines of text, those about packets indented. Lists of more than `most` are cut short."""
    where = f" ({rule.where})" if rule.where else ""
    lines = [f"Rule {rule.name}{where} is about {_subjects(rule.subjects)} at {_taps(rule.taps)}."]
    if rule.classes:
        lines.append(f"Flows may use {_classes(rule.classes)}, and show:")
        lines += [f"  {allowed(allow, most)}" for allow in rule.allow]
    if rule.monitor:
        lines.append("Flows may make its taps at XDP monitor ports, whose frames end there and do not reach the host.")
    bounds = [*(ordered(order, most) for order in rule.order), *limited(rule.limits).values()]
    if bounds:
        lines += ["Of each flow it wants:", *(f"  {bound}" for bound in bounds)]
    if rule.never:
        lines.append("Whatever any rule allows, they are never shown more than this:")
        lines += [f"  {forbidden(never, most)}" for never in rule.never]
        if any(map(trusts_services, rule.never)):
            lines.append(f"  But {OF_SERVICES}.")
    return tuple(lines)


def _transport(one: PacketClass, most: int) -> list[str]:
    """What is said of protocols and ports: `by TCP port 80`."""
    said = [f"by {_protocols(one.protocols, one.ethertypes, most)}"] if one.protocols or one.ethertypes else []
    keys = [key for key in PORTS if getattr(one, key)]
    if not keys:
        return said
    protocols = frozenset.intersection(WITH_PORTS, *(PORTS[key][1] for key in keys))
    if one.protocols and not one.ethertypes:
        said, protocols = [], protocols & set(one.protocols)
    ports = " and ".join(f"{PORTS[key][0]} {_spans(getattr(one, key), most)}" for key in keys)
    return [" and ".join([*said, f"by {_protocols(tuple(sorted(protocols)), (), most) or 'no protocol'} {ports}"])]


def _protocols(protocols: tuple[int, ...], ethertypes: tuple[int, ...], most: int) -> str:
    return _any([*map(ethertype_word, ethertypes), *map(protocol_word, protocols)], most)


def _subjects(texts: tuple[str, ...]) -> str:
    return "everybody" if ANY in texts else _all((text.replace(":", " ", 1) for text in texts), NO_END)


def _taps(globs: tuple[str, ...]) -> str:
    return _all((f"`{_whole(glob)}`" for glob in globs), NO_END)


def _whole(glob: str) -> str:
    namespace, interface, hook = tap_parts(glob)
    return f"{namespace}/{interface}@{hook}" if namespace else f"{interface}@{hook}"


def _classes(names: tuple[str, ...]) -> str:
    return "every class of node" if ANY in names else _all((f"`{name}`" for name in names), NO_END)


def _duration(seconds: float) -> str:
    size, unit = next((size, unit) for size, unit in UNITS_S if seconds % size == 0 or size == 1)
    return f"{seconds / size:,g} {unit}"


def _spans(spans: tuple[Span, ...], most: int) -> str:
    return _any((f"{first}" if first == last else f"{first}-{last}" for first, last in spans), most)


def _any(texts: Iterable[object], most: int) -> str:
    return _list(tuple(texts), "or", most)


def _all(texts: Iterable[str], most: int = MOST_LISTED) -> str:
    return _list(tuple(texts), "and", most)


def listed(texts: Iterable[str], most: int) -> str:
    """`a, b and c`, or `a and 1,999 more`."""
    return _all(texts, most)


def counted(number: int, what: str) -> str:
    """`1 rule`, `2 rules`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _list(texts: tuple[object, ...], word: str, most: int) -> str:
    """`a, b or c`, or the first and `1,999 more`."""
    if not texts:
        return ""
    if len(texts) > most:
        return f"{texts[0]} and {len(texts) - 1:,} more"
    *others, last = map(str, texts)
    return f"{', '.join(others)} {word} {last}" if others else last
