"""Does the order of the sums show?  Tiles, direction, and standard attention: which bits of the output change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reports.published import Claim, Figure, Reproduction
from ...reports.words import percent
from . import accuracy
from .algorithms import exact, standard, to_bits
from .common import QUERIES, bundled, figure, normal, outcome, rms, span

_N, _D, _SCALE = 1024, 64, 0.125
_USUAL, _OTHERS = 64, (16, 32, 128, 256)  # keys per tile
_REVERSED, _STANDARD = "keys in reverse order", "standard attention"
_BF16 = 8


def reproduce(seeds: int) -> Reproduction:
    """The share of output elements whose bits change, bf16; and errors over all regimes."""
    found = [_changed(s) for s in range(seeds)]
    shares = {name: figure(f"share of elements: {name}", (bits[name] for bits, _ in found)) for name in found[0][0]}
    errors = {
        name: figure(f"RMS error / that with tiles of {_USUAL} keys: {name}", (e[name] for _, e in found))
        for name in shares
    }
    share, error = shares.pop(_STANDARD), errors.pop(_STANDARD)
    return Reproduction(
        name="tiling",
        source='Dao et al. 2022, arXiv:2205.14135, "exact attention"; He et al. 2025, "Defeating Nondeterminism in LLM '
        'Inference"',
        setting=f"Bits: bf16, N(0, 1), N = {_N}, D = {_D}, {QUERIES} queries, the bundled kernel with tiles of "
        f'{_USUAL} keys against itself in other orders and against standard attention. By "exact" the paper means '
        f"algebra; readers make these bits and this accuracy of it. {accuracy.SETTING}",
        claims=(
            _changes(list(shares.values()), list(errors.values())),
            _identical(share, error),
            accuracy.claim(seeds),
        ),
    )


def _changes(shares: Sequence[Figure], errors: Sequence[Figure]) -> Claim:
    return Claim(
        claim="another order of the sums changes the result's bits",
        rule="with every other tile size, and in reverse, some elements change with every seed",
        outcome=outcome(all(f.low > 0 for f in shares)),
        because=f"a share of {span(shares)} of the elements changes with the tiles or the direction; the RMS error is "
        f"{span(errors, '.3g')} times what it was",
        figures=(*shares, *errors),
    )


def _identical(share: Figure, error: Figure) -> Claim:
    return Claim(
        claim='"exact" as: the same bits as standard attention',
        rule="no element changes with any seed",
        outcome=outcome(share.high == 0),
        because=f"{percent(1 - share.median)} of the elements have the same bits; standard attention's RMS error is "
        f"{error.median:.2g} times the kernel's",
        figures=(share, error),
    )


def _changed(seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Share of changed elements, and RMS error as a ratio, by what is changed."""
    r = to_bits(_BF16)
    q, k, v = (r(normal(seed, f"tiling {name}", n, _D)) for name, n in (("q", QUERIES), ("k", _N), ("v", _N)))

    def kernel(columns: int, variant: str | None = None) -> Tensor:
        return bundled(q, k, v, _SCALE, torch.bfloat16, tiles=(64, columns), variant=variant)

    truth, usual = standard(q, k, v, _SCALE, exact), kernel(_USUAL)
    others = {f"tiles of {n} keys": kernel(n) for n in _OTHERS}
    others[_REVERSED] = kernel(_USUAL, "reversed-keys")
    others[_STANDARD] = standard(q, k, v, _SCALE, r)
    bits = {name: float((o != usual).double().mean()) for name, o in others.items()}
    return bits, {name: rms(o - truth) / rms(usual - truth) for name, o in others.items()}
