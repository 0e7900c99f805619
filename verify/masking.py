"""From a case's mask recipe to the mask: what is drawn comes from the case's own seed."""

from __future__ import annotations

import numpy as np
import torch

from ..reference.masks import Mask
from .case import Case
from .draws import Draws

DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def drawn_mask(case: Case) -> Mask:
    """The mask of a case, on the CPU."""
    recipe, (B, H, M, N) = case.mask, (case.B, case.H, case.M, case.N)
    allowed = bias = lengths = None
    draws = Draws(case.seed, "mask")
    shape = draws.choice(((B, H, M, N), (B, 1, M, N), (1, H, M, N), (1, 1, M, N), (M, N), (H, M, N)))
    if recipe.boolean is not None:
        seen = torch.from_numpy(Draws(case.seed, "boolean").uniform(*shape) < 0.7)
        if recipe.boolean == "empty-rows":
            seen &= torch.from_numpy(Draws(case.seed, "rows").uniform(*shape[:-1], 1) < 0.7)
        elif recipe.boolean == "first-tile":
            seen[..., : min(32, max(0, N - 1))] = False
        allowed = seen
    if recipe.bias is not None:
        values = Draws(case.seed, "bias").normal(*shape)
        if recipe.bias == "alibi":
            distance = np.abs(np.arange(M)[:, None] - np.arange(N)[None, :])
            values = np.broadcast_to(-0.125 * distance, shape).copy()
        elif recipe.bias == "hidden":
            values[Draws(case.seed, "hidden").uniform(*shape) < 0.3] = -np.inf
        bias = torch.from_numpy(values.astype(np.float32)).to(DTYPES[case.dtype])
    if recipe.key_lengths:
        lengths = torch.from_numpy(Draws(case.seed, "lengths").integers(0, N + 1, B))
    return Mask(
        causal=recipe.causal, window=recipe.window or (None, None), alignment=recipe.alignment,
        allowed=allowed, bias=bias, key_lengths=lengths,
    )  # fmt: skip
