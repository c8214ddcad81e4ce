"""Every step of the life cycle is interrupted: by SIGKILL, and by a refusal of the kernel. Nothing may be left."""

from __future__ import annotations

import errno
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ffpf_bpf import compiler
from ffpf_bpf.errors import FfpfError, KernelError, TapBusy
from ffpf_bpf.flow import Flow, State
from ffpf_bpf.flow.chains import CHAINS
from ffpf_bpf.kernel import calls, probes
from tests.conftest import assert_kernel_objects
from tests.network import Network, udp

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def inside(network: Network) -> Iterator[None]:
    with network.enter():
        yield


def life() -> None:
    """Two flows on two taps through every state, which share a node, with a chain that is folded and rebuilt."""
    with Flow.create() as first, Flow.create() as second:
        first.populate("(device,tap0) | (device,lo) -> (sampler,2) -> (bytecount) -> (grab,snaplen=64)").instantiate()
        first.activate()
        second.populate('(device,tap0) | (device,lo) -> (sampler,2) -> (bpf,"udp") -> (packetcount)').instantiate()
        second.activate()
        first.pause(wait=True)
        first.activate()
        more = [Flow.create().populate(f"(device,tap0) -> (sampler,{n}) -> (packetcount)") for n in range(1, 5)]
        try:
            for flow in more:
                flow.instantiate()
            more[1].close()
        finally:
            Flow.close_all(more)
    with Flow.create() as at_tc:
        at_tc.populate("(device,tap0@tc-ingress) | (device,tap0@tc-egress) -> (bpf,udp) -> (grab)").instantiate()
        at_tc.activate()


class Interceptor:
    """Wraps every function that talks to the kernel, and does something at one of its calls."""

    def __init__(
        self, patch: pytest.MonkeyPatch, at: int, act: Callable[[], None], *, after: bool, spared: tuple[str, ...] = ()
    ) -> None:
        self.made = 0
        self.names: list[str] = []
        self.spared = spared
        for name in calls.CALLS:
            patch.setattr(calls, name, self._wrapped(name, getattr(calls, name), at, act, after))

    def _wrapped(self, name: str, call: Callable[..., Any], at: int, act: Callable[[], None], after: bool) -> Any:
        def wrapped(*arguments: Any) -> Any:
            self.made += 1
            self.names.append(name)
            mine = self.made == at and name not in self.spared
            if mine and not after:
                act()
            try:
                return call(*arguments)
            finally:
                if mine and after:
                    act()

        return wrapped


def count_calls() -> list[str]:
    """The calls of a life, but for what is asked once in a process."""
    for ask in (probes.lacks_load_bytes, probes.has_frags):
        ask()
    with pytest.MonkeyPatch.context() as patch:
        interceptor = Interceptor(patch, 0, lambda: None, after=False)
        life()
        return interceptor.names


def test_sigkill_at_every_call_leaves_nothing(kernel_before: Counter[str]) -> None:
    names = count_calls()
    for after in (False, True):
        for at in range(1, len(names) + 1):
            child = os.fork()
            if child == 0:
                with pytest.MonkeyPatch.context() as patch:
                    Interceptor(patch, at, lambda: os.kill(os.getpid(), signal.SIGKILL), after=after)
                    try:
                        life()
                    except BaseException:
                        traceback.print_exc()
                    finally:
                        os._exit(1)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), f"the child survived call {at} ({names[at - 1]})"
            assert_kernel_objects(kernel_before)
    print(f"{2 * len(names)} kills, at {len(set(names))} kinds of calls")
    assert len(names) > 40
    life()


def test_a_tap_is_free_again_right_after_its_owner_was_killed() -> None:
    for _ in range(5):
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            held = Flow.create().populate("(device,tap0)").instantiate().activate()
            os.write(tell, b"!" if held.state is State.ACTIVE else b"?")
            signal.pause()
        try:
            assert os.read(ready, 1) == b"!"
            with pytest.raises(TapBusy, match=f"process {child} grabs from this interface already"):
                Flow.create().populate("(device,tap0)").instantiate()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(ready)
            os.close(tell)
        with Flow.create() as flow:
            flow.populate("(device,tap0)").instantiate()


REFUSABLE = ("create_map", "load_program", "attach_xdp", "set_program", "wait_for_programs", "clear_program")


ALONE = "(device,tap0) -> (grab,snaplen=64)"
SHARING = "(device,tap0) -> (packetcount as common) -> (grab,snaplen=64)"


