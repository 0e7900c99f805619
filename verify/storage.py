"""A tensor's whole storage: what lies between and beside its elements is a part of what a kernel is given.

The storage of a `wide` tensor is larger than memory may be, and nothing but the tensor's own elements is looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WIDE = 2**30  # bytes
_FAR = 2**31  # elements: one more than an offset of 32 bits can say
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def storage_of(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Every element of the storage, in order and shared; read as another dtype if one is given."""
    return torch.empty(0, dtype=x.dtype if dtype is None else dtype, device=x.device).set_(x.untyped_storage())


def is_wide(x: Tensor) -> bool:
    """Whether the storage is too large to be copied or compared."""
    return x.untyped_storage().nbytes() > _WIDE


def bits_of(x: Tensor) -> Tensor:
    """What a kernel could change, as integers, shared: the whole storage, or the elements of a wide tensor."""
    return x.view(_BITS[x.element_size()]) if is_wide(x) else storage_of(x, torch.uint8)


def mapped(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The elements of a changed storage in the places of x's; beside those of a wide one lies nothing in particular."""
    if is_wide(x):
        values = change(x)
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=values.device).copy_(values)
    return change(storage_of(x)).as_strided(x.shape, x.stride(), x.storage_offset())


def far_axes(shape: tuple[int, ...]) -> list[int]:
    """The axes along which a tensor [.., rows, columns] can be `far`.

    Short ones, for each step takes a page of memory; but a step itself is to fit into 31 bits, so that kernels that
    are compiled for the types of their strides are none but those that other layouts need.
    """
    return [axis for axis, n in enumerate(shape[:-1]) if 3 <= n <= 160]


def far(x: Tensor, axis: int) -> Tensor:
    """The same values, the last along an axis 2^31 elements after the first, so that an offset of 32 bits overflows.

    The system gives memory to what is written alone; all that lies between reads as zeros.

    Raises:
        RuntimeError: where so large a piece of address space cannot be had.
    """
    rest = x.movedim(axis, 0)
    step = -(-_FAR // (x.shape[axis] - 1))
    strides = (-(-step // 16) * 16, *rest[0].contiguous().stride())
    there = torch.empty_strided(rest.shape, strides, dtype=x.dtype, device=x.device).movedim(0, axis)
    return there.copy_(x)
