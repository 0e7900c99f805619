"""What numbers mean inside a tile.

`Arithmetic` is the seam: an interpreted kernel asks it for every floating-point result, and only for those (integers,
pointers and booleans are numpy's own).  `Ieee` is the faithful one: each operation in the format that TTIR names,
rounded to nearest even, fp16 and bf16 correctly rounded; `dot` accumulates in float32, as tensor cores do.
`rational`, `precise`, `rounded` and `tensor_core` hold the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gmpy2
import numpy as np

from ..language.sites import Site
from .formats import (
    CARRIER,
    LOW_PRECISION,
    Array,
    cut_to_tf32,
    integer_to_odd,
    round_to,
    round_to_odd,
    saturate,
    split_tf32,
    sum_to_odd,
    two_sum,
)


class Arithmetic(ABC):
    """Carried arrays in, carried arrays out; `element` is the MLIR name of the format of the result.

    An arithmetic is immutable and hashable: a kernel is prepared once for each.
    """

    #: whether tiles hold more than the bits in memory do, so that a store must be remembered beside its bits
    wide = True

    def at(self, site: Site) -> Arithmetic:
        """The arithmetic of the operations at a rounding site (see `sites`): this one, unless it tells them apart."""
        del site
        return self

    @abstractmethod
    def carrier(self, element: str) -> np.dtype[Any]:
        """The numpy dtype that holds numbers of this format inside a tile."""

    @abstractmethod
    def load(self, x: Array, element: str) -> Array:
        """Numbers as memory holds them (float32 or float64, exact) -> carried."""

    @abstractmethod
    def store(self, x: Array, element: str) -> Array:
        """Carried -> float32 or float64 numbers of the format, rounded to nearest even where they are not yet."""

    @abstractmethod
    def constant(self, value: float, element: str) -> Array:
        """A number from the source or from the host, already of the format; shape (1,)."""

    @abstractmethod
    def binary(self, name: str, a: Array, b: Array, element: str) -> Array: ...

    @abstractmethod
    def unary(self, name: str, x: Array, element: str) -> Array: ...

    @abstractmethod
    def fma(self, a: Array, b: Array, c: Array, element: str) -> Array: ...

    @abstractmethod
    def cast(self, x: Array, source: str, target: str, *, toward_zero: bool) -> Array: ...

    @abstractmethod
    def from_integer(self, x: Array, element: str) -> Array:
        """Integers (a signed or unsigned dtype) -> the nearest numbers of the format."""

    @abstractmethod
    def to_integer(self, x: Array, dtype: np.dtype[Any]) -> Array:
        """Toward zero; `dtype` may be unsigned."""

    @abstractmethod
    def compare(self, name: str, a: Array, b: Array) -> Array:
        """One of COMPARE: `oeq`, `ult`, ...; -> booleans."""

    @abstractmethod
    def dot(self, a: Array, b: Array, c: Array, operands: str, result: str, precision: str) -> Array:
        """A @ B + C over the last two axes; `precision` is `ieee`, `tf32` or `tf32x3` and matters to fp32 operands."""

    @abstractmethod
    def reduce(self, name: str, x: Array, axis: int, element: str) -> Array | None:
        """Reduce along `axis`; None when each step must go through `binary`: then go stepwise."""


def _erf(x: Array) -> Array:
    import torch

    return torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def _wide(f: Any) -> Any:
    """`f` computed in float64: numpy's float32 versions err by up to 4 ulp, and differently from machine to machine."""
    return lambda *x: f(*(v.astype(np.float64) for v in x)).astype(x[0].dtype)


