"""A kernel's algebra: the definition in rationals, the bundled kernels equal to it, planted faults refuted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import flashproof.kernels
import numpy as np
import pytest
import torch
from flashproof.kernels import interpreter
from flashproof.kernels.mutants.source import PARTS
from flashproof.reference import Mask, attention, rational
from flashproof.reports.record import Algebra, Comparison, Mismatch, Share
from flashproof.verify import algebra, budgets
from flashproof.verify.attribution import REST, WHOLE, sample, sample_case, shares
from flashproof.verify.budgets import load as load_budgets
from flashproof.verify.exact import NEGLIGIBLE, solve
from flashproof.verify.exact_problems import Problem, problems
from flashproof.verify.loading import load
from flashproof.verify.run import may_launch_kernels
from flint import fmpq

COMMAND = str(Path(sys.executable).with_name("flashproof"))
KERNELS = Path(__file__).parent / "kernels"
SOURCE = Path(flashproof.kernels.__file__).parent
BUDGETS = budgets.load()


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreter.interpret():
        yield


def integers(*shape, seed=0):
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


# -- the definition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask", [Mask(), Mask(causal=True), Mask(causal=True, alignment="bottom-right"), Mask(window=(2, 1))]
)
def test_the_definition_in_rationals_is_the_float64_truth_in_another_base(mask):
    q, k, v, do = (
        integers(2, 4, 7, 3),
        integers(2, 2, 5, 3, seed=1),
        integers(2, 2, 5, 3, seed=2),
        integers(2, 4, 7, 3, seed=3),
    )
    exact = rational.attention(q, k, v, do, mask, 0.5)
    scale = 0.5 * float(np.log(4))  # 4^s = exp(s ln 4)
    fwd = attention.forward(q, k, v, mask, scale)
    grads = attention.backward(q, k, v, do, mask, scale)
    number = np.frompyfunc(lambda x: int(x.p) / int(x.q), 1, 1)
    for got, want, factor in (
        (exact.o, fwd.o, 1.0), (exact.total, fwd.lse.exp(), 1.0), (exact.dv, grads.dv, 1.0),
        (exact.dq, grads.dq, np.log(4)), (exact.dk, grads.dk, np.log(4)),
    ):  # fmt: skip
        np.testing.assert_allclose(number(got).astype(float) * factor, want.numpy(), rtol=1e-13, atol=1e-13)


def test_the_definition_obeys_its_own_laws():
    """Rows of dS sum to 0, so constant keys have no gradient in q; the adjoint of P V is P^T dO."""
    q, k, v, do = (integers(1, 1, 6, 3, seed=i) for i in range(4))
    exact = rational.attention(q, torch.ones_like(k), v, do, Mask(), 0.5)
    assert (exact.dq == 0).all()
    exact = rational.attention(q, k, v, do, Mask(), 0.5)
    left = sum((fmpq(int(a)) * b for a, b in zip(do.flatten().tolist(), exact.o.flat, strict=True)), fmpq(0))
    right = sum((fmpq(int(a)) * b for a, b in zip(v.flatten().tolist(), exact.dv.flat, strict=True)), fmpq(0))
    assert left == right


def test_what_has_no_rational_value_is_an_error():
    q = integers(1, 1, 2, 2)
    with pytest.raises(ValueError, match="takes no bias"):
        rational.attention(q, q, q, q, Mask(bias=torch.zeros(2, 2)), 0.5)
    with pytest.raises(ValueError, match="integer powers of two"):
        rational.attention(torch.ones_like(q), torch.ones_like(q), q, q, Mask(), 0.1)


# -- kernels -----------------------------------------------------------------------------------------------------------


def mutant(folder, name, *changes):
    """A copy of the bundled kernels as a package of its own, some lines changed; returns its `module:function`."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    texts = {part: (SOURCE / part).read_text() for part in PARTS}
    for part, sound, faulty in changes:
        assert texts[part].count(sound) == 1, f"{part} has {texts[part].count(sound)} times {sound!r}"
        texts[part] = texts[part].replace(sound, faulty)
    for part, text in texts.items():
        (package / part).write_text(text)
    return f"{name}.attention:attention"


