"""Reshaping, reductions, scans, sorting, gathering."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

M, N = 8, 32


@triton.jit
def apply_tile(x, out, FN: tl.constexpr, M: tl.constexpr, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    p = tl.program_id(0)
    tile = tl.load(x + p * M * N + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    y = tl.reshape(FN(tile), (R, C))
    tl.store(out + p * R * C + tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :], y)


def tile(fn, x, rows, columns, dtype=None):
    """`fn` of the tiles of `x` (programs, M, N), seen as (programs, rows, columns)."""
    out = torch.zeros(x.shape[0], rows, columns, dtype=dtype or x.dtype)
    apply_tile[(x.shape[0],)](x, out, FN=fn, M=M, N=N, R=rows, C=columns)
    return out


@triton.jit
def transposed(t):
    return tl.trans(t)


@triton.jit
def permuted(t):
    return tl.permute(tl.reshape(t, (2, 4, 32)), (2, 0, 1))


@triton.jit
def viewed(t):
    return tl.view(tl.ravel(t), (16, 16))


@triton.jit
def flipped(t):
    return tl.flip(t, 1)


@triton.jit
def interleaved(t):
    return tl.interleave(t, -t)


@triton.jit
def joined(t):
    a, b = tl.split(tl.join(t, 2 * t))
    return tl.join(b, a)


@triton.jit
def concatenated(t):
    flat = tl.ravel(t)
    return tl.cat(flat, 3 * flat, can_reorder=True)


@triton.jit
def expanded(t):
    return tl.broadcast_to(tl.expand_dims(t, 0), (2, 8, 32)) + tl.zeros((2, 8, 32), t.dtype)


@triton.jit
def squeezed(t):
    return tl.squeeze(tl.unsqueeze(t, 1), 1) + tl.zeros_like(t) + tl.full((8, 32), 0, t.dtype)


SHAPES = {
    "tl.trans": (transposed, lambda x: x.mT, (N, M)),
    "tl.permute, tl.reshape": (permuted, lambda x: x.reshape(-1, 2, 4, 32).permute(0, 3, 1, 2), (32, 8)),
    "tl.view, tl.ravel": (viewed, lambda x: x, (16, 16)),
    "tl.flip": (flipped, lambda x: x.flip(2), (M, N)),
    "tl.interleave": (interleaved, lambda x: torch.stack([x, -x], -1), (M, 2 * N)),
    "tl.join, tl.split": (joined, lambda x: torch.stack([2 * x, x], -1), (M, 2 * N)),
    "tl.cat": (concatenated, lambda x: torch.stack([x.flatten(1), 3 * x.flatten(1)], 1), (2, M * N)),
    "tl.expand_dims, tl.broadcast_to, tl.zeros": (expanded, lambda x: torch.stack([x, x], 1), (16, 32)),
    "tl.squeeze, tl.unsqueeze, tl.full, tl.zeros_like": (squeezed, lambda x: x, (M, N)),
}


@pytest.mark.filterwarnings("ignore:view is deprecated", "ignore:tl.cat")
@pytest.mark.covers("tl.trans permute reshape view ravel flip interleave join split cat expand_dims broadcast_to")
@pytest.mark.covers("tl.zeros full zeros_like squeeze unsqueeze")
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, dtype):
    if "tl.squeeze" in name and not hasattr(tl, "squeeze"):
        pytest.skip("Triton 3.6 has no tl.squeeze")
    fn, reference, (rows, columns) = SHAPES[name]
    x = torch.arange(3 * M * N).view(3, M, N).remainder(100).to(dtype)
    assert torch.equal(tile(fn, x, rows, columns), reference(x).reshape(3, rows, columns))


# -- reductions --------------------------------------------------------------------------------------------------------


@triton.jit
def sums(t):
    return tl.sum(t, 0)


@triton.jit
def kept_sums(t):
    return tl.sum(t, 1, keep_dims=True)


@triton.jit
def maxima(t):
    return tl.max(t, 1)


@triton.jit
def minima(t):
    return tl.min(t, 0)


@triton.jit
def xors(t):
    return tl.xor_sum(t, 1)


@triton.jit
def any_set(t):
    return tl.reduce_or(t, 1)


@pytest.mark.covers("tl.sum max min xor_sum reduce_or", note="sums of small integers and of fp16 widen as Triton says")
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.float16, torch.float32], ids=str)
def test_reductions(dtype):
    x = torch.randint(-9, 9, (3, M, N)).to(dtype)
    wide = torch.int32 if dtype == torch.int8 else dtype
    assert torch.equal(tile(sums, x, 1, N, wide)[:, 0], x.sum(1).to(wide))
    assert torch.equal(tile(kept_sums, x, M, 1, wide)[:, :, 0], x.sum(2).to(wide))
    assert torch.equal(tile(maxima, x, 1, M)[:, 0], x.amax(2))
    assert torch.equal(tile(minima, x, 1, N)[:, 0], x.amin(1))
    if not dtype.is_floating_point:
        raw = x.numpy()
        assert np.array_equal(tile(xors, x, 1, M, wide)[:, 0].numpy(), np.bitwise_xor.reduce(raw, 2))
        assert np.array_equal(tile(any_set, x, 1, M)[:, 0].numpy(), np.bitwise_or.reduce(raw, 2))


@triton.jit
def first_maximum(t):
    return tl.argmax(t, 1)


@triton.jit
def first_minimum(t):
    return tl.argmin(t, 1, tie_break_left=True)


@triton.jit
def maximum_and_index(t):
    value, index = tl.max(t, 1, return_indices=True)
    return tl.join(value, index.to(t.dtype))


@pytest.mark.covers("tl.argmax, tl.argmin, return_indices", note="of equal ones the leftmost")
def test_arg_reductions():
    x = torch.randint(-3, 3, (3, M, N)).float()
    assert np.array_equal(tile(first_maximum, x, 1, M, torch.int32)[:, 0].numpy(), x.numpy().argmax(2))
    assert np.array_equal(tile(first_minimum, x, 1, M, torch.int32)[:, 0].numpy(), x.numpy().argmin(2))
    both = tile(maximum_and_index, x, M, 2)
    assert torch.equal(both[..., 0], x.amax(2))
    assert np.array_equal(both[..., 1].numpy(), x.numpy().argmax(2))


@triton.jit
def compose(a, b, c, d):
    """X -> a x + b first, x -> c x + d then: neither commutative nor a single operation."""
    return a * c, b * c + d


@triton.jit
def affine(t):
    a, b = tl.reduce((t, t + 1), 1, compose)
    return tl.join(a, b)


@triton.jit
def affine_scan(t):
    a, b = tl.associative_scan((t, t + 1), 1, compose)
    return tl.join(a, b)


@triton.jit
def affine_scan_backwards(t):
    a, b = tl.associative_scan((t, t + 1), 1, compose, reverse=True)
    return tl.join(a, b)


def affine_prefixes(rows):
    """All prefixes of the composition along the last axis, wrapped to int32."""
    outs = []
    for row in rows.reshape(-1, N).tolist():
        a, b = row[0], row[0] + 1
        pairs = [(a, b)]
        for v in row[1:]:
            a, b = a * v, b * v + v + 1
            pairs.append((a, b))
        outs.append(pairs)
    wrapped = (np.array(outs, object) + 2**31) % 2**32 - 2**31
    return torch.from_numpy(wrapped.astype(np.int32)).view(*rows.shape, 2)


@pytest.mark.covers("tl.reduce, tl.associative_scan", note="any combine function: several values, not commutative")
def test_any_combine_function():
    x = torch.randint(-3, 4, (3, M, N), dtype=torch.int32)
    want = affine_prefixes(x)
    assert torch.equal(tile(affine, x, M, 2), want[:, :, -1])
    assert torch.equal(tile(affine_scan, x, M, 2 * N), want.reshape(3, M, 2 * N))
    backwards = affine_prefixes(x.flip(2)).flip(2).reshape(3, M, 2 * N)
    assert torch.equal(tile(affine_scan_backwards, x, M, 2 * N), backwards)


@triton.jit
def average(a, b):
    return (a + b) * 0.5


@triton.jit
def averages(t):
    return tl.reduce(t, 1, average)


@pytest.mark.covers("tl.reduce, tl.associative_scan", note="constants inside the combine function")
def test_combine_function_with_constants():
    x = torch.randint(-8, 8, (3, M, N)).float()
    # a tree of averages is the mean, exact for these integers
    assert torch.equal(tile(averages, x, 1, M)[:, 0], x.mean(2))


@triton.jit
def running_sum(t):
    return tl.cumsum(t, 1)


@triton.jit
def running_sum_backwards(t):
    return tl.cumsum(t, 0, reverse=True)


@triton.jit
def running_product(t):
    return tl.cumprod(t, 1)


@pytest.mark.covers("tl.cumsum, tl.cumprod", note="reverse too")
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32], ids=str)
def test_scans(dtype):
    x = torch.randint(-2, 3, (3, M, N)).to(dtype)
    assert torch.equal(tile(running_sum, x, M, N), x.cumsum(2).to(dtype))
    assert torch.equal(tile(running_sum_backwards, x, M, N), x.flip(1).cumsum(1).flip(1).to(dtype))
    assert torch.equal(tile(running_product, x, M, N), x.cumprod(2).to(dtype))


@triton.jit
def ascending(t):
    return tl.sort(t)


@triton.jit
def descending(t):
    return tl.sort(t, descending=True)


@triton.jit
def largest(t):
    return tl.topk(t, 4)


@pytest.mark.covers("tl.sort, tl.topk")
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float16], ids=str)
def test_sorting(dtype):
    x = torch.randint(-99, 99, (3, M, N)).to(dtype)
    assert torch.equal(tile(ascending, x, M, N), x.sort(2).values)
    assert torch.equal(tile(descending, x, M, N), x.sort(2, descending=True).values)
    assert torch.equal(tile(largest, x, M, 4), x.sort(2, descending=True).values[..., :4])


@triton.jit
def softmaxed(t):
    return tl.softmax(t, 1, keep_dims=True)


@pytest.mark.filterwarnings("ignore:The keep_dims argument")
@pytest.mark.covers("tl.softmax")
def test_softmax():
    x = torch.randn(3, M, N)
    torch.testing.assert_close(tile(softmaxed, x, M, N), x.softmax(2), rtol=1e-5, atol=1e-7)


@triton.jit
def gathered(x, index, out, AXIS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    where = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + where, tl.gather(tl.load(x + where), tl.load(index + where), AXIS))


@pytest.mark.covers("tl.gather")
@pytest.mark.parametrize("axis", [0, 1])
def test_gather(axis):
    x, out = torch.randn(M, N), torch.zeros(M, N)
    index = torch.randint(0, (M, N)[axis], (M, N), dtype=torch.int32)
    gathered[(1,)](x, index, out, AXIS=axis, M=M, N=N)
    assert torch.equal(out, x.gather(axis, index.long()))


@triton.jit
def counts(x, out, BINS: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr):
    i = tl.arange(0, N)
    if MASKED:
        h = tl.histogram(tl.load(x + i), BINS, mask=i % 2 == 0)
    else:
        h = tl.histogram(tl.load(x + i), BINS)
    tl.store(out + tl.arange(0, BINS), h)


@pytest.mark.covers("tl.histogram", note="with and without mask")
@pytest.mark.parametrize("masked", [False, True])
def test_histogram(masked):
    x, out = torch.randint(0, 16, (256,), dtype=torch.int32), torch.zeros(16, dtype=torch.int32)
    counts[(1,)](x, out, BINS=16, N=256, MASKED=masked)
    assert torch.equal(out.long(), torch.bincount(x[::2] if masked else x, minlength=16))


@triton.jit
def swizzled(out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    i, j = tl.program_id(0), tl.program_id(1)
    a, b = tl.swizzle2d(i, j, ROWS, COLUMNS, GROUP)
    tl.store(out + i * COLUMNS + j, a * COLUMNS + b)


@pytest.mark.covers("tl.swizzle2d")
def test_swizzle():
    out = torch.zeros(4, 4, dtype=torch.int32)
    swizzled[(4, 4)](out, 4, 4, 2)
    assert out.tolist() == [[0, 4, 1, 5], [2, 6, 3, 7], [8, 12, 9, 13], [10, 14, 11, 15]]  # Triton's documentation
