"""The folder that a command was told to write to: what is wrong with it is one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..problems import UsageError


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Errors of the file system inside are the user's: UsageError."""
    try:
        yield
    except OSError as e:
        raise UsageError(f"{out} cannot be written to ({e.strerror or e})") from e


def made(out: Path) -> None:
    """The folder; to be called before anything that takes long."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
