"""Speed, memory and accuracy of implementations on a GPU, on the same problems (`flashproof bench`)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference.masks import Mask
from ..reports.hardware import OUT_OF_MEMORY, Speed
from .case import UNIT_ROUNDOFF, Case, DType, MaskRecipe
from .implementation import Implementation
from .inputs import DTYPES, Inputs
from .outputs import describe
from .truth import Truth

TOKENS, WIDTH = 16384, 2048  # of one problem: B N, and H D, as in the FlashAttention papers
LIMIT = 300.0  # seconds, for an implementation that is compiled for each problem
_ACCURATE_TO = 4096  # the longest sequence whose error is measured: the float64 truth is quadratic
_HEADS = 4  # that it is measured on
_WARMUP, _REPEATS = 25, 100  # milliseconds


def problems(dtypes: Sequence[DType], dims: Sequence[int], lengths: Sequence[int]) -> Iterator[Case]:
    """Self-attention of every dtype, head dimension, mask and length."""
    for dtype in dtypes:
        for D in dims:
            for causal in (False, True):
                for N in lengths:
                    B, H = max(1, TOKENS // N), max(1, WIDTH // D)
                    yield Case(B=B, H=H, HK=H, M=N, N=N, D=D, dtype=dtype, regime="normal", seed=N + D,
                               mask=MaskRecipe(causal=causal))  # fmt: skip


def measured(implementation: Implementation, device: str, case: Case) -> Speed:
    """Times are medians of repeated calls, measured on the device; the first ones, which compile, do not count."""
    empty = speed_of(implementation.name, case)
    few = case.with_(B=1, H=min(case.H, _HEADS), HK=min(case.H, _HEADS))
    try:
        times = _timed(_Call.of(implementation, case, device))
        errors = error_of(implementation, few, device) if case.N <= _ACCURATE_TO else {}
    except torch.OutOfMemoryError:
        return empty.model_copy(update={"status": OUT_OF_MEMORY})
    except Exception as e:  # noqa: BLE001  (what an implementation does not take, it says in its own way)
        return empty.model_copy(update={"status": describe(e)[:120]})
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return empty.model_copy(update={**times, "errors": errors})


def speed_of(name: str, case: Case, status: str = "ok") -> Speed:
    """Of a problem, before anything is measured, or if nothing can be."""
    return Speed(implementation=name, dtype=case.dtype, causal=case.mask.causal, B=case.B, H=case.H, N=case.N,
                 D=case.D, status=status)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A function and its arguments, as its users give them: tensors contiguous in its own layout, no LSE."""

    implementation: Implementation
    case: Case
    inputs: Inputs  # [B, H, N, D]; q, k and v have gradients

    @classmethod
    def of(cls, implementation: Implementation, case: Case, device: str) -> _Call:
        generator = torch.Generator(device).manual_seed(case.seed)

        def drawn() -> Tensor:
            x = torch.randn(case.B, case.H, case.N, case.D, device=device, generator=generator).to(DTYPES[case.dtype])
            return x.transpose(1, 2).contiguous().transpose(1, 2) if implementation.layout == "bshd" else x

        q, k, v, do = (drawn() for _ in range(4))
        inputs = Inputs(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), do, Mask(causal=case.mask.causal))
        return cls(implementation, case, inputs)

    def forward(self) -> Tensor:
        """The output [B, H, N, D]."""
        leaves = (self.inputs.q, self.inputs.k, self.inputs.v)
        result = self.implementation.forward(self.case, self.inputs, leaves, lse=False)
        out: Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return out.transpose(1, 2) if self.implementation.layout == "bshd" else out

    def backward(self, out: Tensor) -> None:
        """Gradients into the inputs'; what the forward pass kept is kept."""
        torch.autograd.backward(out, self.inputs.do, retain_graph=True)

    def gradients(self) -> dict[str, Tensor | None]:
        """Of what `backward` was called on."""
        return {"dq": self.inputs.q.grad, "dk": self.inputs.k.grad, "dv": self.inputs.v.grad}

    def forget(self) -> None:
        """The gradients."""
        self.inputs.q.grad = self.inputs.k.grad = self.inputs.v.grad = None


def _timed(call: _Call) -> dict[str, float | int]:
    held = torch.cuda.memory_allocated()
    call.backward(call.forward())
    torch.cuda.synchronize()
    call.forget()
    torch.cuda.reset_peak_memory_stats()
    out = call.forward()
    call.backward(out)
    torch.cuda.synchronize()
    gradients = sum(x.numel() * x.element_size() for x in call.gradients().values() if x is not None)
    memory = torch.cuda.max_memory_allocated() - held - gradients
    return {"forward": _median(call, call.forward), "backward": _median(call, lambda: call.backward(out)),
            "memory": memory}  # fmt: skip


def _median(call: _Call, function: Callable[[], object]) -> float:
    """Milliseconds."""
    from triton.testing import do_bench

    leaves = [call.inputs.q, call.inputs.k, call.inputs.v]
    return float(do_bench(function, warmup=_WARMUP, rep=_REPEATS, grad_to_none=leaves, return_mode="median"))


def error_of(implementation: Implementation, case: Case, device: str) -> dict[str, float]:
    """RMS error of each tensor, in unit roundoffs of the truth's RMS."""
    call = _Call.of(implementation, case, device)
    out = call.forward()
    call.backward(out)
    with torch.no_grad():
        truth = Truth.of(call.case, call.inputs).tensors()
    u = UNIT_ROUNDOFF[call.case.dtype]
    found = {name: x.detach().double() for name, x in {"out": out, **call.gradients()}.items() if x is not None}
    return {name: float((x - truth[name]).norm() / truth[name].norm()) / u for name, x in found.items()}
