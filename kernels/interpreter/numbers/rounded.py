"""Float64 inside, rounded where and how one likes: not at all, to any low-precision format, at random, at chosen sites.

Every operation is computed in float64 and then rounded to a format of p bits.  For 53 >= 2p + 2 that is as good as
rounding once (Figueroa 1995).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from ..language.sites import Site
from .arithmetic import BINARY, COMPARE, EXACT, REDUCE, UNARY, Arithmetic
from .constants import real
from .formats import SATURATING, Array, cut_to_tf32, round_to

Mode: TypeAlias = Literal["nearest", "random", "none"]


@dataclass(frozen=True, slots=True)
class Format:
    """Binary floating point: `p` significant bits, normal numbers from 2^emin to below 2^(emax + 1), subnormals.

    Overflow goes to infinity, or with `largest` to that number.
    """

    p: int
    emin: int
    emax: int
    largest: float | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.p <= 53 and -1022 <= self.emin < self.emax <= 1023):
            raise ValueError(f"no binary format within float64: {self}")

    def round(self, x: Array, mode: Mode = "nearest", random: np.random.Generator | None = None) -> Array:
        """Float64 numbers rounded to the format: to nearest even, or up or down at random in proportion (unbiased)."""
        _, exponent = np.frexp(x)
        step = np.maximum(exponent - 1, self.emin) - (self.p - 1)  # exponent of the last place
        scaled = np.ldexp(x, -step)
        whole = np.rint(scaled) if random is None or mode == "nearest" else np.floor(scaled + random.random(x.shape))
        out = np.ldexp(whole, step)
        largest = math.ldexp(2.0 - 2.0 ** (1 - self.p), self.emax)
        if self.largest is not None:
            return np.where(np.isnan(x), x, np.clip(out, -self.largest, self.largest))
        out = np.where(np.abs(out) > largest, np.copysign(np.inf, x), out)
        return np.where(np.isfinite(x), out, x)


FORMATS: dict[str, Format] = {
    "f32": Format(24, -126, 127), "f16": Format(11, -14, 15), "bf16": Format(8, -126, 127),
    "f8E4M3FN": Format(4, -6, 8, largest=SATURATING["f8E4M3FN"]),
    "f8E5M2": Format(3, -14, 15, largest=SATURATING["f8E5M2"]),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rounded(Arithmetic):
    """Float64 with a rounding after each operation.

    Args:
        mode: `nearest`, `random` (stochastic rounding) or `none`.
        format: of every operation; None: that which the kernel names.
        only: names of sites (see `Site.matches`) at which to round; None: everywhere.
        random: the source of random roundings.
    """

    mode: Mode = "nearest"
    format: Format | None = None
    only: frozenset[str] | None = None
    random: np.random.Generator | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.mode == "none":
            return "float64 arithmetic"
        return f"{self.mode} rounding" + (f" at {', '.join(sorted(self.only))}" if self.only is not None else "")

    def at(self, site: Site) -> Arithmetic:
        if self.only is None:
            return self
        on = any(site.matches(name) for name in self.only)
        return replace(self, only=None) if on else replace(self, mode="none", only=None)

    def _round(self, x: Array, element: str) -> Array:
        if self.mode == "none":
            return x
        format_ = self.format or FORMATS.get(element)
        if format_ is None:
            return x
        if format_ is FORMATS["f32"] and self.mode == "nearest":
            return x.astype(np.float32).astype(np.float64)
        return format_.round(x, self.mode, self.random)

    def carrier(self, element: str) -> np.dtype[Any]:
        return np.dtype(np.float64)

    def load(self, x: Array, element: str) -> Array:
        x = x.astype(np.float64)
        return x if self.format is None else self._round(x, element)

    def store(self, x: Array, element: str) -> Array:
        return x if element == "f64" else FORMATS[element].round(x).astype(np.float32)

    def constant(self, value: float, element: str) -> Array:
        restored = self.mode == "none" or (self.only is not None and "constants" not in self.only)
        return self._round(np.array([real(value) if restored else value], np.float64), element)

    def binary(self, name: str, a: Array, b: Array, element: str) -> Array:
        out: Array = BINARY[name](a, b)
        return out if name in EXACT else self._round(out, element)

    def unary(self, name: str, x: Array, element: str) -> Array:
        out: Array = UNARY[name](x)
        return out if name in EXACT else self._round(out, element)

    def fma(self, a: Array, b: Array, c: Array, element: str) -> Array:
        return self._round(a * b + c, element)

    def cast(self, x: Array, source: str, target: str, *, toward_zero: bool) -> Array:
        if toward_zero and self.mode == "nearest" and self.format is None and target in FORMATS:
            return round_to(x.astype(np.float32), target, toward_zero=True).astype(np.float64)
        return self._round(x, target)

    def from_integer(self, x: Array, element: str) -> Array:
        return self._round(x.astype(np.float64), element)

    def to_integer(self, x: Array, dtype: np.dtype[Any]) -> Array:
        return np.trunc(x).astype(dtype)

    def compare(self, name: str, a: Array, b: Array) -> Array:
        out: Array = COMPARE[name](a, b)
        return out

    def dot(self, a: Array, b: Array, c: Array, operands: str, result: str, precision: str) -> Array:
        if self.mode != "none" and operands == "f32" and precision == "tf32":
            a, b = (cut_to_tf32(x.astype(np.float32)).astype(np.float64) for x in (a, b))
        if self.mode == "none":
            return np.asarray(np.matmul(a, b) + c)
        if self.mode == "nearest" and self.format is None and result == "f32":
            # what float32 makes of it, without what rounding the operands to float32 does
            x, y, z = (t.astype(np.float32) for t in (a, b, c))
            rounding = (np.matmul(x, y) + z).astype(np.float64) - (
                np.matmul(x.astype(np.float64), y.astype(np.float64)) + z.astype(np.float64)
            )
            return np.asarray(np.matmul(a, b) + c + rounding)
        out = c
        for i in range(a.shape[-1]):
            out = self._round(out + a[..., :, i, None] * b[..., None, i, :], result)
        return out

    def reduce(self, name: str, x: Array, axis: int, element: str) -> Array | None:
        if name not in EXACT and self.mode != "none" and not (self.mode == "nearest" and element == "f32"):
            return None
        if name == "add" and self.mode == "nearest" and self.format is None:
            narrow = x.astype(np.float32)
            exact: Array = np.add.reduce(x, axis=axis)
            rounding: Array = np.add.reduce(narrow, axis=axis) - np.add.reduce(narrow.astype(np.float64), axis=axis)
            return exact + rounding
        if name in EXACT or self.mode == "none":
            out: Array = REDUCE[name].reduce(x, axis=axis)
            return out
        return None
