"""Tracked memory: each planted defect is reported with its line, program, tensor and index; sound kernels pass."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from flashproof.kernels import interpreter
from flashproof.kernels.attention import attention
from flashproof.kernels.interpreter import (
    ConflictError,
    MisalignedError,
    OutOfBoundsError,
    Tracked,
    UninitializedReadError,
    UnwrittenError,
)


@triton.jit
def copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def careless_copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i), mask=i < n)


@triton.jit
def adds_up(x, total, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    part = tl.load(x + tl.program_id(0) * BLOCK + i)
    tl.store(total + i, tl.load(total + i) + part)


@triton.jit
def adds_up_atomically(x, total, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(total + i, tl.load(x + tl.program_id(0) * BLOCK + i))


@triton.jit
def last_wins(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + tl.program_id(0) * BLOCK + i))


@triton.jit
def neighbour(x, BLOCK: tl.constexpr):
    """Each program doubles its block after reading the next one's."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    other = tl.load(x + (i + BLOCK) % (2 * BLOCK))
    tl.store(x + i, 2 * other)


@triton.jit
def rows(x, out, stride, N: tl.constexpr):
    """Sums rows, taking it for granted that their elements are neighbours."""
    i = tl.arange(0, N)
    row = tl.program_id(0)
    tl.store(out + row, tl.sum(tl.load(x + row * stride + i), 0))


@triton.jit
def as_int64(x, out):
    tl.store(out, tl.load((x + 1).to(tl.pointer_type(tl.int64))))


def line_of(kernel, text):
    """`file.py:line` of the line of a kernel that contains a text."""
    lines = kernel.fn.__code__.co_firstlineno
    offset = next(i for i, source in enumerate(kernel.raw_src) if text in source)
    return f"test_tracking.py:{lines + offset}"


def report(error, launch, **options):
    with pytest.raises(error) as e, interpreter.interpret(memory=Tracked(**options)):
        launch()
    return str(e.value)


def test_the_tail_read_past_the_end():
    x = torch.arange(200.0)[100:]  # last in its storage
    said = report(OutOfBoundsError, lambda: careless_copy[(2,)](x, torch.empty(100), 100, BLOCK=64))
    assert "element 100 of x" in said and "program (1, 0, 0)" in said
    assert line_of(careless_copy, "tl.load") in said


def test_the_tail_never_written():
    def launch():
        out = torch.empty(100)
        copy[(1,)](torch.randn(100), out, 100, BLOCK=64)

    said = report(UnwrittenError, launch)
    assert "36 of 100 elements of out" in said and "out[64]" in said
    assert line_of(copy, "tl.store") in said


def test_an_output_from_outside_the_block_counts_too():
    out = torch.empty(100)
    assert "36 of 100" in report(UnwrittenError, lambda: copy[(1,)](torch.randn(100), out, 100, BLOCK=64))


@pytest.mark.parametrize("make", [torch.zeros, lambda n: torch.empty(n).fill_(1.0), lambda n: torch.empty(n).normal_()])
def test_what_the_host_fills_need_not_be_written(make):
    with interpreter.interpret(memory="tracked"):
        copy[(1,)](torch.randn(100), make(100), 100, BLOCK=64)


def test_the_host_reads_what_no_kernel_wrote():
    def launch():
        out = torch.empty(100)
        copy[(1,)](torch.randn(100), out, 100, BLOCK=64)
        return out * 2

    assert "torch's mul reads 36 of 100 elements of out" in report(UninitializedReadError, launch)


def test_a_kernel_reads_what_nothing_wrote():
    said = report(UninitializedReadError, lambda: copy[(2,)](torch.empty(100), torch.empty(100), 100, BLOCK=64))
    assert "x[0], which nothing has written" in said and line_of(copy, "tl.load") in said


def test_two_programs_add_without_an_atomic():
    x = torch.randn(128)
    said = report(ConflictError, lambda: adds_up[(2,)](x, torch.zeros(64), BLOCK=64))
    assert "total[0]" in said and line_of(adds_up, "tl.store") in said
    with interpreter.interpret(memory="tracked"):
        total = torch.zeros(64)
        adds_up_atomically[(2,)](x, total, BLOCK=64)
        adds_up[(1,)](x, total, BLOCK=64)  # one program conflicts with nobody
    torch.testing.assert_close(total, 2 * x[:64] + x[64:])


def test_two_programs_write_one_element():
    said = report(ConflictError, lambda: last_wins[(2,)](torch.randn(128), torch.empty(64), BLOCK=64))
    assert "program (1, 0, 0) writes other bits to" in said
    with interpreter.interpret(memory="tracked"):
        last_wins[(2,)](torch.ones(128), torch.empty(64), BLOCK=64)  # the same bits: no harm


def test_one_program_reads_what_another_writes():
    assert "conflict" in report(ConflictError, lambda: neighbour[(2,)](torch.randn(128), BLOCK=64))


