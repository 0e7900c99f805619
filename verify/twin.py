"""A twin: another problem whose results say what a problem's own should be; and how its tensors are made.

Other values go into memory that is laid out as before, gaps included, so that only values differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..reference.masks import Mask
from .case import Case
from .inputs import Inputs
from .storage import mapped

View = Callable[[Tensor], Tensor]
GRADIENTS = ("dq", "dk", "dv")


def same(x: Tensor) -> Tensor:
    """As it is."""
    return x


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """A problem, and how its results are those of the original.

    read: per tensor, from the twin's to what the original's `part` should be; a tensor without an entry is not compared
    bits: the tensors of which that holds to the bit (elsewhere: within the original's bound of the truth)
    """

    case: Case
    inputs: Inputs
    read: Mapping[str, View]
    part: View = same  # of the original's tensor [B, H, M, ...] that the twin has an answer for
    bits: frozenset[str] = frozenset()
    gradients: tuple[str, ...] = GRADIENTS  # what is differentiated for
    dlse: Tensor | None = None  # a gradient that comes back through the LSE [B, H, M]; truth and bound are then its own
    between: Inputs | None = None  # what the function is called on between forward and backward
    twice: bool = False  # the gradients are those of a second backward over the same graph
    lse: bool = True  # the log-sum-exp is asked for


_ROOM = 256.0  # terms of a sum


def times(x: Tensor, factor: float) -> Tensor | None:
    """The tensor times a power of two in the same layout.

    None where that is not exact, and where it comes so near the largest number that sums of it may overflow.
    """
    out = mapped(x, lambda values: values * factor)
    exact = torch.equal(out.double(), x.double() * factor)
    exact = exact and bool((out.abs() <= torch.finfo(x.dtype).max / _ROOM).all())
    return out if exact else None


def with_values(x: Tensor, change: View) -> Tensor:
    """The changed values in a storage of their own with the same strides and gaps."""
    return mapped(x, torch.clone).copy_(change(x))


def with_masks(mask: Mask, change: Callable[[Tensor | None], Tensor | None]) -> Mask:
    """Both masks of the caller's changed alike."""
    return replace(mask, allowed=change(mask.allowed), bias=change(mask.bias))


def on_axis(x: Tensor | None, axis: int, change: View) -> Tensor | None:
    """Change a mask along one of the four axes of [B, H, M, N], if it has that axis and is not broadcast along it."""
    if x is None or x.dim() < -axis or x.shape[axis] == 1:
        return x
    return change(x)


def _parts(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """All that a function is given."""
    m = inputs.mask
    return inputs.q, inputs.k, inputs.v, inputs.do, m.allowed, m.bias, m.key_lengths


def refillable(twin: Twin, case: Case, inputs: Inputs) -> bool:
    """Whether a twin only holds other values, and no tensor of the original is a view that repeats itself."""
    return twin.inputs is not inputs and twin.case == case and case.layout != "expanded"


def refill(inputs: Inputs, other: Inputs) -> None:
    """Write the values of `other` where those of `inputs` lie."""
    for there, x in zip(_parts(inputs), _parts(other), strict=True):
        if there is not None and x is not None and there is not x:
            there.copy_(x)
