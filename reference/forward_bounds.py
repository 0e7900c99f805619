"""Bounds on the computed logits, weights, output and log-sum-exp; `bounds` derives them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .arrangements import HUGE32, TINY32, U32, Precision
from .blocks import Block
from .setting import Setting, or_inf

_LOG2E = 1.4426950408889634
_EXP_MAX = 400.0  # e^400 times anything in fp32 range is finite in float64, and vacuous


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What is known of the computed weights, [B, H, r, N] and [B, H, r, 1].

    error: E + R log(1 + eps), absolute, on the logit
    excess: P (e^error - 1)
    high, low: sum P e^error, sum P e^-error
    """

    error: Tensor
    excess: Tensor
    high: Tensor
    low: Tensor


def logit_error(b: Block, c: Setting) -> Weights:
    """E of every logit and the row's sums that follow from it."""
    a, p, scale = c.a, c.p, abs(c.scale)
    product = c.products(b.q.abs(), c.k.abs())  # [B, H, r, N]: |q| . |k|
    sides = b.q.abs().sum(-1, keepdim=True) + c.per_key(c.k.abs().sum(-1))
    biased = b.bias.numel() > 1
    n = a.score_roundings + int(biased and a.score_roundings > 0)
    dot = scale * product * ((1 + p.u) ** a.operand_roundings * (1 + c.g(c.D)) - 1)
    dot = dot + c.operand_floor * sides + TINY32 * c.D * scale
    score = (scale * b.raw.abs() + b.bias.abs() + dot) * c.rounds(n, a.fp32_roundings + 2 * int(biased))
    score = score + n * p.floor * (1 + scale) + 4 * TINY32
    lag = a.max_lag * 0.6932
    shift = U32 * (4 * (b.m.abs() + b.s.abs()) + 3 * (b.m - b.s + lag))
    if a.split:  # weights exp(L_part - L), with the parts' L stored in fp32 between s_j and L
        shift = shift + U32 * 6 * (b.s.abs() + b.lse.abs()) + 2.0**-20
    e = (dot + score + shift) * (1 + 1e-5) + 1.001 * c.rescales * a.eps_exp
    e = torch.where(product >= HUGE32, torch.inf, e)
    if a.materialised:
        e = torch.where(_overflows(b, p, product * c.g(c.D)), torch.inf, e)
    e = e.masked_fill(~b.visible, 0.0)
    excess = grown(b, e, b.lse)  # [B, H, r, N]: P (e^E - 1)
    low = (b.p * torch.exp(-e)).sum(-1, keepdim=True).clamp_min(1e-200)
    return Weights(e, excess, 1 + excess.sum(-1, keepdim=True), low)


def _overflows(b: Block, p: Precision, slack: Tensor) -> Tensor:
    """Where a score kept in p becomes infinite, unless it falls to -inf far below the row's maximum."""
    large = torch.maximum(b.raw.abs() + slack, b.s.abs()) * (1 + 4 * p.u) >= p.largest
    harmless = (b.s < 0) & (b.m - b.s > 1000) & ((b.raw < 0) == (b.s - b.bias < 0))
    return large & ~harmless


def grown(b: Block, e: Tensor, lse: Tensor) -> Tensor:
    """P (e^e - 1), also where P underflows and e is huge."""
    small = b.p * torch.expm1(e.clamp(max=1.0))
    large = torch.exp((b.s - lse + e).clamp(max=_EXP_MAX)) - b.p
    return torch.where(e <= 1.0, small, large).masked_fill(~b.visible, 0.0)


def output_error(b: Block, w: Weights, c: Setting) -> tuple[Tensor, Tensor]:
    """Errors of O [B, H, r, D] and of L [B, H, r, 1]."""
    a, p, R = c.a, c.p, c.rescales
    o = b.o.abs()
    l = torch.exp(b.lse - b.m)  # in units of the largest weight
    worst = w.error.amax(-1, keepdim=True)  # by which the computed maximum may exceed the true one
    share = 1 / (l * w.low * torch.exp(-worst)).clamp_min(1.0)  # of one floor in the computed row sum, >= 1

    # B1: an expanded square cancels, so that its rounding error, 4 N 2^-53 of what it subtracts, is put back
    centre = c.v.mean(-2, keepdim=True)  # [B, HK, 1, D]
    v, x = c.v - centre, b.o - c.per_head(centre)
    w0, w1, w2 = w.excess.sum(-1, keepdim=True), c.mix(w.excess, v), c.mix(w.excess, v.square())
    square = (w2 - 2 * x * w1 + x.square() * w0).clamp_min(0.0)
    square = square + 4 * c.N * 2.0**-53 * (w2 + x.square() * w0)
    top, bottom = c.per_head(c.v.amax(-2, keepdim=True)), c.per_head(c.v.amin(-2, keepdim=True))
    b1 = torch.minimum((w0 * square).sqrt() / w.low, torch.maximum(top - b.o, b.o - bottom))

    # B2
    largest = torch.maximum(top.abs(), bottom.abs())
    psi = (1 + (p.u if a.weights_rounded else 0.0)) * (1 + c.g(c.N)) * (1 + U32) ** (R + 6) - 1
    moduli = torch.minimum(c.mix(b.p + w.excess, c.v.abs()) / w.low, largest)  # sum w |v| / sum w
    floor = (p.floor if a.weights_rounded else 0.0) + TINY32 * (R + 2)
    sums = c.mix(b.visible.double(), c.v.abs())  # [B, H, r, D]: sum |v| over visible keys
    floors = floor * sums * (share if a.weights == "unnormalised" else 1.0)
    b2 = psi * moduli + torch.minimum(floors, largest) + TINY32 * (c.N + R + 4)

    # B3, B4
    chi = (1 + c.g(c.N)) * (1 + U32) ** (R + 1) * (1 + (p.u if a.row_sum != "unrounded" else 0.0)) - 1
    chi_i = chi + c.N * (floor if a.row_sum != "unrounded" else TINY32) * share  # [B, H, r, 1]
    chi_i = torch.where(chi_i < 0.99, chi_i, torch.inf)
    b3 = torch.where(chi_i < 1, (6 * U32 + chi_i) / (1 - chi_i), torch.inf) * (o + b1 + b2)
    b4 = p.u * (o + b1 + b2 + b3) + p.floor
    error = b1 + b2 + b3 + b4
    lost = torch.isinf(w.error).any(-1, keepdim=True) | (o + error >= p.largest)
    if a.weights != "normalised":  # a running weight is at most 1, or 2^lag
        lost = lost | (sums * 2.0**a.max_lag >= HUGE32)
    error = torch.where(lost, torch.inf, error)

    moved = torch.where(worst < 1.0, torch.maximum(w.high.log(), -w.low.log()), worst)  # never beyond the worst
    shift = moved - torch.log1p(-chi_i.clamp(max=1.0))
    size = b.lse.abs() + b.m.abs() + l.log().abs()
    lse_error = shift + U32 * (12 if a.split else 6) * size + 4 * TINY32
    lse_error = lse_error + 2.0**-21  # the logarithm itself, in hardware and in base 2
    lost = torch.isinf(w.error).any(-1, keepdim=True) | (b.lse.abs() * _LOG2E >= HUGE32)  # kept in base 2, say
    lse_error = torch.where(lost, torch.inf, lse_error)
    return or_inf(error), or_inf(lse_error)
