"""Exact arithmetic: the numbers inside tiles are rationals, and nothing rounds.

Exponentials stay rational because only their laws matter to an algebraic identity, not their base.  `exp2(x)` is 2^x,
for integers x; `exp(x)` is 4^x; and since 4 = 2^2 stands for e, the constants log2(e) and ln(2), recognised by their
rounded values, are 2 and 1/2.  All laws that tie exp, exp2, log, log2 and the two constants together hold, and a kernel
that forgets one of the factors is refuted.  A logarithm is kept as a formal one, so that exp2(x - log2(r)) is 2^x / r.

Below 2^-1075 an exponential is 0, as in every floating-point format: kernels hide keys behind logits of -1e6, say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb, fmpq, fmpq_mat

from ..errors import IrrationalError
from .arithmetic import Arithmetic
from .constants import base_change
from .formats import Array, round_to

_UNDERFLOW = -1075
_OVERFLOW = 1 << 16  # bits of an exponential that is certainly a mistake
_ZERO, _ONE, _TWO = fmpq(0), fmpq(1), fmpq(2)
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Log:
    """`plus + times * log2(of)`, with `of` a positive rational that is no power of two."""

    plus: fmpq
    times: fmpq
    of: fmpq

    def ball(self) -> arb:
        """Its value, enclosed."""
        return arb(self.plus) + arb(self.times) * (arb(self.of).log() / arb(2).log())

    def __float__(self) -> float:
        return float(self.ball().mid())


def from_float(x: float) -> Any:
    """A float as the rational that it is; infinities and NaN stay floats."""
    return fmpq(*x.as_integer_ratio()) if math.isfinite(x) else x


def to_float(x: Any) -> float:
    """The nearest float64."""
    if type(x) is not fmpq:
        return float(x)
    try:
        return int(x.p) / int(x.q)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def _sign(x: Any) -> float:
    """What infinities see of a finite number."""
    if type(x) is fmpq:
        return float((x > 0) - (x < 0))
    return x if isinstance(x, float) else math.copysign(1.0, float(x))


def _rare(name: str, a: Any, b: Any) -> Any:
    """`a op b` where one is a logarithm, an infinity or NaN."""
    if isinstance(a, float) or isinstance(b, float):
        with np.errstate(all="ignore"):
            x, y = np.float64(_sign(a)), np.float64(_sign(b))
            out = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name](x, y)
        return float(out) if not np.isfinite(out) else _ZERO
    if name == "sub":
        return _add(a, _neg(b))
    if name == "add":
        if type(a) is fmpq:
            a, b = b, a
        if type(b) is fmpq:
            return Log(a.plus + b, a.times, a.of)
        return _sum_of_logs(a, b)
    if name == "mul" and (type(a) is fmpq or type(b) is fmpq):
        log, factor = (a, b) if type(b) is fmpq else (b, a)
        return _ZERO if factor == 0 else Log(log.plus * factor, log.times * factor, log.of)
    if type(b) is fmpq and name == "div" and b != 0:
        return Log(a.plus / b, a.times / b, a.of)
    raise IrrationalError(f"{name} of logarithms")


def _sum_of_logs(a: Log, b: Log) -> Any:
    """`c log2(r) + c log2(s) = c log2(r s)`; other factors c must be opposite."""
    if a.times == b.times:
        of = a.of * b.of
    elif a.times == -b.times:
        of = a.of / b.of
    else:
        raise IrrationalError("a sum of logarithms with different factors")
    return _add(_mul(_log2(of), a.times), a.plus + b.plus)


def _add(a: Any, b: Any) -> Any:
    return a + b if type(a) is fmpq and type(b) is fmpq else _rare("add", a, b)


def _sub(a: Any, b: Any) -> Any:
    return a - b if type(a) is fmpq and type(b) is fmpq else _rare("sub", a, b)


def _mul(a: Any, b: Any) -> Any:
    return a * b if type(a) is fmpq and type(b) is fmpq else _rare("mul", a, b)


def _div(a: Any, b: Any) -> Any:
    if type(a) is not fmpq or type(b) is not fmpq:
        return _rare("div", a, b)
    if b == 0:
        return _sign(a) * math.inf if a != 0 else _NAN
    return a / b


def _neg(a: Any) -> Any:
    return Log(-a.plus, -a.times, a.of) if isinstance(a, Log) else -a


def _less(a: Any, b: Any) -> bool:
    if type(a) is fmpq and type(b) is fmpq:
        return bool(a < b)
    if isinstance(a, float) or isinstance(b, float):
        return bool(_sign(a) < _sign(b)) if _infinite(a) or _infinite(b) else False  # NaN is less than nothing
    return bool(_ball(a) < _ball(b))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        return a == b if type(a) is type(b) else False
    return bool(a == b) if type(a) is type(b) else False


def _infinite(x: Any) -> bool:
    return isinstance(x, float) and math.isinf(x)


def _ball(x: Any) -> arb:
    return x.ball() if isinstance(x, Log) else arb(x)


def _is_nan(x: Any) -> bool:
    return isinstance(x, float) and x != x


def _extreme(*, larger: bool, propagate: bool) -> Callable[[Any, Any], Any]:
    def choose(a: Any, b: Any) -> Any:
        if _is_nan(a) or _is_nan(b):
            return (a if _is_nan(a) else b) if propagate else (b if _is_nan(a) else a)
        return b if _less(a, b) is larger else a

    return choose


def _rem(a: Any, b: Any) -> Any:
    if type(a) is not fmpq or type(b) is not fmpq or b == 0:
        raise IrrationalError("a remainder of infinities or logarithms")
    return a - b * _trunc(a / b)


def _exp2(x: Any) -> Any:
    if isinstance(x, Log):
        power, plus = x.times, x.plus
        if power.q != 1 or plus.q != 1:
            raise IrrationalError("exp2 of a logarithm with a factor that is no integer")
        return _exp2(plus) * x.of ** int(power.p)
    if isinstance(x, float):
        return _ZERO if x == -math.inf else x
    if x <= _UNDERFLOW:
        return _ZERO
    if x.q != 1:
        raise IrrationalError(f"exp2 of {x}, which is no integer")
    if x > _OVERFLOW:
        raise IrrationalError(f"exp2 of {x} has more than {_OVERFLOW} bits")
    return _TWO ** int(x.p)


def _log2(x: Any) -> Any:
    if isinstance(x, float):
        return x if x == math.inf else _NAN
    if isinstance(x, Log):
        raise IrrationalError("the logarithm of a logarithm")
    if x <= 0:
        return -math.inf if x == 0 else _NAN
    p, q = int(x.p), int(x.q)
    if p & (p - 1) == 0 and q & (q - 1) == 0:
        return fmpq(p.bit_length() - q.bit_length())
    return Log(_ZERO, _ONE, x)


def _sqrt(x: Any) -> Any:
    if isinstance(x, float):
        return x if x == math.inf else _NAN
    if isinstance(x, Log):
        raise IrrationalError("the square root of a logarithm")
    if x < 0:
        return _NAN
    p, q = math.isqrt(int(x.p)), math.isqrt(int(x.q))
    if p * p != int(x.p) or q * q != int(x.q):
        raise IrrationalError(f"the square root of {x}")
    return fmpq(p, q)


def _whole(round_: Callable[[fmpq], Any]) -> Callable[[Any], Any]:
    def apply(x: Any) -> Any:
        if isinstance(x, Log):
            raise IrrationalError("a logarithm rounded to an integer")
        return x if isinstance(x, float) else fmpq(round_(x))

    return apply


def _to_even(x: fmpq) -> Any:
    low = x.floor()
    twice = (x - low) * 2
    return low + (1 if twice > 1 or (twice == 1 and int(low) % 2) else 0)


_trunc = _whole(lambda x: x.floor() if x >= 0 else x.ceil())
_BINARY: dict[str, Any] = {
    "add": _add, "sub": _sub, "mul": _mul, "div": _div, "rem": _rem,
    "maxnum": _extreme(larger=True, propagate=False), "minnum": _extreme(larger=False, propagate=False),
    "maximum": _extreme(larger=True, propagate=True), "minimum": _extreme(larger=False, propagate=True),
}  # fmt: skip
_UNARY: dict[str, Any] = {
    "exp2": _exp2, "exp": lambda x: _exp2(_mul(x, _TWO)),
    "expm1": lambda x: _sub(_exp2(_mul(x, _TWO)), _ONE),
    "log2": _log2, "log": lambda x: _div(_log2(x), _TWO), "log1p": lambda x: _div(_log2(_add(_ONE, x)), _TWO),
    "sqrt": _sqrt, "rsqrt": lambda x: _div(_ONE, _sqrt(x)),
    "floor": _whole(lambda x: x.floor()), "ceil": _whole(lambda x: x.ceil()), "trunc": _trunc,
    "roundeven": _whole(_to_even),
    "abs": lambda x: _neg(x) if _less(x, _ZERO) else x, "neg": _neg,
}  # fmt: skip
_U_BINARY = {name: np.frompyfunc(f, 2, 1) for name, f in _BINARY.items()}
_U_UNARY = {name: np.frompyfunc(f, 1, 1) for name, f in _UNARY.items()}
_U_LESS, _U_EQUAL, _U_NAN = np.frompyfunc(_less, 2, 1), np.frompyfunc(_equal, 2, 1), np.frompyfunc(_is_nan, 1, 1)
_U_FROM, _U_TO = np.frompyfunc(from_float, 1, 1), np.frompyfunc(to_float, 1, 1)
_U_INTEGER = np.frompyfunc(lambda n: fmpq(int(n)), 1, 1)


def _compare(name: str, a: Array, b: Array) -> Array:
    def test(ufunc: Any, x: Array, y: Array) -> Array:
        return np.asarray(ufunc(x, y), np.bool_)

    relation = name[1:]
    nan = np.asarray(_U_NAN(a), np.bool_) | np.asarray(_U_NAN(b), np.bool_)
    if relation in ("rd", "no"):
        return nan if name == "uno" else ~nan
    if relation in ("eq", "ne"):
        out = test(_U_EQUAL, a, b)
        out = ~out if relation == "ne" else out
    elif relation in ("lt", "gt"):
        out = test(_U_LESS, a, b) if relation == "lt" else test(_U_LESS, b, a)
    else:
        out = ~(test(_U_LESS, b, a) if relation == "le" else test(_U_LESS, a, b))
    return out | nan if name[0] == "u" else out & ~nan


class Rational(Arithmetic):
    """Rationals; floating-point formats do not matter.  What is not rational raises `IrrationalError`."""

    def __eq__(self, other: object) -> bool:
        return type(other) is Rational

    def __hash__(self) -> int:
        return hash(Rational)

    def __str__(self) -> str:
        return "exact arithmetic"

    def carrier(self, element: str) -> np.dtype[Any]:
        return np.dtype(object)

    def load(self, x: Array, element: str) -> Array:
        return _objects(_U_FROM(x.astype(np.float64)), x.shape)

    def store(self, x: Array, element: str) -> Array:
        values = np.asarray(_U_TO(x), np.float64)
        return values if element == "f64" else round_to(values.astype(np.float32), element)

    def constant(self, value: float, element: str) -> Array:
        out = np.empty(1, object)
        change = base_change(value)
        if change is None:
            out[0] = from_float(value)
        else:
            name, exponent, sign = change
            out[0] = (_TWO if name == "log2(e)" else 1 / _TWO) * _TWO**exponent * sign
        return out

    def binary(self, name: str, a: Array, b: Array, element: str) -> Array:
        if name not in _U_BINARY:
            raise IrrationalError(f"{name} is not rational")
        out: Array = _U_BINARY[name](a, b)
        return out

    def unary(self, name: str, x: Array, element: str) -> Array:
        if name not in _U_UNARY:
            raise IrrationalError(f"{name} is not rational")
        out: Array = _U_UNARY[name](x)
        return out

    def fma(self, a: Array, b: Array, c: Array, element: str) -> Array:
        return self.binary("add", self.binary("mul", a, b, element), c, element)

    def cast(self, x: Array, source: str, target: str, *, toward_zero: bool) -> Array:
        return x

    def from_integer(self, x: Array, element: str) -> Array:
        return _objects(_U_INTEGER(x), x.shape)

    def to_integer(self, x: Array, dtype: np.dtype[Any]) -> Array:
        return np.asarray(_U_TO(_U_UNARY["trunc"](x)), np.float64).astype(dtype)

    def compare(self, name: str, a: Array, b: Array) -> Array:
        return _compare(name, a, b)

    def dot(self, a: Array, b: Array, c: Array, operands: str, result: str, precision: str) -> Array:
        lanes = np.broadcast_shapes(a.shape[:-2], b.shape[:-2], c.shape[:-2])
        m, k, n = *a.shape[-2:], b.shape[-1]
        out = np.empty((*lanes, m, n), object)
        a, b, c = (np.broadcast_to(x, lanes + s) for x, s in ((a, (m, k)), (b, (k, n)), (c, (m, n))))
        for lane in np.ndindex(lanes):
            try:
                left, right = fmpq_mat(m, k, a[lane].ravel().tolist()), fmpq_mat(k, n, b[lane].ravel().tolist())
            except TypeError:  # infinities, NaN or logarithms among them
                out[lane] = c[lane]
                for i in range(k):
                    out[lane] = _U_BINARY["add"](out[lane], _U_BINARY["mul"](a[lane][:, i : i + 1], b[lane][i]))
                continue
            product = np.empty(m * n, object)
            product[:] = (left * right).entries()
            out[lane] = _U_BINARY["add"](product.reshape(m, n), c[lane])
        return out

    def reduce(self, name: str, x: Array, axis: int, element: str) -> Array | None:
        return _U_BINARY[name].reduce(x, axis=axis) if name in _U_BINARY else None


def _objects(x: Any, shape: tuple[int, ...]) -> Array:
    """What a numpy function of objects returns, as an array even where it has no dimension."""
    return np.asarray(x, object).reshape(shape)


def power(base: int, exponent: Any) -> Any:
    """`base` (a power of two) to an exact exponent, which may be a logarithm: `power(4, lse)` is what a sum was."""
    return _exp2(_mul(exponent, fmpq(base.bit_length() - 1)))
