"""Watched memory: what no single access shows.

Beside each tensor's elements lie notes: has anything written it, which program instance wrote or read it in this
launch.  They show reads of memory that nothing has written, elements that two instances touch without an atomic,
accesses that stay within a storage but leave the tensor that the kernel was passed, and outputs written in part.

A conflict between instances is judged by what it can change: two instances that write the same bits do no harm.
Kernels that use what an atomic returns build locks and counters with it; their instances are taken as ordered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch

from ..errors import ConflictError, MemoryFaultError, OutOfBoundsError, UninitializedReadError, UnwrittenError
from ..language.ttir import Location
from ..numbers.formats import Array
from .ledger import strided
from .memory import Region, program_ids

_NOBODY, _SEVERAL = -1, -2


@dataclass(frozen=True, slots=True)
class Tracked:
    """What to look for beside accesses outside every tensor, which are always an error.

    Args:
        uninitialised: reads of elements that came from `torch.empty` inside the block and that nothing has written.
        outside: accesses within a tensor's storage, but to none of the tensor's own elements.
        conflicts: elements that two program instances of a launch touch, at least one writing, without an atomic.
        unwritten: at the end of the block, tensors that kernels wrote in part and never read.
        descriptors: tensor descriptors whose base or strides hardware with descriptors would refuse.
    """

    uninitialised: bool = True
    outside: bool = True
    conflicts: bool = True
    unwritten: bool = True
    descriptors: bool = True


@dataclass(slots=True, eq=False)
class Notes:
    """About one storage, element by element (of the size that its first tensor has)."""

    storage: torch.UntypedStorage  # held, so that its address is not given to another
    itemsize: int
    initialised: Array | None = None  # bool; None: everything is, or nothing is known
    known: bool = False  # whether it was created inside the block
    written: Array | None = None  # bool: by any kernel
    read: bool = False  # by any kernel
    views: dict[str, torch.Tensor] = field(default_factory=dict)  # the tensors that kernels wrote, by name
    stored: Location = field(default_factory=Location)  # the last store

    @property
    def size(self) -> int:
        return self.storage.nbytes() // self.itemsize


class Tracker:
    """The notes of one `interpret` block."""

    def __init__(self, options: Tracked) -> None:
        self.options = options
        self._notes: dict[int, Notes] = {}

    # -- what the host does --------------------------------------------------------------------------------------------

    def created(self, tensor: torch.Tensor) -> None:
        """`torch.empty` and its like made this tensor: nothing has written it."""
        notes = self.notes(tensor)
        notes.known, notes.initialised = True, np.zeros(notes.size, np.bool_)

    def initialise(self, tensor: torch.Tensor) -> None:
        """Every element of the tensor has a value from now on, kernels or no kernels."""
        notes = self.notes(tensor)
        notes.known = True
        if notes.initialised is not None:
            _view(notes.initialised, tensor, notes.itemsize)[...] = True

    def host_reads(self, operation: str, tensor: torch.Tensor) -> None:
        """Raises `UninitializedReadError` if kernels wrote the tensor in part, and nothing has written the rest."""
        if not self.options.uninitialised or not self.knows(tensor):
            return
        notes = self.notes(tensor)
        if notes.initialised is None or notes.written is None:
            return
        seen = _view(notes.initialised, tensor, notes.itemsize)
        if not seen.all():
            raise UninitializedReadError(
                f"torch's {operation} reads {int((~seen).sum())} of {seen.size} elements of "
                f"{next(iter(notes.views))} that nothing has written; this wrote the others",
                notes.stored,
            )

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether there are notes about the tensor's storage."""
        return tensor.untyped_storage().data_ptr() in self._notes

    def notes(self, tensor: torch.Tensor) -> Notes:
        """About the tensor's storage."""
        storage = tensor.untyped_storage()
        return self._notes.setdefault(storage.data_ptr(), Notes(storage, tensor.element_size()))

    # -- the end of the block ------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Raises `UnwrittenError` for a tensor that kernels wrote in part and never read."""
        if not self.options.unwritten:
            return
        for notes in self._notes.values():
            if notes.written is None or notes.read:
                continue
            done = notes.written if notes.initialised is None else notes.written | notes.initialised
            if notes.known and notes.initialised is None:
                continue  # the host filled it when it made it
            for name, tensor in notes.views.items():
                missing = ~_view(done, tensor, notes.itemsize)
                if missing.any():
                    first = ", ".join(str(i) for i in np.argwhere(missing)[0])
                    raise UnwrittenError(
                        f"{int(missing.sum())} of {missing.size} elements of {name} were never written, first "
                        f"{name}[{first}]; if the host fills it, do so inside the block; this wrote the others",
                        notes.stored,
                    )

    def launch(self, grid: tuple[int, int, int], written: Sequence[torch.Tensor], *, ordered: bool) -> LaunchWatch:
        """The watch over one launch that may write these tensors."""
        return LaunchWatch(self, grid, {t.untyped_storage().data_ptr() for t in written}, ordered)


