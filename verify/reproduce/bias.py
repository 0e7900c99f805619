"""Qiu and Yao (2025), "Why Low-Precision Transformer Training Fails", arXiv:2510.04212."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...reference import standard as eager_standard
from ...reference.masks import Mask
from ...reports.published import Claim, Figure, Outcome, Reproduction
from .algorithms import exact, flash_2, standard, to_bits
from .common import bundled, figure, normal, outcome, size, uniform

_ROWS, _N, _D, _BF16 = 512, 256, 64, 8
_MAXIMUM = 4.0  # the logit that two keys share: it must be positive for the remedy to double it
_GAPS = (12.0, 20.0)  # nats between the maxima and the other keys of a row: these are below half an ulp of the sum
_BIASED = 0.1  # ulp
_ONE_SIGNED, _BOTH_SIGNS = "V in (-4, -2]", "V of both signs"
_r = to_bits(_BF16)


def reproduce(seeds: int) -> Reproduction:
    """The signed error of O in bf16 ulp, averaged; each row has keys and values of its own."""
    one_signed = [_biases(s, one_signed=True) for s in range(seeds)]
    both_signs = [_biases(s, one_signed=False) for s in range(seeds)]

    def over(name: str, words: str) -> Figure:
        return figure(f"{words}, {_ONE_SIGNED}", (b[name] for b in one_signed))

    paper = over("paper", "the paper's code")
    mixed = figure(f"the paper's code, {_BOTH_SIGNS}", (b["paper"] for b in both_signs))
    kernel, rounded = over("kernel", "the bundled kernel"), over("rounded", "the rounded truth")
    usual = over("standard", "standard attention, every step rounded")
    eager = over("eager", "standard attention, softmax as one operation")
    return Reproduction(
        name="bias",
        source="Qiu and Yao 2025, arXiv:2510.04212",
        setting=f"bf16, {_ROWS} rows of {_N} keys in one tile, D = {_D}: two keys share the maximum, the others lie "
        f"{_GAPS[0]:g} to {_GAPS[1]:g} nats below. Error of O away from zero, in ulp of sum P |V|, averaged over all "
        "elements. The paper's code keeps O, l, m and every result in bf16. A bias is a mean of more than "
        f"{_BIASED:g} ulp with every seed.",
        claims=(
            _shares_a_sign(paper, mixed, kernel, rounded),
            _without_tiling(usual, eager),
            _with_remedy(over("remedy", "the paper's code with its remedy"), paper),
        ),
    )


def _shares_a_sign(paper: Figure, mixed: Figure, kernel: Figure, rounded: Figure) -> Claim:
    return Claim(
        claim="with several weights of exactly 1 and V of one sign, the errors of O share a sign",
        rule="the paper's code is biased, not so with V of both signs, and the bundled kernel is biased as well; under "
        "the assumption that P V is rounded before it is divided by l, if the kernel is not",
        outcome=one_sign(paper, mixed, kernel),
        because=f"{paper.median:.2g} ulp on average if P V is rounded to bf16 before it is divided by l, as in the "
        f"paper's code; {kernel.median:.1g} ulp in the bundled kernel, whose accumulators are fp32",
        figures=(paper, mixed, kernel, rounded),
    )


def _without_tiling(usual: Figure, eager: Figure) -> Claim:
    return Claim(
        claim="the bias is there without tiling as well",
        rule="standard attention is biased, with every step rounded and with the softmax as one operation",
        outcome=outcome(min(usual.low, eager.low) > _BIASED),
        because=f"{usual.median:.2g} ulp in standard attention with every step rounded, {eager.median:.2g} ulp with "
        "the softmax as one operation, as in torch",
        figures=(usual, eager),
    )


def _with_remedy(remedy: Figure, paper: Figure) -> Claim:
    return Claim(
        claim="raising a shared maximum, so that no weight is 1, removes the bias",
        rule="the paper's code is biased, and is not with its remedy",
        outcome=removed(remedy, paper),
        because=f"{remedy.median:.1g} ulp are left of {paper.median:.2g}",
        figures=(remedy,),
    )


def one_sign(paper: Figure, mixed: Figure, kernel: Figure) -> Outcome:
    """Of mean errors away from zero: the paper's code, the same with V of both signs, the bundled kernel."""
    biased = paper.low > _BIASED > size(mixed)
    return outcome(biased and kernel.low > _BIASED, biased)


def removed(remedy: Figure, paper: Figure) -> Outcome:
    """Of mean errors away from zero, with and without the remedy."""
    return outcome(size(remedy) < _BIASED < paper.low)


# -- measured ----------------------------------------------------------------------------------------------------------


def _biases(seed: int, *, one_signed: bool) -> dict[str, float]:
    """Mean error away from zero in ulp, by computation."""
    q, k, v, scale = _problem(seed, one_signed=one_signed)
    truth = standard(q, k, v, scale, exact)
    found = {"paper": flash_2(q, k, v, scale, _r, _N)}
    if one_signed:
        found |= {
            "remedy": flash_2(q, k, v, scale, _r, _N, beta=2.0),
            "rounded": _r(truth),
            "kernel": bundled(q, k, v, scale, torch.bfloat16),
            "standard": standard(q, k, v, scale, _r),
            "eager": _eager(q, k, v, scale),
        }
    ulp = torch.exp2(torch.floor(torch.log2(standard(q, k, v.abs(), scale, exact))) + 1 - _BF16)
    return {name: float(((o - truth) * truth.sign() / ulp).mean()) for name, o in found.items()}


def _eager(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Standard attention as torch's operations compute it."""
    heads = (x[None].bfloat16() for x in (q, k, v))
    return eager_standard.forward(next(heads), next(heads), next(heads), Mask(), scale).o[0].double()


def _problem(seed: int, *, one_signed: bool) -> tuple[Tensor, Tensor, Tensor, float]:
    """Q [R, 1, D], k and v [R, N, D], scale: q and k lie along the first axis, where the logit is k's entry."""
    q, k = torch.zeros(_ROWS, 1, _D, dtype=torch.float64), torch.zeros(_ROWS, _N, _D, dtype=torch.float64)
    scale = 1 / math.sqrt(_D)
    gap = _GAPS[0] + (_GAPS[1] - _GAPS[0]) * uniform(seed, "bias gap", _ROWS, 1)
    q[..., 0], k[..., 0] = 1 / scale, _r(_MAXIMUM - gap)
    order = torch.argsort(uniform(seed, "bias order", _ROWS, _N), -1)
    k[torch.arange(_ROWS)[:, None], order[:, :2], 0] = _MAXIMUM
    shape = (_ROWS, _N, _D)
    v = -(2.0 + 2.0 * uniform(seed, "bias v", *shape)) if one_signed else normal(seed, "bias v", *shape)
    return q, k, _r(v), scale
