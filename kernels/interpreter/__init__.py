"""Run Triton kernels without a GPU, faithfully: fp16, bf16 and fp8 correctly rounded, every access bounds-checked.

How it works, in reading order: `runtime` steps in where Triton would compile; `ttir` reads the kernel as Triton's front
end left it; `program` runs it, all program instances at once; `ops` says what each operation does; `arithmetic` says
what numbers are; `formats` and `memory` are the ground floor.
"""

from .api import interpret
from .arithmetic import Arithmetic, Ieee
from .errors import KernelError, OutOfBoundsError, UnsupportedOperationError
from .runtime import install, installed, uninstall

__all__ = [
    "Arithmetic",
    "Ieee",
    "KernelError",
    "OutOfBoundsError",
    "UnsupportedOperationError",
    "install",
    "installed",
    "interpret",
    "uninstall",
]
