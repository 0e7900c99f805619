"""Regimes of which keys a query may see: the key on which an off-by-one turns outweighs all the others.

The edges are the mask's own, whatever it is made of: the diagonal, a window's ends, key lengths, holes in a boolean
mask, the first and the last key; and the edges of tiles.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..case import Case
from ..draws import Draws
from ..masking import drawn_mask
from .common import TILES, Values, matching, normals, regime

_NATS = 20.0  # by which the needle stands above the average key
Boolean = NDArray[np.bool_]


@regime("needle-inside", "each query matches the last key that it may still see: missing it changes everything")
def _(case: Case) -> Values:
    return _needles(case, inside=True)


@regime("needle-outside", "each query matches the first key that it may not see: a leak changes everything")
def _(case: Case) -> Values:
    return _needles(case, inside=False)


def _needles(case: Case, *, inside: bool) -> Values:
    values = normals(case)
    if case.N and case.M:
        values["q"], values["k"] = matching(case, _targets(case, inside=inside), _NATS, values)
    return Values(**values)


def _targets(case: Case, *, inside: bool) -> NDArray[np.int64]:
    """[B, H, M]: a visible key beside a hidden one or beside a tile's edge, or a hidden one beside a visible one."""
    seen = _visible(case)
    before, after = np.zeros_like(seen), np.zeros_like(seen)  # whether the neighbours are visible; none beyond the ends
    before[..., 1:], after[..., :-1] = seen[..., :-1], seen[..., 1:]
    draws = Draws(case.seed, "needles")
    rank = draws.uniform(*seen.shape)
    if inside:
        tile = draws.choice(TILES)
        key = np.arange(case.N)
        at_tile = (key % tile == 0) | (key % tile == tile - 1)
        border = seen & ~(before & after) & (draws.uniform(*seen.shape[:3], 1) < 0.75)
        rank += np.where(border, 3.0, np.where(seen & at_tile, 2.0, seen))  # any visible key is better than none
    else:
        hidden = ~seen
        rank += np.where(hidden & (before | after), 2.0, hidden)
    return np.asarray(rank.argmax(-1), np.int64)


def _visible(case: Case) -> Boolean:
    """[B, H, M, N]."""
    visible, _ = drawn_mask(case).rows(0, case.M, case.M, case.N, torch.device("cpu"))
    return np.asarray(np.broadcast_to(visible.numpy(), (case.B, case.H, case.M, case.N)))
