"""Formulas over the bytes of a packet: a shared DAG of Boolean and bit-vector terms, folded as it is built.

Terms are interned: equal terms are one object, so `is` compares them and a cache may be keyed by them. Bit vectors are
kept as concatenations of known bits and of pieces of variables, so that what filters do (mask, shift, compare with a
constant) folds to comparisons of single fields. Everything has one meaning in three places: `evaluate` here, and the
two solvers of `solvers.py`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

BOOL: Final = 0  # the width of a truth
MOST_BITS: Final = 512  # no bit vector is wider
LOOK: Final = 1 << 11  # terms, between two looks at the clock


class OutOfTime(Exception):
    """The time for what is done `apart` is over."""


class Term:
    """One node of the DAG. `op` and `args` say what it is; `width` in bits, BOOL for a truth."""

    __slots__ = ("args", "op", "width")

    def __init__(self, op: str, args: tuple[object, ...], width: int) -> None:
        self.op = op
        self.args = args
        self.width = width

    def __repr__(self) -> str:
        return f"({self.op} {' '.join(map(repr, self.args))}):{self.width}"


class _Interned(threading.local):
    """The terms of a thread, or of what it does `apart`."""

    def __init__(self) -> None:
        self.terms: dict[tuple[object, ...], Term] = {}
        self.made: dict[Any, Any] = {}
        self.apart = False
        self.end_s = math.inf


_interned = _Interned()


def _term(op: str, args: tuple[object, ...], width: int) -> Term:
    key = (op, width, *args)
    terms = _interned.terms
    found = terms.get(key)
    if found is None:
        found = terms[key] = Term(op, args, width)
        if not len(terms) % LOOK:
            check_time()
    return found


def check_time() -> None:
    """Raises OutOfTime if the end that `apart` was given is over. What makes or walks many terms looks by itself."""
    if time.monotonic() > _interned.end_s:
        raise OutOfTime("out of time")


def made() -> dict[Any, Any]:
    """What was made of terms, to be kept as long as they are."""
    return _interned.made


@contextmanager
def apart(end_s: float = math.inf) -> Iterator[None]:
    """Terms made inside are forgotten at the end, and must not be used with those made outside: for a decision, in a
    process that makes many. A second one inside is part of the first. From `end_s` on, by the monotonic clock, what is
    done inside raises OutOfTime."""
    outside = _interned.terms, _interned.made, _interned.apart, _interned.end_s
    if not _interned.apart:
        _interned.terms, _interned.made, _interned.apart = {}, {}, True
    _interned.end_s = min(end_s, _interned.end_s)
    try:
        yield
    finally:
        _interned.terms, _interned.made, _interned.apart, _interned.end_s = outside


TRUE = _term("true", (), BOOL)
FALSE = _term("false", (), BOOL)


# Variables. A packet's bytes belong to a space, `p` or `q`, so that two packets can be compared.


def byte(offset: int, space: str = "p") -> Term:
    """Byte `offset` of the packet."""
    return _term("byte", (space, offset), 8)


def offset_of(byte: Term) -> int:
    """Where in the packet a byte is."""
    return byte.args[1]  # type: ignore[return-value]


LENGTH_BITS = 20


def length() -> Term:
    """The packet's length in bytes: of both packets, if there are two."""
    return _term("length", (), LENGTH_BITS)


def free(name: str, width: int = BOOL) -> Term:
    """Something that is not about the packet: what a sampler draws."""
    return _term("free", (name,), width)


# Bit vectors.


def const(value: int, width: int) -> Term:
    return _term("const", (value & ((1 << width) - 1),), width)


def value_of(term: Term) -> int | None:
    """Of a constant."""
    return int(term.args[0]) if term.op == "const" else None  # type: ignore[call-overload]


def concat(*parts: Term) -> Term:
    """The parts, most significant first."""
    flat: list[Term] = []
    for part in parts:
        for piece in part.args if part.op == "concat" else (part,):
            assert isinstance(piece, Term)
            last = flat[-1] if flat else None
            if last is not None and last.op == piece.op == "const":
                joined = value_of(last) << piece.width | value_of(piece)  # type: ignore[operator]
                flat[-1] = const(joined, last.width + piece.width)
            elif last is not None and (joined_piece := _adjacent(last, piece)) is not None:
                flat[-1] = joined_piece
            elif piece.width:
                flat.append(piece)
    if len(flat) == 1:
        return flat[0]
    return _term("concat", tuple(flat), sum(part.width for part in flat))


def _adjacent(high: Term, low: Term) -> Term | None:
    """Two neighbouring pieces of one term, as one."""
    if high.op == low.op == "extract" and high.args[0] is low.args[0] and high.args[2] == low.args[1] + 1:  # type: ignore[operator]
        return extract(high.args[0], high.args[1], low.args[2])  # type: ignore[arg-type]
    return None


