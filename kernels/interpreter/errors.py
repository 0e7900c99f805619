"""What can go wrong inside an interpreted kernel, told in the terms of the kernel's own source."""

from __future__ import annotations

from .language.ttir import Location


class KernelError(RuntimeError):
    """A kernel that did something no GPU kernel may do.  `location` is the kernel's source line."""

    def __init__(self, message: str, location: Location | None = None) -> None:
        self.location = location or Location()
        self.message = message
        super().__init__(f"{message} [{self.location}]" if self.location.frames else message)

    def located(self, location: Location) -> KernelError:
        """The same error at a source line, if it has none yet."""
        return self if self.location.frames else type(self)(self.message, location)


class MemoryFaultError(KernelError):
    """An access to memory that no correct kernel makes."""


class OutOfBoundsError(MemoryFaultError):
    """An unmasked access outside every tensor that was passed to the kernel, or outside the part it was passed."""


class MisalignedError(MemoryFaultError):
    """An address that is no multiple of the size of what is accessed, or a descriptor that hardware would refuse."""


class UninitializedReadError(MemoryFaultError):
    """A read of memory that nothing has written."""


class ConflictError(MemoryFaultError):
    """Two program instances of one launch touch an element, at least one of them writes, and no atomic orders them."""


class UnwrittenError(MemoryFaultError):
    """A tensor that kernels wrote in part, and whose rest nothing has written."""


class UnsupportedOperationError(KernelError):
    """An operation that the interpreter does not know.  It never guesses a number."""


class IrrationalError(UnsupportedOperationError):
    """A result that is no rational number: exact arithmetic has no way to write it down."""
