"""What GitHub is told, where it runs us: the step's summary, and annotations of the change."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click


def tell(page: str, annotations: Iterable[str]) -> None:
    """Append a page to the step's summary, print annotations; elsewhere nothing."""
    if os.environ.get("GITHUB_ACTIONS"):
        for line in annotations:
            click.echo(line)
    if target := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(target).open("a", encoding="utf-8") as file:
                file.write(page)
        except OSError as e:  # the step's page is a courtesy; the verdict stands without it
            click.echo(f"flashproof: the step's summary cannot be written: {e}", err=True)
