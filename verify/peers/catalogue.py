"""The projects: what each one's test of attention draws, compares with, and accepts.

Their grids hold up to half a million cases; here each has at most three problems of the same kind, small enough for
kernels that are interpreted on a CPU.  `differs` says what that leaves out.
"""

from __future__ import annotations

import math

import torch

from ..case import DType
from .arithmetic import Arithmetic
from .peer import Elements, Peer, Problem, integers, normal, uniform
from .rules import (
    allclose,
    by_dtype,
    fla_ci,
    flash_attention,
    flash_attention_3,
    flex_mean,
    mean_square,
    normalised_mean_square,
    not_nan,
    pytorch,
)

FP64 = Arithmetic("fp64", torch.float64, rounds_out=False, rounds_gradients=False)
FP32 = Arithmetic("fp32", torch.float32, rounds_out=False, rounds_gradients=False)
FP32_ROUNDED = Arithmetic("fp32, rounded to the dtype", torch.float32)
UPCAST = Arithmetic("torch's MATH backend, fp32 inside", torch.float32, scaled="both")
EAGER_SCALED_KEYS = Arithmetic("the same dtype, scaling K", None, scaled="keys")
_TRANSFORMER_ENGINE: dict[DType, float] = {"bf16": 1.5e-2, "fp16": 1e-3}  # their tolerances


def _every(q: Elements, do: Elements | None = None) -> dict[str, Elements]:
    return {"q": q, "k": q, "v": q, "do": q if do is None else do}


