"""A layer small enough to train in seconds: how far do its weights move for how its attention rounds?

Golden et al. (2024) trained a generative model with and without FlashAttention; the mechanism is the same here, the
size is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...reports.published import Claim, Figure, Outcome
from .algorithms import Rounding, exact, flash_1, mixed, standard, straight_through, to_bits
from .common import figure, normal, outcome, span

_SEQUENCES, _LENGTH, _WIDTH, _HEADS, _BLOCK = 8, 32, 32, 2, 8
_STEPS, _SEEDS = 100, 3
_PUBLISHED = (2.0, 5.0)
#: whether Adam's scaling is on, else it is gradient descent with momentum; and the rate
_OPTIMISERS = {
    "Adam at 0.001": (True, 0.001),
    "Adam at 0.003": (True, 0.003),
    "momentum at 1": (False, 1.0),
    "momentum at 3": (False, 3.0),
}
SETTING = (
    f"Training: one attention layer of toy size ({_WIDTH} wide, {_HEADS} heads, {_SEQUENCES} sequences of {_LENGTH}) "
    f"learns to imitate another for {_STEPS} steps, with {_SEEDS} seeds at most; this says nothing of large models. "
    "What FlashAttention changes: trained with it against trained with standard attention, both rounding to bf16 "
    "inside of attention. What low precision changes: all results rounded to bf16 against none. Both are Wasserstein "
    "distances between the weights. The publication trained a model; its settings are not ours."
)
Attention = Callable[[Tensor, Tensor, Tensor, float, Rounding], Tensor]


def claim(seeds: int) -> Claim:
    """Low precision's distance over flash attention's, by optimiser."""
    figures = []
    for name, optimiser in _OPTIMISERS.items():
        found = [_ratios(s, *optimiser) for s in range(min(seeds, _SEEDS))]
        figures.append(figure(f"{name}: O, l, m kept in bf16", (stored for stored, _ in found), _PUBLISHED))
        figures.append(figure(f"{name}: fp32 accumulators", (kernel for _, kernel in found), _PUBLISHED))
    within = "; ".join(f"{f.what} ({f.median:.2g})" for f in figures if f.agrees)
    return Claim(
        claim="FlashAttention changes trained weights 2 to 5 times less than training in low precision does",
        rule="the median is 2 to 5 with every optimiser, rate and kind of accumulators; under the assumption of those "
        "with which it is, if it is with some",
        outcome=milder(figures),
        because=f"{span(figures)} times less in a layer of toy size, by optimiser, rate and accumulators; 2 to 5 times "
        f"with: {within or 'none'}",
        figures=tuple(figures),
    )


def milder(figures: Sequence[Figure]) -> Outcome:
    """Of low precision's distance over flash attention's, in several settings."""
    return outcome(all(f.agrees for f in figures), any(f.agrees for f in figures))


def _ratios(seed: int, adam: bool, rate: float) -> tuple[float, float]:
    """With O, l and m kept in bf16 between tiles, and with accumulators that are not rounded."""
    bf16 = straight_through(to_bits(8))

    def trained(attention: Attention, inside: Rounding, outside: Rounding) -> Tensor:
        return _trained(seed, adam, rate, attention, inside, outside)

    usual = trained(standard, bf16, exact)
    low = _wasserstein(trained(standard, bf16, bf16), trained(standard, exact, exact))
    return low / _wasserstein(trained(_stored, bf16, exact), usual), low / _wasserstein(
        trained(mixed, bf16, exact), usual
    )


def _stored(q: Tensor, k: Tensor, v: Tensor, scale: float, r: Rounding) -> Tensor:
    return flash_1(q, k, v, scale, r, _BLOCK)


def _trained(seed: int, adam: bool, rate: float, attention: Attention, inside: Rounding, outside: Rounding) -> Tensor:
    """The weights [4, W, W] after training; attention rounds `inside`, all the rest `outside`, the weights nowhere.

    The optimiser is written out: importing torch's own takes longer than the training.
    """
    x = normal(seed, "training x", _SEQUENCES, _LENGTH, _WIDTH)
    target = _layer(x, normal(seed, "teacher", 4, _WIDTH, _WIDTH) * math.sqrt(2 / _WIDTH), standard, exact, exact)
    weights = normal(seed, "student", 4, _WIDTH, _WIDTH) / math.sqrt(_WIDTH)
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    for step in range(1, _STEPS + 1):
        weights.requires_grad_()
        loss = (_layer(x, weights, attention, inside, outside) - target).square().mean()
        (g,) = torch.autograd.grad(loss, weights)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        change = mean / (1 - 0.9**step)
        if adam:
            change = change / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        weights = weights.detach() - rate * change
    return weights


def _layer(x: Tensor, weights: Tensor, attention: Attention, inside: Rounding, outside: Rounding) -> Tensor:
    """X [S, L, W] through attention with projections of q, k, v and the output."""
    x, w = outside(x), outside(weights)
    q, k, v = (outside(x @ w[i]).view(*x.shape[:-1], _HEADS, -1).transpose(1, 2) for i in range(3))
    o = attention(inside(q), inside(k), inside(v), 1 / math.sqrt(q.shape[-1]), inside)
    return outside(outside(o).transpose(1, 2).flatten(2) @ w[3])


def _wasserstein(a: Tensor, b: Tensor) -> float:
    """Between the distributions of the entries, averaged over the matrices."""
    a, b = (x.flatten(1).sort(-1).values for x in (a, b))
    return float((a - b).abs().mean())
