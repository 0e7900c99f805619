"""Ctrl-C and SIGTERM: the parent alone hears them, once, and writes what there is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .problems import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def heed() -> None:
    """Ctrl-C and SIGTERM, with which CI ends a job and whose default leaves workers behind, are one interruption."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us has it ignored
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: Any) -> None:
    """Raise a KeyboardInterrupt; or end at once while torch is being imported, whose C++ would abort on one."""
    if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
        os.write(2, b"flashproof: interrupted\n")
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt


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
