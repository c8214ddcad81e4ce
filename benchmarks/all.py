"""Every benchmark, one after the other, as Markdown for the README.

python -m benchmarks.all [--quick]
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    authorise,
    delivery,
    files,
    instantiate,
    lossless,
    nodes,
    packet,
    producing,
    switch,
    traffic,
)
from benchmarks.table import Table

BENCHMARKS: dict[str, Callable[[bool], Table]] = {
    "instantiate": instantiate.run,
    "authorise": authorise.run,
    "packet": packet.run,
    "nodes": nodes.run,
    "switch": switch.run,
    "delivery": delivery.run,
    "traffic": traffic.run,
    "lossless": lossless.run,
    "producing": producing.run,
    "files": files.run,
}


def machine() -> str:
    """What it was measured on."""
    processors = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    models = (line.partition(":")[2].strip() for line in processors if line.startswith("model name"))
    model = next(models, platform.machine())
    return f"Linux {platform.release()}, {os.cpu_count()} x {model}, load {os.getloadavg()[0]:.1f} at the start"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="all benchmarks as Markdown")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it runs, measures nothing")
    quick = parser.parse_args().quick
    print(f"{machine()}.\n", flush=True)
    for run in BENCHMARKS.values():
        print(run(quick).markdown() + "\n", flush=True)


if __name__ == "__main__":
    main()
