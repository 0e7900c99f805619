"""Judge the judge: every check is fed a planted fault and must reject it, and a sound kernel and must accept it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch
from flashproof.reference import attention as truth
from flashproof.reference.masks import Mask
from flashproof.reports.intervals import band, share_interval
from flashproof.reports.record import Row
from flashproof.verify import budgets, guards
from flashproof.verify.case import Case, MaskRecipe
from flashproof.verify.errors import bound_ratio, floored_log_ratio, measure, rounded, same_bits, ulp
from flashproof.verify.evaluate import evaluate
from flashproof.verify.implementation import recognise
from flashproof.verify.judge import judge
from flashproof.verify.statistics import dominates, mean_interval, rule_of_three, student_quantile
from flashproof.verify.storage import storage_of
from flashproof.verify.storing import stores_scores
from flashproof.verify.verdict import verdict_of

BUDGETS = budgets.load()
CASE = Case(B=2, H=2, HK=1, M=30, N=40, D=16, dtype="bf16", regime="normal", seed=11)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ulp_is_the_distance_between_neighbours(dtype):
    info = torch.finfo(dtype)
    x = torch.tensor([1.0, 1.5, 2.0, 3.0, 0.1, info.max, info.tiny, info.tiny / 4, 0.0]).to(dtype)
    up = torch.nextafter(x.float(), torch.tensor(torch.inf)) if dtype == torch.float32 else None
    got = ulp(x.double(), dtype)
    assert got[0] == 2 * info.eps / 2 and got[2] == 2 * info.eps
    assert got[-1] == got[-2] == got[-3] == info.tiny * info.eps
    if up is not None:
        assert torch.equal(got[:5], up.double()[:5] - x.double()[:5])


def test_measure_sees_one_bad_element():
    exact = torch.linspace(1, 2, 4000, dtype=torch.float64).reshape(1, 1, 100, 40)
    value = rounded(exact, torch.float16)
    assert measure(value, exact, torch.float16).max <= 2.0**-11
    value[0, 0, 7, 3] += 0.5
    bad = measure(value, exact, torch.float16)
    assert bad.max > 0.49 and bad.ulp_histogram[4] == 1


@pytest.mark.parametrize(("planted", "count"), [(torch.nan, 1), (torch.inf, 1), (-torch.inf, 1)])
def test_measure_counts_what_is_not_finite(planted, count):
    exact = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    value = exact.half()
    value[0, 0, 1, 1] = planted
    assert measure(value, exact, torch.float16).nonfinite == count


def test_measure_wants_minus_infinity_where_the_truth_is():
    exact = torch.tensor([[[-math.inf, 0.0, -math.inf, -math.inf]]], dtype=torch.float64)
    value = torch.tensor([[[-math.inf, 0.0, math.inf, -1e30]]])
    assert measure(value, exact, torch.float32).nonfinite == 2


def test_bias_sees_truncation_and_nothing_else():
    exact = torch.randn(1, 1, 200, 64, dtype=torch.float64)
    near = rounded(exact, torch.bfloat16)
    truncated = (exact.float().view(torch.int32) & -65536).view(torch.float32)
    assert abs(measure(near, exact, torch.bfloat16).bias) < 0.02
    assert measure(truncated, exact, torch.bfloat16).bias == pytest.approx(-0.5, abs=0.02)


def test_bound_ratio_points_at_the_worst_element():
    exact = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    bound = torch.full_like(exact, 0.1)
    value = exact.clone()
    value[0, 0, 1, 2] = 0.15
    ratio, index = bound_ratio(value, exact, bound, torch.float16)
    assert ratio == pytest.approx(1.5) and index == (0, 0, 1, 2)
    assert bound_ratio(value, exact, torch.zeros_like(bound), torch.float16)[0] > 1e5, "a bound of 0 means exact"


def test_floored_ratio():
    assert floored_log_ratio(0.0, 0.0, 0.0, 0.0) == 0.0
    assert floored_log_ratio(2.0, 1.0, 0.0, 0.0) == pytest.approx(math.log(2))
    assert abs(floored_log_ratio(1e-9, 1e-30, 1e-3, 0.0)) < 1e-6, "both far below the floor"
    assert floored_log_ratio(1.0, math.nan, 0.0, 1.0) is None


def test_same_bits_tells_signed_zeros_apart_and_nan_equal():
    a = torch.tensor([0.0, math.nan, 1.0])
    assert same_bits(a, torch.tensor([-0.0, math.nan, 1.0])).tolist() == [False, True, True]


# -- statistics --------------------------------------------------------------------------------------------------------


def test_student_quantiles_against_tables():
    for p, freedom, want in ((0.975, 1, 12.7062), (0.975, 10, 2.22814), (0.9995, 30, 3.64596), (0.95, 120, 1.65765)):
        assert student_quantile(p, freedom) == pytest.approx(want, abs=1e-4)


def test_interval_covers_at_its_level():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        m = mean_interval(torch.randn(8, generator=generator).tolist(), 0.9)
        covered += m.low <= 0 <= m.high
    assert 0.84 < covered / 400 < 0.95


def test_share_interval_has_the_tails_that_it_promises():
    for k, n in ((3, 20), (17, 20), (40, 1000)):
        low, high = share_interval(k, n)
        at_least = sum(math.comb(n, i) * low**i * (1 - low) ** (n - i) for i in range(k, n + 1))
        at_most = sum(math.comb(n, i) * high**i * (1 - high) ** (n - i) for i in range(k + 1))
        assert at_least == pytest.approx(0.025, rel=1e-6)
        assert at_most == pytest.approx(0.025, rel=1e-6)
    assert share_interval(0, 100)[0] == 0.0
    assert share_interval(0, 100)[1] == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-9)
    assert share_interval(100, 100)[1] == 1.0


@pytest.mark.parametrize(("k", "n"), [(9_000, 20_000), (19_900, 20_000), (1, 20_000), (700_000, 1_000_000)])
def test_share_interval_of_many_cases(k, n):
    """As Wilson's (1927), to which it tends."""
    z, p = 1.959964, k / n
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert share_interval(k, n) == pytest.approx((low, high), rel=0.02 if min(k, n - k) > 50 else None, abs=3 / n)


