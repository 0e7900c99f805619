"""Predictors meet what is measured: grouped heads in either arrangement, and results that no rounding changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from flashproof.kernels import interpreter
from flashproof.kernels.attention import attention
from flashproof.reference import ANY_FLASH, FLASH, STANDARD, Arrangement, Mask, backward, forward, predict, standard
from flashproof.reference.arrangements import PRECISIONS
from flashproof.reference.moments import LOG_UNIFORM, var_round, var_round_of_result
from flashproof.verify.case import Case, MaskRecipe
from flashproof.verify.expected import reference
from flashproof.verify.inputs import build
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
GRADIENTS = ("dq", "dk", "dv")
CASE = Case(B=1, H=4, HK=1, M=64, N=64, D=64, dtype="bf16", regime="normal", seed=0)


@dataclass(frozen=True)
class Run:
    """A case's tensors, what is true of them, and what kernels make of them."""

    case: Case

    def predicted(self, arrangement: Arrangement) -> dict[str, float]:
        x, scale = build(self.case), self.case.softmax_scale
        truth = forward(x.q, x.k, x.v, x.mask, scale)
        gradients = backward(x.q, x.k, x.v, x.do, x.mask, scale)
        found = predict(x.q, x.k, x.v, x.do, x.mask, scale, arrangement, truth, gradients)
        return {n: getattr(found, n) for n in ("out", *GRADIENTS)}

    def bundled(self, *, by_head: bool = False) -> dict[str, float]:
        """RMS errors of the bundled kernel; `by_head`, each query head's dK and dV is rounded before they are summed.

        That is done as FlashAttention 2 does: the kernel is given a key/value head for each query head.
        """
        x = build(self.case)
        group = self.case.H // self.case.HK if by_head else 1
        q, k, v = x.q.clone(), x.k.repeat_interleave(group, 1), x.v.repeat_interleave(group, 1)
        for t in (q, k, v):
            t.requires_grad_()
        with interpreter.interpret():
            o = attention(q, k, v, is_causal=self.case.mask.causal, scale=self.case.softmax_scale)
            assert isinstance(o, Tensor)
            o.backward(x.do)
        assert q.grad is not None and k.grad is not None and v.grad is not None
        dk, dv = (t.float().unflatten(1, (-1, group)).sum(2).to(q.dtype) for t in (k.grad, v.grad))
        return self.errors({"out": o.detach(), "dq": q.grad, "dk": dk, "dv": dv})

    def eager(self) -> dict[str, float]:
        """RMS errors of standard attention, which rounds every step and every head."""
        x = build(self.case)
        g = standard.backward(x.q, x.k, x.v, x.do, x.mask, self.case.softmax_scale)
        return self.errors({"dq": g.dq, "dk": g.dk, "dv": g.dv})

    def errors(self, results: dict[str, Tensor]) -> dict[str, float]:
        x, scale = build(self.case), self.case.softmax_scale
        gradients = backward(x.q, x.k, x.v, x.do, x.mask, scale)
        exact = {"out": forward(x.q, x.k, x.v, x.mask, scale).o, **{n: getattr(gradients, n) for n in GRADIENTS}}
        return {n: float((t.double() - exact[n]).square().mean().sqrt()) for n, t in results.items()}


# -- grouped heads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("causal", [False, True])
def test_each_arrangement_of_grouped_heads_is_predicted_by_itself(dtype, causal):
    run = Run(CASE.with_(dtype=dtype, mask=MaskRecipe(causal=causal)))
    within, by_head = run.predicted(FLASH), run.predicted(ANY_FLASH)
    found, found_by_head = run.bundled(), run.bundled(by_head=True)
    eager, usual = run.eager(), run.predicted(STANDARD)
    for name in ("dk", "dv"):
        assert 0.88 < found[name] / within[name] < 1.12, name
        assert 0.88 < found_by_head[name] / by_head[name] < 1.12, name
        assert by_head[name] / within[name] == pytest.approx(math.sqrt(3 / 2), rel=0.06), name
        assert 0.8 < eager[name] / usual[name] < 1.2, name
    same = within["dq"] == by_head["dq"] and within["out"] == by_head["out"]
    assert same is not causal, "but for the first query"


def test_the_gate_allows_either_arrangement_of_grouped_heads():
    known = reference(CASE, build(CASE), stores_scores=False)
    run = Run(CASE)
    for name in ("dk", "dv"):
        assert known.predicted[name] == run.predicted(FLASH)[name]
        assert known.envelope[name] == run.predicted(ANY_FLASH)[name] > known.predicted[name]
    alone = CASE.with_(HK=4)
    known = reference(alone, build(alone), stores_scores=False)
    assert all(known.envelope[n] == known.predicted[n] for n in ("out", *GRADIENTS)), "no groups, no choice"
    causal = alone.with_(mask=MaskRecipe(causal=True))
    known = reference(causal, build(causal), stores_scores=False)
    assert all(known.envelope[n] > known.predicted[n] for n in ("out", "dq", "dk")), "a weight of 1, or not"
    assert all(known.envelope[n] == Run(causal).predicted(ANY_FLASH)[n] for n in ("out", *GRADIENTS)), "as by itself"
    assert known.envelope["dv"] == known.predicted["dv"]


# -- few keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [2, 3, 5])
def test_few_keys(keys):
    """In standard attention delta has the roundings of dP, which dS has too: with few keys they nearly cancel."""
    run = Run(CASE.with_(B=4, HK=4, N=keys))
    for found, arrangement in ((run.bundled(), FLASH), (run.eager(), STANDARD)):
        predicted = run.predicted(arrangement)
        for name, rms in found.items():
            assert 0.9 < rms / predicted[name] < 1.1, (arrangement.name, name)


