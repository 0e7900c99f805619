"""How large a correct kernel's error is on average: RMS predictors.

A bound must cover the worst sign of every rounding; a predictor treats roundings as independent and
unbiased. The relative error of rounding a number with a log-uniform significand has second moment rho =
u_p^2 / (8 ln 2) = 0.18 u_p^2: the mean of ulp^2 / 12 over the binade. First-order propagation through
attention, variances adding, gives

    var O  = sum_j P^2 var(s) (v - O)^2  +  sum_j var(P) v^2  +  rho O^2          (*)
    var dV = sum_i var(P) dO^2  +  g rho dV^2
    var dQ = scale^2 [ sum_j (var(dS) K^2 - 2 cov(dS, delta) K (P K)) + var(delta) (P K)^2 ]  +  rho dQ^2
    var dK = scale^2 sum_i (var(dS) - 2 P cov(dS, delta) + P^2 var(delta)) Q^2  +  g rho dK^2
    var L  = sum_j P^2 var(s)  +  sum_j var(P)  +  4 rho_32 (L^2 + m^2)

plus what errors of the logits do on the way back (`_Moved`); of L the largest that is legitimate, for l may be
the sum of the weights as rounded. var(s) collects the roundings of the logits, var(P) those of the weights,
var(dS) and var(delta) those on the way back, which have roundings in common where delta is the sum of the
weights (`_Own`); rho is meant once per rounding.
(*) A query that sees a single key has a weight of exactly 1 (given `own_maximum`), and an output that p holds:
neither is rounded (`var_round`, `var_round_of_result`), and its delta is free of such errors. Under a causal mask
the first query is one; O^2 is there what V^2 is, and 1/i of that where i keys are averaged.
g is 1, or 2 in an arrangement that rounds the dK_h and dV_h of each query head before it sums those of a group
(`heads_rounded`): sum_h rho dK_h^2 is rho dK^2 on average where the heads' errors and gradients are independent.
Counting that rounding in a kernel that sums in fp32 puts the prediction sqrt(3/2) too high where the g rho term
is as large as the other, which it is for independent terms: dV^2 is then sum_i P^2 dO^2 on average.
Coherent roundings (many equal weights) make the error larger, exactly representable values make it smaller:
meant for independently drawn inputs, and for the RMS over a whole tensor. Running sums of gradients that
pass through p (`gradient_stores`) are not predicted: a kernel that does this is worse than it need be.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from .arrangements import PRECISIONS, U32, Arrangement, Precision
from .attention import Forward, Gradients, check_gradients, group
from .blocks import blocks, clean
from .masks import Mask
from .moments import LOG_UNIFORM, Keys, Moments, drift, sum_error, var_round, var_round_of_result
from .scalars import at_once

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predicted RMS error over the whole tensor; the gradients' are None when no dO was given.

    All are inf where roundings of the logits move weights by as much as these are, as where every key of a query has
    a bias of the dtype's lowest number: nothing is predicted there.
    """

    out: float
    lse: float  # over the queries that see a key
    dq: float | None
    dk: float | None
    dv: float | None


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
    check_gradients(do, gradients)
    keys = Keys(clean(k), clean(v))
    sums = VarianceSums(arrangement, PRECISIONS[q.dtype], scale, keys, truth, gradients)
    for b in blocks(q, keys.k, keys.v, do, mask, scale, truth):
        sums.add(Moments(b, keys, PRECISIONS[q.dtype]))
    return sums.result()


