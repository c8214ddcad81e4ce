"""Two solvers, one question: is there a packet for which a truth holds?

z3 answers; where it says that there is none, Bitwuzla, which shares no code with it, is asked as well. Each has its
own translation of the terms. An answer of "none" that the other contradicts is no answer.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import bitwuzla
import z3
from z3 import z3core

from ffpf_bpf.authorise.proof import terms as t
from ffpf_bpf.authorise.proof.terms import Term
from ffpf_bpf.graph.predicate import LONGEST_FRAME

SHORTEST_FRAME = 14
LOGIC = "QF_FD"  # z3's solver for it makes Booleans of bit vectors at once: half the time of the one for QF_BV
MOST_KEPT = 50_000  # terms, of earlier decisions, in a context of z3
PREFERRED_MS = 150  # to find a packet that looks ordinary


class Verdict(StrEnum):
    NONE = "none"
    SOME = "some"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Answer:
    """`values` are those of the variables for `SOME`; `why` explains `UNKNOWN`; `confirmed` says that two solvers agree
    on `NONE`."""

    verdict: Verdict
    values: Mapping[Term, int] = field(default_factory=dict)
    why: str = ""
    confirmed: bool = False


class Clock:
    """What is left of the time that a decision may take, in seconds."""

    def __init__(self, limit_s: float) -> None:
        self.end_s = time.monotonic() + limit_s  # by the monotonic clock

    @property
    def left_ms(self) -> int:
        return max(int((self.end_s - time.monotonic()) * 1000), 0)


def frame_lengths() -> Term:
    """That the packet is as long as frames are."""
    return t.between(t.length(), SHORTEST_FRAME, LONGEST_FRAME)


def solve(truth: Term, clock: Clock, preferences: Sequence[Term] = ()) -> Answer:
    """Whether a packet exists for which `truth` holds; if so one that has as many of the `preferences` as it can, the
    first ones before the others."""
    return Solvers().solve(truth, clock, preferences)


def first_opinion(truth: Term, clock: Clock) -> Verdict:
    """z3's alone."""
    if truth is t.FALSE:
        return Verdict.NONE
    return _z3().solve(t.all_of((truth, frame_lengths())), clock, ()).verdict


class Solvers:
    """Both solvers, and what they have answered: for the questions of one decision, which share terms."""

    def __init__(self) -> None:
        self._bitwuzla = _Bitwuzla()
        self._answers: dict[tuple[Term, bool], Answer] = {}

    def solve(self, truth: Term, clock: Clock, preferences: Sequence[Term] = ()) -> Answer:
        """As `solve` does."""
        key = truth, bool(preferences)
        if key not in self._answers:
            answer = self._solve(truth, clock, preferences)
            if answer.verdict is Verdict.UNKNOWN:
                return answer  # for want of time, perhaps
            self._answers[key] = answer
        return self._answers[key]

    def _solve(self, truth: Term, clock: Clock, preferences: Sequence[Term]) -> Answer:
        if truth is t.FALSE:
            return Answer(Verdict.NONE, confirmed=True)
        asked = t.all_of((truth, frame_lengths()))
        answer = _z3().solve(asked, clock, preferences)
        if answer.verdict is not Verdict.NONE:
            return answer
        match self._bitwuzla.verdict(asked, clock):
            case Verdict.NONE:
                return Answer(Verdict.NONE, confirmed=True)
            case Verdict.SOME:
                return Answer(Verdict.UNKNOWN, why="the two solvers disagree")
            case _:
                return answer


@contextmanager
def apart(clock: Clock | None = None) -> Iterator[None]:
    """For one decision: its terms are forgotten at the end, here too. Raises OutOfTime when the clock has run out."""
    try:
        with t.apart(math.inf if clock is None else clock.end_s):
            yield
    finally:
        if _kept.z3 is not None:
            _kept.z3.forget()


class _Kept(threading.local):
    """Of each thread a context of z3, which takes as long to make as ten small questions."""

    z3: _Z3 | None = None


_kept = _Kept()


def _z3() -> _Z3:
    if _kept.z3 is None or _kept.z3.is_worn:
        _kept.z3 = _Z3()
    return _kept.z3


