"""What predicted variances are made of in every arrangement: each tensor is computed once, when first asked for."""

import math
from collections.abc import Hashable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .arrangements import U32, Precision
from .attention import group, ungroup
from .blocks import Block

LOG_UNIFORM = 1 / (8 * math.log(2))  # E[ulp^2 / 12] / (x^2 u^2) of a log-uniform significand


class Keys:
    """Keys and values [B, HK, N, D] in float64, and what all blocks and arrangements make of them."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v
        self.k2, self.v2 = k.square(), v.square()

    @cached_property
    def centre(self) -> Tensor:
        """[B, HK, 1, D]"""
        return self.v.mean(-2, keepdim=True)

    @cached_property
    def centred(self) -> Tensor:
        """V less its mean."""
        return self.v - self.centre

    @cached_property
    def centred2(self) -> Tensor:
        return self.centred.square()

    def mix(self, w: Tensor, x: Tensor) -> Tensor:
        """W [B, H, r, N] @ x [B, HK, N, X] -> [B, H, r, X]."""
        return ungroup(group(w, self.k) @ x, w)


class Moments:
    """What the variances of a block are made of, in every arrangement alike: each computed once, when needed.

    computed: what is made of them in arrangements that have it in common, by whatever tells these from others.
    """

    def __init__(self, b: Block, keys: Keys, p: Precision) -> None:
        self.b, self.keys, self.p = b, keys, p
        self.computed: dict[Hashable, Any] = {}

    @cached_property
    def p2(self) -> Tensor:
        """[B, H, r, N], and so are `ds2`, `dp2` and `rounded_p`."""
        return self.b.p.square()

    @cached_property
    def ds2(self) -> Tensor:
        return self.b.ds.square()

    @cached_property
    def dp2(self) -> Tensor:
        return self.b.dp.square()

    @cached_property
    def sway(self) -> Tensor:
        """Largest |S| sqrt(P (1 - P)): by how many roundings of S a weight moves, to first order."""
        p, s = self.b.p, self.b.s.abs()
        moved = torch.where(p > 0, s * (p * (1 - p)).clamp_min(0.0).sqrt(), 0.0)
        return moved.max() if p.numel() else p.new_zeros(())

    @cached_property
    def rounded_p(self) -> Tensor:
        """Variance of one rounding of P."""
        return var_round(self.b.p, self.p, 1)

    @cached_property
    def gap2(self) -> Tensor:
        """(dP - delta)^2 [B, H, r, N]"""
        return (self.b.dp - self.b.delta).square()

    @cached_property
    def q2(self) -> Tensor:
        """[B, H, r, D], and so are `do2`, `pk`, `dsk`, `p2v2` and `ds2k2`."""
        return self.b.q.square()

    @cached_property
    def do2(self) -> Tensor:
        return self.b.do.square()

    @cached_property
    def pk(self) -> Tensor:
        return self.keys.mix(self.b.p, self.keys.k)

    @cached_property
    def dsk(self) -> Tensor:
        return self.keys.mix(self.b.ds, self.keys.k)

    @cached_property
    def p2v2(self) -> Tensor:
        return self.keys.mix(self.p2, self.keys.v2)

    @cached_property
    def ds2k2(self) -> Tensor:
        return self.keys.mix(self.ds2, self.keys.k2)

    @cached_property
    def q2k2(self) -> Tensor:
        """[B, H, r, N]: the sum of the squared products of a logit; `do2v2` is that of dP."""
        return ungroup(group(self.q2, self.keys.k) @ self.keys.k2.mT, self.b.q)

    @cached_property
    def do2v2(self) -> Tensor:
        return ungroup(group(self.do2, self.keys.k) @ self.keys.v2.mT, self.b.q)

    @cached_property
    def below2(self) -> Tensor:
        """(m - s)^2 [B, H, r, N]"""
        return (self.b.m - self.b.s).square()

    def centred(self, w: Tensor) -> Tensor:
        """sum_j w_ij (v_jd - O_id)^2, expanded; V is shifted by its mean first, for the expansion cancels."""
        keys, o = self.keys, self.b.o
        x = o - keys.centre.repeat_interleave(o.shape[1] // keys.centre.shape[1], 1)
        mixed = keys.mix(w, keys.centred2) - 2 * x * keys.mix(w, keys.centred)
        return (mixed + x.square() * w.sum(-1, keepdim=True)).clamp_min(0.0)


def sum_error(n: int) -> float:
    """Variance of a sequential n-term fp32 sum, per sum of squared terms; `drift` has the rest.

    The partial sums of terms of random sign, given where they end, are a Brownian bridge around the
    straight line to the result: the sum of their squares is n/6 sum t^2 + n/3 result^2.
    """
    return LOG_UNIFORM * U32**2 * (1 + n / 6)


def drift(n: int) -> float:
    """Variance of a sequential n-term fp32 sum, per squared result: see `sum_error`."""
    return LOG_UNIFORM * U32**2 * (1 + n / 3)


def var_round(x: Tensor, p: Precision, roundings: int) -> Tensor:
    """Variance of rounding x so many times: relative among normal numbers, floor^2 / 3 among subnormals.

    Never beyond the distance to 0 and 1, which are exact: a vanishing weight, and the weight of a dominant
    key.
    """
    x2 = x.square()
    var = roundings * (LOG_UNIFORM * p.u**2 * x2 + p.floor**2 / 3)
    return torch.minimum(var, torch.minimum(x2, (1 - x.abs()).square_()))


def var_round_of_result(x: Tensor, p: Precision, before: Tensor) -> Tensor:
    """Variance that rounding once adds to a result whose error has the variance `before` until then.

    Where p holds x itself, as it holds the output of a query that sees a single key, rounding can only help: it takes
    x + e to the nearest number of p, which is no farther away than x, so that the error is 2 |e| at most.  What it
    adds to E[e^2] is then 3 E[e^2] at most: nothing, where only fp32 arithmetic came before.
    """
    var = var_round(x, p, 1)
    return torch.where(_held(x, p), torch.minimum(var, 3 * before), var)


def _held(x: Tensor, p: Precision) -> Tensor:
    """Whether p holds x exactly: its significand has no more bits, nor is it finer than p's subnormals."""
    significand, grid = torch.frexp(x)[0] / p.u, x / (2 * p.floor)
    return (significand == significand.round()) & (grid == grid.round())
