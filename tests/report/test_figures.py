"""The numbers behind the figures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from flashproof.reports import figures, points

from .synthetic import REGIMES, TENSORS, make_rows, make_run


def test_the_hunt_is_in_no_distribution() -> None:
    rows = [replace(row, bound_ratio=0.1) for row in make_rows(26)]
    rows = [replace(row, bound_ratio=5.0) if row.phase == "hunt" else row for row in rows]
    groups = figures.group([replace(make_run(1), rows=tuple(rows))])
    for found in figures.distributions(groups, figures.bound_ratio):
        assert found.quantiles == (0.1,) * 7
        assert found.n == 12
        assert found.worst == 5.0


def test_a_curve_counts_what_is_zero_or_not_finite() -> None:
    values = [0.0, 0.0, 1.0, 2.0, math.nan]
    rows = [replace(make_rows(1)[0], case_id=str(i), kernel_rms=x, natural_scale=1.0) for i, x in enumerate(values)]
    groups = figures.group([replace(make_run(1), rows=tuple(rows))])
    found = figures.distributions(groups, figures.error_in_scale)[0]
    assert (found.n, found.zeros, found.nonfinite) == (5, 2, 1)
    assert found.curve == ((0.0, 0.2), (0.0, 0.4), (1.0, 0.6), (2.0, 0.8))


def test_two_runs_of_the_same_cases_share_their_standard() -> None:
    groups = figures.group([make_run(10), make_run(10)])
    by_series = [len(groups.survey[index, ("out", "fp16")]) for index in range(4)]
    assert by_series == [5, 5, 5, 5]


def test_ulp_shares_are_of_all_elements() -> None:
    found = figures.ulps(figures.group([make_run(10)]))
    assert all(math.isclose(sum(u.shares), 1) for u in found)
    kernel = next(u for u in found if u.series == 0)
    assert kernel.elements == 5 * 8192
    assert kernel.same_bits == pytest.approx(0.3)


def test_quantiles() -> None:
    assert [figures.quantile([1.0, 2.0, 4.0], p) for p in (0, 0.25, 0.5, 0.75, 1)] == [1, 1.5, 2, 3, 4]
    assert figures.quantile([3.0], 0.95) == 3.0


def test_points_keep_failures_and_the_worst() -> None:
    rows = make_rows(2000)
    rows[777] = replace(rows[777], bound_ratio=3.0)
    rows[4242] = replace(rows[4242], kernel_rms=1e6)
    choice = points.choose([replace(make_run(1), rows=tuple(rows))], 500, 10**9)
    assert len(choice.points) == 500
    assert choice.points[0].row == rows[777]
    assert rows[4242] in [point.row for point in choice.points]
    regimes = {(p.row.regime, p.row.tensor, p.row.dtype) for p in choice.points}
    assert len(regimes) == len(REGIMES) * len(TENSORS) * 2


def test_failures_leave_room_for_the_others() -> None:
    rows = [replace(row, bound_ratio=9.0) if i % 2 else row for i, row in enumerate(make_rows(2000))]
    choice = points.choose([replace(make_run(1), rows=tuple(rows))], 500, 10**9)
    failing = sum(point.failing for point in choice.points)
    assert choice.failing == 5000
    assert 300 <= failing < 450
