"""Number formats, bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from flashproof.kernels import interpreter
from flashproof.kernels.interpreter.numbers import formats

BF16, F16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
FORMATS = {
    "bf16": BF16,
    "f16": F16,
    "f8E4M3FN": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def patterns(n: int = 1_000_000) -> np.ndarray:
    """Random float32 bit patterns, all exponents, and every bf16/fp16 tie and its neighbours."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, n, dtype=np.uint32)
    ties = np.arange(2**16, dtype=np.uint32) << 16 | np.uint32(0x8000)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    return np.concatenate([bits, ties - 1, ties, ties + 1, halves, halves + 0x1000, halves + 0xFFF]).view(np.float32)


@pytest.mark.parametrize("element", ["bf16", "f16"])
def test_rounding_bit_for_bit(element):
    x = patterns()
    with np.errstate(all="ignore"):
        ours = formats.encode(formats.round_to(x, element), element)
        theirs = x.astype(FORMATS[element])
    nan = np.isnan(x)
    assert np.array_equal(ours.view(np.uint16)[~nan], theirs.view(np.uint16)[~nan])
    assert np.isnan(formats.decode(ours, element)[nan]).all()


@pytest.mark.parametrize("element", ["f8E4M3FN", "f8E5M2"])
def test_fp8_rounds_and_saturates(element):
    x = patterns(200_000)
    x = x[np.isfinite(x)]
    largest = float(ml_dtypes.finfo(FORMATS[element]).max)
    with np.errstate(all="ignore"):
        ours = formats.round_to(x, element)
        theirs = np.clip(x, -largest, largest).astype(FORMATS[element]).astype(np.float32)
    assert np.array_equal(ours, theirs)
    assert np.abs(ours).max() == largest


@pytest.mark.parametrize("element", ["bf16", "f16", "f8E4M3FN", "f8E5M2"])
def test_round_toward_zero_never_grows(element):
    x = patterns(100_000)
    x = x[np.isfinite(x) & (np.abs(x) < 400) & (np.abs(x) > 2.0**-6)]
    with np.errstate(all="ignore"):
        down = formats.round_to(x, element, toward_zero=True)
        near = formats.round_to(x, element)
    assert (np.abs(down) <= np.abs(x)).all()
    assert (np.abs(near - x) <= np.abs(down - x)).all()
    assert (down != near).mean() > 0.2  # the two modes do differ


@pytest.mark.parametrize("element", ["bf16", "f16"])
def test_every_number_survives_memory(element):
    raw = np.arange(2**16, dtype=np.uint16).view(formats.STORAGE[element])
    back = formats.encode(formats.decode(raw, element), element).view(np.uint16)
    nan = np.isnan(formats.decode(raw, element))
    assert np.array_equal(back[~nan], raw.view(np.uint16)[~nan])


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("element", ["bf16", "f16"])
def test_arithmetic_is_correctly_rounded(element, name):
    """Against float64 arithmetic rounded once: exact for these operations, since 53 >= 2 * 11 + 2."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0, 2**16, 500_000, dtype=np.uint16).view(FORMATS[element]) for _ in range(2))
    wide = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name]
    with np.errstate(all="ignore"):
        ours = interpreter.Ieee().binary(name, a.astype(np.float32), b.astype(np.float32), element)
        exact = wide(a.astype(np.float64), b.astype(np.float64))
        want = exact.astype(np.float16) if element == "f16" else _bf16_from_float64(exact)
    assert np.array_equal(ours, want.astype(np.float32), equal_nan=True)


def _bf16_from_float64(x):
    """Round float64 to bf16 once, by scaling to integers: an oracle that shares no code with ours."""
    fraction, exponent = np.frexp(x)
    step = np.maximum(exponent - 8, -133)  # the exponent of the last place; subnormals end at 2^-133
    rounded = np.ldexp(np.rint(np.ldexp(x, -step)), step)
    rounded[np.abs(rounded) > 3.3895313892515355e38] *= np.inf
    del fraction
    return np.where(np.isfinite(x), rounded, x).astype(np.float32)
