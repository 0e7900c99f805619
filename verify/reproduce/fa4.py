"""Zadouri et al. (2026), "FlashAttention-4": exponentials by polynomial, rescaling that is put off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...reports.published import Claim, Figure, Outcome, Reproduction
from .algorithms import Rounding, exact, standard, to_dtype
from .common import QUERIES, bundled, figure, largest, normal, outcome, outliers, rms

#: the published coefficients of 2^x on [0, 1), constant term first (Table 2 and the authors' code)
_POLYNOMIALS = {
    3: (1.0, 0.695146143436431884765625, 0.227564394474029541015625, 0.077119089663028717041015625),
    4: (1.0, 0.693042695522308349609375, 0.2412912547588348388671875, 5.2225358784198760986328125e-2,
        1.3434938155114650726318359375e-2),
    5: (1.0, 0.693151414394378662109375, 0.24016360938549041748046875, 5.5802188813686370849609375e-2,
        9.01452265679836273193359375e-3, 1.86810153536498546600341796875e-3),
}  # fmt: skip
_WORST = {3: 8.77e-5, 4: 3.05e-6, 5: 1.44e-7}
_MEAN_OF_3, _WORST_IN_BF16, _ROUNDING_IN_BF16 = 5.43e-5, 3.90e-3, 3.89e-3
_PEAK = 4.69e-2 / 3.13e-2
_POINTS = 1 << 22
_D, _HEADS, _N = 128, 8, 512
_fp32, _bf16, _fp16 = (to_dtype(t) for t in (torch.float32, torch.bfloat16, torch.float16))


def reproduce(seeds: int) -> Reproduction:
    """Relative errors of the polynomials, exhaustive and without seeds; errors with rescaling put off, over seeds."""
    return Reproduction(
        name="fa4",
        source="Zadouri et al. 2026, FlashAttention-4, Table 2; pull request 2067 of its repository",
        setting=f"2^x by Horner's rule with fused multiply-adds in fp32, at {_POINTS:,} points of [0, 1), so that no "
        f"seed matters. Rescaling: bf16, D = {_D}, {_HEADS} heads, N = {_N}, {QUERIES} queries, the bundled kernel "
        "with and without a threshold of 2^8; the pull request reports a single case.",
        claims=(_of_polynomials(), _of_rescaling(seeds)),
    )


def _of_polynomials() -> Claim:
    x = torch.arange(_POINTS, dtype=torch.float64) / _POINTS
    true, cubic = torch.exp2(x), _horner(3, x)

    def errors(values: Tensor) -> Tensor:
        return (values / true - 1).abs()

    worst = [
        figure(f"degree {degree}: largest relative error", [largest(errors(_horner(degree, x)))], published)
        for degree, published in _WORST.items()
    ]
    mean = figure("degree 3: mean relative error", [float(errors(cubic).mean())], _MEAN_OF_3)
    bf16 = figure("degree 3, rounded to bf16: largest", [largest(errors(_bf16(cubic)))], _WORST_IN_BF16)
    ideal = figure("exact, rounded to bf16: largest", [largest(errors(_bf16(true)))], _ROUNDING_IN_BF16)
    fp16 = figure("degree 3, rounded to fp16: largest", [largest(errors(_fp16(cubic)))])
    ideal_16 = figure("exact, rounded to fp16: largest", [largest(errors(_fp16(true)))])
    return Claim(
        claim="a polynomial of degree 3 errs by at most 8.8e-5, which rounding P to bf16 hides",
        rule="the published errors are ours to three digits, and in bf16 the polynomial's is at most 1.01 times that "
        "of rounding alone",
        outcome=hidden((*worst, mean, bf16, ideal), bf16, ideal),
        because=f"rounded to bf16, its largest relative error is {bf16.median / ideal.median:.4g} times that of "
        f"rounding alone; rounded to fp16, {fp16.median / ideal_16.median:.3g} times",
        figures=(*worst, mean, bf16, ideal, fp16, ideal_16),
    )


def _of_rescaling(seeds: int) -> Claim:
    found = [_lagging(s) for s in range(seeds)]
    outlying = [_lagging(s, outlying=True) for s in range(seeds)]
    usual = figure("RMS error, put off / not, N(0, 1)", (r for r, _ in found))
    heavy = figure("RMS error, put off / not, N(0, 1) with outliers", (r for r, _ in outlying))
    peak = figure("largest error, put off / not, N(0, 1)", (m for _, m in found), _PEAK)
    return Claim(
        claim="rescaling only when the maximum grows by more than 2^8 costs accuracy: 1.5 times the largest error",
        rule="the RMS error grows by more than 1 % with both inputs, and the published ratio of largest errors, a "
        "single one, lies within our range itself; under the assumption that RMS errors are meant, if these grow",
        outcome=costly(usual, heavy, peak),
        because=f"as RMS error, {usual.median:.3g} times on N(0, 1), {heavy.median:.3g} times with outliers; the "
        f"largest error is {peak.low:.2g} to {peak.high:.2g} times as large. A row's largest weight need not be 1 if "
        "the maximum lags behind, so it is rounded",
        figures=(usual, heavy, peak),
    )


def hidden(published: Sequence[Figure], bf16: Figure, ideal: Figure) -> Outcome:
    """Of figures that are published, the polynomial's error in bf16, and that of rounding alone."""
    same = all(f"{f.median:.3g}" == f"{f.published:.3g}" for f in published)
    return outcome(same and bf16.median <= 1.01 * ideal.median)


def costly(usual: Figure, heavy: Figure, peak: Figure) -> Outcome:
    """Of errors with rescaling put off over those without: RMS, RMS with outliers, largest."""
    grows = usual.median > 1.01 and heavy.median > 1.01
    return outcome(grows and peak.low <= _PEAK <= peak.high, grows)


def _horner(degree: int, x: Tensor, r: Rounding = _fp32) -> Tensor:
    """A fused multiply-add rounds once: fp32 operands have an exact product in float64."""
    *low, p = (r(torch.tensor(c, dtype=torch.float64)) for c in _POLYNOMIALS[degree])
    for c in reversed(low):
        p = r(p * x + c)
    return p


def _lagging(seed: int, *, outlying: bool = False) -> tuple[float, float]:
    """Errors with the threshold over those without: RMS, largest."""
    draw = outliers if outlying else normal
    rows = (("q", QUERIES // _HEADS), ("k", _N), ("v", _N))
    q, k, v = (_bf16(draw(seed, f"fa4 {name}", _HEADS, n, _D)) for name, n in rows)
    scale = _D**-0.5
    truth = standard(q, k, v, scale, exact)
    put_off, usual = (
        bundled(q, k, v, scale, torch.bfloat16, variant=variant) - truth for variant in ("conditional-rescale", None)
    )
    return rms(put_off) / rms(usual), largest(put_off) / largest(usual)
