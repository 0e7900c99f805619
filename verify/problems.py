"""Errors that a user causes or meets, each one line and an exit code (pytest's)."""

from __future__ import annotations

PASS, FAIL, INTERRUPTED, INTERNAL, USAGE, NOTHING = range(6)


class FlashproofError(Exception):
    """One clear line for the user; `exit_code` is what the command ends with."""

    exit_code = INTERNAL


class UsageError(FlashproofError):
    """Bad input or configuration."""

    exit_code = USAGE


class NothingMeasuredError(FlashproofError):
    """The command ran, but there is nothing to judge."""

    exit_code = NOTHING
