"""From a case's mask recipe to the mask and its memory layout: what is drawn comes from the case's own seed."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..reference.masks import Mask
from .case import Case, MaskRecipe
from .draws import Draws
from .storage import far, far_axes

_OF_QUERIES = 0.15  # of boolean masks: some queries see every key, the others none, and the keys are broadcast
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def drawn_mask(case: Case) -> Mask:
    """The mask of a case, on the CPU."""
    recipe, (B, H, M, N) = case.mask, (case.B, case.H, case.M, case.N)
    allowed = bias = lengths = None
    draws = Draws(case.seed, "mask")
    each = ((B, H, M, N), (B, 1, M, N), (1, H, M, N), (1, 1, M, N), (M, N), (H, M, N))
    alike = ((B, 1, 1, N), (H, 1, N))  # for all queries: padding as a bias, ALiBi by the key's place
    shape = draws.choice((*each, *alike))
    if recipe.boolean is not None:
        of_queries = recipe == MaskRecipe(boolean="random") and draws.uniform() < _OF_QUERIES
        allowed = _boolean(case, (B, 1, M, 1) if of_queries else shape)
    if recipe.bias is not None:
        values = Draws(case.seed, "bias").normal(*shape)
        if recipe.bias == "alibi":
            distance = np.abs(np.arange(shape[-2])[:, None] - np.arange(N)[None, :])
            values = np.broadcast_to(-0.125 * distance, shape).copy()
        elif recipe.bias == "large":
            values *= Draws(case.seed, "large").choice((8.0, 32.0))  # beyond fp16's largest exponential, and fp32's
        elif recipe.bias == "hidden":
            values[Draws(case.seed, "hidden").uniform(*shape) < 0.3] = -np.inf
        elif recipe.bias == "lowest":
            values = np.where(_padded_left(case, shape), 0.0, torch.finfo(DTYPES[case.dtype]).min)
        bias = torch.from_numpy(values.astype(np.float32)).to(DTYPES[case.dtype])
    if recipe.key_lengths:
        lengths = torch.from_numpy(Draws(case.seed, "lengths").integers(0, N + 1, B))
    return Mask(
        causal=recipe.causal, window=recipe.window or (None, None), alignment=recipe.alignment,
        allowed=allowed, bias=bias, key_lengths=lengths,
    )  # fmt: skip


def _boolean(case: Case, shape: tuple[int, ...]) -> Tensor:
    """A drawn mask of the kind that the case names."""
    kind = case.mask.boolean
    if kind == "documents":
        return _documents(case, shape)
    if kind == "band":
        return _band(case, shape)
    seen = torch.from_numpy(Draws(case.seed, "boolean").uniform(*shape) < 0.7)
    if kind == "empty-rows":
        seen &= torch.from_numpy(Draws(case.seed, "rows").uniform(*shape[:-1], 1) < 0.7)
    elif kind == "first-tile":
        tiles = [n for n in (32, 64, 128, 256) if n < case.N]
        seen[..., : Draws(case.seed, "tile").choice(tiles or [max(0, case.N - 1)])] = False
    return seen


def _documents(case: Case, shape: tuple[int, ...]) -> Tensor:
    """Two to four sequences in one, cut at the same parts of queries and keys; a single row is of one in the middle."""
    *outer, rows, columns = shape
    pieces = int(Draws(case.seed, "documents").integers(2, 5, 1)[0])
    cuts = torch.from_numpy(Draws(case.seed, "cuts").uniform(*outer, 1, pieces - 1))
    of_query, of_key = (
        ((torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / max(n, 1) > cuts).sum(-1) for n in (rows, columns)
    )
    together: Tensor = torch.eq(of_query[..., :, None], of_key[..., None, :])
    return together


def _band(case: Case, shape: tuple[int, ...]) -> Tensor:
    """The last queries see the last keys, each as many before it as some number of tiles' halves; all that is drawn."""
    *outer, rows, columns = shape
    width = Draws(case.seed, "band").choice((1, 16, 48, 72, 80, 96, 150))
    distance = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)
    seen: Tensor = (distance >= 0) & (distance < width)
    return seen.expand(*outer, rows, columns).clone()


def _padded_left(case: Case, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Causal from the last query and the last key on, without some number of first keys; all that is drawn."""
    *outer, rows, columns = shape
    lengths = np.array([n for n in (0, 1, columns // 3, 32, 64, 128, 256) if n < max(columns, 1)])
    padding = lengths[Draws(case.seed, "padding").integers(0, len(lengths), *outer, 1, 1)]
    key = np.arange(columns)
    seen = key <= np.arange(rows)[:, None] + columns - rows if rows > 1 else np.ones((rows, columns), dtype=bool)
    return np.asarray(seen & (key >= padding))


@lru_cache(maxsize=1 << 16)
def has_empty_rows(case: Case) -> bool:
    """Whether some query sees no key."""
    if case.mask == MaskRecipe() or case.empty:
        return case.N == 0 < case.M
    visible, _ = drawn_mask(case).rows(0, case.M, case.M, case.N, torch.device("cpu"))
    return not bool(visible.any(-1).all())


def placed_mask(case: Case, mask: Mask) -> Mask:
    """The same restrictions in the case's memory layout."""
    lengths = mask.key_lengths
    if lengths is not None and case.layout == "gaps":  # in between: every key exists
        lengths = _within(lengths, (2,), 1, case.N)
    allowed, bias = (None if x is None else _placed(case, x) for x in (mask.allowed, mask.bias))
    return replace(mask, allowed=allowed, bias=bias, key_lengths=lengths)


def _placed(case: Case, x: Tensor) -> Tensor:
    """A mask [..., M, N] as its users make them."""
    if case.layout == "bshd":  # queries outermost: all heads of a query side by side
        return x.movedim(-2, 0).contiguous().movedim(0, -2)
    if case.layout == "columns":  # the keys stride
        return x.mT.contiguous().mT
    if case.layout == "far" and x.numel() and (axes := far_axes(x.shape)):
        return far(x, Draws(case.seed, "far mask").choice(axes))
    if case.layout == "expanded":  # one mask for all heads, and for all batch elements: stride 0
        return x.expand(case.B, case.H, case.M, case.N)
    if case.layout in ("packed", "gaps"):  # a part of a longer mask, made once; or every stride padded, an odd offset
        more, offset = ((5, 3), 0) if case.layout == "packed" else ((7, 3), 17)
        rows, row = x.shape[-2] + more[0], x.shape[-1] + more[1]
        outer = [math.prod(x.shape[i + 1 : -2]) * rows * row for i in range(x.dim() - 2)]
        return _within(x, (*outer, row, 1), offset, True if x.dtype == torch.bool else math.nan)
    return x


def _within(x: Tensor, strides: tuple[int, ...], offset: int, other: float) -> Tensor:
    """The same values in a larger storage; `other` lies in between and around."""
    size = sum(max(n - 1, 0) * stride for n, stride in zip(x.shape, strides, strict=True)) + 1
    storage = torch.full((offset + size + 16,), other, dtype=x.dtype)
    return storage.as_strided(x.shape, strides, offset).copy_(x)
