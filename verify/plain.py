"""Plain cases: small, square, contiguous, scaled as usual.  There a rounding error is most nearly what is predicted.

A format that lacks one bit shows in a cell of these, and drowns among cases of all shapes, where ratios spread wider.
"""

from __future__ import annotations

import math

from ..reports.record import Row
from .case import Case, DType, MaskRecipe
from .draws import Draws
from .regimes import REGIMES

_LENGTHS = (33, 47, 61, 64, 65, 79, 95, 96)  # some tiles and a rest
_HEAD_DIMS = (16, 32)
_MASKS = (MaskRecipe(), MaskRecipe(), MaskRecipe(causal=True))
_MASK_NAMES = frozenset(str(m) for m in _MASKS)
#: half of the cases are normal, where predictions are sharpest; the others share the other half
PLAIN_REGIMES = tuple(
    name for r in REGIMES.values() if r.independent and r.name != "normal" for name in ("normal", r.name)
)


def plain_case(draws: Draws, dtype: DType, regime: str) -> Case:
    """A plain case of a regime, which is one of `PLAIN_REGIMES`."""
    M = draws.choice(_LENGTHS)
    return Case(
        B=1, H=2, HK=1, M=M, N=M, D=draws.choice(_HEAD_DIMS), dtype=dtype, regime=regime,
        seed=int(draws.integers(0, 2**31, 1)[0]), mask=draws.choice(_MASKS),
    )  # fmt: skip


def is_plain(row: Row) -> bool:
    """Whether a row's case is one that `plain_case` could have drawn, for a kernel with or without grouped heads."""
    return (
        row.B == 1 and row.H == 2 and row.M == row.N and row.M in _LENGTHS and row.D in _HEAD_DIMS
        and row.scale == 1 / math.sqrt(row.D) and row.layout == "contiguous"
        and row.mask in _MASK_NAMES and row.regime in PLAIN_REGIMES
    )  # fmt: skip
