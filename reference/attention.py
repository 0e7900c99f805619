"""Attention in float64: the forward, its log-sum-exp, and the backward written out by hand.

    S = scale * Q K^T + bias        P = softmax over the visible keys        O = P V        L = log sum exp S

Half and single precision inputs are exact in float64, so this is the truth about the *rounded* inputs, up to
an error of order 2^-53. Queries are taken a block of rows at a time: memory grows with N, not with M * N.

Shapes: q [B, H, M, D]; k, v [B, HK, N, D]; head h of q reads head h // (H // HK) of k and v (grouped-query
attention). A query that sees no key (also N = 0) has O = 0, L = -inf and no gradient. What the mask hides may
hold NaN or Inf.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .masks import Mask
from .scalars import all_finite

_BLOCK_BYTES = 32 * 2**20  # one [B, H, rows, N] float64 temporary


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """o [B, H, M, D]; lse [B, H, M], the natural logarithm of the sum of exp of the visible logits."""

    o: Tensor
    lse: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """dq [B, H, M, D]; dk, dv [B, HK, N, D]."""

    dq: Tensor
    dk: Tensor
    dv: Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Forward:
    """O and L in float64, on the device of q. Raises ValueError when the shapes do not fit together."""
    check_shapes(q, k, v)
    B, H, M, D = q.shape
    N = k.shape[2]
    o = q.new_zeros(B, H, M, D, dtype=torch.float64)
    lse = q.new_full((B, H, M), -torch.inf, dtype=torch.float64)
    if N == 0:
        return Forward(o, lse)
    clean = all_finite(v)
    k, v = k.double(), v.double()
    for start, stop in row_blocks(B, H, M, N, _BLOCK_BYTES):
        visible, bias = mask.rows(start, stop, M, N, q.device)
        s = logits(q[:, :, start:stop].double(), k, visible, bias, scale)  # [B, H, r, N]
        p, lse[:, :, start:stop] = softmax(s, visible)
        o[:, :, start:stop] = ungroup(contract(group(p, k), v, None if clean else seen(visible, p, k)), p)
    return Forward(o, lse)


def backward(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask, scale: float, dlse: Tensor | None = None
) -> Gradients:
    """The vector-Jacobian product of O with do [B, H, M, D], and of L with dlse [B, H, M] if given, in float64.

        dV = P^T dO     dP = dO V^T     delta = rowsum(P * dP) - dL     dS = P * (dP - delta)
        dQ = scale * dS K     dK = scale * dS^T Q

    Raises ValueError when the shapes do not fit together.
    """
    check_shapes(q, k, v, do)
    B, H, M, D = q.shape
    N = k.shape[2]
    dq = q.new_zeros(B, H, M, D, dtype=torch.float64)
    dk = torch.zeros_like(k, dtype=torch.float64, memory_format=torch.contiguous_format)
    dv = torch.zeros_like(v, dtype=torch.float64, memory_format=torch.contiguous_format)
    if N == 0:
        return Gradients(dq, dk, dv)
    clean = all_finite(q, k, v, do)
    k, v = k.double(), v.double()
    for start, stop in row_blocks(B, H, M, N, _BLOCK_BYTES):
        visible, bias = mask.rows(start, stop, M, N, q.device)
        q_i = q[:, :, start:stop].double()  # [B, H, r, D]
        do_i = do[:, :, start:stop].double()  # [B, H, r, D]
        p, _ = softmax(logits(q_i, k, visible, bias, scale), visible)  # [B, H, r, N]
        dp = ungroup(group(do_i, k) @ v.mT, p).masked_fill_(~visible, 0.0)  # [B, H, r, N]
        delta = (p * dp).sum(-1, keepdim=True)  # [B, H, r, 1]
        if dlse is not None:
            delta -= dlse[:, :, start:stop, None]
        ds = dp.sub_(delta).mul_(p).masked_fill_(~visible, 0.0)  # [B, H, r, N]
        look = None if clean else seen(visible, p, k)  # [B, HK, G r, N]
        back = None if look is None else look.mT
        dq[:, :, start:stop] = scale * ungroup(contract(group(ds, k), k, look), q_i)
        dk += scale * contract(group(ds, k).mT, group(q_i, k), back)
        dv += contract(group(p, k).mT, group(do_i, k), back)
    return Gradients(dq, dk, dv)


# ---- the pieces, shared with the error bounds ----


def check_gradients(do: Tensor | None, gradients: Gradients | None) -> None:
    """Raises ValueError when only one of dO and the gradients is given."""
    if (do is None) != (gradients is None):
        raise ValueError("give both do and gradients, or neither")


def check_shapes(q: Tensor, k: Tensor, v: Tensor, do: Tensor | None = None) -> None:
    """Raises ValueError unless q [B, H, M, D], k and v [B, HK, N, D], do like q, and HK divides H."""
    four = q.ndim == k.ndim == 4
    if not four or k.shape != v.shape or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        got = f"{[*q.shape]}, {[*k.shape]}, {[*v.shape]}"
        raise ValueError(f"q must be [B, H, M, D], k and v [B, HK, N, D]: got {got}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"the heads of k must divide the heads of q: got {k.shape[1]} and {q.shape[1]}")
    if do is not None and do.shape != q.shape:
        raise ValueError(f"do must have the shape of q: got {[*do.shape]} and {[*q.shape]}")


def row_blocks(B: int, H: int, M: int, N: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of query rows such that one float64 [B, H, rows, N] takes about `size` bytes."""
    rows = max(1, size // (8 * max(1, B * H * N)))
    for start in range(0, M, rows):
        yield start, min(M, start + rows)


def group(x: Tensor, k: Tensor) -> Tensor:
    """[B, H, r, X] -> [B, HK, G r, X]: query heads that share a key head become rows of one product."""
    B, H, r, X = x.shape
    return x.reshape(B, k.shape[1], H // k.shape[1] * r, X)


def ungroup(x: Tensor, like: Tensor) -> Tensor:
    """[B, HK, G r, X] -> [B, H, r, X], the inverse of `group`."""
    B, H, r, _ = like.shape
    return x.reshape(B, H, r, x.shape[-1])


def logits(q: Tensor, k: Tensor, visible: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """S [B, H, r, N] of the query rows q [B, H, r, D]; -inf where hidden, whatever the hidden key holds."""
    s = ungroup(group(q, k) @ k.mT, q).mul_(scale)  # [B, H, r, N]
    if bias is not None:
        s = s.add_(bias)
    return s.masked_fill_(~visible, -torch.inf)


def softmax(s: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """P [B, H, r, N] and L [B, H, r] of the logits s (overwritten); no visible key: P = 0, L = -inf."""
    empty = ~visible.any(-1, keepdim=True)
    m = s.amax(-1, keepdim=True).masked_fill(empty, 0.0)
    w = s.sub_(m).exp_()  # 0 where hidden
    l = w.sum(-1, keepdim=True).masked_fill(empty, 1.0)
    lse = (m + l.log()).masked_fill(empty, -torch.inf)
    return w.div_(l).masked_fill_(~visible, 0.0), lse.squeeze(-1)  # a NaN in l must not reach hidden keys


def contract(w: Tensor, x: Tensor, seen: Tensor | None) -> Tensor:
    """W [.., a, b] @ x [.., b, D], in which a hidden pair contributes nothing even if x is NaN or Inf.

    seen: bool like w, or None when x is known to be finite. IEEE has 0 * Inf = NaN, so that a zero weight
    does not hide a value: the finite part goes through the matrix product, the few rows of x with a
    non-finite element are added one by one.
    """
    if seen is None:
        return w @ x
    finite = torch.where(torch.isfinite(x), x, 0.0)
    excess = x - finite  # NaN or Inf where x is, 0 elsewhere
    out = w @ finite
    culprits = (~torch.isfinite(x)).any(-1) & seen.any(-2)  # [.., b]
    for j in culprits.flatten(0, -2).any(0).nonzero().flatten().tolist():
        out += (w[..., j, None] * excess[..., j, None, :]).masked_fill(~seen[..., j, None], 0.0)
    return out


def seen(visible: Tensor, p: Tensor, k: Tensor) -> Tensor:
    """`visible` in full, grouped like the weights p [B, H, r, N]: bool [B, HK, G r, N]."""
    return group(visible.expand_as(p), k)
