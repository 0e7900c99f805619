"""The natural scale of each result: the moduli that cancel in it, what errors are small or large against."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Forward, group, ungroup
from .blocks import Block, blocks, clean
from .masks import Mask


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

    S_O = P |V|    S_dV = P^T |dO|    S_dQ = |scale| (P (|dP| + P |dP|^T)) |K|    S_dK = |scale| (..)^T |Q|

    P |dP|^T, one number per row, is what cancels in delta, which may itself be 0.
    """
    sums = ScaleSums(clean(k), clean(v), scale, truth, gradients=do is not None)
    for b in blocks(q, sums.k, sums.v, do, mask, scale, truth):
        sums.add(b)
    return sums.result()


class ScaleSums:
    """`natural_scales`, block by block."""

    def __init__(self, k: Tensor, v: Tensor, scale: float, truth: Forward, *, gradients: bool) -> None:
        self.k, self.v, self._scale, self._gradients = k, v, abs(scale), gradients
        self._k, self._v = k.abs(), v.abs()
        self._out, self._dq = torch.zeros_like(truth.o), torch.zeros_like(truth.o)
        self._dk, self._dv = torch.zeros_like(k), torch.zeros_like(v)

    def add(self, b: Block) -> None:
        """Take a block into account."""
        rows, p = slice(b.start, b.stop), group(b.p, self.k)
        self._out[:, :, rows] = ungroup(p @ self._v, b.p)
        if self._gradients:
            dp = b.dp.abs()
            w = self._scale * b.p * (dp + (b.p * dp).sum(-1, keepdim=True))  # [B, H, r, N]
            self._dq[:, :, rows] = ungroup(group(w, self.k) @ self._k, w)
            self._dk += group(w, self.k).mT @ group(b.q.abs(), self.k)
            self._dv += p.mT @ group(b.do.abs(), self.k)

    def result(self) -> Scales:
        """After the last block."""
        return Scales(self._out, *((self._dq, self._dk, self._dv) if self._gradients else (None, None, None)))
