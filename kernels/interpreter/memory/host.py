"""What the host does between launches, as far as interpreted kernels must know of it: torch's own operations.

Memory must know what `torch.empty` made and what the host has written since.  Wide arithmetic must go on where a
kernel's wrapper computes something itself (delta = rowsum(dO * O), say): the common operations are done again on the
wide numbers; the others round, and are remembered by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..language.sites import Site
from ..listening import ALLOCATIONS, Listener, name_of, tensors_in
from ..numbers.arithmetic import Arithmetic
from ..numbers.formats import Array
from .ledger import ELEMENTS, Ledger
from .tracking import Tracker

_COPIES = frozenset({"_to_copy", "clone", "copy_", "contiguous"})
_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "maximum": "maximum", "minimum": "minimum"}
_UNARY = {"neg": "neg", "exp": "exp", "exp2": "exp2", "log": "log", "log2": "log2", "sqrt": "sqrt", "rsqrt": "rsqrt",
          "abs": "abs", "reciprocal": "reciprocal"}  # fmt: skip
_EXACT = frozenset({"zero", "fill", "zeros_like", "ones_like", "isnan", "all", "any", "eq"})  # whatever they take
HOST = Site("torch", "host")  # the rounding site of what torch computes between launches


class HostMode(Listener):
    """Follows torch's operations on behalf of memory's tracker and of the ledger of wide numbers."""

    def __init__(self, tracker: Tracker | None, ledger: Ledger | None, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._tracker, self._ledger, self._arithmetic = tracker, ledger, arithmetic.at(HOST)
        self.rounded: set[str] = set()  # operations that took wide numbers and returned rounded ones

    def heard(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and note what it did to memory and to wide numbers."""
        name = name_of(func)
        if _is_view(func):
            return func(*args, **kwargs)
        written = list(_written(func, args, kwargs))
        inputs = [t for t in _tensors([*args, *kwargs.values()]) if t.device.type == "cpu"]
        if self._tracker is not None:
            overwritten = written if name in ("copy_", "zero_", "fill_", "normal_", "uniform_") else []
            for tensor in inputs:
                if not any(tensor is w for w in overwritten):
                    self._tracker.host_reads(name, tensor)
        wide = None
        if self._ledger is not None and any(self._ledger.knows(t) for t in inputs):
            wide = self._again(name, args, kwargs)
        out = func(*args, **kwargs)
        if self._tracker is not None:
            self._note(name, out, written)
        if wide is not None and self._ledger is not None:
            places = (self._ledger.stored(t) for t in inputs)
            self._ledger.note(out, wide, next((at for at in places if at.frames), None))
        return out

    def _note(self, name: str, out: Any, written: Sequence[torch.Tensor]) -> None:
        assert self._tracker is not None
        for tensor in _tensors([out]):
            if name in ALLOCATIONS:
                self._tracker.created(tensor)
            elif not any(tensor is w for w in written):
                self._tracker.initialise(tensor)
        for tensor in written:
            if self._tracker.knows(tensor):
                self._tracker.initialise(tensor)

    # -- wide numbers --------------------------------------------------------------------------------------------------

    def _wide(self, x: Any) -> Array:
        assert self._ledger is not None
        if not isinstance(x, torch.Tensor):
            return self._arithmetic.constant(float(x), "f64").reshape(())
        return self._ledger.read(x, self._arithmetic)

    def _again(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Array | None:
        """The operation in wide arithmetic, or None: then its result is what torch rounds it to."""
        base = name.removesuffix("_") if name not in _COPIES else name
        a = self._arithmetic
        try:
            if name in _COPIES:
                source = args[1] if name == "copy_" else args[0]
                target = kwargs.get("dtype") or args[0].dtype
                if not (_floating(source) and target.is_floating_point):
                    return None
                out = np.broadcast_to(self._wide(source), args[0].shape)
                if target == source.dtype or target.itemsize > source.dtype.itemsize:
                    return out
                return a.cast(out, ELEMENTS[source.dtype], ELEMENTS[target], toward_zero=False)
            if base in _BINARY and not kwargs and all(_floating(x) or not isinstance(x, torch.Tensor) for x in args):
                x, y = (self._wide(x).reshape(-1, *_shape(x)) for x in args[:2])
                return np.asarray(a.binary(_BINARY[base], x, y, "f32")[0])
            if base in _UNARY and not kwargs:
                x = self._wide(args[0])[None]
                if base == "reciprocal":
                    return np.asarray(a.binary("div", a.constant(1.0, "f32"), x, "f32")[0])
                return np.asarray(a.unary(_UNARY[base], x, "f32")[0])
            if name == "sum" and _floating(args[0]):
                return self._sum(args)
        except (ArithmeticError, RuntimeError, TypeError, ValueError):  # e.g. not rational
            pass
        if name not in ALLOCATIONS and base not in _EXACT:
            self.rounded.add(name)
        return None

    def _sum(self, args: Sequence[Any]) -> Array | None:
        x = self._wide(args[0])
        axes = args[1] if len(args) > 1 and args[1] is not None else list(range(x.ndim))
        axes = sorted({d % x.ndim for d in axes} or set(range(x.ndim)), reverse=True)
        for axis in axes:
            total = self._arithmetic.reduce("add", x, axis, "f32")
            if total is None:
                return None
            x = np.expand_dims(np.asarray(total, x.dtype), axis)
        keep = len(args) > 2 and args[2]
        return x if keep else x.squeeze(tuple(axes))


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape) if isinstance(x, torch.Tensor) else ()


def _floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """Those that have elements in memory."""
    return (t for t in tensors_in(values) if t.layout == torch.strided and t.numel())


def _is_view(func: Any) -> bool:
    """Whether the result shares the memory of an argument that is not written."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _written(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The arguments that an operation writes into."""
    for i, argument in enumerate(func._schema.arguments):  # type: ignore[attr-defined]
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) and not argument.kwarg_only else kwargs.get(argument.name)
            yield from _tensors([value])
