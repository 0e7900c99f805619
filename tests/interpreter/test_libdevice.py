"""NVIDIA's libdevice, and inline assembly."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from flashproof.kernels.interpreter import UnsupportedOperationError
from triton.language.extra.cuda import libdevice

N = 64


@triton.jit
def unary(x, out, FN: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, FN(tl.load(x + i)))


@triton.jit
def binary(x, y, out, FN: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, FN(tl.load(x + i), tl.load(y + i)))


@triton.jit
def ternary(x, y, z, out, FN: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, FN(tl.load(x + i), tl.load(y + i), tl.load(z + i)))


def call(name, *arguments, dtype=None):
    out = torch.zeros(N, dtype=dtype or arguments[0].dtype)
    kernel = {1: unary, 2: binary, 3: ternary}[len(arguments)]
    kernel[(1,)](*arguments, out, FN=getattr(libdevice, name), N=N)
    return out


#: name -> (the function in mpmath, lowest and highest argument)
REAL = {
    "acos": (mpmath.acos, -1, 1), "acosh": (mpmath.acosh, 1.01, 9), "asin": (mpmath.asin, -1, 1),
    "asinh": (mpmath.asinh, -9, 9), "atan": (mpmath.atan, -9, 9), "atanh": (mpmath.atanh, -0.99, 0.99),
    "cbrt": (lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)), -9, 9), "cos": (mpmath.cos, -9, 9),
    "cosh": (mpmath.cosh, -9, 9), "cospi": (mpmath.cospi, -9, 9),
    "cyl_bessel_i0": (lambda x: mpmath.besseli(0, x), -5, 5),
    "cyl_bessel_i1": (lambda x: mpmath.besseli(1, x), -5, 5), "erf": (mpmath.erf, -3, 3),
    "erfc": (mpmath.erfc, -3, 3), "erfcinv": (lambda x: mpmath.erfinv(1 - x), 0.1, 1.9),
    "erfcx": (lambda x: mpmath.exp(x * x) * mpmath.erfc(x), -2, 4), "erfinv": (mpmath.erfinv, -0.95, 0.95),
    "exp": (mpmath.exp, -9, 9), "exp10": (lambda x: mpmath.power(10, x), -9, 9),
    "exp2": (lambda x: mpmath.power(2, x), -9, 9), "expm1": (mpmath.expm1, -2, 2), "fast_cosf": (mpmath.cos, -3, 3),
    "fast_exp10f": (lambda x: mpmath.power(10, x), -3, 3), "fast_expf": (mpmath.exp, -3, 3),
    "fast_log10f": (mpmath.log10, 0.01, 9), "fast_log2f": (lambda x: mpmath.log(x, 2), 0.01, 9),
    "fast_logf": (mpmath.log, 0.01, 9), "fast_sinf": (mpmath.sin, -3, 3), "fast_tanf": (mpmath.tan, -1, 1),
    "j0": (mpmath.j0, -6, 6), "j1": (mpmath.j1, -6, 6), "lgamma": (lambda x: mpmath.re(mpmath.loggamma(x)), 0.1, 9),
    "log": (mpmath.log, 0.01, 9), "log10": (mpmath.log10, 0.01, 9), "log1p": (mpmath.log1p, -0.5, 9),
    "log2": (lambda x: mpmath.log(x, 2), 0.01, 9), "normcdf": (mpmath.ncdf, -3, 3),
    "rcbrt": (lambda x: 1 / mpmath.cbrt(x), 0.1, 9),
    "normcdfinv": (lambda x: mpmath.sqrt(2) * mpmath.erfinv(2 * x - 1), 0.05, 0.95),
    "rsqrt": (lambda x: 1 / mpmath.sqrt(x), 0.01, 9), "sin": (mpmath.sin, -9, 9), "sinh": (mpmath.sinh, -9, 9),
    "sinpi": (mpmath.sinpi, -9, 9), "sqrt": (mpmath.sqrt, 0, 9), "tan": (mpmath.tan, -1.5, 1.5),
    "tanh": (mpmath.tanh, -3, 3), "tgamma": (mpmath.gamma, 0.1, 9), "y0": (lambda x: mpmath.bessely(0, x), 0.1, 6),
    "y1": (lambda x: mpmath.bessely(1, x), 0.1, 6),
}  # fmt: skip


@pytest.mark.covers("libdevice: real functions", note="in fp32 within one ulp of the true value")
@pytest.mark.parametrize("name", REAL)
def test_real_functions(name):
    reference, low, high = REAL[name]
    x = torch.rand(N, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    got = call(name, x).double()
    with mpmath.workdps(40):
        want = torch.tensor([float(reference(mpmath.mpf(float(v)))) for v in x], dtype=torch.float64)
    ulp = torch.from_numpy(np.spacing(want.abs().float().numpy())).double()
    # a zero of the function may be as far away as float64's own argument reduction errs
    assert ((got - want).abs() <= ulp.clamp(min=1e-15)).all()


@pytest.mark.covers("libdevice: rounding, classification, neighbours")
def test_exact_functions():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.3, 1e10] * 8)
    assert torch.equal(call("rint", x), x.round())
    assert torch.equal(call("nearbyint", x), x.round())
    assert torch.equal(call("round", x), torch.where(x.abs() < 1e9, (x.abs() + 0.5).floor().copysign(x), x))
    assert torch.equal(call("llrint", x, dtype=torch.int64), x.round().long())
    for name in ("floor", "ceil", "trunc", "abs"):
        assert torch.equal(call(name, x), getattr(torch, name)(x))
    y = x.clone()
    y[::8], y[1::8] = torch.nan, torch.inf
    assert torch.equal(call("isnan", y, dtype=torch.int32) != 0, y.isnan())
    assert torch.equal(call("isinf", y, dtype=torch.int32) != 0, y.isinf())
    assert torch.equal(call("finitef", y, dtype=torch.int32) != 0, y.isfinite())
    assert torch.equal(call("signbit", x, dtype=torch.int32) != 0, x.signbit())
    assert torch.equal(call("nextafter", x, -x), torch.nextafter(x, -x))
    assert torch.equal(call("copysign", x, -x), x.copysign(-x))
    assert torch.equal(call("fdim", x, x.flip(0)), (x - x.flip(0)).clamp(min=0))
    assert torch.equal(call("fmod", x, x.flip(0)), torch.fmod(x, x.flip(0)))
    assert torch.equal(call("saturatef", x), x.clamp(0, 1))
    assert torch.equal(call("ilogb", x, dtype=torch.int32), x.abs().log2().floor().int())
    assert torch.equal(call("ldexp", x, torch.full((N,), 3, dtype=torch.int32)), x * 8)


@pytest.mark.covers("libdevice: of several arguments", note="pow, hypot, atan2, norms, remainder")
def test_several_arguments():
    generator = torch.Generator().manual_seed(0)
    x, y, z = (torch.rand(N, generator=generator) * 3 + 0.1 for _ in range(3))
    for name, want in (
        ("pow", x.double() ** y.double()), ("hypot", torch.hypot(x.double(), y.double())),
        ("atan2", torch.atan2(x.double(), y.double())), ("rhypot", 1 / torch.hypot(x.double(), y.double())),
    ):  # fmt: skip
        assert torch.equal(call(name, x, y), want.float())
    assert torch.equal(call("norm3d", x, y, z), (x.double() ** 2 + y.double() ** 2 + z.double() ** 2).sqrt().float())
    rest = call("remainder", x, y).double()
    quotient = ((x.double() - rest) / y.double()).round()
    assert torch.equal((x.double() - quotient * y.double()).float(), rest.float())
    assert (rest.abs() <= y.double() / 2).all()


@pytest.mark.covers("libdevice: directed rounding", note="add, sub, mul, div, rcp, sqrt, fma; rn, rz, rd, ru")
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "sqrt", "rcp", "fma"])
def test_directed_rounding(name):
    generator = torch.Generator().manual_seed(0)
    arguments = [torch.rand(N, generator=generator) + 0.1 for _ in range({"sqrt": 1, "rcp": 1, "fma": 3}.get(name, 2))]
    with mpmath.workdps(60):
        exact = {
            "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
            "sqrt": mpmath.sqrt, "rcp": lambda a: 1 / a, "fma": lambda a, b, c: a * b + c,
        }[name]  # fmt: skip
        true = [exact(*(mpmath.mpf(float(v)) for v in row)) for row in zip(*arguments, strict=True)]
        down, up, cut, near = (
            [mpmath.mpf(float(v)) for v in call(f"{name}_{mode}", *arguments)] for mode in ("rd", "ru", "rz", "rn")
        )
        for t, d, u, c, n in zip(true, down, up, cut, near, strict=True):
            assert d <= t <= u
            assert u - d <= mpmath.mpf(float(np.spacing(np.float32(float(max(abs(d), abs(u)))))))
            assert c == (d if t > 0 else u)
            assert n in (d, u)
            assert abs(n - t) <= min(t - d, u - t)


@pytest.mark.covers("libdevice: integers", note="clz, popc, ffs, brev, byte_perm, mulhi, mul24, hadd, rhadd, sad")
def test_integers():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(-(2**31), 2**31, N, dtype=np.int32)) for _ in range(2))
    a[0], a[1] = 0, -1
    words = [v & 0xFFFFFFFF for v in a.tolist()]
    assert call("clz", a).tolist() == [32 - w.bit_length() for w in words]
    assert call("popc", a).tolist() == [w.bit_count() for w in words]
    assert call("ffs", a).tolist() == [(w & -w).bit_length() for w in words]
    assert [v & 0xFFFFFFFF for v in call("brev", a).tolist()] == [int(f"{w:032b}"[::-1], 2) for w in words]
    assert call("mulhi", a, b).tolist() == [x * y >> 32 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert call("hadd", a, b).tolist() == [(x + y) >> 1 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert call("rhadd", a, b).tolist() == [(x + y + 1) >> 1 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    selector = torch.full((N,), 0x7061, dtype=torch.int32)
    pools = [(x & 0xFFFFFFFF) | (y & 0xFFFFFFFF) << 32 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    want = [sum((p >> 8 * k & 255) << 8 * i for i, k in enumerate((1, 6, 0, 7))) for p in pools]
    assert [v & 0xFFFFFFFF for v in call("byte_perm", a, b, selector).tolist()] == want


@pytest.mark.covers("libdevice: conversions", note="in all directions of rounding; bits of floats")
def test_conversions():
    x = torch.tensor([2.5, -2.5, 3.7, -3.7, 1e20, -1e20, torch.nan, 0.4] * 8)
    whole = {"rn": [2, -2, 4, -4], "rz": [2, -2, 3, -3], "rd": [2, -3, 3, -4], "ru": [3, -2, 4, -3]}
    for mode, first in whole.items():
        ends = [2**31 - 1, -(2**31), 0, 1 if mode == "ru" else 0]
        assert call(f"float2int_{mode}", x, dtype=torch.int32).tolist() == [*first, *ends] * 8
    assert torch.equal(call("float_as_int", x, dtype=torch.int32), x.view(torch.int32))
    assert torch.equal(call("int_as_float", x.view(torch.int32), dtype=torch.float32)[:6], x[:6])
    i = torch.tensor([2**24 + 1, -(2**24) - 1] * 32, dtype=torch.int32)
    assert call("int2float_rd", i, dtype=torch.float32).tolist() == [2.0**24, -(2.0**24) - 2] * 32
    assert call("int2float_ru", i, dtype=torch.float32).tolist() == [2.0**24 + 2, -(2.0**24)] * 32


# -- inline assembly ---------------------------------------------------------------------------------------------------


@triton.jit
def assemble(x, y, out, ASM: tl.constexpr, CONSTRAINTS: tl.constexpr, PACK: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    args = [tl.load(x + i), tl.load(y + i)]
    tl.store(out + i, tl.inline_asm_elementwise(ASM, CONSTRAINTS, args, out.dtype.element_ty, True, PACK))


def assembled(asm, constraints, x, y, dtype, pack=1):
    out = torch.zeros(N, dtype=dtype)
    assemble[(1,)](x, y, out, asm, constraints, pack, N=N)
    return out


@pytest.mark.covers(
    "tl.inline_asm_elementwise",
    note="straight-line PTX: arithmetic, logic, shifts, predicates, selp, cvt, ex2, lg2, rcp, tanh, lop3, prmt",
)
def test_inline_assembly():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(-(2**31), 2**31, N, dtype=np.int32)) for _ in range(2))
    mixed = "{ .reg .b32 t; xor.b32 t, $1, $2; /* a */ shl.b32 t, t, 3; add.s32 $0, t, 0x11; } // b"
    assert torch.equal(assembled(mixed, "=r,r,r", a, b, torch.int32), ((a ^ b) << 3) + 0x11)
    larger = "{ .reg .pred p; setp.gt.s32 p, $1, $2; mov.b32 $0, $2; @p mov.b32 $0, $1; }"
    assert torch.equal(assembled(larger, "=r,r,r", a, b, torch.int32), torch.maximum(a, b))
    chosen = "{ .reg .pred p; setp.lt.u32 p, $1, $2; selp.b32 $0, $1, $2, p; }"
    unsigned = np.minimum(a.numpy().view(np.uint32), b.numpy().view(np.uint32)).view(np.int32)
    assert np.array_equal(assembled(chosen, "=r,r,r", a, b, torch.int32).numpy(), unsigned)
    majority = "lop3.b32 $0, $1, $2, 0, 0xE8;"
    assert torch.equal(assembled(majority, "=r,r,r", a, b, torch.int32), a & b)
    x, y = torch.rand(N) + 0.5, torch.rand(N) - 0.5
    assert torch.equal(assembled("fma.rn.f32 $0, $1, $2, 0f3F800000;", "=f,f,f", x, y, torch.float32),
                       (x.double() * y.double() + 1).float())  # fmt: skip
    assert torch.equal(assembled("tanh.approx.f32 $0, $1;", "=f,f,f", x, y, torch.float32), x.double().tanh().float())
    assert torch.equal(assembled("rcp.approx.ftz.f32 $0, $1;", "=f,f,f", x, y, torch.float32), 1 / x)
    assert torch.equal(assembled("cvt.rzi.s32.f32 $0, $1;", "=r,f,f", 9 * y, y, torch.int32), (9 * y).int())


@pytest.mark.covers("tl.inline_asm_elementwise", note="several small elements in a register")
def test_packed_inline_assembly():
    """The example of Triton's documentation: bytes, four to a register."""
    x = torch.arange(N, dtype=torch.int8)
    swap = "prmt.b32 $0, $1, $2, 0x0123;"
    got = assembled(swap, "=r,r,r", x, x, torch.int8, pack=4)
    assert torch.equal(got.view(-1, 4), x.view(-1, 4).flip(1))
    pairs = torch.randn(N).to(torch.bfloat16)
    doubled = assembled("add.rn.bf16x2 $0, $1, $2;", "=r,r,r", pairs, pairs, torch.bfloat16, pack=2)
    assert torch.equal(doubled, pairs * 2)


@pytest.mark.covers(
    "tl.inline_asm_elementwise: other instructions", supported=False, note="memory, branches, votes, ..."
)
@pytest.mark.parametrize("asm", ["ld.global.b32 $0, [$1];", "bra done;", "shfl.sync.bfly.b32 $0, $1, 1, 31, -1;"])
def test_other_instructions_are_refused(asm):
    x = torch.ones(N, dtype=torch.int32)
    with pytest.raises(UnsupportedOperationError, match=r"inline_asm.*test_libdevice\.py:\d+"):
        assembled(asm, "=r,r,r", x, x, torch.int32)
