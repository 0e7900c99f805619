"""The example repository works as its README says: its gate passes, compares, and fails what is made worse."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "gated-kernel"
COMMAND = str(Path(sys.executable).with_name("flashproof"))


class Session:
    """A nox session that installs nothing and measures little."""

    def __init__(self, folder: Path, *posargs: str) -> None:
        self.folder, self.posargs, self.codes, self.said = folder, posargs, [], ""

    def install(self, *arguments: str) -> None:
        """Everything is there already."""

    def log(self, line: str) -> None:
        self.said += line

    def run(self, program: str, command: str, *arguments: str) -> None:
        assert program == "flashproof"
        little = ("--cases", "160", "--examples", "0", "--workers", "1") if command == "verify" else ()
        done = subprocess.run(
            [COMMAND, command, *arguments, *little], cwd=self.folder, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        self.codes.append(done.returncode)
        self.said += done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("fla", reason="fla-core is not installed")
    pytest.importorskip("nox", reason="nox is not installed")
    monkeypatch.chdir(shutil.copytree(EXAMPLE, tmp_path / "repository"))
    return Path.cwd()


@cache  # nox keeps a registry of sessions
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_noxfile", EXAMPLE / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gate(folder: Path, *posargs: str) -> Session:
    session = Session(folder, *posargs)
    noxfile().attention.func(session)
    return session


@pytest.mark.slow
def test_the_gate_of_the_example(folder: Path) -> None:
    first = gate(folder, "base")
    assert first.codes == [0], first.said
    assert "no run in base" in first.said
    shutil.copytree(folder / "head", folder / "base")

    source = (folder / "attention.py").read_text()
    sound, rounding = (
        f"return parallel_attn(q, k, v, scale=softmax_scale){tail}" for tail in ("", ".bfloat16().to(q.dtype)")
    )
    assert source.count(sound) == 1
    assert rounding in (folder / "README.md").read_text()
    (folder / "attention.py").write_text(source.replace(sound, rounding))
    worse = gate(folder, "base")
    assert worse.codes == [1, 1], worse.said
    assert "worse in" in worse.said
    assert "out fp16" in worse.said


def test_the_workflow_runs_the_session_that_there_is() -> None:
    workflow = (EXAMPLE / ".github" / "workflows" / "attention.yml").read_text()
    assert "nox -s attention -- base" in workflow
    assert callable(noxfile().attention.func)
