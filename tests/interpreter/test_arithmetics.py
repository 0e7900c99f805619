"""The arithmetics: the same kernel in rationals, in many digits, in float64, in any format, with random rounding."""

from __future__ import annotations

import math

import gmpy2
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from flashproof.kernels import interpreter
from flashproof.kernels.attention import attention
from flashproof.kernels.interpreter import IrrationalError, UnsupportedOperationError, arithmetics
from flashproof.kernels.interpreter.numbers.constants import base_change, real
from flashproof.kernels.interpreter.numbers.rational import Log, power
from flashproof.kernels.interpreter.numbers.rounded import FORMATS, Format
from flint import fmpq

# -- constants that stand for real numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.log(2), np.float32(math.log(2)), -8 * math.log(2), 0.6931471805599453 / 4])
def test_ln2_is_recognised_at_any_power_of_two(value):
    name, exponent, sign = base_change(float(value))
    assert name == "ln(2)"
    assert sign * math.ldexp(math.log(2), exponent) == pytest.approx(float(value), rel=1e-7)


@pytest.mark.parametrize("text", ["1.44269504", "1.4426950408889634", "1.44269504089"])
def test_log2e_is_recognised_as_kernels_write_it(text):
    assert base_change(float(np.float32(text)))[0] == "log2(e)"


@pytest.mark.parametrize("value", [1.0, 0.5, 1.4427, 0.693147, 0.25, 3.0, 1.4142135])
def test_other_numbers_are_what_they_are(value):
    assert base_change(float(np.float32(value))) is None
    assert real(value) == value


# -- the kernel that the tests below run -------------------------------------------------------------------------------


@triton.jit
def softmax_sum(x, v, out, lse, scale, N: tl.constexpr, NATURAL: tl.constexpr):
    """Out = softmax(scale x) . v, lse = log(sum(exp(scale x))), one row a program."""
    row = tl.program_id(0)
    i = tl.arange(0, N)
    s = tl.load(x + row * N + i).to(tl.float32) * scale
    top = tl.max(s, 0)
    if NATURAL:
        p = tl.exp(s - top)
    else:
        p = tl.exp2((s - top) * 1.44269504)
    total = tl.sum(p, 0)
    tl.store(out + row, tl.sum(p * tl.load(v + row * N + i).to(tl.float32), 0) / total)
    tl.store(lse + row, top + tl.log(total))


@triton.jit
def negative_exponent(lse, x, out, N: tl.constexpr):
    """Out = exp(x - lse), from what another launch stored."""
    i = tl.arange(0, N)
    tl.store(out + i, tl.exp(tl.load(x + i).to(tl.float32) - tl.load(lse)))


def problem(rows=3, n=8):
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randint(-3, 4, (rows, n), generator=generator).half() for _ in range(2))
    return x, v, torch.empty(rows, dtype=torch.float16), torch.empty(rows)


def definition(x, v, base):
    """The weighted mean with weights base^x, in rationals."""
    weights = [[fmpq(base) ** int(e) for e in row] for row in x.tolist()]
    return [
        sum((w * int(e) for w, e in zip(ws, row, strict=True)), fmpq(0)) / sum(ws, fmpq(0))
        for ws, row in zip(weights, v.tolist(), strict=True)
    ]


# -- rationals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("natural", [True, False])
def test_rationals_equal_the_definition(natural):
    x, v, out, lse = problem()
    with interpreter.interpret(arithmetics.exact()) as run:
        softmax_sum[(3,)](x, v, out, lse, 1.0, N=8, NATURAL=natural)
        assert list(run.values(out)) == definition(x, v, 4)
        totals = [sum((fmpq(4) ** int(e) for e in row), fmpq(0)) for row in x.tolist()]
        assert [power(4, y) for y in run.values(lse)] == totals
    assert out.dtype == torch.float16
    rounded = torch.tensor([int(y.p) / int(y.q) for y in definition(x, v, 4)]).half()
    assert torch.equal(out, rounded)  # the tensor itself holds the rounded numbers


