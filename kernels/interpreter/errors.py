"""What can go wrong inside an interpreted kernel, told in the terms of the kernel's own source."""

from __future__ import annotations

from .ttir import Location


class KernelError(RuntimeError):
    """A kernel that did something no GPU kernel may do.  `location` is the kernel's source line."""

    def __init__(self, message: str, location: Location | None = None) -> None:
        self.location = location or Location()
        super().__init__(f"{message} [{self.location}]" if self.location.frames else message)


class OutOfBoundsError(KernelError):
    """An unmasked access outside every tensor that was passed to the kernel."""


class UnsupportedOperationError(KernelError):
    """An operation that the interpreter does not know.  It never guesses a number."""
