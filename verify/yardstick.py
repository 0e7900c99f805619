"""Is the yardstick straight?  The float64 truth against certified balls (Arb), over every regime."""

from __future__ import annotations

from dataclasses import dataclass

from ..reference import attention
from ..reference.blocks import blocks, clean
from ..reference.certified import Certified, certified, distance
from .case import Case, MaskRecipe
from .inputs import build
from .regimes import REGIMES

LIMIT = 1e-12  # of |float64 - truth| / natural scale


@dataclass(frozen=True, slots=True)
class Straightness:
    """One case: the distance of each tensor in units of its natural scale, and the largest radius of the balls."""

    regime: str
    dtype: str
    max_logit: float
    distance: dict[str, float]
    radius: float

    @property
    def straight(self) -> bool:
        """The distances are upper bounds: they include the radii."""
        return max(self.distance.values()) < LIMIT


def yardstick(seed: int, bits: int) -> list[Straightness]:
    """Every regime in both half dtypes, without a mask and with a causal one: N = 48, D = 16."""
    rows = []
    for name in REGIMES:
        for dtype, mask in (("fp16", MaskRecipe()), ("bf16", MaskRecipe(causal=True, alignment="bottom-right"))):
            case = Case(B=1, H=2, HK=1, M=40, N=48, D=16, dtype=dtype, regime=name, seed=seed, mask=mask)  # type: ignore[arg-type]
            x = build(case)
            scale = case.softmax_scale
            fwd = attention.forward(x.q, x.k, x.v, x.mask, scale)
            grads = attention.backward(x.q, x.k, x.v, x.do, x.mask, scale)
            exact = certified(x.q, x.k, x.v, x.do, x.mask, scale, bits=bits)
            d = distance(fwd, exact, grads)
            distances = {t: float(getattr(d, t) or 0.0) for t in ("out", "lse", "dq", "dk", "dv")}
            parts = blocks(x.q, clean(x.k), clean(x.v), None, x.mask, scale, fwd)
            max_logit = max(float(b.s.abs().max()) for b in parts)
            rows.append(Straightness(name, dtype, max_logit, distances, _radius(exact)))
    return rows


def _radius(exact: Certified) -> float:
    """The largest radius of any ball, as an absolute number."""
    balls = (exact.o, exact.lse, exact.dq, exact.dk, exact.dv)
    return max(float(b.radius.max()) for b in balls if b is not None and b.radius.numel())
