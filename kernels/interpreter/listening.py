"""Listening to torch's operations, as the interpreter does and as checks do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .torch_compile import keep_out

#: the names of the operations whose result holds whatever was in memory
ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"})


class Listener(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no annotations; nor below
    """Sees every operation that torch dispatches while it is entered; by itself it only passes them on.

    A function that `torch.compile` has compiled runs compiled all the same, and is compiled as if nobody listened: what
    it does inside, in code of its own, is not seen.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not torch's way: it would import the compiler, a second of work, where nothing is ever compiled."""
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Else a function called while somebody listens would run uncompiled, with other roundings; for good, even."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        return self.heard(func, args, kwargs or {})

    def heard(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operation; its result."""
        return func(*args, **kwargs)


# torch's compiler would compile a listener that hears an operation of what it compiles
keep_out(Listener.__torch_dispatch__)


def name_of(func: Any) -> str:
    """Of an operation, whichever overload; of a higher-order one, such as FlexAttention's."""
    return str(getattr(func, "overloadpacket", func).__name__)


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among an operation's arguments or results, those in lists and tuples included."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
