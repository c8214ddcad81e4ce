"""The questions to the sandbox, and what is believed of its answers.

    define(expression, buffer_bytes) -> Definition        decide(definition, policies, subject) -> Decision
    narrow(definition, policies, subject) -> Narrowing

What comes back is believed as far as it can be checked: instructions pass `checked` and are those of the very filters
of the flow, and a decision is about the digest of the definition that is kept here. The child that decides has seen
text that libpcap took, and instructions that passed `checked`; it is another one than that which ran libpcap.

What this process itself does with the text comes after a child did the same within its limits: at most `LONGEST_TEXT`
characters, nesting of 100, 1,000 nodes, 16 KiB a filter (`graph.parser`, `graph.builder`, `graph.classes.bpf`).
libpcap is never called here. Of a narrowed flow nothing is believed: its text is compiled and decided on as any other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from typing import Any

from ffpf_bpf.authorise import Decision, Narrowing, Obligation, Policies, Result, Subject
from ffpf_bpf.authorise.decision import UNDECIDED_HELP, rejected, told
from ffpf_bpf.errors import ExpressionError, FfpfError, Rejected
from ffpf_bpf.flow.decider import CompileQuestion, DecideQuestion, NarrowQuestion, decision_form, obligation_form
from ffpf_bpf.flow.sandbox import LIMIT_S, MALFORMED, SANDBOX, Unanswered
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.classes.device import placed
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.expression import Expression, check_text
from ffpf_bpf.graph.parser import LONGEST_TEXT, parse
from ffpf_bpf.graph.predicate import Instruction, Program, checked
from ffpf_bpf.graph.printer import text as printed

LONGEST_SHOWN = 1 << 18
NARROW_S = 20.0
OWN_PART = 0.9  # of the time of a decision: after that it ends by itself, and says how far it came


def define(
    expression: Expression | str, buffer_bytes: int, namespace: str = "", *, limit_s: float = LIMIT_S
) -> Definition:
    """The definition that a flow expression and a buffer make, with devices in that namespace if they name none, its
    filters compiled in the sandbox. Raises ExpressionError as `parse`, `build` and libpcap do, and Rejected if there is
    no answer."""
    if isinstance(expression, str):
        check_text(expression, "")
        text = expression
    else:
        text = printed(build(expression).expression)
    if len(text) > LONGEST_TEXT:
        raise ExpressionError(f"an expression of {len(text):,} characters", help=f"at most {LONGEST_TEXT:,}")
    try:
        answer = SANDBOX.ask(CompileQuestion(text), limit_s)
        _raise_error(answer)
        graph = build(placed(parse(expression) if isinstance(expression, str) else expression, namespace))
        return Definition(graph, _programs(answer, graph.filters), buffer_bytes)
    except Unanswered as error:
        raise Rejected(
            f"rejected: {error}",
            decision=Decision(False, (str(error),), (), ""),
            help="smaller filters, several nodes or several flows say the same in less time",
        ) from None


def decide(
    definition: Definition, policies: Policies, subject: Subject, *, live_flows: int = 0, limit_s: float = LIMIT_S
) -> Decision:
    """`authorise.decide` in the sandbox. Never raises for what happens there: it rejects."""
    question = DecideQuestion(*_about(definition), subject, live_flows, OWN_PART * limit_s)
    digest = definition.digest
    try:
        return _decision(SANDBOX.ask(question, limit_s, policies), digest)
    except Unanswered as error:
        if obligations := _told(error.lines):
            return rejected(obligations, digest)
        why = f"{error}; {UNDECIDED_HELP}" if error.is_late else str(error)
        return Decision(False, (why,), (), digest)


def narrow(
    definition: Definition, policies: Policies, subject: Subject, *, live_flows: int = 0, limit_s: float = NARROW_S
) -> Narrowing:
    """`authorise.narrowed` in the sandbox. Never raises for what happens there: then it cannot be narrowed."""
    question = NarrowQuestion(*_about(definition), subject, live_flows, OWN_PART * limit_s)
    try:
        return _narrowing(SANDBOX.ask(question, limit_s, policies))
    except Unanswered as error:
        return Narrowing(why=str(error))


def _about(definition: Definition) -> tuple[str, dict[str, Program], int]:
    """A definition as a question has it."""
    return printed(definition.graph.expression), dict(definition.predicates), definition.buffer_bytes


def _narrowing(answer: dict[str, Any]) -> Narrowing:
    _raise_unanswered(answer)
    match answer:
        case {"narrowed": [str(text), str(why)]} if not (text and why) and len(text) <= LONGEST_TEXT:
            return Narrowing(text, _printable(why))
    raise Unanswered(MALFORMED)


def _raise_error(answer: dict[str, Any]) -> None:
    match answer:
        case {"error": [str(message), str(where), str(help), str(excerpt)]}:
            message, where, help, excerpt = map(_printable, (message, where, help, excerpt))
            raise ExpressionError(message, where=where, help=help, excerpt=excerpt)
        case {"failure": [str(message), str(where), str(help)]}:
            raise FfpfError(_printable(message), where=_printable(where), help=_printable(help))
        case {"defect": str(what)}:
            raise Unanswered(f"the decider failed: {_printable(what)}")


def _programs(answer: dict[str, Any], filters: frozenset[str]) -> dict[str, Program]:
    found = answer.get("predicates")
    if not isinstance(found, dict) or found.keys() != filters:
        raise Unanswered(MALFORMED)
    return {text: checked(text, [_instruction(each) for each in _list(found[text])]) for text in sorted(filters)}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Unanswered(MALFORMED)
    return value


def _instruction(value: Any) -> Instruction:
    match value:
        case [int(code), int(jump_true), int(jump_false), int(k)] if not any(isinstance(n, bool) for n in value):
            fits = 0 <= code < 1 << 16 and 0 <= jump_true < 256 and 0 <= jump_false < 256 and 0 <= k < 1 << 32
            if fits:
                return Instruction(code, jump_true, jump_false, k)
    raise Unanswered(MALFORMED)


def _decision(answer: dict[str, Any], digest: str) -> Decision:
    _raise_unanswered(answer)
    match answer:
        case {"decision": dict(found)}:
            pass
        case _:
            raise Unanswered(MALFORMED)
    try:
        decision = decision_form().validate_json(json.dumps(_shown(found)), strict=True)
    except (ValueError, RecursionError):
        raise Unanswered(MALFORMED) from None
    if decision.digest != digest:
        raise Unanswered("the decider answered about another definition")
    if not (decision.rule if decision.accepted else decision.reasons):
        raise Unanswered(MALFORMED)
    return decision


def _told(lines: Sequence[bytes]) -> tuple[Obligation, ...]:
    """What a child found before it was ended; nothing if it is malformed."""
    try:
        found = [obligation_form().validate_json(json.dumps(_shown(json.loads(line)))) for line in lines]
    except (ValueError, RecursionError):
        return ()
    return told(found) if found and found[-1].result is Result.REFUSED else ()


def _raise_unanswered(answer: dict[str, Any]) -> None:
    match answer:
        case {"defect": str(what)}:
            raise Unanswered(f"the decider failed: {_printable(what)}")
        case {"missing": str(name)}:
            raise Unanswered(f"the solver {_printable(name)} is missing: run `pip install -e .` for what ffpf needs")


def _shown(value: Any) -> Any:
    """JSON as it may come to a terminal or a log: no control characters, no endless text, no numbers that are none."""
    match value:
        case str():
            return _printable(value)
        case float() if not isfinite(value):
            raise ValueError("not a number")
        case dict():
            return {key: _shown(each) for key, each in value.items()}
        case list():
            return [_shown(each) for each in value]
        case _:
            return value


def _printable(text: str) -> str:
    shown = (c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text[:LONGEST_SHOWN])
    return "".join(shown)
