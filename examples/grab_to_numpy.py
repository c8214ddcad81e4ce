"""Packets as numpy arrays: batches are views of the ring itself, and nothing is done per packet in Python. Needs root.

examples/grab_to_numpy.py eth0 --filter "tcp or udp" --seconds 10
"""

from __future__ import annotations

import argparse

import numpy as np

from ffpf_bpf import Flow, bpf, device, grab


def main() -> None:
    parser = argparse.ArgumentParser(description="Sum up packets with numpy.")
    parser.add_argument("interface", nargs="?", default="lo")
    parser.add_argument("--filter", default="")
    parser.add_argument("--seconds", type=float, default=2.0)
    asked = parser.parse_args()

    packets = wire_bytes = captured_bytes = lost = 0
    by_type = np.zeros(1 << 16, dtype=np.int64)
    with Flow.create() as flow:
        flow.populate(device(asked.interface) >> bpf(asked.filter) >> grab(snaplen=96)).instantiate().activate()
        for batch in flow.batches(duration_s=asked.seconds):
            # Valid until the next batch is asked for; `batch.copy()` keeps one.
            records = batch.records
            packets += len(batch)
            wire_bytes += int(records["original"].sum())
            captured_bytes += int(records["captured"].sum())
            # Bytes 12 and 13 of a frame are its EtherType.
            kinds = records["data"][:, 12].astype(np.int64) << 8 | records["data"][:, 13]
            by_type += np.bincount(kinds, minlength=len(by_type))
            # What the ring had no room for since the batch before, on this CPU.
            lost += batch.lost
    print(f"{packets:,} packets, {wire_bytes:,} bytes on the wire, {captured_bytes:,} captured, {lost:,} lost")
    for kind in np.flatnonzero(by_type):
        print(f"EtherType {kind:#06x}: {by_type[kind]:,}")


if __name__ == "__main__":
    main()
