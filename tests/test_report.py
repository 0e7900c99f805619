"""The reports: whatever a record holds, they say it, escape it, fit their size, and are drawn."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from flashproof.reports import algebra, figures, overview, points, words
from flashproof.reports.html import MAX_BYTES, render
from flashproof.reports.junit import junit
from flashproof.reports.record import (
    Algebra,
    Answer,
    Cell,
    Check,
    Comparison,
    Counts,
    Exactness,
    Finding,
    Git,
    Manifest,
    Mismatch,
    Row,
    Run,
    Share,
    Standing,
    Verdict,
)
from flashproof.reports.summary import github_annotations, summary
from flashproof.reports.templates import SIZE, sized

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Opened = Callable[..., tuple[Page, list[str]]]

TENSORS = ("out", "lse", "dq", "dk", "dv")
REGIMES = ("normal", "outlier", "large", "plateau", "vcancel")
MASKS = ("none", "causal", "causal+window")
HOSTILE = (
    "</script><script>document.title='pwned'</script><!-- <img src=x onerror=alert(2)>{{7*7}}]]>|`\n"
    "\x00\ud800\u2028\"'&"
)


# ---------------------------------------------------------------------------------------- a synthetic record


def make_rows(
    n: int,
    *,
    broken: bool = False,
    tensors: tuple[str, ...] = TENSORS,
    seed: int = 0,
) -> list[Row]:
    """Rows with the shape of real ones: standard worse with the logits, the kernel near the rounded truth;
    a broken kernel is 40 times over its bound in dq, biased in out, not finite in dk, and raises at times.
    """
    draw = random.Random(seed)
    found = []
    for i in range(n):
        dtype = ("fp16", "bf16")[i % 2]
        regime = REGIMES[i // 2 % len(REGIMES)]
        logit = (40 if regime == "large" else 4) * math.exp(draw.gauss(0, 0.5))
        case = {"B": 1, "H": 2, "M": 64, "N": 77, "D": 64, "dtype": dtype, "regime": regime, "seed": i}
        base = Row(
            case_id=f"{i:016x}",
            phase="hunt" if i % 13 == 12 else "survey",
            status="ok",
            seconds=0.1,
            dtype=dtype,
            regime=regime,
            mask=MASKS[i // 10 % 3],
            B=1,
            H=2,
            HK=2,
            M=64,
            N=77,
            D=64,
            scale=0.125,
            layout="bhsd",
            seed=i,
            max_logit=logit,
            case_json=json.dumps(case),
        )
        if broken and i % 29 == 7:
            found.append(replace(base, status="raised", message="RuntimeError: an illegal memory access"))
            continue
        for tensor in tensors:
            scale = {"fp16": 2**-11, "bf16": 2**-8}[dtype] * math.exp(draw.gauss(0, 0.3))
            rounded = 0.3 * scale
            bad = broken and tensor == "dq" and regime == "large"
            missing = broken and tensor == "dk" and i % 50 == 3
            kernel = rounded * 1.1 * math.exp(abs(draw.gauss(0, 0.2))) * (20 if bad else 1)
            standard = 0.0 if regime == "vcancel" else rounded * max(2, logit / 4)
            found.append(
                replace(
                    base,
                    tensor=tensor,
                    elements=8192,
                    nonfinite=3 if missing else 0,
                    failed="finite" if missing else None,
                    kernel_max=math.nan if missing else 4 * kernel,
                    kernel_rms=math.nan if missing else kernel,
                    standard_max=4 * standard,
                    standard_rms=standard,
                    rounded_max=3 * rounded,
                    rounded_rms=rounded,
                    natural_scale=scale,
                    log_ratio=-0.7,
                    bound_ratio=0.2 * math.exp(draw.gauss(0, 0.3)) * (40 if bad else 1),
                    predictor_ratio=math.exp(draw.gauss(0, 0.1)),
                    standard_bias=draw.gauss(0, 0.3),
                    rounded_bias=0.001,
                    kernel_bias=draw.gauss(0, 0.02) - (0.3 if broken and tensor == "out" else 0),
                    kernel_ulp=(2000, 5000, 1192, 0, 0),
                    standard_ulp=(500, 3500, 3000, 1000, 192),
                    rounded_ulp=(1000, 7192, 0, 0, 0),
                    bitwise_standard=0.3,
                    kernel_eighths=tuple(0.8 + 0.05 * ((i + e) % 8) for e in range(8)),
                    standard_eighths=tuple(0.9 + 0.02 * ((3 * i + e) % 8) for e in range(8)),
                    kernel_worst_row=7 * i % 64,
                    standard_worst_row=5 * i % 64,
                ),
            )
    return found


def make_run(n: int = 120, *, broken: bool = False, name: str = "flash", **options: Any) -> Run:
    found = make_rows(n, broken=broken, **options)
    case = {"B": 1, "M": 1, "N": 17, "D": 16, "dtype": "bf16", "regime": "large", "seed": 17}
    findings = (
        (
            Finding(
                check="bound",
                tensor="dq",
                case=case,
                replay="flashproof replay '{\"B\": 1}' flash",
                observed=15.9,
                allowed=1.0,
                detail="15.9 times the bound",
                original_case={**case, "M": 64},
                shrink_steps=9,
                script="findings/001.py",
            ),
            Finding(
                check="finite",
                tensor="dk",
                case=case,
                replay="flashproof replay x",
                observed=math.nan,
                allowed=0.0,
            ),
        )
        if broken
        else ()
    )
    failed = {(finding.check, finding.tensor) for finding in findings}
    checks = tuple(
        Check(
            name=check,
            tensor=tensor,
            n=n,
            detail="0.4 of 1",
            status="fail" if (check, tensor) in failed else "pass",
        )
        for check in ("bound", "finite")
        for tensor in TENSORS
    )
    cells = tuple(
        Cell(
            dtype=dtype,
            tensor=tensor,
            mask=mask,
            regime=regime,
            n=8,
            ratio=0.5,
            low=0.45,
            high=0.6,
            allowed=1.1,
            status="fail" if broken and tensor == "dq" and regime == "large" else "pass",
        )
        for dtype in ("fp16", "bf16")
        for tensor in TENSORS
        for mask in MASKS
        for regime in REGIMES
    )
    answer = Answer(status="pass", evidence="12 cases, 0 mismatches")
    verdict = Verdict(
        implementation=name,
        verdict="fail" if broken else "pass",
        sentence="Exact, as far as this run can tell.",
        exactness=Exactness(
            algebraic=answer, bitwise=Answer(status="different bits", evidence="31 %"), accuracy=answer
        ),
        checks=(*checks, Check(name="window", status="skipped", detail="no window argument")),
        findings=findings,
        cells=cells,
        not_covered=("dropout",),
        counts=Counts(cases=n, survey=n - n // 13, hunt=n // 13),
        seconds=187.3,
    )
    manifest = Manifest(
        implementation=name,
        profile="ci",
        seed=0,
        created="2026-11-20T11:00:00+00:00",
        device="cpu (interpreted)",
        command=f"flashproof verify {name}",
        versions={"python": "3.11.7"},
        machine={"cores": 2},
        git=Git(commit="3f2a9c4", dirty=True),
        conventions={"layout": "bhsd"},
    )
    return Run(Path("run"), manifest, verdict, findings, tuple(found))


MASK = {"causal": True, "window": [7, None], "alignment": "bottom-right", "boolean": None, "key_lengths": False}
SITES = {"flash_forward:P": 0.4, "flash_forward:accumulators": 0.002, "flash_forward:output": 0.59}


def comparison(n: int, status: str = "equal", **values: Any) -> Comparison:
    case = {"B": 1, "H": 2, "M": n, "N": 37, "D": 16, "dtype": "fp16", "regime": "integers", "mask": MASK, "scale": 0.5}
    defaults = {"arithmetic": "rationals", "tiles": (16, 32), "elements": 100 * n}
    return Comparison(case=case, status=status, **(defaults | values))


def attributed(sites: dict[str, float] = SITES, n: int | None = 1) -> tuple[Share, ...]:
    """The shares of two tensors in two dtypes."""
    parts = {"whole": 1.0, "sum of the parts": sum(sites.values()), **sites}
    return tuple(
        Share(dtype=dtype, tensor=tensor, site=site, rms=1e-3 * part**0.5, part=part,
              lines="forward.py:80" if ":" in site else "", n=n)
        for dtype in ("bf16", "fp16") for tensor in ("dq", "out") for site, part in parts.items()
    )  # type: ignore[arg-type]  # fmt: skip


EQUAL = Algebra(
    comparisons=(
        comparison(37),
        comparison(5),
        comparison(12, "refused", detail="no window longer than its sequence", elements=0),
        comparison(37, arithmetic="50, 100 digits", digits=((50, -49.8), (100, -99.9))),
    ),
    shares=attributed(),
)
DIFFERENT = Algebra(
    comparisons=(
        *EQUAL.comparisons[:2],
        *(
            comparison(
                n, "different",
                mismatches=(Mismatch(tensor="dk", count=n, elements=50 * n, where="each off by the factor 1/2; "
                                     f"stored at backward.py:{n}", deviation=0.5),),
            )
            for n in (29, 23)
        ),
        comparison(37, "different", arithmetic="50, 100 digits", digits=((50, -6.1), (100, -6.1)), mismatches=(
            Mismatch(tensor="lse", count=1, elements=74, where="largest difference at [0, 1, 3]", deviation=8e-7),)),
    ),
)  # fmt: skip
UNAVAILABLE = Algebra(comparisons=(comparison(5, "unavailable", detail="no Triton kernel was launched", elements=0),))


def with_algebra(run: Run, found: Algebra, status: str = "equal", **verdict: Any) -> Run:
    """The run, its source run in other arithmetics as well."""
    answer = Answer(status=status, evidence="What the runs in rationals say.")
    exactness = run.verdict.exactness.model_copy(update={"algebraic": answer})
    changes = {"algebra": found, "exactness": exactness} | verdict
    return replace(run, verdict=run.verdict.model_copy(update=changes))


def poor_accumulators() -> Run:
    """A run whose accumulators are found to be too short."""
    run = make_run(40)
    replay = "flashproof attribution flash --dtype bf16"
    detail = "60.0% of its squared error arises in the accumulators (bf16, forward.py:72); allowed 10%"
    finding = Finding(check="accumulators", tensor="out", case={"M": 128, "dtype": "bf16"}, replay=replay,
                      observed=0.6, allowed=0.1, detail=detail)  # fmt: skip
    checks = (*run.verdict.checks, Check(name="accumulators", status="fail", tensor="out", n=2, detail=detail))
    shares = attributed({"flash_forward:P": 0.2, "flash_forward:accumulators": 0.6, "flash_forward:output": 0.2})
    found = Algebra(comparisons=EQUAL.comparisons, shares=shares)
    return replace(with_algebra(run, found, checks=checks, findings=(finding,)), findings=(finding,))


def odd_algebra() -> Run:
    """Numbers and texts that no sound run has."""
    digits = ((50, math.nan), (100, math.inf), (200, -math.inf), (10**6, -1e300))
    where = Mismatch(tensor="dq", count=1, elements=1, where=HOSTILE, deviation=math.inf)
    shares = tuple(
        Share(dtype=dtype, tensor="dv", site=site, rms=math.nan, part=part, lines=HOSTILE)
        for dtype in ("fp16", HOSTILE)
        for site, part in (("a:P", math.nan), ("a:dS", math.inf), ("b:dS", 7.0), (HOSTILE, 0.1), ("c:exp", -1.0))
    )
    found = Algebra(
        comparisons=(
            comparison(1, "different", arithmetic=HOSTILE, detail=HOSTILE, mismatches=(where,), digits=digits),
            Comparison(case={HOSTILE: HOSTILE}, arithmetic="", status="equal"),
        ),
        shares=shares,
    )
    return with_algebra(make_run(20), found, HOSTILE)


def nothing(rows: list[Row], verdict: str = "nothing-measured") -> Run:
    """A run with these rows and an otherwise empty verdict."""
    run = make_run(0)
    answer = Answer(status="skipped", evidence="nothing was measured")
    exactness = Exactness(algebraic=answer, bitwise=answer, accuracy=answer)
    empty = {"checks": (), "cells": (), "not_covered": (), "counts": Counts(), "exactness": exactness}
    return replace(
        run,
        rows=tuple(rows),
        verdict=run.verdict.model_copy(update={**empty, "verdict": verdict}),
    )


def hostile(run: Run) -> Run:
    """The same run with a hostile string wherever a record has text."""
    dirty = [
        replace(
            row,
            regime=HOSTILE,
            mask=HOSTILE,
            message=HOSTILE,
            case_json=json.dumps({"x": HOSTILE}),
            dtype=HOSTILE if i % 7 == 0 else row.dtype,
        )
        for i, row in enumerate(run.rows)
    ]
    text = {
        "detail": HOSTILE,
        "replay": HOSTILE,
        "case": {HOSTILE: HOSTILE},
        "original_case": {HOSTILE: HOSTILE},
    }
    findings = tuple(f.model_copy(update={**text, "check": HOSTILE}) for f in run.findings)
    answer = Answer(status=HOSTILE, evidence=HOSTILE)
    verdict = run.verdict.model_copy(
        update={
            "sentence": HOSTILE,
            "not_covered": (HOSTILE,),
            "findings": findings,
            "exactness": Exactness(algebraic=answer, bitwise=answer, accuracy=answer),
            "checks": tuple(c.model_copy(update={"name": HOSTILE, "detail": HOSTILE}) for c in run.verdict.checks),
            "cells": tuple(c.model_copy(update={"regime": HOSTILE, "mask": HOSTILE}) for c in run.verdict.cells),
        },
    )
    manifest = run.manifest.model_copy(
        update=dict.fromkeys(("implementation", "profile", "command", "device", "created"), HOSTILE)
        | {"versions": {HOSTILE: HOSTILE}, "machine": {HOSTILE: HOSTILE}},
    )
    return replace(run, rows=tuple(dirty), findings=findings, verdict=verdict, manifest=manifest)


def nulls(n: int = 20) -> list[Row]:
    return [Row(case_id=str(i), phase="survey", status="ok", tensor="out", dtype="bf16") for i in range(n)]


def raised(n: int = 20) -> list[Row]:
    return [
        Row(case_id=str(i), phase="survey", status="raised", message=f"boom {i % 3}", dtype="bf16") for i in range(n)
    ]


UNUSUAL = {
    "nothing measured": lambda: [nothing([])],
    "only raised": lambda: [nothing(raised(), "fail")],
    "all NULL": lambda: [nothing(nulls(), "pass")],
    "no dtype": lambda: [nothing([Row(case_id="a", phase="survey", status="ok", tensor="out")])],
    "no places": lambda: [replace(r := make_run(20), rows=tuple(without_places(x) for x in r.rows))],
    "no gradients": lambda: [make_run(40, tensors=("out", "lse"))],
    "one case": lambda: [make_run(1)],
    "hunt only": lambda: [replace(r := make_run(20), rows=tuple(replace(x, phase="hunt") for x in r.rows))],
    "all zero": lambda: [with_errors(make_run(20), 0.0)],
    "all NaN": lambda: [with_errors(make_run(20), math.nan)],
    "all infinite": lambda: [with_errors(make_run(20), math.inf)],
    "hostile": lambda: [hostile(make_run(60, broken=True))],
    "interrupted": lambda: [replace(make_run(20), judged=False)],
    "two runs": lambda: [make_run(60), make_run(60, broken=True, name="mine.py:attention")],
    "six runs": lambda: [make_run(20)] * 6,
    "equal algebra": lambda: [with_algebra(make_run(20), EQUAL)],
    "different algebra": lambda: [with_algebra(make_run(20), DIFFERENT, "different")],
    "no algebra": lambda: [with_algebra(make_run(20), UNAVAILABLE, "not available")],
    "poor accumulators": lambda: [poor_accumulators()],
    "odd algebra": lambda: [odd_algebra()],
    "four algebras": lambda: [
        with_algebra(make_run(20), EQUAL),
        with_algebra(make_run(20), DIFFERENT, "different"),
        make_run(20),
        poor_accumulators(),
    ],
}


def without_places(row: Row) -> Row:
    """As an earlier version recorded it."""
    return replace(row, kernel_eighths=None, standard_eighths=None, kernel_worst_row=None, standard_worst_row=None)


def with_errors(run: Run, value: float) -> Run:
    names = ("kernel_rms", "standard_rms", "rounded_rms", "max_logit", "bound_ratio", "predictor_ratio")
    biases = ("kernel_bias", "standard_bias", "rounded_bias")
    return replace(run, rows=tuple(replace(row, **dict.fromkeys(names + biases, value)) for row in run.rows))


# ---------------------------------------------------------------------------------------------- reading pages


class Outline(HTMLParser):
    """Headings, text outside scripts and styles, scripts, ids, and unclosed elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.text = ""
        self.scripts: list[tuple[str | None, str]] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "script":
            self.scripts.append((values.get("type"), ""))
        self.text += " " if tag in ("td", "th", "dt", "dd") else ""
        self.ids += [i for i in (values.get("id"),) if i]
        self.sources += [str(values[name]) for name in ("src", "href", "action", "data") if name in values]
        if tag not in ("meta", "link", "img", "br", "wbr", "path", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "circle", "rect"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] != "style":
            self.text += data


