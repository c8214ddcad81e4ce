"""A flow is switched off and on again under traffic; its counts stay. Needs root.

examples/pause_resume.py eth0 --seconds 3
"""

from __future__ import annotations

import argparse
import time

from ffpf_bpf import Flow, device, packetcount


def main() -> None:
    parser = argparse.ArgumentParser(description="Pause and resume a flow.")
    parser.add_argument("interface", nargs="?", default="lo")
    parser.add_argument("--seconds", type=float, default=1.5, help="in all, a third for each state")
    asked = parser.parse_args()
    third_s = asked.seconds / 3

    with Flow.create() as flow:
        flow.populate(device(asked.interface) >> packetcount()).instantiate()
        flow.activate()
        time.sleep(third_s)
        # `wait=True` returns when no packet can be counted any more; a plain `pause()` is one store into memory.
        flow.pause(wait=True)
        first = flow.stats().ledger.seen
        print(f"active:  {first:,} seen")
        time.sleep(third_s)
        second = flow.stats().ledger.seen
        print(f"paused:  {second - first:,} more")
        flow.activate()
        time.sleep(third_s)
    print(f"resumed: {flow.stats().ledger.seen - second:,} more")


if __name__ == "__main__":
    main()
