"""Where along the rows of a tensor its error sits: an error that gathers in one place is seldom a rounding's.

Rows are queries in `out`, `lse` and `dq`, keys in `dk` and `dv`: in each of them the third axis.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..reports.rows import EIGHTHS

_DIGITS = 3  # more would be the case's, and would not compress


def along_rows(side: str, value: Tensor, truth: Tensor) -> dict[str, Any]:
    """The columns `{side}_eighths` and `{side}_worst_row` of a row of the record, for `value` [B, H, rows(, D)].

    Where both are infinite there is no error.  Nothing is said of a value that is not finite where the truth is, of one
    without any error, and of eighths of fewer than eight rows.
    """
    error = value.double() - truth
    error = torch.where(value.double() == truth, 0.0, error)  # -inf of a row that sees no key
    if error.numel() == 0:
        return {}
    magnitude = error.abs().movedim(2, 0).flatten(1)  # [rows, B H (D)]
    squares, largest = torch.stack([magnitude.square().mean(1), magnitude.amax(1)]).cpu().numpy()  # per row
    rms = math.sqrt(float(squares.mean())) if np.isfinite(largest).all() else 0.0
    if rms == 0:
        return {}
    found: dict[str, Any] = {f"{side}_worst_row": int(largest.argmax())}
    if len(squares) >= EIGHTHS:
        starts = [math.ceil(e * len(squares) / EIGHTHS) for e in range(EIGHTHS)]  # row i is in eighth 8 i // rows
        sizes = np.diff([*starts, len(squares)])
        relative = np.sqrt(np.add.reduceat(squares, starts) / sizes) / rms
        found[f"{side}_eighths"] = tuple(float(f"{x:.{_DIGITS}g}") for x in relative)
    return found
