"""Operations on whole tiles: shapes, gathers, matrix products."""

from __future__ import annotations

import numpy as np

from .context import Context, Maker, Run, full, result
from .errors import UnsupportedOperationError
from .formats import FLOATS, Array
from .ttir import Op


def _splat(op: Op, _: Context) -> Run:
    rank = len(result(op).shape)
    return lambda x: x.reshape(x.shape[0], *(1,) * rank)


def _unsplat(_op: Op, _: Context) -> Run:
    return lambda x: x.reshape(x.shape[0])


def _expand_dims(op: Op, _: Context) -> Run:
    axis = int(op.attributes["axis"]) + 1  # type: ignore[arg-type]
    return lambda x: np.expand_dims(x, axis)


def _reshape(op: Op, _: Context) -> Run:
    source, target = op.operand_types[0].shape, result(op).shape
    return lambda x: full(x, source).reshape(x.shape[0], *target)


def _trans(op: Op, _: Context) -> Run:
    order = op.attributes["order"]
    assert isinstance(order, list)
    axes = (0, *(o + 1 for o in order))
    return lambda x: x.transpose(axes)


def _join(_op: Op, _: Context) -> Run:
    return lambda a, b: np.stack(np.broadcast_arrays(a, b), axis=-1)


def _split(op: Op, _: Context) -> Run:
    shape = op.operand_types[0].shape

    def run(x: Array) -> tuple[Array, Array]:
        whole = full(x, shape)
        return whole[..., 0], whole[..., 1]

    return run


def _cat(op: Op, _: Context) -> Run:
    shape = op.operand_types[0].shape

    def run(a: Array, b: Array) -> Array:
        lanes = max(a.shape[0], b.shape[0])
        return np.concatenate([np.broadcast_to(x, (lanes, *shape)) for x in (a, b)], axis=1)

    return run


def _gather(op: Op, _: Context) -> Run:
    axis = int(op.attributes["axis"]) + 1  # type: ignore[arg-type]
    source, indices = op.operand_types[0].shape, op.operand_types[1].shape

    def run(x: Array, index: Array) -> Array:
        lanes = max(x.shape[0], index.shape[0])
        return np.take_along_axis(
            np.broadcast_to(x, (lanes, *source)), np.broadcast_to(index, (lanes, *indices)).astype(np.int64), axis
        )

    return run


def _histogram(op: Op, _: Context) -> Run:
    source, (bins,) = op.operand_types[0].shape, result(op).shape

    def run(x: Array, mask: Array | None = None) -> Array:
        lanes = max(x.shape[0], 1 if mask is None else mask.shape[0])
        values = np.broadcast_to(x, (lanes, *source))
        counted = (values >= 0) & (values < bins) & (True if mask is None else np.broadcast_to(mask, values.shape))
        out = np.zeros((lanes, bins), np.int32)
        np.add.at(out, (np.nonzero(counted)[0], values[counted]), 1)
        return out

    return run


def _dot(op: Op, context: Context) -> Run:
    a_type, b_type = op.operand_types[:2]
    operands, target = a_type.element, result(op).element
    words = op.words.replace(" ", "")
    precision = words.partition("inputPrecision=")[2].split(",")[0].strip() or "ieee"
    precision = str(op.attributes.get("inputPrecision", precision))
    if precision not in ("ieee", "tf32", "tf32x3") or (a_type.element not in FLOATS):
        raise UnsupportedOperationError(f"tt.dot of {a_type} with input precision {precision}", op.location)
    dot = context.arithmetic.dot
    return lambda a, b, c: dot(full(a, a_type.shape), full(b, b_type.shape), c, operands, target, precision)


TILES: dict[str, Maker] = {
    "tt.splat": _splat,
    "tt.unsplat": _unsplat,
    "tt.broadcast": lambda _op, _: lambda x: x,
    "tt.expand_dims": _expand_dims,
    "tt.reshape": _reshape,
    "tt.trans": _trans,
    "tt.join": _join,
    "tt.split": _split,
    "tt.cat": _cat,
    "tt.gather": _gather,
    "tt.histogram": _histogram,
    "tt.dot": _dot,
}
