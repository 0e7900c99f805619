"""A function that `torch.compile` compiled: run compiled, however closely it is watched, and judged like any other.

Uncompiled it has other roundings, so that a second run of it would differ from the first.
"""

from __future__ import annotations

import pytest
import torch
from flashproof.kernels import interpreter
from flashproof.kernels.attention import attention as flash
from flashproof.kernels.interpreter.listening import Listener
from flashproof.verify.case import Case
from flashproof.verify.evaluate import evaluate
from flashproof.verify.implementation import recognise
from torch.nn.functional import scaled_dot_product_attention as sdpa

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, by itself


@pytest.fixture(autouse=True)
def _subnormals():
    """What is compiled with -ffast-math flushes them to zero, in the whole thread, from when it is loaded."""
    yield
    torch.set_flush_denormal(False)


def _softmax(q, k, v, scale: float, factor: float):
    s = (q.float() @ k.float().mT) * scale
    p = torch.exp(s - s.amax(-1, keepdim=True))
    return ((p @ v.float()) / p.sum(-1, keepdim=True) * factor).to(q.dtype)


@pytest.fixture
def compiled_attention():
    torch._dynamo.reset()

    def of(factor: float, **options):
        inner = torch.compile(_softmax, dynamic=True, **options)

        def attention(query, key, value, scale=None):
            return inner(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, factor)

        return recognise("compiled", attention)

    return of


@pytest.mark.parametrize("fullgraph", [True, False])
def test_nothing_is_found_where_nothing_is_wrong(compiled_attention, fullgraph):
    implementation = compiled_attention(1.0, fullgraph=fullgraph)
    case = Case(B=2, H=2, HK=2, M=65, N=60, D=32, dtype="bf16", regime="normal", seed=0)
    for one in (case, case.with_(seed=1)):
        result = evaluate(one, implementation, "survey", stores=False)
        assert result.status == "ok", result.rows
        assert not result.failed


def test_what_is_wrong_is_found(compiled_attention):
    case = Case(B=1, H=1, HK=1, M=33, N=33, D=16, dtype="bf16", regime="normal", seed=0, backward=False)
    result = evaluate(case, compiled_attention(1.05), "survey", stores=False)
    assert {c.name for c in result.failed} >= {"bound"}


def test_it_runs_compiled_while_somebody_listens():
    """From its first call on: torch's compiler gives up, for good, a function that is first called under a mode."""
    torch._dynamo.reset()
    heard = []

    class Names(Listener):
        def heard(self, func, args, kwargs):
            heard.append(str(func))
            return func(*args, **kwargs)

    function = torch.compile(lambda x: (x.sin() + 1).cos(), fullgraph=True)
    with Names():
        torch.ones(3) + 1
        function(torch.ones(3))
    assert any("add" in name for name in heard)
    assert not any("sin" in name or "cos" in name for name in heard), "it ran uncompiled"


CASE = Case(B=1, H=2, HK=2, M=33, N=40, D=16, dtype="bf16", regime="normal", seed=0)


def _with_a_triton_kernel(**options):
    """Compiled around its launches: by which backend matters not."""
    torch._dynamo.reset()

    @torch.compile(backend="eager", **options)
    def attention(query, key, value, is_causal=False, scale=None):
        return flash(query + 0, key, value, is_causal=is_causal, scale=scale)

    return recognise("compiled", attention)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's compiler, where it breaks a graph
def test_triton_kernels_are_interpreted_and_not_compiled_with_the_interpreter():
    with interpreter.interpret():
        theirs = _with_a_triton_kernel()
        for case in (CASE, CASE.with_(M=40, seed=1)):
            result = evaluate(case, theirs, "survey", stores=False)
            assert result.status == "ok", result.rows
            assert not result.failed


def test_a_graph_that_may_not_be_broken_is_refused():
    """By torch's compiler, without a GPU: no fault of the function's."""
    with interpreter.interpret():
        result = evaluate(CASE, _with_a_triton_kernel(fullgraph=True), "survey", stores=False)
    assert result.status == "unsupported", result.rows


def test_a_compiled_module_has_the_signature_of_the_module():
    class Attention(torch.nn.Module):
        def forward(self, query, key, value, is_causal=False, scale=None):
            return sdpa(query, key, value, is_causal=is_causal, scale=scale)

    compiled = torch.compile(Attention(), backend="eager")
    theirs = recognise("compiled", compiled)
    assert theirs.options == recognise("plain", Attention()).options == {"is_causal", "scale"}
    assert not evaluate(CASE, theirs, "survey", stores=False).failed
