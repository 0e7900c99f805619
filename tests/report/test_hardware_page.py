"""The part of a report on GPU records: whatever they hold, it says it, escapes it, fits, and is drawn."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flashproof.reports import hardware_page
from flashproof.reports.hardware import Bench, Bias, Distance, Exact, Records, Silicon, Speed
from flashproof.reports.html import MAX_BYTES, render
from flashproof.reports.record import Answer, Exactness, Manifest, Run, Verdict, write_json_atomic

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Opened = Callable[..., tuple[Page, list[str]]]

FLASHPROOF = [sys.executable, "-m", "flashproof"]
HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=alert(2)>{{7*7}}]]>\ud800\u2028\"'&"
REASON = "RuntimeError: head dimension not supported"
WHERE: dict[str, Any] = {
    "created": "2026-01-01T00:00:00+00:00",
    "command": "flashproof bench --out gpu",
    "device": "GPU X",
    "driver": "1.2",
    "versions": {"torch": "9.8.7"},
}
BENCH_FIGURES = ("bench-0-speed", "bench-0-errors", "bench-0-memory")
SILICON_FIGURES = ("silicon-0-distances", "silicon-0-beside", "silicon-0-bias")


def speed(name: str, n: int, forward: float | None = 1.0, status: str = "ok", **other: Any) -> Speed:
    values: dict[str, Any] = dict(implementation=name, dtype="bf16", causal=False, B=2, H=4, N=n, D=64, status=status)
    if status == "ok":
        times = {"forward": forward, "backward": 3.0 * forward if forward else None}
        values |= {**times, "memory": 1000 * n, "errors": {"out": 0.5, "dq": 0.75} if n <= 4096 else {}}
    return Speed(**values | other)


def bench(*results: Speed, **other: Any) -> Bench:
    return Bench(**WHERE | other, results=results)


def everyday() -> Bench:
    """Two dtypes and masks, one implementation that runs out of memory, one that never runs."""
    results = []
    for dtype in ("bf16", "fp16"):
        for causal in (False, True):
            for n in (512, 2048, 4096, 16384):
                kind: dict[str, Any] = {"dtype": dtype, "causal": causal}
                results += [speed("flash", n, 1.0 * n, **kind), speed("other", n, 1.5 * n, **kind)]
                results.append(speed("eager", n, 8.0 * n, "ok" if n < 16384 else "out of memory", **kind))
                results.append(speed("broken", n, None, REASON, **kind))
    return bench(*results)


def silicon(**other: Any) -> Silicon:
    distances = [
        Distance(arithmetic=arithmetic, tiles=tiles, tensor=tensor, dtype=dtype, cases=7, elements=12345,
                 shares=(0.9, 0.05, 0.03, 0.01, 0.0075, 0.0025), beside_error=beside)
        for arithmetic in ("ieee", "tensor_core") for tiles in ("its own", "the same")
        for tensor, dtype, beside in (("out", "fp16", 0.01), ("out", "bf16", 0.0), ("lse", "fp32", None))
    ]  # fmt: skip
    biases = [
        Bias(implementation=name, dtype="fp16", N=n, elements=4096, mean=-1e-8 * n, spread=1e-6, rounding=2.0**-11)
        for name in ("flash", "other") for n in (4096, 16384)
    ]  # fmt: skip
    exact = (Exact(dtype="fp16", elements=204800, mismatches=0), Exact(dtype="fp32", elements=1000, mismatches=3))
    values = dict(implementation="flash", cases=14, distances=distances, biases=biases, exact=exact)
    return Silicon(**WHERE | values | other)


def both() -> Records:
    return Records(everyday(), silicon())


def small_run(name: str = "flash") -> Run:
    """A run that recorded nothing, with a verdict that says so."""
    manifest = Manifest(implementation=name, profile="ci", seed=0, created="2026-01-01", command="flashproof verify",
                        device="cpu", versions={}, machine={})  # fmt: skip
    answer = Answer(status="skipped", evidence="nothing was measured")
    verdict = Verdict(implementation=name, verdict="nothing-measured", sentence="Nothing was measured.",
                      exactness=Exactness(algebraic=answer, bitwise=answer, accuracy=answer))  # fmt: skip
    return Run(Path("run"), manifest, verdict, (), ())


def hostile() -> Records:
    """A hostile string wherever a record has text."""
    dirty: dict[str, Any] = dict.fromkeys(("created", "command", "device", "driver"), HOSTILE)
    dirty["versions"] = {HOSTILE: HOSTILE}
    results = [
        s.model_copy(update={"implementation": HOSTILE, "dtype": HOSTILE, "errors": {HOSTILE: 1.0}})
        for s in everyday().results[:6]
    ]
    results += [s.model_copy(update={"status": HOSTILE}) for s in everyday().results[6:9]]
    found = silicon()
    text = {"arithmetic": HOSTILE, "tiles": HOSTILE, "tensor": HOSTILE, "dtype": HOSTILE}
    distances = [d.model_copy(update=text) for d in found.distances[:1]]
    biases = [b.model_copy(update={"implementation": HOSTILE, "dtype": HOSTILE}) for b in found.biases]
    exact = [e.model_copy(update={"dtype": HOSTILE}) for e in found.exact]
    return Records(
        bench(*results, **dirty),
        silicon(**dirty, implementation=HOSTILE, distances=distances, biases=biases, exact=exact),
    )


def not_numbers() -> Records:
    """What no sound kernel gives."""
    wild = {"out": float("nan"), "dq": float("inf"), "dk": 1e-300}
    found = silicon()
    odd = {"beside_error": float("nan"), "shares": (float("nan"), 2.0, -1.0, float("inf"), 0.0, 0.0)}
    distances = [d.model_copy(update=odd) for d in found.distances]
    biases = [b.model_copy(update={"mean": float("nan"), "spread": float("inf")}) for b in found.biases]
    return Records(bench(*(speed("flash", n, errors=wild) for n in (16, 2**31 - 1))),
                   silicon(distances=distances, biases=biases))  # fmt: skip


UNUSUAL: dict[str, Callable[[], Records]] = {
    "hostile": hostile,
    "not numbers": not_numbers,
    "without flash": lambda: Records(bench(speed("other", 4096), speed("another", 4096)), None),
    "all failed": lambda: Records(
        bench(speed("flash", 512, None, "out of memory"), speed("x", 512, None, REASON)), None
    ),
    "one point": lambda: Records(bench(speed("flash", 512, backward=None, memory=None, errors={})), None),
    "nothing": lambda: Records(bench(), silicon(distances=[], biases=[], exact=[], cases=0)),
    "only silicon": lambda: Records(None, silicon()),
    "twelve implementations": lambda: Records(bench(*(speed(f"i{i}", n) for i in range(12) for n in (64, 65))), None),
}  # fmt: skip


def text_of(page: str) -> str:
    """What is read: no scripts, no style, no tags."""
    page = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    found: dict[str, Any] = json.loads(text)["hardware"]
    return found


def line_of(page: str, name: str) -> str:
    """An implementation's row in the first table."""
    table = page.partition("implementations")[2].partition("</table>")[0]
    (row,) = [row for row in re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL) if f">{name}</th>" in row]
    return text_of(row)


