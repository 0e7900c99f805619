"""The page and the tables of a selftest say what its record holds, escape it, and fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flashproof.reports.kills import CleanResult, Fit, Kill, MutantResult, PeerRule, Phase, SelfTest
from flashproof.reports.selftest_page import MAX_BYTES, render
from flashproof.reports.selftest_summary import checks_table, markdown, peers_table
from flashproof.reports.tallies import theory

from .pages import Reader

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Opened = Callable[..., tuple[Page, list[str]]]

HOSTILE = "</script><script>document.title='pwned'</script><img src=x onerror=alert(2)>{{7*7}}|`\n\x00\u2028\"'&"


def kill(check: str, cases: int, phase: Phase = "survey", *tensors: str) -> Kill:
    return Kill(check=check, tensors=tensors, phase=phase, cases=cases)


def mutant(name: str, *kills: Kill, worst: float | None = 40.0, **values: Any) -> MutantResult:
    defaults: dict[str, Any] = {
        "mirrors": f"{name}/repo #1",
        "what": f"What {name} does.",
        "tensors": ("dq",),
        "cases": 32,
    }
    return MutantResult(name=name, kills=kills, worst=worst, **(defaults | values))


MUTANTS = (
    mutant("coarse", kill("bound", 1, "survey", "dq", "out"), kill("algebra", 4, "exact"), hunted=1),
    mutant("fine", kill("bound", 1200, "survey", "out"), worst=1.1, tensors=("out",), hunted=7, accepted_by=("Lax",)),
    mutant("formula", kill("algebra", 2, "exact", "dq"), worst=None, accepted_by=("Lax", "Strict")),
    mutant("both", kill("bound", 3), kill("bound", 128, "sample", "dq"), kill("algebra", 1, "exact"), hunted=2),
)
SURVIVOR = mutant("ghost", worst=0.9, accepted_by=("Strict",))
CLEAN = (
    CleanResult(name="flash", what="The bundled kernel.", cases=1000, alarms=()),
    CleanResult(name="variant", what="Another.", cases=500, alarms=(), left_out="empty rows"),
)
PEERS = (
    PeerRule(name="Lax", source="lax/repo tests/a.py", tensors=("out",), differs="smaller shapes"),
    PeerRule(name="Strict", source="strict/repo tests/b.py", tensors=("out", "dq"), differs="no dropout"),
)


def selftest(*more: MutantResult, **values: Any) -> SelfTest:
    defaults: dict[str, Any] = {
        "created": "2026-11-20T11:00:00+00:00", "command": "flashproof selftest --out x", "seed": 5, "quick": False,
        "seconds": 187.3, "versions": {"torch": "2.13.0"}, "gates": ("bound", "algebra"), "mutants": (*MUTANTS, *more),
        "clean": CLEAN, "peers": PEERS,
    }  # fmt: skip
    return SelfTest(**(defaults | values))


def without_peers(found: SelfTest) -> SelfTest:
    mutants = tuple(m.model_copy(update={"accepted_by": None, "hunted": None}) for m in found.mutants)
    return found.model_copy(update={"mutants": mutants, "peers": ()})


class Outline(Reader):
    """Tables by their region's name, as rows of (text, title); how many scripts there are."""

    SPACED = ("dt", "dd", "small", "td", "th")

    def __init__(self, page: str) -> None:
        self.tables: dict[str, list[list[str]]] = {}
        self.region, self.scripts, self.titles = "", 0, [""]
        super().__init__(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attributes)
        values = dict(attributes)
        self.region = values["aria-label"] or "" if values.get("role") == "region" else self.region
        self.titles += [text for text in (values.get("title"),) if text]
        self.scripts += tag == "script"
        if tag == "tr":
            self.tables.setdefault(self.region, []).append([])
        if tag in ("td", "th"):
            assert tag == "td" or values.get("scope") in ("col", "row", "rowgroup")
            self.tables[self.region][-1].append("")

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        if {"td", "th"} & set(self.open):
            self.tables[self.region][-1][-1] += data


def outline(found: SelfTest) -> Outline:
    page = render(found)
    assert len(page.encode()) <= MAX_BYTES
    read = Outline(page)
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    assert all(s.startswith(("#", "data:,")) for s in read.sources)
    assert read.scripts == 1
    read.text = " ".join(read.text.split())
    return read


