"""From a failing case to the smallest one: no dimension of it can be lowered and still fail.

Hypothesis' shrinker stops at a local minimum of its own order; here every smaller value of every dimension is tried, so
that minimality is a fact about the case and not about the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from .case import Case, MaskRecipe

#: given candidates in order of preference, the index of the first that fails, or None
FirstFailing = Callable[[Sequence[Case]], int | None]


def shrink(case: Case, first_failing: FirstFailing, *, deadline: float) -> tuple[Case, int, bool]:
    """The smallest failing case, how many steps led to it, and whether it is surely minimal (time did not run out).

    `deadline` is a value of `time.monotonic()`.
    """
    steps = 0
    while True:
        for candidates in _rounds(case):
            if time.monotonic() > deadline:
                return case, steps, False
            found = first_failing(candidates) if candidates else None
            if found is not None:
                case = candidates[found]
                steps += 1
                break  # start over from the smaller case
        else:
            return case, steps, time.monotonic() <= deadline


def _rounds(case: Case) -> Iterator[list[Case]]:
    """Batches of smaller cases: bold steps first, then plainer choices, then every lower value of every dimension."""
    yield _valid(case, _halved(case))
    yield _valid(case, _plainer(case))
    for name in ("B", "M", "N", "D"):
        low = 0 if name in "MN" else 1
        yield _valid(case, ({name: value} for value in range(low, getattr(case, name))))
    yield _valid(case, ({"H": h, "HK": hk} for h in range(1, case.H + 1) for hk in range(1, h + 1)
                        if h % hk == 0 and (h, hk) < (case.H, case.HK)))  # fmt: skip
    yield _valid(case, ({"mask": m} for m in _smaller_windows(case.mask)))


def _valid(case: Case, changes: Iterator[dict[str, object]] | list[dict[str, object]]) -> list[Case]:
    out = []
    for change in changes:
        try:
            candidate = case.with_(**change)
        except ValueError:
            continue
        if candidate != case:
            out.append(candidate)
    return out


def _halved(case: Case) -> list[dict[str, object]]:
    steps: list[dict[str, object]] = [{"B": 1, "H": 1, "HK": 1}, {"H": case.H // case.HK, "HK": 1}, {"B": 1}]
    steps += [{"M": case.M // 4, "N": case.N // 4}, {"M": case.M // 2, "N": case.N // 2}]
    steps += [{name: getattr(case, name) // 2} for name in ("M", "N", "D")]
    return steps


def _plainer(case: Case) -> list[dict[str, object]]:
    mask = case.mask
    steps: list[dict[str, object]] = [{"mask": MaskRecipe()}]
    steps += [
        {"mask": replace(mask, **part)}
        for part in ({"boolean": None}, {"bias": None}, {"key_lengths": False}, {"window": None}, {"causal": False},
                     {"alignment": "top-left"})
    ]  # fmt: skip
    steps += [{"layout": "contiguous"}, {"scale": None}, {"backward": False}, {"dtype": "fp16"}, {"regime": "normal"}]
    steps += [{"seed": s} for s in (0, 1) if case.seed > s]
    return steps


def _smaller_windows(mask: MaskRecipe) -> Iterator[MaskRecipe]:
    if mask.window is None:
        return
    left, right = mask.window
    for side, other in ((left, 0), (right, 1)):
        for value in range(side or 0):
            yield replace(mask, window=(value, right) if other == 0 else (left, value))