def change_under_fault(
    network: Network, at: int, fault: type[BaseException], after: bool, text: str
) -> tuple[bool, str]:
    """Four flows grab; a fifth joins, which folds the chain or shares a node with all, and one leaves; call `at` fails.
    Whether it came to that, and what is wrong afterwards with the others: they must deliver, a node that they share must
    see each packet once, a new one must work, and all must close."""
    standing = [Flow.create().populate(text).instantiate().activate() for _ in range(4)]
    joining = Flow.create().populate(text.replace("grab,snaplen=64", "packetcount"))

    def fail() -> None:
        raise KernelError("injected", errno=errno.EPERM) if fault is KernelError else fault

    failed = False
    with pytest.MonkeyPatch.context() as patch:
        # Closing cannot be refused; an interrupt between a descriptor and its first or last line is Python's to lose.
        spared = ("close", "create_map", "load_program", "attach_xdp") if after else ("close",)
        interceptor = Interceptor(patch, at, fail, after=after, spared=spared)
        try:
            joining.instantiate()
            standing.pop(1).close()
        except (FfpfError, KeyboardInterrupt):
            failed = True
        reached = interceptor.made >= at
    name = interceptor.names[at - 1] if reached else ""
    others = [flow for flow in standing if flow.state is State.ACTIVE]
    before = [flow.stats().ledger.delivered for flow in others]
    counted_before = common_count(others[0]) if text == SHARING else 0
    with Flow.create() as fresh:
        fresh.populate(text.replace("grab,snaplen=64", "packetcount")).instantiate().activate()
        network.send([udp(80)] * 10)
        fresh.pause(wait=True)
        wrong = [] if fresh.stats().ledger.counted == 10 else ["the new flow does not count"]
    delivered = [flow.stats().ledger.delivered - start for flow, start in zip(others, before, strict=True)]
    if delivered != [10] * len(others):
        wrong.append(f"delivered {delivered}")
    if text == SHARING and common_count(others[0]) != counted_before + 10:
        wrong.append(f"the common node counted {common_count(others[0]) - counted_before}")
    Flow.close_all([joining, *standing])
    if CHAINS._chains:
        wrong.append("a chain is left")
    return reached, f"call {at} ({name}), {fault.__name__}, after={after}, raised={failed}: {wrong}" if wrong else ""


def common_count(flow: Flow) -> int:
    return int(flow.stats().node("common").counts["packets"])


@pytest.mark.parametrize("text", [ALONE, SHARING], ids=["alone", "sharing"])
@pytest.mark.parametrize(
    ("fault", "after"), [(KernelError, False), (KeyboardInterrupt, False), (KeyboardInterrupt, True)]
)
def test_a_fault_while_the_chain_changes_takes_nothing_from_the_others(
    network: Network, fault: type[BaseException], after: bool, text: str, kernel_before: Counter[str]
) -> None:
    at, reached, wrong = 0, True, []
    while reached:
        at += 1
        reached, problem = change_under_fault(network, at, fault, after, text)
        wrong += [problem] if problem else []
        assert_kernel_objects(kernel_before)
    assert not wrong, "\n".join(wrong)
    assert at > 10


def test_a_refusal_at_every_call_leaves_nothing_and_the_next_try_works(kernel_before: Counter[str]) -> None:
    """The kernel refuses one call of a life: the error comes out and the rest is undone, or what could not be made
    better (a chain shorter, a segment smaller) stays as it was."""
    names = count_calls()
    refused = raised = 0
    for at, name in enumerate(names, start=1):
        if name not in REFUSABLE:
            continue

        def refuse(name: str = name) -> None:
            raise KernelError(f"no right to {name}", errno=errno.EPERM)

        with pytest.MonkeyPatch.context() as patch:
            Interceptor(patch, at, refuse, after=False)
            try:
                life()
            except FfpfError as error:
                assert "no right to" in error.message
                raised += 1
        assert not CHAINS._chains, f"a chain is left after call {at} ({name})"
        assert_kernel_objects(kernel_before)
        refused += 1
    print(f"{refused} refusals, {raised} came out")
    assert refused > 40
    assert raised > 20
    life()


def test_an_interrupt_at_every_call_leaves_nothing(kernel_before: Counter[str]) -> None:
    """KeyboardInterrupt may come anywhere inside `with`."""
    names = count_calls()

    def interrupt() -> None:
        raise KeyboardInterrupt

    for at, name in enumerate(names, start=1):
        if name == "close":
            continue  # an interrupt between a descriptor's end and its closing is Python's to lose
        with pytest.MonkeyPatch.context() as patch:
            Interceptor(patch, at, interrupt, after=False)
            with pytest.raises(KeyboardInterrupt):
                life()
        assert not CHAINS._chains, f"a chain is left after call {at} ({name})"
        assert_kernel_objects(kernel_before)


def test_the_compiler_was_warm() -> None:
    """The kills above hit system calls, not the compiler's first use."""
    assert compiler.compile_entry(calls.possible_cpus()).programs
