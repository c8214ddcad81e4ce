"""Faults on purpose, at each call to the kernel: a process is killed or stopped there, an exception raised, a call
refused. What there is in the kernel is compared before and afterwards, and every point is counted.

Calls are those of `kernel/calls.py`, each word to netlink, and the mapping of memory.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from ffpf_bpf import compiler
from ffpf_bpf.errors import KernelError
from ffpf_bpf.flow import Flow, chains, store
from ffpf_bpf.flow.chains import CHAINS
from ffpf_bpf.kernel import attachment, calls, maps, netlink
from ffpf_bpf.kernel.interfaces import find
from tests.conftest import assert_kernel_objects, kernel_objects
from tests.network import Network, one_cpu, send, udp

POINTS: Counter[tuple[str, str]] = Counter()  # by way to attach, by fault
FIRST_STORE = 1_000_000
SHARED = "(bpf,udp) -> (packetcount as common)"
# What the kernel may say instead of doing it; the others cannot fail, or are asked for nothing that is needed.
REFUSALS = {
    "create_map": (errno.ENOMEM, errno.EMFILE, errno.EPERM),
    "load_program": (errno.ENOMEM, errno.EMFILE, errno.EPERM),
    "attach_xdp": (errno.ENOMEM, errno.EPERM),
    "attach_tcx": (errno.ENOMEM, errno.ERANGE),
    "attached_xdp": (errno.ENOMEM, errno.EMFILE),
    "linked_interface": (errno.ENOMEM,),
    "set_program": (errno.E2BIG, errno.ENOMEM),
    "clear_program": (errno.EPERM,),
    "wait_for_programs": (errno.ENOMEM,),
    "map_memory": (errno.ENOMEM,),
    "netlink": (errno.ENOBUFS, errno.ENOMEM),
}


def summary() -> str:
    """How many faults there were, of which kind, where."""
    ways = dict.fromkeys(way for way, _ in POINTS)
    parts = [f"{way}: " + ", ".join(f"{n} {fault}" for (w, fault), n in POINTS.items() if w == way) for way in ways]
    return "\n".join([f"{POINTS.total()} faults injected", *parts])


class Interceptor:
    """Wraps every function that talks to the kernel, and does something before, or after, the call of number `at`, but
    for those that are spared; 0 is none of them, -1 each."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        at: int = 0,
        act: Callable[[str], object] = lambda name: None,
        *,
        after: bool = False,
        spared: tuple[str, ...] = (),
    ) -> None:
        self.names: list[str] = []
        self._at, self._act, self._after, self._spared = at, act, after, spared
        for name in calls.CALLS:
            patch.setattr(calls, name, self._wrapped(name, getattr(calls, name)))
        ask = netlink.Netlink._ask
        asked = self._wrapped("netlink", lambda *words: iter(list(ask(*words))))
        patch.setattr(netlink.Netlink, "_ask", asked)
        patch.setattr(
            maps, "mmap", SimpleNamespace(**{**vars(maps.mmap), "mmap": self._wrapped("map_memory", maps.mmap.mmap)})
        )

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():  # who watches interfaces, at any time
                return call(*arguments, **options)
            self.names.append(name)
            mine = self._at in (len(self.names), -1) and name not in self._spared
            if mine and not self._after:
                self._act(name)
            try:
                return call(*arguments, **options)
            finally:
                if mine and self._after:
                    self._act(name)

        return wrapped


def refuse(name: str, turn: int) -> None:
    """Raise what the kernel would: one of its reasons."""
    number = REFUSALS[name][turn % len(REFUSALS[name])]
    if name in ("netlink", "map_memory"):
        raise OSError(number, os.strerror(number))
    raise KernelError(f"injected: {os.strerror(number).lower()}", errno=number)


@contextmanager
def compiled_once() -> Iterator[None]:
    """What is compiled again and again is taken from the first time."""
    known: dict[str, Any] = {}
    compile_segment = compiler.compile_segment

    def recalled(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments, options))
        if key not in known:
            known[key] = compile_segment(*arguments, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "compile_segment", recalled)
        yield