def test_the_band_holds_a_whole_distribution_function():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        x = torch.rand(50, generator=generator).sort().values
        above, below = (torch.arange(first, 50 + first) / 50 for first in (1, 0))
        held += max(float((above - x).max()), float((x - below).max())) <= band(50, 0.9)
    assert 0.9 <= held / 400 < 0.97


def test_dominates():
    few, many = [0.1 * i for i in range(5)], [0.001 * i for i in range(1000)]
    assert dominates(many, [x + 0.2 for x in many]) is True
    assert dominates([x + 0.2 for x in many], many) is False
    assert dominates(many, many) is None
    assert dominates(few, [x + 0.2 for x in few]) is None, "so few cannot tell"
    assert dominates([0.5 + 0.2 * (x - 0.5) for x in many], many) is False, "smaller at one end, larger at the other"
    assert dominates([], many) is None


def test_rule_of_three():
    assert rule_of_three(3000) == pytest.approx(1e-3, rel=0.01)
    assert rule_of_three(0) == 1.0


# -- checks of a case --------------------------------------------------------------------------------------------------


def sound(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, return_lse=False
):
    group = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(group, 1).float() for x in (key, value))
    s = query.float() @ k.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    visible = torch.ones(s.shape, dtype=torch.bool)
    if is_causal:
        visible = visible.tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            visible = visible & attn_mask
        else:
            s = s + attn_mask.float()
    s = s.masked_fill(~visible, -math.inf)
    empty = (s == -math.inf).all(-1, keepdim=True)
    p = torch.softmax(s.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    o = (p @ v).to(query.dtype)
    return (o, s.logsumexp(-1).detach()) if return_lse else o


def failed_checks(function, case=CASE, **options):
    return {(c.name, c.tensor) for c in evaluate(case, recognise("planted", function), "survey", **options).failed}


def planted(change):
    """The sound kernel with something done to its result."""

    def attention(
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
        return_lse=False,
    ):
        o, lse = sound(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse=True)
        o, lse = change(o, lse, query, key, value)
        return (o, lse) if return_lse else o

    return attention


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
RELATED = {
    "flushes": (lambda o, lse, *_: (torch.where(o.abs() < 1e-3, o * 0, o), lse), dict(M=240), "V -> 2V"),
    "flushes q": (
        lambda o, lse, query, *_: (torch.where(query.abs() < 2e-2, o * (1 + 2.0**-7), o), lse), {}, "(q, k)"),
    "favours an order of heads": (
        lambda o, lse, query, *_: (o * (1 + 2.0**-6 * float(_smaller_first(query))), lse), dict(HK=2), "reverse order"),
    "looks at hidden keys": (
        lambda o, lse, q, k, v: (o * (1 + 2.0**-7) if v.float().abs().max() > 6 else o, lse),
        dict(mask=MaskRecipe(causal=True), M=20), "hidden"),
}  # fmt: skip


def _smaller_first(x):
    norms = x.float().square().sum((0, 2, 3))
    return bool(norms[0] < norms[-1])


@pytest.mark.parametrize("fault", RELATED)
def test_invariance_rejects_what_no_bound_can_see(fault):
    change, fields, words = RELATED[fault]
    case = CASE.with_(backward=False, **fields)
    result = evaluate(case, recognise("planted", planted(change)), "survey", relations=100)
    assert {c.name for c in result.failed} <= {"invariance", "batch-invariance"}
    assert any(words in c.detail for c in result.failed if c.name == "invariance")


@pytest.mark.parametrize("names", ["dq", "dq and dk", "dq and dv"])
def test_invariance_rejects_a_gradient_that_is_wrong_only_when_few_are_asked_for(names):
    def attention(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
        asked = [n for n, x in zip(("dq", "dk", "dv"), (query, key, value), strict=True) if x.requires_grad]
        alone = " and ".join(asked) == names
        o = sound(query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa)
        return o + (query * 0.25 if alone else 0 * query) - (query * 0.25 if alone else query * 0).detach()

    details = [c.detail for c in evaluate(CASE, recognise("planted", attention), "survey", relations=100).failed]
    assert any(f"{names} alone asked for" in d for d in details)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda lse, graph: not lse, "without the log-sum-exp"),
        (lambda lse, graph: not lse and not graph, "without gradients and log-sum-exp"),
        (lambda lse, graph: False, None),
    ],
)
def test_invariance_rejects_what_is_wrong_only_where_no_log_sum_exp_is_asked_for(wrong, words):
    """As most callers call it: `return_lse` is off by default."""

    def attention(query, key, value, return_lse=False):
        o = sound(query, key, value)
        if wrong(return_lse, query.requires_grad):
            o = o * (1 + 2.0**-5)
        if not return_lse:
            return o
        s = query.float() @ key.float().repeat_interleave(query.shape[1] // key.shape[1], 1).mT
        return o, torch.logsumexp(s * query.shape[-1] ** -0.5, -1)

    case = CASE.with_(HK=2)
    failed = evaluate(case, recognise("planted", attention), "survey", relations=100).failed
    assert {c.name for c in failed} == ({"invariance"} if words else set())
    assert any(c.detail.startswith(words) for c in failed) if words else not failed


@pytest.mark.parametrize("layout", ["contiguous", "packed", "gaps"])
@pytest.mark.parametrize("cached", ["k", "mask", None])
def test_invariance_rejects_a_cache_by_address(cached, layout):
    """What is refilled is not what it was: a KV cache, a preallocated mask, the static buffers of a CUDA graph."""
    made = {}

    def kept(name, x):
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype)
        return made.setdefault(key, x.detach().clone()) if name == cached else x

    def attention(query, key, value, attn_mask=None, enable_gqa=False):
        mask = None if attn_mask is None else kept("mask", attn_mask)
        return sound(query, kept("k", key), value, mask, enable_gqa=enable_gqa)

    mask = MaskRecipe(boolean="random")
    cases = [CASE.with_(mask=mask, layout=layout, seed=s, backward=False) for s in range(8)]
    details = []
    for case in cases:
        made.clear()
        details += [c.detail for c in evaluate(case, recognise("t", attention), "survey", relations=100).failed]
    assert any(", in the same memory: " in d for d in details) == (cached is not None), details


