"""What runs in a worker process: one implementation, loaded once, put to one task after another."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..kernels import interpreter
from .case import Case
from .evaluate import Result, evaluate
from .implementation import Implementation
from .isolation import broken_context
from .loading import load
from .problems import UsageError
from .processes import IMPORTED_LATE

T = TypeVar("T")

#: exit code of a worker whose CUDA context an earlier task has broken: its task goes to another worker
POISONED = 86
_TASKS = 256  # of a worker, between full collections of garbage

_implementation: Implementation | UsageError | None = None  # of this worker; or why it has none
_device = "cpu"
_tasks = 0  # that this worker has done


def prepare(spec: str, device: str) -> Implementation:
    """Make this process ready to run an implementation: the interpreter or none first, then the user's module."""
    torch.set_num_threads(1)
    if device == "cpu":
        os.environ.pop("TRITON_INTERPRET", None)  # Triton's own interpreter would step in before ours
        interpreter.install()
    else:
        interpreter.uninstall()
    return load(spec)


def initialise(spec: str, device: str, quiet: bool) -> None:
    """Once per process; what cannot be loaded is said by the first task."""
    global _implementation, _device  # one implementation per worker process
    if quiet:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    if device == "cuda":
        _on_one_gpu()
    try:
        _implementation, _device = prepare(spec, device), device
    except UsageError as e:  # it loads in the main process and not in this one: the first task says so
        _implementation = e
    for module in IMPORTED_LATE:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a million objects of torch and Triton that stay: collections need not walk them again and again
    gc.disable()  # see `_tidied`


def _on_one_gpu() -> None:
    """Spread workers over the GPUs; which worker has which does not matter."""
    torch.cuda.set_device(os.getpid() % torch.cuda.device_count())


def _loaded() -> Implementation:
    assert _implementation is not None
    if isinstance(_implementation, UsageError):
        raise UsageError(f"in a worker process (it loads in the main process): {_implementation}")
    return _implementation


def _leave_if_poisoned() -> None:
    """End this process if an earlier task has broken its CUDA context, as an illegal access does, for good.

    That one has its result; the pool gives this task to another worker.
    """
    if broken_context() is not None:
        os._exit(POISONED)


def evaluated(case: Case, phase: str, options: dict[str, Any]) -> Result:
    """`evaluate` with this worker's implementation."""
    _leave_if_poisoned()
    return _tidied(evaluate(case, _loaded(), phase, device=_device, **options))


def called(function: Callable[..., T], *args: Any) -> T:
    """`function(implementation, device, *args)`."""
    _leave_if_poisoned()
    return _tidied(function(_loaded(), _device, *args))


def _tidied(result: T) -> T:
    """What a task made is walked for garbage once, after it, and all that the process holds now and then.

    Translating kernels makes so many lasting objects that collections on the way would take half of the time.
    """
    global _tasks
    _tasks += 1
    gc.collect(2 if _tasks % _TASKS == 0 else 0)
    return result
