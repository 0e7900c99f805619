"""Wide numbers beside the bits that memory holds of them.

A launch in exact arithmetic stores, say, 1/3: the tensor gets its bf16 rounding, the ledger gets 1/3.  A later load of
those bits, by any kernel, finds 1/3 again, unless the host has changed the bits meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .formats import Array


@dataclass(slots=True)
class Page:
    """What is known of one storage, item by item."""

    storage: torch.UntypedStorage  # held, so that its address is not given to another
    known: Array  # bool
    bits: Array  # as they were when the number was remembered
    values: Array


class Ledger:
    """Of one `interpret` block.  It keeps every storage that it knows something of alive."""

    def __init__(self) -> None:
        self._pages: dict[tuple[int, int], Page] = {}

    def _page(self, tensor: torch.Tensor, itemsize: int) -> Page | None:
        return self._pages.get((tensor.untyped_storage().data_ptr(), itemsize))

    def remember(self, tensor: torch.Tensor, view: Array, index: Array, values: Array) -> None:
        """The items `index` of `tensor`'s storage, whose bits are now `view[index]`, stand for `values`."""
        page = self._page(tensor, view.itemsize)
        if page is None or page.values.dtype != values.dtype:
            storage, unsigned = tensor.untyped_storage(), np.dtype(f"u{view.itemsize}")
            page = Page(storage, np.zeros(view.size, np.bool_), np.zeros(view.size, unsigned),
                        np.zeros(view.size, values.dtype))  # fmt: skip
            self._pages[storage.data_ptr(), view.itemsize] = page
        page.known[index] = True
        page.bits[index] = view.view(page.bits.dtype)[index]
        page.values[index] = values

    def recall(self, tensor: torch.Tensor, view: Array, index: Array, values: Array) -> Array:
        """`values`, decoded from the bits, with those replaced that are remembered and whose bits are unchanged."""
        page = self._page(tensor, view.itemsize)
        if page is None or page.values.dtype != values.dtype:
            return values
        same = page.known[index] & (page.bits[index] == view.view(page.bits.dtype)[index])
        return np.where(same, page.values[index], values) if same.any() else values

    def values(self, tensor: torch.Tensor) -> tuple[Array, Array] | None:
        """What is remembered of `tensor`: (values, known), both of its shape; None if nothing is."""
        page = self._page(tensor, tensor.element_size())
        if page is None:
            return None
        raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
        now = raw[: page.bits.size * page.bits.itemsize].view(page.bits.dtype)
        known = page.known & (page.bits == now)
        return _strided(page.values, tensor), _strided(known, tensor)


def _strided(items: Array, tensor: torch.Tensor) -> Array:
    """The items of a storage as a tensor on that storage sees them."""
    strides: tuple[Any, ...] = tuple(s * items.itemsize for s in tensor.stride())
    return np.lib.stride_tricks.as_strided(items[tensor.storage_offset() :], tensor.shape, strides, writeable=False)
