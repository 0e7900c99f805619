"""The distribution of the paired ratio: in how many cases is the kernel closer to the truth than standard attention?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .figures import curve
from .intervals import band, share_interval
from .record import IN_DTYPE, Run
from .rows import Row
from .words import measured


@dataclass(frozen=True, slots=True)
class Paired:
    """ln(RMSE kernel / RMSE standard) of one tensor in one run, over the survey's n cases of all dtypes.

    `curve` is its empirical distribution function at finite values, as (value, share <=); `band` is the half width of
    the 95 % band around it.  `closer` and `further` count the cases below and above 0, `interval` is of the share of
    those below.
    """

    run: int
    tensor: str
    n: int
    closer: int
    further: int
    interval: tuple[float, float]
    band: float
    curve: tuple[tuple[float, float], ...]


def paired(runs: Sequence[Run]) -> list[Paired]:
    """By tensor, then by run."""
    found = []
    for tensor in IN_DTYPE:
        for index, run in enumerate(runs):
            own = [r for r in run.rows if r.phase == "survey" and r.tensor == tensor and measured(r)]
            logs = [x for r in own if (x := _log(r)) is not None]
            if logs:
                found.append(_paired(index, tensor, logs))
    return found


def _paired(run: int, tensor: str, logs: Sequence[float]) -> Paired:
    n, closer = len(logs), sum(x < 0 for x in logs)
    below = sum(x == -math.inf for x in logs)
    finite = sorted(x for x in logs if math.isfinite(x))
    points = tuple(sorted({*curve(finite, n, below), *_at_zero(logs)}))
    return Paired(
        run=run, tensor=tensor, n=n, closer=closer, further=sum(x > 0 for x in logs),
        interval=share_interval(closer, n), band=band(n), curve=points,
    )  # fmt: skip


def _at_zero(logs: Sequence[float]) -> list[tuple[float, float]]:
    """The curve's points before and at 0, which a thinned curve may lack."""
    ends = (max((x for x in logs if x < 0), default=-math.inf), 0.0 if 0.0 in logs else -math.inf)
    return [(end, sum(x <= end for x in logs) / len(logs)) for end in ends if math.isfinite(end)]


def _log(row: Row) -> float | None:
    """The record's floored log ratio; what is not finite is infinitely far, and as far as what is not finite either."""
    if not row.elements:
        return None
    if row.log_ratio is not None:
        return None if math.isnan(row.log_ratio) else row.log_ratio
    if not row.natural_scale:
        return None
    kernel, standard = bool(row.nonfinite), row.standard_rms is None
    return {(True, True): 0.0, (True, False): math.inf, (False, True): -math.inf}.get((kernel, standard))
