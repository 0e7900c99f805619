"""Run Triton kernels without a GPU: faithfully or in any other arithmetic, with every access to memory watched.

How it works, in reading order: `runtime` steps in where Triton would compile; `ttir` reads the kernel as Triton's front
end left it; `program` runs it, all program instances at once; `ops` says what each operation does; `arithmetic` says
what numbers are, `arithmetics` which there are; `memory` is what a launch may touch, `tracking` and `ledger` what is
noted about it; `session` ties the launches of one `interpret` block together.
"""

from . import arithmetics
from .api import interpret
from .arithmetic import Arithmetic, Ieee
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
from .runtime import install, installed, uninstall
from .session import Session
from .tracking import Tracked

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
