"""What a bound needs beside the block of rows at hand: the arithmetic, the keys and the values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .arrangements import TINY32, U32, Arrangement, Precision
from .attention import group, ungroup


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """The arithmetic a in precision p, the scale, k and v [B, HK, N, D] in float64, H / HK, and M."""

    a: Arrangement
    p: Precision
    scale: float
    k: Tensor
    v: Tensor
    groups: int
    queries: int

    def g(self, n: int) -> float:
        """g(n) = n u_acc / (1 - n u_acc); inf when n is too large for any guarantee."""
        x = n * self.a.u_acc
        return x / (1 - x) if x < 1 else torch.inf

    def rounds(self, n: int, n32: int = 0) -> float:
        """(1 + u_p)^n (1 + u)^n32 - 1."""
        return float((1 + self.p.u) ** n * (1 + U32) ** n32 - 1)

    def product_error(self, n: int) -> float:
        """Relative error of an n-term product with a multiplied and rounded operand."""
        return (1 + self.g(n)) * (1 + (self.p.u if self.a.operand_roundings else 0.0)) - 1

    @property
    def N(self) -> int:
        return self.k.shape[2]

    @property
    def D(self) -> int:
        return self.k.shape[3]

    @property
    def rescales(self) -> int:
        """R, the factors by which a running sum is multiplied; merging split results counts as two more."""
        per = self.a.keys_per_rescale
        return (1 if per is None else -(-self.N // per)) + (2 if self.a.split else 0)

    @property
    def operand_floor(self) -> float:
        """What is lost among subnormals when an operand is multiplied by a part of the scale, per |other
        operand|.

        q * c with c = scale leaves the floor to meet |k|; with c = sqrt(scale) it meets sqrt(scale) |k|. A
        flush of the operand itself to zero meets |scale| |k|.
        """
        rounded = self.p.floor * max(1.0, abs(self.scale) ** 0.5) if self.a.operand_roundings else 0.0
        return 1.01 * rounded + TINY32 * abs(self.scale)

    def mix(self, w: Tensor, x: Tensor) -> Tensor:
        """W [B, H, r, N] @ x [B, HK, N, X] -> [B, H, r, X]."""
        return ungroup(group(w, self.k) @ x, w)

    def transposed(self, w: Tensor, x: Tensor) -> Tensor:
        """W [B, H, r, N]^T @ x [B, H, r, X], summed over the heads of a group -> [B, HK, N, X]."""
        return group(w, self.k).mT @ group(x, self.k)

    def products(self, x: Tensor, y: Tensor) -> Tensor:
        """X [B, H, r, D] @ y [B, HK, N, D]^T -> [B, H, r, N]."""
        return ungroup(group(x, self.k) @ y.mT, x)

    def per_key(self, x: Tensor) -> Tensor:
        """[B, HK, N] -> [B, H, 1, N]."""
        return x.repeat_interleave(self.groups, 1)[:, :, None]

    def per_head(self, x: Tensor) -> Tensor:
        """[B, HK, 1, D] -> [B, H, 1, D]."""
        return x.repeat_interleave(self.groups, 1)


def or_inf(x: Tensor) -> Tensor:
    """Inf instead of NaN: nothing can be promised there."""
    return x.nan_to_num(nan=torch.inf, posinf=torch.inf)
