"""Attention as the papers describe it, every operation's result rounded to a format, in float64 between roundings.

q [..., M, D], k and v [..., N, D]; leading axes are heads.  A rounding takes a float64 tensor and gives one that holds
only the format's values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]

#: what a running maximum starts at; finite, for the derivative of exp at -inf would be 0 times inf
_LOWEST = -1e30


def to_bits(bits: int) -> Rounding:
    """Rounding to nearest, ties to even, to a significand of so many bits (at most 52); exponents are float64's."""
    dropped = 53 - bits

    def rounding(x: Tensor) -> Tensor:
        word = x.view(torch.int64)
        even = (word >> dropped) & 1
        word = word + ((1 << (dropped - 1)) - 1) + even  # a carry out of the significand is one of the exponent
        return ((word >> dropped) << dropped).view(torch.float64)

    return rounding


def to_dtype(dtype: torch.dtype) -> Rounding:
    """Rounding to a torch dtype, range included."""
    return lambda x: x.to(dtype).double()


def straight_through(r: Rounding) -> Rounding:
    """The rounding whose derivative is 1, for training."""
    return lambda x: x + (r(x.detach()) - x.detach())


def exact(x: Tensor) -> Tensor:
    """No rounding."""
    return x


def standard(q: Tensor, k: Tensor, v: Tensor, scale: float, r: Rounding) -> Tensor:
    """softmax(scale Q K^T) V, step by step."""
    s = r(r(q @ k.mT) * scale)
    p = r(torch.exp(r(s - s.amax(-1, keepdim=True))))
    p = r(p / r(p.sum(-1, keepdim=True)))
    return r(p @ v)


def mixed(q: Tensor, k: Tensor, v: Tensor, scale: float, r: Rounding) -> Tensor:
    """As flash kernels do: unnormalised P and O are rounded, scores and accumulators (fp32, here float64) are not."""
    s = q @ k.mT * scale
    p = torch.exp(s - s.amax(-1, keepdim=True))
    return r(r(p) @ v / p.sum(-1, keepdim=True))


def flash_1(q: Tensor, k: Tensor, v: Tensor, scale: float, r: Rounding, block: int) -> Tensor:
    """FlashAttention (Dao et al. 2022), Algorithm 1: O, l and m go back to memory, in the format, after every block."""
    o, l_i, m_i = _start(q)
    for k_j, v_j in zip(torch.split(k, block, -2), torch.split(v, block, -2), strict=True):
        s = r(r(q @ k_j.mT) * scale)
        m_j = s.amax(-1, keepdim=True)
        p = r(torch.exp(r(s - m_j)))
        m_new = torch.maximum(m_i, m_j)
        old, new = r(torch.exp(r(m_i - m_new))), r(torch.exp(r(m_j - m_new)))
        kept = r(old * l_i)
        l_new = r(kept + r(new * r(p.sum(-1, keepdim=True))))
        o = r(r(r(kept * o) + r(new * r(p @ v_j))) / l_new)
        l_i, m_i = l_new, m_new
    return o


def flash_2(
    q: Tensor, k: Tensor, v: Tensor, scale: float, r: Rounding, block: int, *, beta: float | None = None
) -> Tensor:
    """FlashAttention-2's recursion with every operation in the format, O unnormalised until the end.

    With `beta`, the remedy of Qiu and Yao (2025): a maximum that several keys share is raised to beta m, or to 0 if it
    is negative, so that no weight is 1.
    """
    o, l_i, m_i = _start(q)
    for k_j, v_j in zip(torch.split(k, block, -2), torch.split(v, block, -2), strict=True):
        s = r(r(q @ k_j.mT) * scale)
        m_j = s.amax(-1, keepdim=True)
        if beta is not None:
            shared = (s > m_j - 1e-3).sum(-1, keepdim=True) > 1
            m_j = torch.where(shared, torch.where(m_j > 0, r(beta * m_j), 0.0), m_j)
        m_new = torch.maximum(m_i, m_j)
        p = r(torch.exp(r(s - m_new)))
        alpha = r(torch.exp(r(m_i - m_new)))
        l_i = r(r(alpha * l_i) + r(p.sum(-1, keepdim=True)))
        o = r(r(alpha * o) + r(p @ v_j))
        m_i = m_new
    return r(o / l_i)


def _start(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """O, l and m before the first block."""
    l_i = torch.zeros_like(q[..., :1])
    return torch.zeros_like(q), l_i, l_i + _LOWEST
