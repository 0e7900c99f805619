"""`interpret`: run Triton kernels on the CPU, in any arithmetic, with every access to memory watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .arithmetic import Arithmetic, Ieee
from .runtime import install, installed, uninstall
from .session import Session, _sessions


@contextmanager
def interpret(arithmetic: Arithmetic | None = None) -> Iterator[Session]:
    """Interpret Triton launches inside the `with` block."""
    before = installed()
    install()
    session = Session(arithmetic or Ieee())
    _sessions.append(session)
    try:
        yield session
    finally:
        _sessions.remove(session)
        if not before:
            uninstall()
