"""Everything that is known of a case without running the kernel: truth, standard attention, bounds, predictions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference import attention as truth_of
from ..reference import standard
from ..reference.analysis import analyse
from ..reference.arrangements import ANY, ANY_FLASH, FLASH, FUSED, STANDARD, Arrangement
from ..reference.bounds import certify
from .case import Case
from .errors import Errors, Target
from .inputs import Inputs
from .truth import Truth, dtype_of, of_rounding

#: largest |logit| up to which errors of the logits are small against 1, so that their squares have no mean to speak of
MODERATE = 8.0
#: by whose logarithm each tensor's direction is the derivative
PARAMETER = {"out": "scale of the logits", "lse": "row sum", "dq": "delta", "dk": "delta", "dv": "scale of the logits"}


@dataclass(frozen=True, slots=True)
class Reference:
    """Everything that is known of a case without running the kernel."""

    truth: dict[str, Tensor]  # float64
    standard: dict[str, Tensor]
    bound: dict[str, Tensor]  # inf: a kernel may overflow; NaN: nothing is asked, see `_excused`
    direction: dict[str, Tensor]  # in which a systematic error would lie
    natural_scale: dict[str, float]  # u rms(S)
    predicted: dict[str, float | None]  # RMS error of the flash arrangement; of the LSE the largest alone is predicted
    envelope: dict[str, float]  # the largest of those that the kernel may have: `ANY_FLASH`, `STANDARD`
    max_logit: float
    arrangement: Arrangement  # of the bounds
    target: dict[str, Target]
    usual: dict[str, Errors]  # standard attention's
    best: dict[str, Errors]  # the rounded truth's


def reference(case: Case, inputs: Inputs, *, stores_scores: bool) -> Reference:
    """Truth, standard attention, bounds and predictors of a case.

    The bounds, and the larger prediction, excuse roundings of the scores only in a kernel that `stores_scores`.
    """
    q, k, v, do, mask, scale = inputs.q, inputs.k, inputs.v, inputs.do, inputs.mask, case.softmax_scale
    grad = do if case.backward else None
    true, std = Truth.of(case, inputs), standard.forward(q, k, v, mask, scale)
    truth, usual = true.tensors(), {"out": std.o, "lse": std.lse}
    if grad is not None:
        g = standard.backward(q, k, v, grad, mask, scale)
        usual |= {"dq": g.dq, "dk": g.dk, "dv": g.dv}
    arrangement = ANY if stores_scores else FUSED
    known = analyse(
        q, k, v, grad, mask, scale, true.forward, true.gradients, arrangement,
        (FLASH, ANY_FLASH, STANDARD) if stores_scores else (FLASH, ANY_FLASH),
    )  # fmt: skip
    envelope = {n: max(getattr(a, n) for a in known.predicted) for n in truth}
    expected = {n: getattr(known.predicted[0], n) if n != "lse" else None for n in truth}
    target = true.targets()
    errors = {n: t.errors(usual[n]) for n, t in target.items()}
    bounds = {n: getattr(known.bounds, n) for n in truth}
    return Reference(
        truth=truth, standard=usual, bound=_excused(bounds, errors) if stores_scores else bounds,
        direction={n: getattr(known.directions, n) for n in truth},
        natural_scale=true.natural_scales(known.scales),
        predicted=expected, envelope=envelope, max_logit=known.max_logit, arrangement=arrangement, target=target,
        usual=errors,
        best={n: of_rounding(t, dtype_of(n, case)) for n, t in target.items()},
    )  # fmt: skip


def _excused(bounds: dict[str, Tensor], usual: dict[str, Errors]) -> dict[str, Tensor]:
    """A kernel that stores S and dP as standard attention does overflows where that does: infinity, or NaN from it."""
    return {n: torch.full_like(b, torch.nan) if usual[n].nonfinite else b for n, b in bounds.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Posed:
    """A case, its tensors, and all that is known of it without running the kernel."""

    case: Case
    inputs: Inputs
    known: Reference

    @classmethod
    def of(cls, case: Case, inputs: Inputs, *, stores_scores: bool) -> Posed:
        return cls(case, inputs, reference(case, inputs, stores_scores=stores_scores))


def with_lse_gradient(
    case: Case, inputs: Inputs, dlse: Tensor, known: Reference
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """Truth and bounds of the gradients when dlse [B, H, M] comes back through the LSE."""
    q, k, v, do, mask, scale = inputs.q, inputs.k, inputs.v, inputs.do, inputs.mask, case.softmax_scale
    fwd = truth_of.Forward(known.truth["out"], known.truth["lse"])
    gradients = truth_of.backward(q, k, v, do, mask, scale, dlse)
    bounds = certify(q, k, v, do, mask, scale, known.arrangement, fwd, gradients, dlse)
    names = ("dq", "dk", "dv")
    excused = {n: torch.where(torch.isnan(known.bound[n]), torch.nan, getattr(bounds, n)) for n in names}
    return {n: getattr(gradients, n) for n in names}, excused
