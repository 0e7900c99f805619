"""How the values of q, k, v and dO are drawn.  Each regime aims at one mechanism by which attention kernels fail.

A regime is a function of a case that returns float64 arrays of the full shapes; rounding to the dtype comes later.
`independent` regimes draw elements independently: their roundings are incoherent, so ratios and biases over many cases
mean something.  The others are built to make roundings conspire; they are judged by bounds alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .case import Case
from .draws import Draws, Float


@dataclass(frozen=True, slots=True)
class Values:
    """q and do [B, H, M, D], k and v [B, HK, N, D]; float64, not yet rounded."""

    q: Float
    k: Float
    v: Float
    do: Float


@dataclass(frozen=True, slots=True)
class Regime:
    """A way to draw values, and why."""

    name: str
    draw: Callable[[Case], Values]
    purpose: str
    independent: bool


REGIMES: dict[str, Regime] = {}


def regime(name: str, purpose: str, *, independent: bool = False) -> Callable[[Callable[[Case], Values]], Regime]:
    """Register a function as a regime."""

    def register(draw: Callable[[Case], Values]) -> Regime:
        REGIMES[name] = Regime(name, draw, purpose, independent)
        return REGIMES[name]

    return register


def _shapes(case: Case) -> dict[str, tuple[int, int, int, int]]:
    query, key = (case.B, case.H, case.M, case.D), (case.B, case.HK, case.N, case.D)
    return {"q": query, "k": key, "v": key, "do": query}


def _normal(case: Case, **scaled: float) -> dict[str, Float]:
    """Independent standard normal values; `q=4.0` multiplies q."""
    return {n: Draws(case.seed, n).normal(*s) * scaled.get(n, 1.0) for n, s in _shapes(case).items()}


def _safe_scale(case: Case) -> float:
    """The softmax scale, or 1 when it is 0 (then the logits are 0 whatever q and k are)."""
    return case.softmax_scale or 1.0


def _first_axis(case: Case, q: float, k: NDArray[np.float64]) -> tuple[Float, Float]:
    """Q and k along the first coordinate only, so that scale q.k = q * k exactly: any logits one wishes.

    `k` [N] holds the logits wanted of each key; `q` is the common factor taken into q (a power of two keeps it exact).
    """
    shapes = _shapes(case)
    qs, ks = np.zeros(shapes["q"]), np.zeros(shapes["k"])
    qs[..., 0] = q
    ks[..., 0] = k / (_safe_scale(case) * q)
    return qs, ks


@regime("normal", "the baseline: N(0, 1)", independent=True)
def _(case: Case) -> Values:
    return Values(**_normal(case))


@regime("uniform", "U[0, 1), as in many test suites: flat softmax, K and V share an offset", independent=True)
def _(case: Case) -> Values:
    return Values(**{n: Draws(case.seed, n).uniform(*s) for n, s in _shapes(case).items()})


@regime(
    "outlier", "N(0, 1) + N(0, 100) * Bernoulli(0.001), the heavy tails of the FlashAttention-3 paper", independent=True
)
def _(case: Case) -> Values:
    def heavy(name: str, shape: tuple[int, ...]) -> Float:
        hit = Draws(case.seed, name, "hit").uniform(*shape) < 0.001
        return Draws(case.seed, name).normal(*shape) + hit * 10.0 * Draws(case.seed, name, "size").normal(*shape)

    return Values(**{n: heavy(n, s) for n, s in _shapes(case).items()})


@regime("large-logits", "q scaled by 4 to 16: peaked softmax; rounding the scores hurts", independent=True)
def _(case: Case) -> Values:
    return Values(**_normal(case, q=Draws(case.seed, "factor").choice((4.0, 8.0, 16.0))))


@regime("extreme-logits", "near-tied logits of magnitude 1e3 to 6e4: absolute errors of the exponent")
def _(case: Case) -> Values:
    values = _normal(case)
    size = Draws(case.seed, "size").choice((1e3, 1e4, 6e4))
    scale = abs(_safe_scale(case))
    amplitude = math.sqrt(size / (scale * case.D))
    signs = np.where(Draws(case.seed, "signs").uniform(case.D) < 0.5, -1.0, 1.0)
    spread = 2.0 / (scale * amplitude * math.sqrt(case.D))  # logits spread by about 2
    values["q"] = amplitude * signs + spread * values["q"]
    values["k"] = amplitude * signs + spread * values["k"]
    return Values(**values)


@regime("one-hot", "each query matches one key: P is exactly 1 there, the gradients cancel")
def _(case: Case) -> Values:
    values = _normal(case)
    if case.N:
        target = Draws(case.seed, "target").integers(0, case.N, case.B, case.H, case.M)
        values["q"], values["k"] = _matching(case, target, 60.0, values)
    return Values(**values)


def _matching(case: Case, target: NDArray[np.int64], nats: float, noise: dict[str, Float]) -> tuple[Float, Float]:
    """Q and k such that each query's logit of its target key [B, H, M] stands `nats` above the average key's.

    Keys are vectors of signs, nearly orthogonal to each other; a little noise makes all logits different.
    """
    codes = np.where(Draws(case.seed, "codes").uniform(case.N, case.D) < 0.5, -1.0, 1.0)
    strength = nats / (_safe_scale(case) * case.D)
    return strength * codes[target] + 0.1 * noise["q"], codes + 0.1 * noise["k"]


@regime("all-equal", "identical keys: a uniform softmax with coherent 1/N")
def _(case: Case) -> Values:
    values = _normal(case)
    values["k"] = np.broadcast_to(values["k"][:, :, :1], values["k"].shape) if case.N else values["k"]
    return Values(**values)


@regime("plateau", "one maximum, all others equal below it: every P rounds the same way")
def _(case: Case) -> Values:
    values = _normal(case)
    gap = 0.6289 if case.dtype == "bf16" else 0.6724  # exp(-gap) falls near the middle of two numbers of the dtype
    logits = np.full(case.N, -gap)
    logits[:1] = 0.0
    values["q"], values["k"] = _first_axis(case, 1.0, logits)
    return Values(**values)


@regime("tied-maxima", "two equal maxima, V of one sign: the bias that Qiu and Yao (2025) trace to training failures")
def _(case: Case) -> Values:
    values = _normal(case)
    logits = np.full(case.N, -8.0)
    logits[:1], logits[-1:] = 0.0, 0.0
    values["q"], values["k"] = _first_axis(case, 1.0, logits)
    values["v"] = -4.0 + 2.0 * Draws(case.seed, "v").uniform(*values["v"].shape)
    return Values(**values)


@regime("ones-v", "V = 1: the output must be 1, so weights that do not sum to 1 show")
def _(case: Case) -> Values:
    values = _normal(case)
    values["v"] = np.ones_like(values["v"])
    return Values(**values)


@regime("one-hot-v", "V is a unit vector per key: the output reads out P")
def _(case: Case) -> Values:
    values = _normal(case)
    values["v"] = np.broadcast_to(np.eye(case.D)[np.arange(case.N) % case.D], values["v"].shape).copy()
    return Values(**values)


@regime("increasing", "the row maximum grows with every key: the rescaling path, at every tile")
def _(case: Case) -> Values:
    return _ramp(case, 1.0)


@regime("decreasing", "the first key is the maximum: late tiles underflow")
def _(case: Case) -> Values:
    return _ramp(case, -1.0)


def _ramp(case: Case, direction: float) -> Values:
    values = _normal(case)
    step = Draws(case.seed, "step").choice((0.05, 0.3, 1.0))
    q, k = _first_axis(case, 1.0, direction * step * np.arange(case.N))
    values["q"][..., 0], values["k"][..., 0] = q[..., 0], k[..., 0]
    return Values(**values)


@regime("subnormal", "V and dO among the dtype's subnormal numbers: flush to zero, underflow")
def _(case: Case) -> Values:
    tiny = {"fp16": 2.0**-19, "bf16": 2.0**-129, "fp32": 2.0**-135}[case.dtype]
    return Values(**_normal(case, v=tiny, do=tiny))


@regime("cancellation", "each key twice, with V and -V: the output is exactly 0")
def _(case: Case) -> Values:
    values = _normal(case)
    half = case.N // 2
    values["k"][:, :, half : 2 * half] = values["k"][:, :, :half]
    values["v"][:, :, half : 2 * half] = -values["v"][:, :, :half]
    return Values(**values)


@regime("offset", "K and V carry a large common offset: softmax must not feel it, delta does")
def _(case: Case) -> Values:
    values = _normal(case)
    values["k"] += Draws(case.seed, "k offset").choice((2.0, 8.0)) * Draws(case.seed, "direction").normal(case.D)
    values["v"] += Draws(case.seed, "v offset").choice((4.0, 64.0))
    return Values(**values)


@regime("needle", "each query matches the key at the edge of what it may see, or the first one beyond it")
def _(case: Case) -> Values:
    values = _normal(case)
    if case.N == 0:
        return Values(**values)
    target = np.broadcast_to(_edge_keys(case), (case.B, case.H, case.M))
    values["q"], values["k"] = _matching(case, target, 12.0, values)
    return Values(**values)


@regime(
    "integers", "small even integers: with a scale of 1/2, 1/4 or 1/8 every logit is an integer, and sums are exact"
)
def _(case: Case) -> Values:
    values = {}
    for name, shape in _shapes(case).items():
        x = Draws(case.seed, name).integers(-1, 2, int(np.prod(shape))).reshape(shape).astype(np.float64)
        values[name] = 2 * x if name in ("q", "k") else x
    return Values(**values)


def _edge_keys(case: Case) -> NDArray[np.int64]:
    """[M]: for each query the index of an edge key.

    First, last, tile edges, the diagonal, the window's ends, and one beyond.
    """
    mask, diagonal = case.mask, np.arange(case.M)
    if mask.alignment == "bottom-right":
        diagonal = diagonal + case.N - case.M
    left, right = mask.window or (None, None)
    if mask.causal:
        right = 0 if right is None else min(right, 0)
    edges = [np.zeros(case.M, np.int64), np.full(case.M, case.N - 1), np.full(case.M, 31), np.full(case.M, 32)]
    if right is not None:
        edges += [diagonal + right, diagonal + right + 1]
    if left is not None:
        edges += [diagonal - left, diagonal - left - 1]
    picks = Draws(case.seed, "edges").integers(0, len(edges), case.M)
    keys = np.stack(edges)[picks, np.arange(case.M)]
    return np.asarray(np.clip(keys, 0, case.N - 1), np.int64)
