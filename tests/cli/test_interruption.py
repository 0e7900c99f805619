"""Interrupted runs: what was measured is kept, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flashproof.reports.record import load

from .running import FLASHPROOF, INTERRUPTED, NOTHING, PASS, Done, assert_tidy, flashproof, snapshot


def _running(group: int) -> list[str]:
    """The processes of a group, but for those that only wait to be buried."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    fields = [(stat, stat.rpartition(")")[2].split()) for stat in stats]
    return [stat for stat, (state, _, own, *_) in fields if int(own) == group and state != "Z"]


def _interrupted(arguments: tuple[str, ...], until: Callable[[], bool], *signals: signal.Signals) -> Done:
    """The command, with signals to its whole process group as soon as `until` holds: what a terminal's Ctrl-C does."""
    command = [FLASHPROOF, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        while not until():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        for number in signals:
            os.killpg(process.pid, number)
            time.sleep(0.01)
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:  # leaving the block would wait for ever
            os.killpg(process.pid, signal.SIGKILL)
            raise
    deadline = time.monotonic() + 20  # multiprocessing's own helper ends by itself, a little later
    while _running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _running(process.pid), "processes were left behind"
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _some_rows() -> bool:
    shard = Path("run/shards/main.jsonl")
    return shard.exists() and shard.read_text().count("\n") > 12


@pytest.mark.parametrize("times", [1, 6])
def test_interrupted_survey(times: int) -> None:
    command = ("survey", "kernels.py:slow", "--workers", "1", "--out", "run")
    done = _interrupted(command, _some_rows, *[signal.SIGINT] * times)
    assert_tidy(done, INTERRUPTED)
    assert done.stderr.splitlines()[-1] == "flashproof: interrupted; what was measured is in run: flashproof gate run"
    run = load(Path("run"))
    assert run.manifest.interrupted
    assert not run.judged
    assert len(run.rows) > 12
    assert {p.name for p in Path("run").iterdir()} == {
        "manifest.json", "results.parquet", "report.html", "junit.xml", "summary.md",
    }  # fmt: skip
    before = snapshot(Path("run"))
    gate = flashproof("gate", "run", "--budgets", "small.toml")
    assert_tidy(gate, INTERRUPTED)
    assert "it is not the whole" in gate.stderr
    assert_tidy(flashproof("gate", "run"), NOTHING)
    assert snapshot(Path("run")) == before
    assert_tidy(flashproof("report", "run", "--out", "new.html"), PASS)
    assert "stopped before" in Path("new.html").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_while_torch_is_imported(place: Path, number: signal.Signals) -> None:
    """Its C++ would make an abort of an exception."""
    workers = "if 'forkserver' in str(sys.orig_argv):\n    raise ImportError\n"  # what they are copies of hears nothing
    kill = f"import os, sys\n\n{workers}\ntry:\n    os.kill(os.getpid(), {int(number)})\n"
    (place / "torch").mkdir()
    (place / "torch" / "__init__.py").write_text(f"{kill}except BaseException:\n    os.abort()\n")
    path = os.pathsep.join(filter(None, (str(place), os.environ.get("PYTHONPATH"))))
    done = flashproof("verify", "flash", env={"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (INTERRUPTED, "flashproof: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_hunt(number: signal.Signals) -> None:
    """Climbs that wait for a case of theirs are let go; SIGTERM ends the workers too, SIGINT does not."""
    command = ("hunt", "kernels.py:slow", "--workers", "1", "--out", "run")
    done = _interrupted(command, _some_rows, number)
    assert_tidy(done, INTERRUPTED)
    assert {r.phase for r in load(Path("run")).rows} == {"hunt"}


@pytest.mark.parametrize("path", ["run/manifest.json", "run/shards/main.jsonl"])
def test_interrupted_before_the_first_case(path: str) -> None:
    command = ("survey", "kernels.py:slow", "--workers", "1", "--out", "run")
    done = _interrupted(command, Path(path).exists, signal.SIGINT)
    assert_tidy(done, INTERRUPTED)
    assert not load(Path("run")).judged
    assert_tidy(flashproof("gate", "run"), NOTHING)
