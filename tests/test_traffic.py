"""Traffic that passes many flows is untouched: each byte of a transfer arrives as it was sent."""

from __future__ import annotations

import random

import pytest

from benchmarks.traffic import FLOWS, TC, XDP, flows, transfer
from tests.network import two_namespaces

pytestmark = pytest.mark.root

SEED = 32
SIZE = 8_000_000


def test_a_transfer_past_many_flows_arrives_bit_by_bit() -> None:
    content = random.Random(SEED).randbytes(SIZE)
    got = bytearray()
    with two_namespaces("untouched") as network, flows(network, XDP + TC) as made:
        assert len(made) == FLOWS
        transfer(network, content, 1, got.extend)
        assert bytes(got) == content
        (all_of_it,) = (flow for flow in made if any(node.id == "all" for node in flow.stats().nodes))
        # Twice: at XDP and at tc-ingress; what goes the other way is no more than acknowledgements.
        assert 2 * SIZE < all_of_it.stats().node("all").counts["bytes"] < 2.5 * SIZE
        assert sum(flow.stats().ledger.counted for flow in made[: FLOWS - 4]) == 0
        sampled, syn = made[-2].stats().ledger.delivered, made[-1].stats().ledger.delivered
        assert sampled > SIZE / 1500 / 100
        assert syn >= 2
