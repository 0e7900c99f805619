"""What so many cases leave open: the interval of a probability, and the band around a distribution function."""

from __future__ import annotations

import math
from collections.abc import Callable


def share_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided interval of a probability after k of n independent cases (Clopper and Pearson 1934).

    Its ends are where the binomial tails P(X >= k) and P(X <= k) are (1 - confidence) / 2.
    """

    def solved(below: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if below(middle) else (low, middle)
        return (low + high) / 2

    tail = (1 - confidence) / 2
    low = solved(lambda p: _at_least(k, n, p) < tail) if k > 0 else 0.0
    high = solved(lambda p: _at_least(k + 1, n, p) < 1 - tail) if k < n else 1.0
    return low, high


def band(n: int, confidence: float = 0.95) -> float:
    """Half width of the band that holds a whole distribution function, around that of n independent values.

    sqrt(log(2 / alpha) / 2n) (Dvoretzky, Kiefer and Wolfowitz 1956, with the constant of Massart 1990).
    """
    return math.sqrt(math.log(2 / (1 - confidence)) / (2 * n))


def _at_least(k: int, n: int, p: float) -> float:
    """P(X >= k) of a binomial: the incomplete beta function I_p(k, n - k + 1) (Abramowitz and Stegun 26.5.24)."""
    a, b = k, n - k + 1
    if p > (a + 1) / (a + b + 2):  # the fraction converges fast below its mode: I_p(a, b) = 1 - I_{1-p}(b, a)
        return 1 - _beta(b, a, 1 - p)
    return _beta(a, b, p)


def _beta(a: float, b: float, x: float) -> float:
    """I_x(a, b) by its continued fraction (Abramowitz and Stegun 26.5.8), evaluated as Lentz does (1976)."""
    if x <= 0:
        return 0.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            change *= d * c
        value *= change
        if abs(change - 1) < 1e-15:
            break
    return math.exp(log_front) * value / a