def extract(term: Term, high: int, low: int) -> Term:
    """Bits `high` down to `low`, both included."""
    width = high - low + 1
    if width == term.width:
        return term
    match term.op:
        case "const":
            return const(value_of(term) >> low, width)  # type: ignore[operator]
        case "concat":
            pieces: list[Term] = []
            at = term.width
            for part in term.args:
                assert isinstance(part, Term)
                at -= part.width
                top, bottom = min(high, at + part.width - 1), max(low, at)
                if top >= bottom:
                    pieces.append(extract(part, top - at, bottom - at))
            return concat(*pieces)
        case "extract":
            inner, _, base = term.args
            return extract(inner, high + base, low + base)  # type: ignore[arg-type,operator]
        case "ite" if all(isinstance(arm, Term) and arm.op in ("const", "concat") for arm in term.args[1:]):
            condition, yes, no = term.args
            return ite(condition, extract(yes, high, low), extract(no, high, low))  # type: ignore[arg-type]
    return _term("extract", (term, high, low), width)


def widened(term: Term, width: int) -> Term:
    """With zeros in front."""
    return term if term.width == width else concat(const(0, width - term.width), term)


def leading_zeros(term: Term) -> int:
    """How many of the highest bits are known to be 0."""
    match term.op:
        case "const":
            return term.width - value_of(term).bit_length()  # type: ignore[union-attr]
        case "concat":
            first = term.args[0]
            assert isinstance(first, Term)
            return leading_zeros(first) if first.op == "const" else 0
        case "ite":
            _, yes, no = term.args
            return min(leading_zeros(yes), leading_zeros(no))  # type: ignore[arg-type]
    return 0


def _stripped(term: Term) -> Term:
    zeros = min(leading_zeros(term), term.width - 1)
    return extract(term, term.width - zeros - 1, 0) if zeros else term


Fold = Callable[[int, int], int]


def _by_mask(term: Term, mask: int, kept: Callable[[Term], Term], masked: Callable[[Term], Term]) -> Term:
    """The runs of bits that are 0 in `mask` through `kept`, those that are 1 through `masked`."""
    pieces: list[Term] = []
    at = term.width
    while at:
        bit = mask >> (at - 1) & 1
        low = at - 1
        while low and mask >> (low - 1) & 1 == bit:
            low -= 1
        run = extract(term, at - 1, low)
        pieces.append(masked(run) if bit else kept(run))
        at = low
    return concat(*pieces)


def _zeros(run: Term) -> Term:
    return const(0, run.width)


def _ones(run: Term) -> Term:
    return const(-1, run.width)


def _same(run: Term) -> Term:
    return run


def bit_and(a: Term, b: Term) -> Term:
    if a.op == "const":
        a, b = b, a
    if b.op == "const":
        return _by_mask(a, value_of(b), _zeros, _same)  # type: ignore[arg-type]
    return a if a is b else _term("and_bits", (a, b), a.width)


def bit_or(a: Term, b: Term) -> Term:
    if a.op == "const":
        a, b = b, a
    if b.op == "const":
        return _by_mask(a, value_of(b), _same, _ones)  # type: ignore[arg-type]
    return a if a is b else _term("or_bits", (a, b), a.width)


def bit_xor(a: Term, b: Term) -> Term:
    if a.op == "const":
        a, b = b, a
    if b.op == "const":
        return _by_mask(a, value_of(b), _same, _inverted)  # type: ignore[arg-type]
    return const(0, a.width) if a is b else _term("xor_bits", (a, b), a.width)


def _inverted(term: Term) -> Term:
    known = value_of(term)
    return const(~known, term.width) if known is not None else _term("not_bits", (term,), term.width)


def shift_left(a: Term, bits: Term) -> Term:
    known = value_of(bits)
    if known is None:
        return _term("shl", (a, bits), a.width)
    if known >= a.width:
        return const(0, a.width)
    return concat(extract(a, a.width - 1 - known, 0), const(0, known)) if known else a


def shift_right(a: Term, bits: Term) -> Term:
    known = value_of(bits)
    if known is None:
        return _term("lshr", (a, bits), a.width)
    if known >= a.width:
        return const(0, a.width)
    return widened(extract(a, a.width - 1, known), a.width)


def _narrowed(op: str, a: Term, b: Term, width: int) -> Term:
    """An operation at the width that its result can have."""
    if width < a.width:
        return widened(_term(op, (_fit(a, width), _fit(b, width)), width), a.width)
    return _term(op, (a, b), a.width)


def _fit(term: Term, width: int) -> Term:
    return extract(term, width - 1, 0) if term.width >= width else widened(term, width)


