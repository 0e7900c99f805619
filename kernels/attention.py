"""The bundled flash attention as a function: torch's signature, plus window, alignment, key lengths and LSE."""

from __future__ import annotations

import math
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from .backward import backward_delta, backward_dkdv, backward_dq
from .forward import flash_forward
from .schedules import Kernel, schedule
from .tiles import UNBOUNDED

LN2 = math.log(2.0)
Alignment = Literal["top-left", "bottom-right"]
_MASK_KIND = {None: 0, True: 1, False: 2}  # of `mask.dtype == bool`


@dataclass(frozen=True, slots=True)
class Launch:
    """What every kernel of one call shares."""

    scale: float
    mask: Tensor | None  # bool or floating, expanded to [B, H, M, N] (strides may be 0)
    key_lengths: Tensor | None  # int32 [B]
    diagonal: int  # query i is aligned with key i + diagonal
    left: int | None  # window: keys [i + diagonal - left, i + diagonal + right]; None is unbounded
    right: int | None
    tiles: tuple[int, int] | None  # None: those that suit the device

    def arguments(self, q: Tensor, k: Tensor, *others: Tensor) -> dict[str, Any]:
        """Keyword arguments common to the forward, dK/dV and dQ kernels, which read or write `others` too.

        Fewer kernels are compiled where speed does not matter: with a mask, or rows that are not aligned, all of them
        have a band, which may be endless.
        """
        told = rows(q, k, *others)
        return told | dict(
            scale=self.scale, M=q.shape[2], N=k.shape[2], HEAD_DIM=q.shape[3], GROUP=q.shape[1] // k.shape[1],
            diagonal=self.diagonal, has_lengths=int(self.key_lengths is not None),
            left=UNBOUNDED if self.left is None else self.left, right=UNBOUNDED if self.right is None else self.right,
            BAND=not told["ALIGNED"] or any(x is not None for x in (self.left, self.right, self.mask)),
            MASK_KIND=_MASK_KIND[None if self.mask is None else self.mask.dtype == torch.bool],
        )  # fmt: skip

    def pointers(self, stand_in: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Mask, key lengths and the mask's strides; an absent tensor is stood in for, and never read."""
        mask = stand_in if self.mask is None else self.mask
        lengths = stand_in.view(torch.int32) if self.key_lengths is None else self.key_lengths
        return mask, lengths, (0, 0, 0, 0) if self.mask is None else self.mask.stride()

    def schedule(self, kernel: Kernel, q: Tensor) -> dict[str, Any]:
        """Tiles of one of the kernels, and how it is compiled."""
        chosen = schedule(kernel, block_d(q.shape[3]), q.dtype, q.device, self.mask is not None)
        return chosen if self.tiles is None else chosen | dict(BLOCK_M=self.tiles[0], BLOCK_N=self.tiles[1])


def rows(*tensors: Tensor) -> dict[str, Any]:
    """What kernels are told of their operands' rows: a tile's extent along D, if it may have more, if rows are aligned.

    Rows that are not move an element at a time anyway: it is asked of each whether the row has it.
    """
    head_dim, aligned = tensors[0].shape[3], all(map(_aligned, tensors))
    return dict(BLOCK_D=block_d(head_dim), PADDED=not aligned or block_d(head_dim) != head_dim, ALIGNED=aligned)


def _aligned(x: Tensor) -> bool:
    in_bytes = (n * x.element_size() for n in (*x.stride()[:3], x.shape[3]))
    return x.stride(3) == 1 and x.data_ptr() % 16 == 0 and not any(n % 16 for n in in_bytes)


def block_d(head_dim: int) -> int:
    """Tile extent along D: a power of two, at least the 16 that a matrix instruction needs."""
    return max(16, 1 << (head_dim - 1).bit_length())


def _grid(length: int, block: int, heads: int, batch: int) -> tuple[int, int, int]:
    return -(-length // block), heads, batch


def launch_backward(kernel: Any, grid: tuple[int, int, int], *arguments: Any, **options: Any) -> None:
    """`kernel[grid](*arguments, **options)`, with memory for the tensor descriptors that the kernel makes.

    Triton asks its user for it; what else runs in this thread keeps the allocator that it has.
    """
    if not options["DESCRIPTORS"]:
        kernel[grid](*arguments, **options)
        return

    def scratch(size: int, alignment: int, stream: int | None) -> Tensor:  # noqa: ARG001  (Triton's signature)
        return torch.empty(size, dtype=torch.int8, device=arguments[0].device)

    def launch() -> None:
        triton.set_allocator(scratch)
        kernel[grid](*arguments, **options)

    copy_context().run(launch)


def forward(q: Tensor, k: Tensor, v: Tensor, launch: Launch) -> tuple[Tensor, Tensor]:
    """Q [B, H, M, D], k and v [B, HK, N, D] -> o [B, H, M, D] in q's dtype, lse [B, H, M] in fp32, base 2."""
    B, H, M, _ = q.shape
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)
    if o.numel() > 0:
        mask, lengths, mask_strides = launch.pointers(lse)
        chosen = launch.schedule("forward", q)
        flash_forward[_grid(M, chosen["BLOCK_M"], H, B)](
            q, k, v, mask, lengths, o, lse,
            *q.stride(), *k.stride(), *v.stride(), *mask_strides, *o.stride(), *lse.stride(),
            **launch.arguments(q, k, v, o), **chosen,
        )  # fmt: skip
    return o, lse


def backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None, launch: Launch
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients dq, dk, dv, each of the shape and dtype of its input.  `lse` in base 2, `dlse` of the natural LSE."""
    B, H, M, D = q.shape
    HK, N = k.shape[1:3]
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    delta = torch.empty_like(lse)
    common = launch.arguments(q, k, v, do, dq, dk, dv)
    mask, lengths, mask_strides = launch.pointers(lse)

    def options(kernel: Kernel) -> dict[str, Any]:
        chosen = launch.schedule(kernel, q)
        return common | chosen | dict(DESCRIPTORS=chosen["DESCRIPTORS"] and common["ALIGNED"])

    if do.numel() > 0:
        backward_delta[_grid(M, 32, H, B)](
            o, do, lse if dlse is None else dlse, delta,
            *o.stride(), *do.stride(), *(lse if dlse is None else dlse).stride(), *delta.stride(),
            M=M, HEAD_DIM=D, BLOCK_M=32, HAS_DLSE=dlse is not None, **rows(o, do),
        )  # fmt: skip
        chosen = options("dq")
        launch_backward(
            backward_dq, _grid(M, chosen["BLOCK_M"], H, B), q, k, v, do, mask, lengths, lse, delta, dq,
            *q.stride(), *k.stride(), *v.stride(), *do.stride(), *mask_strides, *lse.stride(), *dq.stride(),
            **chosen,
        )  # fmt: skip
    if dk.numel() > 0:
        chosen = options("dkdv")
        launch_backward(
            backward_dkdv, _grid(N, chosen["BLOCK_N"], HK, B), q, k, v, do, mask, lengths, lse, delta, dk, dv,
            *q.stride(), *k.stride(), *v.stride(), *do.stride(), *mask_strides, *lse.stride(),
            *dk.stride(), *dv.stride(), **chosen,
        )  # fmt: skip
    return dq, dk, dv


class FlashAttention(torch.autograd.Function):
    """Flash attention with its hand-written backward; the LSE is differentiable too."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, launch: Launch) -> tuple[Tensor, Tensor]:
        o, lse2 = forward(q, k, v, launch)
        ctx.save_for_backward(q, k, v, o, lse2)
        ctx.launch = launch
        ctx.set_materialize_grads(False)
        return o, lse2 * LN2

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, o, lse2 = ctx.saved_tensors
        do = torch.zeros_like(o) if do is None else do
        return *backward(q, k, v, o, lse2, do, dlse, ctx.launch), None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: tuple[int | None, int | None] = (None, None),
    alignment: Alignment = "top-left",
    key_lengths: Tensor | None = None,
    return_lse: bool = False,
    tiles: tuple[int, int] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention, `softmax(scale Q K^T + bias) V`, by the bundled flash kernels.

    Args:
        query: `[B, H, M, D]`, fp16, bf16 or fp32; D from 1 to 256; any strides.
        key: `[B, HK, N, D]`; HK divides H, and head h uses key/value head `h // (H // HK)`.
        value: `[B, HK, N, D]`.
        attn_mask: boolean (True: visible) or floating (added to the scaled logits), broadcastable to `[B, H, M, N]`;
            may be combined with all the other masks; has no gradient.
        dropout_p: must be 0.
        is_causal: query i sees keys up to its diagonal c: i (top-left) or i + N - M (bottom-right).
        scale: 1/sqrt(D) by default; any real number.
        enable_gqa: accepted for torch's signature; grouped heads are always allowed.
        window: query i sees keys `[c - left, c + right]`; None is unbounded.
        alignment: of the diagonal that `is_causal` and `window` refer to.
        key_lengths: int `[B]`: in batch b only the first key_lengths[b] keys exist.
        return_lse: also return the log-sum-exp `[B, H, M]` in fp32, natural logarithm.
        tiles: (BLOCK_M, BLOCK_N), powers of two from 16; by default chosen for the device.

    A query that sees no key has output 0, LSE -inf, and contributes no gradient.

    Raises:
        ValueError: for shapes, dtypes or options that the kernel does not take; the message says which.
    """
    _validate(query, key, value, attn_mask, dropout_p, window, tiles)
    left, right = window
    if is_causal:
        right = 0 if right is None else min(right, 0)
    B, H, M, D = query.shape
    N = key.shape[2]
    launch = Launch(
        scale=1.0 / math.sqrt(D) if scale is None else float(scale),
        mask=None if attn_mask is None else attn_mask.detach().expand(B, H, M, N),
        key_lengths=None if key_lengths is None else key_lengths.to(torch.int32).contiguous(),
        diagonal=N - M if alignment == "bottom-right" else 0,
        left=left,
        right=right,
        tiles=tiles,
    )
    o, lse = FlashAttention.apply(query, key, value, launch)  # type: ignore[no-untyped-call]
    del enable_gqa
    return (o, lse) if return_lse else o


def _validate(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float,
    window: tuple[int | None, int | None], tiles: tuple[int, int] | None,
) -> None:  # fmt: skip
    if any(x.dim() != 4 for x in (q, k, v)):
        raise ValueError("query, key and value must be [batch, heads, length, head_dim]")
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"dtypes must be one of fp16, bf16, fp32 and equal; got {q.dtype}, {k.dtype}, {v.dtype}")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"shapes do not fit: query {tuple(q.shape)}, key {tuple(k.shape)}, value {tuple(v.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} key/value heads do not divide {q.shape[1]} query heads")
    if not 1 <= q.shape[3] <= 256:
        raise ValueError(f"head_dim must be from 1 to 256, not {q.shape[3]}")
    if dropout_p != 0.0:
        raise ValueError("dropout is not supported: its result is random, so there is nothing to verify")
    if mask is not None and mask.requires_grad:
        raise ValueError("attn_mask has no gradient here; pass it detached")
    if any(w is not None and w < 0 for w in window):
        raise ValueError(f"window extents must be None or >= 0, not {window}")
    if tiles is not None and any(t < 16 or t & (t - 1) for t in tiles):
        raise ValueError(f"tiles must be powers of two from 16, not {tiles}")
