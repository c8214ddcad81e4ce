"""The Python functions of a flow: which sink each belongs to, and how a batch reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ffpf_bpf.capture.ring import Batch
from ffpf_bpf.errors import ExpressionError
from ffpf_bpf.graph.classes.callback import Callback
from ffpf_bpf.graph.graph import Graph, Leaf

Function = Callable[[Any], object]


class Numbering(Protocol):
    """What turns the interface numbers of records into names."""

    @property
    def interfaces(self) -> tuple[str, ...]: ...
    @property
    def first_interface(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Sink:
    bit: int
    node: Callback
    function: Function | None


class Callbacks:
    """The callback sinks of a graph, and the functions that they name or hold."""

    def __init__(self, graph: Graph, functions: Mapping[str, Function], whole: Graph | None = None) -> None:
        """`graph` may be one that `whole` was narrowed to: of the same sinks, but known by their text only."""
        if not isinstance(functions, Mapping):
            raise ExpressionError(
                f"{functions!r} names no functions", where="callbacks", help='write `callbacks={"NAME": function}`'
            )
        self._tagged = graph.tagged
        self._sinks: list[_Sink] = []
        self._grabs = 0
        for place, (step, written) in enumerate(zip(graph.sinks, (whole or graph).sinks, strict=True)):
            leaf, first = graph.steps[step], (whole or graph).steps[written]
            assert isinstance(leaf, Leaf) and isinstance(first, Leaf)
            if isinstance(leaf.node, Callback) and isinstance(first.node, Callback):
                held = first.node.function if callable(first.node.function) else functions.get(leaf.node.target)
                self._sinks.append(_Sink(1 << place, leaf.node, held))
            else:
                self._grabs |= 1 << place
        named = {sink.node.target for sink in self._sinks}
        for name, function in functions.items():
            if name not in named:
                raise ExpressionError(f"no callback is called `{name}`", help=f"write `(callback,{name})` in the flow")
            if not callable(function):
                raise ExpressionError(f"{function!r} is no function", where=name, help="callbacks are functions")

    def check(self) -> None:
        """Raise ExpressionError for a callback without a function."""
        for sink in self._sinks:
            if sink.function is None:
                raise ExpressionError(
                    f"nobody gave the function `{sink.node.target}`",
                    where=sink.node.where,
                    help=f'in Python, `Flow.populate(..., callbacks={{"{sink.node.target}": function}})`',
                )

    def dispatch(self, batch: Batch, flow: Numbering) -> Iterator[Batch]:
        """Call the functions whose sinks packets of the batch reached; yield what reached a `grab`, if anything. The
        first error of a function is raised once all sinks had the batch; a function that failed gets no more of it."""
        failed: Exception | None = None
        for sink in self._sinks:
            reached = batch.that_reached(sink.bit) if self._tagged else batch
            try:
                self._call(sink, reached, flow)
            except Exception as error:  # the other sinks get theirs; then it comes out
                failed = failed or error
        if self._grabs:
            grabbed = batch.that_reached(self._grabs) if self._sinks else batch
            if len(grabbed):
                yield grabbed
        if failed is not None:
            try:
                raise failed
            finally:
                failed = None  # or the error would keep the batch, and the batch the ring

    def _call(self, sink: _Sink, reached: Batch, flow: Numbering) -> None:
        assert sink.function is not None
        if not len(reached):
            return
        if not sink.node.packets:
            sink.function(reached)
            return
        for packet in reached.packets(flow.interfaces, flow.first_interface):
            sink.function(packet)
