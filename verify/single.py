"""A survey's statistical questions asked of one case, so that its findings can be shrunk and replayed.

A survey pools many cases and is sensitive; one case must be judged with more room.  Rows of a tensor are independent,
elements of a row are not (they share weights and row sum), so rows are the sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reports.record import Row
from .check import Check
from .errors import Errors, measure, rounded

_MIN_ROWS = 24
_BIAS = 0.15  # ulp
_MIN_T = 8.0
_MIN_ELEMENTS = 64
_EXCESS = 1.5  # times what the roundings of any known arrangement predict


def checks(row: Row, errors: Errors, truth: Tensor) -> list[Check]:
    """`bias` and `predictor` for one tensor of one case; none when the case is too small to say."""
    name = str(row.tensor)
    if name == "lse":
        return []
    out = []
    if errors.row_bias.numel() >= _MIN_ROWS:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[str(row.dtype)]
        excess = errors.row_bias - measure(rounded(truth, dtype), truth, dtype).row_bias
        mean, error = float(excess.mean()), float(excess.std()) / math.sqrt(excess.numel())
        t = mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0
        biased = abs(mean) > _BIAS and abs(t) > _MIN_T
        out.append(Check("bias", name, not biased, abs(mean), _BIAS,
                         f"{name} is off by {mean:+.3f} ulp on average over {excess.numel()} rows (t = {t:.1f}); "
                         "rounding to nearest has no bias"))  # fmt: skip
    if row.envelope_ratio is not None and (row.elements or 0) >= _MIN_ELEMENTS:
        worse = row.envelope_ratio > _EXCESS
        out.append(Check("predictor", name, not worse, row.envelope_ratio, _EXCESS,
                         f"the RMS error of {name} is {row.envelope_ratio:.3g} times what the roundings of any known "
                         "arrangement predict"))  # fmt: skip
    return out
