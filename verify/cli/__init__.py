"""The command line: its commands, and what they print."""

from .commands import cli, main

__all__ = ["cli", "main"]
