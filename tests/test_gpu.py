"""The compiled kernels, on a CUDA device: `pytest -m gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flashproof.verify.case import Case, MaskRecipe
from flashproof.verify.evaluate import evaluate
from flashproof.verify.loading import load
from flashproof.verify.pool import Pool
from flashproof.verify.silicon import exact_of
from flashproof.verify.worker import prepare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

COMMAND = [sys.executable, "-m", "flashproof"]
MASKS = {
    "none": MaskRecipe(),
    "causal": MaskRecipe(causal=True, alignment="bottom-right"),
    "window": MaskRecipe(window=(7, 33)),
    "boolean": MaskRecipe(boolean="empty-rows"),
    "bias": MaskRecipe(causal=True, bias="alibi"),
    "lengths": MaskRecipe(key_lengths=True),
}


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("d", [3, 16, 40, 64, 128, 256])
def test_the_compiled_kernels_are_right(d, dtype, mask):
    """Tiles whole and not, masks, grouped heads, layouts, a scale below 0: everything that one case is asked."""
    flash = prepare("flash", "cuda")
    case = Case(B=2, H=4, HK=2, M=270, N=290, D=d, dtype=dtype, regime="normal", seed=d, mask=MASKS[mask])
    for one in (case, case.with_(layout="gaps", scale=-0.2, M=33, N=129)):
        result = evaluate(one, flash, "survey", device="cuda")
        assert result.status == "ok", result.rows
        assert not result.failed


def test_no_cases_at_all_fail():
    done = cli("verify", "flash", "--device", "cuda", "--cases", "150", "--examples", "8")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["scale-off-by-a-thousandth", "tail-keys-counted", "group-first-member-only"])
def test_a_fault_is_found_on_the_device(name, tmp_path):
    """With its smallest case, which replay and the script show there."""
    run = tmp_path / "run"
    done = cli("verify", f"mutant:{name}", "--device", "cuda", "--cases", "60", "--examples", "0", "--out", str(run))
    assert done.returncode == 1, done.stderr[-2000:]
    assert torch.cuda.get_device_name() in json.loads((run / "manifest.json").read_text())["device"]
    finding = json.loads((run / "findings" / "001.json").read_text())
    again = cli("replay", json.dumps(finding["case"]), f"mutant:{name}", "--device", "cuda")
    assert again.returncode == 1, again.stderr[-2000:]
    script = subprocess.run([sys.executable, run / "findings" / "001.py"], capture_output=True, text=True, timeout=120)
    assert script.returncode == 1, script.stderr[-2000:]


_WILD = """
import torch
import triton
import triton.language as tl
from torch.nn.functional import scaled_dot_product_attention as sdpa


@triton.jit
def wild(x):
    tl.store(x + (1 << 40), 1.0)


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if query.shape[2] == 9:
        wild[(1,)](torch.empty(1, device=query.device))
    return sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
"""


def test_a_context_that_a_kernel_broke_costs_one_case(tmp_path):
    (tmp_path / "wild.py").write_text(_WILD)
    plain = Case(B=1, H=1, HK=1, M=8, N=8, D=16, dtype="fp16", regime="normal", seed=0)
    cases = [plain.with_(seed=n, M=9 if n == 2 else 8) for n in range(6)]
    pool = Pool(f"{tmp_path / 'wild.py'}:attention", "cuda", 1, 120.0)
    try:
        results = list(pool.evaluate(cases, "survey", stores=False))
    finally:
        pool.stop()
    assert [r.status for r in results] == ["ok", "ok", "crashed", "ok", "ok", "ok"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_where_nothing_rounds_the_bits_are_those_computed(dtype):
    assert exact_of(load("flash"), "cuda", dtype).mismatches == 0


def test_long_sequences():
    """Tiles by the thousand, and gradients over all of them."""
    flash = prepare("flash", "cuda")
    case = Case(B=1, H=2, HK=1, M=2111, N=4099, D=64, dtype="bf16", regime="normal", seed=1,
                mask=MaskRecipe(causal=True, alignment="bottom-right"))  # fmt: skip
    result = evaluate(case, flash, "survey", device="cuda", thorough=False)
    assert result.status == "ok"
    assert not result.failed


def test_silicon_and_bench_write_records(tmp_path):
    done = cli("silicon", "--cases", "16", "--out", str(tmp_path / "s"))
    assert done.returncode == 0, done.stderr[-2000:]
    done = cli(
        "bench",
        "flash",
        "sdpa-flash",
        "--length",
        "512",
        "--dim",
        "64",
        "--dtype",
        "bf16",
        "--out",
        str(tmp_path / "b"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {p.name for p in Path(tmp_path).glob("*/*")} == {"silicon.json", "silicon.md", "bench.json", "bench.md"}