def add(a: Term, b: Term) -> Term:
    if a.op == "const":
        a, b = b, a
    if b.op == "const":
        if a.op == "const":
            return const(value_of(a) + value_of(b), a.width)  # type: ignore[operator]
        if value_of(b) == 0:
            return a
    return _narrowed("add", a, b, a.width - min(leading_zeros(a), leading_zeros(b)) + 1)


def subtract(a: Term, b: Term) -> Term:
    if a is b:
        return const(0, a.width)
    if b.op == "const":
        if a.op == "const":
            return const(value_of(a) - value_of(b), a.width)  # type: ignore[operator]
        if value_of(b) == 0:
            return a
    return _term("sub", (a, b), a.width)


def multiply(a: Term, b: Term) -> Term:
    if a.op == "const":
        a, b = b, a
    known = value_of(b)
    if known is not None:
        if a.op == "const":
            return const(value_of(a) * known, a.width)  # type: ignore[operator]
        if known == 0:
            return b
        if known & (known - 1) == 0:
            return shift_left(a, const(known.bit_length() - 1, a.width))
    return _narrowed("mul", a, b, 2 * a.width - leading_zeros(a) - leading_zeros(b))


def divide(a: Term, b: Term) -> Term:
    """Undefined for a divisor of 0: see to it that there is none."""
    known = value_of(b)
    if known:
        if a.op == "const":
            return const(value_of(a) // known, a.width)  # type: ignore[operator]
        if known & (known - 1) == 0:
            return shift_right(a, const(known.bit_length() - 1, a.width))
    return _narrowed("udiv", a, b, a.width - min(leading_zeros(a), leading_zeros(b)))


def remainder(a: Term, b: Term) -> Term:
    """Undefined for a divisor of 0: see to it that there is none."""
    known = value_of(b)
    if known:
        if a.op == "const":
            return const(value_of(a) % known, a.width)  # type: ignore[operator]
        if known & (known - 1) == 0:
            return bit_and(a, const(known - 1, a.width))
    return _narrowed("urem", a, b, a.width - min(leading_zeros(a), leading_zeros(b)))


# Truths.


def equal(a: Term, b: Term) -> Term:
    if a is b:
        return TRUE
    if a.op == "const":
        a, b = b, a
    if b.op == "const":
        known = value_of(b)
        assert known is not None
        match a.op:
            case "const":
                return TRUE if value_of(a) == known else FALSE
            case "concat":
                truths = []
                at = a.width
                for part in a.args:
                    assert isinstance(part, Term)
                    at -= part.width
                    truths.append(equal(part, const(known >> at, part.width)))
                return all_of(truths)
            case "not_bits":
                return equal(a.args[0], const(~known, a.width))  # type: ignore[arg-type]
            case "ite" if any(isinstance(arm, Term) and arm.op == "const" for arm in a.args[1:]):
                condition, yes, no = a.args
                return ite(condition, equal(yes, b), equal(no, b))  # type: ignore[arg-type]
    return _term("eq", (a, b), BOOL)


def less(a: Term, b: Term) -> Term:
    """Unsigned a < b."""
    if a is b:
        return FALSE
    low, high = value_of(a), value_of(b)
    if low is not None and high is not None:
        return TRUE if low < high else FALSE
    if high is not None:
        short = _stripped(a)
        if high == 0:
            return FALSE
        if high >> short.width:
            return TRUE
        return (
            equal(short, const(0, short.width)) if high == 1 else _term("ult", (short, const(high, short.width)), BOOL)
        )
    if low is not None:
        short = _stripped(b)
        if low >> short.width or low == (1 << short.width) - 1:
            return FALSE
        return _term("ult", (const(low, short.width), short), BOOL)
    return _term("ult", (a, b), BOOL)


def at_least(a: Term, low: int) -> Term:
    return TRUE if low <= 0 else FALSE if low >> a.width else less(const(low - 1, a.width), a)


def between(a: Term, low: int, high: int) -> Term:
    """Both ends included."""
    if low == high:
        return equal(a, const(low, a.width))
    return all_of((at_least(a, low), negated(at_least(a, high + 1))))


def negated(truth: Term) -> Term:
    match truth.op:
        case "true":
            return FALSE
        case "false":
            return TRUE
        case "not":
            return truth.args[0]  # type: ignore[return-value]
    return _term("not", (truth,), BOOL)


def all_of(truths: Iterable[Term]) -> Term:
    return _joined("and", truths, FALSE, TRUE)


def any_of(truths: Iterable[Term]) -> Term:
    return _joined("or", truths, TRUE, FALSE)


def _joined(op: str, truths: Iterable[Term], decisive: Term, neutral: Term) -> Term:
    flat: dict[Term, None] = {}
    terms = _interned.terms
    for truth in truths:
        for part in truth.args if truth.op == op else (truth,):
            assert isinstance(part, Term)
            # A negation that was not made yet is nowhere.
            opposite = part.args[0] if part.op == "not" else terms.get(("not", BOOL, part))
            if part is decisive or opposite in flat:
                return decisive
            if part is not neutral:
                flat[part] = None
    if not flat:
        return neutral
    return next(iter(flat)) if len(flat) == 1 else _term(op, tuple(flat), BOOL)


def ite(condition: Term, yes: Term, no: Term) -> Term:
    """`yes` where the condition holds, otherwise `no`; truths or bit vectors of one width."""
    if condition is TRUE or yes is no:
        return yes
    if condition is FALSE:
        return no
    if condition.op == "not":
        condition, yes, no = condition.args[0], no, yes  # type: ignore[assignment]
    if yes.width == BOOL:
        if yes is TRUE:
            return any_of((condition, no))
        if yes is FALSE:
            return all_of((negated(condition), no))
        if no is TRUE:
            return any_of((negated(condition), yes))
        if no is FALSE:
            return all_of((condition, yes))
    return _term("ite", (condition, yes, no), yes.width)


def differ(a: Term, b: Term) -> Term:
    """Exclusive or of truths."""
    return FALSE if a is b else ite(a, negated(b), b)


# What a term means and is about.


def variables(terms: Iterable[Term]) -> list[Term]:
    """The variables that occur, each once."""
    return [term for term in in_order(terms) if term.op in ("byte", "length", "free")]


def in_order(terms: Iterable[Term]) -> list[Term]:
    """Every term that occurs, what it is made of before it."""
    check_time()
    found: dict[Term, None] = {}
    stack: list[tuple[Term, bool]] = [(term, False) for term in terms]
    while stack:
        term, ready = stack.pop()
        if ready:
            found[term] = None
            if not len(found) % LOOK:
                check_time()
        elif term not in found:
            stack.append((term, True))
            stack.extend((arg, False) for arg in term.args if isinstance(arg, Term) and arg not in found)
    return list(found)


def replaced(terms: Sequence[Term], new: Mapping[Term, Term]) -> list[Term]:
    """The same terms with variables replaced by other terms, and folded anew."""
    made: dict[Term, Term] = dict(new)
    for term in in_order(terms):
        if term not in made:
            args = tuple(made[arg] if isinstance(arg, Term) else arg for arg in term.args)
            made[term] = term if args == term.args else _rebuilt(term, args)
    return [made[term] for term in terms]


def _rebuilt(term: Term, args: tuple[object, ...]) -> Term:
    make = BUILDERS.get(term.op)
    return make(*args) if make else _term(term.op, args, term.width)


def evaluate(terms: Sequence[Term], values: Mapping[Term, int]) -> list[int]:
    """What the terms are where the variables have these values; those without one are 0."""
    known: dict[Term, int] = {}

    def of(arg: object) -> int:
        return known[arg]  # type: ignore[index]

    for term in in_order(terms):
        args = term.args
        match term.op:
            case "true":
                result = 1
            case "false":
                result = 0
            case "byte" | "length" | "free":
                result = values.get(term, 0)
            case "const":
                result = args[0]  # type: ignore[assignment]
            case "concat":
                result = 0
                for part in args:
                    result = result << part.width | of(part)  # type: ignore[attr-defined]
            case "extract":
                result = of(args[0]) >> args[2]  # type: ignore[operator]
            case "not":
                result = 1 - of(args[0])
            case "and":
                result = int(all(map(of, args)))
            case "or":
                result = int(any(map(of, args)))
            case "ite":
                result = of(args[1]) if of(args[0]) else of(args[2])
            case "eq":
                result = int(of(args[0]) == of(args[1]))
            case "ult":
                result = int(of(args[0]) < of(args[1]))
            case "not_bits":
                result = ~of(args[0])
            case op:
                result = OPERATIONS[op](of(args[0]), of(args[1]))
        known[term] = result & ((1 << max(term.width, 1)) - 1)
    return [known[term] for term in terms]


OPERATIONS: dict[str, Fold] = {
    "and_bits": lambda a, b: a & b,
    "or_bits": lambda a, b: a | b,
    "xor_bits": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b if b < MOST_BITS else 0,
    "lshr": lambda a, b: a >> b if b < MOST_BITS else 0,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "udiv": lambda a, b: a // b if b else -1,  # as solvers have it
    "urem": lambda a, b: a % b if b else a,
}

BUILDERS: dict[str, Callable[..., Term]] = {
    "concat": concat,
    "extract": extract,
    "not": negated,
    "and": lambda *truths: all_of(truths),
    "or": lambda *truths: any_of(truths),
    "ite": ite,
    "eq": equal,
    "ult": less,
}
