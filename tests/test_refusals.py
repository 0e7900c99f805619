"""A refusal is deliberate, whatever it says; an accident is a failure, whatever it says."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from flashproof.kernels.interpreter import KernelError, arithmetics, interpret
from flashproof.verify.case import Case
from flashproof.verify.evaluate import evaluate
from flashproof.verify.implementation import recognise
from flashproof.verify.probe import has_gradients
from flashproof.verify.refusals import kind_of

CASE = Case(B=1, H=2, HK=2, M=8, N=8, D=16, dtype="fp16", regime="normal", seed=0)


class UnsupportedError(Exception):
    """A project's own."""


def raised(function, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011  (any kind)
        function(*arguments)
    return kind_of(caught.value)


def says(error):
    def function():
        raise error

    return function


def asserts(x):
    assert x.shape[-1] == 64


@pytest.mark.parametrize("error", [ValueError("no"), TypeError("attn_mask is odd"), NotImplementedError()])
def test_what_the_function_says_of_its_arguments_is_a_refusal(error):
    assert raised(says(error)) == "refusal"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("it broke"), "failure"),
        (RuntimeError("D = 40 is not supported"), "refusal"),
        (RuntimeError("head_dim 3 is not a power of two"), "refusal"),
        (RuntimeError("D must be 64"), "refusal"),
        (Exception("?"), "failure"),
        (UnsupportedError("fp32 is not supported"), "refusal"),
        (UnsupportedError("?"), "failure"),
    ],
)
def test_other_errors_of_the_function_are_read_by_their_words(error, kind):
    assert raised(says(error)) == kind


def test_an_assertion_of_the_function_is_a_refusal():
    assert raised(asserts, torch.zeros(2, 3)) == "refusal"


@pytest.mark.parametrize(
    "accident",
    [
        lambda x: x + None,
        lambda x: x @ x.double(),
        lambda x: {32: 1}[x.shape[-1]],
        lambda x: torch.nn.functional.linear(x, x.double()),
        lambda x: torch.nn.functional.softmax(x, 7),
        lambda x: x.undefined,
        lambda x: 1 // (x.shape[-1] - 4),
    ],
)
def test_an_accident_is_a_failure(accident):
    assert raised(accident, torch.zeros(4, 4)) == "failure"


@triton.jit
def particular(x, D: tl.constexpr):
    tl.static_assert(D <= 64, "head dimensions up to 64")
    tl.store(x, 1.0)


def test_a_kernel_may_refuse_while_it_is_compiled():
    with interpret(arithmetics.ieee()):
        x = torch.zeros(1)
        particular[(1,)](x, D=64)
        assert x == 1.0
        assert raised(lambda: particular[(1,)](x, D=128)) == "refusal"


def test_an_error_of_a_kernel_is_a_failure():
    assert raised(says(KernelError("out of bounds"))) == "failure"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("FlashAttention only supports head dimension at most 256", "refusal"),
        ("Attention is not implemented for 'Half'", "refusal"),
        ("No available kernel. Aborting execution.", "refusal"),
        ("cutlassF: no kernel found to launch!", "refusal"),
        (
            "NYI: embedding dimension of q must be at least 16 but got 3: Buffer(size=[3], stride=[1])",
            "refusal",
        ),
        ("CUDA error: no kernel image is available for execution on the device", "failure"),
        ("head_size should be a multiple of 8", "refusal"),
        ("seqlen_q must be positive", "refusal"),
        ("mat1 and mat2 must have the same dtype, but got Half and Float", "layout"),
        ("Input tensor must have contiguous last dimension", "layout"),
        ("view size is not compatible with input tensor's size and stride", "layout"),
        ("CUDA error: an illegal memory access was encountered", "failure"),
        ("The size of tensor a (3) differs from that of tensor b (4)", "failure"),
    ],
)
def test_compiled_code_is_read_by_its_words(text, kind):
    error = RuntimeError(text)
    assert kind_of(error) == kind  # it has no Python frame, as what compiled code raises


