"""The paths that a command was told: what is wrong with them is one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..problems import UsageError


class Place(click.Path):
    """A path that says something: an empty one, as of a shell variable that is not set, would be the current folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value) == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


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
