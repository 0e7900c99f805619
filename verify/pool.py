"""Worker processes that run kernels: a crash or a hang costs one case, never the run.

One process per core.  Each loads the implementation once; results come back as they are made.  What a kernel prints is
dropped: a survey would repeat it thousands of times, and a replay shows it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import pebble

from . import interrupts
from .case import Case
from .evaluate import Result, without_result
from .outputs import describe
from .problems import FlashproofError, LostError
from .processes import context, workers_environment
from .worker import POISONED, called, evaluated, initialise

T = TypeVar("T")

_IN_FLIGHT = 4  # tasks queued per worker: enough to keep it busy, few enough to stop quickly
_RESTARTS = 8  # of a whole pool; what is lost then is not a case's fault, and will not end by itself
PULSE = 0.2  # seconds between two looks at whether the pool itself still works, and whether to go on
_SILENCE = 600.0  # seconds beyond a task's limit after which it does not: a worker's start may compile a module


@dataclass(slots=True)
class _Task:
    case: Case
    future: Any = None


class Pool:
    """Evaluates cases in worker processes, for any number of threads."""

    def __init__(self, spec: str, device: str, workers: int, limit: float, *, quiet: bool = True) -> None:
        self.workers, self.limit = workers, limit
        self._initial = (spec, device, quiet)
        self._restarts = self._poisoned = 0
        self._stopped = False
        self.stores: bool | None = None  # what `evaluate` is told of the function; None: each worker finds out
        self._lock = threading.Lock()
        self._outstanding: set[Any] = set()  # futures
        self._heard = time.monotonic()  # when a task was last done, or the pool started
        interrupts.defer()  # to the end of `stop`: the pool's threads share locks with this one
        try:
            self._pool = self._started()
        except BaseException:
            interrupts.end_deferral()
            raise

    def _started(self) -> Any:
        pool = pebble.ProcessPool(
            max_workers=self.workers, initializer=initialise, initargs=self._initial,
            context=context(self._initial[1]),
        )  # fmt: skip
        with workers_environment(), interrupts.blocked():
            if not pool.active:  # asking starts it: its threads and workers inherit what is blocked here
                raise FlashproofError("no worker process could be started")
        self._heard = time.monotonic()
        return pool

    def _schedule(self, function: Callable[..., Any], *args: Any) -> Any:
        """A future."""
        with self._lock:
            if self._stopped:
                raise LostError("the run was stopped")
            while True:
                if not self._pool.active:
                    self._restart()
                try:
                    future = self._pool.schedule(function, args=args, timeout=self.limit)
                    break
                except RuntimeError:
                    if self._pool.active:  # else it broke in between
                        raise
            if not self._outstanding:
                self._heard = time.monotonic()
            self._outstanding.add(future)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Any) -> None:
        self._outstanding.discard(future)
        self._heard = time.monotonic()

    def _ended(self, ended: SimpleQueue[Any]) -> list[Any]:
        """The futures that are in this queue, of which there is one at least.

        A pool breaks when a worker dies between two tasks; tasks that are handed to it at that moment it forgets.

        Raises:
            KeyboardInterrupt: the user's, in the main thread.
        """
        interrupts.check()
        futures: list[Any] = []
        while not futures:
            try:
                futures.append(ended.get(timeout=PULSE))
            except Empty:
                interrupts.check()
                self._look_after_pool()
        while not ended.empty():
            futures.append(ended.get())
        return futures

    def _look_after_pool(self) -> None:
        with self._lock:
            silent = time.monotonic() - self._heard > self.limit + _SILENCE
            if not self._stopped and (silent or not self._pool.active):
                self._restart()

    def _restart(self) -> None:
        self._restarts += 1
        if self._restarts > _RESTARTS:
            name = self._initial[0]
            raise FlashproofError(f"worker processes of {name} keep dying between cases; try flashproof replay")
        self._end()
        self._pool = self._started()

    def _is_yet_to_be_done(self, future: Any) -> bool:
        """Whether a task ended by no fault of its own: with its pool, or in a CUDA context that was broken before.

        Raises:
            FlashproofError: new workers find their contexts broken too.
        """
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            return True
        if not (isinstance(error, pebble.ProcessExpired) and error.exitcode == POISONED):
            self._poisoned = 0
            return False
        self._poisoned += 1
        if self._poisoned > _RESTARTS * self.workers:
            raise FlashproofError("the CUDA device answers no process any more; reset it, or use --device cpu")
        return True

    def stop(self) -> None:
        """Kill the workers at once, for good."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._end()
                interrupts.end_deferral()

    def _end(self) -> None:
        """Of the pool, with all its threads; whoever waits for one of its tasks learns that it is broken."""
        self._pool.stop()
        self._pool.join()
        for future in tuple(self._outstanding):
            with suppress(InvalidStateError):  # cancelled at this moment
                future.set_exception(BrokenProcessPool("it ended before the task was done"))

    def evaluate(self, cases: Iterable[Case], phase: str, **options: Any) -> Iterator[Result]:
        """Results in the order of the cases; a case whose process dies or hangs has a result that says so."""
        tasks: deque[_Task] = deque()  # in the order of the cases, from the first whose result is not yielded yet
        running: dict[Any, _Task] = {}  # by future
        ended: SimpleQueue[Any] = SimpleQueue()  # of futures: thousands of tasks may end while the first goes on
        source = iter(cases)

        def start(task: _Task) -> None:
            task.future = self._schedule(evaluated, task.case, phase, {"stores": self.stores} | options)
            running[task.future] = task
            task.future.add_done_callback(ended.put)

        with workers_environment():
            try:
                while True:
                    for case in islice(source, max(0, _IN_FLIGHT * self.workers - len(running))):
                        tasks.append(_Task(case))
                        start(tasks[-1])
                    if not tasks:
                        return
                    for future in self._ended(ended):
                        task = running.pop(future)
                        if self._is_yet_to_be_done(future):
                            start(task)
                    while tasks and tasks[0].future not in running:
                        task = tasks.popleft()
                        yield self._outcome(task.future, task.case, phase)
            finally:
                for future in running:  # nobody waits for these any more
                    future.cancel()

    def one(self, case: Case, phase: str, **options: Any) -> Result:
        """One case."""
        return next(self.evaluate([case], phase, **options))

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """`function(implementation, device, *args)` in a worker; it and its arguments must pickle.

        Raises:
            LostError: the function under test hung or killed the worker.
            Exception: what `function` raises.
        """
        with workers_environment():
            result = self._answer(self._schedule(called, function, *args), function, *args)
        if isinstance(result, LostError):
            raise result
        return result  # type: ignore[no-any-return]

    def calls(self, function: Callable[..., T], arguments: Sequence[Any]) -> Iterator[tuple[Any, T | LostError]]:
        """(argument, `function(implementation, device, argument)`) for each, in order, over all workers."""
        with workers_environment():
            futures = [self._schedule(called, function, x) for x in arguments]
            try:
                for argument, future in zip(arguments, futures, strict=True):
                    yield argument, self._answer(future, function, argument)
            finally:
                for future in futures:
                    future.cancel()

    def _answer(self, future: Any, function: Callable[..., Any], *args: Any) -> Any:
        name = self._initial[0]
        ended: SimpleQueue[Any] = SimpleQueue()
        try:
            while True:
                future.add_done_callback(ended.put)
                self._ended(ended)
                if not self._is_yet_to_be_done(future):
                    break
                future = self._schedule(called, function, *args)
            return future.result()
        except TimeoutError:
            return LostError(f"{name} gave no result within {self.limit:g} s and was killed")
        except pebble.ProcessExpired as e:
            return LostError(f"{name} ended its process: {_death(e.exitcode)}")

    def _outcome(self, future: Any, case: Case, phase: str) -> Result:
        try:
            result: Result = future.result()
        except TimeoutError:
            message = f"no result within {self.limit:g} s; the process was killed"
            return without_result(case, phase, "timeout", message, self.limit)
        except pebble.ProcessExpired as e:
            return without_result(case, phase, "crashed", f"the process died: {_death(e.exitcode)}", 0.0)
        except FlashproofError:  # the worker could not be made ready; nothing to do with this case
            raise
        except Exception as e:  # noqa: BLE001  (our own failure on this case must not end the run, nor pass unseen)
            return without_result(case, phase, "raised", f"while measuring: {describe(e)}", 0.0)
        return result


def _death(code: int) -> str:
    """An exit code in words."""
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"exit code {code}"
