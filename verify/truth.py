"""What a case's errors are told against: the truth, the error of rounding it, and the natural scale of each tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference import attention
from ..reference.attention import Forward, Gradients
from ..reference.scalars import at_once
from ..reference.scales import Scales
from .case import Case
from .errors import Errors, Target, rounded
from .inputs import DTYPES, Inputs


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Of a case, in float64; without gradients if it has no backward pass."""

    case: Case
    forward: Forward
    gradients: Gradients | None

    @classmethod
    def of(cls, case: Case, inputs: Inputs) -> Truth:
        """On the inputs as they are rounded."""
        q, k, v, mask, scale = inputs.q, inputs.k, inputs.v, inputs.mask, case.softmax_scale
        gradients = attention.backward(q, k, v, inputs.do, mask, scale) if case.backward else None
        return cls(case, attention.forward(q, k, v, mask, scale), gradients)

    def tensors(self) -> dict[str, Tensor]:
        """By name: the output and its LSE, then the gradients."""
        found = {"out": self.forward.o, "lse": self.forward.lse}
        g = self.gradients
        return found if g is None else found | {"dq": g.dq, "dk": g.dk, "dv": g.dv}

    def targets(self) -> dict[str, Target]:
        """What errors are measured against, in ulps of `dtype_of`."""
        return {n: Target.of(t, dtype_of(n, self.case)) for n, t in self.tensors().items()}

    def natural_scales(self, scales: Scales) -> dict[str, float]:
        """Unit roundoff times rms(S), by name; of the LSE, which is fp32, u_32 times its RMS, at least 1."""
        u, lse = self.case.unit_roundoff, self.forward.lse
        sizes = {n: s for n in self.tensors() if (s := getattr(scales, n, None)) is not None}
        sizes["lse"] = torch.clamp(torch.where(torch.isfinite(lse), lse, 0.0).abs(), min=1.0)
        rms = at_once(*map(_rms, sizes.values()))
        return {n: (2.0**-24 if n == "lse" else u) * r for n, r in zip(sizes, rms, strict=True)}


def of_rounding(target: Target, dtype: torch.dtype) -> Errors:
    """The errors of the truth rounded once, which nobody can avoid."""
    return target.errors(rounded(target.truth, dtype))


def dtype_of(name: str, case: Case) -> torch.dtype:
    """The format in whose ulps a tensor's errors are told: the LSE is fp32 whatever the inputs are."""
    return torch.float32 if name == "lse" else DTYPES[case.dtype]


def _rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt() if x.numel() else x.new_zeros(())
