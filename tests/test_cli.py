"""The command line from end to end: the installed `flashproof`, its exit codes, its one line, what it leaves behind."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import click
import pytest
from flashproof.reports.record import Row, Run, load
from flashproof.reports.words import size
from flashproof.verify import cli, interrupts

FLASHPROOF = str(Path(sys.executable).with_name("flashproof"))
PASS, FAIL, INTERRUPTED, INTERNAL, USAGE, NOTHING = range(6)
IN_CI = ("CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "FLASHPROOF_DEBUG")
Done = subprocess.CompletedProcess[str]
SMALL = ("--workers", "1", "--budgets", "small.toml")

# Every function here computes the same attention, and does one thing besides.  A wide query (M > 60) is the rare kind
# of case on which some of them fail: few enough of a small survey to be quick, and of both parities.
KERNELS = '''
import functools, os, random, signal, sys, time
import numpy as np
import torch


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    q, k, v = (x.float() for x in (query, key, value))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    visible = torch.ones(s.shape[-2:], dtype=torch.bool)
    if is_causal:
        visible = visible.tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        visible = visible & attn_mask
    elif attn_mask is not None:
        s, visible = s + attn_mask, visible & (attn_mask > float("-inf"))
    seen = visible.any(-1, keepdim=True)
    s = torch.where(seen, s.masked_fill(~visible, float("-inf")), 0.0)
    return torch.where(seen, s.softmax(-1), 0.0).matmul(v).to(query.dtype)


def first(act):
    """`act` on the query, then attention."""

    @functools.wraps(attention)
    def wrapped(query, *args, **kwargs):
        act(query)
        return attention(query, *args, **kwargs)

    return wrapped


def then(change):
    """What `change` makes of the query and the output."""

    @functools.wraps(attention)
    def wrapped(query, *args, **kwargs):
        return change(query, attention(query, *args, **kwargs))

    return wrapped


@first
def raises(query):
    raise RuntimeError("boom")


@first
def raises_for_odd_lengths(query):
    if query.shape[2] % 2:
        raise RuntimeError("boom")


@first
def refuses(query):
    raise NotImplementedError("no attention today")


@functools.wraps(attention)
def refuses_groups(query, key, *args, enable_gqa=False, **kwargs):
    if enable_gqa or query.shape[1] != key.shape[1]:
        raise NotImplementedError("as many key heads as query heads, please")
    return attention(query, key, *args, **kwargs)


def as_flash_attn(q, k, v, softmax_scale=None, causal=False):
    assert not causal or q.shape[1] == k.shape[1], "square masks only"
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attention(q, k, v, is_causal=causal, scale=softmax_scale).transpose(1, 2)


def raises_for_groups(q, k, v, softmax_scale=None, causal=False):
    k, v = (x.expand(-1, -1, q.shape[2], -1) for x in (k, v))  # one head broadcasts
    return as_flash_attn(q, k, v, softmax_scale, causal)


def refuses_groups_by_name(q, k, v, softmax_scale=None, causal=False):
    if q.shape[2] != k.shape[2]:
        raise ValueError("as many key heads as query heads, please")
    return as_flash_attn(q, k, v, softmax_scale, causal)


@functools.wraps(attention)
def refuses_short_masks(query, key, value, attn_mask=None, **kwargs):
    if attn_mask is not None and query.shape[2] < 60:
        raise NotImplementedError("masks need 60 queries")
    return attention(query, key, value, attn_mask, **kwargs)


@then
def wrong_in_many_ways(query, out):  # one way for each head dimension
    ways = {8: lambda: out[..., :-1], 32: out.double, 128: lambda: "out", 3: lambda: out.to("meta"), 64: out.detach}
    return ways.get(query.shape[3], lambda: out)()


@then
def imprecise(query, out):
    return out * 1.5


@then
def imprecise_and_never_short(query, out):
    if query.shape[2] == 1:
        raise RuntimeError("boom")
    return out * 1.5


@first
def hangs(query):
    if query.shape[2] > 60:
        while query.shape[2] % 2:
            pass
        time.sleep(3600)


@first
def dies(query):
    if query.shape[2] > 60:
        os.kill(os.getpid(), signal.SIGSEGV) if query.shape[2] % 2 else os._exit(3)


@first
def dies_in_bf16(query):
    if query.dtype == torch.bfloat16:
        os._exit(3)


@first
def dies_in_columns(query):
    if query.stride(3) != 1 and query.numel():  # strides of nothing mean nothing
        os._exit(3)


@first
def leaves(query):
    if query.shape[2] > 60:
        if query.shape[2] % 2:
            raise KeyboardInterrupt
        sys.exit()


@first
def dawdles(query):
    if query.shape[2] == 64:
        time.sleep(1)


@then
def rude(query, out):
    print("NOISE")
    print("NOISE", file=sys.stderr)
    os.write(1, b"NOISE")
    if query.shape[2] <= 60:
        return out
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    np.random.seed(0)
    np.seterr(all="raise")
    random.seed(0)
    return out


@first
def slow(query):
    time.sleep(0.1)


def too_few(query, key):
    pass


def too_many(query, key, value, theirs):
    pass


unreadable = torch.nn.functional.scaled_dot_product_attention
number = 7
'''


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the kernels, where the commands run as on a user's machine."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in IN_CI:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def furnish(folder: Path) -> None:
    (folder / "kernels.py").write_text(KERNELS)
    (folder / "small.toml").write_text("[coverage]\nmin_cases = 2\n")


@pytest.fixture(scope="module")
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


# ------------------------------------------------------------------------------------------------ implementations


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


# ------------------------------------------------------------------------------------------------ functions that fail


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
    assert (script.returncode, script.stdout) == (1, "the function raised RuntimeError: boom\n")


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


def test_returns_what_is_not_attention(place: Path) -> None:
    done = flashproof("survey", "kernels.py:wrong_in_many_ways", *SMALL, "--cases", "20", "--out", "run")
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
    assert "fails: returns (the call), over 20 cases." in done.stdout.replace("\n", " ")


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
    """Of a survey's cases an eighth have it; they are run in another."""
    done = flashproof("survey", "kernels.py:dies_in_columns", *SMALL, "--cases", "40", "--out", "run")
    assert_tidy(done, FAIL)
    run = load(place / "run")
    assert [r.layout for r in run.rows if r.status == "crashed"] == ["columns"]
    assert {"contiguous", "bshd", "packed", "gaps", "expanded"} == {r.layout for r in run.rows if r.status == "ok"}
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