def outline(runs: list[Run]) -> Outline:
    page = render(runs)
    assert len(page.encode()) <= MAX_BYTES
    return Outline(page)


def drawn_data(page: Outline) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (text,) = (text for kind, text in page.scripts if kind == "application/json")
    value: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return value


# ------------------------------------------------------------------------------------------------------ HTML


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


# ------------------------------------------------------------------------------------- numbers behind figures


def test_the_hunt_is_in_no_distribution() -> None:
    rows = [replace(row, bound_ratio=0.1) for row in make_rows(26)]
    rows = [replace(row, bound_ratio=5.0) if row.phase == "hunt" else row for row in rows]
    groups = figures.group([replace(make_run(1), rows=tuple(rows))])
    for found in figures.distributions(groups, figures.bound_ratio):
        assert found.quantiles == (0.1,) * 7
        assert found.n == 12
        assert found.worst == 5.0


def test_a_curve_counts_what_is_zero_or_not_finite() -> None:
    values = [0.0, 0.0, 1.0, 2.0, math.nan]
    rows = [replace(make_rows(1)[0], case_id=str(i), kernel_rms=x, natural_scale=1.0) for i, x in enumerate(values)]
    groups = figures.group([replace(make_run(1), rows=tuple(rows))])
    found = figures.distributions(groups, figures.error_in_scale)[0]
    assert (found.n, found.zeros, found.nonfinite) == (5, 2, 1)
    assert found.curve == ((0.0, 0.2), (0.0, 0.4), (1.0, 0.6), (2.0, 0.8))


