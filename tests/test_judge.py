"""Judge the judge: every check of a run turns the verdict on a planted fault, and on nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from flashproof.reports.record import Row
from flashproof.verify import budgets
from flashproof.verify.judge import judge
from flashproof.verify.verdict import verdict_of

BUDGETS = budgets.load()


def rows(n=24, **changes):
    base = Row(
        case_id="", phase="survey", status="ok", dtype="bf16", regime="normal", tensor="out", B=2, elements=1000,
        nonfinite=0,
        log_ratio=-0.5, bound_ratio=0.2, predictor_ratio=1.0, envelope_ratio=0.6, kernel_bias=0.0, rounded_bias=0.0,
        bitwise_standard=0.5,
    )  # fmt: skip
    wobble = [0.02 * math.sin(7 * i) for i in range(n)]
    return [
        replace(base, case_id=f"{i:016x}", **{k: v(wobble[i]) if callable(v) else v for k, v in changes.items()})
        for i in range(n)
    ]


def statuses(measured):
    judgement = judge(measured, BUDGETS, "planted")
    return {(c.name, c.tensor) for c in judgement.failed}, verdict_of(judgement, [], "planted", BUDGETS, measured, 0.0)


def test_a_sound_survey_passes():
    failed, verdict = statuses(rows(log_ratio=lambda w: -0.5 + w))
    assert not failed and verdict.verdict == "pass"


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        (dict(bound_ratio=1.01), "bound"),
        (dict(failed="finite"), "finite"),
        (dict(failed="memory"), "memory"),
        (dict(failed="kept"), "kept"),
        (dict(failed="invariance"), "invariance"),
        (dict(slope=lambda w: 0.5 + w, slope_weight=lambda w: 1.0), "systematic"),
        (dict(failed="repeat"), "repeat"),
        (dict(log_ratio=lambda w: 0.3 + w, envelope_ratio=lambda w: 1.3 + w), "ratio"),
        (dict(envelope_ratio=lambda w: 1.5 + w), "predictor"),
        (dict(kernel_bias=lambda w: -0.4 + w), "bias"),
        (dict(kernel_bias=lambda w: 0.2 + w), "bias"),
    ],
)
def test_each_gate_turns_the_verdict(changes, check):
    failed, verdict = statuses(rows(**changes))
    assert (check, "out") in failed and verdict.verdict == "fail" and check in verdict.sentence


def test_one_bad_case_among_many_fails():
    measured = rows(100)
    measured[57] = replace(measured[57], bound_ratio=1.5)
    assert ("bound", "out") in statuses(measured)[0]


def test_luck_of_the_standard_is_no_fault_of_the_kernel():
    """Worse than standard, but no worse than the flash arrangement's roundings predict: reported, not failed."""
    measured = rows(log_ratio=lambda w: 0.9 + w, envelope_ratio=lambda w: 0.9 + w)
    judgement = judge(measured, BUDGETS, "planted")
    assert not judgement.failed and [c.status for c in judgement.cells] == ["predicted"]


def test_a_fault_of_plain_cases_does_not_drown_among_the_others():
    """A format that lacks a bit: 1.5 times what is predicted in plain cases, nothing beside the spread of others."""
    plain = dict(B=1, H=2, HK=1, M=64, N=64, D=16, scale=0.25, layout="contiguous", mask="none")
    faulty = [replace(r, **plain) for r in rows(16, envelope_ratio=lambda w: 1.5 + w)]
    others = [replace(r, case_id=f"other{r.case_id}") for r in rows(200, envelope_ratio=lambda w: 0.9 + 5 * w)]
    assert not statuses(others)[0]
    failed = judge([*others, *faulty], BUDGETS, "planted").failed
    assert [(c.name, c.tensor) for c in failed] == [("predictor", "out")] and "normal, plain" in failed[0].detail
    elsewhere = [replace(r, layout="gaps") for r in faulty]
    assert not statuses([*others, *elsewhere])[0]


def test_too_little_is_no_measurement():
    assert statuses(rows(3))[1].verdict == "nothing-measured"
    assert statuses([])[1].verdict == "nothing-measured"


def test_crashes_fail_and_refusals_do_not():
    crash = Row(case_id="c", phase="survey", status="crashed", failed="returns", dtype="bf16")
    refusal = Row(case_id="r", phase="survey", status="unsupported", message="ValueError: no", dtype="bf16")
    assert ("returns", None) in statuses([*rows(), crash])[0]
    judgement = judge([*rows(), refusal], BUDGETS, "planted")
    assert not judgement.failed and any("ValueError: no" in line for line in judgement.not_covered)


def test_refusals_that_differ_in_numbers_are_told_once():
    why = ("ValueError: D = 3 is below 16", "ValueError: D = 8 is below 16", "ValueError: D = 8 is below 16", "no bias")
    refused = [
        Row(case_id=f"r{n}", phase="survey", status="unsupported", message=m, dtype="bf16") for n, m in enumerate(why)
    ]
    told = [line for line in judge(refused, BUDGETS, "planted").not_covered if line.startswith("refused")]
    assert told == [f"refused in 3 of 4 cases, as in: {why[1]}", "refused in 1 of 4 cases: no bias"]


def test_batch_invariance_is_reported_unless_a_budget_asks_for_it():
    measured = rows(failed="batch-invariance")
    judged = judge(measured, BUDGETS, "planted")
    assert not judged.failed
    (check,) = [c for c in judged.checks if (c.name, c.tensor) == ("batch-invariance", "out")]
    assert check.detail.endswith("; reported, not judged")
    strict = BUDGETS.model_copy(update={"invariance": BUDGETS.invariance.model_copy(update={"batch": "fail"})})
    assert [c.name for c in judge(measured, strict, "planted").failed] == ["batch-invariance"]


def test_an_exception_applies_to_its_scope_alone():
    changes = dict(tensor="dv", log_ratio=lambda w: 0.3 + w, envelope_ratio=lambda w: 1.4 + w)
    allowed = budgets.Allowance(
        implementation="mine.py:*", tensors=("dv",), ratio_margin=2.0, predictor_margin=2.0, reason="known"
    )
    lenient = BUDGETS.model_copy(update={"exceptions": (allowed,)})
    assert judge(rows(**changes), BUDGETS, "mine.py:attention").failed
    assert not judge(rows(**changes), lenient, "mine.py:attention").failed
    assert judge(rows(**changes), lenient, "other.py:attention").failed
    assert judge(rows(**{**changes, "tensor": "dk"}), lenient, "mine.py:attention").failed