def row(page: Outline, region: str, name: str) -> list[str]:
    (found,) = (r for r in page.tables[region] if " ".join(r[0].split()).startswith(name))
    return [" ".join(cell.split()) for cell in found]


def test_the_first_screen_has_the_sentence_and_the_figures() -> None:
    text = outline(selftest()).text
    assert (
        "Every mutant killed 4 of 4 mutants killed, 1 of them subtle; no alarm in 1 500 cases of 2 clean kernels: "
        in (text)
    )
    assert "less than 0.002 per case at 95 %." in text
    assert "Survey finds after 3 cases median; at most 1 200; 3 of 4 mutants" in text
    assert "flashproof selftest --out x" in text
    for part in ("3 min 7 s", "torch 2.13.0", "seed 5", "at most 7;"):
        assert part in text


def test_the_matrix_of_kills() -> None:
    page = outline(selftest())
    region = "Kill matrix"
    assert row(page, region, "mutant")[:5] == ["mutant", "case", "worst", "bound", "algebra"]
    assert row(page, region, "fine subtle")[1:5] == ["1 200", "1.10", "◆", ""]
    assert row(page, region, "formula")[1:5] == ["exact", "–", "", "◆"]
    assert row(page, region, "coarse")[1:] == ["1", "40.0", "●", "●", "What coarse does. coarse/repo #1"]
    assert row(page, region, "kills")[3:5] == ["3", "3"]
    assert row(page, region, "only it kills")[3:5] == ["1", "1"]
    assert "bound: after 1 case of the survey (dq, out)" in page.titles
    assert "bound: after 3 cases of the survey; in a sample of 128 cases (dq)" in page.titles
    assert "algebra: in exact arithmetic, after 2 problems (dq)" in page.titles
    assert row(page, "Checks", "bound")[1:4] == ["3", "1", "fine"]


def test_a_survivor_is_shown_as_one() -> None:
    page = outline(selftest(SURVIVOR))
    assert "1 mutant survives 4 of 5 mutants killed" in page.text
    assert "No check kills ghost." in page.text
    assert page.tables["Kill matrix"][1] == ["No check kills these: 1"]
    assert row(page, "Kill matrix", "ghost ✕ survives subtle")[3:5] == ["", ""]
    assert row(page, "Mutants that peers accept", "ghost")[2] == "missed"
    assert row(page, "Mutants that peers accept", "accepts")[2] == "1"


def test_what_peers_accept() -> None:
    page = outline(selftest())
    region = "Mutants that peers accept"
    assert row(page, region, "mutant")[2:5] == ["flashproof", "Lax", "Strict"]
    assert row(page, region, "formula")[2:5] == ["", "unseen", "missed"]  # Lax compares out alone, dq is wrong
    assert row(page, region, "fine")[2:5] == ["", "missed", ""]
    assert row(page, region, "accepts, of 4")[2:5] == ["0", "2", "1"]
    assert row(page, "Peers", "flashproof")[1] == "0 of 4"
    assert row(page, "Peers", "Lax")[1:] == ["2 of 4", "1", "1", "out", "lax/repo tests/a.py", "smaller shapes"]
    assert [r[0] for r in page.tables["Peers"]] == ["peer", "flashproof", "Strict", "Lax"]


def test_without_peers_there_is_no_such_section() -> None:
    found = without_peers(selftest())
    page = outline(found)
    assert not {"missed", "peers"} & set(page.ids)
    assert "peer" not in page.text.lower()
    assert "Hunt alone" not in page.text
    assert peers_table(found) == ""
    assert "peer" not in markdown(found)


def test_clean_kernels_have_their_bound() -> None:
    page = outline(selftest())
    assert row(page, "Clean kernels and their alarms", "flash")[1:4] == ["1 000", "0.003", "none"]
    other = row(page, "Clean kernels and their alarms", "variant")
    assert other[1:] == ["500", "0.006", "none", "Another.", "empty rows"]
    flagged = CLEAN[0].model_copy(update={"alarms": ("ratio of dq: 1.2",)})
    page = outline(selftest(clean=(flagged, CLEAN[1])))
    assert "1 clean kernel flagged" in page.text
    assert "1 of 2 clean kernels flagged in 1 500 cases." in page.text
    assert "per case at 95 %." not in page.text[: page.text.index("Mutants killed")]
    assert row(page, "Clean kernels and their alarms", "flash")[2:4] == ["–", "flagged ratio of dq: 1.2"]
    assert "no clean kernel was tried." in outline(selftest(clean=())).text