@contextmanager
def attached(way: str) -> Iterator[None]:
    """Flows are attached in that way: `xdp`, `tcx`, `cls_bpf`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(attachment.FORCED, "cls_bpf" if way == "cls_bpf" else "")
        # So that it is folded, without as many flows as that takes.
        patch.setattr(chains, "LONGEST_CHAIN", 1)
        yield


def tap(interface: str, way: str) -> str:
    """The tap of an interface, in that way."""
    return interface if way == "xdp" else f"{interface}@tc-ingress"


def life(way: str) -> None:
    """Flows at two taps through every state: a tap that is attached, a node that is shared, a chain that is folded and
    rebuilt. At tc, where only attaching differs, without the chain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_numbers", itertools.count(FIRST_STORE))  # each life compiles the same
        here, other = f"(device,{tap('tap0', way)})", f"(device,{tap('lo', way)})"
        with Flow.create() as first, Flow.create() as second:
            first.populate(f"{here} | {other} -> (bytecount) -> (grab,snaplen=64)").instantiate().activate()
            if way == "xdp":
                second.populate(f"{here} -> {SHARED} -> (bytecount)").instantiate().activate()
                with Flow.create() as third:
                    third.populate(f"{here} -> (packetcount)").instantiate()
                    first.pause(wait=True)
                    first.activate()


def calls_of(way: str) -> list[str]:
    """The calls of a life, in order."""
    with pytest.MonkeyPatch.context() as patch:
        interceptor = Interceptor(patch)
        life(way)
        return interceptor.names


def hung() -> list[str]:
    """The qdiscs and filters at both interfaces."""
    with contextlib.closing(netlink.Netlink()) as asked:
        found = []
        for interface in ("tap0", "lo"):
            index = find(interface).index
            found += [asked.ingress_qdisc(index)]
            found += [each.name for parent in netlink.PARENTS.values() for each in asked.filters(index, parent)]
        return found


@dataclass
class Stage:
    """A flow that grabs all the time, beside the faults, and shares a node: each packet must come to both, once. What
    there is in the kernel, and this process's descriptors, must be as they were."""

    network: Network
    way: str
    witness: Flow
    sent: int = 0

    def __post_init__(self) -> None:
        self._read = 0
        self._raw = self.network.sender()
        self.remember()

    def remember(self) -> None:
        """What there is now is as it should be."""
        self.objects, self.hung, self.chains = kernel_objects(), hung(), len(CHAINS._chains)
        self.descriptors = len(os.listdir("/proc/self/fd"))

    def send(self, packets: int = 2) -> None:
        with one_cpu():
            send(self._raw, [udp(80)] * packets)
        self.sent += packets

    def wrong(self) -> str:
        """What is not as it was; empty if all is."""
        end_s = time.monotonic() + 5
        while (counts := self.counts()) < (self.sent,) * 3 and time.monotonic() < end_s:
            time.sleep(0.001)
        found = []
        if counts != (self.sent,) * 3:
            found.append(f"the flow beside it delivered, counted and gave {counts} packets of {self.sent}")
            self.sent = counts[0]
        if len(CHAINS._chains) != self.chains:
            found.append("a chain is left")
        if (descriptors := len(os.listdir("/proc/self/fd"))) != self.descriptors:
            found.append(f"{descriptors - self.descriptors} descriptors are left")
        try:
            assert_kernel_objects(self.objects)
        except AssertionError as error:
            found.append(str(error))
        while (left := hung()) != self.hung and time.monotonic() < end_s:
            time.sleep(0.001)
        if left != self.hung:
            found.append(f"at the interfaces: {left}")
        return ", ".join(found)

    def next_flow(self) -> str:
        """Whether one more flow can be instantiated, and counts; why not."""
        with pytest.MonkeyPatch.context() as patch, Flow.create() as flow:
            patch.setattr(store, "_numbers", itertools.count(FIRST_STORE))
            flow.populate(f"(device,{tap('tap0', self.way)}) -> (packetcount)").instantiate().activate()
            self.send()
            flow.pause(wait=True)
            counted = flow.stats().ledger.counted
        return "" if counted == 2 else f"the next flow counted {counted} of 2"

    def counts(self) -> tuple[int, int, int]:
        """Packets that the flow beside the faults delivered, its node counted, and this process got."""
        self._read += sum(len(batch.records) for batch in self.witness.poll())
        statistics = self.witness.stats()
        return statistics.ledger.delivered, int(statistics.node("common").counts["packets"]), self._read

    def close(self) -> None:
        self._raw.close()


@contextmanager
def stage(network: Network, way: str, beside: str = "") -> Iterator[Stage]:
    """A stage inside the network, for flows attached in that way; the flow beside them in the way `beside`, if not the
    same."""
    with network.enter(), compiled_once(), attached(way), Flow.create() as witness:
        here = f"(device,{tap('tap0', beside or way)})"
        witness.populate(f"{here} -> {SHARED} -> (grab,snaplen=64)").instantiate().activate()
        calls_of(way)  # what is set up once is
        found = Stage(network, way, witness)
        with contextlib.closing(found):
            yield found
