"""What a maker of operations is given, and what the makers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ..language.ttir import Op, Type
from ..memory.memory import Memory
from ..numbers.arithmetic import Arithmetic
from ..numbers.formats import FLOATS, INTEGERS, Array

Run: TypeAlias = Callable[..., Any]


@dataclass(slots=True)
class Launch:
    """The launch in progress; every operation of a program shares it."""

    memory: Memory | None = None


@dataclass(slots=True)
class Context:
    """What an operation needs beside its operands: the arithmetic at its rounding site, and the launch."""

    arithmetic: Arithmetic
    launch: Launch = field(default_factory=Launch)

    def memory(self) -> Memory:
        """The memory of the launch in progress."""
        if self.launch.memory is None:
            raise RuntimeError("a kernel touches memory only during a launch")
        return self.launch.memory


Maker: TypeAlias = Callable[[Op, Context], Run]


def full(x: Array, shape: tuple[int, ...]) -> Array:
    """`x` with every tile extent written out (a view); the leading axis stays as it is."""
    return np.broadcast_to(x, (x.shape[0], *shape))


def carrier(type_: Type, arithmetic: Arithmetic) -> np.dtype[Any]:
    """The numpy dtype of a value of this type; pointers are byte addresses."""
    if type_.element in FLOATS:
        return arithmetic.carrier(type_.element)
    return integer(type_)


def integer(type_: Type) -> np.dtype[Any]:
    """The numpy dtype of a value of this integer, boolean or pointer type."""
    return np.dtype(np.int64) if type_.is_pointer else INTEGERS[type_.element]


def result(op: Op) -> Type:
    """The type of the first result."""
    return op.result_types[0]
