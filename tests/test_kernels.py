"""The bundled flash kernels against the truth: every mask, odd sizes, layouts, heads, and their own promises."""

from __future__ import annotations

from contextvars import copy_context

import flashproof.kernels.attention as bundled
import pytest
import torch
from flashproof.kernels import interpreter
from flashproof.kernels.attention import attention
from flashproof.reference import attention as truth
from flashproof.reference.masks import Mask
from flashproof.verify import guards
from flashproof.verify.case import Case, MaskRecipe
from flashproof.verify.errors import same_bits
from flashproof.verify.evaluate import evaluate
from flashproof.verify.inputs import build
from flashproof.verify.loading import load

MASKS = {
    "none": MaskRecipe(),
    "causal-tl": MaskRecipe(causal=True),
    "causal-br": MaskRecipe(causal=True, alignment="bottom-right"),
    "window-tl": MaskRecipe(window=(3, 5)),
    "window-br": MaskRecipe(window=(20, None), alignment="bottom-right"),
    "boolean": MaskRecipe(boolean="random"),
    "empty-rows": MaskRecipe(boolean="empty-rows"),
    "first-tile": MaskRecipe(boolean="first-tile"),
    "bias": MaskRecipe(bias="random"),
    "bias-hidden": MaskRecipe(bias="hidden"),
    "padding": MaskRecipe(key_lengths=True),
    "all-at-once": MaskRecipe(
        causal=True, window=(40, None), alignment="bottom-right", boolean="random", bias="hidden", key_lengths=True
    ),
}


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreter.interpret():
        yield


def assert_right(**fields):
    base = dict(B=2, H=4, HK=2, M=50, N=67, D=32, dtype="fp16", regime="normal", seed=3)
    case = Case(**{**base, **fields})
    result = evaluate(case, load("flash"), "survey")
    assert result.status == "ok", result.rows[0].message
    assert {c.name for c in result.checks} >= {"finite", "bound", "memory", "kept", "repeat", "inputs-unchanged"}
    assert not result.failed, "\n".join(f"{c.name} {c.tensor}: {c.detail}" for c in result.failed)
    return result


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, dtype):
    assert_right(mask=MASKS[mask], dtype=dtype)


@pytest.mark.parametrize(("M", "N"), [(0, 5), (5, 0), (1, 1), (1, 33), (33, 1), (32, 32), (31, 65), (64, 31)])
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(M, N, causal):
    assert_right(M=M, N=N, mask=MaskRecipe(causal=causal, alignment="bottom-right"))


@pytest.mark.parametrize("D", [1, 3, 16, 24, 59, 111, 160, 256])
def test_head_dims(D):
    assert_right(D=D, M=20, N=37, B=1)


@pytest.mark.parametrize("layout", ["contiguous", "bshd", "packed", "gaps", "columns", "expanded"])
@pytest.mark.parametrize("mask", ["none", "boolean", "bias-hidden", "all-at-once"])
def test_layouts(layout, mask):
    assert_right(layout=layout, mask=MASKS[mask])


@pytest.mark.parametrize(("H", "HK"), [(1, 1), (6, 1), (6, 2), (6, 3), (5, 5)])
def test_grouped_heads(H, HK):
    assert_right(H=H, HK=HK)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, 2.0**-7, 0.07])
def test_scales(scale):
    assert_right(scale=scale)


@pytest.mark.parametrize("tiles", [(16, 16), (32, 64), (64, 16), (128, 128)])
def test_tiles_change_only_roundings(tiles):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 40, generator=generator) for n in (70, 90, 90))
    o, lse = attention(q, k, v, is_causal=True, alignment="bottom-right", return_lse=True, tiles=tiles)
    expected = truth.forward(q, k, v, Mask(causal=True, alignment="bottom-right"), 40**-0.5)
    torch.testing.assert_close(o.double(), expected.o, atol=1e-6, rtol=0)
    torch.testing.assert_close(lse.double(), expected.lse, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ["contiguous", "packed", "gaps", "columns"])
@pytest.mark.parametrize("mask", ["none", "causal-br", "padding"])
def test_tensor_descriptors_change_no_bits(monkeypatch, layout, mask):
    """Where rows are not aligned they are not made: then the flag alone changes nothing."""
    case = Case(B=3, H=4, HK=2, M=70, N=41, D=40, dtype="bf16", regime="normal", seed=2, mask=MASKS[mask],
                layout=layout)  # fmt: skip
    flash, made = load("flash"), []

    def gradients():
        found = guards.run(flash, case, build(case)).tensors()
        return [found[n] for n in ("dq", "dk", "dv")]

    plain = gradients()
    chosen = bundled.schedule
    monkeypatch.setattr(bundled, "schedule", lambda kernel, *rest: (
        chosen(kernel, *rest) | ({} if kernel == "forward" else dict(DESCRIPTORS=True))
    ))  # fmt: skip
    monkeypatch.setattr(bundled, "copy_context", lambda: made.append(layout) or copy_context())
    assert all(same_bits(x, y).all() for x, y in zip(gradients(), plain, strict=True))
    assert len(made) == (2 if layout in ("contiguous", "packed") else 0)


def test_gradient_of_the_lse():
    """A loss that uses the log-sum-exp: dS gains P * dLSE (and a kernel that ignores it is silently wrong)."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 1, n, 16, generator=generator).requires_grad_() for n in (5, 40, 40))
    weight = torch.randn(1, 1, 5, generator=generator)
    o, lse = attention(q, k, v, return_lse=True)
    gradients = torch.autograd.grad((lse * weight).sum() + o.sum(), (q, k, v))
    q64, k64, v64 = (x.detach().double().requires_grad_() for x in (q, k, v))
    s = q64 @ k64.mT / 4
    expected = torch.autograd.grad((s.logsumexp(-1) * weight).sum() + (s.softmax(-1) @ v64).sum(), (q64, k64, v64))
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=0)


def test_bf16_weights_that_do_not_sum_to_one_would_show():
    """V = 1: the output is exactly 1, because l sums the rounded P."""
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 1, n, 32, generator=generator).bfloat16() for n in (30, 200))
    o = attention(q, k, torch.ones_like(k))
    assert (o == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dropout_p=0.1), "dropout"),
        (dict(window=(-1, 0)), "window"),
        (dict(tiles=(8, 16)), "tiles"),
        (dict(tiles=(48, 16)), "tiles"),
        (dict(attn_mask=torch.zeros(4, 4, requires_grad=True)), "gradient"),
    ],
)
def test_refusals_say_why(change, message):
    x = torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match=message):
        attention(x, x, x, **change)


@pytest.mark.parametrize(
    "shapes",
    [((1, 1, 4, 16), (1, 1, 4, 8), (1, 1, 4, 8)), ((1, 3, 4, 16), (1, 2, 4, 16), (1, 2, 4, 16)), ((4, 16),) * 3,
     ((1, 1, 4, 257),) * 3],
)  # fmt: skip
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match=r"shape|heads|head_dim|must be"):
        attention(*(torch.zeros(s) for s in shapes))
