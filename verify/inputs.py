"""From a case to tensors: values rounded to the dtype, masks, and the memory layout the case asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..reference.masks import Mask
from .case import Case
from .draws import Draws, Float
from .masking import DTYPES as DTYPES
from .masking import drawn_mask, placed_mask
from .problems import UsageError
from .regimes import REGIMES
from .storage import far, far_axes, mapped

_POISON = float("nan")  # what lies between and beside the elements that a kernel may read


@dataclass(frozen=True, slots=True)
class Inputs:
    """Tensors of a case: q, do [B, H, M, D]; k, v [B, HK, N, D]; in the case's dtype and layout."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    mask: Mask

    def to(self, device: torch.device) -> Inputs:
        """The same on a device; layouts are kept."""
        if self.q.device.type == device.type:
            return self
        moved = {n: _moved(getattr(self, n), device) for n in ("q", "k", "v", "do")}
        m = self.mask
        allowed, bias, lengths = (None if x is None else _moved(x, device) for x in (m.allowed, m.bias, m.key_lengths))
        return Inputs(**moved, mask=replace(m, allowed=allowed, bias=bias, key_lengths=lengths))

    def batch(self, b: int) -> Inputs:
        """Batch element b alone."""
        m = self.mask

        def one(x: Tensor | None) -> Tensor | None:
            shared = x is None or (x.dim() < 4 and x.dim() != 1) or x.shape[0] == 1
            return x if x is None or shared else x[b : b + 1]

        mask = Mask(causal=m.causal, window=m.window, alignment=m.alignment, allowed=one(m.allowed), bias=one(m.bias),
                    key_lengths=one(m.key_lengths))  # fmt: skip
        q, k, v, do = (x[b : b + 1] for x in (self.q, self.k, self.v, self.do))
        return Inputs(q, k, v, do, mask)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    return mapped(x, lambda values: values.to(device))


def build(case: Case) -> Inputs:
    """The tensors of a case, on the CPU.

    Raises:
        UsageError: for a regime that does not exist.
    """
    if case.regime not in REGIMES:
        raise UsageError(f"unknown regime {case.regime!r}; there are {', '.join(REGIMES)}")
    values = REGIMES[case.regime].draw(case)
    dtype = DTYPES[case.dtype]
    q, k, v, do = (rounded(np.asarray(x), dtype) for x in (values.q, values.k, values.v, values.do))
    return arranged(case, q, k, v, do, placed_mask(case, drawn_mask(case)))


def arranged(case: Case, q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask) -> Inputs:
    """The given values in the case's memory layout; the mask stays where it is."""
    if case.layout == "expanded":  # one key/value head for all; dO as `out.sum().backward()` makes it: stride 0
        k, v = (x[:, :1].expand(-1, case.HK, -1, -1) for x in (k, v))
        rows, columns = (1, 1) if Draws(case.seed, "layout").uniform(1)[0] < 0.5 else (1, case.D)
        do = do[:, :, :rows, :columns].expand(do.shape)
        q = q[:1].expand(q.shape) if Draws(case.seed, "queries").uniform(1)[0] < 0.5 else q  # learned ones, say
        return Inputs(q, k, v, do, mask)
    if case.layout == "packed":
        q, k, v = _packed(q, k, v)
        return Inputs(q, k, v, _place(do, "bshd"), mask)
    if case.layout == "far":
        q, k, v, do = _one_far(case, [q, k, v, do])
        return Inputs(q, k, v, do, mask)
    layouts = [case.layout] * 4
    if case.layout == "mixed":  # as where keys are cached transposed and values are not
        layouts = Draws(case.seed, "mixed").shuffled(["columns", "bshd", "contiguous", "contiguous"])
    q, k, v, do = (_place(x, layout, i) for i, (x, layout) in enumerate(zip((q, k, v, do), layouts, strict=True)))
    return Inputs(q, k, v, do, mask)


def rounded(x: Float, dtype: torch.dtype) -> Tensor:
    """Round to nearest even through fp32, saturating: inputs are finite by contract."""
    limit = torch.finfo(dtype).max
    return torch.from_numpy(np.ascontiguousarray(np.clip(x, -limit, limit)).astype(np.float32)).to(dtype)


def _place(x: Tensor, layout: str, spread: int = 0) -> Tensor:
    """The same values in another memory layout; `spread` makes the gaps of different tensors differ."""
    if layout == "bshd":  # [B, S, H, D] in memory
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "columns":  # the head dimension strides
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "gaps":  # every stride padded, an odd storage offset, poison in between and around
        B, H, S, D = x.shape
        row = D + 3 + spread
        strides = (H * (S * row + 5) + 7, S * row + 5, row, 1)
        storage = torch.full((B * strides[0] + 64,), _POISON, dtype=x.dtype)
        view = storage.as_strided(x.shape, strides, 33)
        view.copy_(x)
        return view
    return x.contiguous()


def _one_far(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """One of the tensors made `far` along one of its axes, both drawn; the others are contiguous."""
    possible = [(i, axes) for i, x in enumerate(tensors) if x.numel() and (axes := far_axes(x.shape))]
    if possible:
        i, axes = Draws(case.seed, "far").choice(possible)
        tensors[i] = far(tensors[i], Draws(case.seed, "far axis").choice(axes))
    return tensors


def _packed(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as slices of one [B, S, H + 2 HK, D] buffer, poison where a sequence is shorter than the other."""
    (B, H, M, D), (HK, N) = q.shape, k.shape[1:3]
    buffer = torch.full((B, max(M, N), H + 2 * HK, D), _POISON, dtype=q.dtype)
    views = (buffer[:, :M, :H], buffer[:, :N, H : H + HK], buffer[:, :N, H + HK :])
    out = []
    for view, x in zip(views, (q, k, v), strict=True):
        view.copy_(x.transpose(1, 2))
        out.append(view.transpose(1, 2))
    return out[0], out[1], out[2]
