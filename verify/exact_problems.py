"""What a kernel's algebra is asked: small problems in which everything that it may depend on differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .case import Case, MaskRecipe, parse_case
from .implementation import Implementation, parameters_of
from .pool import Pool
from .probe import has_gradients
from .problems import LostError, UsageError
from .regimes import REGIMES

DIGITS = (50, 100, 200)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a worker is to do: a case, tiles for a function that takes them, and how many digits (none: rationals)."""

    case: Case
    tiles: tuple[int, int] | None = None
    digits: tuple[int, ...] = ()

    @property
    def arithmetic(self) -> str:
        """In words."""
        return f"{', '.join(map(str, self.digits))} digits" if self.digits else "rationals"


def problems(implementation: Implementation, seed: int, *, thorough: bool) -> list[Problem]:
    """Everything the algebra of a kernel may depend on; `thorough` doubles the lengths and tries more tiles."""
    tiles = _tiles(implementation)
    cases = [c for case in _cases(seed, long=thorough) if (c := _within_reach(case, implementation)) is not None]
    each = min(len(tiles), 2 if thorough else 1)
    chosen = [Problem(c, tiles[(n + i) % len(tiles)]) for n, c in enumerate(cases) for i in range(each)]
    generic = [c.with_(regime="normal") for c in cases[: 2 if thorough else 1]]
    digits = DIGITS if thorough else DIGITS[:2]
    return chosen + [Problem(c, tiles[n % len(tiles)], digits) for n, c in enumerate(generic)]


def _tiles(implementation: Implementation) -> list[tuple[int, int] | None]:
    """The tile shapes to try; a function without a `tiles` option has its own."""
    takes_tiles = "tiles" in parameters_of(implementation.function)
    return [(16, 16), (32, 32), (32, 16), (16, 32)] if takes_tiles else [None]


def _within_reach(case: Case, implementation: Implementation) -> Case | None:
    """The case with what the function has no option for taken out, if that leaves something to ask."""
    if not implementation.has_backward:
        case = case.with_(backward=False)
    for change in (dict(HK=case.H), dict(mask=replace(case.mask, alignment=implementation.alignment))):
        if implementation.lacks(case) is not None:
            case = case.with_(**change)
    return case if implementation.lacks(case) is None else None


def _cases(seed: int, *, long: bool) -> Iterator[Case]:
    base = Case(B=1, H=2, HK=1, M=37, N=37, D=16, dtype="bf16", regime="integers", seed=seed)
    causal = MaskRecipe(causal=True)
    bottom = MaskRecipe(causal=True, alignment="bottom-right")
    yield base.with_(mask=causal) if not long else base.with_(M=64, N=64, mask=causal)
    yield base.with_(M=33, N=33, dtype="fp16", layout="gaps")
    yield base.with_(M=33, N=45, dtype="fp16")
    yield base.with_(M=19, N=50, D=32, scale=0.125, mask=bottom)
    yield base.with_(M=50, N=19, mask=bottom, dtype="fp16")  # the first queries see nothing
    yield base.with_(H=4, HK=2, M=34, N=34, mask=MaskRecipe(causal=True, window=(7, 0)))
    yield base.with_(M=40, N=33, D=8, scale=0.25, mask=MaskRecipe(window=(4, 2), alignment="bottom-right"))
    yield base.with_(M=31, N=36, H=1, mask=MaskRecipe(boolean="empty-rows"), dtype="fp16")
    yield base.with_(B=2, M=17, N=40, mask=MaskRecipe(key_lengths=True))
    yield base.with_(M=1, N=47, H=2, HK=2, D=4)
    yield base.with_(M=36, N=1, H=1, dtype="fp16")
    yield base.with_(M=65, N=35, HK=2)
    if long:
        yield base.with_(M=64, N=64, D=32, scale=0.125, dtype="fp16", HK=2)
        yield base.with_(M=63, N=61, mask=MaskRecipe(boolean="first-tile"), H=1)
        yield base.with_(M=24, N=24, scale=-0.25, mask=causal)


def problems_of(implementation: Implementation, pool: Pool, seed: int, case_text: str | None) -> list[Problem]:
    """All the usual problems, or one case in rationals (where it can be) and in digits.

    Raises:
        UsageError: for a text that is no case, or a case that the function has no option for.
    """
    implementation = replace(implementation, has_backward=gradients_of(pool))
    if case_text is None:
        return problems(implementation, seed, thorough=True)
    case = parse_case(case_text)
    if (lacking := implementation.lacks(case)) is not None:
        raise UsageError(f"{implementation.name} has no option for {lacking}")
    if case.regime not in REGIMES:
        raise UsageError(f"not a case: unknown regime {case.regime!r}; there are {', '.join(REGIMES)}")
    rational_too = case.regime == "integers" and case.mask.bias is None
    rationals = [Problem(case, tiles) for tiles in _tiles(implementation)] if rational_too else []
    return [*rationals, Problem(case, _tiles(implementation)[0], DIGITS)]


def gradients_of(pool: Pool) -> bool:
    """Whether the function has gradients; measured in a worker, since it may hang or die."""
    try:
        return pool.call(has_gradients)
    except LostError:
        return True
