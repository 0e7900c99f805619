"""Single operations of Triton on the same numbers, and numpy's ways to compute them: which engine does which."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

Float = NDArray[np.float32]


@triton.jit
def _dot(a, b, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    at = tl.program_id(0) * BLOCK * BLOCK + i[:, None] * BLOCK + i[None, :]
    product = tl.dot(tl.load(a + at), tl.load(b + at), input_precision="ieee")
    tl.store(out + at, product)


@triton.jit
def _elementwise(a, b, out, BLOCK: tl.constexpr, OPERATION: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = tl.load(a + i), tl.load(b + i)
    if OPERATION == "exp":
        z = tl.exp(x)
    elif OPERATION == "exp2":
        z = tl.exp2(x)
    elif OPERATION == "log2":
        z = tl.log2(tl.abs(x))
    elif OPERATION == "sqrt":
        z = tl.sqrt(tl.abs(x))
    elif OPERATION == "divide":
        z = x / y
    elif OPERATION == "multiply and add":
        z = x * y + x
    else:
        z = x.to(tl.float16).to(tl.float32)
    tl.store(out + i, z)


@triton.jit
def _along_rows(a, b, out, BLOCK: tl.constexpr, OPERATION: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(a + tl.program_id(0) * BLOCK * BLOCK + i[:, None] * BLOCK + i[None, :])
    at = out + tl.program_id(0) * BLOCK * BLOCK + i[:, None] * BLOCK + i[None, :]
    if OPERATION == "sum over columns":
        tl.store(at, tl.broadcast_to(tl.sum(x, 1)[:, None], [BLOCK, BLOCK]))
    elif OPERATION == "sum over rows":
        tl.store(at, tl.broadcast_to(tl.sum(x, 0)[None, :], [BLOCK, BLOCK]))
    elif OPERATION == "maximum":
        tl.store(at, tl.broadcast_to(tl.max(x, 1)[:, None], [BLOCK, BLOCK]))
    else:
        tl.store(at, tl.cumsum(x, 1))


_TILES, _SIDE = 8, 32
#: what an operation of TTIR may be: the operations here that stand for it
STANDS_FOR = {
    "tt.dot": ("dot fp16", "dot fp32"), "tt.reduce": ("sum over columns", "sum over rows", "maximum"),
    "tt.scan": ("cumulative sum",), "math.exp": ("exp",), "math.exp2": ("exp2",), "math.log2": ("log2",),
    "math.sqrt": ("sqrt",), "arith.divf": ("divide",), "arith.mulf": ("multiply and add",),
    "arith.truncf": ("to fp16",),
}  # fmt: skip
#: numpy's functions of the same names, in float32
UNARY = {"exp": np.exp, "exp2": np.exp2, "log2": np.log2}
NAMES = tuple(name for names in STANDS_FOR.values() for name in names)


def inputs() -> tuple[Tensor, Tensor]:
    """Two times eight tiles of 32 x 32, N(0, 1)."""
    a, b = (torch.randn(_TILES, _SIDE, _SIDE, generator=torch.Generator().manual_seed(s)) for s in range(2))
    return a, b


def run(name: str) -> Tensor:
    """An operation alone, by the engine of this process."""
    a, b = inputs()
    out = torch.zeros_like(a)
    if name.startswith("dot"):
        dtype = torch.float16 if name.endswith("fp16") else torch.float32
        _dot[(_TILES,)](a.to(dtype), b.to(dtype), out, BLOCK=_SIDE)
    elif name in STANDS_FOR["tt.reduce"] + STANDS_FOR["tt.scan"]:
        _along_rows[(_TILES,)](a, b, out, BLOCK=_SIDE, OPERATION=name)
    else:
        _elementwise[(_TILES,)](a, b, out, BLOCK=_SIDE * _SIDE, OPERATION=name)
    return out


def _tree(x: Float, axis: int) -> Float:
    """The sum by halves."""
    x = np.moveaxis(x, axis, 0)
    while x.shape[0] > 1:
        x = x[: x.shape[0] // 2] + x[x.shape[0] // 2 :]
    return x[0]


def _in_order(x: Float, axis: int) -> Float:
    """The sum from first to last."""
    return np.cumsum(x, axis, dtype=np.float32).take(-1, axis)


def _doubling(x: Float) -> Float:
    """Running sums along the last axis (Hillis and Steele 1986)."""
    distance = 1
    while distance < x.shape[-1]:
        x = np.concatenate([x[..., :distance], x[..., :-distance] + x[..., distance:]], axis=-1)
        distance *= 2
    return x


def _sums(a: Float, axis: int) -> dict[str, Float]:
    ways: dict[str, Callable[[Float, int], Float]] = {
        "np.add.reduce over all tiles": lambda x, axis: np.add.reduce(x, axis=axis),
        "np.add.reduce tile by tile": lambda x, axis: np.stack([np.add.reduce(t, axis=axis - 1) for t in x]),
        "halves": _tree,
        "first to last": _in_order,
    }
    return {name: np.broadcast_to(np.expand_dims(way(a, axis), axis), a.shape) for name, way in ways.items()}


def candidates(name: str) -> dict[str, Float]:
    """Ways to compute an operation that differ in their last bits; none for an operation that has just one."""
    a, b = (x.numpy() for x in inputs())
    if name.startswith("dot"):
        if name.endswith("fp16"):
            a, b = (x.astype(np.float16).astype(np.float32) for x in (a, b))
        return {
            "np.matmul over all tiles": np.matmul(a, b),
            "np.matmul tile by tile": np.stack([np.matmul(x, y) for x, y in zip(a, b, strict=True)]),
            "float64, rounded once": np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.float32),
            "fp16 products and sums": np.stack(
                [np.matmul(x.astype(np.float16), y.astype(np.float16)) for x, y in zip(a, b, strict=True)]
            ).astype(np.float32),
        }
    if name == "sum over columns":
        return _sums(a, 2)
    if name == "sum over rows":
        return _sums(a, 1)
    if name == "cumulative sum":
        return {"first to last": np.cumsum(a, 2, dtype=np.float32), "at doubling distances": _doubling(a)}
    functions: dict[str, Callable[[Float], Float]] = {
        "exp": np.exp, "exp2": np.exp2, "log2": lambda x: np.log2(np.abs(x)), "sqrt": lambda x: np.sqrt(np.abs(x)),
    }  # fmt: skip
    if name in functions:
        f = functions[name]
        return {"numpy in float32": f(a), "float64, rounded once": f(a.astype(np.float64)).astype(np.float32)}
    if name == "multiply and add":
        wide = a.astype(np.float64) * b.astype(np.float64) + a.astype(np.float64)
        return {"two roundings": a * b + a, "one rounding": wide.astype(np.float32)}
    return {}