# -- what p holds exactly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_what_a_format_holds(dtype):
    p, finfo = PRECISIONS[dtype], torch.finfo(dtype)
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype).double()
    x = torch.cat([x, torch.tensor([finfo.max, -finfo.max, 1.0, 1.0 + finfo.eps], dtype=torch.float64)])
    nothing = torch.zeros_like(x)
    assert torch.equal(var_round_of_result(x, p, nothing), nothing), "it holds its own numbers"
    finer = x * (1 + finfo.eps / 2)  # a significand with one bit more, unless it carries
    unheld = finer != finer.to(torch.float32).to(dtype).double()
    assert unheld.double().mean() > 0.9
    assert torch.equal(var_round_of_result(finer, p, nothing)[unheld], var_round(finer, p, 1)[unheld])
    assert (var_round(finer, p, 1)[unheld] > 0).all()


def test_subnormals_have_fewer_bits():
    p = PRECISIONS[torch.float16]
    x = torch.tensor([3 * 2.0**-24, 3.5 * 2.0**-24], dtype=torch.float64)  # of a spacing of 2^-24
    assert (var_round_of_result(x, p, torch.zeros_like(x)) > 0).tolist() == [False, True]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [0.01, 0.3, 1.0, 30.0])
def test_rounding_adds_no_more_than_predicted_to_what_is_held(dtype, size):
    """The error before rounding is `size` times half an ulp: what is predicted is no less than what it becomes."""
    g, p = torch.Generator().manual_seed(1), PRECISIONS[dtype]
    x = 2 * (1 + torch.rand(200_000, generator=g, dtype=torch.float64)).to(dtype).double()
    sigma = size * 2 * p.u
    e = sigma * torch.randn(x.shape, generator=g, dtype=torch.float64)
    before = torch.full_like(x, sigma**2)
    total = float(((x + e).to(dtype).double() - x).square().mean())
    predicted = float((before + var_round_of_result(x, p, before)).mean())
    assert total <= 1.05 * predicted
    assert total == 0 if size < 0.1 else total > 0
    if size > 10:  # then it is a rounding like any other
        assert total == pytest.approx(predicted, rel=0.02)
        assert predicted == pytest.approx(sigma**2 + LOG_UNIFORM * p.u**2 * float(x.square().mean()), rel=1e-12)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_single_key_leaves_nothing_to_round(dtype):
    """A window of the diagonal alone: the output is V itself, and dQ and dK are 0."""
    case = CASE.with_(dtype=dtype, H=2, HK=2, mask=MaskRecipe(window=(0, 0)))
    x, u = build(case), case.unit_roundoff
    known = reference(case, x, stores_scores=False)
    usual = Run(case).predicted(STANDARD)
    assert all(0 < p["dq"] < 1e-3 * u and 0 < p["dk"] < 1e-3 * u for p in (known.predicted, usual))
    assert 0 < known.predicted["out"] < 1e-3 * u * float(x.v.double().square().mean().sqrt())
    o = standard.forward(x.q, x.k, x.v, x.mask, case.softmax_scale).o
    assert torch.equal(o, x.v)
    wrong = known.target["out"].errors(o * (1 + 2 * u))
    assert wrong.rms > 100 * known.predicted["out"]
    assert known.envelope["out"] > 100 * known.predicted["out"], "the gate lets a weight be rounded all the same"


@pytest.mark.parametrize("dtype", HALF)
def test_the_first_causal_query_is_predicted_as_exact(dtype):
    """What is predicted of all queries is what is predicted of those that see several keys."""
    g = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 1, 16, 64, generator=g, dtype=torch.float64).to(dtype) for _ in range(3))
    scale = 0.125

    def squares(rows: Tensor, mask: Mask) -> float:
        truth = forward(rows, k, v, mask, scale)
        return predict(rows, k, v, None, mask, scale, FLASH, truth, None).out ** 2 * rows.shape[2]

    whole = squares(q, Mask(causal=True))
    rest = squares(q[:, :, 1:], Mask(causal=True, alignment="bottom-right"))
    first = squares(q[:, :, :1], Mask(causal=True))
    assert whole == pytest.approx(first + rest, rel=1e-12)
    assert first < 1e-6 * rest


@pytest.mark.parametrize(("dtype", "arrangement", "predicted"), [
    (torch.bfloat16, FLASH, False), (torch.float16, FLASH, True), (torch.float16, STANDARD, False),
])  # fmt: skip
def test_nothing_is_predicted_where_roundings_of_the_logits_decide(dtype, arrangement, predicted) -> None:
    """A row of lowest numbers: fp32 holds a logit beside that of fp16, and nothing beside that of bf16."""
    g = torch.Generator().manual_seed(0)
    q, k, v, do = (torch.randn(1, 2, 24, 16, generator=g).to(dtype) for _ in range(4))
    for alone in (False, True):  # a query that sees nothing else
        bias = torch.zeros(24, 24).masked_fill(torch.ones(24, 24).triu(0 if alone else 1) > 0, torch.finfo(dtype).min)
        mask = Mask(bias=bias.to(dtype))
        truth, gradients = forward(q, k, v, mask, 0.25), backward(q, k, v, do, mask, 0.25)
        x = predict(q, k, v, do, mask, 0.25, arrangement, truth, gradients)
        finite = [math.isfinite(getattr(x, name)) for name in ("out", "lse", "dq", "dk", "dv")]
        assert finite == [predicted or not alone] * 5
