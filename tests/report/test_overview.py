"""The overview: dtypes by checks, regimes by tensors, what was covered."""

from __future__ import annotations

from dataclasses import replace

from flashproof.reports import overview
from flashproof.reports.record import Check, Finding, Run

from .synthetic import make_run, nothing, raised


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