class VarianceSums:
    """`predict`, block by block."""

    def __init__(
        self, a: Arrangement, p: Precision, scale: float, keys: Keys, truth: Forward, gradients: Gradients | None
    ) -> None:
        queries = truth.o.shape[1] // keys.k.shape[1] * truth.o.shape[2]
        self._c, self._truth, self._gradients = _Setting(a, p, scale, keys.k, queries), truth, gradients
        self._out = self._lse = self._dq = self._sway = keys.k.new_zeros(())
        self._dk, self._dv = torch.zeros_like(keys.k), torch.zeros_like(keys.k)

    def add(self, x: Moments) -> None:
        """Take a block into account."""
        c = self._c
        self._sway = torch.maximum(self._sway, x.sway)
        mixed = _var_output(x, c)  # [B, H, r, D]
        stored = _var_stored(x, mixed, c)  # [B, H, r, D]
        self._out = self._out + (mixed + stored).sum()
        self._lse = self._lse + _var_lse(x, c).sum()
        if self._gradients is None:
            return
        shared = _var_delta(x, stored, c)
        self._dq = self._dq + (c.scale**2 * _var_dq(x, shared, c)).sum()
        self._dk += c.scale**2 * (group(_var_ds(x, shared, c), c.k).mT @ group(x.q2, c.k))
        self._dv += _var_dv(x, c)

    def result(self) -> Predicted:
        """After the last block."""
        c, o, exact, n = self._c, self._truth.o, self._gradients, self._c.queries
        seeing = torch.isfinite(self._truth.lse).count_nonzero()
        var_out, var_lse, sway, rows = at_once(self._out, self._lse, self._sway, seeing)
        if sway * (c.p.u if c.a.score_roundings else U32) > 1:  # beyond first order
            gradient = None if exact is None else math.inf
            return Predicted(math.inf, math.inf, gradient, gradient, gradient)
        out, lse = math.sqrt(var_out / max(1, o.numel())), math.sqrt(var_lse / max(1.0, rows))
        if exact is None:
            return Predicted(out, lse, None, None, None)
        roundings = c.a.gradient_roundings
        heads = int(o.shape[1] > c.k.shape[1] and c.a.heads_rounded)
        dq = self._dq + (var_round(exact.dq, c.p, roundings) + drift(c.N) * exact.dq.square()).sum()
        dk = self._dk + (var_round(exact.dk, c.p, roundings + heads) + drift(n) * exact.dk.square())
        dv = self._dv + (var_round(exact.dv, c.p, 1 + heads) + drift(n) * exact.dv.square())
        sums = zip(at_once(dq, dk.sum(), dv.sum()), (o, c.k, c.k), strict=True)
        return Predicted(out, lse, *(math.sqrt(total / max(1, like.numel())) for total, like in sums))


@dataclass(frozen=True, slots=True, eq=False)
class _Setting:
    """What is the same for every block: the arithmetic a in precision p, the scale, and the keys [B, HK, N, D].

    queries: how many share a key, those of all heads of its group.
    """

    a: Arrangement
    p: Precision
    scale: float
    k: Tensor
    queries: int

    @property
    def N(self) -> int:
        return self.k.shape[2]

    @property
    def exact_scale(self) -> int:
        """1 if multiplying by the scale rounds nothing: a power of two, or 0."""
        return int(math.frexp(abs(self.scale))[0] in (0.0, 0.5))

    @property
    def until_stored(self) -> Arrangement:
        """The arithmetic less what concerns the storing of results alone: O, dK and dV."""
        return replace(self.a, name="", own_maximum=True, heads_rounded=True)


def _until_stored(f: Callable[[Moments, _Setting], T]) -> Callable[[Moments, _Setting], T]:
    """F computed once for all arrangements that differ in the storing of results alone, which f must not depend on."""

    @wraps(f)
    def once(x: Moments, c: _Setting) -> T:
        key = f.__name__, c.until_stored
        if key not in x.computed:
            x.computed[key] = f(x, c)
        return cast(T, x.computed[key])

    return once


@_until_stored
def _var_logit(x: Moments, c: _Setting) -> Tensor:
    """Variance of a computed logit [B, H, r, N]: its operands, its roundings, its fp32 arithmetic."""
    b, a, rho, rho32 = x.b, c.a, LOG_UNIFORM * c.p.u**2, LOG_UNIFORM * U32**2
    D = c.k.shape[3]
    scaled = c.scale**2 * b.raw.square()
    n = a.score_roundings - (c.exact_scale if a.score_roundings > 1 else 0)
    biased = int(b.bias.numel() > 1 and n > 0)
    # of the terms of a product, and of the product
    var = ((rho * a.operand_roundings + sum_error(D)) * c.scale**2) * x.q2k2
    var = var + (rho * n + drift(D) + rho32 * a.fp32_roundings) * scaled + rho32 * x.below2
    if n:
        var = var + rho * biased * b.s.square() + n * c.p.floor**2 / 3
    return var.masked_fill_(~b.visible, 0.0)


