"""Run Triton kernels without a GPU: faithfully or in any other arithmetic, with every access to memory watched.

How it works, in reading order: `runtime` steps in where Triton would compile; `language` reads the kernel as Triton's
front end left it; `program` runs it, all program instances at once; `operations` says what each operation does to
arrays; `numbers` says what arithmetic is, and `arithmetics` which there are; `memory` is what a launch may touch, and
what is noted about it; `session` ties the launches of one `interpret` block together.
"""

from . import arithmetics
from .api import interpret
from .errors import (
    ConflictError,
    IrrationalError,
    KernelError,
    MemoryFaultError,
    MisalignedError,
    OutOfBoundsError,
    UninitializedReadError,
    UnsupportedOperationError,
    UnwrittenError,
)
from .memory.tracking import Tracked
from .numbers.arithmetic import Arithmetic, Ieee
from .runtime import install, installed, uninstall
from .session import Session

__all__ = [
    "Arithmetic",
    "ConflictError",
    "Ieee",
    "IrrationalError",
    "KernelError",
    "MemoryFaultError",
    "MisalignedError",
    "OutOfBoundsError",
    "Session",
    "Tracked",
    "UninitializedReadError",
    "UnsupportedOperationError",
    "UnwrittenError",
    "arithmetics",
    "install",
    "installed",
    "interpret",
    "uninstall",
]
