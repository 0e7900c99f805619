"""A ratchet on budgets: it tightens what surely improved, by what was reached, and nothing else."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flashproof.reports.drift import DriftCell
from flashproof.reports.record import (
    Answer,
    Cell,
    Exactness,
    Manifest,
    Row,
    Verdict,
    write_json_atomic,
    write_parquet_atomic,
)
from flashproof.verify import budgets
from flashproof.verify.cli import cli
from flashproof.verify.problems import InterruptedRunError, UsageError
from flashproof.verify.ratchet import exceptions, tightened

NAME = "kernel.py:attention"
BUDGETS = budgets.load()
COMMENTED = "# ours\nschema = 1\n\n[coverage]\nmin_cases = 10  # a small survey\n"


def rows(ratio: float, n: int = 40, **changes: Any) -> list[Row]:
    """Cases of one cell: standard attention's error differs from case to case, the kernel's is `ratio` times that.

    Roundings predict it, as they do of a sound kernel.
    """
    found = []
    for i in range(n):
        usual, own = 1e-3 * 10 ** math.sin(3 * i), ratio * math.exp(0.05 * math.sin(7 * i))
        found.append(Row(**{
            "case_id": f"{i:016x}", "phase": "survey", "status": "ok", "dtype": "bf16", "regime": "normal",
            "tensor": "out", "elements": 1000, "nonfinite": 0, "rounded_rms": 1e-6, "natural_scale": 1e-6,
            "bound_ratio": 0.2, "kernel_rms": own * usual, "standard_rms": usual, "log_ratio": math.log(own),
            "envelope_ratio": 1.0, "predictor_ratio": 1.0, **changes,
        }))  # fmt: skip
    return found


def write_run(folder: Path, measured: list[Row], **changes: Any) -> str:
    folder.mkdir()
    answer = Answer(status="", evidence="")
    manifest = Manifest(**{
        "implementation": NAME, "profile": "quick", "seed": 0, "created": "2026-11-20T11:00:00+00:00",
        "command": "flashproof verify", "device": "cpu", "versions": {}, "machine": {}, **changes,
    })  # fmt: skip
    exactness = Exactness(algebraic=answer, bitwise=answer, accuracy=answer)
    write_json_atomic(folder / "manifest.json", manifest)
    write_json_atomic(
        folder / "verdict.json", Verdict(implementation=NAME, verdict="pass", sentence="", exactness=exactness)
    )
    write_parquet_atomic(folder / "results.parquet", measured)
    return str(folder)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "budgets.toml"
    path.write_text(COMMENTED)
    return path


@pytest.fixture
def old(tmp_path: Path) -> str:
    return write_run(tmp_path / "old", rows(0.8))


@pytest.fixture
def new(tmp_path: Path) -> str:
    return write_run(tmp_path / "new", rows(0.5))


# -- the whole story ---------------------------------------------------------------------------------------------------


def test_an_improvement_cannot_be_lost_again(file: Path, old: str, new: str) -> None:
    assert run("gate", old, "--budgets", file).exit_code == 0, "the kernel was good enough"
    done = run("compare", old, new, "--budgets", file, "--ratchet")
    assert done.exit_code == 0, done.output
    (line,) = [x for x in done.output.splitlines() if "ratio_margin" in x]
    assert line.startswith(f"{file}: out bf16 normal: ratio_margin 1.1 -> 0.5")
    assert line.endswith("; the base fails by it")
    (entry,) = tomllib.loads(file.read_text())["exception"]
    assert 0.5 < entry["ratio_margin"] < 0.55
    assert (entry["implementation"], entry["tensors"], entry["dtypes"]) == (NAME, ["out"], ["bf16"])
    assert "0.625 times the base's" in entry["reason"]
    assert file.read_text().startswith(COMMENTED), "what was there stays, comments and all"
    assert run("budget", "check", file).exit_code == 0
    assert run("gate", new, "--budgets", file).exit_code == 0
    back = run("gate", old, "--budgets", file)
    assert back.exit_code == 1, back.output
    assert "ratio (out)" in back.output
    assert run("gate", old).exit_code == 0, "by the default budgets it passes, as ever"


def test_an_improvement_within_the_intervals_is_told_as_such(file: Path, tmp_path: Path) -> None:
    """Paired, eight cases show 9 %; the gate does not pair, and its interval of eight cases is wider."""
    base, head = write_run(tmp_path / "base", rows(0.55, 8)), write_run(tmp_path / "head", rows(0.5, 8))
    file.write_text("coverage.min_cases = 5\n")
    done = run("compare", base, head, "--budgets", file, "--ratchet")
    (line,) = [x for x in done.output.splitlines() if "ratio_margin" in x]
    assert line.endswith("; the base has too few cases to fail by it")
    assert run("gate", base, "--budgets", file).exit_code == 0


def attention(dtype: str) -> str:
    """A function that computes attention in a dtype."""
    return f"""