class _Z3:
    """By z3's C interface, without reference counts: the context keeps every term until it goes."""

    def __init__(self) -> None:
        config = z3core.Z3_mk_config()
        self._context = z3core.Z3_mk_context(config)
        z3core.Z3_del_config(config)
        self._made: dict[Term, Any] = {}
        self._sorts: dict[int, Any] = {}
        self._count = 0
        self._is_sound = True

    def __del__(self) -> None:
        z3core.Z3_del_context(self._context)

    @property
    def is_worn(self) -> bool:
        """Better made anew: it holds much, or an answer was cut short."""
        return self._count > MOST_KEPT or not self._is_sound

    def solve(self, truth: Term, clock: Clock, preferences: Sequence[Term]) -> Answer:
        self._is_sound = False
        answer = self._solve(truth, clock, preferences)
        self._is_sound = answer.verdict is not Verdict.UNKNOWN
        return answer

    def forget(self) -> None:
        """The terms of another decision."""
        self._made.clear()

    def _solve(self, truth: Term, clock: Clock, preferences: Sequence[Term]) -> Answer:
        context = self._context
        solver = z3core.Z3_mk_solver_for_logic(context, z3core.Z3_mk_string_symbol(context, LOGIC))
        z3core.Z3_solver_inc_ref(context, solver)
        try:
            return self._answer(solver, truth, clock, preferences)
        finally:
            z3core.Z3_solver_dec_ref(context, solver)

    def _answer(self, solver: Any, truth: Term, clock: Clock, preferences: Sequence[Term]) -> Answer:
        z3core.Z3_solver_assert(self._context, solver, self.made(truth))
        status, why = self._check(solver, clock.left_ms, [])
        if status < 0:
            return Answer(Verdict.NONE)
        if status == 0:
            return Answer(Verdict.UNKNOWN, why=why)
        variables = t.variables([truth, *preferences])
        values = self._values(solver, variables)
        kept: list[Any] = []
        clock = Clock(min(clock.left_ms, PREFERRED_MS) / 1000)
        for preference in preferences:
            if not clock.left_ms:
                break
            made = self.made(preference)
            if self._check(solver, clock.left_ms, [*kept, made])[0] > 0:
                kept.append(made)
                values = self._values(solver, variables)
        return Answer(Verdict.SOME, values)

    def _check(self, solver: Any, left_ms: int, assumptions: list[Any]) -> tuple[int, str]:
        """-1 for unsatisfiable, 1 for satisfiable, 0 for unknown, with the reason."""
        context = self._context
        if not left_ms:
            return 0, "out of time"
        parameters = z3core.Z3_mk_params(context)
        z3core.Z3_params_inc_ref(context, parameters)
        z3core.Z3_params_set_uint(context, parameters, z3core.Z3_mk_string_symbol(context, "timeout"), left_ms)
        z3core.Z3_solver_set_params(context, solver, parameters)
        z3core.Z3_params_dec_ref(context, parameters)
        array = (z3.Ast * len(assumptions))(*assumptions)
        status = int(z3core.Z3_solver_check_assumptions(context, solver, len(assumptions), array))
        why = "" if status else str(z3core.Z3_solver_get_reason_unknown(context, solver))
        return status, "out of time" if why in ("timeout", "canceled") else why

    def _values(self, solver: Any, variables: Sequence[Term]) -> dict[Term, int]:
        """Of the variables that the model says something about."""
        context = self._context
        model = z3core.Z3_solver_get_model(context, solver)
        z3core.Z3_model_inc_ref(context, model)
        values: dict[Term, int] = {}
        for variable in variables:
            declaration = z3core.Z3_get_app_decl(context, z3core.Z3_to_app(context, self.made(variable)))
            found = z3core.Z3_model_get_const_interp(context, model, declaration)
            if not found:
                continue
            if variable.width == t.BOOL:
                values[variable] = int(z3core.Z3_get_bool_value(context, found) > 0)
            else:
                values[variable] = int(z3core.Z3_get_numeral_string(context, found))
        z3core.Z3_model_dec_ref(context, model)
        return values

    def made(self, term: Term) -> Any:
        """The term as z3 has it."""
        made = self._made
        if term not in made:
            for each in t.in_order([term]):
                if each not in made:
                    made[each] = self._make(each)
                    self._count += 1
                    if not self._count % t.LOOK:
                        t.check_time()
        return made[term]

    def _make(self, term: Term) -> Any:
        context, args = self._context, term.args
        match term.op:
            case "true":
                return z3core.Z3_mk_true(context)
            case "false":
                return z3core.Z3_mk_false(context)
            case "const":
                return z3core.Z3_mk_numeral(context, str(args[0]), self._sort(term.width))
            case "byte" | "length" | "free":
                name = f"{term.op}.{'.'.join(map(str, args))}.{term.width}"
                return z3core.Z3_mk_const(context, z3core.Z3_mk_string_symbol(context, name), self._sort(term.width))
            case "extract":
                return z3core.Z3_mk_extract(context, args[1], args[2], self._made[args[0]])  # type: ignore[index]
            case "and" | "or":
                array = (z3.Ast * len(args))(*(self._made[arg] for arg in args))  # type: ignore[index]
                make = z3core.Z3_mk_and if term.op == "and" else z3core.Z3_mk_or
                return make(context, len(args), array)
            case "concat":
                first, *others = (self._made[arg] for arg in args)  # type: ignore[index]
                for other in others:
                    first = z3core.Z3_mk_concat(context, first, other)
                return first
        return Z3_OPERATIONS[term.op](context, *(self._made[arg] for arg in args))  # type: ignore[index]

    def _sort(self, width: int) -> Any:
        if width not in self._sorts:
            make = z3core.Z3_mk_bv_sort
            self._sorts[width] = make(self._context, width) if width else z3core.Z3_mk_bool_sort(self._context)
        return self._sorts[width]


