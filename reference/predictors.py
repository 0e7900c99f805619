"""How large a correct kernel's error is on average: RMS predictors, and the natural scale of each result.

A bound must cover the worst sign of every rounding; a predictor treats roundings as independent and
unbiased. The relative error of rounding a number with a log-uniform significand has second moment rho =
u_p^2 / (8 ln 2) = 0.18 u_p^2: the mean of ulp^2 / 12 over the binade. First-order propagation through
attention, variances adding, gives

    var O  = sum_j P^2 var(s) (v - O)^2  +  sum_j var(P) v^2  +  rho O^2
    var dV = sum_i var(P) dO^2  +  rho dV^2
    var dQ = scale^2 [ sum_j var(dS) K^2 + var(delta) (P K)^2 ]  +  rho dQ^2
    var dK = scale^2 sum_i (var(dS) + P^2 var(delta)) Q^2  +  rho dK^2

plus what errors of the logits do on the way back (`_Moved`). var(s) collects the roundings of the logits,
var(P) those of the weights, var(dS) and var(delta) those on the way back, rho is meant once per rounding.
Coherent roundings (many equal weights) make the error larger, exactly representable values make it smaller:
meant for independently drawn inputs, and for the RMS over a whole tensor. Running sums of gradients that
pass through p (`gradient_stores`) are not predicted: a kernel that does this is worse than it need be.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .arrangements import PRECISIONS, U32, Arrangement, Precision
from .attention import Forward, Gradients, group, ungroup
from .blocks import Block, blocks, clean
from .masks import Mask

_LOG_UNIFORM = 1 / (8 * math.log(2))  # E[ulp^2 / 12] / (x^2 u^2) of a log-uniform significand


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predicted RMS error over the whole tensor; the gradients' are None when no dO was given."""

    out: float
    dq: float | None
    dk: float | None
    dv: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """Natural scales S, elementwise: an error of u S is what one rounding of every summand amounts to."""

    out: Tensor
    dq: Tensor | None
    dk: Tensor | None
    dv: Tensor | None


def natural_scales(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor | None, mask: Mask, scale: float, truth: Forward
) -> Scales:
    """Sums of the moduli that cancel in each result; shapes as in `attention`, float64.

    S_O = P |V|    S_dV = P^T |dO|    S_dQ = |scale| (P (|dP| + |delta|)) |K|    S_dK = |scale| (..)^T |Q|
    """
    kc, vc = clean(k), clean(v)
    out, dq = torch.zeros_like(truth.o), torch.zeros_like(truth.o)
    dk, dv = torch.zeros_like(kc), torch.zeros_like(kc)
    for b in blocks(q, kc, vc, do, mask, scale, truth):
        rows = slice(b.start, b.stop)
        out[:, :, rows] = ungroup(group(b.p, kc) @ vc.abs(), b.p)
        if do is not None:
            w = abs(scale) * b.p * (b.dp.abs() + b.delta.abs())  # [B, H, r, N]
            dq[:, :, rows] = ungroup(group(w, kc) @ kc.abs(), w)
            dk += group(w, kc).mT @ group(b.q.abs(), kc)
            dv += group(b.p, kc).mT @ group(b.do.abs(), kc)
    return Scales(out, dq, dk, dv) if do is not None else Scales(out, None, None, None)


