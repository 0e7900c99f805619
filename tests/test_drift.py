"""Two runs paired by case: what is worse is found, told first and explained; what is not, is let pass."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from flashproof.reports.drift import Drift, annotated
from flashproof.reports.record import (
    Algebra,
    Answer,
    Check,
    Exactness,
    Git,
    Manifest,
    RecordError,
    Row,
    Share,
    Verdict,
    write_json_atomic,
    write_parquet_atomic,
)
from flashproof.reports.summary import MAX_ANNOTATIONS, workflow_commands
from flashproof.verify import budgets
from flashproof.verify.cli import cli
from flashproof.verify.drift import TOGETHER, cause, drift_cells, pairing_of, turned
from flashproof.verify.problems import InterruptedRunError, NothingError
from flashproof.verify.statistics import holm, mean_interval, p_above, student_quantile, student_tail

BUDGETS = budgets.load()


def rows(n=12, factor=1.0, spread=0.02, offset=0, **changes):
    """Cases of one cell; their errors differ tenfold from case to case, and `factor` times from a run to another."""
    base = Row(
        case_id="", phase="survey", status="ok", dtype="bf16", regime="normal", tensor="out", B=1, elements=1000,
        nonfinite=0, rounded_rms=1e-6, natural_scale=1e-6, bound_ratio=0.2,
    )  # fmt: skip
    return [
        replace(
            base, case_id=f"{offset + i:016x}", seed=i,
            **{"kernel_rms": 1e-3 * 10 ** math.sin(3 * i) * factor * (1 + spread * math.sin(7 * i) * (factor != 1)),
               **changes},
        ) for i in range(n)
    ]  # fmt: skip


def cells(base, head, limits=BUDGETS):
    return drift_cells(base, head, limits, "kernel.py:attention")


def the_status(base, head):
    (cell,) = cells(base, head)
    return cell.status


# -- statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "freedom"), [(0.975, 1), (0.975, 10), (0.9995, 30), (0.3, 5)])
def test_the_tail_is_the_inverse_of_the_quantile(p, freedom):
    t = student_quantile(max(p, 1 - p), freedom) * (1 if p > 0.5 else -1)
    assert student_tail(t, freedom) == pytest.approx(1 - p, rel=1e-6)
    assert (student_tail(math.inf, freedom), student_tail(-math.inf, freedom)) == (0.0, 1.0)


def test_the_p_value_says_what_the_interval_says():
    values = [0.1, 0.3, 0.2, 0.25, 0.15]
    low = mean_interval(values, 0.95).low
    assert p_above(values, low) == pytest.approx(0.025, rel=1e-6)
    assert p_above([0.1], 0.0) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# -- one cell ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "spread", "status"),
    [
        (1.0, 0.0, "unchanged"),
        (1.5, 0.02, "worse"),
        (1.03, 0.005, "unchanged"),  # surely more, but within the margin: no effect worth a red gate
        (1.5, 0.9, "unchanged"),  # a large effect that these cases do not show surely
        (0.6, 0.02, "better"),
        (0.98, 0.005, "unchanged"),
    ],
)
def test_worse_takes_size_and_significance(factor, spread, status):
    assert the_status(rows(), rows(factor=factor, spread=spread)) == status


def test_pairing_sees_what_the_spread_between_cases_hides():
    """6 % is nothing beside errors that differ tenfold; on the same cases it is plain."""
    (cell,) = cells(rows(24), rows(24, factor=1.08, spread=0.005))
    assert cell.status == "worse"
    assert (cell.n, cell.ratio) == (24, pytest.approx(1.08, rel=0.01))
    logs = [math.log(r.kernel_rms) for r in rows(24)]
    assert mean_interval(logs, 0.99).high - mean_interval(logs, 0.99).low > 10 * math.log(1.08)


def test_errors_below_the_floor_are_equally_good():
    tiny = {"kernel_rms": 1e-12}
    assert the_status(rows(**tiny), rows(kernel_rms=1e-10)) == "unchanged"
    assert the_status(rows(**tiny), rows(kernel_rms=1e-4)) == "worse"


def test_empty_tensors_do_not_dilute():
    empty = rows(40, offset=100, elements=0, kernel_rms=0.0)
    (cell,) = cells([*rows(), *empty], [*rows(factor=1.2), *empty])
    assert (cell.n, cell.status) == (12, "worse")


def test_too_few_cases_tell_nothing():
    assert the_status(rows(7), rows(7, factor=9.0)) == "too few"


def test_an_exception_widens_the_margin_of_its_scope():
    allowed = budgets.Allowance(implementation="kernel.py:*", tensors=("out",), drift_margin=2.0, reason="known")
    lenient = BUDGETS.model_copy(update={"exceptions": (allowed,)})
    assert [c.status for c in cells(rows(), rows(factor=1.5), lenient)] == ["unchanged"]
    dv = [[replace(r, tensor="dv") for r in side] for side in (rows(), rows(factor=1.5))]
    assert [c.status for c in cells(*dv, lenient)] == ["worse"]


# -- among many cells --------------------------------------------------------------------------------------------------


def test_one_lucky_cell_among_many_is_not_called_worse():
    """The same figures that make a lone cell worse are to be expected of one in some hundred."""

    def noisy(regime, mean, offset):
        logs = [mean + 0.4 * math.sin(7 * i + 1) for i in range(10)]
        base = rows(10, offset=offset, regime=regime)
        return base, [replace(r, kernel_rms=r.kernel_rms * math.exp(x)) for r, x in zip(base, logs, strict=True)]

    lone = noisy("r0", 0.42, 0)
    assert [c.status for c in cells(*lone)] == ["worse"]
    sides = [lone, *(noisy(f"r{k}", 0.0, 100 * k) for k in range(1, 200))]
    found = cells([r for s in sides for r in s[0]], [r for s in sides for r in s[1]])
    assert [c.n for c in found if c.regime == TOGETHER] == [2000]
    assert [(c.regime, c.status) for c in found if c.status != "unchanged"] == [("r0", "suspect")]


def test_the_worst_comes_first():
    regimes = {"mild": 1.3, "bad": 4.0, "same": 1.0, "good": 0.5}
    base = [r for k, name in enumerate(regimes) for r in rows(offset=100 * k, regime=name)]
    head = [r for k, (name, x) in enumerate(regimes.items()) for r in rows(factor=x, offset=100 * k, regime=name)]
    found = cells(base, head)
    assert [(c.regime, c.status) for c in found if c.regime != TOGETHER] == [
        ("bad", "worse"), ("mild", "worse"), ("same", "unchanged"), ("good", "better"),
    ]  # fmt: skip


def test_all_regimes_together_show_what_none_has_cases_for():
    base = [r for k in range(8) for r in rows(3, offset=100 * k, regime=f"r{k}")]
    head = [r for k in range(8) for r in rows(3, offset=100 * k, regime=f"r{k}", factor=1.3)]
    found = cells(base, head)
    assert [(c.regime, c.status, c.n) for c in found][:2] == [(TOGETHER, "worse", 24), ("r0", "too few", 3)]
    assert not [c for c in cells(base, base) if c.status not in ("unchanged", "too few")]


# -- what is not finite ------------------------------------------------------------------------------------------------


def test_new_nan_is_worse_however_few():
    head = rows()
    head[3] = replace(head[3], nonfinite=1)
    (cell,) = cells(rows(), head)
    assert (cell.status, cell.nonfinite, cell.n) == ("worse", 1, 11)
    (few,) = cells(rows(2), [replace(r, nonfinite=2) for r in rows(2)])
    assert (few.status, few.nonfinite, few.ratio) == ("worse", 2, None)


def test_nan_of_both_or_of_the_base_alone_is_not_new():
    bad = [replace(r, nonfinite=4) for r in rows()]
    assert the_status(bad, bad) == "too few"
    assert the_status([*bad[:2], *rows()[2:]], rows()) == "unchanged"


# -- pairing -----------------------------------------------------------------------------------------------------------


def test_only_identical_cases_pair():
    both = pairing_of(rows(), rows(offset=4))
    assert (both.paired, both.only_base, both.only_head, both.refused) == (8, 4, 4, 0)
    assert not cells(rows(), rows(offset=100))
    assert not cells(rows(), [replace(r, phase="hunt") for r in rows()]), "a hunt is no sample"
    assert not cells(rows(), [replace(r, status="raised", tensor=None) for r in rows()])


def test_the_same_recipe_with_other_inputs_does_not_pair():
    other = [replace(r, rounded_rms=1.1e-6) for r in rows()]
    found = pairing_of(rows(), other)
    assert (found.paired, found.other_inputs) == (0, 12)
    assert not cells(rows(), other)
    nearly = [replace(r, rounded_rms=1e-6 * (1 + 1e-12)) for r in rows()]
    assert pairing_of(rows(), nearly).paired == 12


def test_what_the_head_refuses_or_no_longer_gives_is_told():
    refusal = Row(case_id=rows()[0].case_id, phase="survey", status="unsupported", dtype="bf16")
    assert pairing_of(rows(), [*rows()[1:], refusal]).refused == 1
    gradients = [replace(r, tensor="dq") for r in rows()]
    assert pairing_of([*rows(), *gradients], rows()).missing == ("dq",)
    assert pairing_of(rows(), [*rows(), *gradients]).missing == ()


# -- why ---------------------------------------------------------------------------------------------------------------


def attributed(**squares):
    """An algebra with these squared errors per site of one kernel; `kernel` renames it."""
    kernel = squares.pop("kernel", "_forward")
    whole = sum(squares.values())
    sites = {f"{kernel}:{name}": x for name, x in squares.items()}
    shares = [
        Share(dtype="bf16", tensor="out", site=site, rms=x**0.5, part=x / whole, lines="k.py:7" if ":" in site else "")
        for site, x in {"whole": whole, "sum of the parts": whole, **sites}.items()
    ]
    return Algebra(shares=tuple(shares))


BEFORE = attributed(P=0.5, output=0.5, accumulators=0.001)


def test_the_cause_is_the_site_that_grew_most():
    said = cause("bf16", "out", BEFORE, attributed(P=0.5, output=0.6, accumulators=3.0))
    assert said == "roundings at _forward:accumulators (k.py:7) make 73% of the squared error, 0% in the base"


def test_a_site_that_is_new_or_renamed_is_named():
    new = cause("bf16", "out", BEFORE, attributed(P=0.5, output=0.5, scores=3.0))
    assert "roundings at _forward:scores" in new and "none in the base" in new
    renamed = cause("bf16", "out", BEFORE, attributed(kernel="_fwd", P=2.0, output=0.5, accumulators=0.001))
    assert "roundings at P (k.py:7) make 80% of the squared error, 50% in the base" in renamed


def test_no_site_is_blamed_for_what_it_did_not_do():
    assert "no rounding site" in cause("bf16", "out", BEFORE, BEFORE)
    more = attributed(P=0.5, output=0.51)
    shares = tuple(s.model_copy(update={"rms": 3.0}) if s.site == "whole" else s for s in more.shares)
    assert "no rounding site" in cause("bf16", "out", BEFORE, Algebra(shares=shares)), "an approximation, no rounding"
    assert cause("bf16", "out", None, BEFORE) == cause("fp16", "out", BEFORE, BEFORE) == ""


def test_checks_that_turned():
    def check(status, name="bound", tensor="out"):
        return Check(name=name, status=status, tensor=tensor)

    assert turned([check("pass")], [check("fail")]) == [check("fail")]
    for before in ("fail", "skipped"):
        assert not turned([check(before)], [check("fail")])
    assert not turned([check("fail")], [check("pass")])
    assert turned([check("pass", "algebra", None)], [check("fail", "algebra")]), "it passed for all tensors"


# -- the command -------------------------------------------------------------------------------------------------------


def write_run(folder: Path, measured, *, algebra=None, **changes) -> str:
    folder.mkdir()
    answer = Answer(status="pass", evidence="12 cases")
    facts = {"implementation": "kernel.py:attention", "profile": "quick", "seed": 0, **changes}
    manifest = Manifest(
        created="2026-11-20T11:00:00+00:00", command="flashproof verify", device="cpu", versions={"flashproof": "0.1"},
        machine={}, git=Git(commit="0123456789abcdef", dirty=False), **facts,
    )  # fmt: skip
    verdict = Verdict(
        implementation="kernel.py:attention", verdict="pass", sentence="Exact.", algebra=algebra,
        exactness=Exactness(algebraic=answer, bitwise=answer, accuracy=answer),
    )  # fmt: skip
    write_json_atomic(folder / "manifest.json", manifest)
    write_json_atomic(folder / "verdict.json", verdict)
    write_parquet_atomic(folder / "results.parquet", measured)
    return str(folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["compare", *arguments], env={"GITHUB_ACTIONS": None, "GITHUB_STEP_SUMMARY": None})


def test_compare_passes_what_is_the_same(tmp_path: Path) -> None:
    base, head = (write_run(tmp_path / name, rows()) for name in ("base", "head"))
    done = run(base, head, "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "no worse" in done.output and "worse in none of 1 cell" in done.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"compare.json", "compare.md"}


def test_compare_fails_what_is_worse_and_says_why(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", rows(), algebra=BEFORE)
    better = [[replace(r, tensor="lse") for r in rows(factor=x)] for x in (1.0, 0.5)]
    base = write_run(tmp_path / "base2", [*rows(), *better[0]], algebra=BEFORE)
    worse = attributed(P=0.5, output=0.5, accumulators=3.0)
    head = write_run(tmp_path / "head", [*rows(factor=2.0), *better[1]], algebra=worse)
    done = run(base, head, "--out", str(tmp_path / "out"))
    assert done.exit_code == 1, done.output
    assert "worse in 1 of 2 cells, most in out bf16 normal: RMS error" in done.output
    assert "cause  out bf16: roundings at _forward:accumulators" in done.output
    assert "better in 1, most in lse bf16 normal" in done.output
    record = Drift.model_validate_json((tmp_path / "out" / "compare.json").read_text())
    assert [(c.tensor, c.status) for c in record.cells] == [("out", "worse"), ("lse", "better")]
    assert record.cells[0].ratio == pytest.approx(2.0, rel=0.05)
    page = (tmp_path / "out" / "compare.md").read_text()
    assert page.startswith("## ❌ flashproof compare: worse") and "0123456789ab" in page


def test_compare_fails_new_nan_even_in_cells_too_small_to_judge(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", rows(3))
    head = write_run(tmp_path / "head", [replace(r, nonfinite=1) for r in rows(3)])
    done = run(base, head)
    assert done.exit_code == 1, done.output
    assert "NaN or infinity in 3 cases where the base is finite" in done.output


def test_compare_fails_a_check_that_passed_and_tells_one_that_passes_now(tmp_path: Path) -> None:
    bad = [replace(r, failed="memory") if i == 2 else r for i, r in enumerate(rows())]
    base, head = write_run(tmp_path / "base", rows()), write_run(tmp_path / "head", bad)
    done = run(base, head)
    assert done.exit_code == 1, done.output
    assert "FAILS NOW memory out: 1 of 12 cases" in done.output
    back = run(head, base)
    assert back.exit_code == 0, back.output
    assert "passes now memory out: was: 1 of 12 cases" in back.output


@pytest.mark.parametrize(
    ("measured", "changes", "says"),
    [
        (rows(offset=50), {"seed": 1, "profile": "ci"}, r"no surveyed case.*\(seed 0 and 1, profile quick and ci\)"),
        (rows(4, factor=3.0), {}, r"4 cases of .* pair, but no cell .* has the 8"),
        ([replace(r, natural_scale=2e-6) for r in rows()], {}, "gave other inputs"),
        ([r for k in range(5) for r in rows(4, offset=50 * k, regime=f"r{k}")], {}, "but no cell"),
        ([], {}, "no surveyed case"),
    ],
)
def test_compare_of_what_cannot_be_compared(tmp_path: Path, measured, changes, says) -> None:
    common = measured if len({r.regime for r in measured}) > 1 else rows()
    base, head = write_run(tmp_path / "base", common), write_run(tmp_path / "head", measured, **changes)
    done = run(base, head, "--out", str(tmp_path / "out"))
    assert isinstance(done.exception, NothingError)
    assert done.exception.exit_code == 5
    with pytest.raises(NothingError, match=says):
        raise done.exception
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_compare_refuses_a_folder_that_it_cannot_read(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", rows())
    (tmp_path / "base" / "verdict.json").write_text("{")
    for folder in (base, str(tmp_path / "none")):
        assert isinstance(run(folder, folder).exception, RecordError)


def test_the_installed_command_ends_with_one_line(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", rows())
    other, worse = write_run(tmp_path / "other", rows(offset=90)), write_run(tmp_path / "worse", rows(factor=2.0))
    for head, code in ((base, 0), (worse, 1), (str(tmp_path / "none"), 4), (other, 5)):
        command = [str(Path(sys.executable).with_name("flashproof")), "compare", base, head]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stderr
        if code > 1:
            assert (done.stdout, done.stderr.count("\n")) == ("", 1)
            assert done.stderr.startswith("flashproof: ")


def test_an_interrupted_run_is_no_pass(tmp_path: Path) -> None:
    base, head = write_run(tmp_path / "base", rows()), write_run(tmp_path / "head", rows(), interrupted=True)
    assert isinstance(run(base, head).exception, InterruptedRunError)
    worse = write_run(tmp_path / "worse", rows(factor=2.0), interrupted=True)
    assert run(base, worse).exit_code == 1


def test_github_is_told_the_worst_first(tmp_path: Path) -> None:
    regimes = {f"r{k}": 1.2 + 0.1 * k for k in range(14)}
    base = [r for k, name in enumerate(regimes) for r in rows(offset=100 * k, regime=name)]
    head = [r for k, (name, x) in enumerate(regimes.items()) for r in rows(factor=x, offset=100 * k, regime=name)]
    folders = write_run(tmp_path / "base", base), write_run(tmp_path / "head", head)
    step = tmp_path / "step.md"
    step.write_text("before\n")
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(step)}
    out = tmp_path / "out"
    done = CliRunner().invoke(cli, ["compare", *folders, "--out", str(out)], env=env)
    assert done.exit_code == 1, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("::error title=")]
    assert len(lines) == MAX_ANNOTATIONS
    assert "compare out bf16 r13" in lines[0] and "7 more failures" in lines[-1]
    assert step.read_text() == "before\n" + (out / "compare.md").read_text()
    record = Drift.model_validate(json.loads((out / "compare.json").read_text()))
    assert workflow_commands(annotated(record)) == lines
