"""The memory that a launch may touch: the storages of the tensors passed to it, and nothing else.

A pointer is its byte address.  Every unmasked access is resolved to a known storage, so that reading or writing outside
is an error that names the kernel's source line, where real hardware returns a neighbour's data or faults.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from .errors import OutOfBoundsError
from .formats import LOW_PRECISION, STORAGE, Array, decode, encode, round_to
from .ttir import Location

_ATOMICS: dict[str, Any] = {
    "fadd": np.add, "add": np.add, "max": np.maximum, "min": np.minimum, "umax": np.maximum, "umin": np.minimum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "exch": lambda _, new: new,
}  # fmt: skip


class Memory:
    """Byte-addressed view of the storages behind `tensors`."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        spans = sorted((base, s) for base, s in storages.items() if s.nbytes() > 0)
        self._bases = [base for base, _ in spans]
        self._bytes = [torch.empty(0, dtype=torch.uint8).set_(s).numpy() for _, s in spans]

    def _view(self, lowest: int, highest: int, dtype: np.dtype[Any], verb: str, at: Location) -> tuple[int, Array]:
        """The storage that holds [lowest, highest + itemsize), as an array of `dtype`, and its base address."""
        i = int(np.searchsorted(self._bases, lowest, side="right")) - 1
        if i < 0 or highest + dtype.itemsize > self._bases[i] + self._bytes[i].size:
            raise OutOfBoundsError(self._explain(lowest, highest, dtype.itemsize, verb, i), at)
        data = self._bytes[i]
        return self._bases[i], data[: data.size // dtype.itemsize * dtype.itemsize].view(dtype)

    def _explain(self, lowest: int, highest: int, itemsize: int, verb: str, i: int) -> str:
        if i < 0:
            return f"out-of-bounds {verb}: address {lowest:#x} lies before every tensor passed to the kernel"
        beyond = highest + itemsize - self._bases[i] - self._bytes[i].size
        return f"out-of-bounds {verb}: {beyond} bytes past the end of a tensor's storage of {self._bytes[i].size} bytes"

    @staticmethod
    def _settle(address: Array, mask: Array | None) -> Array | None:
        """Addresses with hidden ones replaced by a visible one; None when nothing is visible."""
        if mask is None:
            return address
        if mask.all():
            return np.broadcast_to(address, np.broadcast_shapes(address.shape, mask.shape))
        address, mask = np.broadcast_arrays(address, mask)
        first = int(mask.argmax())
        if not mask.flat[first]:
            return None
        return np.where(mask, address, address.flat[first])

    def load(self, address: Array, mask: Array | None, other: Array | None, element: str, at: Location) -> Array:
        """Numbers at `address` (int64), carried; where `mask` is false `other`, or 0 (what NVIDIA's code gives)."""
        dtype = STORAGE[element]
        where = self._settle(address, mask)
        if where is None:
            shape = np.broadcast_shapes(address.shape, mask.shape if mask is not None else ())
            empty = decode(np.zeros((1,) * len(shape), dtype), element)
            return np.broadcast_to(empty if other is None else other, shape)
        if where.size == 0:
            return decode(np.zeros(where.shape, dtype), element)
        base, view = self._view(int(where.min()), int(where.max()), dtype, "read", at)
        index = where - base
        index >>= dtype.itemsize.bit_length() - 1
        values = decode(view.take(index), element)
        if mask is None or (other is None and where is address):
            return values
        return np.where(mask, values, values.dtype.type(0) if other is None else other)

    def store(self, address: Array, values: Array, mask: Array | None, element: str, at: Location) -> None:
        """Write carried `values`; where two lanes write one address the later wins."""
        dtype = STORAGE[element]
        where, bits = np.broadcast_arrays(address, encode(values, element))
        if mask is not None:
            where, bits, mask = np.broadcast_arrays(where, bits, mask)
            where, bits = where[mask], bits[mask]
        if where.size == 0:
            return
        base, view = self._view(int(where.min()), int(where.max()), dtype, "write", at)
        view[(where - base) >> (dtype.itemsize.bit_length() - 1)] = bits

    def atomic(self, kind: str, address: Array, values: Array, mask: Array | None, element: str, at: Location) -> Array:
        """Read-modify-write, lane after lane; returns the old values (0 where masked out)."""
        dtype = STORAGE[element]
        if kind.startswith("u"):
            dtype = np.dtype(dtype.str.replace("i", "u"))
        arrays = [address, values, np.True_ if mask is None else mask]
        where, new, visible = np.broadcast_arrays(*arrays)
        old = np.zeros(where.shape, values.dtype)
        flat = np.flatnonzero(visible)
        if flat.size == 0:
            return old
        targets = where.reshape(-1)[flat]
        base, view = self._view(int(targets.min()), int(targets.max()), dtype, "atomic access", at)
        index = (targets - base) >> (dtype.itemsize.bit_length() - 1)
        operand = new.reshape(-1)[flat]
        combine = _ATOMICS[kind]
        seen = np.empty(flat.size, values.dtype)
        if np.unique(index).size == index.size:  # no two lanes meet: all at once
            seen = decode(view[index], element)
            view[index] = _encode_rounded(combine(seen, operand), element, dtype)
        else:
            for lane, i in enumerate(index):
                seen[lane] = decode(view[i : i + 1], element)[0]
                view[i : i + 1] = _encode_rounded(
                    combine(seen[lane : lane + 1], operand[lane : lane + 1]), element, dtype
                )
        old.reshape(-1)[flat] = seen
        return old

    def compare_and_swap(self, address: Array, expected: Array, values: Array, element: str, at: Location) -> Array:
        """Atomic compare-and-swap, lane after lane; returns the old values."""
        dtype = STORAGE[element]
        where, want, new = np.broadcast_arrays(address, expected, values)
        old = np.empty(where.shape, values.dtype)
        for lane in np.ndindex(where.shape):
            base, view = self._view(int(where[lane]), int(where[lane]), dtype, "atomic access", at)
            i = (int(where[lane]) - base) >> (dtype.itemsize.bit_length() - 1)
            old[lane] = decode(view[i : i + 1], element)[0]
            if old[lane] == want[lane]:
                view[i : i + 1] = encode(new[lane].reshape(1), element)
        return old


def _encode_rounded(values: Array, element: str, dtype: np.dtype[Any]) -> Array:
    rounded = round_to(values, element) if element in LOW_PRECISION else values
    return encode(rounded, element).view(dtype) if element.startswith("i") else encode(rounded, element)
