"""The report of runs in a browser: drawn, accessible, and useful without scripts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from flashproof.reports.html import MAX_BYTES, render
from flashproof.reports.record import Run

from .synthetic import DIFFERENT, EQUAL, UNUSUAL, make_run, poor_accumulators, with_algebra

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Opened = Callable[..., tuple[Page, list[str]]]


MARKS = """() => Object.fromEntries([...document.querySelectorAll(".drawing")].map((e) => [e.id,
  e.querySelectorAll(["line", "dot", "rule", "bar", "rect"].map((m) => `[aria-label=${m}] > *`).join()).length]))"""


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn(opened: Opened, width: int, scheme: str) -> None:
    runs = [with_algebra(make_run(broken=True, name="my/kernels.py:attention"), EQUAL)]
    view = {"width": width, "height": 900}
    page, trouble = opened(render(runs), viewport=view, color_scheme=scheme)
    marks = page.evaluate(MARKS)
    known = ("ecdf", "scatter", "ulp", "bias", "cells", "bound", "predictor", "digits", "sites", "profiles")
    known += ("worst-rows", "worst-tiles", "ahead")
    assert set(marks) == {f"{name}-drawing" for name in known}
    assert all(count > 3 for count in marks.values()), marks
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_audit_is_clean(opened: Opened, audited: Callable[[Page], list[str]], scheme: str) -> None:
    runs = [with_algebra(make_run(broken=True), EQUAL), with_algebra(make_run(20), DIFFERENT, "different")]
    page, trouble = opened(render(runs), color_scheme=scheme)
    assert audited(page) == []
    assert trouble == []
    page.evaluate("""() => { document.querySelector("#findings h3").style.color = "rgb(128 128 128 / 0.5)";
                             document.querySelector("#findings .copy").textContent = ""; }""")
    assert {line.split(":")[0] for line in audited(page)} == {"color-contrast", "button-name"}  # it can fail


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_records_are_drawn_without_complaint(opened: Opened, name: str) -> None:
    page, trouble = opened(render(UNUSUAL[name]()), viewport={"width": 400, "height": 800})
    assert all(count > 0 for count in page.evaluate(MARKS).values())
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.title() != "pwned"
    assert trouble == []


def test_labels_of_small_plots_stay_inside(opened: Opened) -> None:
    run = with_algebra(make_run(), EQUAL)
    for width in (1400, 700, 400):
        page, _ = opened(render([run]), viewport={"width": width, "height": 900})
        outside = page.evaluate(
            """() => [...document.querySelectorAll(".drawing text")].filter((e) => {
              const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth; }).length""",
        )
        assert outside == 0


BARS = """() => [...document.querySelectorAll("#sites-drawing [aria-label=rect] > *")].map((e) => {
  const r = e.getBoundingClientRect(); return [r.left, r.right, Math.round(r.top), getComputedStyle(e).fill]; })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_are_as_long_as_their_parts(opened: Opened, scheme: str) -> None:
    page, trouble = opened(render([poor_accumulators()]), color_scheme=scheme)
    drawn = page.evaluate(BARS)
    assert len(drawn) == 12  # two tensors in two dtypes, three kinds each
    (p, accumulators, output) = drawn[:3]
    assert p[2] == accumulators[2] == output[2]
    assert (accumulators[1] - accumulators[0]) / (p[1] - p[0]) == pytest.approx(3, rel=0.03)
    assert p[1] < accumulators[0] < p[1] + 3
    fills = [bar[3] for bar in drawn]
    assert fills[1] == fills[4] != fills[7] == fills[10]  # the tensor whose check failed has a colour of its own
    text = page.locator("#sites-drawing").inner_text()
    assert "✕ accumulators 60 %" in text
    assert text.count("100 %") == 5  # the axis, and every total
    assert trouble == []


def test_digits_follow_their_line_or_leave_it(opened: Opened) -> None:
    runs = [with_algebra(make_run(20), EQUAL), with_algebra(make_run(20), DIFFERENT, "different")]
    page, trouble = opened(render(runs))
    sound, crossed = page.evaluate(
        """() => [...document.querySelectorAll("#digits-drawing [aria-label=dot]")].map((g) => [...g.children].map(
          (e) => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }))""",
    )
    (x, y), (further, lower) = sound
    assert further > x
    assert lower > y + 40
    assert [crossed[0][0], crossed[1][0]] == pytest.approx([x, further], abs=1)
    assert crossed[0][1] == pytest.approx(crossed[1][1], abs=1)
    assert crossed[0][1] < y - 40
    assert trouble == []


