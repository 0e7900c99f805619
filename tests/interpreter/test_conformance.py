"""Rounding, conversion and arithmetic bit for bit, over all or millions of bit patterns, against independent oracles.

fp8: NVIDIA's conversions saturate (Triton emits cvt.rn.satfinite; capability 9.0 converts fp32 directly, where 8.9 goes
through fp16 cut toward zero: we are 9.0), so the oracle is torch's conversion of operands clamped to the largest finite
number; NaN stays NaN.  fp64 to fp16 and bf16 is one rounding (cvt.rn.f16.f64; on 8.9 Triton rounds to odd on the way).
Integers to fp16 and bf16 likewise, as on 9.0.  All conversions of fp16, bf16, fp32, fp64, int32 and int64, sums,
products, maxima and minima were compared on an H200 with Triton 3.6 at 65536 operands each: no bit differs but in the
payload of NaN.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from flashproof.kernels.interpreter import Ieee
from flashproof.kernels.interpreter.numbers import formats

PATTERNS = 10_000_000
LOW = {"bf16": torch.bfloat16, "f16": torch.float16, "f8E4M3FN": torch.float8_e4m3fn, "f8E5M2": torch.float8_e5m2}
#: bits of precision, least exponent of a normal number, largest finite number
SHAPE = {
    "bf16": (8, -126, 3.3895313892515355e38), "f16": (11, -14, 65504.0), "f8E4M3FN": (4, -6, 448.0),
    "f8E5M2": (3, -14, 57344.0),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def patterns(element):
    """Random float32 patterns of all exponents, and every number of the format, every tie, and their neighbours."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, PATTERNS, dtype=np.uint32)
    count = 2 ** (8 * LOW[element].itemsize)
    raw = torch.arange(count).to(torch.int32).to(torch.uint8 if count == 256 else torch.int16).view(LOW[element])
    numbers = np.unique(raw.double().numpy()[np.isfinite(raw.double().numpy())])
    edges = np.concatenate([numbers, (numbers[1:] + numbers[:-1]) / 2]).astype(np.float32).view(np.uint32)
    special = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 1, 0x80000001], np.uint32)
    return np.concatenate([bits, edges, edges + 1, edges - 1, special]).view(np.float32)


def nearest(x, element):
    """Torch's conversion, saturated where NVIDIA's is."""
    t = torch.from_numpy(x)
    if element.startswith("f8"):
        t = t.clamp(-SHAPE[element][2], SHAPE[element][2])
    return t.to(LOW[element]).float().numpy()


def toward_zero(x, element):
    """Toward zero in float64: cut at the last place, which for subnormal numbers stays where it is."""
    precision, least, largest = SHAPE[element]
    wide = x.astype(np.float64)
    last = np.maximum(np.frexp(wide)[1] - 1, least) - (precision - 1)
    cut = np.ldexp(np.trunc(np.ldexp(wide, -last)), last)
    over = np.abs(cut) > largest
    if element.startswith("f8"):
        over |= np.isinf(wide)
    else:
        over &= np.isfinite(wide)
    return np.where(over, np.copysign(largest, wide), np.where(np.isfinite(wide), cut, wide)).astype(np.float32)


def same_bits(ours, theirs):
    nan = np.isnan(theirs)
    assert np.isnan(ours[nan]).all()
    a, b = (np.ascontiguousarray(v).view(f"u{v.dtype.itemsize}")[~nan] for v in (ours, theirs))
    assert a.dtype == b.dtype
    assert np.array_equal(a, b), f"{(a != b).sum()} of {a.size} differ, the first at {ours[~nan][a != b][:3]}"


@pytest.mark.covers("casts of fp32 to fp16, bf16, fp8", note="rtne and rtz bit for bit, 10^7 patterns and all ties")
@pytest.mark.parametrize("element", LOW)
def test_casts(element):
    x = patterns(element)
    same_bits(formats.round_to(x, element), nearest(x, element))
    same_bits(formats.round_to(x, element, toward_zero=True), toward_zero(x, element))


@pytest.mark.parametrize("element", LOW)
def test_rounded_numbers_survive_memory(element):
    x = formats.round_to(patterns(element)[-2_000_000:], element)
    same_bits(formats.decode(formats.encode(x, element), element), x)


def operands(element, n, k):
    rng = np.random.default_rng(k)
    bits = rng.integers(0, 2**16, (k, n), dtype=np.uint16)
    bits[:, : n // 4] = bits[0, : n // 4] ^ rng.integers(0, 64, (k, n // 4), dtype=np.uint16)  # nearly equal: cancel
    storage = formats.STORAGE[element]
    return [formats.decode(b.view(storage), element) for b in bits]


def once(x, element):
    """float64 rounded once, by scaling to integers."""
    precision, least, largest = SHAPE[element]
    last = np.maximum(np.frexp(x)[1] - 1, least) - (precision - 1)
    out = np.ldexp(np.rint(np.ldexp(x, -last)), last)
    out = np.where(np.abs(out) > largest, np.copysign(np.inf, x), out)
    return np.where(np.isfinite(x) & (x != 0), out, x).astype(np.float32)


EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "maxnum": np.fmax, "minnum": np.fmin}