def test_two_runs_of_the_same_cases_share_their_standard() -> None:
    groups = figures.group([make_run(10), make_run(10)])
    by_series = [len(groups.survey[index, ("out", "fp16")]) for index in range(4)]
    assert by_series == [5, 5, 5, 5]


def test_ulp_shares_are_of_all_elements() -> None:
    found = figures.ulps(figures.group([make_run(10)]))
    assert all(math.isclose(sum(u.shares), 1) for u in found)
    kernel = next(u for u in found if u.series == 0)
    assert kernel.elements == 5 * 8192
    assert kernel.same_bits == pytest.approx(0.3)


def test_quantiles() -> None:
    assert [figures.quantile([1.0, 2.0, 4.0], p) for p in (0, 0.25, 0.5, 0.75, 1)] == [1, 1.5, 2, 3, 4]
    assert figures.quantile([3.0], 0.95) == 3.0


def test_points_keep_failures_and_the_worst() -> None:
    rows = make_rows(2000)
    rows[777] = replace(rows[777], bound_ratio=3.0)
    rows[4242] = replace(rows[4242], kernel_rms=1e6)
    choice = points.choose([replace(make_run(1), rows=tuple(rows))], 500, 10**9)
    assert len(choice.points) == 500
    assert choice.points[0].row == rows[777]
    assert rows[4242] in [point.row for point in choice.points]
    regimes = {(p.row.regime, p.row.tensor, p.row.dtype) for p in choice.points}
    assert len(regimes) == len(REGIMES) * len(TENSORS) * 2


