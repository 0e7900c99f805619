"""Directions in which a systematic error would lie: the derivative of a result by a parameter of the computation.

Roundings are as likely up as down, so a correct kernel's errors have no component along these; a scale that is off
by 0.1 %, log2(e) written with too few digits, or a delta of the wrong rows have, long before their size tells.
With r = scale Q K^T and rbar_i = sum_j P_ij r_ij:

    by ln(scale):  dO_i/dx = sum_j P_ij r_ij (v_j - O_i),   dV_j/dx = sum_i P_ij (r_ij - rbar_i) dO_i
    by ln(delta):  dQ_i/dx = -scale delta_i (P K)_i,        dK_j/dx = -scale sum_i P_ij delta_i Q_i
    by ln(l):      dL_i/dx = 1, for the row sum l_i; 0 where no key is seen
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .attention import Forward, group, ungroup
from .blocks import Block
from .moments import Moments
from .scalars import at_once


class Directions(NamedTuple):
    """Shapes as in `attention`, float64; the gradients' are None when no dO was given."""

    out: Tensor
    lse: Tensor
    dq: Tensor | None
    dk: Tensor | None
    dv: Tensor | None


class DirectionSums:
    """`Directions`, block by block."""

    def __init__(self, k: Tensor, v: Tensor, scale: float, truth: Forward, *, gradients: bool) -> None:
        self._k, self._v, self._scale, self._gradients = k, v, scale, gradients
        self._out, self._dq = torch.zeros_like(truth.o), torch.zeros_like(truth.o)
        self._dk, self._dv = torch.zeros_like(k), torch.zeros_like(v)
        self._lse = torch.isfinite(truth.lse).double()

    def add(self, b: Block, x: Moments) -> None:
        """Take a block into account."""
        rows = slice(b.start, b.stop)
        pr = self._scale * b.p * b.raw  # [B, H, r, N]
        mean = pr.sum(-1, keepdim=True)
        self._out[:, :, rows] = ungroup(group(pr, self._k) @ self._v, b.p) - mean * b.o
        if self._gradients:
            self._dq[:, :, rows] = -self._scale * b.delta * x.pk
            self._dk -= self._scale * (group(b.p * b.delta, self._k).mT @ group(b.q, self._k))
            self._dv += group(pr - mean * b.p, self._k).mT @ group(b.do, self._k)

    def result(self) -> Directions:
        """After the last block."""
        return Directions(
            self._out, self._lse, *((self._dq, self._dk, self._dv) if self._gradients else (None, None, None))
        )


def slope(error: Tensor, direction: Tensor) -> tuple[float, float]:
    """(<e, T>, <T, T>) over the elements where the error is finite: their quotient is the parameter's relative error.

    Both sums can be added over cases before dividing.
    """
    error = error.nan_to_num(0.0, 0.0, 0.0)
    along, square = at_once((error * direction).sum(), direction.square().sum())
    return along, square
