"""The acceptance rules of other projects' tests, each as its own code decides, NaN and infinity included.

`error <= limit` is false when either is NaN, `error > limit` as well: which of the two a project wrote decides what it
makes of NaN, so each rule keeps the direction of the original.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .peer import Problem, Rule


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def flash_attention(factor: float, causal: tuple[float, float] | None = None) -> Rule:
    """FlashAttention 2: the largest error is at most `factor` times eager's; in causal tests, (factor, atol)."""

    def rule(problem: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
        times, atol = causal if causal is not None and problem.causal else (factor, 0.0)
        return _largest(value - golden) <= times * _largest(low - golden) + atol

    return rule


def flash_attention_3(factor: float) -> Rule:
    """FlashAttention 3 and 4: as 2, plus twice what adding and subtracting 0.3 does to the reference."""

    def rule(_: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
        atol = 2 * _largest(golden + 0.3 - 0.3 - golden)
        return _largest(value - golden) <= factor * _largest(low - golden) + atol

    return rule


def not_nan(_: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
    """Nothing but that no element is NaN."""
    del golden, low
    return not bool(torch.isnan(value).any())


def pytorch(fudge: float) -> Rule:
    """`_check_equal` of PyTorch and AOTriton: NaN in the test and in the reference both passes."""

    def rule(_: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
        test_error, ref_error = _largest(golden - value), _largest(golden - low)
        if math.isnan(test_error) and not math.isnan(ref_error):
            return False
        threshold = max(1e-5, ref_error * fudge)  # max(1e-5, NaN) is 1e-5
        return not test_error > threshold

    return rule


def flex_mean(fudge: float) -> Rule:
    """FlexAttention: |mean error - eager's| <= 1e-7 + fudge * eager's, which is 1 + fudge times as large."""

    def rule(_: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
        compiled, eager = (golden - value).abs().mean(), (golden - low).abs().mean()
        return bool(torch.isclose(compiled, eager, rtol=fudge, atol=1e-7))  # false for NaN, and for one infinity

    return rule


def allclose(atol: float, rtol: float, *, base: float = 1.0, equal_nan: bool = False) -> Rule:
    """|value - golden| <= atol + rtol |golden| for every element; both divided by `base` (ln 2: an LSE in base 2)."""

    def rule(_: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
        del low
        want, got = (x.double() / base for x in (golden, value))
        return torch.allclose(got, want, rtol=rtol, atol=atol, equal_nan=equal_nan)

    return rule


def by_dtype(**rules: Rule) -> Rule:
    """One rule per dtype of the problem: `by_dtype(fp16=..., bf16=...)`."""

    def rule(problem: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
        return rules[problem.dtype](problem, golden, low, value)

    return rule


def fla_ci(ratio: float) -> Rule:
    """`assert_close` of flash-linear-attention with FLA_CI_ENV=1: below 1 % or 0.3 absolute it warns and passes."""

    def rule(_: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
        del low
        absolute = _largest(golden - value)
        rms = float((golden - value).float().square().mean().sqrt())
        error = rms / (float(golden.float().square().mean().sqrt()) + 1e-8)
        if absolute <= 1e-6:
            return True
        if bool(torch.isnan(golden).any() or torch.isnan(value).any()):
            return False
        return True if error < 0.01 or absolute <= 0.3 else error < ratio

    return rule


def mean_square(limit: float) -> Rule:
    """FlashInfer's FP8 tests: the mean squared error, whatever the size of the output."""

    def rule(_: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
        del low
        return float((golden.float() - value.float()).square().mean()) < limit

    return rule


def normalised_mean_square(limit: float) -> Rule:
    """llama.cpp: the squared error over the squared reference, both summed over everything; NaN and infinity fail."""

    def rule(_: Problem, golden: Tensor, low: Tensor, value: Tensor) -> bool:
        del low
        want, got = golden.double().numpy(), value.double().numpy()
        if np.isnan(want).any() or np.isnan(got).any():
            return False
        if not np.array_equal(np.isinf(want), np.isinf(got)):
            return False
        return not float(((want - got) ** 2).sum()) / float((want**2).sum()) > limit

    return rule
