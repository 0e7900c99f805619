"""The report of runs: whatever a record holds, it says it, escapes it and fits its size."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from flashproof.reports import algebra, figures, overview, words
from flashproof.reports.html import render
from flashproof.reports.junit import junit
from flashproof.reports.record import Algebra, Answer, Check, Finding, Run
from flashproof.reports.summary import github_annotations, summary

from .pages import drawn_data, outline
from .synthetic import (
    DIFFERENT,
    EQUAL,
    HOSTILE,
    UNAVAILABLE,
    UNUSUAL,
    attributed,
    make_rows,
    make_run,
    nothing,
    odd_algebra,
    poor_accumulators,
    raised,
    with_algebra,
)


def test_the_first_screen_answers_the_three_questions() -> None:
    page = outline([make_run(broken=True)])
    before = page.text[: page.text.index("Smallest case")]
    for text in (
        "Fail",
        "Exact, as far as this run can tell.",
        "Algebraic",
        "Bitwise",
        "Accuracy",
        "31 %",
        "3 min 7 s",
    ):
        assert text in before


def test_a_finding_shows_its_case_amounts_and_replay() -> None:
    text = outline([make_run(broken=True)]).text
    for part in (
        "15.9 observed",
        "1 allowed",
        "16 times",
        "flashproof replay '{\"B\": 1}' flash",
        "bf16 · large · B1 M1 N17 D16",
        "findings/001.py",
    ):
        assert part in " ".join(text.split())


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_record_becomes_a_sound_page(name: str) -> None:
    page = outline(UNUSUAL[name]())
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert all(source.startswith(("#", "data:,")) for source in page.sources)
    assert len(page.scripts) == 4  # data, two libraries, ours
    drawn_data(page)


def test_hostile_text_stays_text() -> None:
    page = outline(UNUSUAL["hostile"]())
    assert "document.title='pwned'" in page.text
    assert all("pwned" not in text for kind, text in page.scripts if kind is None)
    assert "{{7*7}}" in page.text
    assert drawn_data(page)["implementations"] == [HOSTILE]  # JSON carries even half a surrogate pair


def test_a_finding_that_no_single_case_shows_has_no_amounts() -> None:
    run = make_run(20, broken=True)
    vague = Finding(check="bias", case={}, replay="flashproof replay y", observed=math.nan, allowed=math.nan)
    assert [f.check for f in words.worst_first((vague, *run.findings))] == ["finite", "bound", "bias"]
    only = replace(run, findings=(vague,))
    for text in (outline([only]).text, junit(only), summary(only), "".join(github_annotations(only))):
        assert "NaN observed" not in text
        assert "flashproof replay y" in text


def test_an_overflow_that_the_bound_allows_is_no_violation() -> None:
    row = replace(make_rows(1)[0], nonfinite=3, bound_ratio=0.5)
    assert not words.violates(row)
    assert words.violates(replace(row, failed="repeat,finite"))
    assert words.violates(replace(row, bound_ratio=1.5))
    assert words.violates(replace(row, bound_ratio=math.nan))


def test_a_ratio_that_theory_predicts_is_not_shown_as_failed() -> None:
    run = make_run(20)
    cells = tuple(c.model_copy(update={"status": "predicted", "mask": "all"}) for c in run.verdict.cells)
    page = outline([replace(run, verdict=run.verdict.model_copy(update={"cells": cells}))])
    assert "as predicted" in page.text
    assert "0.50 ○" in page.text
    assert "0.50 ✕" not in page.text


def squeezed(runs: list[Run]) -> str:
    return " ".join(outline(runs).text.split())


def test_what_was_compared_in_exact_arithmetic() -> None:
    text = squeezed([with_algebra(make_run(20), EQUAL)])
    assert "equal What the runs in rationals say. Compared: 4 200 elements of 2 problems in rationals; " in text
    assert "3 700 elements of 1 problem in many digits." in text
    case = "fp16 · integers · mask causal window 7, ∞ bottom-right · B1 H2 M5 N37 D16 · scale 0.5"
    assert f"{case} 16 × 32 rationals 500 equal" in text
    assert "refused no window longer than its sequence" in text
    assert "1.6e−50 at 50 digits, 1.3e−100 at 100 digits" in text
    assert "Not the definition's" not in text


def test_what_differs_is_told_with_its_place_at_the_smallest_problem() -> None:
    run = with_algebra(make_run(20), DIFFERENT, "different")
    text = squeezed([run])
    assert "Not the definition's dk" in text
    assert "dk 23 of 1 150 elements, off by up to 0.5 times the largest element, in 2 of 5 problems each off by" in text
    assert "factor 1/2; stored at backward.py:23" in text
    assert "backward.py:29" not in text  # a larger problem
    assert (
        "lse off by up to 8.00e-07 times the largest element, in 1 of 5 problems largest difference at [0, 1, 3]"
        in text
    )
    shown = algebra.exact(run, 3)
    assert [p.status for p in shown.problems] == ["different"] * 3  # they come first
    assert shown.left_out == 2
    assert "flashproof exact flash --case '{" in text


def test_a_command_that_a_finding_has_is_not_repeated() -> None:
    run = with_algebra(make_run(20), DIFFERENT, "different")
    case = DIFFERENT.comparisons[3].case
    finding = Finding(check="algebra", tensor="dk", case=case, replay="flashproof exact z", observed=0.5, allowed=1e-4)
    text = squeezed([replace(run, findings=(finding,))])
    assert text.count("flashproof exact") == 2  # the finding's, and the one in digits


@pytest.mark.parametrize(
    ("found", "says"),
    [(UNAVAILABLE, "Not measured: this needs a kernel whose source runs"), (None, "Not measured in this run.")],
)
def test_without_exact_arithmetic_there_is_one_line(found: Algebra | None, says: str) -> None:
    answer = Answer(status="not available", evidence="No Triton kernel was launched.")
    run = make_run(20)
    exactness = run.verdict.exactness.model_copy(update={"algebraic": answer})
    page = outline([replace(run, verdict=run.verdict.model_copy(update={"algebra": found, "exactness": exactness}))])
    text = " ".join(page.text.split())
    assert "In exact arithmetic not available No Triton kernel was launched. Error against the truth" in text
    assert f"Where the rounding error arises {says}" in text
    assert not {"digits", "sites"} & set(page.ids)


@pytest.mark.parametrize(("found", "says"), [(EQUAL, "Not available: the source"), (DIFFERENT, "not attention either")])
def test_why_nothing_is_attributed(found: Algebra, says: str) -> None:
    own = Algebra(comparisons=found.comparisons[2:])  # the first two are equal
    assert says in algebra.unattributed(with_algebra(make_run(1), own))


def test_the_attribution_is_stacked_in_the_order_of_a_kernel() -> None:
    bars = algebra.bars([with_algebra(make_run(20), EQUAL)])
    assert [(b.tensor, b.dtype) for b in bars] == [("out", "fp16"), ("out", "bf16"), ("dq", "fp16"), ("dq", "bf16")]
    assert [algebra.KINDS[kind] for kind, _, _ in bars[0].parts] == ["P", "accumulators", "output"]
    assert bars[0].total == pytest.approx(0.992)
    assert not any(b.failed for b in bars)
    assert [b.tensor for b in algebra.bars([poor_accumulators()]) if b.failed] == ["out", "out"]


def test_sites_of_one_kind_are_one_part_and_an_unknown_kind_is_not_lost() -> None:
    shares = attributed({"b:dS": 0.2, "a:dS": 0.3, "torch:host": 0.1, "constants": 0.05, "c:new": 0.35})
    bar = algebra.bars([with_algebra(make_run(1), Algebra(shares=shares))])[0]
    assert [(algebra.KINDS[kind], round(part, 6)) for kind, part, _ in bar.parts] == [
        ("dS", 0.5),
        ("host", 0.1),
        ("constants", 0.05),
        ("other", 0.35),
    ]
    assert bar.parts[0][2] == "b:dS 20 %\na:dS 30 %"


def test_the_table_of_the_attribution_has_every_site_and_its_lines() -> None:
    text = squeezed([with_algebra(make_run(20), EQUAL)])
    assert "out fp16 whole 0.001 100 % 1 out fp16 sum of the parts 9.96e-04 99 % 1 " in text
    assert "out fp16 flash_forward:output 7.68e-04 59 % 1 forward.py:80 out fp16 flash_forward:P" in text
    assert "flash_forward:accumulators 4.47e-05 0.2 % 1 forward.py:80" in text


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ((1,), "n = 1 case per dtype"),
        ((4,), "n = 4 cases per dtype"),
        ((4, 1), "n = 1 or 4 cases per dtype"),
        ((1, None), "n not recorded"),
    ],
)
def test_the_attribution_says_how_many_cases_it_rests_on(counts: tuple[int | None, ...], says: str) -> None:
    runs = [with_algebra(make_run(20), Algebra(comparisons=EQUAL.comparisons, shares=attributed(n=n))) for n in counts]
    text = " ".join(outline(runs).text.split())
    assert text.count(says) == 2, "beside the axis, and in the caption"
    assert ("one case shows no spread" in text) == (1 in counts)
    for n in counts:
        assert f"40 % {n or '–'} forward.py:80" in text


def test_every_run_has_its_answer_and_its_bars() -> None:
    runs = UNUSUAL["four algebras"]()
    text = squeezed(runs)
    exact = text[text.index("In exact arithmetic flash") : text.index("Error against the truth")]
    assert exact.count("What the runs in rationals say.") == 3
    drawn = drawn_data(outline(runs))
    assert [site[:2] for site in drawn["sites"][:2]] == [["out fp16", 0], ["out fp16", 3]]
    assert {digits[0] for digits in drawn["digits"]} == {0, 1, 3}


def test_what_only_other_arithmetics_show_has_no_script() -> None:
    run = poor_accumulators()
    for text in (squeezed([run]), junit(run), summary(run)):
        assert "Sums are carried in too few bits" in text
        assert "flashproof attribution flash --dtype bf16" in text
        assert "0.6 observed, 0.1 allowed" in text
        assert ".py:72" in text
        assert "findings/" not in text
    assert "6 times what is allowed" in squeezed([run])


@pytest.mark.parametrize(
    ("check", "detail", "says"),
    [
        ("algebra", "", "does not compute attention"),
        ("returns", "raised: ConflictError: conflict: one program stores q[0]", "without an atomic"),
        ("returns", "raised: ValueError", "it raised, hung or died"),
    ],
)
def test_a_finding_is_explained(check: str, detail: str, says: str) -> None:
    finding = Finding(check=check, case={}, replay="again", observed=1.0, allowed=0.0, detail=detail)
    run = replace(make_run(20), findings=(finding,))
    for text in (squeezed([run]), junit(run), summary(run)):
        assert says in text
    assert words.meaning("of another version") == ""


def test_a_failed_check_without_a_finding_is_not_lost() -> None:
    run = make_run(20)
    checks = (*run.verdict.checks, Check(name="ratio", tensor="dv", status="fail", n=9, detail="3 cells fail"))
    text = squeezed([replace(run, verdict=run.verdict.model_copy(update={"checks": checks}))])
    assert "with no finding of its own: ratio dv: 3 cells fail" in text
    assert "no check failed" not in text


def test_the_bitwise_question_asks_what_is_measured() -> None:
    assert "tile to tile" not in outline([make_run(20)]).text


def test_figures_without_data_say_so() -> None:
    text = outline([nothing([])]).text
    assert text.count("Nothing to draw") == 11
    assert outline(UNUSUAL["no places"]()).text.count("does not say where in its tensors the errors are") == 3
    assert "No tensor was measured" in text
    assert "None, but there is no verdict either." in text


def test_cases_without_a_result_are_grouped() -> None:
    text = " ".join(outline([nothing(raised(), "fail")]).text.split())
    assert "✕" not in text  # signs are the style sheet's: the words are there without them
    assert re.search("raised 7 bf16 boom 0 .*raised 6 bf16 boom 2", text)


def test_what_the_interpreter_raises_is_grouped_by_line() -> None:
    rows = [
        replace(row, message=f"ConflictError: conflict: one program writes lse[{i}] [/a/kernel.py:{80 + i % 2}]")
        for i, row in enumerate(raised())
    ]
    groups, _ = overview.broken(nothing(rows, "fail"), 9)
    assert [(group.n, group.message[-15:]) for group in groups] == [(10, "a/kernel.py:80]"), (10, "a/kernel.py:81]")]
    assert squeezed([nothing(rows, "fail")]).count("without an atomic") == 2


@pytest.mark.parametrize("broken", [False, True])
def test_fifty_thousand_rows_fit(broken: bool) -> None:
    run = make_run(10_000, broken=broken)
    assert len(run.rows) > 48_000
    page = outline([run])
    drawn = drawn_data(page)
    assert 1000 < len(drawn["points"]) <= 3000
    assert {point[1] for point in drawn["points"]} == set(range(10))  # every tensor and dtype is drawn


def enormous_algebra() -> Algebra:
    one = odd_algebra().verdict.algebra
    assert one is not None
    comparisons = [
        c.model_copy(update={"detail": "d" * 10**5, "digits": c.digits * 99, "case": {"M": f"m{i}" * 10**4}})
        for i, c in enumerate(one.comparisons * 200)
    ]
    shares = [s.model_copy(update={"site": f"s:{i}" * 10**4, "lines": "l" * 10**5}) for i, s in enumerate(one.shares)]
    dtypes = [s.model_copy(update={"dtype": f"{i} of many"}) for i, s in enumerate(shares * 100)]
    return Algebra(comparisons=tuple(comparisons), shares=(*shares * 20, *dtypes))


def test_enormous_texts_fit() -> None:
    run = make_run(60, broken=True)
    rows = tuple(replace(row, message="m" * 10**5, case_json=json.dumps("y" * 20_000)) for row in run.rows)
    findings = tuple(f.model_copy(update={"detail": "d" * 10**6, "replay": "r" * 10**6}) for f in run.findings)
    verdict = run.verdict.model_copy(
        update={
            "sentence": "s" * 10**6,
            "checks": run.verdict.checks * 200,
            "not_covered": ("n" * 10**5,) * 2000,
            "algebra": enormous_algebra(),
        },
    )
    page = outline([replace(run, rows=rows, findings=findings * 200, verdict=verdict)])
    assert "more finding" in page.text
    assert "more characters" in page.text


def test_the_page_is_a_function_of_the_record() -> None:
    assert render([make_run(40)]) == render([make_run(40)])


def test_no_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        render([])


def test_text_has_enough_contrast() -> None:
    """WCAG 2.2: 4.5 for text, 3 for marks, on the page's own colours in both schemes."""
    style = (Path(figures.__file__).parent / "style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): light-dark\((#\w+, #\w+)\)", style))

    def luminance(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for scheme in (0, 1):
        value = {name: pair.split(", ")[scheme] for name, pair in colours.items()}
        for name in ("ink", "soft", "good", "bad", "k0"):
            assert contrast(value[name], value["paper"]) >= 4.5, (name, scheme)
            assert contrast(value[name], value["card"]) >= 4.5, (name, scheme)
        assert contrast(value["good"], value["good-wash"]) >= 4.5
        assert contrast(value["bad"], value["bad-wash"]) >= 4.5
        assert contrast(value["soft"], value["bad-wash"]) >= 4.5
        for kind in range(len(algebra.KINDS)):  # the text in a bar has the colour of the paper
            assert contrast(value[f"s{kind}"], value["paper"]) >= 4.5, (kind, scheme)
        for name in ("k1", "k2", "k3", "k4", "k5", "k6", "std", "rnd"):
            assert contrast(value[name], value["paper"]) >= 3, (name, scheme)
