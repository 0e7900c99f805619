"""Operations with an effect: loads, stores, atomics, assertions."""

from __future__ import annotations

import numpy as np

from .context import Context, Maker, Run
from .errors import KernelError
from .formats import Array, itemsize
from .ttir import Op


def _add_pointer(op: Op, _: Context) -> Run:
    size = itemsize(op.operand_types[0].pointee)
    return lambda pointer, offset: pointer + offset.astype(np.int64) * size


def _pointee(op: Op) -> str:
    pointee = op.operand_types[0].pointee
    return "i64" if pointee.startswith("ptr<") else pointee


def _load(op: Op, context: Context) -> Run:
    element, at = _pointee(op), op.location
    return lambda lanes, p, mask=None, other=None: context.memory().load(lanes, p, mask, other, element, at)


def _store(op: Op, context: Context) -> Run:
    element, at = _pointee(op), op.location
    return lambda lanes, p, value, mask=None: context.memory().store(lanes, p, value, mask, element, at)


def _atomic_rmw(op: Op, context: Context) -> Run:
    kind, element, at = op.words.split(",")[0].strip(), _pointee(op), op.location
    return lambda lanes, p, value, mask=None: context.memory().atomic(kind, lanes, p, value, mask, element, at)


def _atomic_cas(op: Op, context: Context) -> Run:
    element, at = _pointee(op), op.location
    return lambda lanes, p, cmp, value: context.memory().compare_and_swap(lanes, p, cmp, value, element, at)


def _assert(op: Op, _: Context) -> Run:
    message = op.words.partition('"')[2].rpartition('"')[0]

    def run(condition: Array) -> None:
        if not condition.all():
            raise KernelError(f"device assertion failed: {message}", op.location)

    return run


#: operations that are handed the numbers of the program instances before their operands
NEED_LANES = frozenset({"tt.load", "tt.store", "tt.atomic_rmw", "tt.atomic_cas"})
ACCESS: dict[str, Maker] = {
    "tt.addptr": _add_pointer,
    "tt.load": _load,
    "tt.store": _store,
    "tt.atomic_rmw": _atomic_rmw,
    "tt.atomic_cas": _atomic_cas,
    "tt.assert": _assert,
    # hints, barriers between threads of one instance, and prints mean nothing here
    **dict.fromkeys(("llvm.intr.assume", "gpu.barrier", "ttg.barrier", "tt.print"), lambda _op, _: lambda *_: None),
}
