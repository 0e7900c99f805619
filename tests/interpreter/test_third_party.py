"""Kernels that no one here wrote, from published wheels, unmodified: against float64 references written here.

Errors are the RMS error over the RMS of the truth, counted in units of what one rounding costs.  A rounding to nearest
in a format of p bits errs by at most u = 2^-p of each number, so n roundings in a row cost at most about n * u, and the
allowance of a case is the number of roundings between its inputs and its output.  A product of fp32 tiles is one of
tf32 numbers (Triton's default), p = 11; what is not rounded to the format of its tensors is rounded to fp32, which is
nothing beside it.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
HALVES = [torch.float16, torch.bfloat16]
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
TF32 = 2.0**-10  # of tensor cores that drop the lower bits of fp32 operands; 2^-11 of those that round


def close(got, truth, roundings, unit):
    assert got.shape == truth.shape
    error = (got.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    assert error <= roundings * unit, f"{error / unit:.2f} units, {roundings} allowed"


def tensors(*shapes, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def compare(ours, reference, inputs, *, forward, backward, unit):
    """Run, differentiate, and hold the output and every gradient to their numbers of roundings."""
    wide = [x.detach().double().requires_grad_() for x in inputs]  # before kernels that work in place get hold of them
    truth = reference(*wide)
    gradient = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype)
    truth.backward(gradient.double())
    out = ours(*inputs)
    close(out.detach(), truth.detach(), forward, unit)
    out.backward(gradient)
    for x, w in zip(inputs, wide, strict=True):
        close(x.grad, w.grad, backward, unit)


# -- flash-linear-attention --------------------------------------------------------------------------------------------


@pytest.fixture
def fla():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("fla")
        yield


def softmax_attention(q, k, v, *, window=None, decay=None):
    """Causal attention of `[B, T, H, D]`, grouped heads, optionally within a window or with decaying logits."""
    T, D = q.shape[1], q.shape[3]
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(D)
    if decay is not None:
        c = decay.cumsum(1).transpose(1, 2)
        logits = logits + c[..., :, None] - c[..., None, :]
    distance = torch.arange(T)[:, None] - torch.arange(T)
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return torch.einsum("bhqk,bkhd->bqhd", logits.masked_fill(hidden, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fla_softmax_attention(fla, dtype, window):
    """Forward: p and the output are rounded.  Backward: p, ds, the output that delta is made of, and the gradient."""
    from fla.ops.attn import parallel_attn

    inputs = tensors((1, 150, 4, 64), (1, 150, 2, 64), (1, 150, 2, 64), dtype=dtype)
    unit = TF32 if dtype == torch.float32 else UNIT[dtype]
    compare(
        lambda q, k, v: parallel_attn(q, k, v, window_size=window),
        lambda q, k, v: softmax_attention(q, k, v, window=window),
        inputs, forward=2, backward=4, unit=unit,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_fla_varlen_attention(fla, dtype):
    from fla.ops.attn import parallel_attn

    inputs = tensors(*[(1, 100, 2, 32)] * 3, dtype=dtype)
    bounds = [0, 37, 41, 100]

    def reference(q, k, v):
        parts = [softmax_attention(q[:, a:b], k[:, a:b], v[:, a:b]) for a, b in pairwise(bounds)]
        return torch.cat(parts, 1)

    compare(
        lambda q, k, v: parallel_attn(q, k, v, cu_seqlens=torch.tensor(bounds)),
        reference, inputs, forward=2, backward=4, unit=UNIT[dtype],
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fla_forgetting_attention(fla, dtype):
    """As softmax attention; the gates' cumulative sums are fp32."""
    from fla.ops.forgetting_attn import parallel_forgetting_attn

    inputs = tensors(*[(1, 96, 2, 32)] * 3, dtype=dtype)
    gates = F.logsigmoid(tensors((1, 96, 2), dtype=torch.float32, seed=3)[0]).detach().requires_grad_()
    unit = TF32 if dtype == torch.float32 else UNIT[dtype]
    compare(
        lambda q, k, v, g: parallel_forgetting_attn(q, k, v, g),
        lambda q, k, v, g: softmax_attention(q, k, v, decay=g),
        [*inputs, gates], forward=2, backward=5, unit=unit,
    )  # fmt: skip


def recurrent_linear(q, k, v, decay=None):
    """S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t', o_t = S_t' q_t / sqrt(D), one step at a time."""
    B, T, H, D = q.shape
    state, outs = q.new_zeros(B, H, D, v.shape[-1]), []
    for t in range(T):
        if decay is not None:
            state = state * decay[:, t].exp()[..., None]
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outs.append(torch.einsum("bhd,bhde->bhe", q[:, t], state) / math.sqrt(D))
    return torch.stack(outs, 1)


