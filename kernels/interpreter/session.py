"""The arithmetic and the memory that launches run in: those of the innermost `interpret` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .language.sites import Site, rounding_sites
from .language.ttir import Function, Location
from .memory.host import HostMode
from .memory.ledger import Ledger, numbers
from .memory.memory import Memory
from .memory.tracking import Tracked, Tracker
from .numbers.arithmetic import Arithmetic, Ieee
from .numbers.formats import Array


class Session:
    """One `interpret` block: what its launches share."""

    def __init__(self, arithmetic: Arithmetic, tracked: Tracked | None = None) -> None:
        self.arithmetic = arithmetic
        self.launches = 0
        self.launched: set[Function] = set()
        self.ledger = Ledger()
        self.tracker = None if tracked is None else Tracker(tracked)
        ledger = self.ledger if arithmetic.wide else None
        # conflicts are between instances of one launch: what the host does is nothing to them, and not listened to
        listens = tracked is not None and (tracked.uninitialised or tracked.unwritten)
        tracker = self.tracker if listens else None
        self._mode = HostMode(tracker, ledger, arithmetic) if ledger is not None or listens else None

    def memory(
        self, tensors: Sequence[tuple[str, torch.Tensor]], grid: tuple[int, int, int], written: Sequence[torch.Tensor],
        *, ordered: bool,
    ) -> Memory:  # fmt: skip
        """The memory of a launch that may write `written`; `ordered`: its instances wait for one another."""
        self.launches += 1
        watch = None if self.tracker is None else self.tracker.launch(grid, written, ordered=ordered)
        return Memory(tensors, self.arithmetic, grid, self.ledger, watch)

    def values(self, tensor: torch.Tensor) -> Array:
        """What a tensor holds, unrounded: an array of its shape, of `fmpq`, `mpfr`, float64 or float32 by arithmetic.

        Elements that no kernel of this block stored, or that the host has changed since, are what their bits say.
        """
        if not self.arithmetic.wide:
            return numbers(tensor)
        return self.ledger.read(tensor, self.arithmetic)

    def follow(self, *tensors: torch.Tensor) -> None:
        """Do what torch does with these tensors in wide arithmetic as well, from the numbers that they hold now."""
        if self.arithmetic.wide:
            for tensor in tensors:
                self.ledger.note(tensor, self.arithmetic.load(numbers(tensor), "f64"))

    def stored(self, tensor: torch.Tensor) -> Location:
        """The kernel's source line that last stored into a tensor; known in wide arithmetic only."""
        return self.ledger.stored(tensor)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Launches belong to this session inside the `with` block."""
        _sessions.append(self)
        try:
            if self._mode is None:
                yield
            else:
                with self._mode:
                    yield
            if self.tracker is not None:
                self.tracker.finish()
        finally:
            _sessions.remove(self)

    @property
    def sites(self) -> frozenset[Site]:
        """Where the kernels that were launched round."""
        return frozenset(site for function in self.launched for site in rounding_sites(function))

    @property
    def rounded_on_the_host(self) -> frozenset[str]:
        """Operations of torch that took unrounded numbers and rounded them."""
        return frozenset() if self._mode is None else frozenset(self._mode.rounded)


_sessions = [Session(Ieee())]


def current() -> Session:
    """The session that a launch belongs to."""
    return _sessions[-1]