class _Saving(torch.autograd.Function):
    """Attention without a mask, its backward written by hand; `after` is done to the P that was saved."""

    @staticmethod
    def forward(ctx, q, k, v, after):
        p = torch.softmax(q.float() @ k.float().mT * q.shape[-1] ** -0.5, -1)
        ctx.saved, ctx.after = (q.detach(), k.detach(), v.detach(), p), after
        return (p @ v.float()).to(q.dtype)

    @staticmethod
    def backward(ctx, do):
        q, k, v, p = ctx.saved
        dv, dp = p.mT @ do.float(), do.float() @ v.float().mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        ctx.after(ctx, p, ds)
        return (ds @ k.float()).to(q.dtype), (ds.mT @ q.float()).to(q.dtype), dv.to(q.dtype), None


def _freed(ctx, *_):
    del ctx.saved


#: what a backward does to what was saved -> the tensors of which a second backward is wrong
AFTER = {
    "changes it in place": (lambda ctx, p, ds: p.copy_(ds), {"dq", "dk", "dv"}),
    "changes a bit of it": (lambda ctx, p, ds: p.mul_(1 + 2.0**-6), {"dv"}),
    "leaves it alone": (lambda ctx, p, ds: None, set()),
    "frees it": (_freed, set()),
}


@pytest.mark.parametrize("after", AFTER)
def test_invariance_rejects_a_backward_that_changes_what_was_saved(after):
    change, wrong = AFTER[after]

    def attention(query, key, value):
        return _Saving.apply(query, key, value, change)

    failed = evaluate(CASE.with_(HK=2), recognise("planted", attention), "survey", relations=100).failed
    assert {c.tensor for c in failed} >= wrong and bool(failed) == bool(wrong)
    assert all("a second backward over the same graph: " in c.detail for c in failed)


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


