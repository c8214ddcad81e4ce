"""The graph: a flow expression as a flat list of steps, checked, each step one yes or no about a packet.

A step reads earlier steps by their index, so the list is its own evaluation order: a DAG in static single assignment.
Everything that analyses a flow (the compiler, the policy's order rules, pictures, statistics) reads this form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.effect import Arrival, Delivery, Fate, Predicate
from ffpf_bpf.graph.expression import Expression, Node, Ranges, Role
from ffpf_bpf.graph.globs import meet


@dataclass(frozen=True, slots=True)
class Leaf:
    """A node: sees the packets for which step `source` is true (None: all that arrive at the flow's taps)."""

    node: Node
    source: int | None


@dataclass(frozen=True, slots=True)
class Union:
    """True if any of the steps is."""

    inputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Intersection:
    """True if all of the steps are."""

    inputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Complement:
    """True for what `source` let through (None: everything) and `inner` did not."""

    source: int | None
    inner: int


@dataclass(frozen=True, slots=True)
class Case:
    """True for what step `source`, a node with a result, let through with a result in one of `ranges`, or, `inverted`,
    in none of them."""

    source: int
    ranges: Ranges
    inverted: bool = False


Step = Leaf | Union | Intersection | Complement | Case


@dataclass(frozen=True, slots=True)
class Stop:
    """A place where packets are left out on purpose: those that reach `step` and do not leave it, unless a parallel
    branch lets them go on (one of the steps `unless` is true)."""

    fate: Fate
    step: int
    unless: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked flow definition's graph. `steps[i]` is named `ids[i]`.

    `arrivals` are the steps that only say where packets arrive: devices, and unions of devices.
    """

    expression: Expression
    steps: tuple[Step, ...]
    ids: tuple[str, ...]
    taps: tuple[Device, ...]
    stops: tuple[Stop, ...] = ()
    ends: tuple[int, ...] = field(default=())
    arrivals: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once, since it is asked for each step.
        object.__setattr__(self, "arrivals", _arrivals(self.steps))

    def ends_frames(self, tap: str) -> bool:
        """Whether the tap of that name is a monitor port."""
        return any(device.monitor for device in self.taps if Arrival(device.tap).is_at(tap))

    def leaves(self) -> Iterator[tuple[int, Leaf]]:
        """The nodes, with the index of their step."""
        return ((index, step) for index, step in enumerate(self.steps) if isinstance(step, Leaf))

    @property
    def filters(self) -> frozenset[str]:
        """The texts of its pcap filters."""
        effects = [leaf.node.effect for _, leaf in self.leaves()]
        return frozenset(effect.filter for effect in effects if isinstance(effect, Predicate))

    @property
    def sinks(self) -> tuple[int, ...]:
        """The steps that deliver packets to the application."""
        return tuple(index for index, leaf in self.leaves() if leaf.node.role is Role.SINK)

    @property
    def tagged(self) -> bool:
        """Whether a record says which sinks the packet reached and what result it had: if the application tells sinks
        apart, or nodes have results."""
        leaves = [leaf.node for _, leaf in self.leaves()]
        apart = len(self.sinks) > 1 and any(node.tells_apart for node in leaves)
        return bool(self.sinks) and (apart or any(node.selects for node in leaves))

    @property
    def snaplen(self) -> int:
        """The largest snap length of its sinks in bytes; 0 when one of them takes whole packets, or none exists."""
        effects = [leaf.node.effect for _, leaf in self.leaves()]
        lengths = [effect.snaplen for effect in effects if isinstance(effect, Delivery)]
        return max(lengths, default=0) if all(lengths) else 0


def _arrivals(steps: tuple[Step, ...]) -> frozenset[int]:
    found: set[int] = set()
    for index, step in enumerate(steps):
        is_device = isinstance(step, Leaf) and step.node.role is Role.DEVICE
        if is_device or (isinstance(step, Union) and step.inputs and set(step.inputs) <= found):
            found.add(index)
    return frozenset(found)


def sources(step: Step) -> tuple[int, ...]:
    """The steps that `step` reads."""
    match step:
        case Leaf(source=None):
            return ()
        case Leaf(source=int(source)):
            return (source,)
        case Union(inputs=inputs) | Intersection(inputs=inputs):
            return inputs
        case Complement(source=source, inner=inner):
            return (inner,) if source is None else (source, inner)
        case Case(source=source):
            return (source,)
        case _:
            raise TypeError(f"not a step: {step!r}")


def dead_ends(steps: Sequence[Step]) -> frozenset[int]:
    """The steps that nothing reads, but for unions that nothing reads: a union of what ends in sinks and functions says
    nothing more to anybody."""
    read: set[int] = set()
    for index in range(len(steps) - 1, -1, -1):
        if index in read or not isinstance(steps[index], Union):
            read.update(sources(steps[index]))
    return frozenset(range(len(steps))) - read


def check(graph: Graph) -> None:
    """Refuse a graph that is no DAG in evaluation order, which only a value made by hand may be; and one with a glob
    and another device that may be the same tap: a packet arrives at one of a flow's devices."""
    for index, step in enumerate(graph.steps):
        if any(not 0 <= source < index for source in sources(step)):
            raise ExpressionError(
                "the graph has a cycle or an edge from nowhere",
                where=graph.ids[index],
                help="a step may read only steps before it",
            )
    for glob, other in ((one, two) for one in graph.taps for two in graph.taps if one.is_glob and one != two):
        if (glob.namespace, glob.hook) == (other.namespace, other.hook) and meet(glob.interface, other.interface):
            raise ExpressionError(
                f"an interface may be both `{other.tap}` and `{glob.tap}`",
                help="name it once in a flow; two flows may each name it",
            )
