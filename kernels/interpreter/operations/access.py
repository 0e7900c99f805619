"""Operations with an effect: loads, stores, atomics, assertions."""

from __future__ import annotations

import sys

import numpy as np

from ..descriptors import MISALIGNED
from ..errors import KernelError, MisalignedError
from ..language.ttir import Op
from ..numbers.formats import Array, itemsize
from .context import Context, Maker, Run


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


def _assert(op: Op, context: Context) -> Run:
    message = str(op.attributes["text"])

    def run(condition: Array) -> None:
        if condition.all():
            return
        if message.startswith(MISALIGNED):
            if context.memory().tracked:
                raise MisalignedError(message, op.location)
        else:
            raise KernelError(f"device assertion failed: {message}", op.location)

    return run


def _print(op: Op, _: Context) -> Run:
    prefix = op.attributes["text"]
    hexadecimal = op.attributes.get("hex") is True
    signs = op.attributes.get("isSigned")
    shapes = [t.shape for t in op.operand_types]

    def run(x: Array, y: Array, z: Array, *values: Array) -> None:
        lanes = max(v.shape[0] for v in (x, y, z, *values))
        ids = np.broadcast_arrays(x, y, z)
        for lane in range(lanes):
            pid = ", ".join(str(i[lane if i.shape[0] > 1 else 0]) for i in ids)
            if not values:
                print(f"pid ({pid}){prefix}", file=sys.stdout)  # noqa: T201  # it is what the kernel asks for
            for n, (value, shape) in enumerate(zip(values, shapes, strict=True)):
                tile = np.broadcast_to(value, (lanes, *shape))[lane]
                if isinstance(signs, list) and not signs[n] and tile.dtype.kind == "i":
                    tile = tile.view(f"u{tile.dtype.itemsize}")
                operand = f"(operand {n}) " if len(values) > 1 else ""
                for index in np.ndindex(tile.shape):
                    number = tile[index]
                    text = f"0x{int(number):0{2 * tile.dtype.itemsize}x}" if hexadecimal else f"{number}"
                    where = f" idx ({', '.join(map(str, index))})" if index else " idx ()"
                    print(f"pid ({pid}){where}{prefix}{operand}{text}", file=sys.stdout)  # noqa: T201

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
    "tt.print": _print,
    # hints, and barriers between threads of one instance, mean nothing here
    **dict.fromkeys(("llvm.intr.assume", "gpu.barrier", "ttg.barrier"), lambda _op, _: lambda *_: None),
}