# ------------------------------------------------------------------------------------------------- the page


def test_alone_it_claims_nothing_about_runs() -> None:
    page = render([], [both()])
    assert "<title>GPU X · flashproof report</title>" in page
    assert "<h1>GPU X</h1>" in page
    assert "Skip to the records" in page
    assert re.findall(r'<section id="(\w+)"', page) == ["gpu"]
    for word in ("Verdict", "Findings", "Coverage", "results.parquet"):
        assert word not in text_of(page)


def test_beside_runs_it_follows_them() -> None:
    page = render([small_run()], [both()])
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections.index("gpu") == sections.index("coverage") + 1
    assert sections[0] == "verdict"
    assert "Skip to the verdict" in page
    without = render([small_run()])
    assert "On a GPU" not in without
    assert data_of(without) == {"benches": [], "silicons": [], "bins": list(hardware_page.BINS)}


def test_without_anything_there_is_no_page() -> None:
    with pytest.raises(ValueError, match="at least one"):
        render([], [])


def test_the_circumstances_are_told() -> None:
    text = text_of(render([], [both()]))
    assert text.count("GPU X, driver 1.2, torch 9.8.7, 2026-01-01T00:00:00+00:00.") == 2
    assert text.count("flashproof bench --out gpu Copy") == 2


