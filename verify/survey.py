"""The survey: a stratified sample of independent cases, the only source of distributions and probabilities.

Case i of seed s is a pure function of (s, i) and of what the implementation takes.  dtypes, shapes, masks and regimes
go round in shuffled order, so that every stratum has its share; all other choices are independent draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

from .case import Case, DType, MaskRecipe
from .draws import Draws
from .implementation import Implementation
from .plain import PLAIN_REGIMES, plain_case
from .profiles import Profile
from .regimes import REGIMES
from .shapes import ROUND, shape_of

T = TypeVar("T")

LAYOUTS = ("contiguous", "contiguous", "contiguous", "bshd", "packed", "gaps", "columns", "mixed", "expanded", "far")
#: None stands for 1/sqrt(D)
SCALES = (None, None, None, None, None, 0.125, 1.0, 0.25, 0.0, -0.2, 0.3, 0.07, 1.7)
#: masks that hide whole tiles, or parts of those that their first query sees whole
_TILED = ("first-tile", "documents", "band")
#: some as long as a tile of 32 or 64 keys, with and without the query's own
WINDOWS = ((0, 0), (1, 0), (3, 5), (0, 2), (16, 16), (31, 0), (40, None), (None, 2), (7, 33), (63, 0), (64, 64))


def mask_templates() -> tuple[MaskRecipe, ...]:
    """Every kind of mask and the combinations worth having; windows are filled in when a case is drawn."""
    any_window = (0, 0)
    plain = [
        MaskRecipe(),
        MaskRecipe(causal=True),
        MaskRecipe(causal=True, alignment="bottom-right"),
        MaskRecipe(window=any_window),
        MaskRecipe(window=any_window, alignment="bottom-right"),
        MaskRecipe(boolean="random"),
        MaskRecipe(boolean="empty-rows"),
        MaskRecipe(boolean="first-tile"),
        MaskRecipe(boolean="documents"),
        MaskRecipe(boolean="band"),
        MaskRecipe(bias="random"),
        MaskRecipe(bias="large"),
        MaskRecipe(bias="hidden"),
        MaskRecipe(bias="alibi"),
        MaskRecipe(bias="lowest"),
        MaskRecipe(key_lengths=True),
    ]
    combined = [
        MaskRecipe(causal=True, window=any_window, alignment="bottom-right"),
        MaskRecipe(causal=True, boolean="random"),
        MaskRecipe(causal=True, bias="alibi"),
        MaskRecipe(causal=True, key_lengths=True, alignment="bottom-right"),
        MaskRecipe(boolean="empty-rows", bias="random", key_lengths=True),
        MaskRecipe(window=any_window, bias="hidden", alignment="bottom-right"),
    ]
    return (*plain, *combined)


def survey(implementation: Implementation, profile: Profile, seed: int, *, count: int | None = None) -> Iterator[Case]:
    """The cases of a survey, all of them within what the implementation's signature takes."""
    total = profile.survey if count is None else count
    needles = [r.name for r in REGIMES.values() if not r.independent]
    regimes = _cycle(_weighted_regimes(), seed, "regime", first=needles)
    # what a template needs shows when M != N; a template the implementation never takes is left out beforehand
    taken = [m for m in mask_templates() if _takes(implementation, m)]
    masks, tiled = _cycle(taken, seed, "mask"), [m for m in taken if m.boolean in _TILED]
    dtypes, kinds = _cycle(profile.dtypes, seed, "dtype"), _cycle(ROUND, seed, "shape")
    plain_regimes = _cycle(PLAIN_REGIMES, seed, "plain")
    for i, kind, dtype in zip(range(total), kinds, dtypes, strict=False):
        draws = Draws(seed, "survey", i)
        if kind == "plain":
            case = plain_case(draws, dtype, next(plain_regimes))
        else:
            mask = next(masks)
            if kind == "large":
                mask = draws.choice((mask, *tiled))
            case = _draw(draws, profile, kind, dtype, next(regimes), mask)
        yield simplified(case, implementation)


def plain_sample(implementation: Implementation, profile: Profile, seed: int, count: int) -> Iterator[Case]:
    """Plain cases alone, other ones than the survey's."""
    dtypes, regimes = _cycle(profile.dtypes, seed, "sample dtype"), _cycle(PLAIN_REGIMES, seed, "sample regime")
    for i, dtype, regime in zip(range(count), dtypes, regimes, strict=False):
        yield simplified(plain_case(Draws(seed, "sample", i), dtype, regime), implementation)


def _weighted_regimes() -> list[str]:
    """Half of the cases go to the independent regimes, which alone carry statistics."""
    independent = [r.name for r in REGIMES.values() if r.independent]
    others = [r.name for r in REGIMES.values() if not r.independent]
    repeat = max(1, round(len(others) / len(independent)))
    return independent * repeat + others


def _cycle(items: Sequence[T], seed: int, name: str, *, first: Sequence[T] = ()) -> Iterator[T]:
    """Those of `first`, shuffled, then shuffled rounds through `items`, without end.

    What is built to break kernels comes first: most faults are found there, and soon.
    """
    yield from Draws(seed, name, "first").shuffled(first)
    for turn in itertools.count():
        yield from Draws(seed, name, turn).shuffled(items)


def _takes(implementation: Implementation, mask: MaskRecipe) -> bool:
    probe = Case(B=1, H=1, HK=1, M=2, N=3, D=16, dtype="fp16", regime="normal", seed=0, mask=mask, backward=False)
    return implementation.lacks(probe) is None


def _draw(draws: Draws, profile: Profile, kind: str, dtype: DType, regime: str, mask: MaskRecipe) -> Case:
    B, H, HK, M, N = shape_of(kind, draws, profile.max_length)
    if kind == "decoding":  # often without a mask that would hide the last key
        mask = draws.choice((mask, MaskRecipe()))
    if mask.window is not None:
        # under a causal mask, a window that ends beyond the diagonal says most; most callers end it at the diagonal
        further = [w for w in WINDOWS if w[1] != 0] if mask.causal else []
        window = draws.choice((*WINDOWS, *further))
        mask = MaskRecipe(mask.causal, window, mask.alignment, mask.boolean, mask.bias, mask.key_lengths)
    return Case(
        B=B, H=H, HK=HK, M=M, N=N, D=draws.choice(profile.head_dims), dtype=dtype, regime=regime,
        seed=int(draws.integers(0, 2**31, 1)[0]), scale=draws.choice(SCALES), mask=mask, layout=draws.choice(LAYOUTS),
    )  # fmt: skip


def simplified(case: Case, implementation: Implementation) -> Case:
    """The case without what the implementation lacks: a scale, grouped heads, gradients, at last the mask."""
    while implementation.lacks(case) is not None:
        case = _simpler(case, implementation)
    return case


def _simpler(case: Case, implementation: Implementation) -> Case:
    """The case without one thing that the implementation lacks."""
    without = (
        case.with_(scale=None),
        case.with_(HK=case.H),
        case.with_(backward=False),
        case.with_(M=case.N) if case.N else case.with_(N=case.M),
    )
    for candidate in without:
        if candidate != case and implementation.lacks(candidate) != implementation.lacks(case):
            return candidate
    return case.with_(mask=MaskRecipe())
