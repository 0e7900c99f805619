"""Theory on trial: how near right kernels come to their bounds, and how well predictions meet what is measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..reports.kills import Fit
from ..reports.record import TENSORS, Row
from .regimes import REGIMES

#: where predictions are held to be within a fifth: normal inputs, without a mask or with a causal one
_PLAIN_MASKS = ("none", "causal-tl", "causal-br")


@dataclass(slots=True)
class _Ratios:
    """Of one tensor in one dtype, a value per case."""

    bound: list[float] = field(default_factory=list)
    slack: list[float] = field(default_factory=list)
    normal: list[float] = field(default_factory=list)
    independent: list[float] = field(default_factory=list)


class Fits:
    """Takes rows as they are made, and keeps four numbers of each."""

    def __init__(self) -> None:
        self._ratios: dict[tuple[str, str], _Ratios] = defaultdict(_Ratios)

    def add(self, rows: Iterable[Row]) -> None:
        """Rows of a survey."""
        for r in rows:
            if r.tensor is None or r.bound_ratio is None or not r.elements:
                continue
            ratios = self._ratios[r.tensor, str(r.dtype)]
            ratios.bound.append(r.bound_ratio)
            if r.slack is not None:
                ratios.slack.append(r.slack)
            if r.predictor_ratio and math.isfinite(r.predictor_ratio) and REGIMES[str(r.regime)].independent:
                ratios.independent.append(r.predictor_ratio)
                if r.regime == "normal" and r.mask in _PLAIN_MASKS:
                    ratios.normal.append(r.predictor_ratio)

    def result(self) -> tuple[Fit, ...]:
        """Tensors first, then dtypes."""
        return tuple(
            _fit(tensor, dtype, self._ratios[tensor, dtype])
            for tensor in TENSORS for dtype in sorted(d for t, d in self._ratios if t == tensor)
        )  # fmt: skip


def _fit(tensor: str, dtype: str, x: _Ratios) -> Fit:
    low, high = (float(q) for q in np.quantile(x.normal, (0.025, 0.975))) if x.normal else (None, None)
    return Fit(
        tensor=tensor, dtype=dtype, cases=len(x.bound), beyond=sum(not b <= 1 for b in x.bound), nearest=max(x.bound),
        slack=float(np.median(x.slack)) if x.slack else None, predicted=len(x.normal),
        ratio=float(np.exp(np.mean(np.log(x.normal)))) if x.normal else None, low=low, high=high,
        largest=max(x.independent, default=None),
    )  # fmt: skip
