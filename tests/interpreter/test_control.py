"""Control flow, functions, launches."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from flashproof.kernels.interpreter import KernelError


@triton.jit
def sign(x):
    """Three ways out."""
    if x > 0:
        return 1
    if x < 0:
        return -1
    return 0


@triton.jit
def signs(x, out):
    p = tl.program_id(0)
    tl.store(out + p, sign(tl.load(x + p)))


@pytest.mark.covers("if, elif, else, return", note="also where programs differ")
def test_early_returns():
    x = torch.randint(-2, 3, (40,), dtype=torch.int32)
    out = torch.full((40,), 9, dtype=torch.int32)
    signs[(40,)](x, out)
    assert torch.equal(out, x.sign())


@triton.jit
def grades(x, out, N: tl.constexpr):
    p = tl.program_id(0)
    v = tl.load(x + p)
    tile = tl.zeros([N], tl.float32)
    if v > 10:
        tile += 1.0
        k = 3
    elif v > 5:
        tile += tl.arange(0, N).to(tl.float32)
        k = 2
    else:
        k = 1
        for i in range(v):
            tile += i
    tl.store(out + p * N + tl.arange(0, N), tile * k)


@pytest.mark.covers("if, elif, else, return", note="tiles and scalars assigned in branches")
def test_branches_with_tiles():
    x, out = torch.arange(0, 14, dtype=torch.int32), torch.zeros(14, 4)
    grades[(14,)](x, out, N=4)
    for v in range(14):
        base = [1.0] * 4 if v > 10 else [0.0, 1.0, 2.0, 3.0] if v > 5 else [v * (v - 1) / 2] * 4
        assert out[v].tolist() == [b * (3 if v > 10 else 2 if v > 5 else 1) for b in base]


@triton.jit
def loops(out, n, STEPS: tl.constexpr):
    total = 0
    for i in tl.static_range(STEPS):
        total += i
    for i in tl.range(0, n, 2, num_stages=3, loop_unroll_factor=2):
        total += i
    for i in tl.range(n, 0, -1, flatten=True):
        total += 10 * i
    for _ in range(5, 5):
        total += 1000
    tl.store(out, total)


@pytest.mark.covers("range, tl.range, tl.static_range", note="steps of either sign; options mean nothing here")
def test_ranges():
    out = torch.zeros(1, dtype=torch.int32)
    loops[(1,)](out, 7, STEPS=4)
    assert out.item() == 6 + 12 + 280


@triton.jit
def specialised(out, n):
    total = 0
    for i in tl.range(0, n, warp_specialize=True):
        total += i
    tl.store(out, total)


@pytest.mark.covers("range, tl.range, tl.static_range", note="warp_specialize")
def test_warp_specialize():
    out = torch.zeros(1, dtype=torch.int32)
    specialised[(1,)](out, 5)
    assert out.item() == 10


@triton.jit
def bits(x, out):
    p = tl.program_id(0)
    v, count = tl.load(x + p), 0
    while (v > 0) and (count < 5):
        v, count = v >> 1, count + 1
    tl.store(out + p, count)


@pytest.mark.covers("while", note="and, or, not of scalars; programs that stop at different times")
def test_while():
    x, out = torch.arange(100, dtype=torch.int32), torch.zeros(100, dtype=torch.int32)
    bits[(100,)](x, out)
    assert out.tolist() == [min(v.bit_length(), 5) for v in range(100)]


@triton.jit(noinline=True)
def outlined_pair(a, b):
    if a > b:
        return a * 2, b
    return b - a, a


@triton.jit(noinline=True)
def outlined_store(out, v, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), tl.load(out + tl.arange(0, N)) + v)


@triton.jit
def calls(x, out):
    p = tl.program_id(0)
    for i in range(2):
        a, b = outlined_pair(tl.load(x + p), 3 * i)
        outlined_store(out + p * 4, a + b, 4)


@pytest.mark.covers("nested functions", note="inlined or not (noinline), tuples, early returns in either")
def test_calls_that_are_not_inlined():
    x, out = torch.arange(8, dtype=torch.int32), torch.zeros(8, 4, dtype=torch.int32)
    calls[(8,)](x, out)
    want = [sum(2 * v + b if v > b else b for b in (0, 3)) for v in range(8)]
    assert out.tolist() == [[w] * 4 for w in want]


@triton.jit
def swap(pair):
    return pair[1], pair[0]


@triton.jit
def tuples(out, values, scale: tl.constexpr):
    a, b = swap((values[0], values[1]))
    tl.store(out, a * scale[0])
    tl.store(out + 1, b * scale[1])


@pytest.mark.covers("tuples", note="as arguments, as constexprs, as results")
def test_tuples():
    out = torch.zeros(2)
    tuples[(1,)](out, (2.0, 3.0), scale=(10, 100))
    assert out.tolist() == [30.0, 200.0]


@triton.jit
def grid_ids(out):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(axis=2)
    nx, ny = tl.num_programs(0), tl.num_programs(1)
    tl.store(out + (z * ny + y) * nx + x, x + 10 * y + 100 * z + 1000 * tl.num_programs(2))


@pytest.mark.covers("grids", note="one to three dimensions, callable, empty; positional and keyword arguments")
def test_grids():
    out = torch.zeros(4, 3, 2, dtype=torch.int32)
    grid_ids[lambda meta: (2, 3, 4)](out=out)
    assert out.tolist() == [[[4000 + x + 10 * y + 100 * z for x in range(2)] for y in range(3)] for z in range(4)]
    before = out.clone()
    grid_ids[(0,)](out)
    grid_ids[(2, 0, 4)](out)
    assert torch.equal(out, before)


@triton.jit
def optional(x, bias, out, HAS: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    if HAS:
        v += tl.load(bias + i)
    if bias is None:
        v *= 2
    tl.store(out + i, v)


@pytest.mark.covers("constexpr", note="None, dtypes, functions, strings; folded branches")
def test_optional_arguments():
    x, out = torch.ones(8), torch.zeros(8)
    optional[(1,)](x, None, out, HAS=False, N=8)
    assert out.tolist() == [2.0] * 8
    optional[(1,)](x, x, out, HAS=True, N=8)
    assert out.tolist() == [2.0] * 8


@triton.jit
def scalar_arguments(out, i, big, f, flag):
    tl.store(out, i)
    tl.store(out + 1, big // 3)
    tl.store(out + 2, f * 2)
    if flag:
        tl.store(out + 3, 1)


@pytest.mark.covers("scalar arguments", note="int32, int64, float, bool; 1 and multiples of 16 are specialised")
@pytest.mark.parametrize("i", [0, 1, 16, 17, -5])
def test_scalar_arguments(i):
    out = torch.zeros(4, dtype=torch.float64)
    scalar_arguments[(1,)](out, i, 3 << 40, 0.1, True)
    assert out.tolist() == [i, 2.0**40, torch.tensor(0.1).float().mul(2).item(), 1]


@triton.heuristics({"EVEN": lambda args: args["n"] % 2 == 0})
@triton.jit
def heuristic(out, n, EVEN: tl.constexpr):
    tl.store(out, 1 if EVEN else 0)


@pytest.mark.covers("triton.heuristics")
def test_heuristics():
    out = torch.zeros(1)
    heuristic[(1,)](out, 4)
    assert out.item() == 1
    heuristic[(1,)](out, 5)
    assert out.item() == 0


prepared = []


@triton.autotune(
    [triton.Config({"BLOCK": 16}, num_warps=2, pre_hook=lambda args: prepared.append(args["n"])),
     triton.Config({"BLOCK": 32}, num_stages=4)],
    key=["n"], reset_to_zero=["out"], restore_value=["x"],
)  # fmt: skip
@triton.jit
def tuned(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + i, tl.load(x + i, mask=i < n), mask=i < n)
    tl.store(x + i, 0.0, mask=i < n)


@pytest.mark.covers("triton.autotune", note="takes its first configuration; pre_hook, reset_to_zero, restore_value")
def test_autotune():
    x, out = torch.randn(50), torch.zeros(50)
    want = x.clone()
    tuned[lambda meta: (triton.cdiv(50, meta["BLOCK"]),)](x, out, 50)
    assert torch.equal(out, want), "the one run that counts ran once"
    assert (x == 0).all()
    assert prepared
    assert set(prepared) == {50}


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        scaled_product[(x.numel() // 8,)](x, x, out, 1.0, N=8)
        return out

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        scaled_product[(x.numel() // 8,)](x, gradient.contiguous(), out, 2.0, N=8)
        return out


@triton.jit
def scaled_product(x, y, out, scale, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + i, tl.load(x + i) * tl.load(y + i) * scale)


@pytest.mark.covers("launches inside torch.autograd.Function")
def test_autograd():
    x = torch.randn(32, requires_grad=True)
    out = Square.apply(x)
    out.sum().backward()
    assert torch.equal(out.detach(), x.detach().square())
    assert torch.equal(x.grad, 2 * x.detach())


@triton.jit
def asserting(x, N: tl.constexpr):
    tl.static_assert(N == 4, "four")
    tl.static_print("N is", N)
    v = tl.load(x + tl.arange(0, N))
    tl.assume(N > 0)
    tl.device_assert(v > 0, "all of x {must} be: positive %")


@pytest.mark.covers("tl.device_assert, static_assert, static_print, assume", note="device_assert as debug=True says")
def test_assertions(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # static_print prints where the kernel is translated
    asserting[(1,)](torch.ones(4), N=4, debug=True)
    assert "N is" in capsys.readouterr().out
    with pytest.raises(KernelError, match=r"all of x \{must\} be: positive %.*test_control\.py:\d+"):
        asserting[(1,)](torch.tensor([1.0, 1.0, 0.0, 1.0]), N=4, debug=True)
    with pytest.raises(triton.CompilationError, match="four"):
        asserting[(1,)](torch.ones(8), N=8, debug=True)


@triton.jit
def printing(x, N: tl.constexpr):
    p = tl.program_id(0)
    tl.device_print("x: {a}", tl.load(x + p * N + tl.arange(0, N)), p)
    tl.device_print("hello")
    tl.device_print("hex", p + 254, hex=True)


@pytest.mark.covers("tl.device_print", note="one line an element, as Triton prints it")
def test_device_print(capsys):
    printing[(2,)](torch.arange(4.0), N=2)
    lines = capsys.readouterr().out.splitlines()
    assert "pid (0, 0, 0) idx (1) x: {a}: (operand 0) 1.0" in lines
    assert "pid (1, 0, 0) idx () x: {a}: (operand 1) 1" in lines
    assert sum("hello" in line for line in lines) == 2
    assert any("0x000000ff" in line for line in lines)


@triton.jit
def hints(x, out, N: tl.constexpr):
    i = tl.max_contiguous(tl.multiple_of(tl.arange(0, N), N), N)
    v = tl.max_constancy(tl.load(x + i), [1])
    tl.debug_barrier()
    tl.store(out + i, v)


@pytest.mark.covers("tl.multiple_of, max_contiguous, max_constancy, debug_barrier", note="mean nothing here")
def test_hints():
    x, out = torch.randn(16), torch.zeros(16)
    hints[(1,)](x, out, N=16)
    assert torch.equal(out, x)


@triton.jit
def wide_index(x, out, stride):
    p = tl.program_id(0).to(tl.int64)
    tl.store(out + p, tl.load(x + p * stride))


@pytest.mark.covers("int64 offsets")
def test_wide_offsets():
    x = torch.arange(4.0).as_strided((2,), (3,))
    out = torch.zeros(2)
    wide_index[(2,)](x, out, 3)
    assert out.tolist() == [0.0, 3.0]
