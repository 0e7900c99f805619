"""On which kinds of input is a kernel less accurate than standard attention?

The survey's cells gate, and answer for inputs whose entries are independent.  Here every regime is asked, those too
that are built to break kernels, and nothing fails: where the roundings that flash cannot do without make it so, being
worse is no fault, but a verdict must say so.  Cases are plain, so that little but the regime makes them differ, and
asked in stages: a few of every regime, and ever more of those that these leave open.  An interval holds for all the
times that it is looked at (Bonferroni), and a regime is worse only if it still is among all the questions (Holm 1979).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from ..reports.record import IN_DTYPE, Row, Standing
from ..reports.record import Tensor as TensorName
from .case import Case
from .draws import Draws
from .implementation import Implementation
from .judge import known, logs
from .plain import plain_case
from .profiles import Profile
from .regimes import REGIMES
from .statistics import Mean, bounded_exp, holm, mean_interval, p_above, student_quantile
from .survey import simplified

PHASE = "comparison"
#: half as much error again: less depends on the sizes of a problem, and on which cases were drawn
WORSE = 1.5
CONFIDENCE = 0.99
_LOOKS = 3  # see `stages`
_LEVEL = 1 - (1 - CONFIDENCE) / _LOOKS
_PREDICTED = 1.3  # times what roundings predict: beyond it, they do not explain an error
#: what makes flash attention worse where it is: delta's error is common to a row of dS, and multiplies what keys share;
#: tests/test_comparison.py takes the cause away, and the effect goes
WHY: dict[TensorName, str] = {"dq": "as is usual where delta is formed from the rounded output"}


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
        if r.phase == PHASE and r.tensor in IN_DTYPE and r.log_ratio is not None:
            groups[str(r.regime), r.tensor].append(r)
    asked = [
        (regime, tensor, group)
        for regime in REGIMES for tensor in IN_DTYPE if len(group := groups.get((regime, tensor), [])) > 1
    ]  # fmt: skip
    # among so many questions, some would look worse by chance
    doubts = holm([p_above(known(r.log_ratio for r in group), math.log(WORSE)) for _, _, group in asked])
    return [
        _standing(regime, tensor, group, sure=doubt <= (1 - CONFIDENCE) / 2)
        for (regime, tensor, group), doubt in zip(asked, doubts, strict=True)
    ]


def _standing(regime: str, tensor: TensorName, group: Sequence[Row], *, sure: bool) -> Standing:
    ratios = mean_interval(known(r.log_ratio for r in group), _LEVEL)
    return Standing(
        regime=regime, tensor=tensor, n=ratios.n, ratio=bounded_exp(ratios.mean), low=bounded_exp(ratios.low),
        high=bounded_exp(ratios.high), needs=_needs(ratios), predicted=_predicted(group),
        status="worse" if sure else "not worse" if ratios.high < math.log(WORSE) else "open",
    )  # fmt: skip


def still_open(rows: Sequence[Row]) -> list[str]:
    """The regimes with a tensor that more cases could decide."""
    return list(dict.fromkeys(s.regime for s in standings(rows) if s.status == "open"))


def _needs(ratios: Mean) -> int | None:
    """How many cases it takes until the interval leaves the threshold out, by their spread: (t s / distance)^2."""
    deviation = (ratios.high - ratios.mean) / student_quantile(0.5 + _LEVEL / 2, ratios.n - 1) * math.sqrt(ratios.n)
    distance = abs(ratios.mean - math.log(WORSE))
    if distance == 0:
        return None
    n = 2
    while n < 10**6 and n < (student_quantile(0.5 + _LEVEL / 2, n - 1) * deviation / distance) ** 2:
        n += max(1, n // 8)
    return n


def _predicted(group: Sequence[Row]) -> bool:
    """Whether roundings of an arrangement that the kernel may have explain its error."""
    found = mean_interval(logs(r.envelope_ratio for r in group), _LEVEL)
    return found.n > 1 and found.high <= math.log(_PREDICTED)
