"""Bounds on the gradients; `bounds` derives them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .arrangements import HUGE32, TINY32, U32
from .attention import Gradients, group
from .blocks import Block
from .forward_bounds import Weights, grown
from .setting import Setting, or_inf


@dataclass(frozen=True, slots=True, eq=False)
class KeySums:
    """Sums over queries [B, HK, N, D]: errors, and the moduli later roundings act on; seen [B, HK, N]."""

    dk: Tensor
    dk_total: Tensor
    dv: Tensor
    dv_total: Tensor
    seen: Tensor

    @classmethod
    def zeros(cls, k: Tensor) -> "KeySums":
        seen = torch.zeros(k.shape[:3], dtype=torch.bool, device=k.device)
        return cls(torch.zeros_like(k), torch.zeros_like(k), torch.zeros_like(k), torch.zeros_like(k), seen)


def backward_errors(
    b: Block, w: Weights, o_error: Tensor, lse_error: Tensor, dq: Tensor, c: Setting, sums: KeySums
) -> Tensor:
    """Error of dQ [B, H, r, D]; adds the errors of dK and dV to `sums`."""
    a, p, scale = c.a, c.p, abs(c.scale)
    do, hidden = b.do.abs(), ~b.visible

    # dV = P^T dO
    e_p = _weight_error(b, w, lse_error, c)  # [B, H, r, N]
    e_pv = (e_p + p.u * (b.p + e_p) + p.floor).masked_fill(hidden, 0.0) if a.weights_rounded else e_p
    sums.dv.add_(c.transposed(e_pv, do))
    sums.dv_total.add_(c.transposed(b.p + e_pv, do))

    # dP = dO V^T
    e_p = e_pv if a.weights_in_ds_rounded else e_p
    dp, moduli = b.dp.abs(), c.products(do, c.v.abs())  # [B, H, r, N]: |dP|, |dO| . |v|
    e_dp = c.g(c.D) * moduli + TINY32 * (do.sum(-1, keepdim=True) + c.per_key(c.v.abs().sum(-1)) + c.D)
    e_dp = e_dp + p.u * (dp + e_dp) + p.floor if a.dp_rounded else e_dp
    e_dp = torch.where(moduli >= HUGE32, torch.inf, e_dp)
    if a.materialised:
        e_dp = torch.where(dp + e_dp >= p.largest, torch.inf, e_dp)

    # delta, whose error is common to the row
    e_delta = TINY32 * (c.N + c.D + (do + b.o.abs()).sum(-1, keepdim=True))  # [B, H, r, 1]
    e_delta = e_delta + U32 * b.delta.abs()  # less the gradient of the LSE, if there is one
    by_output = (do * o_error + c.g(c.D) * do * (b.o.abs() + o_error)).sum(-1, keepdim=True)
    p_most = b.p + e_p
    e_weighted = p.u * p_most * (dp + e_dp) + p.floor if a.weighted_dp_rounded else 0.0  # of P * dP, as it is stored
    by_weights = e_p * dp + p_most * (e_dp + (c.g(c.N) + 2 * U32) * (dp + e_dp)) + e_weighted
    by_weights = by_weights.masked_fill(hidden, 0.0).sum(-1, keepdim=True)
    if a.delta == "either":
        e_delta = e_delta + torch.maximum(by_output, by_weights)
    else:
        e_delta = e_delta + (by_output if a.delta == "output" else by_weights)

    # dS = P (dP - delta), soon times scale; `own` leaves out P times the error of delta, which dQ meets as
    # |P K|
    parts = dp + b.delta.abs() + e_dp + e_delta
    own = e_p * ((b.dp - b.delta).abs() + e_delta) + p_most * (e_dp + 2 * U32 * parts) + e_weighted + 2 * TINY32
    rounds = c.rounds(a.ds_roundings, 2)
    ds, by_delta = b.ds.abs(), b.p * e_delta  # |dS|, of which delta's error may be so much
    largest = (ds + own + by_delta) * (1 + rounds) + p.floor  # what the computed |dS| may be
    rounding = rounds * scale * largest + p.floor * (scale + (a.ds_roundings if a.ds_scaled else 0.0))
    rounding = torch.where(largest * max(1.0, scale) >= p.largest, torch.inf, rounding)
    own = (scale * own + rounding).masked_fill(hidden, 0.0)
    full = own + (scale * by_delta).masked_fill(hidden, 0.0)
    total = scale * ds + full
    largest = largest.masked_fill(hidden, 0.0)
    sums.dk.add_(c.transposed(full, b.q.abs()))
    sums.dk.add_(c.operand_floor * group(largest, c.k).sum(-2)[..., None])
    sums.dk_total.add_(c.transposed(total, b.q.abs()))

    # dQ = scale dS K
    error = c.mix(own, c.k.abs()) + scale * e_delta * c.mix(b.p, c.k).abs()
    moduli = c.mix(total, c.k.abs())  # [B, H, r, D]
    error = error + c.product_error(c.N) * moduli
    error = error + c.operand_floor * largest.sum(-1, keepdim=True) + 2 * TINY32 * c.N
    error = _stored(error, moduli, c.N, c)
    return _gradient_error(error, dq, a.gradient_roundings, c)


def _weight_error(b: Block, w: Weights, lse_error: Tensor, c: Setting) -> Tensor:
    """Absolute error of the backward's P [B, H, r, N], before it is rounded to p."""
    if c.a.recomputed:
        e = w.error + lse_error + U32 * (3 * (b.s - b.lse).abs() + 8 * b.lse.abs()) + 2 * c.a.eps_exp
        error = grown(b, e, b.lse) + 2 * TINY32
        error = torch.where(b.s - b.lse + e > 80.0, torch.inf, error)  # exp overflows fp32 at 88.7
        return error.masked_fill(~b.visible, 0.0)
    chi = (1 + c.g(c.N)) * (1 + U32) - 1 + c.N * TINY32
    rho = (1 + U32) ** 6 / (1 - chi) - 1 if chi < 1 else torch.inf  # row sum and division
    loss = -(b.p * torch.expm1(-w.error)).sum(-1, keepdim=True)  # 1 - low
    up = (w.excess + b.p * loss + rho * (b.p + w.excess)) / w.low
    down = b.p * (1 - torch.exp(-w.error) / w.high) + rho * b.p
    error = torch.minimum(torch.maximum(up, down), torch.maximum(b.p, 1 - b.p) + rho) + 2 * TINY32
    error = torch.where(torch.isinf(w.error).any(-1, keepdim=True), torch.inf, error)
    return error.masked_fill(~b.visible, 0.0)


