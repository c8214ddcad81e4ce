"""Fixtures: namespaces for traffic, and the proof that a test left nothing in the kernel."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ffpf_bpf.kernel import calls
from tests.network import Network, two_namespaces
from tests.vm import features, guest, objects, selection

settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")

EXPEDITED = Path("/sys/kernel/rcu_expedited")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so, and every process of the tests would be deaf to interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


objects.reuse_in_guest(Path(guest.RESULTS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        selection.mark(item)
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: loads programs into the kernel"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of what this kernel lacks are skipped; the matrix of kernels knows which may be."""
    for name in features.of(item):
        lacking = features.lacking(name)
        if lacking:
            pytest.skip(f"{name}: {lacking}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from tests import faults  # which needs what is below

    if faults.POINTS:
        terminalreporter.write_line(faults.summary())


@pytest.fixture(scope="module")
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """Two namespaces for the tests of one module."""
    tag = request.module.__name__.rpartition("test_")[2].replace("_", "")[:12]
    with two_namespaces(tag) as made:
        yield made


@pytest.fixture
def kernel_before() -> Counter[str]:
    """What is in the kernel before the test.

    Not before the first one: what a failed test's traceback holds is that test's alone.
    """
    return kernel_objects()


@pytest.fixture(scope="module")
def short_grace_periods() -> Iterator[None]:
    """The kernel hurries with grace periods, for tests that would wait for them most of their time.

    Not for tests that pause a flow right after packets were sent: those still on their way would come too late.
    """
    if not os.access(EXPEDITED, os.W_OK):
        yield
        return
    usual = EXPEDITED.read_text(encoding="ascii")
    EXPEDITED.write_text("1", encoding="ascii")
    yield
    EXPEDITED.write_text(usual, encoding="ascii")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernel has no more programs, maps, links and pins after each test than before it."""
    if not request.node.get_closest_marker("root"):
        yield
        return
    before = request.getfixturevalue("kernel_before")
    yield
    assert_kernel_objects(before)


def kernel_objects() -> Counter[str]:
    """How many programs, maps, links and pins the kernel has.

    Asked for by id only: opening a prog array (as bpftool does to show it) while its owner dies makes the kernel clear
    it twice and keep it for ever (prog_array_map_clear takes a reference for work that is queued already).
    """
    found = Counter({kind: sum(1 for _ in _ids(kind)) for kind in ("prog", "map", "link")})
    found["pin"] = sum(len(files) for _, _, files in os.walk("/sys/fs/bpf"))
    return found


def _ids(kind: str) -> Iterator[int]:
    following = getattr(calls.library(), f"bpf_{kind}_get_next_id")
    found = ctypes.c_uint32(0)
    while following(found.value, ctypes.byref(found)) == 0:
        yield found.value


def assert_kernel_objects(expected: Counter[str], within_s: float = 5.0) -> None:
    """The kernel frees objects a moment after their last user is gone: wait for that, not longer."""
    end_s = time.monotonic() + within_s
    while left := kernel_objects() - expected:
        assert time.monotonic() < end_s, f"left in the kernel: {left}"
        time.sleep(0.02)
