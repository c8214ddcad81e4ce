"""Means: what a flow may use: taps, node classes, and how much of everything."""

from __future__ import annotations

import math
from fractions import Fraction

from ffpf_bpf.authorise.decision import Finding, Result, shown
from ffpf_bpf.authorise.policy import Rule
from ffpf_bpf.authorise.shape import path_around, with_ancestors
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import LONGEST_SNAPLEN
from ffpf_bpf.graph.classes.limit import Limit
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.effect import Delivery
from ffpf_bpf.graph.expression import Node, Role
from ffpf_bpf.graph.graph import Complement, Graph, Leaf, Step
from ffpf_bpf.graph.memory import size_ring, table_of


def check_taps(graph: Graph, rule: Rule) -> Finding:
    """Every device, and every tap that the graph says it has, is one that the rule allows, as a monitor port too if it
    is one."""
    devices = [(graph.ids[index], leaf.node) for index, leaf in graph.leaves() if isinstance(leaf.node, Device)]
    devices += [("", tap) for tap in graph.taps]
    for name, device in devices:
        if not rule.allows_tap(device):
            help = f"grab at {' or '.join(shown(glob) for glob in rule.taps)}"
            said = "may be a tap that is not allowed" if device.is_glob else "is not allowed"
            return Finding(Result.REFUTED, f"{_tap(device)} {said}", (name,) if name else (), help=help)
        if device.monitor and not rule.monitor:
            what = f"{_tap(device)} may not be a monitor port"
            help = "leave out `monitor`, and frames go on into the network stack"
            return Finding(Result.REFUTED, what, (name,) if name else (), help=help)
    return Finding(Result.PROVED, ", ".join(dict.fromkeys(_tap(device) for _, device in devices)))


def check_classes(graph: Graph, rule: Rule) -> Finding:
    """Every node is of a class that the rule allows."""
    for index, leaf in graph.leaves():
        if not rule.allows_class(leaf.node.class_name):
            name = leaf.node.class_name
            return Finding(
                Result.REFUTED, f"`{name}` is not allowed", (graph.ids[index],), help=f"leave out `({name})`"
            )
    used = sorted({leaf.node.class_name for _, leaf in graph.leaves()})
    return Finding(Result.PROVED, ", ".join(f"`{name}`" for name in used))


def check_flows(live_flows: int, most: int) -> Finding:
    """`live_flows` are those the subject has already."""
    if live_flows < 0:
        raise ValueError(f"{live_flows} live flows")
    return _at_most(live_flows + 1, most, "flow", "close another flow first")


def check_nodes(graph: Graph, most: int) -> Finding:
    return _at_most(sum(1 for _ in graph.leaves()), most, "node", f"use {most:,} nodes or fewer, or several flows")


def check_snaplen(graph: Graph, most: int) -> Finding:
    """The largest snap length of any sink. Whole packets (0) are longer than any limit."""
    largest = 0
    for index, leaf in graph.leaves():
        if leaf.node.role is not Role.SINK:
            continue
        name, effect = graph.ids[index], leaf.node.effect
        if not isinstance(effect, Delivery):
            return Finding(Result.REFUSED, "this sink does not say how much it takes", (name,))
        if effect.snaplen == 0:
            return Finding(Result.REFUTED, "takes whole packets", (name,), help=f"give {name} `snaplen={most}` or less")
        if effect.snaplen > most:
            help = f"give {name} `snaplen={most}` or less"
            return Finding(Result.REFUTED, f"takes {effect.snaplen:,} bytes", (name,), help=help)
        largest = max(largest, effect.snaplen)
    return Finding(Result.PROVED, f"{largest:,} bytes" if largest else "the flow has no sink")


def check_buffer(definition: Definition, most: int) -> Finding:
    """What the definition asks for, or the least that a ring of its snap length takes, which may be more."""
    if not definition.graph.sinks:
        return Finding(Result.PROVED, "the flow has no sink, so no ring")
    ring = size_ring(definition.graph.snaplen or LONGEST_SNAPLEN, definition.buffer_bytes)
    wanted = max(definition.buffer_bytes, ring.slots * ring.slot_bytes)
    return _at_most(wanted, most, "byte", f"ask for less buffer: `--buffer {most}`, and a small `snaplen`")


def check_memory(graph: Graph, most: int) -> Finding:
    """What nodes have on each CPU, and their tables, which all CPUs share."""
    wanted = 0
    for _, leaf in graph.leaves():
        table = table_of(leaf.node)
        wanted += leaf.node.cpu_bytes + (table.size_bytes if table else 0)
    return _at_most(wanted, most, "byte", "give nodes less memory")


def check_packet_rate(graph: Graph, most: int) -> Finding:
    """Every path to a sink passes a `limit` of packets, and all that stand in front of sinks pass at most `most` a
    second together, and at most `most` at once after a pause. A `limit` of bytes bounds no number of packets."""
    if not graph.sinks:
        return Finding(Result.PROVED, "the flow has no sink")
    if path := path_around(graph, graph.sinks, lambda node: _packet_limit(node) is not None):
        names = tuple(graph.ids[i] for i in path if isinstance(graph.steps[i], Leaf | Complement))
        help = f"put `(limit,{most}/s)` in front of the sink"
        return Finding(Result.REFUTED, "no `limit` of packets on this path", names, help=help)
    limits = [found for index in with_ancestors(graph, *graph.sinks) if (found := _packet_limit(graph.steps[index]))]
    rate, burst = sum(rate for rate, _ in limits), sum(burst for _, burst in limits)
    text = f"{math.ceil(rate):,} packets per second" if rate > 1 else "1 packet per second"
    if burst > most >= rate:
        return Finding(
            Result.REFUTED, f"{burst:,} packets at once after a pause", help="give the `limit` a smaller burst"
        )
    if rate <= most:
        return Finding(Result.PROVED, text)
    return Finding(Result.REFUTED, text, help=f"lower the `limit` to {most}/s, of all sinks together")


def _packet_limit(of: Node | Step) -> tuple[Fraction, int] | None:
    """Packets per second, and at once; None of what is no `limit`, or one of bytes."""
    node = of.node if isinstance(of, Leaf) else of
    if not isinstance(node, Limit) or (rate := node.packets_per_second) is None:
        return None
    return rate, node.burst


def _at_most(wanted: int, most: int, unit: str, help: str) -> Finding:
    text = f"{wanted:,} {unit}{'' if wanted == 1 else 's'}"
    return Finding(Result.PROVED, text) if wanted <= most else Finding(Result.REFUTED, text, help=help)


def _tap(device: Device) -> str:
    return shown(f"{device.place}@{device.hook}")
