"""Golden et al. (2024), "Is Flash Attention Stable?", arXiv:2405.02803."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...reports.published import Claim, Figure, Outcome, Reproduction
from . import training
from .algorithms import exact, flash_1, standard, to_bits
from .common import QUERIES, bundled, figure, largest, normal, outcome, span, uniform

_D, _SCALE, _BLOCK, _BF16 = 64, 0.125, 32, 8  # head dimension, 1/sqrt(D), keys per tile, significand bits
_SETTINGS = [(kind, n) for kind in ("N(0, 1)", "U[0, 1)") for n in (256, 1024, 4096)]
_LONG, _BLOCKS = 2048, (16, 32, 128, 512, 2048)
_SHORT, _BITS = 1024, (8, 11, 16, 24)
_TENFOLD = (5.0, 20.0)
_SETTING = (
    f"Deviation is the largest difference from attention in float64 on the same inputs, over {QUERIES} queries; "
    f"D = {_D}, tiles of {_BLOCK} keys. The paper's figures are plots; its text says tenfold. Its own "
    "re-implementation of FlashAttention is not public: it is taken to be Algorithm 1 of Dao et al. (2022) with every "
    "result rounded to the format, the running O, l and m included."
)


def reproduce(seeds: int) -> Reproduction:
    """Deviation over standard attention's: by tile, length and format, and in trained weights."""
    return Reproduction(
        name="golden",
        source="Golden et al. 2024, arXiv:2405.02803",
        setting=f"{_SETTING} {training.SETTING}",
        claims=(_in_one_pass(seeds), _by_tile(seeds), _by_format(seeds), training.claim(seeds)),
    )


def _in_one_pass(seeds: int) -> Claim:
    def over(what: str, deviation: Callable[..., float]) -> list[Figure]:
        return [
            figure(f"{what}: {kind}, N = {n}", (deviation(kind, n, s) for s in range(seeds)), 10.0)
            for kind, n in _SETTINGS
        ]

    stored, kernel = over("O, l, m kept in bf16", _stored), over("bundled kernel", _of_kernel)
    return Claim(
        claim="FlashAttention deviates about ten times as much as standard attention in BF16",
        rule=f"the bundled kernel's median is {_TENFOLD[0]:g} to {_TENFOLD[1]:g} times in some setting; under the "
        "assumption that O, l and m are kept in bf16 between tiles, if that of Algorithm 1 is",
        outcome=tenfold(kernel, stored),
        because=f"{span(stored)} times as much if O, l and m are kept in bf16 between tiles; {span(kernel)} times in "
        "the bundled kernel, whose accumulators are fp32",
        figures=(*stored, *kernel),
    )


def _by_tile(seeds: int) -> Claim:
    figures = [
        figure(f"{b} keys a tile, N = {_LONG}", (_stored("N(0, 1)", _LONG, s, b) for s in range(seeds)))
        for b in _BLOCKS
    ]
    return Claim(
        claim="larger tiles deviate less",
        rule="the median falls from each tile size to the next: under the assumption that O, l and m are kept in bf16 "
        "between tiles, which is what is measured",
        outcome=outcome(as_stated=False, under_assumption=falls(figures)),
        because=f"if O, l and m are kept in bf16 between tiles: {figures[0].median:.2g} times standard attention's "
        f"with tiles of {_BLOCKS[0]} keys, {figures[-1].median:.2g} times with one of {_BLOCKS[-1]}",
        figures=tuple(figures),
    )


def _by_format(seeds: int) -> Claim:
    figures = [
        figure(f"deviation with {b} significand bits, N = {_SHORT}", (_deviation(s, b) for s in range(seeds)))
        for b in _BITS
    ]
    units = [f.median * 2.0**b for f, b in zip(figures, _BITS, strict=True)]
    return Claim(
        claim="the deviation falls as the format gets more significand bits",
        rule="the median falls from each format to the next",
        outcome=outcome(falls(figures)),
        because=f"it is {min(units):.2g} to {max(units):.2g} times the unit roundoff, whatever the format",
        figures=tuple(figures),
    )


def tenfold(kernel: Sequence[Figure], stored: Sequence[Figure]) -> Outcome:
    """Of deviations over standard attention's: the bundled kernel's, and Algorithm 1's."""

    def reached(figures: Sequence[Figure]) -> bool:
        return any(_TENFOLD[0] <= f.median <= _TENFOLD[1] for f in figures)

    return outcome(reached(kernel), reached(stored))


def falls(figures: Sequence[Figure]) -> bool:
    """Whether the medians decrease throughout."""
    return all(b.median < a.median for a, b in pairwise(figures))


# -- measured ----------------------------------------------------------------------------------------------------------


def _inputs(kind: str, n: int, seed: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    draw, r = normal if kind == "N(0, 1)" else uniform, to_bits(bits)
    q, k, v = (r(draw(seed, name, rows, _D)) for name, rows in (("q", min(n, QUERIES)), ("k", n), ("v", n)))
    return q, k, v


def _stored(kind: str, n: int, seed: int, block: int = _BLOCK) -> float:
    """Of Algorithm 1 in bf16, over standard attention's deviation in bf16."""
    q, k, v = _inputs(kind, n, seed, _BF16)
    return _over_standard(flash_1(q, k, v, _SCALE, to_bits(_BF16), block), q, k, v)


def _of_kernel(kind: str, n: int, seed: int) -> float:
    q, k, v = _inputs(kind, n, seed, _BF16)
    return _over_standard(bundled(q, k, v, _SCALE, torch.bfloat16), q, k, v)


def _over_standard(o: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    truth = standard(q, k, v, _SCALE, exact)
    return largest(o - truth) / largest(standard(q, k, v, _SCALE, to_bits(_BF16)) - truth)


def _deviation(seed: int, bits: int) -> float:
    q, k, v = _inputs("N(0, 1)", _SHORT, seed, bits)
    return largest(flash_1(q, k, v, _SCALE, to_bits(bits), _BLOCK) - standard(q, k, v, _SCALE, exact))
