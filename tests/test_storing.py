"""Which functions keep their scores in memory: those may round them to half precision, no other may."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from flashproof.verify.implementation import recognise
from flashproof.verify.loading import load
from flashproof.verify.storing import stores_scores

pytestmark = pytest.mark.usefixtures("interpreted")


def softmax(s):
    return torch.softmax(s.float(), -1)


def scores(q, k):
    return q.float() @ k.float().mT * q.shape[-1] ** -0.5


def sliced(q, k, v, width, step=lambda q, k, v: softmax(q @ k.mT * q.shape[-1] ** -0.5).to(q.dtype) @ v):
    """A function of a few queries at a time."""
    return torch.cat([step(part, k, v) for part in q.split(width, 2)], 2)


def tiled(q, k, v, dtype=torch.float32):
    """Flash attention: tiles of keys, scores rounded within a tile."""
    m, l, acc = torch.full((*q.shape[:-1], 1), -torch.inf), torch.zeros(*q.shape[:-1], 1), torch.zeros(q.shape)
    for kj, vj in zip(k.split(48, 2), v.split(48, 2), strict=True):
        s = scores(q, kj).to(dtype).float()
        new = torch.maximum(m, s.amax(-1, keepdim=True))
        alpha, p = torch.exp(m - new), torch.exp(s - new)
        l, m = l * alpha + p.sum(-1, keepdim=True), new
        acc = acc * alpha + p.to(q.dtype).float() @ vj.float()
    return (acc / l).to(q.dtype)


@triton.jit
def _scores(Q, K, S, M, N, row, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    m, n, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, D)
    head = tl.program_id(2)
    q = tl.load(Q + (head * M + m[:, None]) * D + d[None, :], mask=m[:, None] < M, other=0.0)
    k = tl.load(K + (head * N + n[:, None]) * D + d[None, :], mask=n[:, None] < N, other=0.0)
    s = tl.dot(q, tl.trans(k)) / tl.sqrt(D * 1.0)
    inside = (m[:, None] < M) & (n[None, :] < N)
    tl.store(S + (head * M + m[:, None]) * row + n[None, :], s.to(S.dtype.element_ty), mask=inside)


def two_kernels(q, k, v, buffer, tile=1):
    """Scores by a Triton kernel, into the buffer; the rest in fp32."""
    B, H, M, D = q.shape
    N = k.shape[2]
    row = N + -N % tile
    s = buffer(B * H, M, row, dtype=q.dtype)
    _scores[(triton.cdiv(M, 64), triton.cdiv(N, 64), B * H)](q, k, s, M, N, row, D, 64, 64)
    return (softmax(s.view(B, H, M, row)[..., :N]) @ v.float()).to(q.dtype)


def fp32(q, k, v):
    return (softmax(scores(q, k)) @ v.float()).to(q.dtype)


def holding(fill, shape=lambda q, k: (*q.shape[:3], k.shape[2])):
    """A sound function in fp32 that also has a half-precision buffer as large as the scores."""

    def attention(query, key, value):
        held = fill(*shape(query, key), dtype=query.dtype)
        return tiled(query, key, value) + 0 * held.flatten()[0].nan_to_num()

    return attention


def later(q, k, v):
    """Into a buffer, slice by slice."""
    s = torch.empty(*q.shape[:3], k.shape[2], dtype=q.dtype)
    for i in range(0, q.shape[2], 32):
        s[:, :, i : i + 32] = scores(q[:, :, i : i + 32], k)
    return (softmax(s) @ v.float()).to(q.dtype)


def padded(q, k, v):
    """Keys padded to whole tiles, hidden by a mask, as a wrapper around an eager function does."""
    more = -k.shape[2] % 256
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, more)) for x in (k, v))
    s = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(torch.arange(k.shape[2]) >= k.shape[2] - more, -torch.inf)
    return (softmax(s) @ v.float()).to(q.dtype)


def late(q, k, v):
    """Weights in half precision that are divided by their sum only after the product."""
    s = scores(q, k)
    p = torch.exp(s - s.amax(-1, keepdim=True))
    return (p.to(q.dtype).float() @ v.float() / p.sum(-1, keepdim=True)).to(q.dtype)


def two_parts(q, k, v):
    """Half of the scale on either side, as guided-diffusion has it."""
    part = q.shape[-1] ** -0.25
    return softmax((q * part) @ (k * part).mT).to(q.dtype) @ v


def transposed(q, k, v):
    s = k @ q.mT * q.shape[-1] ** -0.5
    return torch.softmax(s.float(), -2).to(q.dtype).mT @ v


STORING = {
    "eager": lambda q, k, v: softmax(q @ k.mT * q.shape[-1] ** -0.5).to(q.dtype) @ v,
    "eager, sliced": lambda q, k, v: sliced(q, k, v, 32),
    "scale on q": lambda q, k, v: softmax((q * q.shape[-1] ** -0.5) @ k.mT).to(q.dtype) @ v,
    "scale on q and k": two_parts,
    "unscaled": lambda q, k, v: (softmax((q @ k.mT).float() * q.shape[-1] ** -0.5) @ v.float()).to(q.dtype),
    "bf16 for all": lambda q, k, v: (softmax(scores(q, k).bfloat16()) @ v.float()).to(q.dtype),
    "weights": lambda q, k, v: (softmax(scores(q, k)).to(q.dtype).float() @ v.float()).to(q.dtype),
    "weights, divided late": late,
    "transposed": transposed,
    "into a buffer": later,
    "padded": padded,
    "Triton": lambda q, k, v: two_kernels(q, k, v, torch.empty),
    "Triton, zeros": lambda q, k, v: two_kernels(q, k, v, torch.zeros),
    "Triton, flat": lambda q, k, v: two_kernels(q, k, v, lambda *n, dtype: torch.empty(math.prod(n), dtype=dtype)),
    "Triton, padded rows": lambda q, k, v: two_kernels(q, k, v, torch.empty, 512),
}
FUSED = {
    "fp32": fp32,
    "fp32, sliced": lambda q, k, v: sliced(q, k, v, 32, fp32),
    "tiles": tiled,
    "tiles rounded": lambda q, k, v: tiled(q, k, v, q.dtype),
    "an idle buffer of zeros": holding(torch.zeros),
    "an idle buffer": holding(torch.empty),
    "an idle buffer of noise": holding(lambda *shape, dtype: torch.randn(*shape).to(dtype)),
    "a mask": holding(lambda *shape, dtype: torch.full(shape, -torch.inf).triu(1).to(dtype)),
    "a bias": holding(lambda *shape, dtype: -torch.arange(shape[-1]).to(dtype).expand(shape).contiguous()),
    "keys for every query": holding(
        lambda *shape, dtype: torch.zeros(shape, dtype=dtype), lambda q, k: (*q.shape[:3], *k.shape[2:])
    ),
    "keys cast again": lambda q, k, v: sliced(q, k, v, 2, lambda q, k, v: fp32(q, k * 1, v * 1)),
    "Triton into fp32": lambda q, k, v: two_kernels(q, k, v, lambda *shape, dtype: torch.empty(shape)),
}


def asked(function):
    def attention(query, key, value):
        return function(query, key, value)

    return stores_scores(recognise("planted", attention), "cpu")


@pytest.mark.parametrize("name", STORING)
def test_scores_that_are_kept_are_found(name):
    assert asked(STORING[name])


@pytest.mark.parametrize("name", FUSED)
def test_what_is_no_score_excuses_nothing(name):
    assert not asked(FUSED[name])


@pytest.mark.parametrize(
    ("spec", "stores"),
    [("flash", False), ("standard", True), ("standard-fp32", True), ("sdpa-math", True), ("sdpa-flash", False)],
)
def test_of_what_is_built_in(spec, stores):
    assert stores_scores(load(spec), "cpu") == stores


def only(condition, function):
    """The function of the few problems that it takes."""

    def attention(query, key, value):
        if not condition(query, key):
            raise NotImplementedError("not supported")
        return function(query, key, value)

    return attention


#: what a function may ask of a plain problem
CONDITIONS = {
    "fp16": lambda q, k: q.dtype == torch.float16,
    "bf16": lambda q, k: q.dtype == torch.bfloat16,
    "fp32": lambda q, k: q.dtype == torch.float32,
    "as many keys as queries": lambda q, k: q.shape[2] == k.shape[2],
    "contiguous": lambda q, k: q.is_contiguous() and k.is_contiguous(),
    "D = 128": lambda q, k: q.shape[-1] == 128,
    "D = 32": lambda q, k: q.shape[-1] == 32,
    "whole tiles": lambda q, k: q.shape[2] % 128 == k.shape[2] % 128 == 0,
    "short sequences, fp16": lambda q, k: q.shape[2] <= 128 and q.dtype == torch.float16,
    "one query": lambda q, k: q.shape[2] == 1,
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_function_that_takes_few_problems_is_asked_one_of_them(name):
    for function, stores in ((FUSED["tiles"], False), (STORING["bf16 for all"], True)):
        assert stores_scores(recognise("planted", only(CONDITIONS[name], function)), "cpu") == stores


def test_a_function_in_the_other_order_gets_its_own_memory_layout():
    def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
        if not q.is_contiguous():
            raise ValueError("q must be contiguous")
        return tiled(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    assert not stores_scores(recognise("planted", flash_attn_func), "cpu")


def test_a_function_that_takes_no_problem_is_taken_to_store_its_scores():
    assert stores_scores(recognise("planted", only(lambda q, k: False, tiled)), "cpu")