def test_the_first_table_compares_with_the_bundled_kernel() -> None:
    page = render([], [both()])
    assert line_of(page, "flash") == "flash 1 1 1.00 – 16 of 16 problems –"
    assert line_of(page, "other") == "other 1.50 (1.50) 1.50 (1.50) 1.00 – 16 of 16 problems –"
    assert line_of(page, "eager").startswith("eager 8.00 (8.00) 8.00 (8.00) 1.00 16")
    assert line_of(page, "eager").endswith("12 of 16 problems –")


def test_an_implementation_that_never_ran_is_listed_with_its_reason() -> None:
    page = render([], [both()])
    assert line_of(page, "broken") == f"broken – – – – none of 16 problems all of them: {REASON}"
    (found,) = data_of(page)["benches"]
    names = [label for label, *_ in found["series"]]
    assert [why for s, _, _, why in found["failed"] if names[s] == "broken"] == [REASON] * 16
    assert [n for s, _, n, why in found["failed"] if names[s] == "eager"] == [16384] * 4
    assert len(found["points"]) == 44
    assert page.count(f'<span title="{REASON}">✕</span>') == 2 * 16  # in the tables of speed and of memory


def test_without_the_bundled_kernel_nothing_is_compared_with_it() -> None:
    page = render([], [UNUSUAL["without flash"]()])
    assert "bundled" not in text_of(page)
    assert line_of(page, "other") == "other – – 1 of 1 problem –"


@pytest.mark.parametrize(("update", "figure"), [
    ({"forward": 123.0}, "points"), ({"backward": 123.0}, "points"), ({"memory": 2**40}, "points"),
    ({"errors": {"out": 9.75, "dq": 1.0}}, "errors"), ({"status": "refused"}, "failed"),
])  # fmt: skip
def test_a_number_that_changes_changes_its_figure_and_its_table(update: dict[str, Any], figure: str) -> None:
    record = everyday()
    changed = [s.model_copy(update=update) if (s.implementation, s.N) == ("other", 4096) else s for s in record.results]
    before, after = (render([], [Records(bench(*results), None)]) for results in (record.results, changed))
    assert data_of(before)["benches"][0][figure] != data_of(after)["benches"][0][figure]
    assert text_of(before) != text_of(after)


@pytest.mark.parametrize(("part", "update", "figure"), [
    ("distances", {"shares": (0.25, 0.7, 0.05, 0.0, 0.0, 0.0)}, "distances"),
    ("distances", {"beside_error": 0.125}, "distances"),
    ("biases", {"mean": 0.375}, "biases"), ("biases", {"spread": 0.375}, "biases"), ("exact", {"mismatches": 77}, ""),
])  # fmt: skip
def test_so_it_is_beside_the_interpreter(part: str, update: dict[str, Any], figure: str) -> None:
    record = silicon()
    changed = record.model_copy(update={part: tuple(x.model_copy(update=update) for x in getattr(record, part))})
    before, after = (render([], [Records(None, r)]) for r in (record, changed))
    if figure:
        assert data_of(before)["silicons"][0][figure] != data_of(after)["silicons"][0][figure]
    assert text_of(before) != text_of(after)


def test_the_figures_have_the_numbers_of_the_record() -> None:
    """2, 5 and 7 matrix products; the time of both passes is the sum; memory is of one batch element."""
    one = speed("flash", 4096, 2.0, causal=True)
    (found,) = data_of(render([], [Records(bench(one), None)]))["benches"]
    product = 2 * 2 * 4 * 4096**2 * 64 / 2
    rates = [2 * product / 2e-3, 5 * product / 6e-3, 7 * product / 8e-3]
    ((_, _, n, *numbers),) = found["points"]
    assert n == 4096
    assert numbers == pytest.approx([*(r * 1e-12 for r in rates), 1000 * 4096 / 2 / 2**20], rel=1e-3)
    assert found["panels"] == [["bf16, D 64", "causal"]]


def test_errors_are_those_at_the_longest_length_that_has_them() -> None:
    (view,) = hardware_page.view([Records(everyday(), None)], {}, 100, 100).benches
    assert {s.N for s in view.compared} == {4096}
    assert {s.implementation for s in view.compared} == {"flash", "other", "eager"}
    assert view.tensors == ["out", "dq"]


