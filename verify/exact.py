"""A kernel's own source in exact arithmetic, against the definition: is its algebra attention's?

Two runs.  In rationals, on small integers, every element of the output, the log-sum-exp and the gradients must *equal*
the definition's.  In 50, 100 and 200 digits, on generic inputs, the difference must fall a digit per digit: what is
merely a good approximation stops falling.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from .case import Alignment, Case, MaskRecipe, parse_case
from .implementation import Implementation, Outputs, RefusedError, describe
from .inputs import build
from .pool import Pool
from .probe import has_gradients
from .problems import LostError, UsageError
from .regimes import REGIMES
from .settings import Progress

DIGITS = (50, 100, 200)
#: relative to the largest element, a quarter of fp16's unit roundoff: an algebra this close rounds to the same numbers
NEGLIGIBLE = 2.0**-11 / 4
_SLACK = 15  # digits that rounding in the last place, sums and the condition of the problem may cost
_NO_KERNEL = "no Triton kernel was launched"
Objects = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What a worker is to do: a case, tiles for a function that takes them, and how many digits (none: rationals)."""

    case: Case
    tiles: tuple[int, int] | None = None
    digits: tuple[int, ...] = ()

    @property
    def arithmetic(self) -> str:
        """In words."""
        return f"{', '.join(map(str, self.digits))} digits" if self.digits else "rationals"


def problems(implementation: Implementation, seed: int, *, thorough: bool) -> list[Problem]:
    """Everything the algebra of a kernel may depend on; `thorough` doubles the lengths and tries more tiles."""
    tiles = _tiles(implementation)
    cases = [c for case in _cases(seed, long=thorough) if (c := _within_reach(case, implementation)) is not None]
    each = min(len(tiles), 2 if thorough else 1)
    chosen = [Problem(c, tiles[(n + i) % len(tiles)]) for n, c in enumerate(cases) for i in range(each)]
    generic = [c.with_(regime="normal") for c in cases[: 2 if thorough else 1]]
    digits = DIGITS if thorough else DIGITS[:2]
    return chosen + [Problem(c, tiles[n % len(tiles)], digits) for n, c in enumerate(generic)]


def _tiles(implementation: Implementation) -> list[tuple[int, int] | None]:
    """The tile shapes to try; a function without a `tiles` option has its own."""
    takes_tiles = "tiles" in inspect.signature(implementation.function).parameters
    return [(16, 16), (32, 32), (32, 16), (16, 32)] if takes_tiles else [None]


def _within_reach(case: Case, implementation: Implementation) -> Case | None:
    """The case with what the function has no option for taken out, if that leaves something to ask."""
    if not implementation.has_backward:
        case = case.with_(backward=False)
    for change in (dict(HK=case.H), dict(mask=replace(case.mask, alignment=cast(Alignment, implementation.alignment)))):
        if implementation.lacks(case) is not None:
            case = case.with_(**change)
    return case if implementation.lacks(case) is None else None


def _cases(seed: int, *, long: bool) -> Iterator[Case]:
    base = Case(B=1, H=2, HK=1, M=37, N=37, D=16, dtype="bf16", regime="integers", seed=seed)
    causal = MaskRecipe(causal=True)
    bottom = MaskRecipe(causal=True, alignment="bottom-right")
    yield base.with_(mask=causal) if not long else base.with_(M=64, N=64, mask=causal)
    yield base.with_(M=33, N=33, dtype="fp16", layout="gaps")
    yield base.with_(M=33, N=45, dtype="fp16")
    yield base.with_(M=19, N=50, D=32, scale=0.125, mask=bottom)
    yield base.with_(M=50, N=19, mask=bottom, dtype="fp16")  # the first queries see nothing
    yield base.with_(H=4, HK=2, M=34, N=34, mask=MaskRecipe(causal=True, window=(7, 0)))
    yield base.with_(M=40, N=33, D=8, scale=0.25, mask=MaskRecipe(window=(4, 2), alignment="bottom-right"))
    yield base.with_(M=31, N=36, H=1, mask=MaskRecipe(boolean="empty-rows"), dtype="fp16")
    yield base.with_(B=2, M=17, N=40, mask=MaskRecipe(key_lengths=True))
    yield base.with_(M=1, N=47, H=2, HK=2, D=4)
    yield base.with_(M=36, N=1, H=1, dtype="fp16")
    yield base.with_(M=65, N=35, HK=2)
    if long:
        yield base.with_(M=64, N=64, D=32, scale=0.125, dtype="fp16", HK=2)
        yield base.with_(M=63, N=61, mask=MaskRecipe(boolean="first-tile"), H=1)
        yield base.with_(M=24, N=24, scale=-0.25, mask=causal)


def problems_of(implementation: Implementation, pool: Pool, seed: int, case_text: str | None) -> list[Problem]:
    """All the usual problems, or one case in rationals (where it can be) and in digits.

    Raises:
        UsageError: for a text that is no case, or a case that the function has no option for.
    """
    implementation = replace(implementation, has_backward=gradients_of(pool))
    if case_text is None:
        return problems(implementation, seed, thorough=True)
    case = parse_case(case_text)
    if (lacking := implementation.lacks(case)) is not None:
        raise UsageError(f"{implementation.name} has no option for {lacking}")
    if case.regime not in REGIMES:
        raise UsageError(f"not a case: unknown regime {case.regime!r}; there are {', '.join(REGIMES)}")
    rational_too = case.regime == "integers" and case.mask.bias is None
    rationals = [Problem(case, tiles) for tiles in _tiles(implementation)] if rational_too else []
    return [*rationals, Problem(case, _tiles(implementation)[0], DIGITS)]


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


def gradients_of(pool: Pool) -> bool:
    """Whether the function has gradients; measured in a worker, since it may hang or die."""
    try:
        return pool.call(has_gradients)
    except LostError:
        return True


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
        return dict(status="unavailable", detail=_NO_KERNEL)
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
            return dict(status="unavailable", detail=_NO_KERNEL)
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
