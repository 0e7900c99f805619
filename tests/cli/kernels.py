"""Attention functions that misbehave, as a user's file: copied to where the commands of the tests run.

Every function here computes the same attention, and does one thing besides.  A wide query (M > 60) is the rare kind
of case on which some of them fail: few enough of a small survey to be quick, and of both parities.
"""

import functools
import os
import random
import signal
import sys
import time

import numpy as np
import torch


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    q, k, v = (x.float() for x in (query, key, value))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    visible = torch.ones(s.shape[-2:], dtype=torch.bool)
    if is_causal:
        visible = visible.tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        visible = visible & attn_mask
    elif attn_mask is not None:
        s, visible = s + attn_mask, visible & (attn_mask > float("-inf"))
    seen = visible.any(-1, keepdim=True)
    s = torch.where(seen, s.masked_fill(~visible, float("-inf")), 0.0)
    return torch.where(seen, s.softmax(-1), 0.0).matmul(v).to(query.dtype)


def first(act):
    """`act` on the query, then attention."""

    @functools.wraps(attention)
    def wrapped(query, *args, **kwargs):
        act(query)
        return attention(query, *args, **kwargs)

    return wrapped


def then(change):
    """What `change` makes of the query and the output."""

    @functools.wraps(attention)
    def wrapped(query, *args, **kwargs):
        return change(query, attention(query, *args, **kwargs))

    return wrapped


@first
def raises(query):
    raise RuntimeError("boom")


@first
def raises_for_odd_lengths(query):
    if query.shape[2] % 2:
        raise RuntimeError("boom")


@first
def refuses(query):
    raise NotImplementedError("no attention today")


@first
def refuses_all_but_nothing(query):
    if query.numel():
        raise NotImplementedError("this backend is not built for CPUs")


def without_lse(q, k, v, softmax_scale=None, causal=False, return_attn_probs=False):
    return as_flash_attn(q, k, v, softmax_scale, causal)


@first
def exits(query):
    sys.exit(0)


@functools.wraps(attention)
def refuses_groups(query, key, *args, enable_gqa=False, **kwargs):
    if enable_gqa or query.shape[1] != key.shape[1]:
        raise NotImplementedError("as many key heads as query heads, please")
    return attention(query, key, *args, **kwargs)


def as_flash_attn(q, k, v, softmax_scale=None, causal=False):
    assert not causal or q.shape[1] == k.shape[1], "square masks only"
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attention(q, k, v, is_causal=causal, scale=softmax_scale).transpose(1, 2)


def raises_for_groups(q, k, v, softmax_scale=None, causal=False):
    k, v = (x.expand(-1, -1, q.shape[2], -1) for x in (k, v))  # one head broadcasts
    return as_flash_attn(q, k, v, softmax_scale, causal)


def refuses_groups_by_name(q, k, v, softmax_scale=None, causal=False):
    if q.shape[2] != k.shape[2]:
        raise ValueError("as many key heads as query heads, please")
    return as_flash_attn(q, k, v, softmax_scale, causal)


@functools.wraps(attention)
def refuses_short_masks(query, key, value, attn_mask=None, **kwargs):
    if attn_mask is not None and query.shape[2] < 60:
        raise NotImplementedError("masks need 60 queries")
    return attention(query, key, value, attn_mask, **kwargs)


@then
def wrong_in_many_ways(query, out):  # one way for each head dimension
    ways = {8: lambda: out[..., :-1], 32: out.double, 128: lambda: "out", 3: lambda: out.to("meta"), 64: out.detach}
    return ways.get(query.shape[3], lambda: out)()


@then
def imprecise(query, out):
    return out * 1.5


@then
def imprecise_and_never_short(query, out):
    if query.shape[2] == 1:
        raise RuntimeError("boom")
    return out * 1.5


@first
def hangs(query):
    if query.shape[2] > 60:
        while query.shape[2] % 2:
            pass
        time.sleep(3600)


@first
def dies(query):
    if query.shape[2] > 60:
        os.kill(os.getpid(), signal.SIGSEGV) if query.shape[2] % 2 else os._exit(3)


@first
def dies_in_bf16(query):
    if query.dtype == torch.bfloat16:
        os._exit(3)


@functools.wraps(attention)
def dies_in_columns(query, key, *args, **kwargs):
    if query.stride(3) != 1 and key.stride(3) != 1 and query.numel() and key.numel():  # strides of nothing mean nothing
        os._exit(3)
    return attention(query, key, *args, **kwargs)


@first
def leaves(query):
    if query.shape[2] > 60:
        if query.shape[2] % 2:
            raise KeyboardInterrupt
        sys.exit()


@first
def dawdles(query):
    if query.shape[2] == 64:
        time.sleep(1)


@then
def rude(query, out):
    print("NOISE")  # noqa: T201
    print("NOISE", file=sys.stderr)  # noqa: T201
    os.write(1, b"NOISE")
    if query.shape[2] <= 60:
        return out
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    np.random.seed(0)
    np.seterr(all="raise")
    random.seed(0)
    return out


@first
def slow(query):
    time.sleep(0.1)


def too_few(query, key):
    pass


def too_many(query, key, value, theirs):
    pass


unreadable = torch.nn.functional.scaled_dot_product_attention
number = 7
