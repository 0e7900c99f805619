"""Budgets and waivers: what they let pass is told, ends, and has a reason; nothing becomes looser silently."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from click.testing import Result as Done
from flashproof.reports import html, junit, summary
from flashproof.reports.record import (
    Manifest,
    Row,
    Run,
    Verdict,
    load,
    write_json_atomic,
    write_parquet_atomic,
)
from flashproof.verify import budgets
from flashproof.verify.budgets import default_entries
from flashproof.verify.case import Case, MaskRecipe
from flashproof.verify.check import Check
from flashproof.verify.cli import cli
from flashproof.verify.evaluate import Result
from flashproof.verify.findings import _case_suspects
from flashproof.verify.judge import Judgement, judge
from flashproof.verify.problems import UsageError
from flashproof.verify.verdict import verdict_of
from flashproof.verify.waivers import Waiver, Waivers

BUDGETS = budgets.load()
TODAY = date(2026, 11, 20)
WAIVER = """
[[waiver]]
implementation = "mine.py:*"
check = "finite"
causal = true
max_scale = 0.0
reason = "NaN at a negative scale, see issue 7"
expires = 2027-03-31
"""


def read(tmp_path: Path, text: str) -> budgets.Budgets:
    path = tmp_path / "b.toml"
    path.write_text(text)
    return budgets.load(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(n=24, **changes) -> list[Row]:
    """A sound survey, half of it causal with a scale of -0.2."""
    base = Row(
        case_id="", phase="survey", status="ok", dtype="bf16", regime="normal", tensor="out", B=1, elements=1000,
        nonfinite=0, log_ratio=-0.5, bound_ratio=0.2, predictor_ratio=1.0, envelope_ratio=0.6, kernel_bias=0.0,
        rounded_bias=0.0, bitwise_standard=0.5, kernel_rms=1e-3, rounded_rms=1e-3, natural_scale=1e-3,
    )  # fmt: skip
    causal = {"mask": "causal-tl", "scale": -0.2}
    return [
        replace(base, case_id=f"{i:016x}", **({**causal, **changes} if i % 2 else {"mask": "none", "scale": 0.125}))
        for i in range(n)
    ]


def judged(measured, limits, *, today=TODAY, implementation="mine.py:attention") -> Judgement:
    return judge(measured, limits, implementation, today=today)


def verdict(measured, limits, *, today=TODAY) -> Verdict:
    return verdict_of(judged(measured, limits, today=today), [], "mine.py:attention", limits, measured, 0.0)


def failed(judgement: Judgement) -> set[tuple[str, str | None]]:
    return {(c.name, c.tensor) for c in judgement.failed}


BROKEN = rows(failed="finite", nonfinite=3)

# -- waivers -----------------------------------------------------------------------------------------------------------


def test_a_waived_failure_is_no_failure_and_is_told(tmp_path: Path) -> None:
    limits = read(tmp_path, WAIVER)
    assert failed(judged(BROKEN, BUDGETS)) == {("finite", "out")}
    judgement = judged(BROKEN, limits)
    assert not judgement.failed
    (check,) = [c for c in judgement.checks if c.status == "waived"]
    assert (check.name, check.tensor, check.n) == ("finite", "out", 24)
    assert check.detail == "12 of 24 cases; 12 cases waived until 2027-03-31: NaN at a negative scale, see issue 7"
    (told,) = judgement.waived
    assert (told.scope, told.cases) == ("finite (max_scale 0.0, causal True)", 12)
    assert (told.reason, told.expires) == ("NaN at a negative scale, see issue 7", "2027-03-31")
    said = verdict(BROKEN, limits)
    assert said.verdict == "pass"
    assert "but for what is waived: finite (max_scale 0.0, causal True) in 12 cases until 2027-03-31" in said.sentence
    assert said.exactness.accuracy.status == "waived"
    assert "every" not in said.sentence + said.exactness.accuracy.evidence, "it claims what does not hold"


@pytest.mark.parametrize(
    "other",
    [
        {"mask": "none"},
        {"scale": 0.125},
        {"failed": "bound,memory", "nonfinite": 0},
    ],
)
def test_a_waiver_covers_nothing_else(tmp_path: Path, other) -> None:
    measured = [*BROKEN]
    measured[3] = replace(measured[3], **other)
    judgement = judged(measured, read(tmp_path, WAIVER))
    assert judgement.failed, "one case that it does not cover is a failure"
    assert judgement.waived[0].cases == 11


@pytest.mark.parametrize(
    ("line", "covers"),
    [
        ('tensor = "out"', True), ('tensor = "dq"', False),
        ('dtype = "bf16"', True), ('dtype = "fp16"', False),
        ('regime = "nor*"', True), ('regime = "outlier"', False),
        ('mask = "causal-*"', True), ('mask = "boolean"', False),
    ],
)  # fmt: skip
def test_each_line_of_a_waiver_narrows_it(tmp_path: Path, line: str, covers: bool) -> None:
    limits = read(tmp_path, f"{WAIVER}{line}\n")
    assert bool(judged(BROKEN, limits).failed) != covers


def test_a_waiver_is_of_its_implementation(tmp_path: Path) -> None:
    limits = read(tmp_path, WAIVER)
    other = judged(BROKEN, limits, implementation="theirs.py:attention")
    assert failed(other) == {("finite", "out")}
    assert other.waived == ()


def test_a_waiver_ends(tmp_path: Path) -> None:
    limits = read(tmp_path, WAIVER)
    last = date(2027, 3, 31)
    assert not judged(BROKEN, limits, today=last).failed
    after = judged(BROKEN, limits, today=last + timedelta(days=1))
    assert failed(after) == {("finite", "out"), ("waivers", None)}
    (line,) = [c.detail for c in after.failed if c.name == "waivers"]
    assert line.startswith("expired: finite (max_scale 0.0, causal True) on 2027-03-31 (NaN at a negative scale")
    assert "\n" not in line
    mended = judged(rows(), limits, today=last + timedelta(days=1))
    assert failed(mended) == {("waivers", None)}, "a waiver that nobody needs must be dropped all the same"
    assert "fails: waivers (expired)" in verdict(rows(), limits, today=last + timedelta(days=1)).sentence


def test_a_waiver_that_covers_nothing_is_told(tmp_path: Path) -> None:
    judgement = judged(rows(), read(tmp_path, WAIVER))
    assert not judgement.failed
    assert [w.cases for w in judgement.waived] == [0]
    assert "waived" not in verdict(rows(), read(tmp_path, WAIVER)).sentence


def test_what_is_waived_is_no_part_of_a_distribution(tmp_path: Path) -> None:
    wrong = rows(120, failed="bound", bound_ratio=40.0, log_ratio=2.0, envelope_ratio=9.0)
    alone = failed(judged(wrong, BUDGETS))
    assert {("bound", "out"), ("predictor", "out")} <= alone
    judgement = judged(wrong, read(tmp_path, WAIVER.replace("finite", "bound")))
    assert not judgement.failed
    assert [c.n for c in judgement.checks if (c.name, c.tensor) == ("bias", "out")] == [60]
    unsteady = rows(120, failed="repeat", log_ratio=2.0, envelope_ratio=9.0)
    still = failed(judged(unsteady, read(tmp_path, WAIVER.replace("finite", "repeat"))))
    assert ("predictor", "out") in still, "results that change are still to be accurate"


def test_no_finding_is_made_of_what_is_waived(tmp_path: Path) -> None:
    (waiver,) = read(tmp_path, WAIVER).waivers
    case = Case(B=1, H=1, HK=1, M=3, N=3, D=8, dtype="bf16", regime="normal", seed=0, scale=-0.2)
    results = [
        Result(c, "ok", (replace(row, mask=str(c.mask), scale=c.scale),), (Check("finite", "out", False, 1, 0, ""),), 0)
        for c, row in zip((case.with_(mask=MaskRecipe(causal=True)), case), BROKEN, strict=False)
    ]
    one, other = results

    def suspects(result: Result, *waivers: Waiver) -> int:
        return len(_case_suspects([result], Waivers(waivers, "mine.py:attention", TODAY)))

    assert (suspects(one), suspects(other)) == (1, 1)
    assert (suspects(one, waiver), suspects(other, waiver)) == (0, 1)


def test_crashes_and_written_inputs_can_be_waived(tmp_path: Path) -> None:
    crash = Row(case_id="c", phase="survey", status="crashed", failed="returns", dtype="bf16", mask="none", scale=1.0)
    text = '[[waiver]]\nimplementation = "*"\ncheck = "{}"\nreason = "known"\nexpires = 2027-03-31\n'
    assert failed(judged([*rows(), crash], BUDGETS)) == {("returns", None)}
    assert not judged([*rows(), crash], read(tmp_path, text.format("returns"))).failed
    written = rows(failed="inputs-unchanged")
    assert failed(judged(written, read(tmp_path, text.format("returns")))) == {("inputs-unchanged", None)}
    assert not judged(written, read(tmp_path, text.format("inputs-unchanged"))).failed


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('reason = "NaN at a negative scale, see issue 7"', "", "waiver.1.reason: missing, state it"),
        ('"NaN at a negative scale, see issue 7"', '"  "', "waiver.1.reason: String should have at least 1"),
        ("expires = 2027-03-31", "", "waiver.1.expires: missing, state it"),
        ("2027-03-31", '"2027-03-31"', "waiver.1.expires: Input should be a valid date"),
        ("2027-03-31", "2027-02-30", "is not TOML"),
        ('"finite"', '"ratio"', "waiver.1.check: 'ratio' is not a check of single cases"),
        ('"finite"', '"finit"', "waiver.1.check: 'finit' is not a check"),
        ('"finite"', '"returns"\ntensor = "out"', "leave `tensor` out"),
        ("causal", "casual", "waiver.1.casual: unknown key"),
        ('implementation = "mine.py:*"', "", "waiver.1.implementation: missing"),
        ("max_scale = 0.0", "max_scale = nan", "waiver.1.max_scale"),
    ],
)
def test_a_waiver_that_is_not_one(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in WAIVER
    assert says in refusal(tmp_path, WAIVER.replace(old, new))


def test_there_are_no_waivers_by_default() -> None:
    assert BUDGETS.waivers == BUDGETS.exceptions == ()


# -- loosening ---------------------------------------------------------------------------------------------------------

LIMITS = [
    (section, key)
    for section, entries in default_entries().items() if isinstance(entries, dict) and section != "coverage"
    for key in entries
]  # fmt: skip


@pytest.mark.parametrize(("section", "key"), LIMITS)
def test_no_entry_is_loosened_without_a_reason(tmp_path: Path, section: str, key: str) -> None:
    usual = default_entries()[section][key]
    if usual == "report":
        assert read(tmp_path, f'[{section}]\n{key} = "fail"\n')
        return
    loose = '"report"' if usual == "fail" else 0.99999 if key == "confidence" else usual + 1 if usual >= 1 else 0.9
    said = refusal(tmp_path, f"[{section}]\n{key} = {loose}\n")
    assert f"{section}.{key}: " in said and "is looser than the default" in said and "state a reason" in said
    limits = read(tmp_path, f'[{section}]\n{key} = {loose}\nreason = "issue 8"\n')
    assert getattr(limits, section).reason == "issue 8"
    assert "reason" in refusal(tmp_path, f'[{section}]\n{key} = {loose}\nreason = " "\n')


def test_tightening_and_coverage_need_no_reason(tmp_path: Path) -> None:
    limits = read(tmp_path, '[ratio]\nmargin = 1.05\n[invariance]\nbatch = "fail"\n[coverage]\nmin_cases = 2\n')
    assert (limits.ratio.margin, limits.invariance.batch, limits.coverage.min_cases) == (1.05, "fail", 2)
    assert read(tmp_path, "[ratio]\nmargin = 1.10\n").ratio.margin == 1.1, "what is said already is not loosened"


def test_an_exception_without_a_reason(tmp_path: Path) -> None:
    text = '[[exception]]\nimplementation = "x"\nratio_margin = 2.0\n'
    assert "exception.1.reason: missing, state it" in refusal(tmp_path, text)
    assert read(tmp_path, text + 'reason = "issue 9"\n').exceptions


# -- reports -----------------------------------------------------------------------------------------------------------


def recorded(folder: Path, measured, limits=BUDGETS) -> Path:
    folder.mkdir()
    manifest = Manifest(
        implementation="mine.py:attention", profile="quick", seed=0, created="2026-11-20T11:00:00+00:00",
        command="flashproof verify", device="cpu", versions={}, machine={},
    )  # fmt: skip
    write_json_atomic(folder / "manifest.json", manifest)
    write_json_atomic(folder / "verdict.json", verdict(measured, limits))
    write_parquet_atomic(folder / "results.parquet", measured)
    return folder


@pytest.fixture
def waived_run(tmp_path: Path) -> Run:
    measured = [replace(r, bound_ratio=3.0, failed="bound") if r.failed else r for r in BROKEN]
    return load(recorded(tmp_path / "run", measured, read(tmp_path, WAIVER.replace("finite", "bound"))))


def test_reports_tell_what_is_waived(waived_run: Run) -> None:
    assert waived_run.verdict.verdict == "pass"
    page = summary.summary(waived_run)
    assert "### Waived" in page and "NaN at a negative scale, see issue 7" in page and "2027-03-31" in page
    assert not summary.github_annotations(waived_run)
    suite = ET.fromstring(junit.junit(waived_run))
    assert suite.get("failures") == "0"
    said = [s.get("message", "") for s in suite.iter("skipped")]
    assert [s for s in said if s.startswith("waived: largest error / bound 3")]
    whole = html.render([waived_run])
    assert "12 cases waived until 2027-03-31: NaN at a negative scale, see issue 7" in whole
    assert 'class="bad"' not in whole.partition('class="grid"')[2].partition("</table>")[0]


# -- the command -------------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> Done:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_gate_lets_pass_what_is_waived_until_it_expires(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", BROKEN)
    assert run("gate", folder).exit_code == 1
    waiver = tmp_path / "w.toml"
    tomorrow, yesterday = (date.today() + timedelta(days=d) for d in (1, -1))
    waiver.write_text(WAIVER.replace("2027-03-31", tomorrow.isoformat()))
    done = run("gate", folder, "--budgets", waiver)
    assert done.exit_code == 0, done.output
    assert f"12 cases until {tomorrow}: NaN at a negative scale, see issue 7" in done.output
    waiver.write_text(WAIVER.replace("2027-03-31", yesterday.isoformat()))
    done = run("gate", folder, "--budgets", waiver)
    assert done.exit_code == 1
    assert f"expired: finite (max_scale 0.0, causal True) on {yesterday}" in " ".join(done.output.split())


FILE = """
[ratio]
margin = 1.5
reason = "issue 8"
[coverage]
min_cases = 5
[[exception]]
implementation = "mine.py:*"
tensors = ["dk", "dv"]
predictor_margin = 1.6
reason = "accumulated in bf16, issue 9"
"""


def table_of(done: Done) -> dict[str, list[str]]:
    lines = [line.split() for line in done.output.splitlines() if line and not line.startswith(" ")]
    return {line[0]: line[1:] for line in lines}


def test_budget_show_says_where_each_entry_comes_from(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(FILE + WAIVER)
    plain, mine = run("budget", "show"), run("budget", "show", "--budgets", tmp_path / "b.toml")
    assert plain.exit_code == mine.exit_code == 0, mine.output
    entries = table_of(plain)
    assert {f"{s}.{k}" for s, v in default_entries().items() if isinstance(v, dict) for k in v} <= entries.keys()
    assert entries["ratio.margin"] == ["1.1", "default"]
    assert "no exceptions" in plain.output and "no waivers" in plain.output
    flat = " ".join(mine.output.split())
    assert "ratio.margin 1.5 " in flat and " 1.1 issue 8" in flat and table_of(mine)["ratio.confidence"][1] == "default"
    assert "exception predictor_margin = 1.6 for dk or dv, mine.py:* accumulated in bf16, issue 9" in flat
    assert "waiver mine.py:*: finite (max_scale 0.0, causal True) until 2027-03-31 NaN at a negative" in flat


def test_budget_check_of_a_file_that_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text(FILE + WAIVER)
    done = run("budget", "check", path)
    assert (done.exit_code, done.output) == (
        0, f"{path} can be used: sets ratio.margin, coverage.min_cases; 1 exception, 1 waiver\n",
    )  # fmt: skip
    path.write_text(FILE + WAIVER.replace("2027-03-31", "2020-03-31"))
    assert "of which 1 expired" in run("budget", "check", path).output


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("[ratio", "is not TOML"),
        ("[ratio]\nmargni = 2.0\n", "ratio.margni: unknown key"),
        ("[ratio]\nmargin = 2.0\n", "state a reason"),
        ("ratio = 3\n", "ratio: "),
        (WAIVER.replace("expires = 2027-03-31", ""), "waiver.1.expires: missing"),
    ],
)
def test_budget_check_of_a_file_that_cannot(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "b.toml"
    if content is not None:
        path.write_text(content)
    for arguments in (("check", path), ("show", "--budgets", path)):
        done = run("budget", *arguments)
        assert isinstance(done.exception, UsageError)
        assert done.exception.exit_code == 4
        assert says in str(done.exception) and "\n" not in str(done.exception)
        assert done.output == ""
