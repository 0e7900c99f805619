"""Where an attention kernel rounds: the description of its arithmetic that the error bounds and predictors
need.

Two kernels that compute the same function in another order differ in what they round and when. An arrangement
names these choices; it does not name tiles, threads or instructions, because accumulation order is left free.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

U32 = 2.0**-24  # unit roundoff of fp32
TINY32 = 2.0**-126  # what a GPU may flush to zero: the smallest normal number of fp32 (and of bf16)
HUGE32 = 2.0**127  # beyond this an fp32 intermediate may overflow


@dataclass(frozen=True, slots=True)
class Precision:
    """u: unit roundoff; floor: absolute error of one rounding to or flush of a subnormal; largest: finite."""

    u: float
    floor: float
    largest: float


# fp16 subnormals are never flushed (tensor cores read them); bf16 and fp32 ones may be, which costs up to
# 2^-126.
PRECISIONS = {
    torch.float16: Precision(2.0**-11, 2.0**-25, 65504.0),
    torch.bfloat16: Precision(2.0**-8, TINY32, torch.finfo(torch.bfloat16).max),
    torch.float32: Precision(U32, TINY32, torch.finfo(torch.float32).max),
}


@dataclass(frozen=True, slots=True)
class Arrangement:
    """One way to compute attention in a working dtype p with fp32 accumulators; derive others with `replace`.

    score_roundings       how often a score S is rounded to p before the exponential
    operand_roundings     how often q and k are multiplied by a part of the scale and rounded to p, together
    fp32_roundings        fp32 roundings of a score on its way to the exponent (scale, log2 e, products)
    weights_rounded       P is rounded to p as an operand of P V and P^T dO
    weights_in_ds_rounded P is rounded to p also where dS = P * (dP - delta) uses it
    weights               "normalised": divided by l before P V (standard); "unnormalised": after it (flash)
    keys_per_rescale      at most one rescaling of the running sums per so many keys; None: there is none
    max_lag               base-2 logarithm by which a running maximum may lag behind (conditional rescaling)
    split                 partial results may be merged by their log-sum-exp
    row_sum               l sums P before or after it is rounded to p, or either
    delta                 from the rounded O, rowsum(dO * O); from the weights, rowsum(P * dP); or either
    recomputed            the backward's P is exp(S - L) with the stored L; otherwise a normalised softmax
    dp_rounded            dP is rounded to p
    weighted_dp_rounded   P * dP is rounded to p before delta is its sum, and subtracted: torch's softmax on CUDA
    ds_roundings          how often dS is rounded to p
    ds_scaled             the last of those is applied to dS * scale rather than to dS
    gradient_roundings    how often dQ and dK are rounded to p on their way out
    gradient_stores       a gradient's running sum passes through p after every so many queries (dQ: keys)
    heads_rounded         each query head's dK and dV is rounded to p before those of a group are summed
    own_maximum           the maximum is that of the visible keys, so that a single one has a weight of exactly 1
    materialised          S and dP live in p, so that they overflow where p does
    eps_exp               relative error of one exponential
    u_acc                 unit roundoff of an accumulator: 2^-23 also covers tensor cores, which truncate
    """

    name: str
    score_roundings: int = 0
    operand_roundings: int = 0
    fp32_roundings: int = 4
    weights_rounded: bool = True
    weights_in_ds_rounded: bool = False
    weights: Literal["unnormalised", "normalised", "either"] = "unnormalised"
    keys_per_rescale: int | None = 16
    max_lag: float = 0.0
    split: bool = False
    row_sum: Literal["unrounded", "rounded", "either"] = "unrounded"
    delta: Literal["output", "weights", "either"] = "output"
    recomputed: bool = True
    dp_rounded: bool = False
    weighted_dp_rounded: bool = False
    ds_roundings: int = 1
    ds_scaled: bool = False
    gradient_roundings: int = 1
    gradient_stores: int | None = None
    heads_rounded: bool = True
    own_maximum: bool = True
    materialised: bool = False
    eps_exp: float = 2.0**-22
    u_acc: float = 2.0**-23


# Flash attention: fp32 scores, unnormalised P rounded for P V, L stored, delta from the stored O; the query heads
# of a group add to dK and dV in fp32, as in FlashAttention 3 and wherever one program walks them all.
FLASH = Arrangement("flash", heads_rounded=False)

# The worst choices of flash attention kernels: FlashAttention 2 stores each query head's dK and dV, and sums those of a
# group afterwards; others take a tile's maximum before they mask it, so that no weight need be 1.
ANY_FLASH = replace(FLASH, name="any-flash", heads_rounded=True, own_maximum=False)

# Eager attention: `standard.forward(softmax="rounded")` and its autograd backward.
STANDARD = Arrangement(
    "standard",
    score_roundings=2,
    fp32_roundings=2,
    weights_in_ds_rounded=True,
    weights="normalised",
    keys_per_rescale=None,
    delta="weights",
    recomputed=False,
    dp_rounded=True,
    ds_roundings=2,
    ds_scaled=True,
    materialised=True,
)

# Eager attention with fp32 scores: `standard.forward(softmax="fp32")`.
STANDARD_FP32 = Arrangement(
    "standard-fp32",
    fp32_roundings=2,
    weights="normalised",
    keys_per_rescale=None,
    delta="weights",
    recomputed=False,
    ds_scaled=True,
)

# Every legitimate arrangement at once, for a kernel of which nothing is known; torch's CPU flash attention,
# which stores its gradients in p after every 32 queries, is one of them. It does not cover a kernel that
# keeps the forward's running sums or partial results in p, exponentials from a low-degree polynomial
# (replace eps_exp: degree 3 needs 8.8e-5), or TF32 products of fp32 inputs. Although its scores may be
# rounded to p, it does not excuse their overflow: a kernel that overflows where others do not should fail.
ANY = Arrangement(
    "any",
    score_roundings=2,
    operand_roundings=2,
    weights_in_ds_rounded=True,
    weights="either",
    max_lag=8.0,
    split=True,
    row_sum="either",
    delta="either",
    dp_rounded=True,
    weighted_dp_rounded=True,
    ds_roundings=2,
    ds_scaled=True,
    own_maximum=False,
    gradient_roundings=2,
    gradient_stores=32,
)

# Every legitimate arrangement of a kernel that keeps no score in memory.  Such a kernel has its scores in fp32
# accumulators, and what excuses rounding them to p, or q and k times the scale, or P * dP, is only that they must be
# stored.
FUSED = replace(ANY, name="fused", score_roundings=0, operand_roundings=0, weighted_dp_rounded=False)