def test_conflicts_between_batches_of_programs(monkeypatch):
    """Programs that do not run at the same time here might on a GPU."""
    from flashproof.kernels.interpreter import program

    monkeypatch.setattr(program, "_LANE_ELEMENTS", 64)

    @triton.jit
    def fresh(x, out, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(out + i, tl.load(x + tl.program_id(0) * BLOCK + i))

    assert "wrote other bits to" in report(
        ConflictError, lambda: fresh[(2,)](torch.randn(128), torch.empty(64), BLOCK=64)
    )


def test_a_stride_assumed_on_a_transposed_view():
    packed = torch.randn(64, 3, 16)
    x = packed[:, 1].t()  # [16, 64], its rows' elements 48 apart
    said = report(OutOfBoundsError, lambda: rows[(16,)](x, torch.empty(16), x.stride(0), N=64))
    assert "is within its storage but no element of it" in said and line_of(rows, "tl.load") in said
    with interpreter.interpret(memory="tracked"):
        rows[(16,)](x.contiguous(), torch.empty(16), 64, N=64)


def test_tensors_that_share_a_storage_are_told_apart():
    """Running off the end of q into k, which lies behind it in one buffer."""
    both = torch.randn(200)
    said = report(OutOfBoundsError, lambda: careless_copy[(2,)](both[:100], torch.empty(100), 100, BLOCK=64))
    assert "element 100 of x is within its storage" in said


def test_a_misaligned_access():
    with pytest.raises(MisalignedError, match="8 bytes at byte 4"), interpreter.interpret():
        as_int64[(1,)](torch.zeros(4, dtype=torch.int32), torch.zeros(1, dtype=torch.int64))


@triton.jit
def through_descriptor(x, out, M, N, stride, BLOCK: tl.constexpr):
    rows = tl.make_tensor_descriptor(x, shape=[M, N], strides=[stride, 1], block_shape=[BLOCK, BLOCK])
    i = tl.arange(0, BLOCK)
    tl.store(out + i[:, None] * BLOCK + i[None, :], rows.load([0, 0]))


@pytest.mark.parametrize(("columns", "offset", "said"), [(36, 0, "stride 0"), (40, 4, "its base")])
def test_a_descriptor_that_hardware_would_refuse(columns, offset, said):
    x = torch.randn(20 * columns + 8).half()[offset:][: 20 * columns].view(20, columns)
    launch = lambda: through_descriptor[(1,)](x, torch.empty(16, 16).half(), 20, columns, columns, BLOCK=16)  # noqa: E731
    text = report(MisalignedError, launch)
    assert f"misaligned tensor descriptor: {said}" in text
    assert line_of(through_descriptor, "make_tensor_descriptor") in text
    with interpreter.interpret(memory=Tracked(descriptors=False)):
        launch()
    with interpreter.interpret(memory="tracked"):
        aligned = torch.randn(20, 40).half()
        through_descriptor[(1,)](aligned, torch.empty(16, 16).half(), 20, 40, 40, BLOCK=16)


@triton.jit
def locked_sum(x, total, lock, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    part = tl.load(x + tl.program_id(0) * BLOCK + i)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    tl.store(total + i, tl.load(total + i) + part)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


def test_locks_order_the_programs_that_take_them():
    x, total = torch.randn(4, 64), torch.zeros(64)
    with interpreter.interpret(memory="tracked"):
        locked_sum[(4,)](x, total, torch.zeros(1, dtype=torch.int32), BLOCK=64)
    torch.testing.assert_close(total, x.sum(0))


@pytest.mark.parametrize("layout", ["contiguous", "bshd", "gaps"])
def test_the_bundled_kernels_are_clean(layout):
    def tensor(seed):
        x = torch.randn(2, 4, 37, 16, generator=torch.Generator().manual_seed(seed)).bfloat16()
        if layout == "bshd":
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "gaps":
            x = torch.full((2, 4, 40, 20), torch.nan).bfloat16()[:, :, :37, 2:18].copy_(x)
        return x.requires_grad_()

    q, k, v = (tensor(i) for i in range(3))
    with interpreter.interpret(memory="tracked"):
        out, lse = attention(q, k, v, is_causal=True, window=(9, None), return_lse=True, tiles=(16, 16))
        torch.autograd.grad((out, lse), (q, k, v), (tensor(3).detach(), torch.ones_like(lse)))


def test_each_kind_of_report_can_be_left_out():
    with interpreter.interpret(memory=Tracked(conflicts=False, unwritten=False, uninitialised=False)):
        last_wins[(2,)](torch.randn(128), torch.empty(64), BLOCK=64)
        copy[(1,)](torch.empty(100), torch.empty(100), 100, BLOCK=64)
    with pytest.raises(ValueError, match="memory must be"), interpreter.interpret(memory="traked"):
        pass
