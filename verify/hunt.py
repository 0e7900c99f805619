"""The hunt: Hypothesis looks for the case where the kernel is worst.  It yields counterexamples, never statistics."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings, target

from .case import Case, DType
from .evaluate import Result
from .implementation import Implementation
from .profiles import Profile
from .strategies import cases
from .survey import simplified

_CLAMP = 20.0  # Hypothesis refuses infinite scores, and one huge score would end the climb


def hunt(
    implementation: Implementation, profile: Profile, dtype: DType, seed: int, evaluate: Callable[[Case], Result | None]
) -> None:
    """Climb toward the largest error, by error / bound and by error / standard's.

    `evaluate` measures a case in a worker, so that a kernel that dies or hangs costs a case and not the hunt; it gives
    None when it wants no more.  The climb goes on past failing cases: shrinking them is `shrink`'s work.
    """
    known: dict[Case, Result | None] = {}

    @hypothesis.seed(seed)
    @settings(
        max_examples=profile.hunt, deadline=None, database=None, phases=(Phase.generate, Phase.target),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases(dtypes=(dtype,), max_length=profile.max_length, head_dims=profile.head_dims))
    def climb(drawn: Case) -> None:
        case = simplified(drawn, implementation)
        if case not in known:
            known[case] = evaluate(case)
        result = known[case]
        if result is None:
            return
        bounds = [math.log2(r.bound_ratio) for r in result.rows if r.bound_ratio]
        ratios = [r.log_ratio / math.log(2) for r in result.rows if r.log_ratio is not None and r.tensor != "lse"]
        target(max((_clamp(b) for b in bounds), default=-_CLAMP), label="log2(error / bound)")
        target(max((_clamp(r) for r in ratios), default=-_CLAMP), label="log2(error / standard's)")

    climb()


def _clamp(x: float) -> float:
    return max(-_CLAMP, min(_CLAMP, x))
