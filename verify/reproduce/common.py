"""What the reproductions share: inputs, the bundled kernel on one head, figures over seeds and their outcome."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ...kernels import interpreter
from ...kernels.attention import attention
from ...kernels.mutants import VARIANTS, load_module
from ...reports.published import Figure, Outcome, Published
from ..draws import Draws

QUERIES = 256  # rows of the output that are looked at: a row does not depend on the others


def normal(seed: int, name: str, *shape: int) -> Tensor:
    """N(0, 1), float64."""
    return torch.from_numpy(Draws(seed, name).normal(*shape))


def uniform(seed: int, name: str, *shape: int) -> Tensor:
    """U[0, 1), float64."""
    return torch.from_numpy(Draws(seed, name).uniform(*shape))


def outliers(seed: int, name: str, *shape: int) -> Tensor:
    """N(0, 1) + N(0, 100) Bernoulli(0.001), as in section 4.3 of the FlashAttention-3 paper."""
    hit = uniform(seed, f"{name} where", *shape) < 0.001
    return normal(seed, name, *shape) + hit * 10.0 * normal(seed, f"{name} outlier", *shape)


def bundled(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dtype: torch.dtype, *, tiles: tuple[int, int] | None = None,
    variant: str | None = None,
) -> Tensor:  # fmt: skip
    """The bundled kernel, or a variant of it, interpreted; q [..., M, D], k and v [..., N, D], leading axes are heads.

    `tiles`: queries and keys per tile; None is the kernel's own choice.
    """
    function: Callable[..., Any] = attention if variant is None else load_module(VARIANTS[variant]).attention
    with interpreter.interpret():
        o = function(*(_as_heads(x).to(dtype) for x in (q, k, v)), scale=scale, tiles=tiles)
    assert isinstance(o, Tensor)
    return o.double().reshape(q.shape)


def _as_heads(x: Tensor) -> Tensor:
    return x.reshape(1, -1, *x.shape[-2:])


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.square().mean().sqrt())


def largest(x: Tensor) -> float:
    """Largest modulus."""
    return float(x.abs().max())


def figure(what: str, values: Iterable[float], published: Published = None) -> Figure:
    """Ours over the seeds beside what is published; NaN among them is NaN throughout."""
    found = sorted(values)
    if any(map(math.isnan, found)):
        found = [math.nan] * len(found)
    return Figure(
        what=what, published=published, low=found[0], median=statistics.median(found), high=found[-1], n=len(found)
    )


def span(figures: Iterable[Figure], digits: str = ".2g") -> str:
    """From the smallest median to the largest."""
    medians = [f.median for f in figures]
    return f"{min(medians):{digits}} to {max(medians):{digits}}"


def size(f: Figure) -> float:
    """The largest modulus over the seeds."""
    return max(abs(f.low), abs(f.high))


def outcome(as_stated: bool, under_assumption: bool = False) -> Outcome:
    """Confirmed as it is stated, under an assumption that the claim's text names, or not."""
    return "confirmed" if as_stated else "confirmed under an assumption" if under_assumption else "not confirmed"