def _mask_from_the_start(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                         enable_gqa=False):  # fmt: skip
    """Reads as many elements as the mask has from where its storage starts, whatever its strides are."""
    if attn_mask is not None:
        held = storage_of(attn_mask)
        attn_mask = held[torch.arange(attn_mask.numel()) % len(held)].view(attn_mask.shape)
    return sound(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


#: layouts in which masks of every shape that is drawn are not contiguous
STRIDED = ("packed", "gaps")
#: and those of some shapes
SOME = ("bshd", "columns", "expanded")


@pytest.mark.parametrize("mask", [MaskRecipe(boolean="random"), MaskRecipe(bias="random")])
def test_a_mask_s_strides_are_a_part_of_the_question(mask):
    failed = {}
    for layout in ("contiguous", *STRIDED, *SOME):
        cases = [CASE.with_(mask=mask, layout=layout, backward=False, B=3, seed=s) for s in range(6)]
        assert not any(failed_checks(sound, c) for c in cases)
        failed[layout] = [bool(failed_checks(_mask_from_the_start, c, thorough=False)) for c in cases]
    assert not any(failed["contiguous"]) and all(all(failed[layout]) for layout in STRIDED)
    assert all(any(failed[layout]) for layout in SOME)


@pytest.mark.parametrize("layout", ["contiguous", *STRIDED, *SOME])
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


# -- checks of a distribution ------------------------------------------------------------------------------------------


def rows(n=24, **changes):
    base = Row(
        case_id="", phase="survey", status="ok", dtype="bf16", regime="normal", tensor="out", B=2, elements=1000,
        nonfinite=0,
        log_ratio=-0.5, bound_ratio=0.2, predictor_ratio=1.0, envelope_ratio=0.6, kernel_bias=0.0, rounded_bias=0.0,
        bitwise_standard=0.5,
    )  # fmt: skip
    wobble = [0.02 * math.sin(7 * i) for i in range(n)]
    return [
        replace(base, case_id=f"{i:016x}", **{k: v(wobble[i]) if callable(v) else v for k, v in changes.items()})
        for i in range(n)
    ]


def statuses(measured):
    judgement = judge(measured, BUDGETS, "planted")
    return {(c.name, c.tensor) for c in judgement.failed}, verdict_of(judgement, [], "planted", BUDGETS, measured, 0.0)


def test_a_sound_survey_passes():
    failed, verdict = statuses(rows(log_ratio=lambda w: -0.5 + w))
    assert not failed and verdict.verdict == "pass"


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        (dict(bound_ratio=1.01), "bound"),
        (dict(failed="finite"), "finite"),
        (dict(failed="memory"), "memory"),
        (dict(failed="kept"), "kept"),
        (dict(failed="invariance"), "invariance"),
        (dict(slope=lambda w: 0.5 + w, slope_weight=lambda w: 1.0), "systematic"),
        (dict(failed="repeat"), "repeat"),
        (dict(log_ratio=lambda w: 0.3 + w, envelope_ratio=lambda w: 1.3 + w), "ratio"),
        (dict(envelope_ratio=lambda w: 1.5 + w), "predictor"),
        (dict(kernel_bias=lambda w: -0.4 + w), "bias"),
        (dict(kernel_bias=lambda w: 0.2 + w), "bias"),
    ],
)
def test_each_gate_turns_the_verdict(changes, check):
    failed, verdict = statuses(rows(**changes))
    assert (check, "out") in failed and verdict.verdict == "fail" and check in verdict.sentence