@pytest.mark.covers(
    "arithmetic in fp16, bf16", note="+ - * / fma min max, comparisons: 10^6 operands, correctly rounded"
)
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_binary(element, name):
    """float64 holds sums, differences and products exactly, or rounds innocuously (53 >= 2 * 11 + 2)."""
    a, b = operands(element, 1_500_000, 2)
    ours = Ieee().binary(name, a, b, element)
    theirs = once(EXACT[name](a.astype(np.float64), b.astype(np.float64)), element)
    if name in ("maxnum", "minnum"):  # of zeros of either sign, either
        ours, theirs = ours + np.float32(0), theirs + np.float32(0)
    same_bits(ours, theirs)


@pytest.mark.parametrize("element", ["f16", "bf16", "f32", "f64"])
def test_fma(element):
    """Against fractions, exact and then rounded once; half of the sums cancel."""
    n = 20_000
    if element in SHAPE:
        a, b, c = operands(element, n, 3)
    else:
        rng = np.random.default_rng(0)
        a, b, c = (rng.standard_normal(n).astype(formats.CARRIER[element]) for _ in range(3))
    c[::2] = -(a * b)[::2] * (1 + 2.0**-6)  # cancels
    c = formats.round_to(c, element) if element in SHAPE else c
    ours = Ieee().fma(a, b, c, element)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    rows = zip(*(v[finite].tolist() for v in (a, b, c)), strict=True)
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in rows]
    theirs = np.array([rounded(f, element) for f in exact]).astype(ours.dtype)
    same_bits(ours[finite] + ours.dtype.type(0), theirs + ours.dtype.type(0))


def rounded(exact, element):
    """A fraction to the nearest number of a format, ties to even."""
    wide = {"f32": (24, -126, 3.4028234663852886e38), "f64": (53, -1022, 1.7976931348623157e308)}
    precision, least, largest = (SHAPE | wide)[element]
    if exact == 0:
        return 0.0
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    last = Fraction(2) ** (max(exponent, least) - (precision - 1))
    out = round(exact / last) * last
    return float(out) if abs(out) <= largest else np.copysign(np.inf, float(out > 0) - 0.5)


@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_comparisons(element):
    a, b = operands(element, 1_000_000, 2)
    x, y = (torch.from_numpy(v) for v in (a, b))
    for name, want in (("olt", x < y), ("oge", x >= y), ("oeq", x == y), ("une", x != y), ("ult", ~(x >= y)),
                       ("uno", x.isnan() | y.isnan()), ("one", (x < y) | (x > y))):  # fmt: skip
        assert np.array_equal(Ieee().compare(name, a, b), want.numpy())


FUNCTIONS = {
    "exp": torch.exp, "exp2": torch.exp2, "log": torch.log, "log2": torch.log2, "sqrt": torch.sqrt, "sin": torch.sin,
    "rsqrt": torch.rsqrt, "cos": torch.cos, "erf": torch.erf, "tanh": torch.tanh, "floor": torch.floor,
    "ceil": torch.ceil, "abs": torch.abs, "neg": torch.neg, "trunc": torch.trunc, "roundeven": torch.round,
}  # fmt: skip


@pytest.mark.covers("functions of fp16, bf16", note="all 65536 patterns; Triton computes them in fp32, to one ulp here")
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_unary(element, name):
    """Triton has these functions in fp32, so fp16 and bf16 are widened, and the fp32 result rounded by a cast.

    The oracle is torch in float64.  fp32 results must lie within one ulp of it; after the rounding most must be its own
    rounding, and none further than the neighbour.
    """
    x = formats.decode(np.arange(2**16, dtype=np.uint16).view(formats.STORAGE[element]), element)
    ours = Ieee().unary(name, x, "f32")
    true = FUNCTIONS[name](torch.from_numpy(x).double()).numpy()
    if name in ("floor", "ceil", "abs", "neg", "trunc", "roundeven", "sqrt"):
        same_bits(ours, true.astype(np.float32))
        return
    single = true.astype(np.float32)
    finite = np.isfinite(single)
    assert np.array_equal(np.isnan(ours), np.isnan(single))
    assert np.array_equal(ours[~finite & ~np.isnan(single)], single[~finite & ~np.isnan(single)])
    assert (
        np.abs(ours.astype(np.float64) - true)[finite] <= np.spacing(np.abs(single[finite])).astype(np.float64)
    ).all()
    low, want = formats.round_to(ours, element)[finite], once(true, element)[finite]
    differ = low != want
    assert differ.mean() < 1e-3
    assert np.isfinite(want[differ]).all()


def test_the_oracle_for_functions():
    """Torch's float64 against 50 digits, on a sample."""
    x = np.random.default_rng(0).standard_normal(50)
    with mpmath.workdps(50):
        for name in ("exp", "sin", "cos", "erf", "tanh"):
            true = [float(getattr(mpmath, name)(mpmath.mpf(v))) for v in x.tolist()]
            np.testing.assert_allclose(FUNCTIONS[name](torch.from_numpy(x)).numpy(), true, rtol=1e-14)


def test_sixty_four_bits_are_rounded_once():
    rng = np.random.default_rng(0)
    for element in ("f16", "bf16"):
        precision = SHAPE[element][0]
        tie = (1 + (rng.integers(0, 2 ** (precision - 1), 500_000) + 0.5) / 2 ** (precision - 1)) * 2.0 ** rng.integers(
            -10, 15, 500_000
        )
        x = np.concatenate([tie, tie * (1 + 2.0**-50), tie * (1 - 2.0**-50), rng.standard_normal(500_000)])
        ours = Ieee().cast(x, "f64", element, toward_zero=False)
        same_bits(ours, once(x, element))
        assert (once(x, element) != formats.round_to(x.astype(np.float32), element)).any(), "twice differs"
