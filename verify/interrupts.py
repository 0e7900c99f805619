"""Ctrl-C and SIGTERM: the parent alone hears them, once, and writes what there is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from .problems import INTERRUPTED

_deferrals = 0
_heard = False  # while it was deferred


def heed() -> None:
    """Ctrl-C and SIGTERM, with which CI ends a job and whose default leaves workers behind, are one interruption."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


def ignore() -> None:
    """From here on this process only ends, with the exit code that it has."""
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)


def _interrupt(*_: Any) -> None:
    """Raise a KeyboardInterrupt, now or later; or end at once while torch's C++ starts, which would abort on one."""
    global _heard
    if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
        os.write(2, b"flashproof: interrupted\n")
        os._exit(INTERRUPTED)
    if not _deferrals:
        raise KeyboardInterrupt
    _heard = True


@contextmanager
def blocked() -> Iterator[None]:
    """Threads and processes that start in here never see a SIGINT: they inherit the mask from the first moment."""
    resource_tracker.ensure_running()  # multiprocessing's own: when it starts, it unblocks what is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deferred() -> Iterator[None]:
    """In here an interruption is raised by `check` alone, in the main thread, and by every one until this is left.

    Raised at any other moment it may leave a lock locked that other threads wait for, or a record torn.
    """
    defer()
    try:
        yield
    finally:
        end_deferral()


def defer() -> None:
    """Begin what `deferred` says; it may be begun several times, and is left as often."""
    global _deferrals  # signals are the whole process's
    _deferrals += 1


def end_deferral() -> None:
    """What was heard too late to be raised is forgotten: what was begun is done."""
    global _deferrals, _heard
    _deferrals -= 1
    if not _deferrals:
        _heard = False


def check() -> None:
    """Raise a KeyboardInterrupt if one was heard while it was deferred; only the main thread does."""
    if _heard and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
