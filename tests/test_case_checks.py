"""Judge the judge: every check of a case rejects a planted fault, and accepts a sound kernel."""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import get_args

import pytest
import torch
from flashproof.reference import attention as truth
from flashproof.reference.masks import Mask
from flashproof.verify import budgets, guards
from flashproof.verify.case import Layout, MaskRecipe
from flashproof.verify.evaluate import evaluate
from flashproof.verify.implementation import recognise
from flashproof.verify.inputs import build
from flashproof.verify.judge import judge
from flashproof.verify.storage import storage_of
from flashproof.verify.storing import stores_scores

from .planted import CASE, failed_checks, planted, sound

BUDGETS = budgets.load()


def test_a_sound_kernel_passes_every_check():
    for case in (CASE, CASE.with_(mask=MaskRecipe(causal=True)), CASE.with_(mask=MaskRecipe(boolean="empty-rows")),
                 CASE.with_(N=0), CASE.with_(M=0), CASE.with_(layout="gaps"),
                 CASE.with_(regime="extreme-logits")):  # fmt: skip
        assert not failed_checks(sound, case, statistical=True)


def one_element(o, lse, *_):
    o = o.clone()
    o[0, 0, 3, 5] += 0.25
    return o, lse


def test_bound_rejects_one_wrong_element():
    assert ("bound", "out") in failed_checks(planted(one_element))


def test_finite_rejects_nan():
    def nan(o, lse, *_):
        o = o.clone()
        o[0, 1, 0, 0] = torch.nan
        return o, lse

    assert ("finite", "out") in failed_checks(planted(nan))


@pytest.mark.parametrize(("dtype", "found"), [("bf16", {("finite", "out")}), ("fp16", set())])
def test_finite_rejects_rows_of_lowest_biases_that_become_nan(dtype, found):
    """In base 2 the lowest number of bf16 is -inf in fp32, and a row of it is -inf less -inf; fp16's is far from it."""

    def in_base_2(query, key, value, attn_mask=None, scale=None):
        s = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        s = s * math.log2(math.e) + attn_mask.float() * math.log2(math.e)
        p = torch.exp2(s - s.amax(-1, keepdim=True))
        return ((p / p.sum(-1, keepdim=True)) @ value.float()).to(query.dtype)

    case = CASE.with_(HK=CASE.H, M=44, dtype=dtype, mask=MaskRecipe(bias="lowest"), backward=False)
    assert (build(case).mask.bias != 0).all(-1).any(), "some row is of nothing else"
    assert failed_checks(in_base_2, case) == found
    assert not failed_checks(sound, case.with_(backward=True))


def test_finite_rejects_an_all_nan_result():
    assert {("finite", "out"), ("finite", "lse")} <= failed_checks(
        planted(lambda o, lse, *_: (o * torch.nan, lse * torch.nan))
    )


def test_zero_results_are_rejected():
    """What several suites accept: an output, or a gradient, of zeros."""
    assert ("bound", "out") in failed_checks(planted(lambda o, lse, *_: (o * 0, lse)))

    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, o):
            return o.clone()

        @staticmethod
        def backward(ctx, do):
            return torch.zeros_like(do)

    assert {("bound", "dq"), ("bound", "dk"), ("bound", "dv")} <= failed_checks(
        planted(lambda o, lse, *_: (NoGradient.apply(o), lse))
    )


def test_empty_rows_must_be_exactly_zero():
    def mean_of_v(o, lse, query, key, value):
        empty = (lse == -math.inf)[..., None]
        return torch.where(empty, value.float().mean(2, keepdim=True).repeat_interleave(2, 1).to(o.dtype), o), lse

    case = CASE.with_(mask=MaskRecipe(boolean="empty-rows"))
    assert ("bound", "out") in failed_checks(planted(mean_of_v), case)


def test_lse_of_empty_rows_must_be_minus_infinity():
    case = CASE.with_(mask=MaskRecipe(boolean="empty-rows"))
    assert ("finite", "lse") in failed_checks(planted(lambda o, lse, *_: (o, lse.clamp_min(-1e30))), case)


def test_memory_rejects_what_was_never_written():
    def unwritten(o, lse, *_):
        out = torch.empty_like(o)
        out[..., 1:] = o[..., 1:]
        return out, lse

    found = failed_checks(planted(unwritten), CASE.with_(backward=False))
    assert {("memory", "out"), ("finite", "out")} <= found


@pytest.mark.parametrize("shows", [lambda x: x > 1e3, lambda x: x.abs() < 1])
def test_memory_rejects_a_reader_that_swallows_nan(shows):
    def read(o, lse, *_):  # a maximum over memory that nobody wrote: NaN is swallowed, what is finite is not
        return torch.where(shows(torch.empty_like(o)), o * (1 + 2.0**-7), o), lse

    assert failed_checks(planted(read), CASE.with_(backward=False)) == {("memory", "out")}


