"""Three references that share nothing: balls, mpmath from the definition, float64."""

import math

import mpmath
import numpy as np
import pytest
import torch
from flashproof.reference import Forward, Gradients, Mask, backward, forward
from flashproof.reference.certified import Ball, certified, distance
from flashproof.reference.second_opinion import Numbers, second_opinion
from torch import Tensor

B, H, HK, M, N, D = 2, 4, 2, 5, 7, 4

MASKS = {
    "none": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=(2, None), alignment="bottom-right"),
    "window right": Mask(window=(None, 1)),
    "key lengths": Mask(key_lengths=torch.tensor([3, 0])),
    "allowed": Mask(allowed=torch.rand(B, 1, M, N, generator=torch.Generator().manual_seed(1)) < 0.6),
    "bias": Mask(bias=torch.randn(H, 1, N, generator=torch.Generator().manual_seed(2)).bfloat16()),
    "bias with -inf": Mask(bias=torch.where(torch.arange(N) % 3 == 1, -torch.inf, 0.5)),
}


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float16, seed: int = 0) -> list[Tensor]:
    """q, k, v, do; shape is (B, H, HK, M, N, D)."""
    b, h, hk, m, n, d = shape
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g).to(dtype) for s in ((b, h, m, d), (b, hk, n, d), (b, hk, n, d), (b, h, m, d))]


def furthest(ball: Ball, numbers: Numbers) -> mpmath.mpf:
    """How far a number lies outside its ball, at most; 0 when all lie inside."""
    assert tuple(ball.hi.shape) == numbers.shape
    outside = [mpmath.mpf(0)]
    for index in np.ndindex(numbers.shape):
        hi, lo, radius, x = (
            float(ball.hi[index]),
            float(ball.lo[index]),
            float(ball.radius[index]),
            numbers[index],
        )
        assert not math.isnan(hi)
        if math.isinf(hi):
            assert x == hi
        else:
            outside.append(abs(x - hi - lo) - radius)
    return max(outside)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("scale", [0.5, -0.3])
def test_three_references_agree(name: str, scale: float) -> None:
    q, k, v, do = draw((B, H, HK, M, N, D))
    mask = MASKS[name]
    balls = certified(q, k, v, do, mask, scale)
    with mpmath.workdps(60):
        numbers = second_opinion(q, k, v, do, mask, scale, digits=50)
        for tensor in ("o", "lse", "dq", "dk", "dv"):
            ball = getattr(balls, tensor)
            assert float(ball.radius.max()) < 1e-30
            assert furthest(ball, getattr(numbers, tensor)) < mpmath.mpf(10) ** -47, tensor
    apart = distance(forward(q, k, v, mask, scale), balls, backward(q, k, v, do, mask, scale))
    assert all(x is not None and x < 2e-15 for x in (apart.out, apart.lse, apart.dq, apart.dk, apart.dv)), apart


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_float64_is_the_truth(dtype: torch.dtype, size: float) -> None:
    """Logits up to 1e5: float64 stays within 1e-12 of the natural scale, half precision cannot tell."""
    q, k, v, do = draw((1, 2, 1, 24, 40, 16), dtype)
    k[:, :, 1:] = k[:, :, :1] + k[:, :, 1:] / (10 * size)  # nearly tied, so that errors of the logits count
    q = (q * size).to(dtype)
    balls = certified(q, k, v, do, Mask(causal=True), 0.25)
    apart = distance(forward(q, k, v, Mask(causal=True), 0.25), balls, backward(q, k, v, do, Mask(causal=True), 0.25))
    assert all(x is not None and x < 1e-12 for x in (apart.out, apart.lse, apart.dq, apart.dk, apart.dv)), apart


def test_distance_notices_a_wrong_result() -> None:
    q, k, v, do = draw((1, 1, 1, 4, 5, 4))
    balls = certified(q, k, v, do, Mask(), 0.5)
    truth, g = forward(q, k, v, Mask(), 0.5), backward(q, k, v, do, Mask(), 0.5)
    off = distance(Forward(truth.o * (1 + 1e-9), truth.lse + 1e-6), balls, Gradients(g.dq, g.dk + 1e-3, g.dv * 2))
    assert 1e-11 < off.out < 1e-8
    assert 1e-7 < off.lse < 1e-5
    assert off.dq is not None
    assert off.dq < 1e-15
    assert off.dk is not None
    assert off.dk > 1e-5
    assert off.dv is not None
    assert off.dv > 1e-3


def test_more_bits_shrink_the_radius_and_too_few_promise_nothing() -> None:
    q, k, v, do = draw((1, 1, 1, 6, 6, 4), torch.float32)

    def widest(bits: int) -> float:
        balls = certified(q * 50, k * 50, v, do, Mask(), 0.5, bits)
        return max(float(getattr(balls, name).radius.max()) for name in ("o", "dq", "dk", "dv"))

    wide, narrow = widest(64), widest(128)
    assert narrow < 1e-25 < 1e-18 < wide < 1e-6
    assert widest(8) > 1


def test_forward_alone_and_empty_shapes() -> None:
    q, k, v, do = draw((1, 2, 1, 3, 4, 4))
    balls = certified(q, k, v, None, Mask(), 0.5)
    assert (balls.dq, balls.dk, balls.dv) == (None, None, None)
    assert torch.equal(balls.o.hi, certified(q, k, v, do, Mask(), 0.5).o.hi)
    for m, n in ((0, 3), (3, 0)):
        q, k, v, do = draw((1, 2, 1, m, n, 4))
        nothing = certified(q, k, v, do, Mask(), 0.5)
        apart = distance(forward(q, k, v, Mask(), 0.5), nothing, backward(q, k, v, do, Mask(), 0.5))
        assert (apart.out, apart.lse, apart.dq, apart.dk, apart.dv) == (0, 0, 0, 0, 0)


def test_hidden_values_may_hold_anything() -> None:
    q, k, v, do = draw((1, 2, 1, 3, 4, 4))
    mask = Mask(key_lengths=torch.tensor([2]))
    want = certified(q, k, v, do, mask, 0.5)
    k[:, :, 2:], v[:, :, 2:] = math.nan, math.inf
    got = certified(q, k, v, do, mask, 0.5)
    for name in ("o", "lse", "dq", "dk", "dv"):
        assert torch.equal(getattr(got, name).hi, getattr(want, name).hi)
    v[:, :, 1] = math.nan
    with pytest.raises(ValueError, match="finite inputs"):
        certified(q, k, v, do, mask, 0.5)


def test_a_ball_knows_its_distance() -> None:
    ball = Ball(*(torch.tensor(x, dtype=torch.float64) for x in ([1.0, -math.inf], [2.0**-60, 0.0], [2.0**-70, 0.0])))
    assert ball.distance(torch.tensor([1.0, -math.inf], dtype=torch.float64)).tolist() == [
        2.0**-60 + 2.0**-70,
        0.0,
    ]
    assert ball.distance(torch.tensor([1.5, 0.0], dtype=torch.float64)).tolist() == [0.5, math.inf]
