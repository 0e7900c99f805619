"""The distribution of paired ratios: every case counts once, on its side of the line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from flashproof.reports.html import render
from flashproof.reports.intervals import band, share_interval
from flashproof.reports.paired import Paired, paired
from flashproof.reports.record import Answer, Exactness, Manifest, Row, Run, Verdict

NO_STANDARD = {"log_ratio": None, "standard_rms": None}
NO_KERNEL = {"log_ratio": None, "nonfinite": 3}


def run_of(*cases: float | dict[str, Any], **changes: Any) -> Run:
    """A run whose survey has these log ratios of `dq`, or rows with these columns instead."""
    usual = {"phase": "survey", "status": "ok", "tensor": "dq", "dtype": "bf16", "elements": 8, "nonfinite": 0,
             "standard_rms": 0.1, "natural_scale": 1.0} | changes  # fmt: skip
    rows = tuple(
        Row(**(usual | {"case_id": str(i)} | (case if isinstance(case, dict) else {"log_ratio": case})))
        for i, case in enumerate(cases)
    )
    answer = Answer(status="", evidence="")
    exactness = Exactness(algebraic=answer, bitwise=answer, accuracy=answer)
    verdict = Verdict(implementation="k", verdict="pass", sentence="", exactness=exactness)
    manifest = Manifest(
        implementation="k", profile="", seed=0, created="", command="", device="", versions={}, machine={}
    )
    return Run(Path("run"), manifest, verdict, (), rows)


def the_one(run: Run) -> Paired:
    (found,) = paired([run])
    return found


def test_cases_are_counted_on_their_side() -> None:
    found = the_one(run_of(-0.7, -0.1, 0.0, 0.0, 0.3))
    assert (found.n, found.closer, found.further) == (5, 2, 1)
    assert found.curve == ((-0.7, 0.2), (-0.1, 0.4), (0.0, 0.6), (0.0, 0.8), (0.3, 1.0))
    assert found.interval == share_interval(2, 5)
    assert found.band == band(5) == pytest.approx(math.sqrt(math.log(40) / 10))


def test_a_better_kernel_has_its_band_above_one_half_and_its_mirror_image_below() -> None:
    logs = [-0.5 + 0.001 * i for i in range(600)]  # to 0.1
    for sign, closer in ((1, 500), (-1, 99)):
        found = the_one(run_of(*(sign * x for x in logs)))
        assert found.closer == closer
        assert (found.closer / found.n - found.band > 0.5) == (sign == 1)
        assert (found.interval[0] > 0.5) == (sign == 1)
        assert (found.interval[1] < 0.5) == (sign == -1)


def test_what_is_not_finite_is_furthest() -> None:
    found = the_one(run_of(0.2, NO_KERNEL, NO_STANDARD, NO_KERNEL | NO_STANDARD))
    assert (found.n, found.closer, found.further) == (4, 1, 2)
    assert found.curve == ((0.0, 0.5), (0.2, 0.75)), "the curve starts above those below, and does not reach 1"


def test_a_thinned_curve_keeps_the_jump_at_the_line() -> None:
    found = the_one(run_of(*(-1 / (i + 1) for i in range(700)), *([0.0] * 200), *(0.01 * (i + 1) for i in range(100))))
    assert len(found.curve) < 90
    assert (-1 / 700, 0.7) in found.curve
    assert (0.0, 0.9) in found.curve


@pytest.mark.parametrize(
    "change", [{"phase": "hunt"}, {"phase": "comparison"}, {"elements": 0}, {"log_ratio": math.nan}, {"tensor": "lse"}]
)
def test_what_is_no_measurement_of_the_survey_does_not_count(change: dict[str, Any]) -> None:
    assert paired([run_of(*[{"log_ratio": -1.0} | change] * 9)]) == []


def test_runs_stand_next_to_each_other() -> None:
    found = paired([run_of(-1.0), run_of(1.0, 2.0), run_of(1.0, tensor="out")])
    assert [(p.tensor, p.run, p.n) for p in found] == [("out", 2, 1), ("dq", 0, 1), ("dq", 1, 2)]


def test_the_table_says_the_share_and_its_interval() -> None:
    page = render([run_of(*([-0.5] * 30), *([0.0] * 6), *([0.5] * 4))])
    table = page.partition('id="ahead"')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    low, high = share_interval(30, 40)
    for cell in ("<td>40</td><td>30</td><td>75 %</td>", f"<td>{100 * low:.0f} % to {100 * high:.0f} %</td>",
                 "<td>6</td><td>4</td>"):  # fmt: skip
        assert cell in table