def test_scale_ln2_makes_the_base_two():
    x, v, out, lse = problem()
    with interpreter.interpret(arithmetics.exact()) as run:
        softmax_sum[(3,)](x, v, out, lse, math.log(2), N=8, NATURAL=False)
        assert list(run.values(out)) == definition(x, v, 2)


def test_numbers_travel_between_launches_unrounded():
    x, v, out, lse = problem(rows=1)
    p = torch.empty(8, dtype=torch.bfloat16)
    with interpreter.interpret(arithmetics.exact()) as run:
        softmax_sum[(1,)](x, v, out, lse, 1.0, N=8, NATURAL=True)
        negative_exponent[(1,)](lse, x, p, N=8)
        assert sum(run.values(p), fmpq(0)) == 1
        halved = p.float() * 0.5  # torch's own arithmetic, in between
        assert sum(run.values(halved), fmpq(0)) == fmpq(1, 2)
        assert run.rounded_on_the_host == frozenset()
        torch.cumsum(p, 0)
        assert run.rounded_on_the_host == {"cumsum"}
        p[0] = 3.0  # the host changes a number: what was remembered of it no longer holds
        assert run.values(p)[0] == 3
    assert float(p[1:].sum()) != 1.0 - 3.0  # outside, the tensor holds rounded numbers as ever


def test_what_is_not_rational_is_refused_by_name():
    x, v, out, lse = problem()
    with (
        interpreter.interpret(arithmetics.exact()),
        pytest.raises(IrrationalError, match=r"exp2 of .*arithmetics\.py:\d+"),
    ):
        softmax_sum[(3,)](x, v, out, lse, 0.3, N=8, NATURAL=False)


@triton.jit
def sines(x, out):
    tl.store(out, tl.sin(tl.load(x)))


def test_a_sine_is_refused_in_rationals_and_known_in_digits():
    x, out = torch.ones(1), torch.empty(1)
    with interpreter.interpret(arithmetics.exact()), pytest.raises(UnsupportedOperationError, match="sin"):
        sines[(1,)](x, out)
    with interpreter.interpret(arithmetics.precise(60)) as run:
        sines[(1,)](x, out)
        with gmpy2.context(precision=250):
            assert abs(run.values(out)[0] - gmpy2.sin(gmpy2.mpfr(1))) < gmpy2.mpfr("1e-59")


def test_logarithms_stay_formal():
    third = Log(fmpq(0), fmpq(1), fmpq(3))
    with interpreter.interpret(arithmetics.exact()):
        a = arithmetics.exact()
        x = np.array([third, fmpq(5), float("-inf"), float("nan")], object)
        assert a.binary("add", x, x, "f32")[0] == Log(fmpq(0), fmpq(1), fmpq(9))
        assert a.compare("olt", x[:1], x[1:2]).all() and not a.compare("olt", x[3:], x[3:]).any()
        assert list(a.unary("exp2", a.binary("sub", x[1:2], x[:1], "f32"), "f32")) == [fmpq(32, 3)]
        assert list(a.binary("maxnum", x[2:], x[:2], "f32")) == [third, fmpq(5)]
        assert a.unary("exp2", x[2:3], "f32")[0] == 0


# -- digits, float64, formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [30, 120])
def test_precision_is_what_was_asked_for(digits):
    x, v, out, lse = problem()
    with interpreter.interpret(arithmetics.precise(digits)) as run:
        softmax_sum[(3,)](x, v, out, lse, 1.0, N=8, NATURAL=False)
        got = run.values(out)
    with gmpy2.context(precision=4 * digits + 50):
        weights = [[gmpy2.exp(gmpy2.mpfr(e)) for e in row] for row in x.tolist()]
        worst = max(
            abs(g - sum(w * int(e) for w, e in zip(ws, row, strict=True)) / sum(ws))
            for g, ws, row in zip(got, weights, v.tolist(), strict=True)
        )
        assert 0 < worst < gmpy2.mpfr(10) ** (2 - digits)
        assert worst > gmpy2.mpfr(10) ** (-digits - 6)