CELLS_TEXT = """() => [...document.querySelectorAll("#cells-drawing text")].map((e) => e.textContent)"""


def with_cells(low: float, high: float, allowed: tuple[float, ...]) -> Run:
    """A run with two cells, their ratios at the ends of the axis."""
    run = make_run(20)
    cells = tuple(
        cell.model_copy(update={"ratio": x, "low": x, "high": x, "allowed": allowed[i % len(allowed)]})
        for i, (cell, x) in enumerate(zip(run.verdict.cells, (low, high), strict=False))
    )
    return replace(run, verdict=run.verdict.model_copy(update={"cells": cells}))


@pytest.mark.parametrize(
    ("low", "high", "allowed", "label"),
    [(0.63, 1.28, (1.1,), "1.1 allowed"), (0.97, 1.02, (1.1,), "1.1 allowed"), (0.02, 0.9, (1.1, 0.5), "allowed"),
     (1.3, 40.0, (1.1,), "1.1 allowed")],
)  # fmt: skip
@pytest.mark.parametrize("width", [1400, 400])
def test_the_axis_of_the_cells_can_be_read(
    opened: Opened, low: float, high: float, allowed: tuple[float, ...], label: str, width: int
) -> None:
    page, trouble = opened(render([with_cells(low, high, allowed)]), viewport={"width": width, "height": 900})
    texts = page.evaluate(CELLS_TEXT)
    assert texts.count(label) == 1
    assert 3 <= sum(bool(re.fullmatch(r"[\d.]+|10[⁰¹²³⁴-⁹⁻]+", text)) for text in texts) <= 10
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert trouble == []


def test_buttons_and_points_copy_replay_commands(opened: Opened) -> None:
    page, trouble = opened(render([make_run(broken=True)]))
    page.locator("#findings .copy").first.click()
    page.locator("#announce", has_text="Copied: flashproof replay").wait_for(state="attached")
    plot = page.locator("#scatter-drawing svg").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.down()
    page.mouse.up()
    page.locator("#announce", has_text='replay \'{"B": 1, "H": 2').wait_for(state="attached")
    assert "click to copy" in page.locator("#scatter-drawing [aria-label=tip]").first.text_content()
    assert trouble == []


def test_the_scatter_plot_can_be_drawn_against_sizes_and_of_one_regime(opened: Opened) -> None:
    page, trouble = opened(render([make_run(40)]))
    count = "() => document.querySelectorAll('#scatter-drawing [aria-label=dot] > *').length"
    ticks = "() => document.querySelector('#scatter-drawing svg').textContent"
    all_of_them, against_logits = page.evaluate(count), page.evaluate(ticks)
    page.select_option("#scatter-axis", label="number of keys")
    assert page.locator("#scatter-name").inner_text() == "Number of keys"
    assert page.evaluate(ticks) != against_logits
    assert page.evaluate(count) == all_of_them
    regimes = page.locator("#scatter-regime option").all_inner_texts()
    counts = []
    for regime in regimes[1:]:
        page.select_option("#scatter-regime", label=regime)
        counts.append(page.evaluate(count))
    assert len(counts) > 1
    assert all(counts)
    assert sum(counts) == all_of_them
    assert trouble == []


@pytest.mark.parametrize("name", ["six runs", "nothing measured"])
def test_the_footer_tells_how_long_the_page_took(opened: Opened, name: str) -> None:
    page, trouble = opened(render(UNUSUAL[name]()))
    footer = page.locator("footer").inner_text()
    print(footer)  # noqa: T201  (a duration is shown, never asserted: it is the machine's)
    (size,) = re.findall(r"\(([\d\s]+) bytes\), loaded in \d+\.\d\d\ss", footer)
    assert 100_000 < int("".join(size.split())) <= MAX_BYTES
    assert ("figures drawn after" in footer) == (name == "six runs")
    assert trouble == []


def test_tables_need_no_script(opened: Opened) -> None:
    page, trouble = opened(render([with_algebra(make_run(), EQUAL)]), java_script_enabled=False)
    assert page.locator("table").count() >= 10
    page.locator("#ecdf summary").click()
    assert page.locator("#ecdf table").is_visible()
    page.locator("#sites summary").click()
    assert page.locator("#sites table").is_visible()
    assert page.locator("#exact table").first.is_visible()
    assert page.locator("noscript .warning").is_visible()
    assert re.search(r"This page: .*bytes\)\.$", page.locator("footer").inner_text())
    assert not page.locator(".controls").first.is_visible()
    assert not page.locator(".copy").first.is_visible()
    assert trouble == []