def test_failures_leave_room_for_the_others() -> None:
    rows = [replace(row, bound_ratio=9.0) if i % 2 else row for i, row in enumerate(make_rows(2000))]
    choice = points.choose([replace(make_run(1), rows=tuple(rows))], 500, 10**9)
    failing = sum(point.failing for point in choice.points)
    assert choice.failing == 5000
    assert 300 <= failing < 450


# ----------------------------------------------------------------------------------------------- the overview


def squares(run: Run) -> dict[tuple[str, str], str]:
    table = overview.grid(run)
    return {
        (tensor, dtype): square.status
        for tensor, found in table.rows
        for dtype, square in zip(table.columns, found, strict=True)
        if square
    }


def test_the_grid_locates_failures() -> None:
    run = make_run(broken=True)
    found = squares(run)
    assert found["dq", "bf16"] == "fail"
    assert found["dv", "bf16"] == found["lse", "fp16"] == "pass"


def test_the_grid_shows_a_failed_check_that_names_no_dtype() -> None:
    run = make_run(20)
    checks = (Check(name="x", status="fail", tensor="dv"),)
    found = squares(replace(run, verdict=run.verdict.model_copy(update={"checks": checks})))
    assert found["dv", "fp16"] == found["dv", "bf16"] == "fail"
    assert found["dk", "fp16"] == "pass"


