"""Tables and text in Markdown: what comes from a record stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .words import clip


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; its cells are Markdown already."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inline(text: str) -> str:
    """Text from a record as one line of Markdown that stays text: no markup, no table or line break."""
    line = " ".join(clip(text, 1000).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~@])", r"\\\1", line)


def block(text: str) -> str:
    """A fenced block whose fence is longer than any run of backticks in it."""
    body = clip(text, 4000)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    return f"{fence}sh\n{body}\n{fence}"
