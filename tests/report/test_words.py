"""Numbers, sizes and long texts in words."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from flashproof.reports import words
from flashproof.reports.html import render
from flashproof.reports.record import Answer
from flashproof.reports.templates import SIZE, sized

from .synthetic import UNUSUAL, make_rows, make_run


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (math.nan, "NaN"),
        (-math.inf, "−∞"),
        (0.5, "0.5"),
        (-0.25, "−0.25"),
        (12.345, "12.3"),
        (1.2345e-7, "1.23e-07"),
        (12345.0, "12\u202f345"),
        (0.9996, "1"),
        (100.0, "100"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.507, "0.51"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (0.0042, "0.004"),
        (1e-9, "<0.001"),
        (0.0996, "0.10"),
        (None, "–"),
    ],
)
def test_ratios(value: float | None, text: str) -> None:
    assert words.ratio(value) == text


@pytest.mark.parametrize(("n", "text"), [(1, "1 byte"), (640, "640 bytes"), (48_300, "48 kB"), (1_107_550, "1.1 MB")])
def test_sizes(n: int, text: str) -> None:
    assert words.size(n) == text


@pytest.mark.parametrize("name", ["one case", "hostile", "two runs"])
def test_a_page_tells_its_own_size(name: str) -> None:
    page = render(UNUSUAL[name]())
    (told,) = re.findall(r'<span id="size">(.*?)</span>', page)
    assert told == f"{words.size(len(page.encode()))} ({words.plural(len(page.encode()), 'byte')})"


def test_a_size_counts_its_own_figures() -> None:
    """Where they make the page longer by a digit."""
    for n in (*range(9_960, 10_000), *range(99_960, 100_000)):
        page = sized("x" * n + SIZE)
        assert words.plural(len(page.encode()), "byte") in page
    with pytest.raises(ValueError, match="no place"):
        sized("x")


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("One clause.", 5, ("One clause.", "")),
        ("One; two; three.", 8, ("One; two", "three.")),
        ("One; two; three.", 16, ("One; two; three.", "")),
        ("Long as it is; two; three.", 4, ("Long as it is", "two; three.")),
    ],
)
def test_a_text_is_parted_between_clauses(text: str, limit: int, parts: tuple[str, str]) -> None:
    assert words.parted(text, limit) == parts
    assert "; ".join(filter(None, parts)) == text


def test_a_long_answer_unfolds_and_loses_nothing() -> None:
    clauses = [f"clause {i} of twenty, with so many words that they fill the card" for i in range(20)]
    answer = Answer(status="pass", evidence="; ".join(clauses))
    run = make_run(20)
    exactness = run.verdict.exactness.model_copy(update={"accuracy": answer})
    page = render([replace(run, verdict=run.verdict.model_copy(update={"exactness": exactness}))])
    card = page.partition("<dt>Accuracy")[2].partition("</div>")[0]
    shown, _, folded = card.partition("<details>")
    assert [c in shown for c in clauses] == [True] * 4 + [False] * 16
    assert all(c in folded for c in clauses[4:])
    assert "<details>" not in page.partition("<dt>Bitwise")[2].partition("</div>")[0]


def test_replay_is_quoted_for_a_shell() -> None:
    import shlex

    row = replace(make_rows(1)[0], case_json='{"x": "it\'s $HOME"}')
    assert shlex.split(words.replay(row, "my file.py:f")) == [
        "flashproof",
        "replay",
        row.case_json,
        "my file.py:f",
    ]