def test_a_wrong_algebra_is_wrong_in_every_dtype() -> None:
    finding = Finding(check="algebra", tensor="dk", case={"dtype": "fp16"}, replay="", observed=1.0, allowed=0.0)
    found = squares(replace(make_run(20), findings=(finding,)))
    assert found["dk", "fp16"] == found["dk", "bf16"] == "fail"
    assert found["dv", "fp16"] == "pass"


def test_the_grid_never_passes_what_was_not_measured_or_judged() -> None:
    assert squares(make_run(20, tensors=("out",)))["dq", "fp16"] == "not measured"
    assert set(squares(replace(make_run(20), judged=False)).values()) == {"not judged"}
    assert set(squares(nothing(raised())).values()) == {"not measured"}


def test_the_heat_map_begins_with_what_failed() -> None:
    table = overview.heat_map(make_run(broken=True).verdict.cells, 4)
    assert [regime for regime, _, _ in table.rows] == ["large"] * 3 + ["vcancel"]
    assert table.left_out == 11
    assert len(table.columns) == 10


def test_coverage_counts_cases_not_tensors() -> None:
    table = overview.coverage(make_run(120))
    assert sum(survey for _, _, found in table.rows for survey, _ in found) == 120 - 9
    assert sum(hunt for _, _, found in table.rows for _, hunt in found) == 9
    for margin in (table.by_regime, table.by_mask):
        assert sum(survey for _, found in margin for survey, _ in found) == 120 - 9
        assert sum(hunt for _, found in margin for _, hunt in found) == 9


# ------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (math.nan, "NaN"),
        (-math.inf, "−∞"),
        (0.5, "0.5"),
        (-0.25, "−0.25"),
        (12.345, "12.3"),
        (1.2345e-7, "1.23e-07"),
        (12345.0, "12\u202f345"),
        (0.9996, "1"),
        (100.0, "100"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.507, "0.51"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (0.0042, "0.004"),
        (1e-9, "<0.001"),
        (0.0996, "0.10"),
        (None, "–"),
    ],
)
def test_ratios(value: float | None, text: str) -> None:
    assert words.ratio(value) == text


@pytest.mark.parametrize(("n", "text"), [(1, "1 byte"), (640, "640 bytes"), (48_300, "48 kB"), (1_107_550, "1.1 MB")])
def test_sizes(n: int, text: str) -> None:
    assert words.size(n) == text


@pytest.mark.parametrize("name", ["one case", "hostile", "two runs"])
def test_a_page_tells_its_own_size(name: str) -> None:
    page = render(UNUSUAL[name]())
    (told,) = re.findall(r'<span id="size">(.*?)</span>', page)
    assert told == f"{words.size(len(page.encode()))} ({words.plural(len(page.encode()), 'byte')})"


def test_a_size_counts_its_own_figures() -> None:
    """Where they make the page longer by a digit."""
    for n in (*range(9_960, 10_000), *range(99_960, 100_000)):
        page = sized("x" * n + SIZE)
        assert words.plural(len(page.encode()), "byte") in page
    with pytest.raises(ValueError, match="no place"):
        sized("x")


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("One clause.", 5, ("One clause.", "")),
        ("One; two; three.", 8, ("One; two", "three.")),
        ("One; two; three.", 16, ("One; two; three.", "")),
        ("Long as it is; two; three.", 4, ("Long as it is", "two; three.")),
    ],
)
def test_a_text_is_parted_between_clauses(text: str, limit: int, parts: tuple[str, str]) -> None:
    assert words.parted(text, limit) == parts
    assert "; ".join(filter(None, parts)) == text


