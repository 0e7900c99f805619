"""How worker processes start: in which environment, and as copies of which process.

On a CPU they are copies of one process that has imported everything that they need, so that a worker that has died is
replaced within a moment.  A process that talks to a GPU cannot be copied: there, every worker imports for itself.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any

from . import interrupts

#: what workers start with: one BLAS thread each (two processes of two threads on two cores are slower than one), no
#: wish of a user's module for Triton's own interpreter, and a C library that keeps the memory of a case's temporaries
#: for the next ones instead of asking the kernel for it each time
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TRITON_INTERPRET": "0",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}  # fmt: skip

#: what the first gradient would import, on a case's time
IMPORTED_LATE = ("torch.fx.experimental.symbolic_shapes",)


def context(device: str) -> Any:
    """Of multiprocessing, for workers that use this device."""
    if device != "cpu":
        return multiprocessing.get_context("spawn")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload([f"{__package__}.worker", *IMPORTED_LATE])
    return chosen


def begin() -> None:
    """Let the process whose copies workers will be import, while this one does the same."""
    context("cpu")
    with workers_environment(), interrupts.blocked():
        forkserver.ensure_running()


_waiting = threading.Lock()
_waiters = 0  # threads that are inside `workers_environment`
_before: dict[str, str | None] = {}


@contextmanager
def workers_environment() -> Iterator[None]:
    """The environment in which workers are started; a worker may be started whenever a task is waited for."""
    global _waiters  # the environment is the whole process's: the first to come sets it, the last to go restores it
    with _waiting:
        if _waiters == 0:
            _before.update({name: os.environ.get(name) for name in _ENVIRONMENT})
            os.environ.update(_ENVIRONMENT)
        _waiters += 1
    try:
        yield
    finally:
        with _waiting:
            _waiters -= 1
            if _waiters == 0:
                for name, value in _before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
