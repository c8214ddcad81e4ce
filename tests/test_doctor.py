"""`ffpf doctor` on this kernel: what it says must be what flows find."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest

from ffpf_bpf.kernel import probes

pytestmark = [pytest.mark.root, pytest.mark.vm]


def test_nothing_that_is_needed_is_missing(record_testsuite_property: Callable[[str, object], None]) -> None:
    """The matrix of kernels compares the rest with what tests find."""
    findings = list(probes.examine())
    record_testsuite_property("doctor", json.dumps([asdict(finding) for finding in findings]))
    assert [finding for finding in findings if finding.needed and not finding.works] == []
    assert all(finding.mend for finding in findings if not finding.works)
    assert len({finding.name for finding in findings}) == len(findings)
