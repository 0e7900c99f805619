"""Loads, stores and atomics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

DTYPES = [
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool, torch.float16, torch.bfloat16,
    torch.float32, torch.float64,
]  # fmt: skip


@triton.jit
def copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n, cache_modifier=".cg", eviction_policy="evict_first"), mask=i < n,
             cache_modifier=".wt", eviction_policy="evict_last")  # fmt: skip


@pytest.mark.covers("tl.load, tl.store", note="pointers, masks; cache and eviction hints mean nothing here")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copy(dtype):
    x = torch.randint(0, 100, (1000,)).to(dtype)
    out = torch.zeros_like(x)
    copy[(4,)](x, out, 999, BLOCK=256)
    assert torch.equal(out[:999], x[:999])
    assert out[999] == 0


@triton.jit
def load_other(x, out, n, OTHER: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if OTHER is None:
        tl.store(out + i, tl.load(x + i, mask=i < n))
    else:
        tl.store(out + i, tl.load(x + i, mask=i < n, other=OTHER, volatile=True))


@pytest.mark.covers("tl.load other=", note="without it, zero")
@pytest.mark.parametrize("other", [None, 7.0, float("-inf")])
def test_other(other):
    x, out = torch.ones(64), torch.full((64,), 5.0)
    load_other[(1,)](x, out, 10, OTHER=other, BLOCK=64)
    assert out.tolist() == [1.0] * 10 + [other or 0.0] * 54


@triton.jit
def scalars(x, out):
    p = tl.program_id(0)
    v = tl.load(x + p)
    tl.store(out + p, v + 1)
    if v > 2:
        tl.store(out + p, v * 10, mask=p != 4)


@pytest.mark.covers("tl.load, tl.store", note="scalars")
def test_scalars():
    x, out = torch.arange(6, dtype=torch.int32), torch.zeros(6, dtype=torch.int32)
    scalars[(6,)](x, out)
    assert out.tolist() == [1, 2, 3, 30, 5, 50]


@triton.jit
def strided(x, out, sm, sn, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    tl.store(out + m * N + n, tl.load(x + m * sm + n * sn))


@pytest.mark.covers("strides", note="transposed, expanded and negative-free views; storage offsets")
def test_strides():
    base, out = torch.randn(40, 70), torch.zeros(16, 32)
    for x in (base[3:, 5:], base.t()[8:, 2:34], base[1:, :1].expand(-1, 32), base[::2, ::2]):
        strided[(1,)](x, out, *x.stride(), M=16, N=32)
        assert torch.equal(out, x[:16, :32])


BLOCK_POINTERS = pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
NO_BLOCK_POINTERS = pytest.mark.skipif(triton.__version__ >= "3.9", reason="Triton 3.9 has no block pointers")


@triton.jit
def blocks(x, out, M, N, BM: tl.constexpr, BN: tl.constexpr, CHECK: tl.constexpr, PADDING: tl.constexpr):
    source = tl.make_block_ptr(x, (M, N), (N, 1), (0, 0), (BM, BN), (1, 0))
    target = tl.make_block_ptr(out, (BM, 2 * BN), (2 * BN, 1), (0, 0), (BM, BN), (1, 0))
    for _ in range(2):
        tl.store(target, tl.load(source, boundary_check=CHECK, padding_option=PADDING))
        source, target = tl.advance(source, (0, BN)), tl.advance(target, (0, BN))


@BLOCK_POINTERS
@NO_BLOCK_POINTERS
@pytest.mark.covers(
    "tl.make_block_ptr, tl.advance", note="up to Triton 3.8; boundary_check, padding_option zero and nan"
)
@pytest.mark.parametrize("padding", ["", "zero", "nan"])
def test_block_pointers(padding):
    x, out = torch.randn(13, 27), torch.full((16, 32), 9.0)
    blocks[(1,)](x, out, 13, 27, 16, 16, (0, 1), padding)
    want = torch.full((16, 32), torch.nan if padding == "nan" else 0.0)
    want[:13, :27] = x
    torch.testing.assert_close(out, want, equal_nan=True, rtol=0, atol=0)


@triton.jit
def block_store(x, M, N, BM: tl.constexpr, BN: tl.constexpr):
    target = tl.make_block_ptr(x, (M, N), (N, 1), (8, 16), (BM, BN), (1, 0))
    tl.store(target, tl.full((BM, BN), 1.0, tl.float32), boundary_check=(0, 1))


@BLOCK_POINTERS
@NO_BLOCK_POINTERS
@pytest.mark.covers("tl.make_block_ptr, tl.advance", note="checked stores write inside alone")
def test_block_pointer_stores():
    storage = torch.zeros(20, 27)
    block_store[(1,)](storage, 13, 27, 16, 16)
    want = torch.zeros(20, 27)
    want[8:13, 16:] = 1
    assert torch.equal(storage, want)


@triton.jit
def device_descriptor(x, out, M, N, BM: tl.constexpr, BN: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [M, N], [N, 1], [BM, BN])
    target = tl.make_tensor_descriptor(out, [M, N], [N, 1], [BM, BN])
    m, n = tl.program_id(0) * BM, tl.program_id(1) * BN
    target.store([m, n], source.load([m, n]) * 2)


@pytest.mark.covers("tl.make_tensor_descriptor", note="device side: load, store, out of bounds reads zero")
def test_device_descriptors():
    x, out = torch.randn(20, 36), torch.zeros(20, 36)
    device_descriptor[(2, 3)](x, out, 20, 36, 16, 16)
    assert torch.equal(out, x * 2)


@triton.jit
def host_descriptor(source, target, BM: tl.constexpr, BN: tl.constexpr):
    m, n = tl.program_id(0) * BM, tl.program_id(1) * BN
    target.store([m, n], source.load([m, n]) + 1)


@pytest.mark.covers("TensorDescriptor", note="host side")
def test_host_descriptors():
    from triton.tools.tensor_descriptor import TensorDescriptor

    x, out = torch.randn(20, 36), torch.zeros(20, 36)
    host_descriptor[(2, 3)](
        TensorDescriptor.from_tensor(x, [16, 16]), TensorDescriptor.from_tensor(out, [16, 16]), BM=16, BN=16
    )
    assert torch.equal(out, x + 1)


@triton.jit
def descriptor_atomics(x, M, N, BM: tl.constexpr, BN: tl.constexpr):
    target = tl.make_tensor_descriptor(x, [M, N], [N, 1], [BM, BN])
    target.atomic_add([0, 0], tl.full((BM, BN), 1, tl.int32))
    target.atomic_max([0, 0], tl.full((BM, BN), 3, tl.int32))


@triton.jit
def descriptor_gather(x, rows, out, M, N, BN: tl.constexpr, K: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [M, N], [N, 1], [1, BN])
    picked = source.gather(tl.load(rows + tl.arange(0, K)), 0)
    tl.store(out + tl.arange(0, K)[:, None] * BN + tl.arange(0, BN)[None, :], picked)


@pytest.mark.covers("tensor descriptor atomics and gather")
def test_descriptor_atomics_and_gather():
    x = torch.arange(-2, 62, dtype=torch.int32).view(4, 16).clone()
    want = (x + 1).clamp(min=3)
    descriptor_atomics[(1,)](x, 4, 16, 4, 16)
    assert torch.equal(x, want)
    table, rows, out = torch.randn(20, 16), torch.randint(0, 20, (8,), dtype=torch.int32), torch.zeros(8, 16)
    descriptor_gather[(1,)](table, rows, out, 20, 16, 16, 8)
    assert torch.equal(out, table[rows])


@triton.jit
def through_pointers(addresses, sizes, out, BLOCK: tl.constexpr):
    p, i = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(addresses + p).to(tl.pointer_type(tl.float32))
    total = tl.sum(tl.load(x + i, mask=i < tl.load(sizes + p), other=0.0))
    tl.store(out + p, total)


@pytest.mark.covers("arrays of pointers", note="as grouped GEMM uses them")
def test_arrays_of_pointers():
    groups = [torch.randn(n) for n in (5, 64, 33)]
    addresses = torch.tensor([g.data_ptr() for g in groups])
    out = torch.zeros(3)
    through_pointers[(3,)](addresses, torch.tensor([5, 64, 33], dtype=torch.int32), out, BLOCK=64)
    torch.testing.assert_close(out, torch.stack([g.sum() for g in groups]))


# -- atomics -----------------------------------------------------------------------------------------------------------


@triton.jit
def update(target, where, values, old, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p, v, m = target + tl.load(where + i), tl.load(values + i), i % 5 != 0
    if KIND == "add":
        r = tl.atomic_add(p, v, mask=m, sem="relaxed")
    elif KIND == "max":
        r = tl.atomic_max(p, v, mask=m)
    elif KIND == "min":
        r = tl.atomic_min(p, v, mask=m, scope="cta")
    elif KIND == "and":
        r = tl.atomic_and(p, v, mask=m)
    elif KIND == "or":
        r = tl.atomic_or(p, v, mask=m)
    elif KIND == "xor":
        r = tl.atomic_xor(p, v, mask=m)
    else:
        r = tl.atomic_xchg(p, v, mask=m)
    tl.store(old + i, r, mask=m)


SEQUENTIAL = {
    "add": lambda a, b: a + b, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "xchg": lambda a, b: b,
}  # fmt: skip


@pytest.mark.covers(
    "tl.atomic_add max min and or xor xchg", note="in the order of program instances and lanes; old values; masks"
)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *[(k, d) for k in SEQUENTIAL for d in (torch.int32, torch.int64, torch.uint32)],
        *[(k, d) for k in ("max", "min") for d in (torch.float32, torch.float64)],
        *[("add", d) for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)],
        ("xchg", torch.float32),
    ],
    ids=str,
)
def test_atomics(kind, dtype):
    rng = np.random.default_rng(0)
    where = torch.from_numpy(rng.integers(0, 9, 64, dtype=np.int32))
    values = torch.from_numpy(rng.integers(-50, 50, 64)).to(dtype)
    target = torch.from_numpy(rng.integers(-40, 40, 9)).to(dtype)
    old = torch.zeros_like(values)
    state = target.double().numpy().copy() if dtype.is_floating_point else target.numpy().copy()
    before = np.zeros(64, state.dtype)
    numbers = values.to(torch.float64).numpy() if dtype.is_floating_point else values.numpy()
    for i in range(64):
        if i % 5 != 0:
            before[i] = state[where[i]]
            state[where[i]] = SEQUENTIAL[kind](state[where[i : i + 1]], numbers[i : i + 1])[0]
    update[(4,)](target, where, values, old, KIND=kind, BLOCK=16)
    assert np.array_equal(target.double().numpy() if dtype.is_floating_point else target.numpy(), state)
    if kind not in ("max", "min") or not dtype.is_floating_point:
        # Triton makes two integer atomics of a floating-point one, of which one sees the positive operands first
        assert np.array_equal(old.double().numpy() if dtype.is_floating_point else old.numpy(), before)


@triton.jit
def claim(flags, winners):
    p = tl.program_id(0)
    if tl.atomic_cas(flags + p % 3, 0, p + 1) == 0:
        tl.store(winners + p % 3, p)


@pytest.mark.covers("tl.atomic_cas")
def test_compare_and_swap():
    flags, winners = torch.zeros(3, dtype=torch.int32), torch.full((3,), -1, dtype=torch.int32)
    claim[(9,)](flags, winners)
    assert flags.tolist() == [1, 2, 3]
    assert winners.tolist() == [0, 1, 2]


@triton.jit
def locked_sum(lock, count, total, x, N: tl.constexpr):
    v = tl.load(x + tl.program_id(0) * N + tl.arange(0, N))
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    if tl.load(count) == 0:
        tl.store(total + tl.arange(0, N), v)
    else:
        tl.store(total + tl.arange(0, N), v + tl.load(total + tl.arange(0, N)))
    tl.store(count, tl.load(count) + 1)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@pytest.mark.covers("spin locks", note="where a while waits on an atomic, instances run one after the other")
@pytest.mark.timeout(60)
def test_spin_lock():
    x, total = torch.randint(-9, 9, (17, 32)).float(), torch.full((32,), torch.nan)
    lock, count = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    locked_sum[(17,)](lock, count, total, x, N=32)
    assert torch.equal(total, x.sum(0))
    assert (lock.item(), count.item()) == (0, 17)


@triton.jit
def last_one_finishes(partial, counter, out, x, N: tl.constexpr):
    p = tl.program_id(0)
    tl.store(partial + p, tl.sum(tl.load(x + p * N + tl.arange(0, N))))
    if tl.atomic_add(counter, 1) == tl.num_programs(0) - 1:
        tl.store(out, tl.sum(tl.load(partial + tl.arange(0, 8))))


@pytest.mark.covers("tl.atomic_add max min and or xor xchg", note="the last program finishes the work of all")
def test_last_program_finishes():
    x, out = torch.randint(-9, 9, (8, 16)).float(), torch.zeros(1)
    last_one_finishes[(8,)](torch.zeros(8), torch.zeros(1, dtype=torch.int32), out, x, N=16)
    assert out.item() == x.sum().item()
