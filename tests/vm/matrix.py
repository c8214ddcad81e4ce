"""What the tests found in each kernel, and the table of it: kernel by feature.

From junit files to cells, without I/O. A cell fails if a test of that feature failed, if one was skipped although the
kernel is new enough, or if `ffpf doctor` says something else than the tests. A feature without a test says so. Where
tests give a digest of what was recorded and counted, it is the same on all kernels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from xml.etree import ElementTree

from tests.vm.features import FEATURES, Feature, shown, version

OTHER = "all other tests"
SAME = "same on all kernels"
DIGEST = "digest"  # a test's property: of what must not depend on the kernel
DIGEST_SHOWN = 16


class Result(Enum):
    PASSED, SKIPPED, FAILED, NONE = "pass", "skip", "FAIL", "no test"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test: its name, the features it tries, what came out, why if it did not pass, and its digest if it has one."""

    test: str
    features: tuple[str, ...]
    result: Result
    reason: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one kernel gave: its name in the matrix, `uname -r`, outcomes, doctor's findings, and what went wrong with
    the machine itself, if anything did."""

    kernel: str
    release: str
    outcomes: tuple[Outcome, ...] = ()
    findings: Mapping[str, bool] | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    result: Result
    why: str = ""
    tests: int = 0

    def __str__(self) -> str:
        return f"pass {self.tests}" if self.result is Result.PASSED else self.result.value


def read(junit: bytes) -> tuple[tuple[Outcome, ...], Mapping[str, bool] | None]:
    """Outcomes, and doctor's findings, of a junit file."""
    root = ElementTree.fromstring(junit)
    told = [property.get("value", "") for property in root.findall("./testsuite/properties/property[@name='doctor']")]
    findings = {finding["name"]: finding["works"] for finding in json.loads(told[0])} if told else None
    return tuple(_outcome(case) for case in root.iter("testcase")), findings


def _outcome(case: ElementTree.Element) -> Outcome:
    name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
    features = tuple(property.get("value", "") for property in case.findall("./properties/property[@name='feature']"))
    for result, tags in ((Result.FAILED, ("failure", "error")), (Result.SKIPPED, ("skipped",))):
        for tag in tags:
            found = case.find(tag)
            if found is not None:
                return Outcome(name, features, result, found.get("message", "").split("\n")[0])
    digest = case.find(f"./properties/property[@name='{DIGEST}']")
    return Outcome(name, features, Result.PASSED, digest=digest.get("value", "") if digest is not None else "")


def digests(reports: Iterable[Report]) -> dict[str, dict[str, list[str]]]:
    """By test, by digest: the kernels that gave it."""
    found: dict[str, dict[str, list[str]]] = {}
    for report in reports:
        for outcome in report.outcomes:
            if outcome.digest:
                found.setdefault(outcome.test, {}).setdefault(outcome.digest, []).append(report.kernel)
    return found


def sameness(report: Report, reports: Sequence[Report]) -> Cell:
    """Whether a kernel's digests are those of most kernels."""
    compared = 0
    for test, by_digest in digests(reports).items():
        usual = max(by_digest, key=lambda digest: len(by_digest[digest]))
        if any(report.kernel in kernels for digest, kernels in by_digest.items() if digest != usual):
            others = ", ".join(by_digest[usual])
            return Cell(Result.FAILED, f"{test}: recorded or counted otherwise than on {others}")
        compared += report.kernel in by_digest[usual]
    return Cell(Result.PASSED if compared else Result.NONE, tests=compared)


def cell(report: Report, feature: Feature) -> Cell:
    """What a kernel's tests say of a feature."""
    outcomes = [
        outcome
        for outcome in report.outcomes
        if feature.name in outcome.features and not _excused(outcome, feature, report.release)
    ]
    found = _judged(outcomes, feature, report.release)
    if found.result is Result.FAILED or not feature.finding:
        return found
    said = (report.findings or {}).get(feature.finding)
    if said is None:
        return replace(found, result=Result.FAILED, why=f"`ffpf doctor` says nothing of `{feature.finding}`")
    expected = found.result is Result.PASSED if outcomes else feature.is_in(version(report.release))
    if said != expected:
        whether = "works" if said else "does not work"
        return replace(found, result=Result.FAILED, why=f"`ffpf doctor` says that it {whether}, against what was found")
    return found


def _excused(outcome: Outcome, feature: Feature, release: str) -> bool:
    """Whether a test was skipped for another feature, which this kernel does not have."""
    lacking = {other.name for other in FEATURES if other is not feature and not other.is_in(version(release))}
    return outcome.result is Result.SKIPPED and not lacking.isdisjoint(outcome.features)


def _judged(outcomes: Sequence[Outcome], feature: Feature | None, release: str) -> Cell:
    """Cells of a feature; without one nothing may be skipped."""
    failed = [outcome for outcome in outcomes if outcome.result is Result.FAILED]
    if failed:
        return Cell(Result.FAILED, f"{failed[0].test}: {failed[0].reason}", len(outcomes))
    skipped = [outcome for outcome in outcomes if outcome.result is Result.SKIPPED]
    if skipped and (feature is None or feature.is_in(version(release))):
        has = f"has it since {shown(feature.since)}" if feature else "gives no reason to"
        return Cell(Result.FAILED, f"{skipped[0].test} was skipped, and Linux {has}: {skipped[0].reason}", len(skipped))
    if skipped:
        assert feature is not None
        return Cell(Result.SKIPPED, feature.wanted(version(release)), len(skipped))
    return Cell(Result.PASSED if outcomes else Result.NONE, tests=len(outcomes))


def others(report: Report) -> Cell:
    """The tests that try no feature of their own."""
    if report.trouble:
        return Cell(Result.FAILED, report.trouble)
    return _judged([outcome for outcome in report.outcomes if not outcome.features], None, report.release)


def failures(reports: Sequence[Report]) -> list[str]:
    """What is wrong, a line each; nothing if all is well."""
    lines = []
    for report in reports:
        cells = {OTHER: others(report), SAME: sameness(report, reports)}
        if not report.trouble:
            cells |= {feature.name: cell(report, feature) for feature in FEATURES}
        lines += [
            f"{report.kernel} ({report.release or '?'}), {name}: {found.why}"
            for name, found in cells.items()
            if found.result is Result.FAILED
        ]
    return lines


def table(reports: Sequence[Report]) -> str:
    """Kernel by feature, with the reasons of skips and failures below."""
    heads = ["", *(report.kernel for report in reports)]
    rows = [heads, ["", *(report.release.split("-")[0] or "?" for report in reports)]]
    notes: dict[str, None] = {}
    for feature in FEATURES:
        cells = [cell(report, feature) if not report.trouble else Cell(Result.FAILED) for report in reports]
        rows.append([feature.name, *map(str, cells)])
        notes |= {f"{feature.name}: {found.why}": None for found in cells if found.result is Result.SKIPPED}
    rows.append([SAME, *(str(sameness(report, reports)) for report in reports)])
    rows.append([OTHER, *(str(others(report)) for report in reports)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *(f"skip  {note}" for note in notes)] if notes else []
    shown = [
        f"same  {digest[:DIGEST_SHOWN]} on {', '.join(kernels)}: {test}"
        for test, by_digest in digests(reports).items()
        for digest, kernels in by_digest.items()
    ]
    lines += ["", *shown] if shown else []
    found = failures(reports)
    return "\n".join([*lines, *([""] if found else []), *(f"FAIL  {line}" for line in found)])
