"""Numbers in a kernel's source that stand for others: log2(e) and ln(2), written down as the nearest float.

A kernel that turns exp(x) into exp2(x log2(e)) means the real number.  Arithmetics that are more precise than the
kernel's formats restore it; otherwise they would prove no more than that the float nearest to log2(e) is not log2(e).
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np

BaseChange: TypeAlias = Literal["log2(e)", "ln(2)"]
_VALUES: dict[BaseChange, float] = {"log2(e)": 1 / math.log(2), "ln(2)": math.log(2)}
_FRACTIONS: dict[float, tuple[BaseChange, int]] = {}
for _name, _value in _VALUES.items():
    for _rounded in (np.float32(_value), np.float64(_value)):
        _fraction, _exponent = math.frexp(_rounded)
        _FRACTIONS[_fraction] = (_name, _exponent - math.frexp(_value)[1])


def base_change(value: float) -> tuple[BaseChange, int, int] | None:
    """(which, k, sign) if `value` is sign 2^k times log2(e) or ln(2), rounded to fp32 or fp64; else None."""
    fraction, exponent = math.frexp(value)
    found = _FRACTIONS.get(abs(fraction))
    if found is None:
        return None
    return found[0], exponent - math.frexp(_VALUES[found[0]])[1], -1 if fraction < 0 else 1


def real(value: float) -> float:
    """The float64 number nearest to what `value` stands for."""
    found = base_change(value)
    return value if found is None else found[2] * math.ldexp(_VALUES[found[0]], found[1])
