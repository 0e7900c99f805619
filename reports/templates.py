"""Pages that need nothing else: their templates, what these have in common, and how a page is made to fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from . import words
from .rows import encodable

_HERE = Path(__file__).parent


def template(name: str, *, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> jinja2.Template:
    """A template of this folder, with filters and values of its own beside those that all have; text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    common = {"number": words.number, "ratio": words.ratio, "count": words.count, "duration": words.duration}
    environment.filters |= common | dict(filters or {})
    environment.globals |= {"plural": words.plural, "meaning": words.meaning} | values
    return environment.get_template(name)


def text_of(name: str) -> Markup:
    """A file of this folder, to stand in a page as it is."""
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def style(*more: str) -> Markup:
    """The looks that all pages have, and those of further files."""
    return Markup("").join(map(text_of, ("style.css", *more)))


#: where a page tells its size; text is escaped, and JSON has no `<`, so nothing of a record can look like it
SIZE = Markup('<span id="size"></span>')


def sized(page: str) -> str:
    """The page with its own size in bytes where SIZE stands."""
    before, mark, after = encodable(page).partition(SIZE)
    if not mark:
        raise ValueError("the page has no place for its size")
    others = len((before + after).encode())
    total = 0
    while (now := others + len(_told(total).encode())) != total:  # the figures count as well
        total = now
    return before + _told(total) + after


def _told(n: int) -> str:
    return f'<span id="size">{words.size(n)} ({words.plural(n, "byte")})</span>'


def fitting(pages: Iterable[str], most: int) -> str:
    """The first page of at most so many bytes, or the last; in characters that UTF-8 has."""
    page = ""
    for made in pages:
        page = encodable(made)
        if len(page.encode()) <= most:
            break
    return page
