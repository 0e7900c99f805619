"""The arithmetic and the memory that launches run in: those of the innermost `interpret` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .arithmetic import Arithmetic, Ieee
from .ledger import Ledger
from .memory import Memory


class Session:
    """What launches share: the arithmetic, and what is known of the memory between them."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic
        self.ledger = Ledger()

    @contextmanager
    def launch(self, tensors: Sequence[tuple[str, torch.Tensor]], grid: tuple[int, int, int]) -> Iterator[Memory]:
        """The memory of one launch."""
        yield Memory(tensors, self.arithmetic, grid, self.ledger)


_sessions = [Session(Ieee())]


def current() -> Session:
    """The session that a launch belongs to."""
    return _sessions[-1]