BINARY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "rem": np.fmod,
    "maxnum": np.fmax, "minnum": np.fmin, "maximum": np.maximum, "minimum": np.minimum, "pow": _wide(np.power),
    "atan2": _wide(np.arctan2),
}  # fmt: skip
#: correctly rounded in float64, one by one
_fma_double = np.frompyfunc(lambda a, b, c: float(gmpy2.fma(float(a), float(b), float(c))), 3, 1)
UNARY: dict[str, Any] = {
    "sqrt": np.sqrt, "rsqrt": _wide(lambda x: 1 / np.sqrt(x)), "erf": _wide(_erf),
    "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "roundeven": np.rint, "abs": np.abs, "neg": np.negative,
} | {
    name: _wide(f)
    for name, f in {
        "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10,
        "log1p": np.log1p,
        "cbrt": np.cbrt, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
        "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh,
    }.items()
}  # fmt: skip
COMPARE: dict[str, Any] = {
    "oeq": np.equal, "olt": np.less, "ole": np.less_equal, "ogt": np.greater, "oge": np.greater_equal,
    "une": np.not_equal,
    "one": lambda a, b: np.less(a, b) | np.greater(a, b),
    "ueq": lambda a, b: ~(np.less(a, b) | np.greater(a, b)),
    "ult": lambda a, b: ~np.greater_equal(a, b), "ule": lambda a, b: ~np.greater(a, b),
    "ugt": lambda a, b: ~np.less_equal(a, b), "uge": lambda a, b: ~np.less(a, b),
    "ord": lambda a, b: ~(np.isnan(a) | np.isnan(b)), "uno": lambda a, b: np.isnan(a) | np.isnan(b),
}  # fmt: skip
#: operations whose result is always one of the operands' values, or a small integer: they never round
EXACT = frozenset({"maxnum", "minnum", "maximum", "minimum", "abs", "neg", "floor", "ceil", "trunc", "roundeven"})
REDUCE: dict[str, Any] = {"add": np.add, "mul": np.multiply} | {k: BINARY[k] for k in EXACT & BINARY.keys()}


class Ieee(Arithmetic):
    """Faithful arithmetic.  fp16, bf16 and fp8 are carried by float32 and rounded after each operation."""

    wide = False

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def carrier(self, element: str) -> np.dtype[Any]:
        return CARRIER[element]

    def load(self, x: Array, element: str) -> Array:
        return x

    def store(self, x: Array, element: str) -> Array:
        return x

    def constant(self, value: float, element: str) -> Array:
        dtype = np.float64 if element == "f64" else np.float32
        return round_to(np.array([value], dtype), element)

    def binary(self, name: str, a: Array, b: Array, element: str) -> Array:
        out: Array = BINARY[name](a, b)
        return round_to(out, element) if element in LOW_PRECISION and name not in EXACT else out

    def unary(self, name: str, x: Array, element: str) -> Array:
        out: Array = UNARY[name](x)
        return round_to(out, element) if element in LOW_PRECISION and name not in EXACT else out

    def fma(self, a: Array, b: Array, c: Array, element: str) -> Array:
        if element == "f64":
            return np.asarray(_fma_double(a, b, c), np.float64)
        # the product of two float32 is exact in float64; their sum is rounded to odd, so that the last rounding counts
        total, rest = two_sum(np.multiply(a, b, dtype=np.float64), c.astype(np.float64))
        return self.cast(sum_to_odd(total, rest), "f64", element, toward_zero=False)

    def cast(self, x: Array, source: str, target: str, *, toward_zero: bool) -> Array:
        if target == "f64":
            return x.astype(np.float64)
        if source == "f64" and target in LOW_PRECISION:
            x = round_to_odd(x)  # so that it is one rounding, as NVIDIA's cvt.rn.f16.f64 and cvt.rn.bf16.f64 are
        return round_to(x, target, toward_zero=toward_zero)

    def from_integer(self, x: Array, element: str) -> Array:
        if element in ("f64", "f32"):
            return x.astype(CARRIER[element])
        return self.cast(integer_to_odd(x), "f64", element, toward_zero=False)

    def to_integer(self, x: Array, dtype: np.dtype[Any]) -> Array:
        return saturate(np.trunc(x), dtype)

    def compare(self, name: str, a: Array, b: Array) -> Array:
        out: Array = COMPARE[name](a, b)
        return out

    def dot(self, a: Array, b: Array, c: Array, operands: str, result: str, precision: str) -> Array:
        if operands == "f32" and precision == "tf32":
            a, b = cut_to_tf32(a), cut_to_tf32(b)
        if operands == "f32" and precision == "tf32x3":  # Triton's F32DotTC: the two small products first
            (a, a_rest), (b, b_rest) = split_tf32(a), split_tf32(b)
            c = c + (np.matmul(a_rest, b) + np.matmul(a, b_rest))
        out = np.matmul(a, b)
        if c.shape[0] > out.shape[0]:
            out = out + c
        else:
            out += c
        return round_to(out, result) if result in LOW_PRECISION else out

    def reduce(self, name: str, x: Array, axis: int, element: str) -> Array | None:
        ufunc = REDUCE.get(name)
        if ufunc is None or (element in LOW_PRECISION and name not in EXACT):
            return None
        out: Array = ufunc.reduce(x, axis=axis)
        return out
