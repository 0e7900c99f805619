"""Right functions in ways that users have of writing them, each of which was once accused, and faults beside them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from flashproof.kernels import interpreter
from flashproof.kernels.attention import attention as flash
from flashproof.verify import isolation
from flashproof.verify.case import Case, MaskRecipe
from flashproof.verify.evaluate import evaluate
from flashproof.verify.implementation import recognise
from flashproof.verify.loading import load
from flashproof.verify.probe import has_gradients
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils.checkpoint import checkpoint

CASE = Case(B=2, H=2, HK=2, M=33, N=40, D=16, dtype="bf16", regime="normal", seed=0)


def failed(function, case=CASE):
    result = evaluate(case, recognise("theirs", function), "survey", stores=False)
    assert result.status == "ok", result.rows
    return {(c.name, c.tensor) for c in result.failed}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # as in inference
@pytest.mark.parametrize(("factor", "found"), [(1.0, False), (1.05, True)])
def test_a_checkpoint_that_runs_forward_again(factor, found):
    """It takes `backward`, not `grad`."""

    def inner(q, k, v):
        return sdpa(q, k, v * factor)

    def attention(query, key, value):
        return checkpoint(inner, query, key, value, use_reentrant=True)

    assert bool(failed(attention)) == found


def test_an_operator_without_a_backward_is_judged_forward():
    @torch.library.custom_op("flashproof_tests::forward_only", mutates_args=())
    def forward_only(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return sdpa(q, k, v)

    def attention(query, key, value):
        return forward_only(query, key, value)

    assert not has_gradients(recognise("theirs", attention), "cpu")
    assert failed(attention, CASE.with_(backward=False)) == set()


def test_an_error_in_one_dtype_says_nothing_of_the_others():
    def attention(query, key, value):
        if query.dtype == torch.float16:
            raise RuntimeError("boom")
        return sdpa(query, key, value).detach()

    assert not has_gradients(recognise("theirs", attention), "cpu")


def test_a_backward_that_breaks_is_no_missing_one():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("boom")

    assert has_gradients(recognise("theirs", lambda query, key, value: Broken.apply(sdpa(query, key, value))), "cpu")


def test_kernels_may_be_launched_from_threads():
    inputs = [[torch.randn(1, 2, 20 + n, 16) for _ in range(3)] for n in range(8)]
    with interpreter.interpret():
        alone = [flash(*x) for x in inputs]
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(lambda x: flash(*x), inputs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_number_may_stand_for_the_usual_scale():
    def attention(query, key, value, scale=0.0):
        return sdpa(query, key, value, scale=scale or None)

    theirs = recognise("theirs", attention)
    assert theirs.lacks(CASE.with_(scale=0.0)) is not None
    assert theirs.lacks(CASE.with_(scale=0.3)) is None
    assert recognise("theirs", lambda query, key, value, scale=None: query).lacks(CASE.with_(scale=0.0)) is None


@pytest.mark.parametrize(("default", "taken"), [(0, False), ((-1, -1), True), (None, True)])
def test_a_window_of_one_number_is_not_asked_for(default, taken):
    def attention(q, k, v, softmax_scale=None, causal=False, window_size=default):
        return q

    assert ("window_size" in recognise("theirs", attention).options) == taken


def test_what_a_module_asks_of_numpy_holds_for_itself(tmp_path: Path):
    before = np.geterr()
    (tmp_path / "strict.py").write_text(
        "import numpy as np\nfrom torch.nn.functional import scaled_dot_product_attention as attention_\n"
        "np.seterr(all='raise')\n\n\ndef attention(query, key, value):\n    return attention_(query, key, value)\n"
    )
    load(f"{tmp_path / 'strict.py'}:attention")
    assert np.geterr() == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, by itself
def test_a_compiled_function_is_never_judged_uncompiled(monkeypatch):
    """Past the compiler's limit it would run as it is written, and a fault of the compiled code would be missed."""
    monkeypatch.setattr(isolation, "VARIANTS", 1)
    torch._dynamo.reset()

    @torch.compile(dynamic=False)
    def attention(query, key, value):
        p = torch.softmax(query.float() @ key.float().mT * query.shape[-1] ** -0.5, -1)
        return (p @ value.float() * (1.05 if torch.compiler.is_compiling() else 1.0)).to(query.dtype)

    theirs = recognise("theirs", attention)
    case = CASE.with_(backward=False)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=False):
        results = [evaluate(c, theirs, "survey", stores=False) for c in (case, case.with_(M=34))]
    assert ("bound", "out") in {(c.name, c.tensor) for c in results[0].failed}, "the compiled code was not run"
    assert results[1].status == "unsupported"
    assert "torch.compile" in str(results[1].rows[0].message)


