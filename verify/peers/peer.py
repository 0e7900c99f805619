"""What a project's test of attention consists of: problems, inputs, a reference and a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..case import Alignment, Case, DType, Layout, MaskRecipe
from ..draws import Draws, Float
from .arithmetic import Arithmetic


@dataclass(frozen=True, slots=True)
class Problem:
    """One entry of a project's test grid: q [B, H, M, D], k and v [B, HK, N, D]; `scale` None is 1/sqrt(D).

    bias: an additive mask as llama.cpp draws it, partly -inf.  alignment: of causal masks and windows when M != N.
    """

    dtype: DType
    B: int
    H: int
    HK: int
    M: int
    N: int
    D: int
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    scale: float | None = None
    alignment: Alignment = "top-left"
    layout: Layout = "contiguous"
    bias: bool = False
    backward: bool = True

    def case(self, seed: int) -> Case:
        """As an implementation is called with; the regime is not used, for the values are the project's own."""
        mask = MaskRecipe(
            causal=self.causal, window=self.window, alignment=self.alignment, bias="hidden" if self.bias else None
        )
        return Case(
            B=self.B, H=self.H, HK=self.HK, M=self.M, N=self.N, D=self.D, dtype=self.dtype, regime="normal",
            seed=seed, scale=self.scale, mask=mask, layout=self.layout, backward=self.backward,
        )  # fmt: skip

    def __str__(self) -> str:
        return str(self.case(0)).replace(" regime=normal", "").replace(" seed=0", "")


#: (problem, the project's golden result, its low-precision one, the kernel's) -> accepted?
Rule = Callable[[Problem, Tensor, Tensor, Tensor], bool]


@dataclass(frozen=True, slots=True)
class Elements:
    """How one input's elements are drawn."""

    text: str
    draw: Callable[[Draws, tuple[int, ...]], Float]

    def __str__(self) -> str:
        return self.text


def normal(deviation: float = 1.0) -> Elements:
    """`torch.randn`, times a factor."""
    return Elements(f"N(0, {deviation:g}²)", lambda d, shape: deviation * d.normal(*shape))


def uniform(low: float, high: float) -> Elements:
    """U[low, high), as `torch.rand`."""
    return Elements(f"U[{low:g}, {high:g})", lambda d, shape: low + (high - low) * d.uniform(*shape))


def integers(low: int, high: int, factor: float) -> Elements:
    """`factor * torch.randint(low, high)`."""
    text = f"{factor:g} * integers of [{low}, {high})"
    return Elements(text, lambda d, shape: factor * d.integers(low, high, *shape).astype("float64"))


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, so that references can be remembered per peer
class Peer:
    """A project's own acceptance test of an attention kernel.

    source: the file the rule was read from, and issues that tell of it.
    reference: how the golden result is computed; `low`: the low-precision result that a ratio rule divides by.
    distribution: of "q", "k", "v" and "do".
    criterion: the rule of each of "out", "lse", "dq", "dk", "dv" that the project compares; the others it never looks
        at.
    differs: what was left out or made smaller here.
    poisoned: the project fills new memory with NaN, so that what a kernel never writes shows.
    from_output: the golden gradients start from the kernel's own output, whose rounding they so share.
    quantised: the kernel sees q, k and v through this dtype, scaled per head; the reference does not.
    """

    name: str
    source: str
    reference: Arithmetic
    low: Arithmetic | None
    distribution: Mapping[str, Elements]
    shapes: tuple[Problem, ...]
    criterion: Mapping[str, Rule]
    differs: str
    poisoned: bool = False
    from_output: bool = False
    quantised: torch.dtype | None = None
