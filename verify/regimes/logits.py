"""Regimes of what the softmax sees: its size, its ties, and the order in which the maximum comes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..case import Case
from ..draws import Draws
from .common import LN2, TILES, Values, first_axis, matching, normals, regime, safe_scale


@regime("extreme-logits", "near-tied logits of magnitude 1e3 to 6e4: absolute errors of the exponent")
def _(case: Case) -> Values:
    return _near_ties(case, Draws(case.seed, "size").choice((1e3, 1e4, 6e4)), math.copysign(1.0, case.softmax_scale))


@regime("negative-logits", "every logit near -30 to -2e4: a leaked score of 0, or a mask of -1e4, outweighs them all")
def _(case: Case) -> Values:
    """V far from 0 on one side: a leaked key of zeros takes the output out of the range of V, beyond any bound."""
    return _one_signed(case, _near_ties(case, Draws(case.seed, "size").choice((30.0, 1e3, 2e4)), -1.0))


def _near_ties(case: Case, size: float, sign: float) -> Values:
    """Logits sign * size, spread by about 2."""
    values = normals(case)
    scale = abs(safe_scale(case))
    amplitude = math.sqrt(size / (scale * case.D))
    signs = np.where(Draws(case.seed, "signs").uniform(case.D) < 0.5, -1.0, 1.0)
    spread = 2.0 / (scale * amplitude * math.sqrt(case.D))
    values["q"] = amplitude * signs + spread * values["q"]
    values["k"] = math.copysign(1.0, sign * safe_scale(case)) * amplitude * signs + spread * values["k"]
    return Values(**values)


@regime("one-hot", "each query matches one key: P is exactly 1 there, the gradients cancel")
def _(case: Case) -> Values:
    values = normals(case)
    if case.N:
        target = Draws(case.seed, "target").integers(0, case.N, case.B, case.H, case.M)
        values["q"], values["k"] = matching(case, target, 60.0, values)
    return Values(**values)


@regime("all-equal", "identical keys: a uniform softmax with coherent 1/N")
def _(case: Case) -> Values:
    values = normals(case)
    values["k"] = np.broadcast_to(values["k"][:, :, :1], values["k"].shape) if case.N else values["k"]
    return Values(**values)


@regime("plateau", "one maximum, all others equal below it: every P rounds the same way")
def _(case: Case) -> Values:
    gap = 0.6289 if case.dtype == "bf16" else 0.6724  # exp(-gap) falls near the middle of two numbers of the dtype
    logits = np.full(case.N, -gap)
    logits[:1] = 0.0
    return _with_logits(case, logits)


@regime("tied-maxima", "two equal maxima, V of one sign: the bias that Qiu and Yao (2025) trace to training failures")
def _(case: Case) -> Values:
    logits = np.full(case.N, -8.0)
    logits[:1], logits[-1:] = 0.0, 0.0
    return _one_signed(case, _with_logits(case, logits))


@regime("edge-maxima", "the same maximum on both sides of every tile edge: a new tile changes nothing, and must not")
def _(case: Case) -> Values:
    key = np.arange(case.N)
    tile = Draws(case.seed, "tile").choice(TILES)
    edge = (key % tile == 0) | (key % tile == tile - 1) | (key == case.N - 1)
    return _one_signed(case, _with_logits(case, np.where(edge, 0.0, -4.0)))


@regime("increasing", "the row maximum grows with every key: the rescaling path, at every tile")
def _(case: Case) -> Values:
    return _ramp(case, 1.0)


@regime("decreasing", "the first key is the maximum: late tiles underflow")
def _(case: Case) -> Values:
    return _ramp(case, -1.0)


def _ramp(case: Case, direction: float) -> Values:
    return _over_noise(case, direction * Draws(case.seed, "step").choice((0.05, 0.3, 1.0)) * np.arange(case.N))


@regime("drift", "the maximum climbs by at most a factor of 2^8 per tile: rescaling that is put off must catch up")
def _(case: Case) -> Values:
    """Stairs as long as a tile; FlashAttention 4 rescales when the maximum has grown by more than 8 in base 2."""
    draws = Draws(case.seed, "stairs")
    stair, rise = draws.choice(TILES), draws.choice((1.5, 3.0, 7.5, 8.0))
    return _with_logits(case, LN2 * rise * (np.arange(case.N) // stair))


@regime("late-spike", "one key of the last tile outweighs all before it: the sums so far must shrink with it")
def _(case: Case) -> Values:
    draws = Draws(case.seed, "spike")
    logits = np.zeros(case.N)
    if case.N:
        tile = draws.choice(TILES)
        start = (case.N - 1) // tile * tile
        logits[int(draws.integers(start, case.N, 1)[0])] = draws.choice((6.0, 10.0, 20.0, 100.0))
    return _over_noise(case, logits)


@regime("sink", "the first key takes most of the weight and holds no value: all that counts comes after it")
def _(case: Case) -> Values:
    logits = np.zeros(case.N)
    logits[:1] = Draws(case.seed, "sink").choice((4.0, 8.0, 12.0))
    values = _over_noise(case, logits)
    values.v[:, :, :1] = 0.0
    return values


@regime("underflow-edge", "weights of 2^-14, 2^-24, 2^-126 and 2^-149: where P in fp16 and exp2 in fp32 underflow")
def _(case: Case) -> Values:
    """One key is the maximum and holds no value, so that the small weights make all of the output."""
    gaps = np.array(
        (0.0, 13.5, 14.0, 14.5, 23.5, 24.0, 24.5, 25.5, 125.5, 126.0, 126.5, 133.0, 148.5, 149.0, 149.5, 150.0, 150.5)
    )
    picks = Draws(case.seed, "gaps").integers(1, len(gaps), case.N)
    top = int(Draws(case.seed, "top").integers(0, max(1, case.N), 1)[0])
    picks[top : top + 1] = 0
    values = _with_logits(case, -LN2 * gaps[picks])
    values.v[:, :, picks == 0] = 0.0
    return values


@regime("sparse-mass", "a few keys stand 6 to 8 nats above many: skipping what looks negligible loses their sum")
def _(case: Case) -> Values:
    tall = Draws(case.seed, "tall").uniform(case.N) < 1 / 64
    tall[:1] |= not tall.any()
    return _one_signed(case, _with_logits(case, np.where(tall, 0.0, -Draws(case.seed, "gap").choice((6.0, 7.0, 8.0)))))


def _with_logits(case: Case, logits: NDArray[np.float64]) -> Values:
    """These logits [N] for every query, nothing else."""
    values = normals(case)
    values["q"], values["k"] = first_axis(case, logits)
    return Values(**values)


def _over_noise(case: Case, logits: NDArray[np.float64]) -> Values:
    """These logits [N] on top of random ones, from the coordinates that are left."""
    values = normals(case)
    q, k = first_axis(case, logits)
    values["q"][..., :2], values["k"][..., :2] = q[..., :2], k[..., :2]
    return Values(**values)


def _one_signed(case: Case, values: Values) -> Values:
    """V in [-4, -2): nothing averages out."""
    values.v[...] = -4.0 + 2.0 * Draws(case.seed, "v").uniform(*values.v.shape)
    return values
