"""Orders and limits of a rule that no flow can meet, or that ask nothing of any, by what its classes are.

A rule without a sink in its classes can still count, and what it wants of sinks asks nothing; so nothing is said about
rules that allow every class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ffpf_bpf.authorise.policy import ANY, Order, PacketClass, Rule
from ffpf_bpf.authorise.sentences import packets
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes import CLASSES
from ffpf_bpf.graph.effect import Depth, Transform
from ffpf_bpf.graph.expression import Role, nodes
from ffpf_bpf.graph.parser import parse

LEAST_BUFFER_BYTES = 4_096  # that a flow can ask for
LEAST_NODES = 2  # a device, and something to do
OF_SINKS = {"snaplen": "snaplen", "buffer_bytes": "buffer", "sample_at_least": "sample_at_least",
            "packets_per_second": "packets_per_second"}  # fmt: skip
NEEDED = {"sample_at_least": "sampler", "packets_per_second": "limit"}

Unmeetable = tuple[str, str, str, bool]  # where ("": the rule), what, help, whether it asks nothing


def unmeetable(rule: Rule, is_empty: Callable[[PacketClass], bool]) -> Iterator[Unmeetable]:
    """What is wrong. `is_empty` says whether no packet can be in a class; what it raises goes through."""
    if not rule.classes:
        return
    yield from _orders(rule, is_empty)
    yield from _circles(rule)
    if rule.limits.nodes is not None and rule.limits.nodes < LEAST_NODES:
        yield (
            "",
            f"no flow has {rule.limits.nodes} node",
            f"`nodes` is at least {LEAST_NODES}: a device, and one more",
            False,
        )
    if ANY not in rule.classes:
        yield from _of_classes(rule)
    elif (buffer := rule.limits.buffer_bytes) is not None and buffer < LEAST_BUFFER_BYTES:
        yield _small_buffer(buffer)


def _orders(rule: Rule, is_empty: Callable[[PacketClass], bool]) -> Iterator[Unmeetable]:
    for order in rule.order:
        if not _may_use(rule, order.function):
            said = (
                f"an order about `{order.function}`, which is none of the classes of rule `{rule.name}`, asks nothing"
            )
            yield order.where, said, f"add `{order.function}` to `classes`, or drop the order", True
        elif isinstance(order.required, PacketClass):
            said = f"no flow can use `{order.function}`"
            if is_empty(order.required):
                what = f"no packet can be one of these: {packets(order.required)}"
                yield order.where, f"{said}: {what}", "keys exclude each other", False
            elif not _with_role(rule, Role.DECIDES):
                yield order.where, f"{said}: no class of the rule chooses packets", "add `bpf` to `classes`", False


def _circles(rule: Rule) -> Iterator[Unmeetable]:
    """A class that wants itself in front of itself, through others, can never come; likewise behind."""
    for after in (True, False):
        wants: dict[str, list[Order]] = {}
        for order in rule.order:
            if order.after is after and isinstance(order.required, str):
                wants.setdefault(order.function, []).append(order)
        told: set[str] = set()
        for function in wants:
            if function not in told and (circle := _circle(function, wants)):
                told |= {order.function for order in circle}
                names = " and ".join(f"`{order.function}`" for order in circle)
                word = "after" if after else "before"
                said = f"no flow can use {names}: each would come {word} the other on every path"
                yield circle[-1].where, said, "turn one of the orders around, or drop it", False


def _circle(start: str, wants: dict[str, list[Order]]) -> list[Order]:
    """The orders that lead from a class back to it."""
    ways: list[list[Order]] = [[order] for order in wants[start]]
    seen = set()
    while ways:
        way = ways.pop(0)
        to = str(way[-1].required)
        if to == start:
            return way
        if to not in seen:
            seen.add(to)
            ways += [[*way, order] for order in wants.get(to, ())]
    return []


def _of_classes(rule: Rule) -> Iterator[Unmeetable]:
    """Of a rule that lists its classes."""
    sinks = _with_role(rule, Role.SINK)
    limits = rule.limits
    if not sinks:
        for field, key in OF_SINKS.items():
            if getattr(limits, field) is not None:
                yield (
                    "",
                    f"`{key}` asks nothing: rule `{rule.name}` allows no sink",
                    "drop it, or add `grab` to `classes`",
                    True,
                )
        return
    needed = {each for field, each in NEEDED.items() if getattr(limits, field) is not None}
    for field, name in NEEDED.items():
        if getattr(limits, field) is not None and name not in rule.classes:
            said = f"no flow with a sink can meet `{field}`: `{name}` is none of the classes of rule `{rule.name}`"
            yield "", said, f"add `{name}` to `classes`", False
    deepest = max((allow.show for allow in rule.allow), default=Depth.COUNTS)
    shown = " and ".join(f"`{name}`" for name in sinks)
    if deepest is Depth.COUNTS:
        yield (
            "",
            f"no flow can use {shown}: rule `{rule.name}` allows nothing but counts",
            "give an `allow` more to `show`",
            False,
        )
        return
    if deepest < Depth.ALL:
        serving = [name for name in _with_role(rule, Role.TRANSFORMS) if _leaves(name) <= deepest]
        if not serving:
            those = " or ".join(
                f"`{name}`" for name in CLASSES if CLASSES[name].role is Role.TRANSFORMS and _leaves(name) <= deepest
            )
            said = f"no flow can use {shown}: without {those} a sink shows more than {deepest.word}"
            yield "", said, f"add {those} to `classes`", False
        needed.add("a transform")
    for order in rule.order:
        if order.after and (order.function == "grab" or {order.function} == set(sinks)):
            needed |= {order.required} if isinstance(order.required, str) else set()
            needed |= {"sampler"} if isinstance(order.required, int) else set()
            if isinstance(order.required, str) and CLASSES[order.required].role is Role.TRANSFORMS:
                needed.discard("a transform")
    least = LEAST_NODES + len(needed - {"device"})
    if limits.nodes is not None and LEAST_NODES <= limits.nodes < least:
        said = f"no flow with a sink can meet `nodes = {limits.nodes}`: what rule `{rule.name}` wants takes {least}"
        yield "", said, f"`nodes = {least}` or more", False
    if limits.buffer_bytes is not None and limits.buffer_bytes < LEAST_BUFFER_BYTES:
        yield _small_buffer(limits.buffer_bytes)


def _small_buffer(buffer: int) -> Unmeetable:
    help = f"`buffer = {LEAST_BUFFER_BYTES}` or more"
    return (
        "",
        f"no flow with a sink can meet `buffer = {buffer}`: the least is {LEAST_BUFFER_BYTES:,} bytes",
        help,
        False,
    )


def _may_use(rule: Rule, function: str) -> bool:
    """`grab` of an order stands for every sink."""
    return rule.allows_class(function) or (function == "grab" and bool(_with_role(rule, Role.SINK)))


def _with_role(rule: Rule, role: Role) -> list[str]:
    return [name for name, known in CLASSES.items() if known.role is role and rule.allows_class(name)]


def _leaves(name: str) -> Depth:
    """What a transform of the class shows at least, as it is without an expression; nothing is said of one that has no
    such form."""
    try:
        effects = [node.effect for node in nodes(parse(f"(device,lo) -> ({name}) -> (grab)"))]
    except ExpressionError:
        return Depth.COUNTS
    return min((effect.leaves for effect in effects if isinstance(effect, Transform)), default=Depth.COUNTS)
