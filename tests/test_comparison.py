"""On which kinds of input a kernel is worse than standard attention: told where it is, only there, with the cause."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from flashproof.kernels.mutants.source import sound_source
from flashproof.reports.record import Row
from flashproof.verify.comparison import PHASE, WHY, WORSE, comparison, stages, standings, still_open
from flashproof.verify.evaluate import evaluate
from flashproof.verify.judge import judge
from flashproof.verify.loading import load
from flashproof.verify.plain import plain_case
from flashproof.verify.profiles import PROFILES
from flashproof.verify.regimes import REGIMES
from flashproof.verify.worker import prepare

QUICK = PROFILES["quick"]


def rows(ratio: float, spread: float = 0.1, n: int = 8, **changes) -> list[Row]:
    """Cases of one regime and tensor, around a ratio."""
    base = Row(case_id="", phase=PHASE, status="ok", dtype="fp16", regime="offset", tensor="dq", envelope_ratio=1.0)
    return [
        replace(base, case_id=str(i), log_ratio=math.log(ratio) + spread * (-1) ** i, **changes) for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "spread", "status"),
    [(1.0, 0.1, "not worse"), (3.0, 0.1, "worse"), (1.6, 0.5, "open"), (1.4, 0.5, "open")],
)
def test_standings(ratio, spread, status):
    (standing,) = standings(rows(ratio, spread))
    assert standing.status == status
    assert standing.ratio == pytest.approx(ratio)
    assert standing.low < ratio < standing.high
    assert still_open(rows(ratio, spread)) == (["offset"] if status == "open" else [])
    assert standing.needs is not None
    assert (standing.needs <= standing.n) == (status != "open")


def test_as_many_as_are_needed_are_enough():
    for ratio, spread in ((1.6, 0.3), (1.3, 0.5), (2.0, 1.0)):
        (standing,) = standings(rows(ratio, spread, n=10))
        assert standing.needs is not None
        enough, half = standing.needs + standing.needs % 2, standing.needs // 4 * 2
        assert standings(rows(ratio, spread, n=enough))[0].status != "open"
        assert standings(rows(ratio, spread, n=half))[0].status == "open"


def test_only_the_comparison_counts_and_only_what_was_measured():
    assert standings(rows(3.0, phase="survey")) == []
    assert standings([replace(r, log_ratio=None) for r in rows(3.0)]) == []
    assert standings(rows(3.0, n=1)) == []
    (predicted,), (surprising,) = standings(rows(3.0)), standings(rows(3.0, envelope_ratio=2.0))
    assert predicted.predicted
    assert not surprising.predicted


def test_the_comparison_never_enters_the_statistics_of_the_gate():
    from flashproof.verify.budgets import load as budgets

    def failed(phase: str) -> set[str]:
        bad = rows(30.0, regime="normal", envelope_ratio=30.0, n=64, phase=phase, bound_ratio=0.5, nonfinite=0)
        return {c.name for c in judge(bad, budgets(), "kernel.py:attention").failed}

    assert failed("survey") == {"ratio", "predictor"}
    assert failed(PHASE) == set()


def test_every_regime_is_asked_in_every_dtype_and_small_surveys_ask_less():
    prepare("flash", "cpu")
    first, *later = stages(QUICK)
    cases = list(comparison(load("flash"), QUICK, 0, REGIMES, first))
    assert len(cases) == len({c.id for c in cases}) == len(REGIMES) * 2 * len(first)
    assert [later[0].start, later[1].start] == [first.stop, later[0].stop]
    assert not {c.id for c in comparison(load("flash"), QUICK, 1, REGIMES, first)} & {c.id for c in cases}
    assert not any(stages(replace(QUICK, survey=60)))


# -- the cause that a verdict names ------------------------------------------------------------------------------------

STORED = "o, do, lse if dlse is None else dlse, delta,"
UNROUNDED = """(torch.softmax(q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).mT
                           / q.shape[-1] ** 0.5, -1)
             @ v.double().repeat_interleave(q.shape[1] // k.shape[1], 1)).float(),
            do, lse if dlse is None else dlse, delta,"""


def dq_on(regime: str, spec: str) -> float:
    """Geometric mean of its RMS error / standard attention's, without a mask."""
    from flashproof.verify.case import MaskRecipe
    from flashproof.verify.draws import Draws

    logs = []
    for n in range(8):
        case = plain_case(Draws(n, "cause", regime), "bf16", regime).with_(mask=MaskRecipe())
        result = evaluate(case, load(spec), PHASE, thorough=False, stores=False)
        logs += [r.log_ratio for r in result.rows if r.tensor == "dq" and r.log_ratio is not None]
    assert len(logs) == 8
    return math.exp(sum(logs) / 8)


def test_an_unrounded_delta_takes_the_effect_away(tmp_path: Path):
    prepare("flash", "cpu")
    assert "delta" in WHY["dq"]
    assert sound_source().count(STORED) == 1
    kernel = tmp_path / "kernel.py"
    kernel.write_text(sound_source().replace(STORED, UNROUNDED))
    for regime in ("offset", "correlated"):
        assert dq_on(regime, "flash") > WORSE
        assert dq_on(regime, f"{kernel}:attention") < 1.0
