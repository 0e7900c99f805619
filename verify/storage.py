"""A tensor's whole storage: what lies between and beside its elements is a part of what a kernel is given."""

from __future__ import annotations

import torch
from torch import Tensor


def storage_of(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Every element of the storage, in order and shared; read as another dtype if one is given."""
    return torch.empty(0, dtype=x.dtype if dtype is None else dtype, device=x.device).set_(x.untyped_storage())


def placed_like(x: Tensor, storage: Tensor) -> Tensor:
    """The elements of a storage as large as that of x, seen with x's shape, strides and offset."""
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())