def compared(spec, monkeypatch, folder, *, digits=False):
    monkeypatch.syspath_prepend(folder)
    implementation = load(spec)
    chosen = [p for p in problems(implementation, 0, thorough=False) if bool(p.digits) == digits]
    return [solve(implementation, "cpu", p) for p in chosen]


def test_the_bundled_kernels_are_attention():
    implementation = load("flash")
    chosen = problems(implementation, 1, thorough=False)
    found = [solve(implementation, "cpu", p) for p in chosen]
    assert {c.status for c in found} == {"equal"}
    assert sum(c.elements for c in found) > 30_000
    tiles = {p.tiles for p in chosen}
    assert {(16, 16), (32, 32)} <= tiles
    masks = {str(p.case.mask) for p in chosen}
    assert {"none", "causal-tl", "causal-br", "boolean", "padding", "causal-tl+window-tl"} <= masks
    (generic,) = [c for c in found if c.digits]
    assert all(-n - 2 < exponent < 3 - n for n, exponent in generic.digits)


#: name -> (changes, tensors that may be named, words of the report)
FAULTS = {
    "rescale": ([("forward.py", "l_i = l_i * alpha", "l_i = l_i * 1.0")], {"out", "lse"}, "forward.py:"),
    "rescale of O": ([("forward.py", "v_tile, acc * alpha[:, None]", "v_tile, acc * 1.0")], {"out"}, "forward.py:"),
    "mask": (
        [("tiles.py", "(j <= i + diagonal + right)", "(j < i + diagonal + right)")],
        {"out", "lse"}, "forward.py:"),
    "dropped tile": (
        [("forward.py", "range(low, high, BLOCK_N)", "range(low, high - (high > 2 * BLOCK_N) * BLOCK_N, BLOCK_N)")],
        {"out", "lse"}, "forward.py:"),
    "dk scale": ([("backward.py", "dk_tile * scale", "dk_tile * scale * 0.5")], {"dk"}, "each off by the factor 1/2"),
    "delta": ([("backward.py", "ds = p * (dp - delta_tile[:, None])", "ds = p * dp")], {"dq"}, "backward.py:"),
    "log2(e) forgotten": (
        [("tiles.py", "LOG2E = tl.constexpr(1.4426950408889634)", "LOG2E = tl.constexpr(1.0)")], {"out", "lse"}, ""),
    "log2(e) misspelt": ([("tiles.py", "1.4426950408889634)", "1.4427)")], {"out", "lse"}, ""),
    "group": (
        [("forward.py", "hk = h // GROUP", "hk = h % (tl.num_programs(1) // GROUP)")], {"out", "lse"}, "heads"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_algebra_is_refuted(fault, tmp_path, monkeypatch):
    changes, tensors, words = FAULTS[fault]
    spec = mutant(tmp_path, f"mutant_{sorted(FAULTS).index(fault)}", *changes)
    found = compared(spec, monkeypatch, tmp_path)
    different = [c for c in found if c.status == "different"]
    if fault == "log2(e) misspelt":  # no rational number: many digits must tell
        assert {c.status for c in found} == {"unavailable"} and "no integer" in found[0].detail
        different = [c for c in compared(spec, monkeypatch, tmp_path, digits=True) if c.status == "different"]
    assert different
    summary = Algebra(comparisons=tuple(different))
    assert algebra.answer(summary).status in ("different", "nearly equal")
    assert {m.tensor for c in different for m in c.mismatches} & tensors
    assert any(words in m.where for c in different for m in c.mismatches if m.tensor in tensors)
    if fault != "log2(e) misspelt":
        assert algebra.answer(summary).status == "different"
        (finding,) = algebra.findings(summary, spec, [], problems(load(spec), 0, thorough=False)[0].case, BUDGETS)
        assert finding.tensor in tensors and finding.observed > finding.allowed
        assert finding.replay.startswith("flashproof exact ")


_TRUNCATED = """low = base.dtype.element_ty
    tile = tile.to(low, fp_downcast_rounding="rtz") if low != tl.float32 else tile
    tl.store(pointers, tile, mask=inside)"""
_DOT = 'acc = tl.dot(p_low, v_tile, acc * alpha[:, None], input_precision="ieee")'
#: name -> (change, check that fails)
ROUNDINGS = {
    "truncating store": (
        ("tiles.py", "tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)", _TRUNCATED), "bias"),
    "low-precision accumulator": (
        ("forward.py", _DOT, f"{_DOT}.to(v.dtype.element_ty).to(tl.float32)"), "accumulators"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", ROUNDINGS)
def test_a_sound_algebra_badly_rounded_passes_here_and_fails_the_gate(fault, tmp_path):
    change, check = ROUNDINGS[fault]
    spec = mutant(tmp_path, "rounded", change)
    done = subprocess.run(
        [COMMAND, "verify", spec, "--cases", "60", "--examples", "0", "--workers", "1", "--out", "run"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["exactness"]["algebraic"]["status"] == "equal"
    assert verdict["exactness"]["accuracy"]["status"] == "fail"
    assert [c["status"] for c in verdict["checks"] if c["name"] == "algebra"] == ["pass"]
    assert check in {c["name"] for c in verdict["checks"] if c["status"] == "fail"}
    if check == "accumulators":
        (finding,) = (f for f in verdict["findings"] if f["check"] == check)
        assert finding["allowed"] == BUDGETS.accumulators.max_part < finding["observed"] < 1
    assert any(f["tensor"] == "out" for f in verdict["findings"])


def test_a_kernel_that_is_not_triton_has_no_such_answer():
    implementation = load(f"{KERNELS / 'tiled.py'}:attention")
    found = [solve(implementation, "cpu", p) for p in problems(implementation, 0, thorough=False)[:2]]
    assert {c.status for c in found} == {"unavailable"} and "no Triton kernel" in found[0].detail
    answer = algebra.answer(Algebra(comparisons=tuple(found)))
    assert answer.status == "not available"
    assert [c.status for c in algebra.checks(Algebra(comparisons=tuple(found)))] == ["skipped"]
    assert attributed(implementation, "bf16", 0) == shares("bf16", [None]) == []


def test_a_tiny_deviation_is_told_and_forgiven():
    case = Problem(next(iter(problems(load("flash"), 0, thorough=False))).case).case
    for deviation, status in ((NEGLIGIBLE / 2, "pass"), (NEGLIGIBLE * 2, "fail")):
        mismatch = Mismatch(tensor="out", count=3, elements=9, where="here", deviation=deviation)
        found = Algebra(comparisons=(Comparison(case=case.to_dict(), arithmetic="rationals", status="different",
                                                elements=9, mismatches=(mismatch,)),))  # fmt: skip
        assert algebra.answer(found).status == {"pass": "nearly equal", "fail": "different"}[status]
        assert [c.status for c in algebra.checks(found)] == [status]
        assert len(algebra.findings(found, "x", [], case, BUDGETS)) == (status == "fail")


# -- attribution -------------------------------------------------------------------------------------------------------


def attributed(implementation, dtype, seed):
    """Of two cases, in this process."""
    return shares(dtype, [sample(implementation, "cpu", sample_case(implementation, dtype, seed + n)) for n in (0, 1)])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_parts_add_up_to_the_whole(dtype):
    found = attributed(load("flash"), dtype, 5)
    for tensor in ("out", "dq", "dk", "dv"):
        own = {s.site: s for s in found if s.tensor == tensor}
        assert own[WHOLE].part == 1.0
        assert 0.9 < own[REST].part < 1.1
    sites = {s.site: s.part for s in found if s.tensor == "out"}
    assert 0.5 < sites["flash_forward:output"] < 0.75 and 0.25 < sites["flash_forward:P"] < 0.5
    # uniform errors: O is rounded once, to half a unit in the last place
    assert {s.site for s in found if s.tensor == "dq"} >= {
        "backward_dq:dS",
        "backward_dq:output",
        "flash_forward:output",
    }


def test_parts_that_do_not_add_up_are_not_judged():
    """A race, say, makes errors that no rounding explains."""
    budgets = load_budgets()

    def checked(total, n=None):
        parts = {WHOLE: 1.0, REST: total, "k:accumulators": 0.5 * total}
        told = tuple(
            Share(dtype=dtype, tensor="dq", site=site, rms=part**0.5, part=part, n=n)
            for dtype in ("bf16", "fp16") for site, part in parts.items()
        )  # fmt: skip
        return [(c.status, c.n) for c in algebra.accumulator_checks(Algebra(shares=told), budgets, "x")]

    assert checked(1.0, 4) == [("fail", 8)]
    assert checked(1.0) == [("fail", 2)], "of an earlier record, at least a case per dtype"
    assert checked(5.0, 4) == checked(0.1, 4) == []


def test_a_rounding_that_is_not_there_has_no_part(tmp_path, monkeypatch):
    """P in fp32: the site of P must vanish from the table."""
    spec = mutant(tmp_path, "wide_p", ("forward.py", "p_low = p.to(v.dtype.element_ty)", "p_low = p"),
                  ("forward.py", "tl.dot(p_low, v_tile, acc", "tl.dot(p_low, v_tile.to(tl.float32), acc"))  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    implementation = replace(load(spec), has_backward=False)
    found = attributed(implementation, "bf16", 0)
    assert {s.n for s in found} == {2}
    parts = {s.site: s.part for s in found if s.tensor == "out"}
    assert parts.get("flash_forward:P", 0.0) < 1e-3
    assert parts["flash_forward:output"] > 0.98


# -- the commands ------------------------------------------------------------------------------------------------------


def run(*arguments, cwd):
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=600, check=False
    )


def test_exact_on_a_users_kernel(tmp_path):
    shutil.copy(KERNELS / "triton_forward.py", tmp_path / "kernel.py")
    done = run("exact", "kernel.py:attention", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "algebraic: equal" in done.stdout and "1e-200 at 200 digits" in done.stdout
    assert run("exact", "kernel.py:attention", "--case", "{}", cwd=tmp_path).returncode == 4
    text = (tmp_path / "kernel.py").read_text()
    assert text.count("* alpha + tl.sum(p, 1)") == 1
    (tmp_path / "kernel.py").write_text(text.replace("* alpha + tl.sum(p, 1)", "* 1.0 + tl.sum(p, 1)"))
    done = run("exact", "kernel.py:attention", cwd=tmp_path)
    assert done.returncode == 1 and "DIFFERENT" in done.stdout and "kernel.py:" in done.stdout


def test_exact_without_a_triton_kernel(tmp_path):
    done = run("exact", "sdpa-math", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 5 and done.stdout.count("no Triton kernel was launched") == 1


def test_attribution_prints_a_table(tmp_path):
    done = run("attribution", "flash", "--samples", "1", cwd=tmp_path)
    assert done.returncode == 0 and "flash_forward:P" in done.stdout and "sum of the parts" in done.stdout
    assert run("attribution", "sdpa-math", "--samples", "1", cwd=tmp_path).returncode == 5


@pytest.mark.parametrize(
    ("outcomes", "may"),
    [
        ([("unavailable", "no Triton kernel was launched"), ("refused", "N = 0")], False),
        ([("unavailable", "no Triton kernel was launched"), ("equal", "")], True),  # in some problems
        ([("unavailable", "it raised"), ("refused", "N = 0")], True),  # nobody knows
        ([], False),
    ],
)
def test_whether_there_is_a_kernel_that_a_gpu_would_compile(outcomes, may):
    case = next(iter(problems(load("flash"), 0, thorough=False))).case.to_dict()
    comparisons = tuple(Comparison(case=case, arithmetic="exact", status=s, detail=d) for s, d in outcomes)
    assert may_launch_kernels(Algebra(comparisons=comparisons, shares=())) == may
