"""The memory that a launch may touch: the storages of the tensors passed to it, and nothing else.

A pointer is a byte address.  Each tensor argument lives in a region of addresses of its own, far from all others, so
that an address says which tensor it was derived from, and running off the end of one never lands in another.  Every
unmasked access is resolved to a region; what fits none is an error that names the kernel's source line.

In arithmetics whose tiles hold more than the bits in memory do (rationals, say) a store is remembered in the ledger
beside the bits that it rounds to, and a load of those same bits finds it again: so numbers travel from one kernel to
the next unrounded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import MisalignedError, OutOfBoundsError
from ..language.ttir import Location
from ..numbers.arithmetic import Arithmetic
from ..numbers.formats import FLOATS, STORAGE, Array, decode, encode, storage_bytes
from .ledger import Ledger

_ATOMICS: dict[str, Any] = {
    "add": np.add, "max": np.maximum, "min": np.minimum, "umax": np.maximum, "umin": np.minimum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
_REGION_BITS = 44  # 16 TiB a region, whose storage begins in the middle: what is before it belongs to it too
_TAG = 1 << 60  # no address of a process is that high


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """One tensor argument: its storage as bytes, and where the launch sees it."""

    name: str
    tensor: torch.Tensor
    base: int  # address of the storage's first byte, as the kernel sees it
    bytes: Array

    @property
    def address(self) -> int:
        """Where the tensor's first element is."""
        return self.base + int(self.tensor.storage_offset()) * self.tensor.element_size()

    def index(self, offset: int) -> str:
        """The element at a byte offset into the storage, as the tensor's owner would write it."""
        element = offset // self.tensor.element_size() - int(self.tensor.storage_offset())
        strides = self.tensor.stride()
        rest, where = element, [0] * self.tensor.dim()
        for axis in sorted(range(self.tensor.dim()), key=lambda a: -strides[a]):
            if strides[axis] > 0:
                where[axis], rest = divmod(rest, strides[axis])
        inside = rest == 0 and all(0 <= i < n for i, n in zip(where, self.tensor.shape, strict=True))
        return f"{self.name}[{', '.join(map(str, where))}]" if inside and where else f"element {element} of {self.name}"


class Watch(Protocol):
    """Told of every access, before it happens; `index` counts items of `dtype` from the storage's start."""

    strict: bool  # whether to report descriptors that some hardware would refuse

    def read(self, region: Region, index: Array, lanes: Array, dtype: np.dtype[Any], at: Location) -> None: ...

    def write(self, region: Region, index: Array, lanes: Array, bits: Array, at: Location) -> None: ...

    def update(self, region: Region, index: Array, lanes: Array, dtype: np.dtype[Any], at: Location) -> None:
        """Atomically."""


def _base(i: int) -> int:
    """The address of the first byte of storage i, as kernels see it."""
    return _TAG | i << _REGION_BITS | 1 << (_REGION_BITS - 1)


