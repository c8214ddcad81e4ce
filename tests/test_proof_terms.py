"""Formulas mean the same to everybody: folded or not, to `evaluate`, z3 and Bitwuzla."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ffpf_bpf.authorise.proof import solvers
from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.filters import possible_values
from ffpf_bpf.authorise.proof.solvers import Clock, Verdict
from ffpf_bpf.authorise.proof.terms import Term

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FFPF_PROOF_TERMS", "120"))
WIDTHS = (1, 3, 8, 11, 16, 17, 20, 32, 33, 128)
Values = Mapping[Term, int]


@dataclass(frozen=True)
class Pair:
    """A term as the constructors make it, and what it must be, told by a plain function."""

    term: Term
    value: Callable[[Values], int]


VARIABLES = (*(t.byte(at) for at in range(4)), t.length(), t.free("f"), t.free("g", 17))
BITS = tuple(each for each in VARIABLES if each.width)
BINARY: dict[str, tuple[Callable[[Term, Term], Term], Callable[[int, int, int], int]]] = {
    "and": (t.bit_and, lambda a, b, _: a & b),
    "or": (t.bit_or, lambda a, b, _: a | b),
    "xor": (t.bit_xor, lambda a, b, _: a ^ b),
    "add": (t.add, lambda a, b, _: a + b),
    "subtract": (t.subtract, lambda a, b, _: a - b),
    "multiply": (t.multiply, lambda a, b, _: a * b),
    "left": (t.shift_left, lambda a, b, width: a << b if b < width else 0),
    "right": (t.shift_right, lambda a, b, width: a >> b if b < width else 0),
}


def variable(term: Term) -> Pair:
    return Pair(term, lambda values: values[term])


def constant(value: int, width: int) -> Pair:
    return Pair(t.const(value, width), lambda _: value & ((1 << width) - 1))


@st.composite
def bits(draw: st.DrawFn, width: int, depth: int) -> Pair:
    """A bit vector."""
    mask = (1 << width) - 1
    kinds = ["constant", "variable"]
    if depth:
        kinds += ["ite", "extract", "concat", *BINARY, *BINARY, "divide", "remainder"]
    match draw(st.sampled_from(kinds)):
        case "constant":
            edge = st.sampled_from([0, 1, 2, 3, 4, 8, 15, 16, 0xF0, 255, 1 << (width - 1), mask, mask - 1])
            return constant(draw(st.one_of(edge, st.integers(0, mask))), width)
        case "variable":
            return _fitted(variable(draw(st.sampled_from(BITS))), width, draw(st.integers(0, 4)))
        case "ite":
            condition = draw(truths(depth - 1))
            yes, no = draw(bits(width, depth - 1)), draw(bits(width, depth - 1))
            return Pair(
                t.ite(condition.term, yes.term, no.term),
                lambda values: yes.value(values) if condition.value(values) else no.value(values),
            )
        case "extract":
            inner = draw(bits(draw(st.sampled_from([each for each in WIDTHS if each >= width])), depth - 1))
            low = draw(st.integers(0, inner.term.width - width))
            return Pair(t.extract(inner.term, low + width - 1, low), lambda values: inner.value(values) >> low & mask)
        case "concat" if width > 1:
            at = draw(st.integers(1, width - 1))
            high, low_part = draw(bits(width - at, depth - 1)), draw(bits(at, depth - 1))
            return Pair(
                t.concat(high.term, low_part.term),
                lambda values: high.value(values) << at | low_part.value(values),
            )
        case "divide" | "remainder" | "concat" as kind:
            a, b = draw(bits(width, depth - 1)), draw(bits(width, depth - 1))
            make = t.remainder if kind == "remainder" else t.divide
            zero = t.equal(b.term, t.const(0, width))
            term = t.const(0, width) if zero is t.TRUE else t.ite(zero, t.const(0, width), make(a.term, b.term))

            def value(values: Values) -> int:
                by = b.value(values)
                if not by:
                    return 0
                return a.value(values) % by if kind == "remainder" else a.value(values) // by

            return Pair(term, value)
        case kind:
            make, plain = BINARY[kind]
            a, b = draw(bits(width, depth - 1)), draw(bits(width, depth - 1))
            return Pair(make(a.term, b.term), lambda values: plain(a.value(values), b.value(values), width) & mask)


def _fitted(pair: Pair, width: int, low: int) -> Pair:
    """As many bits of it as are wanted, from bit `low`, with zeros in front."""
    low = min(low, pair.term.width - 1)
    high = min(pair.term.width - 1, low + width - 1)
    mask = (1 << width) - 1
    return Pair(t.widened(t.extract(pair.term, high, low), width), lambda values: pair.value(values) >> low & mask)


@st.composite
def truths(draw: st.DrawFn, depth: int) -> Pair:
    kinds = ["constant", "free"]
    if depth:
        kinds += ["not", "all", "any", "ite", "differ", "equal", "equal", "less", "less", "least", "between", "between"]
    kind = draw(st.sampled_from(kinds))
    match kind:
        case "constant":
            value = draw(st.booleans())
            return Pair(t.TRUE if value else t.FALSE, lambda _: int(value))
        case "free":
            return variable(t.free("f"))
        case "not":
            inner = draw(truths(depth - 1))
            return Pair(t.negated(inner.term), lambda values: 1 - inner.value(values))
        case "all" | "any":
            parts = draw(st.lists(truths(depth - 1), max_size=4))
            make, plain = (t.all_of, all) if kind == "all" else (t.any_of, any)
            return Pair(
                make(part.term for part in parts), lambda values: int(plain(part.value(values) for part in parts))
            )
        case "ite":
            a, b, c = (draw(truths(depth - 1)) for _ in range(3))
            return Pair(
                t.ite(a.term, b.term, c.term),
                lambda values: b.value(values) if a.value(values) else c.value(values),
            )
        case "differ":
            a, b = draw(truths(depth - 1)), draw(truths(depth - 1))
            return Pair(t.differ(a.term, b.term), lambda values: a.value(values) ^ b.value(values))
    width = draw(st.sampled_from(WIDTHS))
    a = draw(bits(width, depth - 1))
    if kind in ("equal", "less"):
        b = draw(bits(width, depth - 1))
        if kind == "equal":
            return Pair(t.equal(a.term, b.term), lambda values: int(a.value(values) == b.value(values)))
        return Pair(t.less(a.term, b.term), lambda values: int(a.value(values) < b.value(values)))
    low, high = sorted((draw(st.integers(0, (1 << width) - 1)), draw(st.integers(0, (1 << width) - 1))))
    if kind == "least":
        return Pair(t.at_least(a.term, low), lambda values: int(a.value(values) >= low))
    return Pair(t.between(a.term, low, high), lambda values: int(low <= a.value(values) <= high))


@st.composite
def environments(draw: st.DrawFn) -> dict[Term, int]:
    """A value for each variable."""

    def some(width: int) -> st.SearchStrategy[int]:
        most = (1 << max(width, 1)) - 1
        return st.one_of(st.sampled_from([0, 1, most, most >> 1]), st.integers(0, most))

    return {each: draw(some(each.width)) for each in VARIABLES}


PAIRS = st.one_of(truths(4), st.sampled_from(WIDTHS).flatmap(lambda width: bits(width, 4)))
USUAL = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@USUAL
@given(PAIRS, st.lists(environments(), min_size=5, max_size=5))
def test_folding_keeps_the_meaning(pair: Pair, environments: list[dict[Term, int]]) -> None:
    for values in environments:
        assert t.evaluate([pair.term], values) == [pair.value(values)]


@USUAL
@given(PAIRS, environments(), st.sets(st.sampled_from(VARIABLES)))
def test_replacing_keeps_the_meaning(pair: Pair, values: dict[Term, int], known: set[Term]) -> None:
    """Variables by constants, and by other variables."""
    constants = {each: _constant(each, values[each]) for each in known}
    (term,) = t.replaced([pair.term], constants)
    assert not known & set(t.variables([term]))
    assert t.evaluate([term], values) == [pair.value(values)]
    swapped = {t.byte(0): t.byte(1), t.byte(1): t.byte(0)}
    (term,) = t.replaced([pair.term], swapped)
    assert t.evaluate([term], values) == [
        pair.value({**values, t.byte(0): values[t.byte(1)], t.byte(1): values[t.byte(0)]})
    ]


@USUAL
@given(st.sampled_from(WIDTHS).flatmap(lambda width: bits(width, 3)), st.lists(environments(), min_size=5, max_size=5))
def test_possible_values_are_all_there_are(pair: Pair, environments: list[dict[Term, int]]) -> None:
    possible = possible_values(pair.term)
    assert possible is None or {pair.value(values) for values in environments} <= possible


@USUAL
@given(PAIRS, environments())
def test_both_solvers_mean_the_same(pair: Pair, values: dict[Term, int]) -> None:
    """That the term is something else is impossible where the variables have these values; that it is so is not."""
    expected = _constant(pair.term, pair.value(values))
    fixed = [_equal(each, _constant(each, value)) for each, value in values.items()]
    so = _equal(pair.term, expected)
    for truth, verdict in ((so, Verdict.SOME), (t._term("not", (so,), t.BOOL), Verdict.NONE)):
        asked = t._term("and", (*fixed, truth), t.BOOL)
        assert solvers._Bitwuzla().verdict(asked, Clock(20)) is verdict
        answer = solvers._z3().solve(asked, Clock(20), ())
        assert answer.verdict is verdict
        if verdict is Verdict.SOME:
            assert t.evaluate([asked], answer.values) == [1]


def _constant(like: Term, value: int) -> Term:
    return t.const(value, like.width) if like.width else (t.TRUE if value else t.FALSE)


def _equal(a: Term, b: Term) -> Term:
    """Not folded."""
    return t._term("eq", (a, b), t.BOOL)


class TestSessions:
    def test_equal_terms_are_one(self) -> None:
        assert t.concat(t.byte(1), t.byte(2)) is t.concat(t.byte(1), t.byte(2))

    def test_terms_made_apart_are_forgotten(self) -> None:
        outside = t.byte(1)
        known = len(t._interned.terms)
        with solvers.apart():
            inside = t.equal(t.byte(1), t.const(7, 8))
            assert t.byte(1) is not outside
            with solvers.apart():
                assert t.equal(t.byte(1), t.const(7, 8)) is inside, "a second one is part of the first"
            assert t.equal(t.byte(1), t.const(7, 8)) is inside
        assert t.byte(1) is outside
        assert len(t._interned.terms) == known
        assert not solvers._z3()._made

    def test_they_are_forgotten_after_an_error(self) -> None:
        outside = t.byte(1)
        with pytest.raises(ValueError, match="here"), solvers.apart():
            raise ValueError("here")
        assert t.byte(1) is outside

    def test_constants_are_compared_by_value(self) -> None:
        outside = t.const(4711, 16)
        with t.apart():
            assert t.equal(outside, t.const(4711, 16)) is t.TRUE

    def test_threads_have_their_own(self) -> None:
        found: list[Verdict] = []

        def decide() -> None:
            with solvers.apart():
                for number in range(40):
                    truth = t.all_of((t.equal(t.byte(1), t.const(number, 8)), t.less(t.byte(1), t.const(number, 8))))
                    found.append(solvers.solve(truth, Clock(20)).verdict)

        threads = [Thread(target=decide) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [Verdict.NONE] * 160

    def test_a_context_is_not_kept_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(solvers, "MOST_KEPT", 20)
        first = solvers._z3()
        for number in range(30):
            solvers.solve(t.equal(t.byte(number), t.const(number, 8)), Clock(20))
        assert solvers._z3() is not first

    def test_an_answer_that_was_cut_short_is_asked_again(self) -> None:
        kept = solvers.Solvers()
        truth = t.equal(t.byte(77), t.const(3, 8))
        assert kept.solve(truth, Clock(0)).verdict is Verdict.UNKNOWN
        assert kept.solve(truth, Clock(20)).verdict is Verdict.SOME
