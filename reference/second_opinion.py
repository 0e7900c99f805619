"""Attention once more, from its definition, in mpmath: an independent check on the other references.

Nothing is shared with them: no mask code, no blocks, no matrix products, no shifted softmax, and the
gradients are sums over keys and queries of the derivative of one weight, dP_ij / ds_il = P_ij (1[j = l] -
P_il), taken as it stands. O(M N (N + D)) in software floating point: for small cases only.
"""

from dataclasses import dataclass

import mpmath
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .masks import Mask

Numbers = NDArray[np.object_]  # of mpmath.mpf


@dataclass(frozen=True, slots=True, eq=False)
class Opinion:
    """o, dq [B, H, M, D]; lse [B, H, M]; dk, dv [B, HK, N, D]."""

    o: Numbers
    lse: Numbers
    dq: Numbers
    dk: Numbers
    dv: Numbers


def second_opinion(q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask, scale: float, digits: int = 50) -> Opinion:
    """Attention and its gradients on exactly these inputs, to about `digits` decimal digits."""
    with mpmath.workdps(digits):
        return _attention(_numbers(q), _numbers(k), _numbers(v), _numbers(do), mask, mpmath.mpf(scale))


def _attention(q: Numbers, k: Numbers, v: Numbers, do: Numbers, mask: Mask, scale: mpmath.mpf) -> Opinion:
    B, H, M, _ = q.shape
    HK, N = k.shape[1:3]
    o, dq, dk, dv = (np.full(x.shape, mpmath.mpf(0), dtype=object) for x in (q, q, k, v))
    lse = np.full((B, H, M), -mpmath.inf, dtype=object)
    for b, h, i in np.ndindex(B, H, M):
        g = h // (H // HK)
        keys = [j for j in range(N) if _sees(mask, b, h, i, j, M, N)]
        if not keys:
            continue
        weight = {j: mpmath.exp(scale * _dot(q[b, h, i], k[b, g, j]) + _bias(mask, b, h, i, j)) for j in keys}
        total = mpmath.fsum(weight.values())
        p = {j: weight[j] / total for j in keys}
        lse[b, h, i] = mpmath.log(total)
        o[b, h, i] = sum(p[j] * v[b, g, j] for j in keys)
        gain = {j: _dot(do[b, h, i], v[b, g, j]) for j in keys}  # dLoss / dP_ij
        for l in keys:
            ds = mpmath.fsum(gain[j] * p[j] * (int(j == l) - p[l]) for j in keys)  # dLoss / ds_il
            dq[b, h, i] += scale * ds * k[b, g, l]
            dk[b, g, l] += scale * ds * q[b, h, i]
            dv[b, g, l] += p[l] * do[b, h, i]
    return Opinion(o, lse, dq, dk, dv)


def _sees(mask: Mask, b: int, h: int, i: int, j: int, M: int, N: int) -> bool:
    """Whether query i of head h in batch b sees key j, restriction by restriction."""
    diagonal = i if mask.alignment == "top-left" else i + N - M
    left, right = mask.window
    return not (
        (mask.causal and j > diagonal)
        or (left is not None and j < diagonal - left)
        or (right is not None and j > diagonal + right)
        or (mask.key_lengths is not None and j >= int(mask.key_lengths[b]))
        or (mask.allowed is not None and not bool(_entry(mask.allowed, b, h, i, j)))
        or _bias(mask, b, h, i, j) == -mpmath.inf
    )


def _bias(mask: Mask, b: int, h: int, i: int, j: int) -> mpmath.mpf:
    return mpmath.mpf(0) if mask.bias is None else mpmath.mpf(float(_entry(mask.bias, b, h, i, j)))


def _entry(x: Tensor, *index: int) -> Tensor:
    """Element [b, h, i, j] of a tensor broadcastable to four dimensions."""
    kept = index[4 - x.ndim :]
    return x[tuple(n if size > 1 else 0 for n, size in zip(kept, x.shape, strict=True))]


def _dot(x: Numbers, y: Numbers) -> mpmath.mpf:
    return mpmath.fdot(x, y)


def _numbers(x: Tensor) -> Numbers:
    """The tensor's values, exactly."""
    flat = [mpmath.mpf(e) for e in x.double().flatten().tolist()]
    return np.array(flat, dtype=object).reshape(tuple(x.shape))
