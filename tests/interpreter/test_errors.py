"""What a kernel does wrong is an error with its source line."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from flashproof.kernels import interpreter
from flashproof.kernels.interpreter import KernelError, OutOfBoundsError, UnsupportedOperationError


@triton.jit
def reads_past_the_end(x, out):
    i = tl.arange(0, 64)
    tl.store(out + i, tl.load(x + i))


def test_out_of_bounds_names_the_line():
    with pytest.raises(OutOfBoundsError, match=r"read: element 63 of x, 4 bytes past .*test_errors\.py:\d+") as e:
        reads_past_the_end[(1,)](torch.zeros(63), torch.zeros(64))
    line = reads_past_the_end.fn.__code__.co_firstlineno + 3  # the decorator's line, def, i = ..., the store
    assert e.value.location.user_frame()[1] == line
    with pytest.raises(OutOfBoundsError, match="write"):
        reads_past_the_end[(1,)](torch.zeros(64), torch.zeros(63))


def test_tensors_that_are_not_the_cpus_are_named():
    with pytest.raises(UnsupportedOperationError, match="out is on meta, and interpreted kernels run on the CPU"):
        reads_past_the_end[(1,)](torch.zeros(64), torch.zeros(64, device="meta"))


@triton.jit
def asserts(x):
    tl.device_assert(tl.load(x) > 0, "must be positive")


def test_device_assert():
    asserts[(1,)](torch.ones(1), debug=True)
    with pytest.raises(KernelError, match="must be positive"):
        asserts[(1,)](-torch.ones(1), debug=True)


@triton.jit
def votes(x):
    y = tl.inline_asm_elementwise("vote.sync.ballot.b32 $0, $1, -1;", "=r,r", [tl.load(x)], tl.int32, True, 1)
    tl.store(x, y)


@pytest.mark.covers("inline_asm_elementwise: other instructions", supported=False)
def test_unknown_operations_are_named():
    with pytest.raises(UnsupportedOperationError, match=r"elementwise_inline_asm.*`vote\.sync.*test_errors\.py:\d+"):
        votes[(1,)](torch.ones(1, dtype=torch.int32))


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
