"""Regimes whose elements are independent draws: they alone carry statistics."""

from __future__ import annotations

from ..case import Case
from ..draws import Draws, Float
from .common import Values, normals, regime, shapes


@regime("normal", "the baseline: N(0, 1)", independent=True)
def _(case: Case) -> Values:
    return Values(**normals(case))


@regime("uniform", "U[0, 1), as in many test suites: flat softmax, K and V share an offset", independent=True)
def _(case: Case) -> Values:
    return Values(**{n: Draws(case.seed, n).uniform(*s) for n, s in shapes(case).items()})


@regime(
    "outlier", "N(0, 1) + N(0, 100) * Bernoulli(0.001), the heavy tails of the FlashAttention-3 paper", independent=True
)
def _(case: Case) -> Values:
    def heavy(name: str, shape: tuple[int, ...]) -> Float:
        hit = Draws(case.seed, name, "hit").uniform(*shape) < 0.001
        return Draws(case.seed, name).normal(*shape) + hit * 10.0 * Draws(case.seed, name, "size").normal(*shape)

    return Values(**{n: heavy(n, s) for n, s in shapes(case).items()})


@regime("large-logits", "q scaled by 4 to 16: peaked softmax; rounding the scores hurts", independent=True)
def _(case: Case) -> Values:
    return Values(**normals(case, q=Draws(case.seed, "factor").choice((4.0, 8.0, 16.0))))
