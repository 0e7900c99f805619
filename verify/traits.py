"""What the failing cases of a survey have in common: the trait, or the two, that tells them best from the others.

A trait is something short to say of a case: scale <= 0, a boolean mask, D = 256, M > N.  How well it tells is the
likelihood ratio of two rates of failure, with and without it, over one rate for all cases (Wilks 1938).  So many traits
are tried that some tell by chance: what is said is what chance reaches in less than one check of twenty, by Chernoff's
bound on the ratio and Bonferroni's on the number tried.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..reports.record import Row
from .case import Case, MaskRecipe, case_of
from .masking import has_empty_rows
from .problems import UsageError

_ALPHA = 0.05
_FEWEST = 3  # failures: two have always something in common
_LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
_LOGITS = (10, 88, 1000)  # e^10 is near the end of fp16, e^88 near that of fp32

_IN_SURVEY = ": in the survey "

_Flags = NDArray[np.bool_]


def in_common(failed: Sequence[Row], asked: Sequence[Row]) -> str:
    """Where a check fails: ": in the survey 90 of the 92 cases with scale <= 0, 0 of the 889 others"; or "", by chance.

    Only surveyed cases count: those of a hunt are alike because they were sought.
    """
    surveyed = [(r, case) for r in asked if r.phase == "survey" and (case := _case_of(r.case_json or "null"))]
    wrong = {r.case_id for r in failed}
    hit = np.array([r.case_id in wrong for r, _ in surveyed], dtype=bool)
    if hit.sum() < _FEWEST or hit.all():
        return ""
    named: dict[bytes, tuple[str, _Flags]] = {}
    for name, flags in _traits(surveyed):
        if 0 < flags.sum() < len(flags):
            named.setdefault(flags.tobytes(), (name, flags))  # of two traits of the same cases, the first
    best = _best([name for name, _ in named.values()], np.array([flags for _, flags in named.values()]), hit)
    if best is None:
        return ""
    said, flags = best
    inside, outside = hit[flags], hit[~flags]
    return (
        f"{_IN_SURVEY}{inside.sum()} of the {len(inside)} cases with {said}, "
        f"{outside.sum()} of the {len(outside)} others"
    )


def where(detail: str) -> str:
    """What `in_common` added to a check's detail, as a clause of its own."""
    _, found, said = detail.partition(_IN_SURVEY)
    return f"; {found.removeprefix(': ')}{said}" if found else ""


def _best(names: list[str], traits: _Flags, hit: _Flags) -> tuple[str, _Flags] | None:
    """The trait, or the two, whose likelihood ratio is most above what chance reaches."""
    if not names:
        return None
    count = traits.astype(np.float64)
    sizes, hits = count @ count.T, (count * hit) @ count.T  # [traits, traits]; the diagonal is of one trait alone
    tells = _log_likelihood_ratio(hits, sizes, float(hit.sum()), len(hit))
    by_chance = math.log(2 * len(names) / _ALPHA)
    tells -= 2 * by_chance  # each of two traits is to tell that much more
    np.fill_diagonal(tells, np.diagonal(tells) + by_chance)
    # a tie is the single trait's, and then the first's
    i, j = max(_pairs(len(names)), key=lambda at: (round(float(tells[at]), 6), at[0] == at[1]))
    if tells[i, j] <= 0:
        return None
    if i == j:
        return names[i], traits[i]
    return f"{names[i]} and {names[j]}", traits[i] & traits[j]


def _pairs(n: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(n) for j in range(i, n))  # the first named first