def predict(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor | None,
    mask: Mask,
    scale: float,
    arrangement: Arrangement,
    truth: Forward,
    gradients: Gradients | None,
) -> Predicted:
    """RMS errors of a kernel that computes as `arrangement` says; where that says "either", of the worse
    choice.

    Raises KeyError for a dtype other than fp16, bf16 and fp32, ValueError when the shapes do not fit or
    only one of do and gradients is given.
    """
    if (do is None) != (gradients is None):
        raise ValueError("give both do and gradients, or neither")
    kc, vc = clean(k), clean(v)
    M, G = q.shape[2], q.shape[1] // k.shape[1]
    c = _Setting(arrangement, PRECISIONS[q.dtype], scale, kc, vc)
    out_sum = dq_sum = 0.0
    var_dk, var_dv = torch.zeros_like(kc), torch.zeros_like(kc)
    for b in blocks(q, kc, vc, do, mask, scale, truth):
        var_s = _var_logit(b, c)  # [B, H, r, N]
        stored = _var_stored(b, c)  # [B, H, r, D]
        out_sum += float((_var_output(b, var_s, c) + stored).sum())
        if gradients is None:
            continue
        own, shared = _var_score_gradient(b, stored, c)  # [B, H, r, N], [B, H, r, 1]
        moved = _Moved.by(b, var_s, c)
        pk, p2, ds2 = c.mix(b.p, c.k), b.p.square(), b.ds.square()
        var_dq = c.mix(own + _sum_error(c.N) * ds2, c.k.square()) + shared * pk.square() + moved.dq(pk)
        dq_sum += float((scale**2 * var_dq).sum())
        var_ds = own + shared * p2 + moved.ds() + _sum_error(G * M) * ds2
        var_p = _var_round(b.p, c.p, int(c.a.weights_rounded)) + moved.p() + _sum_error(G * M) * p2
        var_dk += scale**2 * (group(var_ds, kc).mT @ group(b.q.square(), kc))
        var_dv += group(var_p, kc).mT @ group(b.do.square(), kc)
    if gradients is None:
        return Predicted(_root_mean(out_sum, truth.o), None, None, None)
    n = c.a.gradient_roundings
    heads = int(G > 1 and c.a.heads_rounded)
    dq_sum += float((_var_round(gradients.dq, c.p, n) + _drift(c.N) * gradients.dq.square()).sum())
    var_dk += _var_round(gradients.dk, c.p, n + heads) + _drift(G * M) * gradients.dk.square()
    var_dv += _var_round(gradients.dv, c.p, 1 + heads) + _drift(G * M) * gradients.dv.square()
    return Predicted(
        _root_mean(out_sum, truth.o),
        _root_mean(dq_sum, truth.o),
        _root_mean(float(var_dk.sum()), kc),
        _root_mean(float(var_dv.sum()), kc),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Setting:
    """What is the same for every block: the arithmetic, and the keys and values [B, HK, N, D]."""

    a: Arrangement
    p: Precision
    scale: float
    k: Tensor
    v: Tensor

    @property
    def N(self) -> int:
        return self.k.shape[2]

    @property
    def exact_scale(self) -> int:
        """1 if multiplying by the scale rounds nothing: a power of two, or 0."""
        return int(math.frexp(abs(self.scale))[0] in (0.0, 0.5))

    def mix(self, w: Tensor, x: Tensor) -> Tensor:
        """W [B, H, r, N] @ x [B, HK, N, X] -> [B, H, r, X]."""
        return ungroup(group(w, self.k) @ x, w)


def _var_logit(b: Block, c: _Setting) -> Tensor:
    """Variance of a computed logit [B, H, r, N]: its operands, its roundings, its fp32 arithmetic."""
    a, rho, rho32 = c.a, _LOG_UNIFORM * c.p.u**2, _LOG_UNIFORM * U32**2
    D = c.k.shape[3]
    terms = c.scale**2 * ungroup(group(b.q.square(), c.k) @ c.k.square().mT, b.q)  # sum of squared products
    scaled = c.scale**2 * b.raw.square()
    n = a.score_roundings - (c.exact_scale if a.score_roundings > 1 else 0)
    biased = int(b.bias.numel() > 1 and n > 0)
    var = rho * (a.operand_roundings * terms + n * scaled + biased * b.s.square())
    var = var + n * c.p.floor**2 / 3 + _sum_error(D) * terms + _drift(D) * scaled
    var = var + rho32 * (a.fp32_roundings * scaled + (b.m - b.s).square())
    return var.masked_fill(~b.visible, 0.0)


def _var_weight(b: Block, c: _Setting) -> Tensor:
    """Variance of P [B, H, r, N] rounded for P V, in units of the normalised P."""
    if not c.a.weights_rounded:
        return torch.zeros_like(b.p)
    l = torch.exp(b.lse - b.m)  # [B, H, r, 1]
    normalised = _var_round(b.p, c.p, 1)
    running = _var_round(b.p * l, c.p, 1) / l.square()  # exp(s - m) is what is rounded
    if c.a.weights == "either":
        return torch.maximum(normalised, running)
    return normalised if c.a.weights == "normalised" else running


def _var_output(b: Block, var_s: Tensor, c: _Setting) -> Tensor:
    """Variance of O [B, H, r, D] by logits and weights; a row sum of the rounded P centres V."""
    var_p = _var_weight(b, c)
    rounded = c.mix(var_p, c.v.square())
    if c.a.row_sum != "unrounded":
        centred = _centred(b, var_p, c)
        rounded = centred if c.a.row_sum == "rounded" else torch.maximum(rounded, centred)
    return _centred(b, b.p.square() * var_s, c) + rounded


def _var_stored(b: Block, c: _Setting) -> Tensor:
    """Variance of O [B, H, r, D] by its fp32 sums and its rounding."""
    sums = _sum_error(c.N) * c.mix(b.p.square(), c.v.square()) + 2 * _drift(c.N) * b.o.square()
    return sums + _var_round(b.o, c.p, 1)


def _centred(b: Block, w: Tensor, c: _Setting) -> Tensor:
    """sum_j w_ij (v_jd - O_id)^2, expanded; V is shifted by its mean first, for the expansion cancels."""
    centre = c.v.mean(-2, keepdim=True)  # [B, HK, 1, D]
    v, x = c.v - centre, b.o - centre.repeat_interleave(b.o.shape[1] // centre.shape[1], 1)
    square = c.mix(w, v.square()) - 2 * x * c.mix(w, v) + x.square() * w.sum(-1, keepdim=True)
    return square.clamp_min(0.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Moved:
    """Variances on the way back that errors of the logits cause, by the second derivative of softmax.

    An error e_l of logit l moves P_j by P_j (1[j = l] - P_l) e_l and, delta being a function of P,

        dS_j by [dS_j (1[j = l] - P_l) - P_j dS_l] e_l
        sum_j dS_j k_j by [dS_l (k_l - P K) - P_l dS K] e_l
    """

    b: Block
    c: _Setting
    var_s: Tensor  # [B, H, r, N]
    pp: Tensor  # sum_l var(s) P^2, with the error of the stored L, which scales the whole row  [B, H, r, 1]
    ps: Tensor  # sum_l var(s) P dS
    ss: Tensor  # sum_l var(s) dS^2

    @classmethod
    def by(cls, b: Block, var_s: Tensor, c: _Setting) -> "_Moved":
        pp, ps, ss = ((var_s * x * y).sum(-1, keepdim=True) for x, y in ((b.p, b.p), (b.p, b.ds), (b.ds, b.ds)))
        stored = _LOG_UNIFORM * U32**2 * b.lse.square() if c.a.recomputed else 0.0
        return cls(b, c, var_s, pp + stored, ps, ss)

    def p(self) -> Tensor:
        """[B, H, r, N]"""
        var = self.b.p.square() * (self.var_s * (1 - 2 * self.b.p) + self.pp)
        return var.clamp_min(0.0)

    def ds(self) -> Tensor:
        """[B, H, r, N]"""
        p, ds = self.b.p, self.b.ds
        var = ds.square() * (self.var_s * (1 - 4 * p) + self.pp) + 2 * p * ds * self.ps + p.square() * self.ss
        return var.clamp_min(0.0)

    def dq(self, pk: Tensor) -> Tensor:
        """[B, H, r, D], of dQ / scale; pk = P K."""
        b, c = self.b, self.c
        w, x = self.var_s * b.ds.square(), self.var_s * b.ds * b.p
        dsk = c.mix(b.ds, c.k)  # [B, H, r, D]
        square = c.mix(w, c.k.square()) - 2 * pk * c.mix(w, c.k) + pk.square() * self.ss
        cross = c.mix(x, c.k) - pk * self.ps
        return (square - 2 * dsk * cross + dsk.square() * self.pp).clamp_min(0.0)


def _var_score_gradient(b: Block, stored: Tensor, c: _Setting) -> tuple[Tensor, Tensor]:
    """Variances of dS [B, H, r, N] and of delta [B, H, r, 1] by all but the logits."""
    a, rho, D = c.a, _LOG_UNIFORM * c.p.u**2, c.k.shape[3]
    gap2, dp2, p2, do2 = (b.dp - b.delta).square(), b.dp.square(), b.p.square(), b.do.square()
    var_p = _var_round(b.p, c.p, int(a.weights_in_ds_rounded))
    var_dp = (rho * int(a.dp_rounded) + _drift(D)) * dp2
    var_dp = var_dp + _sum_error(D) * ungroup(group(do2, c.k) @ c.v.square().mT, b.q)
    n = a.ds_roundings - (c.exact_scale if a.ds_scaled and a.ds_roundings > 1 else 0)
    own = p2 * var_dp + var_p * gap2 + _var_round(b.ds, c.p, n)
    by_weights = (var_p * dp2 + p2 * var_dp).sum(-1, keepdim=True) + 2 * _drift(c.N // 16) * b.delta.square()
    pulled = gap2 if a.row_sum == "rounded" else dp2 if a.row_sum == "unrounded" else torch.maximum(gap2, dp2)
    by_output = (_var_weight(b, c) * pulled).sum(-1, keepdim=True) + _drift(D) * b.delta.square()
    by_output = by_output + (do2 * (stored + _sum_error(D) * b.o.square())).sum(-1, keepdim=True)
    if a.delta == "either":
        shared = torch.maximum(by_output, by_weights)
    else:
        shared = by_output if a.delta == "output" else by_weights
    return own.masked_fill(~b.visible, 0.0), shared


def _var_round(x: Tensor, p: Precision, roundings: int) -> Tensor:
    """Variance of rounding x so many times: relative among normal numbers, floor^2 / 3 among subnormals.

    Never beyond the distance to 0 and 1, which are exact: a vanishing weight, and the weight of a dominant
    key.
    """
    var = roundings * (_LOG_UNIFORM * p.u**2 * x.square() + p.floor**2 / 3)
    return torch.minimum(var, torch.minimum(x.square(), (1 - x.abs()).square()))


def _sum_error(n: int) -> float:
    """Variance of a sequential n-term fp32 sum, per sum of squared terms; `_drift` has the rest.

    The partial sums of terms of random sign, given where they end, are a Brownian bridge around the
    straight line to the result: the sum of their squares is n/6 sum t^2 + n/3 result^2.
    """
    return _LOG_UNIFORM * U32**2 * (1 + n / 6)


def _drift(n: int) -> float:
    """Variance of a sequential n-term fp32 sum, per squared result: see `_sum_error`."""
    return _LOG_UNIFORM * U32**2 * (1 + n / 3)


def _root_mean(total: float, like: Tensor) -> float:
    return math.sqrt(total / max(1, like.numel()))
