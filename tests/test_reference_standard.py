"""Standard attention against torch's eager operators, which it imitates rounding by rounding."""

import math
from typing import Literal

import pytest
import torch
from flashproof.reference import Forward, Gradients, Mask, backward, forward, standard
from torch import Tensor

HALF = [torch.float16, torch.bfloat16]
Variant = Literal["rounded", "fp32"]
VARIANTS: list[Variant] = ["rounded", "fp32"]


def draw(dtype: torch.dtype, H: int = 4, HK: int = 4, M: int = 65, N: int = 70, D: int = 32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, H, M, D), (2, HK, N, D), (2, HK, N, D), (2, H, M, D))
    return [torch.randn(s, generator=g).to(dtype) for s in shapes]


def eager(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask, scale: float, variant: Variant
) -> tuple[Forward, Gradients]:
    """The usual eager code in the dtype of q, differentiated by autograd; no row may be empty."""
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    visible, bias = mask.rows(0, q.shape[2], q.shape[2], k.shape[2], q.device)
    kh, vh = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    s = q @ kh.mT * scale if variant == "rounded" else q.float() @ kh.float().mT * scale
    if bias is not None:
        s = s + bias.to(s.dtype)
    s = s.masked_fill(~visible, -torch.inf)
    o = torch.softmax(s, -1).to(q.dtype) @ vh
    o.backward(do)
    assert q.grad is not None
    assert k.grad is not None
    assert v.grad is not None
    return Forward(o.detach(), torch.logsumexp(s.detach().float(), -1)), Gradients(q.grad, k.grad, v.grad)


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_imitates_eager_bit_for_bit(dtype: torch.dtype, variant: Variant, heads: int, bias: bool) -> None:
    """All but a few elements have the same bits, those whose fp32 sum lands on the other side of a tie."""
    q, k, v, do = draw(dtype, HK=heads)
    extra = torch.randn(65, 70, generator=torch.Generator().manual_seed(1)).to(dtype) if bias else None
    mask = Mask(causal=True, bias=extra)
    want, gradients = eager(q, k, v, do, mask, 0.3, variant)
    got = standard.forward(q, k, v, mask, 0.3, variant)
    back = standard.backward(q, k, v, do, mask, 0.3, variant)
    assert (got.o == want.o).double().mean() > 0.97
    torch.testing.assert_close(got.lse, want.lse, rtol=1e-6, atol=2e-3 if variant == "rounded" else 1e-6)
    truth = backward(q, k, v, do, mask, 0.3)
    for name in ("dq", "dk", "dv"):
        ours, theirs = getattr(back, name), getattr(gradients, name)
        assert ours.dtype == dtype
        if variant == "rounded":
            assert (ours == theirs).double().mean() > 0.97, name
        error = rms(ours.double() - getattr(truth, name)) / rms(theirs.double() - getattr(truth, name))
        assert 0.9 < error < 1.1, name


def test_single_precision_is_single_precision() -> None:
    q, k, v, do = draw(torch.float32)
    for variant in VARIANTS:
        want, gradients = eager(q, k, v, do, Mask(causal=True), 0.3, variant)
        got = standard.forward(q, k, v, Mask(causal=True), 0.3, variant)
        back = standard.backward(q, k, v, do, Mask(causal=True), 0.3, variant)
        torch.testing.assert_close(got.o, want.o, rtol=1e-5, atol=1e-6)
        for name in gradients.__slots__:
            torch.testing.assert_close(getattr(back, name), getattr(gradients, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_fp32_scores_are_more_accurate(dtype: torch.dtype) -> None:
    q, k, v, _ = draw(dtype)
    truth = forward(q, k, v, Mask(), 1.0).o
    rounded, fp32 = (rms(standard.forward(q, k, v, Mask(), 1.0, s).o.double() - truth) for s in VARIANTS)
    assert 0 < fp32 < 0.5 * rounded


def test_power_of_two_scale_does_not_round_again() -> None:
    q, k, v, _ = draw(torch.bfloat16)
    one = standard.forward(q, k, v, Mask(), 0.125)
    two = standard.forward(q * 0.125, k, v, Mask(), 1.0)
    assert torch.equal(one.o, two.o)
    assert torch.equal(one.lse, two.lse)


def test_lse_belongs_to_the_rounded_scores() -> None:
    q, k, v, _ = draw(torch.bfloat16)
    s = ((q.float() @ k.float().mT).bfloat16().float() * 0.3).bfloat16()
    torch.testing.assert_close(
        standard.forward(q, k, v, Mask(), 0.3).lse, torch.logsumexp(s.float(), -1), rtol=1e-6, atol=1e-6
    )


def test_fp16_scores_overflow_before_they_are_scaled() -> None:
    """Q . k = 256 * 16 * 16 = 65536 is beyond fp16, scaled by 1/16 it would be 4096."""
    q = torch.full((1, 1, 2, 256), 16.0, dtype=torch.float16)
    k, v = q.clone(), torch.ones_like(q)
    assert standard.forward(q, k, v, Mask(), 1 / 16).o.isnan().all()
    assert standard.backward(q, k, v, v, Mask(), 1 / 16).dv.isnan().all()
    assert (standard.forward(q, k, v, Mask(), 1 / 16, "fp32").o == 1).all()
    assert (standard.forward(q.bfloat16(), k.bfloat16(), v.bfloat16(), Mask(), 1 / 16).o == 1).all()
    assert (standard.forward(q, -k, v, Mask(allowed=torch.eye(2, dtype=torch.bool)), 1 / 16).o).isnan().all()
    k[:, :, 1] = -16.0  # to -inf: a weight of 0, as in the truth
    q[..., 0] = 15.0
    assert (standard.forward(q, k / 2, v, Mask(), 1 / 16).o == 1).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_hidden_values_and_empty_rows(dtype: torch.dtype, variant: Variant) -> None:
    q, k, v, do = draw(dtype, HK=2)
    mask = Mask(causal=True, key_lengths=torch.tensor([9, 0]))
    want = standard.forward(q, k, v, mask, 0.3, variant)
    gradients = standard.backward(q, k, v, do, mask, 0.3, variant)
    assert (want.o[1] == 0).all()
    assert (want.lse[1] == -math.inf).all()
    assert want.o[0].isfinite().all()
    for x in (k, v):
        x[0, :, 9:] = math.nan
        x[1] = math.inf
    got = standard.forward(q, k, v, mask, 0.3, variant)
    back = standard.backward(q, k, v, do, mask, 0.3, variant)
    assert torch.equal(got.o, want.o)
    assert torch.equal(got.lse, want.lse)
    for name in gradients.__slots__:
        assert torch.equal(getattr(back, name), getattr(gradients, name))
    assert (back.dk[1] == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0)])
def test_no_queries_or_no_keys(m: int, n: int, variant: Variant) -> None:
    q, k, v, do = draw(torch.float16, M=m, N=n)
    got = standard.forward(q, k, v, Mask(), 0.3, variant)
    back = standard.backward(q, k, v, do, Mask(), 0.3, variant)
    assert got.o.shape == q.shape
    assert got.lse.dtype == torch.float32
    assert (got.lse == -math.inf).all()
    assert back.dk.shape == k.shape
    assert (back.dv == 0).all()
