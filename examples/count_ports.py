"""How many packets go to or from some ports: a flow that only counts, so no packet reaches this process. Needs root.

examples/count_ports.py eth0 --ports 53 80 443 --seconds 10
"""

from __future__ import annotations

import argparse
import time
from functools import reduce
from operator import or_

from ffpf_bpf import Flow, bpf, device, packetcount


def main() -> None:
    parser = argparse.ArgumentParser(description="Count packets by port.")
    parser.add_argument("interface", nargs="?", default="lo")
    parser.add_argument("--ports", nargs="+", type=int, default=[53, 80, 443])
    parser.add_argument("--seconds", type=float, default=2.0)
    asked = parser.parse_args()

    # One branch for each port. `|` of branches: a packet runs through all of them, and each counts for itself.
    branches = [bpf(f"port {port}") >> packetcount(name=f"port{port}") for port in asked.ports]
    with Flow.create() as flow:
        flow.populate(device(asked.interface) >> reduce(or_, branches)).instantiate().activate()
        time.sleep(asked.seconds)
    # Closed by the end of `with`: nothing is left in the kernel, and the final counts stay.
    statistics = flow.stats()
    for node in statistics.nodes:
        if node.class_name == "packetcount":
            print(f"{node.id}: {node.counts['packets']:,} packets")
    print(f"{statistics.ledger.seen:,} seen, {statistics.ledger.filtered:,} to no port of these")


if __name__ == "__main__":
    main()