@pytest.mark.parametrize("again", [guards._AGAIN, 0])
def test_bits_that_change_by_themselves_are_not_the_memorys(again, monkeypatch):
    """Half of the runs differ, as an atomic sum's may: now and then just those with other contents of the memory."""
    monkeypatch.setattr(guards, "_AGAIN", again)
    draw = Random(0)

    def unstable(o, lse, *_):
        return o * (1 + 2.0**-7 * draw.randrange(2)), lse

    case = CASE.with_(backward=False, M=3, N=4)
    found = Counter(name for _ in range(80) for name in failed_checks(planted(unstable), case))
    assert found["repeat", "out"] > 20
    assert (found["memory", "out"] == 0) == (again > 0)


def test_kept_rejects_a_buffer_shared_between_calls():
    buffers = {}

    def shared(o, lse, *_):
        out = buffers.setdefault(o.shape, torch.zeros_like(o))
        with torch.no_grad():
            out.copy_(o)
        return out, lse

    assert failed_checks(planted(shared), CASE.with_(backward=False, HK=2), relations=100) == {("kept", "out")}


#: a fault that one relation sees, on a case where it applies -> words of that relation


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_systematic_rejects_a_scale_that_is_off_by_less_than_a_rounding(dtype):
    """0.1 % of the scale moves bf16 outputs by a fraction of their rounding error, all in the same direction."""

    def off(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
        exact = query.shape[-1] ** -0.5 if scale is None else scale
        return sound(query, key, value, attn_mask, 0.0, is_causal, exact * 1.001, enable_gqa)

    def rows_of(function):
        cases = [CASE.with_(dtype=dtype, seed=s, M=64, N=64, regime="normal", backward=False) for s in range(20)]
        results = [evaluate(c, recognise("planted", function), "survey", thorough=False) for c in cases]
        return [row for r in results for row in r.rows]

    failed = {(c.name, c.tensor) for c in judge(rows_of(off), BUDGETS, "planted").failed}
    assert ("systematic", "out") in failed
    assert dtype == "fp16" or ("predictor", "out") not in failed
    assert not judge(rows_of(sound), BUDGETS, "planted").failed


@pytest.mark.parametrize(("dtype", "off"), [("fp16", 2e-4), ("bf16", 2e-3)])
def test_systematic_rejects_a_log_sum_exp_that_is_off_by_less_than_its_bound(dtype, off):
    wrong = recognise("planted", planted(lambda o, lse, *_: (o, lse + off)))
    cases = [CASE.with_(dtype=dtype, seed=s, backward=False) for s in range(20)]
    results = [evaluate(c, wrong, "survey", thorough=False) for c in cases]
    assert not [c for r in results for c in r.failed]
    failed = {(c.name, c.tensor) for c in judge([row for r in results for row in r.rows], BUDGETS, "planted").failed}
    assert ("systematic", "lse") in failed <= {("systematic", "lse"), ("predictor", "lse")}
    assert ("systematic", "lse") in {
        (c.name, c.tensor) for c in evaluate(cases[0], wrong, "survey", thorough=False, statistical=True).failed
    }


def test_predictor_rejects_a_log_sum_exp_whose_error_is_random_and_within_its_bound():
    def noisy(o, lse, *_):
        u = torch.finfo(o.dtype).eps / 2
        return o, lse + 0.5 * u * torch.sin(1e4 * lse)  # as if l were in half precision; the mean error is 0

    wrong = recognise("planted", planted(noisy))
    cases = [CASE.with_(dtype="fp16", seed=s, M=64, N=128, backward=False) for s in range(20)]
    results = [evaluate(c, wrong, "survey", thorough=False) for c in cases]
    assert not [c for r in results for c in r.failed]
    failed = judge([row for r in results for row in r.rows], BUDGETS, "planted").failed
    assert {(c.name, c.tensor) for c in failed} == {("predictor", "lse")}


def test_overflow_is_excused_where_standard_attention_overflows_too_and_the_kernel_stores_its_scores():
    def with_dp_in_half(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        p = torch.softmax((query @ key.mT * query.shape[-1] ** -0.5).float(), -1).to(query.dtype)
        return p @ value  # autograd's dP is dO @ V^T in half precision

    case = CASE.with_(regime="large-dp", dtype="fp16")
    half, lower = recognise("planted", with_dp_in_half), case.with_(dtype="bf16")
    for one, expected in ((case, {("finite", "dq"), ("finite", "dk")}), (lower, set())):
        found = {}
        for stores in (True, False):
            failed = evaluate(one, half, "hunt", stores=stores).failed
            found[stores] = {(c.name, c.tensor) for c in failed if c.name == "finite"}
        assert found == {True: set(), False: expected}
    rows = evaluate(case, half, "survey", stores=True).rows
    assert any("overflow: in 1 case " in line for line in judge(rows, BUDGETS, "planted").not_covered)
    assert not stores_scores(recognise("planted", sound), "cpu") and stores_scores(half, "cpu")


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("recipe", [MaskRecipe(boolean="random"), MaskRecipe(bias="random")])
def test_inputs_unchanged_rejects_a_write_to_a_mask(layout, recipe):
    def scribble(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
        o = sound(query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa)
        held = storage_of(attn_mask)
        held[-1] = not held[-1]
        return o

    case = CASE.with_(mask=recipe, layout=layout, backward=False)
    assert failed_checks(scribble, case) == {("inputs-unchanged", None)}


def test_inputs_unchanged_rejects_a_write_to_an_input():
    def scribble(o, lse, query, *_):
        with torch.no_grad():
            query.mul_(2.0)
        return o.detach(), lse

    assert ("inputs-unchanged", None) in failed_checks(planted(scribble), CASE.with_(backward=False))


def test_inputs_unchanged_rejects_a_write_in_a_later_call():
    def scribble(o, lse, query, *_):
        if not query.requires_grad:
            query.mul_(2.0)
        return o, lse

    found = failed_checks(planted(scribble))
    assert ("inputs-unchanged", None) in found
    details = [c.detail for c in evaluate(CASE, recognise("planted", planted(scribble)), "survey").failed]
    assert any(d.startswith("in a later call the kernel wrote to its input q") for d in details)


@pytest.mark.parametrize("asks", [lambda query: torch.is_grad_enabled(), lambda query: query.requires_grad])
def test_inference_is_without_gradients_in_every_way(asks):
    """Some functions look at torch's mode, some at their arguments, for which path to take."""
    hurried = planted(lambda o, lse, query, *_: (o if asks(query) else o * 1.1, lse))
    assert ("inference", "out") in failed_checks(hurried)
    assert all(name in ("inference", "invariance") for name, _ in failed_checks(hurried, relations=0))


@pytest.mark.parametrize(("relative", "found"), [(2.0**-10, set()), (0.5, {("repeat", "out")})])
def test_operations_that_are_others_in_torchs_deterministic_mode(relative, found):
    """As `index_add` and flash attention's own backward have on a GPU: other bits are allowed there, wrong ones not."""

    def moded(o, lse, *_):
        return o if torch.are_deterministic_algorithms_enabled() else o + (o * relative).to(o.dtype), lse

    assert failed_checks(planted(moded), CASE.with_(backward=False)) == found


def test_memory_that_is_read_in_the_default_mode_alone():
    def read(o, lse, *_):
        return o if torch.are_deterministic_algorithms_enabled() else o + torch.empty_like(o), lse

    assert failed_checks(planted(read), CASE.with_(backward=False)) == {("repeat", "out")}


def test_repeat_rejects_a_result_that_depends_on_the_run():
    calls = []

    def drifting(o, lse, *_):
        calls.append(1)
        return o * (1 + len(calls) * 2.0**-7), lse

    assert ("repeat", "out") in failed_checks(planted(drifting))


def test_batch_invariance_sees_company():
    assert ("batch-invariance", "out") in failed_checks(
        planted(lambda o, lse, *_: (o + o.float().mean(0).to(o.dtype) * 2.0**-6, lse))
    )


def test_single_bias_and_predictor():
    truncate = planted(lambda o, lse, *_: (_Truncate.apply(o), lse))
    big = CASE.with_(M=64, N=64, H=2, HK=2)
    assert not failed_checks(sound, big, statistical=True)
    assert ("bias", "out") in failed_checks(truncate, big, statistical=True)
    noisy = planted(lambda o, lse, *_: (o * (1 + 2.0**-7 * torch.sign(torch.sin(1e4 * o.float()))).to(o.dtype), lse))
    assert ("predictor", "out") in failed_checks(noisy, big, statistical=True)


class _Truncate(torch.autograd.Function):
    """One unit toward zero for every other element: what truncating instead of rounding does."""

    @staticmethod
    def forward(ctx, o):
        bits = o.view(torch.int16).clone()
        bits[..., ::2] -= 1
        return bits.view(o.dtype)

    @staticmethod
    def backward(ctx, do):
        return do


def test_a_reference_would_notice_its_own_fault():
    """The truth is not whatever the kernel says: one dropped key moves it."""
    q, k, v = (torch.randn(1, 1, 5, 8, dtype=torch.float64) for _ in range(3))
    whole = truth.forward(q, k, v, Mask(), 0.3).o
    assert (whole - truth.forward(q, k[:, :, :-1], v[:, :, :-1], Mask(), 0.3).o).abs().max() > 1e-3
