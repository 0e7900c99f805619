"""The arithmetics that a kernel can be run in; pass one to `flashproof.interpret`."""

from __future__ import annotations

import numpy as np

from .numbers.arithmetic import Arithmetic, Ieee
from .numbers.precise import Precise
from .numbers.rational import Rational
from .numbers.rounded import Format, Rounded
from .numbers.tensor_core import TensorCore


def ieee() -> Arithmetic:
    """Faithful: each operation in the format that the kernel names, to nearest even; `tl.dot` accumulates in fp32."""
    return Ieee()


def exact() -> Arithmetic:
    """Rationals.  `exp2(x)` is 2^x and `exp(x)` is 4^x, of integers; log2(e) and ln(2) are 2 and 1/2: their laws hold.

    Raises (in a launch): `IrrationalError`, naming the operation and its source line, where a result is not rational.
    """
    return Rational()


def precise(digits: int) -> Arithmetic:
    """`digits` decimal digits in every operation (MPFR).

    Raises:
        ValueError: unless `digits` is from 1 to 100,000.
    """
    if not 1 <= digits <= 100_000:
        raise ValueError(f"digits must be from 1 to 100000, not {digits}")
    return Precise(digits)


def float64() -> Arithmetic:
    """Double precision in every operation, and no other rounding."""
    return Rounded("none")


def format(p: int, emin: int, emax: int) -> Arithmetic:
    """Every operation rounded to nearest even, to `p` significant bits and exponents from `emin` to `emax`.

    Raises:
        ValueError: for a format that float64 does not contain.
    """
    return Rounded("nearest", Format(p, emin, emax))


def stochastic(seed: int) -> Arithmetic:
    """The kernel's own formats, each rounding up or down at random in proportion: repeat it to see which digits hold.

    (Parker 1997, "Monte Carlo arithmetic"; the number of digits that the runs share is that of the significant ones.)
    """
    return Rounded("random", random=np.random.default_rng(seed))


def tensor_core(block: int = 16, fraction: int = 25) -> Arithmetic:
    """Faithful, but `tl.dot` truncates as tensor cores do: in blocks of products, `fraction` bits below the largest."""
    return TensorCore(block, fraction)


def only(*sites: str) -> Arithmetic:
    """Float64, rounded as the kernel says at the named sites and nowhere else: what one rounding contributes.

    Args:
        sites: kinds (`scores`, `exp`, `P`, `dP`, `dS`, `operands`, `accumulators`, `output`, `constants`; `host` is
            what torch computes between launches), names of kernels, `kernel:kind`, or source lines as `file.py:61`.
    """
    return Rounded("nearest", only=frozenset(sites))
