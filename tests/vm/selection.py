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
    # Each node class, taken by the verifier, on traffic of an interface: those that `test_hooks` has not at all hooks.
    "test_limit::test_packets_on_an_interface",
    "test_histogram::test_packets_on_an_interface",
    # Copies of every length: how they are made depends on the kernel.
    "test_grab::test_copies*",
    "test_ring::test_a_ring_wraps*",
    "test_waiting::test_the_bell*",
    # The life cycle: chains by tail calls, switching, waiting, sharing of taps, forks.
    "test_flow::*",
    "test_sharing::test_one_sampler_for_both",
    "test_sharing::test_no_packet_is_lost*",
    # Nothing left behind by a kill.
    "test_faults::test_a_tap_is_free_again*",
)
# Too slow where the processor is emulated, or of user space alone: no different there.
LEFT_OUT = (
    "test_flow::test_joining_and_leaving*",
    "test_flow::test_many_flows*",
    "test_flow::test_packets_keep*",
    "test_flow::test_states*",
    "test_flow::test_python_and_text*",
    "test_flow::test_what_was_not_read*",
    "test_flow::test_another_name*",
    "test_flow::test_a_forgotten*",
    "test_flow::test_exceptions*",
    "test_flow::test_closing_many*",
    "test_flow::test_the_final_counts*",
    "test_faults::test_a_refusal*",
    "test_faults::test_an_exception*",
    "test_faults::test_sigkill*",
    "test_faults::test_sigstop*",
    "test_faults::test_no_descriptor*",
    "test_faults::test_no_memory*",
    "test_faults::test_the_disk*",
    "test_faults::test_a_guardian*",
    "test_filters::test_sigkill_at_every_word*",
    "test_filters::test_unknown_words*",
    "test_filters::test_a_child_that*",
    "test_filters::test_a_guardian_that*",
    "test_filters::test_signals*",
    "test_filters::test_somebody_else*",
    "test_filters::test_the_socket*",
    "test_filters::test_what_a_crash_left*",
    "test_filters::test_it_is_said*",
    "test_hooks::test_frames_in_several_pieces?[123]*",
    "test_hooks::test_frames_in_several_pieces*tc-ingress*",
    "test_hooks::test_frames_in_several_pieces*tcx?",
    "test_hooks::test_scan_looks*tc-egress*",
    "test_hooks::test_scan_looks*by tcx?",
    "test_hooks::test_several_hooks*cls_bpf?",
    "test_hooks::test_a_transfer*",
    "test_hooks::test_grab_at_tc_from*",
    # A command of its own takes as long there as ten other tests.
    "test_privileges::test_three_capabilities_do?tap0*",
    "test_long_frames::*",
    "test_layer3::test_frames_are_those*",
    "test_layer3::test_filters_say*",
    "test_layer3::test_packets_in_several_pieces?1-*",
    "test_layer3::test_packets_in_several_pieces?20-*",
    "test_layer3::test_packets_in_several_pieces*by tcx?",
    "test_layer3::test_records_of_any_length*",
    "test_tunnels::test_tunnels?ip6tnl?",
    "test_tunnels::test_tunnels?sit?",
)
# What tests try that not every kernel has. Others say so themselves, and are in the matrix for it.
FEATURES = {
    "test_flow::test_counts_only_while_active": "native XDP",
    "test_flow::test_one_flow_on_two_interfaces": "generic XDP",
    "test_flow::test_waiting_works_without_membarrier": "map-of-maps wait",
    "test_ring::*": "mmapable rings",
    "test_limit::*": "atomic operations",
    "test_histogram::test_packets_on_an_interface": "atomic operations",
    "test_scan::*": "loops of (scan)",
    "test_proofs::test_refutations_pass*": "loops of (scan)",
    "test_replay::test_as_live": "loops of (scan)",
    "test_benchmarks::test_each*": "loops of (scan)",
}


def mark(item: pytest.Item) -> None:
    """Mark a test as part of the matrix, and write the features it tries into its junit record."""
    if not item.get_closest_marker("root"):
        return
    name = f"{item.path.stem}::{item.name}"
    chosen = item.get_closest_marker("feature") or any(fnmatch(name, pattern) for pattern in TESTS)
    if chosen and not any(fnmatch(name, pattern) for pattern in LEFT_OUT):
        item.add_marker("vm")
    for pattern, feature in FEATURES.items():
        if fnmatch(name, pattern):
            item.add_marker(pytest.mark.feature(feature))
    for marker in item.iter_markers("feature"):
        item.user_properties.append(("feature", str(marker.args[0])))