def key_gradient_errors(sums: KeySums, exact: Gradients, c: Setting) -> tuple[Tensor, Tensor]:
    """Errors of dK and dV [B, HK, N, D], once all queries are summed."""
    n = c.queries * c.groups
    dk = sums.dk + c.product_error(n) * sums.dk_total + 2 * TINY32 * n
    dv = sums.dv + c.g(n) * sums.dv_total + 2 * TINY32 * n
    dk, dv = _stored(dk, sums.dk_total, n, c), _stored(dv, sums.dv_total, n, c)
    if c.groups > 1 and c.a.heads_rounded:
        dk = dk + c.p.u * (sums.dk_total + dk) + c.groups * c.p.floor
        dv = dv + c.p.u * (sums.dv_total + dv) + c.groups * c.p.floor
        dk = torch.where(sums.dk_total + dk >= c.p.largest, torch.inf, dk)
        dv = torch.where(sums.dv_total + dv >= c.p.largest, torch.inf, dv)
    dk = _gradient_error(dk, exact.dk, c.a.gradient_roundings, c)
    dv = _gradient_error(dv, exact.dv, 1, c)
    unseen = ~sums.seen[..., None]
    return dk.masked_fill(unseen, 0.0), dv.masked_fill(unseen, 0.0)


def _stored(error: Tensor, moduli: Tensor, n: int, c: Setting) -> Tensor:
    """Adds what an n-term sum loses by passing through p on the way; `moduli` bounds every partial sum."""
    if c.a.gradient_stores is None:
        return error
    stores = -(-n // c.a.gradient_stores)
    error = error + c.rounds(stores) * (moduli + error) + 2 * stores * c.p.floor
    return torch.where(moduli + error >= c.p.largest, torch.inf, error)


def _gradient_error(error: Tensor, exact: Tensor, roundings: int, c: Setting) -> Tensor:
    """Adds the roundings of a gradient on its way out; inf where it, or it over sqrt(scale), may overflow."""
    root = abs(c.scale) ** 0.5
    size = exact.abs() + error
    last = c.rounds(roundings, 4) * size + c.p.floor * (1.0 if roundings == 1 else 1 + max(1.0, root))
    before = max(1.0, 1 / root) if roundings > 1 and root > 0 else 1.0
    return or_inf(torch.where((size + last) * before >= c.p.largest, torch.inf, error + last))
