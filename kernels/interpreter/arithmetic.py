"""What numbers mean inside a tile.

`Arithmetic` is the seam: an interpreted kernel asks it for every floating-point result, and only for those (integers,
pointers and booleans are numpy's own).  `Ieee` is the faithful one: each operation in the format that TTIR names,
rounded to nearest even, fp16 and bf16 correctly rounded; `dot` accumulates in float32, as tensor cores do.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .formats import LOW_PRECISION, Array, round_to, round_to_tf32


class Arithmetic(Protocol):
    """Carried arrays in, carried arrays out; `element` is the MLIR name of the format of the result."""

    def constant(self, value: float, element: str) -> Array: ...
    def binary(self, name: str, a: Array, b: Array, element: str) -> Array: ...
    def unary(self, name: str, x: Array, element: str) -> Array: ...
    def fma(self, a: Array, b: Array, c: Array, element: str) -> Array: ...
    def cast(self, x: Array, source: str, target: str, *, toward_zero: bool) -> Array: ...
    def dot(self, a: Array, b: Array, c: Array, operands: str, result: str, precision: str) -> Array: ...
    def reduce(self, name: str, x: Array, axis: int, element: str) -> Array | None: ...


def _erf(x: Array) -> Array:
    import torch

    return torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()


BINARY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "rem": np.fmod,
    "maxnum": np.fmax, "minnum": np.fmin, "maximum": np.maximum, "minimum": np.minimum, "pow": np.power,
    "atan2": np.arctan2,
}  # fmt: skip
UNARY: dict[str, Any] = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10,
    "log1p": np.log1p, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "cbrt": np.cbrt, "sin": np.sin,
    "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh,
    "cosh": np.cosh, "tanh": np.tanh, "erf": _erf, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
    "roundeven": np.rint, "abs": np.abs, "neg": np.negative,
}  # fmt: skip
_EXACT = frozenset({"maxnum", "minnum", "maximum", "minimum", "abs", "neg", "floor", "ceil", "trunc", "roundeven"})
_REDUCE: dict[str, Any] = {"add": np.add, "mul": np.multiply} | {k: BINARY[k] for k in _EXACT & BINARY.keys()}


class Ieee:
    """Faithful arithmetic.  fp16, bf16 and fp8 are carried by float32 and rounded after each operation."""

    def constant(self, value: float, element: str) -> Array:
        dtype = np.float64 if element == "f64" else np.float32
        return round_to(np.array([value], dtype), element)

    def binary(self, name: str, a: Array, b: Array, element: str) -> Array:
        out: Array = BINARY[name](a, b)
        return round_to(out, element) if element in LOW_PRECISION and name not in _EXACT else out

    def unary(self, name: str, x: Array, element: str) -> Array:
        out: Array = UNARY[name](x)
        return round_to(out, element) if element in LOW_PRECISION and name not in _EXACT else out

    def fma(self, a: Array, b: Array, c: Array, element: str) -> Array:
        # the product of two float32 is exact in float64, so only the last sum rounds before the final rounding
        wide = np.multiply(a, b, dtype=np.float64) + c
        return round_to(wide.astype(c.dtype), element)

    def cast(self, x: Array, source: str, target: str, *, toward_zero: bool) -> Array:
        if target == "f64":
            return x.astype(np.float64)
        if source == "f64":
            x = x.astype(
                np.float32
            )  # numpy rounds to nearest even; double rounding below fp32 as in NVIDIA's own lowering
        return round_to(x, target, toward_zero=toward_zero) if target in LOW_PRECISION else x

    def dot(self, a: Array, b: Array, c: Array, operands: str, result: str, precision: str) -> Array:
        if operands == "f32" and precision == "tf32":
            a, b = round_to_tf32(a), round_to_tf32(b)
        out = np.matmul(a, b)
        out += c
        return round_to(out, result) if result in LOW_PRECISION else out

    def reduce(self, name: str, x: Array, axis: int, element: str) -> Array | None:
        """Reduce along `axis`; None when the format needs a rounding after every step: then go stepwise."""
        ufunc = _REDUCE.get(name)
        if ufunc is None or (element in LOW_PRECISION and name not in _EXACT):
            return None
        out: Array = ufunc.reduce(x, axis=axis)
        return out
