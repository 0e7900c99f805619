"""Where in a tensor an error sits: it is measured where it was planted, and the figures show it there."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flashproof.reports import figures, positions
from flashproof.reports.html import render
from flashproof.reports.record import Answer, Exactness, Manifest, Row, Run, Verdict
from flashproof.verify.case import Case
from flashproof.verify.evaluate import evaluate
from flashproof.verify.positions import along_rows
from flashproof.verify.worker import prepare

PLACES = ("kernel_eighths", "standard_eighths", "kernel_worst_row", "standard_worst_row")
CASE = Case(B=1, H=2, HK=1, M=20, N=33, D=16, dtype="bf16", regime="normal", seed=3)


def planted(rows: int, where: slice, size: float = 1.0, shape: tuple[int, ...] = (2, 3, 0, 4)) -> dict[str, Any]:
    """What is recorded of zeros that are 0.01 off, and by `size` more `where`."""
    truth = torch.zeros(*(rows if n == 0 else n for n in shape), dtype=torch.float64)
    value = truth.float() + 0.01
    value[:, :, where] += size
    return along_rows("kernel", value, truth)


# -- what is measured --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (2, 3, 0)])
def test_an_error_is_in_its_eighth(shape: tuple[int, ...]) -> None:
    even = planted(64, slice(0, 0), shape=shape)
    assert even["kernel_eighths"] == pytest.approx((1.0,) * 8)
    last = planted(64, slice(60, 62), shape=shape)
    assert last["kernel_worst_row"] == 60
    *others, tail = last["kernel_eighths"]
    assert tail == pytest.approx(math.sqrt(8), rel=0.01)
    assert max(others) < 0.1


@pytest.mark.parametrize("rows", [8, 9, 20, 33, 130])
def test_eighths_are_all_rows_once(rows: int) -> None:
    """The squares of the eighths, weighted by their rows, are the square of the whole; ends are in the end ones."""
    torch.manual_seed(rows)
    error = torch.randn(2, 3, rows, 5, dtype=torch.float64)
    found = along_rows("kernel", error, torch.zeros_like(error))["kernel_eighths"]
    sizes = [sum(8 * i // rows == e for i in range(rows)) for e in range(8)]
    assert sum(n * x**2 for n, x in zip(sizes, found, strict=True)) / rows == pytest.approx(1, rel=0.01)
    for row in range(rows):
        shares = planted(rows, slice(row, row + 1))["kernel_eighths"]
        assert max(range(8), key=lambda e: shares[e]) == 8 * row // rows


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    truth = torch.zeros(1, 1, 16, 4, dtype=torch.float64)
    assert along_rows("kernel", truth.float(), truth) == {}
    assert along_rows("kernel", truth[:, :, :0].float(), truth[:, :, :0]) == {}
    broken = truth.float() + 1
    broken[0, 0, 3, 1] = torch.nan
    assert along_rows("kernel", broken, truth) == {}
    assert along_rows("standard", torch.ones(1, 1, 7, 4), truth[:, :, :7]) == {"standard_worst_row": 0}


def test_a_row_that_sees_no_key_has_no_error() -> None:
    truth = torch.zeros(1, 1, 16, dtype=torch.float64)
    truth[0, 0, 2] = -torch.inf
    value = truth.float()
    value[0, 0, 9] = 0.5
    assert along_rows("kernel", value, truth)["kernel_worst_row"] == 9


def test_the_survey_alone_records_places() -> None:
    flash = prepare("flash", "cpu")
    rows = {phase: evaluate(CASE, flash, phase, thorough=False).rows for phase in ("survey", "hunt")}
    for r in rows["survey"]:
        for side in ("kernel", "standard"):
            eighths, worst = getattr(r, f"{side}_eighths"), getattr(r, f"{side}_worst_row")
            assert len(eighths) == 8
            assert 0 <= worst < (CASE.N if r.tensor in ("dk", "dv") else CASE.M)
    assert [{name: getattr(r, name) for name in PLACES} for r in rows["hunt"]] == [dict.fromkeys(PLACES)] * 5


# -- what is drawn -----------------------------------------------------------------------------------------------------


EVEN = {f"{side}_eighths": (0.9,) * 4 + (1.09,) * 4 for side in ("kernel", "standard")}


def run_of(tensor: str = "dq", **changes: Any) -> Run:
    """Twelve cases of one tensor; standard attention's largest errors wander."""
    answer = Answer(status="", evidence="")
    base = Row(case_id="", phase="survey", status="ok", tensor=tensor, dtype="bf16", M=64, N=77, kernel_worst_row=0)
    rows = tuple(replace(base, case_id=str(i), standard_worst_row=5 * i, **(EVEN | changes)) for i in range(12))
    verdict = Verdict(implementation="k", verdict="pass", sentence="",
                      exactness=Exactness(algebraic=answer, bitwise=answer, accuracy=answer))  # fmt: skip
    manifest = Manifest(
        implementation="k", profile="", seed=0, created="", command="", device="", versions={}, machine={}
    )
    return Run(Path("run"), manifest, verdict, (), rows)