def test_a_long_answer_unfolds_and_loses_nothing() -> None:
    clauses = [f"clause {i} of twenty, with so many words that they fill the card" for i in range(20)]
    answer = Answer(status="pass", evidence="; ".join(clauses))
    run = make_run(20)
    exactness = run.verdict.exactness.model_copy(update={"accuracy": answer})
    page = render([replace(run, verdict=run.verdict.model_copy(update={"exactness": exactness}))])
    card = page.partition("<dt>Accuracy")[2].partition("</div>")[0]
    shown, _, folded = card.partition("<details>")
    assert [c in shown for c in clauses] == [True] * 4 + [False] * 16
    assert all(c in folded for c in clauses[4:])
    assert "<details>" not in page.partition("<dt>Bitwise")[2].partition("</div>")[0]


def test_replay_is_quoted_for_a_shell() -> None:
    import shlex

    row = replace(make_rows(1)[0], case_json='{"x": "it\'s $HOME"}')
    assert shlex.split(words.replay(row, "my file.py:f")) == [
        "flashproof",
        "replay",
        row.case_json,
        "my file.py:f",
    ]


# ------------------------------------------------------------------------------------------------------ JUnit


def test_junit_has_a_case_per_check_and_tensor() -> None:
    suite = ET.fromstring(junit(make_run(broken=True))).find("testsuite")
    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "11",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
    }
    (failed,) = (case for case in suite.iter("testcase") if case.get("name") == "bound[dq]")
    failure = failed.find("failure")
    assert failure is not None
    assert "15.9 observed, 1 allowed" in str(failure.get("message"))
    assert "flashproof replay '{\"B\": 1}' flash" in str(failure.text)


@pytest.mark.parametrize("name", UNUSUAL)
def test_junit_is_well_formed(name: str) -> None:
    for run in UNUSUAL[name]():
        root = ET.fromstring(junit(run))
        assert len(list(root.iter("testcase"))) == int(root.attrib["tests"])


def test_junit_is_not_green_when_nothing_was_measured() -> None:
    assert ET.fromstring(junit(nothing([]))).attrib["errors"] == "1"
    assert ET.fromstring(junit(replace(make_run(20), judged=False))).attrib["errors"] == "1"


def test_junit_keeps_a_finding_that_belongs_to_no_check() -> None:
    run = make_run(20, broken=True)
    orphan = replace(run, verdict=run.verdict.model_copy(update={"checks": ()}))
    assert ET.fromstring(junit(orphan)).attrib["failures"] == "2"


# ---------------------------------------------------------------------------------------------------- summary


def test_the_summary_begins_with_the_verdict() -> None:
    text = summary(make_run(broken=True))
    assert text.startswith("## ❌ flashproof flash: fail\n\nExact, as far as this run can tell.")
    assert "| bitwise | ➖ different bits | 31 % |" in text
    assert text.index("**finite**") < text.index("**bound**")  # NaN is worse than any multiple
    assert "```sh\nflashproof replay '{\"B\": 1}' flash\n```" in text


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_summary_stays_markdown(name: str) -> None:
    for run in UNUSUAL[name]():
        text = summary(run)
        assert len(text.encode(errors="replace")) < 2**20
        outside = re.sub(r"(?ms)^(`{3,})sh$.*?^\1$", "", text)
        assert "<script" not in outside
        for line in outside.splitlines():
            if line.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", line)) in (4, 6)


def test_a_fence_cannot_be_closed_from_inside() -> None:
    run = make_run(20, broken=True)
    finding = run.findings[0].model_copy(update={"replay": "```\n# heading\n````"})
    assert "`````sh\n```\n# heading\n````\n`````" in summary(replace(run, findings=(finding,)))


def test_annotations_are_few_and_worst_first() -> None:
    run = make_run(20, broken=True)
    many = tuple(run.findings[0].model_copy(update={"observed": float(i), "detail": "a\nb: 5 %"}) for i in range(2, 30))
    lines = github_annotations(replace(run, findings=many))
    assert len(lines) == 9
    assert all(re.fullmatch(r"::error title=[^:,\n]*::[^\n]*", line) for line in lines)
    assert "29 observed" in lines[0]
    assert "a%0Ab: 5 %25" in lines[0]
    assert "21 more failures" in lines[-1]  # 20 findings, and the check that no finding is about
    assert github_annotations(make_run(20)) == []
    assert len(github_annotations(nothing([]))) == 1


