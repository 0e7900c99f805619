"""One tensor beside the truth: its errors as a row of the record, and the two checks that need nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..reference.directions import slope
from ..reference.scalars import all_finite, at_once
from ..reports.record import Row
from .case import Case
from .check import Check
from .errors import Errors, bound_ratio, floored_log_ratio, same_bits, slack
from .expected import Reference
from .positions import along_rows
from .truth import dtype_of


def compared(
    case: Case, identity: dict[str, Any], name: str, value: Tensor, errors: Errors, known: Reference
) -> tuple[Row, list[Check]]:
    """A tensor's row, and its checks `finite` and `bound`."""
    truth, dtype = known.truth[name], dtype_of(name, case)
    usual, best = known.usual[name], known.best[name]
    ratio, index = bound_ratio(value, truth, known.bound[name], dtype)
    natural, predicted = known.natural_scale[name], known.predicted[name]
    usual_rms = float("nan") if usual.nonfinite else usual.rms
    row = Row(
        status="ok", **identity, max_logit=known.max_logit, tensor=name, elements=truth.numel(),
        nonfinite=errors.nonfinite,
        kernel_max=errors.max, kernel_rms=errors.rms,
        standard_max=None if usual.nonfinite else usual.max, standard_rms=None if usual.nonfinite else usual.rms,
        rounded_max=best.max, rounded_rms=best.rms, natural_scale=natural,
        log_ratio=floored_log_ratio(errors.rms, usual_rms, best.rms, natural)
        if not errors.nonfinite and known.envelope[name] != math.inf else None,  # what nobody can predict
        bound_ratio=ratio, slack=slack(value, truth, known.bound[name]),
        predictor_ratio=_part(errors.rms, predicted), envelope_ratio=_part(errors.rms, known.envelope[name]),
        kernel_bias=errors.bias, standard_bias=usual.bias, rounded_bias=best.bias,
        kernel_ulp=errors.ulp_histogram, standard_ulp=usual.ulp_histogram, rounded_ulp=best.ulp_histogram,
        bitwise_standard=_share_of_same_bits(value, known.standard[name]),
        **_slope(name, value, known), **(_placed(name, value, known) if identity["phase"] == "survey" else {}),
    )  # fmt: skip
    bound, lse = known.bound[name], known.truth["lse"]
    finite = _finite(name, value, truth, bound, lse, clean=not errors.nonfinite)
    return row, [finite, _bounded(name, value, truth, bound, ratio, index, lse)]


def _part(rms: float, predicted: float | None) -> float | None:
    return rms / predicted if predicted and math.isfinite(predicted) else None


def _slope(name: str, value: Tensor, known: Reference) -> dict[str, Any]:
    """The component of the error along the direction of a systematic one, in units that make cases comparable."""
    if not known.natural_scale[name]:
        return {}
    along, square = slope(value.double() - known.truth[name], known.direction[name])
    unit = known.natural_scale[name] ** 2 * value.numel()
    return {"slope": along / unit, "slope_weight": square / unit}


def _placed(name: str, value: Tensor, known: Reference) -> dict[str, Any]:
    """Where in the tensor the error sits, the kernel's and standard attention's."""
    truth = known.truth[name]
    return along_rows("kernel", value, truth) | along_rows("standard", known.standard[name], truth)


def _share_of_same_bits(value: Tensor, usual: Tensor) -> float | None:
    if value.numel() == 0 or value.dtype != usual.dtype:
        return None
    return int(same_bits(value, usual).count_nonzero()) / value.numel()


def within(check: str, name: str, value: Tensor, truth: Tensor, bound: Tensor, case: Case) -> Check:
    """Finite where the truth is, and within the bound: the worse of the two, under another check's name."""
    ratio, index = bound_ratio(value, truth, bound, dtype_of(name, case))
    both = (_finite(name, value, truth, bound), _bounded(name, value, truth, bound, ratio, index))
    return replace(next((c for c in both if not c.passed), both[1]), name=check)


def _finite(
    name: str, value: Tensor, truth: Tensor, bound: Tensor, lse: Tensor | None = None, *, clean: bool = False
) -> Check:  # fmt: skip
    """No NaN or infinity where the truth is finite; where the bound is inf, a kernel may overflow, to infinity.

    Where the bound is NaN, nothing is asked.  `clean`: it is known that there is none.
    """
    if clean or all_finite(value - truth):
        return Check("finite", name, True, 0.0, 0.0, "")
    may_overflow = (torch.isinf(bound) & ~torch.isnan(value.double())) | torch.isnan(bound)
    wrong = _wrong_nonfinite(value, truth) & ~may_overflow
    where = tuple(int(i) for i in wrong.nonzero()[0]) if wrong.any() else None
    detail = f"{name}{list(where)} is {float(value[where]):g}, the truth is {float(truth[where]):g}" if where else ""
    detail += _unseeing(name, where, lse)
    return Check("finite", name, where is None, float(wrong.sum()), 0.0, detail)


def _wrong_nonfinite(value: Tensor, truth: Tensor) -> Tensor:
    value = value.double()
    expected = torch.isfinite(truth)
    return (expected & ~torch.isfinite(value)) | (~expected & (value != truth))


def _unseeing(name: str, where: tuple[int, ...] | None, lse: Tensor | None) -> str:
    """Why the truth is 0, where its author may wonder."""
    if not where or lse is None or name not in ("out", "dq") or float(lse[where[:3]]) != float("-inf"):
        return ""
    return "; this query sees no key, so that its row is 0"


def _bounded(
    name: str, value: Tensor, truth: Tensor, bound: Tensor, ratio: float, index: tuple[int, ...],
    lse: Tensor | None = None,
) -> Check:  # fmt: skip
    """No error beyond the a priori bound."""
    detail = ""
    if index:
        found, wanted, allowed = at_once(value[index], truth[index], bound[index])
        detail = (
            f"{name}{list(index)} = {found:.9g}, the truth is {wanted:.9g}, "
            f"the bound on the error {allowed:.3g}{_unseeing(name, index, lse)}"
        )
    return Check("bound", name, ratio <= 1.0, ratio, 1.0, detail)
