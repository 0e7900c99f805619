"""Where in a tensor the errors of the survey sit: along its rows, and within a tile of them.

Only against standard attention, which has no tiles and got the same inputs, does a place mean anything: a mask alone
makes some rows harder than others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .figures import Groups, Panel, quantile
from .rows import EIGHTHS, Row

#: a tile of rows is a multiple of this in nearly every kernel; smaller ones show with their own period
TILE = 32
_TILES = 2  # a tensor of fewer has no row after its first tile
_QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Profile:
    """RMS error of each eighth of the rows / of the whole tensor: quartiles over n cases."""

    panel: Panel
    series: int
    n: int
    quartiles: tuple[tuple[float, ...], ...]  # [EIGHTHS], of each the QUARTILES


@dataclass(frozen=True, slots=True)
class Shares:
    """Share of n cases whose largest error is in each of EIGHTHS places, and the share of the rows that are there."""

    panel: Panel
    series: int
    n: int
    shares: tuple[float, ...]
    rows: tuple[float, ...]


def profiles(groups: Groups) -> list[Profile]:
    """One per panel and series of which the record says where its errors are."""
    found = []
    for panel, series, rows in _groups(groups):
        recorded = (getattr(r, f"{groups.series[series].kind}_eighths") for r in rows)
        own = [x for x in recorded if x is not None and len(x) == EIGHTHS and all(map(math.isfinite, x))]
        if own:
            places = [sorted(values) for values in zip(*own, strict=True)]
            quartiles = tuple(tuple(quantile(values, p) for p in _QUARTILES) for values in places)
            found.append(Profile(panel, series, len(own), quartiles))
    return found


def worst_rows(groups: Groups) -> list[Shares]:
    """In which eighth of the rows the largest error is."""
    return _shares(groups, lambda row, rows: EIGHTHS * row // rows, EIGHTHS)


def worst_in_tiles(groups: Groups) -> list[Shares]:
    """In which eighth of a tile the largest error is, in tensors of several tiles.

    The first tile is left out: a causal mask makes its first row the hardest, whoever computes it.
    """
    return _shares(groups, lambda row, _: None if row < TILE else row % TILE * EIGHTHS // TILE, _TILES * TILE)


Place = Callable[[int, int], int | None]  # of a row among so many rows; None: left out


def _shares(groups: Groups, place: Place, least: int) -> list[Shares]:
    found = []
    for panel, series, members in _groups(groups):
        worst = ((getattr(r, f"{groups.series[series].kind}_worst_row"), _rows(r)) for r in members)
        own = [
            (at, rows) for row, rows in worst
            if row is not None and rows >= least and (at := place(row, rows)) is not None
        ]  # fmt: skip
        if own:
            there = Counter(at for at, _ in own)
            lengths = Counter(rows for _, rows in own)
            held = [_held(place, rows, weight / len(own)) for rows, weight in lengths.items()]
            shares = tuple(there[p] / len(own) for p in range(EIGHTHS))
            found.append(Shares(panel, series, len(own), shares, tuple(map(sum, zip(*held, strict=True)))))
    return found


def _groups(groups: Groups) -> Iterable[tuple[Panel, int, list[Row]]]:
    """Kernels and standard attention; the rounded truth's errors have no place of their own."""
    for panel in groups.panels:
        for index, series in enumerate(groups.series):
            if series.kind != "rounded":
                yield panel, index, groups.survey.get((index, panel), [])


def _rows(row: Row) -> int:
    return (row.N if row.tensor in ("dk", "dv") else row.M) or 0


def _held(place: Place, rows: int, weight: float) -> list[float]:
    """The share of the rows in each place, of those that have one, times a weight."""
    places = Counter(at for row in range(rows) if (at := place(row, rows)) is not None)
    return [weight * places[p] / places.total() for p in range(EIGHTHS)]
