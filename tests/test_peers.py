"""Other projects' acceptance tests: a sound kernel passes them all, and each lets through what it is known to."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flashproof.kernels import interpreter
from flashproof.reference import attention as truth_of
from flashproof.reference.masks import Mask
from flashproof.verify.implementation import recognise
from flashproof.verify.loading import load
from flashproof.verify.peers import PEERS, accepts
from flashproof.verify.peers.arithmetic import gradients_from
from flashproof.verify.peers.catalogue import FP32
from flashproof.verify.peers.judging import _known
from flashproof.verify.peers.peer import Problem

TILED = (Path(__file__).parent / "kernels" / "tiled.py").read_text()
_P = "p.to(q.dtype).float() @ vf[:, :, cols]"
_MASK = "(-65536 if q.dtype == torch.bfloat16 else -8192)"
_DELTA = "delta = (do.float() * out.float()).sum(-1, keepdim=True)"

#: name -> edits (text of the sound kernel, text of the faulty one)
FAULTS = {
    "all-zero output": (("return out, lse\n", "return out * 0, lse\n"),),
    "all-zero, gradients too": (
        ("return out, lse\n", "return out * 0, lse\n"),
        ("return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)", "return 0 * q, 0 * k, 0 * v"),
    ),
    "last key dropped": (
        ("s = s.masked_fill(~visible[..., cols]",
         "s = s.masked_fill(~(visible[..., cols] & (torch.arange(N)[cols] < max(N - 1, 1)))"),
    ),
    "P truncated": ((_P, f"(p.view(torch.int32) & {_MASK}).view(torch.float32) @ vf[:, :, cols]"),),
    "P in fp8": ((_P, "p.to(torch.float8_e4m3fn).float() @ vf[:, :, cols]"),),
    "average of V": (("s = q.float() @ kf[:, :, cols].mT * scale", "s = 0 * q.float() @ kf[:, :, cols].mT"),),
    "one row wrong": (("return out, lse\n", "out[:, :, M // 2] = 0; return out, lse\n"),),
    "l not rescaled": (("l = l * alpha + p", "l = l + p"),),
    "LSE in base 2": (("return out, lse\n", "return out, lse * 1.4426950408889634\n"),),
    "NaN in the LSE": (("return out, lse\n", "return out, lse * math.nan\n"),),
    "NaN in one element": (("return out, lse\n", "out[0, 0, 0, 0] = math.nan; return out, lse\n"),),
    "dq zero": (("return dq.to(q.dtype)", "return 0 * dq.to(q.dtype)"),),
    "dq lacks the last tile": (("dq = ds @ kf", "dq = ds[..., :-16] @ kf[:, :, :-16]"),),
    "delta zero": ((_DELTA, _DELTA + " * 0"),),
    "delta 1 % off": ((_DELTA, _DELTA + " * 1.01"),),
    "dk lacks the scale": (("dk = ds.mT @ q.float() * ctx.scale", "dk = ds.mT @ q.float()"),),
    "dv lacks the last tile": (("dv = p.to(q.dtype).float().mT @ do.float()",
                                "dv = p[..., :-16, :].to(q.dtype).float().mT @ do[..., :-16, :].float()"),),
    "gradients ignore the mask": (("* ctx.scale + bias).masked_fill(~visible, -math.inf)", "* ctx.scale + bias)"),),
}  # fmt: skip


def planted(*names):
    """The sound tiled kernel with faults, under a signature that takes every problem."""
    source = TILED
    for name in names:
        for sound, faulty in FAULTS[name]:
            assert source.count(sound) == 1, sound
            source = source.replace(sound, faulty)
    scope: dict = {}
    exec(compile(source, "tiled", "exec"), scope)

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False,
                  window=(None, None), alignment="top-left", return_lse=False):  # fmt: skip
        (B, H, M, D), N = query.shape, key.shape[2]
        mask = Mask(causal=is_causal, window=window, alignment=alignment, bias=attn_mask)
        visible, bias = mask.rows(0, M, M, N, query.device)
        bias = torch.zeros(B, H, M, N) if bias is None else bias.float().expand(B, H, M, N)
        scale = 1 / math.sqrt(D) if scale is None else scale
        out, lse = scope["Tiled"].apply(query, key, value, visible.expand(B, H, M, N), bias, scale)
        return (out, lse) if return_lse else out

    return recognise("tiled", attention)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_accepts_the_bundled_kernel(peer, seed):
    with interpreter.interpret():
        decision = accepts(PEERS[peer], load("flash"), seed)
    assert decision.accepted, decision.reason


@pytest.mark.parametrize("peer", PEERS)
def test_only_fp8_s_mean_square_accepts_an_all_zero_output(peer):
    assert accepts(PEERS[peer], planted("all-zero output")).accepted == (peer == "FlashInfer FP8")


#: peer -> (a fault that it must reject, a fault that it is known to let through)
KNOWN = {
    "FlashAttention 2": ("last key dropped", "NaN in the LSE"),
    "FlashAttention 3/4": ("NaN in the LSE", "LSE in base 2"),
    "PyTorch SDPA": ("delta zero", "NaN in the LSE"),
    "FlexAttention": ("LSE in base 2", "P truncated"),
    "AOTriton": ("NaN in one element", "NaN in the LSE"),
    "xformers": ("LSE in base 2", "P truncated"),
    "TransformerEngine bf16": ("dk lacks the scale", "average of V"),
    "TransformerEngine fp16": ("average of V", "dq lacks the last tile"),
    "FLA in CI": ("dq zero", "last key dropped"),
    "JAX splash": ("LSE in base 2", "dk lacks the scale"),
    "Triton tutorial": ("dk lacks the scale", "last key dropped"),
    "FlashInfer fp16": ("last key dropped", "P truncated"),
    "FlashInfer FP8": ("NaN in one element", "average of V"),
    "vLLM": ("P in fp8", "P truncated"),
    "llama.cpp": ("l not rescaled", "NaN in the LSE"),
}


@pytest.mark.parametrize("peer", PEERS)
def test_each_rule_rejects_one_fault_and_lets_another_through(peer):
    rejected, let_through = KNOWN[peer]
    assert accepts(PEERS[peer], planted()).accepted
    assert not accepts(PEERS[peer], planted(rejected)).accepted
    assert accepts(PEERS[peer], planted(let_through)).accepted


def test_truncating_p_passes_every_rule():
    """No rule looks at the sign of errors."""
    assert all(accepts(peer, planted("P truncated")).accepted for peer in PEERS.values())


@pytest.mark.parametrize("fault", ["dq zero", "delta zero", "average of V"])
def test_an_absolute_tolerance_of_1_5e_2_hides_what_is_smaller(fault):
    assert accepts(PEERS["TransformerEngine bf16"], planted(fault)).accepted
    assert not accepts(PEERS["TransformerEngine fp16"], planted("delta zero")).accepted


# -- what NaN does -----------------------------------------------------------------------------------------------------

ANY = Problem("fp16", 1, 1, 1, 4, 4, 16)


@pytest.mark.parametrize("peer", [p for p in PEERS if p != "JAX splash"])
def test_a_nan_that_the_reference_lacks_is_rejected(peer):
    good, bad = torch.ones(4), torch.tensor([1, math.nan, 1, 1])
    rule = PEERS[peer].criterion["out"]
    assert rule(ANY, good, good, good)
    assert not rule(ANY, good, good, bad)


def test_a_nan_on_both_sides_is_whatever_the_project_s_code_makes_of_it():
    good, bad = torch.ones(4), torch.tensor([1, math.nan, 1, 1])
    passes = {name for name, peer in PEERS.items() if peer.criterion["out"](ANY, bad, bad, bad)}
    assert passes == {"PyTorch SDPA", "AOTriton", "JAX splash"}
    # an infinite baseline allows anything to those who divide by it
    infinite = torch.tensor([1.0, math.inf, 1, 1])
    passes = {n for n in PEERS if PEERS[n].low and PEERS[n].criterion["out"](ANY, good, infinite, -100 * good)}
    assert passes == {"FlashAttention 2", "FlashAttention 3/4", "PyTorch SDPA", "AOTriton"}


# -- how a decision comes about ----------------------------------------------------------------------------------------


def test_a_kernel_that_raises_is_rejected():
    def attention(query, key, value, is_causal=False, scale=None):
        raise IndexError("out of bounds")

    decision = accepts(PEERS["Triton tutorial"], recognise("broken", attention))
    assert not decision.accepted and "IndexError: out of bounds" in decision.reason


def test_what_a_signature_lacks_is_not_asked():
    def attention(query, key, value, is_causal=False, scale=None):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)

    limited = recognise("sdpa", attention)
    assert accepts(PEERS["PyTorch SDPA"], limited).reason.startswith("out, dq, dk, dv")
    assert accepts(PEERS["xformers"], limited).accepted  # no LSE to compare

    def bare(query, key, value):
        return attention(query, key, value)

    decision = accepts(PEERS["Triton tutorial"], recognise("bare", bare))
    assert not decision.accepted and "none of the problems" in decision.reason


def test_what_is_never_written_is_nan_where_the_project_makes_it_so():
    def attention(query, key, value, is_causal=False, scale=None, enable_gqa=False):
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return torch.where(torch.arange(query.shape[2])[:, None] == 3, torch.empty_like(out), out)

    reason = accepts(PEERS["FLA in CI"], recognise("unwritten", attention)).reason
    assert reason.startswith("out is off by up to nan")


def test_references_are_computed_once_and_kernels_cannot_spoil_them():
    def spoils(query, key, value, is_causal=False, scale=None):
        with torch.no_grad():
            for x in (query, key, value):
                x.zero_()
        return query * key * value

    peer = PEERS["Triton tutorial"]
    assert accepts(peer, planted(), 5).accepted
    misses = _known.cache_info().misses
    assert not accepts(peer, recognise("spoils", spoils), 5).accepted
    assert accepts(peer, planted(), 5).accepted
    assert _known.cache_info().misses == misses


def test_other_signatures_get_their_own_layout():
    def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
        assert q.is_contiguous()
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return planted().function(q, k, v, is_causal=causal, scale=softmax_scale).transpose(1, 2)

    assert accepts(PEERS["Triton tutorial"], recognise("flash_attn", flash_attn_func)).accepted


# -- the references ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", PEERS)
def test_references_are_attention(peer):
    """Within a few units of the precision that each claims, of the float64 truth."""
    for index, problem in enumerate(PEERS[peer].shapes):
        if PEERS[peer].quantised is not None:
            continue
        known, scale = _known(PEERS[peer], index, 0), problem.case(0).softmax_scale
        truth = truth_of.forward(known.q, known.k, known.v, known.mask, scale)
        pairs = [(known.golden["out"], truth.o), (known.low["out"], truth.o)]
        if problem.backward:
            g = truth_of.backward(known.q, known.k, known.v, known.do, known.mask, scale)
            pairs += [(known.golden[n], getattr(g, n)) for n in ("dq", "dk", "dv")]
        for got, want in pairs:
            error = (got.double() - want).norm() / want.norm()
            assert error < 0.1, (problem, float(error))
        seen = torch.isfinite(truth.lse)
        assert torch.allclose(known.golden["lse"].double()[seen], truth.lse[seen], atol=0.05, rtol=1e-2)


def test_gradients_from_the_output_are_autograd_s_when_the_output_is_right():
    peer = PEERS["JAX splash"]
    assert peer.reference is FP32
    for index in range(3):
        known = _known(peer, index, 0)
        own = gradients_from(known.golden["out"], known.q, known.k, known.v, known.do, known.mask, 1.0)
        for name, value in own.items():
            assert torch.allclose(value, known.golden[name], atol=2e-5, rtol=1e-4)


def test_the_upcast_reference_is_torch_s_math_backend():
    peer, problem = PEERS["PyTorch SDPA"], PEERS["PyTorch SDPA"].shapes[0]
    known = _known(peer, 0, 0)
    math_backend = load("sdpa-math").function(known.q, known.k, known.v, scale=problem.scale)
    differ = (math_backend != known.low["out"]).double().mean()
    assert differ < 0.02  # fp32 sums in another order, seen where a rounding is nearly tied


def test_inputs_are_the_same_bits_everywhere():
    known = _known(PEERS["TransformerEngine bf16"], 0, 0)
    bits = b"".join(x.contiguous().view(torch.int16).numpy().astype(np.int16).tobytes() for x in (known.q, known.do))
    assert hashlib.sha256(bits).hexdigest()[:16] == "91b28c2369bd90df"