def test_colours_are_those_of_the_runs() -> None:
    assert hardware_page.keys(["flash", "eager", "b"], {}) == {"flash": "k0", "eager": "std", "b": "k1"}
    beside = hardware_page.keys(["flash", "eager", "b"], {"b": "k0", "eager": "k1"})
    assert beside == {"b": "k0", "eager": "k1", "flash": "k2"}
    many = hardware_page.keys([f"i{n}" for n in range(20)], {})
    assert set(many.values()) == {*hardware_page.KEYS, "std"}


def test_distances_and_counts_are_told() -> None:
    text = text_of(render([], [Records(None, silicon())]))
    assert "out fp16 the same ieee 7 12 345 90 % 5 % 3 % 1 % 0.75 % 0.25 % 0.01" in text.replace("\u202f", " ")
    assert "fp16 204 800 0 yes fp32 1 000 3 no" in text.replace("\u202f", " ")
    assert "flash fp16 4 096 4 096 −4.10e-05 1.0e-06 −0.0839" in text.replace("\u202f", " ")


@pytest.mark.parametrize("name", UNUSUAL)
def test_every_record_becomes_a_sound_page(name: str) -> None:
    page = render([], [UNUSUAL[name]()])
    assert len(page.encode()) <= MAX_BYTES
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    headings = [int(n) for n in re.findall(r"<h([1-6])\b", page)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert len(re.findall(r"<script\b[^>]*>", page)) == 4  # data, two libraries, ours
    assert "<img" not in page
    data_of(page)


def test_hostile_text_stays_text() -> None:
    page = render([small_run(HOSTILE)], [hostile()])
    assert "&lt;script&gt;document.title=" in page
    assert "<script>document" not in page
    assert "{{7*7}}" in page


def test_enormous_records_fit() -> None:
    record = everyday()
    statuses = {"ok": "ok", REASON: REASON * 50}
    results = [s.model_copy(update={"implementation": f"{i} {'x' * 3000}", "status": statuses[s.status]})
               for i in range(400) for s in record.results[:12]]  # fmt: skip
    distances = [d.model_copy(update={"tensor": f"t{i}"}) for i in range(3000) for d in silicon().distances[:1]]
    page = render([small_run()], [Records(bench(*results), silicon(distances=distances))] * 3)
    assert len(page.encode()) <= MAX_BYTES
    text = text_of(page).replace("\u202f", " ")
    assert text.count("more implementations in the record.") == 3
    assert len(re.findall(r"3 600 of 4 800 measurements ran, and the first [\d ]+ are drawn\.", text)) == 3


def test_what_is_left_out_is_told() -> None:
    page = render([], [Records(bench(*(speed("flash", n) for n in range(16, 16 + 30))), None)])
    assert text_of(page).count("6 longer lengths in the record.") == 2
    assert "more implementation" not in page


# ------------------------------------------------------------------------------------------ the command line


def written(folder: Path, records: Records) -> Path:
    folder.mkdir()
    for name, record in (("bench", records.bench), ("silicon", records.silicon)):
        if record is not None:
            write_json_atomic(folder / f"{name}.json", record)
    return folder


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*FLASHPROOF, "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_records_alone_are_reported_in_the_first_folder(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, both()) for name in ("first", "second"))
    done = report(first, second)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{first / 'report.html'}, ")
    text = text_of((first / "report.html").read_text())
    assert "Speed, memory and accuracy on GPU X " in text
    assert "Speed, memory and accuracy on GPU X #2" in text
    assert "flash on GPU X #2, beside the interpreter" in text


@pytest.mark.parametrize("runs_first", [True, False])
def test_records_and_runs_mix_in_any_order(tmp_path: Path, runs_first: bool) -> None:
    from flashproof.reports.record import write

    run = tmp_path / "run"
    run.mkdir()
    found = small_run()
    write(Run(run, found.manifest, found.verdict, (), ()))
    gpu = written(tmp_path / "gpu", both())
    out = tmp_path / "all.html"
    done = report(*((run, gpu) if runs_first else (gpu, run)), "--out", out)
    assert done.returncode == 0, done.stderr
    assert re.findall(r'<section id="(\w+)"', out.read_text())[-3:] == ["gpu", "method", "environment"]
    written_into = written(tmp_path / "other", both())
    (run / "bench.json").write_bytes((written_into / "bench.json").read_bytes())
    assert report(run, "--out", out).returncode == 0
    assert 'id="bench-0"' in out.read_text(), "a run that has a record beside it"


@pytest.mark.parametrize(("content", "says"), [
    (None, "is not a run (no manifest.json): give"),
    ('{"schema_": 1, "created"', "bench.json is damaged or cut short"),
    ("[1, 2]", "bench.json has no schema number"),
    ('{"hello": 1}', "bench.json has no schema number"),
    ('{"schema_": 99}', "upgrade flashproof"),
    ('{"schema_": 1}', "key 'created' is missing"),
])  # fmt: skip
def test_what_is_no_record_is_refused_in_a_line(tmp_path: Path, content: str | None, says: str) -> None:
    gpu = tmp_path / "gpu"
    gpu.mkdir()
    if content is not None:
        (gpu / "bench.json").write_text(content)
    done = report(gpu)
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.startswith("flashproof: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not (gpu / "report.html").exists()


# ---------------------------------------------------------------------------------------------- in a browser

MARKS = """() => Object.fromEntries([...document.querySelectorAll("#gpu .drawing")].map((e) => [
  e.id.replace("-drawing", ""),
  e.querySelectorAll(["line", "dot", "rule", "bar"].map((m) => `[aria-label=${m}] > *`).join()).length]))"""


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn(opened: Opened, width: int, scheme: str) -> None:
    page, trouble = opened(render([], [both()]), viewport={"width": width, "height": 900}, color_scheme=scheme)
    marks = page.evaluate(MARKS)
    assert set(marks) == {*BENCH_FIGURES, *SILICON_FIGURES}
    assert all(count > 3 for count in marks.values()), marks
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = page.evaluate("""() => [...document.querySelectorAll(".drawing text")].filter((e) => {
      const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth; }).length""")
    assert outside == 0
    assert trouble == []


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_records_are_drawn_without_complaint(opened: Opened, name: str) -> None:
    page, trouble = opened(render([small_run()], [UNUSUAL[name]()]), viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert "could not be drawn" not in page.locator("#gpu").inner_text()
    assert page.title() != "pwned"
    assert trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_audit_is_clean(opened: Opened, audited: Callable[[Page], list[str]], scheme: str) -> None:
    page, trouble = opened(render([], [both(), both()]), color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    assert audited(page) == []
    assert trouble == []


def test_a_failure_is_a_cross_under_the_line(opened: Opened) -> None:
    """As many as there are; and as soon as one of them runs, one fewer."""
    crosses = (
        """() => [...document.querySelectorAll("#bench-0-speed-drawing [aria-label=dot]")].at(-1).childElementCount"""
    )
    results = everyday().results[:16]  # one panel
    for left in (5, 4):
        page, _ = opened(render([], [Records(bench(*results), None)]))
        assert page.evaluate(crosses) == left
        results = tuple(speed("broken", 512) if (s.implementation, s.N) == ("broken", 512) else s for s in results)


def test_pickers_redraw(opened: Opened) -> None:
    page, trouble = opened(render([], [both()]))
    for figure, choice in (("bench-0-speed", "4"), ("bench-0-errors", "1")):
        before = page.locator(f"#{figure}-drawing").inner_html()
        page.locator(f"#{figure} select").select_option(choice)
        assert page.locator(f"#{figure}-drawing").inner_html() != before
    assert trouble == []


def test_bars_are_as_long_as_their_shares(opened: Opened) -> None:
    page, _ = opened(render([], [Records(None, silicon())]))
    widths = page.evaluate("""() => [...document.querySelectorAll("#silicon-0-distances-drawing [aria-label=bar]")]
      .map((bars) => [...bars.children].slice(0, 5).map((e) => e.getBoundingClientRect().width + 0.5))""")
    for bars in widths:
        assert [w / sum(bars) for w in bars] == pytest.approx([0.5, 0.3, 0.1, 0.075, 0.025], abs=0.02)


def test_tables_need_no_script(opened: Opened) -> None:
    page, trouble = opened(render([], [both()]), java_script_enabled=False)
    assert page.locator("#gpu table").count() == 7
    assert page.locator(".implementations").is_visible()
    for figure in (*BENCH_FIGURES, SILICON_FIGURES[0], SILICON_FIGURES[2]):
        page.locator(f"#{figure} summary").click()
        assert page.locator(f"#{figure} table").is_visible()
    assert not page.locator(".controls").first.is_visible()
    assert trouble == []
