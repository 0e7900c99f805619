"""Wide numbers beside the bits that memory holds of them.

A launch in exact arithmetic stores, say, 1/3: the tensor gets its bf16 rounding, the ledger gets 1/3.  A later load of
those bits, by any kernel, finds 1/3 again, unless the host has changed the bits meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..language.ttir import Location
from ..numbers.arithmetic import Arithmetic
from ..numbers.formats import STORAGE, Array, decode, storage_bytes

ELEMENTS = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8E4M3FN", torch.float8_e5m2: "f8E5M2",
}  # fmt: skip


@dataclass(slots=True)
class Page:
    """What is known of one storage, item by item."""

    storage: torch.UntypedStorage  # held, so that its address is not given to another
    known: Array  # bool
    bits: Array  # as they were when the number was remembered
    values: Array
    stored: Location  # the last store


class Ledger:
    """Of one `interpret` block.  It keeps every storage that it knows something of alive."""

    def __init__(self) -> None:
        self._pages: dict[tuple[int, int], Page] = {}

    def _page(self, tensor: torch.Tensor, itemsize: int) -> Page | None:
        return self._pages.get((tensor.untyped_storage().data_ptr(), itemsize))

    def remember(self, tensor: torch.Tensor, view: Array, index: Array, values: Array, at: Location) -> None:
        """The items `index` of `tensor`'s storage, whose bits are now `view[index]`, stand for `values`."""
        page = self._page(tensor, view.itemsize)
        if page is None or page.values.dtype != values.dtype:
            storage, unsigned = tensor.untyped_storage(), np.dtype(f"u{view.itemsize}")
            page = Page(storage, np.zeros(view.size, np.bool_), np.zeros(view.size, unsigned),
                        np.zeros(view.size, values.dtype), at)  # fmt: skip
            self._pages[storage.data_ptr(), view.itemsize] = page
        page.known[index] = True
        page.bits[index] = view.view(page.bits.dtype)[index]
        page.values[index] = values
        page.stored = at

    def recall(self, tensor: torch.Tensor, view: Array, index: Array, values: Array) -> Array:
        """`values`, decoded from the bits, with those replaced that are remembered and whose bits are unchanged."""
        page = self._page(tensor, view.itemsize)
        if page is None or page.values.dtype != values.dtype:
            return values
        same = page.known[index] & (page.bits[index] == view.view(page.bits.dtype)[index])
        return np.where(same, page.values[index], values) if same.any() else values

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether anything is remembered of the tensor's storage."""
        return self._page(tensor, tensor.element_size()) is not None

    def read(self, tensor: torch.Tensor, arithmetic: Arithmetic) -> Array:
        """A tensor's numbers, of its shape: what is remembered, and else what the bits say."""
        values = arithmetic.load(numbers(tensor), "f64")
        page = self._page(tensor, tensor.element_size())
        if page is None or page.values.dtype != values.dtype:
            return values
        now = storage_bytes(tensor)[: page.bits.size * page.bits.itemsize].view(page.bits.dtype)
        known = strided(page.known & (page.bits == now), tensor)
        return np.where(known, strided(page.values, tensor), values)

    def note(self, tensor: torch.Tensor, values: Array, at: Location | None = None) -> None:
        """Every element of the tensor, whose bits are as they should be, stands for one of `values`."""
        size = tensor.element_size()
        view = storage_bytes(tensor)
        view = view[: view.size // size * size].view(f"u{size}")
        index = strided(np.arange(view.size), tensor)
        self.remember(tensor, view, index, values, at or Location())

    def stored(self, tensor: torch.Tensor) -> Location:
        """The source line of the last store into the tensor's storage; unknown if none is remembered."""
        page = self._page(tensor, tensor.element_size())
        return Location() if page is None else page.stored


def numbers(tensor: torch.Tensor) -> Array:
    """The elements of a floating CPU tensor as float32 or float64, exact; no torch operation takes part."""
    element = ELEMENTS[tensor.dtype]
    size = STORAGE[element].itemsize
    raw = storage_bytes(tensor)
    return decode(strided(raw[: raw.size // size * size].view(STORAGE[element]), tensor), element)


def strided(items: Array, tensor: torch.Tensor) -> Array:
    """Notes about the items of a storage, as a tensor on that storage sees them."""
    strides = tuple(s * items.itemsize for s in tensor.stride())
    return np.lib.stride_tricks.as_strided(items[tensor.storage_offset() :], tensor.shape, strides)
