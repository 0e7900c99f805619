"""What a function under test may not leave behind: it shares its process with the truth and with the next case."""

from __future__ import annotations

import multiprocessing
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

#: of a function that `torch.compile` compiles in one process: each takes a second or more, and a case asks for three
VARIANTS = 256
#: of a case's limit, where it may have to be compiled first
LONGER = 3
#: how to read and how to write back each piece of a process's state that changes numbers
_STATE: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_rng_state, torch.set_rng_state),
    (np.geterr, lambda modes: np.seterr(**modes)),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
)


def broken_context() -> str | None:
    """Why this process can use its CUDA device no more, or None: an illegal access ends that, for good."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as e:
        return str(e).splitlines()[0]
    return None


def compiles() -> bool:
    """Whether a module that was loaded here uses torch's compiler: torch itself imports it for that alone."""
    return "torch._dynamo" in sys.modules


def settle_compiler() -> None:
    """Let `torch.compile` compile more variants of a function than it would, and say so where it stops.

    By default it stops at 8, which few cases use up, and quietly runs the function uncompiled from then on: another one
    than its users run, with other roundings.
    """
    config: Any = sys.modules.get("torch._dynamo.config")  # if anything is compiled here
    if config is not None:
        config.recompile_limit = max(config.recompile_limit, VARIANTS)
        config.fail_on_recompile_limit_hit = True


def gave_up(e: BaseException) -> bool:
    """Whether that is torch's compiler, having reached the limit."""
    return type(e).__name__ == "FailOnRecompileLimitHit"


@contextmanager
def contained() -> Iterator[None]:
    """Put the process's state back, and let nothing out that would end the process.

    Raises:
        RuntimeError: in place of a SystemExit or a KeyboardInterrupt that the function raised.  In the main process a
            KeyboardInterrupt is the user's own, and passes.
    """
    before = [read() for read, _ in _STATE]
    device = torch.get_default_device()
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as e:
        if isinstance(e, KeyboardInterrupt) and multiprocessing.parent_process() is None:
            raise
        raise RuntimeError(f"the function raised {type(e).__name__}({e})").with_traceback(e.__traceback__) from e
    finally:
        if torch.get_default_device() != device:  # setting it has a price, paid by every later call
            torch.set_default_device(None)
        for (_, write), value in zip(_STATE, before, strict=True):
            write(value)
        torch.set_flush_denormal(False)  # cannot be read