import torch


def attention(query, key, value, is_causal=False, scale=None):
    q, k, v = (x.to({dtype}) for x in (query, key, value))
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return (torch.softmax(s, -1) @ v).to(query.dtype)
"""


@pytest.mark.slow
def test_a_function_that_rounds_less_becomes_the_measure(tmp_path: Path) -> None:
    """Measured: S and P in half precision, then in fp32; another survey of the better one passes as well."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("flashproof")), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    for out, dtype, seed in (("old", "query.dtype", 0), ("new", "torch.float32", 0), ("again", "torch.float32", 1)):
        (tmp_path / "kernel.py").write_text(attention(dtype))
        survey = ("survey", NAME, "--cases", "150", "--workers", "1", "--seed", str(seed), "--out", out)
        assert call(*survey).returncode == 0, "the default budgets accept both"
    (tmp_path / "b.toml").touch()
    done = call("compare", "old", "new", "--budgets", "b.toml", "--ratchet")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if "ratio_margin" in line]
    assert len(told) > 3
    failing = {tuple(line.split(":")[1].split()) for line in told if line.endswith("; the base fails by it")}
    assert {("out", "bf16", "normal"), ("out", "fp16", "normal")} <= failing
    assert [call("gate", out, "--budgets", "b.toml").returncode for out in ("old", "new", "again")] == [1, 0, 0]


def test_a_second_time_there_is_nothing_to_tighten(file: Path, old: str, new: str, tmp_path: Path) -> None:
    assert run("compare", old, new, "--budgets", file, "--ratchet").exit_code == 0
    before = file.read_bytes()
    done = run("compare", old, new, "--budgets", file, "--ratchet")
    assert done.exit_code == 0
    assert f"{file} stays as it is: 1 cell better, none of its margins is above" in done.output
    assert file.read_bytes() == before
    better = write_run(tmp_path / "better", rows(0.3))
    assert run("compare", new, better, "--budgets", file, "--ratchet").exit_code == 0
    assert BUDGETS.ratio.margin > allowed(file, "out") == pytest.approx(0.31, abs=0.02)


def allowed(file: Path, tensor: str, implementation: str = NAME) -> float:
    limits = budgets.load(file)
    return limits.allowance("ratio_margin", limits.ratio.margin, implementation, "bf16", tensor, "normal")


def test_only_what_improved_is_tightened(file: Path, tmp_path: Path) -> None:
    dq = {"tensor": "dq"}
    base = write_run(tmp_path / "base", [*rows(0.8), *rows(0.6, **dq)])
    head = write_run(tmp_path / "head", [*rows(0.5), *rows(0.6, **dq)])
    assert run("compare", base, head, "--budgets", file, "--ratchet").exit_code == 0
    assert allowed(file, "out") < 0.6
    assert allowed(file, "dq") == BUDGETS.ratio.margin
    assert allowed(file, "out", "other.py:attention") == BUDGETS.ratio.margin


# -- what leaves the file alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "head", "code", "says"),
    [
        (rows(0.5), rows(0.5), 0, "0 cells better, none is surely better"),
        (rows(0.5), rows(0.49), 0, "none is surely better"),
        (rows(0.5), rows(0.8), 1, "HEAD is worse"),
        ([*rows(0.8), *rows(0.5, tensor="dq")], [*rows(0.5), *rows(0.8, tensor="dq")], 1, "HEAD is worse"),
        (rows(0.8, tensor="lse"), rows(0.5, tensor="lse"), 0, "1 cell better, none of its margins"),
        (rows(0.8, regime="offset"), rows(0.5, regime="offset"), 0, "none of its margins"),
        (rows(3.0), rows(2.0), 0, "1 cell better, none of its margins is above"),
    ],
    ids=["same", "hardly", "worse", "both", "lse", "no-ratio", "still-bad"],
)
def test_the_file_stays_as_it_is(
    file: Path, tmp_path: Path, base: list[Row], head: list[Row], code: int, says: str
) -> None:
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    folders = write_run(tmp_path / "base", base), write_run(tmp_path / "head", head)
    done = run("compare", *folders, "--budgets", file, "--ratchet")
    assert done.exit_code == code, done.output
    assert says in done.output
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "budgets.toml", "head"], "nothing temporary is left"


