"""Matrix products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, OUT: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot(x, y, input_precision=PRECISION, out_dtype=OUT))


def multiply(a, b, precision=None, out=torch.float32):
    c = torch.zeros(a.shape[0], b.shape[1], dtype=out)
    kind = {torch.float32: tl.float32, torch.float16: tl.float16, torch.int32: tl.int32, torch.float64: tl.float64}[out]
    product[(1,)](a, b, c, a.shape[0], b.shape[1], a.shape[1], precision, kind)
    return c


def operands(dtype, K=64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator).to(dtype) for s in ((16, K), (K, 32))]


@pytest.mark.covers("tl.dot", note="fp16, bf16, fp8 e4m3 and e5m2: exact products, fp32 accumulation")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_low_precision(dtype):
    a, b = operands(dtype)
    a, b = (x if x.itemsize == 2 else x.float().to(dtype) for x in (a, b))
    # Higham 2002, 3.5: K fp32 additions err by at most K u sum |a b|
    bound = a.double().abs() @ b.double().abs() * 64 * 2.0**-24
    assert ((multiply(a, b).double() - a.double() @ b.double()).abs() <= bound).all()


@pytest.mark.covers("tl.dot of fp64")
def test_double():
    a, b = operands(torch.float64)
    torch.testing.assert_close(multiply(a, b, "ieee", torch.float64), a @ b, rtol=1e-14, atol=1e-14)


@pytest.mark.covers("tl.dot of int8", note="exact, wraps round in int32")
def test_int8():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(-128, 128, s, dtype=np.int8)) for s in ((16, 64), (64, 32)))
    assert torch.equal(multiply(a, b, out=torch.int32), a.int() @ b.int())


@pytest.mark.covers("tl.dot out_dtype=tl.float16", note="accumulated in fp32, rounded once at the end of each dot")
def test_half_result():
    a, b = operands(torch.float16)
    got, want = multiply(a, b, out=torch.float16), multiply(a, b).to(torch.float16)
    assert torch.equal(got, want)


@pytest.mark.covers("tl.dot input_precision", note="ieee, tf32, tf32x3 honoured; tf32 is the default")
def test_input_precision():
    a, b = operands(torch.float32)
    truth = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()
    error = {p: ((multiply(a, b, p).double() - truth).abs() / scale).max() for p in ("ieee", "tf32", "tf32x3", None)}
    assert error["ieee"] < 64 * 2.0**-24
    assert error["tf32x3"] < 64 * 2.0**-22  # what is left out is the product of two remainders of 2^-11 each
    assert 2.0**-16 < error["tf32"] < 2 * 2.0**-10
    assert error[None] == error["tf32"]


@pytest.mark.covers("tl.dot input_precision=bf16x3, bf16x6", supported=False)
@pytest.mark.parametrize("precision", ["bf16x3", "bf16x6"])
def test_other_precisions_are_refused(precision):
    with pytest.raises(Exception, match=r"precision|input_precision|bf16x"):
        multiply(*operands(torch.float32), precision)


@triton.jit
def batched(a, b, c, B: tl.constexpr, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    i, m, k, n = tl.arange(0, B), tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    x = tl.load(a + i[:, None, None] * M * K + m[None, :, None] * K + k[None, None, :])
    y = tl.load(b + i[:, None, None] * K * N + k[None, :, None] * N + n[None, None, :])
    z = tl.dot(x, y, input_precision="ieee")
    tl.store(c + i[:, None, None] * M * N + m[None, :, None] * N + n[None, None, :], z)


@pytest.mark.covers("tl.dot of 3-D tiles")
def test_batched():
    a, b, c = torch.randn(4, 16, 32), torch.randn(4, 32, 16), torch.zeros(4, 16, 16)
    batched[(1,)](a, b, c, 4, 16, 32, 16)
    torch.testing.assert_close(c, a @ b, rtol=1e-5, atol=1e-5)


@triton.jit
def accumulate(a, b, c, N: tl.constexpr, STEPS: tl.constexpr):
    m = tl.arange(0, N)
    acc = tl.zeros([N, N], tl.float32)
    for step in range(STEPS):
        x = tl.load(a + step * N * N + m[:, None] * N + m[None, :])
        y = tl.load(b + step * N * N + m[:, None] * N + m[None, :])
        acc = tl.dot(x, y, acc, max_num_imprecise_acc=0)
    tl.store(c + m[:, None] * N + m[None, :], acc)


@pytest.mark.covers("tl.dot acc=, max_num_imprecise_acc", note="the accumulator is never less precise than fp32")
def test_accumulator():
    a, b, c = (torch.randn(3, 32, 32).to(torch.float16) for _ in range(3))
    c = torch.zeros(32, 32)
    accumulate[(1,)](a, b, c, 32, 3)
    torch.testing.assert_close(c, (a.float() @ b.float()).sum(0), rtol=1e-5, atol=1e-4)


@triton.jit
def scaled(
    a, b, sa, sb, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, AF: tl.constexpr, BF: tl.constexpr,
    AP: tl.constexpr, BP: tl.constexpr, K_PACK: tl.constexpr,
):  # fmt: skip
    m, n, s = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K // 32)
    ka, kb = tl.arange(0, K // AP), tl.arange(0, K // BP)
    x = tl.load(a + m[:, None] * (K // AP) + ka[None, :])
    if K_PACK:
        y = tl.load(b + kb[:, None] * N + n[None, :])
    else:
        y = tl.load(b + tl.arange(0, K)[:, None] * (N // BP) + tl.arange(0, N // BP)[None, :])
    x_scale = tl.load(sa + m[:, None] * (K // 32) + s[None, :])
    y_scale = tl.load(sb + n[:, None] * (K // 32) + s[None, :])
    z = tl.dot_scaled(x, x_scale, AF, y, y_scale, BF, rhs_k_pack=K_PACK)
    tl.store(c + m[:, None] * N + n[None, :], z)


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "bf16": torch.bfloat16}


def block_operand(name, shape, pack_axis, seed):
    """Random numbers of a format, as stored and as float64; of two e2m1 numbers in a byte the first is the low half."""
    generator = torch.Generator().manual_seed(seed)
    if name != "e2m1":
        x = torch.randn(shape, generator=generator).to(FORMATS[name])
        return x, x.double(), 1
    codes = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
    low, high = (codes.movedim(pack_axis, -1)[..., i::2].movedim(-1, pack_axis) for i in (0, 1))
    return low | (high << 4), E2M1[codes.long()], 2


@pytest.mark.covers("tl.dot_scaled", note="e2m1, e4m3, e5m2, bf16, with e8m0 scales; packed along either axis")
@pytest.mark.parametrize(
    ("left", "right", "k_pack"),
    [("e4m3", "e5m2", True), ("e2m1", "e4m3", True), ("e2m1", "e2m1", True), ("bf16", "e2m1", False)],
)
def test_dot_scaled(left, right, k_pack):
    M, N, K = 32, 64, 128
    a, x, a_pack = block_operand(left, (M, K), 1, 0)
    b, y, b_pack = block_operand(right, (K, N), 0 if k_pack else 1, 1)
    sa, sb = (torch.randint(120, 134, (n, K // 32), dtype=torch.uint8) for n in (M, N))
    c = torch.zeros(M, N)
    scaled[(1,)](a, b, sa, sb, c, M, N, K, left, right, a_pack, b_pack, k_pack)
    wide = [torch.exp2(s.double() - 127).repeat_interleave(32, 1) for s in (sa, sb)]
    x, y = x * wide[0], y * wide[1].T
    bound = x.abs() @ y.abs() * K * 2.0**-24
    assert ((c.double() - x @ y).abs() <= bound).all()


@pytest.mark.covers("tl.dot_scaled", note="a scale of 255 is NaN")
def test_dot_scaled_nan():
    a, _, pa = block_operand("e4m3", (32, 64), 1, 0)
    b, _, pb = block_operand("e4m3", (64, 32), 0, 1)
    sa, sb = (torch.full((32, 2), 127, dtype=torch.uint8) for _ in range(2))
    sa[3, 1] = 255
    c = torch.zeros(32, 32)
    scaled[(1,)](a, b, sa, sb, c, 32, 32, 64, "e4m3", "e4m3", pa, pb, True)
    assert c[3].isnan().all()
    assert c[[i for i in range(32) if i != 3]].isfinite().all()
