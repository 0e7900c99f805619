"""Small kernels that use several things at once."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def axpy(x, y, out, n, a, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    tl.store(out + i, a * tl.load(x + i, mask=inside) + tl.load(y + i, mask=inside), mask=inside)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n", [1, 63, 64, 1000])
def test_loads_stores_and_masks(dtype, n):
    x, y = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    out = torch.full((n + 3,), torch.nan).to(dtype)
    axpy[(triton.cdiv(n, 64),)](x, y, out, n, 0.5, BLOCK=64)
    assert torch.equal(out[:n], (0.5 * x.float() + y.float()).to(dtype))
    assert torch.isnan(out[n:]).all(), "a masked store wrote outside its mask"


@triton.jit
def collatz(start, steps):
    """A loop whose length is known only while it runs, different in every program."""
    n = tl.load(start + tl.program_id(0))
    count = 0
    while n > 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        count += 1
    tl.store(steps + tl.program_id(0), count)


def test_divergent_while_and_if():
    def steps(n):
        count = 0
        while n > 1:
            n, count = (n // 2 if n % 2 == 0 else 3 * n + 1), count + 1
        return count

    start = torch.arange(1, 60, dtype=torch.int32)
    out = torch.zeros_like(start)
    collatz[(59,)](start, out)
    assert out.tolist() == [steps(n) for n in range(1, 60)]


@triton.jit
def triangle(out, stop_at, width: tl.constexpr):
    """A loop bound that differs between programs, vectors carried through it, and an early return."""
    row = tl.program_id(0)
    if row == stop_at:
        return
    total = tl.zeros([width], tl.int32)
    for i in range(row, 2 * row + tl.program_id(1), 2):
        total += i + tl.arange(0, width)
    tl.store(out + (row * tl.num_programs(1) + tl.program_id(1)) * width + tl.arange(0, width), total)


def test_divergent_for_and_early_return():
    out = torch.full((7, 3, 4), -1, dtype=torch.int32)
    triangle[(7, 3)](out, 4, width=4)
    for row in range(7):
        for column in range(3):
            want = [sum(i + j for i in range(row, 2 * row + column, 2)) for j in range(4)]
            assert out[row, column].tolist() == ([-1] * 4 if row == 4 else want)


@triton.jit
def _keep_larger(a, i, b, j):
    take = a > b
    return tl.where(take, a, b), tl.where(take, i, j)


@triton.jit
def reductions(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.program_id(0)
    v = tl.load(x + row * BLOCK + i)
    tl.store(out + row * 6 + 0, tl.sum(v))
    tl.store(out + row * 6 + 1, tl.max(v))
    tl.store(out + row * 6 + 2, tl.argmax(v, 0).to(tl.float32))
    best, _ = tl.reduce((v, i), 0, _keep_larger)
    tl.store(out + row * 6 + 3, best)
    tl.store(out + row * 6 + 4, tl.sum(tl.where(i == BLOCK - 1, tl.cumsum(v, 0), 0.0)))
    tl.store(out + row * 6 + 5, tl.sum(tl.where(i == 0, tl.sort(v), 0.0)))


def test_reductions_scans_and_sort():
    x = torch.randn(5, 64)
    out = torch.zeros(5, 6)
    reductions[(5,)](x, out, BLOCK=64)
    want = torch.stack([x.sum(1), x.amax(1), x.argmax(1).float(), x.amax(1), x.sum(1), x.amin(1)], 1)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=0)


@triton.jit
def tally(bins, where, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(bins + tl.load(where + i), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_atomics_count_every_lane(dtype):
    where = torch.randint(0, 7, (128,), dtype=torch.int32)
    bins = torch.zeros(7, dtype=dtype)
    tally[(4,)](bins, where, BLOCK=32)
    assert bins.tolist() == torch.bincount(where, minlength=7).tolist()


@triton.jit
def product(a, b, c, M: tl.constexpr, K: tl.constexpr):
    m, k = tl.arange(0, M), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + m[:, None] * K + k[None, :])
    tl.store(c + m[:, None] * M + m[None, :], tl.dot(x, tl.trans(y), input_precision="ieee"))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_dot(dtype):
    a, b = torch.randn(16, 32).to(dtype), torch.randn(16, 32).to(dtype)
    c = torch.zeros(16, 16)
    product[(1,)](a, b, c, M=16, K=32)
    torch.testing.assert_close(c.double(), a.double() @ b.double().T, atol=1e-5, rtol=1e-6)


@triton.autotune([triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 32})], key=["n"])
@triton.jit
def tuned(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.sigmoid(tl.load(x + i, mask=i < n, other=0.0)), mask=i < n)


def test_autotune_takes_its_first_configuration():
    x, out = torch.randn(50), torch.zeros(50)
    tuned[lambda meta: (triton.cdiv(50, meta["BLOCK"]),)](x, out, 50)
    torch.testing.assert_close(out, x.sigmoid())
    assert tuned.best_config.kwargs == {"BLOCK": 16}


@triton.jit
def dice(out, seed, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.randint(seed, i))


def test_philox_against_its_published_vector():
    """Salmon et al. 2011, Random123 known answers: Philox4x32-10 of counter 0, key 0 starts with 6627e8d5."""
    out = torch.zeros(4, dtype=torch.int32)
    dice[(1,)](out, 0, BLOCK=4)
    assert out[0].item() & 0xFFFFFFFF == 0x6627E8D5


@triton.jit
def strided(x, out, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i * stride))


@triton.jit
def as_many(out, n):
    """Compiles only where n is 1: Triton makes such arguments constants, and an extent must be one."""
    tl.store(out + tl.arange(0, n), 7)


def test_a_stride_of_one_needs_no_translation_of_its_own():
    x, out = torch.arange(64.0), torch.zeros(16)
    kernels = {strided[(1,)](x, out, stride, BLOCK=16) for stride in (1, 3, 2)}
    assert torch.equal(out, x[:32:2])
    strided[(1,)](x, out, 1, BLOCK=16)
    assert torch.equal(out, x[:16])
    assert len(kernels) == 1


def test_a_one_that_must_be_a_constant_is_one():
    out = torch.zeros(2, dtype=torch.int32)
    as_many[(1,)](out, 1)
    assert out.tolist() == [7, 0]


@triton.jit
def next_byte(x, out, step, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, (tl.load(x + i) + step).to(tl.int32))


def test_a_byte_and_an_argument_of_one_stay_a_byte():
    """As on a GPU: an argument that is 1 is a constant there, and int8 + 1 wraps round."""
    x, out = torch.full((4,), 127, dtype=torch.int8), torch.zeros(4, dtype=torch.int32)
    next_byte[(1,)](x, out, 1, BLOCK=4)
    assert out.tolist() == [-128] * 4
    next_byte[(1,)](x, out, 2, BLOCK=4)
    assert out.tolist() == [129] * 4


def test_what_a_gpu_compiled_is_never_launched_on_tensors_of_ours():
    """Triton keeps kernels by device: those that are interpreted are under a number that no GPU has."""
    x = torch.zeros(4)
    axpy[(1,)](x, x, torch.empty(4), 4, 1.0, BLOCK=16)
    assert axpy.device_caches
    assert all(device < 0 for device in axpy.device_caches)