def test_float64_is_the_kernel_without_its_roundings():
    q, k, v = (torch.randn(1, 2, 40, 16).bfloat16() for _ in range(3))
    with interpreter.interpret(arithmetics.float64()) as run:
        out = attention(q, k, v, is_causal=True)
        got = torch.from_numpy(run.values(out).copy())
    want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    assert (got - want).abs().max() < 1e-14


@pytest.mark.parametrize("element", ["f16", "bf16", "f32"])
def test_any_format_contains_the_known_ones(element):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(100_000) * np.exp2(rng.integers(-160, 160, 100_000))
    x = np.concatenate([x, [0.0, -0.0, np.inf, -np.inf, np.nan, 65519.9, 65520.0, 1e39, 2.0**-24, 2.0**-25]])
    if element != "f32":
        with np.errstate(over="ignore"):
            x = x.astype(np.float32).astype(np.float64)  # torch itself goes through float32
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[element]
    want = torch.from_numpy(x).to(dtype).double().numpy()
    np.testing.assert_array_equal(FORMATS[element].round(x), want)


def test_a_coarse_format_is_coarse():
    x, v, out, lse = problem()
    errors = []
    for p in (3, 9, 15, 24):  # six bits apart: luck with three results cannot put them in another order
        with interpreter.interpret(arithmetics.format(p, -60, 60)) as run:
            softmax_sum[(3,)](x, v, out, lse, 1.0, N=8, NATURAL=False)
            values = run.values(out)
        assert (Format(p, -60, 60).round(values) == values).all()
        exact = np.array([[math.exp(e) for e in row] for row in x.tolist()])
        errors.append(np.abs(values - (exact * v.double().numpy()).sum(1) / exact.sum(1)).max())
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-2 and errors[-1] < 1e-5
    with pytest.raises(ValueError, match="no binary format"):
        arithmetics.format(60, -10, 10)


def test_random_rounding_is_unbiased_and_shows_the_digits_that_hold():
    x = np.full(200_000, 1.0 + 2.0**-10)
    rounded = Format(8, -126, 127).round(x, "random", np.random.default_rng(0))
    assert set(np.unique(rounded)) == {1.0, 1.0 + 2.0**-7}
    assert abs(rounded.mean() - x[0]) < 5 * 2.0**-7 * math.sqrt(7 / 64 / x.size)
    q, k, v = (torch.randn(1, 1, 32, 16).bfloat16() for _ in range(3))
    runs = []
    for seed in range(8):
        with interpreter.interpret(arithmetics.stochastic(seed)):
            runs.append(attention(q, k, v).double())
    spread = torch.stack(runs).std(0) / runs[0].abs()
    assert 2.0**-10 < spread.median() < 2.0**-6  # bf16 has 8 bits
    with interpreter.interpret(arithmetics.stochastic(0)):
        assert torch.equal(attention(q, k, v).double(), runs[0])  # the seed decides


# -- tensor cores ------------------------------------------------------------------------------------------------------


@triton.jit
def product(a, b, c, K: tl.constexpr):
    m, k = tl.arange(0, 16), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * 16 + m[None, :])
    tl.store(c + m[:, None] * 16 + m[None, :], tl.dot(x, y))


def test_tensor_cores_truncate_what_reaches_below_the_largest_product():
    """1 + 15 products of 2^-24 - 2^-30: rounding to nearest keeps their sum, truncation loses a part of each."""
    a, b, c = torch.zeros(16, 16).half(), torch.zeros(16, 16).half(), torch.zeros(16, 16)
    a[0], b[:, 0] = 2.0**-12 - 2.0**-18, 2.0**-12
    a[0, 0], b[0, 0] = 1.0, 1.0
    with interpreter.interpret(arithmetics.tensor_core()):
        product[(1,)](a, b, c, K=16)
    small = 2.0**-12 * (2.0**-12 - 2.0**-18)
    kept = math.floor(small / 2.0**-25) * 2.0**-25  # each product, cut off 25 bits below 1
    assert c[0, 0].item() == float(np.float32(1 + math.floor(15 * kept / 2.0**-23) * 2.0**-23))
    assert c[0, 0].item() < float(np.float32(1 + 15 * small))  # the sum, rounded to nearest