def test_an_interrupted_head_tightens_nothing(file: Path, old: str, tmp_path: Path) -> None:
    done = run("compare", old, write_run(tmp_path / "n", rows(0.5), interrupted=True), "--budgets", file, "--ratchet")
    assert isinstance(done.exception, InterruptedRunError)
    assert file.read_text() == COMMENTED


def refused(*arguments: object) -> str:
    done = run(*arguments)
    assert isinstance(done.exception, UsageError), done.output
    assert done.exception.exit_code == 4
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_what_cannot_be_tightened_is_one_line(file: Path, old: str, new: str, tmp_path: Path) -> None:
    ratchet = ("compare", old, new, "--ratchet")
    assert "--budgets" in refused(*ratchet)
    assert "cannot be read" in refused(*ratchet, "--budgets", tmp_path / "none.toml")
    inline = f'exception = [{{implementation = "{NAME}", bias_max_ulp = 0.05, reason = "r"}}]\n'
    file.write_text(inline)
    assert "not TOML" in refused(*ratchet, "--budgets", file)
    assert file.read_text() == inline


def test_a_link_to_the_file_stays_one(file: Path, old: str, new: str, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    assert run("compare", old, new, "--budgets", link, "--ratchet").exit_code == 0
    assert link.is_symlink()
    assert allowed(file, "out") < 0.6


# -- a cell ------------------------------------------------------------------------------------------------------------

BETTER = DriftCell(dtype="bf16", tensor="out", regime="normal", n=40, status="better", ratio=0.6, low=0.5, high=0.7,
                   margin=1.05)  # fmt: skip


def cell(high: float, regime: str = "normal") -> Cell:
    return Cell(
        dtype="bf16", tensor="out", mask="all", regime=regime, n=40, ratio=0.5, low=0.4, high=high, status="pass"
    )


def test_a_margin_leaves_room_for_all_and_for_plain_cases() -> None:
    (found,) = tightened([BETTER], [cell(0.6121), cell(0.7777, "normal, plain"), cell(0.9, "uniform")], BUDGETS, NAME)
    assert (found.before, found.after) == (BUDGETS.ratio.margin, 0.778)


@pytest.mark.parametrize("limit", [0.3, 0.61, 0.612])
def test_it_never_loosens(limit: float, tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text(f'[[exception]]\nimplementation = "*"\nratio_margin = {limit}\nreason = "reached"\n')
    assert tightened([BETTER], [cell(0.6121)], budgets.load(path), NAME) == []


@pytest.mark.parametrize("status", ["worse", "suspect", "unchanged", "too few"])
def test_only_what_is_surely_better(status: Any) -> None:
    assert tightened([BETTER.model_copy(update={"status": status})], [cell(0.6)], BUDGETS, NAME) == []
    assert tightened([BETTER.model_copy(update={"regime": "all regimes"})], [cell(0.6)], BUDGETS, NAME) == []


@pytest.mark.parametrize("name", ['a"b\\c.py:f', "k[0]*.py:f?", "ü\t.py:f"])
def test_any_name_is_itself_in_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text(exceptions(tightened([BETTER], [cell(0.6)], BUDGETS, name), name), encoding="utf-8")
    assert allowed(path, "out", name) == pytest.approx(0.6)
    assert allowed(path, "out", "k0x.py:fy") == BUDGETS.ratio.margin


# -- the gate ----------------------------------------------------------------------------------------------------------


def test_predictions_excuse_by_the_default_margin_alone(tmp_path: Path) -> None:
    """Roundings predict twice standard attention's error: no fault, unless less was asked for."""
    from flashproof.verify.judge import judge

    path = tmp_path / "b.toml"
    measured = [replace(r, elements=1000) for r in rows(2.0)]
    for text, fails in (("", False), ("1.5", False), ("0.9", True)):
        entry = f'[[exception]]\nimplementation = "*"\nratio_margin = {text}\nreason = "r"\n' if text else ""
        path.write_text(entry)
        assert bool([c for c in judge(measured, budgets.load(path), NAME).failed if c.name == "ratio"]) == fails