def test_kinds_of_input_come_worst_first_with_their_intervals() -> None:
    def standing(regime: str, tensor: Any, ratio: float, status: Any, *, predicted: bool = True) -> Standing:
        return Standing(
            regime=regime, tensor=tensor, n=8, ratio=ratio, low=0.9 * ratio, high=1.1 * ratio, status=status, needs=5,
            predicted=predicted,
        )  # fmt: skip

    found = (
        standing("normal", "out", 0.6, "not worse"), standing("normal", "dq", 0.7, "not worse"),
        standing("offset", "out", 1.0, "not worse"), standing("offset", "dq", 3.0, "worse"),
        standing("late-spike", "dq", 1.4, "open"), standing("sink", "dq", 2.0, "worse", predicted=False),
    )  # fmt: skip
    kinds = overview.kinds(found)
    assert kinds.columns == ["out", "dq"]
    assert [kind for kind, _ in kinds.rows] == ["offset", "sink", "late-spike", "normal"]
    assert kinds.rows[2][1] == [None, found[4]]
    run = make_run()
    page = render([replace(run, verdict=run.verdict.model_copy(update={"standings": found}))])
    table = page.partition('class="heatmap kinds"')[2].partition("</table>")[0]
    cells = [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.findall(r"<td.*?</td>", table)]
    assert cells == [
        "1.00 0.90–1.10", "3.00 ✕ ○ 2.70–3.30", "·", "2.00 ✕ 1.80–2.20", "·", "1.40 ? 1.26–1.54", "0.60 0.54–0.66",
        "0.70 0.63–0.77",
    ]  # fmt: skip
    assert 'title="8 cases; 5 tell it from 1.5"' in table
    assert "heatmap kinds" not in render([run])


# ---------------------------------------------------------------------------------------------- in a browser

MARKS = """() => Object.fromEntries([...document.querySelectorAll(".drawing")].map((e) => [e.id,
  e.querySelectorAll(["line", "dot", "rule", "bar", "rect"].map((m) => `[aria-label=${m}] > *`).join()).length]))"""


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn(opened: Opened, width: int, scheme: str) -> None:
    runs = [with_algebra(make_run(broken=True, name="my/kernels.py:attention"), EQUAL)]
    view = {"width": width, "height": 900}
    page, trouble = opened(render(runs), viewport=view, color_scheme=scheme)
    marks = page.evaluate(MARKS)
    known = ("ecdf", "scatter", "ulp", "bias", "cells", "bound", "predictor", "digits", "sites", "profiles")
    known += ("worst-rows", "worst-tiles", "ahead")
    assert set(marks) == {f"{name}-drawing" for name in known}
    assert all(count > 3 for count in marks.values()), marks
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_audit_is_clean(opened: Opened, audited: Callable[[Page], list[str]], scheme: str) -> None:
    runs = [with_algebra(make_run(broken=True), EQUAL), with_algebra(make_run(20), DIFFERENT, "different")]
    page, trouble = opened(render(runs), color_scheme=scheme)
    assert audited(page) == []
    assert trouble == []
    page.evaluate("""() => { document.querySelector("#findings h3").style.color = "rgb(128 128 128 / 0.5)";
                             document.querySelector("#findings .copy").textContent = ""; }""")
    assert {line.split(":")[0] for line in audited(page)} == {"color-contrast", "button-name"}  # it can fail


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_records_are_drawn_without_complaint(opened: Opened, name: str) -> None:
    page, trouble = opened(render(UNUSUAL[name]()), viewport={"width": 400, "height": 800})
    assert all(count > 0 for count in page.evaluate(MARKS).values())
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.title() != "pwned"
    assert trouble == []


def test_labels_of_small_plots_stay_inside(opened: Opened) -> None:
    run = with_algebra(make_run(), EQUAL)
    for width in (1400, 700, 400):
        page, _ = opened(render([run]), viewport={"width": width, "height": 900})
        outside = page.evaluate(
            """() => [...document.querySelectorAll(".drawing text")].filter((e) => {
              const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth; }).length""",
        )
        assert outside == 0