def test_tensor_cores_shrink_positive_sums():
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.uniform(0.5, 1, (16, 1024))).half()
    b = torch.from_numpy(rng.uniform(0.5, 1, (1024, 16))).half()
    c = torch.zeros(16, 16)
    want = a.double() @ b.double()
    bias = {}
    for name, arithmetic in {"ieee": arithmetics.ieee(), "tensor core": arithmetics.tensor_core()}.items():
        with interpreter.interpret(arithmetic):
            product[(1,)](a, b, c, K=1024)
        bias[name] = float(((c.double() - want) / want).mean()) * 2**24
    assert abs(bias["ieee"]) < 10
    assert -130 < bias["tensor core"] < -60  # the model of Hopper: about -91 units at n = 1024


# -- one site at a time ------------------------------------------------------------------------------------------------


def test_sites_of_the_bundled_kernels():
    q, k, v = (torch.randn(1, 1, 20, 16).half().requires_grad_() for _ in range(3))
    with interpreter.interpret(arithmetics.float64()) as run:
        attention(q, k, v, is_causal=True).sum().backward()
    kinds = {(s.kernel, s.kind) for s in run.sites}
    assert {("flash_forward", kind) for kind in ("scores", "exp", "P", "accumulators", "output")} <= kinds
    assert {("backward_dkdv", kind) for kind in ("scores", "exp", "P", "dP", "dS", "accumulators", "output")} <= kinds
    assert {("backward_dq", kind) for kind in ("scores", "exp", "dP", "dS", "accumulators", "output")} <= kinds
    assert ("backward_dq", "P") not in kinds  # dQ needs dS only
    lines = {s.line for s in run.sites if (s.kernel, s.kind) == ("flash_forward", "P")}
    assert len(lines) == 1 and lines.pop().startswith("forward.py:")


def test_rounding_at_one_site_only():
    q, k, v = (torch.randn(1, 1, 64, 16).bfloat16() for _ in range(3))

    def values(arithmetic):
        with interpreter.interpret(arithmetic) as run:
            return run.values(attention(q, k, v))

    clean = values(arithmetics.float64())
    np.testing.assert_array_equal(values(arithmetics.only("no such site")), clean)
    output = values(arithmetics.only("output"))
    np.testing.assert_array_equal(output, FORMATS["bf16"].round(FORMATS["f32"].round(clean)))
    p = np.abs(values(arithmetics.only("flash_forward:P")) - clean).max()
    scores = np.abs(values(arithmetics.only("scores")) - clean).max()
    assert 1e-4 < p < 1e-2 and 0 < scores < 1e-5


@triton.jit
def thirds(x, out):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.load(x + i) / 3.0)


@pytest.mark.parametrize("narrow", [lambda o: o.bfloat16(), lambda o: torch.empty(16, dtype=torch.bfloat16).copy_(o)])
def test_what_the_host_narrows_is_rounded_there(narrow):
    x = torch.arange(1.0, 17.0)

    def values(arithmetic):
        out = torch.empty(16)
        with interpreter.interpret(arithmetic) as run:
            thirds[(1,)](x, out)
            return run.values(narrow(out)), run.values(out.double())

    third = x.double().numpy() / 3.0
    for site in ("no such site", "output"):
        narrowed, widened = values(arithmetics.only(site))
        np.testing.assert_array_equal(narrowed, widened)
    narrowed, widened = values(arithmetics.only("host"))
    np.testing.assert_array_equal(narrowed, FORMATS["bf16"].round(third))
    np.testing.assert_array_equal(widened, third)
    assert [str(n) for n in values(arithmetics.exact())[0][:2]] == ["1/3", "2/3"]
