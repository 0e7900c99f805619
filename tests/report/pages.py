"""Reading pages as text: their outline, and the data that they draw."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from flashproof.reports.html import MAX_BYTES, render
from flashproof.reports.record import Run


class Reader(HTMLParser):
    """What every page has: text outside scripts and styles, ids, sources, and what stays open."""

    SPACED = ("td", "th", "dt", "dd")  # their text does not follow on what stands before

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.text += " " if tag in self.SPACED else ""
        self.ids += [i for i in (values.get("id"),) if i]
        self.sources += [str(values[name]) for name in ("src", "href", "action", "data") if name in values]
        if tag not in ("meta", "link", "img", "br", "wbr", "path", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "circle", "rect"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data


class Outline(Reader):
    """Headings and scripts of a report of runs."""

    def __init__(self, page: str) -> None:
        self.headings: list[int] = []
        self.scripts: list[tuple[str | None, str]] = []
        super().__init__(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attributes)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "script":
            self.scripts.append((dict(attributes).get("type"), ""))

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)


def outline(runs: list[Run]) -> Outline:
    page = render(runs)
    assert len(page.encode()) <= MAX_BYTES
    return Outline(page)


def drawn_data(page: Outline) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (text,) = (text for kind, text in page.scripts if kind == "application/json")
    value: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return value
