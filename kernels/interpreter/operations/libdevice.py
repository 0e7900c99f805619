"""NVIDIA's libdevice functions (`tl.extra.libdevice`, docs.nvidia.com/cuda/libdevice-users-guide).

Where the arithmetic knows a function it is asked; the others are computed in float64 and rounded once, which is closer
to the true value than libdevice promises.  Directed roundings are GMP's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gmpy2
import numpy as np
import torch

from ..errors import UnsupportedOperationError
from ..language.ttir import Op
from ..numbers.arithmetic import BINARY, UNARY
from ..numbers.formats import FLOATS, INTEGERS, Array, saturate
from .context import Context, Maker, Run, result
from .elementwise import unsigned

Function = Callable[..., Array]


def _torch(f: Any) -> Function:
    return lambda *x: np.asarray(f(*(torch.from_numpy(np.array(v, np.float64)) for v in x)).numpy())


def _round_away(x: Array) -> Array:
    out: Array = np.copysign(np.floor(np.abs(x)), x)
    return out + np.copysign(np.abs(x) - np.abs(out) >= 0.5, x)


def _sinpi(x: Array) -> Array:
    whole = np.fmod(x, 2)  # exact, and so is what is left of it
    half = np.rint(2 * whole)
    rest = np.pi * (whole - half / 2)
    quadrant = half.astype(np.int64) & 3
    out: Array = np.choose(quadrant, [np.sin(rest), np.cos(rest), -np.sin(rest), -np.cos(rest)])
    return np.where((rest == 0) & (quadrant % 2 == 0), np.copysign(0, x), out)


def _mpfr(f: Any) -> Function:
    return lambda x: np.asarray(np.frompyfunc(lambda v: float(f(float(v))), 1, 1)(x), np.float64)


def _bessel(kind: str) -> Function:
    f = {"j": gmpy2.jn, "y": gmpy2.yn}[kind]
    return lambda n, x: np.asarray(np.frompyfunc(lambda n, v: float(f(int(n), float(v))), 2, 1)(n, x), np.float64)


def _erfcx(x: Array) -> Array:
    return _torch(torch.special.erfcx)(x)


def _remainder(a: Array, b: Array) -> Array:
    """IEEE 754 remainder: a less the nearest multiple of b, ties to the even one; exact."""
    return np.asarray(np.frompyfunc(_remainder_one, 2, 1)(a, b), np.float64)


def _remainder_one(a: float, b: float) -> float:
    import math

    try:
        return math.remainder(a, b)
    except ValueError:
        return math.nan


def _logb(x: Array) -> Array:
    out: Array = np.frexp(x)[1] - 1.0
    return np.where(x == 0, -np.inf, np.where(np.isfinite(x), out, np.abs(x)))


#: computed in float64; the names are C's
_WIDE: dict[str, Function] = {
    "acosh": np.arccosh, "asinh": np.arcsinh, "atanh": np.arctanh, "exp10": lambda x: np.power(10.0, x),
    "erfc": _torch(torch.special.erfc), "erfcx": _erfcx, "erfinv": _torch(torch.special.erfinv),
    "erfcinv": lambda x: -_torch(torch.special.ndtri)(x / 2) / np.sqrt(2.0),
    "normcdf": lambda x: _torch(torch.special.erfc)(-x / np.sqrt(2.0)) / 2, "normcdfinv": _torch(torch.special.ndtri),
    "lgamma": _torch(torch.special.gammaln), "tgamma": _mpfr(gmpy2.gamma),
    "j0": _mpfr(gmpy2.j0), "j1": _mpfr(gmpy2.j1), "jn": _bessel("j"),
    "y0": _mpfr(gmpy2.y0), "y1": _mpfr(gmpy2.y1), "yn": _bessel("y"),
    "cyl_bessel_i0": _torch(torch.special.i0), "cyl_bessel_i1": _torch(torch.special.i1),
    "hypot": np.hypot, "rhypot": lambda a, b: 1 / np.hypot(a, b),
    "norm3d": lambda a, b, c: np.hypot(np.hypot(a, b), c),
    "norm4d": lambda a, b, c, d: np.hypot(np.hypot(a, b), np.hypot(c, d)),
    "rnorm3d": lambda a, b, c: 1 / np.hypot(np.hypot(a, b), c),
    "rnorm4d": lambda a, b, c, d: 1 / np.hypot(np.hypot(a, b), np.hypot(c, d)),
    "rcbrt": lambda x: 1 / np.cbrt(x), "sinpi": _sinpi, "cospi": lambda x: _sinpi(np.abs(x) + 0.5),
    "fdim": lambda a, b: np.where(a > b, a - b, np.where(np.isnan(a) | np.isnan(b), np.nan, 0.0)),
    "remainder": _remainder, "round": _round_away, "logb": _logb, "saturate": lambda x: np.fmin(np.fmax(x, 0), 1),
    "powi": lambda x, n: np.power(x, n), "ldexp": lambda x, n: np.ldexp(x, n.astype(np.int32)),
    "copysign": np.copysign,
}  # fmt: skip
_WIDE["scalbn"] = _WIDE["ldexp"]
_ALIAS = {"fabs": "abs", "rint": "roundeven", "nearbyint": "roundeven", "fdivide": "div", "fmod": "rem"}
_PREDICATE: dict[str, Function] = {
    "isnan": np.isnan, "isinf": np.isinf, "isfinite": np.isfinite, "finite": np.isfinite, "signbit": np.signbit,
}  # fmt: skip
_WHOLE: dict[str, Function] = {"rn": np.rint, "rz": np.trunc, "rd": np.floor, "ru": np.ceil}
_DIRECTION = {"rz": gmpy2.RoundToZero, "rd": gmpy2.RoundDown, "ru": gmpy2.RoundUp, "rn": gmpy2.RoundToNearest}
_EXACT: dict[str, Any] = {
    "add": gmpy2.add, "sub": gmpy2.sub, "mul": gmpy2.mul, "div": gmpy2.div, "sqrt": gmpy2.sqrt, "fma": gmpy2.fma,
    "rcp": lambda x: gmpy2.div(1, x),
}  # fmt: skip


def _directed(name: str, mode: str, element: str) -> Function:
    """One correctly rounded operation in the direction `mode` (rn, rz, rd, ru)."""
    wide = element == "f64"
    context = gmpy2.context(
        precision=53 if wide else 24, round=_DIRECTION[mode], subnormalize=True,
        emin=-1073 if wide else -148, emax=1024 if wide else 128,
    )  # fmt: skip
    f = _EXACT[name] if name else gmpy2.mpfr

    def one(*x: Any) -> float:
        with gmpy2.context(precision=64):  # wide enough for the operands, which are exact
            operands = [gmpy2.mpfr(int(v)) if isinstance(v, np.integer | int) else gmpy2.mpfr(float(v)) for v in x]
        with context:
            return float(f(*operands) if name else +operands[0])

    def run(*x: Array) -> Array:
        dtype = np.float64 if wide else np.float32
        return np.asarray(np.frompyfunc(one, len(x), 1)(*x), np.float64).astype(dtype)

    return run


# -- integers ----------------------------------------------------------------------------------------------------------


def _bits(x: Array) -> Array:
    """The bits of integers, lowest first, along a new last axis."""
    width = 8 * x.dtype.itemsize
    return np.asarray(
        unsigned(x)[..., None] >> np.arange(width, dtype=f"u{x.dtype.itemsize}") & unsigned(x).dtype.type(1)
    )


def _unbits(bits: Array, dtype: np.dtype[Any]) -> Array:
    unsigned_type = np.dtype(f"u{dtype.itemsize}")
    weights = np.left_shift(unsigned_type.type(1), np.arange(8 * dtype.itemsize, dtype=unsigned_type))
    return np.asarray((bits.astype(unsigned_type) * weights).sum(-1, dtype=unsigned_type)).view(dtype)


def leading_zeros(x: Array) -> Array:
    """How many bits above the highest one that is set; int32."""
    bits = _bits(x)[..., ::-1]
    return np.asarray(np.where(bits.any(-1), bits.argmax(-1), bits.shape[-1]), np.int32)


def set_bits(x: Array) -> Array:
    """How many bits are set; int32."""
    return np.asarray(_bits(x).sum(-1), np.int32)


def reversed_bits(x: Array) -> Array:
    """The bits in the opposite order."""
    return _unbits(_bits(x)[..., ::-1], x.dtype)


def _byte_permute(a: Array, b: Array, selector: Array) -> Array:
    byte = np.uint32(255)
    pool = np.stack([(unsigned(x) >> np.uint32(8 * i)) & byte for x in np.broadcast_arrays(a, b) for i in range(4)])
    out = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), np.uint32)
    for i in range(4):
        index = np.broadcast_to((unsigned(selector) >> np.uint32(4 * i)) & np.uint32(7), out.shape)
        out |= np.take_along_axis(pool, index[None].astype(np.int64), 0)[0] << np.uint32(8 * i)
    return out.view(np.int32)


def _high(a: Array, b: Array) -> Array:
    """The upper half of a product, in the operands' own signedness."""
    bits, wide = 8 * a.dtype.itemsize, np.frompyfunc(lambda x, y: int(x) * int(y), 2, 1)
    if a.dtype.itemsize < 8:
        return (
            (a.astype(np.int64) * b.astype(np.int64) >> bits).astype(a.dtype)
            if a.dtype.kind == "i"
            else (a.astype(np.uint64) * b.astype(np.uint64) >> np.uint64(bits)).astype(a.dtype)
        )
    return np.asarray(wide(a, b) >> bits).astype(a.dtype)


