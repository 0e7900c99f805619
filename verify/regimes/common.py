"""What regimes are made of: the registry, plain draws, and keys whose logits are whatever one wishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..case import Case
from ..draws import Draws, Float

#: significant bits of each dtype
_PRECISION = {"fp16": 11, "bf16": 8, "fp32": 24}
LN2 = 0.6931471805599453
#: tile sizes that kernels use: what is built for them does not know the kernel's own
TILES = (16, 32, 64, 128)


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


def shapes(case: Case) -> dict[str, tuple[int, int, int, int]]:
    """Of q, k, v and do."""
    query, key = (case.B, case.H, case.M, case.D), (case.B, case.HK, case.N, case.D)
    return {"q": query, "k": key, "v": key, "do": query}


def normals(case: Case, **scaled: float) -> dict[str, Float]:
    """Independent standard normal values; `q=4.0` multiplies q."""
    return {n: Draws(case.seed, n).normal(*s) * scaled.get(n, 1.0) for n, s in shapes(case).items()}


def safe_scale(case: Case) -> float:
    """The softmax scale, or 1 when it is 0 (then the logits are 0 whatever q and k are)."""
    return case.softmax_scale or 1.0


def first_axis(case: Case, logits: NDArray[np.float64]) -> tuple[Float, Float]:
    """Q and k along the first coordinates only, so that each key has the logit [N] that is asked for, to every query.

    q is 1 there.  What the dtype cannot hold of k is put into the second coordinate, if there is one.
    """
    qs, ks = np.zeros(shapes(case)["q"]), np.zeros(shapes(case)["k"])
    wanted = logits / safe_scale(case)
    held = nearest(wanted, case.dtype)
    qs[..., 0], ks[..., 0] = 1.0, held
    if case.D > 1:
        qs[..., 1], ks[..., 1] = 1.0, wanted - held
    return qs, ks


def nearest(x: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Rounded to the significant bits of a dtype, whatever its range."""
    fraction, exponent = np.frexp(x)
    bits = _PRECISION[dtype]
    return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits))


def matching(case: Case, target: NDArray[np.int64], nats: float, noise: dict[str, Float]) -> tuple[Float, Float]:
    """Q and k such that each query's logit of its target key [B, H, M] stands `nats` above the average key's.

    Keys are vectors of signs, nearly orthogonal to each other if D is not small; a little noise makes all logits
    different.
    """
    codes = np.where(Draws(case.seed, "codes").uniform(case.N, case.D) < 0.5, -1.0, 1.0)
    strength = nats / (safe_scale(case) * case.D)
    return strength * codes[target] + 0.1 * noise["q"], codes + 0.1 * noise["k"]
