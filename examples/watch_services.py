"""Each service of a host by an edge of its own: DNS questions one at a time, web traffic in batches, the rest counted.
Of each web conversation only the first packets come up, headers only. Needs root.

examples/watch_services.py eth0 --seconds 10
"""

from __future__ import annotations

import argparse

from ffpf_bpf import Batch, Flow, Packet, callback, classify, device, head, packetcount, snap


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch DNS and web traffic.")
    parser.add_argument("interface", nargs="?", default="lo")
    parser.add_argument("--seconds", type=float, default=2.0)
    asked = parser.parse_args()

    questions: list[Packet] = []
    web_bytes = 0

    def count_web(batch: Batch) -> None:
        nonlocal web_bytes
        web_bytes += int(batch.records["original"].sum())

    # Edges select on the result of the node before them; `*` takes what no other edge does.
    by_port = classify("dport").on(
        {
            53: callback(questions.append, packets=True, snaplen=128),
            (80, 443): head(10) >> snap() >> callback(count_web, snaplen=128),
            "*": packetcount(name="rest"),
        }
    )
    with Flow.create() as flow:
        flow.populate(device(asked.interface) >> by_port).instantiate().activate()
        flow.dispatch(duration_s=asked.seconds)
        flow.pause(wait=True)
        # A node's memory is shared with the kernel side: a row for each CPU, writable while the flow runs.
        rest = int(flow.node("rest").mbuf.view("u8").sum())
    print(f"{len(questions):,} questions, the last of {questions[-1].length if questions else 0} bytes")
    print(f"{web_bytes:,} bytes in the first packets of web conversations, {rest:,} other packets")
    print(f"the ledger {'balances' if flow.stats().ledger.balances else 'DOES NOT balance'}")


if __name__ == "__main__":
    main()