def attention_that(before, backward_too=True):
    def attention(query, key, value, is_causal=False, scale=None):
        before(query)
        o = torch.softmax((query.float() @ key.float().mT) * query.shape[-1] ** -0.5, -1) @ value.float()
        return (o if backward_too else Refusing.apply(o)).to(query.dtype)

    return recognise("planted", attention)


class Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("no backward today")


def outcome(implementation, case=CASE):
    result = evaluate(case, implementation, "survey")
    return result.status, {c.name for c in result.failed}


def test_a_layout_may_be_refused_if_contiguous_tensors_are_taken():
    viewing = attention_that(lambda q: q.view(-1))
    assert outcome(viewing, CASE.with_(layout="bshd")) == ("unsupported", set())
    assert outcome(viewing)[0] == "ok"


def test_an_accident_that_speaks_of_layout_is_a_failure_if_contiguous_tensors_fail_too():
    wrong = attention_that(lambda q: q.transpose(1, 2).view(-1))
    assert outcome(wrong) == ("raised", {"returns"})
    assert outcome(wrong, CASE.with_(layout="gaps")) == ("raised", {"returns"})


def test_a_refusal_whose_dump_speaks_of_layout_is_one():
    """As a compiler's does, in a hundred lines about buffers; it takes no contiguous tensors either."""

    def compiles(q):
        raise RuntimeError("NYI: embedding dimension must be at least 64: Buffer(q, is_contiguous, aligned)")

    assert outcome(attention_that(compiles)) == ("unsupported", set())


def test_shapes_may_be_refused_and_values_may_not():
    def small(q):
        if q.abs().max() > 0.1:
            raise ValueError("large values are not supported")

    def even(q):
        if q.shape[2] % 16:
            raise ValueError("no such length")

    assert outcome(attention_that(small)) == ("raised", {"returns"})
    assert outcome(attention_that(even)) == ("unsupported", set())


def test_one_batch_element_may_be_refused_and_may_not_be_an_accident():
    """A refusal shows in the cases that have one; an accident is a failure, though not of two runs to be the same."""
    two = CASE.with_(B=2)

    def pairs(q):
        if q.shape[0] == 1:
            raise ValueError("no such batch")

    def by_accident(q):
        if q.shape[0] == 1:
            torch.zeros(2) + torch.zeros(3)

    assert outcome(attention_that(pairs), two) == ("ok", set())
    assert outcome(attention_that(pairs)) == ("unsupported", set())
    assert outcome(attention_that(by_accident), two) == ("ok", {"invariance"})


def test_what_refuses_its_gradients_is_judged_without_them():
    result = evaluate(CASE, attention_that(lambda q: None, backward_too=False), "survey")
    assert result.status == "ok" and not result.failed
    assert {r.tensor for r in result.rows if r.status == "ok"} == {"out"}
    assert [r.message for r in result.rows if r.status == "unsupported"] == [
        "gradients: NotImplementedError: no backward today"
    ]


@pytest.mark.parametrize(
    "takes", [lambda q, k: q.shape[2] == 1, lambda q, k: q.shape[3] in (64, 128), lambda q, k: q.shape[3] == 128]
)
def test_a_kernel_for_inference_may_refuse_most_shapes(takes):
    """Whether it has gradients is asked in a shape that it takes."""

    @torch.no_grad()
    def inference(query, key, value):
        if not takes(query, key):
            raise ValueError("no")
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    assert not has_gradients(recognise("inference", inference), "cpu")

    def training(query, key, value):
        return inference(query, key, value) + 0 * query

    assert has_gradients(recognise("training", training), "cpu")


@pytest.mark.parametrize(("M", "N"), [(0, 8), (8, 0)])
def test_an_empty_sequence_may_be_refused_by_any_error(M, N):
    """As torch raises one for the maximum over no keys."""

    def by_accident(q):
        if q.shape[2] == M:
            torch.zeros(2) + torch.zeros(3)

    assert outcome(attention_that(by_accident), CASE.with_(M=M, N=N)) == ("unsupported", set())
    assert outcome(attention_that(by_accident), CASE.with_(M=M or 8))[0] == ("ok" if M == 0 else "raised")
