"""Random numbers that are the same bits on any machine: Philox counters, and only IEEE-exact arithmetic after them.

numpy's `Philox.random_raw` is a fixed function of its key.  numpy's own normal variates call the C library's `log`
and `exp`, whose last bits differ between machines; ours use +, -, *, / and sqrt alone, which IEEE 754 fixes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
T = TypeVar("T")

# Wichura 1988, Algorithm AS 241 (PPND16): the normal quantile to about 1e-16
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip
_LN2 = 0.6931471805599453


def _rational(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Float) -> Float:
    top, bottom = (np.full_like(x, c[0]) for c in coefficients)
    for a, b in zip(coefficients[0][1:], coefficients[1][1:], strict=True):
        top *= x
        top += a
        bottom *= x
        bottom += b
    return np.asarray(top / bottom)


def _log(x: Float) -> Float:
    """Natural logarithm for x > 0 by exact scaling and the series of 2 artanh((f - 1)/(f + 1)); last bits fixed."""
    fraction, exponent = np.frexp(x)
    low = fraction < 0.7071067811865476
    f, e = np.where(low, 2 * fraction, fraction), exponent - low
    z = (f - 1) / (f + 1)
    square, series = z * z, np.zeros_like(z)
    for k in range(25, -1, -2):
        series = series * square + 1.0 / k
    return np.asarray(2 * z * series + e * _LN2)


class Draws:
    """Independent streams by name: `Draws(seed, "q")` and `Draws(seed, "k")` have nothing in common."""

    def __init__(self, seed: int, *names: Any) -> None:
        key = hashlib.sha256(repr((seed, *names)).encode()).digest()[:16]
        self._bits = np.random.Philox(key=int.from_bytes(key, "little"))

    def uniform(self, *shape: int) -> Float:
        """In the open interval (0, 1), 53 bits."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape, dtype=np.int64))), dtype=np.uint64)
        return np.asarray(((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53).reshape(shape)

    def normal(self, *shape: int) -> Float:
        """Standard normal, by inversion."""
        p = self.uniform(*shape)
        q = p - 0.5
        out = q * _rational(_CENTRE, 0.180625 - q * q)
        far = np.abs(q) > 0.425  # one in seven: the tails' logarithms cost more than all the rest
        q, p = q[far], p[far]
        r = np.sqrt(-_log(np.minimum(p, 1 - p)))
        outer = np.where(r <= 5.0, _rational(_MIDDLE, r - 1.6), _rational(_TAIL, r - 5.0))
        out[far] = np.where(q < 0, -outer, outer)
        return out

    def integers(self, low: int, high: int, *shape: int) -> NDArray[np.int64]:
        """In [low, high)."""
        return low + np.floor(self.uniform(*shape) * (high - low)).astype(np.int64)

    def choice(self, items: Any) -> Any:
        """One element of a sequence."""
        return items[int(self.integers(0, len(items), 1)[0])]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A random order (Fisher and Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = int(self.integers(0, i + 1, 1)[0])
            out[i], out[j] = out[j], out[i]
        return out
