"""Ctrl-C and SIGTERM: the parent alone hears them, once, and writes what there is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def heed_termination() -> None:
    """SIGTERM, with which CI ends a job, is an interruption like Ctrl-C: its default leaves workers behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def blocked() -> Iterator[None]:
    """Threads and processes that start in here never see a SIGINT: they inherit the mask from the first moment."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def ignored() -> Iterator[None]:
    """For the seconds in which a record is written: an impatient second Ctrl-C must not tear it."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield
        return
    # not SIG_IGN: a worker that starts at this moment would inherit it, and could not be ended
    before = {s: signal.signal(s, lambda *_: None) for s in _SIGNALS}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
