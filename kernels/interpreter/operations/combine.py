"""Reductions and scans with any combine function, over all program instances at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..language.ttir import Op
from ..numbers.arithmetic import Arithmetic
from ..numbers.formats import FLOATS, Array
from .context import Run

#: (left operands, right operands, scalars read from outside) -> combined, elementwise on arrays of any shape
Combine: TypeAlias = Callable[[Sequence[Array], Sequence[Array], Sequence[Array]], list[Array]]

_INTEGER = {"addi": np.add, "maxsi": np.maximum, "minsi": np.minimum, "andi": np.bitwise_and, "ori": np.bitwise_or,
            "xori": np.bitwise_xor}  # fmt: skip


def reduction(op: Op, combine: Combine, known: str | None, arithmetic: Arithmetic) -> Run:
    """`tt.reduce`: `known` is the name of the one operation in its combine region, for which numpy has a reduction."""
    axis = int(op.attributes["axis"]) + 1  # type: ignore[arg-type]
    shapes = [t.shape for t in op.operand_types]
    element = op.operand_types[0].element

    def run(*operands: Array) -> Any:
        lanes = max(x.shape[0] for x in operands)
        operands, outside = operands[: len(shapes)], _outside(operands[len(shapes) :], len(shapes[0]))
        xs = [np.broadcast_to(x, (lanes, *s)) for x, s in zip(operands, shapes, strict=True)]
        if known is not None and element in FLOATS:
            out = arithmetic.reduce(known.removesuffix("f"), xs[0], axis, element)
            if out is not None:
                return out
        elif known in _INTEGER and element != "i1":
            return _INTEGER[known].reduce(xs[0], axis=axis)
        xs = [np.moveaxis(x, axis, 0) for x in xs]
        while xs[0].shape[0] > 1:  # a tree of neighbours, so that order is kept; tile extents are powers of two
            xs = combine([x[::2] for x in xs], [x[1::2] for x in xs], outside)
        outs = [np.broadcast_to(x, (1, lanes, *x.shape[2:]))[0] for x in xs]
        return outs[0] if len(outs) == 1 else tuple(outs)

    return run


def _outside(scalars: Sequence[Array], rank: int) -> list[Array]:
    """Scalars that a combine function captures, shaped to go with operands whose first axis is the reduced one."""
    return [x.reshape(x.shape[0], *(1,) * (rank - 1)) for x in scalars]


def scan(op: Op, combine: Combine) -> Run:
    """`tt.scan`: an inclusive scan in log2(n) steps (Hillis and Steele 1986)."""
    axis, reverse = int(op.attributes["axis"]) + 1, bool(op.attributes["reverse"])  # type: ignore[arg-type]
    shapes = [t.shape for t in op.operand_types]

    def run(*operands: Array) -> Any:
        lanes = max(x.shape[0] for x in operands)
        operands, outside = operands[: len(shapes)], _outside(operands[len(shapes) :], len(shapes[0]))
        xs = [np.moveaxis(np.broadcast_to(x, (lanes, *s)), axis, 0) for x, s in zip(operands, shapes, strict=True)]
        xs = [x[::-1] if reverse else x for x in xs]
        distance = 1
        while distance < xs[0].shape[0]:
            moved = combine([x[:-distance] for x in xs], [x[distance:] for x in xs], outside)
            xs = [np.concatenate([x[:distance], m]) for x, m in zip(xs, moved, strict=True)]
            distance *= 2
        outs = [np.moveaxis(x[::-1] if reverse else x, 0, axis) for x in xs]
        return outs[0] if len(outs) == 1 else tuple(outs)

    return run
