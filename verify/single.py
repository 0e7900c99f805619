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
from .errors import Errors
from .expected import MODERATE, PARAMETER, Reference
from .statistics import common_slope

_MIN_ROWS = 24
_BIAS = 0.15  # ulp
_MIN_T = 8.0
_MIN_ELEMENTS = 64
_SLOPE = 0.25  # of the unit roundoff
_EXCESS = 1.5  # times what the roundings of any known arrangement predict


def checks(row: Row, value: Tensor, errors: Errors, known: Reference) -> list[Check]:
    """`bias`, `systematic` and `predictor` for one tensor of one case; none when the case is too small to say."""
    name = str(row.tensor)
    out = []
    if name != "lse" and errors.row_bias.numel() >= _MIN_ROWS:
        excess = errors.row_bias - known.best[name].row_bias
        mean, error = float(excess.mean()), float(excess.std()) / math.sqrt(excess.numel())
        t = mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0
        biased = abs(mean) > _BIAS and abs(t) > _MIN_T
        out.append(Check("bias", name, not biased, abs(mean), _BIAS,
                         f"{name} is off by {mean:+.3f} ulp on average over {excess.numel()} rows (t = {t:.1f}); "
                         "rounding to nearest has no bias"))  # fmt: skip
    if known.max_logit <= MODERATE:
        out += _systematic(name, value, known)
    if errors.row_bias.numel() >= _MIN_ROWS:
        worse = no_worse("predictor", name, errors, known)
        out += [] if worse is None else [worse]
    return out


def _systematic(name: str, value: Tensor, known: Reference) -> list[Check]:
    """Whether the errors of the rows lie along the derivative by a parameter, all with the same coefficient."""
    direction = known.direction[name]
    error = (value.double() - known.truth[name]).nan_to_num(0.0, 0.0, 0.0)
    by_row = [x if name == "lse" else x.sum(-1) for x in (error * direction, direction.square())]
    along, square = (x.flatten().tolist() for x in by_row)
    found = common_slope([(a, w) for a, w in zip(along, square, strict=True) if w > 0])
    if found is None or found.n < _MIN_ROWS:
        return []
    limit = _SLOPE * float(torch.finfo(known.standard["out"].dtype).eps) / 2
    wrong = abs(found.mean) > limit and abs(found.t) > _MIN_T
    what = PARAMETER[name]
    detail = f"the errors of {name} are those of a {what} off by {found.mean:+.2g}, relatively (t = {found.t:.1f})"
    return [Check("systematic", name, not wrong, abs(found.mean), limit, detail if wrong else "")]


def no_worse(check: str, name: str, errors: Errors, known: Reference, seen: float = 0.0) -> Check | None:
    """The RMS error is what the roundings of an arrangement that the kernel may have predict, or has been `seen`.

    None when there are too few elements to say.
    """
    predicted, n = known.envelope[name], known.truth[name].numel()
    if not predicted or n < _MIN_ELEMENTS:
        return None
    predicted = max(predicted, seen)
    ratio = errors.rms / predicted
    detail = f"the RMS error of {name} is {ratio:.3g} times what roundings predict" if ratio > _EXCESS else ""
    return Check(check, name, ratio <= _EXCESS, ratio, _EXCESS, detail)
