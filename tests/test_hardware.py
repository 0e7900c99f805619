"""The records of GPU runs: what is computed from them, and what they say when something is wrong."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flashproof.reports.hardware import (
    ULP_BINS,
    Bench,
    Silicon,
    Speed,
    bench_markdown,
    memory_growth,
    memory_limits,
    over_eager,
    silicon_markdown,
    speedups,
)
from flashproof.reports.hardware import load as load_records
from flashproof.reports.record import RecordError
from flashproof.verify.bench import error_of, problems
from flashproof.verify.case import Case
from flashproof.verify.cli.hardware import _without_out
from flashproof.verify.errors import ulps_between
from flashproof.verify.implementation import recognise
from flashproof.verify.loading import load
from flashproof.verify.silicon import bias_of, distances_of, exact_of, summed
from flashproof.verify.worker import prepare

NARROW_SPACE = "\u202f"
COMMAND = [sys.executable, "-m", "flashproof"]
RECORDS = Path(__file__).parents[1] / "examples" / "h200"
WHERE = {
    "created": "2026-01-01",
    "command": "flashproof bench",
    "device": "a GPU",
    "driver": "1",
    "versions": {"torch": "2"},
}
PLAIN = {"dtype": "bf16", "causal": False, "B": 4, "H": 16, "D": 128, "status": "ok"}


def speed(name: str, N: int, forward: float, memory: int, **other) -> Speed:
    return Speed(**PLAIN | {"implementation": name, "N": N, "forward": forward, "memory": memory} | other)


def bench(*results: Speed) -> Bench:
    return Bench(**WHERE, results=results)


def test_rates_count_useful_operations():
    """4 B H N^2 D forward, 10 backward, half of it under a causal mask."""
    one = speed("flash", 1024, 1.0, 0, backward=1.0)
    operations = 4 * 4 * 16 * 1024**2 * 128
    assert one.rate("forward") == pytest.approx(operations / 1e-3 * 1e-12)
    assert one.rate("backward") == pytest.approx(2.5 * operations / 1e-3 * 1e-12)
    assert one.model_copy(update={"causal": True}).rate("forward") == pytest.approx(0.5 * operations / 1e-3 * 1e-12)
    assert one.rate("both") == pytest.approx(3.5 * operations / 2e-3 * 1e-12)
    none = one.model_copy(update={"forward": None})
    assert none.rate("forward") is None
    assert none.rate("both") is None


def test_speedups_compare_what_ran_on_the_same_problem():
    record = bench(
        speed("flash", 4096, 2.0, 1), speed("other", 4096, 3.0, 1),
        speed("flash", 8192, 8.0, 1), speed("other", 8192, 4.0, 1),
        speed("flash", 512, 1.0, 1), speed("other", 512, 9.0, 1), speed("other", 16384, 9.0, 1),
        speed("gone", 4096, 1.0, 1).model_copy(update={"status": "out of memory", "forward": None}),
    )  # fmt: skip
    assert speedups(record) == {("other", "bf16", False, 128, "forward"): [1.5, 0.5]}
    text = bench_markdown(record)
    assert "out of memory" in text
    assert "| other | bf16 | none | 128 | 1.00 (0.50) |  | 2 |" in text


def test_times_are_compared_with_standard_attention_at_one_length():
    """Its time over the other's, so that more is better; where either did not run, there is no ratio."""
    record = bench(
        speed("eager", 4096, 8.0, 1, backward=9.0), speed("a", 4096, 2.0, 1, backward=3.0), speed("b", 4096, 16.0, 1),
        speed("eager", 2048, 1.0, 1), speed("a", 2048, 1.0, 1),
        speed("a", 4096, 1.0, 1, dtype="fp16"), speed("eager", 4096, 1.0, 1, causal=True),
        speed("c", 4096, 1.0, 1).model_copy(update={"status": "refused", "forward": None}),
    )  # fmt: skip
    assert over_eager(record) == {("a", "bf16", False, 128): (4.0, 3.0), ("b", "bf16", False, 128): (0.5, None)}
    text = bench_markdown(record)
    assert "(eager) over another's, N = 4096:" in text
    assert "| a | bf16 | none | 128 | 4.00 | 3.00 |\n| b | bf16 | none | 128 | 0.50 |  |" in text
    assert "(eager) over" not in bench_markdown(bench(*record.results[1:]))