BARS = """() => [...document.querySelectorAll("#sites-drawing [aria-label=rect] > *")].map((e) => {
  const r = e.getBoundingClientRect(); return [r.left, r.right, Math.round(r.top), getComputedStyle(e).fill]; })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_are_as_long_as_their_parts(opened: Opened, scheme: str) -> None:
    page, trouble = opened(render([poor_accumulators()]), color_scheme=scheme)
    drawn = page.evaluate(BARS)
    assert len(drawn) == 12  # two tensors in two dtypes, three kinds each
    (p, accumulators, output) = drawn[:3]
    assert p[2] == accumulators[2] == output[2]
    assert (accumulators[1] - accumulators[0]) / (p[1] - p[0]) == pytest.approx(3, rel=0.03)
    assert p[1] < accumulators[0] < p[1] + 3
    fills = [bar[3] for bar in drawn]
    assert fills[1] == fills[4] != fills[7] == fills[10]  # the tensor whose check failed has a colour of its own
    text = page.locator("#sites-drawing").inner_text()
    assert "✕ accumulators 60 %" in text
    assert text.count("100 %") == 5  # the axis, and every total
    assert trouble == []


def test_digits_follow_their_line_or_leave_it(opened: Opened) -> None:
    runs = [with_algebra(make_run(20), EQUAL), with_algebra(make_run(20), DIFFERENT, "different")]
    page, trouble = opened(render(runs))
    sound, crossed = page.evaluate(
        """() => [...document.querySelectorAll("#digits-drawing [aria-label=dot]")].map((g) => [...g.children].map(
          (e) => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }))""",
    )
    (x, y), (further, lower) = sound
    assert further > x
    assert lower > y + 40
    assert [crossed[0][0], crossed[1][0]] == pytest.approx([x, further], abs=1)
    assert crossed[0][1] == pytest.approx(crossed[1][1], abs=1)
    assert crossed[0][1] < y - 40
    assert trouble == []


CELLS_TEXT = """() => [...document.querySelectorAll("#cells-drawing text")].map((e) => e.textContent)"""


def with_cells(low: float, high: float, allowed: tuple[float, ...]) -> Run:
    """A run with two cells, their ratios at the ends of the axis."""
    run = make_run(20)
    cells = tuple(
        cell.model_copy(update={"ratio": x, "low": x, "high": x, "allowed": allowed[i % len(allowed)]})
        for i, (cell, x) in enumerate(zip(run.verdict.cells, (low, high), strict=False))
    )
    return replace(run, verdict=run.verdict.model_copy(update={"cells": cells}))


@pytest.mark.parametrize(
    ("low", "high", "allowed", "label"),
    [(0.63, 1.28, (1.1,), "1.1 allowed"), (0.97, 1.02, (1.1,), "1.1 allowed"), (0.02, 0.9, (1.1, 0.5), "allowed"),
     (1.3, 40.0, (1.1,), "1.1 allowed")],
)  # fmt: skip
@pytest.mark.parametrize("width", [1400, 400])
def test_the_axis_of_the_cells_can_be_read(
    opened: Opened, low: float, high: float, allowed: tuple[float, ...], label: str, width: int
) -> None:
    page, trouble = opened(render([with_cells(low, high, allowed)]), viewport={"width": width, "height": 900})
    texts = page.evaluate(CELLS_TEXT)
    assert texts.count(label) == 1
    assert 3 <= sum(bool(re.fullmatch(r"[\d.]+|10[⁰¹²³⁴-⁹⁻]+", text)) for text in texts) <= 10
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert trouble == []


def test_buttons_and_points_copy_replay_commands(opened: Opened) -> None:
    page, trouble = opened(render([make_run(broken=True)]))
    page.locator("#findings .copy").first.click()
    page.locator("#announce", has_text="Copied: flashproof replay").wait_for(state="attached")
    plot = page.locator("#scatter-drawing svg").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.down()
    page.mouse.up()
    page.locator("#announce", has_text='replay \'{"B": 1, "H": 2').wait_for(state="attached")
    assert "click to copy" in page.locator("#scatter-drawing [aria-label=tip]").first.text_content()
    assert trouble == []


def test_the_scatter_plot_can_be_drawn_against_sizes_and_of_one_regime(opened: Opened) -> None:
    page, trouble = opened(render([make_run(40)]))
    count = "() => document.querySelectorAll('#scatter-drawing [aria-label=dot] > *').length"
    ticks = "() => document.querySelector('#scatter-drawing svg').textContent"
    all_of_them, against_logits = page.evaluate(count), page.evaluate(ticks)
    page.select_option("#scatter-axis", label="number of keys")
    assert page.locator("#scatter-name").inner_text() == "Number of keys"
    assert page.evaluate(ticks) != against_logits
    assert page.evaluate(count) == all_of_them
    regimes = page.locator("#scatter-regime option").all_inner_texts()
    counts = []
    for regime in regimes[1:]:
        page.select_option("#scatter-regime", label=regime)
        counts.append(page.evaluate(count))
    assert len(counts) > 1
    assert all(counts)
    assert sum(counts) == all_of_them
    assert trouble == []


@pytest.mark.parametrize("name", ["six runs", "nothing measured"])
def test_the_footer_tells_how_long_the_page_took(opened: Opened, name: str) -> None:
    page, trouble = opened(render(UNUSUAL[name]()))
    footer = page.locator("footer").inner_text()
    print(footer)  # noqa: T201  (a duration is shown, never asserted: it is the machine's)
    (size,) = re.findall(r"\(([\d\s]+) bytes\), loaded in \d+\.\d\d\ss", footer)
    assert 100_000 < int("".join(size.split())) <= MAX_BYTES
    assert ("figures drawn after" in footer) == (name == "six runs")
    assert trouble == []


def test_tables_need_no_script(opened: Opened) -> None:
    page, trouble = opened(render([with_algebra(make_run(), EQUAL)]), java_script_enabled=False)
    assert page.locator("table").count() >= 10
    page.locator("#ecdf summary").click()
    assert page.locator("#ecdf table").is_visible()
    page.locator("#sites summary").click()
    assert page.locator("#sites table").is_visible()
    assert page.locator("#exact table").first.is_visible()
    assert page.locator("noscript .warning").is_visible()
    assert re.search(r"This page: .*bytes\)\.$", page.locator("footer").inner_text())
    assert not page.locator(".controls").first.is_visible()
    assert not page.locator(".copy").first.is_visible()
    assert trouble == []
