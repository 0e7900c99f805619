"""A place for each test, and one run that all may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from .running import IN_CI, PASS, SMALL, flashproof, furnish


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the kernels, where the commands run as on a user's machine."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in IN_CI:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a small run that passed."""
    folder = tmp_path_factory.mktemp("whole")
    furnish(folder)
    done = flashproof(
        "verify", "kernels.py:attention", *SMALL, "--cases", "10", "--examples", "3", "--out", "run", cwd=folder
    )
    assert done.returncode == PASS, done.stderr
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == {"kernels.py", "small.toml", "run"}
    return folder / "run"