def delta_rule(q, k, v, beta):
    """S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}' k_t)', o_t = S_t' q_t / sqrt(D)."""
    state, outs = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        missing = v[:, t] - torch.einsum("bhd,bhde->bhe", k[:, t], state)
        state = state + torch.einsum("bhd,bhe->bhde", k[:, t] * beta[:, t, :, None], missing)
        outs.append(torch.einsum("bhd,bhde->bhe", q[:, t], state) / math.sqrt(q.shape[-1]))
    return torch.stack(outs, 1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_fla_gated_linear_attention(fla, form, dtype):
    """Chunks: gated q, gated k, the scores, the state and the output are rounded, each on the way there and back."""
    from fla.ops.gla import chunk_gla, fused_recurrent_gla

    inputs = tensors(*[(1, 96, 2, 32)] * 3, dtype=dtype)
    gates = F.logsigmoid(tensors((1, 96, 2, 32), dtype=torch.float32, seed=3)[0]).detach().to(dtype).requires_grad_()
    compare(
        (lambda q, k, v, g: chunk_gla(q, k, v, g)[0])
        if form == "chunk"
        else (lambda q, k, v, g: fused_recurrent_gla(q, k, v, gk=g)[0]),
        recurrent_linear, [*inputs, gates], forward=5, backward=10, unit=UNIT[dtype],
    )  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_fla_delta_rule(fla, dtype):
    """Chunks of 64: w, u, the scores, the new values, the state and the output are rounded, there and back."""
    from fla.ops.delta_rule import chunk_delta_rule

    q, k, v = tensors(*[(1, 96, 2, 32)] * 3, dtype=torch.float32)
    q, k = (F.normalize(x.detach(), dim=-1) for x in (q, k))
    beta = torch.sigmoid(tensors((1, 96, 2), dtype=torch.float32, seed=3)[0])
    inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v, beta)]
    compare(
        lambda q, k, v, b: chunk_delta_rule(q, k, v, b)[0],
        delta_rule, inputs, forward=6, backward=12, unit=UNIT[dtype],
    )  # fmt: skip


# -- SageAttention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_sage_attention(causal, dtype):
    """The quantised queries and keys are given, so what is left is P @ V: fp16 operands and an fp16 result per tile.

    p and each tile's product are rounded to fp16, the output to the tensors' dtype.
    """
    pytest.importorskip("sageattention")
    from sageattention.attn_qk_int8_per_block import forward
    from sageattention.attn_qk_int8_per_block_causal import forward as forward_causal
    from sageattention.quant_per_block import per_block_int8

    q, k, v = (x.detach() for x in tensors((1, 4, 256, 64), (1, 2, 256, 64), (1, 2, 256, 64), dtype=dtype))
    q_int8, q_scale, k_int8, k_scale = per_block_int8(q, k)
    for x, scale, whole, block in ((q * 0.125 * 1.44269504, q_scale, q_int8, 128), (k, k_scale, k_int8, 64)):
        by_row = scale.repeat_interleave(block, 2)
        assert (whole.abs().amax((2, 3)) == 127).all()
        # half a step of the quantiser, and the fp32 roundings of x * scale, x / scale and + 0.5
        assert ((whole * by_row.double() - x.double()).abs() <= by_row * (0.5 + 127 * 4 * 2.0**-24)).all() or (
            dtype != torch.float32  # q * 0.125 * 1.44 above was rounded
        )
    value = v.to(torch.float16)
    out = (forward_causal if causal else forward)(q_int8, k_int8, value, q_scale, k_scale, output_dtype=dtype)
    rows = q_int8.double() * q_scale.double().repeat_interleave(128, 2)
    columns = (k_int8.double() * k_scale.double().repeat_interleave(64, 2)).repeat_interleave(2, 1)
    logits = rows @ columns.mT * math.log(2)
    if causal:
        logits = logits.masked_fill(torch.ones(256, 256).triu(1).bool(), -torch.inf)
    truth = logits.softmax(-1) @ value.double().repeat_interleave(2, 1)
    close(out, truth, 3, max(UNIT[dtype], UNIT[torch.float16]))


# -- Liger -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def liger():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("liger_kernel.ops")


def gelu_mul(a, b):
    return F.gelu(a, approximate="tanh") * b


def rms_norm(x, w):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


