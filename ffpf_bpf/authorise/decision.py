"""The answer to one flow definition, never a bare bool: obligations, what became of each, and why.

`Decision.text()` reads like a verifier log, `Decision.as_json()` is what `ffpf check --json` prints (DESIGN section 9).
Both are interfaces with tests for their text. What a user wrote is shown through `shown`, which lets no control
character through to a terminal or a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from ffpf_bpf.authorise.proof.witness import described

OUT_OF_TIME = "undecided: out of time"
UNDECIDED_HELP = "say it in smaller filters, in several nodes, or in several flows"


class Kind(StrEnum):
    """The four parts of a decision. Content and inference are proofs over the filters."""

    SHAPE = "shape"
    CONTENT = "content"
    INFERENCE = "inference"
    MEANS = "means"


class Result(StrEnum):
    """Refused is what could be neither proved nor refuted; it counts as a no."""

    PROVED = "proved"
    REFUTED = "refuted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Finding:
    """What the check of one obligation found. `path` has the ids of the nodes on the path that shows it, `packets` the
    frames that do: one, or two that the flow must not tell apart. `help` says what to do about it."""

    result: Result
    evidence: str
    path: tuple[str, ...] = ()
    packets: tuple[bytes, ...] = ()
    help: str = ""


@dataclass(frozen=True, slots=True)
class Obligation:
    """One thing that a rule asks of a flow, and its result. `path` reads `device1 -> bpf1 -> grab1`, or is empty."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"ser_json_bytes": "hex", "val_json_bytes": "hex"}

    rule: str
    kind: Kind
    claim: str
    path: str
    result: Result
    ms: float = field(compare=False)
    evidence: str
    packets: tuple[bytes, ...] = ()
    help: str = ""

    def lines(self) -> list[str]:
        """Its two lines of the log."""
        shown_path = f"{self.path}: " if self.path else ""
        return [
            f"{self.result.upper():<8} {self.rule}: {self.kind}: {self.claim} ({self.ms:.1f} ms)",
            f"         {shown_path}{self.evidence}",
        ]


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes or no to the definition whose digest is `digest`, and to no other. `rule` is the one that accepted, or
    "", or several joined by ` + `; `expires_s` how long the flow may live, if that is bounded.

    An accepted decision has the obligations of the rule that accepted; a rejected one those of every rule that names
    the subject, with a reason for each that does not hold. `expires_s` is how long the flow may live.
    """

    accepted: bool
    reasons: tuple[str, ...]
    obligations: tuple[Obligation, ...]
    digest: str
    rule: str = ""
    expires_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "decision": "accepted" if self.accepted else "rejected",
            "reasons": list(self.reasons),
            "digest": self.digest,
            "obligations": [
                {
                    "rule": obligation.rule,
                    "kind": str(obligation.kind),
                    "claim": obligation.claim,
                    "path": obligation.path,
                    "result": str(obligation.result),
                    "ms": round(obligation.ms, 3),
                    "evidence": obligation.evidence,
                    "help": obligation.help,
                    "packets": [packet.hex() for packet in obligation.packets],
                    "described": [described(packet) for packet in obligation.packets],
                }
                for obligation in self.obligations
            ],
            "rule": self.rule,
            "expires_s": self.expires_s,
            "ms": round(self.ms, 3),
        }

    @property
    def ms(self) -> float:
        """What the obligations took together."""
        return sum(obligation.ms for obligation in self.obligations)

    def text(self) -> str:
        """The log: each obligation, then ACCEPTED or REJECTED, and then what to do."""
        lines = [line for obligation in self.obligations for line in obligation.lines()]
        failing = [each for each in self.obligations if each.result is not Result.PROVED]
        took = f" ({self.ms:.1f} ms)" if self.obligations else ""
        if self.accepted:
            by = f" by rule {self.rule}" if self.rule else f": {'; '.join(self.reasons)}"
            lines.append(f"ACCEPTED{by}{took}")
        elif failing:
            lines.append(f"REJECTED: {len(failing)} of {len(self.obligations)} obligations do not hold{took}")
            lines += dict.fromkeys(f"    rule {each.rule}: {each.help or f'wants: {each.claim}'}" for each in failing)
        else:
            lines += [f"REJECTED: {reason}" for reason in self.reasons]
        return "\n".join(lines)


def rejected(obligations: Sequence[Obligation], digest: str) -> Decision:
    """For these, of which one at least does not hold."""
    reasons = tuple(_reason(obligation) for obligation in obligations if obligation.result is not Result.PROVED)
    return Decision(False, reasons, tuple(obligations), digest)


def told(obligations: Sequence[Obligation]) -> tuple[Obligation, ...]:
    """Of what `decide` told until it was ended: what was found, and what it was at."""
    *before, last = obligations
    return (*(each for each in before if each.evidence != OUT_OF_TIME), last)


def _reason(obligation: Obligation) -> str:
    path = f"{obligation.path}: " if obligation.path else ""
    return f"rule {obligation.rule} wants: {obligation.claim}; {path}{obligation.evidence}"


def shown(text: str) -> str:
    """A user's text for a log: in backticks, with what does not print as its escape."""
    return "`" + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) + "`"
