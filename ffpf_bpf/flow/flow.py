"""The life cycle of a flow: create, populate, instantiate, activate, pause, close. Where all the parts meet.

    created -> populated -> instantiated -> active <-> paused -> closed

`instantiate` is all or nothing: authorise the complete definition, compile, load, link into the chains; a failure at
any step undoes the earlier ones. Nothing is pinned in the kernel, so the death of the process closes its flows.

With policies, what a user wrote is compiled and decided on in the sandbox (`flow/sandbox.py`), by this process never.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from ffpf_bpf import authorise
from ffpf_bpf.authorise import Decision, Subject
from ffpf_bpf.authorise.journal import Journal
from ffpf_bpf.capture.delivery import Deliverer, Idle
from ffpf_bpf.capture.ring import Batch, ReaderPace
from ffpf_bpf.capture.waiting import Pace
from ffpf_bpf.errors import ExpressionError, FfpfError, IllegalState, KernelError, Rejected
from ffpf_bpf.flow.authority import Authority
from ffpf_bpf.flow.buffer import DEFAULT_BUFFER_BYTES, buffer_for, check_buffer
from ffpf_bpf.flow.callbacks import Callbacks
from ffpf_bpf.flow.chains import CHAINS, BeforeLoad
from ffpf_bpf.flow.expiry import Expiry
from ffpf_bpf.flow.following import Following
from ffpf_bpf.flow.grabber import Grabber, Spaces, close_all
from ffpf_bpf.flow.node import FlowNode
from ffpf_bpf.flow.places import Event
from ffpf_bpf.flow.replay import Replay
from ffpf_bpf.flow.sandbox import SANDBOX
from ffpf_bpf.flow.statistics import Statistics, no_node
from ffpf_bpf.graph.classes.device import check_namespace
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.kernel import maps, namespaces
from ffpf_bpf.kernel.watch import WATCHER


class State(StrEnum):
    """Where a flow is in its life."""

    CREATED = "created"
    POPULATED = "populated"
    INSTANTIATED = "instantiated"
    ACTIVE = "active"
    PAUSED = "paused"
    CLOSED = "closed"


ALLOWED: dict[str, tuple[State, ...]] = {
    "populate": (State.CREATED, State.POPULATED),
    "instantiate": (State.POPULATED,),
    "reauthorise": (State.INSTANTIATED, State.ACTIVE, State.PAUSED),
    "activate": (State.INSTANTIATED, State.PAUSED),
    "pause": (State.ACTIVE,),
    "batches": (State.INSTANTIATED, State.ACTIVE, State.PAUSED),
    "stats": (State.INSTANTIATED, State.ACTIVE, State.PAUSED),
    "node": (State.INSTANTIATED, State.ACTIVE, State.PAUSED),
}
PACES = {pace.name.lower(): pace for pace in (ReaderPace.SLOW, ReaderPace.FAST)}
_live_flows: Counter[str] = Counter()  # of this process, by user: policies limit them
_deciding = threading.RLock()  # so that two flows cannot both be the last that is allowed
_counting = threading.Lock()
_numbers = itertools.count(1)
_flows: weakref.WeakSet[Flow] = weakref.WeakSet()  # instantiated


class Flow(Deliverer):
    """What one application wants to grab.

        with Flow.create() as flow:
            flow.populate('(device,eth0) -> (bpf,"tcp port 80") -> (grab,snaplen=96)')
            flow.instantiate()
            flow.activate()
            for batch in flow.batches(duration_s=10):
                ...

    After `with`, or `close`, nothing of it is left in the kernel.
    """

    def __init__(
        self,
        policies: Path | None,
        subject: Subject | None,
        first_interface: int,
        journal: Journal | None,
        file: str | None = None,
        netns: str = "",
        follow: bool = False,
    ) -> None:
        super().__init__()
        self.id = f"flow{next(_numbers)}"
        self.first_interface = first_interface
        self._authority = Authority(subject or authorise.current_subject(), policies, journal)
        self._definition: Definition | None = None
        self._decision: Decision | None = None
        self._file = file
        self._netns = netns
        self._following = Following(self, follow)
        self._grabber: Grabber | Replay | None = None
        self._final: Statistics | None = None
        self._taps: tuple[dict[str, str], ...] = ()
        self._snaplen = self._slots = 0
        self._interfaces: tuple[str, ...] = ()
        self.switching = threading.RLock()  # of the state: a flow may be closed by any thread
        self._expiry: Expiry | None = None
        self._pace = ReaderPace.SLOW
        self.narrowed = ""  # the nodes that were put in
        self.not_narrowed = ""  # why none could be
        self.state = State.CREATED

    @classmethod
    def create(
        cls,
        *,
        policies: Path | str | None = None,
        subject: Subject | None = None,
        first_interface: int = 0,
        audit: Path | str | None = None,
        pace: str = "slow",
        file: Path | str | None = None,
        netns: str | None = None,
        follow: bool = False,
    ) -> Self:
        """A new flow: nothing in the kernel. `policies` is a directory of policy files; with one, what no rule allows
        is denied. `subject` is who asks, by default the user of this process. Records number the flow's taps from
        `first_interface`, so that several flows can write one file. Each decision, and what is loaded because of it, is
        a line of the file `audit` (`authorise/journal.py`); if it cannot be written, the flow is refused. `pace` is
        what `Flow.pace` is at first.

        With `file`, a pcap or pcapng file, the flow runs on its packets, in this process: what arrives at a device is
        what the file has of an interface of that name, or all, if it has none and the flow no other device. That needs
        no privileges, and no policies: these are about interfaces.

        `netns` names the network namespace of all devices that name none, as `(device,blue/eth0)` does; the caller
        stays where it is. With `follow`, interfaces may come and go while the flow runs: those that a device names, or
        matches, are grabbed from as soon as they are there, if the policies allow it then; `events` tells of it."""
        if netns is not None:
            check_namespace(netns, "netns")
        if file is not None:
            if netns is not None or follow:
                raise ExpressionError(
                    "a file has no network namespaces, and nothing to follow", where="file", help="leave out the other"
                )
            flow = cls(None, subject, first_interface, None, os.fspath(file))
        else:
            if policies is not None:
                SANDBOX.start()
            journal = Journal(Path(audit)) if audit is not None else None
            directory = Path(policies) if policies is not None else None
            flow = cls(directory, subject, first_interface, journal, None, netns or "", follow)
        flow.pace = pace
        return flow

    def __repr__(self) -> str:
        defined = f": {self._definition.text}" if self._definition else ""
        return f"<Flow {self.id}, {self.state}{defined}>"

    @property
    def pace(self) -> str:
        """`slow`: while the ring is full of packets that were not read, new ones are dropped, counted as `ring_full`.
        `fast`: nothing waits for the reader; packets that are overwritten before they are read are its `overrun`. May
        be set at any time. Raises ExpressionError for another word.

        Flows of one group that grab the same of packets share a ring if they are instantiated at one pace; there each
        slow reader holds up all of them. So a slow one does not hold up those that were fast from the start; what a
        flow is changed to while it runs, it is to the ring that it has.
        """
        return self._pace.name.lower()

    @pace.setter
    def pace(self, word: str) -> None:
        try:
            self._pace = PACES[word]
        except KeyError:
            raise ExpressionError(f"no pace is `{word}`", help="it is `slow` or `fast`") from None
        if isinstance(grabber := self._grabber, Grabber):
            grabber.reader.pace = self._pace

    def populate(
        self,
        expression: Expression | str,
        *,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        buffer_packets: int | None = None,
        callbacks: Mapping[str, Callable[[Any], object]] | None = None,
        narrow: bool = False,
    ) -> Self:
        """Give the flow its definition: a flow expression, as text or as a value, the ring's size per CPU, in bytes at
        most or in packets at least, and the functions that `(callback,NAME)` names. With `narrow`, what the policies
        want is put into a flow that they refuse, if there is such a thing: see `narrowed`. May be repeated; the last
        wins. Raises ExpressionError, and with policies Rejected if its filters take too long to compile, or too much
        memory; nothing in the kernel yet."""
        self._require("populate")
        if not isinstance(expression, Expression | str):
            raise ExpressionError(f"{expression!r} is no flow expression", help="give text, or nodes joined by `>>`")
        check_buffer(buffer_bytes)
        definition = self._authority.define(expression, buffer_bytes, self.id, self._netns)
        if buffer_packets is not None:
            definition = replace(definition, buffer_bytes=buffer_for(buffer_packets, definition.graph.snaplen))
        whole = definition
        self.narrowed, self.not_narrowed = "", ""
        if narrow:
            definition = self._narrowed(whole)
        self._callbacks = Callbacks(definition.graph, callbacks or {}, whole.graph)
        self._definition = definition
        self._decision = None
        self.state = State.POPULATED
        return self

    def authorise(self) -> Decision:
        """The policy's decision on the definition, without instantiating it."""
        return self._decide(_live_flows[self._user])[0]

    def remedy(self, limit_s: float) -> str:
        """What `narrow` would put in, if that is found in time; "" if not."""
        narrowing = self._authority.narrow(self.definition, _live_flows[self._user], limit_s)
        if not narrowing.text:
            return ""
        return ", ".join(authorise.inserted(self.definition.graph.expression, parse(narrowing.text)))

    def instantiate(self) -> Self:
        """Authorise, compile, load and link; all or nothing. The flow is paused at first: no packet is captured.

        Raises Rejected with the decision, TapBusy, VerifierError, KernelError."""
        self._require("instantiate")
        self._callbacks.check()
        if self._file is not None:
            return self._entered(Replay(self.definition, self.first_interface, self._file))
        user = self._user
        with _deciding:
            decision, line = self._decide(_live_flows[user])
            self._check(decision)
            _count(user, 1)
        names = {device.namespace for device in self.definition.graph.taps}
        try:
            with namespaces.opened(names, may_miss=self._following.is_wanted) as spaces:
                grabber = self._build(decision, line, spaces)
                grabber.reader.pace = self._pace  # which another thread may have set meanwhile
                self._decision = decision
                self._entered(grabber)
                self._expiry = Expiry(self)
                self._expiry.set(decision.expires_s)
                WATCHER.add(self._following, spaces)
        except BaseException:
            if self._grabber is None:
                _count(user, -1)
            else:
                self.close()
                self.state, self._final = State.POPULATED, None
            raise
        return self

    def reauthorise(self) -> Decision:
        """Decide once more on a flow that is there, by the policies as they are now. A flow that is rejected, or about
        which nothing can be decided, is closed, and Rejected or PolicyError raised."""
        self._require("reauthorise")
        if self._file is not None:
            raise IllegalState("a flow on a file needs no decision", help="policies are about interfaces")
        try:
            return self._decided_again()[0]
        except Exception:
            self.close()
            raise

    def admit(self) -> BeforeLoad | None:
        """Before it grabs from one more interface: decide by the policies as they are now, and what is to be told of
        the programs. Raises Rejected and PolicyError, and the flow goes on as it was."""
        decision, line = self._decided_again()
        return self._authority.before_load(decision, line)

    def _decided_again(self) -> tuple[Decision, str]:
        with _deciding:
            decision, line = self._decide(_live_flows[self._user] - 1)
        self._check(decision)
        with self.switching:
            self._require("reauthorise")  # it may have been closed meanwhile
            assert self._expiry is not None
            self._decision = decision
            self._expiry.set(decision.expires_s)
        return decision, line

    def _check(self, decision: Decision) -> Definition:
        """The definition of the flow. Raises Rejected unless the decision accepts this very one."""
        definition = self.definition
        if not decision.accepted:
            raise self._authority.rejected(decision)
        if decision.digest != definition.digest:
            raise Rejected("the decision is about another definition", decision=decision, help="authorise it again")
        return definition

    def activate(self) -> Self:
        """Switch on: a store into a mapped word, no system call."""
        with self.switching:
            self._require("activate")
            self._running.activate()
            self.state = State.ACTIVE
        return self

    def pause(self, *, wait: bool = False) -> Self:
        """Switch off; counters, memory and rings stay. Packets on their way may still be recorded for some
        microseconds; with `wait` it returns only when none can be, which takes about 10 ms."""
        with self.switching:
            self._require("pause")
            self._running.pause()
            self.state = State.PAUSED
            if wait:
                self._running.wait()
        return self

    def close(self) -> None:
        """Take everything out of the kernel. May be called in any state, by any thread, and again. `stats` keeps the
        final counts."""
        self.close_all([self])

    @staticmethod
    def close_all(flows: list[Flow]) -> None:
        """Close several flows, in less time than one after the other."""
        grabbers: list[Grabber] = []
        owners: list[Flow] = []
        with ExitStack() as switching:
            for flow in sorted(flows, key=id):
                switching.enter_context(flow.switching)
                flow.state = State.CLOSED
                if flow._expiry is not None:
                    flow._expiry.cancel()
                WATCHER.remove(flow._following)
                if flow._grabber is not None:
                    flow._taps, flow._interfaces = flow._grabber.taps, flow.interfaces
                grabber, flow._grabber = flow._grabber, None
                if isinstance(grabber, Replay):
                    flow._final = grabber.close()
                elif grabber is not None:
                    grabbers.append(grabber)
                    owners.append(flow)
                    _count(flow._user, -1)
            if grabbers:
                for flow, final in zip(owners, close_all(grabbers), strict=True):
                    flow._final = final

    def stats(self) -> Statistics:
        """What was counted so far, or in all when the flow is closed."""
        if self.state is State.CLOSED:
            with self.switching:
                pass  # where another thread closes it, the final counts are there in a moment
        if self._final is not None:
            return self._final
        self._require("stats")
        return self._running.stats()

    def batches(self, *, duration_s: float | None = None, idle: Idle | None = None) -> Iterator[Batch]:
        """Packets as they come, in numpy batches that are views of ring memory, each valid until the next one.

        Ends after `duration_s`, or when `idle`, called whenever nothing waits, returns True, or the flow is closed,
        be it because its time is over; on a file, at its end.
        """
        self._require("batches")
        return super().batches(duration_s=duration_s, idle=idle)

    def _arriving(self, duration_s: float | None, idle: Idle | None) -> Iterator[Batch | None]:
        self._require("batches")
        until_s = None if duration_s is None else time.monotonic() + duration_s
        grabber = self._running
        for batch in self._while_open(grabber.reader.batches(until_s)):
            try:
                grabber.set_clock()
                if batch is None:
                    self.check_taps()
            except (ValueError, FfpfError):
                if self._grabber is None:
                    return
                raise
            if batch is not None:
                yield from self._callbacks.dispatch(batch, self)
                continue
            if idle is not None and idle():
                return
            yield None

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """`async for batch in flow`: packets as they come, each batch valid until the next one, until the flow is
        closed, or its file at an end; for a time limit there is `asyncio.timeout`. Other tasks run meanwhile."""
        pace = Pace()
        while not self.is_over:
            try:
                taken = self.waiting()
                for batch in self.poll():
                    yield batch
                self.check_taps()
                await pace.rest_async(self.listen, taken, self.waiting())
            except (ValueError, IllegalState):
                if self._grabber is None:
                    return
                raise

    def check_taps(self) -> None:
        """Raise KernelError if an interface of the flow has gone, unless it follows them. Asks the kernel at most once
        a second."""
        if not isinstance(self._running, Grabber):
            return
        self._following.check()
        if (lost := self._following.lost) and not self._following.is_wanted:
            raise KernelError(
                lost.said, errno=errno.ENODEV, where=lost.tap, help="what came until then is counted and kept"
            )

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened to its interfaces since it was instantiated, the last thousand: `attached`, `gone`, `renamed`,
        `moved` (to another network namespace), `detached` (by somebody else), `down`, `up`, `mtu`, and `refused`."""
        return tuple(self._following.events)

    def poll(self) -> Iterator[Batch]:
        """The packets that are there now, at most one batch per CPU; does not wait."""
        self._require("batches")
        self._running.set_clock()
        found = self._while_open(self._running.reader.poll())
        return (grabbed for batch in found if batch is not None for grabbed in self._callbacks.dispatch(batch, self))

    def dispatch(self, *, duration_s: float | None = None, idle: Callable[[], bool] | None = None) -> None:
        """Run the callbacks of the flow on packets as they come, until `duration_s` is over or `idle`, called whenever
        nothing waits, returns True. What reached a `grab` only is passed over; to have both, use `batches`."""
        for _ in self.batches(duration_s=duration_s, idle=idle):
            pass

    def node(self, id: str) -> FlowNode:
        """The node of that id: its memory, and what it counted. Raises FfpfError if there is none."""
        self._require("node")
        graph = self.definition.graph
        for step, leaf in graph.leaves():
            if graph.ids[step] == id:
                memory, is_bound = self._running.node_memory(step), bool(self._decision and self._decision.rule)
                return FlowNode(id, leaf.node, memory, is_bound, lambda: self.stats().node(id))
        raise no_node(id, [graph.ids[step] for step, _ in graph.leaves()])

    @property
    def is_over(self) -> bool:
        """Whether no packet can come any more: it is closed, or the file it runs on has been read to its end."""
        grabber = self._grabber
        return self.state is State.CLOSED or (isinstance(grabber, Replay) and grabber.is_over)

    def waiting(self) -> float:
        """How full the fullest of its rings is, from 0 to 1."""
        self._require("batches")
        return self._running.reader.waiting()

    def listen(self) -> list[int] | None:
        """Ask to be woken by the next packet: the descriptors to sleep on (`capture/waiting.py`), or None if packets
        are there already."""
        self._require("batches")
        return self._running.reader.listen()

    @property
    def definition(self) -> Definition:
        """The populated definition."""
        if self._definition is None:
            raise self._illegal("definition")
        return self._definition

    @property
    def decision(self) -> Decision | None:
        """The decision that the flow was instantiated by."""
        return self._decision

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The names of its taps; a record's `interface` is an index into it. More may come to those of a glob."""
        if (grabber := self.grabber) is not None:
            return grabber.interfaces
        return self._interfaces or tuple(device.tap for device in self.definition.graph.taps)

    @property
    def taps(self) -> tuple[dict[str, str], ...]:
        """Each tap's name (`tap`), the `mode` it is attached in (`native` or `generic`, `absent` where it is not), the
        driver's `refusal` of native mode if it is not, and `monitor` if frames end there; once instantiated."""
        return self._grabber.taps if self._grabber is not None else self._taps

    @property
    def has_globs(self) -> bool:
        """Whether a device of it may be several interfaces."""
        return any(device.is_glob for device in self.definition.graph.taps)

    @property
    def grabber(self) -> Grabber | None:
        """What it is in the kernel, if it is there."""
        return grabber if isinstance(grabber := self._grabber, Grabber) else None

    @property
    def snaplen(self) -> int:
        """The most bytes it records of a packet, once instantiated; 0 if it grabs none."""
        return self._snaplen

    @property
    def ring_slots(self) -> int:
        """Packets that each CPU's ring has room for, once instantiated; 0 if it grabs none."""
        return self._slots

    def __del__(self) -> None:
        if getattr(self, "_grabber", None) is not None:
            warnings.warn(f"{self.id} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    @property
    def _group(self) -> tuple[object, ...]:
        """Flows of one group may see the same: one user, under the same policies."""
        return (self._user, self._authority.subject.uid, self._authority.policies)

    @property
    def _user(self) -> str:
        return self._authority.subject.user

    @property
    def _running(self) -> Grabber | Replay:
        if (grabber := self._grabber) is None:  # closed meanwhile, by another thread
            raise IllegalState("the flow is closed", help="its final counts are in `stats`")
        return grabber

    def _while_open(self, batches: Iterator[Batch | None]) -> Iterator[Batch | None]:
        """What the reader gives, until the flow is closed, be it by another thread."""
        while self._grabber is not None:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except ValueError:
                if self._grabber is None:
                    return
                raise
            yield batch

    def _entered(self, grabber: Grabber | Replay) -> Self:
        self._grabber = grabber
        if self.definition.graph.sinks:
            self._snaplen, self._slots = grabber.ring.snaplen, grabber.ring.slots
        self.state = State.INSTANTIATED
        _flows.add(self)
        return self

    def _narrowed(self, whole: Definition) -> Definition:
        """What the policies make of the definition, if anything; it is decided on as any other."""
        narrowing = self._authority.narrow(whole, _live_flows[self._user])
        self.not_narrowed = narrowing.why
        if not narrowing.text:
            return whole
        definition = self._authority.define(narrowing.text, whole.buffer_bytes, self.id)
        if len(definition.graph.sinks) != len(whole.graph.sinks) or definition.graph.taps != whole.graph.taps:
            self.not_narrowed = "the decider made another flow of it"
            return whole
        self.narrowed = ", ".join(authorise.inserted(whole.graph.expression, definition.graph.expression))
        return definition

    def _decide(self, live_flows: int) -> tuple[Decision, str]:
        return self._authority.decide(self.definition, live_flows, self.id)

    def _build(self, decision: Decision, line: str, spaces: Spaces) -> Grabber:
        definition = self._check(decision)
        before_load = self._authority.before_load(decision, line)
        about = (definition, self.first_interface, spaces, self._group, before_load)
        return Grabber(*about, pace=self._pace, follow=self._following.is_wanted)

    def _require(self, call: str) -> None:
        if self.state not in ALLOWED[call]:
            raise self._illegal(call)

    def _illegal(self, call: str) -> IllegalState:
        allowed = [name for name, where in ALLOWED.items() if self.state in where]
        return IllegalState(
            f"`{call}` is not allowed: the flow is {self.state}",
            help=f"a flow that is {self.state} allows {', '.join(f'`{name}`' for name in [*allowed, 'close'])}",
        )


def _count(user: str, change: int) -> None:
    with _counting:
        _live_flows[user] += change


def _forget_in_child() -> None:
    """After a fork the flows are the parent's: the child closes its copies of their descriptors, and they are closed
    for it. A child that exits, or closes a flow, must not disturb its parent's."""
    global _deciding, _counting  # threads that the child does not have may hold them
    _deciding, _counting = threading.RLock(), threading.Lock()
    for flow in _flows:
        flow._grabber, flow.state, flow.switching = None, State.CLOSED, threading.RLock()
    _flows.clear()
    _live_flows.clear()
    CHAINS.forget()
    WATCHER.forget()
    maps.forget_all()


os.register_at_fork(after_in_child=_forget_in_child)
