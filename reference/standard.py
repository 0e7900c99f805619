"""Standard attention in the working precision: S and P materialised, every operation's result rounded.

This is the baseline that a fused kernel replaces, with the arithmetic of torch's eager operators: a matrix
product of half-precision operands accumulates in fp32 and is rounded once; softmax and its derivative
compute in fp32 inside and round their result. torch's own `math` backend is not this baseline: it upcasts
half inputs.

    softmax="rounded"   S = r(r(r(Q K^T) * scale) + bias), P = r(softmax S), O = r(P V);
                        dP, dS and dS * scale are rounded likewise
    softmax="fp32"      S and softmax in fp32, P rounded only as an operand of P V and P^T dO;
                        dP and dS in fp32, dS * scale rounded only as an operand of dS K and dS^T Q

r is the rounding to q.dtype, the identity for fp32, where both variants coincide. r overflows: in fp16 a
score with |q . k| >= 65520 *before* scaling becomes infinite in "rounded", and a row that sees a +Inf is
NaN, as it is in reality. Grouped-query heads are repeated, as eager code does: dK and dV are rounded per
query head, summed, and rounded again.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .attention import Forward, Gradients, check_shapes, contract
from .attention import softmax as fp32_softmax
from .masks import Mask
from .scalars import all_finite

Softmax = Literal["rounded", "fp32"]
Rounding = Callable[[Tensor], Tensor]  # fp32 -> fp32


def forward(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, softmax: Softmax = "rounded") -> Forward:
    """O [B, H, M, D] in q.dtype; lse [B, H, M] in fp32, of the scores as rounded.

    Raises ValueError when the shapes do not fit together.
    """
    check_shapes(q, k, v)
    if k.shape[2] == 0:
        return Forward(torch.zeros_like(q), torch.full_like(q[..., 0], -torch.inf, dtype=torch.float32))
    r = _rounding(q.dtype)
    vh = _repeat(v, q)  # [B, H, N, D]
    s, visible = _scores(q, k, mask, scale, r if softmax == "rounded" else _keep)
    p, lse = fp32_softmax(s, visible)  # [B, H, M, N], [B, H, M]
    o = r(contract(r(p), vh, None if all_finite(v) else visible.expand_as(p)))
    return Forward(o.to(q.dtype), lse)


def backward(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask, scale: float, softmax: Softmax = "rounded"
) -> Gradients:
    """What autograd computes through `forward`: dq [B, H, M, D], dk, dv [B, HK, N, D], all in q.dtype.

        dV = r(P^T dO)    dP = r(dO V^T)    dS = r(P * (dP - rowsum(P * dP)))    dQ = r(r(dS * scale) K)

    Raises ValueError when the shapes do not fit together.
    """
    check_shapes(q, k, v, do)
    if k.shape[2] == 0:
        return Gradients(torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
    r = _rounding(q.dtype)
    inner = r if softmax == "rounded" else _keep
    qh, kh, vh, doh = q.float(), _repeat(k, q), _repeat(v, q), do.float()
    s, visible = _scores(q, k, mask, scale, inner)
    seen = None if all_finite(q, k, v, do) else visible.expand_as(s)
    back = None if seen is None else seen.mT
    p = inner(fp32_softmax(s, visible)[0])  # [B, H, M, N]
    dp = inner(doh @ vh.mT).masked_fill_(~visible, 0.0)  # [B, H, M, N]
    delta = (p * dp).sum(-1, keepdim=True)  # [B, H, M, 1]
    ds = inner(p * (dp - delta)).masked_fill_(~visible, 0.0)  # [B, H, M, N]
    ds = r(ds * scale)  # [B, H, M, N]
    dq = r(contract(ds, kh, seen))  # [B, H, M, D]
    dk = r(contract(ds.mT, qh, back))  # [B, H, N, D]
    dv = r(contract(r(p).mT, doh, back))  # [B, H, N, D]
    return Gradients(dq.to(q.dtype), _sum_groups(dk, k, r), _sum_groups(dv, v, r))


def _scores(q: Tensor, k: Tensor, mask: Mask, scale: float, r: Rounding) -> tuple[Tensor, Tensor]:
    """S [B, H, M, N] in fp32, each step rounded by r, -inf where hidden; and which keys are visible."""
    M, N = q.shape[2], k.shape[2]
    visible, bias = mask.rows(0, M, M, N, q.device)
    s = r(r(q.float() @ _repeat(k, q).mT) * scale)
    if bias is not None:
        s = r(s + bias.float())
    return s.masked_fill_(~visible, -torch.inf), visible


def _rounding(dtype: torch.dtype) -> Rounding:
    """The rounding of an fp32 value to `dtype` and back."""
    return _keep if dtype == torch.float32 else lambda x: x.to(dtype).float()


def _keep(x: Tensor) -> Tensor:
    return x


def _repeat(x: Tensor, q: Tensor) -> Tensor:
    """[B, HK, N, D] -> [B, H, N, D] in fp32."""
    return x.float().repeat_interleave(q.shape[1] // x.shape[1], 1)


def _sum_groups(x: Tensor, like: Tensor, r: Rounding) -> Tensor:
    """[B, H, N, D] -> [B, HK, N, D]: the gradient of repeating heads, in the dtype of `like`."""
    B, HK, N, D = like.shape
    return r(x.reshape(B, HK, -1, N, D).sum(2)).to(like.dtype)
