"""Functions that cannot be used, and functions that fail: exit codes, and what the record says of them."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from flashproof.reports.record import load
from flashproof.verify.case import Layout

from .running import CASE, FAIL, NOTHING, PASS, SMALL, assert_refused, assert_tidy, by_case, flashproof


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("def attention(:\n", "SyntaxError"),
        ("raise ValueError('bad\\nnews')\n", "ValueError: bad news"),
        ("import no_such_package\n", "No module named 'no_such_package'; install that"),
    ],
    ids=["syntax", "raises", "missing-import"],
)
def test_file_that_does_not_import(place: Path, content: str, says: str) -> None:
    (place / "bad.py").write_text(content)
    assert_refused(flashproof("verify", "bad.py:attention"), "bad.py does not import", says)
    assert not list(place.glob("flashproof-run*"))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere.py:attention", ("no such file: nowhere.py", "path/to/file.py:function")),
        ("kernels.py", ("kernels.py names no function", "give kernels.py:function")),
        ("kernels.py:", ("kernels.py: names no function", "give kernels.py:function")),
        ("kernels.py:atention", ("has no 'atention'", "attention, ")),
        ("kernels.py:number", ("int", "name a function")),
        ("kernels.py:too_few", ("foreign signature", "expected torch's")),
        ("kernels.py:too_many", ("foreign signature", "expected torch's")),
        ("kernels.py:unreadable", ("no readable signature", "wrap it in a Python function")),
        ("flush", ("unknown implementation 'flush'", "use one of flash, ")),
        ("no_such_package.attention:f", ("does not import", "install that")),
    ],
)
def test_implementation_that_cannot_be_used(place: Path, spec: str, says: tuple[str, ...]) -> None:
    assert_refused(flashproof("verify", spec), *says)
    assert not list(place.glob("flashproof-run*"))


def test_file_that_imports_only_in_the_main_process(place: Path) -> None:
    (place / "bad.py").write_text(
        "import multiprocessing\nfrom kernels import attention\n"
        "if multiprocessing.parent_process():\n    raise ValueError('not here')\n"
    )
    done = flashproof("survey", "bad.py:attention", *SMALL, "--cases", "2", "--out", "run")
    assert_refused(done, "in a worker process", "not here")
    assert not (place / "run" / "verdict.json").exists()
    assert not load(place / "run").judged


def test_raises_always_and_tells_github(place: Path) -> None:
    (place / "step.md").write_text("before\n")
    done = flashproof(
        "verify", "kernels.py:raises", *SMALL, "--cases", "3", "--examples", "0", "--out", "run",
        env={"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(place / "step.md")},
    )  # fmt: skip
    assert_tidy(done, FAIL)
    run = load(place / "run")
    assert run.verdict.verdict == "fail"
    assert [(f.check, f.tensor) for f in run.findings] == [("returns", None)]
    assert "boom" in run.findings[0].detail
    assert {r.phase for r in run.rows} == {"survey"}, "--examples 0 hunted all the same"
    assert {r.status for r in run.rows} == {"raised"}
    assert len(by_case(run)) == 3
    assert (place / "step.md").read_text() == "before\n" + (place / "run" / "summary.md").read_text()
    assert [line for line in done.stdout.splitlines() if line.startswith("::error title=flashproof%3A returns::")]
    command = [sys.executable, "run/findings/001.py"]
    script = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (script.returncode, script.stdout) == (1, "no result, but RuntimeError: boom\n")


def test_raises_for_odd_lengths(place: Path) -> None:
    done = flashproof("survey", "kernels.py:raises_for_odd_lengths", *SMALL, "--cases", "8", "--out", "run")
    assert_tidy(done, FAIL)
    run = load(place / "run")
    assert {(r.status, (r.M or 0) % 2) for r in by_case(run)} == {("raised", 1), ("ok", 0)}
    assert [f.check for f in run.findings] == ["returns"]
    assert (run.findings[0].case["M"], run.findings[0].case["N"], run.findings[0].case["D"]) == (1, 1, 1)


def test_a_wrong_result_is_not_shrunk_to_a_case_that_raises(place: Path) -> None:
    done = flashproof("survey", "kernels.py:imprecise_and_never_short", *SMALL, "--cases", "6", "--out", "run")
    assert_tidy(done, FAIL)
    found = load(place / "run").findings
    assert ("bound", "out") in {(f.check, f.tensor) for f in found}
    assert len({(f.check, f.tensor) for f in found}) == len(found)  # its gradients shrink to the same


def test_refuses_everything(place: Path) -> None:
    done = flashproof("survey", "kernels.py:refuses", *SMALL, "--cases", "3", "--out", "run")
    assert_tidy(done, NOTHING)
    run = load(place / "run")
    assert run.verdict.verdict == "nothing-measured"
    assert run.findings == ()
    assert "refused in 3 of 3 cases: NotImplementedError: no attention today" in run.verdict.not_covered
    gate = flashproof("gate", "run", "--budgets", "small.toml")
    assert_tidy(gate, NOTHING)
    assert gate.stdout.count("refused in 3 of 3 cases") == 1


def test_empty_cases_are_no_measurement(place: Path) -> None:
    """Enough of them for a verdict, had they queries."""
    done = flashproof("survey", "kernels.py:refuses_all_but_nothing", *SMALL, "--cases", "72", "--out", "run")
    assert_tidy(done, NOTHING)
    run = load(place / "run")
    assert run.verdict.counts.survey >= 2
    assert run.verdict.sentence.endswith("0 cases with queries and keys gave a result, and a verdict takes 2.")


@pytest.mark.parametrize("name", ["without_lse", "exits"])
def test_the_script_of_what_returns_nothing_says_so(place: Path, name: str) -> None:
    done = flashproof("survey", f"kernels.py:{name}", *SMALL, "--cases", "3", "--out", "run")
    assert_tidy(done, FAIL)
    assert [f.check for f in load(place / "run").findings] == ["returns"]
    shown = subprocess.run([sys.executable, "run/findings/001.py"], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert ("SystemExit: 0" if name == "exits" else "the log-sum-exp was asked for, and not returned") in shown.stdout


def test_returns_what_is_not_attention(place: Path) -> None:
    done = flashproof("survey", "kernels.py:wrong_in_many_ways", *SMALL, "--cases", "60", "--out", "run")
    assert_tidy(done, FAIL)
    rows = by_case(load(place / "run"))
    assert {(r.D in (16, 40, 96), r.status) for r in rows} == {(True, "ok"), (False, "wrong-result")}
    said = {r.D: r.message or "" for r in rows}
    assert said.keys() == {3, 8, 16, 32, 40, 64, 96, 128}
    assert "the output is on meta" in said[3]
    assert "the output has shape" in said[8]
    assert "the output is torch.float64" in said[32]
    assert "no gradient" in said[64]
    assert "returned str, not a tensor" in said[128]
    assert [f.check for f in load(place / "run").findings] == ["returns"]
    assert "fails: returns (the call), over 60 cases." in done.stdout.replace("\n", " ")


@pytest.mark.slow
def test_hangs(place: Path) -> None:
    done = flashproof("verify", "kernels.py:hangs", *SMALL, "--cases", "10", "--case-limit", "2", "--out", "run")
    assert_tidy(done, FAIL)
    run = load(place / "run")
    assert {r.status for r in by_case(run) if (r.M or 0) <= 60} == {"ok"}
    assert {(r.status, (r.M or 0) % 2) for r in by_case(run) if (r.M or 0) > 60} == {("timeout", 0), ("timeout", 1)}
    assert [f.check for f in run.findings] == ["returns"]
    assert "no result within 2 s" in run.findings[0].detail
    assert any(what.startswith("more of the hunt: ") for what in run.verdict.not_covered)


@pytest.mark.slow
def test_dies(place: Path) -> None:
    done = flashproof("survey", "kernels.py:dies", *SMALL, "--cases", "10", "--out", "run")
    assert_tidy(done, FAIL)
    run = load(place / "run")
    assert {r.status for r in by_case(run) if (r.M or 0) <= 60} == {"ok"}
    said = {(r.status, r.message) for r in by_case(run) if (r.M or 0) > 60}
    assert said == {("crashed", "the process died: exit code 3"), ("crashed", "the process died: killed by SIGSEGV")}
    assert [f.check for f in run.findings] == ["returns"]


def test_a_layout_that_is_fatal_is_so_once(place: Path) -> None:
    """Of a survey's cases a ninth have it; they are run in another."""
    done = flashproof("survey", "kernels.py:dies_in_columns", *SMALL, "--cases", "40", "--out", "run")
    assert_tidy(done, FAIL)
    run = load(place / "run")
    assert [r.layout for r in run.rows if r.status == "crashed"] == ["columns"]
    assert {r.layout for r in run.rows if r.status == "ok"} == set(get_args(Layout)) - {"columns"}
    assert [(f.check, f.case["layout"]) for f in run.findings] == [("returns", "columns")]
    assert "more cases in the memory layout 'columns', after one that hung or died" in run.verdict.not_covered