class Memory:
    """Byte-addressed view of the tensors that one launch was given.

    Args:
        tensors: names and tensors; a tensor that occurs twice has one region.
        arithmetic: of what is loaded and stored.
        grid: to turn the number of a program instance into its ids.
        ledger: remembers wide numbers; needed where `arithmetic.wide`.
        watch: told of every access.
    """

    def __init__(
        self, tensors: Iterable[tuple[str, torch.Tensor]], arithmetic: Arithmetic, grid: tuple[int, int, int],
        ledger: Ledger | None = None, watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self._arithmetic, self._grid = arithmetic, grid
        self._ledger = ledger if arithmetic.wide else None
        self._watch = watch
        self._regions: list[Region] = []
        self._by_tensor: dict[int, Region] = {}
        for name, tensor in tensors:
            if id(tensor) not in self._by_tensor:
                self._by_tensor[id(tensor)] = self._add(name, tensor, _base(len(self._regions)))

    def _add(self, name: str, tensor: torch.Tensor, base: int) -> Region:
        region = Region(name, tensor, base, storage_bytes(tensor))
        self._regions.append(region)
        return region

    @property
    def tracked(self) -> bool:
        """Whether what real hardware would refuse is to be reported."""
        return self._watch is not None and self._watch.strict

    def address(self, tensor: torch.Tensor) -> int:
        """Where the kernel sees the first element of one of its tensors."""
        return self._by_tensor[id(tensor)].address

    # -- from addresses to storages ------------------------------------------------------------------------------------

    def _region(self, address: int) -> Region | None:
        if address & _TAG:
            i = (address ^ _TAG) >> _REGION_BITS
            return self._regions[i] if 0 <= i < len(self._by_tensor) else None
        for region in self._regions[len(self._by_tensor) :]:
            if 0 <= address - region.base < region.bytes.size:
                return region
        for found in gc.get_objects():  # a real address, which the host took with data_ptr() and hid in a tensor
            if type(found) is torch.Tensor and found.device.type == "cpu" and found.layout == torch.strided:
                base = found.untyped_storage().data_ptr()
                if 0 <= address - base < found.untyped_storage().nbytes():
                    return self._add("a tensor that the kernel has the address of", found, base)
        return None

    def _resolve(
        self, address: Array, lanes: Array, dtype: np.dtype[Any], verb: str, at: Location
    ) -> tuple[Region, Array, Array]:
        """The region that holds all of `address`, its storage as items of `dtype`, and each address's index there."""
        low, high = int(address.min()), int(address.max())
        region = self._region(low)
        if region is None or low < region.base or high + dtype.itemsize > region.base + region.bytes.size:
            self._out_of_bounds(address, lanes, dtype, verb, at)
        assert region is not None
        if (low | high) & (dtype.itemsize - 1):
            odd = address if low & (dtype.itemsize - 1) else -address
            raise MisalignedError(
                f"misaligned {verb} of {dtype.itemsize} bytes at byte {low - region.base} of {region.name}'s storage, "
                f"{self._program(odd.argmin(), address, lanes)}", at,
            )  # fmt: skip
        index = address - region.base
        index >>= dtype.itemsize.bit_length() - 1
        items = region.bytes.size // dtype.itemsize
        return region, region.bytes[: items * dtype.itemsize].view(dtype), index

    def _out_of_bounds(self, address: Array, lanes: Array, dtype: np.dtype[Any], verb: str, at: Location) -> None:
        """Say which of the addresses is the first outside."""
        for i, a in enumerate(address.reshape(-1).tolist()):
            region = self._region(a)
            if region is not None and region.base <= a and a + dtype.itemsize <= region.base + region.bytes.size:
                continue
            program = self._program(i, address, lanes)
            if region is None:
                raise OutOfBoundsError(f"out-of-bounds {verb}: address {a:#x} is in no tensor, {program}", at)
            offset, size = a - region.base, region.bytes.size
            beyond = (
                f"{offset + dtype.itemsize - size} bytes past the end" if offset >= 0
                else f"{-offset} bytes before the start"
            )  # fmt: skip
            raise OutOfBoundsError(
                f"out-of-bounds {verb}: {region.index(offset)}, {beyond} of its storage of {size} bytes, {program}", at
            )
        raise OutOfBoundsError(f"out-of-bounds {verb}: one access spans several tensors", at)

    def _program(self, flat: Any, address: Array, lanes: Array) -> str:
        """The program instance of an element of `address`, in words."""
        lane = int(flat) * address.shape[0] // address.size if address.ndim else 0
        return f"by program {program_ids(int(lanes[min(lane, lanes.shape[0] - 1)]), self._grid)}"

    @staticmethod
    def _settle(address: Array, mask: Array) -> Array | None:
        """Addresses with hidden ones replaced by a visible one; None when nothing is visible."""
        address, mask = np.broadcast_arrays(address, mask)
        first = int(mask.argmax())
        if not mask.flat[first]:
            return None
        return np.where(mask, address, address.flat[first])

    # -- from bits to numbers ------------------------------------------------------------------------------------------

    def _get(self, region: Region, view: Array, index: Array, element: str) -> Array:
        values = decode(view.take(index), element)
        if element not in FLOATS:
            return values
        values = self._arithmetic.load(values, element)
        return values if self._ledger is None else self._ledger.recall(region.tensor, view, index, values)

    def _put(self, region: Region, view: Array, index: Array, values: Array, element: str, at: Location) -> None:
        if element in FLOATS:
            bits = encode(self._arithmetic.store(values, element), element)
        else:
            bits = values.astype(view.dtype, copy=False)
        view[index] = bits
        if self._ledger is not None and element in FLOATS:
            self._ledger.remember(region.tensor, view, index, values, at)

    def _zero(self, element: str) -> Array:
        if element in FLOATS:
            return self._arithmetic.constant(0.0, element)
        return np.zeros(1, STORAGE[element])

    # -- accesses ------------------------------------------------------------------------------------------------------

    def load(
        self, lanes: Array, address: Array, mask: Array | None, other: Array | None, element: str, at: Location
    ) -> Array:
        """Numbers at `address` (int64), carried; where `mask` is false `other`, or 0 (what NVIDIA's code gives)."""
        dtype, where = STORAGE[element], address
        if mask is not None and mask.all():
            mask = None
        if mask is not None:
            settled = self._settle(address, mask)
            if settled is None:
                shape = np.broadcast_shapes(address.shape, mask.shape)
                fill = self._zero(element).reshape((1,) * len(shape)) if other is None else other
                return np.broadcast_to(fill, shape)
            where = settled
        region, view, index = self._resolve(where, lanes, dtype, "read", at)
        if self._watch is not None:
            self._watch.read(region, *_visible(index, lanes, mask), dtype, at)
        values = self._get(region, view, index, element)
        return values if mask is None else np.where(mask, values, self._zero(element) if other is None else other)

    def store(
        self, lanes: Array, address: Array, values: Array, mask: Array | None, element: str, at: Location
    ) -> None:
        """Write carried `values`; where two lanes write one address the later wins."""
        dtype = STORAGE[element]
        where, values = np.broadcast_arrays(address, values)
        lane_of = lanes
        if mask is not None:
            where, values, mask = np.broadcast_arrays(where, values, mask)
            lane_of = _spread(lanes, where)[mask]
            where, values = where[mask], values[mask]
        if where.size == 0:
            return
        region, view, index = self._resolve(where, lane_of, dtype, "write", at)
        if self._watch is not None:
            by = lane_of if mask is not None else _spread(lanes, where)
            bits = encode(self._arithmetic.store(values, element), element) if element in FLOATS else values
            if by.shape != index.shape:  # one address for all instances
                index, bits = np.broadcast_to(index, by.shape), np.broadcast_to(bits, by.shape)
            self._watch.write(region, index, by, bits.astype(dtype, copy=False), at)
        self._put(region, view, index, values, element, at)

    def atomic(
        self, kind: str, lanes: Array, address: Array, values: Array, mask: Array | None, element: str, at: Location
    ) -> Array:
        """Read-modify-write, instance after instance; returns the old values (0 where masked out)."""
        combine: Callable[[Array, Array], Array]
        if kind == "exch":
            combine = lambda _, new: new  # noqa: E731
        elif kind == "fadd":
            combine = lambda old, new: self._arithmetic.binary("add", old, new, element)  # noqa: E731
        elif kind.startswith("u"):
            unsigned = STORAGE[element].str.replace("i", "u")
            combine = lambda old, new: _ATOMICS[kind](old.view(unsigned), new.view(unsigned)).view(old.dtype)  # noqa: E731
        else:
            combine = _ATOMICS[kind]
        return self._one_by_one(lanes, address, [values], mask, element, at, combine)

    def compare_and_swap(
        self, lanes: Array, address: Array, expected: Array, values: Array, element: str, at: Location
    ) -> Array:
        """Atomic compare-and-swap, instance after instance; returns the old values."""

        def swap(old: Array, new: Array, want: Array) -> Array:
            return np.where(old == want, new, old)

        return self._one_by_one(lanes, address, [values, expected], None, element, at, swap)

    def _one_by_one(
        self, lanes: Array, address: Array, operands: list[Array], mask: Array | None, element: str, at: Location,
        combine: Callable[..., Array],
    ) -> Array:  # fmt: skip
        """`x = combine(x, *operands)` at every address; where several meet, one after the other in order."""
        dtype = STORAGE[element]
        where, visible, by, *operands = np.broadcast_arrays(
            address, np.True_ if mask is None else mask, _spread(lanes, address), *operands
        )
        old = np.empty(where.shape, operands[0].dtype)
        old[...] = self._zero(element).reshape((1,) * where.ndim)
        if not visible.any():
            return old
        region, view, index = self._resolve(where[visible], by[visible], dtype, "atomic access", at)
        if self._watch is not None:
            self._watch.update(region, index, by[visible], dtype, at)
        chosen = [x[visible] for x in operands]
        seen = np.empty(index.shape, old.dtype)
        order = np.argsort(index, kind="stable")
        starts = np.flatnonzero(np.diff(index[order], prepend=index[order[0]] - 1))
        turn = np.empty(order.size, np.int64)  # the how-manieth at its address each access is
        turn[order] = np.arange(order.size) - np.repeat(starts, np.diff(starts, append=order.size))
        for t in range(int(turn.max()) + 1):
            now = np.flatnonzero(turn == t)
            seen[now] = self._get(region, view, index[now], element)
            self._put(region, view, index[now], combine(seen[now], *(x[now] for x in chosen)), element, at)
        old[visible] = seen
        return old


def program_ids(linear: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """The ids (x, y, z) of the program instance with this number, x fastest."""
    x, y, _ = grid
    return linear % x, linear // x % y, linear // (x * y)


def _spread(lanes: Array, like: Array) -> Array:
    """The number of the program instance of every element of `like`, which may stand for all of them."""
    shape = (max(lanes.shape[0], like.shape[0]), *like.shape[1:])
    return np.broadcast_to(lanes.reshape(-1, *(1,) * (like.ndim - 1)), shape)


def _visible(index: Array, lanes: Array, mask: Array | None) -> tuple[Array, Array]:
    by = _spread(lanes, index)
    index = np.broadcast_to(index, by.shape)
    if mask is None:
        return index, by
    mask = np.broadcast_to(mask, by.shape)
    return index[mask], by[mask]
