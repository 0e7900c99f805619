"""What is timed: small kernels of every kind, and the bundled flash attention, each with inputs of fixed bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from flashproof.kernels.attention import attention
from torch import Tensor

Call = Callable[[], list[Tensor]]


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def one(x):
    tl.store(x, tl.load(x) + 1.0)


@triton.jit
def softmax(x, out, n, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(x + row * n + i, mask=i < n, other=float("-inf"))
    weights = tl.exp(values - tl.max(values, 0))
    tl.store(out + row * n + i, weights / tl.sum(weights, 0), mask=i < n)


@triton.jit
def layer_norm(x, weight, bias, out, n, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(x + row * n + i, mask=i < n, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / n
    centred = tl.where(i < n, values - mean, 0.0)
    scaled = centred / tl.sqrt(tl.sum(centred * centred, 0) / n + 1e-5)
    result = scaled * tl.load(weight + i, mask=i < n) + tl.load(bias + i, mask=i < n)
    tl.store(out + row * n + i, result.to(tl.float16), mask=i < n)


@triton.jit
def matmul(a, b, c, M, N, K, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for k in range(0, K, BLOCK):
        left = tl.load(a + rows[:, None] * K + (k + inner)[None, :])
        right = tl.load(b + (k + inner)[:, None] * N + columns[None, :])
        total = tl.dot(left, right, total)
    tl.store(c + rows[:, None] * N + columns[None, :], total.to(tl.float16))


@triton.jit
def count(x, bins, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(bins + tl.load(x + i, mask=i < n, other=0), 1, mask=i < n)


@triton.jit
def running_sum(x, out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.cumsum(tl.load(x + i), 0))


@triton.jit
def sort(x, out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.sort(tl.load(x + i)))


@triton.jit
def collatz(start, steps):
    """A loop whose length differs in every program instance."""
    n = tl.load(start + tl.program_id(0))
    taken = 0
    while n > 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        taken += 1
    tl.store(steps + tl.program_id(0), taken)


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _flash(B: int, H: int, N: int, D: int, dtype: torch.dtype) -> Call:
    q, k, v, do = (_random(B, H, N, D, dtype=dtype, seed=s) for s in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def call() -> list[Tensor]:
        out = attention(*leaves, tiles=(32, 32))
        return [out.detach(), *torch.autograd.grad(out, leaves, do)]

    return call


def _add(n: int) -> Call:
    x, y, out = _random(n), _random(n, seed=1), torch.zeros(n)

    def call() -> list[Tensor]:
        add[(triton.cdiv(n, 1024),)](x, y, out, n, BLOCK=1024)
        return [out]

    return call


def _many(launches: int) -> Call:
    def call() -> list[Tensor]:
        x = torch.zeros(1)
        for _ in range(launches):
            one[(1,)](x)
        return [x]

    return call


def _softmax(rows: int, n: int) -> Call:
    x, out = _random(rows, n), torch.zeros(rows, n)

    def call() -> list[Tensor]:
        softmax[(rows,)](x, out, n, BLOCK=triton.next_power_of_2(n))
        return [out]

    return call


def _layer_norm(rows: int, n: int) -> Call:
    x, weight, bias = _random(rows, n, dtype=torch.float16), _random(n, seed=1), _random(n, seed=2)
    out = torch.zeros_like(x)

    def call() -> list[Tensor]:
        layer_norm[(rows,)](x, weight, bias, out, n, BLOCK=triton.next_power_of_2(n))
        return [out]

    return call


def _matmul(n: int) -> Call:
    a, b = _random(n, n, dtype=torch.float16), _random(n, n, dtype=torch.float16, seed=1)
    c = torch.zeros_like(a)

    def call() -> list[Tensor]:
        matmul[(n // 32, n // 32)](a, b, c, n, n, n, BLOCK=32)
        return [c]

    return call


def _count(n: int) -> Call:
    x = torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)

    def call() -> list[Tensor]:
        bins = torch.zeros(97, dtype=torch.int32)
        count[(triton.cdiv(n, 256),)](x, bins, n, BLOCK=256)
        return [bins]

    return call


def _rows(kernel: object, rows: int, block: int) -> Call:
    x, out = _random(rows * block), torch.zeros(rows * block)

    def call() -> list[Tensor]:
        kernel[(rows,)](x, out, BLOCK=block)  # type: ignore[index]
        return [out]

    return call


def _collatz(n: int) -> Call:
    start, steps = torch.arange(1, n + 1, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)

    def call() -> list[Tensor]:
        collatz[(n,)](start, steps)
        return [steps]

    return call


@dataclass(frozen=True, slots=True)
class Workload:
    """`make` draws the inputs and returns what is timed; `wanted` is the ratio that is promised."""

    name: str
    make: Callable[[], Call]
    wanted: float = 1.0


WORKLOADS = (
    Workload("flash fp16 B2 H4 N257 D64", partial(_flash, 2, 4, 257, 64, torch.float16), 20),
    Workload("flash fp32 B2 H4 N257 D64", partial(_flash, 2, 4, 257, 64, torch.float32), 20),
    Workload("flash fp16 B1 H1 N1024 D64", partial(_flash, 1, 1, 1024, 64, torch.float16), 10),
    Workload("flash fp32 B1 H1 N1024 D64", partial(_flash, 1, 1, 1024, 64, torch.float32), 10),
    Workload("flash fp16 B1 H1 N5 D16", partial(_flash, 1, 1, 5, 16, torch.float16)),
    Workload("one program, one number", partial(_many, 1)),
    Workload("the same, 200 launches", partial(_many, 200)),
    Workload("add, 1 element", partial(_add, 1)),
    Workload("add, 1e4 elements", partial(_add, 10_000)),
    Workload("add, 4e6 elements", partial(_add, 4_000_000)),
    Workload("softmax 256 x 500", partial(_softmax, 256, 500)),
    Workload("softmax 1 x 30000", partial(_softmax, 1, 30_000)),
    Workload("layer norm 128 x 768", partial(_layer_norm, 128, 768)),
    Workload("matmul 256^3", partial(_matmul, 256)),
    Workload("matmul 32^3, one program", partial(_matmul, 32)),
    Workload("atomic counts, 1e4", partial(_count, 10_000)),
    Workload("cumulative sum 64 x 256", partial(_rows, running_sum, 64, 256)),
    Workload("sort 16 x 64", partial(_rows, sort, 16, 64)),
    Workload("divergent loops, 200", partial(_collatz, 200)),
)
