"""The few statistics that a gate needs, one number per case going in."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mpmath

from ..reports.intervals import band


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over n cases with a two-sided interval; n < 2 has no interval."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def t(self) -> float:
        """Student's t against 0, from the interval's own width."""
        return self._t

    _t: float = 0.0


@lru_cache(maxsize=1024)
def student_quantile(p: float, freedom: int) -> float:
    """The p-quantile of Student's t with `freedom` degrees of freedom (Abramowitz and Stegun 26.7.1)."""

    def above(t: float) -> mpmath.mpf:
        tail = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True) / 2
        return tail - (1 - p)

    high = 1.0
    while above(high) > 0:
        high *= 2
    return float(mpmath.findroot(above, (0.0, high), solver="anderson", tol=1e-12, verify=False))


def student_tail(t: float, freedom: int) -> float:
    """P(T > t) for Student's t with `freedom` degrees of freedom (Abramowitz and Stegun 26.7.1)."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    tail = float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)) / 2
    return tail if t >= 0 else 1 - tail


def p_above(values: Sequence[float], threshold: float) -> float:
    """The one-sided p-value of "the mean is at most `threshold`" by Student's test; values are independent cases."""
    shifted = mean_interval([x - threshold for x in values], 0.95)
    return student_tail(shifted.t, shifted.n - 1) if shifted.n > 1 else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: those up to alpha reject, with a false one among them at most so often (Holm 1979)."""
    adjusted, least = [1.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = least
    return adjusted


def mean_interval(values: Sequence[float], confidence: float) -> Mean:
    """Mean with the two-sided Student interval of level `confidence`; values are independent cases."""
    n = len(values)
    if n == 0:
        return Mean(0, math.nan, math.nan, math.nan)
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(1, mean, -math.inf, math.inf)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    error = deviation / math.sqrt(n)
    half = student_quantile(0.5 + confidence / 2, n - 1) * error
    t = mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0
    return Mean(n, mean, mean - half, mean + half, t)


def bounded_exp(x: float) -> float:
    """e^x, as far as a float holds it: the ends of an interval of two cases may be anywhere."""
    return math.exp(min(700.0, max(-700.0, x)))


def dominates(smaller: Sequence[float], larger: Sequence[float], confidence: float = 0.95) -> bool | None:
    """Whether the distribution function of `smaller` is surely ahead of that of `larger` somewhere, and nowhere behind.

    Surely: by more than both bands of Dvoretzky, Kiefer and Wolfowitz together, each at half of alpha.
    False when it is surely behind; None when neither can be told.
    """
    n, m = len(smaller), len(larger)
    if not n or not m:
        return None
    both = sum(band(k, (1 + confidence) / 2) for k in (n, m))
    points = sorted((*smaller, *larger))
    a, b = sorted(smaller), sorted(larger)
    ahead = [bisect_right(a, x) / n - bisect_right(b, x) / m for x in points]
    if min(ahead) < -both:
        return False
    return True if max(ahead) > both else None


def common_slope(cases: Sequence[tuple[float | None, float | None]]) -> Mean | None:
    """The common a of e = a T over independent cases, from each case's (<e, T>, <T, T>); t is robust to what e holds.

    The ratio estimator sum <e, T> / sum <T, T> with the residuals of the cases as its error (White 1980).  No case
    weighs more than four times the median one: a case that alone decides would be compared with itself.
    """
    weights = sorted(w for _, w in cases if w)
    if len(weights) < 2:
        return None
    cap = 4 * weights[len(weights) // 2]
    shrunk = [(a * min(1.0, cap / w), min(w, cap)) for a, w in cases if a is not None and w]
    n, total = len(shrunk), math.fsum(w for _, w in shrunk)
    slope = math.fsum(a for a, _ in shrunk) / total
    error = math.sqrt(math.fsum((a - slope * w) ** 2 for a, w in shrunk) * n / (n - 1)) / total
    t = slope / error if error > 0 else math.copysign(math.inf, slope) if slope else 0.0
    return Mean(n, slope, slope - 2 * error, slope + 2 * error, t)


def rule_of_three(n: int) -> float:
    """Upper 95 % limit of a probability after 0 failures in n independent cases (Hanley and Lippman-Hand 1983)."""
    return 1.0 - 0.05 ** (1.0 / n) if n else 1.0