@_until_stored
def _var_weight(x: Moments, c: _Setting) -> Tensor:
    """Variance of P [B, H, r, N] rounded for P V, in units of the normalised P."""
    b, kind = x.b, c.a.weights
    if not c.a.weights_rounded:
        return torch.zeros_like(b.p)
    if kind == "normalised":
        return x.rounded_p
    l = torch.exp(b.lse - b.m)  # [B, H, r, 1]
    running = var_round(b.p * l, c.p, 1) / l.square()  # exp(s - m) is what is rounded
    return torch.maximum(x.rounded_p, running) if kind == "either" else running


@_until_stored
def _var_output(x: Moments, c: _Setting) -> Tensor:
    """Variance of O [B, H, r, D] by logits and weights; a row sum of the rounded P centres V."""
    var_p = _var_weight(x, c)
    rounded = x.keys.mix(var_p, x.keys.v2)
    if c.a.row_sum != "unrounded":
        centred = x.centred(var_p)
        rounded = centred if c.a.row_sum == "rounded" else torch.maximum(rounded, centred)
    return x.centred(x.p2 * _var_logit(x, c)) + rounded


@_until_stored
def _var_lse(x: Moments, c: _Setting) -> Tensor:
    """Variance of L [B, H, r, 1] in a kernel that sums its weights as rounded; 0 where no key is seen."""
    b, rho32 = x.b, LOG_UNIFORM * U32**2
    var = (x.p2 * (_var_logit(x, c) + sum_error(c.N)) + _var_weight(x, c)).sum(-1, keepdim=True)
    var = var + drift(c.N) + c.a.eps_exp**2 + 4 * rho32 * (b.lse.square() + b.m.square())
    return torch.where(b.visible.expand_as(b.p).any(-1, keepdim=True), var, 0.0)


def _var_stored(x: Moments, mixed: Tensor, c: _Setting) -> Tensor:
    """Variance of O [B, H, r, D] by its fp32 sums and its rounding; `mixed` is that by logits and weights."""
    sums = sum_error(c.N) * x.p2v2 + 2 * drift(c.N) * x.b.o.square()
    return sums + (var_round_of_result(x.b.o, c.p, mixed + sums) if c.a.own_maximum else var_round(x.b.o, c.p, 1))


# -- on the way back ---------------------------------------------------------------------------------------------------


class _Moved(NamedTuple):
    """Variances on the way back that errors of the logits cause, by the second derivative of softmax.

    An error e_l of logit l moves P_j by P_j (1[j = l] - P_l) e_l and, delta being a function of P,

        dS_j by [dS_j (1[j = l] - P_l) - P_j dS_l] e_l
        sum_j dS_j k_j by [dS_l (k_l - P K) - P_l dS K] e_l
    """

    p: Tensor  # [B, H, r, N]
    ds: Tensor  # [B, H, r, N]
    dq: Tensor  # of dQ / scale  [B, H, r, D]


@_until_stored
def _moved(x: Moments, c: _Setting) -> _Moved:
    b, p, ds = x.b, x.b.p, x.b.ds
    var_s, pds = _var_logit(x, c), p * ds
    w, y = var_s * x.ds2, var_s * pds
    # sum_l var(s) P^2, with the error of the stored L, which scales the row; var(s) P dS; var(s) dS^2  [B, H, r, 1]
    pp, ps, ss = ((var_s * x.p2).sum(-1, keepdim=True), y.sum(-1, keepdim=True), w.sum(-1, keepdim=True))
    pp = pp + (LOG_UNIFORM * U32**2 * b.lse.square() if c.a.recomputed else 0.0)
    moved_p = x.p2 * (var_s * (1 - 2 * p) + pp)
    moved_ds = x.ds2 * (var_s * (1 - 4 * p) + pp) + 2 * ps * pds + x.p2 * ss
    square = x.keys.mix(w, x.keys.k2) - 2 * x.pk * x.keys.mix(w, c.k) + x.pk.square() * ss
    cross = x.keys.mix(y, c.k) - x.pk * ps
    moved_dq = square - 2 * x.dsk * cross + x.dsk.square() * pp
    return _Moved(moved_p.clamp_min_(0.0), moved_ds.clamp_min_(0.0), moved_dq.clamp_min_(0.0))


class _Own(NamedTuple):
    """Of dS by all but the logits: an error of its own per element, less P times that of delta, which a row shares.

    A delta from the weights, rowsum(P * dP), has the rounded P and dP of dS itself. With a single key the two cancel.
    """

    variance: Tensor  # [B, H, r, N]
    by_keys: Tensor  # sum_j of it times k_j^2  [B, H, r, D]
    common: Tensor | None  # its covariance with the error of delta  [B, H, r, N], None for 0


