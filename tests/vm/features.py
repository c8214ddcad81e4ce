"""What of the kernel the product uses, each a row of the table: since which Linux, and what `ffpf doctor` calls it.

A test says which it tries by `@pytest.mark.feature(NAME)`. On a kernel that is new enough it must neither fail nor be
skipped, and `ffpf doctor` must say that the feature works; on an older one, that it does not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import pytest

from ffpf_bpf.kernel import probes

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Feature:
    """A row: name, first Linux with it (of those tried here), its line in `ffpf doctor`, if it has one, and the first
    Linux that does not have it again, unless something else than the kernel is newer: `until`, and what that is."""

    name: str
    since: Version
    finding: str = ""
    until: Version | None = None
    unless: str = ""

    def is_in(self, version: Version) -> bool:
        return version >= self.since and (self.until is None or version < self.until)

    def wanted(self, version: Version) -> str:
        """What that Linux lacks for it."""
        return self.unless if version >= self.since else f"Linux {shown(self.since)} or newer"


FEATURES = (
    Feature("native XDP", (5, 9), "native XDP"),
    Feature("generic XDP", (5, 9), "generic XDP"),
    Feature("multi-buffer frames", (5, 18), "multi-buffer frames"),
    Feature("tcx", (6, 6), "tcx"),
    Feature("cls_bpf", (4, 1), "cls_bpf"),
    Feature("mmapable rings", (5, 5), "mapped arrays"),
    Feature("map-of-maps wait", (4, 18), "waiting pause, map of maps"),
    Feature("dispatcher", (5, 9)),
    Feature("dispatcher, joined", (5, 15), until=(6, 12), unless="libxdp 1.5.5 or newer"),
    Feature("bond", (5, 9)),
    Feature("layer 3 tunnels", (5, 9)),
    Feature("copy by helper", (5, 18), "bpf_xdp_load_bytes"),
    Feature("atomic operations", (5, 12), "atomic operations"),
    Feature("loops of (scan)", (6, 4), "loops of (scan)"),
)


def version(release: str) -> Version:
    """`6.12.117+deb13-cloud-amd64` is (6, 12)."""
    major, minor = re.findall(r"\d+", release)[:2]
    return int(major), int(minor)


def shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def of(item: pytest.Item) -> list[str]:
    """The features that a test tries. Raises KeyError for one that is no row of the table."""
    names = [str(marker.args[0]) for marker in item.iter_markers("feature")]
    known = {feature.name for feature in FEATURES}
    for name in names:
        if name not in known:
            raise KeyError(f"{item.nodeid} tries `{name}`, which tests/vm/features.py does not have")
    return names


def lacking(name: str) -> str:
    """What this kernel lacks of a feature, as the product finds by trying; empty if it has it."""
    (feature,) = (feature for feature in FEATURES if feature.name == name)
    finding = _findings().get(feature.finding)
    return finding.seen if finding is not None and not finding.works else ""


@cache
def _findings() -> dict[str, probes.Finding]:
    return {finding.name: finding for finding in probes.examine()}
