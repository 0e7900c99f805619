"""The float64 truth against torch's autograd on dense masks, and its promises about what is hidden."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from flashproof.reference import Forward, Gradients, Mask, attention, backward, forward
from torch import Tensor

B, H, HK, M, N, D = 2, 4, 2, 7, 11, 8
SCALE = 0.37


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MASKS = {
    "none": Mask(),
    "causal": Mask(causal=True),
    "causal bottom-right": Mask(causal=True, alignment="bottom-right"),
    "window": Mask(window=(2, 3)),
    "window left": Mask(window=(2, None), alignment="bottom-right"),
    "window right": Mask(window=(None, 0)),
    "causal window": Mask(causal=True, window=(1, 4)),
    "key lengths": Mask(key_lengths=torch.tensor([4, N])),
    "allowed per head": Mask(allowed=torch.rand(1, H, M, N, generator=seeded(1)) < 0.6),
    "allowed per key": Mask(allowed=torch.arange(N) % 3 != 0),
    "bias": Mask(bias=torch.randn(B, 1, M, N, generator=seeded(2))),
    "bias with -inf": Mask(bias=torch.where(torch.arange(N) % 4 == 1, -torch.inf, 0.5).half()),
    "everything": Mask(
        causal=True,
        window=(5, None),
        alignment="bottom-right",
        allowed=torch.rand(M, N, generator=seeded(3)) < 0.8,
        bias=torch.randn(H, 1, N, generator=seeded(4)),
        key_lengths=torch.tensor([N, 6]),
    ),
    "nobody sees anything": Mask(allowed=torch.zeros(1, 1, dtype=torch.bool)),
}


@pytest.fixture
def qkvo() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = seeded(0)
    q, do = (torch.randn(B, H, M, D, generator=g, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(B, HK, N, D, generator=g, dtype=torch.float64) for _ in range(2))
    return q, k, v, do


def sees(mask: Mask, b: int, h: int, i: int, j: int) -> bool:
    """The definition of each restriction, one element at a time."""
    c = i if mask.alignment == "top-left" else i + N - M
    left, right = mask.window
    allowed = mask.allowed is None or bool(mask.allowed.expand(B, H, M, N)[b, h, i, j])
    finite = mask.bias is None or float(mask.bias.expand(B, H, M, N)[b, h, i, j]) > -math.inf
    return (
        (not mask.causal or j <= c)
        and (left is None or c - left <= j)
        and (right is None or j <= c + right)
        and (mask.key_lengths is None or j < int(mask.key_lengths[b]))
        and allowed
        and finite
    )


def dense(q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask, scale: float) -> tuple[Forward, Gradients]:
    """Attention as torch would write it, differentiated by autograd."""
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    s = scale * q @ k.repeat_interleave(H // HK, 1).mT
    if mask.bias is not None:
        s = s + mask.bias.double()
    visible = torch.zeros(B, H, M, N, dtype=torch.bool)
    for b, h, i, j in itertools.product(range(B), range(H), range(M), range(N)):
        visible[b, h, i, j] = sees(mask, b, h, i, j)
    empty = ~visible.any(-1, keepdim=True)
    s = s.masked_fill(~visible, -torch.inf)
    o = torch.softmax(s.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0) @ v.repeat_interleave(H // HK, 1)
    o.backward(do)
    assert q.grad is not None
    assert k.grad is not None
    assert v.grad is not None
    return Forward(o.detach(), torch.logsumexp(s, -1).detach()), Gradients(q.grad, k.grad, v.grad)


def assert_same(got: Forward | Gradients, want: Forward | Gradients, tolerance: float = 1e-13) -> None:
    for name in want.__slots__:
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MASKS)
def test_equals_autograd(name: str, qkvo: tuple[Tensor, ...]) -> None:
    q, k, v, do = qkvo
    want, gradients = dense(q, k, v, do, MASKS[name], SCALE)
    assert_same(forward(q, k, v, MASKS[name], SCALE), want)
    assert_same(backward(q, k, v, do, MASKS[name], SCALE), gradients)


@pytest.mark.parametrize("scale", [0.0, -0.5, 30.0])
def test_any_scale(scale: float, qkvo: tuple[Tensor, ...]) -> None:
    q, k, v, do = qkvo
    want, gradients = dense(q, k, v, do, Mask(causal=True), scale)
    assert_same(forward(q, k, v, Mask(causal=True), scale), want)
    assert_same(backward(q, k, v, do, Mask(causal=True), scale), gradients, 1e-12)


@pytest.mark.parametrize("name", MASKS)
def test_block_size_is_immaterial(name: str, qkvo: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, do = qkvo
    want = forward(q, k, v, MASKS[name], SCALE)
    gradients = backward(q, k, v, do, MASKS[name], SCALE)
    monkeypatch.setattr(attention, "_BLOCK_BYTES", 8 * B * H * N * 3)
    assert [stop - start for start, stop in attention.row_blocks(B, H, M, N, attention._BLOCK_BYTES)] == [
        3,
        3,
        1,
    ]
    assert_same(forward(q, k, v, MASKS[name], SCALE), want, 1e-14)
    assert_same(backward(q, k, v, do, MASKS[name], SCALE), gradients, 1e-14)


def test_rows_are_a_slice_of_all_rows() -> None:
    for mask in MASKS.values():
        visible, bias = mask.rows(0, M, M, N, torch.device("cpu"))
        part, part_bias = mask.rows(2, 5, M, N, torch.device("cpu"))
        assert torch.equal(part.expand(B, H, 3, N), visible.expand(B, H, M, N)[:, :, 2:5])
        assert (bias is None) == (part_bias is None)
        if bias is not None and part_bias is not None:
            assert bias.dtype == torch.float64
            assert bias.isfinite().all()
            assert torch.equal(part_bias.expand(B, H, 3, N), bias.expand(B, H, M, N)[:, :, 2:5])


def test_empty_rows() -> None:
    q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 5, 4)
    mask = Mask(causal=True, window=(0, None), allowed=torch.tensor([[True], [False], [True]]))
    result = forward(q, k, k, mask, 1.0)
    gradients = backward(q, k, k, q, mask, 1.0)
    assert (result.o[0, 0, 1] == 0).all()
    assert result.lse[0, 0].isfinite().tolist() == [True, False, True]
    assert result.lse[0, 0, 1] == -math.inf
    assert (gradients.dq[0, 0, 1] == 0).all()
    assert (gradients.dk[0, 0, [1, 3, 4]] == 0).all()
    assert (gradients.dv[0, 0, [1, 3, 4]] == 0).all()


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0)])
def test_no_queries_or_no_keys(m: int, n: int) -> None:
    q, k = torch.randn(2, 2, m, 4), torch.randn(2, 1, n, 4)
    for mask in (Mask(), Mask(causal=True, alignment="bottom-right"), Mask(key_lengths=torch.tensor([0, 0]))):
        result = forward(q, k, k, mask, 1.0)
        gradients = backward(q, k, k, q, mask, 1.0)
        assert result.o.shape == gradients.dq.shape == q.shape
        assert gradients.dk.shape == gradients.dv.shape == k.shape
        assert (result.o == 0).all()
        assert (result.lse == -math.inf).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_hidden_values_do_not_leak(poison: float, qkvo: tuple[Tensor, ...]) -> None:
    """Keys beyond the length, and whole queries that see nothing, may hold anything."""
    q, k, v, do = (x.clone() for x in qkvo)
    mask = Mask(causal=True, key_lengths=torch.tensor([5, 0]))
    want, gradients = forward(q, k, v, mask, SCALE), backward(q, k, v, do, mask, SCALE)
    for x in (k, v):
        x[0, :, 5:] = poison
        x[1] = poison
    q[1], do[1] = poison, poison
    assert_same(forward(q, k, v, mask, SCALE), want, 0.0)
    assert_same(backward(q, k, v, do, mask, SCALE), gradients, 0.0)


def test_visible_nan_spoils_only_who_sees_it(qkvo: tuple[Tensor, ...]) -> None:
    q, k, v, do = (x.clone() for x in qkvo)
    mask = Mask(causal=True)
    want = forward(q, k, v, mask, SCALE).o
    v[:, :, 4, 2] = math.nan
    spoiled = forward(q, k, v, mask, SCALE).o.isnan()
    assert spoiled[:, :, 4:, 2].all()
    assert int(spoiled.sum()) == B * H * (M - 4)
    k[:, :, 4] = math.inf
    o = forward(q, k, v, mask, SCALE).o
    assert torch.equal(o[:, :, :4], want[:, :, :4])
    assert o[:, :, 4:].isnan().any(-1).all()
    gradients = backward(q, k, v, do, mask, SCALE)
    assert gradients.dq[:, :, :4].isfinite().all()
    assert gradients.dk[:, :, M:].eq(0).all()
    assert gradients.dv[:, :, M:].eq(0).all()


def test_half_inputs_are_exact_and_untouched() -> None:
    g = seeded(5)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        q, k, v, do = (torch.randn(1, 2, 5, 6, generator=g).to(dtype).mT.contiguous().mT for _ in range(4))
        copies = [x.clone() for x in (q, k, v, do)]
        got = forward(q, k, v, Mask(), 0.5), backward(q, k, v, do, Mask(), 0.5)
        assert all(torch.equal(x, y) for x, y in zip((q, k, v, do), copies, strict=True))
        wide = [x.double() for x in copies]
        assert_same(got[0], forward(*wide[:3], Mask(), 0.5), 0.0)
        assert_same(got[1], backward(*wide, Mask(), 0.5), 0.0)


def test_shifted_keys_change_only_the_lse(qkvo: tuple[Tensor, ...]) -> None:
    q, k, v, _ = qkvo
    shift = torch.randn(B, HK, 1, D, dtype=torch.float64, generator=seeded(6))
    one, two = forward(q, k, v, Mask(), SCALE), forward(q, k + shift, v, Mask(), SCALE)
    torch.testing.assert_close(one.o, two.o, rtol=1e-12, atol=1e-12)
    moved = SCALE * (q * shift.repeat_interleave(H // HK, 1)).sum(-1)
    torch.testing.assert_close(two.lse - one.lse, moved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 6, 4)), "k and v"),
        (((1, 2, 3, 4), (1, 2, 5, 8), (1, 2, 5, 8)), "must be"),
        (((2, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4)), "must be"),
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), "must be"),
        (((1, 3, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4)), "divide"),
    ],
)
def test_foreign_shapes(shapes: tuple[tuple[int, ...], ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        forward(*(torch.zeros(s) for s in shapes), Mask(), 1.0)


def test_foreign_do() -> None:
    q = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="do must have the shape of q"):
        backward(q, q, q, torch.zeros(1, 1, 3, 2), Mask(), 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mask(alignment="centre"),  # type: ignore[arg-type]
        lambda: Mask(window=(-1, 0)),
        lambda: Mask(allowed=torch.ones(2, 2)),
        lambda: Mask(allowed=torch.ones(1, 1, 1, 2, 2, dtype=torch.bool)),
        lambda: Mask(bias=torch.ones(2, 2, dtype=torch.int32)),
        lambda: Mask(key_lengths=torch.ones(2)),
    ],
)
def test_foreign_masks(make: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        make()  # type: ignore[operator]


@pytest.mark.slow
def test_memory_is_linear_in_the_number_of_keys() -> None:
    """16384 x 16384 at D = 128 peaks below 2 GiB, the size of one dense float64 score matrix."""
    script = r"""
import re, torch
from flashproof.reference import Mask, backward, forward
torch.set_num_threads(1)
q, k, v, do = (torch.randn(1, 1, 16384, 128).half() for _ in range(4))
forward(q, k, v, Mask(causal=True), 0.1)
backward(q, k, v, do, Mask(causal=True), 0.1)
print(*re.findall(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read()))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # getrusage's would be the testing process's, if that is larger
    assert int(run.stdout) * 1024 < 2 * 2**30
