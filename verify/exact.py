"""A kernel's own source in exact arithmetic, against the definition: is its algebra attention's?

Two runs.  In rationals, on small integers, every element of the output, the log-sum-exp and the gradients must *equal*
the definition's.  In 50, 100 and 200 digits, on generic inputs, the difference must fall a digit per digit: what is
merely a good approximation stops falling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
from flint import arb, ctx, fmpq
from numpy.typing import NDArray

from ..kernels.interpreter import KernelError, Session, arithmetics, interpret
from ..kernels.interpreter.numbers.rational import power
from ..reference import rational
from ..reference.certified import balls
from ..reports.record import Comparison, Mismatch
from ..reports.record import Tensor as TensorName
from .case import Case
from .exact_problems import Problem
from .implementation import Implementation
from .inputs import build
from .outputs import Outputs, RefusedError, describe
from .pool import Pool
from .problems import LostError
from .settings import Progress

#: relative to the largest element, a quarter of fp16's unit roundoff: an algebra this close rounds to the same numbers
NEGLIGIBLE = 2.0**-11 / 4
_SLACK = 15  # digits that rounding in the last place, sums and the condition of the problem may cost
NO_KERNEL = "no Triton kernel was launched"
Objects = NDArray[Any]


def compare(pool: Pool, problems: Sequence[Problem], progress: Progress) -> list[Comparison]:
    """Every problem, in the pool's workers; one that is lost there says so."""
    found: list[Comparison] = []
    for n, (problem, result) in enumerate(pool.calls(solve, problems), start=1):
        if isinstance(result, LostError):
            result = Comparison(case=problem.case.to_dict(), arithmetic=problem.arithmetic, status="unavailable",
                                tiles=problem.tiles, detail=str(result))  # fmt: skip
        found.append(result)
        progress("exact", n, len(problems))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# one problem, in a worker


def solve(implementation: Implementation, device: str, problem: Problem) -> Comparison:
    """Run the kernel in exact arithmetic and compare."""
    del device  # the interpreter is the same everywhere
    case, function = problem.case, implementation.function
    if problem.tiles is not None:
        function = partial(function, tiles=problem.tiles)
    found = Comparison(case=case.to_dict(), arithmetic=problem.arithmetic, status="different", tiles=problem.tiles)
    try:
        result = _compared(replace(implementation, function=function), case, problem.digits)
    except RefusedError as e:
        return found.model_copy(update=dict(status="refused", detail=str(e)))
    except KernelError as e:
        return found.model_copy(update=dict(status="unavailable", detail=str(e)))
    except Exception as e:  # noqa: BLE001  (what it raises as a rule, the survey finds; this says nothing of its algebra)
        return found.model_copy(update=dict(status="unavailable", detail=f"it raised {describe(e)}"))
    return found.model_copy(update=result)


def _compared(implementation: Implementation, case: Case, digits: tuple[int, ...]) -> dict[str, Any]:
    if digits:
        return _in_digits(implementation, case, digits)
    inputs = build(case)
    session, outputs = run_in(arithmetics.exact(), implementation, case)
    if session.launches == 0:
        return dict(status="unavailable", detail=NO_KERNEL)
    truth = rational.attention(inputs.q, inputs.k, inputs.v, inputs.do, inputs.mask, case.softmax_scale)
    wanted = {"out": truth.o, "lse": truth.total, "dq": truth.dq, "dk": truth.dk, "dv": truth.dv}
    mismatches, elements = [], 0
    for name, tensor in outputs.tensors().items():
        got = session.values(tensor)
        if name == "lse":  # base^lse is what is rational
            got = np.asarray(_POWER(got), object).reshape(got.shape)
        elements += got.size
        mismatch = _mismatch(cast(TensorName, name), got, wanted[name], session.stored(tensor).calls())
        mismatches += [mismatch] if mismatch else []
    return _judged(session, mismatches, elements)


def _judged(session: Session, mismatches: list[Mismatch], elements: int) -> dict[str, Any]:
    status, detail = "different" if mismatches else "equal", ""
    if mismatches and session.rounded_on_the_host:
        names = ", ".join(sorted(session.rounded_on_the_host))
        status, detail = "unavailable", f"torch computed {names} between the launches, and rounded"
    return dict(status=status, elements=elements, mismatches=tuple(mismatches), detail=detail)


def run_in(arithmetic: Any, implementation: Implementation, case: Case) -> tuple[Session, Outputs]:
    """Run a case in an arithmetic, what torch does between launches included; the session has the outputs' values."""
    inputs = build(case)
    with interpret(arithmetic) as session:
        session.follow(inputs.q, inputs.k, inputs.v, inputs.do)
        return session, implementation(case, inputs)