@pytest.mark.parametrize("name", ["refuses_groups", "refuses_groups_by_name", "raises_for_groups"])
def test_what_is_always_refused_is_not_asked_again(place: Path, name: str) -> None:
    """What the signature has; half of a survey's cases, and all plain ones, would use it.

    Grouped heads are no option of flash_attn's: nobody says that they are meant.
    """
    done = flashproof("survey", f"kernels.py:{name}", *SMALL, "--cases", "20", "--out", "run")
    assert_tidy(done, PASS)
    run = load(place / "run")
    assert {(r.status, r.H == r.HK) for r in run.rows if r.status != "unsupported"} == {("ok", True)}
    assert all(r.H == r.HK for r in run.rows)
    assert "grouped-query heads" in run.verdict.not_covered


def test_what_is_refused_in_some_shapes_is_asked_in_others(place: Path) -> None:
    done = flashproof("survey", "kernels.py:refuses_short_masks", *SMALL, "--cases", "60", "--out", "run")
    assert_tidy(done, PASS)
    run = load(place / "run")
    assert {r.status for r in run.rows} == {"ok", "unsupported"}
    assert any(r.status == "ok" and "bias" in str(r.mask) for r in run.rows)
    assert "an additive bias" not in run.verdict.not_covered


def test_dies_in_the_hunt(place: Path) -> None:
    done = flashproof("hunt", "kernels.py:dies_in_bf16", *SMALL, "--examples", "1", "--out", "run")
    assert_tidy(done, FAIL)
    run = load(place / "run")
    said = {(r.phase, r.dtype, r.status) for r in by_case(run)}
    assert said == {("hunt", "fp16", "ok"), ("hunt", "bf16", "crashed")}
    assert [f.check for f in run.findings] == ["returns"]


