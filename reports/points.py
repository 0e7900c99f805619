"""Which single cases are drawn: a run may have more than a page can hold.

In this order, until the budget is spent: tensors that violate a certificate, worst first; then the largest
errors; then a sample stratified by run, tensor, dtype and regime.  The choice depends on the record alone.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .record import Run
from .rows import Row
from .words import in_scale, measured, shape, violates

_WORST = 200
_FAILING = 0.6  # largest part of the budget that failures may take: the rest shows what they stand out from


@dataclass(frozen=True, slots=True)
class Point:
    """One tensor of one case, and the run it belongs to."""

    run: int
    row: Row
    failing: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """The points that are drawn, of how many there were, and how many of those fail."""

    points: tuple[Point, ...]
    total: int
    failing: int


def choose(runs: Sequence[Run], limit: int, budget: int) -> Choice:
    """At most `limit` points whose data takes at most about `budget` characters of the page."""
    rows = [Point(i, row, violates(row)) for i, run in enumerate(runs) for row in run.rows if _drawable(row)]
    failing = sorted((p for p in rows if p.failing), key=_badness, reverse=True)
    chosen: dict[int, Point] = {}
    cases: set[tuple[int, str]] = set()
    spent = 0

    def take(points: Sequence[Point], most: int, cost_limit: float) -> None:
        nonlocal spent
        for point in points:
            if len(chosen) >= most:
                return
            case = (point.run, point.row.case_id)
            cost = 45 + (0 if case in cases else 60 + len(shape(point.row)) + len(point.row.case_json or ""))
            if id(point) in chosen or spent + cost > cost_limit:
                continue
            chosen[id(point)] = point
            cases.add(case)
            spent += cost

    take(failing, int(_FAILING * limit), _FAILING * budget)
    worst = sorted(rows, key=_error, reverse=True)[:_WORST]
    take(worst, limit, budget)
    take(list(_round_robin(rows)), limit, budget)
    return Choice(tuple(chosen.values()), len(rows), len(failing))


def _drawable(row: Row) -> bool:
    scaled = in_scale(row.kernel_rms, row)
    return measured(row) and scaled is not None and row.max_logit is not None


def _error(point: Point) -> float:
    value = in_scale(point.row.kernel_rms, point.row)
    return math.inf if value is None or math.isnan(value) else value


def _badness(point: Point) -> float:
    ratio = point.row.bound_ratio
    return math.inf if ratio is None or math.isnan(ratio) else ratio


def _round_robin(points: Sequence[Point]) -> Iterator[Point]:
    """One point of each stratum in turn; cases in an order that is random, but always the same."""
    strata: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in points:
        strata[point.run, point.row.tensor, point.row.dtype, point.row.regime].append(point)
    queues = [sorted(stratum, key=_shuffled) for _, stratum in sorted(strata.items(), key=lambda x: str(x[0]))]
    for rank in range(max((len(queue) for queue in queues), default=0)):
        for queue in queues:
            if rank < len(queue):
                yield queue[rank]


def _shuffled(point: Point) -> bytes:
    return hashlib.blake2b(point.row.case_id.encode(errors="replace"), digest_size=8).digest()
