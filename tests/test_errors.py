"""What is measured of one tensor: a planted error shows, and nothing else does."""

from __future__ import annotations

import math

import pytest
import torch
from flashproof.verify.errors import bound_ratio, floored_log_ratio, measure, rounded, same_bits, ulp


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ulp_is_the_distance_between_neighbours(dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([1.0, 1.5, 2.0, 3.0, 0.1, info.max, info.tiny, info.tiny / 4, 0.0]).to(dtype)
    up = torch.nextafter(x.float(), torch.tensor(torch.inf)) if dtype == torch.float32 else None
    got = ulp(x.double(), dtype)
    assert got[0] == 2 * info.eps / 2 and got[2] == 2 * info.eps
    assert got[-1] == got[-2] == got[-3] == info.tiny * info.eps
    if up is not None:
        assert torch.equal(got[:5], up.double()[:5] - x.double()[:5])


def test_measure_sees_one_bad_element():
    exact = torch.linspace(1, 2, 4000, dtype=torch.float64).reshape(1, 1, 100, 40)
    value = rounded(exact, torch.float16)
    assert measure(value, exact, torch.float16).max <= 2.0**-11
    value[0, 0, 7, 3] += 0.5
    bad = measure(value, exact, torch.float16)
    assert bad.max > 0.49 and bad.ulp_histogram[4] == 1


@pytest.mark.parametrize(("planted", "count"), [(torch.nan, 1), (torch.inf, 1), (-torch.inf, 1)])
def test_measure_counts_what_is_not_finite(planted, count):
    exact = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    value = exact.half()
    value[0, 0, 1, 1] = planted
    assert measure(value, exact, torch.float16).nonfinite == count


def test_measure_wants_minus_infinity_where_the_truth_is():
    exact = torch.tensor([[[-math.inf, 0.0, -math.inf, -math.inf]]], dtype=torch.float64)
    value = torch.tensor([[[-math.inf, 0.0, math.inf, -1e30]]])
    assert measure(value, exact, torch.float32).nonfinite == 2


def test_bias_sees_truncation_and_nothing_else():
    exact = torch.randn(1, 1, 200, 64, dtype=torch.float64)
    near = rounded(exact, torch.bfloat16)
    truncated = (exact.float().view(torch.int32) & -65536).view(torch.float32)
    assert abs(measure(near, exact, torch.bfloat16).bias) < 0.02
    assert measure(truncated, exact, torch.bfloat16).bias == pytest.approx(-0.5, abs=0.02)


def test_bound_ratio_points_at_the_worst_element():
    exact = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    bound = torch.full_like(exact, 0.1)
    value = exact.clone()
    value[0, 0, 1, 2] = 0.15
    ratio, index = bound_ratio(value, exact, bound, torch.float16)
    assert ratio == pytest.approx(1.5) and index == (0, 0, 1, 2)
    assert bound_ratio(value, exact, torch.zeros_like(bound), torch.float16)[0] > 1e5, "a bound of 0 means exact"


def test_floored_ratio():
    assert floored_log_ratio(0.0, 0.0, 0.0, 0.0) == 0.0
    assert floored_log_ratio(2.0, 1.0, 0.0, 0.0) == pytest.approx(math.log(2))
    assert abs(floored_log_ratio(1e-9, 1e-30, 1e-3, 0.0)) < 1e-6, "both far below the floor"
    assert floored_log_ratio(1.0, math.nan, 0.0, 1.0) is None


def test_same_bits_tells_signed_zeros_apart_and_nan_equal():
    a = torch.tensor([0.0, math.nan, 1.0])
    assert same_bits(a, torch.tensor([-0.0, math.nan, 1.0])).tolist() == [False, True, True]