_POWER = np.frompyfunc(lambda x: power(4, x), 1, 1)
_EQUAL = np.frompyfunc(lambda a, b: type(a) is fmpq and a == b, 2, 1)


def _mismatch(name: TensorName, got: Objects, wanted: Objects, line: str) -> Mismatch | None:
    equal = np.asarray(_EQUAL(got, wanted), np.bool_)
    if equal.all():
        return None
    places = np.argwhere(~equal)
    first = tuple(int(i) for i in places[0])
    factors = {a / b if type(a) is fmpq and b != 0 else None for a, b in zip(got[~equal], wanted[~equal], strict=True)}
    parts = [f"first at {list(first)}: {_short(got[first])} instead of {_short(wanted[first])}"]
    for axis, word in enumerate(("batch element", "head", "row", "column")[: got.ndim]):
        there = np.unique(places[:, axis])
        if there.size < got.shape[axis]:
            parts.append(f"{word}s {_ranges(there.tolist())} of {got.shape[axis]}")
    if len(factors) == 1 and None not in factors:
        parts.append(f"each off by the factor {factors.pop()}")
    parts.append(f"stored at {line}")
    gaps = np.abs(_floats(got) - _floats(wanted))
    largest = float(np.abs(_floats(wanted)).max()) or 1.0
    deviation = float(np.nan_to_num(gaps, nan=np.inf).max() / largest)
    return Mismatch(tensor=name, count=len(places), elements=got.size, where="; ".join(parts), deviation=deviation)


def _short(x: Any) -> str:
    text = str(x)
    return text if len(text) <= 40 else f"{float(_float(x)):.17g}"


def _float(x: Any) -> float:
    return int(x.p) / int(x.q) if type(x) is fmpq else float(x)


def _floats(x: Objects) -> NDArray[np.float64]:
    return np.asarray(np.frompyfunc(_float, 1, 1)(x), np.float64)


def _ranges(numbers: list[int]) -> str:
    """`3-5, 9` for [3, 4, 5, 9]; the first few."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(words[:4]) + (", ..." if len(words) > 4 else "")


def _in_digits(implementation: Implementation, case: Case, digits: tuple[int, ...]) -> dict[str, Any]:
    inputs = build(case)
    bits = math.ceil(max(digits) * math.log2(10)) + 128
    truth = balls(inputs.q, inputs.k, inputs.v, inputs.do, inputs.mask, case.softmax_scale, bits)
    wanted = {"out": truth.o, "lse": truth.lse, "dq": truth.dq, "dk": truth.dk, "dv": truth.dv}
    found: list[tuple[int, float]] = []
    mismatches: list[Mismatch] = []
    elements = 0
    for n in digits:
        session, outputs = run_in(arithmetics.precise(n), implementation, case)
        if session.launches == 0:
            return dict(status="unavailable", detail=NO_KERNEL)
        worst, mismatches, elements = -math.inf, [], 0
        for name, tensor in outputs.tensors().items():
            got = session.values(tensor)
            elements += got.size
            apart, place, count = _apart(got, wanted[name], bits, _SLACK - n)
            worst = max(worst, apart)
            if count:
                where = f"largest difference at {place}; stored at {session.stored(tensor).calls()}"
                mismatches.append(Mismatch(tensor=cast(TensorName, name), count=count, elements=got.size, where=where,
                                           deviation=10.0 ** min(apart, 300)))  # fmt: skip
        found.append((n, worst))
    return _judged(session, mismatches, elements) | dict(digits=tuple(found))


def _apart(got: Objects, wanted: list[arb], bits: int, limit: int) -> tuple[float, list[int], int]:
    """How far apart two tensors are, in units of the largest |wanted|; infinities must agree.

    Returns log10 of the largest distance, where it is, and how many distances exceed 10^limit.
    """
    with ctx.workprec(bits):
        largest = max((abs(w).mid() for w in wanted if w.is_finite()), key=_middle, default=arb(1))
        largest = largest if largest != 0 else arb(1)
        worst, place, count = arb(0), 0, 0
        for i, (g, w) in enumerate(zip(got.flat, wanted, strict=True)):
            if not w.is_finite() or not math.isfinite(g):
                gap = arb(0) if float(g) == _middle(w) else arb("inf")
            else:
                mantissa, exponent = g.as_mantissa_exp()
                gap = abs(arb(int(mantissa)) * arb(2) ** int(exponent) - w).mid() / largest
            count += bool(gap > arb(10) ** limit)
            if gap > worst:
                worst, place = gap, i
        apart = -math.inf if worst == 0 else _middle(worst.log() / arb(10).log())
        return apart, [int(j) for j in np.unravel_index(place, got.shape)], count


def _middle(x: arb) -> float:
    return float(x.mid())