def _log_likelihood_ratio(
    hits: NDArray[np.float64], sizes: NDArray[np.float64], all_hits: float, n: int
) -> NDArray[np.float64]:
    """Of two rates over one, where the rate is higher inside; elsewhere, and where there are no others, -inf."""

    def at_best(k: NDArray[np.float64], of: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log likelihood of k of so many, at the rate that makes it largest."""
        rate = np.divide(k, of, out=np.zeros_like(k), where=of > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(k > 0, k * np.log(rate), 0.0) + np.where(k < of, (of - k) * np.log1p(-rate), 0.0)

    others, of_others = all_hits - hits, n - sizes
    one = at_best(np.array([all_hits]), np.array([float(n)]))
    ratio = at_best(hits, sizes) + at_best(others, of_others) - one
    higher = (sizes > 0) & (of_others > 0) & (hits * of_others > others * sizes)
    return np.where(higher, ratio, -np.inf)


@lru_cache(maxsize=1 << 16)  # every check that failed asks
def _case_of(text: str) -> Case | None:
    """None where the record has none, or none that this version knows."""
    try:
        return case_of(json.loads(text))
    except (UsageError, ValueError):
        return None


def _traits(rows_and_cases: Sequence[tuple[Row, Case]]) -> Iterator[tuple[str, _Flags]]:
    """Names, as they follow "with", and which cases have them; what says more comes first."""
    rows, cases = zip(*rows_and_cases, strict=True)
    B, H, HK, M, N, D = (np.array([getattr(c, name) for c in cases]) for name in ("B", "H", "HK", "M", "N", "D"))
    scale = np.array([math.nan if c.scale is None else c.scale for c in cases])  # NaN is like no other number
    yield "scale <= 0", scale <= 0
    yield "scale < 0", scale < 0
    yield "scale = 0", scale == 0
    yield "the usual scale", np.isnan(scale)
    yield "another scale than 1/sqrt(D)", ~np.isnan(scale)
    yield from _of_masks([c.mask for c in cases])
    for key in ("dtype", "layout", "regime"):
        values = np.array([getattr(c, key) for c in cases])
        for value in dict.fromkeys(values.tolist()):
            yield f"{key} {value}", values == value
    yield "a layout that is not contiguous", np.array([c.layout != "contiguous" for c in cases])
    yield "one batch element", B == 1
    yield "several batch elements", B > 1
    yield "one head", H == 1
    yield "several heads", H > 1
    yield "grouped heads", HK < H
    yield "no grouped heads", HK == H
    yield "M > N", M > N
    yield "M < N", M < N
    yield "M = N", M == N
    for name, length in (("M", M), ("N", N), ("D", D)):
        yield f"{name} = 1", length == 1
        for value in (0, 1, *_LENGTHS):
            yield f"{name} > {value}", length > value
            yield f"{name} {'<=' if length.min() < value else '='} {value}", length <= value
        for tile in (8, 16, 32, 64, 128):
            yield f"{name} not a multiple of {tile}", length % tile != 0
            yield f"{name} a multiple of {tile}", length % tile == 0
    for value in sorted(set(D.tolist())):
        yield f"D = {value}", value == D
    logits = np.array([r.max_logit or 0.0 for r in rows])
    for limit in _LOGITS:
        yield f"a score beyond {limit}", logits > limit
    yield "a query that sees no key", np.array([has_empty_rows(c) for c in cases])


def _of_masks(masks: Sequence[MaskRecipe]) -> Iterator[tuple[str, _Flags]]:
    parts = {
        "a causal mask": [m.causal for m in masks],
        "a window": [m.window is not None for m in masks],
        "a boolean mask": [m.boolean is not None for m in masks],
        "a bias": [m.bias is not None for m in masks],
        "key padding": [m.key_lengths for m in masks],
    }
    yield "no mask", np.array([not m.kinds() for m in masks])
    for name, has in parts.items():
        yield name, np.array(has)
    yield "bottom-right alignment", np.array([m.alignment == "bottom-right" for m in masks])
    for noun, kinds in (("boolean mask", [m.boolean for m in masks]), ("bias", [m.bias for m in masks])):
        for kind in dict.fromkeys(k for k in kinds if k):
            yield f"{noun} {kind}", np.array([k == kind for k in kinds])
    for name, has in parts.items():
        yield f"no {name.removeprefix('a ')}", ~np.array(has)
