"""Budgets from theory: what the roundings of the flash arrangement predict, over what standard attention's predict.

No kernel is run.  A budget so derived says of every cell what a kernel of that arrangement can reach, times the margin
that a prediction is given; the default budget says only that it must not be worse than standard attention.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ..reference import standard
from ..reference.analysis import analyse
from ..reference.arrangements import ANY, FLASH, STANDARD
from ..reference.scalars import all_finite
from ..reports.record import IN_DTYPE
from ..reports.record import Tensor as TensorName
from .budgets import Budgets
from .case import Case
from .errors import floored_log_ratio
from .inputs import build
from .loading import load
from .profiles import Profile
from .regimes import REGIMES
from .settings import Progress
from .statistics import mean_interval
from .survey import survey
from .truth import Truth, of_rounding


@dataclass(frozen=True, slots=True)
class Derived:
    """A cell: the geometric mean over n cases of the predicted RMS error / standard attention's."""

    tensor: TensorName
    dtype: str
    regime: str
    n: int
    ratio: float


def derived(profile: Profile, seed: int, progress: Progress) -> list[Derived]:
    """The cells of the survey's independent regimes, tensors first."""
    logs: dict[tuple[TensorName, str, str], list[float]] = defaultdict(list)
    cases = [c for c in survey(load("flash"), profile, seed) if REGIMES[c.regime].independent and c.M and c.N]
    for number, case in enumerate(cases, start=1):
        for tensor, log in _predicted(case):
            logs[tensor, case.dtype, case.regime].append(log)
        progress("derive", number, len(cases))
    return [
        Derived(tensor, dtype, regime, len(own), math.exp(mean_interval(own, 0.95).mean))
        for tensor in IN_DTYPE for (t, dtype, regime), own in sorted(logs.items()) if t == tensor
    ]  # fmt: skip


def _predicted(case: Case) -> Iterator[tuple[TensorName, float]]:
    """Per tensor, the floored log ratio of what the two arrangements' roundings predict."""
    x, scale = build(case), case.softmax_scale
    do = x.do if case.backward else None
    if not all_finite(standard.forward(x.q, x.k, x.v, x.mask, scale).o):
        return  # a survey cannot compare with it either
    truth = Truth.of(case, x)
    known = analyse(
        x.q, x.k, x.v, do, x.mask, scale, truth.forward, truth.gradients, ANY, (FLASH, STANDARD)
    )  # fmt: skip
    flash, usual = known.predicted
    targets, natural = truth.targets(), truth.natural_scales(known.scales)
    for tensor in (t for t in IN_DTYPE if t in targets):
        best = of_rounding(targets[tensor], x.q.dtype).rms
        log = floored_log_ratio(getattr(flash, tensor), getattr(usual, tensor), best, natural[tensor])
        if log is not None:
            yield tensor, log


def toml(cells: list[Derived], budgets: Budgets, implementation: str, command: str) -> str:
    """A file for --budgets: an exception per tensor and regime, the same for the dtypes that have cases enough.

    None is looser than the default: what predictions leave open, being no worse than standard attention answers.
    """
    margin, usual = budgets.predictor.margin, budgets.ratio.margin
    groups: dict[tuple[TensorName, str], list[Derived]] = defaultdict(list)
    for c in (c for c in cells if c.n >= budgets.ratio.min_cases):
        groups[c.tensor, c.regime].append(c)
    lines = [
        f"# {command}",
        "# What the roundings of the flash arrangement predict, over what standard attention's predict,",
        f"# times {margin:g}.  No kernel was run.",
        "schema = 1",
    ]
    for (tensor, regime), own in groups.items():
        limit = math.ceil(100 * margin * max(c.ratio for c in own)) / 100
        if limit >= usual:
            continue
        told = ", ".join(f"{c.ratio:.2f} in {c.dtype} (n = {c.n})" for c in own)
        lines += [
            "", "[[exception]]", f'implementation = "{implementation}"', f'tensors = ["{tensor}"]',
            f"dtypes = {json.dumps([c.dtype for c in own])}", f'regimes = ["{regime}"]', f"ratio_margin = {limit:.2f}",
            f'reason = "derived: roundings predict {told} of standard attention\'s error"',
        ]  # fmt: skip
    return "\n".join(lines) + "\n"
