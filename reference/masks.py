"""Which keys a query sees, and what is added to its logits.

A mask is a description, not a matrix: `Mask.rows` materialises it for a few query rows at a time, so that the
float64 reference stays linear in the number of keys.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Alignment = Literal["top-left", "bottom-right"]


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """The conjunction of every restriction given; the default sees everything.

    causal       query i sees keys j <= c; the diagonal c is i ("top-left") or i + N - M ("bottom-right")
    window       (left, right): query i sees keys c - left <= j <= c + right; None leaves that side open
    alignment    where the diagonal of `causal` and `window` starts when M != N
    allowed      bool, broadcastable to [B, H, M, N]; False hides a key
    bias         floating, broadcastable to [B, H, M, N]; added to the scaled logits; -inf hides a key
    key_lengths  int64 [B]; keys j >= key_lengths[b] are hidden

    Raises ValueError for a tensor of the wrong type or rank, a negative window or an unknown alignment.
    """

    causal: bool = False
    window: tuple[int | None, int | None] = (None, None)
    alignment: Alignment = "top-left"
    allowed: Tensor | None = None
    bias: Tensor | None = None
    key_lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.alignment not in ("top-left", "bottom-right"):
            raise ValueError(f"alignment must be 'top-left' or 'bottom-right', got {self.alignment!r}")
        if any(side is not None and side < 0 for side in self.window):
            raise ValueError(f"window sides must be None (open) or >= 0, got {self.window}")
        if self.allowed is not None and (self.allowed.dtype != torch.bool or self.allowed.ndim > 4):
            raise ValueError("allowed must be a bool tensor broadcastable to [B, H, M, N]")
        if self.bias is not None and (not self.bias.is_floating_point() or self.bias.ndim > 4):
            raise ValueError("bias must be a floating tensor broadcastable to [B, H, M, N]")
        lengths = self.key_lengths
        if lengths is not None and (lengths.dtype != torch.int64 or lengths.ndim != 1):
            raise ValueError("key_lengths must be an int64 tensor of shape [B]")

    def rows(self, start: int, stop: int, M: int, N: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Query rows start..stop-1 of M, against all N keys.

        Returns (visible, bias): visible is bool, bias float64 or None, each broadcastable to
        [B, H, stop - start, N]. The bias is 0 where it is -inf: such a key is already not visible, and 0
        cannot turn into a NaN downstream.
        """
        visible = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        left, right = self.window
        if self.causal:
            right = 0 if right is None else min(right, 0)
        if left is not None or right is not None:
            shift = N - M if self.alignment == "bottom-right" else 0
            diagonal = torch.arange(start, stop, device=device) + shift  # [rows]: c
            offset = torch.arange(N, device=device)[None, :] - diagonal[:, None]  # [rows, N]: j - c
            if right is not None:
                visible = visible & (offset <= right)
            if left is not None:
                visible = visible & (offset >= -left)
        if self.key_lengths is not None:
            length = self.key_lengths.to(device)[:, None, None, None]  # [B, 1, 1, 1]
            visible = visible & (torch.arange(N, device=device) < length)
        if self.allowed is not None:
            visible = visible & _select_rows(self.allowed, start, stop).to(device)
        if self.bias is None:
            return visible, None
        bias = _select_rows(self.bias, start, stop).to(device=device, dtype=torch.float64)
        hidden = torch.isneginf(bias)
        return visible & ~hidden, bias.masked_fill(hidden, 0.0)


def _select_rows(x: Tensor, start: int, stop: int) -> Tensor:
    """Rows start..stop-1 of a tensor broadcastable to [B, H, M, N], as four dimensions."""
    x = x[(None,) * (4 - x.ndim)]
    return x if x.shape[-2] == 1 else x[..., start:stop, :]
