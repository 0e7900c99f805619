"""Arithmetic, comparisons and mathematical functions, element by element."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

N = 256
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]
UNSIGNED = {torch.uint16: np.uint16, torch.uint32: np.uint32, torch.uint64: np.uint64}


@triton.jit
def binary(x, y, out, FN: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, FN(tl.load(x + i), tl.load(y + i)))


@triton.jit
def unary(x, out, FN: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, FN(tl.load(x + i)))


@triton.jit
def ternary(x, y, z, out, FN: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, FN(tl.load(x + i), tl.load(y + i), tl.load(z + i)))


def apply(fn, *arguments, dtype=None):
    """The elementwise function `fn` (a jit function) of tensors, on one program."""
    n = arguments[0].numel()
    out = torch.zeros(n, dtype=dtype or arguments[0].dtype)
    {1: unary, 2: binary, 3: ternary}[len(arguments)][(1,)](*arguments, out, FN=fn, N=n)
    return out


# -- integers ----------------------------------------------------------------------------------------------------------


@triton.jit
def add(x, y):
    return x + y


@triton.jit
def subtract(x, y):
    return x - y


@triton.jit
def multiply(x, y):
    return x * y


@triton.jit
def divide(x, y):
    return x // y


@triton.jit
def remainder(x, y):
    return x % y


@triton.jit
def shift_left(x, y):
    return x << y


@triton.jit
def shift_right(x, y):
    return x >> y


@triton.jit
def bitwise(x, y):
    return (x & y) ^ (x | ~y)


@triton.jit
def comparisons(x, y):
    return (
        (x < y).to(tl.int32)
        + 2 * (x <= y).to(tl.int32)
        + 4 * (x > y).to(tl.int32)
        + 8 * (x >= y).to(tl.int32)
        + 16 * (x == y).to(tl.int32)
        + 32 * (x != y).to(tl.int32)
    )


@triton.jit
def clipped(x, y):
    return tl.minimum(tl.maximum(x, y), x ^ y)


def integers(dtype, n=N, seed=0):
    """Random integers of the whole range, the extremes and small ones."""
    info = torch.iinfo(dtype)
    rng = np.random.default_rng(seed)
    x = rng.integers(info.min, info.max, n, dtype=np.dtype(str(dtype).removeprefix("torch.")), endpoint=True)
    x[:8] = [info.min, info.max, 0, 1, info.max, info.min, 7, 9]
    x[64:128] %= 13
    return x


@pytest.mark.covers("+ - * of integers", note="wraps round at the width")
@pytest.mark.parametrize("dtype", [*INTEGERS, *UNSIGNED], ids=str)
def test_integers_wrap(dtype):
    x, y = integers(dtype), integers(dtype, seed=1)
    with np.errstate(over="ignore"):
        for fn, want in ((add, x + y), (subtract, x - y), (multiply, x * y)):
            assert np.array_equal(apply(fn, torch.from_numpy(x), torch.from_numpy(y)).numpy(), want)


@pytest.mark.covers("// and % of integers", note="toward zero, the remainder has the dividend's sign")
@pytest.mark.parametrize("dtype", [*INTEGERS, *UNSIGNED], ids=str)
def test_division_truncates(dtype):
    x, y = integers(dtype), integers(dtype, seed=1)
    y[y == 0] = 3
    quotient = apply(divide, torch.from_numpy(x), torch.from_numpy(y)).tolist()
    rest = apply(remainder, torch.from_numpy(x), torch.from_numpy(y)).tolist()
    info = torch.iinfo(dtype)
    for a, b, q, r in zip(x.tolist(), y.tolist(), quotient, rest, strict=True):
        want = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        if want <= info.max:  # the most negative number over -1 does not fit
            assert (q, r) == (want, a - want * b)


@pytest.mark.covers("<< and >>", note="arithmetic on signed; a shift by the width or more leaves zeros, or the sign")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint32, torch.uint8], ids=str)
def test_shifts(dtype):
    x = integers(dtype)
    bits = torch.iinfo(dtype).bits
    y = (np.arange(N) % (bits + 2)).astype(x.dtype)
    left = apply(shift_left, torch.from_numpy(x), torch.from_numpy(y)).tolist()
    right = apply(shift_right, torch.from_numpy(x), torch.from_numpy(y)).tolist()
    for a, b, up, down in zip(x.tolist(), y.tolist(), left, right, strict=True):
        assert (up - (a << b)) % 2**bits == 0
        assert down == a >> b


@pytest.mark.covers("& | ^ ~ of integers")
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint32], ids=str)
def test_bitwise(dtype):
    x, y = integers(dtype), integers(dtype, seed=1)
    assert np.array_equal(apply(bitwise, torch.from_numpy(x), torch.from_numpy(y)).numpy(), (x & y) ^ (x | ~y))


def _outcomes(x, y):
    parts = (x < y, x <= y, x > y, x >= y, x == y, x != y)
    return sum(p.astype(np.int32) << i for i, p in enumerate(parts))


@pytest.mark.covers("comparisons", note="signed, unsigned and floating, NaN is unordered")
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8, *UNSIGNED], ids=str)
def test_integer_comparisons(dtype):
    x, y = integers(dtype), integers(dtype, seed=1)
    y[::3] = x[::3]
    got = apply(comparisons, torch.from_numpy(x), torch.from_numpy(y), dtype=torch.int32)
    assert np.array_equal(got.numpy(), _outcomes(x, y))


@pytest.mark.covers("comparisons")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_float_comparisons(dtype):
    x, y = torch.randn(N).to(dtype), torch.randn(N).to(dtype)
    y[::3] = x[::3]
    x[:4], y[2:6] = torch.nan, torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]).to(dtype)
    x[8], y[8] = 0.0, -0.0
    got = apply(comparisons, x, y, dtype=torch.int32)
    assert np.array_equal(got.numpy(), _outcomes(x.double().numpy(), y.double().numpy()))


@pytest.mark.covers("tl.minimum, tl.maximum of integers")
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.uint32, torch.uint64], ids=str)
def test_integer_minimum(dtype):
    x, y = integers(dtype), integers(dtype, seed=1)
    want = np.minimum(np.maximum(x, y), x ^ y)
    assert np.array_equal(apply(clipped, torch.from_numpy(x), torch.from_numpy(y)).numpy(), want)


@triton.jit
def high(x, y):
    return tl.umulhi(x, y)


@pytest.mark.covers("tl.umulhi")
@pytest.mark.parametrize("dtype", [torch.uint32, torch.uint64, torch.int32], ids=str)
def test_umulhi(dtype):
    bits = torch.iinfo(dtype).bits
    x, y = integers(dtype), integers(dtype, seed=1)
    got = apply(high, torch.from_numpy(x), torch.from_numpy(y)).tolist()
    for a, b, g in zip(x.tolist(), y.tolist(), got, strict=True):
        assert ((a % 2**bits) * (b % 2**bits) >> bits) == g % 2**bits


@triton.jit
def ceiling(x, y):
    return tl.cdiv(x, y)


@pytest.mark.covers("tl.cdiv")
def test_cdiv():
    x, y = torch.arange(N, dtype=torch.int32), torch.full((N,), 7, dtype=torch.int32)
    assert apply(ceiling, x, y).tolist() == [-(-a // 7) for a in range(N)]


@triton.jit
def boolean(x, y):
    a, b = x > 3, y > 5
    return ((a & b) | (~a & ~b)).to(tl.int8) + (a ^ b).to(tl.int8) * 2 + tl.where(a, 4, 0).to(tl.int8)


@pytest.mark.covers("booleans", note="loads, stores, & | ^ ~, tl.where, casts")
def test_booleans():
    x, y = torch.arange(N, dtype=torch.int32) % 8, torch.arange(N, dtype=torch.int32) % 11
    a, b = x > 3, y > 5
    want = (a == b).to(torch.int8) + 2 * (a != b).to(torch.int8) + 4 * a.to(torch.int8)
    assert torch.equal(apply(boolean, x, y, dtype=torch.int8), want)


@triton.jit
def invert(x):
    return x == 0


@pytest.mark.covers("booleans")
def test_boolean_tensors():
    x = torch.arange(N) % 3 == 0
    assert torch.equal(apply(invert, x), ~x)


# -- floating point ----------------------------------------------------------------------------------------------------


@triton.jit
def nan_aware(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL) + tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def nan_blind(x, y):
    return tl.maximum(x, y) + tl.minimum(x, y)


@pytest.mark.covers("tl.minimum, tl.maximum of floats", note="propagate_nan honoured")
def test_maximum_and_nan():
    x, y = torch.randn(N), torch.randn(N)
    x[0], y[1], x[2], y[2] = (torch.nan,) * 4
    aware, blind = apply(nan_aware, x, y), apply(nan_blind, x, y)
    assert torch.equal(aware.isnan(), x.isnan() | y.isnan())
    assert torch.equal(blind.isnan(), x.isnan() & y.isnan())
    torch.testing.assert_close(blind[3:], (x + y)[3:])
    assert (blind[0], blind[1]) == (2 * y[0], 2 * x[1])


@triton.jit
def clamped(x, lo, hi):
    return tl.clamp(x, lo, hi)


@triton.jit
def clamped_nan(x, lo, hi):
    return tl.clamp(x, lo, hi, propagate_nan=tl.PropagateNan.ALL)


@pytest.mark.covers("tl.clamp", note="propagate_nan honoured")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_clamp(dtype):
    x, lo, hi = (torch.randn(N) * 3).to(dtype), torch.full((N,), -1.0).to(dtype), torch.full((N,), 0.5).to(dtype)
    x[0] = torch.nan
    got = apply(clamped, x, lo, hi)
    assert torch.equal(got[1:], x[1:].clamp(-1.0, 0.5))
    assert got[0] == -1  # what is not NaN wins
    assert apply(clamped_nan, x, lo, hi)[0].isnan()


@triton.jit
def exact(x, y):
    return tl.div_rn(x, y)


@triton.jit
def approximate(x, y):
    return tl.fdiv(x, y)


@triton.jit
def true_division(x, y):
    return x / y


@triton.jit
def modulo(x, y):
    return x % y


@pytest.mark.covers("tl.fdiv, tl.div_rn, /", note="correctly rounded; hardware's / and fdiv err by up to 2 ulp")
def test_division():
    x, y = torch.randn(N), torch.randn(N)
    want = (x.double() / y.double()).float()
    for fn in (exact, approximate, true_division):
        assert torch.equal(apply(fn, x, y), want)


@pytest.mark.covers("% of floats", note="the sign of the dividend, as C's fmod")
def test_float_remainder():
    x, y = torch.randn(N) * 10, torch.randn(N)
    assert torch.equal(apply(modulo, x, y), torch.fmod(x, y))


@triton.jit
def fused(x, y, z):
    return tl.fma(x, y, z)


@pytest.mark.covers("tl.fma", note="one rounding")
def test_fma():
    x = torch.full((N,), 1 + 2.0**-12)
    z = -(x * x)  # what is left is the rounding error of the product
    want = (x.double() * x.double() + z.double()).float()
    assert want[0] != 0
    assert torch.equal(apply(fused, x, x, z), want)


@triton.jit
def square_root(x):
    return tl.sqrt_rn(x)


@triton.jit
def fn_exp(x):
    return tl.exp(x)


@triton.jit
def fn_exp2(x):
    return tl.exp2(x)


@triton.jit
def fn_log(x):
    return tl.log(x)


@triton.jit
def fn_log2(x):
    return tl.log2(x)


@triton.jit
def fn_sqrt(x):
    return tl.sqrt(x)


@triton.jit
def fn_rsqrt(x):
    return tl.rsqrt(x)


@triton.jit
def fn_sin(x):
    return tl.sin(x)


@triton.jit
def fn_cos(x):
    return tl.cos(x)


@triton.jit
def fn_erf(x):
    return tl.erf(x)


@triton.jit
def fn_sigmoid(x):
    return tl.sigmoid(x)


@triton.jit
def fn_floor(x):
    return tl.floor(x)


@triton.jit
def fn_ceil(x):
    return tl.ceil(x)


@triton.jit
def fn_abs(x):
    return tl.abs(x)


MATH = {
    "exp": (fn_exp, math.exp), "exp2": (fn_exp2, math.exp2), "log": (fn_log, math.log), "log2": (fn_log2, math.log2),
    "sqrt": (fn_sqrt, math.sqrt), "rsqrt": (fn_rsqrt, lambda v: 1 / math.sqrt(v)), "sin": (fn_sin, math.sin),
    "cos": (fn_cos, math.cos), "erf": (fn_erf, math.erf), "sigmoid": (fn_sigmoid, lambda v: 1 / (1 + math.exp(-v))),
    "floor": (fn_floor, math.floor), "ceil": (fn_ceil, math.ceil), "abs": (fn_abs, abs),
    "sqrt_rn": (square_root, math.sqrt),
}  # fmt: skip


@pytest.mark.covers(
    "tl.exp exp2 log log2 sqrt sqrt_rn rsqrt sin cos erf sigmoid floor ceil abs",
    note="within one ulp of the format; hardware's approximations err by a few",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MATH)
def test_mathematical_functions(name, dtype):
    if (name, dtype) == ("sqrt_rn", torch.float64):
        pytest.skip("Triton's sqrt_rn takes fp32 alone")
    fn, reference = MATH[name]
    x = torch.rand(N, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 8 + 2.0**-10
    got = apply(fn, x)
    want = torch.tensor([reference(float(v)) for v in x], dtype=torch.float64)
    ulp = torch.finfo(dtype).eps
    # sigmoid is three roundings, of exp, of the sum and of the quotient
    assert ((got.double() - want).abs() <= want.abs() * ulp * (3 if name == "sigmoid" else 1)).all()


@pytest.mark.covers("tl.abs of integers")
def test_integer_absolute():
    x = torch.arange(-128, 128, dtype=torch.int32)
    assert torch.equal(apply(fn_abs, x), x.abs())


@triton.jit
def negative(x):
    return -x


@pytest.mark.covers("unary minus", note="up to Triton 3.7 it is 0 - x, which is +0 for x = 0")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32], ids=str)
def test_negation(dtype):
    x = torch.arange(-128, 128).to(dtype)
    got = apply(negative, x)
    assert torch.equal(got, -x)
    if dtype.is_floating_point:
        assert got[128].signbit() == (triton.__version__ >= "3.8")


@triton.jit
def chosen(x, y, z):
    return tl.where(x > 0, y, z)


@pytest.mark.covers("tl.where")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64], ids=str)
def test_where(dtype):
    x, y, z = (torch.randint(-5, 5, (N,)).to(dtype) for _ in range(3))
    assert torch.equal(apply(chosen, x, y, z), torch.where(x > 0, y, z))


@triton.jit
def scalar_condition(flags, x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    flag = tl.load(flags + tl.program_id(0)) != 0
    tl.store(out + tl.program_id(0) * N + i, tl.where(flag, v, -v))


@pytest.mark.covers("tl.where", note="a scalar condition, different in every program")
def test_where_of_a_scalar():
    x, out = torch.arange(16.0), torch.zeros(3, 16)
    scalar_condition[(3,)](torch.tensor([1, 0, 1], dtype=torch.int32), x, out, N=16)
    assert torch.equal(out, torch.stack([x, -x, x]))


@triton.jit
def doubled_scalar(a):
    if a > 0:
        r = a * 2
    else:
        r = -a
    return r


@triton.jit
def packed_sums(a, b):
    return a + b, a - b, b, a


@triton.jit
def mapped(x):
    return tl.map_elementwise(doubled_scalar, x)


@triton.jit
def mapped_in_pairs(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.map_elementwise(packed_sums, tl.load(x + i), pack=2)
    tl.store(out + i, a)
    tl.store(out + N + i, b)


@triton.jit
def branches(x):
    if x > 2:
        return x * 10
    if x > 0:
        return x
    return -x


@triton.jit
def mapped_with_returns(x):
    return tl.map_elementwise(branches, x)


@pytest.mark.covers("tl.map_elementwise", note="branches and early returns per element, packs")
def test_map_elementwise():
    x = torch.randn(64)
    assert torch.equal(apply(mapped, x), torch.where(x > 0, 2 * x, -x))
    y = torch.arange(-8, 8, dtype=torch.int32)
    want = torch.where(y > 2, y * 10, torch.where(y > 0, y, -y))
    assert torch.equal(apply(mapped_with_returns, y), want)
    out = torch.zeros(2, 64)
    mapped_in_pairs[(1,)](x, out, N=64)
    a, b = x[::2], x[1::2]
    assert torch.equal(out[0].view(-1, 2), torch.stack([a + b, a - b], 1))
    assert torch.equal(out[1].view(-1, 2), torch.stack([b, a], 1))
