"""Speed, memory and accuracy of implementations on a GPU, on the same problems (`flashproof bench`)."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..reference import attention as truth_of
from ..reference.masks import Mask
from ..reports.hardware import Speed
from .case import UNIT_ROUNDOFF, DType
from .implementation import Implementation
from .inputs import DTYPES
from .outputs import describe

TOKENS, WIDTH = 16384, 2048  # of one problem: B N, and H D, as in the FlashAttention papers
ACCURATE_TO = 4096  # the longest sequence whose error is measured: the float64 truth is quadratic
_WARMUP, _REPEATS = 25, 100  # milliseconds


def problems(
    dtypes: Sequence[DType], dims: Sequence[int], lengths: Sequence[int]
) -> Iterator[tuple[DType, bool, int, int, int, int]]:
    """(dtype, causal, B, H, N, D) of every problem."""
    for dtype in dtypes:
        for D in dims:
            for causal in (False, True):
                for N in lengths:
                    yield dtype, causal, max(1, TOKENS // N), max(1, WIDTH // D), N, D


def measured(
    implementation: Implementation, dtype: DType, causal: bool, B: int, H: int, N: int, D: int, device: torch.device
) -> Speed:
    """Times are medians of repeated calls, measured on the device; the first ones, which compile, do not count."""
    empty = Speed(implementation=implementation.name, dtype=dtype, causal=causal, B=B, H=H, N=N, D=D, status="ok")
    try:
        times = _timed(implementation, _tensors(dtype, B, H, N, D, device), causal)
        errors = _errors(implementation, dtype, causal, min(H, 4), N, D, device) if N <= ACCURATE_TO else {}
    except torch.OutOfMemoryError:
        return empty.model_copy(update={"status": "out of memory"})
    except Exception as e:  # noqa: BLE001  (what an implementation does not take, it says in its own way)
        return empty.model_copy(update={"status": describe(e)[:120]})
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return empty.model_copy(update={**times, "errors": errors})


def _tensors(dtype: DType, B: int, H: int, N: int, D: int, device: torch.device) -> list[Tensor]:
    """Q, k, v and do, normal, the first three with gradients."""
    generator = torch.Generator(device).manual_seed(N + D)
    drawn = [torch.randn(B, H, N, D, device=device, generator=generator).to(DTYPES[dtype]) for _ in range(4)]
    return [x.requires_grad_() for x in drawn[:3]] + drawn[3:]


def _call(implementation: Implementation, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    out = implementation.function(q, k, v, is_causal=causal)
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


def _timed(implementation: Implementation, tensors: list[Tensor], causal: bool) -> dict[str, float | int]:
    from triton.testing import do_bench

    q, k, v, do = tensors
    held = torch.cuda.memory_allocated()
    out = _call(implementation, q, k, v, causal)
    torch.autograd.backward(out, do)
    torch.cuda.synchronize()
    q.grad = k.grad = v.grad = None
    del out
    torch.cuda.reset_peak_memory_stats()
    out = _call(implementation, q, k, v, causal)
    torch.autograd.backward(out, do, retain_graph=True)
    torch.cuda.synchronize()
    gradients = sum(x.numel() * x.element_size() for x in (q, k, v))
    memory = torch.cuda.max_memory_allocated() - held - gradients

    def median(function: object) -> float:
        return float(do_bench(function, warmup=_WARMUP, rep=_REPEATS, grad_to_none=[q, k, v], return_mode="median"))

    def backward() -> None:
        torch.autograd.backward(out, do, retain_graph=True)

    forward_time = median(lambda: _call(implementation, q, k, v, causal))
    return {"forward": forward_time, "backward": median(backward), "memory": memory}


def _errors(
    implementation: Implementation, dtype: DType, causal: bool, H: int, N: int, D: int, device: torch.device
) -> dict[str, float]:
    """RMS error of each tensor, in unit roundoffs of the truth's RMS, on one batch element of a few heads."""
    q, k, v, do = _tensors(dtype, 1, H, N, D, device)
    out = _call(implementation, q, k, v, causal)
    torch.autograd.backward(out, do)
    mask, scale = Mask(causal=causal), D**-0.5
    a, b, c = (x.detach() for x in (q, k, v))
    forward, gradients = truth_of.forward(a, b, c, mask, scale), truth_of.backward(a, b, c, do, mask, scale)
    pairs = {"out": (out, forward.o), "dq": (q.grad, gradients.dq), "dk": (k.grad, gradients.dk),
             "dv": (v.grad, gradients.dv)}  # fmt: skip
    u = UNIT_ROUNDOFF[dtype]
    return {n: float((x.detach().double() - t).norm() / t.norm()) / u for n, (x, t) in pairs.items() if x is not None}
