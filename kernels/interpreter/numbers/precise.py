"""High precision: binary floating point with as many digits as one asks for (MPFR), one precision for every format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import gmpy2
import numpy as np

from ..errors import UnsupportedOperationError
from .arithmetic import COMPARE, Arithmetic
from .constants import base_change
from .formats import Array, round_to

_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "rem": "fmod", "pow": "pow", "atan2": "atan2",
           "maxnum": "maxnum", "minnum": "minnum"}  # fmt: skip
_UNARY = {"exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log2": "log2", "log10": "log10",
          "log1p": "log1p", "sqrt": "sqrt", "rsqrt": "rec_sqrt", "cbrt": "cbrt", "sin": "sin", "cos": "cos",
          "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
          "erf": "erf", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "roundeven": "rint",
          "neg": "minus"}  # fmt: skip


class _Functions:
    """MPFR's functions at one precision, element by element."""

    def __init__(self, bits: int) -> None:
        context = gmpy2.context(precision=bits, emax=1 << 30, emin=-(1 << 30))
        self.binary = {name: np.frompyfunc(getattr(context, f), 2, 1) for name, f in _BINARY.items()}
        self.unary = {name: np.frompyfunc(getattr(context, f), 1, 1) for name, f in _UNARY.items()}
        self.binary["maximum"] = np.frompyfunc(lambda a, b: a if a != a or a > b else b, 2, 1)
        self.binary["minimum"] = np.frompyfunc(lambda a, b: a if a != a or a < b else b, 2, 1)
        self.unary["abs"] = np.frompyfunc(abs, 1, 1)
        self.fma = np.frompyfunc(context.fma, 3, 1)
        self.number = np.frompyfunc(lambda x: gmpy2.mpfr(x, bits), 1, 1)
        ln2 = context.log(gmpy2.mpfr(2, bits))
        self.base_changes = {"ln(2)": ln2, "log2(e)": context.div(1, ln2)}
        self.context = context


@cache
def _functions(bits: int) -> _Functions:
    return _Functions(bits)


@dataclass(frozen=True, slots=True)
class Precise(Arithmetic):
    """`digits` decimal digits in every operation, whatever format the kernel names; log2(e) and ln(2) are restored."""

    digits: int

    def __str__(self) -> str:
        return f"{self.digits}-digit arithmetic"

    @property
    def bits(self) -> int:
        """Of the significand."""
        return math.ceil(self.digits * math.log2(10)) + 1

    def carrier(self, element: str) -> np.dtype[Any]:
        return np.dtype(object)

    def load(self, x: Array, element: str) -> Array:
        return np.asarray(_functions(self.bits).number(x.astype(np.float64)), object).reshape(x.shape)

    def store(self, x: Array, element: str) -> Array:
        values = x.astype(np.float64)
        return values if element == "f64" else round_to(values.astype(np.float32), element)

    def constant(self, value: float, element: str) -> Array:
        out = np.empty(1, object)
        f, change = _functions(self.bits), base_change(value)
        if change is None:
            out[0] = gmpy2.mpfr(value, self.bits)
        else:
            name, exponent, sign = change
            out[0] = f.context.mul(f.base_changes[name], gmpy2.exp2(exponent) * sign)
        return out

    def binary(self, name: str, a: Array, b: Array, element: str) -> Array:
        out: Array = _functions(self.bits).binary[name](a, b)
        return out

    def unary(self, name: str, x: Array, element: str) -> Array:
        functions = _functions(self.bits).unary
        if name not in functions:
            raise UnsupportedOperationError(f"{name} in {self}")
        out: Array = functions[name](x)
        return out

    def fma(self, a: Array, b: Array, c: Array, element: str) -> Array:
        out: Array = _functions(self.bits).fma(a, b, c)
        return out

    def cast(self, x: Array, source: str, target: str, *, toward_zero: bool) -> Array:
        return x

    def from_integer(self, x: Array, element: str) -> Array:
        number = np.frompyfunc(lambda n: gmpy2.mpfr(int(n), self.bits), 1, 1)
        return np.asarray(number(x), object).reshape(x.shape)

    def to_integer(self, x: Array, dtype: np.dtype[Any]) -> Array:
        return np.trunc(x.astype(np.float64)).astype(dtype)

    def compare(self, name: str, a: Array, b: Array) -> Array:
        if name in ("ord", "uno"):
            nan = np.asarray(a != a, np.bool_) | np.asarray(b != b, np.bool_)
            return nan if name == "uno" else ~nan
        return np.asarray(COMPARE[name](a, b), np.bool_)

    def dot(self, a: Array, b: Array, c: Array, operands: str, result: str, precision: str) -> Array:
        fma, out = _functions(self.bits).fma, c
        for i in range(a.shape[-1]):
            out = fma(a[..., :, i, None], b[..., None, i, :], out)
        return out

    def reduce(self, name: str, x: Array, axis: int, element: str) -> Array | None:
        functions = _functions(self.bits).binary
        return functions[name].reduce(x, axis=axis) if name in functions else None
