"""Scalars of a device: exact whatever their dtype, and nothing that is not finite escapes."""

import math

import pytest
import torch
from flashproof.reference.scalars import all_finite, at_once


def test_scalars_of_several_dtypes_are_exact() -> None:
    count, small, half, flag = 2**53 - 1, 2.0**-1074, 65504.0, True
    told = at_once(
        torch.tensor(count), torch.tensor(small, dtype=torch.float64), torch.tensor(half, dtype=torch.float16),
        torch.tensor(flag),
    )  # fmt: skip
    assert told == [count, small, half, 1.0]
    assert at_once() == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_element_that_is_not_finite_is_found(dtype: torch.dtype, bad: float) -> None:
    good = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(good, -good, good[:0])
    for at in range(good.numel()):
        spoilt = good.clone()
        spoilt.view(-1)[at] = bad
        assert not all_finite(good, spoilt)


def test_nothing_is_finite() -> None:
    assert all_finite()
    assert all_finite(torch.zeros(0, 4))
