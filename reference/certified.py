"""Certified attention: forward, log-sum-exp and backward in ball arithmetic, with a proven error radius.

Every quantity is an interval (midpoint and radius) that contains the exact value for the given inputs,
whatever their rounding; python-flint's `arb` propagates the radii (Johansson 2017, IEEE Trans. Comput.
66(8)). 128 bits are ample for logits of order 1; the radius grows like the largest logit, hence the default
of 192. Time is O(M N D) in software: some 0.05 s for 64 x 64 and 0.15 s for 128 x 128 per head at D = 64.
"""

from dataclasses import dataclass

import torch
from flint import arb, arb_mat, ctx
from torch import Tensor

from .attention import Forward, Gradients, check_shapes, forward
from .blocks import clean
from .masks import Mask
from .rational import score_gradient
from .scalars import all_finite
from .scales import Scales, natural_scales


@dataclass(frozen=True, slots=True, eq=False)
class Ball:
    """The exact value lies within `radius` of hi + lo; float64 tensors of one shape, lo the tail of hi."""

    hi: Tensor
    lo: Tensor
    radius: Tensor

    def distance(self, x: Tensor) -> Tensor:
        """An upper bound of |x - exact value|, elementwise; equal infinities are at distance 0."""
        return torch.where(x == self.hi, self.lo.abs(), (x - self.hi - self.lo).abs()) + self.radius


@dataclass(frozen=True, slots=True, eq=False)
class Certified:
    """Balls shaped as the results of `attention`, None for gradients without dO; and natural scales."""

    o: Ball
    lse: Ball
    dq: Ball | None
    dk: Ball | None
    dv: Ball | None
    scales: Scales


@dataclass(frozen=True, slots=True)
class Distances:
    """Largest |float64 - exact| in units of the natural scale (lse: of max(1, |lse|)) per tensor."""

    out: float
    lse: float
    dq: float | None
    dk: float | None
    dv: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Balls:
    """`arb` balls in row-major order: o, dq of [B, H, M, D]; lse of [B, H, M]; dk, dv of [B, HK, N, D]."""

    o: list[arb]
    lse: list[arb]
    dq: list[arb]
    dk: list[arb]
    dv: list[arb]


def certified(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor | None, mask: Mask, scale: float, bits: int = 192
) -> Certified:
    """Attention on exactly these inputs, to about `bits` bits; shapes and empty rows as in `attention`.

    Raises ValueError when the shapes do not fit together, or a visible input is NaN or Inf.
    """
    check_shapes(q, k, v, do)
    truth = forward(q, k, v, mask, scale)
    if truth.o.isnan().any() or truth.lse.isnan().any() or (do is not None and not all_finite(do)):
        raise ValueError("certified attention needs finite inputs wherever the mask lets them be seen")
    scales = natural_scales(q, k, v, do, mask, scale, truth)
    x = balls(q, k, v, torch.zeros_like(q) if do is None else do, mask, scale, bits)
    with ctx.workprec(bits):
        out, lse = _ball(x.o, q.shape), _ball(x.lse, q.shape[:3])
        if do is None:
            return Certified(out, lse, None, None, None, scales)
        return Certified(out, lse, _ball(x.dq, q.shape), _ball(x.dk, k.shape), _ball(x.dv, k.shape), scales)


