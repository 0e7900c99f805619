"""Judge the judge: what only a comparison of two calls can see is seen."""

from __future__ import annotations

import pytest
import torch
from flashproof.verify.case import MaskRecipe
from flashproof.verify.evaluate import evaluate
from flashproof.verify.implementation import recognise
from flashproof.verify.storage import storage_of

from .planted import CASE, failed_checks, planted, sound

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


class _Remembered(torch.autograd.Function):
    """Nothing forward; backward by the options of the last call, whichever it was."""

    last: dict

    @staticmethod
    def forward(ctx, o, options):
        _Remembered.last, ctx.own = options, options
        return o.clone()

    @staticmethod
    def backward(ctx, do):
        wrong = any(_Remembered.last[name] != ctx.own[name] for name in ctx.own)
        return do * (1.1 if wrong else 1.0), None


@pytest.mark.parametrize("name", ["scale", "is_causal", "nothing"])
def test_invariance_rejects_a_backward_by_another_calls_options(name):
    def attention(query, key, value, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
        o = sound(query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa)
        options = {"scale": scale, "is_causal": is_causal}
        return _Remembered.apply(o, {name: options[name]} if name in options else {})

    found = failed_checks(attention, relations=100)
    assert found == (set() if name == "nothing" else {("invariance", t) for t in ("dq", "dk", "dv")})


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
