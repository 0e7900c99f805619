"""Budgets and records that cannot be read, and folders that cannot be written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from flashproof.reports.words import size
from flashproof.verify import cli, interrupts

from .running import FLASHPROOF, KERNELS, NOTHING, PASS, SMALL, USAGE, assert_refused, assert_tidy, flashproof, snapshot


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("[ratio\n", "is not TOML"),
        ("[ratios]\nmargin = 2.0\n", "ratios: unknown key"),
        ("[ratio]\nmargni = 2.0\n", "ratio.margni: unknown key"),
        ('[ratio]\nmargin = "2"\n', "ratio.margin: Input should be a valid number"),
        ("[ratio]\nmargin = -1.0\n", "ratio.margin: Input should be greater than or equal to 1"),
        ("[ratio]\nmargin = nan\n", "ratio.margin: Input should be a finite number"),
        ('[[exception]]\nimplementation = "x"\nratio_margin = 2.0\n', "exception.1.reason: missing, state it"),
    ],
)
def test_budgets(place: Path, content: str | None, says: str) -> None:
    if content is not None:
        (place / "b.toml").write_text(content)
    assert_refused(flashproof("verify", "kernels.py:attention", "--budgets", "b.toml"), "budgets b.toml", says)
    assert not list(place.glob("flashproof-run*"))


def _truncate(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2])

    return damage


def _newer(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "is not a folder: give"),
        (lambda run: (run / "manifest.json").unlink(), "is not a run (no manifest.json): give"),
        (_truncate("manifest.json"), "manifest.json is damaged or cut short"),
        (_truncate("verdict.json"), "verdict.json is damaged or cut short"),
        (_truncate("results.parquet"), "results.parquet is not a whole parquet file"),
        (lambda run: (run / "results.parquet").unlink(), "results.parquet is missing, and the verdict rests on it"),
        (_newer, "upgrade flashproof"),
    ],
    ids=["missing", "no-run", "manifest", "verdict", "results", "no-results", "newer"],
)
def test_unreadable_record(place: Path, whole: Path, damage: Callable[[Path], None], says: str) -> None:
    shutil.copytree(whole, place / "run")
    damage(place / "run")
    assert_refused(flashproof("gate", "run"), says)
    assert_refused(flashproof("report", "run", "--out", "new.html"), says)
    assert not (place / "new.html").exists()


def test_gate_and_report_of_a_whole_record(place: Path, whole: Path) -> None:
    shutil.copytree(whole, place / "run")
    before = snapshot(place / "run")
    assert_tidy(flashproof("gate", "run", "--budgets", "small.toml"), PASS)
    assert snapshot(place / "run") == before, "gate wrote to the record"
    done = flashproof("report", "run", "--out", "new.html")
    assert_tidy(done, PASS)
    assert done.stdout == f"new.html, {size((place / 'new.html').stat().st_size)}\n"
    assert (place / "new.html").read_text().rstrip().endswith("</html>")


def test_the_exit_code_outlives_a_closed_pipe(whole: Path) -> None:
    for budgets, code in (("small.toml", PASS), ("large.toml", NOTHING)):
        Path("large.toml").write_text("[coverage]\nmin_cases = 1000\n")
        read, write = os.pipe()
        os.close(read)
        command = [FLASHPROOF, "gate", str(whole), "--budgets", budgets]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=120, check=False)
        os.close(write)
        assert (done.returncode, done.stderr) == (code, b"")


@pytest.mark.parametrize("out", ["kernels.py", "kernels.py/run", "/proc/run"])
def test_out_that_cannot_be_written(place: Path, out: str) -> None:
    if out.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    done = flashproof("verify", "kernels.py:attention", "--out", out)
    assert_refused(done, out, "--out")
    assert (place / "kernels.py").read_text() == KERNELS.read_text()


def test_out_that_is_full(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(interrupts, "heed", lambda: None)
    monkeypatch.setattr(cli.cli, "main", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == USAGE
    assert capsys.readouterr().err == "flashproof: no space is left where the record is written; use another --out\n"


def test_out_that_holds_a_run(place: Path, whole: Path) -> None:
    shutil.copytree(whole, place / "run")
    own = {"notes.txt": b"mine", "findings/notes.py": b"mine"}
    (place / "run" / "findings").mkdir(exist_ok=True)
    for name, content in {**own, "findings/007.json": b"of the old run", "findings/007.py": b"of the old run"}.items():
        (place / "run" / name).write_bytes(content)
    before = snapshot(place / "run")
    options = ("survey", "kernels.py:refuses", *SMALL, "--cases", "2", "--out", "run")
    assert_refused(flashproof(*options), "already holds a run", "--force")
    assert snapshot(place / "run") == before
    assert_tidy(flashproof(*options, "--force"), NOTHING)
    written = {"manifest.json", "results.parquet", "verdict.json", "report.html", "junit.xml", "summary.md"}
    after = snapshot(place / "run")
    assert after.keys() == written | own.keys()
    assert {name: after[name] for name in own} == own
    assert not {name for name in written if after[name] == before[name]}
