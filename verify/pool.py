"""Worker processes that run kernels: a crash or a hang costs one case, never the run.

One process per core.  Each loads the implementation once; results come back as they are made.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any, TypeVar

import pebble

from .case import Case
from .evaluate import Result, evaluate, lost
from .implementation import Implementation, describe, load

T = TypeVar("T")

_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_IN_FLIGHT = 4  # tasks queued per worker: enough to keep it busy, few enough to stop quickly

_implementation: Implementation | None = None  # of this worker
_device = "cpu"


def prepare(spec: str, device: str) -> Implementation:
    """Make this process ready to run an implementation: the interpreter first, then the user's module."""
    import torch

    torch.set_num_threads(1)
    if device == "cpu":
        os.environ.pop("TRITON_INTERPRET", None)  # Triton's own interpreter would step in before ours
        from ..kernels import interpreter

        interpreter.install()
    return load(spec)


def _initialise(spec: str, device: str) -> None:
    global _implementation, _device  # noqa: PLW0603  (one implementation per worker process)
    _implementation, _device = prepare(spec, device), device


def _evaluate(case: Case, phase: str, options: dict[str, Any]) -> Result:
    assert _implementation is not None
    return evaluate(case, _implementation, phase, device=_device, **options)


def _call(function: Callable[..., T], *args: Any) -> T:
    assert _implementation is not None
    return function(_implementation, _device, *args)


class Pool:
    """Evaluates cases in worker processes."""

    def __init__(self, spec: str, device: str, workers: int, limit: float) -> None:
        self.workers, self.limit = workers, limit
        with _one_thread_each():
            self._pool = pebble.ProcessPool(
                max_workers=workers, initializer=_initialise, initargs=(spec, device),
                context=multiprocessing.get_context("spawn"),
            )  # fmt: skip

    def stop(self) -> None:
        """Kill the workers at once."""
        self._pool.stop()
        self._pool.join()

    def evaluate(self, cases: Iterable[Case], phase: str, **options: Any) -> Iterator[Result]:
        """Results in the order in which they come; a case whose process dies or hangs has a result that says so."""
        with _one_thread_each():
            pending: dict[Any, Case] = {}
            source = iter(cases)
            exhausted = False
            while not exhausted or pending:
                while not exhausted and len(pending) < _IN_FLIGHT * self.workers:
                    case = next(source, None)
                    if case is None:
                        exhausted = True
                        break
                    pending[self._pool.schedule(_evaluate, args=[case, phase, options], timeout=self.limit)] = case
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield self._outcome(future, pending.pop(future), phase)

    def one(self, case: Case, phase: str, **options: Any) -> Result:
        """One case."""
        return next(self.evaluate([case], phase, **options))

    def call(self, function: Callable[..., T], *args: Any, limit: float) -> T:
        """`function(implementation, device, *args)` in a worker; it and its arguments must pickle.

        Raises what the function raises, `TimeoutError` and `pebble.ProcessExpired`.
        """
        with _one_thread_each():
            result: T = self._pool.schedule(_call, args=[function, *args], timeout=limit).result()
        return result

    def _outcome(self, future: Any, case: Case, phase: str) -> Result:
        try:
            result: Result = future.result()
        except (TimeoutError, FutureTimeout):
            return lost(case, phase, "timeout", f"no result within {self.limit:g} s; the process was killed", self.limit)
        except pebble.ProcessExpired as e:
            return lost(case, phase, "crashed", f"the process died with exit code {e.exitcode}", 0.0)
        except Exception as e:  # noqa: BLE001  (our own failure on this case must not end the run, nor pass unseen)
            return lost(case, phase, "raised", f"while measuring: {describe(e)}", 0.0)
        return result


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers start with one BLAS thread each; two processes of two threads on two cores are slower than one."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(dict.fromkeys(_SETTINGS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