def test_the_length_that_runs_out_of_memory_is_the_smallest():
    gone = {"status": "out of memory", "forward": None, "memory": None}
    record = bench(*(
        speed("x", n, 1.0, 1, dtype=dtype, causal=causal).model_copy(update=gone)
        for dtype in ("bf16", "fp16") for causal in (False, True) for n in (8192, 4096, 16384)
    ), speed("x", 2048, 1.0, 1), speed("y", 1024, 1.0, 1).model_copy(update=gone | {"status": "refused"}))  # fmt: skip
    assert memory_limits(record) == {("x", d, c, 128): 4096 for d in ("bf16", "fp16") for c in (False, True)}
    assert "from this length on:" in bench_markdown(record)
    assert "| x | bf16, fp16 | none, causal | 128 | 4096 |" in bench_markdown(record)
    assert "from this length on:" not in bench_markdown(bench(speed("x", 2048, 1.0, 1)))


@pytest.mark.parametrize("power", [1, 2])
def test_the_power_of_memory_is_found(power):
    record = bench(*(speed("x", n, 1.0, 64 * n**power * 4, B=4) for n in (512, 1024, 4096)))
    slope, n = memory_growth(record)["x"]
    assert slope == pytest.approx(power)
    assert n == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_distances_in_ulp(dtype):
    one = torch.tensor(1.0, dtype=dtype)
    up = torch.nextafter(one.float(), torch.tensor(2.0)) if dtype == torch.float32 else one + torch.finfo(dtype).eps
    x = torch.stack([one, one, -one, torch.tensor(0.0, dtype=dtype), torch.tensor(-0.0, dtype=dtype)])
    y = torch.stack([one, up.to(dtype), -up.to(dtype), torch.tensor(-0.0, dtype=dtype), torch.tensor(0.0, dtype=dtype)])
    assert ulps_between(x, y).tolist() == [0, 1, 1, 0, 0]
    smallest = torch.tensor([torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps], dtype=dtype)
    assert ulps_between(smallest, -smallest).tolist() == [2], "across zero, where it is counted once"


def test_another_rounding_shows_in_the_distances():
    """The interpreter stands in for the GPU: by itself it is at no distance, and its own truncated sums are at some."""
    flash = prepare("flash", "cpu")
    case = Case(B=1, H=2, HK=1, M=70, N=90, D=64, dtype="fp16", regime="normal", seed=0)
    found = {(d.arithmetic, d.tensor): d for d in summed(distances_of(flash, "cpu", case)) if d.tiles == "its own"}
    for (arithmetic, tensor), d in found.items():
        assert sum(d.shares) == pytest.approx(1.0)
        assert len(d.shares) == len(ULP_BINS)
        if arithmetic == "ieee":
            assert d.shares[0] == 1.0, f"{tensor} is not at distance 0 from itself"
            assert d.beside_error == 0.0
    assert found["tensor_core", "dq"].shares[0] < 1.0
    assert found["tensor_core", "dq"].beside_error > 0.0


@pytest.mark.parametrize(("name", "right"), [
    ("flash", True), ("mutant:reciprocal-in-half", False), ("mutant:log2e-3-digits", False),
])  # fmt: skip
def test_integers_show_what_should_not_round(name, right):
    assert (exact_of(prepare(name, "cpu"), "cpu", "bf16").mismatches == 0) == right


def test_both_signatures_are_understood():
    """As flash_attn has it: [B, S, H, D], and a scale by another name."""
    flash = prepare("flash", "cpu").function

    def attention(q, k, v, softmax_scale=None, causal=False):
        return flash(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal, scale=softmax_scale).transpose(1, 2)

    theirs = recognise("theirs", attention)
    assert exact_of(theirs, "cpu", "fp16").mismatches == 0
    assert bias_of(theirs, "cpu", "fp16", 128) == bias_of(load("flash"), "cpu", "fp16", 128).model_copy(
        update={"implementation": "theirs"}
    )


def test_bench_calls_both_signatures_as_their_users_do():
    """The same numbers; tensors contiguous in the function's own layout, and no LSE that nobody asked for."""
    flash, seen = prepare("flash", "cpu").function, []

    def attention(q, k, v, softmax_scale=None, causal=False, return_attn_probs=False):
        seen.append((q.is_contiguous(), return_attn_probs))
        return flash(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal, scale=softmax_scale).transpose(1, 2)

    (case,) = [c for c in problems(["bf16"], [16], [16]) if c.mask.causal]
    few = case.with_(B=1, H=2, HK=2)
    theirs, own = (error_of(i, few, "cpu") for i in (recognise("theirs", attention), load("flash")))
    assert theirs == pytest.approx(own)
    assert set(own) == {"out", "dq", "dk", "dv"}
    assert all(0.0 < error < 4.0 for error in own.values())
    assert seen == [(True, False)]


