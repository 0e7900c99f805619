"""Budgets that follow an improvement: what a kernel has been shown to reach, it must not lose again.

The one budget that comes from a measurement, and only by request: the default ones are derived (budgets.toml).
"""

from __future__ import annotations

import glob
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..reports.drift import DriftCell
from ..reports.record import IN_DTYPE, Cell
from ..reports.words import number
from .budgets import Budgets
from .drift import TOGETHER
from .judge import real_regime

_STEPS = 1000  # margins are multiples of 1 / _STEPS, rounded up


@dataclass(frozen=True, slots=True)
class Tightened:
    """The new `ratio_margin` of a cell, below the one that holds."""

    tensor: str
    dtype: str
    regime: str
    before: float
    after: float
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor} {self.dtype} {self.regime}: ratio_margin {self.before:g} -> {self.after:g}"


def tightened(
    improved: Iterable[DriftCell], cells: Iterable[Cell], budgets: Budgets, implementation: str
) -> list[Tightened]:
    """For cells of two runs that are surely better, margins that the cells of the better run leave possible.

    That is the upper end of the ratio's interval, of all cases and of the plain ones: the gate fails when a lower end
    is above it.  Never more than what `budgets` allow now.
    """
    reached: dict[tuple[str, str, str], float] = defaultdict(float)
    for c in cells:
        key = (c.tensor, c.dtype, real_regime(c.regime))
        reached[key] = max(reached[key], math.inf if c.high is None else c.high)
    found = []
    for d in improved:
        if d.status != "better" or d.regime == TOGETHER or d.tensor not in IN_DTYPE:
            continue  # a ratio of the LSE is not gated, and none is of all regimes
        before = budgets.allowance("ratio_margin", budgets.ratio.margin, implementation, d.dtype, d.tensor, d.regime)
        high = reached.get((d.tensor, d.dtype, d.regime), math.inf)  # not of a regime that has no ratio
        if high < before and (after := math.ceil(_STEPS * high) / _STEPS) < before:
            reason = f"ratchet: {d.told}; {number(high)} times standard attention's is the upper end of its interval"
            found.append(Tightened(d.tensor, d.dtype, d.regime, before, after, reason))
    return found


def exceptions(cells: Sequence[Tightened], implementation: str) -> str:
    """TOML to append to a file of budgets: of exceptions, the last that matches counts."""
    return "".join(
        f"\n[[exception]]\nimplementation = {_text(glob.escape(implementation))}\ntensors = [{_text(c.tensor)}]\n"
        f"dtypes = [{_text(c.dtype)}]\nregimes = [{_text(c.regime)}]\nratio_margin = {c.after}\n"
        f"reason = {_text(c.reason)}\n"
        for c in cells
    )


def _text(value: str) -> str:
    """A basic string of TOML, which those of JSON are."""
    return json.dumps(value, ensure_ascii=False)
