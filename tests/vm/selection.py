"""Which tests run on every kernel, and why these: what goes through the kernel, by each way that differs there.

What a flow does between its programs' instructions and its maps is the same everywhere, and is tried on the host. On
other kernels it matters whether every kind of program is taken by the verifier, whether maps, links, tail calls and
waiting are as the product expects, and whether what it leaves behind goes away.
"""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

# file::test
TESTS = (
    # Each node class, compiled, taken by the verifier, on traffic of an interface.
    "test_*::test_packets_on_an_interface*",
    "test_*::test_on_live_traffic",
    # Copies of every length: how they are made depends on the kernel.
    "test_grab::*",
    "test_ring::*",
    # The life cycle: chains by tail calls, switching, waiting, sharing of taps, forks.
    "test_flow::*",
    "test_sharing::test_one_sampler_for_both",
    "test_sharing::test_no_packet_is_lost*",
    # Nothing left behind by a kill.
    "test_faults::test_a_tap_is_free_again*",
)
# Too slow where the processor is emulated, and no different there.
LEFT_OUT = ("test_flow::test_joining_and_leaving*", "test_flow::test_many_flows*", "test_flow::test_packets_keep*")
# What tests try that not every kernel has. Others say so themselves, and are in the matrix for it.
FEATURES = {
    "test_flow::test_counts_only_while_active": "native XDP",
    "test_flow::test_one_flow_on_two_interfaces": "generic XDP",
    "test_flow::test_waiting_works_without_membarrier": "map-of-maps wait",
    "test_ring::*": "mmapable rings",
    "test_scan::*": "loops of (scan)",
    "test_limit::*": "atomic operations",
    "test_head::*": "atomic operations",
    "test_newflow::*": "atomic operations",
}


def mark(item: pytest.Item) -> None:
    """Mark a test as part of the matrix, and write the features it tries into its junit record."""
    if not item.get_closest_marker("root"):
        return
    name = f"{item.path.stem}::{item.name}"
    chosen = any(fnmatch(name, pattern) for pattern in TESTS)
    if item.get_closest_marker("feature") or (chosen and not any(fnmatch(name, pattern) for pattern in LEFT_OUT)):
        item.add_marker("vm")
    for pattern, feature in FEATURES.items():
        if fnmatch(name, pattern):
            item.add_marker(pytest.mark.feature(feature))
    for marker in item.iter_markers("feature"):
        item.user_properties.append(("feature", str(marker.args[0])))
