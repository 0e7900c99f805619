"""Conversions between formats, through kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

N = 1024
HALF = {torch.float16: np.float16, torch.bfloat16: None}


@triton.jit
def convert(x, out, DTYPE: tl.constexpr, ROUNDING: tl.constexpr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    v = tl.load(x + i)
    if ROUNDING is None:
        tl.store(out + i, v.to(DTYPE))
    else:
        tl.store(out + i, v.to(DTYPE, fp_downcast_rounding=ROUNDING))


TRITON = {
    torch.int8: tl.int8, torch.int16: tl.int16, torch.int32: tl.int32, torch.int64: tl.int64, torch.uint8: tl.uint8,
    torch.uint16: tl.uint16, torch.uint32: tl.uint32, torch.uint64: tl.uint64, torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64, torch.bool: tl.int1,
    torch.float8_e4m3fn: tl.float8e4nv, torch.float8_e5m2: tl.float8e5,
}  # fmt: skip
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]


def cast(x, dtype, rounding=None):
    n = -(-x.numel() // N) * N
    padded = torch.zeros(n, dtype=x.dtype)
    padded[: x.numel()] = x
    out = torch.zeros(n, dtype=dtype)
    convert[(n // N,)](padded, out, DTYPE=TRITON[dtype], ROUNDING=rounding, N=N)
    return out[: x.numel()]


def edges(dtype):
    """Numbers about the ends of every integer type, halves, infinities and NaN."""
    powers = [2.0**k for k in (7, 8, 15, 16, 31, 32, 63, 64)]
    near = [p * s + d for p in powers for s in (1, -1) for d in (-1.5, -1, -0.5, 0, 0.5, 1, 2)]
    plain = [0.0, -0.0, 0.5, 1.5, -0.5, -1.0, -1.9, 2.5, 300.7, -300.7, 70000.5, np.inf, -np.inf, np.nan, 1e30, -1e30]
    return torch.tensor([*plain, *near], dtype=torch.float64).to(dtype)


def saturated(value, source, target):
    """PTX ISA, cvt: toward zero, the ends of the range for what lies outside; conversions to 8 bits go through 16."""
    info = torch.iinfo(target)
    bits, signed = max(16, info.bits), info.min < 0
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if value != value:
        whole = (low if signed else 2 ** (bits - 1)) if source == torch.float64 or bits == 64 else 0
    else:
        whole = int(min(max(value, low), high)) if abs(value) == np.inf else min(max(int(value), low), high)
    return (whole - info.min) % 2**info.bits + info.min


@pytest.mark.covers(
    "casts from floats to integers",
    note="as NVIDIA's cvt.rzi: toward zero, saturating, NaN to 0; to 64 bits or from fp64 NaN to the top bit",
)
@pytest.mark.parametrize("target", INTEGERS, ids=str)
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_float_to_integer(source, target):
    x = edges(source)
    want = [saturated(v, source, target) for v in x.double().tolist()]
    assert cast(x, target).tolist() == want


@pytest.mark.covers("casts from integers to floats", note="rounded once, to nearest even")
@pytest.mark.parametrize("source", INTEGERS, ids=str)
@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_integer_to_float(source, target):
    from fractions import Fraction

    info = torch.iinfo(source)
    rng = np.random.default_rng(0)
    values = {
        info.min,
        info.max,
        0,
        1,
        2047,
        2049,
        2051,
        257,
        259,
        65519,
        65520,
        2**24 + 1,
        2**53 + 1,
        2**40 + 2**28 + 1,
    }
    values |= {
        int(v) >> int(s) for v, s in zip(rng.integers(-(2**62), 2**62, 900), rng.integers(0, 60, 900), strict=True)
    }
    kept = sorted(v for v in values if info.min <= v <= info.max)
    x = torch.from_numpy(np.array(kept, str(source).removeprefix("torch.")))
    precision, largest = {torch.float16: (11, 16), torch.bfloat16: (8, 128), torch.float32: (24, 128)}.get(
        target, (53, 1024)
    )
    for v, got in zip(kept, cast(x, target).double().tolist(), strict=True):
        step = Fraction(2) ** max(abs(v).bit_length() - precision, 0)
        want = round(Fraction(v) / step) * step  # Python rounds fractions to nearest even
        assert got == (float(want) if abs(want) < 2**largest else np.copysign(np.inf, v))


@pytest.mark.covers("casts between integers", note="truncated to the lower bits, or extended by sign or zeros")
@pytest.mark.parametrize("source", INTEGERS, ids=str)
@pytest.mark.parametrize("target", INTEGERS, ids=str)
def test_integer_to_integer(source, target):
    x = torch.arange(-600, 600).to(source)
    assert torch.equal(cast(x, target), x.to(target))


@pytest.mark.covers("casts to and from booleans", note="any number but zero is true, NaN too")
def test_booleans():
    x = torch.tensor([0.0, -0.0, 0.1, -5.0, torch.nan, 1e-45])
    assert cast(x, torch.bool).tolist() == [False, False, True, True, True, True]
    assert cast(torch.tensor([0, 2, -1, 256], dtype=torch.int32), torch.bool).tolist() == [False, True, True, True]
    flags = torch.tensor([True, False])
    for dtype in (torch.int8, torch.uint8, torch.int64, torch.float16, torch.float32):
        assert cast(flags, dtype).tolist() == [1, 0]


def ties(precision, exponents):
    """Numbers half way between neighbours of a format, and a hair to either side."""
    rng = np.random.default_rng(2)
    mantissa = 1 + (rng.integers(0, 2 ** (precision - 1), 20_000) + 0.5) / 2 ** (precision - 1)
    x = mantissa * np.exp2(rng.integers(*exponents, 20_000)) * rng.choice([-1, 1], 20_000)
    return np.concatenate([x, x * (1 + 2.0**-40), x * (1 - 2.0**-40), x * (1 + 2.0**-20)])


@pytest.mark.covers("casts of fp64 to fp16, bf16", note="rounded once, as NVIDIA's cvt.rn.f16.f64 does")
@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16], ids=str)
def test_no_double_rounding_from_double(target):
    precision = 11 if target == torch.float16 else 8
    x = ties(precision, (-10, 10))
    if target == torch.float16:
        want = torch.from_numpy(x.astype(np.float16))  # numpy rounds once
    else:
        fraction, exponent = np.frexp(x)
        want = torch.from_numpy(np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8)).to(torch.bfloat16)
    through_float = torch.from_numpy(x).float().to(target)
    assert not torch.equal(want, through_float)
    assert torch.equal(cast(torch.from_numpy(x), target), want)


@pytest.mark.covers("fp_downcast_rounding", note="rtne and rtz")
@pytest.mark.parametrize("source", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_modes(source, target):
    x = torch.from_numpy(ties(11 if target == torch.float16 else 8, (-8, 8))).to(source)
    x = torch.cat([x, torch.tensor([torch.inf, -torch.inf, 1e5, 3.4e38, 65519.0, 6.1e-8, 0.0]).to(source)])
    down, near = cast(x, target, "rtz").double(), cast(x, target, "rtne").double()
    assert torch.equal(near, cast(x, target).double())
    assert (down.abs() <= x.double().abs()).all()
    finite = x.isfinite() & near.isfinite()
    assert ((near - x.double()).abs() <= (down - x.double()).abs())[finite].all()
    step = x[:80000].double().abs().log2().floor().exp2() * 2.0 ** (1 - (11 if target == torch.float16 else 8))
    assert ((x.double() - down).abs()[:80000] < step).all(), "rtz is the nearest one toward zero"


@pytest.mark.covers("fp8", note="e4m3 and e5m2: loads, stores, casts; saturating, as NVIDIA's cvt.satfinite")
@pytest.mark.parametrize("target", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_fp8(source, target):
    x = torch.from_numpy(ties(4 if target == torch.float8_e4m3fn else 3, (-12, 8))).to(source)
    x = torch.cat([x, torch.tensor([torch.inf, -torch.inf, 1e5, -449.0]).to(source)])
    largest = torch.finfo(target).max
    assert torch.equal(cast(x, target).float(), x.float().clamp(-largest, largest).to(target).float())
    back = torch.arange(256, dtype=torch.uint8).view(target)
    assert torch.equal(cast(back, source).nan_to_num(7e4), back.to(source).nan_to_num(7e4))
    assert cast(torch.tensor([torch.nan]).to(source), target).float().isnan().all()


@triton.jit
def reinterpret(x, out, DTYPE: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i).to(DTYPE, bitcast=True))


@pytest.mark.covers("bitcasts")
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.float32, torch.int32), (torch.int32, torch.float32), (torch.float16, torch.int16),
        (torch.int16, torch.bfloat16), (torch.uint8, torch.float8_e4m3fn), (torch.float8_e5m2, torch.uint8),
        (torch.float64, torch.int64), (torch.int64, torch.float64), (torch.bfloat16, torch.float16),
    ],
    ids=str,
)  # fmt: skip
def test_bitcast(source, target):
    x = torch.arange(-512, 512, dtype=torch.int64) * 0x0101010101
    x = x.to({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[source.itemsize]).view(source)
    x = torch.where(x.double().isnan(), torch.zeros_like(x), x) if source.is_floating_point else x
    x = x if target not in (torch.bfloat16, torch.float16) else x.view(torch.int16).bitwise_and(0x3FFF).view(source)
    out = torch.zeros(N, dtype=target)
    reinterpret[(1,)](x, out, DTYPE=TRITON[target], N=N)
    assert torch.equal(out.view(torch.uint8), x.view(target).view(torch.uint8))


@pytest.mark.covers("float8e4b8, float8e5b16", supported=False, note="Triton refuses them too, on NVIDIA")
@pytest.mark.parametrize("name", ["float8e4b8", "float8e5b16"])
def test_other_fp8_formats_are_refused(name):
    storage = torch.zeros(N, dtype=torch.uint8)
    with pytest.raises(Exception, match="not supported in this architecture"):
        convert[(1,)](torch.zeros(N), triton.reinterpret(storage, getattr(tl, name)), getattr(tl, name), None, N=N)
