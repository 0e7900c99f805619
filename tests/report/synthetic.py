"""Records that nobody measured: usual ones, unusual ones and hostile ones."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    Verdict,
)

TENSORS = ("out", "lse", "dq", "dk", "dv")
REGIMES = ("normal", "outlier", "large", "plateau", "vcancel")
MASKS = ("none", "causal", "causal+window")
HOSTILE = (
    "</script><script>document.title='pwned'</script><!-- <img src=x onerror=alert(2)>{{7*7}}]]>|`\n"
    "\x00\ud800\u2028\"'&"
)


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
