"""Tests of policies, as values: flows that must be accepted, or rejected for a reason. For `ffpf policy test`.

They are `*.toml` files in the subdirectory `tests` of a policy directory. Reading is as strict as with policies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ffpf_bpf.authorise import scalars
from ffpf_bpf.authorise.decision import Decision, Result, shown
from ffpf_bpf.authorise.directory import read_files
from ffpf_bpf.authorise.mistake import mistake
from ffpf_bpf.authorise.packets import Table
from ffpf_bpf.authorise.place import Places
from ffpf_bpf.authorise.proof.witness import described
from ffpf_bpf.authorise.reading import Form, read_toml

SUBDIRECTORY = "tests"
BUFFER_BYTES = 4 << 20
ACCEPTED, REJECTED = "accepted", "rejected"
HELP = {
    "test": "a test begins with `[[test]]`",
    "name": 'every test has a name, as in `name = "students see headers"`',
    "as": '`as` is a user, and their groups behind a colon, as in `as = "alice:students"`',
    "flow": "`flow` is a flow expression, as in `flow = '(device,eth0) -> (packetcount)'`",
    "expect": '`expect` is "accepted" or "rejected"',
    "rule": "`rule` is the rule that accepts, or one that is not met",
    "because": "`because` is text that must be in a reason",
    "counterexample": '`counterexample` is text of the packet that shows why not, as in "TCP 192.0.2.1"',
    "buffer": '`buffer` is in bytes per CPU, as in `buffer = "4MiB"`',
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One `[[test]]`. What is "" is not asked. `user` is as `--as` has it."""

    name: str
    user: str
    flow: str
    accepted: bool
    rule: str = ""
    because: str = ""
    counterexample: str = ""
    buffer_bytes: int = BUFFER_BYTES
    where: str = ""

    def faults(self, decision: Decision) -> tuple[str, ...]:
        """What is not as expected; none if all is."""
        if decision.accepted != self.accepted:
            if decision.accepted:
                return (f"expected {REJECTED}, was {ACCEPTED} by rule {decision.rule}",)
            return (f"expected {ACCEPTED}, was {REJECTED}", *decision.reasons)
        found = []
        if self.rule and self.accepted and decision.rule != self.rule:
            found.append(f"expected rule {self.rule}, was {ACCEPTED} by rule {decision.rule}")
        failing = [each for each in decision.obligations if each.result is not Result.PROVED]
        if self.rule and not self.accepted and self.rule not in {name for o in failing for name in o.rule.split(" + ")}:
            rules = dict.fromkeys(obligation.rule for obligation in failing)
            found.append(f"expected rule {self.rule} not to be met, but it was {', '.join(rules) or 'none'}")
        if self.because and not any(self.because in reason for reason in decision.reasons):
            found += [f"expected a reason with {shown(self.because)}, was", *decision.reasons]
        if self.counterexample:
            packets = [described(packet) for obligation in failing for packet in obligation.packets]
            if not any(self.counterexample in text for text in packets):
                was = "; ".join(packets) or "none"
                found.append(f"expected a packet with {shown(self.counterexample)}, was {was}")
        return tuple(found)


def read_trials(directory: Path) -> tuple[Trial, ...]:
    """The tests of a policy directory, by file name; none if it has no subdirectory of tests. Raises PolicyError."""
    if not (directory / SUBDIRECTORY).is_dir():
        return ()
    found: list[Trial] = []
    for name, text in read_files(directory / SUBDIRECTORY):
        found += parse_trials(text, f"{SUBDIRECTORY}/{name}")
    return tuple(found)


def parse_trials(text: str, file: str) -> tuple[Trial, ...]:
    """The tests of one file, whose name `file` is used in errors. Raises PolicyError."""
    content, places = read_toml(text, file, FORM)
    return tuple(test.value(places, number) for number, test in enumerate(content.test))


def _not_empty(text: str) -> str:
    if not text.strip():
        raise mistake("an empty text", "say something, or leave the key out")
    return text


Text = Annotated[str, AfterValidator(_not_empty)]


class _Test(Table):
    name: Text
    as_: Annotated[Text, Field(alias="as")]
    flow: Text
    expect: Literal["accepted", "rejected"]
    rule: Text = ""
    because: Text = ""
    counterexample: Text = ""
    buffer: Annotated[int, BeforeValidator(scalars.size_bytes), AfterValidator(scalars.size_in_range)] = BUFFER_BYTES

    @model_validator(mode="after")
    def _check(self) -> _Test:
        for key in ("because", "counterexample"):
            if self.expect == ACCEPTED and getattr(self, key):
                raise mistake(f"`{key}` is about a flow that is rejected", f"drop it, or `expect = {REJECTED!r}`", key)
        return self

    def value(self, places: Places, number: int) -> Trial:
        return Trial(
            *(self.name, self.as_, self.flow, self.expect == ACCEPTED, self.rule, self.because, self.counterexample),
            buffer_bytes=self.buffer,
            where=places.where(("test", number)),
        )


class _File(Table):
    test: list[_Test] = []


FORM = Form(_File, {"test": _Test}, HELP, "test")
