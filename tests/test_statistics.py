"""Intervals, bands and tails hold at the level that they promise."""

from __future__ import annotations

import math

import pytest
import torch
from flashproof.reports.intervals import band, share_interval
from flashproof.verify.statistics import dominates, mean_interval, rule_of_three, student_quantile


def test_student_quantiles_against_tables():
    for p, freedom, want in ((0.975, 1, 12.7062), (0.975, 10, 2.22814), (0.9995, 30, 3.64596), (0.95, 120, 1.65765)):
        assert student_quantile(p, freedom) == pytest.approx(want, abs=1e-4)


def test_interval_covers_at_its_level():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        m = mean_interval(torch.randn(8, generator=generator).tolist(), 0.9)
        covered += m.low <= 0 <= m.high
    assert 0.84 < covered / 400 < 0.95


def test_share_interval_has_the_tails_that_it_promises():
    for k, n in ((3, 20), (17, 20), (40, 1000)):
        low, high = share_interval(k, n)
        at_least = sum(math.comb(n, i) * low**i * (1 - low) ** (n - i) for i in range(k, n + 1))
        at_most = sum(math.comb(n, i) * high**i * (1 - high) ** (n - i) for i in range(k + 1))
        assert at_least == pytest.approx(0.025, rel=1e-6)
        assert at_most == pytest.approx(0.025, rel=1e-6)
    assert share_interval(0, 100)[0] == 0.0
    assert share_interval(0, 100)[1] == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-9)
    assert share_interval(100, 100)[1] == 1.0


@pytest.mark.parametrize(("k", "n"), [(9_000, 20_000), (19_900, 20_000), (1, 20_000), (700_000, 1_000_000)])
def test_share_interval_of_many_cases(k, n):
    """As Wilson's (1927), to which it tends."""
    z, p = 1.959964, k / n
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert share_interval(k, n) == pytest.approx((low, high), rel=0.02 if min(k, n - k) > 50 else None, abs=3 / n)


def test_the_band_holds_a_whole_distribution_function():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        x = torch.rand(50, generator=generator).sort().values
        above, below = (torch.arange(first, 50 + first) / 50 for first in (1, 0))
        held += max(float((above - x).max()), float((x - below).max())) <= band(50, 0.9)
    assert 0.9 <= held / 400 < 0.97


def test_dominates():
    few, many = [0.1 * i for i in range(5)], [0.001 * i for i in range(1000)]
    assert dominates(many, [x + 0.2 for x in many]) is True
    assert dominates([x + 0.2 for x in many], many) is False
    assert dominates(many, many) is None
    assert dominates(few, [x + 0.2 for x in few]) is None, "so few cannot tell"
    assert dominates([0.5 + 0.2 * (x - 0.5) for x in many], many) is False, "smaller at one end, larger at the other"
    assert dominates([], many) is None


def test_rule_of_three():
    assert rule_of_three(3000) == pytest.approx(1e-3, rel=0.01)
    assert rule_of_three(0) == 1.0
