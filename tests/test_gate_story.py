"""A gate's whole story: a baseline, a change that makes the kernel less accurate, and what it takes to let it pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from flashproof.kernels.mutants.source import FORWARD, Edit, Mutant, sound_source, source_of

COMMAND = str(Path(sys.executable).with_name("flashproof"))
#: P loses three bits on its way into the product with V: still far within any tolerance that is in use
COARSE_P = Edit(FORWARD, "p_low = p.to(v.dtype.element_ty)", "p_low = p.to(tl.bfloat16).to(v.dtype.element_ty)")
EXCEPTION = """
[[exception]]
implementation = "kernel.py:*"
dtypes = ["fp16"]
tensors = ["out", "dq", "dk", "dv"]
ratio_margin = 20.0
predictor_margin = 20.0
bound_max_ratio = 10.0
drift_margin = 20.0
"""
REASON = 'reason = "P is passed on in bf16 until the new tensor-core path lands, issue 41"\n'


def run(*arguments: str, cwd: Path, program: str = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def committed(folder: Path, text: str) -> str:
    """The commit's name."""
    (folder / "kernel.py").write_text(text)
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for arguments in (["add", "kernel.py"], [*identity, "commit", "-qm", "The kernel"]):
        assert run(*arguments, cwd=folder, program="git").returncode == 0
    return run("rev-parse", "HEAD", cwd=folder, program="git").stdout.strip()


def verified(folder: Path, out: str) -> int:
    small = ("--cases", "120", "--examples", "0", "--workers", "1")
    return run("verify", "kernel.py:attention", *small, "--out", out, cwd=folder).returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_a_baseline_to_a_budget_with_a_reason(tmp_path: Path) -> None:
    run("init", "-q", cwd=tmp_path, program="git")
    first = committed(tmp_path, sound_source())
    assert verified(tmp_path, "base") == 0
    coarse = Mutant("coarse-p", "", "", ("out",), (COARSE_P,))
    second = committed(tmp_path, source_of(coarse))
    assert verified(tmp_path, "head") == 1  # it is worse than roundings of such a kernel need be, by itself

    done = run("compare", "base", "head", "--out", "drift", cwd=tmp_path)
    assert done.returncode == 1
    drift = json.loads((tmp_path / "drift" / "compare.json").read_text())
    assert (drift["base"]["commit"], drift["head"]["commit"][:40]) == (first, second)
    worst = drift["cells"][0]
    assert (worst["tensor"], worst["dtype"], worst["status"]) == ("out", "fp16", "worse")
    assert not [c for c in drift["cells"] if c["dtype"] == "bf16" and c["status"] == "worse"]
    assert ":P" in worst["cause"]
    line = next(i for i, x in enumerate(source_of(coarse).splitlines(), start=1) if "p.to(tl.bfloat16)" in x)
    assert f"kernel.py:{line}" in worst["cause"]
    assert worst["cause"] in done.stdout
    assert f"kernel.py:{line}" in (tmp_path / "drift" / "compare.md").read_text()

    (tmp_path / "budgets.toml").write_text(EXCEPTION)
    for command in (("compare", "base", "head"), ("gate", "head")):
        done = run(*command, "--budgets", "budgets.toml", cwd=tmp_path)
        assert done.returncode == 4
        assert "exception.1.reason: missing" in done.stderr
        assert len(done.stderr.splitlines()) == 1

    (tmp_path / "budgets.toml").write_text(EXCEPTION + REASON)
    done = run("compare", "base", "head", "--budgets", "budgets.toml", "--out", "drift", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    page = (tmp_path / "drift" / "compare.md").read_text()
    assert "issue 41" in page
    assert "issue 41" in done.stdout
    assert run("gate", "head", "--budgets", "budgets.toml", "--out", "judged", cwd=tmp_path).returncode == 0
    for name in ("report.html", "summary.md", "verdict.json"):
        assert "issue 41" in (tmp_path / "judged" / name).read_text()
    assert json.loads((tmp_path / "judged" / "verdict.json").read_text())["findings"] == []
    assert run("gate", "judged", cwd=tmp_path).returncode == 1  # by the default budgets it fails, as ever
