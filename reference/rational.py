"""Attention in rational numbers: the definition itself, nothing rounded, nothing approximated.

The exponential is replaced by an integer power, which keeps what attention is made of (exp(a + b) = exp(a) exp(b)) and
makes every weight rational:

    S = scale Q K^T,  W = base^S where visible, else 0,  R = rowsum(W),  P = W / R,  O = P V
    dV = P^T dO,  dP = dO V^T,  delta = rowsum(P * dP),  dS = P * (dP - delta),  dQ = scale dS K,  dK = scale dS^T Q

A kernel whose source, run in the same arithmetic, gives other numbers does not compute attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from flint import arb_mat, fmpq, fmpq_mat
from numpy.typing import NDArray
from torch import Tensor

from .attention import check_shapes
from .blocks import clean
from .masks import Mask

Rationals = NDArray[Any]  # of fmpq
Matrix = TypeVar("Matrix", fmpq_mat, arb_mat)


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """Arrays of `fmpq`: o, dq [B, H, M, D]; dk, dv [B, HK, N, D]; total [B, H, M], base^lse, 0 for an empty row."""

    o: Rationals
    total: Rationals
    dq: Rationals
    dk: Rationals
    dv: Rationals


def attention(q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask, scale: float, base: int = 4) -> Exact:
    """Forward and backward of attention with base^S in place of exp(S); shapes and empty rows as in `attention`.

    Raises:
        ValueError: for shapes that do not fit together, a mask with a bias, or logits that are not all multiples of
            1 / log2(base): then base^S is not rational.
    """
    check_shapes(q, k, v, do)
    if mask.bias is not None:
        raise ValueError("rational attention takes no bias")
    bits = base.bit_length() - 1
    if base != 1 << bits or bits < 1:
        raise ValueError(f"base must be a power of two, not {base}")
    (B, H, M, D), (HK, N) = q.shape, k.shape[1:3]
    visible, _ = mask.rows(0, M, M, N, torch.device("cpu"))
    visible = visible.expand(B, H, M, N)
    factor = fmpq(*float(scale).as_integer_ratio())
    result = Exact(
        *(np.empty(s, object) for s in ((B, H, M, D), (B, H, M), (B, H, M, D), (B, HK, N, D), (B, HK, N, D)))
    )
    for b in range(B):
        for g in range(HK):
            K, V = _matrix(k[b, g]), _matrix(v[b, g])  # N x D
            dK, dV = fmpq_mat(N, D), fmpq_mat(N, D)
            for h in range(g * (H // HK), (g + 1) * (H // HK)):
                Q, dO = _matrix(q[b, h]), _matrix(do[b, h])  # M x D
                P, R = _weights(Q * K.transpose() * factor, visible[b, h], bits)  # M x N, M
                dS = score_gradient(P, dO * V.transpose())  # M x N
                result.o[b, h], result.total[b, h] = _array(P * V), R
                result.dq[b, h] = _array(dS * K * factor)
                dK += dS.transpose() * Q * factor
                dV += P.transpose() * dO
            result.dk[b, g], result.dv[b, g] = _array(dK), _array(dV)
    return result


def _matrix(x: Tensor) -> fmpq_mat:
    entries = [fmpq(*float(e).as_integer_ratio()) for e in clean(x).flatten().tolist()]
    return fmpq_mat(x.shape[0], x.shape[1], entries)


def _array(x: fmpq_mat) -> Rationals:
    out = np.empty(x.nrows() * x.ncols(), object)
    out[:] = x.entries()
    return out.reshape(x.nrows(), x.ncols())


def _weights(s: fmpq_mat, visible: Tensor, bits: int) -> tuple[fmpq_mat, list[fmpq]]:
    """P (M x N) and R (M) from S."""
    M, N = visible.shape
    p, totals = [], []
    for i, seen in enumerate(visible.tolist()):
        row = [_power(s[i, j] * bits) if seen[j] else fmpq(0) for j in range(N)]
        total = sum(row, fmpq(0))
        p += [w / total if total != 0 else w for w in row]
        totals.append(total)
    return fmpq_mat(M, N, p), totals


def _power(exponent: fmpq) -> fmpq:
    if exponent.q != 1:
        raise ValueError(f"the logits must make integer powers of two, not 2^({exponent})")
    return fmpq(2) ** int(exponent.p)


def score_gradient(p: Matrix, dp: Matrix) -> Matrix:
    """DS = P * (dP - rowsum(P * dP)), M x N, of rationals or of balls."""
    M, N = p.nrows(), p.ncols()
    ds = []
    for i in range(M):
        delta = sum(p[i, j] * dp[i, j] for j in range(N))
        ds += [p[i, j] * (dp[i, j] - delta) for j in range(N)]
    return type(p)(M, N, ds)
