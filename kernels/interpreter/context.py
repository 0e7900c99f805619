"""What a maker of operations is given, and what the makers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .arithmetic import Arithmetic
from .formats import CARRIER, Array
from .memory import Memory
from .ttir import Op, Type

Run: TypeAlias = Callable[..., Any]


@dataclass(slots=True)
class Context:
    """What operations need beside their operands.  `memory` is that of the launch in progress."""

    arithmetic: Arithmetic
    types: dict[str, Type]
    memory: Memory | None = None

    def live_memory(self) -> Memory:
        """The memory of the launch in progress."""
        if self.memory is None:
            raise RuntimeError("a kernel touches memory only during a launch")
        return self.memory


Maker: TypeAlias = Callable[[Op, Context], Run]


def full(x: Array, shape: tuple[int, ...]) -> Array:
    """`x` with every tile extent written out (a view); the leading axis stays as it is."""
    return np.broadcast_to(x, (x.shape[0], *shape))


def carrier(type_: Type) -> np.dtype[Any]:
    """The numpy dtype of a value of this type; pointers are byte addresses."""
    return np.dtype(np.int64) if type_.is_pointer else CARRIER[type_.element]


def result(op: Op) -> Type:
    """The type of the first result."""
    return op.result_types[0]
