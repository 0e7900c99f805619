"""A correct user's kernel, and copies of it with one fault each: verified as a user does, through the command.

Each fault must end with exit code 1 and a finding whose case is minimal, replays bit for bit, and whose script shows
the fault where flashproof is not installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flashproof.verify.case import case_of
from flashproof.verify.evaluate import evaluate
from flashproof.verify.gates import STATISTICAL
from flashproof.verify.loading import load
from flashproof.verify.regimes import REGIMES

pytestmark = pytest.mark.slow

KERNELS = Path(__file__).parent / "kernels"
TILED = (KERNELS / "tiled.py").read_text()
COMMAND = str(Path(sys.executable).with_name("flashproof"))
_TRUNCATED = """((acc / l.masked_fill(empty, 1.0)).view(torch.int32)
               & (-65536 if q.dtype == torch.bfloat16 else -8192)).view(torch.float32).to(q.dtype)"""

#: name -> (text of the sound kernel, text of the faulty one, tensors that may be named)
FAULTS = {
    "last key dropped": (
        "s.masked_fill(~visible[..., cols], -math.inf)",
        "s.masked_fill(~(visible[..., cols] & (torch.arange(N)[cols] < max(N - 1, 1))), -math.inf)", {"out", "lse"}),
    "tail keys unmasked": (
        "l = l * alpha + p.sum(-1, keepdim=True)",
        "l = l * alpha + p.sum(-1, keepdim=True) + (TILE - p.shape[-1]) * torch.exp(-m_safe)", {"out", "lse"}),
    "causal offset when M != N": (".tril()", ".tril(N - M)", {"out", "lse"}),
    "l not rescaled": ("l = l * alpha + p", "l = l + p", {"out", "lse"}),
    "dk lacks the scale": ("dk = ds.mT @ q.float() * ctx.scale", "dk = ds.mT @ q.float()", {"dk"}),
    "LSE in base 2": ("return (out, lse)", "return (out, lse * 1.4426950408889634)", {"lse"}),
    "store truncates": ("out = (acc / l.masked_fill(empty, 1.0)).to(q.dtype)", f"out = {_TRUNCATED}", {"out"}),
    "NaN on an empty row": ("l.masked_fill(empty, 1.0)).to", "l).to", {"out"}),
    "h % g for h // g": ("heads = torch.arange(H) // (H // HK)", "heads = torch.arange(H) % HK", {"out", "lse"}),
}  # fmt: skip


#: of a survey that finds it; a distribution tells slowly
CASES = dict.fromkeys(FAULTS, 60) | {"store truncates": 150}


def run(*arguments, cwd):
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=600, check=False
    )


@pytest.mark.parametrize(
    ("kernel", "cases"),
    [("tiled.py:attention", 200), ("flash_attn_like.py:flash_attn_func", 120), ("triton_forward.py:attention", 120)],
)
def test_correct_kernels_pass_unconfigured(kernel, cases, tmp_path):
    done = run("verify", KERNELS / kernel, "--workers", 1, "--cases", cases, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["verdict"] == "pass" and verdict["findings"] == []
    assert verdict["counts"]["survey"] >= cases - 40
    assert {c["name"] for c in verdict["checks"] if c["status"] == "pass"} >= {
        "finite",
        "bound",
        "ratio",
        "predictor",
        "bias",
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault, tmp_path):
    sound, faulty, tensors = FAULTS[fault]
    assert TILED.count(sound) == 1
    (tmp_path / "kernel.py").write_text(TILED.replace(sound, faulty))
    size = ("--workers", 1, "--cases", CASES[fault], "--examples", 8)
    done = run("verify", "kernel.py:attention", *size, "--out", "run", cwd=tmp_path)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-2000:]
    findings = sorted((tmp_path / "run" / "findings").glob("*.json"))
    assert findings
    assert json.loads(findings[0].read_text())["tensor"] in tensors
    for path in findings:
        finding = json.loads(path.read_text())
        assert "not proven minimal" not in finding["detail"]
        assert_minimal(finding, f"{tmp_path}/kernel.py:attention")
    assert_replays(findings[0], json.loads(findings[0].read_text()), tmp_path)
    assert_script_shows_it(findings[0].with_suffix(".py"), tmp_path)


def test_little_more_is_asked_of_what_has_failed(tmp_path):
    sound, faulty, _ = FAULTS["LSE in base 2"]
    (tmp_path / "kernel.py").write_text(TILED.replace(sound, faulty))
    done = run("survey", "kernel.py:attention", "--workers", 1, "--cases", 140, "--out", "run", cwd=tmp_path)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-2000:]
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert "more than 2 cases of each kind of input: it fails without them" in verdict["not_covered"]
    assert verdict["counts"]["comparison"] == 4 * len(REGIMES)  # of two dtypes, two each
    replays = [
        run("replay", *words, cwd=tmp_path)
        for words in (["run/findings/001.json"], [json.dumps(verdict["findings"][0]["case"]), "kernel.py:attention"])
    ]
    assert replays[0].returncode == 1 and replays[0].stdout == replays[1].stdout


def test_a_window_off_by_one(tmp_path):
    text = (KERNELS / "flash_attn_like.py").read_text()
    assert text.count("j >= i - left") == 1
    (tmp_path / "kernel.py").write_text(text.replace("j >= i - left", "j > i - left"))
    size = ("--workers", 1, "--cases", 60, "--examples", 0)
    done = run("verify", "kernel.py:flash_attn_func", *size, "--out", "run", cwd=tmp_path)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-2000:]
    finding = json.loads((tmp_path / "run" / "findings" / "001.json").read_text())
    assert finding["case"]["mask"]["window"] is not None
    assert run("replay", "run/findings/001.json", cwd=tmp_path).returncode == 1
    assert_script_shows_it(tmp_path / "run" / "findings" / "001.py", tmp_path)


def test_triton_s_own_interpreter_stays_out_of_the_way(tmp_path, monkeypatch):
    """It multiplies the bit patterns of bf16: its garbage must never be reported as a kernel's failure."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    text = (KERNELS / "triton_forward.py").read_text()
    assert text.count("import torch\n") == 1
    asking = text.replace("import torch\n", "import os\nos.environ['TRITON_INTERPRET'] = '1'\nimport torch\n")
    (tmp_path / "kernel.py").write_text(asking)
    done = run("survey", "kernel.py:attention", "--workers", 1, "--cases", 40, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_an_out_of_bounds_read_in_triton(tmp_path):
    """Named with the kernel's source line, and shown by the script as a fault of memory protection."""
    text = (KERNELS / "triton_forward.py").read_text()
    line = "k = tl.load(K + head * N * D + on[:, None] * D + od[None, :], mask=inside, other=0.0)"
    assert text.count(line) == 1
    (tmp_path / "kernel.py").write_text(text.replace(line, line.replace("mask=inside", "mask=od[None, :] < D")))
    done = run(
        "verify", "kernel.py:attention", "--workers", 1, "--cases", 40, "--examples", 0, "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-2000:]
    finding = json.loads((tmp_path / "run" / "findings" / "001.json").read_text())
    number = text[: text.index(line)].count("\n") + 1
    assert "out-of-bounds read" in finding["detail"] and f"kernel.py:{number}]" in finding["detail"]
    assert_script_shows_it(tmp_path / "run" / "findings" / "001.py", tmp_path)


def fails(case, implementation, finding):
    """In any way; or, if a distribution found it, in this one: among many small cases some look odd by chance."""
    statistical = finding["check"] in STATISTICAL
    failed = evaluate(case, implementation, "hunt", statistical=statistical).failed
    if not statistical:
        return any(c.name != "batch-invariance" for c in failed)
    of_tensor = [c.name for c in failed if c.tensor == finding["tensor"]]
    return any(name == finding["check"] or name not in STATISTICAL for name in of_tensor)


def assert_minimal(finding, spec):
    case = case_of(finding["case"])
    implementation = load(spec)
    assert fails(case, implementation, finding)
    for name, lowest in (("B", 1), ("M", 0), ("N", 0), ("D", 1)):
        for value in range(lowest, getattr(case, name)):
            assert not fails(case.with_(**{name: value}), implementation, finding), f"{name} = {value} fails too"
    for H in range(1, case.H):
        for HK in range(1, H + 1):
            if H % HK == 0:
                assert not fails(case.with_(H=H, HK=HK), implementation, finding), f"H = {H}, HK = {HK} fails too"


def assert_replays(path, finding, cwd):
    done = run("replay", path, cwd=cwd)
    assert done.returncode == 1 and f"observed {finding['observed']:.9g}" in done.stdout


def assert_script_shows_it(script, cwd):
    """With a `flashproof` in the way that cannot be imported."""
    block = cwd / "block" / "flashproof"
    block.mkdir(parents=True, exist_ok=True)
    (block / "__init__.py").write_text("raise ImportError('not installed')")
    environment = os.environ | {"PYTHONPATH": str(block.parent)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
