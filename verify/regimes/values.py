"""Regimes of V and dO, and of what the dtype's range and precision do to all four."""

from __future__ import annotations

import math

import numpy as np

from ..case import Case
from ..draws import Draws, Float
from .common import Values, normals, regime, safe_scale, shapes


@regime("ones-v", "V = 1: the output must be 1, so weights that do not sum to 1 show")
def _(case: Case) -> Values:
    values = normals(case)
    values["v"] = np.ones_like(values["v"])
    return Values(**values)


@regime("one-hot-v", "V is a unit vector per key: the output reads out P")
def _(case: Case) -> Values:
    values = normals(case)
    values["v"] = np.broadcast_to(np.eye(case.D)[np.arange(case.N) % case.D], values["v"].shape).copy()
    return Values(**values)


@regime("one-signed-v", "V and dO of one sign each: truncation and stagnation of long sums have nowhere to hide")
def _(case: Case) -> Values:
    values = normals(case, k=0.25)  # a flat softmax: all keys count
    for name, sign in (("v", 1.0), ("do", -1.0)):
        values[name] = sign * (1.0 + Draws(case.seed, name).uniform(*values[name].shape))
    return Values(**values)


@regime("subnormal", "V and dO among the dtype's subnormal numbers: flush to zero, underflow")
def _(case: Case) -> Values:
    tiny = {"fp16": 2.0**-19, "bf16": 2.0**-129, "fp32": 2.0**-135}[case.dtype]
    return Values(**normals(case, v=tiny, do=tiny))


@regime("tiny", "V and dO times 1e-3 to 1e-6: any absolute tolerance or epsilon is larger than the result")
def _(case: Case) -> Values:
    draws = Draws(case.seed, "factors")
    return Values(**normals(case, v=draws.choice((1e-3, 1e-4, 1e-6)), do=draws.choice((1.0, 1e-3, 1e-6))))


@regime("huge", "V, or one row of dO, near the largest number whose sums are still finite: overflow on the way")
def _(case: Case) -> Values:
    """fp16 up to 3e4; bf16 and fp32 to 2^110, which leaves 2^17 for sums and for maxima that lag behind by 2^8.

    The other one is small, so that dP, and with it dQ and dK, stay moderate.
    """
    large, small = (3e4, 2.0**-12) if case.dtype == "fp16" else (2.0**110, 2.0**-110)
    values = normals(case)
    if Draws(case.seed, "which").uniform(1)[0] < 0.5:
        values["v"] = large * (2.0 * Draws(case.seed, "v").uniform(*values["v"].shape) - 1.0)
        values["do"] *= small
        return Values(**values)
    values["v"] *= small
    values["do"] *= small
    if case.M:  # of one head only: dV sums over queries and over the heads of a group
        row = int(Draws(case.seed, "row").integers(0, case.M, 1)[0])
        values["do"][:, 0, row] = large * (2.0 * Draws(case.seed, "do").uniform(case.B, case.D) - 1.0)
    return Values(**values)


@regime("large-dp", "dP and delta lie beyond the largest fp16 number: only their difference is small")
def _(case: Case) -> Values:
    values = normals(case)
    sign = np.where(Draws(case.seed, "sign").uniform(case.D) < 0.5, -1.0, 1.0)
    values["do"] = 32.0 * sign * (1.0 + Draws(case.seed, "do").uniform(*values["do"].shape))
    values["v"] += 2.0**17 / (32.0 * case.D) * sign
    values["k"] *= 0.25  # a flat softmax, so that dS stays small
    return Values(**values)


@regime("cancellation", "each key twice, half the keys apart, with V and -V: the output is exactly 0")
def _(case: Case) -> Values:
    values = normals(case)
    half = case.N // 2
    values["k"][:, :, half : 2 * half] = values["k"][:, :, :half]
    values["v"][:, :, half : 2 * half] = -values["v"][:, :, :half]
    return Values(**values)


@regime("offset", "K and V carry a large common offset: softmax must not feel it, delta does")
def _(case: Case) -> Values:
    values = normals(case)
    values["k"] += Draws(case.seed, "k offset").choice((2.0, 8.0)) * Draws(case.seed, "direction").normal(case.D)
    values["v"] += Draws(case.seed, "v offset").choice((4.0, 64.0))
    return Values(**values)


@regime("aligned-do", "dO along O or across it: dP - delta cancels, or delta vanishes where dP does not")
def _(case: Case) -> Values:
    """O is about 16 along the first axis; a query's dO has either nothing but that axis, or everything but it."""
    values = normals(case)
    values["v"][..., 0] += 16.0
    along = Draws(case.seed, "along").uniform(case.B, case.H, case.M, 1) < 0.5
    first = np.arange(case.D) == 0
    values["do"] = np.where(along == first, values["do"], 0.0)
    return Values(**values)


@regime(
    "integers", "small even integers: with a scale of 1/2, 1/4 or 1/8 every logit is an integer, and sums are exact"
)
def _(case: Case) -> Values:
    values = {}
    for name, shape in shapes(case).items():
        x = Draws(case.seed, name).integers(-1, 2, int(np.prod(shape))).reshape(shape).astype(np.float64)
        values[name] = 2 * x if name in ("q", "k") else x
    return Values(**values)


@regime("sparse-integers", "four in five are 0, the others -2 to 2: nothing averages, so a wrong term is a gross error")
def _(case: Case) -> Values:
    def sparse(name: str, shape: tuple[int, ...]) -> Float:
        kept = Draws(case.seed, name, "kept").uniform(*shape) < 0.2
        return np.asarray(kept * Draws(case.seed, name).integers(-2, 3, *shape), np.float64)

    return Values(**{n: sparse(n, s) for n, s in shapes(case).items()})


@regime("correlated", "like activations: rows share a few directions, and one channel of each head is always large")
def _(case: Case) -> Values:
    values = {}
    for name, (B, heads, length, D) in shapes(case).items():
        draws = Draws(case.seed, name, "structure")
        rank = 3
        rows, directions = draws.normal(B, heads, length, rank), draws.normal(1, heads, rank, D)
        x = 0.3 * Draws(case.seed, name).normal(B, heads, length, D)
        for r in range(rank):
            x += rows[..., r, None] * directions[:, :, r, None] / math.sqrt(rank)
        channel = draws.integers(0, D, heads)
        x[:, np.arange(heads), :, channel] += draws.choice((8.0, 16.0)) * np.where(
            draws.uniform(heads, 1, 1) < 0.5, -1, 1
        )
        values[name] = x
    values["q"] *= min(1.0, 0.25 / (abs(safe_scale(case)) * math.sqrt(case.D)))
    return Values(**values)
