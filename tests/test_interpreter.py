"""The interpreter: number formats bit for bit, Triton's language on small kernels, control flow, memory errors."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from flashproof.kernels import interpreter
from flashproof.kernels.interpreter import KernelError, OutOfBoundsError, UnsupportedOperationError, formats, ttir

BF16, F16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
FORMATS = {
    "bf16": BF16,
    "f16": F16,
    "f8E4M3FN": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreter.interpret():
        yield


# -- formats -----------------------------------------------------------------------------------------------------------


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


# -- the language ------------------------------------------------------------------------------------------------------


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


# -- errors ------------------------------------------------------------------------------------------------------------


@triton.jit
def reads_past_the_end(x, out):
    i = tl.arange(0, 64)
    tl.store(out + i, tl.load(x + i))


def test_out_of_bounds_names_the_line():
    with pytest.raises(OutOfBoundsError, match=r"read: element 63 of x, 4 bytes past .*interpreter\.py:\d+") as e:
        reads_past_the_end[(1,)](torch.zeros(63), torch.zeros(64))
    line = reads_past_the_end.fn.__code__.co_firstlineno + 3  # the decorator's line, def, i = ..., the store
    assert e.value.location.user_frame()[1] == line
    with pytest.raises(OutOfBoundsError, match="write"):
        reads_past_the_end[(1,)](torch.zeros(64), torch.zeros(63))


@triton.jit
def asserts(x):
    tl.device_assert(tl.load(x) > 0, "must be positive")


def test_device_assert():
    asserts[(1,)](torch.ones(1), debug=True)
    with pytest.raises(KernelError, match="must be positive"):
        asserts[(1,)](-torch.ones(1), debug=True)


@triton.jit
def inline_assembly(x):
    y = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tl.load(x)], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(x, y)


def test_unknown_operations_are_named():
    with pytest.raises(UnsupportedOperationError, match=r"elementwise_inline_asm.*test_interpreter\.py"):
        inline_assembly[(1,)](torch.ones(1, dtype=torch.int32))


def test_uninstall_leaves_triton_as_it_was():
    import os

    from triton.runtime.jit import JITFunction

    assert "TRITON_INTERPRET" not in os.environ
    interpreter.uninstall()
    try:
        assert not interpreter.installed()
        assert "TRITON_INTERPRET" not in os.environ
        assert JITFunction._do_compile.__name__ == "_do_compile"
    finally:
        interpreter.install()


# -- TTIR --------------------------------------------------------------------------------------------------------------


def test_names_are_unique_across_regions():
    text = """
    tt.func public @k(%n: i32) {
      scf.for %i = %n to %n step %n  : i32 {
        %a = arith.addi %i, %n : i32
      }
      scf.for %i = %n to %n step %n  : i32 {
        %a = arith.muli %i, %n : i32
      }
      tt.return
    }"""
    (function,) = ttir.parse(text).values()
    inner = [op.regions[0].blocks[0].ops[0] for op in function.body.blocks[0].ops if op.regions]
    assert inner[0].results != inner[1].results
    assert inner[0].operands != inner[1].operands


def test_truncated_text_is_an_error():
    with pytest.raises(ttir.ParseError):
        ttir.parse("tt.func public @k(%n: i32) {\n %a = arith.addi %n, %n : i32")