def test_worker_that_dies_between_two_cases() -> None:
    from flashproof.verify.case import case_of
    from flashproof.verify.pool import Pool

    case = case_of(CASE)
    pool = Pool("kernels.py:attention", "cpu", 1, 60.0)
    try:
        assert pool.one(case, "hunt").status == "ok"
        (worker,) = [p for p in multiprocessing.active_children() if p.pid is not None]
        worker.kill()
        worker.join()
        assert pool.one(case, "hunt").status == "ok"
    finally:
        pool.stop()


def test_leaves_as_if_the_user_had(place: Path) -> None:
    done = flashproof("survey", "kernels.py:leaves", *SMALL, "--cases", "10", "--out", "run")
    assert_tidy(done, FAIL)
    run = load(place / "run")
    assert not run.manifest.interrupted
    assert {r.status for r in by_case(run) if (r.M or 0) <= 60} == {"ok"}
    said = {(r.status, (r.message or "").partition(" (")[0]) for r in by_case(run) if (r.M or 0) > 60}
    assert said == {
        ("raised", "RuntimeError: the function raised SystemExit()"),
        ("raised", "RuntimeError: the function raised KeyboardInterrupt()"),
    }


def test_rudeness_disturbs_nothing(place: Path, whole: Path) -> None:
    done = flashproof("verify", "kernels.py:rude", *SMALL, "--cases", "10", "--examples", "0", "--out", "run")
    assert_tidy(done, PASS)
    assert "NOISE" not in done.stdout + done.stderr

    rude, polite = (
        [replace(r, seconds=None) for r in load(run).rows if r.phase == "survey"] for run in (place / "run", whole)
    )
    assert [r.case_id for r in rude] == [r.case_id for r in polite]
    others = [(mine, usual) for mine, usual in zip(rude, polite, strict=True) if (usual.M or 0) <= 60]
    assert 0 < len(others) < len(rude)
    for mine, usual in others:  # as text: NaN is not equal to itself
        assert repr(mine) == repr(usual)


def test_the_record_is_in_the_order_of_the_cases(place: Path, whole: Path) -> None:
    few = ("--budgets", "small.toml", "--cases", "10", "--examples", "0", "--out", "run")
    assert_tidy(flashproof("verify", "kernels.py:dawdles", *few, "--workers", "2"), PASS)
    slow, usual = ([r.case_id for r in load(run).rows if r.phase == "survey"] for run in (place / "run", whole))
    assert slow == usual
