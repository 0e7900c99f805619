"""Operations on whole tiles: shapes, gathers, matrix products."""

from __future__ import annotations

import re

import numpy as np

from ..errors import UnsupportedOperationError
from ..language.ttir import Op
from ..numbers.formats import FLOATS, Array
from .context import Context, Maker, Run, full, result


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
    if precision not in ("ieee", "tf32", "tf32x3"):
        raise UnsupportedOperationError(f"tt.dot of {a_type} with input precision {precision}", op.location)
    if operands not in FLOATS:  # int8: exact, and wraps round in int32
        return lambda a, b, c: (
            np.matmul(full(a, a_type.shape).astype(np.int32), full(b, b_type.shape), dtype=np.int32) + c
        )
    dot = context.arithmetic.dot
    return lambda a, b, c: dot(full(a, a_type.shape), full(b, b_type.shape), c, operands, target, precision)


#: the 16 numbers of e2m1, by their bits (OCP Microscaling Formats, 5.3.3)
_E2M1 = np.array([sign * x for sign in (1, -1) for x in (0, 0.5, 1, 1.5, 2, 3, 4, 6)], np.float32)
_SCALED_FORMATS = {"e2m1": "i8", "e4m3": "f8E4M3FN", "e5m2": "f8E5M2", "bf16": "bf16", "fp16": "f16"}


def _dot_scaled(op: Op, context: Context) -> Run:
    """Operands times 2^(scale - 127), one scale for every 32 along K; the product accumulates in float32.

    Scaled operands are bf16 numbers on devices without this instruction, which holds them exactly short of overflow.
    """
    m = re.match(r"\s*%\S+?( scale %\S+)?, %\S+?( scale %\S+)?, %\S+ lhs = (\w+) rhs = (\w+)", op.words)
    if m is None or m[3] not in _SCALED_FORMATS or m[4] not in _SCALED_FORMATS:
        raise UnsupportedOperationError(f"tt.dot_scaled of this form: {op.words.strip()}", op.location)
    packed = [op.attributes.get(f"{side}_k_pack", True) is not False for side in ("lhs", "rhs")]
    arithmetic, target = context.arithmetic, result(op).element
    shapes = [t.shape for t in op.operand_types]

    def operand(x: Array, scale: Array | None, name: str, *, pack_k: bool, k_axis: int) -> Array:
        if name == "e2m1":
            axis = k_axis if pack_k else (-3 - k_axis)  # -1 <-> -2
            nibbles = np.stack([x & 15, (x >> 4) & 15], axis=axis)  # the lower four bits first
            shape = list(x.shape)
            shape[axis] *= 2
            x = arithmetic.load(_E2M1[nibbles.reshape(shape)], "f32")
        if scale is None:
            return x
        exponent = scale.view(np.uint8).astype(np.int32)
        factor = np.where(exponent == 255, np.float32(np.nan), np.ldexp(np.float32(1), exponent - 127))
        if k_axis == -2:
            factor = factor.swapaxes(-1, -2)  # scales of the right side are [N, K / 32]
        factor = np.repeat(factor, x.shape[k_axis] // factor.shape[k_axis], axis=k_axis)
        return arithmetic.binary("mul", x, arithmetic.load(factor, "f32"), "bf16")

    def run(*ins: Array) -> Array:
        values = iter(full(x, s) for x, s in zip(ins, shapes, strict=True))
        a, a_scale = next(values), next(values) if m[1] else None
        b, b_scale = next(values), next(values) if m[2] else None
        left = operand(a, a_scale, m[3], pack_k=packed[0], k_axis=-1)
        right = operand(b, b_scale, m[4], pack_k=packed[1], k_axis=-2)
        return arithmetic.dot(left, right, next(values), "bf16", target, "ieee")

    return run


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
    "tt.dot_scaled": _dot_scaled,
}