def _low24(x: Array) -> Array:
    return (x << 8) >> 8


def _middle(up: int) -> Function:
    return lambda a, b: ((a.astype(np.int64) + b.astype(np.int64) + up) >> 1).astype(a.dtype)


def _apart(a: Array, b: Array, c: Array) -> Array:
    return (np.abs(a.astype(np.int64) - b.astype(np.int64)) + c.astype(np.int64)).astype(a.dtype)


_SIGNED: dict[str, Function] = {
    "abs": np.abs, "llabs": np.abs, "clz": leading_zeros, "clzll": leading_zeros, "byte_perm": _byte_permute,
    "popc": set_bits, "brev": reversed_bits,
    "ffs": lambda x: np.where(x == 0, 0, _bits(x).argmax(-1) + 1).astype(np.int32),
    "mulhi": _high, "mul64hi": _high, "mul24": lambda a, b: _low24(a) * _low24(b), "hadd": _middle(0),
    "rhadd": _middle(1), "sad": _apart,
}  # fmt: skip
_SIGNED |= {f"{k}ll": _SIGNED[k] for k in ("popc", "brev", "ffs")}
_UNSIGNED: dict[str, Function] = {
    "umulhi": _high, "umul64hi": _high, "uhadd": _middle(0), "urhadd": _middle(1), "usad": _apart,
    "umul24": lambda a, b: (a & a.dtype.type(0xFFFFFF)) * (b & b.dtype.type(0xFFFFFF)),
}  # fmt: skip