Z3_OPERATIONS = {
    "not": z3core.Z3_mk_not, "ite": z3core.Z3_mk_ite, "eq": z3core.Z3_mk_eq, "ult": z3core.Z3_mk_bvult,
    "not_bits": z3core.Z3_mk_bvnot, "and_bits": z3core.Z3_mk_bvand, "or_bits": z3core.Z3_mk_bvor,
    "xor_bits": z3core.Z3_mk_bvxor, "shl": z3core.Z3_mk_bvshl, "lshr": z3core.Z3_mk_bvlshr, "add": z3core.Z3_mk_bvadd,
    "sub": z3core.Z3_mk_bvsub, "mul": z3core.Z3_mk_bvmul, "udiv": z3core.Z3_mk_bvudiv, "urem": z3core.Z3_mk_bvurem,
}  # fmt: skip
BITWUZLA_OPERATIONS = {
    "not": bitwuzla.Kind.NOT, "ite": bitwuzla.Kind.ITE, "eq": bitwuzla.Kind.EQUAL, "ult": bitwuzla.Kind.BV_ULT,
    "and": bitwuzla.Kind.AND, "or": bitwuzla.Kind.OR, "concat": bitwuzla.Kind.BV_CONCAT,
    "not_bits": bitwuzla.Kind.BV_NOT, "and_bits": bitwuzla.Kind.BV_AND, "or_bits": bitwuzla.Kind.BV_OR,
    "xor_bits": bitwuzla.Kind.BV_XOR, "shl": bitwuzla.Kind.BV_SHL, "lshr": bitwuzla.Kind.BV_SHR,
    "add": bitwuzla.Kind.BV_ADD, "sub": bitwuzla.Kind.BV_SUB, "mul": bitwuzla.Kind.BV_MUL,
    "udiv": bitwuzla.Kind.BV_UDIV, "urem": bitwuzla.Kind.BV_UREM,
}  # fmt: skip


class _Bitwuzla:
    """Without preprocessing and rewriting, which take longer than they save: what is asked is folded already."""

    def __init__(self) -> None:
        self._manager = bitwuzla.TermManager()
        self._made: dict[Term, Any] = {}
        self._sorts: dict[int, Any] = {t.BOOL: self._manager.mk_bool_sort()}

    def verdict(self, truth: Term, clock: Clock) -> Verdict:
        if not clock.left_ms:
            return Verdict.UNKNOWN
        options = bitwuzla.Options()
        options.set(bitwuzla.Option.PREPROCESS, False)
        options.set(bitwuzla.Option.REWRITE_LEVEL, 0)
        made = self._made
        for each in t.in_order([truth]):
            if each not in made:
                made[each] = self._make(each)
                if not len(made) % t.LOOK:
                    t.check_time()
        options.set(bitwuzla.Option.TIME_LIMIT_PER, max(clock.left_ms, 1))
        solver = bitwuzla.Bitwuzla(self._manager, options)
        solver.assert_formula(made[truth])
        match solver.check_sat():
            case bitwuzla.Result.UNSAT:
                return Verdict.NONE
            case bitwuzla.Result.SAT:
                return Verdict.SOME
        return Verdict.UNKNOWN

    def _make(self, term: Term) -> Any:
        manager, made, args = self._manager, self._made, term.args
        if term.width not in self._sorts:
            self._sorts[term.width] = manager.mk_bv_sort(term.width)
        match term.op:
            case "true":
                return manager.mk_true()
            case "false":
                return manager.mk_false()
            case "const":
                return manager.mk_bv_value(self._sorts[term.width], args[0])
            case "byte" | "length" | "free":
                return manager.mk_const(self._sorts[term.width])
            case "extract":
                return manager.mk_term(bitwuzla.Kind.BV_EXTRACT, [made[args[0]]], [args[1], args[2]])  # type: ignore[index]
        return manager.mk_term(BITWUZLA_OPERATIONS[term.op], [made[arg] for arg in args])  # type: ignore[index]
