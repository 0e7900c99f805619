"""The implementations that can be named: our flash kernels, standard attention, and torch's SDPA backends."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..reference import standard
from ..reference.masks import Mask
from .implementation import Implementation, recognise


def _flash() -> Implementation:
    from ..kernels.attention import attention

    return recognise("flash", attention)


class _Standard(torch.autograd.Function):
    """Standard attention with the backward that torch's autograd would take, every result rounded."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, softmax: Any
    ) -> tuple[Tensor, Tensor]:
        result = standard.forward(q, k, v, mask, scale, softmax=softmax)
        ctx.save_for_backward(q, k, v)
        ctx.problem = (mask, scale, softmax)
        ctx.mark_non_differentiable(result.lse)
        return result.o, result.lse

    @staticmethod
    def backward(ctx: Any, do: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
        mask, scale, softmax = ctx.problem
        q, k, v = ctx.saved_tensors
        g = standard.backward(q, k, v, do, mask, scale, softmax=softmax)
        return g.dq, g.dk, g.dv, None, None, None


def _standard(softmax: str) -> Callable[[], Implementation]:
    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False, *,
        window: tuple[int | None, int | None] = (None, None), alignment: Any = "top-left",
        key_lengths: Tensor | None = None, return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        del dropout_p, enable_gqa
        boolean = attn_mask is not None and attn_mask.dtype == torch.bool
        mask = Mask(
            causal=is_causal, window=window, alignment=alignment, key_lengths=key_lengths,
            allowed=attn_mask if boolean else None, bias=None if boolean else attn_mask,
        )  # fmt: skip
        o, lse = _Standard.apply(query, key, value, mask, query.shape[-1] ** -0.5 if scale is None else scale, softmax)  # type: ignore[no-untyped-call]
        return (o, lse) if return_lse else o

    return lambda: recognise("standard" if softmax == "rounded" else "standard-fp32", attention)


def _eager() -> Implementation:
    """Standard attention as everybody writes it, in torch's own operators: what a fused kernel's speed is told against.

    `standard` has the same roundings, computed in fp32 for any dtype and mask.
    """

    def attention(
        query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        return torch.softmax(scores, -1) @ value

    return recognise("eager", attention)


def _sdpa(name: str, backend: SDPBackend) -> Callable[[], Implementation]:
    """torch's SDPA held to one backend: where that one cannot run it raises, it never falls back."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        with sdpa_kernel([backend]):
            return scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )

    return lambda: recognise(name, attention)


def _flex() -> Implementation:
    """FlexAttention compiled, as it is meant to be used: uncompiled it is torch's own standard attention in fp32."""
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

    # whole or not at all: past its limit the compiler would quietly run uncompiled
    compiled: Any = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    functorch: Any = importlib.import_module("torch._functorch.config")
    functorch.donated_buffer = False  # which would forbid a second backward

    @lru_cache
    def band(left: int, right: int, M: int, N: int, device: torch.device) -> BlockMask:
        low, high = (torch.tensor(x, device=device) for x in (left, right))  # as numbers, each would be compiled anew

        def visible(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j >= i - low) & (j <= i + high)

        return create_block_mask(visible, None, None, M, N, device)

    def attention(
        query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None,
        enable_gqa: bool = False, *, window: tuple[int | None, int | None] = (None, None), return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        if not query.is_cuda:  # where it has no backward, and compiles for longer than a run may take
            raise NotImplementedError("flex is for CUDA devices here")
        left, right = window
        right = 0 if is_causal and right is None else min(right, 0) if is_causal and right is not None else right
        M, N = query.shape[2], key.shape[2]
        bounded = left is not None or right is not None
        mask = band(M if left is None else left, N if right is None else right, M, N, query.device) if bounded else None
        result: Tensor | tuple[Tensor, Tensor] = compiled(
            query, key, value, block_mask=mask, scale=scale, enable_gqa=enable_gqa, return_lse=return_lse
        )
        return result

    return recognise("flex", attention)


BUILTIN: dict[str, Callable[[], Implementation]] = {
    "flash": _flash,
    "standard": _standard("rounded"),
    "standard-fp32": _standard("fp32"),
    "eager": _eager,
    "sdpa-math": _sdpa("sdpa-math", SDPBackend.MATH),
    "sdpa-flash": _sdpa("sdpa-flash", SDPBackend.FLASH_ATTENTION),
    "sdpa-efficient": _sdpa("sdpa-efficient", SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-cudnn": _sdpa("sdpa-cudnn", SDPBackend.CUDNN_ATTENTION),
    "flex": _flex,
}