def drawn(run: Run) -> figures.Groups:
    return figures.group([run])


def test_a_fault_of_the_last_rows_lifts_the_kernels_right_end() -> None:
    run = run_of(**planted(64, slice(60, 64)))
    kernel, usual = positions.profiles(drawn(run))
    assert kernel.quartiles[7] == pytest.approx((2.82,) * 3, abs=0.02)
    assert max(max(place) for place in kernel.quartiles[:7]) < 0.1
    assert max(max(place) for place in usual.quartiles) < 1.1
    worst, other = positions.worst_rows(drawn(run))
    assert worst.shares == (0,) * 7 + (1,)
    assert max(other.shares) < 0.2
    assert worst.rows == pytest.approx((1 / 8,) * 8)
    table = render([run]).partition('id="profiles"')[2].partition("</table>")[0]
    assert table.count("<td>2.8") == 1


def test_quartiles_are_over_cases() -> None:
    run = run_of()
    rows = tuple(replace(r, kernel_eighths=(float(i), *(1.0,) * 7)) for i, r in enumerate(run.rows[:5]))
    kernel, _ = positions.profiles(drawn(replace(run, rows=rows)))
    assert (kernel.n, kernel.quartiles[0], kernel.quartiles[1]) == (5, (1, 2, 3), (1, 1, 1))


@pytest.mark.parametrize(("row", "place"), [(32, 0), (35, 0), (36, 1), (63, 7), (95, 7)])
def test_a_place_in_a_tile_is_the_same_in_all_tiles_but_the_first(row: int, place: int) -> None:
    kernel = positions.worst_in_tiles(drawn(run_of(kernel_worst_row=row, M=100)))[0]
    assert kernel.shares == tuple(float(p == place) for p in range(8))
    held = [sum(i % 32 // 4 == p for i in range(32, 100)) / 68 for p in range(8)]
    assert kernel.rows == pytest.approx(held)


@pytest.mark.parametrize(("row", "rows"), [(31, 100), (0, 64), (40, 63)])
def test_the_first_tile_and_tensors_of_one_tell_nothing_of_tiles(row: int, rows: int) -> None:
    found = positions.worst_in_tiles(drawn(run_of(kernel_worst_row=row, M=rows)))
    assert [f for f in found if f.series == 0] == []


@pytest.mark.parametrize(("tensor", "place"), [("dv", 7), ("dk", 7), ("out", 8)])
def test_rows_of_gradients_by_keys_are_keys(tensor: str, place: int) -> None:
    """Row 70 of 77 keys is in the last eighth; there are only 64 queries, so in `out` it is nowhere."""
    kernel = positions.worst_rows(drawn(run_of(tensor, kernel_worst_row=70)))[0]
    assert kernel.shares == tuple(float(p == place) for p in range(8))


def test_the_hunt_and_earlier_records_have_no_place() -> None:
    run = run_of()
    hunted = [replace(r, phase="hunt") for r in run.rows]
    for rows in (hunted, [replace(r, **dict.fromkeys(PLACES)) for r in run.rows]):
        groups = drawn(replace(run, rows=tuple(rows)))
        assert (positions.profiles(groups), positions.worst_rows(groups), positions.worst_in_tiles(groups)) == ([],) * 3


@pytest.mark.parametrize("damaged", [(1.0,) * 7, (math.nan,) * 8])
def test_a_damaged_profile_is_left_out(damaged: tuple[float, ...]) -> None:
    run = run_of()
    rows = (replace(run.rows[0], kernel_eighths=damaged), *run.rows[1:])
    kernel, usual = positions.profiles(drawn(replace(run, rows=rows)))
    assert (kernel.n, usual.n) == (11, 12)
