"""flashproof: correctness and numerical-stability verification for attention kernels.

`flashproof.interpret` runs Triton kernels on the CPU, in any of `flashproof.arithmetics`, with memory tracked.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "arithmetics", "interpret"]


def __getattr__(name: str) -> Any:
    """Torch and triton take seconds to import: only when one of these is asked for."""
    if name in ("arithmetics", "interpret"):
        from flashproof.kernels import interpreter

        return getattr(interpreter, name)
    raise AttributeError(f"module 'flashproof' has no attribute {name!r}")
