"""What reproduces publications: roundings and algorithms are exact, and every outcome can come out."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flashproof.reports.published import Claim, Figure, Reproduction, Reproductions, markdown
from flashproof.reports.record import write_json_atomic
from flashproof.verify.cli import reproduce as cli_reproduce
from flashproof.verify.loading import load
from flashproof.verify.regimes import REGIMES
from flashproof.verify.reproduce import PARTS, accuracy, bias, fa3, fa4, golden, predictors, tiling, training
from flashproof.verify.reproduce.algorithms import (
    exact,
    flash_1,
    flash_2,
    mixed,
    standard,
    straight_through,
    to_bits,
    to_dtype,
)
from flashproof.verify.reproduce.common import figure, normal, outcome, rms

README = Path(__file__).parents[1] / "README.md"
COMMAND = str(Path(sys.executable).with_name("flashproof"))
CONFIRMED, ASSUMING, NOT = "confirmed", "confirmed under an assumption", "not confirmed"


# -- roundings and algorithms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.bfloat16), (11, torch.float16)])
def test_rounding_is_to_nearest_with_ties_to_even(bits, dtype):
    significands = torch.arange(1 << bits, 1 << (bits + 1), dtype=torch.float64)  # every other one is a tie
    beside = torch.cat([significands + d for d in (-0.25, 0.0, 0.25)])
    values = torch.cat([beside * 2.0 ** (e - bits) for e in (-10, 0, 5)])
    values = torch.cat([values, -values, torch.tensor([0.0, -0.0, math.inf, -math.inf])])
    assert torch.equal(to_bits(bits)(values), values.to(dtype).double())
    assert torch.equal(to_dtype(dtype)(values), values.to(dtype).double())


def test_rounding_knows_no_range():
    x = normal(0, "x", 1000)
    for scale in (2.0**-900, 2.0**900):
        assert torch.equal(to_bits(8)(x * scale), to_bits(8)(x) * scale)
    assert torch.isnan(to_bits(8)(torch.tensor([math.nan], dtype=torch.float64))).all()
    assert torch.equal(to_bits(24)(x), x.float().double())


def test_a_straight_through_rounding_has_the_derivative_1():
    x = normal(0, "x", 50).requires_grad_()
    y = straight_through(to_bits(8))(x)
    assert torch.equal(y, to_bits(8)(x.detach()))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(50, dtype=torch.float64))


def problem(scale=3.0):
    return scale * normal(1, "q", 2, 9, 16), normal(1, "k", 2, 40, 16), normal(1, "v", 2, 40, 16), 0.25


@pytest.mark.parametrize("block", [1, 7, 16, 40, 100])
@pytest.mark.parametrize("flash", [flash_1, flash_2])
def test_without_rounding_flash_is_standard(flash, block):
    q, k, v, scale = problem()
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    assert (standard(q, k, v, scale, exact) - truth).abs().max() < 1e-12
    assert (mixed(q, k, v, scale, exact) - truth).abs().max() < 1e-12
    assert (flash(q, k, v, scale, exact, block) - truth).abs().max() < 1e-12
    if flash is flash_2:
        assert (flash_2(q, k, v, scale, exact, block, beta=2.0) - truth).abs().max() < 1e-12


def test_gradients_through_the_running_maximum():
    def gradients(attention, r):
        q, k, v, scale = problem()
        inputs = [x.requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad(attention(*inputs, scale, r).square().sum(), inputs)

    def tiled(q, k, v, scale, r):
        return flash_1(q, k, v, scale, r, 7)

    for a, b in zip(gradients(tiled, exact), gradients(standard, exact), strict=True):
        assert (a - b).abs().max() < 1e-10
    for a, b in zip(gradients(tiled, straight_through(to_bits(8))), gradients(standard, exact), strict=True):
        assert rms(a - b) < 0.1 * rms(b)


@pytest.mark.parametrize("flash", [flash_1, flash_2])
def test_with_one_tile_the_error_is_that_of_standard_attention(flash):
    r = to_bits(8)
    q, k, v = (r(normal(2, name, 256, 64)) for name in "qkv")
    truth = standard(q, k, v, 0.125, exact)
    usual = rms(standard(q, k, v, 0.125, r) - truth)
    assert 0.7 < rms(flash(q, k, v, 0.125, r, 256) - truth) / usual < 1.4
    assert rms(flash(q, k, v, 0.125, r, 8) - truth) / usual > 1.5


def test_a_shared_maximum_is_raised():
    q, k, v = (torch.ones(1, n, 1, dtype=torch.float64) for n in (1, 3, 3))
    seen = []

    def noted(x):
        seen.append(x)
        return x

    assert torch.equal(flash_2(q, k, v, 1.0, noted, 3, beta=2.0), v[:, :1])
    assert not any(torch.equal(x, torch.ones(1, 1, 3, dtype=torch.float64)) for x in seen[3:])  # no weight is 1


# -- figures and outcomes ----------------------------------------------------------------------------------------------


def fig(low, median=None, high=None, published=None):
    median = low if median is None else median
    return Figure(what="", published=published, low=low, median=median, high=median if high is None else high, n=3)


@pytest.mark.parametrize(
    ("found", "published", "agrees"),
    [
        ((1.0, 1.5, 2.0), 2.0 * 1.2, True),
        ((1.0, 1.5, 2.0), 2.41, False),
        ((1.0, 1.5, 2.0), 1 / 1.2, True),
        ((1.0, 1.5, 2.0), 0.83, False),
        ((1.0, 1.5, 2.0), None, False),
        ((-2.0, -1.5, -1.0), -2.4, True),
        ((-2.0, -1.5, -1.0), -0.84, True),
        ((-2.0, -1.5, -1.0), -2.41, False),
        ((0.0, 0.0, 0.0), 0.0, True),
        ((0.0, 0.0, 0.0), 1e-9, False),
        ((1.0, 1.5, math.inf), 5.0, False),
        ((math.nan, math.nan, math.nan), 1.0, False),
        ((0.0, 2.0, 9.0), (2.0, 5.0), True),
        ((0.0, 5.0, 9.0), (2.0, 5.0), True),
        ((0.0, 5.01, 9.0), (2.0, 5.0), False),
        ((0.0, 1.99, 9.0), (2.0, 5.0), False),
    ],
)
def test_what_agrees(found, published, agrees):
    assert fig(*found, published).agrees is agrees


def test_a_figure_of_values():
    f = figure("x", iter([3.0, 1.0, 2.0, 9.0]), 2.0)
    assert (f.low, f.median, f.high, f.n) == (1.0, 2.5, 9.0, 4)
    assert f.cells() == ("x", "2", "2.5", "1 to 9", "4")
    assert figure("x", [0.5], (2.0, 5.0)).cells() == ("x", "2 to 5", "0.5", "", "1")
    assert not figure("x", [1.0, math.nan, 2.0], 1.0).agrees


BIASED, STRAIGHT = fig(0.2, 0.25, 0.3), fig(-0.02, 0.0, 0.02)
RATIO = {"published": 2.0}
FIFTH = (0.8, 1.2)


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        (lambda: outcome(True, False), CONFIRMED),
        (lambda: golden.tenfold([fig(10.0)], [fig(1.0)]), CONFIRMED),
        (lambda: golden.tenfold([fig(0.5)], [fig(1.0), fig(7.0)]), ASSUMING),
        (lambda: golden.tenfold([fig(0.5)], [fig(4.9), fig(21.0)]), NOT),
        (lambda: outcome(golden.falls([fig(3.0), fig(2.0), fig(1.0)])), CONFIRMED),
        (lambda: outcome(golden.falls([fig(3.0), fig(1.0), fig(1.0)])), NOT),
        (lambda: training.milder([fig(2.5, published=(2.0, 5.0)), fig(4.5, published=(2.0, 5.0))]), CONFIRMED),
        (lambda: training.milder([fig(1.5, published=(2.0, 5.0)), fig(4.5, published=(2.0, 5.0))]), ASSUMING),
        (lambda: training.milder([fig(1.5, published=(2.0, 5.0)), fig(0.5, published=(2.0, 5.0))]), NOT),
        (lambda: fa3.gained(fig(1.9, **RATIO), fig(6.0, **RATIO)), CONFIRMED),
        (lambda: fa3.gained(fig(6.0, **RATIO), fig(1.9, **RATIO)), ASSUMING),
        (lambda: fa3.gained(fig(6.0, **RATIO), fig(1.0, **RATIO)), NOT),
        (lambda: fa4.hidden([fig(1.234, published=1.23)], fig(1.0), fig(1.0)), CONFIRMED),
        (lambda: fa4.hidden([fig(1.236, published=1.23)], fig(1.0), fig(1.0)), NOT),
        (lambda: fa4.hidden([fig(1.234, published=1.23)], fig(1.1), fig(1.0)), NOT),
        (lambda: fa4.costly(fig(1.05), fig(1.1), fig(1.0, 1.3, 1.6)), CONFIRMED),
        (lambda: fa4.costly(fig(1.05), fig(1.1), fig(1.0, 1.1, 1.4)), ASSUMING),
        (lambda: fa4.costly(fig(1.05), fig(1.0), fig(1.0, 1.3, 1.6)), NOT),
        (lambda: bias.one_sign(BIASED, STRAIGHT, BIASED), CONFIRMED),
        (lambda: bias.one_sign(BIASED, STRAIGHT, STRAIGHT), ASSUMING),
        (lambda: bias.one_sign(BIASED, BIASED, BIASED), NOT),
        (lambda: bias.one_sign(STRAIGHT, STRAIGHT, BIASED), NOT),
        (lambda: bias.removed(STRAIGHT, BIASED), CONFIRMED),
        (lambda: bias.removed(fig(-0.2), BIASED), NOT),
        (lambda: bias.removed(STRAIGHT, STRAIGHT), NOT),
        (lambda: accuracy.lossless([]), CONFIRMED),
        (lambda: accuracy.lossless(["offset", "cancellation"]), ASSUMING),
        (lambda: accuracy.lossless(["offset", "normal"]), NOT),
        (lambda: predictors.predicted([fig(0.5, 0.8, 2.0, FIFTH), fig(1.0, 1.2, 1.3, FIFTH)]), CONFIRMED),
        (lambda: predictors.predicted([fig(1.0, published=FIFTH), fig(0.79, published=FIFTH)]), NOT),
        (lambda: predictors.predicted([fig(1.0, published=FIFTH), fig(1.0, 1.21, 1.3, FIFTH)]), NOT),
        (lambda: predictors.predicted([fig(1.0, 1.0, math.inf, FIFTH)]), NOT),
        (lambda: predictors.separated(fig(0.9, 1.0, 1.29), fig(1.2, 1.31, 1.4), 1.3), CONFIRMED),
        (lambda: predictors.separated(fig(0.9, 1.0, 1.31), fig(1.4, 1.5, 1.6), 1.3), NOT),
        (lambda: predictors.separated(fig(0.9, 1.0, 1.2), fig(1.1, 1.29, 1.6), 1.3), NOT),
        (lambda: predictors.separated(fig(math.nan), fig(1.5), 1.3), NOT),
    ],
)
def test_each_outcome_can_come_out(judged, expected):
    assert judged() == expected


def outcomes(result):
    return [c.outcome for c in (result.claims if isinstance(result, Reproduction) else [result])]


def test_standard_attention_loses_nothing_to_itself(monkeypatch):
    monkeypatch.setattr(accuracy, "load", lambda _: load("standard"))
    monkeypatch.setattr(accuracy, "REGIMES", {n: REGIMES[n] for n in ("normal", "uniform", "offset", "cancellation")})
    claim = accuracy.claim(1)
    assert outcomes(claim) == [CONFIRMED] and "no inputs" in claim.because
    monkeypatch.setattr(accuracy, "load", load)
    claim = accuracy.claim(1)
    assert outcomes(claim) != [CONFIRMED] and "offset: dq" in claim.because


def test_a_kernel_is_predicted_by_its_own_roundings(monkeypatch):
    monkeypatch.setattr(predictors, "_LENGTHS", (64,))
    result = predictors.reproduce(2)
    assert outcomes(result) == [CONFIRMED, CONFIRMED]
    within, parted = result.claims
    assert len(within.figures) == 16 and {f.n for f in within.figures} == {4}
    assert [f.n for f in parted.figures] == [16, 4] and "0 lie beyond, so less than 17 % of" in parted.because
    monkeypatch.setattr(predictors, "_FAULT", "flash")  # no fault
    assert outcomes(predictors.reproduce(2)) == [CONFIRMED, NOT]
    monkeypatch.setattr(predictors, "load", lambda _: load("standard"))  # other roundings
    result = predictors.reproduce(2)
    assert outcomes(result) == [NOT, NOT] and "16 lie beyond. " in result.claims[1].because


def test_a_result_that_is_not_finite_is_not_predicted():
    row = predictors._rows("flash", predictors._CASE)["out"]
    assert 0.8 < predictors._known(row, row.predictor_ratio) < 1.2
    assert predictors._known(replace(row, nonfinite=1), row.predictor_ratio) == math.inf
    assert predictors._known(row, None) == math.inf


def test_a_kernel_that_is_standard_attention_has_its_bits(monkeypatch):
    monkeypatch.setattr(tiling, "bundled", lambda q, k, v, scale, *_, **__: standard(q, k, v, scale, to_bits(8)))
    monkeypatch.setattr(
        tiling.accuracy, "claim", lambda _: Claim(claim="", rule="", outcome=NOT, because="", figures=())
    )
    assert outcomes(tiling.reproduce(2)) == [NOT, CONFIRMED, NOT]


def test_a_kernel_that_keeps_its_state_in_bf16_is_what_golden_et_al_describe(monkeypatch):
    monkeypatch.setattr(golden, "_SETTINGS", [("N(0, 1)", 256), ("U[0, 1)", 1024)])
    monkeypatch.setattr(golden, "bundled", lambda q, k, v, scale, _: flash_1(q, k, v, scale, to_bits(8), 32))
    assert outcomes(golden._in_one_pass(2)) == [CONFIRMED]
    monkeypatch.setattr(golden, "_stored", lambda *_: 1.0)
    monkeypatch.setattr(golden, "_of_kernel", lambda *_: 1.0)
    assert outcomes(golden._in_one_pass(2)) == [NOT]
    assert outcomes(golden._by_tile(2)) == [NOT]


def test_a_kernel_that_is_the_papers_code_shares_a_sign(monkeypatch):
    monkeypatch.setattr(bias, "_ROWS", 64)
    assert outcomes(bias.reproduce(2)) == [ASSUMING, CONFIRMED, CONFIRMED]
    monkeypatch.setattr(bias, "bundled", lambda q, k, v, scale, _: flash_2(q, k, v, scale, to_bits(8), 256))
    assert outcomes(bias.reproduce(2))[0] == CONFIRMED
    monkeypatch.setattr(bias, "_r", exact)  # no rounding, no bias
    monkeypatch.setattr(bias, "bundled", lambda q, k, v, scale, _: standard(q, k, v, scale, exact))
    assert outcomes(bias.reproduce(2)) == [NOT, NOT, NOT]


def test_the_polynomials_have_the_published_errors(monkeypatch):
    monkeypatch.setattr(fa4, "_POINTS", 1 << 20)
    claim = fa4._of_polynomials()
    assert claim.outcome == CONFIRMED
    cells = {f.what: f.cells() for f in claim.figures}
    for degree, worst in ((3, "8.77e-05"), (4, "3.05e-06"), (5, "1.44e-07")):
        assert cells[f"degree {degree}: largest relative error"][1:3] == (worst, worst)
    monkeypatch.setattr(fa4, "_POINTS", 1 << 16)
    monkeypatch.setitem(fa4._POLYNOMIALS, 3, (1.0, 0.6955, 0.2276, 0.0771))
    assert fa4._of_polynomials().outcome == NOT


def test_training_moves_weights_by_how_attention_rounds(monkeypatch):
    monkeypatch.setattr(training, "_STEPS", 10)
    stored, kernel = training._ratios(0, True, 0.001)
    assert 0 < stored < kernel < 100
    usual = training._trained(0, True, 0.001, standard, exact, exact)
    assert torch.isfinite(usual).all()
    assert training._wasserstein(usual, usual.flip(-1)) == 0.0
    assert training._wasserstein(usual, usual + 0.5) == pytest.approx(0.5)


# -- the record --------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script> | a\n\n# b ![x](y) **c** `d` \udc80"


def record(text=HOSTILE):
    figures = (fig(1.0, 2.0, math.inf, (2.0, 5.0)), fig(1.0, published=3.0), figure(text, [1.0]))
    claims = tuple(Claim(claim=text, rule=text, outcome=o, because=text, figures=figures) for o in (CONFIRMED, NOT))
    result = Reproduction(name=text, source=text, setting=text, claims=claims, seconds=1.5)
    return Reproductions(
        created=text, command=text, seeds=3, seconds=2.0, versions={"flashproof": "0"}, results=(result, result)
    )


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = record("fine")
    write_json_atomic(tmp_path / "reproduce.json", written)
    assert Reproductions.model_validate(json.loads((tmp_path / "reproduce.json").read_text())) == written
    with pytest.raises(ValueError, match="extra"):
        Reproductions.model_validate({**json.loads(written.model_dump_json()), "more": 1})


def test_hostile_text_stays_text():
    page = markdown(record())
    page.encode()
    assert "<script" not in page and "![" not in page and "**c**" not in page
    assert not re.search(r"^# b", page, re.MULTILINE)
    tables = [line for line in page.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert set(widths) == {4, 6} and widths[0] == 4
    for head, rule in itertools.pairwise(tables):
        if set(rule) <= set("|- "):
            assert head.count("|") == rule.count("|")


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments, cwd):
    return subprocess.run(
        [COMMAND, "reproduce", *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, check=False
    )


def test_a_part_through_the_command(tmp_path):
    done = run("tiling", "--seeds", "2", "--out", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["tiling: 0/1", "tiling: 1/1"]
    assert {p.name for p in (tmp_path / "here").iterdir()} == {"reproduce.json", "reproduce.md"}
    recorded = Reproductions.model_validate(json.loads((tmp_path / "here/reproduce.json").read_text()))
    assert (recorded.seeds, recorded.command) == (2, "flashproof reproduce tiling --seeds 2 --out here")
    (result,) = recorded.results
    assert outcomes(result)[:2] == [CONFIRMED, NOT] and result.seconds > 0
    assert (tmp_path / "here/reproduce.md").read_text() == markdown(recorded)
    for c in result.claims:
        assert f"{c.outcome}: {c.claim}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("golde",), "'golde' is not one of 'golden'"), (("--seeds", "1"), "Invalid value for '--seeds'"),
     (("fa3", "--out", "/proc/none"), "cannot be written"),
     (("--seed", "3"), "No such option")],
)  # fmt: skip
def test_rubbish_is_one_line(tmp_path, arguments, words):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 4 and words in done.stderr and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("part", ["fa4", "predictors"])  # the quick ones
def test_the_readme_says_what_is_measured(part):
    rows = re.findall(r"^\| .* \| (.*) \| \*\*(.*?)\*\*: .* \|$", README.read_text(), re.MULTILINE)
    result = PARTS[part](2)
    assert [row for row in rows if row[0] in {c.claim for c in result.claims}] == [
        (c.claim, c.outcome) for c in result.claims
    ]


def test_the_command_knows_the_parts():
    assert tuple(PARTS) == cli_reproduce._PARTS
