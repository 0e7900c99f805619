"""Is accuracy lost?  The bundled kernel's errors over standard attention's, forward and backward, on every regime."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from ...kernels import interpreter
from ...reports.published import Claim, Outcome
from ...reports.record import Row
from ..case import Case, DType
from ..evaluate import evaluate
from ..loading import load
from ..regimes import REGIMES
from .common import figure, outcome

_DTYPES: tuple[DType, ...] = ("fp16", "bf16")
_TENSORS = ("out", "dq", "dk", "dv")
_CASE = Case(B=1, H=2, HK=1, M=64, N=96, D=32, dtype="bf16", regime="normal", seed=0)
_WORSE = 1.05
_NAMED, _SHOWN = 4, 8  # of those in which it is worst
SETTING = (
    f"Accuracy: RMS error of the bundled kernel over that of standard attention in the same dtype, "
    f"{' and '.join(_DTYPES)}, per tensor, {_CASE.M} queries and {_CASE.N} keys, D = {_CASE.D}, over all "
    f"{len(REGIMES)} regimes of inputs. Under both errors lies a floor, about that of the rounded truth, so that two "
    "tiny ones are equal."
)
Ratios = Mapping[tuple[str, str], Sequence[float]]  # by regime and tensor


def claim(seeds: int) -> Claim:
    """Geometric means on N(0, 1), and the regimes and tensors in which the kernel is worst."""
    ratios, left_out = _measured(seeds)
    ordinary = [figure(f"normal: {t}", ratios["normal", t]) for t in _TENSORS]
    means = [statistics.geometric_mean(ratios["normal", t]) for t in _TENSORS]
    worst = sorted(((figure(f"{r}: {t}", x), r) for (r, t), x in ratios.items()), key=lambda pair: -pair[0].median)
    worse = [(f, r) for f, r in worst if f.median > _WORSE]
    named = [f"{f.what} ({f.median:.2g})" for f, _ in worse[:_NAMED]]
    named += [f"{len(worse) - _NAMED} more"] if len(worse) > _NAMED else []
    independent = ", ".join(dict.fromkeys(r for _, r in worse if REGIMES[r].independent))
    return Claim(
        claim='"exact" as: no less accurate than standard attention, forward or backward',
        rule=f"no regime's median ratio, of any tensor, exceeds {_WORSE:g}; under the assumption that inputs are not "
        "of the regimes named, if these are all built against kernels, none of independent entries",
        outcome=lossless(r for _, r in worse),
        because=f"{min(means):.2g} to {max(means):.2g} times standard attention's error on N(0, 1), by tensor; "
        f"more than {_WORSE:g} times with {'; '.join(named) or 'no inputs'}"
        + (f" (independent entries: {independent})" if independent else "")
        + (f"; {left_out} ratios are left out, as standard attention overflows" if left_out else ""),
        figures=(*ordinary, *(f for f, _ in worst[:_SHOWN])),
    )


def lossless(worse: Iterable[str]) -> Outcome:
    """Of the regimes in which the kernel is worse than standard attention."""
    names = set(worse)
    return outcome(not names, not any(REGIMES[n].independent for n in names))


def _measured(seeds: int) -> tuple[Ratios, int]:
    """Ratios of RMS errors, and how many there are not because standard attention overflows."""
    kernel = load("flash")
    found: dict[tuple[str, str], list[float]] = {(r, t): [] for r in REGIMES for t in _TENSORS}
    left_out = 0
    with interpreter.interpret():
        for regime in REGIMES:
            for case in (_CASE.with_(dtype=d, regime=regime, seed=s) for d in _DTYPES for s in range(seeds)):
                for row in evaluate(case, kernel, "survey", thorough=False, stores=False).rows:
                    if row.tensor in _TENSORS:
                        ratio = _ratio(row)
                        left_out += ratio is None
                        found[regime, row.tensor] += [] if ratio is None else [ratio]
    return {key: x for key, x in found.items() if x}, left_out


def _ratio(row: Row) -> float | None:
    """Of RMS errors; infinite where only the kernel's is not finite, None where standard attention's is not."""
    if row.log_ratio is not None:
        return math.exp(row.log_ratio)
    return math.inf if row.standard_rms is not None else None
