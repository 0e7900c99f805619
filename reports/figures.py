"""The numbers behind each figure: quantiles and sums, taken from the rows of one run or several.

Only the survey enters: the hunt's cases were searched for, so their distribution means nothing.  Where the
hunt is shown it is shown as what it is, the worst case that it found.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .record import TENSORS, Run
from .rows import Row
from .words import DTYPES, in_scale, labels, measured, order

#: colours that an implementation may have; `page.js` and `style.css` give each a dash pattern and a symbol
KEYS = tuple(f"k{i}" for i in range(7))
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
ULP_BINS = ("exact", "≤ ½", "≤ 1", "≤ 2", "> 2 ulp")
_CURVE = 81  # points of a drawn distribution curve: enough to look like a staircase, and 15 panels stay small

Panel = tuple[str, str]  # tensor, dtype


@dataclass(frozen=True, slots=True)
class Series:
    """One thing whose error is shown: an implementation, standard attention, or the rounded truth."""

    label: str
    kind: Literal["kernel", "standard", "rounded"]
    key: str  # its colour in the style sheet


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values of one series in one panel, one value per case.

    `n` counts the cases, `zeros` those at exactly 0, `nonfinite` those with NaN or infinity; `quantiles` are
    of the finite ones at QUANTILES; `curve` is their empirical distribution function, as (value, share <=).
    `worst` is the largest magnitude that the hunt found, if it measured any.
    """

    panel: Panel
    series: int
    n: int
    zeros: int
    nonfinite: int
    quantiles: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]
    worst: float | None


@dataclass(frozen=True, slots=True)
class Ulps:
    """Elements of one series in one panel by error in ulp (bins of ULP_BINS), summed over the survey."""

    panel: Panel
    series: int
    elements: int
    shares: tuple[float, ...]
    same_bits: float | None  # share of the elements with the same bits as standard


def series_of(runs: Sequence[Run]) -> tuple[Series, ...]:
    """The implementations in the order given, then standard, then the rounded truth."""
    kernels = tuple(Series(label, "kernel", KEYS[i % len(KEYS)]) for i, label in enumerate(labels(runs)))
    return (*kernels, Series("standard", "standard", "std"), Series("rounded truth", "rounded", "rnd"))


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """Every tensor and dtype that was measured, tensors first."""
    found = {(row.tensor, row.dtype) for run in runs for row in run.rows if measured(row)}
    tensors = order([tensor for tensor, _ in found if tensor], TENSORS)
    dtypes = order([dtype for _, dtype in found if dtype], DTYPES)
    return [(tensor, dtype) for tensor in tensors for dtype in dtypes if (tensor, dtype) in found]


@dataclass(frozen=True, slots=True)
class Groups:
    """The measured rows by series and panel: kernels by run; standard and rounded truth once per case."""

    survey: dict[tuple[int, Panel], list[Row]]
    hunt: dict[tuple[int, Panel], list[Row]]
    series: tuple[Series, ...]
    panels: list[Panel]


def group(runs: Sequence[Run]) -> Groups:
    """Sort the rows of all runs.  Two runs of the same cases share their standard: it is counted once."""
    series = series_of(runs)
    survey: dict[tuple[int, Panel], list[Row]] = defaultdict(list)
    hunt: dict[tuple[int, Panel], list[Row]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for index, run in enumerate(runs):
        for row in run.rows:
            if not measured(row):
                continue
            panel = (str(row.tensor), str(row.dtype))
            side = {"hunt": hunt, "survey": survey}.get(row.phase)
            if side is None:
                continue
            side[index, panel].append(row)
            if (row.case_id, panel[0]) not in seen:
                seen.add((row.case_id, panel[0]))
                side[len(runs), panel].append(row)
                side[len(runs) + 1, panel].append(row)
    return Groups(survey, hunt, series, panels_of(runs))


# -------------------------------------------------------------------------------------------- distributions

Measure = Callable[[Row, Series], float | None]


def error_in_scale(row: Row, series: Series) -> float | None:
    """RMS error in units of the natural scale."""
    return in_scale(getattr(row, f"{series.kind}_rms"), row)


def bias(row: Row, series: Series) -> float | None:
    """Mean signed error in ulp."""
    value: float | None = getattr(row, f"{series.kind}_bias")
    return value


def bound_ratio(row: Row, series: Series) -> float | None:
    """Largest error / a priori bound, of a kernel."""
    return row.bound_ratio if series.kind == "kernel" else None


def predictor_ratio(row: Row, series: Series) -> float | None:
    """RMS error / predicted RMS, of a kernel."""
    return row.predictor_ratio if series.kind == "kernel" else None


def distributions(groups: Groups, measure: Measure) -> list[Distribution]:
    """One distribution per panel and series for which `measure` gave a value."""
    found = []
    for panel in groups.panels:
        for index, series in enumerate(groups.series):
            values = _measured(groups.survey.get((index, panel), []), measure, series)
            hunted = _measured(groups.hunt.get((index, panel), []), measure, series)
            if values or hunted:
                found.append(_distribution(panel, index, values, hunted))
    return found


def _measured(rows: Sequence[Row], measure: Measure, series: Series) -> list[float]:
    return [value for row in rows if (value := measure(row, series)) is not None]


def _distribution(panel: Panel, series: int, values: list[float], hunted: list[float]) -> Distribution:
    finite = sorted(value for value in values if math.isfinite(value))
    hunted = [value for value in hunted if not math.isnan(value)]
    return Distribution(
        panel=panel,
        series=series,
        n=len(values),
        zeros=sum(value == 0 for value in finite),
        nonfinite=len(values) - len(finite),
        quantiles=tuple(quantile(finite, p) for p in QUANTILES) if finite else (),
        curve=curve(finite, len(values)),
        worst=max(hunted, key=abs, default=None),
    )


def quantile(ordered: Sequence[float], p: float) -> float:
    """The p-quantile of ordered values, by linear interpolation between order statistics."""
    position = p * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def curve(ordered: Sequence[float], n: int, below: int = 0) -> tuple[tuple[float, float], ...]:
    """At most _CURVE points (value, share of all n cases that are <= value), both ends among them.

    `below` further cases are smaller than all of these.
    """
    last = len(ordered) - 1
    ranks = sorted({round(step * last / (_CURVE - 1)) for step in range(_CURVE)}) if ordered else []
    return tuple((ordered[rank], (below + rank + 1) / n) for rank in ranks)


# --------------------------------------------------------------------------------------------- ulp histogram


def ulps(groups: Groups) -> list[Ulps]:
    """Shares of elements per ulp bin, per panel and series."""
    found = []
    for panel in groups.panels:
        for index, series in enumerate(groups.series):
            sums = [0] * len(ULP_BINS)
            same = total = 0.0
            for row in groups.survey.get((index, panel), []):
                counts: tuple[int, ...] | None = getattr(row, f"{series.kind}_ulp")
                if counts is not None and len(counts) == len(sums):
                    sums = [a + b for a, b in zip(sums, counts, strict=True)]
                if series.kind == "kernel" and row.bitwise_standard is not None and row.elements:
                    same += row.bitwise_standard * row.elements
                    total += row.elements
            if elements := sum(sums):
                shares = tuple(x / elements for x in sums)
                found.append(Ulps(panel, index, elements, shares, same / total if total else None))
    return found
