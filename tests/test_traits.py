"""What failing cases have in common is found where it was planted, and not found where chance chose the cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from flashproof.reports.record import Row
from flashproof.verify.budgets import load
from flashproof.verify.case import Case
from flashproof.verify.check import Check
from flashproof.verify.findings import _most_telling, _Suspect
from flashproof.verify.implementation import Implementation
from flashproof.verify.judge import judge
from flashproof.verify.loading import load as load_implementation
from flashproof.verify.masking import drawn_mask, has_empty_rows
from flashproof.verify.profiles import PROFILES
from flashproof.verify.survey import survey
from flashproof.verify.traits import in_common, where

FLASH: Implementation = load_implementation("flash")
CASES = list(survey(FLASH, PROFILES["ci"], seed=3, count=800))
ROWS = [
    Row(case_id=c.id, phase="survey", status="ok", tensor="out", elements=1, nonfinite=0, case_json=c.to_json())
    for c in CASES
]


def said(fails: Callable[[Case], bool], rows: list[Row] = ROWS) -> str:
    wrong = {c.id for c in CASES if fails(c)}
    return in_common([r for r in rows if r.case_id in wrong], rows)


@pytest.mark.parametrize(
    ("fails", "name"),
    [
        (lambda c: c.scale is not None and c.scale <= 0, "scale <= 0"),
        (lambda c: c.scale is not None and c.scale < 0, "scale < 0"),
        (lambda c: c.mask.boolean == "empty-rows", "boolean mask empty-rows"),
        (lambda c: c.mask.bias is not None and c.mask.boolean is None, "a bias and no boolean mask"),
        (lambda c: c.mask.bias is None and has_empty_rows(c), "no bias and a query that sees no key"),
        (lambda c: c.layout == "expanded", "layout expanded"),
        (lambda c: c.D == 40, "D = 40"),
        (lambda c: c.D > 128, "D > 128"),
        (lambda c: c.M > c.N, "M > N"),
        (lambda c: c.N == 0, "N = 0"),
        (lambda c: c.N == 1, "N = 1"),
        (lambda c: c.N <= 1, "N <= 1"),
        (lambda c: c.D == 1, "D = 1"),
        (lambda c: c.HK < c.H and c.dtype == "bf16", "dtype bf16 and grouped heads"),
        (lambda c: c.regime == "plateau", "regime plateau"),
        (lambda c: c.N % 64 != 0 and c.mask.causal, "a causal mask and N not a multiple of 64"),
    ],
)
def test_it_says_where_a_fault_was_planted(fails: Callable[[Case], bool], name: str) -> None:
    n = sum(map(fails, CASES))
    rest = len(CASES) - n
    assert said(fails) == f": in the survey {n} of the {n} cases with {name}, 0 of the {rest} others"


def test_a_fault_that_shows_at_times_is_told_with_its_counts() -> None:
    """One case in three of those with a window, and four others, which no trait explains."""
    draw = Random(0)
    unlucky = {c.id for c in CASES if c.mask.window is not None and draw.random() < 1 / 3}
    unlucky |= {c.id for c in draw.sample([c for c in CASES if c.mask.window is None], 4)}
    windows = sum(c.mask.window is not None for c in CASES)
    told, n, rest = said(lambda c: c.id in unlucky), len(unlucky) - 4, len(CASES) - windows
    assert told == f": in the survey {n} of the {windows} cases with a window, 4 of the {rest} others"


def test_of_what_fails_by_chance_nothing_is_said() -> None:
    draw = Random(1)
    told = 0
    for i in range(100):
        rate = (0.005, 0.02, 0.2, 0.6)[i % 4]
        told += bool(said(lambda c, rate=rate: draw.random() < rate))
    assert told <= 5, "one in twenty"


def test_nothing_is_said_where_nothing_can_be_told() -> None:
    def plateau(c: Case) -> bool:
        return c.regime == "plateau"

    assert said(plateau)
    assert not said(lambda c: c in [c for c in CASES if plateau(c)][:2]), "two have always something in common"
    assert not said(lambda c: True) and not said(lambda c: False)
    assert not said(plateau, [replace(r, phase="hunt") for r in ROWS]), "a hunt's cases are alike because sought"
    for foreign in (None, "", "null", "[]", '{"M": 1}', "/etc/hostname", '{"a": NaN', "\ud800"):
        assert not said(plateau, [replace(r, case_json=foreign) for r in ROWS])


def wrong_for_negative_scales() -> list[Row]:
    return [replace(r, failed="finite", nonfinite=1) if '"scale":-0.2' in (r.case_json or "") else r for r in ROWS]


def test_the_check_says_it() -> None:
    wrong = wrong_for_negative_scales()
    (finite,) = [c for c in judge(wrong, load(), "flash").checks if (c.name, c.tensor) == ("finite", "out")]
    n = sum(r.failed is not None for r in wrong)
    assert finite.status == "fail"
    assert (
        finite.detail
        == f"{n} of 800 cases: in the survey {n} of the {n} cases with scale < 0, 0 of the {800 - n} others"
    )


def test_empty_rows_are_those_whose_keys_are_all_hidden() -> None:
    empty = 0
    for c in CASES[:200]:
        visible, _ = drawn_mask(c).rows(0, c.M, c.M, c.N, torch.device("cpu"))
        seen = visible.expand(c.B, c.H, c.M, c.N).sum(-1)
        assert has_empty_rows(c) == bool((seen == 0).any())
        empty += has_empty_rows(c)
    assert 20 < empty < 180


def test_a_finding_says_it_as_a_clause_of_its_own() -> None:
    (finite,) = judge(wrong_for_negative_scales(), load(), "flash").failed
    said = finite.detail.partition(": in the survey ")[2]
    assert said and where(finite.detail) == f"; in the survey {said}"
    assert where("0 of 3 cases") == ""


def suspect(check: str, tensor: str | None, *cases: int) -> _Suspect:
    return _Suspect(check, tensor, CASES[cases[0]], cases=frozenset(CASES[i] for i in cases))


def test_findings_are_of_different_cases_before_they_are_of_the_same() -> None:
    nan, nan_too = suspect("finite", "out", 1, 2, 3), suspect("finite", "dq", 1, 2, 3)
    wrong, unstable = suspect("bound", "out", 4, 5), suspect("repeat", "dq", 3, 6, 7, 8)
    everywhere = _Suspect("bias", "dv", CASES[0], seen=Check("bias", "dv", False, 1, 0, ""))
    chosen = _most_telling([everywhere, unstable, nan_too, wrong, nan], 4)
    assert [(s.check, s.tensor) for s in chosen] == [
        ("finite", "out"), ("repeat", "dq"), ("bound", "out"), ("bias", "dv"),
    ]  # fmt: skip
    assert _most_telling([unstable, wrong], 1) == [wrong], "the gravest comes first"
    assert _most_telling([], 4) == []
