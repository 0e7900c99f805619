"""The installed `flashproof`, run as its users run it, and what is asked of every run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from flashproof.reports.record import Row, Run

FLASHPROOF = str(Path(sys.executable).with_name("flashproof"))
PASS, FAIL, INTERRUPTED, INTERNAL, USAGE, NOTHING = range(6)
IN_CI = ("CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "FLASHPROOF_DEBUG")
Done = subprocess.CompletedProcess[str]
KERNELS = Path(__file__).with_name("kernels.py")
CASE = {"B": 1, "H": 2, "HK": 1, "M": 3, "N": 5, "D": 4, "dtype": "fp16", "regime": "normal", "seed": 0}
SMALL = ("--workers", "1", "--budgets", "small.toml")


def furnish(folder: Path) -> None:
    shutil.copy(KERNELS, folder)
    (folder / "small.toml").write_text("[coverage]\nmin_cases = 2\n")


def flashproof(*arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
    return subprocess.run(
        [FLASHPROOF, *map(str, arguments)], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def assert_refused(done: Done, *says: str) -> None:
    """A usage error: exit code 4 and one line that says what is wrong and what to do."""
    assert done.returncode == USAGE, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("flashproof: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    for what in says:
        assert what in done.stderr


def assert_tidy(done: Done, code: int) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "internal error" not in done.stderr


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def by_case(run: Run) -> list[Row]:
    """One row per case: the output's, or the only one."""
    return [r for r in run.rows if r.tensor in ("out", None)]
