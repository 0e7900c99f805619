"""Budgets from theory: no kernel is run, the bundled kernel keeps them, and they catch what the default lets pass."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from flashproof.reports.record import RecordError, Row
from flashproof.verify import budgets
from flashproof.verify.cli import cli
from flashproof.verify.derive import Derived, derived, toml
from flashproof.verify.evaluate import evaluate
from flashproof.verify.judge import judge
from flashproof.verify.loading import load
from flashproof.verify.problems import UsageError
from flashproof.verify.profiles import PROFILES
from flashproof.verify.regimes import REGIMES
from flashproof.verify.survey import survey
from flashproof.verify.worker import prepare

PROFILE = replace(PROFILES["quick"], survey=160)


@pytest.fixture(scope="module")
def cells() -> list[Derived]:
    prepare("flash", "cpu")
    return derived(PROFILE, 0, lambda *_: None)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_what_is_derived_is_what_the_bundled_kernel_does(cells: list[Derived]) -> None:
    implementation = load("flash")
    measured: dict[tuple[str, str], list[float]] = {}
    for case in survey(implementation, PROFILE, 0):
        if REGIMES[case.regime].independent and case.M and case.N and case.mask.bias != "lowest":  # unpredictable
            for r in evaluate(case, implementation, "survey", thorough=False, stores=False).rows:
                if r.log_ratio is not None and r.tensor != "lse":
                    measured.setdefault((str(r.tensor), case.regime), []).append(r.log_ratio)
    for tensor, regime in measured:
        own = [c for c in cells if (c.tensor, c.regime) == (tensor, regime)]
        assert own
        predicted = sum(math.log(c.ratio) * c.n for c in own) / sum(c.n for c in own)
        found = sum(measured[tensor, regime]) / len(measured[tensor, regime])
        # coherent roundings, as in dq of uniform logits, are beyond any prediction; nothing else is
        assert abs(found - predicted) < math.log(1.5 if regime == "uniform" else 1.25), (tensor, regime)


def rows(ratio: float, excess: float, n: int = 16) -> list[Row]:
    base = Row(
        case_id="", phase="survey", status="ok", dtype="fp16", regime="normal", tensor="out", nonfinite=0,
        elements=1000, bound_ratio=0.2, log_ratio=math.log(ratio), envelope_ratio=excess, predictor_ratio=excess,
        kernel_bias=0.0, rounded_bias=0.0, B=1,
    )  # fmt: skip
    return [replace(base, case_id=str(i)) for i in range(n)]


def test_they_catch_what_the_default_lets_pass(cells: list[Derived], tmp_path: Path) -> None:
    path = tmp_path / "budgets.toml"
    path.write_text(toml(cells, budgets.load(), "*", "flashproof budget derive"))
    strict, usual = budgets.load(path), budgets.load()
    good, poor = rows(0.62, 1.0), rows(0.95, 1.2)  # better than standard attention, and not as good as flash can be
    assert not judge(good, strict, "kernel.py:attention").failed
    assert not judge(poor, usual, "kernel.py:attention").failed
    assert {(c.name, c.tensor) for c in judge(poor, strict, "kernel.py:attention").failed} == {("ratio", "out")}
    assert budgets.beyond_default(strict, "kernel.py:attention") == (), "they are stricter than the default"
    assert all(e.ratio_margin is not None and e.ratio_margin < usual.ratio.margin for e in strict.exceptions)


def test_the_command_writes_a_file_that_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "derived.toml"
    done = run("budget", "derive", "--cases", "120", "--implementation", "mine.py:*", "--out", path)
    assert done.exit_code == 0, done.output
    entries = tomllib.loads(path.read_text())["exception"]
    assert {e["implementation"] for e in entries} == {"mine.py:*"}
    assert all("roundings predict" in e["reason"] for e in entries)
    assert run("budget", "check", path).exit_code == 0
    assert isinstance(run("budget", "derive", "--implementation", 'a"b').exception, UsageError)
    done = run("budget", "derive", "--cases", "40", "--out", tmp_path / "no" / "f")
    assert isinstance(done.exception, RecordError)
