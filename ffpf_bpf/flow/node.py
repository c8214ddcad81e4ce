"""A node of an instantiated flow, as the application sees it: its memory, and what it counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ffpf_bpf.errors import FfpfError, with_article
from ffpf_bpf.flow.statistics import NodeStatistics
from ffpf_bpf.flow.store import NodeMemory
from ffpf_bpf.graph.expression import Node, Role


@dataclass(frozen=True, slots=True)
class FlowNode:
    """`id` is its name, or the id that `ffpf draw` shows; `node` what the flow expression says of it."""

    id: str
    node: Node
    memory: NodeMemory | None = field(repr=False)
    is_bound: bool = field(repr=False)
    ask: Callable[[], NodeStatistics] = field(repr=False)

    @property
    def mbuf(self) -> np.ndarray[Any, Any]:
        """The node's persistent memory: bytes that the kernel side and the application both read and write, as they
        lie, with no lock. Shape (CPUs, `node.mbuf_bytes`), each CPU's own in a row; or (`node.mbuf_bytes`,) for a class
        whose memory all CPUs share. `mbuf.view("u8")` shows 64-bit words. Flows that share the node share the memory.
        A view stays readable after the flow is closed.

        Read only for a node that decides, in a flow that a policy's rule allowed: what it was told to leave out stays
        out. Raises FfpfError for a node without memory, one whose memory is private, and once the flow is closed.
        """
        if self.memory is None or not self.node.mbuf_bytes:
            raise FfpfError(
                f"{with_article(self.node.class_name)} has no memory",
                where=self.id,
                help="the third element gives a node memory, as in `(packetcount,,16)`",
            )
        if self.node.private:
            raise FfpfError(
                f"the memory of {with_article(self.node.class_name)} is private",
                where=self.id,
                help="it would tell what the node hides",
            )
        if self.memory.is_closed:
            raise FfpfError("the flow is closed", where=self.id, help="take the view before; it stays readable")
        return self.memory.mbuf(read_only=self.is_bound and self.node.role is Role.DECIDES)

    @property
    def statistics(self) -> NodeStatistics:
        """Its packets in and out, and what it counted."""
        return self.ask()