def test_eager_is_standard_attention():
    """In the operators of torch, on a CPU the same bits forward."""
    q, k, v = (torch.randn(2, 4, 33, 16, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(3))
    for causal in (False, True):
        theirs, ours = (load(name).function(q, k, v, is_causal=causal) for name in ("eager", "standard"))
        assert torch.equal(theirs, ours)
    assert torch.equal(load("eager").function(q, k[:, :2], v[:, :2], enable_gqa=True),
                       load("standard").function(q, k[:, :2], v[:, :2], enable_gqa=True))  # fmt: skip


def test_truncation_shows_as_a_bias():
    """Of the values in the first half of the bits' unit; a kernel that is merely rounded has none."""
    assert abs((sound := bias_of(prepare("flash", "cpu"), "cpu", "bf16", 256)).mean) < 5 * sound.spread + 1e-4
    wrong = bias_of(prepare("mutant:output-truncated", "cpu"), "cpu", "bf16", 256)
    assert wrong.mean < -10 * wrong.spread


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["bench", "silicon"])
def test_without_a_gpu_nothing_stands_in_for_it(command, tmp_path):
    done = subprocess.run(
        [*COMMAND, command, "--out", str(tmp_path / "x")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 4
    assert done.stderr == "flashproof: torch sees no CUDA device, and nothing measured on a CPU stands in for one\n"
    assert not (tmp_path / "x").exists()


def test_a_record_does_not_say_where_it_was_written():
    assert _without_out(["bench", "flash", "--out", "/x", "--dim", "64"]) == ["bench", "flash", "--dim", "64"]
    assert _without_out(["silicon", "--out=/x", "--cases", "5"]) == ["silicon", "--cases", "5"]


def test_the_records_that_are_kept_can_be_read():
    speeds = Bench.model_validate_json((RECORDS / "bench.json").read_text())
    assert "NVIDIA" in bench_markdown(speeds)
    apart = Silicon.model_validate_json((RECORDS / "silicon.json").read_text())
    assert apart.cases == 500
    assert silicon_markdown(apart).count("| tensor_core |") == 18


def test_a_folder_is_read_for_what_it_holds(tmp_path):
    kept = load_records(RECORDS)
    assert kept.bench == Bench.model_validate_json((RECORDS / "bench.json").read_text())
    assert kept.silicon == Silicon.model_validate_json((RECORDS / "silicon.json").read_text())
    assert load_records(tmp_path) is None
    assert load_records(tmp_path / "missing") is None
    text = (RECORDS / "silicon.json").read_text()
    (tmp_path / "silicon.json").write_text(text)
    assert load_records(tmp_path).bench is None
    assert load_records(tmp_path).silicon == kept.silicon
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(RecordError, match=r"bench\.json: .*\(and \d+ more\)$"):
        load_records(tmp_path)


@pytest.mark.parametrize(("key", "value"), [
    ("B", 0), ("N", -1), ("N", 2**31), ("forward", 0.0), ("forward", -1.0), ("forward", "NaN"),
    ("backward", "Infinity"), ("memory", -1), ("memory", 0.5), ("causal", "perhaps"), ("unknown", 1),
])  # fmt: skip
def test_what_no_measurement_gives_is_no_record(tmp_path, key, value):
    record = json.loads(bench(speed("flash", 512, 1.0, 1, backward=1.0)).model_dump_json())
    (tmp_path / "bench.json").write_text(json.dumps(record))
    assert load_records(tmp_path) is not None
    record["results"][0][key] = value
    (tmp_path / "bench.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match=key):
        load_records(tmp_path)


def test_the_readme_says_what_the_records_say():
    """Rows as the commands print them; biases and counts as the record has them."""
    readme = (RECORDS.parents[1] / "README.md").read_text()
    apart = Silicon.model_validate_json((RECORDS / "silicon.json").read_text())
    speeds = Bench.model_validate_json((RECORDS / "bench.json").read_text())
    printed = (bench_markdown(speeds) + silicon_markdown(apart)).splitlines()
    section = readme[readme.index("Two commands measure") : readme.index("## Is the yardstick straight?")]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) == 18
    assert set(rows) <= set(printed)
    forward, backward = zip(*(r for key, r in over_eager(speeds).items() if key[0] == "flash"), strict=True)
    for found, said in ((forward, "4.0 to 23.1"), (backward, "1.7 to 9.4")):
        assert f"{min(found):.1f} to {max(found):.1f}" == said
        assert said in section
    assert {n for key, n in memory_limits(speeds).items() if key[0] == "eager"} == {32768}
    assert "N = 32768 it runs out of memory" in section.replace("\n", " ")
    growth = {name: f"{power:.2f}" for name, (power, _) in memory_growth(speeds).items()}
    assert (growth["flash"], growth["eager"]) == ("1.00", "2.01")
    assert "to the power 1.00, standard attention's 2.01" in section
    errors = {n: [s.errors["out"] for s in speeds.results if s.implementation == n and s.errors] for n in growth}
    assert (f"{min(errors['flash']):.2f}", f"{max(errors['flash']):.2f}") == ("0.49", "0.58")
    assert (f"{min(errors['eager']):.2f}", f"{max(errors['eager']):.2f}") == ("0.90", "1.48")
    for fused in ("sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "flex"):
        assert errors[fused] == pytest.approx(errors["flash"], abs=0.02)
    assert "0.49 to 0.58" in section
    assert "0.90 to 1.48" in section
    bias = {(b.implementation, b.N): b for b in apart.biases if b.dtype == "fp16"}
    for n, unrounded, own in ((4096, "2.6e-5", "2.3e-5"), (16384, "1.0e-4", "7.9e-5"), (65536, "4.1e-4", "1.9e-4")):
        assert unrounded in section
        assert own in section
        assert -bias["variant:divide-by-unrounded-sum", n].mean == pytest.approx(float(unrounded), rel=0.05)
        assert -bias["flash", n].mean == pytest.approx(float(own), rel=0.05)
    assert sum(e.mismatches for e in apart.exact) == 0
    assert f"{sum(e.elements for e in apart.exact):,}" in section


def test_the_readme_says_what_the_verdicts_say():
    readme = (RECORDS.parents[1] / "README.md").read_text()
    section = readme[readme.index("## On a GPU") :]
    verdicts = section[section.index("| implementation | verdict") :].split("\n\n")[0].splitlines()[2:]
    assert len(verdicts) == 6 == len(list(RECORDS.glob("verdicts/*.json")))
    for row in verdicts:
        name, verdict, cases, said = (cell.strip() for cell in row.strip("|").split("|"))
        manifest = json.loads((RECORDS / "verdicts" / f"{name}.json").read_text())
        assert manifest["implementation"] == name
        assert manifest["device"].startswith("cuda (NVIDIA H200")
        assert manifest["versions"]["torch"] == "2.11.0"
        summary = html.unescape((RECORDS / "verdicts" / f"{name}.md").read_text())
        assert summary.splitlines()[0].endswith(f"flashproof {name}: {verdict}")
        assert f"\n{cases.replace(',', NARROW_SPACE)} cases (" in summary
        failed = [line for line in summary.splitlines() if line.startswith("| ❌ fail | ")]
        assert bool(failed) == bool(said)
        for one in filter(None, said.split("; ")):
            check, of, counts = re.fullmatch(r"`(.+)`(?: of (\w+))?: (.*)", one).groups()
            ends = (f": in the survey {counts} |", f"| {counts} |")
            assert any(f"| {check} | {of or 'all'} |" in f and f.endswith(ends) for f in failed), one
    (time,) = re.findall(r"bundled kernel's cases took (.+?) with 16", section)
    assert f"hunt) in {time}, profile ci" in (RECORDS / "verdicts" / "flash.md").read_text()
    for name in ("sdpa-flash", "sdpa-cudnn", "sdpa-efficient"):
        summary = (RECORDS / "verdicts" / f"{name}.md").read_text()
        assert re.search(r"\| returns \| all \| [^|]+ \| \d+ crashed[ :]", summary)
        efficient = name == "sdpa-efficient"
        padded = "layout 'gaps', after one that hung or died"
        assert ("misaligned address" in summary) == (padded in summary) != efficient
        assert ("illegal memory access" in summary) == ("16 of these hung or died" in summary) == efficient


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, by itself
def test_flex_attention_is_there():
    """It takes no mask tensor; that is listed as not covered, not run under another name."""
    flex = load("flex")
    assert "attn_mask" not in flex.options
    assert {"is_causal", "window"} <= flex.options
    q = torch.zeros(1, 1, 4, 16)
    with pytest.raises(NotImplementedError, match="CUDA"):
        flex.function(q, q, q)