def test_a_check_that_no_mutant_needs_is_named() -> None:
    page = outline(selftest(gates=("bound", "algebra", "kept")))
    assert "1 check that no mutant needs" in page.text
    assert "No mutant needs kept: nobody would miss it." in page.text


def test_a_quick_selftest_claims_nothing_of_single_checks() -> None:
    found = selftest(SURVIVOR, quick=True)
    page = outline(found)
    assert "only it" not in page.text
    assert "◆" not in page.text
    assert "was let go when it was found out" in page.text
    assert "| bound | 3 | – |" in checks_table(found)
    assert 'class="verdict bad"' in render(found)  # 4 of 5 are too few
    assert 'class="verdict open"' in render(selftest(*MUTANTS, *MUTANTS, SURVIVOR, quick=True))


def test_a_check_beyond_the_gates_has_a_column() -> None:
    page = outline(selftest(mutant("odd", kill("unheard-of", 1))))
    assert row(page, "Kill matrix", "mutant")[3:6] == ["bound", "algebra", "unheard-of"]
    assert row(page, "Kill matrix", "odd")[3:6] == ["", "", "◆"]


def test_text_from_a_record_stays_text() -> None:
    odd = mutant(HOSTILE, kill(HOSTILE, 1, "survey", HOSTILE), mirrors=HOSTILE, what=HOSTILE, accepted_by=(HOSTILE,))
    peer = PeerRule(name=HOSTILE, source=HOSTILE, tensors=(HOSTILE,), differs=HOSTILE)
    clean = CleanResult(name=HOSTILE, what=HOSTILE, cases=4, alarms=(HOSTILE,), left_out=HOSTILE)
    found = selftest(odd, peers=(peer,), clean=(clean,), command=HOSTILE, versions={HOSTILE: HOSTILE}, created=HOSTILE)
    page = outline(found)
    assert page.text.count("document.title='pwned'") > 10
    assert "{{7*7}}" in page.text
    for text in (markdown(found), checks_table(found), peers_table(found)):
        assert "<script" not in text
        for line in text.splitlines():
            if line.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", line)) in (4, 5)


def test_a_large_record_fits() -> None:
    many = [
        m.model_copy(update={"name": f"{m.name}-{i}", "what": "w" * 900, "mirrors": "m" * 900})
        for i in range(400)
        for m in MUTANTS
    ]
    page = outline(selftest(*many))
    assert re.search(r"and 1.\d\d\d more mutants: all are in selftest.json", page.text)
    assert row(page, "Kill matrix", "kills")[3] == "1 203"


def test_nothing_tried_is_a_page_too() -> None:
    page = outline(selftest(mutants=(), clean=(), peers=(), quick=True))
    assert "No mutant tried 0 of 0 mutants killed" in page.text


def test_tables_for_a_readme() -> None:
    lines = peers_table(selftest(SURVIVOR)).splitlines()
    assert lines[0] == "| peer | mutants it accepts, of 5 | subtle ones among them, for example |"
    assert lines[2:] == [
        "| **flashproof** | 1 | ghost |",
        "| Lax | 2, 1 of them in tensors that it does not compare | fine |",
        "| Strict | 2 | ghost |",
    ]
    assert checks_table(selftest()).splitlines()[2:] == [
        "| bound | 3 | 1 | fine: What fine does. |",
        "| algebra | 3 | 1 | formula: What formula does. |",
    ]
    text = markdown(selftest())
    assert text.startswith("4 of 4 mutants killed")
    assert checks_table(selftest()) in text
    assert peers_table(selftest()) in text


def test_the_page_is_a_function_of_the_record() -> None:
    again = SelfTest.model_validate_json(selftest(SURVIVOR).model_dump_json())
    assert render(again) == render(selftest(SURVIVOR))


def test_out_has_all_three_files(tmp_path: Path) -> None:
    from flashproof.verify.cli.folder import made
    from flashproof.verify.cli.selftest import _recorded
    from flashproof.verify.problems import UsageError

    folder = tmp_path / "a" / "b"
    made(folder)
    _recorded(folder, selftest())
    assert sorted(p.name for p in folder.iterdir()) == ["selftest.html", "selftest.json", "selftest.md"]
    assert (folder / "selftest.html").read_text(encoding="utf-8") == render(selftest())
    assert (folder / "selftest.md").read_text(encoding="utf-8") == markdown(selftest())
    assert SelfTest.model_validate_json((folder / "selftest.json").read_text(encoding="utf-8")) == selftest()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        made(tmp_path / "file" / "below")


