"""The survey: a stratified sample of independent cases, the only source of distributions and probabilities.

Case i of seed s is a pure function of (s, i) and of what the implementation takes.  dtypes, masks and regimes go round
in shuffled order, so that every stratum has its share; all other choices are independent draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .case import Case, MaskRecipe
from .draws import Draws
from .implementation import Implementation
from .profiles import Profile
from .regimes import REGIMES

#: lengths where kernels break: nothing, one, tile edges, primes
LENGTHS = (1, 2, 3, 5, 7, 13, 15, 16, 17, 23, 31, 32, 33, 47, 61, 63, 64, 65, 79, 95, 96, 97, 113, 127, 128, 129, 130,
           191, 193, 251, 255, 256, 257, 299, 383, 385, 509, 511, 512, 513, 769, 1021, 1023, 1024, 1025)  # fmt: skip
HEADS = ((1, 1), (2, 2), (2, 1), (4, 2), (3, 1), (4, 4), (6, 2), (6, 3))
#: what a kernel may meet on one axis in any profile: the other axes are short then, so that it costs little
LONG = (257, 511, 513, 1023, 1025, 2049)
MANY = ((17, 1, 1), (9, 2, 1), (5, 4, 4), (1, 16, 16), (1, 32, 8), (2, 12, 4))  # B, H, HK
SHORT = (1, 2, 3, 5)
LAYOUTS = ("contiguous", "contiguous", "contiguous", "bshd", "packed", "gaps", "columns", "expanded")
#: None stands for 1/sqrt(D)
SCALES = (None, None, None, None, None, 0.125, 1.0, 0.25, 0.0, -0.2, 0.3, 0.07)
WINDOWS = ((0, 0), (1, 0), (3, 5), (0, 2), (16, 16), (31, 0), (40, None), (None, 2), (7, 33))


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
        MaskRecipe(bias="random"),
        MaskRecipe(bias="hidden"),
        MaskRecipe(bias="alibi"),
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


def lengths_up_to(limit: int) -> tuple[int, ...]:
    """The lengths worth having, up to a profile's limit."""
    return tuple(n for n in LENGTHS if n <= limit)


def survey(implementation: Implementation, profile: Profile, seed: int, *, count: int | None = None) -> Iterator[Case]:
    """The cases of a survey, all of them within what the implementation's signature takes."""
    total = profile.survey if count is None else count
    regimes = _Cycle(_weighted_regimes(), seed, "regime", first=[r.name for r in REGIMES.values() if not r.independent])
    # what a template needs shows when M != N; a template the implementation never takes is left out beforehand
    masks = _Cycle([m for m in mask_templates() if _takes(implementation, m)], seed, "mask")
    dtypes = _Cycle(profile.dtypes, seed, "dtype")
    for i in range(total):
        draws = Draws(seed, "survey", i)
        yield simplified(_draw(draws, profile, dtypes[i], regimes[i], masks[i]), implementation)


def _weighted_regimes() -> list[str]:
    """Half of the cases go to the independent regimes, which alone carry statistics."""
    independent = [r.name for r in REGIMES.values() if r.independent]
    others = [r.name for r in REGIMES.values() if not r.independent]
    repeat = max(1, round(len(others) / len(independent)))
    return independent * repeat + others


class _Cycle:
    """Item i of an endless sequence: those of `first`, shuffled, then shuffled rounds through `items`.

    What is built to break kernels comes first: most faults are found there, and soon.
    """

    def __init__(self, items: Sequence[Any], seed: int, name: str, *, first: Sequence[Any] = ()) -> None:
        self._items, self._seed, self._name = items, seed, name
        self._round, self._order = -1, list(items)
        self._first = Draws(seed, name, "first").shuffled(first)

    def __getitem__(self, i: int) -> Any:
        if i < len(self._first):
            return self._first[i]
        turn, place = divmod(i - len(self._first), len(self._items))
        if turn != self._round:
            self._round, self._order = turn, Draws(self._seed, self._name, turn).shuffled(self._items)
        return self._order[place]


def _takes(implementation: Implementation, mask: MaskRecipe) -> bool:
    probe = Case(B=1, H=1, HK=1, M=2, N=3, D=16, dtype="fp16", regime="normal", seed=0, mask=mask, backward=False)
    return implementation.lacks(probe) is None


def _draw(draws: Draws, profile: Profile, dtype: Any, regime: str, mask: MaskRecipe) -> Case:
    lengths = lengths_up_to(profile.max_length)
    M, N = draws.choice(lengths), draws.choice(lengths)
    shape = float(draws.uniform(1)[0])
    if shape < 0.35:
        N = M
    elif shape < 0.38:
        M = 0
    elif shape < 0.41:
        N = 0
    elif shape < 0.44:
        M, N = draws.choice(SHORT), draws.choice(LONG)
    elif shape < 0.46:
        M, N = draws.choice(LONG), draws.choice(SHORT)
    elif shape < 0.52:  # decoding: one query, and often no mask that would hide the last key
        M, N = 1, draws.choice((*lengths, *LONG))
        mask = draws.choice((mask, MaskRecipe()))
    H, HK = draws.choice(HEADS)
    B = draws.choice((1, 1, 2, 2, 3))
    if 0.52 <= shape < 0.54:
        M, N = draws.choice(SHORT), draws.choice(SHORT)
        B, H, HK = draws.choice(MANY)
    while 4 * profile.max_length**2 < B * H * M * N and (B > 1 or H > HK):
        B, H = max(1, B - 1), H if B > 1 else HK
    if mask.window is not None:
        # under a causal mask, a window that ends at the diagonal says nothing about how the two go together
        windows = [w for w in WINDOWS if w[1] != 0 or not mask.causal]
        mask = MaskRecipe(mask.causal, draws.choice(windows), mask.alignment, mask.boolean, mask.bias, mask.key_lengths)
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