# -- dispatch ----------------------------------------------------------------------------------------------------------

_SHORT = {"float": "f32", "double": "f64", "int": "i32", "uint": "u32", "ll": "i64", "ull": "u64"}
_CONVERSION = re.compile(r"(float|double|int|uint|ll|ull)2(float|double|int|uint|ll|ull)_(rn|rz|rd|ru)$")


def _conversion(source: str, target: str, mode: str) -> Function:
    """Integer to float or back, or double to float, in the direction `mode`."""
    if target[0] == "f":
        view = unsigned if source[0] == "u" else np.asarray
        rounded = _directed("", mode, target)
        return lambda x: rounded(view(x))
    dtype = np.dtype(f"{target[0]}{int(target[1:]) // 8}")
    return lambda x: saturate(_WHOLE[mode](x), dtype).view(f"i{dtype.itemsize}")


def _reinterpretation(name: str) -> Function | None:
    if m := re.fullmatch(r"(?:float|double|u?int|longlong)_as_(float|double|u?int|longlong)", name):
        dtype = {"float": "f4", "double": "f8", "longlong": "i8"}.get(m[1], "i4")
        return lambda x: np.ascontiguousarray(x).view(dtype)
    return _HALVES.get(name)


def _from_halves(high: Array, low: Array) -> Array:
    return np.asarray(high.astype(np.int64) << 32 | unsigned(np.asarray(low)).astype(np.int64)).view(np.float64)