#: name -> ours, reference, shapes, roundings forward, roundings backward.  fp32 results are computed in fp32 from end
#: to end, in some ten operations of which each errs by a unit.
LIGER = {
    "swiglu": (lambda o: o.LigerSiLUMulFunction.apply, lambda a, b: F.silu(a) * b, [(7, 96)] * 2, 2, 3),
    "geglu": (lambda o: o.LigerGELUMulFunction.apply, gelu_mul, [(7, 96)] * 2, 2, 3),
    "softmax": (lambda o: o.LigerSoftmaxFunction.apply, lambda x: x.softmax(-1), [(7, 96)], 1, 3),
    "relu squared": (lambda o: o.LigerReLUSquaredFunction.apply, lambda x: F.relu(x).square(), [(7, 96)], 2, 2),
    "sparsemax": (lambda o: lambda x: o.LigerSparsemaxFunction.apply(x, -1), None, [(7, 96)], 2, 3),
    "rms_norm": (lambda o: lambda x, w: o.LigerRMSNormFunction.apply(x, w, 1e-6), rms_norm, [(7, 96), (96,)], 3, 4),
    "layer_norm": (
        lambda o: lambda x, w, b: o.LigerLayerNormFunction.apply(x, w, b, 1e-6),
        lambda x, w, b: F.layer_norm(x, (96,), w, b, 1e-6), [(7, 96), (96,), (96,)], 2, 3,
    ),
    "group_norm": (
        lambda o: lambda x, w, b: o.LigerGroupNormFunction.apply(x, w, b, 8, 2, 1e-6),
        lambda x, w, b: F.group_norm(x.double(), 2, w, b, 1e-6), [(3, 8, 12), (8,), (8,)], 2, 3,
    ),
}  # fmt: skip


def sparsemax(x):
    """Martins and Astudillo 2016, algorithm 1."""
    z = x.sort(-1, descending=True).values
    k = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    support = (1 + k * z > z.cumsum(-1)).sum(-1, keepdim=True)
    tau = (z.cumsum(-1).gather(-1, support - 1) - 1) / support
    return (x - tau).clamp(min=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LIGER)
def test_liger(liger, name, dtype):
    ours, reference, shapes, forward, backward = LIGER[name]
    unit = UNIT[dtype]
    if (name, dtype) == ("group_norm", torch.float16):
        unit = UNIT[torch.bfloat16]  # Liger 0.8.5 adds up the gradients of fp16 weights in bf16
    scale = 10 if dtype == torch.float32 else 1
    inputs = tensors(*shapes, dtype=dtype)
    compare(
        ours(liger), reference or sparsemax, inputs,
        forward=forward * scale, backward=backward * scale, unit=unit,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_liger_rope(liger, dtype):
    """Two products and a sum: two roundings where the kernel computes in the tensors' dtype, three with its store."""
    q, k = tensors((1, 2, 10, 32), (1, 1, 10, 32), dtype=dtype)
    angle = torch.rand(10, 16).repeat(1, 2)[None]
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    # the kernel rotates its inputs in place, so it is given copies
    got_q, got_k = liger.LigerRopeFunction.apply(q.clone(), k.clone(), cos, sin)
    (got_q.sum() + 2 * got_k.sum()).backward()
    wide = [x.detach().double().requires_grad_() for x in (q, k)]
    want = [rotate(x, cos.double(), sin.double()) for x in wide]
    (want[0].sum() + 2 * want[1].sum()).backward()
    for got, truth in ((got_q, want[0]), (got_k, want[1]), (q.grad, wide[0].grad), (k.grad, wide[1].grad)):
        close(got.detach(), truth.detach(), 3, UNIT[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_liger_cross_entropy(liger, dtype):
    """The loss is fp32 from end to end; the gradient is rounded once, or is ten fp32 operations."""
    (logits,) = tensors((40, 1000), dtype=dtype)
    target = torch.randint(0, 1000, (40,), generator=torch.Generator().manual_seed(2))
    target[::7] = -100
    wide = logits.detach().double().requires_grad_()
    truth = F.cross_entropy(wide, target, label_smoothing=0.1)
    truth.backward()
    copy = logits.detach().clone().requires_grad_()
    loss = liger.LigerCrossEntropyFunction.apply(copy * 1, target, None, -100, 0.0, 0.1)[0]
    loss.backward()
    close(loss.detach(), truth.detach(), 10, UNIT[torch.float32] if dtype == torch.float32 else UNIT[dtype])
    close(copy.grad, wide.grad, 10 if dtype == torch.float32 else 2, UNIT[dtype])