def balls(q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask, scale: float, bits: int) -> Balls:
    """The same as the balls themselves, for those who need more digits than two doubles hold; inputs are finite."""
    (B, H, M, D), (HK, N) = q.shape, k.shape[1:3]
    visible, bias = mask.rows(0, M, M, N, q.device)
    visible = visible.expand(B, H, M, N)
    bias = torch.zeros(B, H, M, N, dtype=torch.float64) if bias is None else bias.expand(B, H, M, N)
    x = Balls([], [], [], [], [])
    with ctx.workprec(bits):
        for b in range(B):
            for g in range(HK):
                K, V = _matrix(k[b, g]), _matrix(v[b, g])  # N x D
                dK, dV = arb_mat(N, D), arb_mat(N, D)
                for h in range(g * (H // HK), (g + 1) * (H // HK)):
                    Q, dO = _matrix(q[b, h]), _matrix(do[b, h])  # M x D
                    P, L = _weights(Q * K.transpose(), visible[b, h], bias[b, h], scale)  # M x N, M
                    dS = score_gradient(P, dO * V.transpose())  # M x N
                    x.o.extend((P * V).entries())
                    x.lse.extend(L)
                    x.dq.extend((dS * K * arb(scale)).entries())
                    dK += dS.transpose() * Q * arb(scale)
                    dV += P.transpose() * dO
                x.dk.extend(dK.entries())
                x.dv.extend(dV.entries())
    return x


def distance(truth: Forward, exact: Certified, gradients: Gradients | None = None) -> Distances:
    """How far float64 results lie from the balls at most, radii included, in units of the natural scale."""
    s = exact.scales
    g = gradients
    dq = None if g is None or exact.dq is None or s.dq is None else _worst(exact.dq, g.dq, s.dq)
    dk = None if g is None or exact.dk is None or s.dk is None else _worst(exact.dk, g.dk, s.dk)
    dv = None if g is None or exact.dv is None or s.dv is None else _worst(exact.dv, g.dv, s.dv)
    lse = _worst(exact.lse, truth.lse, truth.lse.abs().nan_to_num(posinf=1.0).clamp_min(1.0))
    return Distances(_worst(exact.o, truth.o, s.out), lse, dq, dk, dv)


def _worst(ball: Ball, x: Tensor, scale: Tensor) -> float:
    apart = ball.distance(x.cpu())
    ratio = torch.where(apart == 0, 0.0, apart / scale.cpu())  # nothing to sum: both are exactly 0
    return float(ratio.max()) if ratio.numel() else 0.0


def _matrix(x: Tensor) -> arb_mat:
    """[rows, columns] as exact balls; what only hidden pairs may hold, NaN and Inf, becomes 0."""
    return arb_mat(x.shape[0], x.shape[1], [arb(e) for e in clean(x).flatten().tolist()])


def _weights(products: arb_mat, visible: Tensor, bias: Tensor, scale: float) -> tuple[arb_mat, list[arb]]:
    """P (M x N) and L (M) from Q K^T: S = scale * Q K^T + bias, P = exp(S - L) where visible, else 0."""
    M, N = visible.shape
    p, lse = [[arb(0)] * N for _ in range(M)], [arb("-inf")] * M
    for i, (seen, extra) in enumerate(zip(visible.tolist(), bias.tolist(), strict=True)):
        keys = [j for j in range(N) if seen[j]]
        if not keys:
            continue
        s = {j: arb(scale) * products[i, j] + arb(extra[j]) for j in keys}
        top = arb(max(float(x.mid()) for x in s.values()))  # any shift is right; this one avoids overflow
        w = {j: (s[j] - top).exp() for j in keys}
        total = sum(w.values(), arb(0))
        lse[i] = top + total.log()
        for j in keys:
            p[i][j] = w[j] / total
    return arb_mat(M, N, [x for row in p for x in row]), lse


def _ball(x: list[arb], shape: torch.Size) -> Ball:
    """The list as tensors: hi = float(midpoint), lo = float(x - hi), and a radius that covers the rest."""
    hi, lo, radius = [float(e.mid()) for e in x], [0.0] * len(x), [0.0] * len(x)
    for n, e in enumerate(x):
        if e.is_finite():
            lo[n] = float((e - hi[n]).mid())
            rest = float((e - hi[n] - lo[n]).abs_upper())
            radius[n] = rest and rest * (1 + 2.0**-50) + 5e-324  # float() may have rounded down
        elif not e.is_exact():  # too few bits: nothing is known; an exact -inf is the L of an empty row
            radius[n] = torch.inf
    return Ball(*(torch.tensor(y, dtype=torch.float64).reshape(shape) for y in (hi, lo, radius)))