_HALVES: dict[str, Function] = {
    "double2loint": lambda x: np.ascontiguousarray(x).view(np.int64).astype(np.int32),
    "double2hiint": lambda x: (np.ascontiguousarray(x).view(np.int64) >> 32).astype(np.int32),
    "hiloint2double": _from_halves,
}


def _plain(name: str, op: Op, target: np.dtype[Any]) -> Function | None:
    """What needs no arithmetic of floating-point numbers."""
    base = name.removesuffix("f").removesuffix("d")
    if m := _CONVERSION.match(name):
        return _conversion(_SHORT[m[1]], _SHORT[m[2]], m[3])
    if (f := _reinterpretation(name)) is not None:
        return f
    if base in _PREDICATE:
        return lambda x: _PREDICATE[base](x).astype(target)
    if base in ("ilogb", "llrint", "llround"):
        wholes: dict[str, Function] = {"ilogb": _logb, "llrint": np.rint, "llround": _round_away}
        whole = wholes[base]
        return lambda x: saturate(whole(x), target)
    if base == "nextafter":
        return np.nextafter
    if name in _UNSIGNED:
        return lambda *x: _UNSIGNED[name](*(unsigned(np.asarray(v)) for v in x)).view(target)
    if name in _SIGNED and op.operand_types[0].element[0] == "i":
        return lambda *x: _SIGNED[name](*x)
    return None


def _libdevice(op: Op, context: Context) -> Run:
    symbol = str(op.attributes.get("symbol", ""))
    name = symbol.removeprefix("__nv_").removeprefix("fast_")
    element, arithmetic = result(op).element, context.arithmetic
    plain = _plain(name, op, INTEGERS.get(element, np.dtype(np.int32)))
    if plain is not None:
        return _on_bits(plain, op, context)
    if m := re.fullmatch(r"[fd]?(add|sub|mul|div|rcp|sqrt|rsqrt|fma)f?_(rn|rz|rd|ru)", name):
        if m[2] != "rn" or m[1] == "rcp":
            return _on_bits(_directed(m[1], m[2], element), op, context)
        name = m[1]
    for candidate in dict.fromkeys((name, name.removesuffix("f"))):
        known = _ALIAS.get(candidate, candidate)
        if known in UNARY and len(op.operands) == 1:
            return lambda x, known=known: arithmetic.unary(known, x, element)
        if known in BINARY:
            return lambda a, b, known=known: arithmetic.binary(known, a, b, element)
        if known == "fma":
            return lambda a, b, c: arithmetic.fma(a, b, c, element)
        if known in _WIDE:
            return _widened(_WIDE[known], op, context)
    raise UnsupportedOperationError(f"libdevice function {symbol}", op.location)


def _on_bits(f: Function, op: Op, context: Context) -> Run:
    """A function that needs the numbers of the format themselves, not those of a wider arithmetic."""
    arithmetic = context.arithmetic
    if arithmetic.wide and any(t.element in FLOATS for t in (*op.operand_types, *op.result_types)):
        raise UnsupportedOperationError(f"libdevice function {op.attributes['symbol']} in {arithmetic}", op.location)
    return f


def _widened(f: Function, op: Op, context: Context) -> Run:
    element, cast = result(op).element, context.arithmetic.cast

    def run(*x: Array) -> Array:
        return cast(np.asarray(f(*(v.astype(np.float64) for v in x))), "f64", element, toward_zero=False)

    return _on_bits(run, op, context)


LIBDEVICE: dict[str, Maker] = {"tt.extern_elementwise": _libdevice}