def test_one_bad_case_among_many_fails():
    measured = rows(100)
    measured[57] = replace(measured[57], bound_ratio=1.5)
    assert ("bound", "out") in statuses(measured)[0]


def test_luck_of_the_standard_is_no_fault_of_the_kernel():
    """Worse than standard, but no worse than the flash arrangement's roundings predict: reported, not failed."""
    measured = rows(log_ratio=lambda w: 0.9 + w, envelope_ratio=lambda w: 0.9 + w)
    judgement = judge(measured, BUDGETS, "planted")
    assert not judgement.failed and [c.status for c in judgement.cells] == ["predicted"]


def test_a_fault_of_plain_cases_does_not_drown_among_the_others():
    """A format that lacks a bit: 1.5 times what is predicted in plain cases, nothing beside the spread of others."""
    plain = dict(B=1, H=2, HK=1, M=64, N=64, D=16, scale=0.25, layout="contiguous", mask="none")
    faulty = [replace(r, **plain) for r in rows(16, envelope_ratio=lambda w: 1.5 + w)]
    others = [replace(r, case_id=f"other{r.case_id}") for r in rows(200, envelope_ratio=lambda w: 0.9 + 5 * w)]
    assert not statuses(others)[0]
    failed = judge([*others, *faulty], BUDGETS, "planted").failed
    assert [(c.name, c.tensor) for c in failed] == [("predictor", "out")] and "normal, plain" in failed[0].detail
    elsewhere = [replace(r, layout="gaps") for r in faulty]
    assert not statuses([*others, *elsewhere])[0]


def test_too_little_is_no_measurement():
    assert statuses(rows(3))[1].verdict == "nothing-measured"
    assert statuses([])[1].verdict == "nothing-measured"


def test_crashes_fail_and_refusals_do_not():
    crash = Row(case_id="c", phase="survey", status="crashed", failed="returns", dtype="bf16")
    refusal = Row(case_id="r", phase="survey", status="unsupported", message="ValueError: no", dtype="bf16")
    assert ("returns", None) in statuses([*rows(), crash])[0]
    judgement = judge([*rows(), refusal], BUDGETS, "planted")
    assert not judgement.failed and any("ValueError: no" in line for line in judgement.not_covered)


def test_refusals_that_differ_in_numbers_are_told_once():
    why = ("ValueError: D = 3 is below 16", "ValueError: D = 8 is below 16", "ValueError: D = 8 is below 16", "no bias")
    refused = [
        Row(case_id=f"r{n}", phase="survey", status="unsupported", message=m, dtype="bf16") for n, m in enumerate(why)
    ]
    told = [line for line in judge(refused, BUDGETS, "planted").not_covered if line.startswith("refused")]
    assert told == [f"refused in 3 of 4 cases, as in: {why[1]}", "refused in 1 of 4 cases: no bias"]


def test_batch_invariance_is_reported_unless_a_budget_asks_for_it():
    measured = rows(failed="batch-invariance")
    assert not judge(measured, BUDGETS, "planted").failed
    strict = BUDGETS.model_copy(update={"invariance": BUDGETS.invariance.model_copy(update={"batch": "fail"})})
    assert [c.name for c in judge(measured, strict, "planted").failed] == ["batch-invariance"]


def test_an_exception_applies_to_its_scope_alone():
    changes = dict(tensor="dv", log_ratio=lambda w: 0.3 + w, envelope_ratio=lambda w: 1.4 + w)
    allowed = budgets.Allowance(
        implementation="mine.py:*", tensors=("dv",), ratio_margin=2.0, predictor_margin=2.0, reason="known"
    )
    lenient = BUDGETS.model_copy(update={"exceptions": (allowed,)})
    assert judge(rows(**changes), BUDGETS, "mine.py:attention").failed
    assert not judge(rows(**changes), lenient, "mine.py:attention").failed
    assert judge(rows(**changes), lenient, "other.py:attention").failed
    assert judge(rows(**{**changes, "tensor": "dk"}), lenient, "mine.py:attention").failed
