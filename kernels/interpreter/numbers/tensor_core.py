"""Matrix products as tensor cores are known to accumulate them: aligned, truncated, in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arithmetic import Ieee
from .formats import LOW_PRECISION, Array, cut_to_tf32, round_to

_LOWEST = -(1 << 14)  # below the exponent of every product


@dataclass(frozen=True, eq=False)
class TensorCore(Ieee):
    """`Ieee`, but `dot` of fp16, bf16, fp8 and tf32 adds in blocks of `block` products, as NVIDIA's Hopper does.

    In each block the products and the accumulator are aligned to the largest exponent among them, cut off `fraction`
    bits below it, added exactly, and the sum is truncated to float32 (Fasi, Higham, Mikaitis and Pranesh 2021,
    "Numerical behavior of NVIDIA tensor cores"; Khattak and Mikaitis 2025 for Hopper: 25 bits, 16 products).
    A product's exponent is the sum of its factors' exponents.
    """

    block: int = 16
    fraction: int = 25

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorCore) and (self.block, self.fraction) == (other.block, other.fraction)

    def __hash__(self) -> int:
        return hash((TensorCore, self.block, self.fraction))

    def dot(self, a: Array, b: Array, c: Array, operands: str, result: str, precision: str) -> Array:
        if operands not in LOW_PRECISION and not (operands == "f32" and precision == "tf32"):
            return super().dot(a, b, c, operands, result, precision)
        if operands == "f32":
            a, b = cut_to_tf32(a), cut_to_tf32(b)
        out = c.astype(np.float32)
        for i in range(0, a.shape[-1], self.block):
            left = a[..., :, None, i : i + self.block].astype(np.float64)
            right = np.swapaxes(b[..., i : i + self.block, :], -1, -2)[..., None, :, :].astype(np.float64)
            out = self._block(left, right, out)
        return round_to(out, result) if result in LOW_PRECISION else out

    def _block(self, left: Array, right: Array, c: Array) -> Array:
        products = left * right  # exact: at most 48 bits
        exponents = np.where(products != 0, _exponent(left) + _exponent(right), _LOWEST)
        highest = np.maximum(exponents.max(-1), np.where(c != 0, _exponent(c), _LOWEST))
        cut = np.maximum(highest - self.fraction, -1074)
        total = np.trunc(np.ldexp(products, -cut[..., None])).sum(-1)
        total += np.trunc(np.ldexp(c.astype(np.float64), -cut))
        return round_to(np.ldexp(total, cut), "f32", toward_zero=True)


def _exponent(x: Array) -> Any:
    return np.frexp(x)[1] - 1