_ALL = (
    Peer(
        name="FlashAttention 2",
        source="Dao-AILab/flash-attention tests/test_flash_attn.py: test_flash_attn_output, test_flash_attn_causal",
        reference=FP32_ROUNDED, low=EAGER_SCALED_KEYS, distribution=_every(normal()),
        shapes=(
            Problem("fp16", 2, 2, 2, 113, 203, 59),
            Problem("bf16", 1, 6, 2, 128, 217, 64, window=(40, 25), alignment="bottom-right", layout="bshd"),
            Problem("fp16", 1, 2, 2, 256, 127, 64, causal=True, alignment="bottom-right", layout="bshd"),
        ),
        criterion={
            "out": flash_attention(2.0, causal=(2.0, 1e-5)),
            "dq": flash_attention(3.0, causal=(2.0, 1e-5)),
            "dk": flash_attention(3.0, causal=(2.0, 1e-5)),
            "dv": flash_attention(3.0, causal=(2.0, 1e-5)),
        },
        differs="batch 4 to 2 and 1, heads 6 to 2, lengths to 256; no dropout, ALiBi, varlen, KV cache, nor reruns",
    ),
    Peer(
        name="FlashAttention 3/4",
        source="Dao-AILab/flash-attention hopper/test_flash_attn.py, tests/cute: test_flash_attn_output",
        reference=FP32_ROUNDED, low=EAGER_SCALED_KEYS, distribution=_every(normal()),
        shapes=(
            Problem("bf16", 2, 6, 2, 113, 203, 64, layout="bshd"),
            Problem("bf16", 1, 2, 2, 256, 256, 128, causal=True, layout="bshd"),
            Problem("fp16", 1, 2, 2, 128, 192, 64, window=(60, 20), alignment="bottom-right", layout="bshd"),
        ),
        criterion={"out": flash_attention_3(2.0), "lse": not_nan, "dq": flash_attention_3(2.0),
                   "dk": flash_attention_3(2.0), "dv": flash_attention_3(2.0)},
        differs="batch 9 to 2 and 1, heads 6 to 2, lengths to 256; no softcap, FP8, split KV, varlen, nor reruns",
    ),
    Peer(
        name="PyTorch SDPA",
        source="pytorch/pytorch test/test_transformers.py: _check_equal, test_flash_attention_vs_math_ref_grads (CUDA)",
        reference=FP32, low=UPCAST, distribution=_every(uniform(0, 1)),
        shapes=(
            Problem("fp16", 2, 2, 2, 143, 256, 64, scale=1 / 64),
            Problem("bf16", 1, 2, 2, 256, 256, 72, causal=True),
            Problem("bf16", 1, 4, 2, 64, 128, 32),
        ),
        criterion={"out": pytorch(4), "dq": pytorch(180), "dk": pytorch(16), "dv": pytorch(4)},
        differs="batch 8 to 2 and 1, heads to 2 and 4, lengths to 256; CUDA's fudge factors, not ROCm's (up to 1550)",
    ),
    Peer(
        name="FlexAttention",
        source="pytorch/pytorch test/inductor/test_flex_attention.py: run_test, test_logsumexp_correctness",
        reference=FP64,
        low=Arithmetic("the same dtype, softmax in fp32", None, scaled="cast", softmax=torch.float32),
        distribution=_every(normal()),
        shapes=(
            Problem("fp16", 2, 2, 2, 256, 256, 64, causal=True),
            Problem("bf16", 1, 4, 2, 256, 256, 64),
            Problem("fp16", 1, 2, 2, 255, 255, 64, causal=True),
        ),
        criterion={"out": flex_mean(1.1), "lse": allclose(2e-2, 2e-2, base=math.log(2)), "dq": flex_mean(1.1),
                   "dk": flex_mean(1.1), "dv": flex_mean(1.1)},
        differs="batch 4, heads 8, length 2048 to 2, 2 and 256; causal and no mask are the only score modifications. "
        "The current rule, assert_close of the two mean errors; it used to be compiled > 1.1 * eager",
    ),
    Peer(
        name="AOTriton",
        source="ROCm/aotriton test/_common_test.py, test_backward.py (now modules/flash/tests)",
        reference=FP32, low=Arithmetic("the same dtype, no upcast", None, scaled="both"),
        distribution=_every(uniform(0, 1)),
        shapes=(
            Problem("fp16", 2, 2, 2, 113, 251, 64, scale=1.2),
            Problem("bf16", 1, 2, 2, 251, 251, 72, causal=True, scale=1.2, layout="bshd"),
            Problem("fp16", 1, 4, 2, 64, 128, 21, scale=1.2),
        ),
        criterion={"out": pytorch(3), "dq": pytorch(148), "dk": pytorch(48), "dv": pytorch(36)},
        differs="lengths to 251, batch, heads to 2; default fudge factors, not those of single chips; no bias, "
        "dropout, nor recorded differences",
        poisoned=True,
    ),
    Peer(
        name="xformers",
        source="facebookresearch/xformers tests/test_mem_eff_attention.py: test_forward, test_logsumexp, test_backward",
        reference=Arithmetic("fp32, gradients rounded to the dtype", torch.float32, rounds_out=False), low=None,
        distribution=_every(normal(3.0), do=normal()),
        shapes=(
            Problem("fp16", 1, 2, 2, 132, 90, 64, layout="gaps"),
            Problem("bf16", 1, 2, 2, 136, 136, 72, causal=True, layout="packed"),
            Problem("fp16", 2, 1, 1, 31, 245, 128, layout="gaps"),
        ),
        criterion={
            "out": by_dtype(fp16=allclose(4e-3, 4e-4), bf16=allclose(2e-2, 5e-3)),
            "lse": allclose(2e-4, 1e-5),
            **{n: by_dtype(fp16=allclose(0.2, 0.02), bf16=allclose(0.9, 0.1)) for n in ("dq", "dk", "dv")},
        },
        differs="three of 200 random shapes per operator. NaN past the end of each tensor is kept (as gaps), the "
        "bitwise rerun is not, nor the expanded gradient of ones",
    ),
    *(
        Peer(
            name=f"TransformerEngine {dtype}",
            source="NVIDIA/TransformerEngine tests/pytorch/attention/test_attention.py: test_dot_product_attention",
            reference=Arithmetic("the same dtype", None, scaled="product"), low=None,
            distribution=_every(normal(0.1), do=integers(0, 200, 0.001)),
            shapes=(
                Problem(dtype, 2, 2, 2, 128, 128, 64, layout="packed"),
                Problem(dtype, 1, 2, 2, 256, 256, 128, causal=True, layout="packed"),
                Problem(dtype, 1, 4, 2, 128, 256, 64, layout="bshd"),
            ),
            criterion={n: allclose(tolerance, tolerance) for n in ("out", "dq", "dk", "dv")},
            differs="against plain attention in the same dtype, where they compare backends with each other; length "
            "2048 to 256, which makes the signal larger and the rule less loose than it is",
        )
        for dtype, tolerance in _TRANSFORMER_ENGINE.items()
    ),
    Peer(
        name="FLA in CI",
        source="fla-org/flash-linear-attention tests/ops/test_attn.py, fla/utils/_testing.py with FLA_CI_ENV=1",
        reference=FP32_ROUNDED, low=None, distribution=_every(normal()),
        shapes=(
            Problem("fp16", 2, 1, 1, 63, 63, 64, causal=True, scale=1.0, layout="bshd"),
            Problem("fp16", 1, 2, 2, 111, 111, 100, causal=True, scale=1.0, layout="bshd"),
            Problem("fp16", 1, 4, 2, 256, 256, 60, causal=True, scale=0.1, layout="bshd"),
        ),
        criterion={n: fla_ci(0.005) for n in ("out", "dq", "dk", "dv")},
        differs="batch 3 to 2 and 1, heads 8/2 to 4/2, length 1024 to 256; no gates, sinks, windows, nor varlen",
        poisoned=True,
    ),
    Peer(
        name="JAX splash",
        source="jax-ml/jax tests/pallas/tpu_splash_attention_kernel_test.py",
        reference=FP32, low=None, distribution=_every(uniform(0, 1)),
        shapes=(
            Problem("fp32", 1, 2, 2, 256, 256, 128, causal=True, scale=1.0),
            Problem("fp32", 1, 4, 2, 128, 256, 128, scale=1.0),
            Problem("bf16", 1, 2, 2, 256, 128, 128, scale=1.0),
        ),
        criterion={
            "out": allclose(3e-3, 3e-3, equal_nan=True),
            "lse": allclose(1e-3, 1e-3, equal_nan=True),
            **{n: allclose(2e-2, 3e-2, equal_nan=True) for n in ("dq", "dk", "dv")},
        },
        differs="lengths of 1024 to 4096 to 128 and 256, multiples of the block as theirs; fixed, not drawn by "
        "Hypothesis; no random masks, segments, nor softcap",
        from_output=True,
    ),
    Peer(
        name="Triton tutorial",
        source="triton-lang/triton python/tutorials/06-fused-attention.py: test_op; issues 4541, 5660, 7216",
        reference=Arithmetic("the same dtype, softmax in fp32", None, softmax=torch.float32), low=None,
        distribution=_every(normal(0.5), do=normal()),
        shapes=(Problem("fp16", 1, 2, 2, 256, 256, 64, causal=True, scale=0.5),),
        criterion={n: allclose(1e-2, 0.0) for n in ("out", "dq", "dk", "dv")},
        differs="length 1024 to 256",
    ),
    Peer(
        name="FlashInfer fp16",
        source="flashinfer-ai/flashinfer tests/attention: single prefill against attention_ref, return_lse",
        reference=FP32_ROUNDED, low=None, distribution=_every(normal()),
        shapes=(
            Problem("fp16", 2, 4, 2, 63, 127, 128, causal=True, alignment="bottom-right", backward=False),
            Problem("fp16", 1, 2, 2, 177, 277, 128, backward=False, layout="bshd"),
            Problem("fp16", 1, 4, 1, 7, 31, 64, causal=True, alignment="bottom-right", backward=False, layout="bshd"),
        ),
        criterion={"out": allclose(1e-3, 1e-3), "lse": allclose(1e-3, 1e-3, base=math.log(2))},
        differs="heads 32 to 2, lengths 544 and more to 277, head dimensions 192 and 128 to 128; no paging. The helper "
        "in which NaN counts as a match is for quantised kernels and is not used here",
    ),
    Peer(
        name="FlashInfer FP8",
        source="flashinfer-ai/flashinfer tests/attention/test_hopper_fp8_attention.py: test_single_prefill",
        reference=FP32_ROUNDED, low=None, distribution=_every(normal()),
        shapes=(
            Problem("fp16", 1, 2, 2, 117, 117, 64, backward=False, layout="bshd"),
            Problem("fp16", 1, 2, 2, 256, 256, 128, causal=True, backward=False, layout="bshd"),
        ),
        criterion={"out": mean_square(1.0)},
        differs="the kernel computes in fp16 on what e4m3 leaves of q, k and v; lengths 1011 to 256, heads 24 to 2; "
        "the reference is plain attention, not their own fp16 kernel",
        quantised=torch.float8_e4m3fn,
    ),
    Peer(
        name="vLLM",
        source="vllm-project/vllm tests/kernels/attention/test_triton_unified_attention.py: test_triton_unified_attn",
        reference=Arithmetic("the same dtype, scaling Q, softmax in fp32", None, scaled="queries",
                             softmax=torch.float32),
        low=None, distribution=_every(normal()),
        shapes=(
            Problem("bf16", 1, 4, 2, 5, 18, 128, causal=True, alignment="bottom-right", backward=False),
            Problem("bf16", 1, 2, 2, 129, 263, 128, causal=True, window=(63, 0), alignment="bottom-right",
                    backward=False),
            Problem("bf16", 1, 5, 1, 1, 300, 128, causal=True, alignment="bottom-right", backward=False),
        ),
        criterion={"out": allclose(1.5e-2, 1e-2)},
        differs="one sequence per call, lengths 2011 to 300, heads 8/2 to 4/2; no paging, softcap, nor FP8",
    ),
    Peer(
        name="llama.cpp",
        source="ggml-org/llama.cpp tests/test-backend-ops.cpp: test_flash_attn_ext",
        reference=FP32, low=None, distribution=_every(uniform(-1, 1)),
        shapes=(
            Problem("fp16", 2, 4, 2, 35, 113, 64, bias=True, backward=False),
            Problem("fp16", 1, 2, 2, 3, 256, 128, backward=False),
            Problem("fp16", 1, 2, 2, 75, 256, 128, bias=True, backward=False),
        ),
        criterion={"out": normalised_mean_square(5e-4)},
        differs="lengths 512 and more to 256; q and the output are fp16 where theirs are fp32; a fixed seed where they "
        "draw a new one each run; one hidden and one zero block per mask, as many as their size would have; no "
        "sinks, softcap, ALiBi, nor quantised K and V",
    ),
)  # fmt: skip

#: by name
PEERS: dict[str, Peer] = {p.name: p for p in _ALL}
