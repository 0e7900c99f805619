"""Number formats: how bits in memory become numbers in tiles, and how a number is rounded to a format.

Inside a tile a low-precision number is *carried* by a wider one that holds it exactly: fp16, bf16 and fp8 by float32.
One operation in float32 followed by one rounding is then correctly rounded, because 24 >= 2p + 2 for p = 11, 8, 4, 3
(Figueroa 1995, "When is double rounding innocuous?").
"""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

_FP8 = {
    "f8E4M3FN": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "f8E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "f8E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
#: MLIR element type -> numpy dtype, in memory and in tiles
INTEGERS: dict[str, np.dtype[Any]] = {
    "i1": np.dtype(np.bool_),
    "index": np.dtype(np.int64),
    **{f"i{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
}

#: MLIR element type -> numpy dtype of its bits in memory
STORAGE: dict[str, np.dtype[Any]] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    **_FP8,
    **INTEGERS,
}
#: format -> numpy dtype that carries it inside a tile, in faithful (IEEE) arithmetic
CARRIER: dict[str, np.dtype[Any]] = {
    "f64": np.dtype(np.float64),
    **dict.fromkeys(("f32", "f16", "bf16", *_FP8), np.dtype(np.float32)),
}
FLOATS = frozenset({"f64", "f32", "f16", "bf16", *_FP8})
LOW_PRECISION = FLOATS - {"f64", "f32"}
#: largest finite value of the formats into which NVIDIA's conversions saturate (PTX ISA, cvt.satfinite)
SATURATING = {"f8E4M3FN": 448.0, "f8E5M2": 57344.0}


def storage_bytes(tensor: torch.Tensor) -> Array:
    """The bytes of a CPU tensor's storage, shared; no torch operation takes part, so that none is noticed."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return np.empty(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()))


def itemsize(element: str) -> int:
    """Bytes that one element takes in memory."""
    return 8 if element.startswith("ptr<") else STORAGE[element].itemsize


def decode(raw: Array, element: str) -> Array:
    """Bits in memory (any shape, dtype `STORAGE[element]`) -> carried numbers; exact."""
    if element == "bf16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if element in LOW_PRECISION:
        return raw.astype(np.float32)
    return raw


def encode(values: Array, element: str) -> Array:
    """Carried numbers, already rounded to the format -> bits in memory; exact."""
    if element == "bf16":
        return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(STORAGE[element], copy=False)


def round_to(values: Array, element: str, *, toward_zero: bool = False) -> Array:
    """Round carried numbers to `element`: to nearest, ties to even, or toward zero.  NaN stays NaN.

    fp8 saturates at the largest finite value, as NVIDIA's conversion instruction does; fp16 and bf16 overflow to inf.
    """
    if element == "bf16":
        return _bf16(values, toward_zero=toward_zero)
    if element == "f16":
        return (
            _toward_zero(values, np.dtype(np.float16)) if toward_zero else values.astype(np.float16).astype(np.float32)
        )
    if element in _FP8:
        limit = SATURATING.get(element)
        clipped = values if limit is None else np.clip(values, -limit, limit)
        if toward_zero:
            return _toward_zero(clipped, _FP8[element])
        return clipped.astype(_FP8[element]).astype(np.float32)
    if toward_zero and element == "f32":
        return _toward_zero(values, np.dtype(np.float32))
    return values.astype(CARRIER[element], copy=False)


def _bf16(values: Array, *, toward_zero: bool) -> Array:
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if toward_zero:
        rounded = bits & np.uint32(0xFFFF0000)
    else:
        # add just under half a unit in the last place, plus one more if the kept part is odd; the carry does the rest
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded &= np.uint32(0xFFFF0000)
    out = rounded.view(np.float32)
    nan = np.isnan(values)
    if nan.any():  # the carry may have run over a NaN's payload
        out = np.where(nan, np.float32(np.nan), out)
    return out


def _toward_zero(values: Array, dtype: np.dtype[Any]) -> Array:
    nearest = values.astype(dtype)
    overshoot = np.abs(nearest.astype(values.dtype)) > np.abs(values)
    bits = nearest.view(f"u{dtype.itemsize}")
    return np.asarray(bits - overshoot.astype(bits.dtype)).view(dtype).astype(np.float32)


def round_to_odd(values: Array) -> Array:
    """float64 -> float32, an inexact result taken with its last bit set.

    A second rounding, to a format of at most 22 bits, is then as if it were the only one (Boldo and Melquiond 2008).
    """
    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    step = np.where(np.abs(back) > np.abs(values), np.uint32(0xFFFFFFFF), np.uint32(1))
    fix = (back != values) & ~np.isnan(values) & (bits & np.uint32(1) == 0)
    return np.where(fix, bits + step, bits).view(np.float32)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """A + b as the rounded sum and its rounding error, exactly (Knuth, TAOCP 4.2.2, theorem B)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def sum_to_odd(total: Array, rest: Array) -> Array:
    """A float64 sum and its rounding error as one float64 number, rounded to odd."""
    bits = np.ascontiguousarray(total).view(np.int64)
    inexact = (rest != 0) & np.isfinite(rest) & np.isfinite(total) & (bits & 1 == 0)
    return np.where(inexact, bits + np.where((rest > 0) == (total > 0), 1, -1), bits).view(np.float64)


def integer_to_odd(number: Array) -> Array:
    """Integers -> float64, one that does not fit with its last bit set, for the reason that `round_to_odd` gives."""
    wide = number.astype(np.float64)
    if number.dtype.itemsize == 8 and (large := np.abs(wide) >= 2.0**53).any():
        low = number.dtype.type(2047)  # a 64-bit integer less 11 bits is exact in float64
        sticky = (number & ~low) | ((number & low != 0).astype(number.dtype) * number.dtype.type(2048))
        wide = np.where(large, sticky.astype(np.float64), wide)
    return wide


def saturate(whole: Array, dtype: np.dtype[Any]) -> Array:
    """Whole float32 or float64 numbers of any size as integers, as NVIDIA's cvt.rzi makes them (PTX ISA, cvt).

    What does not fit becomes the nearest end of the range; NaN becomes 0, or the top bit alone where one side has 64
    bits.  A conversion to 8 bits is one to 16 of which the lower half is kept (Triton's PTX).
    """
    step = np.dtype(f"{dtype.kind}{max(2, dtype.itemsize)}")
    info = np.iinfo(step)
    out = np.maximum(whole, 0).astype(step) if dtype.kind == "u" else whole.astype(step)
    out = np.where(whole >= float(info.max) + (step.itemsize < 8), step.type(info.max), out)
    out = np.where(whole <= info.min, step.type(info.min), out)
    nan = np.isnan(whole)
    if nan.any():
        wide = whole.dtype.itemsize == 8 or step.itemsize == 8
        top = info.min if dtype.kind == "i" else 1 << (8 * step.itemsize - 1)
        out = np.where(nan, step.type(top if wide else 0), out)
    return out.astype(dtype)


def cut_to_tf32(values: Array) -> Array:
    """The upper 19 bits of float32: what tensor cores see of a `tf32` operand (PTX converts none; seen on an H200)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), bits.view(np.float32), values)


def split_tf32(values: Array) -> tuple[Array, Array]:
    """float32 as a sum of two tf32 numbers and a rest: the first rounded as `cvt.rna.tf32` does, the second cut off."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    large = cut_to_tf32((bits + np.uint32(0x1000)).view(np.float32))  # half of the last place more: ties go away
    return large, cut_to_tf32(np.subtract(values, large, dtype=np.float32))
