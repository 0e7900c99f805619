"""On which kinds of input is a kernel less accurate than standard attention?

The survey's cells gate, and answer for inputs whose entries are independent.  Here every regime is asked, those too
that are built to break kernels, and nothing fails: where the roundings that flash cannot do without make it so, being
worse is no fault, but a verdict must say so.  Cases are plain, so that little but the regime makes them differ, and
asked in stages: a few of every regime, and ever more of those that these leave open.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from ..reports.record import Row, Standing
from ..reports.record import Tensor as TensorName
from .case import Case
from .draws import Draws
from .implementation import Implementation
from .plain import plain_case
from .profiles import Profile
from .regimes import REGIMES
from .statistics import Mean, mean_interval, student_quantile
from .survey import simplified

PHASE = "comparison"
#: half as much error again: less depends on the sizes of a problem, and on which cases were drawn
WORSE = 1.5
CONFIDENCE = 0.99
_PREDICTED = 1.3  # times what roundings predict: beyond it, they do not explain an error
#: what makes flash attention worse where it is; tests/test_comparison.py takes the cause away, and the effect goes
WHY: dict[TensorName, str] = {
    "dq": "delta is formed from the rounded output, and its error, common to a row of dS, multiplies what keys share",
}
_TENSORS: tuple[TensorName, ...] = ("out", "dq", "dk", "dv")


def stages(profile: Profile) -> tuple[range, ...]:
    """The numbers of the cases of each regime and dtype: first of all regimes, then of those that are open."""
    first = min(profile.comparison, profile.survey // (2 * len(REGIMES)))
    return range(first), range(first, 4 * first), range(4 * first, 16 * first)


def comparison(
    implementation: Implementation, profile: Profile, seed: int, regimes: Iterable[str], numbers: range
) -> Iterator[Case]:
    """Plain cases of these regimes, with these numbers."""
    for regime in regimes:
        for dtype in profile.dtypes:
            for n in numbers:
                case = plain_case(Draws(seed, "comparison", regime, dtype, n), dtype, regime)
                yield simplified(case, implementation)


def standings(rows: Iterable[Row]) -> list[Standing]:
    """Per regime and tensor, how the error compares with standard attention's, all dtypes together."""
    groups: dict[tuple[str, TensorName], list[Row]] = defaultdict(list)
    for r in rows:
        if r.phase == PHASE and r.tensor in _TENSORS and r.log_ratio is not None:
            groups[str(r.regime), r.tensor].append(r)
    found = []
    for regime in REGIMES:
        for tensor in _TENSORS:
            group = groups.get((regime, tensor), [])
            ratios = mean_interval([r.log_ratio for r in group if r.log_ratio is not None], CONFIDENCE)
            if ratios.n < 2:
                continue
            found.append(
                Standing(
                    regime=regime, tensor=tensor, n=ratios.n, ratio=_exp(ratios.mean), low=_exp(ratios.low),
                    high=_exp(ratios.high), status=_status(ratios), needs=_needs(ratios), predicted=_predicted(group),
                )
            )  # fmt: skip
    return found


def still_open(rows: Sequence[Row]) -> list[str]:
    """The regimes with a tensor that more cases could decide."""
    return list(dict.fromkeys(s.regime for s in standings(rows) if s.status == "open"))


def _status(ratios: Mean) -> Literal["worse", "not worse", "open"]:
    threshold = math.log(WORSE)
    return "worse" if ratios.low > threshold else "not worse" if ratios.high < threshold else "open"


def _needs(ratios: Mean) -> int | None:
    """How many cases it takes until the interval leaves the threshold out, by their spread: (t s / distance)^2."""
    deviation = (ratios.high - ratios.mean) / student_quantile(0.5 + CONFIDENCE / 2, ratios.n - 1) * math.sqrt(ratios.n)
    distance = abs(ratios.mean - math.log(WORSE))
    if distance == 0:
        return None
    n = 2
    while n < 10**6 and n < (student_quantile(0.5 + CONFIDENCE / 2, n - 1) * deviation / distance) ** 2:
        n += max(1, n // 8)
    return n


def _predicted(group: Sequence[Row]) -> bool:
    """Whether roundings of an arrangement that the kernel may have explain its error."""
    logs = [math.log(r.envelope_ratio) for r in group if r.envelope_ratio and math.isfinite(r.envelope_ratio)]
    return bool(logs) and mean_interval(logs, CONFIDENCE).low <= math.log(_PREDICTED)


def _exp(x: float) -> float:
    return math.exp(min(700.0, max(-700.0, x)))
