"""The summary in Markdown, and annotations."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from flashproof.reports import overview
from flashproof.reports.html import render
from flashproof.reports.record import Standing
from flashproof.reports.summary import github_annotations, summary

from .synthetic import UNUSUAL, make_run, nothing


def test_the_summary_begins_with_the_verdict() -> None:
    text = summary(make_run(broken=True))
    assert text.startswith("## ❌ flashproof flash: fail\n\nExact, as far as this run can tell.")
    assert "| bitwise | ➖ different bits | 31 % |" in text
    assert text.index("**finite**") < text.index("**bound**")  # NaN is worse than any multiple
    assert "```sh\nflashproof replay '{\"B\": 1}' flash\n```" in text


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_summary_stays_markdown(name: str) -> None:
    for run in UNUSUAL[name]():
        text = summary(run)
        assert len(text.encode(errors="replace")) < 2**20
        outside = re.sub(r"(?ms)^(`{3,})sh$.*?^\1$", "", text)
        assert "<script" not in outside
        for line in outside.splitlines():
            if line.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", line)) in (4, 6)


def test_a_fence_cannot_be_closed_from_inside() -> None:
    run = make_run(20, broken=True)
    finding = run.findings[0].model_copy(update={"replay": "```\n# heading\n````"})
    assert "`````sh\n```\n# heading\n````\n`````" in summary(replace(run, findings=(finding,)))


def test_annotations_are_few_and_worst_first() -> None:
    run = make_run(20, broken=True)
    many = tuple(run.findings[0].model_copy(update={"observed": float(i), "detail": "a\nb: 5 %"}) for i in range(2, 30))
    lines = github_annotations(replace(run, findings=many))
    assert len(lines) == 9
    assert all(re.fullmatch(r"::error title=[^:,\n]*::[^\n]*", line) for line in lines)
    assert "29 observed" in lines[0]
    assert "a%0Ab: 5 %25" in lines[0]
    assert "21 more failures" in lines[-1]  # 20 findings, and the check that no finding is about
    assert github_annotations(make_run(20)) == []
    assert len(github_annotations(nothing([]))) == 1


def test_kinds_of_input_come_worst_first_with_their_intervals() -> None:
    def standing(regime: str, tensor: Any, ratio: float, status: Any, *, predicted: bool = True) -> Standing:
        return Standing(
            regime=regime, tensor=tensor, n=8, ratio=ratio, low=0.9 * ratio, high=1.1 * ratio, status=status, needs=5,
            predicted=predicted,
        )  # fmt: skip

    found = (
        standing("normal", "out", 0.6, "not worse"), standing("normal", "dq", 0.7, "not worse"),
        standing("offset", "out", 1.0, "not worse"), standing("offset", "dq", 3.0, "worse"),
        standing("late-spike", "dq", 1.4, "open"), standing("sink", "dq", 2.0, "worse", predicted=False),
    )  # fmt: skip
    kinds = overview.kinds(found)
    assert kinds.columns == ["out", "dq"]
    assert [kind for kind, _ in kinds.rows] == ["offset", "sink", "late-spike", "normal"]
    assert kinds.rows[2][1] == [None, found[4]]
    run = make_run()
    page = render([replace(run, verdict=run.verdict.model_copy(update={"standings": found}))])
    table = page.partition('class="heatmap kinds"')[2].partition("</table>")[0]
    cells = [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.findall(r"<td.*?</td>", table)]
    assert cells == [
        "1.00 0.90–1.10", "3.00 ✕ ○ 2.70–3.30", "·", "2.00 ✕ 1.80–2.20", "·", "1.40 ? 1.26–1.54", "0.60 0.54–0.66",
        "0.70 0.63–0.77",
    ]  # fmt: skip
    assert 'title="8 cases; 5 tell it from 1.5"' in table
    assert "heatmap kinds" not in render([run])
