"""The hunt: Hypothesis looks for the case where the kernel is worst.  It yields counterexamples, never statistics."""

from __future__ import annotations

import math

import hypothesis
from hypothesis import HealthCheck, Phase, assume, given, settings, target

from .case import DType
from .evaluate import Result, evaluate
from .implementation import Implementation
from .profiles import Profile
from .strategies import cases

_CLAMP = 20.0  # Hypothesis refuses infinite scores, and one huge score would end the climb


def hunt(implementation: Implementation, device: str, profile: Profile, dtype: DType, seed: int, examples: int) -> list[Result]:
    """Climb toward the largest error, by error / bound and by error / standard's; every case tried is returned.

    Runs in a worker.  The climb goes on past failing cases: shrinking them is `shrink`'s work.
    """
    results: list[Result] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=(Phase.generate, Phase.target),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases(dtypes=(dtype,), max_length=profile.max_length, head_dims=profile.head_dims))
    def climb(case):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        assume(implementation.lacks(case) is None)
        result = evaluate(case, implementation, "hunt", device=device, thorough=False)
        results.append(result)
        bounds = [math.log2(r.bound_ratio) for r in result.rows if r.bound_ratio]
        ratios = [r.log_ratio / math.log(2) for r in result.rows if r.log_ratio is not None and r.tensor != "lse"]
        target(max((_clamp(b) for b in bounds), default=-_CLAMP), label="log2(error / bound)")
        target(max((_clamp(r) for r in ratios), default=-_CLAMP), label="log2(error / standard's)")

    climb()
    return results


def _clamp(x: float) -> float:
    return max(-_CLAMP, min(_CLAMP, x))