@dataclass(slots=True, eq=False)
class _Storage:
    """The state of one storage during one launch."""

    notes: Notes
    contested: bool  # whether the launch may write it
    writer: Array | None = None  # instance that wrote each element
    reader: Array | None = None
    scratch: Array | None = None


class LaunchWatch:
    """`memory.Watch` over one launch."""

    def __init__(self, tracker: Tracker, grid: tuple[int, int, int], written: set[int], ordered: bool) -> None:
        self._tracker, self._grid, self._written = tracker, grid, written
        self._judged = tracker.options.conflicts and not ordered and grid[0] * grid[1] * grid[2] > 1
        self.strict = tracker.options.descriptors
        self._storages: dict[int, _Storage] = {}
        self._inside: dict[int, Array | None] = {}

    def _state(self, region: Region) -> _Storage:
        key = region.tensor.untyped_storage().data_ptr()
        state = self._storages.get(key)
        if state is None:
            state = _Storage(self._tracker.notes(region.tensor), key in self._written)
            self._storages[key] = state
        return state

    def _own(self, region: Region, notes: Notes) -> Array | None:
        """Which elements of its storage a region's tensor has; None for all of them."""
        if region.base not in self._inside:
            tensor, inside = region.tensor, None
            if self._tracker.options.outside and tensor.numel() != notes.size:
                inside = np.zeros(notes.size, np.bool_)
                _view(inside, tensor, notes.itemsize)[...] = True
                inside = None if inside.all() else inside
            self._inside[region.base] = inside
        return self._inside[region.base]

    # -- accesses ------------------------------------------------------------------------------------------------------

    def read(self, region: Region, index: Array, lanes: Array, dtype: np.dtype[Any], at: Location) -> None:
        """Judge a load before it happens."""
        state = self._state(region)
        index, lanes = _elements(index, lanes, dtype.itemsize, state.notes.itemsize)
        state.notes.read = True
        self._check_inside(region, state, index, lanes, "read", at)
        self._check_initialised(region, state, index, lanes, at)
        if not (self._judged and state.contested):
            return
        if state.writer is not None and state.writer.size == state.notes.size:
            by = state.writer.take(index)
            self._conflict((by != _NOBODY) & (by != lanes), region, state, index, lanes, by, "reads", "wrote", at)
        if state.reader is None:
            state.reader = np.full(state.notes.size, _NOBODY, np.int32)
        before = state.reader.take(index)
        state.reader[index] = lanes
        mixed = (state.reader.take(index) != lanes) | ((before != _NOBODY) & (before != lanes))
        if mixed.any():
            state.reader[index[mixed]] = _SEVERAL

    def write(self, region: Region, index: Array, lanes: Array, bits: Array, at: Location) -> None:
        """Judge a store before it happens."""
        state = self._state(region)
        if self._judged and state.contested:
            self._judge_write(region, state, index, lanes, bits.view(f"u{bits.itemsize}"), at)
        index, lanes = _elements(index, lanes, bits.itemsize, state.notes.itemsize)
        self._check_inside(region, state, index, lanes, "write", at)
        self._note_written(region, state, index, at)

    def update(self, region: Region, index: Array, lanes: Array, dtype: np.dtype[Any], at: Location) -> None:
        """Judge an atomic before it happens: it conflicts with plain stores alone."""
        state = self._state(region)
        index, lanes = _elements(index, lanes, dtype.itemsize, state.notes.itemsize)
        self._check_inside(region, state, index, lanes, "atomic access", at)
        self._check_initialised(region, state, index, lanes, at)
        if self._judged and state.writer is not None and state.writer.size == state.notes.size:
            by = state.writer.take(index)
            self._conflict((by != _NOBODY) & (by != lanes), region, state, index, lanes, by, "updates", "wrote", at)
        self._note_written(region, state, index, at)

    def _judge_write(
        self, region: Region, state: _Storage, index: Array, lanes: Array, bits: Array, at: Location
    ) -> None:
        size = region.bytes.size // bits.itemsize
        if state.writer is None or state.scratch is None:
            state.writer, state.scratch = np.full(size, _NOBODY, np.int32), np.zeros(size, np.int32)
        if state.writer.size != size:
            return  # stores of two sizes into one storage are not judged
        changes = region.bytes[: size * bits.itemsize].view(bits.dtype).take(index) != bits
        by = state.writer.take(index)
        self._conflict(changes & (by != _NOBODY) & (by != lanes), region, state, index, lanes, by, "writes",
                       "wrote other bits to", at)  # fmt: skip
        if state.reader is not None and state.reader.size == size:
            by = state.reader.take(index)
            self._conflict(changes & (by != _NOBODY) & (by != lanes), region, state, index, lanes, by, "writes",
                           "reads", at)  # fmt: skip
        flat, who, what = index.reshape(-1), np.broadcast_to(lanes, index.shape).reshape(-1), bits.reshape(-1)
        place = np.arange(flat.size, dtype=np.int32)
        state.scratch[flat] = place
        last = state.scratch.take(flat)  # the store that prevails at each element
        clash = what != what[last]
        if clash.any():
            self._conflict(clash, region, state, flat, who, who[last], "writes", "writes other bits to", at)
        state.writer[index] = lanes

    # -- the checks ----------------------------------------------------------------------------------------------------

    def _check_inside(
        self, region: Region, state: _Storage, index: Array, lanes: Array, verb: str, at: Location
    ) -> None:
        inside = self._own(region, state.notes)
        if inside is not None and not (own := inside.take(index)).all():
            said = "is within its storage but no element of it"
            self._report(OutOfBoundsError, ~own, region, state, index, lanes,
                         lambda what: f"out-of-bounds {verb}: {what} {said}", at)  # fmt: skip

    def _check_initialised(self, region: Region, state: _Storage, index: Array, lanes: Array, at: Location) -> None:
        initialised = state.notes.initialised
        if self._tracker.options.uninitialised and initialised is not None:
            known = initialised.take(index)
            if not known.all():
                self._report(UninitializedReadError, ~known, region, state, index, lanes,
                             lambda what: f"read of {what}, which nothing has written", at)  # fmt: skip

    def _note_written(self, region: Region, state: _Storage, index: Array, at: Location) -> None:
        notes = state.notes
        if notes.initialised is not None:
            notes.initialised[index] = True
        if notes.written is None:
            notes.written = np.zeros(notes.size, np.bool_)
        notes.written[index] = True
        notes.views[region.name] = region.tensor
        notes.stored = at

    def _conflict(
        self, bad: Array, region: Region, state: _Storage, index: Array, lanes: Array, by: Array, does: str, did: str,
        at: Location,
    ) -> None:  # fmt: skip
        if not bad.any():
            return
        other = int(np.broadcast_to(by, bad.shape)[bad][0])
        end = "and no atomic orders them"
        who = "another" if other == _SEVERAL else f"program {program_ids(other, self._grid)}"
        self._report(ConflictError, bad, region, state, index, lanes,
                     lambda what: f"conflict: one program {does} {what}, {who} {did} it, {end}", at)  # fmt: skip

    def _report(
        self, kind: type[MemoryFaultError], bad: Array, region: Region, state: _Storage, index: Array, lanes: Array,
        message: Callable[[str], str], at: Location,
    ) -> NoReturn:  # fmt: skip
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        element = int(np.broadcast_to(index, bad.shape)[first]) * state.notes.itemsize
        program = program_ids(int(np.broadcast_to(lanes, bad.shape)[first]), self._grid)
        count = f" ({int(bad.sum())} elements of this access)" if bad.sum() > 1 else ""
        raise kind(f"{message(region.index(element))}{count}, by program {program}", at)


def _view(items: Array, tensor: torch.Tensor, itemsize: int) -> Array:
    """Notes about a storage's elements as a tensor sees them; all of them, if the tensor has another element size."""
    return strided(items, tensor) if tensor.element_size() == itemsize else items


def _elements(index: Array, lanes: Array, size: int, itemsize: int) -> tuple[Array, Array]:
    """Indices of items of `size` bytes as indices of elements of `itemsize` bytes."""
    if size == itemsize:
        return index, lanes
    if size < itemsize:
        return index * size // itemsize, lanes
    ratio = size // itemsize
    return index[..., None] * ratio + np.arange(ratio), np.broadcast_to(lanes[..., None], (*index.shape, ratio))
