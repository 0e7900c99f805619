"""Reading a page as text: its outline, and the data that it draws."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from flashproof.reports.html import MAX_BYTES, render
from flashproof.reports.record import Run


class Outline(HTMLParser):
    """Headings, text outside scripts and styles, scripts, ids, and unclosed elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.text = ""
        self.scripts: list[tuple[str | None, str]] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "script":
            self.scripts.append((values.get("type"), ""))
        self.text += " " if tag in ("td", "th", "dt", "dd") else ""
        self.ids += [i for i in (values.get("id"),) if i]
        self.sources += [str(values[name]) for name in ("src", "href", "action", "data") if name in values]
        if tag not in ("meta", "link", "img", "br", "wbr", "path", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "circle", "rect"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] != "style":
            self.text += data


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
