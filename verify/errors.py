"""How far a tensor is from the truth: one set of numbers per tensor, each with its definition.

All errors are absolute differences from the float64 truth on the rounded inputs.  Nothing here decides anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..reference.scalars import at_once

#: significand bits and exponent of the smallest normal number
_PRECISION = {torch.float16: (11, -14), torch.bfloat16: (8, -126), torch.float32: (24, -126)}
_CLIP = 2.0  # ulp: a signed error beyond this says nothing about rounding
_SPREAD = 1024
#: of u times the natural scale: below this, two errors are equally good
NEGLIGIBLE = 0.05


@dataclass(frozen=True, slots=True)
class Errors:
    """One implementation's errors on one tensor."""

    max: float  # over elements where both are finite
    rms: float
    nonfinite: int  # NaN or inf where the truth is finite, finite where the truth is -inf
    bias: float  # mean signed error in ulp, positive away from zero, each element clipped to 2 ulp
    row_bias: Tensor  # the same per row (last axis averaged), [rows]: rows are independent, elements of a row are not
    ulp_histogram: tuple[int, int, int, int, int]  # 0, <= 0.5, <= 1, <= 2, > 2 ulp


def ulp(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbours of `dtype` at |truth|, float64 (Goldberg 1991): 2^(max(e, emin) - p + 1)."""
    bits, lowest = _PRECISION[dtype]
    _, exponent = torch.frexp(truth.double())
    exponent = torch.where(truth == 0, lowest, torch.clamp(exponent - 1, min=lowest))  # frexp gives 0 the exponent 0
    return torch.ldexp(torch.ones_like(truth, dtype=torch.float64), exponent - (bits - 1))


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor's truth (float64), and what errors against it are told in; made once, used for every result."""

    truth: Tensor
    finite: Tensor  # bool
    per_ulp: Tensor  # 1 / ulp: a power of two, so that multiplying is as exact as dividing
    sign: Tensor

    @classmethod
    def of(cls, truth: Tensor, dtype: torch.dtype) -> Target:
        """In units of `dtype`."""
        finite = torch.isfinite(truth)
        known = torch.where(finite, truth, 0.0)
        return cls(truth, finite, ulp(known, dtype).reciprocal_(), torch.sign(known))

    def errors(self, value: Tensor) -> Errors:
        """Errors of `value`, of any dtype."""
        truth, n = self.truth, self.truth.numel()
        if n == 0:
            return Errors(0.0, 0.0, 0, 0.0, torch.zeros(0, dtype=torch.float64), (0, 0, 0, 0, 0))
        value = value.double()
        error = value - truth
        found = self._told(error, n, 0)
        if math.isfinite(found.max):
            return found
        both = torch.isfinite(error)  # a difference is finite where both are
        total, same = (int(c) for c in at_once(both.count_nonzero(), (~self.finite & (value == truth)).count_nonzero()))
        return self._told(torch.where(both, error, 0.0), total, n - total - same)

    def _told(self, error: Tensor, total: int, nonfinite: int) -> Errors:
        """Of the `total` elements that have an error; what is not finite holds 0."""
        in_ulp = error * self.per_ulp
        magnitude = in_ulp.abs()
        beyond = [error.count_nonzero(), *((magnitude > b).count_nonzero() for b in (0.5, 1.0, 2.0))]
        signed = in_ulp.mul_(self.sign).clamp_(-_CLIP, _CLIP)
        largest, rms, bias, *counts = at_once(error.abs().max(), error.square().mean().sqrt(), signed.mean(), *beyond)
        at_most = [0, *(total - int(c) for c in counts), total]
        return Errors(
            max=largest,
            rms=rms,
            nonfinite=nonfinite,
            bias=bias,
            row_bias=signed.mean(-1).flatten() if signed.dim() == 4 else signed.flatten(),
            ulp_histogram=tuple(b - a for a, b in pairwise(at_most)),  # type: ignore[arg-type]  # five of them
        )


def measure(value: Tensor, truth: Tensor, dtype: torch.dtype) -> Errors:
    """Errors of `value` (any dtype) against `truth` (float64), in units of `dtype`."""
    return Target.of(truth, dtype).errors(value)


def rounded(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """The truth rounded once to `dtype`: what a perfect implementation would return."""
    return truth.to(torch.float32).to(dtype) if dtype == torch.float32 else truth.to(dtype)


def floored_log_ratio(kernel_rms: float, standard_rms: float, rounded_rms: float, natural_scale: float) -> float | None:
    """ln(kernel / standard) of RMS errors, with a floor under both, so that two tiny errors count as equal.

    1/2 ln((e_k^2 + f^2) / (e_s^2 + f^2)) with f = max(RMS error of the rounded truth, 0.05 u rms(S)); None when the
    standard has no finite error to compare with.
    """
    if not math.isfinite(standard_rms) or not math.isfinite(kernel_rms):
        return None
    floor = max(rounded_rms, NEGLIGIBLE * natural_scale)
    top, bottom = kernel_rms**2 + floor**2, standard_rms**2 + floor**2
    return 0.0 if top == bottom else 0.5 * math.log(top / bottom) if bottom > 0 else None


def ulps_between(x: Tensor, y: Tensor) -> Tensor:
    """How many numbers of their dtype lie between two tensors, and one; 0 for the same bits, and for -0 and 0."""
    kind = {2: torch.int16, 4: torch.int32}[x.element_size()]
    ordered = [t.contiguous().view(kind).long() for t in (x, y)]
    # neighbouring numbers get neighbouring integers, negative ones counted down from zero
    ordered = [torch.where(t < 0, torch.iinfo(kind).min - t, t) for t in ordered]
    return (ordered[0] - ordered[1]).abs()


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise equality of bits: NaN equals NaN, 0 differs from -0."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds[a.element_size()]
    return a.contiguous().view(kind) == b.contiguous().view(kind)


def bound_ratio(value: Tensor, truth: Tensor, bound: Tensor, dtype: torch.dtype) -> tuple[float, tuple[int, ...]]:
    """The largest error / bound over elements that are finite, and its index.

    A bound of 0 stands for "must be exact"; there the smallest subnormal of `dtype` takes its place.  NaN: no bound.
    """
    if truth.numel() == 0:
        return 0.0, ()
    bits, lowest = _PRECISION[dtype]
    error = (value.double() - truth).abs_()
    ratio = error / torch.clamp(bound, min=2.0 ** (lowest - bits + 1))
    largest, index = _largest(ratio)
    if not math.isfinite(largest):
        largest, index = _largest(torch.where(torch.isfinite(error) & ~torch.isnan(bound), ratio, 0.0))
    return largest, index


def _largest(x: Tensor) -> tuple[float, tuple[int, ...]]:
    """The largest element, NaN if there is one, and its index."""
    value, index = at_once(*x.flatten().max(0))
    return value, tuple(int(i) for i in np.unravel_index(int(index), x.shape))


def slack(value: Tensor, truth: Tensor, bound: Tensor) -> float | None:
    """The median of bound / error over elements that are off the truth: how much room a bound leaves a right kernel.

    At most some thousand elements, evenly spread, speak for all.  None where every one is exact.
    """
    step = truth.numel() // _SPREAD | 1  # odd: not always the same columns
    off, room = ((x.flatten()[::step]) for x in ((value.double() - truth).abs_(), bound))
    ratio = room / off
    ratio = ratio[torch.isfinite(ratio)]
    return float(ratio.median()) if ratio.numel() else None
