"""Formulas as Python functions: what a term means, written apart from `terms.evaluate`, and a hundred times quicker."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.terms import Term

INFIX = {"and_bits": "&", "or_bits": "|", "xor_bits": "^", "add": "+", "sub": "-", "mul": "*"}
Meaning = Callable[..., tuple[int, ...]]


def meaning(terms: Sequence[Term], free: dict[str, int] | None = None) -> Meaning:
    """The values of terms about `p`, for a frame, and for what stands behind it where there is nothing. What is free is
    0, unless it is told."""
    names: dict[Term, str] = {}
    lines = [
        "def found(frame, behind=b''):",
        "    length = len(frame)",
        "    p = (frame + behind).ljust(70_000, b'\\0')",
    ]
    for number, term in enumerate(t.in_order(terms)):
        lines.append(f"    v{number} = {_expression(term, names, free or {})}")
        names[term] = f"v{number}"
    lines.append(f"    return ({', '.join(names[term] for term in terms)},)")
    space: dict[str, Meaning] = {}
    exec("\n".join(lines), {}, space)
    return space["found"]


def _expression(term: Term, names: dict[Term, str], free: dict[str, int]) -> str:
    args = [names[arg] if isinstance(arg, Term) else str(arg) for arg in term.args]
    mask = (1 << term.width) - 1
    match term.op:
        case "true" | "false":
            return str(int(term.op == "true"))
        case "byte":
            assert term.args[0] == "p"
            return f"p[{args[1]}]"
        case "length":
            return "length"
        case "free":
            return str(free.get(args[0], 0))
        case "const":
            return args[0]
        case "concat":
            text, *others = args
            for part, arg in zip(others, term.args[1:], strict=True):
                text = f"({text} << {arg.width} | {part})"  # type: ignore[attr-defined]
            return text
        case "extract":
            return f"{args[0]} >> {args[2]} & {mask}"
        case "not":
            return f"1 - {args[0]}"
        case "and":
            return " & ".join(args)
        case "or":
            return " | ".join(args)
        case "ite":
            return f"{args[1]} if {args[0]} else {args[2]}"
        case "eq":
            return f"int({args[0]} == {args[1]})"
        case "ult":
            return f"int({args[0]} < {args[1]})"
        case "not_bits":
            return f"{args[0]} ^ {mask}"
        case "shl":
            return f"({args[0]} << {args[1]}) & {mask} if {args[1]} < {term.width} else 0"
        case "lshr":
            return f"{args[0]} >> {args[1]} if {args[1]} < {term.width} else 0"
        case "udiv":
            return f"{args[0]} // {args[1]} if {args[1]} else {mask}"
        case "urem":
            return f"{args[0]} % {args[1]} if {args[1]} else {args[0]}"
    return f"({args[0]} {INFIX[term.op]} {args[1]}) & {mask}"
