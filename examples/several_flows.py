"""Two flows on one interface, one of which comes and goes: the other sees every packet all the same. Needs root.

examples/several_flows.py eth0 --seconds 3
"""

from __future__ import annotations

import argparse
import time

from ffpf_bpf import Flow, Ledger, bpf, bytecount, device, grab, packetcount


def main() -> None:
    parser = argparse.ArgumentParser(description="Run two flows on one interface.")
    parser.add_argument("interface", nargs="?", default="lo")
    parser.add_argument("--seconds", type=float, default=1.5)
    asked = parser.parse_args()

    with Flow.create() as steady:
        steady.populate(device(asked.interface) >> packetcount() >> bytecount()).instantiate().activate()
        time.sleep(asked.seconds / 3)
        with Flow.create() as visitor:
            visitor.populate(device(asked.interface) >> bpf("udp") >> grab(snaplen=64)).instantiate().activate()
            for packet in visitor.packets(duration_s=asked.seconds / 3):
                print(f"first packet of the visitor: {packet.length} bytes on {packet.interface}")
                break
        time.sleep(asked.seconds / 3)
    show("steady", steady.stats().ledger)
    show("visitor", visitor.stats().ledger)


def show(name: str, ledger: Ledger) -> None:
    """The fates of a flow: they sum to what it saw."""
    fates = ", ".join(f"{count:,} {fate}" for fate, count in ledger.as_json().items() if count)
    print(f"{name}: {fates or 'nothing seen'}; the ledger {'balances' if ledger.balances else 'DOES NOT BALANCE'}")


if __name__ == "__main__":
    main()