def _var_weight_of_ds(x: Moments, c: _Setting) -> Tensor | float:
    """Variance of the P [B, H, r, N] that dS is made of, by its rounding."""
    return x.rounded_p if c.a.weights_in_ds_rounded else 0.0


@_until_stored
def _var_dp(x: Moments, c: _Setting) -> Tensor:
    """Variance of dP [B, H, r, N]: its fp32 sums, and its rounding."""
    D = c.k.shape[3]
    return (LOG_UNIFORM * c.p.u**2 * int(c.a.dp_rounded) + drift(D)) * x.dp2 + sum_error(D) * x.do2v2


@_until_stored
def _own(x: Moments, c: _Setting) -> _Own:
    """What dS has of the roundings of P, dP and its own."""
    b, a = x.b, c.a
    var_p, var_dp = _var_weight_of_ds(x, c), _var_dp(x, c)
    n = a.ds_roundings - (c.exact_scale if a.ds_scaled and a.ds_roundings > 1 else 0)
    own = x.p2 * var_dp + var_p * x.gap2 + var_round(b.ds, c.p, n)
    own = own.masked_fill_(~b.visible, 0.0)
    common = var_p * (b.dp - b.delta) * b.dp + x.p2 * var_dp if a.delta == "weights" else None
    return _Own(own, x.keys.mix(own, x.keys.k2), common)


def _var_delta(x: Moments, stored: Tensor, c: _Setting) -> Tensor:
    """Variance of delta [B, H, r, 1]; `stored` is that of O by its storing."""
    if c.a.delta == "weights":
        return _var_delta_from_weights(x, c)
    D = c.k.shape[3]
    by_output = _pulled(x, c) + (x.do2 * (stored + sum_error(D) * x.b.o.square())).sum(-1, keepdim=True)
    return by_output if c.a.delta == "output" else torch.maximum(by_output, _var_delta_from_weights(x, c))


@_until_stored
def _var_delta_from_weights(x: Moments, c: _Setting) -> Tensor:
    """Variance of delta = rowsum(P * dP) [B, H, r, 1]."""
    products = _var_weight_of_ds(x, c) * x.dp2 + x.p2 * _var_dp(x, c)
    return products.sum(-1, keepdim=True) + 2 * drift(c.N // 16) * x.b.delta.square()


@_until_stored
def _pulled(x: Moments, c: _Setting) -> Tensor:
    """Variance of delta = rowsum(dO * O) [B, H, r, 1] by the weights, and by its own sum."""
    b, D, row_sum = x.b, c.k.shape[3], c.a.row_sum
    pulled = x.gap2 if row_sum == "rounded" else x.dp2 if row_sum == "unrounded" else torch.maximum(x.gap2, x.dp2)
    return (_var_weight(x, c) * pulled).sum(-1, keepdim=True) + drift(D) * b.delta.square()


def _var_dq(x: Moments, shared: Tensor, c: _Setting) -> Tensor:
    """Variance of dQ / scale [B, H, r, D]; `shared` is that of delta."""
    own = _own(x, c)
    var = own.by_keys + shared * x.pk.square()
    var = var if own.common is None else (var - 2 * x.pk * x.keys.mix(own.common, c.k)).clamp_min_(0.0)
    return sum_error(c.N) * x.ds2k2 + var + _moved(x, c).dq


def _var_ds(x: Moments, shared: Tensor, c: _Setting) -> Tensor:
    """Variance of dS as it is summed to dK [B, H, r, N]; `shared` is that of delta."""
    own = _own(x, c)
    var = own.variance + shared * x.p2
    var = var if own.common is None else (var - 2 * x.b.p * own.common).clamp_min_(0.0)
    return var + _moved(x, c).ds + sum_error(c.queries) * x.ds2


@_until_stored
def _var_dv(x: Moments, c: _Setting) -> Tensor:
    """Variance of dV [B, HK, N, D] but for storing it."""
    var_p = (x.rounded_p if c.a.weights_rounded else 0.0) + _moved(x, c).p + sum_error(c.queries) * x.p2
    return group(var_p, c.k).mT @ group(x.do2, c.k)