# ---------------------------------------------------------------------------------------------- in a browser


def large() -> SelfTest:
    gates = tuple(f"some-check-{i}" for i in range(15))
    peers = tuple(PeerRule(name=f"Project {i}", source="s" * 60, tensors=("out",), differs="d" * 90) for i in range(14))
    many = [
        mutant(f"a-mutant-of-a-long-name-{i}", *(kill(g, i) for g in gates[i % 3 :: 3]), accepted_by=("Project 3",))
        for i in range(60)
    ]
    return selftest(*many, SURVIVOR, gates=("bound", "algebra", *gates), peers=(*PEERS, *peers))


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_or_is_asked_for(opened: Opened, width: int, scheme: str) -> None:
    page, trouble = opened(render(large()), viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.locator(".marks").first
    box.evaluate("e => e.scrollTo(300, 700)")  # header and first column stay
    frame, head, corner = (
        box.bounding_box(), box.locator("thead th.turn").first.bounding_box(),
        box.locator("thead th.mutant").bounding_box(),
    )  # fmt: skip
    assert frame is not None
    assert head is not None
    assert corner is not None
    assert corner["x"] == pytest.approx(frame["x"], abs=2)
    assert head["y"] == pytest.approx(frame["y"], abs=2)
    assert page.title() == "flashproof selftest"
    assert trouble == []


def test_theory_is_told_with_what_broke_a_bound() -> None:
    def fit(tensor: str, beyond: int, slack: float | None, ratio: float | None) -> Fit:
        return Fit(
            tensor=tensor, dtype="bf16", cases=50, beyond=beyond, nearest=1.25 if beyond else 0.5, slack=slack,
            predicted=9 if ratio else 0, ratio=ratio, low=0.8 if ratio else None, high=1.1 if ratio else None,
            largest=1.5 if ratio else None,
        )  # fmt: skip

    clean = (
        CleanResult(
            name="flash", what="", cases=50, alarms=(), fits=(fit("out", 0, 12.0, 0.95), fit("lse", 0, None, None))
        ),
        CleanResult(name="other", what="", cases=50, alarms=(), fits=(fit("out", 2, 18.0, 0.5),)),
    )
    found = theory(selftest().model_copy(update={"clean": clean}))
    assert [(t.tensor, t.cases, t.beyond, t.nearest, t.slack) for t in found] == [
        ("out", 100, 2, 1.25, (12.0, 18.0)), ("lse", 50, 0, 0.5, None),
    ]  # fmt: skip
    assert found[0].predicted == clean[0].fits[0]
    assert found[1].predicted is None
    page = outline(selftest().model_copy(update={"clean": clean}))
    assert row(page, "Bounds and predictions", "out")[2:] == [
        "100", "2", "1.25", "12 to 18", "9", "0.95", "0.80 to 1.10", "1.50",
    ]  # fmt: skip


def test_an_accessibility_audit_is_clean(opened: Opened, audited: Callable[[Page], list[str]]) -> None:
    for scheme in ("light", "dark"):
        page, _ = opened(render(large()), color_scheme=scheme)
        assert audited(page) == []


def test_rows_are_sorted_and_go_back_into_groups(opened: Opened) -> None:
    page, trouble = opened(render(selftest(SURVIVOR)))
    table = page.locator(".matrix").first

    def shown() -> list[str]:
        return [name.split()[0] for name in table.locator("tbody:not([hidden]) th").all_inner_texts()]

    grouped = shown()
    button = table.locator("thead button", has_text="case")
    button.click()
    assert shown() == ["coarse", "both", "fine", "ghost", "formula"]
    assert table.locator("[aria-sort=ascending]").inner_text() == "case"
    button.click()
    assert shown() == ["fine", "both", "coarse", "ghost", "formula"]
    button.click()
    assert shown() == grouped
    table.locator("thead button", has_text="algebra").click()
    assert set(shown()[:3]) == {"coarse", "both", "formula"}
    assert trouble == []


def test_tables_need_no_script(opened: Opened) -> None:
    page, trouble = opened(render(selftest(SURVIVOR)), java_script_enabled=False)
    assert page.locator(".matrix").count() == 2
    assert page.get_by_role("img", name="bound: after 1 case of the survey (dq, out)").is_visible()
    assert not page.locator(".js").first.is_visible()
    assert trouble == []