# ------------------------------------------------------------------------------------------------ budgets


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


# ------------------------------------------------------------------------------------------------ records


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
        (_newer, "upgrade flashproof"),
    ],
    ids=["missing", "no-run", "manifest", "verdict", "results", "newer"],
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


# ------------------------------------------------------------------------------------------------ where to write


@pytest.mark.parametrize("out", ["kernels.py", "kernels.py/run", "/proc/run"])
def test_out_that_cannot_be_written(place: Path, out: str) -> None:
    if out.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    done = flashproof("verify", "kernels.py:attention", "--out", out)
    assert_refused(done, out, "--out")
    assert (place / "kernels.py").read_text() == KERNELS


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


# ------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Missing command. (see `flashproof --help`)"),
        (("verify",), "Missing argument 'IMPL'. (see `flashproof verify --help`)"),
        (("verifi", "flash"), "No such command 'verifi'"),
        (("verify", "flash", "--seed", "-1"), "Invalid value for '--seed'"),
        (("verify", "flash", "--cases", "0"), "Invalid value for '--cases'"),
        (("verify", "flash", "--examples", "-1"), "Invalid value for '--examples'"),
        (("verify", "flash", "--sed", "1"), click.NoSuchOption("--sed").format_message().rstrip(".")),
        (("verify", "flash", "--profile", "slow"), "'slow' is not one of 'quick', 'ci', 'deep'"),
    ],
)
def test_misspelt(place: Path, arguments: tuple[str, ...], says: str) -> None:
    assert_refused(flashproof(*arguments), says)
    assert not list(place.glob("flashproof-run*"))


def test_no_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert_refused(flashproof("verify", "flash", "--device", "cuda"), "no CUDA device", "--device cpu")


# ------------------------------------------------------------------------------------------------ replay

CASE = {"B": 1, "H": 2, "HK": 1, "M": 3, "N": 5, "D": 4, "dtype": "fp16", "regime": "normal", "seed": 0}


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ('{"B": 1,', "not a case: not JSON"),
        ("[1, 2]", "neither a JSON object nor a readable file"),
        ("nowhere.json", "neither a JSON object nor a readable file"),
        ("small.toml", "not a case: not JSON"),
        ("list.json", "expected a JSON object"),
        (json.dumps({**CASE, "M": "3"}), "M: Input should be a valid integer"),
        (json.dumps({**CASE, "mask": {"casual": True}}), "mask.casual: unknown key"),
        (json.dumps({**CASE, "regime": "weird"}), "unknown regime 'weird'; there are normal, "),
        (json.dumps({**CASE, "HK": 3}), "HK = 3 key/value heads must divide H = 2"),
        (json.dumps({**CASE, "M": -1}), "M must be at least 0"),
    ],
)
def test_replay_of_what_is_no_case(place: Path, case: str, says: str) -> None:
    (place / "list.json").write_text("[1, 2]")
    assert_refused(flashproof("replay", case, "kernels.py:attention"), says)


def test_replay(place: Path) -> None:
    (place / "case.json").write_text(json.dumps(CASE))
    good = flashproof("replay", "case.json", "kernels:attention")  # a module of the current folder
    assert_tidy(good, PASS)
    assert "pass all" in good.stdout
    bad = flashproof("replay", "case.json", "kernels.py:imprecise")
    assert_tidy(bad, FAIL)
    assert "FAIL bound out" in bad.stdout
    died = flashproof("replay", json.dumps({**CASE, "M": 121}), "kernels.py:dies")
    assert_tidy(died, FAIL)
    assert "killed by SIGSEGV" in died.stdout


# ------------------------------------------------------------------------------------------------ interruption


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
