"""The data of the figures as page.js takes them: lists without names, numbers with as many digits as can be seen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from markupsafe import Markup

from . import algebra, figures, overview, words
from .paired import Paired
from .points import Choice
from .positions import Profile, Shares
from .record import Cell, Run


def as_json(value: object) -> Markup:
    """JSON for a script element: no `<`, so no end tag and no comment; ASCII, so no line separators."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def short(value: float | None) -> float | str | None:
    """Four significant digits; NaN and infinity as text, because JSON has neither."""
    if value is None:
        return None
    return float(f"{value:.4g}") if math.isfinite(value) else words.number(value)


def compact(
    found: Sequence[figures.Distribution],
    panels: Sequence[figures.Panel],
    *,
    curves: bool,
) -> list[list[object]]:
    """[panel, series, n, zeros, nonfinite, quantiles, hunt's worst, values, shares]"""
    return [
        [
            panels.index(d.panel),
            d.series,
            d.n,
            d.zeros,
            d.nonfinite,
            [short(q) for q in d.quantiles],
            short(d.worst),
            *(([short(x) for x, _ in d.curve], [short(y) for _, y in d.curve]) if curves else ()),
        ]
        for d in found
    ]


def site(bar: algebra.Bar) -> list[object]:
    """[name, run, total, parts, whether the accumulators' is too large]"""
    name = f"{bar.tensor} {words.clip(bar.dtype, 8)}"
    parts = [[kind, short(part), sites] for kind, part, sites in bar.parts]
    return [name, bar.run, short(bar.total), parts, int(bar.failed)]


#: what errors may be drawn against
AXES = ("largest |logit|", "number of keys", "number of queries", "head dimension")


def scatter(runs: Sequence[Run], choice: Choice, panels: Sequence[figures.Panel]) -> dict[str, object]:
    """Cases once, and points that refer to them: [case, panel, error kernel, error standard, fails]."""
    numbers: dict[tuple[int, str], int] = {}
    cases: list[list[object]] = []
    points: list[list[object]] = []
    for point in choice.points:
        row = point.row
        key = (point.run, row.case_id)
        if key not in numbers:
            numbers[key] = len(cases)
            axes = (row.max_logit, row.N, row.M, row.D)  # as `AXES` has them
            cases.append(
                [point.run, words.clip(words.shape(row), 200), row.case_json, row.regime or "", *map(short, axes)]
            )
        panel = panels.index((str(row.tensor), str(row.dtype)))
        errors = (words.in_scale(error, row) for error in (row.kernel_rms, row.standard_rms))
        points.append([numbers[key], panel, *map(short, errors), int(point.failing)])
    return {
        "cases": cases,
        "points": points,
        "implementations": [run.manifest.implementation for run in runs],
    }


def worst_cells(runs: Sequence[Run], limit: int = 24) -> list[dict[str, object]]:
    """The cells that are failed, or closest to it, of all runs."""
    cells = [(index, cell) for index, run in enumerate(runs) for cell in run.verdict.cells if cell.ratio is not None]
    cells.sort(key=lambda item: overview.closeness(item[1]), reverse=True)
    return [
        {
            "series": index,
            "label": words.clip(" · ".join([f"{cell.tensor} {cell.dtype}", cell.regime, *_mask(cell)]), 60),
            **{name: short(getattr(cell, name)) for name in ("ratio", "low", "high", "allowed")},
            "status": cell.status,
            "n": cell.n,
        }
        for index, cell in cells[:limit]
    ]


def _mask(cell: Cell) -> list[str]:
    return [] if cell.mask == "all" else [cell.mask]


def profile(p: Profile, panels: Sequence[figures.Panel]) -> list[object]:
    """[panel, series, n, quartiles of each eighth]"""
    return [panels.index(p.panel), p.series, p.n, [list(map(short, place)) for place in p.quartiles]]


def shares(s: Shares, panels: Sequence[figures.Panel]) -> list[object]:
    """[panel, series, n, share of the cases in each place, share of the rows there]"""
    return [panels.index(s.panel), s.series, s.n, list(map(short, s.shares)), list(map(short, s.rows))]


def pairs(p: Paired) -> list[object]:
    """[run, tensor, n, cases below 0, cases above, half width of the band, values, shares]"""
    values, shares_of = ([short(point[axis]) for point in p.curve] for axis in (0, 1))
    return [p.run, p.tensor, p.n, p.closer, p.further, short(p.band), values, shares_of]