_PARALLEL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from torch.nn.functional import scaled_dot_product_attention as sdpa


def part(q, k, v):
    return sdpa(q, k, v).float().tolist()


def attention(query, key, value):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        out = processes.submit(part, query.detach(), key.detach(), value.detach()).result(timeout=60)
    return query.new_tensor(out)
"""


@pytest.mark.parametrize("name", ["mine", "no-name", "v1.2", "torch", "json"])
def test_a_file_may_have_any_name(name, tmp_path, monkeypatch):
    """It has that itself where no other module has it: processes that it starts import it by that."""
    path = tmp_path / f"{name}.py"
    path.write_text(_PARALLEL)
    monkeypatch.setattr(sys, "path", list(sys.path))  # a folder with a torch.py of its own
    theirs = load(f"{path}:attention")
    own = name in ("mine", "no-name")
    assert (theirs.function.__module__ == name) == own
    assert sys.modules["torch"] is torch
    if own:
        result = evaluate(CASE.with_(backward=False), theirs, "hunt", stores=False)
        assert result.status == "ok", result.rows


@pytest.mark.parametrize("signature", ["is_causal", "causal"])
def test_an_option_that_is_on_by_default_is_turned_off_where_it_is_not_meant(signature):
    """As `functools.partial` makes one, or a kernel written for decoders."""

    def torchs(query, key, value, attn_mask=None, is_causal=True):
        return sdpa(query, key, value, attn_mask, is_causal=is_causal)

    def flash_attns(q, k, v, causal=True):
        assert causal is False or q.shape[1] == k.shape[1]
        return sdpa(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal).transpose(1, 2)

    theirs = torchs if signature == "is_causal" else flash_attns
    masks = [MaskRecipe(), MaskRecipe(causal=True, alignment=recognise("theirs", theirs).alignment)]
    masks += [MaskRecipe(boolean="random")] if theirs is torchs else []
    for mask in masks:
        assert failed(theirs, CASE.with_(mask=mask, N=CASE.M)) == set(), mask


@pytest.mark.parametrize(("M", "N"), [(0, 40), (33, 0)])
def test_where_there_is_nothing_to_attend_the_output_may_be_a_constant(M, N):
    def attention(query, key, value):
        if query.shape[2] * key.shape[2] == 0:
            return torch.zeros_like(query)
        return sdpa(query, key, value)

    def in_chunks(query, key, value):
        return torch.cat([query[:, :, :0], *(sdpa(q, key, value) for q in query.split(8, 2) if q.numel())], 2)

    for function in (attention, in_chunks):
        assert failed(function, CASE.with_(M=M, N=N)) == set()
    detached = evaluate(CASE, recognise("theirs", lambda query, key, value: sdpa(query, key, value).detach()), "survey")
    assert detached.status == "wrong-result"


def test_a_query_that_sees_no_key_is_told_so():
    """As `finfo.min` in place of minus infinity makes the mean of V of it."""

    def attention(query, key, value, attn_mask=None):
        s = query.float() @ key.float().mT * query.shape[-1] ** -0.5
        s = s if attn_mask is None else s.masked_fill(~attn_mask, torch.finfo(torch.float32).min)
        return (torch.softmax(s, -1) @ value.float()).to(query.dtype)

    theirs = recognise("theirs", attention)
    case = CASE.with_(mask=MaskRecipe(boolean="empty-rows"), backward=False)
    result = evaluate(case, theirs, "survey", stores=False, thorough=False)
    assert [c.name for c in result.failed] == ["bound"]
    assert result.failed[0].detail.endswith("; this query sees no key, so that its row is 0")
