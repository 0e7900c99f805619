"""`interpret`: run Triton kernels on the CPU, in any arithmetic, with every access to memory watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from .memory.tracking import Tracked
from .numbers.arithmetic import Arithmetic, Ieee
from .runtime import install, installed, uninstall
from .session import Session


@contextmanager
def interpret(
    arithmetic: Arithmetic | None = None, memory: Tracked | Literal["tracked"] | None = None
) -> Iterator[Session]:
    """Run every Triton launch inside the `with` block on the CPU, here and now.

        with flashproof.interpret(arithmetic=arithmetics.exact(), memory="tracked") as run:
            kernel[grid](x, out, n, BLOCK=64)
        run.values(out)  # unrounded

    Accesses outside every tensor that the kernel was passed are always errors.  Blocks nest; the innermost counts.

    Args:
        arithmetic: what numbers are inside tiles, one of `arithmetics`; faithful (`ieee`) by default.
        memory: `"tracked"`, or a `Tracked` that says what to look for: reads of what nothing has written, conflicts
            between program instances, accesses beside the tensor, outputs written in part.  Create outputs inside
            the block, so that it is known what `torch.empty` made and what the host filled.

    Raises:
        KernelError: by a launch, with the kernel's source line; its subclasses say what is wrong.
        UnwrittenError: at the end of the block.
        ValueError: for a `memory` that is neither.
        RuntimeError: Triton was imported under TRITON_INTERPRET=1.
    """
    if isinstance(memory, str):
        if memory != "tracked":
            raise ValueError(f'memory must be "tracked", a Tracked or None, not {memory!r}')
        memory = Tracked()
    before = installed()
    install()
    session = Session(Ieee() if arithmetic is None else arithmetic, memory)
    try:
        with session.active():
            yield session
    finally:
        if not before:
            uninstall()
